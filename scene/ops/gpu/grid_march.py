"""Rays through a density grid on the GPU, counterpart of the compiled GridMarch: cuda/gpu/grid_march.cu.

Each ray is walked twice, to count its samples and to write them. In between two numbers are read from the card, how
many samples take light and how many are seen: one wait a march. All sums take the same order every time.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from scene.ops.gpu.launch import Argument, blocks, launch, scratch
from scene.ops.gpu.scan import exclusive_sum
from scene.ops.gpu.trilinear import MOST, add_to_corners

THREADS, WARP = 128, 32  # kThreads and kWarp of cuda/gpu/grid_march.cu


class Kept(NamedTuple):
    """Samples that take light, in ray order: points [K, 3], raws, alphas and the light before each [K]."""

    points: Tensor
    raws: Tensor
    alphas: Tensor
    lights: Tensor


class GridMarch:
    """One march and its backwards; arguments as of cuda/cpu/grid_march.cpp."""

    def __init__(self) -> None:
        self._walk: tuple[Argument, ...] = ()
        self._begins: tuple[Tensor, Tensor] | None = None  # [R + 1] each, of kept and of shown samples
        self._kept: Kept | None = None

    def march(
        self,
        density: Tensor,
        shifts: Tensor,
        occupied: Tensor,
        origins: Tensor,
        directions: Tensor,
        starts: Tensor,
        counts: Tensor,
        distances: Tensor | None,
        affine: Tensor | None,
        shell: float,
        spacing: float,
        interval: float,
        alpha_threshold: float,
        weight_threshold: float,
        stop: float,
    ) -> int:
        """How many samples `emit` will hand out. Waits for the device. The density must not change in between."""
        rays = len(origins)
        self._kept, self._size, self._rays = None, tuple(density.shape), rays
        self._limits = (float(interval), float(weight_threshold))
        self._walk = (
            *(density, shifts, occupied, *density.shape, origins, directions, starts, counts),
            *_curve(distances, affine, shell, spacing),
            *(rays, float(interval), float(alpha_threshold), float(weight_threshold), float(stop)),
        )
        found = scratch(2 * rays, torch.int32, counts)
        nothing = (None,) * 9
        grid = blocks(rays * WARP, THREADS)
        outputs = (None, None, found[:rays], found[rays:], *nothing)
        launch("grid_march", "march_rays", grid, THREADS, *self._walk, *outputs)
        self._begins = scratch(rays + 1, torch.int32, counts), scratch(rays + 1, torch.int32, counts)
        for one, begins in zip((found[:rays], found[rays:]), self._begins, strict=True):
            exclusive_sum(one, begins[:rays], begins[rays:])
        self._totals: list[int] = torch.cat([begins[rays:] for begins in self._begins]).tolist()
        if max(self._totals) >= MOST:
            raise ValueError(f"{rays} rays meet more samples than an int can count; march fewer at a time")
        return self._totals[1]

    def emit(
        self,
        points: Tensor,
        weights: Tensor,
        steps: Tensor,
        rays: Tensor,
        offsets: Tensor,
        last: Tensor,
        starts: Tensor,
    ) -> None:
        """Writes the packed samples of the last march."""
        assert self._begins is not None, "emit without march"
        if len(offsets) != self._rays + 1 or len(last) != self._rays or len(weights) != self._totals[1]:
            raise ValueError("points to last must fit what was marched")
        room = scratch(6 * self._totals[0], torch.float32, last)
        split = room.split([3 * self._totals[0], *[self._totals[0]] * 3])
        self._kept = Kept(*split)
        outputs = (*self._begins, None, None, *self._kept, points, weights, steps, rays, last)
        launch("grid_march", "march_rays", blocks(self._rays * WARP, THREADS), THREADS, *self._walk, *outputs)
        offsets.copy_(self._begins[1])
        self._walk = ()  # what was marched through may be freed

    def backward(self, v_weights: Tensor, v_last: Tensor, v_density: Tensor) -> None:
        """Adds the gradient by the density to v_density."""
        assert self._begins is not None and self._kept is not None, "backward without emit"
        if len(v_weights) != self._totals[1] or len(v_last) != self._rays or tuple(v_density.shape) != self._size:
            raise ValueError("v_weights, v_last and v_density must fit what was marched")
        kept, v_raws = self._kept, scratch(self._totals[0], torch.float32, v_last)
        lists = (*self._begins, self._rays, kept.raws, kept.alphas, kept.lights)
        grid = blocks(self._rays * WARP, THREADS)
        launch("grid_march", "march_backward", grid, THREADS, *lists, v_weights, v_last, *self._limits, v_raws)
        add_to_corners(kept.points, v_raws[:, None], None, self._size, v_density)


def grid_hits(
    occupied: Tensor,
    depth: int,
    origins: Tensor,
    directions: Tensor,
    starts: Tensor,
    counts: Tensor,
    distances: Tensor | None,
    affine: Tensor | None,
    shell: float,
    spacing: float,
    found: Tensor,
) -> None:
    """Whether each ray meets an occupied voxel, into found [R] bool."""
    rays = len(origins)
    grid = (occupied, *occupied.shape[:2], depth)
    walk = (origins, directions, starts, counts, *_curve(distances, affine, shell, spacing))
    launch("grid_march", "rays_hit", blocks(rays * WARP, THREADS), THREADS, *grid, *walk, rays, found)


def _curve(
    distances: Tensor | None, affine: Tensor | None, shell: float, spacing: float
) -> tuple[Tensor | None, int, Tensor | None, float, float]:
    return distances, 0 if distances is None else len(distances), affine, float(shell), float(spacing)
