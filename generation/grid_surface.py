"""The surface of a voxel grid: the border of what is opaque to light.

Fusing depth pictures, as scenes of photos need it, wears away what is thinner than a few voxels; a level of density
leaves holes where a distilled surface is a soft fog. A place belongs to the thing here when a voxel's length of what is
there takes half of the light, or when every one of the 26 ways out along axes and diagonals takes as much as half of a
way right through that halves the light. So thin parts stay, fog has a surface, and hollows that no picture ever asked
about are solid.
"""

from __future__ import annotations

import dataclasses
import itertools

import torch
from torch import Tensor
from torch.nn import functional

from scene.errors import InputError
from scene.marching_cubes import marching_cubes
from scene.mesh import Mesh, clean
from scene.mesh_cleaning import smooth
from scene.ops.trilinear import trilinear
from scene.voxel_grid import VoxelGrid

BLOCK = 8  # voxels along the edge of a block of marching cubes
FINER = 2  # cells along the edge of a voxel: the field between voxels is trilinear, a cell's surface is flat
SMOOTHING = 10  # rounds
MIN_PART = 0.01  # share of the largest part's area below which a part is dropped
OUTSIDE = -10.0  # raw density where there is nothing
HALF = 0.5  # of the light
LEVEL = HALF**0.5  # what leaves the middle of something that halves the light on a way right through


@torch.no_grad()
def grid_to_mesh(grid: VoxelGrid) -> Mesh:
    """The coloured surface, closed, in the grid's world. Raises InputError where nothing is opaque."""
    density = torch.where(grid.occupied, grid.density + grid.shifts, OUTSIDE).cpu()
    side = torch.tensor(density.shape)
    size = (FINER * (side - 1) + 1).tolist()
    fine = functional.interpolate(density[None, None], size=size, mode="trilinear", align_corners=True)[0, 0]
    depths = functional.softplus(fine) * (grid.interval / grid.step / FINER)  # of a cell's edge
    depths = functional.pad(depths, (1,) * 6)
    field, blocks = _blocks(torch.minimum(light_out(depths) - LEVEL, (-FINER * depths).exp() - HALF))
    mesh = marching_cubes(field, torch.ones_like(field), blocks, voxel_size=1.0, least_weight=0.5)
    if not len(mesh.faces):
        raise InputError("nothing solid came out of the distillation; try more --steps or another --seed")
    mesh = clean(smooth(mesh, SMOOTHING), min_share=MIN_PART)
    places = (mesh.vertices - 1) / FINER  # of the padding; in voxels
    low, high = grid.frame.box.cpu().double().numpy()
    rgb = trilinear(grid.features, grid.rows, torch.from_numpy(places).to(grid.features)).sigmoid()
    colors = (rgb * 255).round().to(torch.uint8).cpu().numpy()
    return dataclasses.replace(mesh, vertices=low + places * (high - low) / (side.numpy() - 1), colors=colors)


def light_out(depths: Tensor) -> Tensor:
    """[X, Y, Z] the most light that leaves each place along an axis or a diagonal, 0..1.

    depths: [X, Y, Z] optical depth of a cell's edge around each place; nothing lies beyond the border.
    """
    least = torch.full_like(depths, torch.inf)
    for way in itertools.product((-1, 0, 1), repeat=3):
        if any(way):
            least = torch.minimum(least, _depth_along(depths, way))
    return (-least).exp()


def _depth_along(depths: Tensor, way: tuple[int, ...]) -> Tensor:
    """[X, Y, Z] optical depth from outside to each place on a straight way, by the trapezoid rule."""
    axis = next(i for i in range(3) if way[i])
    length = sum(abs(step) for step in way) ** 0.5
    rest = [step for i, step in enumerate(way) if i != axis]
    planes = list(depths.unbind(axis))
    found = [torch.zeros_like(planes[0])] * len(planes)
    order = range(len(planes)) if way[axis] > 0 else range(len(planes) - 1, -1, -1)
    before, own = torch.zeros_like(planes[0]), torch.zeros_like(planes[0])
    for i in order:
        came, was = _moved(before, rest), _moved(own, rest)
        before, own = came + 0.5 * length * (was + planes[i]), planes[i]
        found[i] = before
    return torch.stack(found, axis)


def _moved(plane: Tensor, steps: list[int]) -> Tensor:
    """A plane [A, B] moved by whole places, zeros coming in."""
    for axis, step in enumerate(steps):
        if step:
            plane = plane.roll(step, axis)
            plane.narrow(axis, 0 if step > 0 else plane.shape[axis] - 1, 1).zero_()
    return plane


def _blocks(field: Tensor) -> tuple[Tensor, Tensor]:
    """A field [X, Y, Z] as blocks [B, 8, 8, 8] by z, y, x and their places [B, 3]."""
    pads = [(-n) % BLOCK for n in reversed(field.shape)]
    padded = functional.pad(field, [pad for n in pads for pad in (0, n)], value=1 - LEVEL)
    x, y, z = (n // BLOCK for n in padded.shape)
    cut = padded.view(x, BLOCK, y, BLOCK, z, BLOCK).permute(0, 2, 4, 5, 3, 1).reshape(-1, BLOCK, BLOCK, BLOCK)
    axes = [torch.arange(n, dtype=torch.int32) for n in (x, y, z)]
    return cut.contiguous(), torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).view(-1, 3)
