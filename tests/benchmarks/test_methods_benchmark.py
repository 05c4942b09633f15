"""The comparison of methods trains each by itself, judges all alike, and goes on when one fails."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from apps import bench
from benchmarks import methods
from scene.errors import InputError
from scene.ops import native
from tests.apps.tiny import SIZE, write_tiny

needs_kernels = pytest.mark.skipif(not native.has(torch.device("cpu")), reason="the CPU module is not compiled")


def fake_row(name: str, folder: Path, figures: Sequence[float]) -> dict[str, Any]:
    """What a method that trained leaves behind: a row, and grey pictures of its views."""
    views = []
    for i, psnr in enumerate(figures):
        stem = f"{i:04}"
        for place in ("truth", name):
            (folder / place).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 30), (10 * int(psnr),) * 3).save(folder / place / f"{stem}.png")
        views.append({"name": f"test/r_{i}.png", "stem": stem, "psnr": psnr, "ssim": 0.9})
    return {
        "method": name,
        "exit": 0,
        "psnr": sum(figures) / len(figures),
        "ssim": 0.9,
        "seconds": 3.2,
        "primitives": 1234,
        "parameters": 5678,
        "file_mb": 1.25,
        "frame_ms": 12.34,
        "peak_mb": 400,
        "views": views,
    }


@needs_kernels
def test_a_toy_comparison_writes_table_and_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out, file = write_tiny(tmp_path / "tiny", held_out=2), tmp_path / "out", tmp_path / "all.json"
    words = [str(source), "--methods", "gaussians", "--minutes", "0.05", "--preset", "draft", "--device", "cpu"]
    assert methods.main([*words, "--out", str(out), "--json", str(file)]) == 0
    (row,) = json.loads(file.read_text())["rows"]
    assert row["exit"] == 0 and 2.5 < row["seconds"] < 30  # the time ended it, not the steps
    assert row["psnr"] == pytest.approx(sum(view["psnr"] for view in row["views"]) / 2) and row["psnr"] > 10
    assert row["parameters"] == 59 * row["primitives"]  # degree 3
    assert row["peak_mb"] > 100 and row["frame_ms"] > 0 and row["file_mb"] > 0
    assert (out / "gaussians" / "scene.ply").stat().st_size == pytest.approx(1e6 * row["file_mb"])
    text = (out / "methods.txt").read_text()
    assert f"{row['psnr']:.2f}" in text and "16 views of 48x48, 2 held out" in text and text in capsys.readouterr().out
    assert f"| gaussians | {row['psnr']:.2f} |" in (out / "methods.md").read_text()
    assert (out / "methods.json").read_text() == file.read_text()
    sheet = np.asarray(Image.open(out / "strip.png"))
    side = SIZE * 4  # enlarged to 150 px or more
    truth = np.asarray(Image.open(out / "truth" / "0000.png"))
    assert truth.shape == (SIZE, SIZE, 3) and sheet.shape[1] == 2 * side + 4
    shown = [np.asarray(Image.open(out / "truth" / f"{stem}.png")) for stem in ("0000", "0001")]
    assert any(np.array_equal(sheet[-side:, :side][::4, ::4], picture) for picture in shown)


def test_one_that_fails_keeps_its_row_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = write_tiny(tmp_path / "tiny", train=3, held_out=3), tmp_path / "out"

    def run_one(name: str, given: Sequence[str], folder: Path) -> dict[str, Any]:
        if name == "dvgo":
            return {"method": name, "exit": -9, "error": "killed"}
        return fake_row(name, folder, (20, 10, 18) if name == "dot" else (12, 11, 12))

    monkeypatch.setattr(methods, "run_one", run_one)
    assert methods.main([str(source), "--out", str(out)]) == 1
    printed = capsys.readouterr().out
    assert "dvgo failed with exit code -9: killed (see dvgo.log)" in printed
    rows = json.loads((out / "methods.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["gaussians", "dvgo", "pot", "dot"]
    page = (out / "methods.md").read_text()
    assert "| dvgo | - | - |" in page and "| dot | 16.00 | 0.9000 | 3 | 1,234 | 5,678 |" in page
    assert "![strip.png](strip.png)" in page and "![strips/0002.png]" in page
    sheet = np.asarray(Image.open(out / "strip.png"))
    assert sheet.shape[1] == 4 * 160 + 3 * 4  # truth and three methods
    assert int(sheet[-1, -1, 0]) == 180  # dot's picture of the third view, whose PSNR is the median


def test_what_fails_says_why_in_its_last_words(tmp_path: Path) -> None:
    row = methods.run_one("gaussians", [str(tmp_path / "nothing"), "--out", str(tmp_path)], tmp_path)
    assert row["exit"] == 2 and "nothing" in row["error"]
    assert "Traceback" in (tmp_path / "gaussians.log").read_text()


def test_wrong_requests_are_refused_before_anything_trains(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no method 'nerf' to compare; there are gaussians, dvgo, pot, dot"):
        methods.main(["photos", "--methods", "nerf"])
    with pytest.raises(InputError, match="--minutes must be positive"):
        methods.main(["photos", "--minutes", "0"])
    source = write_tiny(tmp_path / "tiny", train=3, held_out=0)
    (source / "transforms_test.json").unlink()
    with pytest.raises(InputError, match="held-out"):
        methods.main([str(source), "--holdout", "0", "--out", str(tmp_path / "out")])


def test_every_preset_of_every_method_is_a_config_without_an_end_of_steps() -> None:
    for name, (_, changes) in methods.VARIANTS.items():
        for preset in ("draft", "standard", "high"):
            _, config = methods.configured(name, preset, 3)
            values = dataclasses.asdict(config)
            assert values["seed"] == 3 and changes.items() <= values.items()
            assert all(values[key] == most for key, most in methods.ENDLESS.items() if key in values)
            assert values.keys() & methods.ENDLESS.keys()


def test_the_door_knows_it() -> None:
    assert "methods" in bench.BENCHMARKS
    with pytest.raises(InputError, match="gaussians, methods, recon"):
        bench.main(["everything"])
