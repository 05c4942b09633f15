"""A training step of DVGO in plain torch, op by op as its authors' code goes, with torch's own fast operators.

grid_sample reads the dense grids, packed samples are filtered by masks, light is counted by sums of logarithms along
each ray, torch.optim.Adam in its fused form updates the grids. The same maths as `scene/grid_step.py`, dense.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from scene.grid_step import LearningRates, Weights
from scene.ops.grid_march import RaySpans, raw_to_alpha
from scene.ops.volume_loss import CLEAR
from scene.voxel_grid import STOP, VoxelGrid, embed


class Seen(NamedTuple):
    """Samples that rays see: places [M, 3], rays [M] int64, weights [M]; light left at the end of each ray [R]."""

    points: Tensor
    rays: Tensor
    weight: Tensor
    last: Tensor


class TorchGrid:
    """A grid in training, all of it dense: density [1, 1, X, Y, Z], features [1, C, X, Y, Z] and the network.

    march: what finds the samples; `march_packed` by default.
    """

    def __init__(
        self,
        grid: VoxelGrid,
        rates: LearningRates,
        march: Callable[[TorchGrid, RaySpans], Seen] | None = None,
    ) -> None:
        assert grid.mlp is not None
        self.grid, self.march = grid, march or march_packed
        self.density = grid.density[None, None].clone().requires_grad_()
        dense = torch.where(grid.rows[..., None] >= 0, grid.features[grid.rows.clamp(min=0).long()], 0.0)
        self.features = dense.permute(3, 0, 1, 2)[None].contiguous().requires_grad_()
        self.mlp = [tensor.clone().requires_grad_() for tensor in grid.mlp]
        groups = [
            {"params": [self.density], "lr": rates.density},
            {"params": [self.features], "lr": rates.features},
            {"params": self.mlp, "lr": rates.mlp},
        ]
        self.optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99), eps=1e-8, fused=True)

    def loss(
        self, spans: RaySpans, directions: Tensor, target: Tensor, background: Tensor, weights: Weights
    ) -> tuple[Tensor, int]:
        """Loss of R rays, and how many samples were coloured."""
        count = len(target)
        points, rays, weight, last = self.march(self, spans)
        rgb = self.colors(points, rays, directions)
        pixels = (last[:, None] * background).index_add(0, rays, weight[:, None] * rgb)
        loss = functional.mse_loss(pixels, target)
        apart = (weight.detach() * (rgb - target[rays]).square().sum(-1)).sum() / count
        p = last.clamp(CLEAR, 1 - CLEAR)
        unsure = -(p * p.log() + (1 - p) * (1 - p).log()).mean()
        return loss + weights.per_point * apart + weights.entropy * unsure, len(rgb)

    def take(
        self, spans: RaySpans, directions: Tensor, target: Tensor, background: Tensor, weights: Weights
    ) -> tuple[Tensor, int]:
        """One step."""
        self.optimizer.zero_grad()
        loss, samples = self.loss(spans, directions, target, background, weights)
        loss.backward()
        self.optimizer.step()
        return loss.detach(), samples

    def alpha(self, points: Tensor) -> Tensor:
        """[M] at grid coordinates."""
        return raw_to_alpha(self.sample(self.density, points)[:, 0] + self.grid.shifts[0], self.grid.interval)

    def colors(self, points: Tensor, rays: Tensor, directions: Tensor) -> Tensor:
        """[M, 3] of samples of rays with unit directions [R, 3]."""
        features = self.sample(self.features, points)
        inputs = torch.cat([features, embed(directions)[rays]], dim=1)
        w1, b1, w2, b2, w3, b3 = self.mlp
        hidden = functional.linear(inputs, w1, b1).relu()
        return (features[:, :3] + functional.linear(functional.linear(hidden, w2, b2).relu(), w3, b3)).sigmoid()

    def sample(self, values: Tensor, points: Tensor) -> Tensor:
        """[M, C] at grid coordinates: grid_sample wants z, y, x in -1..1."""
        size = torch.tensor(self.grid.frame.size, device=points.device)
        places = (points / (size - 1) * 2 - 1).flip(-1)
        found = functional.grid_sample(values, places[None, None, None], mode="bilinear", align_corners=True)
        return found[0, :, 0, 0].T


def march_packed(grid: TorchGrid, spans: RaySpans) -> Seen:
    """All samples of all rays in one list, made shorter by masks."""
    about, device = grid.grid, grid.density.device
    rays = torch.repeat_interleave(torch.arange(len(spans.counts), device=device), spans.counts.long())
    firsts = spans.counts.long().cumsum(0) - spans.counts
    steps = torch.arange(len(rays), device=device) - firsts[rays]
    points = spans.origins[rays] + (spans.starts[rays] + steps)[:, None] * spans.directions[rays]
    nearest = (points + 0.5).floor().long()
    size = torch.tensor(about.frame.size, device=device)
    inside = ((nearest >= 0) & (nearest < size)).all(-1)
    x, y, z = nearest.clamp(min=0).minimum(size - 1).unbind(-1)
    met = inside & about.occupied[x, y, z]
    points, rays = points[met], rays[met]
    alpha = grid.alpha(points)
    dense = alpha > about.threshold
    points, rays, alpha = points[dense], rays[dense], alpha[dense]
    weight, last = _weights(alpha, rays, len(spans.counts))
    seen = weight > about.threshold
    return Seen(points[seen], rays[seen], weight[seen], last)


def _weights(alpha: Tensor, rays: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Weights of packed samples and the light left behind each ray, which ends where less than STOP is left."""
    logs = torch.log1p(-alpha.double().clamp(max=1 - 1e-12))
    total = logs.cumsum(0)
    starts = torch.searchsorted(rays, torch.arange(count, device=rays.device))
    before = torch.cat([total.new_zeros(1), total])
    ahead = before[:-1] - before[starts][rays]
    reached = ahead.exp() >= STOP
    weight = torch.where(reached, ahead.exp() * alpha, 0.0)
    last = total.new_zeros(count).index_add(0, rays, torch.where(reached, logs, 0.0)).exp()
    return weight.float(), last.float()
