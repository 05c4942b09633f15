"""Drives cuda/gpu/masked_adam.cu; arguments as of cuda/cpu/masked_adam.cpp."""

from __future__ import annotations

from torch import Tensor

from scene.ops.gpu.adam import Constants
from scene.ops.gpu.launch import blocks, launch

THREADS, EACH = 256, 4  # as kThreads and kEach there


def masked_adam(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    rates: Tensor | None,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    clear: bool,
) -> None:
    """One step in place on flat arrays where grad is not zero, which it is afterwards with `clear`."""
    count = len(param)
    voxels = count if rates is None else len(rates)
    width = count // max(1, voxels)
    arrays = (param, grad, exp_avg, exp_avg_sq, rates)
    constants = Constants.of(step, lr, beta1, beta2, eps)
    launch(
        "masked_adam", "masked_adam", blocks(count, THREADS * EACH), THREADS, *arrays, voxels, width, clear, *constants
    )
