"""Points on surfaces: on them, evenly by area, and none inside of another primitive."""

from __future__ import annotations

import math

import pytest
import torch

from generation.shapes import Kind, union
from generation.surface_points import surface_points
from tests.generation.single_shapes import single

COUNT = 6_000


def drawn(kind: Kind, size: tuple[float, float, float], seed: int = 0) -> torch.Tensor:
    found = surface_points(single(kind, size), COUNT, torch.Generator().manual_seed(seed))
    assert float(single(kind, size).distance(found.points).abs().max()) < 1e-7
    return found.points


def share(mask: torch.Tensor) -> float:
    return float(mask.double().mean())


BAR = 4 * math.sqrt(0.25 / COUNT)  # four standard deviations of a share


def test_heights_on_a_ball_are_uniform_as_archimedes_found() -> None:
    z = drawn(Kind.ELLIPSOID, (0.5, 0.5, 0.5))[:, 2] / 0.5
    for edge in (-0.8, -0.3, 0.0, 0.4, 0.9):
        assert share(z < edge) == pytest.approx(0.5 * (1 + edge), abs=BAR)


def test_a_flat_ellipsoid_has_its_area_where_the_integral_says() -> None:
    a, c = 0.6, 0.15
    z = torch.linspace(-1, 1, 200_001, dtype=torch.float64)[:-1] + 5e-6
    area = (c**2 + (a**2 - c**2) * z.square()).sqrt()  # of a band of a spheroid, by cos of the parametric angle
    for edge in (0.3, 0.8):
        wanted = float(area[z.abs() < edge].sum() / area.sum())
        assert share(drawn(Kind.ELLIPSOID, (a, a, c))[:, 2].abs() < edge * c) == pytest.approx(wanted, abs=BAR)


def test_sides_and_ends_have_their_shares() -> None:
    capsule = drawn(Kind.CAPSULE, (0.2, 0.2, 0.3))
    assert share(capsule[:, 2].abs() <= 0.3) == pytest.approx(0.6, abs=BAR)
    cylinder = drawn(Kind.CYLINDER, (0.2, 0.2, 0.3))
    assert share(cylinder[:, 2].abs() < 0.3 - 1e-9) == pytest.approx(0.75, abs=BAR)
    box = drawn(Kind.BOX, (0.1, 0.2, 0.3))
    assert share(box[:, 0].abs() > 0.1 - 1e-9) == pytest.approx(0.06 / 0.11, abs=BAR)
    assert share(box[:, 2] > 0.3 - 1e-9) == pytest.approx(0.01 / 0.11, abs=BAR)


def test_a_frustum_is_covered_evenly() -> None:
    low, high, h = 0.4, 0.1, 0.2
    cone = drawn(Kind.CONE, (low, high, h))
    side = math.pi * 0.5 * math.hypot(0.3, 0.4)
    total = math.pi * (low**2 + high**2) + side
    assert share(cone[:, 2] > h - 1e-9) == pytest.approx(math.pi * high**2 / total, abs=BAR)
    assert share(cone[:, 2] < 1e-9 - h) == pytest.approx(math.pi * low**2 / total, abs=BAR)
    lower_half = 0.5 * (0.4 + 0.25) / (0.5 * 0.5) / 2  # area of a band is mean radius times slant
    on_side = cone[cone[:, 2].abs() < h - 1e-9]
    assert share(on_side[:, 2] < 0) == pytest.approx(lower_half, abs=2 * BAR)


def test_what_lies_in_another_primitive_is_left_out() -> None:
    balls = union([single(Kind.ELLIPSOID, (0.5, 0.5, 0.5), at=(x, 0.0, 0.0)) for x in (-0.2, 0.3)])
    found = surface_points(balls, COUNT, torch.Generator().manual_seed(1))
    assert float(balls.distance(found.points).abs().max()) < 1e-5
    torch.testing.assert_close(found.normals.norm(dim=1), torch.ones(COUNT, dtype=torch.float64))
    assert share(found.primitive == 0) == pytest.approx(0.5, abs=BAR)
    assert float(found.points[found.primitive == 0, 0].max()) < 0.05 + 1e-4  # the balls meet half way


def test_nothing_but_inside_is_refused_and_seeds_repeat() -> None:
    ball = single(Kind.ELLIPSOID, (0.5, 0.5, 0.5))
    again = [surface_points(ball, 100, torch.Generator().manual_seed(4)).points for _ in range(2)]
    assert torch.equal(*again)
