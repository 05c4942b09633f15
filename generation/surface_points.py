"""Points spread evenly over the surface of a union of primitives, exactly by area."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from generation.shapes import Kind, ObjectModel, local_normals, surface_areas

DEEP = 1e-5  # world units: what lies deeper in another primitive is no surface
LEAST_SHARE = 1e-3  # of the drawn points; a union that keeps fewer has no surface of its own


@dataclass(frozen=True)
class SurfacePoints:
    """points: [P, 3].  normals: [P, 3] outward, unit.  primitive: [P] rows of the object."""

    points: Tensor
    normals: Tensor
    primitive: Tensor


def surface_points(model: ObjectModel, count: int, generator: torch.Generator) -> SurfacePoints:
    """`count` points drawn uniformly by area from the outer surface of the union; on the model's device.

    Each primitive's surface is drawn from by its area, and what lies inside of another is drawn again. The generator
    lives on the CPU.
    """
    areas = surface_areas(model.kind, model.size).double().cpu()
    kept: list[SurfacePoints] = []
    drawn = found = 0
    while found < count:
        rows = torch.multinomial(areas, 2 * count, replacement=True, generator=generator).sort().values
        batch = _drawn(model, rows.to(model.kind.device), generator)
        outside = _outside_of_others(model, batch)
        batch = SurfacePoints(batch.points[outside], batch.normals[outside], batch.primitive[outside])
        kept.append(batch)
        drawn, found = drawn + len(rows), found + len(batch.primitive)
        if found < LEAST_SHARE * drawn:
            raise ValueError("the object has hardly any surface that is not inside of its other primitives")
    order = torch.randperm(found, generator=generator)[:count].to(model.kind.device)
    return SurfacePoints(
        torch.cat([batch.points for batch in kept])[order],
        torch.cat([batch.normals for batch in kept])[order],
        torch.cat([batch.primitive for batch in kept])[order],
    )


def _drawn(model: ObjectModel, rows: Tensor, generator: torch.Generator) -> SurfacePoints:
    """One point on each of `rows`, which are sorted; fewer where ellipsoids reject."""
    points, normals, primitives = [], [], []
    for kind in Kind:
        own = rows[model.kind[rows] == kind]
        if len(own) == 0:
            continue
        size = model.size[own]
        numbers = torch.rand(len(own), 4, generator=generator).to(size)
        local, valid = _local_points(kind, size, numbers)
        own, local, size = own[valid], local[valid], size[valid]
        world = model.world_from_primitive[own]
        points.append((world[:, :3, :3] @ local[..., None])[..., 0] + world[:, :3, 3])
        normals.append((world[:, :3, :3] @ local_normals(kind, local, size)[..., None])[..., 0])
        primitives.append(own)
    return SurfacePoints(torch.cat(points), torch.cat(normals), torch.cat(primitives))


def _local_points(kind: Kind, s: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Points [P, 3] on primitives of sizes s [P, 3] from numbers u [P, 4] in 0..1, and which of them count."""
    valid = torch.ones(len(s), dtype=torch.bool, device=s.device)
    if kind == Kind.ELLIPSOID:  # a sphere's area grows by |n / s| s1 s2 s3, at most by the two longer half axes
        ball = _on_ball(u)
        grown = (ball / s).norm(dim=1) * s.amin(1)
        return ball * s, u[:, 2] < grown
    if kind == Kind.BOX:
        return _on_box(s, u), valid
    if kind == Kind.CAPSULE:
        ball = _on_ball(u) * s[:, :1]
        on_side = u[:, 2] * (s[:, 0] + s[:, 2]) < s[:, 2]
        side = torch.stack([*_circle(u[:, 0], s[:, 0]), (2 * u[:, 1] - 1) * s[:, 2]], dim=1)
        ball[:, 2] += torch.where(ball[:, 2] >= 0, s[:, 2], -s[:, 2])
        return torch.where(on_side[:, None], side, ball), valid
    low, high = (s[:, 0], s[:, 0]) if kind == Kind.CYLINDER else (s[:, 0], s[:, 1])
    slant = ((low - high).square() + 4 * s[:, 2].square()).sqrt()
    areas = torch.stack([low.square(), high.square(), (low + high) * slant], dim=1)
    edges = areas.cumsum(1) / areas.sum(1, keepdim=True)
    end = torch.where(u[:, 2] < edges[:, 0], -1.0, 1.0)
    on_side = u[:, 2] >= edges[:, 1]
    radius = (low.square() + u[:, 1] * (high.square() - low.square())).sqrt()  # area grows with the radius
    width = high - low
    share = torch.where(
        width.abs() < 1e-9, u[:, 1], (radius - low) / torch.where(width == 0, torch.ones_like(width), width)
    )
    side = torch.stack([*_circle(u[:, 0], low + share * width), (2 * share - 1) * s[:, 2]], dim=1)
    disc = torch.stack([*_circle(u[:, 0], torch.where(end < 0, low, high) * u[:, 1].sqrt()), end * s[:, 2]], dim=1)
    return torch.where(on_side[:, None], side, disc), valid


def _circle(turn: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    angle = 2 * math.pi * turn
    return radius * angle.cos(), radius * angle.sin()


def _on_ball(u: Tensor) -> Tensor:
    """[P, 3] on the unit sphere, by Archimedes from the first and last of the numbers."""
    z = 2 * u[:, 3] - 1
    return torch.stack([*_circle(u[:, 0], (1 - z.square()).clamp(min=0).sqrt()), z], dim=1)


def _on_box(s: Tensor, u: Tensor) -> Tensor:
    """A pair of faces by its area, one of the two, and a place on it."""
    areas = torch.stack([s[:, 1] * s[:, 2], s[:, 0] * s[:, 2], s[:, 0] * s[:, 1]], dim=1)
    edges = areas.cumsum(1) / areas.sum(1, keepdim=True)
    axis = (u[:, 2:3] >= edges[:, :2]).sum(1)
    face = torch.where(u[:, 3] < 0.5, -1.0, 1.0)
    points = torch.stack([2 * u[:, 0] - 1, 2 * u[:, 1] - 1, face], dim=1)
    order = torch.tensor([[2, 0, 1], [0, 2, 1], [0, 1, 2]], device=s.device)[axis]  # the face's number goes to `axis`
    return points.gather(1, order) * s


def _outside_of_others(model: ObjectModel, batch: SurfacePoints) -> Tensor:
    """Which points [P] are not inside of a primitive other than their own."""
    hidden = torch.zeros(len(batch.primitive), dtype=torch.bool, device=batch.points.device)
    for row in range(len(model)):
        others = batch.primitive != row
        inner = model.select(torch.tensor([row], device=model.kind.device)).distance(batch.points) < -DEEP
        hidden |= others & inner
    return ~hidden
