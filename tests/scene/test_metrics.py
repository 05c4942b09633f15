"""Picture metrics against closed forms and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from scene.metrics import MS_SSIM_WEIGHTS, ms_ssim, psnr, ssim


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.rand(height, width, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ssim_maps(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Luminance and contrast terms by scipy's own Gaussian filter, cut at 5 pixels, zeros outside."""
    from scipy.ndimage import gaussian_filter

    def blur(values: np.ndarray) -> np.ndarray:
        return gaussian_filter(values, sigma=(1.5, 1.5, 0), radius=(5, 5, 0), mode="constant")

    mx, my = blur(x), blur(y)
    xx, yy, xy = blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my
    return (2 * mx * my + 1e-4) / (mx * mx + my * my + 1e-4), (2 * xy + 9e-4) / (xx + yy + 9e-4)


def test_psnr_of_a_known_error() -> None:
    x = torch.full((8, 8, 3), 0.5)
    assert float(psnr(x, x + 0.1)) == pytest.approx(20, abs=1e-4)
    assert float(psnr(x, x)) == math.inf


def test_psnr_clips_to_the_range_of_a_picture() -> None:
    target = torch.ones(4, 4, 3)
    assert float(psnr(target * 7, target)) == math.inf
    assert float(psnr(-target, torch.zeros(4, 4, 3))) == math.inf


def test_bytes_are_divided_by_255() -> None:
    photo = (picture(12, 14) * 255).round().to(torch.uint8)
    other = picture(12, 14, seed=1).float()
    for metric in (psnr, ssim, ms_ssim):
        assert float(metric(other, photo)) == pytest.approx(float(metric(other, photo.float() / 255)), rel=1e-6)
    assert float(psnr(photo, photo)) == math.inf


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_what_lies_under_the_mask_has_no_influence(metric) -> None:
    x, y = picture(20, 20), picture(20, 20, seed=1)
    mask = torch.zeros(20, 20, dtype=torch.bool)
    mask[4:12, 3:18] = True
    clean = float(metric(x, y, mask))
    x[~mask] = math.nan
    assert float(metric(x, y, mask)) == clean
    assert math.isnan(float(metric(x, y, torch.zeros_like(mask))))


def test_masked_psnr_is_that_of_the_crop() -> None:
    x, y = picture(20, 20), picture(20, 20, seed=1)
    mask = torch.zeros(20, 20, dtype=torch.uint8)
    mask[4:12, 3:18] = 1
    assert float(psnr(x, y, mask)) == pytest.approx(float(psnr(x[4:12, 3:18], y[4:12, 3:18])))


@pytest.mark.parametrize("size", [(1, 1), (5, 30), (40, 33)])
def test_ssim_agrees_with_scipy(size: tuple[int, int]) -> None:
    x, y = picture(*size), picture(*size, seed=1)
    y = 0.7 * x + 0.3 * y
    luminance, contrast = ssim_maps(x.numpy(), y.numpy())
    assert float(ssim(x, y)) == pytest.approx((luminance * contrast).mean(), abs=1e-12)


def test_ms_ssim_agrees_with_scipy_on_five_scales() -> None:
    x = picture(180, 200)
    y = (0.6 * x + 0.4 * picture(180, 200, seed=1)).clamp(0, 1)
    a, b, wanted = x.numpy(), y.numpy(), 1.0
    for scale, weight in enumerate(MS_SSIM_WEIGHTS):
        luminance, contrast = ssim_maps(a, b)
        wanted *= (luminance * contrast if scale == 4 else contrast).mean() ** weight
        a, b = (
            (p[0::2, 0::2] + p[1::2, 0::2] + p[0::2, 1::2] + p[1::2, 1::2]) / 4
            for p in (p[: p.shape[0] // 2 * 2, : p.shape[1] // 2 * 2] for p in (a, b))
        )
    assert sum(MS_SSIM_WEIGHTS) == pytest.approx(1, abs=2e-4)
    assert float(ms_ssim(x, y)) == pytest.approx(wanted, rel=1e-3)  # the paper's weights sum to 1.0001


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (15, 9), (50, 70)])
def test_equal_pictures_score_one_at_any_size(size: tuple[int, int]) -> None:
    x = picture(*size)
    assert float(ssim(x, x)) == pytest.approx(1, abs=1e-12)
    assert float(ms_ssim(x, x)) == pytest.approx(1, abs=1e-12)


def test_scores_fall_as_noise_grows() -> None:
    x, noise = picture(64, 64), picture(64, 64, seed=2) - 0.5
    for metric in (psnr, ssim, ms_ssim):
        scores = [float(metric(x, x + share * noise)) for share in (0.05, 0.2, 0.8)]
        assert scores == sorted(scores, reverse=True)


def test_a_negative_has_no_structure_in_common() -> None:
    x = picture(32, 32)
    assert float(ssim(x, 1 - x)) < 0
    assert float(ms_ssim(x, 1 - x)) == 0


def test_sizes_that_differ_are_refused() -> None:
    for metric in (psnr, ssim, ms_ssim):
        with pytest.raises(ValueError, match="resize one"):
            metric(picture(4, 4), picture(4, 5))
