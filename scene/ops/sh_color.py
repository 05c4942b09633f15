"""Colours of samples from spherical harmonics that are stored per channel, as PlenOctrees has them (Yu et al., 2021).

rgb = sigmoid(sum_k Y_k(d) f_k), eq. 2 there, with the basis Y of `scene/sh.py` and the direction d of the sample's ray.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from scene import sh
from scene.ops import native


def sh_color(features: Tensor, rays: Tensor, directions: Tensor) -> Tensor:
    """Colours [M, 3] of samples, 0 to 1.

    features: [M, 3K], channel-major (K red, K green, K blue), K = 1, 4, 9 or 16; float32 or float64.  rays: [M] int32,
    the ray of each sample.  directions: [R, 3] unit.
    Differentiable, once, in features; not in directions.  Raises ValueError when shapes or dtypes do not fit.
    """
    _check(features, rays, directions)
    if native.has(features.device, features.dtype):
        return _ShColor.apply(features, rays, directions)  # type: ignore[return-value]
    return sh_color_reference(features, rays, directions.detach())


@torch.no_grad()
def sh_color_forward(features: Tensor, rays: Tensor, directions: Tensor) -> Tensor:
    """The same without autograd: for training loops that call `sh_color_backward` themselves."""
    return sh_color(features, rays, directions)


@torch.no_grad()
def sh_color_backward(features: Tensor, rays: Tensor, directions: Tensor, v_rgb: Tensor) -> Tensor:
    """Gradient by the features [M, 3K], from that by the colours, v_rgb [M, 3].

    Raises ValueError when shapes or dtypes do not fit.
    """
    _check(features, rays, directions)
    if tuple(v_rgb.shape) != (len(features), 3) or v_rgb.dtype != features.dtype:
        raise ValueError(
            f"v_rgb must be [{len(features)}, 3] {features.dtype} to match features, got {tuple(v_rgb.shape)} "
            f"{v_rgb.dtype}"
        )
    if native.has(features.device, features.dtype):
        return _backward(features, rays, directions, v_rgb)
    with torch.enable_grad():
        leaf = features.detach().requires_grad_()
        return torch.autograd.grad(sh_color_reference(leaf, rays, directions.detach()), leaf, v_rgb)[0]


def sh_color_reference(features: Tensor, rays: Tensor, directions: Tensor) -> Tensor:
    """The same in plain torch."""
    coefficients = features.view(len(features), 3, features.shape[1] // 3)
    basis = sh.basis(directions, sh.degree_of(coefficients.shape[2]))
    return torch.sigmoid((coefficients * basis[rays.long(), None]).sum(2))


class _ShColor(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features: Tensor, rays: Tensor, directions: Tensor) -> Tensor:
        ctx.save_for_backward(features, rays, directions)
        rgb = features.new_empty(len(features), 3)
        native.kernels(features.device).sh_color(*_plain(features, rays, directions), rgb)
        return rgb

    @staticmethod
    @once_differentiable
    def backward(ctx, v_rgb):  # pyright: ignore[reportIncompatibleMethodOverride]
        features, rays, directions = ctx.saved_tensors
        return _backward(features, rays, directions, v_rgb), None, None


def _backward(features: Tensor, rays: Tensor, directions: Tensor, v_rgb: Tensor) -> Tensor:
    v_features = torch.empty(features.shape, dtype=features.dtype, device=features.device)
    native.kernels(features.device).sh_color_backward(*_plain(features, rays, directions, v_rgb), v_features)
    return v_features


def _plain(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(value.detach().contiguous() for value in tensors)


def _check(features: Tensor, rays: Tensor, directions: Tensor) -> None:
    if features.dim() != 2 or features.shape[1] not in (3, 12, 27, 48) or not features.is_floating_point():
        raise ValueError(
            f"features must be float [M, 3K] with K = 1, 4, 9 or 16, got {features.dtype} {tuple(features.shape)}"
        )
    if tuple(rays.shape) != (len(features),) or rays.dtype != torch.int32:
        raise ValueError(f"rays must be [{len(features)}] int32, got {tuple(rays.shape)} {rays.dtype}")
    if directions.dim() != 2 or directions.shape[1] != 3 or directions.dtype != features.dtype:
        raise ValueError(
            f"directions must be [R, 3] {features.dtype} like features, got {tuple(directions.shape)} "
            f"{directions.dtype}"
        )
    if not features.device == rays.device == directions.device:
        raise ValueError(f"features, rays and directions lie on {features.device}, {rays.device}, {directions.device}")
