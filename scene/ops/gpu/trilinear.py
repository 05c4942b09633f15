"""Drives cuda/gpu/trilinear.cu: rows of a table at places in a grid, and sums into the corners of cells.

The sums take the same order every time: samples are sorted by their cells, and nothing is added by atomics.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scene.ops.gpu.launch import blocks, launch, scratch
from scene.ops.gpu.radix_sort import sort_places

THREADS = 256  # kThreads, kPiece and kParities of cuda/gpu/trilinear.cu
PIECE = 32
PARITIES = 8
WIDE = 4  # floats that a thread reads at once, where rows are whole multiples of them
MOST = 2**31 - 1


def trilinear(table: Tensor, rows: Tensor, points: Tensor, out: Tensor) -> None:
    """Writes the interpolated rows [M, C] into out."""
    count, channels = out.shape
    _check(rows.shape, count)
    suffix, block = _block(channels, table, out)
    arguments = (table, rows, *rows.shape, points, count, channels, out)
    launch("trilinear", f"gather_rows{suffix}", blocks(count, block[1]), block, *arguments)


def trilinear_backward(v_out: Tensor, rows: Tensor, points: Tensor, v_table: Tensor) -> None:
    """Adds the gradient by the table to v_table [F, C]. No two voxels may have the same row."""
    add_to_corners(points, v_out, rows, tuple(rows.shape), v_table)


def add_to_corners(points: Tensor, v: Tensor, rows: Tensor | None, size: tuple[int, ...], table: Tensor) -> None:
    """Adds v [M, C] at points [M, 3] to the rows of the corners of their cells, by their shares.

    size: X, Y, Z of the grid.  rows: [X, Y, Z], None when voxel i has row i.  table: [F, C], in place.
    """
    count, channels = v.shape
    _check(size, count)
    if count == 0:
        return
    keys = scratch(count, torch.int32, v)
    launch("trilinear", "cell_keys", blocks(count, THREADS), THREADS, points, count, *size, keys)
    cells = (size[0] + 1) // 2 * ((size[1] + 1) // 2) * ((size[2] + 1) // 2)  # of a parity
    keys, places = sort_places(keys, (PARITIES * cells - 1).bit_length(), keep_keys=True)
    begins = scratch(PARITIES + 1, torch.int32, v)
    launch("trilinear", "find_parities", 1, 32, keys, count, *size, begins)
    suffix, block = _block(channels, v, table)
    pieces = blocks(count, PIECE)
    carried = scratch(pieces * 8 * channels, torch.float32, v)
    samples = (keys, places, count, points, v, channels, *size)
    launch("trilinear", f"sum_carried{suffix}", blocks(pieces, block[1]), block, *samples, carried)
    grid = blocks(count, PARITIES * block[1])  # the share of a parity; what is more, threads take by turns
    for parity in range(PARITIES):
        adding = (carried, begins, parity, rows, table)
        launch("trilinear", f"add_to_corners{suffix}", grid, block, *samples, *adding)


def _block(channels: int, *tensors: Tensor) -> tuple[str, tuple[int, int]]:
    """Suffix of the kernels for these rows, and their blocks: parts of the channels, and rows."""
    aligned = channels % WIDE == 0 and all(tensor.data_ptr() % (4 * WIDE) == 0 for tensor in tensors)
    parts = channels // WIDE if aligned else channels
    return "4" if aligned else "", (parts, THREADS // parts)


def _check(size: tuple[int, ...], count: int) -> None:
    """Indices of voxels and samples are ints."""
    if size[0] * size[1] * size[2] > MOST or count > MOST:
        raise ValueError(f"a grid may have 2^31 - 1 voxels and samples, got {tuple(size)} and {count}")
