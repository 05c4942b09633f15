"""The kernel of score distillation: noises that a prior predicts, added up to the gradient of a picture.

    g = w(t) [ c_t e_text + c_u e_neg + c_0 e_null + c_e e + c_s e_src + c_p sum_i p_i perp(d_i | d_pos) ]

e is the noise that was drawn into z_t = a z + s e, e_text, e_neg and e_null what the prior predicts in z_t under the
prompt, a negative one and none, e_src what another model predicts or the prior saw on its way to z_t, and the last term
Perp-Neg's, with d_y = e_y - e_null. `distill.py` has the methods. That they are sums of few noises is the view of
Classifier Score Distillation (Yu et al., 2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from generation.guidance import Guidance, Weighting
from generation.guidance_schedules import at
from generation.priors import Condition, Prior


@dataclass(frozen=True)
class Prompts:
    """What the N pictures are to show.

    texts: P conditions; their noises are mixed by mix [P, N], the first alone where it is None.  repel: [P, N] weights
    of Perp-Neg.  null: without words.  negative: what they are not to show.  source: what the second model is told.
    """

    texts: tuple[Condition, ...]
    null: Condition
    negative: Condition | None = None
    source: Condition | None = None
    mix: Tensor | None = None
    repel: Tensor | None = None


class Predictor(Protocol):
    """A second model: anything that predicts noise as a prior does."""

    def predict(self, z_t: Tensor, t: Tensor, conditions: Sequence[Condition]) -> Tensor:
        """As `Prior.predict`."""
        ...


Scale = float | Tensor  # a tensor: [N], for each picture


class Noises(NamedTuple):
    """The noises of the kernel [N, C, h, w], as far as their scales are not zero. repelled: Perp-Neg's sum."""

    text: Tensor | None = None
    negative: Tensor | None = None
    null: Tensor | None = None
    drawn: Tensor | None = None
    source: Tensor | None = None
    repelled: Tensor | None = None


class Scales(NamedTuple):
    """c_t, c_u, c_0, c_e, c_s and c_p of the kernel."""

    text: Scale = 0.0
    negative: Scale = 0.0
    null: Scale = 0.0
    drawn: Scale = 0.0
    source: Scale = 0.0
    repelled: Scale = 0.0


def combined(noises: Noises, scales: Scales) -> Tensor:
    """The bracket of the kernel."""
    total = None
    for noise, scale in zip(noises, scales, strict=True):
        if is_zero(scale):
            continue
        assert noise is not None
        term = (scale.view(-1, 1, 1, 1) if isinstance(scale, Tensor) else scale) * noise
        total = term if total is None else total + term
    assert total is not None
    return total


def cfg(scale: float) -> Scales:
    """Scales of CFG(s), Perp-Neg's term included."""
    return Scales(text=scale, null=1 - scale, repelled=scale)


def weights(kind: Weighting, a: Tensor, s: Tensor) -> Tensor:
    """w(t) [N]: 1, s^2, a s^2, s/a (noise to clean picture) or 1/a (noise to velocity of a rectified flow)."""
    if kind == "one":
        return torch.ones_like(a)
    if kind == "sds":
        return s * s
    if kind == "fantasia3d":
        return a * s * s
    return s / a if kind == "x0" else 1 / a


def perp(vector: Tensor, axis: Tensor) -> Tensor:
    """What of each picture's `vector` is perpendicular to `axis` [N, C, h, w] (Perp-Neg, 2304.04968)."""
    v, x = vector.flatten(1), axis.flatten(1)
    share = (v * x).sum(1) / (x * x).sum(1).clamp(min=1e-12)
    return vector - share.view(-1, 1, 1, 1) * axis


def predict(prior: Prior, prompts: Prompts, z_t: Tensor, t: Tensor, scales: Scales) -> Noises:
    """Those of e_text, e_neg, e_null and Perp-Neg's term that scales ask for, in one call of the prior."""
    repels = prompts.repel is not None and not is_zero(scales.repelled)
    conditions: list[Condition] = []
    texts = prompts.texts if prompts.mix is not None else prompts.texts[:1]
    if not is_zero(scales.text) or repels:
        conditions += texts
    asked = len(conditions)
    if not is_zero(scales.null) or repels:
        conditions.append(prompts.null)
    if not is_zero(scales.negative):
        conditions.append(prompts.negative or prompts.null)
    with torch.no_grad():
        found = list(prior.predict(z_t, t, conditions))
    text = null = negative = repelled = None
    if asked:
        each = torch.stack(found[:asked])
        text = each[0] if prompts.mix is None else (_per_picture(prompts.mix, z_t) * each).sum(0)
    rest = found[asked:]
    if not is_zero(scales.null) or repels:
        null = rest.pop(0)
    if not is_zero(scales.negative):
        negative = rest.pop(0)
    if repels:
        assert text is not None and null is not None and prompts.repel is not None
        each, share = torch.stack(found[:asked]) - null, _per_picture(prompts.repel, z_t)
        repelled = sum((w * perp(d, text - null) for w, d in zip(share, each, strict=True)), torch.zeros_like(text))
    return Noises(text, negative, null, None, None, torch.zeros_like(z_t) if repelled is None else repelled)


def surrogate_loss(z: Tensor, gradient: Tensor) -> Tensor:
    """0.5 |z - stop(z - g)|^2 / N, whose gradient by z [N, ...] is g / N."""
    wanted = (z - gradient.nan_to_num()).detach()
    return 0.5 * (z - wanted).square().sum() / len(z)


def tamed(gradient: Tensor, guidance: Guidance, step: int) -> Tensor:
    """Without NaN, each number within +-clamp, each picture's gradient to length 1 where that is wanted."""
    gradient = gradient.nan_to_num()
    if guidance.clamp is not None:
        most = at(guidance.clamp, step)
        gradient = gradient.clamp(-most, most)
    if guidance.normalise:
        gradient = gradient / gradient.flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, 1, 1, 1)
    return gradient


def clip_pixels(gradient: Tensor, most: float) -> Tensor:
    """Pixel-wise gradient clipping (Pan et al., 2310.12474): no pixel of [N, C, H, W] longer than `most`.

    For `images.register_hook`, where the gradient has passed a latent prior's encoder.
    """
    length = gradient.norm(dim=1, keepdim=True)
    return gradient * (most / length.clamp(min=most))


def _per_picture(table: Tensor, z: Tensor) -> Tensor:
    return table.to(z)[..., None, None, None]


def is_zero(scale: Scale) -> bool:
    """Whether a scale switches its term off."""
    return not bool(scale.any()) if isinstance(scale, Tensor) else scale == 0
