"""Rays and primitives: numbers by hand, spheres marched along the exact distance, and what lies between two hits."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from generation.ray_hits import SPANS, first_hit
from generation.shapes import Kind
from tests.generation.single_shapes import SIZES, points, single

KINDS = pytest.mark.parametrize("kind", list(Kind), ids=lambda kind: kind.name.lower())


def rays(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """From a shell around the primitive to places near it; directions of any length."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator, dtype=torch.float64), dim=1) * 2
    aim = points(count, seed + 1, 0.5)
    return start, (aim - start) * (0.3 + torch.rand(count, 1, generator=generator, dtype=torch.float64))


@pytest.mark.parametrize(
    ("kind", "size", "origin", "direction", "wanted"),
    [
        (Kind.ELLIPSOID, (0.5, 0.5, 0.5), (2, 0, 0), (-1, 0, 0), (1.5, 2.5)),
        (Kind.ELLIPSOID, (0.5, 0.2, 0.3), (0, 0, 2), (0, 0, -2), (0.85, 1.15)),
        (Kind.BOX, (0.5, 0.2, 0.3), (2, 0.1, 0.1), (-1, 0, 0), (1.5, 2.5)),
        (Kind.BOX, (1.0, 1.0, 1.0), (3, 2, 0), (-1, -1, 0), (2.0, 3.0)),
        (Kind.CYLINDER, (0.3, 0.3, 0.5), (1, 0, 0), (-1, 0, 0), (0.7, 1.3)),
        (Kind.CYLINDER, (0.3, 0.3, 0.5), (0, 0.1, 2), (0, 0, -1), (1.5, 2.5)),
        (Kind.CYLINDER, (1.0, 1.0, 0.5), (2, 0, 2), (-1, 0, -1), (1.5, 2.5)),
        (Kind.CONE, (0.4, 0.0, 0.2), (1, 0, 0), (-1, 0, 0), (0.8, 1.2)),
        (Kind.CONE, (0.4, 0.2, 0.2), (0, 0, 1), (0, 0, -1), (0.8, 1.2)),
        (Kind.CONE, (0.4, 0.2, 0.2), (0.3, 0, 1), (0, 0, -1), (1.0, 1.2)),
        (Kind.CAPSULE, (0.2, 0.2, 0.5), (1, 0, 0.5), (-1, 0, 0), (0.8, 1.2)),
        (Kind.CAPSULE, (0.2, 0.2, 0.5), (0, 0, 2), (0, 0, -1), (1.3, 2.7)),
    ],
)
def test_spans_by_hand(
    kind: Kind,
    size: tuple[float, float, float],
    origin: tuple[float, float, float],
    direction: tuple[float, float, float],
    wanted: tuple[float, float],
) -> None:
    o, d, s = (torch.tensor([values], dtype=torch.float64) for values in (origin, direction, size))
    found = SPANS[kind](o, d, s)
    assert [float(t) for t in found] == pytest.approx(list(wanted), abs=1e-9)
    assert float(first_hit(kind, o + (wanted[1] + 1e-6) * d, d, s)) == math.inf
    middle = o + 0.5 * sum(wanted) * d
    assert float(first_hit(kind, middle, d, s)) == pytest.approx(0.5 * (wanted[1] - wanted[0]))  # from inside: the exit


@KINDS
def test_hits_are_where_marching_along_the_exact_distance_ends(kind: Kind) -> None:
    model, (origins, directions) = single(kind), rays(800)
    found = first_hit(kind, origins, directions, model.size.expand(800, 3))
    unit = directions / directions.norm(dim=1, keepdim=True)
    t = torch.zeros(800, dtype=torch.float64)
    for _ in range(200):
        t = t + model.distance(origins + t[:, None] * unit).clamp(min=0)
    met = model.distance(origins + t[:, None] * unit) < 1e-5
    clear = model.distance(origins + t.clamp(max=4)[:, None] * unit) > 1e-3
    hit = found.isfinite()
    assert 0.2 < float(hit.double().mean()) < 0.98
    assert bool(hit[met].all()) or float((met & ~hit).double().mean()) < 0.002  # marching also stops beside a graze
    assert not bool((hit & clear).any())
    both = hit & met
    torch.testing.assert_close((found * directions.norm(dim=1))[both], t[both], atol=2e-3, rtol=0)


@KINDS
def test_inside_is_just_what_lies_between_two_hits(kind: Kind) -> None:
    model, (origins, directions) = single(kind), rays(1500, seed=8)
    low, high = SPANS[kind](origins, directions, model.size.expand(1500, 3))
    hit = low < high - 1e-6
    for share, wanted in ((-0.01, False), (0.01, True), (0.5, True), (0.99, True), (1.01, False)):
        t = low[hit] + share * (high - low)[hit]
        assert bool((model.inside(origins[hit] + t[:, None] * directions[hit]) == wanted).all())
    t = torch.linspace(0, 4, 400, dtype=torch.float64)
    missed = origins[~hit, None] + t[:, None] * directions[~hit, None]
    assert not bool(model.inside(missed.reshape(-1, 3)).any())


@KINDS
def test_single_precision_is_enough_from_where_cameras_stand(kind: Kind) -> None:
    origins, directions = rays(3000, seed=20)
    size = torch.tensor([SIZES[kind]], dtype=torch.float64).expand(3000, 3)
    exact = first_hit(kind, origins, directions, size)
    single_precision = first_hit(kind, origins.float(), directions.float(), size.float()).double()
    both = exact.isfinite() & single_precision.isfinite()
    assert float((exact.isfinite() != single_precision.isfinite()).double().mean()) < 0.002  # rays that graze
    error = (exact - single_precision)[both].abs()
    assert float(error.median()) < 1e-6 and float(error.quantile(0.99)) < 1e-4


@KINDS
def test_what_lies_behind_or_aside_is_not_hit(kind: Kind) -> None:
    size = torch.tensor([SIZES[kind]], dtype=torch.float64)
    origin = torch.tensor([[2.0, 0.01, 0.02]], dtype=torch.float64)
    for direction in ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.0, 0.0, -1.0)):
        toward = torch.tensor([direction], dtype=torch.float64)
        assert float(first_hit(kind, origin, toward, size)) == math.inf
