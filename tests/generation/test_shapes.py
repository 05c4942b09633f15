"""Unions of primitives: distances by hand and against the surface itself, bounds, supports."""

from __future__ import annotations

import math

import pytest
import torch

from generation.shapes import Kind, ObjectModel, local_normals, surface_areas, union
from generation.surface_points import surface_points
from tests.generation.single_shapes import ROOT_HALF, SIZES, points, rotation, single

KINDS = pytest.mark.parametrize("kind", list(Kind), ids=lambda kind: kind.name.lower())


@pytest.mark.parametrize(
    ("kind", "size", "point", "wanted"),
    [
        (Kind.ELLIPSOID, (0.5, 0.5, 0.5), (0.9, 0.0, 0.0), 0.4),
        (Kind.ELLIPSOID, (0.5, 0.5, 0.5), (0.3, 0.3, 0.1), math.sqrt(0.19) - 0.5),
        (Kind.ELLIPSOID, (0.5, 0.2, 0.3), (0.0, 0.0, 0.0), -0.2),
        (Kind.ELLIPSOID, (0.5, 0.2, 0.3), (0.9, 0.0, 0.0), 0.4),
        (Kind.ELLIPSOID, (1.0, 0.5, 0.5), (0.2, 0.0, 0.0), -0.5 * math.sqrt(1 - 0.2**2 / 0.75)),
        (Kind.BOX, (0.3, 0.2, 0.1), (0.6, 0.6, 0.1), 0.5),
        (Kind.BOX, (0.3, 0.2, 0.1), (0.0, 0.05, 0.0), -0.1),
        (Kind.CYLINDER, (0.3, 0.3, 0.2), (0.6, 0.0, 0.6), 0.5),
        (Kind.CYLINDER, (0.3, 0.3, 0.2), (0.0, 0.0, 0.15), -0.05),
        (Kind.CONE, (0.4, 0.0, 0.2), (0.4 + 0.1, 0.0, 0.0), 0.3 * ROOT_HALF),
        (Kind.CONE, (0.4, 0.0, 0.2), (0.0, 0.0, -0.5), 0.3),
        (Kind.CONE, (0.4, 0.0, 0.2), (0.0, 0.0, 0.3), 0.1),
        (Kind.CONE, (0.4, 0.0, 0.2), (0.0, 0.0, -0.1), -0.1),
        (Kind.CAPSULE, (0.1, 0.1, 0.3), (0.3, 0.0, 0.2), 0.2),
        (Kind.CAPSULE, (0.1, 0.1, 0.3), (0.3, 0.0, 0.7), 0.4),
        (Kind.CAPSULE, (0.1, 0.1, 0.3), (0.05, 0.0, 0.0), -0.05),
    ],
)
def test_distances_by_hand(
    kind: Kind, size: tuple[float, float, float], point: tuple[float, float, float], wanted: float
) -> None:
    model = single(kind, size)
    found = model.distance(torch.tensor([point], dtype=torch.float64))
    assert float(found) == pytest.approx(wanted, abs=1e-8)
    assert bool(model.inside(torch.tensor([point], dtype=torch.float64))) == (wanted < 0)


@KINDS
def test_the_distance_is_that_to_the_nearest_point_of_the_surface(kind: Kind) -> None:
    model = single(kind, at=(0.1, -0.2, 0.05), turned=3)
    surface = surface_points(model, 10_000, torch.Generator().manual_seed(0)).points
    where = points(150)
    found, nearest = model.distance(where), torch.cdist(where, surface).amin(1)
    assert bool((found.abs() <= nearest + 1e-7).all())  # nothing of the surface is nearer
    assert bool((nearest - found.abs() < 0.03).all())  # 10,000 samples lie some 0.015 apart
    assert torch.equal(found < 0, model.inside(where))


@KINDS
def test_walking_the_distance_down_its_gradient_ends_on_the_surface(kind: Kind) -> None:
    model = single(kind, turned=5)
    where = points(200, seed=1, reach=1.2)
    where = where[~model.inside(where)].requires_grad_()
    distance = model.distance(where)
    (gradient,) = torch.autograd.grad(distance.sum(), where)
    torch.testing.assert_close(gradient.norm(dim=1), torch.ones(len(where), dtype=torch.float64), atol=1e-5, rtol=0)
    foot = (where - distance[:, None] * gradient).detach()
    assert float(model.distance(foot).abs().max()) < 1e-6


@KINDS
def test_normals_are_the_gradient_of_the_distance(kind: Kind) -> None:
    model = single(kind, turned=7)
    found = surface_points(model, 300, torch.Generator().manual_seed(2))
    out = model.distance(found.points + 0.01 * found.normals)
    torch.testing.assert_close(out, torch.full_like(out, 0.01), atol=1e-7, rtol=0)


def test_distances_of_a_sphere_in_any_form_agree() -> None:
    where = points(200)
    wanted = where.norm(dim=1) - 0.4
    torch.testing.assert_close(single(Kind.ELLIPSOID, (0.4, 0.4, 0.4)).distance(where), wanted, atol=1e-7, rtol=0)
    torch.testing.assert_close(single(Kind.CAPSULE, (0.4, 0.4, 0.0)).distance(where), wanted, atol=1e-7, rtol=0)


