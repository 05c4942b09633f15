"""Adam (Kingma and Ba, 2015) in place, for all rows of a parameter or only for those that a camera saw.

Rows that are not listed keep their value and moments (sparse Adam); the bias correction counts the global steps, as
in 3D Gaussian Splatting's later implementations. With no list it is torch.optim.Adam.

Moments may be bfloat16 beside a float32 parameter. The second one changes by a thousandth per step, less than half of
what 8 bits can tell, and would stand still if rounded to nearest; both are rounded by chance instead, with a word that
depends on step and place alone (cuda/math/adam.h), so that a run repeats itself to the bit.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scene.ops import native

WORD = 0xFFFFFFFF


def adam_visible(
    param: Tensor,
    grad: Tensor,
    visible: Tensor | None,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    step: int,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-15,
) -> None:
    """Updates param, exp_avg and exp_avg_sq in place.

    param, exp_avg, exp_avg_sq: [N, ...] contiguous, float32 or float64; the moments may be bfloat16 where param is
    float32, for which there is no kernel but that of the fused step.  visible: [V] int32, strictly ascending rows,
    or None for all.  grad: compact [V, ...], or dense [N, ...] of which the visible rows are read (V = N: the two are
    the same).  step: counts from 1.  lr: in units of the parameter.
    Raises ValueError when shapes, dtypes or ids do not fit; on a GPU, where looking at ids would wait for the card,
    those that do not fit are skipped instead.
    """
    _check(param, grad, visible, exp_avg, exp_avg_sq, step)
    if exp_avg.dtype == torch.bfloat16 or not native.has(param.device, param.dtype):
        adam_visible_reference(param, grad, visible, exp_avg, exp_avg_sq, step=step, lr=lr, betas=betas, eps=eps)
        return
    rows = (len(param), math.prod(param.shape[1:]))
    native.kernels(param.device).adam(
        param.detach().view(rows),
        grad.detach().reshape(len(grad), rows[1]),
        visible if visible is None else visible.contiguous(),
        exp_avg.view(rows),
        exp_avg_sq.view(rows),
        step,
        lr,
        *betas,
        eps,
    )


@torch.no_grad()
def adam_visible_reference(
    param: Tensor,
    grad: Tensor,
    visible: Tensor | None,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    step: int,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-15,
) -> None:
    """The same in plain torch."""
    ids = torch.arange(len(param), device=param.device) if visible is None else visible.long()
    g = grad if len(grad) == len(ids) else grad[ids]
    m = betas[0] * exp_avg[ids].to(g) + (1 - betas[0]) * g
    v = betas[1] * exp_avg_sq[ids].to(g) + (1 - betas[1]) * g**2
    m_hat = m / (1 - betas[0] ** step)
    v_hat = v / (1 - betas[1] ** step)
    param[ids] -= lr * m_hat / (v_hat.sqrt() + eps)
    if exp_avg.dtype == torch.bfloat16:
        words = rounding_words(ids, math.prod(param.shape[1:]), step).view(m.shape)
        m, v = round_by_chance(m, words & 0xFFFF), round_by_chance(v, words >> 16)
    exp_avg[ids], exp_avg_sq[ids] = m, v


def rounding_words(rows: Tensor, width: int, step: int) -> Tensor:
    """[R, width] int64 below 2^32: the word of each number of `rows` [R] at `step`, as in cuda/math/adam.h."""
    places = rows.long()[:, None] * width + torch.arange(width, device=rows.device)
    return _mixed((places & WORD) ^ _mixed(torch.tensor(step & 0x7FFFFFFF, device=rows.device)))


def _mixed(x: Tensor) -> Tensor:
    """Wellons' lowbias32, as in cuda/math/random.h."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = (x ^ x >> shift) * factor & WORD  # the product wraps at 64 bits, of which the lower 32 are kept
    return x ^ x >> 16


def round_by_chance(values: Tensor, chances: Tensor) -> Tensor:
    """float32 as bfloat16, away from zero for chances (0 to 65535) of more than what would be cut off."""
    bits = values.view(torch.int32).long() & WORD
    bits = torch.where(values.isnan(), bits, bits + chances) >> 16
    return bits.to(torch.uint16).view(torch.bfloat16)


def _check(param: Tensor, grad: Tensor, visible: Tensor | None, exp_avg: Tensor, exp_avg_sq: Tensor, step: int) -> None:
    if step < 1:
        raise ValueError(f"step counts from 1, got {step}")
    dtypes = {param.dtype, torch.bfloat16} if param.dtype == torch.float32 else {param.dtype}
    for name, value in {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}.items():
        if value.shape != param.shape or value.dtype not in dtypes or value.dtype != exp_avg.dtype:
            raise ValueError(
                f"{name} must be {tuple(param.shape)} {param.dtype} like param, got {tuple(value.shape)} {value.dtype}"
            )
    if not all(value.is_contiguous() for value in (param, exp_avg, exp_avg_sq)):
        raise ValueError("param, exp_avg and exp_avg_sq are updated in place and must be contiguous")
    seen = len(param)
    if visible is not None:
        if visible.dim() != 1 or visible.dtype != torch.int32:
            raise ValueError(f"visible must be [V] int32, got {tuple(visible.shape)} {visible.dtype}")
        seen = len(visible)
        if native.backend(param.device, param.dtype) != "cuda" and not _ascends(visible, len(param)):
            raise ValueError(f"visible must ascend strictly within [0, {len(param)}); sort it and drop duplicates")
    if grad.shape[1:] != param.shape[1:] or len(grad) not in (seen, len(param)) or grad.dtype != param.dtype:
        raise ValueError(
            f"grad must be {param.dtype} with rows {tuple(param.shape[1:])} and length {seen} (compact) or "
            f"{len(param)} (dense), got {grad.dtype} {tuple(grad.shape)}"
        )


def _ascends(visible: Tensor, rows: int) -> bool:
    """Whether the ids ascend strictly within [0, rows)."""
    low, high = (int(visible[0]), int(visible[-1])) if len(visible) else (0, -1)
    return low >= 0 and high < rows and not bool((visible.diff() <= 0).any())
