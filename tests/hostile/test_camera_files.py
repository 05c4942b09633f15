"""Camera files that lie: transforms.json, COLMAP models, Middlebury, KITTI and LLFF, through `maquette recon`."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.pictures import noise, poses, save
from tests.hostile.doors import calls, refused
from tests.hostile.mutations import Form
from tests.hostile.readers import LENS, colmap_model, kitti_seeds, llff_seeds, middlebury_seeds

GOOD = poses(1)[0]


def turned(change: Callable[[np.ndarray], Any]) -> dict[str, Any]:
    matrix = GOOD.copy()
    return {"transform_matrix": np.asarray(change(matrix)).tolist()}


FRAMES: dict[str, tuple[dict[str, Any], str]] = {
    "climbs": ({"file_path": "../../secret.png"}, "leads out"),
    "absolute": ({"file_path": "/etc/passwd"}, "leads out"),
    "nan": (turned(lambda m: m * math.nan), "finite"),
    "infinite": (turned(lambda m: m + np.inf), "finite"),
    "sheared": (turned(lambda m: m @ np.array([[1, 0.3, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])), "rotation"),
    "mirrored": (turned(lambda m: m @ np.diag([1, 1, -1, 1])), "mirrored"),
    "singular": (turned(lambda m: m @ np.diag([1, 1, 0, 1])), "rotation"),
    "projective": (turned(lambda m: np.vstack([m[:3], [0, 0, 1, 1]])), "last row"),
    "nested": ({"transform_matrix": [[[1, 2], [3, 4]]] * 4}, "4x4"),
    "words": ({"transform_matrix": [["a"] * 4] * 4}, "4x4"),
    "ragged": ({"transform_matrix": [[1, 0, 0, 0], [0, 1]]}, "4x4"),
    "large": ({"transform_matrix": [[0] * 5000] * 50}, "4x4"),
    "focal": ({"fl_x": math.nan, "fl_y": math.nan}, "finite number"),
    "negative": ({"fl_x": -3, "fl_y": -3}, "positive"),
    "nothing": ({"file_path": "images/none.png"}, "missing"),
}
TEXTS: dict[str, tuple[str, str]] = {
    "empty": ("", "not valid JSON"),
    "deep": ("[" * 200_000, "nests too deeply"),
    "list": ("[1, 2]", "JSON object"),
    "twins": ('{"frames": [], "camera_angle_x": 0.5, "camera_angle_x": 0.7}', "stands twice"),
    "no_frames": ('{"frames": []}', "lists none"),
    "frames": ('{"frames": 7}', "list 'frames'"),
    "digits": ('{"frames": ' + "9" * 9000 + "}", "not valid JSON"),
    "values": ('{"frames": [' + "[]," * 6_000_000 + "[]]}", "values"),
    "foreign": ("\x00\x01\x02", "not valid JSON"),
}


def test_transforms_that_hold_no_camera_are_refused_by_name_and_reason(tmp_path: Path) -> None:
    save(tmp_path / "secret.png", noise(24, 16))
    jobs, reasons = [], []
    for name, (change, reason) in FRAMES.items():
        folder = tmp_path / name / "set"
        save(folder / "images/0.png", noise(24, 16))
        frame = {"file_path": "images/0.png", "transform_matrix": GOOD.tolist(), **change}
        (folder / "transforms.json").write_text(json.dumps({**LENS, "frames": [frame]}))
        jobs.append(["recon", folder, "--out", tmp_path / f"run-{name}"])
        reasons.append(reason)
    for name, (text, reason) in TEXTS.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "transforms.json").write_text(text)
        jobs.append(["recon", folder, "--out", tmp_path / f"run-{name}"])
        reasons.append(reason)
    for reason, outcome in zip(reasons, calls(jobs), strict=True):
        refused(outcome, "transforms.json", reason)
        assert "root:" not in outcome.err


def test_a_bad_frame_among_good_ones_costs_only_itself(tmp_path: Path) -> None:
    frames = []
    for i, pose in enumerate(poses(4)):
        save(tmp_path / f"set/{i}.png", noise(24, 16, seed=i))
        frames.append({"file_path": f"{i}.png", "transform_matrix": pose.tolist()})
    frames[2]["transform_matrix"][0][0] = math.nan
    (tmp_path / "set/transforms.json").write_text(json.dumps({**LENS, "frames": frames}))
    flags = ("--steps", "2", "--max-splats", "60", "--initial-splats", "60")
    (outcome,) = calls([["recon", tmp_path / "set", "--out", tmp_path / "run", *flags]], memory=2 << 30)
    assert outcome.code in (0, 2), outcome.err  # so little training may leave no surface to make a mesh of
    assert "Left out 1: 2.png" in outcome.err and "Traceback" not in outcome.err


def damaged(path: Path, at: int, new: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[at : at + len(new)] = new
    path.write_bytes(content)


def endless_name(model: Path) -> None:
    """77 bytes over which COLMAP's own reader never ends."""
    (model / "images.bin").write_bytes(struct.pack("<Qi7di", 1, 1, 1, 0, 0, 0, 0, 0, 0, 1) + b"a" * 5)


