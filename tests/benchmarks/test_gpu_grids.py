"""The GPU benchmark's voxel grids and octrees at toy size on the host shim, and a stand-in for their peer."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import benchmarks.dvgo
from benchmarks import gpu, gpu_grids, nerfacc_cuda
from benchmarks.common import write_json
from data.captures import open_capture
from data.synthetic import dome_cameras
from recon import dvgo
from scene.ops import native
from tests.apps.tiny import write_tiny

HostGpu = Callable[..., AbstractContextManager[None]]
pytestmark = pytest.mark.skipif(not native.has(torch.device("cpu")), reason="the CPU module is not compiled")
CPU = torch.device("cpu")
TOY: dict[str, int] = {"rays": 30, "voxels": 2000, "samples": 1}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Few rays and small pictures; and one thread of torch, whose threads wait for each other on a busy machine."""
    monkeypatch.setattr(gpu_grids, "PICTURE", 12)
    monkeypatch.setattr(benchmarks.dvgo, "dome_cameras", lambda count, size: dome_cameras(4, 12))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def stand_in() -> Any:
    """nerfacc 0.5's functions that the benchmark calls, in plain torch, by their documentation."""

    def traverse_grids(
        origins: Tensor,
        directions: Tensor,
        binaries: Tensor,
        aabbs: Tensor,
        *,
        near_planes: Tensor,
        far_planes: Tensor,
        step_size: float,
    ) -> tuple[SimpleNamespace, SimpleNamespace, Tensor]:
        assert binaries.dtype == torch.bool and binaries.dim() == 4 and aabbs.shape == (1, 6)
        most = int(((far_planes - near_planes) / step_size).ceil().max())
        left = near_planes[:, None] + step_size * torch.arange(most)
        places = origins[:, None] + (left + step_size / 2)[..., None] * directions[:, None]
        low, high = aabbs[0, :3], aabbs[0, 3:]
        size = torch.tensor(binaries.shape[1:])
        cell = ((places - low) / (high - low) * size).floor().long()
        inside = ((cell >= 0) & (cell < size)).all(-1) & (left + step_size / 2 < far_planes[:, None])
        x, y, z = cell.clamp(min=0).minimum(size - 1).unbind(-1)
        rays, _ = found = (inside & binaries[0, x, y, z]).nonzero().unbind(-1)
        edges = torch.stack([left[found], left[found] + step_size], 1).flatten()
        is_left = torch.arange(len(edges)) % 2 == 0
        intervals = SimpleNamespace(vals=edges, is_left=is_left, is_right=~is_left)
        return intervals, SimpleNamespace(ray_indices=rays), far_planes

    def transmittance(alphas: Tensor, ray_indices: Tensor) -> Tensor:
        same = (ray_indices[:, None] == ray_indices).tril(-1)
        return torch.where(same, 1 - alphas, 1.0).prod(-1)

    def render_visibility_from_alpha(
        alphas: Tensor, *, ray_indices: Tensor, n_rays: int, early_stop_eps: float
    ) -> Tensor:
        return transmittance(alphas, ray_indices) >= early_stop_eps

    def render_weight_from_alpha(alphas: Tensor, *, ray_indices: Tensor, n_rays: int) -> tuple[Tensor, Tensor]:
        light = transmittance(alphas, ray_indices)
        return light * alphas, light

    def accumulate_along_rays(weights: Tensor, values: Tensor | None, ray_indices: Tensor, n_rays: int) -> Tensor:
        source = weights[:, None] if values is None else weights[:, None] * values
        return source.new_zeros(n_rays, source.shape[1]).index_add(0, ray_indices, source)

    return SimpleNamespace(**{name: value for name, value in locals().items() if callable(value)})


def test_a_toy_race_fills_the_record(host_gpu: HostGpu, tmp_path: Path) -> None:
    with host_gpu():
        facts = gpu_grids.race(CPU, **TOY, nerfacc=False)
    assert facts["equal_to_the_bit"] is True and set(facts["ms"]) == {"ours", "picture", "torch"}
    assert list(facts["stages"]) and set(facts["stages"]) == set(gpu_grids.STAGES)  # names of kernels that are called
    assert facts["ratios"]["torch"] > 0 and facts["ratios"]["nerfacc"] is None
    assert max(facts["differences"]["torch"].values()) < 1e-4
    text = gpu_grids.report(facts)
    assert "features backward" in text and "nerfacc over ours -" in text and "equal to the bit: True" in text
    write_json(tmp_path / "grids.json", facts)
    assert json.loads((tmp_path / "grids.json").read_text())["rays"] == TOY["rays"]


def test_the_peer_computes_the_same(host_gpu: HostGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nerfacc", stand_in())
    with host_gpu():
        facts = gpu_grids.race(CPU, **TOY, nerfacc=True)
    assert max(facts["differences"]["nerfacc"].values()) < 1e-4
    assert facts["ratios"]["nerfacc"] > 0


def test_a_peer_that_computes_something_else_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = stand_in()
    wrong.render_weight_from_alpha = lambda alphas, **_: (0.9 * alphas, alphas)
    monkeypatch.setitem(sys.modules, "nerfacc", wrong)
    facts = gpu_grids.race(CPU, **TOY, nerfacc=True)
    assert "nerfacc" not in facts["ms"] and facts["ratios"]["nerfacc"] is None
    assert "NOT TIMED" in gpu_grids.report(facts)


def test_without_the_peer_it_says_so_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nerfacc.cuda._backend", None)
    why = nerfacc_cuda.why_not()
    assert why is not None and "nerfacc is not installed" in why and "\n" not in why


def test_octrees_are_timed_where_there_are_kernels(host_gpu: HostGpu) -> None:
    facts = gpu_grids.octree_race(CPU, level=4, samples=1)
    assert facts["leaves"] > 100 and set(facts["ms"]) == {"picture", "step"}
    assert "frames a second" in gpu_grids.octree_report(facts)
    with host_gpu():
        there = gpu_grids.octree_race(CPU, level=3, samples=1)
    assert "missing" in there or set(there["ms"]) == {"picture", "step"}
    assert gpu_grids.octree_report({"missing": "no kernels"}).endswith("octree: no kernels")


def test_a_training_ends_in_time_and_is_judged(tmp_path: Path) -> None:
    """How good it becomes is tested where it is trained; here a few steps do."""
    with open_capture(write_tiny(tmp_path / "tiny", train=8)) as capture:
        config = dvgo.Config(steps=1_000_000, rays=128, voxels=2000, coarse_voxels=2000, width=64)
        facts = gpu_grids.train_to_psnr(capture, config, CPU, 2.0)
    assert 2 <= facts["seconds"] < 60 and 3 < facts["psnr"] < 60 and facts["live"] > 0


def test_the_command_line_leaves_grids_out_when_asked() -> None:
    assert gpu.parse([]).rays == 8192 and gpu.parse([]).voxels == 160**3
    options = gpu.parse(["--rays", "0", "--counts", "--no-training"])
    assert list(gpu._parts(options, gpu.Card(1e12, 1), CPU, peer=False)) == []


def test_grids_are_part_of_a_run(host_gpu: HostGpu, capsys: pytest.CaptureFixture[str]) -> None:
    options = gpu.parse(["--rays", "20", "--voxels", "1500", "--samples", "1", "--no-nerfacc", "--counts"])
    options.no_training = True
    with host_gpu():
        parts = dict(gpu._parts(options, gpu.Card(1e12, 1), CPU, peer=False))
    assert set(parts) == {"grids", "octrees"}
    assert "peer of voxel grids: left out" in capsys.readouterr().out
