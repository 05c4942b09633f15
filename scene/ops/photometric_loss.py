"""Loss between a rendered picture and a photo: (1 - w) L1 + w (1 - SSIM).

SSIM (Wang et al., 2004, eq. 13): 11x11 Gaussian window of sigma 1.5, range 1, zeros outside the picture, mean over the
valid pixels, as in 3D Gaussian Splatting (2023), eq. 7. Departures: a mask takes pixels out of both terms, and the
photo's exposure, a gain and an offset per channel, is applied to the rendered picture inside the loss.
What lies under the mask has no influence whatever, NaN included.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from scene.ops import native

WINDOW, SIGMA = 11, 1.5  # px
C1, C2 = 0.01**2, 0.03**2  # keep SSIM's fractions finite where a picture is black or flat


def photometric_loss(
    image: Tensor,
    target: Tensor,
    mask: Tensor | None = None,
    *,
    ssim_weight: float = 0.2,
    exposure: Tensor | None = None,
) -> Tensor:
    """Scalar loss (1 - w) L1 + w (1 - SSIM), the mean over valid pixels; 0 where none is valid.

    image: [H, W, 3] float32 or float64, 0 to 1.  target: [H, W, 3] of the same dtype, or uint8 that is divided by 255.
    mask: [H, W] bool or uint8, nonzero where valid.  exposure: [2, 3], gain and offset per channel: the loss is that
    of `apply_exposure(image, exposure)`.
    Differentiable, once, in image and exposure; not in target.  Raises ValueError when shapes or dtypes do not fit.
    """
    mask = _checked(image, target, mask, exposure)
    if native.has(image.device, image.dtype):
        return _PhotometricLoss.apply(image, target, mask, exposure, ssim_weight)  # type: ignore[return-value]
    return photometric_loss_reference(image, target, mask, ssim_weight=ssim_weight, exposure=exposure)


def photometric_loss_and_grad(
    image: Tensor,
    target: Tensor,
    mask: Tensor | None = None,
    *,
    ssim_weight: float = 0.2,
    exposure: Tensor | None = None,
    v_image: Tensor | None = None,
    v_exposure: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The same loss, and its gradient by `image`, without autograd: for training loops.

    Returns the loss, a 0-dim tensor on the image's device (reading it waits for the device), and v_image.
    Arguments as for `photometric_loss`.  v_image, v_exposure: buffers like image and exposure that the gradients are
    written into (v_image is made when it is None; v_exposure must come with exposure): nothing is allocated then.
    """
    mask = _checked(image, target, mask, exposure)
    if (exposure is None) != (v_exposure is None):
        raise ValueError("exposure and the buffer for its gradient, v_exposure, come together")
    for name, buffer, like in (("v_image", v_image, image), ("v_exposure", v_exposure, exposure)):
        if buffer is not None and like is not None and not _is_buffer_for(buffer, like):
            raise ValueError(f"{name} must be contiguous {tuple(like.shape)} {like.dtype} that needs no gradient")
    with torch.no_grad():
        v_image = torch.empty_like(image, memory_format=torch.contiguous_format) if v_image is None else v_image
        if native.has(image.device, image.dtype):
            return _native(image, target, mask, exposure, ssim_weight, v_image, v_exposure), v_image
    return _reference_and_grad(image, target, mask, exposure, ssim_weight, v_image, v_exposure), v_image


def apply_exposure(image: Tensor, exposure: Tensor) -> Tensor:
    """The picture [..., 3] as a photo with this exposure [2, 3] shows it: gain * image + offset, per channel."""
    return exposure[0] * image + exposure[1]


def photometric_loss_reference(
    image: Tensor,
    target: Tensor,
    mask: Tensor | None = None,
    *,
    ssim_weight: float = 0.2,
    exposure: Tensor | None = None,
) -> Tensor:
    """The same in plain torch."""
    valid = torch.ones_like(image[..., 0], dtype=torch.bool) if mask is None else mask != 0
    values = 3 * max(1, int(valid.sum()))
    hidden, black = ~valid[..., None], image.new_zeros(())
    x = torch.where(hidden, black, image)
    if exposure is not None:  # hidden again, but not only: NaN in `image` would reach the exposure's gradient
        x = torch.where(hidden, black, apply_exposure(x, exposure))
    y = torch.where(hidden, black, unit_range(target, image.dtype))
    luminance, contrast = ssim_terms(x, y)
    unlike = torch.where(hidden, black, 1 - luminance * contrast).sum() / values
    l1 = (x - y).abs().sum() / values
    return (1 - ssim_weight) * l1 + ssim_weight * unlike


