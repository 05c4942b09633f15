"""Distances between surfaces against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import trimesh

from scene.cameras import Camera, look_at
from scene.errors import InputError
from scene.mesh import Mesh
from scene.mesh_distance import Box, chamfer, point_to_mesh, sample_surface, visible


def of(shape: trimesh.Trimesh) -> Mesh:
    return Mesh(np.asarray(shape.vertices), np.asarray(shape.faces, np.int32))


def sphere(radius: float) -> Mesh:
    return of(trimesh.creation.icosphere(5, radius=radius))


def square(z: float, side: float = 2.0) -> Mesh:
    h = side / 2
    return Mesh(np.array([[-h, -h, z], [h, -h, z], [h, h, z], [-h, h, z]]), np.array([[0, 1, 2], [0, 2, 3]], np.int32))


def above(width: int = 64) -> Camera:
    K = torch.tensor([[64.0, 0, width / 2], [0, 64.0, 32], [0, 0, 1]])
    return Camera(K, look_at(torch.tensor([0.0, 0, 4]), torch.zeros(3), torch.tensor([0.0, 1, 0])), width, 64)


def test_concentric_spheres_are_their_radii_apart():
    result = chamfer(sphere(1.1), sphere(1.0), samples=20_000)
    # 20480 faces: the polyhedra lie up to 6e-4 inside their spheres.
    assert result.accuracy == pytest.approx(0.1, abs=1e-3)
    assert result.completeness == pytest.approx(0.1, abs=1e-3)
    assert result.diagonal == pytest.approx(2 * np.sqrt(3), rel=1e-3)
    assert result.percent == pytest.approx(100 * 0.1 / (2 * np.sqrt(3)), rel=0.01)
    assert result.fscore == 0  # everything is further away than 1 % of the diagonal


def test_shifted_planes_are_their_shift_apart():
    result = chamfer(square(0.02), square(0.0), samples=5000, threshold=0.03)
    assert result.accuracy == pytest.approx(0.02, abs=1e-6)
    assert result.completeness == pytest.approx(0.02, abs=1e-6)
    assert result.fscore == 1


def test_half_a_surface_is_accurate_but_not_complete():
    half = Mesh(
        np.array([[-1, -1, 0], [0, -1, 0], [0, 1, 0], [-1, 1, 0]], float), np.array([[0, 1, 2], [0, 2, 3]], np.int32)
    )
    result = chamfer(half, square(0.0), samples=20_000, threshold=1e-4)
    assert result.accuracy < 1e-6
    assert result.completeness == pytest.approx(0.25, abs=2e-3)  # mean distance: 0 on one half, x on the other
    assert result.fscore == pytest.approx(2 / 3, abs=5e-3)


def test_point_distances_are_exact_off_faces_edges_and_corners():
    points = np.array([[0.3, 0.2, 0.5], [2, 0, 0], [2, 2, 0], [2, 2, 1]], float)
    far = 1e5  # and do not suffer from a mesh far from the origin
    there = Mesh(square(0.0).vertices + far, square(0.0).faces)
    assert point_to_mesh(points + far, there) == pytest.approx([0.5, 1, np.sqrt(2), np.sqrt(3)], abs=1e-6)


def test_samples_are_uniform_by_area_and_the_seed_decides():
    sheet = Mesh(
        np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [1, 0, 0], [4, 0, 0], [4, 1, 0], [1, 1, 0]], float),
        np.array([[0, 1, 2], [0, 2, 3], [4, 5, 6], [4, 6, 7]], np.int32),
    )
    points, faces = sample_surface(sheet, 40_000, np.random.default_rng(1))
    again, _ = sample_surface(sheet, 40_000, np.random.default_rng(1))
    assert (points == again).all() and set(faces.tolist()) == {0, 1, 2, 3}
    counts, _, _ = np.histogram2d(points[:, 0], points[:, 1], bins=(8, 4), range=((0, 4), (0, 1)))
    # 1250 expected in each cell, standard deviation 35.
    assert np.abs(counts - 1250).max() < 5 * 35


def test_the_crop_box_decides_what_counts():
    stray = Mesh(
        np.concatenate([square(0.0).vertices, square(5.0).vertices]),
        np.concatenate([square(0.0).faces, square(5.0).faces + 4]).astype(np.int32),
    )
    box = Box((-1, -1, -0.5), (1, 1, 0.5))
    assert chamfer(stray, square(0.0), samples=4000).accuracy == pytest.approx(2.5, rel=0.05)
    cropped = chamfer(stray, square(0.0), samples=4000, crop=box)
    assert cropped.accuracy < 1e-6 and cropped.samples_mesh < 2500
    with pytest.raises(InputError, match="nothing to compare"):
        chamfer(stray, square(0.0), samples=4000, crop=Box((8, 8, 8), (9, 9, 9)))


def test_only_what_a_camera_sees_is_missed():
    table = of(trimesh.creation.box((2, 2, 0.5)))  # only its top is in view
    top = square(0.25)
    assert chamfer(top, table, samples=8000).completeness > 0.1
    assert chamfer(top, table, samples=8000, seen_by=[above()]).completeness < 1e-3


def test_visibility_knows_occlusion_and_the_image_border():
    shelf = Mesh(
        np.concatenate([square(0.0).vertices, square(1.0, side=1.0).vertices]),
        np.concatenate([square(0.0).faces, square(1.0).faces + 4]).astype(np.int32),
    )
    points = np.array([[0, 0, 1], [0, 0, 0], [0.9, 0.9, 0], [0.9, 0, 0]], float)
    assert visible(points, shelf, [above()]).tolist() == [True, False, True, True]
    assert visible(points, shelf, [above(16)]).tolist() == [True, False, False, False]
    assert not visible(points, shelf, [above()], least=2).any()


def test_meshes_without_a_surface_are_refused():
    flat = Mesh(np.zeros((3, 3)), np.array([[0, 1, 2]], np.int32))
    empty = Mesh(np.zeros((0, 3)), np.zeros((0, 3), np.int32))
    for mesh in (flat, empty):
        with pytest.raises(InputError, match="no surface"):
            chamfer(mesh, square(0.0))
