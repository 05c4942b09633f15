"""The surface of a grid: shapes with known volume and radius, hollows, thin parts, colours where they are."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from generation.grid_surface import density_of, filled, grid_to_mesh
from generation.scenes import GridConfig, GridTarget
from scene.errors import InputError
from scene.ops import native
from scene.voxel_grid import VoxelGrid, raw_to_alpha

pytestmark = pytest.mark.skipif(not native.has(torch.device("cpu")), reason="the CPU module is not compiled")
SIDE = 32


def grid_of(distance: torch.Tensor) -> VoxelGrid:
    """A grid whose surface is where a signed distance [X, X, X] in world units, positive inside, is zero."""
    grid = GridTarget(GridConfig(voxels=SIDE)).grid
    density = distance * 100 + density_of(0.5, grid)
    return replace(grid, density=density.contiguous(), features=grid.features.detach().clone())


def points() -> torch.Tensor:
    axis = torch.linspace(-0.75, 0.75, SIDE)
    return torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1)


@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.9])
def test_a_voxel_of_the_density_takes_its_share_of_the_light(alpha: float) -> None:
    grid = GridTarget(GridConfig(voxels=8)).grid
    step = raw_to_alpha(torch.tensor([density_of(alpha, grid)]), grid.interval)
    assert float(1 - (1 - step) ** (1 / grid.step)) == pytest.approx(alpha, abs=1e-6)


def test_what_is_not_opaque_yet_has_a_surface_where_it_is_half_as_solid() -> None:
    grid = grid_of(torch.zeros(SIDE, SIDE, SIDE))
    away = points().norm(dim=-1)
    alpha = (0.3 * (1 - away)).clamp(0.001, 0.3)  # half of the most at 0.5
    density = (-(1 - alpha.double()).log() * grid.step / grid.interval).expm1().log().float()
    mesh = grid_to_mesh(replace(grid, density=density))
    assert abs(np.linalg.norm(mesh.vertices, axis=1) - 0.5).max() < 0.03


def test_a_ball_has_its_place_radius_and_volume_and_is_closed() -> None:
    centre, radius = torch.tensor([0.1, -0.05, 0.2]), 0.4
    mesh = grid_to_mesh(grid_of(radius - (points() - centre).norm(dim=-1)))
    facts = mesh.facts()
    assert facts.watertight and facts.components == 1
    away = np.linalg.norm(mesh.vertices - centre.numpy(), axis=1)
    assert abs(away - radius).max() < 0.01  # a fifth of a voxel
    assert facts.volume == pytest.approx(4 / 3 * math.pi * radius**3, rel=0.02)


def test_hollows_are_filled_and_bays_are_not() -> None:
    away = points().norm(dim=-1)
    shell = grid_to_mesh(grid_of(torch.minimum(0.5 - away, away - 0.25)))
    assert shell.facts().components == 1
    assert shell.facts().volume == pytest.approx(4 / 3 * math.pi * 0.5**3, rel=0.02)
    bay = torch.full((5, 5, 5), 2.0)
    bay[2, 2, 2:] = -1.0
    assert torch.equal(filled(bay), bay)
    bay[2, 2, 4] = 2.0
    assert float(filled(bay)[2, 2, 2]) == 1.0 and float(filled(bay).min()) > 0


def test_a_rod_as_thick_as_a_voxel_stays_in_one_piece() -> None:
    p, voxel = points(), 1.5 / (SIDE - 1)
    rod = 0.75 * voxel - p[..., :2].norm(dim=-1)
    mesh = grid_to_mesh(grid_of(torch.minimum(rod, 0.6 - p[..., 2].abs())))
    assert mesh.facts().components == 1
    low, high = mesh.bounds()
    assert high[2] - low[2] == pytest.approx(1.2, abs=2 * voxel)


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
