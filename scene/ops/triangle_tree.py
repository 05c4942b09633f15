"""Rays and points against the triangles of a mesh: the first triangle that a ray meets, the nearest place to a point.

The triangles are halved along the longest side of the box of their middles, and the halves again, down to three to five
in a leaf. So the tree is complete and its nodes need no numbers: the children of node i are 2 i and 2 i + 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from scene.ops import native

LEAST_IN_LEAF = 3
FAR = 3e38  # as kFar in cuda/cpu/triangle_tree.cpp: beyond all lengths
LEAST_DIRECTION = 1e-18  # as kLeast there
SLACK = 1 + 4e-7  # as kSlack there
AT_ONCE = 1 << 14  # rays or points that the twin looks at together; each has tens of boxes


@dataclass(frozen=True)
class TriangleTree:
    """Triangles made ready. Lengths should be near 1 and places near 0, as everything is float32.

    boxes: [2 L, 6] low and high corners of each node; node 0 is none, 1 the root, those from L on are leaves.
    starts: [L + 1] int32 where the triangles of each leaf begin.  triangles: [F, 9] corners, leaf by leaf.
    faces: [F] int64 the number that each had.
    """

    boxes: Tensor
    starts: Tensor
    triangles: Tensor
    faces: Tensor

    @staticmethod
    def of(corners: Tensor) -> TriangleTree:
        """A tree of triangles [F, 3, 3], F >= 1. Raises ValueError for another shape, none, or corners not finite."""
        count = len(corners)
        if count < 1 or corners.shape[1:] != (3, 3) or not corners.isfinite().all():
            raise ValueError(f"expected finite corners [F, 3, 3] of one triangle or more, got {list(corners.shape)}")
        corners = corners.detach().to(torch.float32)
        leaves = 1 << max(0, (count // LEAST_IN_LEAF).bit_length() - 1)
        faces = _halved(corners.mean(1), leaves)
        corners, starts = corners[faces], _starts(count, leaves)
        low, high = _of_pieces(corners.amin(1), starts, "amin"), _of_pieces(corners.amax(1), starts, "amax")
        levels = [torch.cat([low, high], dim=1)]
        while len(levels[-1]) > 1:
            one, other = levels[-1][0::2], levels[-1][1::2]
            joined = [torch.minimum(one[:, :3], other[:, :3]), torch.maximum(one[:, 3:], other[:, 3:])]
            levels.append(torch.cat(joined, dim=1))
        boxes = torch.cat([torch.zeros(1, 6), *levels[::-1]]).contiguous()
        return TriangleTree(boxes, starts.to(torch.int32), corners.reshape(count, 9).contiguous(), faces)

    @property
    def leaves(self) -> int:
        """How many leaves there are."""
        return len(self.starts) - 1


@dataclass(frozen=True)
class Found:
    """A place on the triangles for each ray or point. face: [R] int64, -1 for none.  distance: [R] from the ray's
    origin in lengths of its direction, or from the point; 0 for none.  shares: [R, 3] of the corners, 0 for none.
    """

    face: Tensor
    distance: Tensor
    shares: Tensor


def first_hits(tree: TriangleTree, origins: Tensor, directions: Tensor, reach: float = FAR) -> Found:
    """The first triangle that each ray [R, 3], [R, 3] meets between its origin and `reach` lengths of its direction.

    Both sides of a triangle count. No ray passes between triangles that share a side. Of triangles that are met at the
    same place, any is found.
    Not differentiable.  Raises ValueError for a wrong shape or rays that are not finite.
    """
    _check(origins=origins, directions=directions)
    if not native.has(torch.device("cpu")):
        return first_hits_reference(tree, origins, directions, reach)
    found = _room(len(origins))
    rays = (_floats(origins), _floats(directions))
    native.cpu().cast_rays(tree.boxes, tree.starts, tree.triangles, *rays, min(reach, FAR), *found)
    return _numbered(tree, *found)


def nearest(tree: TriangleTree, points: Tensor) -> Found:
    """The place on the triangles that is nearest to each point [P, 3].

    Not differentiable.  Raises ValueError for a wrong shape or points that are not finite.
    """
    _check(points=points)
    if not native.has(torch.device("cpu")):
        return nearest_reference(tree, points)
    found = _room(len(points))
    native.cpu().nearest_on_triangles(tree.boxes, tree.starts, tree.triangles, _floats(points), *found)
    return _numbered(tree, *found)


def _check(**places: Tensor) -> None:
    for name, values in places.items():
        if values.ndim != 2 or values.shape[1] != 3 or len(values) != len(next(iter(places.values()))):
            raise ValueError(f"expected {' and '.join(places)} [R, 3], got {name} {list(values.shape)}")
        if not values.isfinite().all():
            raise ValueError(f"{name} must be finite: a search for another has no end")


def _floats(values: Tensor) -> Tensor:
    return values.detach().to(torch.float32).contiguous()


def _room(count: int) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty(count, dtype=torch.int32), torch.empty(count), torch.empty(count, 3)


def _numbered(tree: TriangleTree, which: Tensor, distance: Tensor, shares: Tensor) -> Found:
    face = torch.where(which >= 0, tree.faces[which.long().clamp(min=0)], -1)
    return Found(face, distance, shares)


def _halved(centres: Tensor, leaves: int) -> Tensor:
    """[F] order of the triangles in which each piece of each level of the tree lies together."""
    if not native.has(torch.device("cpu")):
        return halved_reference(centres, leaves)
    order = torch.empty(len(centres), dtype=torch.int32)
    native.cpu().halve_triangles(centres.contiguous(), leaves, order)
    return order.long()


def halved_reference(centres: Tensor, leaves: int) -> Tensor:
    """The same in plain torch: all pieces of a level are sorted at once."""
    order, pieces = torch.arange(len(centres)), 1
    while pieces < leaves:
        starts, placed = _starts(len(centres), pieces), centres[order]
        piece = torch.repeat_interleave(torch.arange(pieces), starts.diff())
        low, high = _of_pieces(placed, starts, "amin"), _of_pieces(placed, starts, "amax")
        longest = (high - low).argmax(1)
        side = (high - low).gather(1, longest[:, None])[piece].clamp(min=1e-30)
        along = (placed - low[piece]).gather(1, longest[piece, None]) / side
        order = order[(piece + 0.5 * along[:, 0].double()).argsort(stable=True)]
        pieces *= 2
    return order


def _starts(count: int, pieces: int) -> Tensor:
    return (torch.arange(pieces + 1) * count).div(pieces, rounding_mode="floor")


def _of_pieces(values: Tensor, starts: Tensor, which: str) -> Tensor:
    """[P, 3] least ("amin") or greatest ("amax") of the values [F, 3] of each piece."""
    piece = torch.repeat_interleave(torch.arange(len(starts) - 1), starts.diff())
    room = torch.zeros(len(starts) - 1, 3)
    return room.scatter_reduce(0, piece[:, None].expand(-1, 3), values, which, include_self=False)


def first_hits_reference(tree: TriangleTree, origins: Tensor, directions: Tensor, reach: float = FAR) -> Found:
    """The same in plain torch: all boxes that a ray meets, level by level, then all triangles in them."""

    def some(part: slice) -> Found:
        o, d = _floats(origins[part]), _floats(directions[part])
        inverse = 1 / torch.where(d.abs() < LEAST_DIRECTION, torch.copysign(torch.tensor(LEAST_DIRECTION), d), d)

        def enters(ray: Tensor, node: Tensor) -> Tensor:
            low, high = ((tree.boxes[node][:, side] - o[ray]) * inverse[ray] for side in (slice(0, 3), slice(3, 6)))
            into = torch.minimum(low, high).amax(1).clamp(min=0)
            return into <= torch.maximum(low, high).amin(1) * SLACK

        ray, index = _triangles_of(tree, len(o), enters)
        a, b, c = (tree.triangles[index].view(-1, 3, 3) - o[ray, None]).unbind(1)
        weights = torch.stack([_volume(b, c, d[ray]), _volume(c, a, d[ray]), _volume(a, b, d[ray])], dim=1)
        normal = torch.linalg.cross(a - b, c - a)
        t = (a * normal).sum(1) / (d[ray] * normal).sum(1)
        hit = ((weights >= 0).all(1) | (weights <= 0).all(1)) & (t >= 0) & (t < min(reach, FAR))
        return _best(tree, len(o), ray[hit], index[hit], t[hit], weights[hit])

    return _in_parts(some, len(origins))


def nearest_reference(tree: TriangleTree, points: Tensor) -> Found:
    """The same in plain torch: boxes that are nearer than the farthest place of another go on, level by level."""

    def some(part: slice) -> Found:
        p = _floats(points[part])

        def may_hold(point: Tensor, node: Tensor) -> Tensor:
            low, high = tree.boxes[node, :3] - p[point], p[point] - tree.boxes[node, 3:]
            least = torch.maximum(low, high).clamp(min=0).square().sum(1)
            most = torch.maximum(low.abs(), high.abs()).square().sum(1)
            bound = torch.full((len(p),), torch.inf).scatter_reduce(0, point, most, "amin")
            return least <= bound[point] * SLACK

        point, index = _triangles_of(tree, len(p), may_hold)
        corners = tree.triangles[index].view(-1, 3, 3) - p[point, None]
        shares = _nearest_shares(corners)
        distance = (shares[:, :, None] * corners).sum(1).norm(dim=1)
        return _best(tree, len(p), point, index, distance, shares)

    return _in_parts(some, len(points))


def _in_parts(some: Callable[[slice], Found], count: int) -> Found:
    parts = [some(slice(first, first + AT_ONCE)) for first in range(0, max(1, count), AT_ONCE)]
    return Found(
        torch.cat([part.face for part in parts]),
        torch.cat([part.distance for part in parts]),
        torch.cat([part.shares for part in parts]),
    )


def _triangles_of(tree: TriangleTree, count: int, wanted: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Pairs of a query, one of `count`, and a triangle in a leaf all of whose parents are `wanted`."""
    query, node = torch.arange(count), torch.ones(count, dtype=torch.int64)
    kept = wanted(query, node)
    query, node = query[kept], node[kept]
    while len(node) and int(node[0]) < tree.leaves:
        query, node = query.repeat(2), torch.cat([2 * node, 2 * node + 1])
        kept = wanted(query, node)
        query, node = query[kept], node[kept]
    first, last = (tree.starts.long()[node - tree.leaves + k] for k in (0, 1))
    query = query.repeat_interleave(last - first)
    within = torch.arange(len(query)) - ((last - first).cumsum(0) - (last - first)).repeat_interleave(last - first)
    return query, first.repeat_interleave(last - first) + within


