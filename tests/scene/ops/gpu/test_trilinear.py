"""Rows of a table on the GPU's path, on the host shim: against the CPU kernel, and the same bits in any order."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor

from scene.ops import native
from scene.ops.trilinear import trilinear, trilinear_backward, trilinear_reference
from tests.scene.density_grids import drawn

HostGpu = Callable[..., AbstractContextManager[None]]
needs_kernels = pytest.mark.skipif(not native.has(torch.device("cpu")), reason="the CPU module is the oracle")
SHAPES = [(6, 5, 9), (1, 1, 1), (1, 4, 3), (5, 1, 1), (2, 2, 2)]


def a_problem(
    shape: tuple[int, int, int], channels: int, count: int = 120, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Table, rows of some of the voxels, points in and around the grid, and the gradient by the result."""
    stored = drawn(*shape, seed=seed) < 0.6
    stored[0, 0, 0] = True
    rows, kept = torch.full(shape, -1, dtype=torch.int32), int(stored.sum())
    rows[stored] = torch.randperm(kept, generator=torch.Generator().manual_seed(seed)).int()
    points = drawn(count, 3, seed=seed + 1) * (torch.tensor(shape) + 1) - 1
    table, v_out = drawn(kept, channels, seed=seed + 2) - 0.5, drawn(count, channels, seed=seed + 3) - 0.5
    return table.float(), rows, points.float(), v_out.float()


def both_ways(table: Tensor, rows: Tensor, points: Tensor, v_out: Tensor) -> tuple[Tensor, Tensor]:
    """The rows at points, and the gradient by the table, added to what is there."""
    v_table = torch.full_like(table, 0.25)
    trilinear_backward(v_out, rows, points, v_table)
    return trilinear(table, rows, points), v_table


@needs_kernels
@pytest.mark.parametrize("channels", [1, 3, 4, 5, 9, 12, 27, 48, 256])
@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_the_cpu(channels: int, shape: tuple[int, int, int], host_gpu: HostGpu) -> None:
    problem = a_problem(shape, channels, count=40 if channels > 30 else 120)
    wanted = both_ways(*problem)
    with host_gpu():
        got = both_ways(*problem)
    torch.testing.assert_close(got[0], wanted[0], rtol=1e-6, atol=2e-7)
    torch.testing.assert_close(got[1], wanted[1], rtol=1e-5, atol=1e-5)  # sums of up to 120 numbers, in other orders


@pytest.mark.parametrize("channels", [3, 12])
def test_agrees_with_the_twin_in_double(channels: int, host_gpu: HostGpu) -> None:
    table, rows, points, v_out = a_problem((6, 5, 9), channels)
    with host_gpu():
        out, v_table = both_ways(table, rows, points, v_out)
    exact = table.double().requires_grad_()
    wanted = trilinear_reference(exact, rows, points.double())
    (v_wanted,) = torch.autograd.grad(wanted, exact, v_out.double())
    torch.testing.assert_close(out.double(), wanted.detach(), rtol=0, atol=1e-6)
    torch.testing.assert_close(v_table.double() - 0.25, v_wanted, rtol=0, atol=2e-6)


@pytest.mark.parametrize("channels", [3, 12])
def test_the_order_in_which_threads_run_changes_no_bit(channels: int, host_gpu: HostGpu) -> None:
    problem, results = a_problem((3, 4, 3), channels, 300), []
    for settings in ({"schedule": "forward"}, {"schedule": "reverse"}, {"schedule": "random", "seed": 5}):
        with host_gpu(**settings):
            results.append(both_ways(*problem))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("count", [31, 32, 33, 64, 65, 1000])
@pytest.mark.parametrize("channels", [1, 8])
def test_very_many_samples_in_one_cell(count: int, channels: int, host_gpu: HostGpu) -> None:
    """The sum of a cell is made of those of pieces of 32 samples, wherever its samples begin in the sorted list."""
    *_, points, v_out = a_problem((2, 2, 4), channels, count)
    rows = torch.arange(16, dtype=torch.int32).view(2, 2, 4)
    points[:, 2] = 1.5
    points[:7, 2] = 0.5  # so that the many begin within a piece
    v_table = torch.zeros(16, channels)
    with host_gpu():
        trilinear_backward(v_out, rows, points, v_table)
    exact = torch.zeros(16, channels, dtype=torch.float64, requires_grad=True)
    (wanted,) = torch.autograd.grad(trilinear_reference(exact, rows, points.double()), exact, v_out.double())
    torch.testing.assert_close(v_table.double(), wanted, rtol=1e-5, atol=1e-5)


@needs_kernels
def test_memory_that_is_not_aligned_gives_the_same(host_gpu: HostGpu) -> None:
    """Four numbers are read at once only where they may be."""
    table, rows, points, v_out = a_problem((6, 5, 9), 12)

    def moved(values: Tensor) -> Tensor:
        room = torch.empty(values.numel() + 1)
        room[1:] = values.flatten()
        return room[1:].view(values.shape)

    with host_gpu():
        wanted, got = both_ways(table, rows, points, v_out), both_ways(moved(table), rows, points, moved(v_out))
        v_table = moved(torch.full_like(table, 0.25))
        trilinear_backward(v_out, rows, points, v_table)
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
    assert torch.equal(v_table, wanted[1])


@pytest.mark.parametrize("channels", [3, 12])
def test_no_points(channels: int, host_gpu: HostGpu) -> None:
    table, rows, points, v_out = a_problem((6, 5, 9), channels)
    with host_gpu():
        out, v_table = both_ways(table, rows, points[:0], v_out[:0])
    assert tuple(out.shape) == (0, channels) and bool((v_table == 0.25).all())


@needs_kernels
def test_places_of_no_numbers_count_as_some_place_of_the_grid(host_gpu: HostGpu) -> None:
    table, rows, points, v_out = a_problem((6, 5, 9), 12, 49)
    odd = [math.nan, math.inf, -math.inf, 3e38, -3e38, 4e9, -4e9]
    points[:, :2] = torch.tensor([[a, b] for a in odd for b in odd])
    wanted = both_ways(table, rows, points, v_out)
    with host_gpu(guard=True):
        got = both_ways(table, rows, points, v_out)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_autograd_takes_the_same_way(host_gpu: HostGpu) -> None:
    table, rows, points, v_out = a_problem((6, 5, 9), 12)
    with host_gpu():
        out, v_table = both_ways(table, rows, points, v_out)
        leaf = table.requires_grad_()
        again = trilinear(leaf, rows, points)
        (grad,) = torch.autograd.grad(again, leaf, v_out)
    assert torch.equal(again, out)
    torch.testing.assert_close(grad, v_table - 0.25, rtol=0, atol=1e-6)


@needs_kernels
def test_a_large_grid_is_sorted_by_all_bits_of_its_cells(host_gpu: HostGpu) -> None:
    """Cells that differ in the highest bits of their place."""
    shape = (130, 3, 140)
    rows = torch.arange(shape[0] * shape[1] * shape[2], dtype=torch.int32).view(shape)
    points = drawn(200, 3, seed=1, dtype=torch.float32) * torch.tensor([129.0, 2.0, 139.0])
    table, v_out = drawn(rows.numel(), 4, seed=2, dtype=torch.float32), drawn(200, 4, seed=3, dtype=torch.float32)
    wanted = both_ways(table, rows, points, v_out)
    with host_gpu():
        got = both_ways(table, rows, points, v_out)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
