"""Up, centre and scale of an estimated scene, against scenes made up with a known frame."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recon.sfm_frame import Similarity, choose_frame, enu, fit_gps, rotation_between, scene_center, up_direction
from scene.cameras import look_at


def _poses(places: np.ndarray, targets: np.ndarray) -> np.ndarray:
    up = torch.tensor([0.0, 0, 1], dtype=torch.float64)
    return np.stack([look_at(torch.from_numpy(a), torch.from_numpy(b), up).numpy() for a, b in zip(places, targets)])


def _ring(count: int = 24, radius: float = 20.0, height: float = 5.0) -> np.ndarray:
    angles = np.linspace(0, 2 * np.pi, count, endpoint=False)
    places = np.stack([radius * np.cos(angles), radius * np.sin(angles), height + np.sin(3 * angles)], axis=1)
    return _poses(places, np.zeros((count, 3)))


def _turned(poses: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The poses in a frame turned, scaled and shifted at random, and the turn."""
    random = np.random.default_rng(seed)
    R, _ = np.linalg.qr(random.normal(size=(3, 3)))
    R *= np.sign(np.linalg.det(R))
    moved = poses.copy()
    moved[:, :3, :3] = R @ poses[:, :3, :3]
    moved[:, :3, 3] = 0.05 * poses[:, :3, 3] @ R.T + (3, -2, 7)
    return moved, R


def _rolled(poses: np.ndarray, degrees: np.ndarray) -> np.ndarray:
    rolled = poses.copy()
    for pose, angle in zip(rolled, np.radians(degrees)):
        turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
        pose[:3, :3] = pose[:3, :3] @ turn
    return rolled


def test_up_is_found_whatever_the_tilt_and_in_spite_of_rolled_photos() -> None:
    poses, R = _turned(_rolled(_ring(), np.random.default_rng(1).normal(0, 2, 24)))
    poses[:3] = _rolled(poses[:3], np.array([90.0, 90.0, -90.0]))  # portrait without an EXIF orientation
    up, _ = up_direction(poses[:, :3, :3])
    assert np.degrees(np.arccos(up @ R[:, 2])) < 1.5


def test_up_of_photos_straight_down_points_at_the_cameras() -> None:
    angles = np.linspace(0, 6, 12)
    right = np.stack([np.cos(angles), np.sin(angles), 0 * angles], axis=1)
    forward = np.tile([0.0, 0, -1], (12, 1))
    rotations = np.stack([right, np.cross(forward, right), forward], axis=2)
    up, _ = up_direction(rotations)
    assert up @ np.array([0, 0, 1]) > 0.999


def test_up_of_photos_that_look_one_way_is_up_in_the_photos() -> None:
    places = np.stack([np.linspace(0, 1, 8), np.zeros(8), np.sin(np.arange(8))], axis=1)
    poses, R = _turned(_poses(places, places + np.array([0, 5, 0])))
    up, how = up_direction(poses[:, :3, :3])
    assert up @ R[:, 2] > 0.9999
    assert "on average" in how


@pytest.mark.parametrize("target", [[0.0, 0, 1], [0, 0, -1], [0.6, 0, 0.8], [1, 0, 0]])
def test_rotation_between_turns_one_into_the_other(target: list[float]) -> None:
    R = rotation_between(np.array([0.0, 0, 1]), np.array(target))
    assert np.abs(R @ R.T - np.eye(3)).max() < 1e-12
    assert abs(np.linalg.det(R) - 1) < 1e-12
    assert np.abs(R @ (0, 0, 1) - target).max() < 1e-12


def test_centre_is_where_the_cameras_look_even_if_a_few_look_elsewhere() -> None:
    poses = _ring()
    poses[0] = _poses(poses[:1, :3, 3], poses[:1, :3, 3] + (5, 5, 0))[0]
    points = np.random.default_rng(0).normal(size=(500, 3)) * 8
    center = scene_center(poses[:, :3, 3], poses[:, :3, 2], points)
    assert np.linalg.norm(center) < 0.5  # of 20


