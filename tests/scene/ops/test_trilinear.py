"""Interpolated rows of a table: closed forms, the twin, finite differences, and what must not crash."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from scene.ops import native
from scene.ops.trilinear import trilinear, trilinear_backward, trilinear_reference
from tests.scene.density_grids import drawn

CPU = torch.device("cpu")
needs_kernels = pytest.mark.skipif(not native.has(CPU), reason="needs the compiled CPU module")
SHAPES = [(6, 5, 9), (1, 1, 1), (1, 4, 3), (5, 1, 1), (2, 2, 2)]
DTYPES = [torch.float32, torch.float64]


def all_rows(shape: tuple[int, int, int]) -> Tensor:
    """Every voxel stored, in order."""
    return torch.arange(math.prod(shape), dtype=torch.int32).view(shape)


def some_rows(shape: tuple[int, int, int], share: float = 0.6, seed: int = 0) -> tuple[Tensor, int]:
    """Part of the voxels stored, in a shuffled order; and how many."""
    stored = drawn(*shape, seed=seed) < share
    stored[0, 0, 0] = True
    rows, count = torch.full(shape, -1, dtype=torch.int32), int(stored.sum())
    rows[stored] = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).int()
    return rows, count


def places(shape: tuple[int, int, int], count: int, dtype: torch.dtype, *, margin: float = 1.5) -> Tensor:
    """Places in the grid and `margin` voxels around it."""
    size = torch.tensor(shape, dtype=torch.float64) - 1
    return (drawn(count, 3, seed=7) * (size + 2 * margin) - margin).to(dtype)


@pytest.mark.parametrize("channels", [1, 3, 5, 9, 12, 27, 48, 256])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_twin_agrees(channels: int, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    rows, count = some_rows(shape)
    points, found = places(shape, 200, dtype), []
    for call in (trilinear, trilinear_reference):
        table = (drawn(count, channels, seed=1) - 0.5).to(dtype).requires_grad_()
        out = call(table, rows, points)
        (grad,) = torch.autograd.grad((out * (drawn(200, channels, seed=2) - 0.5).to(dtype)).sum(), table)
        found.append((out.detach(), grad))
    rtol, atol = (1e-5, 2e-6) if dtype == torch.float32 else (1e-12, 1e-13)
    for got, wanted in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted, rtol=rtol, atol=atol)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_linear_field_is_exact_between_voxels_and_flat_beyond_them(dtype: torch.dtype) -> None:
    shape, points = (6, 5, 9), places((6, 5, 9), 400, dtype)
    axes = torch.meshgrid(*[torch.arange(n, dtype=torch.float64) for n in shape], indexing="ij")
    slopes = drawn(3, 12, seed=3) - 0.5
    table = (torch.stack(axes, -1).reshape(-1, 3) @ slopes + 0.25).to(dtype)
    inside = points.double().clamp(min=0).minimum(torch.tensor(shape) - 1)
    wanted = inside @ slopes + 0.25
    got = trilinear(table, all_rows(shape), points).double()
    assert float((got - wanted).abs().max()) < (1e-12 if dtype == torch.float64 else 4e-6)  # values up to 8


@pytest.mark.parametrize("finer", [(11, 9, 17), (9, 13, 12)])
def test_a_linear_field_on_a_finer_grid_is_exact(finer: tuple[int, int, int]) -> None:
    """T5: what up-scaling a grid does, corner on corner."""
    coarse = (6, 5, 9)
    field = [torch.linspace(-1, 1, n, dtype=torch.float64) for n in coarse]
    x, y, z = torch.meshgrid(*field, indexing="ij")
    table = torch.stack([x - 2 * y + 0.5 * z + 3, -x + 0.1 * z], -1).view(-1, 2)
    fine = torch.meshgrid(*[torch.linspace(-1, 1, n, dtype=torch.float64) for n in finer], indexing="ij")
    points = torch.stack([(axis + 1) / 2 * (n - 1) for axis, n in zip(fine, coarse, strict=True)], -1).view(-1, 3)
    x, y, z = fine
    wanted = torch.stack([x - 2 * y + 0.5 * z + 3, -x + 0.1 * z], -1).view(-1, 2)
    assert float((trilinear(table, all_rows(coarse), points) - wanted).abs().max()) < 1e-12
    single = trilinear(table.float(), all_rows(coarse), points.float())
    assert float((single.double() - wanted).abs().max()) < 1e-6


def test_voxel_centres_give_the_stored_rows_and_zeros_elsewhere() -> None:
    shape = (6, 5, 9)
    rows, count = some_rows(shape)
    table = drawn(count, 12, seed=4) + 1
    points = torch.cartesian_prod(*[torch.arange(n, dtype=torch.float64) for n in shape])
    got = trilinear(table, rows, points)
    flat = rows.view(-1).long()
    assert torch.equal(got[flat >= 0], table[flat[flat >= 0]])
    assert not got[flat < 0].any() and bool((flat < 0).any())


def test_missing_rows_count_as_zeros() -> None:
    shape = (6, 5, 9)
    rows, count = some_rows(shape)
    table = drawn(count, 7, seed=5)
    whole = torch.zeros(math.prod(shape), 7, dtype=torch.float64)
    stored = (rows.view(-1) >= 0).nonzero()[:, 0]
    whole[stored] = table[rows.view(-1)[stored].long()]
    points = places(shape, 300, torch.float64)
    torch.testing.assert_close(trilinear(table, rows, points), trilinear(whole, all_rows(shape), points))


@pytest.mark.parametrize("channels", [1, 12])
def test_gradient_is_that_of_finite_differences(channels: int) -> None:
    shape = (3, 4, 2)
    rows, count = some_rows(shape)
    points = places(shape, 15, torch.float64)
    table = drawn(count, channels, seed=6).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: trilinear(t, rows, points), table)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [3, 12, 30])
def test_backward_without_autograd_adds_the_same_gradient(dtype: torch.dtype, channels: int) -> None:
    shape = (6, 5, 9)
    rows, count = some_rows(shape)
    points, v_out = places(shape, 200, dtype), drawn(200, channels, seed=8, dtype=dtype)
    table = torch.zeros(count, channels, dtype=dtype, requires_grad=True)
    (wanted,) = torch.autograd.grad(trilinear(table, rows, points), table, v_out)
    got = torch.full_like(wanted, 2.0)
    trilinear_backward(v_out, rows, points, got)
    torch.testing.assert_close(got, wanted + 2)


def test_shares_of_a_sample_sum_to_one() -> None:
    """The gradient of one sample is spread over its corners and none of it is lost."""
    shape = (6, 5, 9)
    v_table, points = torch.zeros(math.prod(shape), 3, dtype=torch.float64), places(shape, 100, torch.float64)
    v_out = drawn(100, 3, seed=9)
    trilinear_backward(v_out, all_rows(shape), points, v_table)
    torch.testing.assert_close(v_table.sum(0), v_out.sum(0))


@needs_kernels
@pytest.mark.parametrize("channels", [12, 30])
def test_threads_change_no_bit(channels: int) -> None:
    shape = (24, 20, 30)
    rows, count = some_rows(shape)
    points, v_out = places(shape, 30_000, torch.float32), drawn(30_000, channels, seed=8, dtype=torch.float32)
    table, results = drawn(count, channels, seed=1, dtype=torch.float32), []
    before = native.cpu().threads()
    try:
        for threads in (1, 2, 5):
            native.set_threads(threads)
            v_table = torch.zeros_like(table)
            trilinear_backward(v_out, rows, points, v_table)
            results.append((trilinear(table, rows, points), v_table))
    finally:
        native.set_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_the_order_of_points_is_the_order_of_results() -> None:
    shape = (6, 5, 9)
    rows, count = some_rows(shape)
    points, table = places(shape, 300, torch.float64), drawn(count, 12, seed=1)
    shuffled = torch.randperm(300, generator=torch.Generator().manual_seed(1))
    assert torch.equal(trilinear(table, rows, points[shuffled]), trilinear(table, rows, points)[shuffled])
    v_out, grads = drawn(300, 12, seed=2), [torch.zeros_like(table), torch.zeros_like(table)]
    trilinear_backward(v_out, rows, points, grads[0])
    trilinear_backward(v_out[shuffled], rows, points[shuffled], grads[1])
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_points(dtype: torch.dtype) -> None:
    table, points = torch.ones(1, 12, dtype=dtype, requires_grad=True), torch.zeros(0, 3, dtype=dtype)
    out = trilinear(table, all_rows((1, 1, 1)), points)
    assert tuple(out.shape) == (0, 12)
    (grad,) = torch.autograd.grad(out.sum(), table)
    assert not grad.any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_places_of_no_numbers_count_as_some_place_of_the_grid(dtype: torch.dtype) -> None:
    """NaN as the first voxel, what is far away as the nearest face; nothing is read or written elsewhere."""
    shape = (6, 5, 9)
    rows, count = some_rows(shape, share=2.0)
    table = drawn(count, 12, seed=1, dtype=dtype)
    odd = [math.nan, math.inf, -math.inf, 3e38, -3e38, 4e9, -4e9]
    points = torch.tensor([[a, b, 1.5] for a in odd for b in odd], dtype=dtype)
    out = trilinear(table, rows, points)
    torch.testing.assert_close(out, trilinear_reference(table, rows, points))
    assert bool(torch.isfinite(out).all())
    v_table = torch.zeros_like(table)
    trilinear_backward(torch.ones_like(out), rows, points, v_table)
    assert float(v_table.sum()) == pytest.approx(out.numel(), rel=1e-6)


def test_points_and_tables_that_are_not_contiguous() -> None:
    shape = (6, 5, 9)
    rows, count = some_rows(shape)
    table, points = drawn(12, count, seed=1).t(), places(shape, 50, torch.float64).t().contiguous().t()
    assert not table.is_contiguous() and not points.is_contiguous()
    wanted = trilinear(table.contiguous(), rows, points.contiguous())
    assert torch.equal(trilinear(table, rows, points), wanted)
    turned = rows.transpose(0, 2).contiguous().transpose(0, 2)
    assert torch.equal(trilinear(table, turned, points), wanted)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"table": torch.zeros(8)}, "table must be"),
        ({"table": torch.zeros(8, 257)}, "table must be"),
        ({"table": torch.zeros(0, 3)}, "table must be"),
        ({"rows": torch.zeros(2, 2, 2, dtype=torch.int64)}, "rows must be"),
        ({"rows": torch.zeros(2, 2, 0, dtype=torch.int32)}, "rows must be"),
        ({"points": torch.zeros(4, 2)}, "points must be"),
        ({"points": torch.zeros(4, 3, dtype=torch.float64)}, "points must be"),
        ({"table": torch.zeros(8, 3, device="meta")}, "lie on"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(change: dict[str, Tensor], message: str) -> None:
    arguments = {"table": torch.zeros(8, 3), "rows": all_rows((2, 2, 2)), "points": torch.zeros(4, 3)} | change
    with pytest.raises(ValueError, match=message):
        trilinear(**arguments)
