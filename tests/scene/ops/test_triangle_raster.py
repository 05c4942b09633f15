"""Triangles over pixels: against the twin, against sampling by hand, and at the seams between triangles."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from scene.cameras import Camera
from scene.ops.triangle_raster import cover, cover_reference, mesh_depth, mesh_depth_reference


def random_triangles(count: int, size: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.rand(count, 1, 2, generator=generator, dtype=torch.float64) * size
    spread = torch.randn(count, 3, 2, generator=generator, dtype=torch.float64) * size / 6
    return centres + spread


def camera(size: int = 24) -> Camera:
    K = torch.tensor([[20.0, 0, size / 2], [0, 22.0, size / 2], [0, 0, 1]], dtype=torch.float64)
    return Camera(K, torch.eye(4, dtype=torch.float64), size, size)


def test_cover_equals_its_twin() -> None:
    triangles = random_triangles(60, 32)
    faces, lost = cover(triangles, 32, 40)
    wanted, wanted_lost = cover_reference(triangles, 32, 40)
    assert torch.equal(faces, wanted)
    assert torch.equal(lost, wanted_lost)
    assert lost.any()
    assert not lost.all()


def test_a_fan_of_triangles_takes_every_pixel_once_even_where_edges_run_through_pixel_centres() -> None:
    corners = [(0.5, 0.5), (8.5, 0.5), (16.5, 0.5), (16.5, 8.5), (16.5, 16.5), (8.5, 16.5), (0.5, 16.5), (0.5, 8.5)]
    middle = (8.5, 8.5)
    ring = zip(corners, corners[1:] + corners[:1], strict=True)
    fan = torch.tensor([[middle, a, b] for a, b in ring], dtype=torch.float64)
    faces, lost = cover(fan, 20, 20)
    assert not lost.any()
    assert int((faces >= 0).sum()) == 16 * 16


def test_mirrored_empty_and_endless_triangles_cover_nothing() -> None:
    good = torch.tensor([[1.0, 1.0], [9.0, 1.0], [1.0, 9.0]], dtype=torch.float64)
    bad = torch.stack([good[[0, 2, 1]], good[[0, 0, 1]], good * math.nan, good * math.inf])
    faces, lost = cover(bad, 10, 10)
    assert (faces == -1).all()
    assert not lost.any()
    assert (cover(good[None], 10, 10)[0] == 0).any()
    assert (cover(torch.zeros(0, 3, 2), 4, 5)[0] == -1).all()


def test_depth_equals_its_twin_also_for_triangles_that_reach_behind_the_camera() -> None:
    generator = torch.Generator().manual_seed(3)
    vertices = torch.randn(40, 3, generator=generator, dtype=torch.float64) + torch.tensor([0, 0, 1.5])
    faces = torch.randint(0, 40, (30, 3), generator=generator)
    assert bool((vertices[faces][:, :, 2] < 0).any(1).logical_and((vertices[faces][:, :, 2] > 0).any(1)).any())
    got = mesh_depth(vertices, faces, camera())
    z = camera().project(vertices)[1]
    wanted = mesh_depth_reference(vertices, faces.int(), camera(), 1e-3 * float(z[z > 0].median()))
    assert torch.allclose(got, wanted, rtol=1e-5, atol=0)
    assert float((got > 0).float().mean()) > 0.3


def test_depth_of_a_slanted_plane_is_exact() -> None:
    vertices = torch.tensor([[-9.0, -9, 2], [9, -9, 4], [-9, 9, 2], [9, 9, 4]], dtype=torch.float64)
    got = mesh_depth(vertices, torch.tensor([[0, 1, 2], [1, 3, 2]]), camera())
    origins, directions = camera().rays()
    normal = torch.tensor([-1 / 9, 0, 1], dtype=torch.float64)  # z = 3 + x / 9
    wanted = (3 - origins @ normal) / (directions @ normal)
    assert torch.allclose(got.double(), wanted, rtol=1e-6)


def test_nothing_before_the_camera_leaves_an_empty_picture() -> None:
    behind = torch.tensor([[0.0, 0, -1], [1, 0, -1], [0, 1, -1]])
    assert not mesh_depth(behind, torch.tensor([[0, 1, 2]]), camera()).any()
    assert not mesh_depth(behind, torch.zeros(0, 3, dtype=torch.int32), camera()).any()


def test_wrong_shapes_are_told() -> None:
    with pytest.raises(ValueError, match="F, 3, 2"):
        cover(torch.zeros(4, 3, 3), 8, 8)
    with pytest.raises(ValueError, match="V, 3"):
        mesh_depth(torch.zeros(4, 2), torch.zeros(1, 3), camera())
