"""Cameras around an object: where they stand, what they see, what their view is called."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from generation.views import (
    ViewRange,
    azimuth_of,
    distance_for,
    elevation_of,
    orbit_camera,
    orthogonal_cameras,
    sample_cameras,
    sample_orthogonal,
    view_words,
)
from scene.cameras import look_at


def test_the_front_camera_stands_on_plus_x_and_sees_plus_y_to_its_right_and_plus_z_above() -> None:
    camera = orbit_camera(0.0, 0.0, 40.0, 3.0, 64)
    torch.testing.assert_close(camera.center, torch.tensor([3.0, 0.0, 0.0]))
    pixels, depths = camera.project(torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.5, 0.0], [0.0, 0.0, 0.5], [1.0, 0.0, 0.0]]))
    torch.testing.assert_close(pixels[0], torch.tensor([32.0, 32.0]))
    assert pixels[1, 0] > 40 and pixels[1, 1] == pytest.approx(32) and pixels[2, 1] < 24
    torch.testing.assert_close(depths, torch.tensor([3.0, 3.0, 3.0, 2.0]))


@pytest.mark.parametrize("azimuth", [-170.0, -45.0, 0.0, 33.0, 90.0, 179.0])
@pytest.mark.parametrize("elevation", [-90.0, -20.0, 0.0, 60.0, 90.0])
def test_angles_come_back_from_a_camera_even_at_the_poles(azimuth: float, elevation: float) -> None:
    camera = orbit_camera(azimuth, elevation, 45.0, 2.0, 16)
    assert azimuth_of(camera) == pytest.approx(azimuth, abs=1e-2)  # float32 of a unit circle: 1e-7 of a radian a step
    assert elevation_of(camera) == pytest.approx(elevation, abs=1e-2)
    rotation = camera.c2w[:3, :3]
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(3), atol=1e-6, rtol=0)
    assert float(torch.linalg.det(rotation)) == pytest.approx(1.0, abs=1e-5)


def test_away_from_the_poles_it_is_look_at() -> None:
    camera = orbit_camera(70.0, -30.0, 40.0, 2.5, 16)
    wanted = look_at(camera.center, torch.zeros(3), torch.tensor([0.0, 0.0, 1.0]))
    torch.testing.assert_close(camera.c2w, wanted, atol=1e-6, rtol=0)
    assert math.degrees(camera.fov_y) == pytest.approx(40.0, abs=1e-4)


def test_four_orthogonal_cameras_are_quarter_turns_of_the_first() -> None:
    cameras = orthogonal_cameras(20.0, 15.0, 40.0, 2.5, 16)
    quarter = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    for before, after in itertools.pairwise(cameras):
        torch.testing.assert_close(after.c2w[:3], quarter @ before.c2w[:3], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("azimuth", "elevation", "threshold", "word"),
    [
        (0, 0, 45, "front"),
        (44, 0, 45, "front"),
        (-44, 0, 45, "front"),
        (46, 0, 45, "side"),
        (-90, 0, 45, "side"),
        (270, 0, 45, "side"),
        (136, 0, 45, "back"),
        (180, 0, 30, "back"),
        (-180, 0, 30, "back"),
        (149, 0, 30, "side"),
        (359, 0, 30, "front"),
        (0, 61, 45, "overhead"),
        (180, 60, 45, "back"),
    ],
)
def test_words_of_views(azimuth: float, elevation: float, threshold: float, word: str) -> None:
    assert view_words(azimuth, elevation, threshold) == word


def test_an_object_keeps_its_size_over_all_fields_of_view() -> None:
    for fov in (20.0, 40.0, 70.0):
        camera = orbit_camera(0.0, 0.0, fov, distance_for(fov, 0.9), 90)
        pixels, _ = camera.project(torch.tensor([[0.0, 0.9, 0.0], [0.0, 0.45, 0.0]]))
        torch.testing.assert_close(pixels[:, 0], torch.tensor([90.0, 67.5]), atol=1e-3, rtol=0)


def test_sampled_cameras_stay_in_range_and_follow_their_generator() -> None:
    ranges = ViewRange(azimuth=(10.0, 50.0), elevation=(-5.0, 20.0), fov=(40.0, 45.0), reach=(0.8, 0.9))
    first, second = (sample_cameras(torch.Generator().manual_seed(3), 200, 8, ranges) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.c2w, b.c2w) and torch.equal(a.K, b.K)
    azimuths = [azimuth_of(camera) for camera in first]
    assert 10 <= min(azimuths) < 14 and 46 < max(azimuths) <= 50.001
    reaches = [float(camera.center.norm()) * math.tan(camera.fov_y / 2) for camera in first]
    assert 0.799 < min(reaches) < 0.81 and 0.89 < max(reaches) < 0.901


def test_half_of_the_sampled_sets_face_the_front() -> None:
    generator = torch.Generator().manual_seed(0)
    sets = [sample_orthogonal(generator, 8) for _ in range(200)]
    facing = sum(abs(azimuth_of(cameras[0])) < 1e-3 for cameras in sets)
    assert 75 <= facing <= 125  # 3.5 standard deviations of 200 coins
    for cameras in sets[:20]:
        elevations = [elevation_of(camera) for camera in cameras]
        assert max(elevations) - min(elevations) < 1e-3


def test_impossible_cameras_are_refused() -> None:
    for numbers in ((0.0, 91.0, 40.0, 2.0), (0.0, 0.0, 180.0, 2.0), (0.0, 0.0, 40.0, 0.0)):
        with pytest.raises(ValueError, match="elevation must be"):
            orbit_camera(*numbers, 8)
