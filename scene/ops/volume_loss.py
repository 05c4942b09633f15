"""Pixels composited from packed samples along their rays, and what a voxel grid's training loses by them.

The losses are those of DVGO (Sun et al., 2022), eq. 10 to 12, and the distortion of mip-NeRF 360 (Barron et al., 2022),
eq. 15, in the O(N) form of DVGOv2; cuda/math/volume_loss.h has them. One pass per ray gives value and gradients.

Packed: ray r of R has the samples offsets[r] to offsets[r + 1] of M. A pixel is sum_i weights_i rgb_i + last *
background, where `last` is the light that is left behind the last sample.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from scene.ops import native

CLEAR = 1e-6  # light behind a ray within this of 0 or 1 is certain: its entropy has no gradient


class VolumeLoss(NamedTuple):
    """Loss and mean squared error, 0-dim tensors on the samples' device; gradients [M, 3], [M] and [R] of the loss."""

    loss: Tensor
    mse: Tensor
    v_rgb: Tensor
    v_weights: Tensor
    v_last: Tensor


def volume_loss_and_grad(
    rgb: Tensor,
    weights: Tensor,
    rays: Tensor,
    offsets: Tensor,
    last: Tensor,
    target: Tensor,
    background: Tensor,
    *,
    s: Tensor | None = None,
    interval: float = 0.0,
    per_point: float = 0.0,
    entropy: float = 0.0,
    distortion: float = 0.0,
) -> VolumeLoss:
    """The mean squared error of R pixels plus three weighted terms, with gradients by samples. No autograd.

    rgb: [M, 3] and weights: [M], the samples.  rays: [M] int32, ascending.  offsets: [R + 1] int32.  last: [R].
    target: [R, 3].  background: [3].  All float32 or all float64.
    per_point: of each sample's own squared error, times its weight, which that term takes as fixed.
    entropy: of that of `last`, which is least where a ray hits for certain or not at all.
    distortion: of how far apart the weight of a ray lies; needs s: [M], each sample's place on its ray, ascending in
    0..1, and interval, a sample's length in s.
    All are means over rays.  rgb, weights and last count as independent of each other.
    Raises ValueError when shapes, dtypes or offsets do not fit; on a GPU, where looking at offsets would wait for the
    card, they are cut to what is there instead.
    """
    _check(rgb, weights, offsets, last, background)
    _check_loss(rgb, rays, last, target, s, distortion)
    s = s if distortion else None
    if not native.has(rgb.device, rgb.dtype):
        options = {"interval": interval, "per_point": per_point, "entropy": entropy, "distortion": distortion}
        return _reference_and_grad(rgb, weights, rays, last, target, background, s, options)
    with torch.no_grad():
        rgb, weights, last = rgb.contiguous(), weights.contiguous(), last.contiguous()
        v_rgb, v_weights, v_last = torch.empty_like(rgb), torch.empty_like(weights), torch.empty_like(last)
        loss, mse = native.kernels(rgb.device).volume_loss(
            rgb,
            weights,
            None if s is None else s.contiguous(),
            offsets.contiguous(),
            last,
            target.contiguous(),
            background.contiguous(),
            interval,
            per_point,
            entropy,
            distortion,
            v_rgb,
            v_weights,
            v_last,
        )
        loss, mse = (torch.as_tensor(value, dtype=rgb.dtype) for value in (loss, mse))  # the CPU's are numbers
    return VolumeLoss(loss, mse, v_rgb, v_weights, v_last)


