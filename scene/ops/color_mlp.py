"""The colour network of DVGO's fine stage (Sun, Sun and Chen, "Direct Voxel Grid Optimization", CVPR 2022, sec. 3).

A sample's colour is a small network's answer to its interpolated feature vector k and the embedded viewing direction x
of its ray, added to the first three features, which are the colour that all directions see (`rgbnet_direct=False` of
DVGO's code):  rgb = sigmoid(k_123 + W3 relu(W2 relu(W1 [k, x] + b1) + b2) + b3),  with 128 or 64 numbers in the hidden
layers. Departures: the view's part of the first layer is the same for all samples of a ray and computed once for each;
numbers of the hidden layers that are zero in four samples in a row are left out of the products, which changes no sum.

Memory of the CPU kernel beside inputs and results: 0.3 MB per thread and, backward, at most 32 partial gradients of the
weights (3 MB for layers of 128). Hidden activations are never stored for all samples: backward computes them anew. The
twin under autograd, which is also the path on GPUs (there cuBLAS does it), keeps about 4 x hidden numbers per sample.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from scene.ops import native

HIDDEN = (64, 128)  # widths that have a CPU kernel


class ColorMlp(NamedTuple):
    """Weights of the three layers, or gradients by them, as torch.nn.Linear has them.

    w1: [H, C + E], the columns of the C features first.  w2: [H, H].  w3: [3, H].  b1, b2: [H].  b3: [3].
    """

    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor
    w3: Tensor
    b3: Tensor

    @staticmethod
    def drawn(features: int, view: int, hidden: int, generator: torch.Generator) -> ColorMlp:
        """Random weights as torch.nn.Linear draws them, uniform within 1 / sqrt(inputs); the last bias is zero.

        float32, on the generator's device.
        """
        layers = []
        for inputs, outputs in ((features + view, hidden), (hidden, hidden), (hidden, 3)):
            for shape in ((outputs, inputs), (outputs,)):
                values = torch.rand(shape, generator=generator, device=generator.device)
                layers.append((2 * values - 1) / math.sqrt(inputs))
        layers[-1].zero_()
        return ColorMlp(*layers)

    def to(self, device: torch.device | str) -> ColorMlp:
        """The same on a device."""
        return ColorMlp(*(value.to(device) for value in self))


def color_mlp(mlp: ColorMlp, features: Tensor, rays: Tensor, view: Tensor) -> Tensor:
    """Colours [M, 3] of samples, 0 to 1.

    features: [M, C >= 3], float32 or float64.  rays: [M] int32, the ray of each sample; samples of a ray should follow
    each other.  view: [R, E], embedded viewing directions.
    Differentiable, once, in features and weights; not in view.  Raises ValueError when shapes or dtypes do not fit.
    """
    _check(mlp, features, rays, view)
    if _has_kernel(mlp, features):
        return _ColorMlp.apply(features, rays, view, *mlp)  # type: ignore[return-value]
    return color_mlp_reference(mlp, features, rays, view.detach())


@torch.no_grad()
def color_mlp_forward(mlp: ColorMlp, features: Tensor, rays: Tensor, view: Tensor) -> Tensor:
    """The same without autograd: for training loops that call `color_mlp_backward` themselves."""
    _check(mlp, features, rays, view)
    return _forward(mlp, features, rays, view)


@torch.no_grad()
def color_mlp_backward(
    mlp: ColorMlp, features: Tensor, rays: Tensor, view: Tensor, rgb: Tensor, v_rgb: Tensor
) -> tuple[Tensor, ColorMlp]:
    """Gradients by features [M, C] and by the weights, from the colours and the gradient by them, both [M, 3].

    Raises ValueError when shapes or dtypes do not fit.
    """
    _check(mlp, features, rays, view)
    for name, value in (("rgb", rgb), ("v_rgb", v_rgb)):
        if tuple(value.shape) != (len(features), 3) or value.dtype != features.dtype:
            raise ValueError(
                f"{name} must be [{len(features)}, 3] {features.dtype} to match features, got {tuple(value.shape)} "
                f"{value.dtype}"
            )
    return _backward(mlp, features, rays, view, rgb, v_rgb)


def color_mlp_reference(mlp: ColorMlp, features: Tensor, rays: Tensor, view: Tensor) -> Tensor:
    """The same in plain torch."""
    inputs = torch.cat([features, view[rays.long()]], dim=1)
    hidden = torch.relu(torch.nn.functional.linear(inputs, mlp.w1, mlp.b1))
    hidden = torch.relu(torch.nn.functional.linear(hidden, mlp.w2, mlp.b2))
    return torch.sigmoid(features[:, :3] + torch.nn.functional.linear(hidden, mlp.w3, mlp.b3))


class _ColorMlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features: Tensor, rays: Tensor, view: Tensor, *weights: Tensor) -> Tensor:
        rgb = _forward(ColorMlp(*weights), features, rays, view)
        ctx.save_for_backward(features, rays, view, rgb, *weights)
        return rgb

    @staticmethod
    @once_differentiable
    def backward(ctx, v_rgb):  # pyright: ignore[reportIncompatibleMethodOverride]
        features, rays, view, rgb, *weights = ctx.saved_tensors
        v_features, v_weights = _backward(ColorMlp(*weights), features, rays, view, rgb, v_rgb)
        return v_features, None, None, *v_weights


def _has_kernel(mlp: ColorMlp, features: Tensor) -> bool:
    return native.backend(features.device, features.dtype) == "cpu" and (
        features.dtype == torch.float32 and len(mlp.b1) in HIDDEN
    )


def _forward(mlp: ColorMlp, features: Tensor, rays: Tensor, view: Tensor) -> Tensor:
    if not _has_kernel(mlp, features):
        return color_mlp_reference(mlp, features, rays, view)
    rgb = features.new_empty(len(features), 3)
    native.cpu().color_mlp(_plain(mlp), *_plain((features, rays, view)), rgb)
    return rgb


def _backward(
    mlp: ColorMlp, features: Tensor, rays: Tensor, view: Tensor, rgb: Tensor, v_rgb: Tensor
) -> tuple[Tensor, ColorMlp]:
    if not _has_kernel(mlp, features):
        with torch.enable_grad():
            leaves = [value.detach().requires_grad_() for value in (features, *mlp)]
            again = color_mlp_reference(ColorMlp(*leaves[1:]), leaves[0], rays, view.detach())
            v_features, *v_weights = torch.autograd.grad(again, leaves, v_rgb)
        return v_features, ColorMlp(*v_weights)
    v_features = torch.empty(features.shape, dtype=features.dtype)
    v_weights = ColorMlp(*(torch.empty(value.shape, dtype=value.dtype) for value in mlp))
    native.cpu().color_mlp_backward(
        _plain(mlp), *_plain((features, rays, view, rgb, v_rgb)), v_features, tuple(v_weights)
    )
    return v_features, v_weights


def _plain(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(value.detach().contiguous() for value in tensors)


def _check(mlp: ColorMlp, features: Tensor, rays: Tensor, view: Tensor) -> None:
    if features.dim() != 2 or features.shape[1] < 3 or not features.is_floating_point() or view.dim() != 2:
        raise ValueError(
            f"features must be float [M, C >= 3] and view [R, E], got {features.dtype} {tuple(features.shape)} and "
            f"{tuple(view.shape)}"
        )
    if tuple(rays.shape) != (len(features),) or rays.dtype != torch.int32:
        raise ValueError(f"rays must be [{len(features)}] int32, got {tuple(rays.shape)} {rays.dtype}")
    hidden, inputs = len(mlp.b1), features.shape[1] + view.shape[1]
    wanted = [(hidden, inputs), (hidden,), (hidden, hidden), (hidden,), (3, hidden), (3,)]
    shapes = [tuple(value.shape) for value in mlp]
    if shapes != wanted:
        raise ValueError(f"weights must be {wanted} to match features and view, got {shapes}")
    for value in (*mlp, view):
        if value.dtype != features.dtype or value.device != features.device:
            raise ValueError(
                f"weights and view must be {features.dtype} on {features.device} like features, got {value.dtype} on "
                f"{value.device}"
            )
    if rays.device != features.device:
        raise ValueError(f"rays must be on the features' device {features.device}, got {rays.device}; move them there")
