"""The gradient of total variation against its twin and against autograd through Huber's function."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import huber_loss

from scene.ops import native
from scene.ops.total_variation import add_total_variation, total_variation_reference

needs_kernels = pytest.mark.skipif(not native.has(torch.device("cpu")), reason="the CPU module is not compiled")
DTYPES = [torch.float32, torch.float64]
SHAPES = [(4, 5, 6), (1, 1, 1), (1, 3, 1), (2, 1, 70), (3, 2, 64), (3, 4, 65), (2, 2, 130), (5, 4, 2), (0, 3, 3)]


def drawn(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def some_touched(*shape: int, dtype: torch.dtype = torch.float64, share: float = 0.3) -> Tensor:
    """A gradient that is zero in most places."""
    return drawn(*shape, dtype=dtype, seed=1) * (drawn(*shape, seed=2) < -0.5 if share else 0)


def stored(shape: tuple[int, int, int], *, share: float = 0.6) -> tuple[Tensor, Tensor]:
    """rows and cells of a grid of which a share is stored, in no order."""
    generator = torch.Generator().manual_seed(3)
    cells = (torch.rand(math.prod(shape), generator=generator) < share).nonzero()[:, 0]
    cells = cells[torch.randperm(len(cells), generator=generator)]
    rows = torch.full((math.prod(shape),), -1, dtype=torch.int32)
    rows[cells] = torch.arange(len(cells), dtype=torch.int32)
    return rows.view(shape), cells.int()


def variation(grid: Tensor, there: Tensor) -> Tensor:
    """A sixth of Huber's function of all pairs of neighbours that are there, as it is written."""
    total = grid.new_zeros(())
    for axis, size in enumerate(grid.shape[:3]):
        lower, upper = grid.narrow(axis, 0, max(0, size - 1)), grid.narrow(axis, min(1, size), max(0, size - 1))
        both = there.narrow(axis, 0, max(0, size - 1)) & there.narrow(axis, min(1, size), max(0, size - 1))
        total = total + huber_loss(lower[both], upper[both], reduction="sum") / 6
    return total


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("touched_only", [False, True])
def test_dense_is_the_gradient_of_hubers_function(
    shape: tuple[int, int, int], dtype: torch.dtype, touched_only: bool
) -> None:
    values, grad = drawn(*shape, dtype=dtype), some_touched(*shape, dtype=dtype)
    leaf = values.double().requires_grad_()
    loss = 0.7 * variation(leaf[..., None], torch.ones(shape, dtype=torch.bool))
    (added,) = torch.autograd.grad(loss, leaf) if leaf.numel() else (torch.zeros(shape),)
    wanted = grad.double() + (torch.where(grad != 0, added, 0.0) if touched_only else added)
    twin = grad.clone()
    add_total_variation(grad, values, weight=0.7, touched_only=touched_only)
    total_variation_reference(twin, values, weight=0.7, touched_only=touched_only)
    for got in (grad, twin):
        torch.testing.assert_close(got.double(), wanted, rtol=0, atol=1e-6 if dtype == torch.float32 else 1e-14)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("width", [1, 3, 12])
@pytest.mark.parametrize("touched_only", [False, True])
def test_rows_are_the_gradient_of_hubers_function(
    shape: tuple[int, int, int], width: int, dtype: torch.dtype, touched_only: bool
) -> None:
    rows, cells = stored(shape)
    values, grad = drawn(len(cells), width, dtype=dtype), some_touched(len(cells), width, dtype=dtype)
    leaf = values.double().requires_grad_()
    there = rows >= 0
    grid = torch.zeros(*shape, width, dtype=torch.float64).index_put((there,), leaf[rows[there].long()])
    (added,) = torch.autograd.grad(0.7 * variation(grid, there), leaf, allow_unused=True)
    added = torch.zeros_like(leaf) if added is None else added
    wanted = grad.double() + (torch.where(grad != 0, added, 0.0) if touched_only else added)
    twin = grad.clone()
    options: dict[str, Any] = {"rows": rows, "cells": cells, "touched_only": touched_only}
    add_total_variation(grad, values, weight=0.7, **options)
    total_variation_reference(twin, values, weight=0.7, **options)
    for got in (grad, twin):
        torch.testing.assert_close(got.double(), wanted, rtol=0, atol=1e-6 if dtype == torch.float32 else 1e-14)


