"""Feature vectors of places in a voxel grid, channel-last, of which only the voxels that are ever met are stored."""

from __future__ import annotations

import torch
from torch import Tensor

from scene.ops import native


def trilinear(table: Tensor, rows: Tensor, points: Tensor) -> Tensor:
    """Interpolated features [M, C] at points.

    table: [F, C] features of the stored voxels, C <= 256.  rows: [X, Y, Z] int32, each voxel's row in `table`, or -1
    for one that is not stored and counts as zeros.  points: [M, 3] in grid coordinates: voxel centres at whole numbers;
    places outside count as the nearest face.  Differentiable in `table`.  Raises ValueError when the shapes differ.
    """
    check_table(table, rows, points)
    if not native.has(table.device, table.dtype):
        return trilinear_reference(table, rows, points)
    return _Trilinear.apply(table, rows, points.detach().contiguous())


def trilinear_backward(v_out: Tensor, rows: Tensor, points: Tensor, v_table: Tensor) -> None:
    """Adds the gradient by the table to v_table [F, C], from that by the result, v_out [M, C]. No autograd.

    No two voxels may have the same row.
    """
    check_table(v_table, rows, points)
    if not native.has(v_table.device, v_table.dtype):
        with torch.enable_grad():
            table = torch.zeros_like(v_table, requires_grad=True)
            (grad,) = torch.autograd.grad(trilinear_reference(table, rows, points), table, v_out)
        v_table += grad
        return
    native.kernels(v_table.device).trilinear_backward(v_out.contiguous(), rows, points.contiguous(), v_table)


def trilinear_reference(table: Tensor, rows: Tensor, points: Tensor) -> Tensor:
    """The same in plain torch."""
    size = torch.tensor(rows.shape, device=points.device)
    inside = points.nan_to_num(0.0).clamp(min=0).minimum((size - 1).to(points))
    lower = inside.long().minimum((size - 2).clamp(min=0))
    share = inside - lower.to(points)
    result = points.new_zeros(len(points), table.shape[1])
    for corner in range(8):
        up = torch.tensor([corner >> 2 & 1, corner >> 1 & 1, corner & 1], device=points.device)
        x, y, z = (lower + up).minimum(size - 1).unbind(-1)
        weight = torch.where(up == 1, share, 1 - share).prod(-1)
        row = rows[x, y, z].long()
        result = result + torch.where(row >= 0, weight, 0.0)[:, None] * table[row.clamp(min=0)]
    return result


class _Trilinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, table: Tensor, rows: Tensor, points: Tensor) -> Tensor:
        ctx.save_for_backward(rows, points)
        ctx.shape = table.shape
        out = table.new_empty(len(points), table.shape[1])
        native.kernels(table.device).trilinear(table.detach().contiguous(), rows.contiguous(), points, out)
        return out

    @staticmethod
    def backward(ctx, *grads: Tensor):
        rows, points = ctx.saved_tensors
        v_table = torch.zeros(ctx.shape, dtype=grads[0].dtype, device=grads[0].device)
        native.kernels(v_table.device).trilinear_backward(grads[0].contiguous(), rows.contiguous(), points, v_table)
        return v_table, None, None


def check_table(table: Tensor, rows: Tensor, points: Tensor) -> None:
    """Raises ValueError when a table, its rows and points do not fit."""
    if table.dim() != 2 or not 1 <= table.shape[1] <= 256 or len(table) == 0:
        raise ValueError(f"table must be [F, C] with 1 to 256 channels and a row or more, got {tuple(table.shape)}")
    if rows.dim() != 3 or rows.dtype != torch.int32 or rows.numel() == 0:
        raise ValueError(f"rows must be [X, Y, Z] int32, got {tuple(rows.shape)} {rows.dtype}")
    if points.dim() != 2 or points.shape[1] != 3 or points.dtype != table.dtype:
        raise ValueError(f"points must be [M, 3] {table.dtype} like table, got {tuple(points.shape)} {points.dtype}")
    if not table.device == rows.device == points.device:
        raise ValueError(f"table, rows and points lie on {table.device}, {rows.device} and {points.device}")
