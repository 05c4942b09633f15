"""The door: detection, splits, selection, estimated cameras, earlier runs, pictures in memory."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from data.captures import Capture, MemoryPicture, PointCloud, capture_of_pictures, open_capture
from scene.cameras import Camera
from scene.errors import InputError
from tests.data.pictures import POINTS, blobs, noise, poses, save
from tests.data.test_transforms import (
    DISTORTION,
    HEIGHT,
    NGP,
    WIDTH,
    blender_folder,
    check_spots,
    ngp_folder,
    seen_through_opencv,
)

K = np.array([[NGP["fl_x"], 0, NGP["cx"]], [0, NGP["fl_y"], NGP["cy"]], [0, 0, 1]])


def photo_folder(folder: Path, count: int = 10, distortion: dict[str, float] | None = None) -> Path:
    for i, c2w in enumerate(poses(count)):
        save(folder / f"{i:02d}.png", blobs(WIDTH, HEIGHT, seen_through_opencv(c2w, NGP, distortion or {})))
    return folder


def estimated(capture: Capture, count: int, downscale: float = 1, distortion: bool = True):
    scaled = np.diag([1 / downscale, 1 / downscale, 1]) @ K
    coefficients = tuple(DISTORTION[key] for key in ("k1", "k2", "p1", "p2")) if distortion else None
    return {view.name: (scaled, coefficients, poses(10)[i]) for i, view in enumerate(capture.views[:count])}


@pytest.mark.parametrize(("holdout", "test"), [(8, [0, 8]), (4, [0, 4, 8]), (0, []), (1, [])])
def test_every_nth_view_is_held_out(holdout: int, test: list[int], tmp_path: Path):
    with open_capture(photo_folder(tmp_path), holdout=holdout) as capture:
        assert list(capture.test) == test  # holding out all would leave nothing to train on
        assert sorted(capture.train + capture.test) == list(range(10))


@pytest.mark.parametrize("downscale", [1, 2])
def test_estimated_cameras_undistort_from_then_on(downscale: int, tmp_path: Path):
    with open_capture(photo_folder(tmp_path, distortion=DISTORTION), downscale=downscale) as capture:
        assert capture.views[0].camera is None
        assert capture.photo(0).rgb.shape[:2] == (HEIGHT // downscale, WIDTH // downscale)
        points = PointCloud(torch.tensor(POINTS, dtype=torch.float32), torch.zeros(3, 3, dtype=torch.uint8))
        up = torch.tensor([0.0, 0.0, 1.0])
        posed = capture.with_cameras(estimated(capture, 9, downscale), points, up, False, ("Nine were registered.",))
        assert len(posed.views) == 9 and list(posed.test) == [0, 8] and posed.points is points
        assert posed.up is not None and posed.decisions[-1] == "Nine were registered."
        check_spots(posed, tolerance=0.2)
        check_spots(posed, level=1, tolerance=0.2)
        raw = posed.raw_photo(3)  # and the raw photo stays as it came
        assert raw.shape == (HEIGHT // downscale, WIDTH // downscale, 3)
        np.testing.assert_array_equal(raw, capture.photo(3).rgb.numpy())
        posed.close()


def test_estimated_cameras_may_be_tensors_without_distortion(tmp_path: Path):
    with open_capture(photo_folder(tmp_path)) as capture:
        cameras = {
            name: (torch.tensor(K), None, torch.tensor(c2w)) for name, (_, _, c2w) in estimated(capture, 10).items()
        }
        check_spots(capture.with_cameras(cameras))


def test_cameras_for_unknown_views_are_our_mistake(tmp_path: Path):
    with open_capture(photo_folder(tmp_path, 2)) as capture, pytest.raises(ValueError, match=r"other\.png"):
        capture.with_cameras({"other.png": (K, None, np.eye(4))})


def test_selection_is_even_and_keeps_the_split_in_proportion(tmp_path: Path):
    with open_capture(photo_folder(tmp_path / "a"), max_views=5) as capture:
        assert [view.name for view in capture.views] == [f"{i:02d}.png" for i in (0, 2, 4, 6, 8)]
        assert "even selection of 5 of 10" in " ".join(capture.decisions)
    with open_capture(blender_folder(tmp_path / "b", ("train", "test")), max_views=4) as capture:
        assert (len(capture.train), len(capture.test)) == (2, 2)


@pytest.mark.parametrize(
    "options", [{"downscale": 0.5}, {"downscale": float("nan")}, {"holdout": -1}, {"max_views": 0}]
)
def test_impossible_options_are_refused(options: dict, tmp_path: Path):
    with pytest.raises(InputError, match="expected downscale"):
        open_capture(photo_folder(tmp_path, 2), **options)


@pytest.mark.parametrize("name", ["missing", "a.xyz", "single.png"])
def test_what_is_nothing_known_says_what_is(name: str, tmp_path: Path):
    (tmp_path / "a.xyz").write_text("?")
    save(tmp_path / "single.png", noise(16, 16))
    with pytest.raises(InputError, match="expected"):
        open_capture(tmp_path / name)


def test_views_that_cannot_be_delivered_are_left_out(tmp_path: Path):
    file = ngp_folder(tmp_path, distortion={})
    content = json.loads(file.read_text())
    content["frames"][0]["k1"] = -1e8
    content["frames"][0]["cx"] = 5000.0
    file.write_text(json.dumps(content))
    with open_capture(tmp_path) as capture:
        assert len(capture.views) == 3 and "images/0.png" in " ".join(capture.decisions)


def run_folder(folder: Path, source: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"format": 1, "method": "gaussians", "source": source}))
    return folder


def test_an_earlier_run_stands_for_its_source(tmp_path: Path):
    photos = photo_folder(tmp_path / "photos")
    run = run_folder(tmp_path / "runs/one", str(photos))
    relative = run_folder(tmp_path / "two", "photos")
    of_a_run = run_folder(tmp_path / "three", str(run))
    for source in (run, relative, of_a_run):
        with open_capture(source) as capture:
            assert capture.kind == "photos" and len(capture.views) == 10
            assert "earlier run" in " ".join(capture.decisions)


def test_the_cameras_an_earlier_run_estimated_are_used_again(tmp_path: Path):
    from tests.data.test_colmap import NAMES, PARAMETERS, write

    for name, c2w in zip(NAMES, poses(4), strict=True):
        fx, fy, cx, cy, k1, k2, p1, p2 = PARAMETERS["OPENCV"]
        scaled = {"fl_x": 2 * fx, "fl_y": 2 * fy, "cx": 2 * cx, "cy": 2 * cy}  # the run worked at half the size
        pixels = seen_through_opencv(c2w, scaled, {"k1": k1, "k2": k2, "p1": p1, "p2": p2})
        save(tmp_path / "photos" / name, blobs(640, 480, pixels))
    run = run_folder(tmp_path / "run", str(tmp_path / "photos"))
    write(run / "sfm", binary=True)
    with open_capture(run) as capture:
        assert capture.points is not None and all(view.camera for view in capture.views)
        check_spots(capture, tolerance=0.2)


@pytest.mark.parametrize("source", ["", "gone", None, "../run"])
def test_a_run_whose_source_is_gone_or_itself_is_refused(source: str | None, tmp_path: Path):
    run = run_folder(tmp_path / "run", source)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="name the photos"):
        open_capture(run)


def test_pictures_in_memory_are_a_capture_too():
    pictures = {}
    for i, c2w in enumerate(poses(4)):
        camera = Camera(torch.tensor(K), torch.tensor(c2w), WIDTH, HEIGHT)
        rgb = blobs(WIDTH, HEIGHT, seen_through_opencv(c2w, NGP, {}))
        alpha = np.full((HEIGHT, WIDTH), 255, np.uint8) if i else None
        pictures[f"{i}"] = (MemoryPicture(rgb, alpha), camera)
    with capture_of_pictures("made up", pictures, test=["2"], downscale=2) as capture:
        assert list(capture.test) == [2] and [view.has_alpha for view in capture.views] == [False, True, True, True]
        check_spots(capture)
        check_spots(capture, level=1)


def test_prefetching_a_capture_larger_than_its_cache_gives_every_photo(tmp_path: Path):
    with open_capture(photo_folder(tmp_path), cache_mb=1) as capture:
        for _ in range(2):
            capture.prefetch(range(10))
            for i in range(10):
                np.testing.assert_array_equal(capture.photo(i).rgb.numpy(), capture.raw_photo(i))


def test_closed_captures_refuse_photos(tmp_path: Path):
    with open_capture(photo_folder(tmp_path, 2)) as capture:
        capture.photo(0)
    with pytest.raises(RuntimeError, match="closed"):
        capture.photo(0)


def test_fox_decodes_in_seconds(real_data: Path):
    import time

    began = time.perf_counter()
    with open_capture(real_data / "photos" / "fox" / "images", downscale=2) as fox:
        fox.prefetch(range(50))
        for i in range(50):
            assert fox.photo(i).rgb.shape == (960, 540, 3)
    assert time.perf_counter() - began < 15  # 1.1 s on two idle cores; the rest is for a busy machine
