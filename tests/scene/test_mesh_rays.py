"""Rays and points against meshes of any size and place."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from scene.mesh import Mesh
from scene.mesh_rays import RayCaster
from tests.scene.solid_meshes import camera_at, icosphere, square

NOTHING = Mesh(np.zeros((0, 3)), np.zeros((0, 3), np.int32))


def test_the_closest_place_is_on_the_mesh() -> None:
    found = RayCaster(square(1)).closest(np.array([[0.2, 0.1, -0.7], [2.0, 0.0, 0.0]]))
    assert np.allclose(found.depth, [0.7, 1.5], atol=1e-6)
    assert np.allclose(found.shares.sum(axis=1), 1)


@pytest.mark.parametrize(("size", "place"), [(1e-20, 0.0), (1e-3, 5.0), (1e12, -4e12)])
def test_neither_size_nor_place_of_a_mesh_changes_what_is_found(size: float, place: float) -> None:
    ball = icosphere(3)
    moved = replace(ball, vertices=size * ball.vertices + place)
    rng = np.random.default_rng(0)
    points, directions = rng.normal(size=(200, 3)), rng.normal(size=(200, 3))
    here, there = RayCaster(ball), RayCaster(moved)
    plain, scaled = here.cast(points, directions), there.cast(size * points + place, directions)
    assert (plain.face >= 0).any() and (plain.face < 0).any()
    assert (plain.face == scaled.face).mean() > 0.98  # on the rim and on edges rounding may decide otherwise
    same = plain.face == scaled.face
    assert np.allclose(plain.depth[same], scaled.depth[same] / size, atol=1e-3)
    near, far = here.closest(points), there.closest(size * points + place)
    assert np.allclose(near.depth, far.depth / size, atol=1e-4)


def test_depths_are_in_lengths_of_the_direction_and_the_reach_in_scene_units() -> None:
    caster = RayCaster(square(1))
    origins, directions = np.tile([[0.1, 0.2, -3.0]], (3, 1)), np.array([[0, 0, 1.0], [0, 0, 10.0], [0, 0, 1e-30]])
    assert np.allclose(caster.cast(origins[:2], directions[:2]).depth, [3, 0.3])
    assert caster.cast(origins, directions, reach=3.1).face.min() >= 0
    assert caster.cast(origins, directions, reach=2.9).face.max() < 0
    assert caster.cast(origins[:1], np.zeros((1, 3))).face.tolist() == [-1]


def test_a_camera_in_the_middle_of_a_ball_sees_it_everywhere() -> None:
    hits = RayCaster(icosphere(2)).view(camera_at(0, 0, 0, size=48))
    assert hits.face.min() >= 0


def test_what_is_no_number_is_refused_and_an_empty_mesh_has_nothing() -> None:
    caster, origins = RayCaster(square(1)), np.zeros((1, 3))
    for bad in (np.full((1, 3), np.nan), np.full((1, 3), np.inf)):
        with pytest.raises(ValueError, match="finite"):
            caster.closest(bad)
        with pytest.raises(ValueError, match="finite"):
            caster.cast(origins, bad)
    empty = RayCaster(NOTHING)
    for found in (empty.cast(origins, origins + 1), empty.closest(origins)):
        assert found.face.tolist() == [-1] and found.depth.tolist() == [0]
