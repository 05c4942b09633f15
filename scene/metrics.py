"""How alike two pictures are: the figures that reports and tables state.

All figures are per picture, on values clipped to [0, 1]; an average over views is an average of these (of dB, never
the dB of an average error). SSIM and MS-SSIM take zeros outside the picture, as the tables of 3D Gaussian Splatting do.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scene.ops.photometric_loss import WINDOW, photometric_loss_and_grad, ssim_terms, unit_range

MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # finest scale first; table of the paper


def psnr(image: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio in dB, a scalar: -10 log10 of the mean squared error.

    image, target: [H, W, 3], floats that are clipped to [0, 1], or uint8.  mask: [H, W] bool or uint8, nonzero where
    valid.  Infinite for equal pictures; NaN where no pixel is valid.
    """
    x, y = _clipped(image, target)
    errors = (x - y) ** 2
    return -10 * torch.log10(errors.mean() if mask is None else errors[mask != 0].mean())


@torch.no_grad()
def ssim(image: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Structural similarity (Wang et al., 2004), a scalar, 1 for equal pictures: 11x11 Gaussian window, sigma 1.5.

    Arguments as for `psnr`; masked pixels are black in both pictures and take no part in the mean.  Not differentiable:
    the loss is (scene/ops/photometric_loss.py).
    """
    x, y = _clipped(image, target)
    if mask is not None and not bool((mask != 0).any()):
        return x.new_tensor(float("nan"))
    unlike, _ = photometric_loss_and_grad(x, y, mask, ssim_weight=1.0)
    return 1 - unlike


@torch.no_grad()
def ms_ssim(image: Tensor, target: Tensor) -> Tensor:
    """Multi-scale SSIM (Wang et al., 2003, eq. 7), a scalar, 1 for equal pictures.

    The contrast term at each of five halvings, the luminance term at the last. A picture too small for five keeps the
    scales whose shorter side holds the window, with their weights made to sum to one.
    """
    x, y = _clipped(image, target)
    scales = [scale for scale in range(len(MS_SSIM_WEIGHTS)) if min(x.shape[:2]) >> scale >= WINDOW] or [0]
    weights = torch.tensor(MS_SSIM_WEIGHTS[: len(scales)], dtype=x.dtype, device=x.device)
    weights = weights / weights.sum()
    score = x.new_ones(())
    for scale in scales:
        luminance, contrast = ssim_terms(x, y)
        similarity = luminance * contrast if scale == scales[-1] else contrast
        score = score * similarity.mean().clamp_min(0) ** weights[scale]  # a root of a negative mean has no meaning
        x, y = _halved(x), _halved(y)
    return score


def _halved(picture: Tensor) -> Tensor:
    """Averages of 2x2 pixels; an odd last row or column is dropped, a side of one stays."""
    window = (min(2, picture.shape[0]), min(2, picture.shape[1]))
    return torch.nn.functional.avg_pool2d(picture.permute(2, 0, 1), window).permute(1, 2, 0)


def _clipped(image: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    if image.shape != target.shape or image.dim() != 3 or image.shape[2] != 3:
        raise ValueError(
            f"image and target must both be [H, W, 3], got {tuple(image.shape)} and {tuple(target.shape)}; resize one"
        )
    dtype = torch.promote_types(image.dtype, target.dtype)
    dtype = dtype if dtype.is_floating_point else torch.float32
    x, y = unit_range(image, dtype), unit_range(target, dtype)
    return x.to(dtype).clamp(0, 1), y.to(dtype).clamp(0, 1)