BINARY: dict[str, tuple[Callable[[Path], object], str]] = {
    "cameras_count": (lambda m: damaged(m / "cameras.bin", 0, b"\xff" * 8), "cameras.bin claims"),
    "images_count": (lambda m: damaged(m / "images.bin", 0, struct.pack("<Q", 2**60)), "images.bin claims"),
    "points_count": (lambda m: damaged(m / "points3D.bin", 0, struct.pack("<Q", 2**40)), "points3D.bin claims"),
    "keypoints": (lambda m: damaged(m / "images.bin", 8 + 64 + 6, struct.pack("<Q", 2**50)), "keypoints of 0.png"),
    "track": (lambda m: damaged(m / "points3D.bin", 8 + 43, struct.pack("<Q", 2**61)), "observations"),
    "endless": (endless_name, "images.bin claims 1 images"),
    "cut": (lambda m: (m / "images.bin").write_bytes((m / "images.bin").read_bytes()[:-30]), "images.bin"),
    "empty": (lambda m: (m / "images.bin").write_bytes(b""), "images.bin ends early"),
    "nan_focal": (lambda m: damaged(m / "cameras.bin", 8 + 24, struct.pack("<d", math.nan)), "finite"),
    "no_focal": (lambda m: damaged(m / "cameras.bin", 8 + 24, struct.pack("<d", 0)), "positive"),
    "model": (lambda m: damaged(m / "cameras.bin", 12, struct.pack("<i", 99)), "camera model 99"),
    "no_camera": (lambda m: damaged(m / "cameras.bin", 8, struct.pack("<i", 55)), "camera 1 is missing"),
    "huge_size": (lambda m: damaged(m / "cameras.bin", 16, struct.pack("<Q", 2**63)), "camera is for"),
    "pipe": (lambda m: ((m / "points3D.bin").unlink(), os.mkfifo(m / "points3D.bin")), ""),
}


def test_binary_models_that_lie_are_refused_by_name_and_reason(tmp_path: Path) -> None:
    jobs = []
    for name, (change, _) in BINARY.items():
        change(colmap_model(tmp_path / name, binary=True))
        jobs.append(["recon", tmp_path / name, "--out", tmp_path / f"run-{name}", "--steps", "1"])
    del jobs[-1]  # a pipe for points is as good as no points: see below
    for (name, (_, reason)), outcome in zip(BINARY.items(), calls(jobs), strict=False):
        refused(outcome, reason)
        assert name in outcome.sentence or "bin" in outcome.sentence


TEXT = {
    "cameras.txt": [
        ("OPENCV", "MAGIC", "cameras.txt"),
        ("30 31", "nan nan", "finite"),
        ("24 16", "a b", "cameras.txt"),
    ],
    "images.txt": [("0.png", "../../../secret.png", "photos"), ("1 0.png", "77 0.png", "")],
    "points3D.txt": [("0.1", "x", "points3D.txt")],
}


def test_text_models_that_lie_are_refused_or_leave_the_bad_line_out(tmp_path: Path) -> None:
    from data.captures import open_capture
    from scene.errors import InputError

    save(tmp_path / "secret.png", noise(24, 16))
    for file, changes in TEXT.items():
        for i, (old, new, reason) in enumerate(changes):
            model = colmap_model(tmp_path / f"{file}{i}", binary=False)
            text = (model / file).read_text()
            before, found, after = text.rpartition(old)
            assert found
            (model / file).write_text(before + new + after)
            try:
                with open_capture(tmp_path / f"{file}{i}") as capture:
                    assert len(capture.views) == 2 and "Left out 1" in " ".join(capture.decisions)
                    assert "secret" not in " ".join(view.name for view in capture.views)
            except InputError as error:
                assert reason and reason in str(error), error


def test_a_line_without_an_end_is_refused(tmp_path: Path) -> None:
    model = colmap_model(tmp_path / "set", binary=False)
    with (model / "images.txt").open("ab") as file:
        file.truncate(70 << 20)  # no line end in 70 MB of zeros
    (outcome,) = calls([["recon", tmp_path / "set", "--out", tmp_path / "run"]])
    refused(outcome, "images.txt", "does not end within")


@pytest.mark.parametrize(
    ("seeds", "file", "content", "reason"),
    [
        (middlebury_seeds, "t_par.txt", b"1\nt0.png 1 2 3\n", "21 finite numbers"),
        (middlebury_seeds, "t_par.txt", b"1\nt0.png " + b"nan " * 21, "finite"),
        (middlebury_seeds, "t_par.txt", b"1\n../../t0.png " + b"1 " * 21, "par.txt"),
        (kitti_seeds, "poses.txt", b"1 2 3\n", "expected 12 numbers"),
        (kitti_seeds, "poses.txt", b"nan " * 12 + b"\n" + b"0 " * 12, "no frame"),
        (kitti_seeds, "calib.txt", b"P0: " + b"0 " * 12, "camera"),
        (kitti_seeds, "calib.txt", b"\xff\xfe", "UTF-8"),
        (
            llff_seeds,
            "poses_bounds.npy",
            b"\x93NUMPY\1\0v\0{'descr': '|O', 'fortran_order': False, 'shape': (3,), }",
            "plain numbers",
        ),
        (llff_seeds, "poses_bounds.npy", b"", "npy"),
    ],
)
def test_other_camera_files_name_themselves(
    seeds: Callable[[Path], Mapping[str, list[Form]]], file: str, content: bytes, reason: str, tmp_path: Path
) -> None:
    from data.captures import open_capture
    from scene.errors import InputError

    (tmp_path / "set").mkdir()
    for name, forms in seeds(tmp_path / "set").items():
        (tmp_path / "set" / name).write_bytes(forms[0].content)
    (tmp_path / "set" / file).write_bytes(content)
    with pytest.raises(InputError, match=reason):
        open_capture(tmp_path / "set")


def test_npy_headers_that_lie_take_no_memory(tmp_path: Path) -> None:
    from scene.errors import InputError
    from scene.untrusted import read_npy

    np.save(tmp_path / "a.npy", np.zeros((3, 17)))
    content = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(content.replace(b"(3, 17), }" + b" " * 12, b"(9999999999, 17), }" + b" " * 3))
    with pytest.raises(InputError, match="cut short"):
        read_npy(tmp_path / "a.npy")
