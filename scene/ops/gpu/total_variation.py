"""Drives cuda/gpu/total_variation.cu; arguments as of cuda/cpu/total_variation.cpp."""

from __future__ import annotations

from torch import Tensor

from scene.ops.gpu.launch import blocks, launch

THREADS, LINES, ROWS = 256, 8, 64  # as kThreads, kLines and kRows there


def total_variation(grad: Tensor, values: Tensor, scale: float, touched_only: bool) -> None:
    """Adds scale times the gradient of total variation of a dense grid to grad."""
    nx, ny, nz = values.shape
    grid = blocks(nx * ny, LINES) if nz else 0
    launch("total_variation", "total_variation", grid, THREADS, grad, values, nx, ny, nz, float(scale), touched_only)


def total_variation_rows(
    grad: Tensor, values: Tensor, rows: Tensor, cells: Tensor, scale: float, touched_only: bool
) -> None:
    """The same of voxels that are rows of a table. Rows of cells outside the grid are skipped."""
    sizes = (*values.shape, *rows.shape)
    launch(
        "total_variation",
        "total_variation_rows",
        blocks(len(values), ROWS),
        THREADS,
        grad,
        values,
        rows,
        cells,
        *sizes,
        float(scale),
        touched_only,
    )
