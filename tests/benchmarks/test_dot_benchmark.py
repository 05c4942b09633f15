"""The race of DOT and POT: from one grid, on the views that the caller asks for, with figures that fit together."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import dot as benchmark
from data.captures import open_capture
from data.synthetic import soft_solids
from recon import dot
from scene.ops import native

needs_kernels = pytest.mark.skipif(not native.has(torch.device("cpu")), reason="the CPU module is not compiled")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dot") / "soft"
    folder.mkdir()
    soft_solids(train=9, test=2, size=40).capture(folder).__exit__(None, None, None)
    return folder


@needs_kernels
def test_both_come_from_one_bake_and_the_ratios_are_of_their_figures(source: Path, tmp_path: Path) -> None:
    file, kept = tmp_path / "dot.json", tmp_path / "grid.safetensors"
    settings = ["grid_steps=60", "rays=512", "voxels=27000", "level=5", "epochs=4", "distortion=0.01"]
    words = [str(source), "--grid", str(kept), "--set", *settings, "--json", str(file)]
    assert benchmark.main(words) == 0 and kept.is_file()
    found = json.loads(file.read_text())
    pot, changed = found["pot"], found["dot"]
    assert pot["baked"] == changed["baked"] == pot["leaves"] > changed["leaves"] > 50
    assert pot["parameters"] == 28 * pot["leaves"]
    assert found["ratios"]["parameters"] == pytest.approx(changed["leaves"] / pot["leaves"])
    assert found["ratios"]["psnr"] == pytest.approx(changed["psnr"] - pot["psnr"])
    assert pot["psnr"] > 15 and pot["picture"]["samples"] == 2 * benchmark.ROUNDS
    assert found["config"]["level"] == 5 and found["config"]["distortion"] == 0.01


def test_views_held_back_are_neither_trained_on_nor_among_those_of_the_source(source: Path) -> None:
    with open_capture(source) as opened:
        judged = benchmark.judged_on(opened, 4)
        assert judged.test == opened.train[::4] and not set(judged.train) & set(judged.test)
        assert set(judged.train) | set(judged.test) == set(opened.train)
        assert benchmark.judged_on(opened, None) is opened


def test_options_are_read_in_their_types() -> None:
    assert benchmark.configured(["epochs=3", "split=0.5"]) == replace(dot.Config(), epochs=3, split=0.5)
