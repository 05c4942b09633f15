"""The GPU benchmark on the CPU: its model, the checks before timing, the record, and a whole race of toy size."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import gpu, gpu_model, gpu_training, scenes
from benchmarks.common import write_json
from benchmarks.gpu_model import STAGES, Card, Work
from benchmarks.gpu_timing import Laps, by_turns, stages_timed
from data.captures import open_capture
from recon.gaussians import Config
from scene.ops import native
from tests.apps.tiny import write_tiny

needs_kernels = pytest.mark.skipif(not native.has(torch.device("cpu")), reason="the CPU module is not compiled")
H200 = Card(copy_rate=4.3e12, multiprocessors=132)
MILLION = Work(splats=1_000_000, visible=700_000, pairs=2_450_000, pixels=1920 * 1080)
CPU = torch.device("cpu")


def test_the_model_is_that_of_the_design_notes() -> None:
    """The table that the kernels were designed by: 1M splats at 1080p on an H200, MB and ms."""
    moved = {name: count / 1e6 for name, count in gpu_model.bytes_moved(MILLION).items()}
    assert tuple(moved) == STAGES
    wanted = {"project": 212, "sort and bin": 34 + 20 + 45 + 59, "blend forward": 118 + 41, "loss": 274}
    wanted |= {"blend backward": 118 + 66 + 314, "update": 210 + 991}
    assert moved == pytest.approx(wanted, rel=0.01)
    floors = gpu_model.floors_ms(MILLION, H200)
    assert floors["project"] == pytest.approx(0.05, abs=0.002)
    assert floors["blend forward"] == pytest.approx(0.10, abs=0.01)
    assert floors["blend backward"] == pytest.approx(0.20, abs=0.01)  # arithmetic: its bytes would take 0.12
    assert floors["loss"] == pytest.approx(0.064, abs=0.001)


def test_stages_add_up_and_missing_ones_stay_empty() -> None:
    rows = gpu_model.stage_table(MILLION, H200, dict.fromkeys(STAGES, 0.5))
    assert [row.name for row in rows] == [*STAGES, "all stages"]
    assert rows[-1].ms == pytest.approx(3.0)
    assert rows[-1].bytes == sum(row.bytes for row in rows[:-1])
    loss = next(row for row in rows if row.name == "loss")
    assert loss.bandwidth_share == pytest.approx(loss.bytes / 0.5e-3 / 4.3e12)
    partly = gpu_model.stage_table(MILLION, H200, {"loss": 0.5})
    assert partly[0].ms is None and partly[-1].ms is None and partly[-1].floor_ms > 0
    assert gpu_model.stage_text(partly).splitlines()[1].endswith("-")


def test_ratios_are_null_without_the_peer() -> None:
    ours = {"ours: forward + backward": 2.0, "ours: step": 4.0}
    alone = gpu_model.ratios(ours, {"ours": 100})
    assert set(alone.values()) == {None}
    theirs = {"gsplat: forward + backward": 8.0, "gsplat: step": 32.0, "gsplat: step, selective Adam": 16.0}
    found = gpu_model.ratios(ours | theirs, {"ours": 60, "gsplat": 100})
    assert list(found) == list(alone)
    assert list(found.values()) == [4.0, 8.0, 4.0, 0.6]


def test_outputs_that_differ_are_not_timed() -> None:
    image, gradients = torch.rand(200, 100, 3), {"means": torch.rand(50, 3)}
    found = gpu.differences((image, gradients), (image + 5e-5, {"means": gradients["means"] * 1.0005}))
    assert found["image"] < 1e-4 and found["means"] == pytest.approx(5e-4, rel=0.01)
    one_pixel = image.clone()
    one_pixel[3, 5] += 0.3
    assert gpu.differences((one_pixel, gradients), (image, gradients))["image_worst_pixel"] > 0.2
    for wrong in ((image + 2e-4, gradients), (image, {"means": gradients["means"] * 1.01})):
        with pytest.raises(gpu.Mismatch, match="differ from gsplat"):
            gpu.differences((image, gradients), wrong)
    with pytest.raises(gpu.Mismatch, match="differ from gsplat"):
        gpu.differences((image, {"means": gradients["means"] * float("nan")}), (image, gradients))


@needs_kernels
def test_a_peer_that_computes_something_else_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong:
        def __init__(self, scene: scenes.BenchmarkScene, rates: object, optimiser: str = "adam") -> None:
            self.scene = scene

        def forward_backward(self, v_image: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            named = self.scene.gaussians.parameters()
            return torch.zeros_like(v_image), {name: torch.ones_like(value) for name, value in named.items()}

        def run(self) -> None:
            raise AssertionError("timed all the same")

    monkeypatch.setattr(gpu, "GsplatStep", Wrong)
    facts = gpu.race(scenes.synthetic(300, 48, 32), H200, 1, peer=True)
    assert "differ from gsplat" in facts["mismatch"] and "gsplat: step" not in facts["ms"]
    assert "NOT TIMED" in gpu.report(facts)


def test_candidates_take_turns() -> None:
    order: list[str] = []
    candidates = {name: lambda name=name: order.append(name) for name in "ab"}
    laps = by_turns(candidates, CPU, samples=5, per_turn=2)
    assert "".join(order) == "aaabbb" * 3  # one run unmeasured at the beginning of each turn
    assert {name: len(values) for name, values in laps.samples.items()} == {"a": 6, "b": 6}
    assert laps.medians().keys() == laps.spread().keys() == {"a", "b"}


def test_stages_are_timed_where_the_kernels_are_called() -> None:
    class SplatBins:
        def build(self, size: int) -> int:
            return size + 1

    before = SplatBins.build
    kernels = SimpleNamespace(SplatBins=SplatBins, SplatBlend=SimpleNamespace(), update_splats=lambda x: 2 * x)
    bins, laps = SplatBins(), Laps(CPU)
    with stages_timed(kernels, laps):
        assert (bins.build(3), kernels.update_splats(4)) == (4, 8)
    assert {name: len(values) for name, values in laps.samples.items()} == {"sort and bin": 1, "update": 1}
    assert SplatBins.build is before


def test_times_to_targets_are_those_of_the_first_row_that_meets_them() -> None:
    rows = [{"seconds": float(k), "psnr": 20.0 + k} for k in range(8)]
    rows[6]["psnr"] = 21.0
    assert gpu_training.first_times(rows, (23.0, 27.0, 30.0)) == {"23 dB": 3.0, "27 dB": 7.0, "30 dB": None}


@needs_kernels
def test_a_training_stops_at_its_last_target(tmp_path: Path) -> None:
    with open_capture(write_tiny(tmp_path / "tiny", train=8)) as capture:
        config = Config(steps=3000, max_splats=500, initial_splats=400, checkpoint_seconds=0.3)
        task = gpu_training.Task("tiny", capture, config, (5.0, 15.0))
        facts = gpu_training.seconds_to_targets(task, device=CPU, max_seconds=30.0)
    times = facts["seconds_to_psnr"]
    assert 0 < times["5 dB"] <= times["15 dB"] == facts["rows"][-1]["seconds"] < 30
    assert facts["rows"][-1]["step"] < 3000 and facts["judging_seconds"] > 0


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("NVIDIA H200", "h200"), ("NVIDIA GeForce RTX 4090", "geforce_rtx_4090"), ("Tesla T4", "tesla_t4")],
)
def test_files_are_named_after_the_card(name: str, wanted: str) -> None:
    assert gpu.slug(name) == wanted


@needs_kernels
def test_a_toy_race_without_the_peer_fills_the_record(tmp_path: Path) -> None:
    facts = gpu.race(scenes.synthetic(400, 48, 32), H200, 2, peer=False)
    assert facts["equal_to_the_bit"] is True
    assert 0 < facts["visible"] <= 400 and facts["pairs"] > 0
    assert set(facts["ms"]) == {"ours: forward + backward", "ours: step"}
    text = gpu.report(facts)
    assert "blend backward" in text and "400 splats visible" in text
    file = tmp_path / "gpu.json"
    write_json(file, {"scenes": [facts]})
    (read,) = json.loads(file.read_text())["scenes"]
    assert [row["name"] for row in read["stages"]] == [*STAGES, "all stages"]
    assert read["ratios"]["gsplat over ours, step"] is None


@needs_kernels
def test_every_stage_of_the_gpu_path_is_timed(host_gpu: Callable[..., AbstractContextManager[None]]) -> None:
    """The names in STAGE_CALLS are those of the kernels that a step really calls."""
    scene, laps = scenes.synthetic(30, 32, 16, sigma_px=3.0), Laps(CPU)
    with host_gpu():
        step = gpu.OurStep(scene)
        with stages_timed(native.kernels(CPU), laps):
            step.run()
        work = gpu.work_of(scene)
    assert {name: len(values) for name, values in laps.samples.items()} == dict.fromkeys(STAGES, 1)
    assert work.visible == gpu.work_of(scene).visible > 0  # that is, by the CPU kernels


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so() -> None:
    with pytest.raises(SystemExit, match="no NVIDIA GPU"):
        gpu.main([])
