"""Features of places in a hash grid: the paper's equations as a loop, the twin, finite differences, closed forms."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from scene.ops import native
from scene.ops.hash_encoding import HashLevels, hash_encode, hash_encode_reference
from tests.scene.density_grids import drawn

CPU = torch.device("cpu")
needs_kernels = pytest.mark.skipif(not native.has(CPU), reason="needs the compiled CPU module")
DTYPES = [torch.float32, torch.float64]
SMALL = HashLevels(levels=4, features=2, log2_rows=8, base=4, growth=1.7)  # two dense levels, two hashed ones
SHAPES = [
    SMALL,
    HashLevels(levels=1, features=1, log2_rows=1, base=1, growth=1.0),
    HashLevels(levels=3, features=4, log2_rows=4, base=5, growth=2.3),
    HashLevels(levels=2, features=8, log2_rows=12, base=3, growth=300.0),
    HashLevels(levels=5, features=1, log2_rows=9, base=1, growth=2.0),  # (7 + 1)^3 would fill it; 1, 2, 4, 8, 16
]


def a_table(levels: HashLevels, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    return (drawn(levels.rows, levels.features, seed=seed) - 0.5).to(dtype)


def places(count: int, dtype: torch.dtype = torch.float64, *, margin: float = 0.1, seed: int = 7) -> Tensor:
    """In the unit cube and `margin` around it."""
    return (drawn(count, 3, seed=seed) * (1 + 2 * margin) - margin).to(dtype)


def by_the_equations(table: Tensor, levels: HashLevels, points: Tensor) -> np.ndarray:
    """Instant-NGP, section 3, place by place with 32-bit integers; shares none of the code under test."""
    most, rows, found = np.uint32(2**levels.log2_rows), table.numpy(), []
    for x in points.double().numpy().clip(0, 1):
        features, first = [], 0
        for level in range(levels.levels):
            n = math.floor(levels.base * levels.growth**level)  # eq. 2
            below = np.minimum(np.floor(x * n), n - 1)
            w, total = x * n - below, np.zeros(levels.features)
            for up in product((0, 1), repeat=3):
                vertex = (below + up).astype(np.uint32)
                if (n + 1) ** 3 <= most:
                    row = int(vertex[0]) + (n + 1) * int(vertex[1]) + (n + 1) ** 2 * int(vertex[2])
                else:
                    with np.errstate(over="ignore"):  # eq. 4
                        row = int(
                            (vertex[0] ^ vertex[1] * np.uint32(2654435761) ^ vertex[2] * np.uint32(805459861)) % most
                        )
                share = math.prod(w[i] if up[i] else 1 - w[i] for i in range(3))
                total += share * rows[first + row]
            first += min((n + 1) ** 3, int(most))
            features.append(total)
        found.append(np.concatenate(features))
    return np.stack(found)


@pytest.mark.parametrize("call", [hash_encode, hash_encode_reference])
@pytest.mark.parametrize("levels", SHAPES)
def test_features_are_those_of_the_papers_equations(levels: HashLevels, call) -> None:
    table, points = a_table(levels), places(60)
    np.testing.assert_allclose(call(table, levels, points), by_the_equations(table, levels, points), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("levels", SHAPES)
def test_twin_agrees(levels: HashLevels, dtype: torch.dtype) -> None:
    found = []
    for call in (hash_encode, hash_encode_reference):
        table, points = a_table(levels, dtype).requires_grad_(), places(700, dtype).requires_grad_()
        out = call(table, levels, points)
        v_out = (drawn(*out.shape, seed=2) - 0.5).to(dtype)
        found.append((out.detach(), *torch.autograd.grad(out, (table, points), v_out)))
    rtol, atol = (2e-5, 1e-4) if dtype == torch.float32 else (1e-11, 1e-11)  # slopes are of up to 900 cells
    for got, wanted in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted, rtol=rtol, atol=atol)


@pytest.mark.parametrize("levels", [HashLevels(levels=3, log2_rows=5, base=2, growth=1.6), *SHAPES[1:3]])
def test_gradients_are_those_of_finite_differences(levels: HashLevels) -> None:
    points, table = places(12, margin=-0.1).requires_grad_(), a_table(levels).requires_grad_()
    in_cells = (points.detach()[..., None] * torch.tensor(levels.cells)).frac()
    assert float(in_cells.min()) > 1e-4 and float(in_cells.max()) < 1 - 1e-4  # far from edges, where slopes jump
    assert torch.autograd.gradcheck(lambda t, p: hash_encode(t, levels, p), (table, points))


def test_a_linear_field_is_exact_on_dense_levels_with_its_slope() -> None:
    levels = HashLevels(levels=3, features=2, log2_rows=12, base=3, growth=1.6)
    slopes, parts = (drawn(3, 2, seed=3) - 0.5), []
    for cells in levels.cells:
        axis = torch.arange(cells + 1, dtype=torch.float64) / cells
        z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
        parts.append(torch.stack([x, y, z], -1).view(-1, 3) @ slopes)
    points = places(200).requires_grad_()
    out = hash_encode(torch.cat(parts), levels, points)
    torch.testing.assert_close(out, (points.detach().clamp(0, 1) @ slopes).repeat(1, 3), rtol=0, atol=1e-12)
    (grad,) = torch.autograd.grad(out.sum(), points)
    inside = (points.detach() >= 0) & (points.detach() <= 1)
    torch.testing.assert_close(grad, torch.where(inside, 3 * slopes.sum(1), 0.0), rtol=0, atol=1e-11)


def test_the_papers_table_has_its_size() -> None:
    levels = HashLevels()
    assert levels.cells[:3] == (16, 23, 33) and 4096 <= levels.cells[-1] <= 4098  # growth is rounded
    dense = [n for n in levels.cells if (n + 1) ** 3 <= 2**19]
    assert levels.rows == sum((n + 1) ** 3 for n in dense) + (16 - len(dense)) * 2**19 and levels.width == 32


def test_shares_of_a_place_sum_to_one_at_each_level() -> None:
    table, points = a_table(SMALL).requires_grad_(), places(100)
    v_out = drawn(100, SMALL.width, seed=9)
    (grad,) = torch.autograd.grad(hash_encode(table, SMALL, points), table, v_out)
    for level, (first, end) in enumerate(zip(SMALL.first_rows, SMALL.first_rows[1:])):
        torch.testing.assert_close(grad[first:end].sum(0), v_out[:, 2 * level : 2 * level + 2].sum(0))


@needs_kernels
@pytest.mark.parametrize("features", [2, 4])
def test_threads_change_no_bit(features: int) -> None:
    levels = HashLevels(levels=5, features=features, log2_rows=10, base=4, growth=1.8)
    results, before = [], native.cpu().threads()
    try:
        for threads in (1, 2, 5):
            native.set_threads(threads)
            table = a_table(levels, torch.float32).requires_grad_()
            points = places(20_000, torch.float32).requires_grad_()
            out = hash_encode(table, levels, points)
            v_out = drawn(*out.shape, seed=8, dtype=torch.float32)
            results.append((out.detach(), *torch.autograd.grad(out, (table, points), v_out)))
    finally:
        native.set_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_places(dtype: torch.dtype) -> None:
    table, points = a_table(SMALL, dtype).requires_grad_(), torch.zeros(0, 3, dtype=dtype, requires_grad=True)
    out = hash_encode(table, SMALL, points)
    assert tuple(out.shape) == (0, SMALL.width)
    assert not any(grad.any() for grad in torch.autograd.grad(out.sum(), (table, points)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_places_of_no_numbers_count_as_some_place_of_the_cube(dtype: torch.dtype) -> None:
    odd = [math.nan, math.inf, -math.inf, 3e38, -3e38, 0.5]
    points = torch.tensor([[a, b, 0.3] for a in odd for b in odd], dtype=dtype).requires_grad_()
    table = a_table(SMALL, dtype).requires_grad_()
    out = hash_encode(table, SMALL, points)
    torch.testing.assert_close(out, hash_encode_reference(table, SMALL, points))
    v_table, v_points = torch.autograd.grad(out.sum(), (table, points))
    assert bool(v_table.isfinite().all()) and bool(v_points.isfinite().all())
    assert float(v_table.sum()) == pytest.approx(out.numel(), rel=1e-5)


def test_places_and_tables_that_are_not_contiguous() -> None:
    table, points = a_table(SMALL).t().contiguous().t(), places(50).t().contiguous().t()
    assert not table.is_contiguous() and not points.is_contiguous()
    assert torch.equal(hash_encode(table, SMALL, points), hash_encode(table.contiguous(), SMALL, points.contiguous()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"table": torch.zeros(8, 2)}, "table must be"),
        ({"table": torch.zeros(SMALL.rows, 2, dtype=torch.float16)}, "table must be"),
        ({"points": torch.zeros(4, 2)}, "points must be"),
        ({"points": torch.zeros(4, 3, dtype=torch.float64)}, "points must be"),
        ({"table": torch.zeros(SMALL.rows, 2, device="meta")}, "on one device"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(change: dict[str, Tensor], message: str) -> None:
    arguments = {"table": torch.zeros(SMALL.rows, 2), "points": torch.zeros(4, 3)} | change
    with pytest.raises(ValueError, match=message):
        hash_encode(arguments["table"], SMALL, arguments["points"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"levels": 0}, "1 to 64 levels"),
        ({"features": 3}, "1, 2, 4 or 8 features"),
        ({"log2_rows": 40}, "2\\^28 rows"),
        ({"base": 0}, "base and growth"),
        ({"growth": 0.5}, "base and growth"),
        ({"growth": math.nan}, "base and growth"),
        ({"growth": 3.0}, "finest level"),
        ({"levels": 32, "growth": 1.4, "log2_rows": 28}, "the table 2147483647 rows"),
    ],
)
def test_shapes_that_no_table_can_have_are_refused_in_words(change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HashLevels(**change)  # pyright: ignore[reportArgumentType]


@needs_kernels
def test_the_kernel_reads_and_writes_nowhere_else() -> None:
    cells, first_rows = torch.tensor([4], dtype=torch.int32), torch.tensor([0, 100], dtype=torch.int32)
    table, points, out = torch.zeros(100, 2), torch.zeros(3, 3), torch.zeros(3, 2)
    with pytest.raises(ValueError, match="a row for each vertex or a power of two"):
        native.cpu().hash_encode(table, cells, first_rows, points, out)
    with pytest.raises(ValueError, match="all rows of the table"):
        native.cpu().hash_encode(table[:50].contiguous(), cells, first_rows, points, out)
