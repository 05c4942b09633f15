"""Pictures with an alpha channel over a background colour."""

from __future__ import annotations

import torch
from torch import Tensor

from scene.ops import native


def composite(rgb: Tensor, alpha: Tensor, background: Tensor, *, out: Tensor | None = None) -> Tensor:
    """A byte picture with straight alpha over a colour: rgb alpha + background (1 - alpha), [H, W, 3] in 0..1.

    rgb: [H, W, 3] uint8.  alpha: [H, W] uint8.  background: [3] float32 or float64; the result has its dtype.
    out: a contiguous buffer that the result is written into and that is returned.
    Not differentiable.  Raises ValueError when shapes or dtypes do not fit.
    """
    shape = tuple(rgb.shape)
    if rgb.dtype != torch.uint8 or alpha.dtype != torch.uint8 or len(shape) != 3 or shape[2] != 3:
        raise ValueError(f"rgb must be uint8 [H, W, 3] and alpha uint8, got {shape} {rgb.dtype} and {alpha.dtype}")
    if tuple(alpha.shape) != shape[:2] or tuple(background.shape) != (3,) or not background.is_floating_point():
        raise ValueError(
            f"alpha must be {shape[:2]} to match rgb and background [3] float, got {tuple(alpha.shape)} and "
            f"{tuple(background.shape)} {background.dtype}"
        )
    if alpha.device != rgb.device or background.device != rgb.device:
        raise ValueError(
            f"alpha and background must be on rgb's device {rgb.device}, got {alpha.device}, {background.device}"
        )
    if out is None:
        out = background.new_empty(shape)
    elif (out.shape, out.dtype, out.device) != (rgb.shape, background.dtype, rgb.device) or not out.is_contiguous():
        raise ValueError(
            f"out must be contiguous {shape} {background.dtype} on {rgb.device}, got {tuple(out.shape)} {out.dtype} "
            f"on {out.device}"
        )
    if native.has(rgb.device, background.dtype) and background.dtype == torch.float32:
        native.kernels(rgb.device).composite(
            rgb.contiguous(), alpha.contiguous(), background.detach().contiguous(), out
        )
        return out
    return out.copy_(composite_reference(rgb, alpha, background.detach()))


def composite_reference(rgb: Tensor, alpha: Tensor, background: Tensor) -> Tensor:
    """The same in plain torch."""
    share = alpha[..., None].to(background) / 255
    return rgb.to(background) / 255 * share + background * (1 - share)
