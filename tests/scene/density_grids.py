"""Grids of raw densities and rays through them, for tests of what marches there."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scene.ops.grid_march import Curve, Density, RaySpans, pack_bits

SHELL = 0.2


def drawn(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Uniform numbers in 0..1, the same for each dtype but for rounding."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def a_density(
    shape: tuple[int, int, int], *, seed: int = 0, occupied: float = 0.7, dtype: torch.dtype = torch.float64
) -> Density:
    """Raw densities from nearly clear to nearly opaque, with shifts, in a grid of which a share is occupied."""
    values = 8 * drawn(*shape, seed=seed, dtype=dtype) - 6
    shifts = drawn(shape[2], seed=seed + 1, dtype=dtype) - 0.5
    may_be_dense = drawn(*shape, seed=seed + 2) < occupied
    may_be_dense[0, 0, 0] = True
    return Density(values, shifts, pack_bits(may_be_dense))


def full_density(values: Tensor, shift: float = 0.0) -> Density:
    """A grid that is occupied everywhere, with one shift."""
    return Density(
        values, values.new_full(values.shape[2:], shift), pack_bits(torch.ones_like(values, dtype=torch.bool))
    )


def straight_rays(
    shape: tuple[int, int, int], count: int, *, seed: int = 0, step: float = 0.37, dtype: torch.dtype = torch.float64
) -> RaySpans:
    """Rays from around the grid to places in it, from before its first voxel to beyond its last."""
    size = torch.tensor(shape, dtype=torch.float64) - 1
    radius = 0.5 * float(size.norm()) + 1
    outward = torch.nn.functional.normalize(drawn(count, 3, seed=seed + 10) - 0.5, dim=-1)
    origins = size / 2 + 1.5 * radius * outward
    towards = drawn(count, 3, seed=seed + 11) * size - origins
    directions = step * torch.nn.functional.normalize(towards, dim=-1)
    starts = 0.4 * radius / step + drawn(count, seed=seed + 12)
    counts = torch.full((count,), math.ceil(2.3 * radius / step), dtype=torch.int32)
    counts[::7] = 3  # some end early
    return RaySpans(origins.to(dtype), directions.to(dtype), starts.to(dtype), counts)


def bent_rays(
    shape: tuple[int, int, int], count: int, *, seed: int = 0, spread: float = 1.0, dtype: torch.dtype = torch.float64
) -> RaySpans:
    """Rays from inside the inner cube far out of it; with `spread` above 1 part of the shell lies beyond the grid."""
    size = torch.tensor(shape, dtype=torch.float64) - 1
    half = spread * size / (2 * (1 + SHELL))
    inner = torch.linspace(0, 2, 31, dtype=torch.float64)[:-1]
    outer = 2 / torch.linspace(1, 1 / 64, 40, dtype=torch.float64)
    x, y, z = half.tolist()
    a, b, c = (size / 2).tolist()
    curve = Curve(torch.cat([inner, outer]).to(dtype), (x, y, z), (a, b, c), SHELL, 0.05)
    origins = drawn(count, 3, seed=seed + 20) - 0.5
    directions = torch.nn.functional.normalize(drawn(count, 3, seed=seed + 21) - 0.5, dim=-1)
    counts = torch.full((count,), len(curve.distances), dtype=torch.int32)
    counts[::5] = 41
    return RaySpans(origins.to(dtype), directions.to(dtype), torch.zeros(count, dtype=dtype), counts, curve)
