"""Drives cuda/gpu/hash_encoding.cu: features of places in a hash grid, and their gradients.

Gradients by the table are summed as 64-bit integers: the same bits in any order. Where one of v_out is no number, all
are NaN (on the CPU those of the place's rows).
"""

from __future__ import annotations

import torch
from torch import Tensor

from scene.ops.gpu.launch import blocks, launch

THREADS = 256  # kThreads of cuda/gpu/hash_encoding.cu
MOST = 2**31 - 1


def hash_encode(table: Tensor, cells: Tensor, first_rows: Tensor, points: Tensor, out: Tensor) -> None:
    """Writes features [M, L F] of points [M, 3] into out."""
    levels, count, features = len(cells), len(points), table.shape[1]
    _check(table, count)
    arguments = (_aligned(table), cells, first_rows, levels, points, count, out)
    launch("hash_encoding", f"encode{features}", (blocks(count, THREADS), levels), THREADS, *arguments)


def hash_encode_backward(v_out: Tensor, cells: Tensor, first_rows: Tensor, points: Tensor, v_table: Tensor) -> None:
    """Adds the gradient by the table to v_table [rows, F]."""
    levels, count, (rows, features) = len(cells), len(points), v_table.shape
    _check(v_table, count)
    if count == 0:
        return
    peak = v_out.abs().amax()
    sums = torch.zeros(rows, features, dtype=torch.int64, device=v_table.device)
    arguments = (_aligned(v_out), peak, cells, first_rows, levels, points, count, sums)
    launch("hash_encoding", f"add_to_rows{features}", (blocks(count, THREADS), levels), THREADS, *arguments)
    numbers = rows * features
    launch("hash_encoding", "add_sums", blocks(numbers, THREADS), THREADS, sums, peak, count, numbers, v_table)


def hash_encode_slopes(
    v_out: Tensor, table: Tensor, cells: Tensor, first_rows: Tensor, points: Tensor, v_points: Tensor
) -> None:
    """Writes the gradient by points [M, 3] into v_points."""
    count, features = len(points), table.shape[1]
    _check(table, count)
    arguments = (_aligned(v_out), _aligned(table), cells, first_rows, len(cells), points, count, v_points)
    launch("hash_encoding", f"slopes{features}", blocks(count, THREADS), THREADS, *arguments)


def _aligned(rows: Tensor) -> Tensor:
    """The same numbers where four can be read at once."""
    return rows if rows.data_ptr() % 16 == 0 else rows.clone()


def _check(table: Tensor, count: int) -> None:
    """Numbers of the table and places are ints."""
    if table.numel() > MOST or count > MOST:
        raise ValueError(f"a table may have 2^31 - 1 numbers, and as many places, got {table.numel()} and {count}")
