"""Objects of convex primitives whose insides, distances, surfaces and ray hits are known in closed form.

A primitive lies in a frame of its own that the rigid `world_from_primitive` turns and moves; its axis is z there:

    ELLIPSOID  half axes              BOX   half edges              CYLINDER  radius, radius, half height
    CONE       radius at z = -h, radius at z = +h, half height h (a frustum where both are > 0)
    CAPSULE    radius, radius, half the distance between the centres of its round ends

`distance` is exact outside of the union; inside it is the largest of the primitives' own depths, so never deeper than
the truth. Ellipsoids: Newton on 1 / |v(t)| = 1, which is nearly linear (as in trust regions, Conn, Gould and Toint,
2000, 7.3); the rest as in I. Quilez, "distance functions".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

import torch
from torch import Tensor


class Kind(IntEnum):
    """Kinds of primitives."""

    ELLIPSOID = 0
    BOX = 1
    CYLINDER = 2
    CONE = 3
    CAPSULE = 4


class Material(IntEnum):
    """What a surface looks like under light; WOODEN and STRIPED have a pattern in the primitive's frame."""

    MATTE = 0
    SHINY = 1
    METALLIC = 2
    WOODEN = 3
    STRIPED = 4


METAL_ROUGHNESS: tuple[tuple[float, float], ...] = ((0.0, 0.9), (0.0, 0.25), (1.0, 0.3), (0.0, 0.7), (0.0, 0.8))


