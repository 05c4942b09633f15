"""Drives cuda/gpu/composite.cu."""

from __future__ import annotations

from torch import Tensor

from scene.ops.gpu.launch import blocks, launch

THREADS = 256  # as kThreads there


def composite(rgb: Tensor, alpha: Tensor, background: Tensor, out: Tensor) -> None:
    """Writes rgb over background into out."""
    launch("composite", "composite", blocks(out.numel(), THREADS), THREADS, rgb, alpha, background, out, alpha.numel())
