"""One training step of a voxel grid: rays marched, samples coloured, pixels compared, gradients applied. No autograd.

Between the ops nothing is kept but packed samples, so that a step takes little more memory than the grid itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from scene.ops.adam import adam_visible
from scene.ops.color_mlp import color_mlp_backward, color_mlp_forward
from scene.ops.grid_march import Density, Limits, Marched, RaySpans, pack_bits
from scene.ops.masked_adam import adam_masked
from scene.ops.sh_color import sh_color_backward, sh_color_forward
from scene.ops.total_variation import add_total_variation
from scene.ops.trilinear import trilinear, trilinear_backward
from scene.ops.volume_loss import VolumeLoss, volume_loss_and_grad
from scene.voxel_grid import STOP, VoxelGrid, embed, live_rows

BETAS, EPS = (0.9, 0.99), 1e-8
VARIATION_EVERY = 4  # steps, with as many times the weight: it walks over every voxel, samples over a few


@dataclass(frozen=True)
class Weights:
    """Weights of the loss terms beside the squared error; see `volume_loss_and_grad`. tv_*: of total variation."""

    per_point: float = 0.0
    entropy: float = 0.0
    distortion: float = 0.0
    tv_density: float = 0.0
    tv_features: float = 0.0
    tv_touched_only: bool = True


@dataclass(frozen=True)
class LearningRates:
    """Adam's step length of each group."""

    density: float
    features: float
    mlp: float


class GridStep:
    """A voxel grid in training, with its gradients and Adam's moments.

    rates: [X, Y, Z] multiplies the learning rate of each voxel's density, and of its features (DVGO's view counts).
    """

    def __init__(self, grid: VoxelGrid, rates: Tensor | None = None) -> None:
        self.grid, self.rates = grid, rates
        self.step = 0
        self.moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in self.parameters().items()}
        self._prepare()

    @property
    def samples(self) -> int:
        """How many samples the last step coloured."""
        return 0 if self._marched is None else len(self._marched.samples.weights)

    def parameters(self) -> dict[str, Tensor]:
        """What is learned, by name."""
        found = {"density": self.grid.density, "features": self.grid.features}
        if self.grid.mlp is not None:
            found |= {f"mlp.{i}": tensor for i, tensor in enumerate(self.grid.mlp)}
        return found

    def _prepare(self) -> None:
        """What a step needs of the grid's structure."""
        grid = self.grid
        self.density_grad, self.features_grad = torch.zeros_like(grid.density), torch.zeros_like(grid.features)
        self._occupied = pack_bits(grid.occupied)
        self._cells = (grid.rows.flatten() >= 0).nonzero()[:, 0].to(torch.int32)
        self._feature_rates = None
        if self.rates is not None and len(self._cells) == len(grid.features):
            self._feature_rates = self.rates.flatten()[self._cells.long()].contiguous()
        self._marched: Marched | None = None

    def narrowed(self, occupied: Tensor) -> None:
        """Go on with fewer occupied voxels; rows of voxels that no sample can reach any more go, with their moments."""
        grid = self.grid
        rows = live_rows(occupied & grid.occupied)
        old = grid.rows.flatten()[(rows.flatten() >= 0).nonzero()[:, 0]].long()
        if len(old) == 0:
            return
        self.moments["features"] = tuple(m[old].contiguous() for m in self.moments["features"])  # type: ignore[assignment]
        self.grid = replace(
            grid, occupied=occupied & grid.occupied, rows=rows, features=grid.features[old].contiguous()
        )
        self._prepare()

    def take(
        self,
        spans: RaySpans,
        directions: Tensor,
        target: Tensor,
        background: Tensor,
        weights: Weights,
        rates: LearningRates,
    ) -> VolumeLoss:
        """One step on R rays. directions: [R, 3] unit, in the world.  target: [R, 3].  Returns the loss."""
        loss, mlp_grads = self.gradients(spans, directions, target, background, weights)
        self._update(rates, mlp_grads)
        return loss

    def gradients(
        self,
        spans: RaySpans,
        directions: Tensor,
        target: Tensor,
        background: Tensor,
        weights: Weights,
    ) -> tuple[VolumeLoss, tuple[Tensor, ...]]:
        """The loss of R rays and the gradients by the network; those by the grids are added to their `*_grad`."""
        grid = self.grid
        self._marched = Marched(
            Density(grid.density, grid.shifts, self._occupied),
            spans,
            Limits(grid.interval, grid.threshold, grid.threshold, STOP),
            reuse=self._marched,
        )
        samples = self._marched.samples
        features = trilinear(grid.features, grid.rows, samples.points)
        view = embed(directions) if grid.mlp is not None else directions
        rgb = self._colors(features, samples.rays, view)
        shares, interval = None, 0.0
        if weights.distortion:
            shares, interval = grid.frame.ray_shares(spans, samples, grid.step)
        loss = volume_loss_and_grad(
            rgb,
            samples.weights,
            samples.rays,
            samples.offsets,
            samples.last,
            target,
            background,
            s=shares,
            interval=interval,
            per_point=weights.per_point,
            entropy=weights.entropy,
            distortion=weights.distortion,
        )
        mlp_grads: tuple[Tensor, ...] = ()
        if grid.head == "mlp":
            assert grid.mlp is not None
            v_features, mlp_grads = color_mlp_backward(grid.mlp, features, samples.rays, view, rgb, loss.v_rgb)
        elif grid.head == "sh":
            v_features = sh_color_backward(features, samples.rays, view, loss.v_rgb)
        else:
            v_features = loss.v_rgb * rgb * (1 - rgb)
        trilinear_backward(v_features, grid.rows, samples.points, self.features_grad)
        self._marched.backward(loss.v_weights, loss.v_last, self.density_grad)
        self._add_variation(weights)
        return loss, mlp_grads

    def _colors(self, features: Tensor, rays: Tensor, view: Tensor) -> Tensor:
        if self.grid.head == "mlp":
            assert self.grid.mlp is not None
            return color_mlp_forward(self.grid.mlp, features, rays, view)
        return sh_color_forward(features, rays, view) if self.grid.head == "sh" else features.sigmoid()

    def _add_variation(self, weights: Weights) -> None:
        if self.step % VARIATION_EVERY:
            return
        grid, scale = self.grid, VARIATION_EVERY * max(self.grid.frame.size) / 128
        only = weights.tv_touched_only
        if weights.tv_density:
            add_total_variation(self.density_grad, grid.density, weight=weights.tv_density * scale, touched_only=only)
        if weights.tv_features and len(self._cells) == len(grid.features):
            add_total_variation(
                self.features_grad,
                grid.features,
                weight=weights.tv_features * scale,
                rows=grid.rows,
                cells=self._cells,
                touched_only=only,
            )

    def _update(self, rates: LearningRates, mlp_grads: tuple[Tensor, ...]) -> None:
        self.step += 1
        grids = (
            ("density", self.grid.density, self.density_grad, rates.density, self.rates),
            ("features", self.grid.features, self.features_grad, rates.features, self._feature_rates),
        )
        for name, param, grad, lr, each in grids:
            adam_masked(param, grad, *self.moments[name], step=self.step, lr=lr, rates=each, betas=BETAS, eps=EPS)
        for i, grad in enumerate(mlp_grads):
            assert self.grid.mlp is not None
            adam_visible(
                self.grid.mlp[i],
                grad,
                None,
                *self.moments[f"mlp.{i}"],
                step=self.step,
                lr=rates.mlp,
                betas=BETAS,
                eps=EPS,
            )
