"""Diffusion priors: what score distillation asks of them, and the exact one of a Gaussian for tests.

A prior knows pictures x through their noisy forms z_t = a x + s e with e ~ N(0, 1) and a time t in (0, 1), 0 clean:
    ddpm:  a^2 + s^2 = 1 (variance preserving)          v = a e - s x
    flow:  a = 1 - t, s = t (rectified flow)            v = e - x
Whatever a network predicts (noise, clean picture or velocity) is handed on as noise; `clean_of_noise` and the others
convert. Pictures come as flat batches [N, C, h, w]; a prior of V views at a time takes N = B V, the views of a set one
after the other, with one t in each set. Channels are in the prior's own space: [-1, 1] colours, or latents.

Implementations: `GaussianPrior` here; `generation/bank_prior.py` (exact over procedural objects), `trained_prior.py`
(the embedded networks), `diffusers_prior.py` (Stable Diffusion and its kin by local folder or hub id).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from scene.cameras import Camera

Process = Literal["ddpm", "flow"]


@dataclass(frozen=True)
class Condition:
    """What the N pictures of a batch are to show; None stands for what the prior was trained to do without.

    texts: N prompts, each with its view's words where those are wanted.  cameras: N, in the frame of
    `generation/objects.py` (+z up, an object's front at +x).  image: [3, H, W] in 0..1, a picture of the same object,
    seen by image_camera where that is known.
    """

    texts: tuple[str | None, ...]
    cameras: tuple[Camera, ...] | None = None
    image: Tensor | None = None
    image_camera: Camera | None = None


class Prior(Protocol):
    """What distillation needs of a diffusion model; parameters are frozen, gradients flow to z_t only if asked for."""

    name: str
    space: Literal["pixel", "latent"]
    process: Process
    shape: tuple[int, int, int]  # C, h, w of a z
    views: int  # of one object that are denoised together
    guidance: float  # scale that the prior is made for, e_null + guidance (e_text - e_null)

    def levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """a and s [N] at times t [N] in (0, 1)."""
        ...

    def encode(self, images: Tensor) -> Tensor:
        """z [N, C, h, w] of pictures [N, 3, H, W] in 0..1 of any size; differentiable."""
        ...

    def decode(self, z: Tensor) -> Tensor:
        """Pictures [N, 3, H, W] in 0..1 of z; differentiable."""
        ...

    def predict(self, z_t: Tensor, t: Tensor, conditions: Sequence[Condition]) -> Tensor:
        """Noise [len(conditions), N, C, h, w] in z_t [N, C, h, w] at times t [N], under each condition.

        One call for all conditions, so that a network sees one large batch. Raises InputError for words, cameras or
        pictures that the prior cannot take.
        """
        ...


class Place(NamedTuple):
    """Where a prior's network can learn something beside its weights (`lora.py`).

    network: what `Prior.predict` asks.  pose: its module whose outputs [K N, pose_width], those of K conditions of N
    pictures, may be told the cameras; None where the network takes cameras itself.  needs_cameras: and never goes
    without.
    """

    network: nn.Module
    pose: nn.Module | None = None
    pose_width: int = 0
    needs_cameras: bool = False


@runtime_checkable
class Adaptable(Prior, Protocol):
    """A prior with a network that adapters can be put beside; gradients of its noise flow to them."""

    def adaptable(self) -> Place:
        """Where."""
        ...


def clean_of_noise(z_t: Tensor, noise: Tensor, a: Tensor, s: Tensor) -> Tensor:
    """x = (z_t - s e) / a. z_t, noise: [..., N, C, h, w]; a, s: [N]."""
    return (z_t - _wide(s) * noise) / _wide(a)


def noise_of_clean(z_t: Tensor, clean: Tensor, a: Tensor, s: Tensor) -> Tensor:
    """e = (z_t - a x) / s."""
    return (z_t - _wide(a) * clean) / _wide(s)


def noise_of_velocity(z_t: Tensor, velocity: Tensor, a: Tensor, s: Tensor, process: Process) -> Tensor:
    """Noise from v: a v + s z_t (ddpm), z_t + (1 - t) v (flow)."""
    return _wide(a) * velocity + (_wide(s) * z_t if process == "ddpm" else z_t)


def velocity_of_noise(z_t: Tensor, noise: Tensor, a: Tensor, s: Tensor, process: Process) -> Tensor:
    """v from noise, inverse of `noise_of_velocity`."""
    return (noise - (_wide(s) * z_t if process == "ddpm" else z_t)) / _wide(a)


def noised(clean: Tensor, noise: Tensor, a: Tensor, s: Tensor) -> Tensor:
    """z_t = a x + s e."""
    return _wide(a) * clean + _wide(s) * noise


def process_levels(t: Tensor, process: Process) -> tuple[Tensor, Tensor]:
    """a and s at times t: flow's own; for ddpm the cosine schedule a = cos(pi t / 2) (Nichol and Dhariwal, 2021)."""
    if process == "flow":
        return 1 - t, t
    angle = 0.5 * torch.pi * t
    return angle.cos(), angle.sin()


def _wide(level: Tensor) -> Tensor:
    return level.view(-1, 1, 1, 1)


class GaussianPrior:
    """Pictures from N(mean, variance) per number: its noise is known in closed form,

        e*(z_t) = s (z_t - a mean) / (a^2 variance + s^2),

    so that where a distillation rests and how its gradient varies can be computed. A condition's text chooses the
    Gaussian by name; None is the unconditional one.
    """

    space: Literal["pixel", "latent"] = "pixel"
    views = 1
    guidance = 1.0

    def __init__(self, gaussians: dict[str | None, tuple[Tensor, Tensor]], process: Process = "ddpm") -> None:
        """gaussians: by text, mean [C, h, w] in -1..1 and variance [C, h, w]."""
        self.name = "gaussian"
        self.process: Process = process
        self.gaussians = gaussians
        c, h, w = next(iter(gaussians.values()))[0].shape
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
        """Exact noise of each condition."""
        a, s = (_wide(level) for level in self.levels(t))
        found = []
        for condition in conditions:
            mean, variance = (torch.stack(part) for part in zip(*map(self.gaussians.get, condition.texts), strict=True))
            found.append(s * (z_t - a * mean) / (a * a * variance + s * s))
        return torch.stack(found)
