"""Cameras from photos: poses against truth, resume after kill -9, stop, time box, and what is said when it fails."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data.captures import Capture, open_capture
from recon.sfm import SfmConfig, estimate_cameras
from recon.sfm_model import SfmResult
from scene.errors import CamerasError, Interrupted
from tests.recon.corner import corner_cameras, pose_errors, render_corner, write_photos

CONFIG = SfmConfig(threads=1, features=800)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("corner"), [render_corner(camera) for camera in corner_cameras()])


@pytest.fixture(scope="module")
def finished(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[SfmResult, Path]:
    folder = tmp_path_factory.mktemp("run") / "sfm"
    return estimate_cameras(open_capture(photos), CONFIG, folder), folder


def _poses(capture: Capture) -> np.ndarray:
    return np.stack([view.camera.c2w.double().numpy() for view in capture.views if view.camera is not None])


def test_poses_lens_and_points_agree_with_the_truth(finished: tuple[SfmResult, Path]) -> None:
    result, _ = finished
    assert (result.registered, result.total, result.unplaced) == (8, 8, ())
    degrees, distances = pose_errors(_poses(result.capture), np.stack([c.c2w.numpy() for c in corner_cameras()]))
    assert degrees.max() < 0.5  # 0.5 degrees is 2.6 px here; an unknown lens and 320 px photos leave some tenths
    assert distances.max() < 0.05  # of the 4 units to the subject
    camera = result.capture.views[0].camera
    assert camera is not None
    assert abs(float(camera.K[0, 0]) / 300 - 1) < 0.03
    assert result.mean_reprojection_px < 0.6
    assert result.triangulation_deg > 5


def test_frame_is_level_centred_and_of_unit_distance(finished: tuple[SfmResult, Path]) -> None:
    result, _ = finished
    poses = _poses(result.capture)
    assert result.capture.up is not None
    assert result.capture.up.tolist() == [0, 0, 1]
    assert abs(np.median(np.linalg.norm(poses[:, :3, 3], axis=1)) - 1) < 1e-5
    assert np.abs(poses[:, 2, 0]).max() < np.sin(np.radians(1))  # the cameras are level, so x axes are horizontal
    assert (poses[:, 2, 1] < 0).all()  # and their y axes point down
    points = result.capture.points
    assert points is not None
    assert len(points) > 300
    assert points.tracks is not None
    assert int(points.tracks.min()) >= 2
    assert not result.capture.metric


def test_model_on_disk_is_colmaps_and_in_the_same_frame(finished: tuple[SfmResult, Path]) -> None:
    import pycolmap

    result, folder = finished
    model = pycolmap.Reconstruction(folder)
    assert {image.name for image in model.images.values()} == {view.name for view in result.capture.views}
    for view in result.capture.views:
        image = model.find_image_with_name(view.name)
        assert image is not None
        assert view.camera is not None
        assert np.abs(image.projection_center() - view.camera.center.numpy()).max() < 1e-6


def test_finished_model_is_taken_from_the_folder(photos: Path, finished: tuple[SfmResult, Path]) -> None:
    result, folder = finished
    said: list[str] = []
    again = estimate_cameras(open_capture(photos), CONFIG, folder, progress=lambda done, total, what: said.append(what))
    assert said == []
    assert np.array_equal(_poses(again.capture), _poses(result.capture))
    assert again.decisions == result.decisions


def test_killed_run_goes_on_and_ends_bit_for_bit_as_an_unbroken_one(
    photos: Path, finished: tuple[SfmResult, Path], tmp_path: Path
) -> None:
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from data.captures import open_capture\n"
        "from recon.sfm import SfmConfig, estimate_cameras\n"
        "def progress(done, total, what):\n"
        "    if what.startswith('Matching') and done >= 24: os.kill(os.getpid(), signal.SIGKILL)\n"
        "config = SfmConfig(threads=1, features=800)\n"
        "estimate_cameras(open_capture(sys.argv[1]), config, Path(sys.argv[2]), progress=progress)\n"
    )
    folder = tmp_path / "sfm"
    root = Path(__file__).parents[2]
    ended = subprocess.run([sys.executable, "-c", script, str(photos), str(folder)], cwd=root, check=False, timeout=120)
    assert ended.returncode == -signal.SIGKILL
    said: list[tuple[int, str]] = []
    resumed = estimate_cameras(
        open_capture(photos), CONFIG, folder, progress=lambda done, total, what: said.append((done, what))
    )
    assert next(done for done, what in said if what.startswith("Finding")) == 8
    assert next(done for done, what in said if what.startswith("Matching")) >= 20
    assert np.array_equal(_poses(resumed.capture), _poses(finished[0].capture))


def test_other_photos_in_the_same_folder_start_afresh(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sfm"
    first = estimate_cameras(open_capture(photos, max_views=6), CONFIG, folder)
    second = estimate_cameras(open_capture(photos), CONFIG, folder)
    assert (first.total, second.total, second.registered) == (6, 8, 8)


@pytest.mark.parametrize("way", ["retrieval", "sequential", "global"])
def test_every_matcher_and_mapper_places_all_photos(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr("recon.sfm._SMALL", 3)
    monkeypatch.setattr("recon.sfm._LARGE", 5)  # so that eight photos go the way of hundreds
    config = replace(CONFIG, neighbours=4)
    config = replace(config, mapper="global") if way == "global" else replace(config, matcher=way)  # type: ignore[arg-type]
    (tmp_path / "result.json").write_text("{ damaged")
    (tmp_path / "photos.json").write_text(json.dumps([1, 2]))
    result = estimate_cameras(open_capture(photos), config, tmp_path)
    assert result.registered == 8
    degrees, distances = pose_errors(_poses(result.capture), np.stack([c.c2w.numpy() for c in corner_cameras()]))
    assert degrees.max() < 1.0  # fewer pairs, so fewer points than with all of them
    assert distances.max() < 0.1


@pytest.mark.parametrize("stage", ["Finding", "Matching", "Placing"])
def test_stop_is_heard_in_every_stage(photos: Path, tmp_path: Path, stage: str) -> None:
    now: list[str] = [""]
    with pytest.raises(Interrupted) as caught:
        estimate_cameras(
            open_capture(photos),
            CONFIG,
            tmp_path,
            progress=lambda done, total, what: now.__setitem__(0, what),
            stop=lambda: now[0].startswith(stage),
        )
    assert caught.value.exit_code == 130
    assert "--resume" in str(caught.value)


def test_time_box_is_kept(photos: Path, tmp_path: Path) -> None:
    began = time.monotonic()
    try:
        estimate_cameras(open_capture(photos), replace(CONFIG, max_seconds=0.05), tmp_path)
    except CamerasError as error:
        assert error.exit_code == 3
    assert time.monotonic() - began < 15  # features of all photos and one photo of the mapper are not broken off


def test_too_few_photos_say_how_many_are_needed(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(CamerasError, match=r"at least 3 photos.*got 2") as caught:
        estimate_cameras(open_capture(photos, max_views=2), CONFIG, tmp_path)
    assert caught.value.exit_code == 3


def test_identical_photos_are_refused_with_advice(tmp_path: Path) -> None:
    photo = render_corner(corner_cameras(1)[0])
    capture = open_capture(write_photos(tmp_path / "same", [photo] * 5))
    with pytest.raises(CamerasError, match=r"sideways"):
        estimate_cameras(capture, CONFIG, tmp_path / "sfm")


def test_turning_on_the_spot_is_refused_with_advice(tmp_path: Path) -> None:
    photos = [render_corner(camera) for camera in corner_cameras(6, degrees=40, spot=True)]
    capture = open_capture(write_photos(tmp_path / "spot", photos))
    with pytest.raises(CamerasError, match=r"sideways"):
        estimate_cameras(capture, CONFIG, tmp_path / "sfm")


def test_blank_photos_are_refused_with_advice(tmp_path: Path) -> None:
    blank = [np.full((240, 320, 3), 90 + i, np.uint8) for i in range(4)]
    capture = open_capture(write_photos(tmp_path / "blank", blank))
    with pytest.raises(CamerasError, match=r"only 0 of 4 photos.*overlapping.*blank walls"):
        estimate_cameras(capture, CONFIG, tmp_path / "sfm")


def test_photos_of_something_else_are_left_out_by_name(photos: Path, tmp_path: Path) -> None:
    other = np.random.default_rng(3).integers(0, 255, (240, 320, 3)).astype(np.uint8)
    mixed = [render_corner(camera) for camera in corner_cameras()] + [other]
    capture = open_capture(write_photos(tmp_path / "mixed", mixed))
    result = estimate_cameras(capture, CONFIG, tmp_path / "sfm")
    assert (result.registered, result.total, result.unplaced) == (8, 9, ("view 08.png",))
    assert any("Only 8 of 9 photos" in sentence for sentence in result.decisions)


@pytest.mark.slow
def test_phone_photos_agree_with_their_published_poses(real_data: Path, tmp_path: Path) -> None:
    """Fox, 16 of 50 photos shrunk to 540 px: poses against transforms.json."""
    truth = json.loads((real_data / "photos/fox/transforms.json").read_text())
    flip = np.diag([1.0, -1.0, -1.0, 1.0])
    poses = {Path(f["file_path"]).name: np.array(f["transform_matrix"]) @ flip for f in truth["frames"]}
    with open_capture(real_data / "photos/fox/images", downscale=2, max_views=16) as capture:
        result = estimate_cameras(capture, SfmConfig(), tmp_path)
    assert result.registered == 16
    true = np.stack([poses[view.name] for view in result.capture.views])
    degrees, distances = pose_errors(_poses(result.capture), true)
    size = np.median(np.linalg.norm(true[:, :3, 3] - true[:, :3, 3].mean(0), axis=1))
    assert np.median(degrees) < 0.8  # the principal point is 7 px off the centre, which 16 photos may leave fixed
    assert np.median(distances) < 0.01 * size
    assert result.mean_reprojection_px < 0.8
