"""One training step of an octree's leaves on a whole picture: squared error, gradients, Adam on the leaves met.

DOT and PlenOctrees take a step per picture too; here the three parts are one step of the kernels, so that no gradient
of the whole octree is ever held, and the weights that DOT samples by come with it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scene.cameras import Camera
from scene.octree import Edit, Octree
from scene.ops import native
from scene.ops.octree_render import (
    LEAST_SIGMA,
    Rays,
    distortion_reference,
    leaf_weights,
    render_octree,
    scene_arguments,
)

STOP = 1e-4  # light at which a ray ends in training
FLOOR = LEAST_SIGMA  # a viewer passes through such leaves, and training can raise them; at 0 they would be lost to it
EPS = 1e-8


@dataclass(frozen=True)
class Rates:
    """Adam's step lengths and moments."""

    sigmas: float
    sh_coeffs: float
    betas: tuple[float, float] = (0.9, 0.99)
    distortion: float = 0.0  # weight of each ray's distortion loss, over z-depth in sides of the octree's cube


class OctreeStep:
    """An octree in training with Adam's moments, and the light of each leaf since `forget_light`.

    sigma_moments: [2, L].  sh_moments: [2, L, 3K].  weights: [L] sum of its weights over all rays.  maxima: [L] the
    largest of them.  The octree's own tensors are written to.
    """

    def __init__(self, octree: Octree, steps: int = 0) -> None:
        sigmas, sh_coeffs = octree.sigmas.clamp_min(FLOOR), octree.sh_coeffs.clone().contiguous()
        self.octree = Octree(sigmas, sh_coeffs, octree.index)
        self.steps = steps
        self.sigma_moments = sigmas.new_zeros(2, len(octree))
        self.sh_moments = sigmas.new_zeros(2, len(octree), sh_coeffs[0].numel() if len(octree) else 3)
        self.weights, self.maxima = torch.zeros_like(sigmas), torch.zeros_like(sigmas)
        fused = native.has(sigmas.device, sigmas.dtype) and sigmas.dtype == torch.float32
        self._trainer = native.kernels(sigmas.device).OctreeTrainer() if fused else None

    def take(self, camera: Camera, target: Tensor, background: Tensor, rates: Rates) -> float:
        """Mean squared error of the picture before the step.

        target: [H, W, 3] over background [3].
        """
        octree = self.octree
        self.steps += 1
        rays = Rays(camera=camera)
        pixels = target.reshape(-1, 3)
        if self._trainer is None:
            return self._take_by_autograd(rays, pixels, background, rates)
        *table, sigmas, sh, _, _, numbers, width, height, stop, least = scene_arguments(
            octree.sigmas, octree.sh_coeffs, octree.index, rays, STOP, 0.0
        )
        moments = (self.sigma_moments, self.sh_moments, self.weights, self.maxima)
        image = (numbers, width, height, stop, least, pixels.contiguous(), background)
        lengths = (rates.sigmas, rates.sh_coeffs, *rates.betas, EPS, FLOOR, rates.distortion * self._per_depth())
        error = self._trainer.step(*table, sigmas, sh, *image, *moments, self.steps, *lengths)
        return error / pixels.numel()

    def _per_depth(self) -> float:
        """Sides of the cube in a unit of the world."""
        return float(self.octree.index.invradius.max())

    def apply(self, edit: Edit) -> None:
        """Goes on with an edited octree; moments and weights follow their rows."""
        self.octree = edit.octree
        self.sigma_moments = torch.stack([edit.carry(moment) for moment in self.sigma_moments])
        self.sh_moments = torch.stack([edit.carry(moment) for moment in self.sh_moments])
        self.weights, self.maxima = edit.carry_sum(self.weights), edit.carry(self.maxima)

    def pull(self) -> Tensor:
        """[L] how hard photos pull at each leaf: the size that Adam knows of the gradient of its constant colour."""
        return self.sh_moments[1, :, :3].sum(1).sqrt()

    def forget_light(self) -> None:
        """Empties `weights` and `maxima`."""
        self.weights.zero_()
        self.maxima.zero_()

    def _take_by_autograd(self, rays: Rays, pixels: Tensor, background: Tensor, rates: Rates) -> float:
        octree = self.octree
        sigmas, sh_coeffs = (value.detach().requires_grad_() for value in (octree.sigmas, octree.sh_coeffs))
        with torch.enable_grad():
            seen = render_octree(sigmas, sh_coeffs, octree.index, rays, stop=STOP)
            error = (seen.rgb + seen.last[:, None] * background - pixels).square().sum()
            loss = error
            if rates.distortion:
                loss = error + rates.distortion * self._per_depth() * distortion_reference(
                    sigmas, octree.index, rays, STOP
                )
            v_sigmas, v_sh = torch.autograd.grad(loss, [sigmas, sh_coeffs])
        sums = torch.zeros_like(self.weights)
        leaf_weights(octree.sigmas, octree.index, rays, sums, self.maxima, stop=STOP)
        self.weights += sums
        rows = sums.nonzero().squeeze(1)
        flat = octree.sh_coeffs.view(len(octree), -1)
        _adam(octree.sigmas, v_sigmas, self.sigma_moments, rows, self.steps, rates.sigmas, rates.betas)
        octree.sigmas[rows] = octree.sigmas[rows].clamp_min(FLOOR)
        _adam(flat, v_sh.view_as(flat), self.sh_moments, rows, self.steps, rates.sh_coeffs, rates.betas)
        return float(error.detach()) / pixels.numel()


def _adam(
    param: Tensor, grad: Tensor, moments: Tensor, rows: Tensor, step: int, lr: float, betas: tuple[float, float]
) -> None:
    g = grad[rows]
    first = betas[0] * moments[0, rows] + (1 - betas[0]) * g
    second = betas[1] * moments[1, rows] + (1 - betas[1]) * g * g
    moments[0, rows], moments[1, rows] = first, second
    scaled = second.sqrt() / (1 - betas[1] ** step) ** 0.5 + EPS
    param[rows] -= lr / (1 - betas[0] ** step) * first / scaled
