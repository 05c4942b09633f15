"""A radiance field baked into an octree (PlenOctrees, Yu et al., 2021, section 4.2; specs/recon.md, 2f).

Departures: one fine grid instead of a coarse one first, for whoever bakes has a tight box already; fewer samples per
leaf, spread over it evenly instead of at random; colours are means weighted by density, so that the empty part of a
leaf on a surface does not wash them out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scene import sh
from scene.cameras import Camera
from scene.octree import Octree, from_cells, keep
from scene.ops.octree_index import FINEST, decode
from scene.ops.octree_render import Rays, leaf_weights
from scene.ops.trilinear import trilinear
from scene.voxel_grid import VoxelGrid

CHUNK = 1 << 18


@dataclass(frozen=True)
class Field:
    """density: world points [P, 3] to sigma [P] per unit.  colors: to SH coefficients [P, K, 3] before the sigmoid."""

    density: Callable[[Tensor], Tensor]
    colors: Callable[[Tensor], Tensor]


def cube_around(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """offset and invradius [3] float64 of the smallest cube around a box; x falls at offset + invradius x."""
    center, half = (low + high).double() / 2, float((high - low).max()) / 2
    invradius = torch.full((3,), 0.5 / half, dtype=torch.float64)
    return 0.5 - invradius * center.cpu(), invradius


def bake(
    field: Field,
    low: Tensor,
    high: Tensor,
    level: int,
    cameras: Sequence[Camera],
    *,
    least_alpha: float = 0.01,
    least_weight: float = 1e-3,
    samples: int = 8,
    stop: float = 1e-4,
) -> Octree:
    """Leaves of one level where the field is dense and some camera sees it.

    low, high: [3] box of the world that holds the content.  level: leaves have side 2^-level of the cube around it.
    least_alpha: opacity of a leaf, crossed once, from which it is kept.  least_weight: so much must it weigh in at
    least one ray of the cameras; no cameras: all are kept.  samples: points per leaf, a cube number (1, 8, 27, 64).
    """
    offset, invradius = cube_around(low, high)
    device = low.device
    side = 0.5**level / float(invradius.max())
    cells, sigmas = [], []
    first = ((offset + invradius * low.cpu().double()) * 2**level).floor().long().clamp(0, 2**level - 1)
    last = ((offset + invradius * high.cpu().double()) * 2**level).ceil().long().clamp(1, 2**level)
    across = (last - first).tolist()
    for numbers in torch.arange(across[0] * across[1] * across[2], device=device).split(CHUNK):
        x, yz = numbers // (across[1] * across[2]), numbers % (across[1] * across[2])
        part = torch.stack([x, yz // across[2], yz % across[2]], dim=1) + first.to(device)
        centers = _world((part.double() + 0.5) / 2**level, offset, invradius)
        sigma = field.density(centers.to(low))
        dense = -torch.expm1(-sigma * side) >= least_alpha
        cells.append(part[dense])
        sigmas.append(sigma[dense].float())
    sigma = torch.cat(sigmas)
    octree = from_cells(torch.cat(cells), level, sigma, sigma.new_zeros(len(sigma), 1, 3), offset, invradius)
    if cameras and len(octree):
        sums, most = torch.zeros_like(sigma), torch.zeros_like(sigma)
        for camera in cameras:
            rays = Rays(camera=camera.to(device=device, dtype=torch.float32))
            leaf_weights(octree.sigmas, octree.index, rays, sums, most, stop=stop)
        octree = keep(octree, most >= least_weight).octree
    sigmas, colors = _means(octree, field, level, round(samples ** (1 / 3)))
    return Octree(sigmas, colors, octree.index)


def _means(octree: Octree, field: Field, level: int, across: int) -> tuple[Tensor, Tensor]:
    """sigmas [L] and sh_coeffs [L, K, 3]: means over across^3 points of each leaf."""
    steps = (torch.arange(across, dtype=torch.float64, device=octree.sigmas.device) + 0.5) / across
    inside = torch.cartesian_prod(steps, steps, steps).view(-1, 3)
    corners = (decode(octree.index.codes) >> FINEST - level).double()
    sigmas, colors = [], []
    for part in corners.split(max(1, CHUNK // len(inside))):
        points = _world((part[:, None] + inside) / 2**level, octree.index.offset, octree.index.invradius)
        points = points.view(-1, 3).to(octree.sigmas)
        sigma = field.density(points).view(len(part), len(inside))
        color = field.colors(points)
        share = sigma.clamp_min(1e-6)
        share = share / share.sum(1, keepdim=True)
        sigmas.append(sigma.mean(1).float())
        colors.append((color.view(*sigma.shape, color.shape[1], 3) * share[..., None, None]).sum(1).float())
    return torch.cat(sigmas), torch.cat(colors)


def _world(points: Tensor, offset: Tensor, invradius: Tensor) -> Tensor:
    return (points - offset.to(points)) / invradius.to(points)


def field_of_grid(grid: VoxelGrid, sh_degree: int) -> Field:
    """A voxel grid with the head "sh" or "rgb": densities interpolated raw and activated afterwards, none where it is
    empty. A grid of plain colours, which training leaves when it is ended early, fills the first coefficients."""
    if grid.head == "mlp":
        raise ValueError("an octree holds spherical harmonics; a grid with a colour network cannot be baked")
    size = torch.tensor(grid.density.shape, device=grid.density.device)
    numbers = torch.arange(grid.density.numel(), dtype=torch.int32, device=grid.density.device).view(grid.density.shape)
    raw_densities, shift = grid.density.detach().reshape(-1, 1), float(grid.shifts.mean())
    per_unit = grid.interval / (grid.step * grid.frame.voxel_size)

    def density(points: Tensor) -> Tensor:
        places = grid.frame.grid_from_world(points)
        nearest = (places + 0.5).floor().long()
        inside = ((nearest >= 0) & (nearest < size)).all(-1)
        x, y, z = nearest.clamp_min(0).minimum(size - 1).unbind(-1)
        inside &= grid.occupied[x, y, z]
        sigma = torch.zeros_like(places[:, 0])
        raw = trilinear(raw_densities, numbers, places[inside])[:, 0] + shift
        sigma[inside] = torch.nn.functional.softplus(raw, threshold=100) * per_unit
        return sigma

    def colors(points: Tensor) -> Tensor:
        features = trilinear(grid.features.detach(), grid.rows, grid.frame.grid_from_world(points))
        if grid.head == "sh":
            return features.view(len(points), 3, sh.coefficients(sh_degree)).mT
        coefficients = features.new_zeros(len(points), sh.coefficients(sh_degree), 3)
        coefficients[:, 0] = features / sh.C0
        return coefficients

    return Field(density, colors)
