"""What the check says of good, blurred, clipped and unconnected photos."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data.captures import open_capture
from recon.capture_check import CaptureCheck, Finding, check_cameras, check_photos
from recon.sfm_model import SfmResult
from tests.recon.corner import corner_cameras, render_corner, write_photos


@pytest.fixture(scope="module")
def photos() -> list[np.ndarray]:
    return [render_corner(camera) for camera in corner_cameras(6)]


def _topic(check: CaptureCheck, topic: str) -> Finding:
    return next(finding for finding in check.findings if finding.topic == topic)


def _blurred(photo: np.ndarray, sigma: float) -> np.ndarray:
    import cv2

    return cv2.GaussianBlur(photo, (0, 0), sigma)


def test_good_photos_are_called_good(photos: list[np.ndarray], tmp_path: Path) -> None:
    check = check_photos(open_capture(write_photos(tmp_path, photos)))
    assert check.worst == "good"
    assert [finding.topic for finding in check.findings] == ["blur", "exposure", "light"]


def test_one_blurred_photo_is_named(photos: list[np.ndarray], tmp_path: Path) -> None:
    shots = [*photos[:4], _blurred(photos[4], 3.0), photos[5]]
    finding = _topic(check_photos(open_capture(write_photos(tmp_path, shots))), "blur")
    assert finding.level == "warn"
    assert "view 04.png" in finding.sentence
    assert "view 03.png" not in finding.sentence


def test_a_set_blurred_throughout_is_bad(photos: list[np.ndarray], tmp_path: Path) -> None:
    shots = [_blurred(photo, 3.0) for photo in photos]
    finding = _topic(check_photos(open_capture(write_photos(tmp_path, shots))), "blur")
    assert finding.level == "bad"
    assert "shutter" in finding.sentence


def test_a_plain_but_sharp_photo_is_not_called_blurred(photos: list[np.ndarray], tmp_path: Path) -> None:
    plain = (128 + (photos[2].astype(float) - 128) * 0.15).astype(np.uint8)  # little contrast, all details
    finding = _topic(check_photos(open_capture(write_photos(tmp_path, [*photos, plain]))), "blur")
    assert finding.level == "good"


def test_clipped_photos_and_uneven_light_are_named(photos: list[np.ndarray], tmp_path: Path) -> None:
    white = np.clip(photos[1].astype(float) * 4, 0, 255).astype(np.uint8)
    dark = (photos[3] * 0.3).astype(np.uint8)
    check = check_photos(open_capture(write_photos(tmp_path, [photos[0], white, photos[2], dark])))
    assert "view 01.png" in _topic(check, "exposure").sentence
    assert _topic(check, "light").level == "warn"
    assert "stops" in _topic(check, "light").sentence


def test_one_blank_photo_does_not_break_the_check(photos: list[np.ndarray], tmp_path: Path) -> None:
    blank = np.zeros_like(photos[0])
    check = check_photos(open_capture(write_photos(tmp_path, [*photos, blank])))
    assert np.isfinite([finding.value for finding in check.findings]).all()


@pytest.fixture(scope="module")
def result(photos: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> SfmResult:
    """Cameras of six photos that are well connected; the tests alter one fact each."""
    capture = open_capture(write_photos(tmp_path_factory.mktemp("six"), photos))
    K, pose = np.array([[300.0, 0, 160], [0, 300, 120], [0, 0, 1]]), np.eye(4)
    return SfmResult(
        capture=capture.with_cameras({view.name: (K, None, pose) for view in capture.views}),
        registered=6,
        total=6,
        seconds=1.0,
        mean_reprojection_px=0.5,
        decisions=(),
        unplaced=(),
        shared=torch.full((6, 6), 200, dtype=torch.int32),
        triangulation_deg=12.0,
    )


def test_good_cameras_are_called_good(result: SfmResult) -> None:
    check = check_cameras(result)
    assert check.worst == "good"
    assert [finding.topic for finding in check.findings] == ["registered", "overlap", "baseline", "accuracy"]


def test_photos_without_a_place_are_named(result: SfmResult) -> None:
    finding = _topic(
        check_cameras(replace(result, total=10, unplaced=("a.jpg", "b.jpg", "c.jpg", "d.jpg"))), "registered"
    )
    assert finding.level == "bad"
    assert "6 of 10" in finding.sentence
    assert "a.jpg, b.jpg" in finding.sentence


def test_the_weakest_link_between_two_groups_is_named(result: SfmResult) -> None:
    shared = torch.zeros(6, 6, dtype=torch.int32)
    shared[:4, :4] = shared[4:, 4:] = 100
    shared[3, 4] = shared[4, 3] = 9
    finding = _topic(check_cameras(replace(result, shared=shared)), "overlap")
    assert finding.level == "warn"
    assert "view 03.png and view 04.png" in finding.sentence
    assert "9 points" in finding.sentence


def test_a_photo_held_by_one_neighbour_only_is_named(result: SfmResult) -> None:
    shared = result.shared.clone()
    shared[5, :4] = shared[:4, 5] = 3
    finding = _topic(check_cameras(replace(result, shared=shared)), "overlap")
    assert finding.level == "warn"
    assert finding.sentence.startswith("view 05.png overlap")


@pytest.mark.parametrize(("angle", "level"), [(1.0, "bad"), (4.0, "warn"), (8.0, "good")])
def test_a_small_baseline_asks_for_steps_aside(result: SfmResult, angle: float, level: str) -> None:
    finding = _topic(check_cameras(replace(result, triangulation_deg=angle)), "baseline")
    assert finding.level == level
    assert ("sideways" in finding.sentence) == (level != "good")


@pytest.mark.parametrize(("error", "level"), [(0.6, "good"), (1.4, "warn"), (2.5, "bad")])
def test_large_errors_are_told(result: SfmResult, error: float, level: str) -> None:
    assert _topic(check_cameras(replace(result, mean_reprojection_px=error)), "accuracy").level == level
