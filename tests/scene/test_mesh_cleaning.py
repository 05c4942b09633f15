"""Smoothing of meshes with a known shape."""

from __future__ import annotations

import math

import numpy as np
import pytest
import trimesh

from scene.mesh import Mesh
from scene.mesh_cleaning import smooth


def sphere(noise: float = 0.0) -> Mesh:
    solid = trimesh.creation.icosphere(5)
    normals = np.asarray(solid.vertices)
    bumps = 1 + noise * np.random.default_rng(0).standard_normal(len(normals))
    return Mesh(normals * bumps[:, None], np.asarray(solid.faces, np.int32))


def sheet(count: int = 12) -> Mesh:
    """A flat square of count x count squares with a hole in the middle."""
    side = count + 1
    y, x = np.divmod(np.arange(side * side), side)
    corners = [(r * side + c) for r in range(count) for c in range(count) if not (4 <= r < 7 and 4 <= c < 7)]
    faces = [f for a in corners for f in ((a, a + 1, a + side + 1), (a, a + side + 1, a + side))]
    return Mesh(np.stack([x, y, np.zeros(len(x))], axis=1).astype(float), np.array(faces, np.int32))


def test_noise_goes_and_the_volume_stays():
    noisy, still = sphere(0.005), sphere()
    tidy = smooth(noisy, 10)
    before, after = (np.abs(np.linalg.norm(mesh.vertices, axis=1) - 1).mean() for mesh in (noisy, tidy))
    assert after < 0.4 * before
    assert tidy.facts().volume == pytest.approx(still.facts().volume, rel=2e-3)


def test_a_smooth_shape_stays_as_it_is():
    off = np.linalg.norm(smooth(sphere(), 10).vertices, axis=1) - 1  # vertices may slide along the surface
    assert np.abs(off).max() < 5e-4  # edges are 0.03 long; plain averaging would take ten times 3e-4 off the radius


def test_borders_follow_themselves_so_holes_do_not_grow():
    flat, tidy = sheet(), smooth(sheet(), 10)
    assert np.array_equal(tidy.vertices[:, 2], flat.vertices[:, 2])
    area = tidy.facts().area
    # Corners of the square and of the hole are rounded, straight borders stay.
    assert area == pytest.approx(flat.facts().area, rel=0.01)
    middle = tidy.vertices[6]  # of the lower border
    assert np.allclose(middle, (6, 0, 0), atol=0.05)


def test_turning_the_mesh_turns_the_outcome():
    noisy, turn = sphere(0.01), np.eye(4)
    turn[:2, :2] = [[math.cos(1), -math.sin(1)], [math.sin(1), math.cos(1)]]
    turn[:3, 3] = (3, -2, 1)
    there, here = smooth(noisy.transformed(turn), 5), smooth(noisy, 5).transformed(turn)
    assert np.allclose(there.vertices, here.vertices, atol=1e-12)


def test_nothing_to_do_gives_the_mesh_back():
    assert smooth(sphere(), 0).vertices is not None
    empty = Mesh(np.zeros((0, 3)), np.zeros((0, 3), np.int32))
    assert smooth(empty, 5) is empty
    lonely = Mesh(np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [9, 9, 9]], float), np.array([[0, 1, 2]], np.int32))
    assert np.array_equal(smooth(lonely, 3).vertices[3], (9, 9, 9))
