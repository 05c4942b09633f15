"""The GPU's loss of composited rays, run by the host shim, against the CPU kernel and the twin in double."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor

from scene.ops import native
from scene.ops.gpu import volume_loss as driver
from scene.ops.volume_loss import VolumeLoss, composite_rays, composite_rays_reference, volume_loss_and_grad
from tests.scene.ops.test_volume_loss import COUNTS, WEIGHTS, packed, twin

HostGpu = Callable[..., AbstractContextManager[None]]
needs_kernels = pytest.mark.skipif(not native.has(torch.device("cpu")), reason="the CPU module is the oracle")

# Rays of less than a warp, of just one, of several rounds; rays that fill no block.
LENGTHS = [*COUNTS, [31, 32, 33, 64, 65, 0, 130], [100] * 8, [1] * 9]


def assert_close(got: VolumeLoss, wanted: VolumeLoss) -> None:
    """Sums of float32 in another order."""
    for name, value in wanted._asdict().items():
        most = float(value.abs().max()) if value.numel() else 0.0
        torch.testing.assert_close(getattr(got, name).double(), value.double(), rtol=1e-4, atol=1e-5 * most)


@needs_kernels
@pytest.mark.parametrize("counts", LENGTHS)
@pytest.mark.parametrize("options", [{}, WEIGHTS])
def test_agrees_with_the_cpu_and_with_the_twin(counts: list[int], options: dict[str, Any], host_gpu: HostGpu) -> None:
    inputs = packed(counts, torch.float32)
    with host_gpu(guard=True):
        got = volume_loss_and_grad(**inputs, **options)
    assert_close(got, volume_loss_and_grad(**inputs, **options))
    loss, mse, gradients = twin(inputs, **options)
    assert_close(got, VolumeLoss(loss, mse, **gradients))


@pytest.mark.parametrize("schedule", ["reverse", "random"])
def test_the_order_of_threads_changes_no_bit(schedule: str, host_gpu: HostGpu) -> None:
    inputs = packed([5, 40, 0, 70, 33, 1, 2, 8, 90, 3], torch.float32)
    with host_gpu():
        wanted = volume_loss_and_grad(**inputs, **WEIGHTS)
    with host_gpu(schedule=schedule, seed=3):
        got = volume_loss_and_grad(**inputs, **WEIGHTS)
    assert all(torch.equal(one, other) for one, other in zip(got, wanted, strict=True))


@pytest.mark.parametrize("counts", LENGTHS)
def test_compositing_agrees_with_the_twin(counts: list[int], host_gpu: HostGpu) -> None:
    inputs = {name: value for name, value in packed(counts, torch.float32).items() if name not in ("target", "s")}
    with host_gpu(guard=True):
        got = composite_rays(**inputs)
    del inputs["offsets"]
    torch.testing.assert_close(got, composite_rays_reference(**inputs), rtol=1e-5, atol=1e-6)


def test_offsets_that_do_not_fit_are_cut_to_what_is_there(host_gpu: HostGpu) -> None:
    # Nobody looks at them, which would wait for the card; `guard` fails on a write outside the tensors.
    inputs = packed([3, 2, 4], torch.float32)
    for offsets in ([-7, 3, 5, 2**31 - 1], [9, 3, 5, 0], [-(2**31), -1, -1, -1], [100, 200, 300, 400]):
        inputs["offsets"] = torch.tensor(offsets, dtype=torch.int32)
        with host_gpu(guard=True):
            volume_loss_and_grad(**inputs, **WEIGHTS)
            composite_rays(**{name: value for name, value in inputs.items() if name not in ("target", "s")})


def test_float64_is_served_by_the_twin(host_gpu: HostGpu) -> None:
    with host_gpu():
        got = volume_loss_and_grad(**packed([3, 2]), **WEIGHTS)
    assert got.loss.dtype == got.v_rgb.dtype == torch.float64


def test_no_rays_lose_nothing(host_gpu: HostGpu) -> None:
    with host_gpu():
        got = volume_loss_and_grad(**packed([], torch.float32), **WEIGHTS)
    assert not got.loss and not got.mse


def test_the_result_is_not_read_back(host_gpu: HostGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Tensor) -> float:
        raise AssertionError("reading a number waits for the card")

    inputs = packed([3, 2], torch.float32)
    del inputs["rays"]
    buffers: dict[str, Any] = {f"v_{name}": torch.empty_like(inputs[name]) for name in ("rgb", "weights", "last")}
    with host_gpu(), monkeypatch.context() as patch:
        for reads in ("item", "__float__", "__bool__", "__int__", "tolist"):
            patch.setattr(Tensor, reads, refuse)
        loss, mse = driver.volume_loss(**inputs, **WEIGHTS, **buffers)
    assert float(loss) > float(mse) > 0
