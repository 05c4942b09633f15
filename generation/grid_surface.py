"""The surface of a voxel grid by marching cubes on its own density: thin parts stay, and what is inside is solid.

Fusing depth pictures, as scenes of photos need it, wears away what is thinner than a few voxels. A distilled grid has
one density everywhere, no haze after cleaning, and hollows that no picture ever asked about; those are filled.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from scene.errors import InputError
from scene.marching_cubes import marching_cubes
from scene.mesh import Mesh, clean, connected_parts
from scene.mesh_cleaning import smooth
from scene.ops.trilinear import trilinear
from scene.voxel_grid import VoxelGrid

BLOCK = 8  # voxels along the edge of a block of marching cubes
FINER = 2  # cells along the edge of a voxel: the field between voxels is trilinear, a cell's surface is flat
SMOOTHING = 4  # rounds
MIN_PART = 0.01  # share of the largest part's area below which a part is dropped
OUTSIDE = -10.0  # raw density where there is nothing
LEAST_SOLID = 0.1  # share of the light that the most solid voxel takes, with less of which there is no thing
NOTHING = "nothing solid came out of the distillation; try more --steps or another --seed"


@torch.no_grad()
def grid_to_mesh(grid: VoxelGrid) -> Mesh:
    """The coloured surface, closed, in the grid's world. Raises InputError where the grid is empty.

    It lies where a way of one voxel through the field takes half of the light; half of what the most solid voxel takes
    where that is not opaque.
    """
    density = torch.where(grid.occupied, grid.density + grid.shifts, OUTSIDE).cpu()
    most = 1 - math.exp(-float(functional.softplus(density.max())) * grid.interval / grid.step)
    if most < LEAST_SOLID:
        raise InputError(NOTHING)
    inside = filled(density - density_of(0.5 * most, grid))
    side = torch.tensor(inside.shape)
    fine = functional.interpolate(
        inside[None, None], size=(FINER * (side - 1) + 1).tolist(), mode="trilinear", align_corners=True
    )[0, 0]
    fine = functional.pad(fine, (1,) * 6, value=OUTSIDE)
    field, blocks = _blocks(-fine)
    mesh = marching_cubes(field, torch.ones_like(field), blocks, voxel_size=1.0, least_weight=0.5)
    if not len(mesh.faces):
        raise InputError(NOTHING)
    mesh = clean(smooth(mesh, SMOOTHING), min_share=MIN_PART)
    places = (mesh.vertices - 1) / FINER  # of the padding; in voxels
    low, high = grid.frame.box.cpu().double().numpy()
    points = torch.from_numpy(places).to(grid.features)
    rgb = trilinear(grid.features, grid.rows, points).sigmoid()
    colors = (rgb * 255).round().to(torch.uint8).cpu().numpy()
    return dataclasses.replace(mesh, vertices=low + places * (high - low) / (side.numpy() - 1), colors=colors)


def density_of(alpha: float, grid: VoxelGrid) -> float:
    """Raw density d at which a voxel's length takes `alpha` of the light: 1 - alpha = (1 + e^d)^(-interval / step)."""
    return math.log(math.expm1(-math.log1p(-alpha) * grid.step / grid.interval))


def filled(inside: Tensor) -> Tensor:
    """A field [X, Y, Z], positive inside, with what the outside does not reach made 1."""
    empty = functional.pad(inside <= 0, (1,) * 6, value=True)
    number = torch.full(empty.shape, -1)
    number[empty] = torch.arange(int(empty.sum()))
    pairs = []
    for axis in range(3):
        a, b = number.narrow(axis, 0, number.shape[axis] - 1), number.narrow(axis, 1, number.shape[axis] - 1)
        touching = (a >= 0) & (b >= 0)
        pairs.append(torch.stack([a[touching], b[touching]]))
    a, b = torch.cat(pairs, dim=1).numpy()
    part = np.asarray(connected_parts(int(empty.sum()), a, b))
    hollow = torch.zeros_like(empty)
    hollow[empty] = torch.from_numpy(part != part[0])  # the first voxel is of the border
    return torch.where(hollow[1:-1, 1:-1, 1:-1], torch.ones_like(inside), inside)


def _blocks(field: Tensor) -> tuple[Tensor, Tensor]:
    """A field [X, Y, Z] as blocks [B, 8, 8, 8] by z, y, x and their places [B, 3]."""
    pads = [(-n) % BLOCK for n in reversed(field.shape)]
    padded = functional.pad(field, [pad for n in pads for pad in (0, n)], value=-OUTSIDE)
    x, y, z = (n // BLOCK for n in padded.shape)
    cut = padded.view(x, BLOCK, y, BLOCK, z, BLOCK).permute(0, 2, 4, 5, 3, 1).reshape(-1, BLOCK, BLOCK, BLOCK)
    axes = [torch.arange(n, dtype=torch.int32) for n in (x, y, z)]
    return cut.contiguous(), torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).view(-1, 3)
