"""Total variation of a voxel grid, whose gradient is added straight to that of the other losses (DVGO's code).

The sum of Huber's function (delta 1) of the differences of all neighbours, over 6: each voxel is pulled by its up to
six neighbours, by each with a force of at most 1/6 of the weight.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scene.ops import native


def add_total_variation(
    grad: Tensor,
    values: Tensor,
    *,
    weight: float,
    rows: Tensor | None = None,
    cells: Tensor | None = None,
    touched_only: bool,
) -> None:
    """Adds `weight` times the gradient of the total variation of `values` to `grad`, in place. No autograd.

    Dense: values and grad are [X, Y, Z], contiguous, float32 or float64.
    Sparse: they are tables [F, C] of the voxels that are stored; rows: [X, Y, Z] int32, each voxel's row or -1, which
    counts as no neighbour; cells: [F] int32, each row's voxel, as index into the flattened grid.
    touched_only: leaves numbers alone whose gradient is zero so far.
    DVGO scales its weights by max(X, Y, Z) / 128; that is the caller's.
    Raises ValueError when shapes, dtypes or cells do not fit; on a GPU, where looking at cells would wait for the card,
    rows of cells outside the grid are skipped instead.
    """
    _check(grad, values, rows, cells)
    grad, values = grad.detach(), values.detach()
    if not native.has(values.device, values.dtype):
        total_variation_reference(grad, values, weight=weight, rows=rows, cells=cells, touched_only=touched_only)
        return
    kernels, scale = native.kernels(values.device), weight / 6
    if rows is None or cells is None:
        kernels.total_variation(grad, values, scale, touched_only)
    else:
        kernels.total_variation_rows(grad, values, rows.contiguous(), cells.contiguous(), scale, touched_only)


@torch.no_grad()
def total_variation_reference(
    grad: Tensor,
    values: Tensor,
    *,
    weight: float,
    rows: Tensor | None = None,
    cells: Tensor | None = None,
    touched_only: bool,
) -> None:
    """The same in plain torch."""
    if rows is None or cells is None:
        pull = _pull(values[..., None], torch.ones_like(values, dtype=torch.bool))[..., 0]
    else:
        stored = rows >= 0
        grid = torch.where(stored[..., None], values[rows.clamp(min=0).long()], 0.0)
        pull = _pull(grid, stored).flatten(0, 2)[cells.long()]
    pull = pull * (weight / 6)
    grad += torch.where(grad != 0, pull, 0.0) if touched_only else pull


def _pull(grid: Tensor, stored: Tensor) -> Tensor:
    """[X, Y, Z, C] sum over a voxel's stored neighbours of its difference to them, cut to [-1, 1]."""
    pull = torch.zeros_like(grid)
    for axis in range(3):
        count = grid.shape[axis] - 1
        if count < 1:
            continue
        both = stored.narrow(axis, 0, count) & stored.narrow(axis, 1, count)
        apart = (grid.narrow(axis, 1, count) - grid.narrow(axis, 0, count)).clamp(-1, 1) * both[..., None]
        pull.narrow(axis, 1, count).add_(apart)
        pull.narrow(axis, 0, count).sub_(apart)
    return pull


def _check(grad: Tensor, values: Tensor, rows: Tensor | None, cells: Tensor | None) -> None:
    layout = "[X, Y, Z]" if rows is None else "[F, C]"
    if values.dim() != (3 if rows is None else 2) or not values.is_floating_point():
        raise ValueError(f"values must be float {layout}, got {values.dtype} {tuple(values.shape)}")
    if (grad.shape, grad.dtype, grad.device) != (values.shape, values.dtype, values.device):
        raise ValueError(
            f"grad must be {tuple(values.shape)} {values.dtype} on {values.device} like values, got "
            f"{tuple(grad.shape)} {grad.dtype} on {grad.device}"
        )
    if not grad.is_contiguous() or not values.is_contiguous():
        raise ValueError("grad is changed in place and must be contiguous, as must values")
    if (rows is None) != (cells is None):
        raise ValueError("rows and cells come together")
    if rows is None or cells is None:
        return
    if rows.dim() != 3 or rows.dtype != torch.int32:
        raise ValueError(f"rows must be [X, Y, Z] int32, got {tuple(rows.shape)} {rows.dtype}")
    if cells.shape != values.shape[:1] or cells.dtype != torch.int32:
        raise ValueError(f"cells must be [{len(values)}] int32, got {tuple(cells.shape)} {cells.dtype}")
    if rows.device != values.device or cells.device != values.device:
        raise ValueError(f"rows and cells must be on {values.device} like values, got {rows.device}, {cells.device}")