def test_a_frustum_of_equal_radii_is_a_cylinder() -> None:
    where = points(300)
    cone, cylinder = single(Kind.CONE, (0.3, 0.3, 0.2)), single(Kind.CYLINDER, (0.3, 0.3, 0.2))
    torch.testing.assert_close(cone.distance(where), cylinder.distance(where), atol=1e-12, rtol=0)
    assert torch.equal(cone.inside(where), cylinder.inside(where))


def everything() -> ObjectModel:
    return union([single(kind, at=(0.3 * kind - 0.6, 0.2, -0.1 * kind), turned=int(kind)) for kind in Kind])


def test_a_union_is_the_nearest_of_its_primitives() -> None:
    model, where = everything(), points(200)
    alone = [single(kind, at=(0.3 * kind - 0.6, 0.2, -0.1 * kind), turned=int(kind)) for kind in Kind]
    torch.testing.assert_close(model.distance(where), torch.stack([one.distance(where) for one in alone]).amin(0))
    assert torch.equal(model.inside(where), torch.stack([one.inside(where) for one in alone]).any(0))
    assert model.instance.tolist() == [0, 1, 2, 3, 4] and len(model.parts) == 5
    twice = union([model, model])
    assert twice.parts == model.parts and twice.instance.tolist() == list(range(10))
    assert twice.is_part("cone").tolist() == twice.is_part("shape cone").tolist() == [k % 5 == 3 for k in range(10)]
    assert not bool(twice.is_part("wheels").any())


@KINDS
def test_bounds_hold_the_surface_and_touch_it(kind: Kind) -> None:
    model = single(kind, at=(0.2, -0.3, 0.4), turned=11)
    surface = surface_points(model, 5_000, torch.Generator().manual_seed(1)).points
    low, high = model.bounds()
    assert bool((surface >= low - 1e-7).all()) and bool((surface <= high + 1e-7).all())
    assert bool((surface.amin(0) - low < 0.04).all()) and bool((high - surface.amax(0) < 0.04).all())
    farthest = float(surface.norm(dim=1).max())
    assert farthest <= model.reach() + 1e-7
    assert model.reach() - farthest < (0.35 if kind in (Kind.ELLIPSOID, Kind.CONE) else 0.04)
    corners = model.box_corners()[0]
    inner = (surface - torch.tensor([0.2, -0.3, 0.4], dtype=torch.float64)) @ rotation(11)
    half = (corners - corners.mean(0)) @ rotation(11)
    assert bool((inner.abs() <= half.abs().amax(0) + 1e-7).all())


def test_moving_and_turning_move_the_distance_along() -> None:
    model, where, turned = everything(), points(100), rotation(4)
    offset = torch.tensor([0.3, -0.1, 0.2], dtype=torch.float64)
    torch.testing.assert_close(model.turned(turned).distance(where @ turned.T), model.distance(where))
    torch.testing.assert_close(model.moved(0.5, offset).distance(0.5 * where + offset), 0.5 * model.distance(where))


def test_support_is_the_highest_point_above_a_place() -> None:
    model = union([single(Kind.BOX, (0.5, 0.5, 0.1)), single(Kind.ELLIPSOID, (0.2, 0.2, 0.3), at=(0.0, 0.0, 0.2))])
    assert model.support(0.0, 0.0) == pytest.approx(0.5)
    assert model.support(0.1, 0.0) == pytest.approx(0.2 + 0.3 * math.sqrt(0.75))
    assert model.support(0.45, -0.45) == pytest.approx(0.1)
    assert model.support(0.6, 0.0) == 0.0


def test_areas_by_hand() -> None:
    sizes = torch.tensor([SIZES[kind] for kind in Kind], dtype=torch.float64)
    areas = surface_areas(torch.arange(5), sizes)
    slant = math.hypot(0.25, 0.6)
    wanted = [
        4 * math.pi * 0.5 * 0.35,
        2 * (0.6 * 0.3 + 0.3 * 0.8 + 0.8 * 0.6),
        2 * math.pi * 0.25 * (0.25 + 0.6),
        math.pi * (0.35**2 + 0.1**2 + 0.45 * slant),
        2 * math.pi * 0.15 * (0.7 + 2 * 0.15),
    ]
    torch.testing.assert_close(areas, torch.tensor(wanted, dtype=torch.float64))


def test_normals_of_a_frustum_lean_to_its_narrow_end() -> None:
    p = torch.tensor([[0.2, 0.0, 0.0], [0.0, 0.05, 0.2], [0.1, 0.0, -0.2]])
    found = local_normals(Kind.CONE, p, torch.tensor([[0.4, 0.0, 0.2]]).expand(3, 3))
    wanted = torch.tensor([[ROOT_HALF, 0.0, ROOT_HALF], [0.0, 0.0, 1.0], [0.0, 0.0, -1.0]])
    torch.testing.assert_close(found[[0, 2]], wanted[[0, 2]], atol=1e-6, rtol=0)
