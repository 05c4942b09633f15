"""The surface of a grid: shapes with known volume and radius, fog, hollows, thin parts, colours where they are."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from generation.grid_surface import grid_to_mesh, light_out
from generation.scenes import GridConfig, GridTarget
from scene.errors import InputError
from scene.ops import native
from scene.voxel_grid import VoxelGrid

pytestmark = pytest.mark.skipif(not native.has(torch.device("cpu")), reason="the CPU module is not compiled")
SIDE = 32
VOXEL = 1.5 / (SIDE - 1)


def grid_of(distance: torch.Tensor, steep: float = 200.0) -> VoxelGrid:
    """A grid that is empty where a signed distance [X, X, X] in world units, positive inside, is negative."""
    grid = GridTarget(GridConfig(voxels=SIDE)).grid
    density = (distance * steep).clamp(-10, 30)
    return replace(grid, density=density.contiguous(), features=grid.features.detach().clone())


def points() -> torch.Tensor:
    axis = torch.linspace(-0.75, 0.75, SIDE)
    return torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1)


def test_light_comes_out_the_shortest_way() -> None:
    slab = torch.zeros(9, 9, 9)
    slab[3:6] = 0.2  # optical depth of an edge
    out = light_out(slab)
    assert float(out[0, 4, 4]) == 1 and float(out[8, 0, 0]) == 1
    assert float(out[4, 4, 4]) == pytest.approx(math.exp(-0.3), abs=1e-6)  # half of the edge before, and one more
    assert float(out[3, 4, 4]) == pytest.approx(math.exp(-0.1), abs=1e-6)
    for turned in (slab.permute(1, 0, 2), slab.permute(2, 1, 0)):
        assert sorted(light_out(turned).flatten().tolist()) == pytest.approx(sorted(out.flatten().tolist()))
    ball = torch.rand(5, 6, 7, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(light_out(ball.flip(0)), light_out(ball).flip(0))
    assert torch.allclose(light_out(ball.transpose(0, 2)), light_out(ball).transpose(0, 2))


def test_a_ball_has_its_place_radius_and_volume_and_is_closed() -> None:
    centre, radius = torch.tensor([0.1, -0.05, 0.2]), 0.4
    mesh = grid_to_mesh(grid_of(radius - (points() - centre).norm(dim=-1)))
    facts = mesh.facts()
    assert facts.watertight and facts.components == 1
    away = np.linalg.norm(mesh.vertices - centre.numpy(), axis=1)
    assert abs(away - radius).max() < 0.5 * VOXEL
    assert facts.volume == pytest.approx(4 / 3 * math.pi * radius**3, rel=0.06)


def test_fog_has_its_surface_where_half_of_the_light_is_gone() -> None:
    grid = grid_of(0.6 - points().norm(dim=-1), steep=1000.0)
    thin = math.log(math.expm1(0.25))  # raw density of which a voxel's length takes 1 - e^-0.25
    mesh = grid_to_mesh(replace(grid, density=grid.density.clamp(max=thin)))
    away = np.linalg.norm(mesh.vertices, axis=1)
    assert mesh.facts().watertight
    assert abs(away.mean() - (0.6 - 0.5 * math.log(2) / 0.25 * VOXEL)) < 0.7 * VOXEL


def test_hollows_are_solid_and_bays_are_not() -> None:
    away = points().norm(dim=-1)
    shell = grid_to_mesh(grid_of(torch.minimum(0.5 - away, away - 0.3)))
    assert shell.facts().components == 1
    assert shell.facts().volume == pytest.approx(4 / 3 * math.pi * 0.5**3, rel=0.06)
    p = points()
    well = torch.maximum(0.2 - p[..., :2].norm(dim=-1), torch.full_like(away, -1.0))
    cup = grid_to_mesh(grid_of(torch.minimum(0.5 - away, torch.maximum(-well, -p[..., 2] - 0.1))))
    assert cup.facts().volume == pytest.approx(4 / 3 * math.pi * 0.5**3 - math.pi * 0.04 * 0.59, rel=0.08)


def test_a_rod_as_thick_as_a_voxel_stays_in_one_piece() -> None:
    p = points()
    rod = 0.75 * VOXEL - p[..., :2].norm(dim=-1)
    mesh = grid_to_mesh(grid_of(torch.minimum(rod, 0.6 - p[..., 2].abs()), steep=500.0))
    assert mesh.facts().components == 1
    low, high = mesh.bounds()
    assert high[2] - low[2] == pytest.approx(1.2, abs=2 * VOXEL)


def test_what_reaches_the_border_is_closed_there() -> None:
    mesh = grid_to_mesh(grid_of(0.3 - points()[..., 1:].norm(dim=-1)))
    assert mesh.facts().watertight


def test_colours_are_those_of_the_field() -> None:
    grid = grid_of(0.5 - points().norm(dim=-1))
    grid.features[:] = torch.where(points()[..., 2:] > 0, 4.0, -4.0).expand(-1, -1, -1, 3).reshape(-1, 3)
    mesh = grid_to_mesh(grid)
    assert mesh.colors is not None
    top, bottom = mesh.vertices[:, 2] > 0.06, mesh.vertices[:, 2] < -0.06
    assert mesh.colors[top].min() > 240 and mesh.colors[bottom].max() < 15


def test_nothing_solid_is_said() -> None:
    with pytest.raises(InputError, match="nothing solid"):
        grid_to_mesh(grid_of(torch.full((SIDE, SIDE, SIDE), -0.1)))
