"""Launches cuda/gpu/position_noise.cu."""

from __future__ import annotations

from torch import Tensor

from scene.ops.gpu.launch import blocks, launch

BLOCK = 256


def add_position_noise(
    means: Tensor,
    quats: Tensor,
    log_scales: Tensor,
    opacity_logits: Tensor,
    strength: float,
    seed: int,
    step: int,
) -> None:
    """Moves the means of faint splats in place; see scene/ops/position_noise.py."""
    count = len(means)
    words = (_signed(seed), _signed(seed >> 32), _signed(step))
    arguments = (means, quats, log_scales, opacity_logits, count, strength, *words)
    launch("position_noise", "add_position_noise", blocks(count, BLOCK), BLOCK, *arguments)


def _signed(value: int) -> int:
    """The low 32 bits, as the int that a kernel takes."""
    return ((value & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000
