"""The benchmark of a DVGO step at toy size: both sides compute the same, and what is written can be read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks import dvgo
from recon.grid_recipes import RATES
from scene.grid_step import GridStep

TOY = ["--rays", "128", "--voxels", "4096", "--steps", "3"]

needs_proc = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is read from Linux's /proc")


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@needs_proc
def test_a_toy_run_writes_every_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "dvgo.json"
    assert dvgo.main([*TOY, "--json", str(file)]) == 0
    result = json.loads(file.read_text())
    assert result["rays"] == 128 and 1000 < torch.tensor(result["voxels"]).prod() <= 4096
    assert result["timings"].keys() == result["grown_mb"].keys() == {"ours", "torch"}
    assert result["timings"]["ours"]["samples"] == 3 and result["agreement"]["samples"] > 100
    medians = [result["timings"][name]["median_ms"] for name in ("torch", "ours")]
    assert result["speed"] == pytest.approx(medians[0] / medians[1])
    assert {"commit", "libraries", "system", "host"} <= result["record"].keys()
    told = capsys.readouterr().out
    assert f"speed {result['speed']:.1f}x" in told and "grown MB" in told


def test_steps_that_differ_are_not_timed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    gradients = GridStep.gradients

    def wrong(self: GridStep, *arguments, **named):
        loss, by_network = gradients(self, *arguments, **named)
        self.density_grad.mul_(1.01)
        return loss, by_network

    monkeypatch.setattr(GridStep, "gradients", wrong)
    monkeypatch.setattr(dvgo, "timed", lambda *arguments: pytest.fail("nothing was to be timed"))
    assert dvgo.main(TOY) == 1
    assert "do not compute the same" in capsys.readouterr().out


def test_the_grid_is_one_in_the_middle_of_its_training() -> None:
    """Solid in places, clear in others, features only where something may be; rays that meet it."""
    grid = dvgo.object_grid(20**3, width=64)
    alpha = grid.alpha()[grid.occupied]
    assert float(alpha.max()) > 0.8 and float(alpha.median()) < 0.1
    assert 0.05 < len(grid) / grid.density.numel() < 0.9
    (batch,) = dvgo.batches(grid, 64, 1)
    assert len(batch.target) == len(batch.directions) == 64 and bool((batch.spans.counts > 0).all())


def test_a_copy_may_be_trained_without_changing_the_grid() -> None:
    grid = dvgo.object_grid(12**3, width=64)
    before = [tensor.clone() for tensor in (grid.density, grid.features, *(grid.mlp or ()))]
    (batch,) = dvgo.batches(grid, 64, 1)
    step = GridStep(dvgo.copied(grid))
    step.take(batch.spans, batch.directions, batch.target, torch.ones(3), dvgo.WEIGHTS, RATES)
    assert all(torch.equal(a, b) for a, b in zip(before, (grid.density, grid.features, *(grid.mlp or ())), strict=True))
    assert not torch.equal(step.grid.density, grid.density)
