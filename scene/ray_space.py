"""How the world maps into the box of a voxel grid, for the three kinds of scenes that DVGO knows.

bounded: the box lies in the world.  forward: all cameras look one way; normalised device coordinates of a reference
camera (NeRF, appendix C), in which a frustum to infinity is the box [-1, 1]^3 and straight rays stay straight.
unbounded: the inner cube [-1, 1]^3 surrounds the cameras and all of space beyond is contracted into a shell around it
(mip-NeRF 360, eq. 10; DVGOv2, with the L-infinity norm).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from scene.ops.grid_march import Curve, RaySpans, Samples, contract

SHELL = 0.2  # g, thickness of the contracted shell
FARTHEST = 1 / 128  # the last sample of an unbounded ray lies at 2 / FARTHEST inner radii
THINNED = 0.95  # of a step: contracted samples closer together are left out
BEYOND = 1e9  # parallel to a face: the slabs of the other axes decide


@dataclass(frozen=True)
class Space:
    """From the world to the frame of the box.

    frame_from_world: [4, 4] affine.  Bounded: the identity.  Unbounded: into the inner cube.  Forward: into the axes of
    the reference camera, whose slopes x/z and y/z are multiplied by `lens`, and whose nearest plane is `near`.
    """

    kind: Literal["bounded", "forward", "unbounded"]
    frame_from_world: Tensor
    lens: tuple[float, float] = (1.0, 1.0)
    near: float = 0.0

    def to(self, device: torch.device | str) -> Space:
        """The same on another device."""
        return Space(self.kind, self.frame_from_world.to(device), self.lens, self.near)

    def from_world(self, points: Tensor) -> Tensor:
        """World points [P, 3] in the frame of the box."""
        framed = points @ self.frame_from_world[:3, :3].T + self.frame_from_world[:3, 3]
        if self.kind == "unbounded":
            return contract(framed, SHELL)
        if self.kind == "forward":
            x, y, z = framed.unbind(-1)
            return torch.stack([self.lens[0] * x / z, self.lens[1] * y / z, 1 - 2 * self.near / z], dim=-1)
        return framed

    def to_world(self, points: Tensor) -> Tensor:
        """The inverse of `from_world`; what lies at infinity ends far away."""
        if self.kind == "unbounded":
            norm = points.abs().amax(-1, keepdim=True)
            # r = (1 + g) - g / n, solved for n
            outside = SHELL / ((1 + SHELL) - norm).clamp(min=1e-6) / norm.clamp(min=1e-6)
            points = torch.where(norm > 1, points * outside, points)
        elif self.kind == "forward":
            z = 2 * self.near / (1 - points[..., 2]).clamp(min=1e-6)
            points = torch.stack([points[..., 0] * z / self.lens[0], points[..., 1] * z / self.lens[1], z], dim=-1)
        back = torch.linalg.inv(self.frame_from_world.double()).to(points)
        return points @ back[:3, :3].T + back[:3, 3]


@dataclass(frozen=True)
class GridFrame:
    """A box in a space, divided into voxels.  box: [2, 3] lower and upper corner.  size: voxels along each axis.

    What follows from them is computed once: training asks for it in each step, and would wait for a GPU each time.
    """

    space: Space
    box: Tensor
    size: tuple[int, int, int]

    def to(self, device: torch.device | str) -> GridFrame:
        """The same on another device."""
        return GridFrame(self.space.to(device), self.box.to(device), self.size)

    @cached_property
    def voxels_per_unit(self) -> Tensor:
        """[3] grid coordinates per unit of the space."""
        return (torch.tensor(self.size, device=self.box.device).to(self.box) - 1) / (self.box[1] - self.box[0])

    @cached_property
    def voxel_size(self) -> float:
        """Edge of a voxel in units of the space; the mean where edges differ."""
        return float((1 / self.voxels_per_unit).double().prod() ** (1 / 3))

    @cached_property
    def _lens(self) -> Tensor:
        return self.box.new_tensor(self.space.lens)

    @cached_property
    def _curves(self) -> dict[float, Curve]:
        return {}

    def grid_from_world(self, points: Tensor) -> Tensor:
        """World points [P, 3] in grid coordinates."""
        return (self.space.from_world(points) - self.box[0]) * self.voxels_per_unit

    def world_from_grid(self, points: Tensor) -> Tensor:
        """Grid coordinates [P, 3] in the world."""
        return self.space.to_world(points / self.voxels_per_unit + self.box[0])

    def spans(self, origins: Tensor, directions: Tensor, step: float, near: float = 0.0) -> RaySpans:
        """Samples along world rays, `step` voxels apart.

        origins, directions: [R, 3]; directions are unit.  near: nothing is sampled closer to the camera (bounded).
        """
        if self.space.kind == "forward":
            return self._forward_spans(origins, directions, step)
        frame = self.space.frame_from_world
        origins = origins @ frame[:3, :3].T + frame[:3, 3]
        if self.space.kind == "unbounded":
            return self._bent_spans(origins, torch.nn.functional.normalize(directions @ frame[:3, :3].T, dim=-1), step)
        stride = step * self.voxel_size
        safe = torch.where(directions.abs() < 1e-12, 1e-12, directions)
        bounds = (self.box[:, None] - origins) / safe
        first = bounds.amin(0).clamp(-BEYOND, BEYOND).amax(-1).clamp(min=near)
        last = bounds.amax(0).clamp(-BEYOND, BEYOND).amin(-1)
        counts = ((last - first) / stride).ceil().clamp(0, 1 << 20).to(torch.int32)
        scale = self.voxels_per_unit
        return RaySpans((origins - self.box[0]) * scale, directions * stride * scale, first / stride, counts)

    def _forward_spans(self, origins: Tensor, directions: Tensor, step: float) -> RaySpans:
        space, frame = self.space, self.space.frame_from_world
        o, d = origins @ frame[:3, :3].T + frame[:3, 3], directions @ frame[:3, :3].T
        ahead = d[:, 2] > 1e-6
        slope = d[:, :2] / torch.where(ahead, d[:, 2], 1.0)[:, None]
        at_near = o[:, :2] + (space.near - o[:, 2:]) * slope  # where the ray meets the nearest plane
        lens = self._lens.to(o)
        start = torch.cat([lens * at_near / space.near, torch.full_like(o[:, :1], -1.0)], dim=1)
        whole = torch.cat([lens * (slope - at_near / space.near), torch.full_like(o[:, :1], 2.0)], dim=1)
        most = round((self.size[2] - 1) / step) + 1
        counts = torch.where(ahead, most, 0).to(torch.int32)
        scale = self.voxels_per_unit
        return RaySpans((start - self.box[0]) * scale, whole * scale / (most - 1), torch.zeros_like(o[:, 0]), counts)

    def _bent_spans(self, origins: Tensor, directions: Tensor, step: float) -> RaySpans:
        curve = self._curves.get(step)
        if curve is None:
            curve = self._curves[step] = self._curve(step)
        counts = torch.full((len(origins),), len(curve.distances), dtype=torch.int32, device=origins.device)
        return RaySpans(origins, directions, torch.zeros_like(origins[:, 0]), counts, curve)

    def _curve(self, step: float) -> Curve:
        inner = int(2 / (2 + 2 * SHELL) * max(self.size) / step) + 1
        near = torch.linspace(0, 2, inner + 1, dtype=torch.float64)
        far = 2 / torch.linspace(1, FARTHEST, inner + 1, dtype=torch.float64)
        distances = torch.cat([(edge[1:] + edge[:-1]) / 2 for edge in (near, far)]).to(self.box)
        scale, offset = self.voxels_per_unit, -self.box[0] * self.voxels_per_unit
        spacing = THINNED * step * (2 + 2 * SHELL) / max(self.size)
        return Curve(distances, _three(scale), _three(offset), SHELL, spacing)

    def ray_shares(self, spans: RaySpans, samples: Samples, step: float) -> tuple[Tensor, float]:
        """Where samples [M] lie on their rays, from 0 at the first to 1 at the end, and the length of an interval.

        For the distortion loss (DVGOv2: (i + 0.5) / N along straight rays, else 1 - 1 / (1 + t)).
        """
        if spans.curve is not None:
            return 1 - 1 / (1 + spans.curve.distances[samples.steps.long()]), 1 / len(spans.curve.distances)
        if self.space.kind == "forward":
            most = round((self.size[2] - 1) / step) + 1
        else:
            most = math.ceil(1.75 * max(self.size) / step)  # along the box's diagonal
        return (samples.steps - spans.starts[samples.rays.long()] + 0.5) / most, 1 / most


def grid_size(box: Tensor, voxels: int) -> tuple[int, int, int]:
    """Voxels along each axis of a box [2, 3] that make about `voxels` in all: floor(edge / voxel_size), at least 2."""
    edges = (box[1] - box[0]).double()
    voxel = float(edges.prod() / voxels) ** (1 / 3)
    x, y, z = (max(2, int(edge / voxel + 1e-6)) for edge in edges.tolist())
    return x, y, z


def plane_size(box: Tensor, voxels: int, planes: int) -> tuple[int, int, int]:
    """Voxels of a forward-facing grid of `planes` planes: the rest is shared by x and y after their edges."""
    x, y, _ = (box[1] - box[0]).double().tolist()
    rate = (voxels / planes / (x * y)) ** 0.5
    return max(2, int(x * rate)), max(2, int(y * rate)), planes


def _three(values: Tensor) -> tuple[float, float, float]:
    x, y, z = values.tolist()
    return x, y, z
