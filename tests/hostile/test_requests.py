"""Requests that cannot be met: slips of the pen, values out of range, output that cannot be written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from data.captures import open_capture
from tests.apps.tiny import write_tiny
from tests.data.pictures import noise, save
from tests.hostile.doors import calls, refused

FAST = ("--steps", "4", "--max-splats", "150", "--initial-splats", "100", "--coarse-levels", "0")


@pytest.fixture(scope="module")
def ball(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("requests") / "ball", train=4, held_out=1, size=16)


SLIPS = [
    (["recn", "BALL"], "did you mean 'recon'"),
    (["exprot", "BALL"], "did you mean 'export'"),
    (["recon", "BALL", "--stesp", "5"], "--steps"),
    (["recon", "BALL", "--max-splat", "5"], "--max-splats"),
    (["recon", "BALL", "--preset", "draff"], "draft"),
    (["recon", "BALL", "--steps", "many"], "--steps"),
    (["render", "BALL", "--path", "orbitt"], "run folder"),
]
RANGES = [
    ("--steps", "-5"),
    ("--steps", "0"),
    ("--steps", "99999999999999999999"),
    ("--max-splats", "0"),
    ("--max-splats", "1000000000000"),
    ("--initial-splats", "-1"),
    ("--sh-degree", "9"),
    ("--ssim-weight", "nan"),
    ("--ssim-weight", "1.5"),
    ("--means-lr", "inf"),
    ("--means-lr", "nan"),
    ("--noise", "-1"),
    ("--coarse-levels", "1000"),
    ("--checkpoint-seconds", "nan"),
    ("--seed", "-1"),
    ("--seed", "99999999999999999999999"),
    ("--downscale", "nan"),
    ("--downscale", "0"),
    ("--downscale", "1e9"),
    ("--holdout", "-3"),
    ("--max-minutes", "nan"),
    ("--max-minutes", "0"),
    ("--max-minutes", "1e99"),
]


def test_slips_are_answered_with_what_may_have_been_meant(ball: Path, tmp_path: Path) -> None:
    jobs = [[ball if word == "BALL" else word for word in words] for words, _ in SLIPS]
    for (words, meant), outcome in zip(SLIPS, calls(jobs, cwd=tmp_path), strict=True):
        assert outcome.code == 2, words
        assert meant in outcome.err, outcome.err
        assert "Traceback" not in outcome.err
    assert not (tmp_path / "runs").exists()


def test_values_out_of_range_are_refused_before_anything_is_begun(ball: Path, tmp_path: Path) -> None:
    outcomes = calls([["recon", ball, "--out", tmp_path / "run", *words] for words in RANGES], cwd=tmp_path)
    for (flag, value), outcome in zip(RANGES, outcomes, strict=True):
        assert outcome.code == 2, (flag, value, outcome.err)
        assert flag in outcome.err and "Traceback" not in outcome.err
    assert not (tmp_path / "run").exists()


def test_output_that_cannot_be_a_folder_is_refused(ball: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe")
    places = [
        tmp_path / "file",
        tmp_path / "file/run",
        tmp_path / "loop",
        tmp_path / "pipe",
        Path("/proc/run"),
        tmp_path / ("a" * 300),
    ]
    for place, outcome in zip(places, calls([["recon", ball, "--out", place] for place in places]), strict=True):
        refused(outcome, place.name[:50])


def test_input_as_output_is_refused_and_left_alone(ball: Path, tmp_path: Path) -> None:
    before = sorted(ball.rglob("*"))
    (outcome,) = calls([["recon", ball, "--out", ball]])
    refused(outcome, "is not empty", "--out")
    assert sorted(path for path in ball.rglob("*") if path.name != ".lock") == before


def test_a_run_inside_its_photos_is_safe_for_its_pictures_are_not_taken_for_photos(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    for i in range(3):
        save(photos / f"{i}.jpg", noise(64, 48, seed=i))
    (first,) = calls([["recon", photos, "--out", photos / "runs/one"]], memory=2 << 30)
    assert first.code == 3  # noise: no cameras
    save(photos / "runs/one/renders/0000_truth.png", noise(64, 48))
    save(photos / "runs/one/capture/frame.jpg", noise(64, 48))
    with open_capture(photos) as capture:
        assert [view.name for view in capture.views] == ["0.jpg", "1.jpg", "2.jpg"]


def test_a_full_disk_is_4_and_resumable(ball: Path, tmp_path: Path) -> None:
    """No file may grow beyond 3 kB, as on a small device that is full."""
    (outcome,) = calls([["recon", ball, "--out", tmp_path / "run", *FAST]], memory=2 << 30, file_bytes=3000)
    refused(outcome, "the disk is full", "--resume", code=4)
    (again,) = calls([["recon", tmp_path / "run", "--resume"]], memory=2 << 30)
    assert again.code in (0, 2) and "Traceback" not in again.err
    assert (tmp_path / "run/scene.ply").is_file()


@pytest.mark.skipif(os.geteuid() == 0 if hasattr(os, "geteuid") else False, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_refused(ball: Path, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    (outcome,) = calls([["recon", ball, "--out", tmp_path / "closed/run"]])
    refused(outcome, "closed", "permissions")