def volume_loss_reference(
    rgb: Tensor,
    weights: Tensor,
    rays: Tensor,
    last: Tensor,
    target: Tensor,
    background: Tensor,
    *,
    s: Tensor | None = None,
    interval: float = 0.0,
    per_point: float = 0.0,
    entropy: float = 0.0,
    distortion: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Loss and mean squared error in plain torch; differentiable in rgb, weights and last."""
    count, index = max(1, len(last)), rays.long()
    pixels = composite_rays_reference(rgb, weights, rays, last, background)
    mse = (pixels - target).square().sum() / (3 * count)
    apart = (weights.detach() * (rgb - target[index]).square().sum(-1)).sum() / count
    p = last.clamp(CLEAR, 1 - CLEAR)
    unsure = -(p * p.log() + (1 - p) * (1 - p).log()).sum() / count
    loss = mse + per_point * apart + entropy * unsure
    if distortion and s is not None:
        spread = distortion_by_prefix_sums(weights, s, index, len(last), interval)
        loss = loss + distortion * spread.sum() / count
    return loss, mse


def distortion_by_prefix_sums(weights: Tensor, s: Tensor, rays: Tensor, count: int, interval: float) -> Tensor:
    """[R] sum_ij w_i w_j |s_i - s_j| + interval / 3 sum_i w_i^2 of each ray, in O(N)."""
    places = torch.arange(len(rays), device=rays.device) - torch.searchsorted(rays, rays)  # of a sample on its ray
    longest = int(places.max()) + 1 if len(places) else 0
    w, x = (value.new_zeros(count, longest).index_put((rays, places), value) for value in (weights, s))
    before, moment = w.cumsum(-1) - w, (w * x).cumsum(-1) - w * x
    return (2 * w * (x * before - moment) + interval / 3 * w.square()).sum(-1)


@torch.no_grad()
def composite_rays(
    rgb: Tensor, weights: Tensor, rays: Tensor, offsets: Tensor, last: Tensor, background: Tensor
) -> Tensor:
    """[R, 3] the pixels of R rays over a background. Arguments as of `volume_loss_and_grad`. Not differentiable."""
    _check(rgb, weights, offsets, last, background)
    _check_rays(rgb, rays)
    if not native.has(rgb.device, rgb.dtype):
        return composite_rays_reference(rgb, weights, rays, last, background)
    out = rgb.new_empty(len(last), 3)
    native.kernels(rgb.device).composite_rays(
        *(value.contiguous() for value in (rgb, weights, offsets, last, background)), out
    )
    return out


def composite_rays_reference(rgb: Tensor, weights: Tensor, rays: Tensor, last: Tensor, background: Tensor) -> Tensor:
    """The same in plain torch; differentiable."""
    pixels = last[:, None] * background
    return pixels.index_add(0, rays.long(), weights[:, None] * rgb)


def _reference_and_grad(
    rgb: Tensor,
    weights: Tensor,
    rays: Tensor,
    last: Tensor,
    target: Tensor,
    background: Tensor,
    s: Tensor | None,
    options: dict[str, float],
) -> VolumeLoss:
    with torch.enable_grad():
        inputs = [value.detach().requires_grad_() for value in (rgb, weights, last)]
        c, w, end = inputs
        loss, mse = volume_loss_reference(c, w, rays, end, target.detach(), background.detach(), s=s, **options)
        gradients = torch.autograd.grad(loss, inputs)
    return VolumeLoss(loss.detach(), mse.detach(), *gradients)


def _check(rgb: Tensor, weights: Tensor, offsets: Tensor, last: Tensor, background: Tensor) -> None:
    samples, count = len(weights), len(last)
    if not rgb.is_floating_point() or rgb.dim() != 2 or rgb.shape[1] != 3:
        raise ValueError(f"rgb must be float [M, 3], got {tuple(rgb.shape)} {rgb.dtype}")
    if offsets.dtype != torch.int32:
        raise ValueError(f"offsets must be int32, got {offsets.dtype}")
    wanted = {
        "weights": (weights, (len(rgb),)),
        "last": (last, (max(0, offsets.numel() - 1),)),
        "offsets": (offsets, (count + 1,)),
        "background": (background, (3,)),
    }
    for name, (value, shape) in wanted.items():
        if tuple(value.shape) != shape:
            raise ValueError(f"{name} must be {shape} for {samples} samples on {count} rays, got {tuple(value.shape)}")
        if name != "offsets":
            _check_like(name, value, rgb)
    if offsets.device != rgb.device:
        raise ValueError(f"offsets must be on {rgb.device} like rgb, got {offsets.device}")


def _check_loss(rgb: Tensor, rays: Tensor, last: Tensor, target: Tensor, s: Tensor | None, distortion: float) -> None:
    _check_rays(rgb, rays)
    _check_like("target", target, rgb)
    if tuple(target.shape) != (len(last), 3):
        raise ValueError(f"target must be {(len(last), 3)} to match last, got {tuple(target.shape)}")
    if distortion and s is None:
        raise ValueError("distortion needs s, each sample's place on its ray")
    if s is not None:
        _check_like("s", s, rgb)
        if tuple(s.shape) != (len(rgb),):
            raise ValueError(f"s must be {(len(rgb),)} to match rgb, got {tuple(s.shape)}")


def _check_rays(rgb: Tensor, rays: Tensor) -> None:
    if rays.dtype != torch.int32 or tuple(rays.shape) != (len(rgb),) or rays.device != rgb.device:
        raise ValueError(
            f"rays must be int32 {(len(rgb),)} on {rgb.device} to match rgb, got {rays.dtype} {tuple(rays.shape)} on "
            f"{rays.device}"
        )


def _check_like(name: str, value: Tensor, rgb: Tensor) -> None:
    if value.dtype != rgb.dtype or value.device != rgb.device:
        raise ValueError(f"{name} must be {rgb.dtype} on {rgb.device} like rgb, got {value.dtype} on {value.device}")
