"""Colours from spherical harmonics on the GPU's path, run on the host: against the CPU kernel and the twin."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor

from scene.ops import native
from scene.ops.sh_color import sh_color, sh_color_backward, sh_color_reference
from tests.scene.ops.test_sh_color import DEGREES, SIZES, scene

needs_kernels = pytest.mark.skipif(not native.has(torch.device("cpu")), reason="the CPU module is not compiled")
HostGpu = Callable[..., AbstractContextManager[None]]


def result(features: Tensor, rays: Tensor, directions: Tensor, v_rgb: Tensor) -> tuple[Tensor, Tensor]:
    return sh_color(features, rays, directions), sh_color_backward(features, rays, directions, v_rgb)


@needs_kernels
@pytest.mark.parametrize("degree", DEGREES)
@pytest.mark.parametrize("size", SIZES)
def test_agrees_with_the_cpu(size: tuple[int, int], degree: int, host_gpu: HostGpu) -> None:
    inputs = scene(*size, degree, torch.float32)
    with host_gpu():
        got = result(*inputs)
    for value, wanted in zip(got, result(*inputs), strict=True):
        torch.testing.assert_close(value, wanted, rtol=0, atol=2e-6)


@pytest.mark.parametrize("degree", DEGREES)
def test_agrees_with_the_twin_in_double(degree: int, host_gpu: HostGpu) -> None:
    features, rays, directions, v_rgb = scene(300, 40, degree, torch.float32)
    with host_gpu():
        leaf = features.clone().requires_grad_()
        rgb = sh_color(leaf, rays, directions)
        (got,) = torch.autograd.grad(rgb, leaf, v_rgb)
    exact = features.double().requires_grad_()
    wanted = sh_color_reference(exact, rays, directions.double())
    torch.testing.assert_close(rgb.double(), wanted, rtol=0, atol=2e-6)
    (v_features,) = torch.autograd.grad(wanted, exact, v_rgb.double())
    torch.testing.assert_close(got.double(), v_features, rtol=0, atol=4e-6)


@pytest.mark.parametrize("schedule", ["reverse", "random"])
def test_the_order_of_threads_changes_no_bit(schedule: str, host_gpu: HostGpu) -> None:
    inputs = scene(300, 40, 2, torch.float32)
    with host_gpu():
        wanted = result(*inputs)
    with host_gpu(schedule=schedule, seed=3):
        got = result(*inputs)
    assert all(map(torch.equal, got, wanted))