@dataclass(frozen=True)
class ObjectModel:
    """A union of N primitives.

    kind, material, part, instance: [N] int64; kind and material as in the enums; part indexes `parts`; instance counts
    the things of a caption, 0 the first.  world_from_primitive: [N, 4, 4] rigid.  size: [N, 3], see above.  rgb: [N, 3]
    in 0..1.  parts: names such as "chair seat", the noun first.  All tensors share the device; floats the dtype.
    """

    kind: Tensor
    world_from_primitive: Tensor
    size: Tensor
    rgb: Tensor
    material: Tensor
    part: Tensor
    instance: Tensor
    parts: tuple[str, ...]

    def __len__(self) -> int:
        return self.kind.shape[0]

    @property
    def metal_roughness(self) -> Tensor:
        """[N, 2] of the materials, as glTF means them."""
        return self.size.new_tensor(METAL_ROUGHNESS)[self.material]

    def is_part(self, name: str) -> Tensor:
        """[N] which primitives belong to the part, by its whole name ("chair seat") or its last word."""
        fits = [name in (known, known.split()[-1]) for known in self.parts]
        return torch.tensor(fits, dtype=torch.bool, device=self.part.device)[self.part]

    def select(self, rows: Tensor) -> ObjectModel:
        """The primitives of `rows`, a mask or indices."""
        names = ("kind", "world_from_primitive", "size", "rgb", "material", "part", "instance")
        return replace(self, **{name: getattr(self, name)[rows] for name in names})

    def to(self, device: torch.device | str) -> ObjectModel:
        """The same on another device."""
        names = ("kind", "world_from_primitive", "size", "rgb", "material", "part", "instance")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})

    def moved(self, scale: float, offset: Tensor | Sequence[float]) -> ObjectModel:
        """Scaled about the origin, then shifted by `offset` [3]."""
        moved = self.world_from_primitive.clone()
        moved[:, :3, 3] = moved[:, :3, 3] * scale + torch.as_tensor(offset).to(moved)
        return replace(self, world_from_primitive=moved, size=self.size * scale)

    def turned(self, rotation: Tensor) -> ObjectModel:
        """Turned about the origin by `rotation` [3, 3]."""
        world = torch.eye(4).to(self.world_from_primitive)
        world[:3, :3] = rotation.to(world)
        return replace(self, world_from_primitive=world @ self.world_from_primitive)

    def inside(self, points: Tensor) -> Tensor:
        """[P] whether points [P, 3] lie in the union."""
        found = torch.zeros(points.shape[0], dtype=torch.bool, device=points.device)
        for kind, rows in self.by_kind():
            found |= _INSIDE[kind](self.to_local(points, rows), self.size[rows, None].to(points)).any(0)
        return found

    def distance(self, points: Tensor) -> Tensor:
        """[P] signed distance of points [P, 3] to the union, < 0 inside; differentiable in the points."""
        found = points.new_full((points.shape[0],), torch.inf)
        for kind, rows in self.by_kind():
            each = _DISTANCE[kind](self.to_local(points, rows), self.size[rows, None].to(points))
            found = torch.minimum(found, each.amin(0))
        return found

    def by_kind(self) -> Iterator[tuple[Kind, Tensor]]:
        """Each kind that occurs, with its rows."""
        for kind in Kind:
            rows = (self.kind == kind).nonzero()[:, 0]
            if len(rows):
                yield kind, rows

    def to_local(self, points: Tensor, rows: Tensor) -> Tensor:
        """Points [P, 3] in the frames of `rows`: [rows, P, 3]."""
        world = self.world_from_primitive[rows].to(points)
        return (points - world[:, None, :3, 3]) @ world[:, :3, :3]

    def bounds(self) -> tuple[Tensor, Tensor]:
        """Lowest and highest corner [3] of the smallest box along the axes that holds the union."""
        low, high = self.extents()
        return low.amin(0), high.amax(0)

    def extents(self) -> tuple[Tensor, Tensor]:
        """Lowest and highest corners [N, 3] of the smallest box along the axes around each primitive; exact."""
        axes, s, centre = self.world_from_primitive[:, :3, :3], self.size, self.world_from_primitive[:, :3, 3]
        along = axes[:, :, 2] * s[:, 2:]
        flat = (1 - axes[:, :, 2].square()).clamp(min=0).sqrt()  # how far a disc of radius 1 reaches
        of_ellipsoid = (axes.square() @ s.square()[:, :, None])[..., 0].sqrt()
        of_box = (axes.abs() @ s[:, :, None])[..., 0]
        ends = [(centre - along, s[:, :1]), (centre + along, s[:, 1:2])]
        kind = self.kind[:, None]
        found = []
        for sign in (-1, 1):
            rounds = torch.where(kind == Kind.CAPSULE, 1.0, flat)
            reached = torch.stack([sign * end + radius * rounds for end, radius in ends]).amax(0)
            middle = torch.where(kind == Kind.BOX, of_box, of_ellipsoid) + sign * centre
            found.append(sign * torch.where(kind <= Kind.BOX, middle, reached))
        return found[0], found[1]

    def reach(self) -> float:
        """Radius about the origin that holds the union; exact up to ellipsoids, for which it is a bound."""
        corners = self.box_corners().norm(dim=2).amax(1)
        centres, axes = self.world_from_primitive[:, :3, 3], self.world_from_primitive[:, :3, 2]
        h, wide = self.size[:, 2], self.size[:, :2].amax(1)
        along = (centres * axes).sum(1)
        off_axis = (centres.square().sum(1) - along.square()).clamp(min=0).sqrt()
        discs = ((off_axis + wide).square() + (along.abs() + h).square()).sqrt()
        ends = (off_axis.square() + (along.abs() + h).square()).sqrt() + wide
        balls = torch.minimum(centres.norm(dim=1) + self.size.amax(1), corners)
        each = torch.stack([balls, corners, discs, discs, ends])
        return float(each[self.kind, torch.arange(len(self), device=h.device)].max())

    def support(self, x: float, y: float) -> float:
        """Height of the highest surface point above (x, y), exact; 0 where there is nothing."""
        from generation.ray_hits import first_hit

        top = 0.1 + float(self.bounds()[1][2])
        above = self.size.new_tensor([x, y, top])
        down = self.size.new_tensor([0.0, 0.0, -1.0])
        best = torch.inf
        for kind, rows in self.by_kind():
            world = self.world_from_primitive[rows]
            o = ((above - world[:, :3, 3])[:, None] @ world[:, :3, :3])[:, 0]
            best = min(best, float(first_hit(kind, o, down @ world[:, :3, :3], self.size[rows]).amin()))
        return top - best if math.isfinite(best) else 0.0

    def box_corners(self) -> Tensor:
        """[N, 8, 3] corners in the world of the box around each primitive along its own axes."""
        signs = self.size.new_tensor([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
        half = local_extents(self.kind, self.size)
        local = signs * half[:, None]
        world = self.world_from_primitive
        return local @ world[:, :3, :3].transpose(1, 2) + world[:, None, :3, 3]


def local_extents(kind: Tensor, size: Tensor) -> Tensor:
    """[N, 3] half edges of the box around each primitive in its own frame."""
    wide = size[:, :2].amax(1)
    of_capsule = torch.stack([wide, wide, size[:, 2] + wide], dim=1)
    of_cone = torch.stack([wide, wide, size[:, 2]], dim=1)
    return torch.where(
        (kind == Kind.CAPSULE)[:, None], of_capsule, torch.where((kind == Kind.CONE)[:, None], of_cone, size)
    )


def union(models: Sequence[ObjectModel]) -> ObjectModel:
    """All primitives of several objects; instances and parts are counted on, equal part names shared."""
    names = list(dict.fromkeys(name for model in models for name in model.parts))
    parts, instances, first = [], [], 0
    for model in models:
        index = torch.tensor([names.index(name) for name in model.parts], device=model.part.device)
        parts.append(index[model.part])
        instances.append(model.instance + first)
        first += int(model.instance.max()) + 1
    return ObjectModel(
        *(torch.cat([getattr(model, name) for model in models]) for name in _CARRIED),
        part=torch.cat(parts),
        instance=torch.cat(instances),
        parts=tuple(names),
    )


_CARRIED = ("kind", "world_from_primitive", "size", "rgb", "material")


def _rho(p: Tensor) -> Tensor:
    return (p[..., 0].square() + p[..., 1].square() + 1e-30).sqrt()


def _in_cone(p: Tensor, s: Tensor) -> Tensor:
    radius = s[..., 0] + (s[..., 1] - s[..., 0]) * (p[..., 2] + s[..., 2]) / (2 * s[..., 2])
    return (p[..., 2].abs() <= s[..., 2]) & (_rho(p) <= radius)


def _in_capsule(p: Tensor, s: Tensor) -> Tensor:
    beyond = (p[..., 2].abs() - s[..., 2]).clamp(min=0)
    return p[..., 0].square() + p[..., 1].square() + beyond.square() <= s[..., 0].square()


_INSIDE: dict[Kind, Callable[[Tensor, Tensor], Tensor]] = {
    Kind.ELLIPSOID: lambda p, s: (p / s).square().sum(-1) <= 1,
    Kind.BOX: lambda p, s: (p.abs() <= s).all(-1),
    Kind.CYLINDER: lambda p, s: (_rho(p) <= s[..., 0]) & (p[..., 2].abs() <= s[..., 2]),
    Kind.CONE: _in_cone,
    Kind.CAPSULE: _in_capsule,
}


def _length(q: Tensor) -> Tensor:
    """Length over the last axis whose gradient at 0 is 0."""
    return (q.square().sum(-1) + 1e-30).sqrt()


def _to_box(q: Tensor) -> Tensor:
    """Distance by how far a point is beyond each face, q [..., k]."""
    return _length(q.clamp(min=0)) + q.amax(-1).clamp(max=0)


def _to_ellipsoid(p: Tensor, s: Tensor) -> Tensor:
    """|v(t)| = 1 for v_i = s_i y_i / (t + s_i^2), y = |p|; then x_i = s_i v_i is the nearest point of the surface.

    Newton starts where one term alone is 1, left of the root, and climbs to it: 1 / |v| is concave there.
    """
    a = s.double().expand_as(p)
    y = p.abs().double().clamp(min=1e-9 * float(a.max()))  # off the planes of symmetry, where the nearest point is two
    with torch.no_grad():
        t = (a * y - a.square()).amax(-1, keepdim=True)
        for _ in range(16):
            w = t + a.square()
            v = a * y / w
            norm = v.norm(dim=-1, keepdim=True)
            slope = (v.square() / w).sum(-1, keepdim=True) / norm**3  # of 1 / |v|
            t = t + (1 - 1 / norm) / slope
    near = a.square() * y / (t + a.square())
    near = near / (near / a).norm(dim=-1, keepdim=True)
    found = _length(p.abs().double() - near.detach())
    return torch.where((p.double() / a).square().sum(-1) < 1, -found, found).to(p.dtype)


def _to_cylinder(p: Tensor, s: Tensor) -> Tensor:
    return _to_box(torch.stack([_rho(p) - s[..., 0], p[..., 2].abs() - s[..., 2]], dim=-1))


def _to_cone(p: Tensor, s: Tensor) -> Tensor:
    """Distance to the outline in (rho, z): the nearer of its flat ends and its slanted side."""
    rho, z, (low, high, h) = _rho(p), p[..., 2], s.unbind(-1)
    radius = torch.where(z < 0, low, high)
    flat = torch.stack([rho - torch.minimum(rho, radius), z.abs() - h], dim=-1)
    edge_x, edge_z = high - low, 2 * h
    along = (((rho - low) * edge_x + (z + h) * edge_z) / (edge_x.square() + edge_z.square())).clamp(0, 1)
    side = torch.stack([rho - low - along * edge_x, z + h - along * edge_z], dim=-1)
    nearest = torch.minimum(_length(flat), _length(side))
    return torch.where(_in_cone(p, s), -nearest, nearest)


def _to_capsule(p: Tensor, s: Tensor) -> Tensor:
    beyond = p[..., 2] - p[..., 2].clamp(-s[..., 2], s[..., 2])
    return _length(torch.stack([p[..., 0], p[..., 1], beyond], dim=-1)) - s[..., 0]


_DISTANCE: dict[Kind, Callable[[Tensor, Tensor], Tensor]] = {
    Kind.ELLIPSOID: _to_ellipsoid,
    Kind.BOX: lambda p, s: _to_box(p.abs() - s),
    Kind.CYLINDER: _to_cylinder,
    Kind.CONE: _to_cone,
    Kind.CAPSULE: _to_capsule,
}


def local_normals(kind: Kind, p: Tensor, s: Tensor) -> Tensor:
    """Outward unit normals [..., 3] of surface points p [..., 3] in a primitive's frame; s [..., 3]."""
    if kind == Kind.ELLIPSOID:
        n = p / s.square()
    elif kind == Kind.BOX:
        n = torch.nn.functional.one_hot((p.abs() - s).argmax(-1), 3).to(p) * p.sign()
    elif kind == Kind.CAPSULE:
        n = torch.stack([p[..., 0], p[..., 1], p[..., 2] - p[..., 2].clamp(-s[..., 2], s[..., 2])], dim=-1)
    else:
        low, high = (s[..., 0], s[..., 0]) if kind == Kind.CYLINDER else (s[..., 0], s[..., 1])
        rho, slope = _rho(p), (low - high) / (2 * s[..., 2])  # how far the side leans to +z
        off_side = rho - (0.5 * (low + high) - slope * p[..., 2])
        side = torch.stack([p[..., 0] / rho, p[..., 1] / rho, slope], dim=-1)
        end = torch.stack([torch.zeros_like(rho), torch.zeros_like(rho), p[..., 2].sign()], dim=-1)
        n = torch.where((p[..., 2].abs() - s[..., 2] > off_side / (1 + slope.square()).sqrt())[..., None], end, side)
    return torch.nn.functional.normalize(n, dim=-1)


def surface_areas(kind: Tensor, size: Tensor) -> Tensor:
    """[N] areas; of an ellipsoid the bound 4 pi (product of its two longer half axes), see `surface_points.py`."""
    s, pi = size, math.pi
    longer = s.sort(dim=1).values[:, 1:]
    slant = ((s[:, 0] - s[:, 1]).square() + 4 * s[:, 2].square()).sqrt()
    each = torch.stack(
        [
            4 * pi * longer.prod(1),
            8 * (s[:, 0] * s[:, 1] + s[:, 1] * s[:, 2] + s[:, 2] * s[:, 0]),
            2 * pi * s[:, 0] * (s[:, 0] + 2 * s[:, 2]),
            pi * (s[:, :2].square().sum(1) + s[:, :2].sum(1) * slant),
            4 * pi * s[:, 0] * (s[:, 0] + s[:, 2]),
        ]
    )
    return each[kind, torch.arange(len(kind), device=size.device)]
