"""One training step of Gaussians without autograd's bookkeeping: render, back-propagate, update what was seen.

    step = SplatStep(gaussians, AdamState.zeros(gaussians))
    image = step.forward(camera, background, sh_degree=3)          # [H, W, 3], valid until the next forward
    loss, v_image = photometric_loss_and_grad(image, target)
    step.backward(v_image)
    step.update(rates)                                             # in place: parameters, moments, statistics

The native path keeps all buffers between steps, fuses the projection's backward with Adam, and touches only the
splats that the camera saw. The reference path is the composed autograd ops and a plain sparse Adam: the oracle and
the fallback without a compiled module.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from scene.cameras import Camera
from scene.gaussians import Gaussians


@dataclass(frozen=True)
class Rates:
    """Learning rates of one step, per parameter; Adam's constants; MCMC's pull on opacity and size.

    opacity_pull, scale_pull: weights of mean(opacity) and mean(scale) in the loss (MCMC, eq. 10), felt by what is seen.
    """

    means: float
    quats: float
    log_scales: float
    opacity_logits: float
    sh_dc: float
    sh_rest: float
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-15
    opacity_pull: float = 0.0
    scale_pull: float = 0.0


@dataclass
class AdamState:
    """Adam's first and second moments by parameter name, and the number of steps taken."""

    exp_avg: dict[str, Tensor]
    exp_avg_sq: dict[str, Tensor]
    steps: int = 0

    @staticmethod
    def zeros(gaussians: Gaussians) -> AdamState:
        named = gaussians.parameters()
        return AdamState(
            {name: torch.zeros_like(value) for name, value in named.items()},
            {name: torch.zeros_like(value) for name, value in named.items()},
        )


@dataclass
class Statistics:
    """What densification wants to know, summed over steps since the last reset.

    score: [N] sum of the length of the absolute image-space gradient, in the units of the normalised image as in 3DGS.
    seen: [N] number of steps in which the splat was visible.  radius: [N] largest extent on screen, px.
    """

    score: Tensor
    seen: Tensor
    radius: Tensor

    @staticmethod
    def zeros(count: int) -> Statistics:
        return Statistics(torch.zeros(count), torch.zeros(count, dtype=torch.int32), torch.zeros(count))


@dataclass
class SplatStep:
    """Training state of one set of Gaussians. `gaussians` and `adam` are changed in place by `update`."""

    gaussians: Gaussians
    adam: AdamState
    statistics: Statistics = field(init=False)

    def forward(
        self, camera: Camera, background: Tensor, *, sh_degree: int, antialias: bool = False, near: float = 0.01
    ) -> Tensor: ...

    def backward(self, v_image: Tensor, v_alpha: Tensor | None = None, *, absgrad: bool = False) -> None: ...

    def update(self, rates: Rates) -> None: ...

    def replace(self, gaussians: Gaussians, adam: AdamState) -> None:
        """Goes on with other Gaussians, as after densification; statistics start anew."""
        ...
