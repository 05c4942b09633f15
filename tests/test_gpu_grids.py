"""Voxel grids on an NVIDIA GPU agree with the CPU kernels, at any size (`make gpu-check`).

Each test is also run on the host shim at toy size, so that the tests themselves are known to work without a card.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from torch import Tensor

import benchmarks.dvgo
from benchmarks.dvgo import Batch, batches, object_grid
from benchmarks.gpu_grids import OurStep, differences, train_to_psnr
from data.captures import open_capture
from data.synthetic import dome_cameras
from recon import dvgo
from recon.grid_recipes import RATES
from scene.ops import native
from scene.ops.grid_march import RaySpans
from scene.volume_rendering import render_grid
from tests.apps.tiny import write_tiny

HostGpu = Callable[..., AbstractContextManager[None]]
cuda = pytest.mark.cuda
needs_kernels = pytest.mark.skipif(not native.has(torch.device("cpu")), reason="the CPU module is not compiled")
CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def kernels_of_the_gpu() -> None:
    """A card whose kernels cannot run must fail these tests, not pass them on the reference."""
    from scene.ops.gpu import runtime

    assert native.backend(GPU) == "cuda", runtime.usable()[1]


@pytest.fixture
def few_rays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmarks.dvgo, "dome_cameras", lambda count, size: dome_cameras(4, 12))


def gradients(device: torch.device, rays: int, voxels: int) -> dict[str, Tensor]:
    """Of one step, on the CPU. The rays are drawn there too: one that just meets an occupied voxel would shift all."""
    grid = object_grid(voxels)
    (batch,) = batches(grid, rays, 1)
    arrays = {name: getattr(batch.spans, name).to(device) for name in ("origins", "directions", "starts", "counts")}
    there = Batch(RaySpans(**arrays), batch.directions.to(device), batch.target.to(device))
    found = OurStep(grid.to(device=device), there).gradients()
    return {name: value.cpu() for name, value in found.items()}


def assert_close(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Sums of float32 in other orders; and a few samples at the edge of being there."""
    apart = differences(got, wanted)
    assert apart["loss"] < 1e-5 and apart["density"] < 1e-3 and apart["features"] < 1e-3, apart


@needs_kernels
def test_a_step_on_the_shim_agrees(host_gpu: HostGpu, few_rays: None) -> None:
    wanted = gradients(CPU, 40, 3000)
    with host_gpu():
        assert_close(gradients(CPU, 40, 3000), wanted)


@cuda
@pytest.mark.parametrize(("rays", "voxels"), [(8192, 160**3), (1, 1000), (100_000, 60**3)])
def test_a_step_on_the_gpu_agrees(rays: int, voxels: int, kernels_of_the_gpu: None) -> None:
    assert_close(gradients(GPU, rays, voxels), gradients(CPU, rays, voxels))


def trained(device: torch.device, rays: int, voxels: int, steps: int) -> list[Tensor]:
    """Parameters after some steps."""
    grid = object_grid(voxels).to(device=device)
    (batch,) = batches(grid, rays, 1)
    ours = OurStep(grid, batch)
    for _ in range(steps):
        ours.step.take(batch.spans, batch.directions, batch.target, ours.white, benchmarks.dvgo.WEIGHTS, RATES)
    return [value.clone() for value in ours.step.parameters().values()]


def test_the_same_steps_twice_on_the_shim_are_equal_to_the_bit(host_gpu: HostGpu, few_rays: None) -> None:
    with host_gpu():
        one = trained(CPU, 30, 2000, 2)
    with host_gpu(schedule="random", seed=3):
        assert all(torch.equal(a, b) for a, b in zip(one, trained(CPU, 30, 2000, 2), strict=True))


@cuda
def test_the_same_steps_twice_are_equal_to_the_bit(kernels_of_the_gpu: None) -> None:
    """The grids; the network's gradients are cuBLAS's, which promises it for one stream and one card."""
    one, two = (trained(GPU, 8192, 128**3, 5) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@cuda
def test_memory_does_not_grow(kernels_of_the_gpu: None) -> None:
    grid = object_grid(96**3).to(device=GPU)
    (batch,) = batches(grid, 4096, 1)
    ours = OurStep(grid, batch)
    for _ in range(10):
        ours.run()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(100):
        ours.run()
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() <= before + (1 << 20)


def picture(device: torch.device, size: int, voxels: int) -> tuple[Tensor, Tensor]:
    """Colours and depths, on the CPU."""
    camera = dome_cameras(8, size)[3].to(dtype=torch.float32)
    seen = render_grid(object_grid(voxels).to(device=device), camera, torch.ones(3))
    return seen.rgb.cpu(), seen.depth.cpu()


def assert_looks_the_same(got: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor]) -> None:
    """A sample at the edge of an occupied voxel, or the last one before light runs out, may fall either way."""
    apart = (got[0] - wanted[0]).abs().amax(-1).flatten().sort().values
    assert float(apart[int(0.999 * (len(apart) - 1))]) < 1e-3 and float(apart[-1]) < 0.1
    depth = (got[1] - wanted[1]).abs().flatten().sort().values
    assert float(depth[int(0.99 * (len(depth) - 1))]) < 1e-3


@needs_kernels
def test_a_picture_on_the_shim_is_that_of_the_cpu(host_gpu: HostGpu) -> None:
    wanted = picture(CPU, 12, 3000)
    with host_gpu():
        assert_looks_the_same(picture(CPU, 12, 3000), wanted)


@cuda
def test_a_picture_on_the_gpu_is_that_of_the_cpu(kernels_of_the_gpu: None) -> None:
    assert_looks_the_same(picture(GPU, 400, 128**3), picture(CPU, 400, 128**3))


@cuda
def test_training_on_the_gpu_is_as_good_as_on_the_cpu(tmp_path: Path, kernels_of_the_gpu: None) -> None:
    with open_capture(write_tiny(tmp_path / "tiny")) as capture:
        config = dvgo.Config(
            steps=600, rays=1024, voxels=30_000, coarse_voxels=20_000, width=64, checkpoint_seconds=math.inf
        )
        quality = {device: train_to_psnr(capture, config, device, 600.0)["psnr"] for device in (CPU, GPU)}
    assert quality[GPU] > quality[CPU] - 0.7  # dB; other random numbers, and a tiny scene
