"""Sparse and dense Adam on the GPU; arguments as of cuda/cpu/adam.cpp."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from scene.ops.gpu.launch import blocks, launch

_THREADS = 256  # kThreads and kListed of cuda/gpu/adam.cu
_LISTED = 64


class Constants(NamedTuple):
    """What one step of Adam multiplies by: AdamStep of cuda/math/adam.h, worked out in double as there."""

    new1: float
    beta2: float
    new2: float
    rate: float
    inv_root_bias: float
    eps: float

    @staticmethod
    def of(step: int, lr: float, beta1: float, beta2: float, eps: float) -> Constants:
        bias1, bias2 = 1 - beta1**step, 1 - beta2**step
        return Constants(1 - beta1, beta2, 1 - beta2, lr / bias1, 1 / math.sqrt(bias2), eps)


def adam(
    param: Tensor,
    grad: Tensor,
    visible: Tensor | None,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
) -> None:
    """One step in place on [N, width] over all rows, or over the rows of `visible`, each listed once.

    The ids are not checked, which would wait for the card: a row outside [0, N) is skipped.
    """
    rows, width = param.shape
    constants = Constants.of(step, lr, beta1, beta2, eps)
    arrays = (param, grad, exp_avg, exp_avg_sq)
    if visible is None:
        launch("adam", "adam_dense", blocks(rows * width, _THREADS), _THREADS, *arrays, rows, width, *constants)
        return
    listed = len(visible)
    sizes = (visible, listed, len(grad) == listed, rows, width)
    launch("adam", "adam_listed", blocks(listed, _LISTED), _THREADS, *arrays, *sizes, *constants)