def test_centre_of_cameras_that_look_one_way_is_the_middle_of_the_points() -> None:
    places = np.stack([np.linspace(0, 1, 8), np.zeros(8), np.zeros(8)], axis=1)
    poses = _poses(places, places + np.array([0, 5, 0]))
    points = np.random.default_rng(0).normal(size=(501, 3)) + np.array([0.5, 6, 0])
    assert np.array_equal(scene_center(places, poses[:, :3, 2], points), np.median(points, axis=0))


def test_frame_without_gps_has_unit_distance_and_does_not_depend_on_the_frame_it_came_in() -> None:
    points = np.random.default_rng(0).normal(size=(300, 3)) * 4
    centers = []
    for seed in (0, 1):
        poses, R = _turned(_ring(), seed)
        frame = choose_frame(poses, 0.05 * points @ R.T + (3, -2, 7), [None] * 24)
        assert not frame.metric
        centers.append(frame.similarity.apply(poses[:, :3, 3]))
        assert abs(np.median(np.linalg.norm(centers[-1], axis=1)) - 1) < 1e-9
    assert np.abs(centers[0][:, 2] - centers[1][:, 2]).max() < 1e-6  # heights agree; the heading is free


def _gps(places: np.ndarray, noise: float, seed: int = 0) -> list[tuple[float, float, float] | None]:
    """Degrees and metres of places [N, 3] in metres east, north, up of Lund, by the local radii of the earth."""
    random = np.random.default_rng(seed)
    places = places + random.normal(0, noise, places.shape) * (1, 1, 3)
    latitude, longitude = 55.7, 13.19
    squared = 6.694379990141e-3
    below = 1 - squared * np.sin(np.radians(latitude)) ** 2
    north = 6_378_137.0 * (1 - squared) / below**1.5
    east = 6_378_137.0 / below**0.5 * np.cos(np.radians(latitude))
    return [
        (latitude + float(np.degrees(p[1] / north)), longitude + float(np.degrees(p[0] / east)), 40 + float(p[2]))
        for p in places
    ]


def test_enu_agrees_with_colmaps_conversion() -> None:
    import pycolmap

    gps = np.array(_gps(np.random.default_rng(0).normal(0, 50, (10, 3)), 0.0))
    other = np.array(pycolmap.GPSTransform().ellipsoid_to_enu(gps, float(gps[0, 0]), float(gps[0, 1]), 40.0))
    got = enu(gps)
    assert np.abs((got - got.mean(0)) - (other - other.mean(0))).max() < 0.01  # tangent planes 50 m apart


def test_gps_gives_metres_and_north_in_spite_of_noise_and_outliers() -> None:
    true = _ring()
    poses, R = _turned(true)
    gps = _gps(true[:, :3, 3], noise=1.0)
    gps[2] = gps[9] = (55.71, 13.2, 0.0)  # a kilometre off, as under trees
    gps[5] = None
    points = np.random.default_rng(0).normal(size=(300, 3)) * 4
    frame = choose_frame(poses, 0.05 * points @ R.T + (3, -2, 7), gps)
    assert frame.metric
    assert "metres by GPS" in frame.decision
    placed = frame.similarity.apply(poses[:, :3, 3])
    assert abs(frame.similarity.scale * 0.05 - 1) < 0.03  # 1 m of noise over 20 m, 21 photos
    assert np.abs((placed - placed.mean(0)) - (true[:, :3, 3] - true[:, :3, 3].mean(0))).max() < 1.0


@pytest.mark.parametrize("case", ["few", "narrow", "wrong"])
def test_gps_that_cannot_settle_the_scale_is_not_used(case: str) -> None:
    true = _ring()[:, :3, 3]
    gps = _gps(true, 1.0)
    if case == "few":
        gps[4:] = [None] * 20
    elif case == "narrow":
        gps = _gps(0.1 * true, 0.1)
    else:
        gps = _gps(np.random.default_rng(5).normal(0, 60, true.shape), 1.0)
    assert fit_gps(true, gps) is None


def test_similarities_chain() -> None:
    random = np.random.default_rng(0)
    R = rotation_between(np.array([0.0, 0, 1]), np.array([0.6, 0, 0.8]))
    a, b = Similarity(2.0, R, random.normal(size=3)), Similarity(0.3, R.T, random.normal(size=3))
    points = random.normal(size=(5, 3))
    assert np.abs(b.after(a).apply(points) - b.apply(a.apply(points))).max() < 1e-12
