"""Drives cuda/gpu/sh_color.cu. Rays are not looked at, which would wait for the card: they must be there."""

from __future__ import annotations

from torch import Tensor

from scene import sh
from scene.ops.gpu.launch import blocks, launch

THREADS = 256  # as kThreads there


def sh_color(features: Tensor, rays: Tensor, directions: Tensor, rgb: Tensor) -> None:
    """Writes the colours of samples into rgb."""
    _launch("sh_color", features, rays, directions, rgb)


def sh_color_backward(features: Tensor, rays: Tensor, directions: Tensor, v_rgb: Tensor, v_features: Tensor) -> None:
    """Writes the gradient by the features."""
    _launch("sh_color_backward", features, rays, directions, v_rgb, v_features)


def _launch(name: str, features: Tensor, rays: Tensor, directions: Tensor, *colors: Tensor) -> None:
    degree, count = sh.degree_of(features.shape[1] // 3), len(features)
    grid = blocks(3 * count, THREADS)
    launch("sh_color", name, grid, THREADS, features, rays, directions, degree, count, *colors)
