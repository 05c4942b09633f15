"""A prior over finitely many pictures, whose score is exact: each is the centre of a narrow Gaussian.

    p(z_t | k) = N(a B_k, a^2 kernel^2 + s^2)     w_k = softmax_k log p(z_t | k) + log prior_k
    B = sum_k w_k B_k                             e = s (z_t - a B) / (a^2 kernel^2 + s^2)

Several views of one object are one picture: their posterior is joint. Where it rests is known, so that what a
distillation attains can be measured; no weights are needed. In many dimensions the posterior takes all for t < .9,
which `temperature` softens. What is true without words has to hold every picture that some words allow (Bayes), else
CFG of more than 1 leads away from both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from generation.priors import Condition, Process, process_levels
from scene.errors import InputError


def posterior(
    z_t: Tensor,
    a: Tensor,
    s: Tensor,
    bank: Tensor,
    kernel: float,
    *,
    log_prior: Tensor | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """w [B, K]: how much z_t [B, ...] is each of the pictures bank [K, ...] or [B, K, ...], at levels a, s [B].

    log_prior: [K] or [B, K], not normalised; even where it is None.
    """
    z, pictures = z_t.double().flatten(1), bank.double().flatten(-z_t.dim() + 1)  # [B, D]; [K, D] or [B, K, D]
    if pictures.dim() == 2:
        products = z @ pictures.T
    else:
        products = (pictures @ z[:, :, None])[..., 0]
    squared = z.square().sum(1, keepdim=True) + a[:, None] * (a[:, None] * pictures.square().sum(-1) - 2 * products)
    logits = -squared / (2 * _variance(a, s, kernel)[:, None] * temperature)
    return (logits if log_prior is None else logits + log_prior).softmax(dim=1)


def bank_noise(
    z_t: Tensor,
    a: Tensor,
    s: Tensor,
    bank: Tensor,
    kernel: float,
    *,
    log_prior: Tensor | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """e [B, ...] of the module's docstring; arguments as of `posterior`."""
    w = posterior(z_t, a, s, bank, kernel, log_prior=log_prior, temperature=temperature).to(z_t)
    pictures = bank.flatten(-z_t.dim() + 1)
    mean = (w @ pictures if pictures.dim() == 2 else (w[:, None] @ pictures)[:, 0]).view_as(z_t)
    wide = (-1, *[1] * (z_t.dim() - 1))
    return (s / _variance(a, s, kernel)).view(wide) * (z_t - a.view(wide) * mean)


def _variance(a: Tensor, s: Tensor, kernel: float) -> Tensor:
    return (a * kernel).square() + s.square()


class PictureBank:
    """The prior of given pictures, by text; the text None holds those of all texts whether they are given or not."""

    space: Literal["pixel", "latent"] = "pixel"
    guidance = 1.0
    name = "pictures"

    def __init__(
        self,
        banks: dict[str | None, Tensor],
        *,
        kernel: float = 0.1,
        temperature: float = 1.0,
        process: Process = "ddpm",
    ) -> None:
        """banks: by text, [K, V, C, h, w] in -1..1."""
        self.process: Process = process
        self.kernel, self.temperature = kernel, temperature
        self.banks = {**banks, None: torch.cat(list(banks.values()))}
        self.views, c, h, w = self.banks[None].shape[1:]
        self.shape = (c, h, w)

    def levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Of the process."""
        return process_levels(t, self.process)

    def encode(self, images: Tensor) -> Tensor:
        """Colours in -1..1."""
        return 2 * images - 1

    def decode(self, z: Tensor) -> Tensor:
        """Colours in 0..1."""
        return 0.5 * (z + 1)

    def predict(self, z_t: Tensor, t: Tensor, conditions: Sequence[Condition]) -> Tensor:
        """Exact noise; the views of a set under the text of its first."""
        a, s = (level[:: self.views] for level in self.levels(t))
        sets = z_t.unflatten(0, (-1, self.views))
        found = []
        for condition in conditions:
            noise = torch.empty_like(sets)
            texts = condition.texts[:: self.views]
            for text in dict.fromkeys(texts):
                if text not in self.banks:
                    raise InputError(
                        f"this bank has no pictures of {text!r}; it knows {sorted(filter(None, self.banks))}"
                    )
                of = torch.tensor([i for i, other in enumerate(texts) if other == text], device=z_t.device)
                bank = self.banks[text].to(z_t)
                noise[of] = bank_noise(sets[of], a[of], s[of], bank, self.kernel, temperature=self.temperature)
            found.append(noise.flatten(0, 1))
        return torch.stack(found)
