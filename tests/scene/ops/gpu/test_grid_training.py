"""The GPU's total variation and masked Adam, run by the host shim, against the CPU kernels and the twins."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor

from scene.ops import native
from scene.ops.masked_adam import adam_masked, adam_masked_reference
from scene.ops.total_variation import add_total_variation, total_variation_reference
from tests.scene.ops.test_masked_adam import state
from tests.scene.ops.test_total_variation import drawn, some_touched, stored

HostGpu = Callable[..., AbstractContextManager[None]]
pytestmark = pytest.mark.skipif(not native.has(torch.device("cpu")), reason="the CPU module is the oracle")

GRIDS = [(4, 5, 6), (1, 1, 1), (1, 3, 1), (3, 3, 33), (3, 3, 32), (0, 3, 3), (3, 3, 0), (2, 9, 70)]
NUMBERS = [(0,), (1,), (57,), (1023, 1), (1024,), (1025,), (400, 12), (7, 5, 9, 3), (0, 5)]


@pytest.mark.parametrize("shape", GRIDS)
@pytest.mark.parametrize("touched_only", [False, True])
def test_dense_variation_agrees(shape: tuple[int, int, int], touched_only: bool, host_gpu: HostGpu) -> None:
    values, grad = drawn(*shape, dtype=torch.float32), some_touched(*shape, dtype=torch.float32)
    cpu, twin, options = grad.clone(), grad.clone(), {"weight": 0.7, "touched_only": touched_only}
    with host_gpu(guard=True):
        add_total_variation(grad, values, **options)
    add_total_variation(cpu, values, **options)
    total_variation_reference(twin, values, **options)
    for wanted in (cpu, twin):
        torch.testing.assert_close(grad, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", GRIDS)
@pytest.mark.parametrize("width", [1, 3, 12])
@pytest.mark.parametrize("touched_only", [False, True])
def test_variation_of_rows_agrees(
    shape: tuple[int, int, int], width: int, touched_only: bool, host_gpu: HostGpu
) -> None:
    rows, cells = stored(shape)
    values, grad = (make(len(cells), width, dtype=torch.float32) for make in (drawn, some_touched))
    cpu, twin = grad.clone(), grad.clone()
    options: dict[str, Any] = {"weight": 0.7, "touched_only": touched_only, "rows": rows, "cells": cells}
    with host_gpu(guard=True):
        add_total_variation(grad, values, **options)
    add_total_variation(cpu, values, **options)
    total_variation_reference(twin, values, **options)
    for wanted in (cpu, twin):
        torch.testing.assert_close(grad, wanted, rtol=0, atol=1e-6)


def test_cells_and_rows_that_do_not_exist_are_skipped(host_gpu: HostGpu) -> None:
    # Nobody looks at them, which would wait for the card.
    rows = torch.tensor([[[0, 99, 2, 1]]], dtype=torch.int32)
    cells = torch.tensor([0, 3, 2, -1, 4], dtype=torch.int32)
    values, grad = torch.tensor([[0.0], [0.5], [1.0], [7.0], [9.0]]), torch.zeros(5, 1)
    with host_gpu(guard=True):
        add_total_variation(grad, values, weight=6.0, rows=rows, cells=cells, touched_only=False)
    assert torch.equal(grad, torch.tensor([[0.0], [-0.5], [0.5], [0.0], [0.0]]))


@pytest.mark.parametrize("shape", NUMBERS)
@pytest.mark.parametrize("rated", [None, 0, 1])
@pytest.mark.parametrize("clear", [False, True])
def test_masked_adam_agrees(shape: tuple[int, ...], rated: int | None, clear: bool, host_gpu: HostGpu) -> None:
    rates = None
    if rated is not None:
        generator = torch.Generator().manual_seed(math.prod(shape))
        rates = (torch.rand(shape[: len(shape) - rated], generator=generator) - 0.3).clamp_min(0)
    results: list[list[Tensor]] = []
    for update in (adam_masked, adam_masked, adam_masked_reference):
        ours = state(shape, torch.float32)
        with host_gpu(guard=not results) if not results else torch.no_grad():
            for step in (5, 6):  # the second meets gradients that are clear, or the same ones again
                update(*ours, step=step, lr=0.02, rates=rates, clear=clear)
        results.append(ours)
    for wanted in results[1:]:
        for got, value in zip(results[0], wanted, strict=True):
            # A product and a sum may be rounded once or twice.
            torch.testing.assert_close(got, value, rtol=1e-6, atol=2e-7)
    before = state(shape, torch.float32)
    rests = before[1] == 0
    if rates is not None:
        rests |= (rates == 0).view(*rates.shape, *[1] * (len(shape) - rates.dim()))
    for k in (0, 2, 3):
        assert torch.equal(results[0][k][rests], before[k][rests])


def test_on_the_gpu_a_nan_gradient_is_no_zero(host_gpu: HostGpu) -> None:
    ours = state((600,), torch.float32)
    ours[1][300] = math.nan
    with host_gpu(guard=True):
        adam_masked(*ours, step=2, lr=0.1)
    assert ours[0].isnan().nonzero().tolist() == [[300]]
    assert not ours[1].any()


@pytest.mark.parametrize("schedule", ["reverse", "random"])
def test_the_order_of_threads_changes_no_bit(schedule: str, host_gpu: HostGpu) -> None:
    results = []
    for settings in ({}, {"schedule": schedule, "seed": 5}):
        ours = state((2000, 3), torch.float32)
        rows, cells = stored((4, 5, 6))
        table_grad, grad = torch.zeros(len(cells), 3), some_touched(5, 4, 70, dtype=torch.float32)
        with host_gpu(**settings):
            adam_masked(*ours, step=2, lr=0.1)
            add_total_variation(grad, drawn(5, 4, 70, dtype=torch.float32), weight=0.3, touched_only=True)
            table = drawn(len(cells), 3, dtype=torch.float32)
            add_total_variation(table_grad, table, weight=0.3, rows=rows, cells=cells, touched_only=False)
        results.append((*ours, grad, table_grad))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