def test_rows_of_a_full_grid_are_the_dense_grid() -> None:
    shape = (4, 5, 6)
    values, grad = drawn(*shape), some_touched(*shape)
    cells = torch.arange(120, dtype=torch.int32)
    table, table_grad = values.view(120, 1).clone(), grad.view(120, 1).clone()
    add_total_variation(grad, values, weight=1.0, touched_only=True)
    add_total_variation(table_grad, table, weight=1.0, rows=cells.view(shape), cells=cells, touched_only=True)
    torch.testing.assert_close(table_grad.view(shape), grad, rtol=0, atol=1e-15)


def test_what_is_flat_feels_nothing_and_no_neighbour_pulls_more_than_a_sixth() -> None:
    grad = torch.zeros(5, 5, 5)
    add_total_variation(grad, torch.full((5, 5, 5), 3.0), weight=1.0, touched_only=False)
    assert not grad.any()
    values = torch.zeros(5, 5, 5)
    values[2, 2, 2] = -100.0
    add_total_variation(grad, values, weight=1.0, touched_only=False)
    assert float(grad[2, 2, 2]) == pytest.approx(-1)
    assert float(grad[1, 2, 2]) == pytest.approx(1 / 6)
    assert int((grad != 0).sum()) == 7
    assert float(grad.sum()) == pytest.approx(0, abs=1e-6)


def test_channels_are_touched_by_themselves() -> None:
    cells = torch.arange(2, dtype=torch.int32)
    values, grad = torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.5, 0.0], [0.0, 0.5]])
    add_total_variation(grad, values, weight=6.0, rows=cells.view(1, 1, 2), cells=cells, touched_only=True)
    assert torch.equal(grad, torch.tensor([[-0.5, 0.0], [0.0, 1.5]]))


def test_a_nan_reaches_its_neighbours_only() -> None:
    values, grad, clean = drawn(5, 5, 70), torch.zeros(5, 5, 70).double(), torch.zeros(5, 5, 70).double()
    add_total_variation(clean, values, weight=1.0, touched_only=False)
    values[2, 2, 64] = math.nan
    add_total_variation(grad, values, weight=1.0, touched_only=False)
    assert int(grad.isnan().sum()) == 7
    assert torch.equal(grad[~grad.isnan()], clean[~grad.isnan()])


@needs_kernels
@pytest.mark.parametrize("touched_only", [False, True])
def test_threads_change_no_bit(touched_only: bool) -> None:
    shape = (40, 30, 70)
    rows, cells = stored(shape)
    results, before = [], native.cpu().threads()
    try:
        for threads in (1, 2, 5):
            native.set_threads(threads)
            dense = some_touched(*shape, dtype=torch.float32)
            add_total_variation(dense, drawn(*shape, dtype=torch.float32), weight=0.1, touched_only=touched_only)
            table = some_touched(len(cells), 3, dtype=torch.float32)
            values = drawn(len(cells), 3, dtype=torch.float32)
            add_total_variation(table, values, weight=0.1, rows=rows, cells=cells, touched_only=touched_only)
            results.append((dense, table))
    finally:
        native.set_threads(before)
    for result in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(results[0], result, strict=True))


TABLE: dict[str, Any] = {
    "values": torch.zeros(2, 4),
    "grad": torch.zeros(2, 4),
    "rows": torch.tensor([[[0, -1, 1]]], dtype=torch.int32),
    "cells": torch.tensor([0, 2], dtype=torch.int32),
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": torch.zeros(2, 4, 1)}, r"values must be float \[F, C\]"),
        ({"rows": None, "cells": None}, r"values must be float \[X, Y, Z\]"),
        ({"values": torch.zeros(2, 4, dtype=torch.int32)}, "values must be float"),
        ({"grad": torch.zeros(2, 3)}, "grad must be"),
        ({"grad": torch.zeros(2, 4).double()}, "grad must be"),
        ({"grad": torch.zeros(4, 2).T}, "contiguous"),
        ({"cells": None}, "come together"),
        ({"rows": torch.zeros(1, 3, dtype=torch.int32)}, "rows must be"),
        ({"rows": torch.zeros(1, 1, 3)}, "rows must be"),
        ({"cells": torch.zeros(3, dtype=torch.int32)}, "cells must be"),
        ({"cells": torch.zeros(2)}, "cells must be"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        add_total_variation(**TABLE | change, weight=1.0, touched_only=False)


@needs_kernels
@pytest.mark.parametrize("cells", [[0, 3], [-1, 2]])
def test_cells_outside_the_grid_are_refused(cells: list[int]) -> None:
    with pytest.raises(ValueError, match="cells must lie within"):
        add_total_variation(**TABLE | {"cells": torch.tensor(cells, dtype=torch.int32)}, weight=1.0, touched_only=False)
