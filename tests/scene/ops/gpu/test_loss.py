"""The loss on the GPU's path, run on the host: against the CPU kernel and the twin, and the same bits in any order."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor

from scene.ops import native
from scene.ops.photometric_loss import photometric_loss, photometric_loss_and_grad, photometric_loss_reference

needs_kernels = pytest.mark.skipif(not native.has(torch.device("cpu")), reason="the CPU module is not compiled")
HostGpu = Callable[..., AbstractContextManager[None]]

SIZES = [(1, 1), (7, 5), (33, 50), (70, 64)]  # less than a window, a part of a tile, several tiles, whole columns
EXPOSURE = [[1.1, 0.9, 1.05], [0.02, -0.03, 0.0]]


def pictures(height: int, width: int, *, hidden: float = math.nan) -> tuple[Tensor, Tensor, Tensor]:
    """Rendered picture, photo and mask; `hidden` lies under the mask. L1 has a kink at 0: they differ by 0.01."""
    generator = torch.Generator().manual_seed(100 * height + width)
    target = 0.2 + 0.6 * torch.rand(height, width, 3, generator=generator)
    offset = 0.01 + 0.15 * torch.rand(height, width, 3, generator=generator)
    sign = torch.rand(height, width, 3, generator=generator).round() * 2 - 1
    image = target + sign * offset
    mask = torch.rand(height, width, generator=generator) < 0.7
    mask[0, 0] = True
    image[~mask], target[~mask] = hidden, -hidden
    return image, target, mask


def result(image: Tensor, target: Tensor, mask: Tensor | None, exposed: bool) -> dict[str, Tensor]:
    exposure, v_exposure = (torch.tensor(EXPOSURE), torch.empty(2, 3)) if exposed else (None, None)
    loss, v_image = photometric_loss_and_grad(image, target, mask, exposure=exposure, v_exposure=v_exposure)
    assert loss.shape == () and loss.dtype == torch.float32
    found = {"loss": loss, "v_image": v_image}
    return found if v_exposure is None else found | {"v_exposure": v_exposure}


def assert_agree(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Values to 1e-5, gradients to 1e-4 of their largest: float32 moments cancel in flat pixels."""
    assert float(got["loss"]) == pytest.approx(float(wanted["loss"]), rel=1e-5)
    for name in ("v_image", "v_exposure"):
        if name in wanted:
            most = float(wanted[name].abs().max())
            torch.testing.assert_close(got[name].double(), wanted[name].double(), rtol=1e-4, atol=1e-5 * most)


@needs_kernels
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("exposed", [False, True])
@pytest.mark.parametrize("photo", ["floats", "bytes"])
def test_agrees_with_the_cpu(size: tuple[int, int], masked: bool, exposed: bool, photo: str, host_gpu: HostGpu) -> None:
    image, target, mask = pictures(*size, hidden=math.nan if masked else 0.5)
    if photo == "bytes":
        target = (target.nan_to_num() * 255).round().clamp(0, 255).to(torch.uint8)
    inputs = image, target, mask if masked else None, exposed
    wanted = result(*inputs)
    with host_gpu():
        got = result(*inputs)
    assert_agree(got, wanted)
    if masked:
        assert not got["v_image"][~mask].any()


@pytest.mark.parametrize("size", SIZES)
def test_agrees_with_the_twin_in_double(size: tuple[int, int], host_gpu: HostGpu) -> None:
    image, target, mask = pictures(*size)
    with host_gpu():
        got = result(image, target, mask, exposed=True)
    x, e = image.double().requires_grad_(), torch.tensor(EXPOSURE, dtype=torch.float64, requires_grad=True)
    loss = photometric_loss_reference(x, target.double(), mask, exposure=e)
    v_image, v_exposure = torch.autograd.grad(loss, [x, e])
    assert_agree(got, {"loss": loss.detach(), "v_image": v_image, "v_exposure": v_exposure})


def test_autograd_takes_the_same_path(host_gpu: HostGpu) -> None:
    image, target, mask = pictures(20, 37)
    exposure = torch.tensor(EXPOSURE, requires_grad=True)
    with host_gpu():
        wanted = result(image, target, mask, exposed=True)
        loss = photometric_loss(image.requires_grad_(), target, mask, exposure=exposure)
        (2 * loss).backward()
    assert torch.equal(loss.detach(), wanted["loss"])
    assert image.grad is not None and exposure.grad is not None
    assert torch.equal(image.grad, 2 * wanted["v_image"])
    assert torch.equal(exposure.grad, 2 * wanted["v_exposure"])


@pytest.mark.parametrize("hidden", [math.nan, math.inf, 1e30])
def test_nothing_under_the_mask_has_influence(hidden: float, host_gpu: HostGpu) -> None:
    with host_gpu():
        poisoned = result(*pictures(33, 50, hidden=hidden), exposed=True)
        clean = result(*pictures(33, 50, hidden=0.5), exposed=True)
    for name, value in clean.items():
        assert torch.equal(poisoned[name], value), name


def test_a_nan_pixel_is_seen_in_the_loss_and_stays_local_in_the_gradient(host_gpu: HostGpu) -> None:
    image, target, _ = pictures(50, 60, hidden=0.5)
    with host_gpu():
        clean = result(image, target, None, exposed=False)
        image[25, 30, 1] = math.nan
        got = result(image, target, None, exposed=False)
    assert got["loss"].isnan()
    assert got["v_image"][25, 30, 1].isnan()
    far = torch.ones(50, 60, dtype=torch.bool)
    far[15:36, 20:41] = False  # two windows reach ten pixels
    assert torch.equal(got["v_image"][far], clean["v_image"][far])
    assert torch.equal(got["v_image"][..., 0], clean["v_image"][..., 0])  # channels do not mix


def test_without_a_valid_pixel_loss_and_gradients_are_zero(host_gpu: HostGpu) -> None:
    image, target, _ = pictures(9, 13)
    with host_gpu():
        got = result(image, target, torch.zeros(9, 13, dtype=torch.bool), exposed=True)
    for name, value in got.items():
        assert not value.any(), name


@pytest.mark.parametrize("schedule", ["reverse", "random"])
@pytest.mark.parametrize("size", [(33, 50), (70, 64)])
def test_the_order_of_threads_changes_no_bit(size: tuple[int, int], schedule: str, host_gpu: HostGpu) -> None:
    inputs = pictures(*size)
    with host_gpu():
        wanted = result(*inputs, exposed=True)
    with host_gpu(schedule=schedule, seed=3):
        got = result(*inputs, exposed=True)
    for name, value in wanted.items():
        assert torch.equal(got[name], value), name


def test_float64_is_served_by_the_twin(host_gpu: HostGpu) -> None:
    image, target, mask = pictures(7, 5)
    with host_gpu():
        loss, v_image = photometric_loss_and_grad(image.double(), target.double(), mask)
    assert loss.dtype == v_image.dtype == torch.float64
    assert bool(v_image.isfinite().all())
