"""Adam (Kingma and Ba, 2015) in place on the numbers whose gradient is not zero: how DVGO (Sun et al., 2022) trains.

A step touches the voxels around its samples and no others: the rest keep value and moments, and cost one look at their
gradient. The bias correction counts the global steps. Departure from DVGO's code: eps is added after the second moment
was corrected, as in the paper and torch.optim.Adam (there it weighs up to ten times as much at first).
"""

from __future__ import annotations

import torch
from torch import Tensor

from scene.ops import native


def adam_masked(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    step: int,
    lr: float,
    rates: Tensor | None = None,
    betas: tuple[float, float] = (0.9, 0.99),
    eps: float = 1e-8,
    clear: bool = True,
) -> None:
    """Updates param, exp_avg and exp_avg_sq in place where grad is not zero.

    param, grad, exp_avg, exp_avg_sq: one shape, contiguous, float32 or float64.  step: counts from 1.
    lr: in units of the parameter.  rates: multiplies lr, of the leading shape of param ([X, Y, Z] for [X, Y, Z, C]);
    where it is 0 nothing changes.  clear: grad is all zeros afterwards, ready for the next step.
    Raises ValueError when shapes or dtypes do not fit.
    """
    _check(param, grad, exp_avg, exp_avg_sq, rates, step)
    arrays = [value.detach() for value in (param, grad, exp_avg, exp_avg_sq)]
    if not native.has(param.device, param.dtype):
        adam_masked_reference(*arrays, step=step, lr=lr, rates=rates, betas=betas, eps=eps, clear=clear)
        return
    flat_rates = None if rates is None else rates.detach().reshape(-1)
    native.kernels(param.device).masked_adam(
        *(value.view(-1) for value in arrays), flat_rates, step, lr, *betas, eps, clear
    )


@torch.no_grad()
def adam_masked_reference(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    step: int,
    lr: float,
    rates: Tensor | None = None,
    betas: tuple[float, float] = (0.9, 0.99),
    eps: float = 1e-8,
    clear: bool = True,
) -> None:
    """The same in plain torch."""
    chosen, lr_of = grad != 0, torch.full_like(param, lr)
    if rates is not None:
        spread = rates.reshape(*rates.shape, *[1] * (param.dim() - rates.dim())).expand_as(param)
        chosen, lr_of = chosen & (spread != 0), lr * spread
    g = grad[chosen]
    m = betas[0] * exp_avg[chosen] + (1 - betas[0]) * g
    v = betas[1] * exp_avg_sq[chosen] + (1 - betas[1]) * g**2
    m_hat, v_hat = m / (1 - betas[0] ** step), v / (1 - betas[1] ** step)
    param[chosen] -= lr_of[chosen] * m_hat / (v_hat.sqrt() + eps)
    exp_avg[chosen], exp_avg_sq[chosen] = m, v
    if clear:
        grad.zero_()


def _check(param: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, rates: Tensor | None, step: int) -> None:
    if step < 1:
        raise ValueError(f"step counts from 1, got {step}")
    if not param.is_floating_point():
        raise ValueError(f"param must be float, got {param.dtype}")
    for name, value in {"grad": grad, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}.items():
        if (value.shape, value.dtype, value.device) != (param.shape, param.dtype, param.device):
            raise ValueError(
                f"{name} must be {tuple(param.shape)} {param.dtype} on {param.device} like param, got "
                f"{tuple(value.shape)} {value.dtype} on {value.device}"
            )
    if not all(value.is_contiguous() for value in (param, grad, exp_avg, exp_avg_sq)):
        raise ValueError("param, grad, exp_avg and exp_avg_sq are changed in place and must be contiguous")
    if rates is None:
        return
    if rates.shape != param.shape[: rates.dim()] or (rates.dtype, rates.device) != (param.dtype, param.device):
        raise ValueError(
            f"rates must have the leading shape of param, {tuple(param.shape)}, {param.dtype} on {param.device}, got "
            f"{tuple(rates.shape)} {rates.dtype} on {rates.device}"
        )