def _best(tree: TriangleTree, count: int, query: Tensor, index: Tensor, value: Tensor, weights: Tensor) -> Found:
    """The least value of each query."""
    best = torch.full((count,), torch.inf).scatter_reduce(0, query, value, "amin")
    row = torch.full((count,), len(query)).scatter_reduce(
        0, query, torch.where(value == best[query], torch.arange(len(query)), len(query)), "amin"
    )
    there = row < len(query)
    which = torch.full((count,), -1, dtype=torch.int32)
    shares = torch.zeros(count, 3)
    which[there] = index[row[there]].to(torch.int32)
    shares[there] = weights[row[there]] / weights[row[there]].sum(1, keepdim=True)
    return _numbered(tree, which, torch.where(there, best, 0), shares)


def _volume(p: Tensor, q: Tensor, direction: Tensor) -> Tensor:
    return (torch.linalg.cross(p - q, p + q) * direction).sum(1)


def _nearest_shares(corners: Tensor) -> Tensor:
    """[P, 3] shares of the corners [P, 3, 3] in the place nearest to the origin: on a side, or the foot inside."""
    ways = []
    for i in range(3):
        start, along = corners[:, i], corners[:, (i + 1) % 3] - corners[:, i]
        share = (-(start * along).sum(1) / along.square().sum(1).clamp(min=1e-38)).clamp(0, 1)
        shares = torch.zeros(len(corners), 3)
        shares[:, i], shares[:, (i + 1) % 3] = 1 - share, share
        ways.append(shares)
    a, b, c = corners.unbind(1)
    normal = torch.linalg.cross(b - a, c - a)
    foot = torch.stack([(torch.linalg.cross(q, r) * normal).sum(1) for q, r in ((b, c), (c, a), (a, b))], dim=1)
    whole = foot.sum(1, keepdim=True)
    inside = (foot >= 0).all(1, keepdim=True) & (whole > 0)
    ways.append(torch.where(inside, foot / whole, ways[0]))
    choice = torch.stack(ways, dim=1)  # [P, 4, 3]
    best = (choice[..., None] * corners[:, None]).sum(2).square().sum(-1).argmin(1)
    return choice[torch.arange(len(corners)), best]
