"""Up by the ground: found under a scene, within a fraction of a degree, and not invented where there is none."""

from __future__ import annotations

import numpy as np
import pytest

from scene.up_axis import level_with_ground


def tilted(degrees: float, seed: int = 0) -> np.ndarray:
    """A rotation by so many degrees about a random level axis."""
    angle = np.random.default_rng(seed).random() * 2 * np.pi
    axis, turn = np.array([np.cos(angle), np.sin(angle), 0]), np.deg2rad(degrees)
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    return np.eye(3) + np.sin(turn) * cross + (1 - np.cos(turn)) * cross @ cross


def table_with_things(rng: np.random.Generator, ground: int = 3000) -> np.ndarray:
    floor = np.concatenate([rng.random((ground, 2)) * 4 - 2, 0.004 * rng.normal(size=(ground, 1))], axis=1)
    heap = rng.normal(size=(3000, 3)) * [0.4, 0.4, 0.3] + [0.2, 0, 0.6]
    wall = np.concatenate([np.full((2500, 1), -2.0), rng.random((2500, 2)) * [4, 2] + [-2, 0]], axis=1)
    return np.concatenate([floor, heap[heap[:, 2] > 0], wall])


@pytest.mark.parametrize("degrees", [0, 7, 18])
def test_the_ground_is_found_and_levelled(degrees):
    rng = np.random.default_rng(1)
    turn = tilted(degrees)
    points = table_with_things(rng) @ turn.T * 30 + [500, -200, 3]
    normal = level_with_ground(points, np.array([0, 0, 1.0]))
    assert normal is not None and np.degrees(np.arccos(min(1.0, float(normal @ turn[:, 2])))) < 0.3


def test_a_wall_or_a_ceiling_is_no_ground():
    rng = np.random.default_rng(2)
    wall = table_with_things(rng, ground=0)
    assert level_with_ground(wall, np.array([0, 0, 1.0])) is None
    below_ceiling = table_with_things(rng) * [1, 1, -1]
    assert level_with_ground(below_ceiling, np.array([0, 0, 1.0])) is None
    assert level_with_ground(rng.normal(size=(5000, 3)), np.array([0, 0, 1.0])) is None
    assert level_with_ground(np.zeros((5, 3)), np.array([0, 0, 1.0])) is None
