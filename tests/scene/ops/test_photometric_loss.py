"""The loss against its twin, against formulas written another way, and on the inputs that break such kernels."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from scene.ops import native
from scene.ops.photometric_loss import (
    apply_exposure,
    photometric_loss,
    photometric_loss_and_grad,
    photometric_loss_reference,
)

needs_kernels = pytest.mark.skipif(not native.has(torch.device("cpu")), reason="the CPU module is not compiled")
SIZES = [(1, 1), (1, 7), (3, 2), (11, 11), (16, 33), (41, 29)]
EXPOSURE = [[1.1, 0.9, 1.05], [0.02, -0.03, 0.0]]


def pictures(height: int, width: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two pictures that resemble each other, and differ by at least 0.01 everywhere: L1 has a kink at 0."""
    generator = torch.Generator().manual_seed(seed)
    target = 0.2 + 0.6 * torch.rand(height, width, 3, generator=generator, dtype=torch.float64)
    offset = 0.01 + 0.15 * torch.rand(height, width, 3, generator=generator, dtype=torch.float64)
    sign = torch.rand(height, width, 3, generator=generator).round() * 2 - 1
    return (target + sign * offset).to(dtype), target.to(dtype)


def checkered(height: int, width: int) -> Tensor:
    rows, columns = torch.arange(height)[:, None] // 3, torch.arange(width) // 4
    return (rows + columns) % 2 == 0


