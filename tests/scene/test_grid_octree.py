"""A grid as an octree: the same pictures but for what leaves and harmonics cannot hold; refused where it has no box."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from scene import sh
from scene.cameras import Camera
from scene.errors import InputError
from scene.grid_octree import octree_of_grid
from scene.metrics import psnr
from scene.ops.octree_render import LEAST_SIGMA, VIEWED, Rays, render_octree
from scene.ray_space import GridFrame
from scene.volume_rendering import render_grid
from scene.voxel_grid import VoxelGrid
from tests.scene.voxel_grids import a_frame, a_space, ball, grid_of, looking_at


def colored_ball(frame: GridFrame | None = None) -> VoxelGrid:
    """An opaque ball whose network makes colours of smooth features and of the direction."""
    frame = frame or GridFrame(a_space("bounded", torch.float32), torch.tensor([[-1.0] * 3, [1.0] * 3]), (40, 40, 40))

    def features(points: Tensor) -> Tensor:
        return torch.cat([points, (3 * points).sin(), (2 * points).cos(), points.square()], dim=1) * 2

    return grid_of(frame, ball((0.1, 0.0, -0.1), 0.7, frame), features=features, head="mlp", threshold=1e-4)


def around(count: int) -> list[Camera]:
    turns = [2 * math.pi * i / count for i in range(count)]
    return [looking_at((3 * math.cos(turn), 3 * math.sin(turn), math.sin(3 * turn)), size=64) for turn in turns]


def test_an_octree_of_a_grid_shows_what_the_grid_shows() -> None:
    grid, cameras, white = colored_ball(), around(9), torch.ones(3)
    camera = cameras[0]
    drawn = render_grid(grid, camera, white)
    own = drawn.rgb
    scores = []
    for degree in (0, 2):
        octree = octree_of_grid(grid, cameras[1:], sh_degree=degree)
        assert octree.sh_degree == degree
        rays = Rays(camera=camera)
        seen = render_octree(octree.sigmas, octree.sh_coeffs, octree.index, rays, stop=VIEWED, least=LEAST_SIGMA)
        shown = (seen.rgb + seen.last[:, None] * white).view(own.shape)
        within = (drawn.alpha > 0.99) & (seen.last.view(drawn.alpha.shape) < 0.01)
        scores.append((float(psnr(shown, own)), float(psnr(shown, own, within))))
        assert 0.9 < within.sum() / (drawn.alpha > 0.5).sum() <= 1
    assert scores[1][0] > 22  # leaves have stairs for a rim
    assert scores[1][1] > 35
    assert scores[1][1] > scores[0][1] + 1  # the network's colours depend on the direction


def test_a_grid_of_plain_colours_keeps_them() -> None:
    frame = GridFrame(a_space("bounded", torch.float32), torch.tensor([[-1.0] * 3, [1.0] * 3]), (24, 24, 24))
    red = torch.tensor([2.0, -1.0, -3.0])
    grid = grid_of(frame, ball((0, 0, 0), 0.7, frame), features=lambda points: red.expand(len(points), 3))
    octree = octree_of_grid(grid, around(3), sh_degree=1)
    torch.testing.assert_close(octree.sh_coeffs[:, 0] * sh.C0, red.expand(len(octree), 3), atol=1e-4, rtol=0)
    assert not octree.sh_coeffs[:, 1:].any()


def test_a_grid_without_a_box_or_content_is_refused() -> None:
    grid = colored_ball()
    with pytest.raises(InputError, match="unbounded"):
        octree_of_grid(colored_ball(a_frame("unbounded")), around(3))
    with pytest.raises(InputError, match="solid"):
        octree_of_grid(replace(grid, density=torch.full_like(grid.density, -300.0)), around(3))
