"""The hash grid on the GPU's path, on the host shim: against twin and CPU kernel, and the same bits in any order."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor

from scene.ops import native
from scene.ops.hash_encoding import HashLevels, hash_encode, hash_encode_reference
from tests.scene.density_grids import drawn

HostGpu = Callable[..., AbstractContextManager[None]]
needs_kernels = pytest.mark.skipif(not native.has(torch.device("cpu")), reason="the CPU module is the oracle")
EACH = [1, 2, 4, 8]


def a_problem(features: int, count: int = 120) -> tuple[HashLevels, Tensor, Tensor, Tensor]:
    """Two dense levels and two hashed ones, a table, places in and around the cube, and the gradient by the result."""
    levels = HashLevels(levels=4, features=features, log2_rows=8, base=4, growth=1.7)
    table, points = drawn(levels.rows, features, seed=1) - 0.5, 1.2 * drawn(count, 3, seed=2) - 0.1
    return levels, table.float(), points.float(), (drawn(count, levels.width, seed=3) - 0.5).float()


def all_ways(
    levels: HashLevels, table: Tensor, points: Tensor, v_out: Tensor, call: Callable[..., Tensor] = hash_encode
) -> tuple[Tensor, Tensor, Tensor]:
    """The features, and the gradients by table and points."""
    leaves = table.detach().requires_grad_(), points.detach().requires_grad_()
    out = call(leaves[0], levels, leaves[1])
    v_table, v_points = torch.autograd.grad(out, leaves, v_out)
    return out.detach(), v_table, v_points


@needs_kernels
@pytest.mark.parametrize("features", EACH)
def test_agrees_with_the_cpu(features: int, host_gpu: HostGpu) -> None:
    problem = a_problem(features)
    wanted = all_ways(*problem)
    with host_gpu(guard=True):
        got = all_ways(*problem)
    torch.testing.assert_close(got[0], wanted[0], rtol=1e-6, atol=2e-7)
    torch.testing.assert_close(got[1], wanted[1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got[2], wanted[2], rtol=1e-5, atol=2e-5)  # slopes of up to 20 cells, 4 levels


@pytest.mark.parametrize("features", EACH)
def test_agrees_with_the_twin_in_double(features: int, host_gpu: HostGpu) -> None:
    levels, table, points, v_out = a_problem(features)
    with host_gpu():
        got = all_ways(levels, table, points, v_out)
    wanted = all_ways(levels, table.double(), points.double(), v_out.double(), hash_encode_reference)
    for a, b, worst in zip(got, wanted, (1e-6, 2e-6, 3e-5), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=0, atol=worst)


def test_the_order_in_which_threads_run_changes_no_bit(host_gpu: HostGpu) -> None:
    problem, results = a_problem(2, 700), []
    for settings in ({"schedule": "forward"}, {"schedule": "reverse"}, {"schedule": "random", "seed": 5}):
        with host_gpu(**settings):
            results.append(all_ways(*problem))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1.0, 1e20, 1e36])
def test_sums_have_room_at_any_scale(scale: float, host_gpu: HostGpu) -> None:
    """All places in one cell, gradients of one sign: the largest sums there can be."""
    levels, table, points, v_out = a_problem(2, 300)
    points[:] = torch.tensor([0.01, 0.02, 0.03])
    v_out = (v_out.abs() + 0.5) * scale
    with host_gpu():
        got = all_ways(levels, table, points, v_out)[1]
    wanted = all_ways(levels, table.double(), points.double(), v_out.double(), hash_encode_reference)[1]
    torch.testing.assert_close(got.double(), wanted, rtol=2e-6, atol=scale * 1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_no_number_shows(bad: float, host_gpu: HostGpu) -> None:
    levels, table, points, v_out = a_problem(2)
    v_out[7, 3] = bad
    with host_gpu():
        assert bool(all_ways(levels, table, points, v_out)[1].isnan().all())


def test_gradients_of_zeros_are_zeros(host_gpu: HostGpu) -> None:
    levels, table, points, v_out = a_problem(2)
    with host_gpu():
        assert not all_ways(levels, table, points, torch.zeros_like(v_out))[1].any()


def test_memory_that_is_not_aligned_gives_the_same(host_gpu: HostGpu) -> None:
    """Four numbers are read at once only where they may be."""
    levels, table, points, v_out = a_problem(8)

    def moved(values: Tensor) -> Tensor:
        room = torch.empty(values.numel() + 1)
        room[1:] = values.flatten()
        return room[1:].view(values.shape)

    with host_gpu():
        wanted = all_ways(levels, table, points, v_out)
        got = all_ways(levels, moved(table), moved(points), moved(v_out))
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


def test_no_places(host_gpu: HostGpu) -> None:
    levels, table, points, v_out = a_problem(2)
    with host_gpu():
        out, v_table, v_points = all_ways(levels, table, points[:0], v_out[:0])
    assert tuple(out.shape) == (0, levels.width) and not v_table.any() and tuple(v_points.shape) == (0, 3)


@needs_kernels
def test_places_of_no_numbers_count_as_some_place_of_the_cube(host_gpu: HostGpu) -> None:
    levels, table, points, v_out = a_problem(2, 49)
    odd = [math.nan, math.inf, -math.inf, 3e38, -3e38, 4e9, -4e9]
    points[:, :2] = torch.tensor([[a, b] for a in odd for b in odd])
    wanted = all_ways(levels, table, points, v_out)
    with host_gpu(guard=True):
        got = all_ways(levels, table, points, v_out)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