def ssim_terms(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Luminance and contrast-structure terms of SSIM, whose product it is, of two pictures [H, W, C] in 0..1.

    Per pixel and channel, with zeros outside the pictures.
    """
    means, others = _blur(x), _blur(y)
    variances = _blur(x * x) - means**2
    other_variances = _blur(y * y) - others**2
    covariances = _blur(x * y) - means * others
    luminance = (2 * means * others + C1) / (means**2 + others**2 + C1)
    contrast = (2 * covariances + C2) / (variances + other_variances + C2)
    return luminance, contrast


def gaussian_window(like: Tensor) -> Tensor:
    """[WINDOW] weights that sum to one."""
    offsets = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    weights = torch.exp(-(offsets**2) / (2 * SIGMA**2))
    return (weights / weights.sum()).to(like)


def unit_range(picture: Tensor, dtype: torch.dtype) -> Tensor:
    """A picture as floats in 0..1: bytes are divided by 255, floats stay."""
    return picture.to(dtype) / 255 if picture.dtype == torch.uint8 else picture


def _blur(values: Tensor) -> Tensor:
    window = gaussian_window(values)
    planes = values.permute(2, 0, 1)[:, None]
    rows = torch.nn.functional.conv2d(planes, window[None, None, :, None], padding=(WINDOW // 2, 0))
    blurred = torch.nn.functional.conv2d(rows, window[None, None, None, :], padding=(0, WINDOW // 2))
    return blurred[:, 0].permute(1, 2, 0)


class _PhotometricLoss(torch.autograd.Function):
    """The kernel gives the gradient together with the value, so backward only scales it."""

    @staticmethod
    def forward(
        ctx: Any, image: Tensor, target: Tensor, mask: Tensor | None, exposure: Tensor | None, ssim_weight: float
    ) -> Tensor:
        v_image = torch.empty_like(image, memory_format=torch.contiguous_format)
        v_exposure = None if exposure is None else torch.empty_like(exposure, memory_format=torch.contiguous_format)
        loss = _native(image, target, mask, exposure, ssim_weight, v_image, v_exposure)
        ctx.save_for_backward(v_image, v_exposure)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, v_loss):  # pyright: ignore[reportIncompatibleMethodOverride]
        v_image, v_exposure = ctx.saved_tensors
        return v_loss * v_image, None, None, None if v_exposure is None else v_loss * v_exposure, None


def _native(
    image: Tensor,
    target: Tensor,
    mask: Tensor | None,
    exposure: Tensor | None,
    ssim_weight: float,
    v_image: Tensor,
    v_exposure: Tensor | None,
) -> Tensor:
    loss = native.kernels(image.device).photometric_loss(
        image.detach().contiguous(),
        target.detach().contiguous(),
        None if mask is None else mask.contiguous(),
        None if exposure is None else exposure.detach().contiguous(),
        ssim_weight,
        v_image,
        v_exposure,
    )
    return torch.as_tensor(loss, dtype=image.dtype)  # the CPU's is a number


def _reference_and_grad(
    image: Tensor,
    target: Tensor,
    mask: Tensor | None,
    exposure: Tensor | None,
    ssim_weight: float,
    v_image: Tensor,
    v_exposure: Tensor | None,
) -> Tensor:
    with torch.enable_grad():
        x = image.detach().requires_grad_()
        e = None if exposure is None else exposure.detach().requires_grad_()
        loss = photometric_loss_reference(x, target.detach(), mask, ssim_weight=ssim_weight, exposure=e)
        gradients = torch.autograd.grad(loss, [x] if e is None else [x, e])
    v_image.copy_(gradients[0])
    if v_exposure is not None:
        v_exposure.copy_(gradients[1])
    return loss.detach()


def _is_buffer_for(buffer: Tensor, like: Tensor) -> bool:
    plain = buffer.is_contiguous() and not buffer.requires_grad
    return plain and (buffer.shape, buffer.dtype, buffer.device) == (like.shape, like.dtype, like.device)


def _checked(image: Tensor, target: Tensor, mask: Tensor | None, exposure: Tensor | None) -> Tensor | None:
    """Raises ValueError for what does not fit; returns the mask as uint8."""
    if image.dim() != 3 or image.shape[2] != 3 or image.numel() == 0:
        raise ValueError(f"image must be [H, W, 3] with at least one pixel, got {tuple(image.shape)}")
    if not image.is_floating_point() or target.dtype not in (image.dtype, torch.uint8):
        raise ValueError(f"image must be float and target like it or uint8, got {image.dtype} and {target.dtype}")
    if target.shape != image.shape:
        raise ValueError(f"target must be {tuple(image.shape)} to match image, got {tuple(target.shape)}; resize one")
    if exposure is not None and (tuple(exposure.shape) != (2, 3) or exposure.dtype != image.dtype):
        raise ValueError(
            f"exposure must be [2, 3] {image.dtype} (gain, offset), got {tuple(exposure.shape)} {exposure.dtype}"
        )
    for name, other in (("target", target), ("mask", mask), ("exposure", exposure)):
        if other is not None and other.device != image.device:
            raise ValueError(f"{name} must be on the image's device {image.device}, got {other.device}; move it there")
    if mask is None:
        return None
    if mask.shape != image.shape[:2] or mask.dtype not in (torch.bool, torch.uint8):
        raise ValueError(
            f"mask must be bool or uint8 {tuple(image.shape[:2])} to match image, got {mask.dtype} {tuple(mask.shape)}"
        )
    return mask.view(torch.uint8)