def ssim_by_convolution(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """SSIM per pixel from its definition: one 2D window, weighted moments about the local mean."""
    from scipy.ndimage import convolve

    offsets = np.arange(-5, 6)
    window = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    maps = []
    for channel in range(3):
        a, b = x[..., channel], y[..., channel]
        means = [convolve(p, window, mode="constant") for p in (a, b)]
        # sum w (p - m)(q - n) over the window, by a loop over its taps; outside the picture p = q = 0
        padded = [np.pad(p, 5) for p in (a, b)]
        moments = {key: np.zeros_like(a) for key in ("aa", "bb", "ab")}
        for i, j in itertools.product(range(11), range(11)):
            d, e = (p[i : i + a.shape[0], j : j + a.shape[1]] - m for p, m in zip(padded, means, strict=True))
            moments["aa"] += window[i, j] * d * d
            moments["bb"] += window[i, j] * e * e
            moments["ab"] += window[i, j] * d * e
        luminance = (2 * means[0] * means[1] + 1e-4) / (means[0] ** 2 + means[1] ** 2 + 1e-4)
        maps.append(luminance * (2 * moments["ab"] + 9e-4) / (moments["aa"] + moments["bb"] + 9e-4))
    return np.stack(maps, axis=-1)


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("masked", [False, True])
def test_value_is_that_of_the_definition(height: int, width: int, masked: bool) -> None:
    x, y = pictures(height, width)
    mask = checkered(height, width) if masked else torch.ones(height, width, dtype=torch.bool)
    shown = mask[..., None].double()
    similarity = ssim_by_convolution((x * shown).numpy(), (y * shown).numpy())[mask.numpy()].mean()
    wanted = 0.7 * float((x - y).abs()[mask].mean()) + 0.3 * (1 - similarity)
    assert float(photometric_loss(x, y, mask if masked else None, ssim_weight=0.3)) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_equal_pictures_have_no_loss(height: int, width: int) -> None:
    x, _ = pictures(height, width, torch.float32)
    loss, v_image = photometric_loss_and_grad(x, x.clone(), ssim_weight=0.5)
    assert abs(loss) < 1e-6
    assert float(v_image.abs().max()) < 1e-5 / x.numel()  # float32 rounding of terms that cancel, each O(1 / values)


def test_flat_pictures_follow_the_closed_form() -> None:
    """Far from the border, flat pictures have no variance: SSIM is its luminance term alone."""
    a, b = 0.3, 0.5
    x, y = torch.full((40, 40, 3), a, dtype=torch.float64), torch.full((40, 40, 3), b, dtype=torch.float64)
    inner = torch.zeros(40, 40, dtype=torch.bool)
    inner[10:30, 10:30] = True
    # without the mask, since a mask is black: compare the sums of the whole and of the frame around
    whole = 1600 * float(photometric_loss(x, y, ssim_weight=1.0))
    similarity = ssim_by_convolution(x.numpy(), y.numpy())
    frame = float((1 - similarity).mean(-1)[~inner.numpy()].sum())
    closed = 1 - (2 * a * b + 1e-4) / (a * a + b * b + 1e-4)
    assert (whole - frame) / 400 == pytest.approx(closed, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("exposed", [False, True])
def test_float32_kernel_agrees_with_the_float64_twin(
    height: int, width: int, masked: bool, exposed: bool, seed: int
) -> None:
    x, y = pictures(height, width, seed=seed)
    mask = checkered(height, width) if masked else None
    exposure = torch.tensor(EXPOSURE, dtype=torch.float64) if exposed else None
    inputs = [x.requires_grad_()] + ([exposure.requires_grad_()] if exposure is not None else [])
    wanted = photometric_loss_reference(x, y, mask, exposure=exposure)
    gradients = torch.autograd.grad(wanted, inputs)

    v_exposure = torch.empty(2, 3) if exposed else None
    loss, v_image = photometric_loss_and_grad(
        x.detach().float(),
        y.float(),
        mask,
        exposure=None if exposure is None else exposure.detach().float(),
        v_exposure=v_exposure,
    )
    # float32 moments lose up to 1e-7 against C2 = 9e-4, so 1e-4 of a gradient in the worst flat pixel
    assert float(loss) == pytest.approx(float(wanted.detach()), abs=1e-6)
    torch.testing.assert_close(v_image.double(), gradients[0], rtol=1e-4, atol=1e-4 / x.numel())
    if v_exposure is not None:
        torch.testing.assert_close(v_exposure.double(), gradients[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 5), (14, 9)])
@pytest.mark.parametrize("masked", [False, True])
def test_gradcheck(height: int, width: int, masked: bool) -> None:
    x, y = pictures(height, width)
    mask = checkered(height, width) if masked else None
    exposure = torch.tensor(EXPOSURE, dtype=torch.float64)
    # the exposure moves pixels over the kink of L1: make the target follow it
    y = apply_exposure(y, exposure)

    def loss(image: Tensor, exposure: Tensor) -> Tensor:
        return 3 * photometric_loss(image, y, mask, ssim_weight=0.4, exposure=exposure)

    assert torch.autograd.gradcheck(loss, (x.requires_grad_(), exposure.requires_grad_()), eps=1e-6, atol=1e-8)


def test_bytes_are_the_same_as_their_floats() -> None:
    x, y = pictures(20, 30, torch.float32)
    photo = (y * 255).round().to(torch.uint8)
    from_bytes = photometric_loss_and_grad(x, photo)
    from_floats = photometric_loss_and_grad(x, photo.float() / 255)
    assert from_bytes[0] == from_floats[0]
    assert torch.equal(from_bytes[1], from_floats[1])


@pytest.mark.parametrize("poison", [math.nan, math.inf, 1e30])
def test_nothing_under_the_mask_has_influence(poison: float) -> None:
    x, y = pictures(31, 23, torch.float32)
    mask = checkered(31, 23)
    exposure, v_clean, v_poisoned = torch.tensor(EXPOSURE), torch.empty(2, 3), torch.empty(2, 3)
    clean = photometric_loss_and_grad(x, y, mask, exposure=exposure, v_exposure=v_clean)
    x[~mask], y[~mask] = poison, -poison
    poisoned = photometric_loss_and_grad(x, y, mask, exposure=exposure, v_exposure=v_poisoned)
    assert clean[0] == poisoned[0]
    assert torch.equal(clean[1], poisoned[1])
    assert torch.equal(v_clean, v_poisoned)
    assert bool((poisoned[1][~mask] == 0).all())


def test_without_a_valid_pixel_loss_and_gradient_are_zero() -> None:
    x, y = pictures(9, 13, torch.float32)
    loss, v_image = photometric_loss_and_grad(x, y, torch.zeros(9, 13, dtype=torch.bool))
    assert loss == 0
    assert not v_image.any()


def test_a_nan_pixel_is_seen_in_the_loss_and_stays_local_in_the_gradient() -> None:
    x, y = pictures(60, 50, torch.float32)
    clean = photometric_loss_and_grad(x, y)[1]
    x[30, 25, 1] = math.nan
    loss, v_image = photometric_loss_and_grad(x, y)
    assert math.isnan(loss)
    assert bool(v_image[30, 25, 1].isnan())
    far = torch.ones(60, 50, dtype=torch.bool)
    far[20:41, 15:36] = False  # two windows reach ten pixels
    assert torch.equal(v_image[far], clean[far])
    assert torch.equal(v_image[..., 0], clean[..., 0])  # channels do not mix


def test_mirrored_pictures_have_mirrored_gradients() -> None:
    x, y = pictures(37, 26)
    _, v_image = photometric_loss_and_grad(x, y)
    for dims in ([0], [1], [0, 1]):
        _, mirrored = photometric_loss_and_grad(x.flip(dims), y.flip(dims))
        torch.testing.assert_close(mirrored.flip(dims), v_image, rtol=0, atol=1e-15)
    _, turned = photometric_loss_and_grad(x.transpose(0, 1), y.transpose(0, 1))  # also: inputs need not be contiguous
    torch.testing.assert_close(turned.transpose(0, 1), v_image, rtol=0, atol=1e-15)


@needs_kernels
@pytest.mark.parametrize("height", [1, 31, 64, 130])
def test_threads_change_no_bit(height: int) -> None:
    x, y = pictures(height, 37, torch.float32)
    mask = checkered(height, 37)
    exposure, results = torch.tensor(EXPOSURE), []
    before = native.cpu().threads()
    try:
        for threads in (1, 2, 3, 7):
            native.set_threads(threads)
            v_exposure = torch.empty(2, 3)
            loss, v_image = photometric_loss_and_grad(x, y, mask, exposure=exposure, v_exposure=v_exposure)
            results.append((loss, v_image, v_exposure))
    finally:
        native.set_threads(before)
    for loss, v_image, v_exposure in results[1:]:
        assert loss == results[0][0]
        assert torch.equal(v_image, results[0][1])
        assert torch.equal(v_exposure, results[0][2])


def test_buffers_are_written_fully_and_used_as_given() -> None:
    """Poisoned buffers, and sizes that come and go: nothing of an earlier call may show."""
    for height, width in [(30, 40), (5, 3), (30, 39), (70, 40), (30, 40)]:
        x, y = pictures(height, width, torch.float32)
        fresh_loss, fresh = photometric_loss_and_grad(x, y)
        photometric_loss_and_grad(torch.full_like(x, math.nan), y)  # poisons the scratch memory as well
        buffer = torch.full_like(x, math.nan)
        loss, v_image = photometric_loss_and_grad(x, y, v_image=buffer)
        assert v_image is buffer
        assert loss == fresh_loss
        assert torch.equal(v_image, fresh)


def test_autograd_and_plain_call_agree() -> None:
    x, y = pictures(18, 21, torch.float32)
    exposure = torch.tensor(EXPOSURE, requires_grad=True)
    v_exposure = torch.empty(2, 3)
    value, v_image = photometric_loss_and_grad(x, y, exposure=exposure.detach(), v_exposure=v_exposure)
    loss = photometric_loss(x.requires_grad_(), y, exposure=exposure)
    (2 * loss).backward()
    assert float(loss.detach()) == pytest.approx(float(value), rel=1e-6)
    assert x.grad is not None and exposure.grad is not None
    torch.testing.assert_close(x.grad, 2 * v_image, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(exposure.grad, 2 * v_exposure, rtol=1e-5, atol=1e-8)


def test_following_the_exposure_gradient_finds_the_exposure() -> None:
    x, _ = pictures(24, 24)
    truth = torch.tensor(EXPOSURE, dtype=torch.float64)
    target = apply_exposure(x, truth)
    exposure = torch.tensor([[1.0] * 3, [0.0] * 3], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([exposure], lr=0.02)
    for step in range(600):
        for group in optimiser.param_groups:
            group["lr"] = 0.02 * 0.99**step
        optimiser.zero_grad()
        photometric_loss(x, target, exposure=exposure).backward()
        optimiser.step()
    torch.testing.assert_close(exposure.detach(), truth, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": torch.zeros(4, 4)}, "image must be"),
        ({"image": torch.zeros(0, 4, 3)}, "at least one pixel"),
        ({"image": torch.zeros(4, 4, 3, dtype=torch.uint8)}, "must be float"),
        ({"target": torch.zeros(4, 5, 3)}, "target must be"),
        ({"target": torch.zeros(4, 4, 3, dtype=torch.float64)}, "target like it or uint8"),
        ({"mask": torch.zeros(4, 5, dtype=torch.bool)}, "mask must be"),
        ({"mask": torch.zeros(4, 4)}, "mask must be"),
        ({"exposure": torch.zeros(3), "v_exposure": torch.zeros(3)}, "exposure must be"),
        ({"exposure": torch.zeros(2, 3)}, "come together"),
        ({"v_image": torch.zeros(4, 4, 3).transpose(0, 1)}, "v_image must be contiguous"),
        ({"v_image": torch.zeros(4, 4, 3, dtype=torch.float64)}, "v_image must be contiguous"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(change: dict[str, Tensor], message: str) -> None:
    arguments = {"image": torch.zeros(4, 4, 3), "target": torch.zeros(4, 4, 3)} | change
    with pytest.raises(ValueError, match=message):
        photometric_loss_and_grad(**arguments)  # type: ignore[arg-type]
