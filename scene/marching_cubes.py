"""Marching cubes (Lorensen and Cline, 1987) over sparse blocks of a field.

The table of the 256 cases is derived, not typed. A corner is inside where the field is below zero. On each side of a
cell, seen from outside, every run of inside corners is cut off by a line from the edge where the run begins to the edge
where it ends; where two inside corners face each other across a side, each is cut off alone. What a side shows depends
on its four corners only, so neighbouring cells agree and a closed surface comes out closed. The lines of the six sides
join to loops around the cell, which are filled with triangles.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scene.mesh import Mesh
from scene.ops.tsdf import BLOCK

# Corner 4 z + 2 y + x of a cell; its sides with their corners anticlockwise, seen from outside.
SIDES = ((0, 4, 6, 2), (1, 3, 7, 5), (0, 1, 5, 4), (2, 6, 7, 3), (0, 2, 3, 1), (4, 5, 7, 6))
EDGES = tuple((a, a + (1 << axis)) for axis in range(3) for a in range(8) if not a >> axis & 1)  # [12] from, to
EDGE_OF = {frozenset(edge): index for index, edge in enumerate(EDGES)}
CHUNK = 2048  # blocks at once: 20 MB


def marching_cubes(tsdf: Tensor, weights: Tensor, blocks: Tensor, *, voxel_size: float, least_weight: float) -> Mesh:
    """The surface where the field is zero, facing where it is positive, over cells all of whose corners are known.

    tsdf, weights: [B, 8, 8, 8] by z, y, x; blocks: [B, 3]; see scene/ops/tsdf.py.  least_weight: a corner with less is
    not known, nor is one in a block that is not there.  Vertices lie on the edges of cells, where a straight line
    between the two corners is zero; those of neighbouring cells are the same. No colours; empty where nothing is found.
    """
    if not len(blocks):
        return _mesh(np.zeros((0, 3), np.int64), np.zeros((0, 3)))
    shift = blocks.amin(0).long()
    places = blocks.long() - shift
    span = places.amax(0) + 2  # room for the neighbours at the far sides
    numbers, order = _number(places, span).sort()
    keys, points = [], []
    for first in range(0, len(blocks), CHUNK):
        chosen = order[first : first + CHUNK]
        field, known = _with_neighbours(tsdf, weights >= least_weight, places, chosen, numbers, order, span)
        found = _triangles(field, known, places[chosen], span)
        keys.append(found[0])
        points.append(found[1])
    corners, lowest = np.concatenate(keys), shift.numpy() * BLOCK
    return _mesh(corners, (np.concatenate(points) + lowest) * voxel_size)


def _mesh(corners: NDArray[np.int64], points: NDArray[np.float64]) -> Mesh:
    """Corners [F, 3] of triangles by the numbers of their edges, and their points [3 F, 3], made one where equal."""
    _, first, index = np.unique(corners.reshape(-1), return_index=True, return_inverse=True)
    return Mesh(points[first], index.reshape(-1, 3).astype(np.int32))


def _number(places: Tensor, span: Tensor) -> Tensor:
    return (places[:, 0] * span[1] + places[:, 1]) * span[2] + places[:, 2]


def _with_neighbours(
    tsdf: Tensor, known: Tensor, places: Tensor, chosen: Tensor, numbers: Tensor, order: Tensor, span: Tensor
) -> tuple[Tensor, Tensor]:
    """Field and whether it is known of some blocks with one voxel more at the far sides: [C, 9, 9, 9] each."""
    field = tsdf.new_zeros(len(chosen), BLOCK + 1, BLOCK + 1, BLOCK + 1)
    there = torch.zeros_like(field, dtype=torch.bool)
    for corner in range(8):
        step = torch.tensor([corner & 1, corner >> 1 & 1, corner >> 2])
        wanted = _number(places[chosen] + step, span)
        at = torch.searchsorted(numbers, wanted).clamp(max=len(numbers) - 1)
        mine = (numbers[at] == wanted).nonzero()[:, 0]
        theirs = order[at[mine]]
        into = tuple(slice(BLOCK, BLOCK + 1) if further else slice(0, BLOCK) for further in step.flip(0).tolist())
        out = tuple(slice(0, 1) if further else slice(0, BLOCK) for further in step.flip(0).tolist())
        field[(mine, *into)] = tsdf[(theirs, *out)]
        there[(mine, *into)] = known[(theirs, *out)]
    return field, there


def _triangles(
    field: Tensor, known: Tensor, places: Tensor, span: Tensor
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Triangles of blocks [C, 9, 9, 9]: numbers of the edges of the grid at their corners [F, 3], places [3 F, 3]."""
    near, far = slice(0, BLOCK), slice(1, BLOCK + 1)
    case = torch.zeros(len(field), BLOCK, BLOCK, BLOCK, dtype=torch.int16)
    whole = torch.ones_like(case, dtype=torch.bool)
    inside = field < 0
    for corner in range(8):
        part = (slice(None), *(far if corner >> axis & 1 else near for axis in (2, 1, 0)))
        case += inside[part].to(torch.int16) << corner
        whole &= known[part]
    block, z, y, x = ((case > 0) & (case < 255) & whole).nonzero().unbind(1)
    edges = torch.from_numpy(table())[case[block, z, y, x].long()]  # [cells, triangles, 3]
    cell, triangle = (edges[:, :, 0] >= 0).nonzero().unbind(1)
    edges = edges[cell, triangle].long().reshape(-1)
    cell = cell.repeat_interleave(3)
    from_to = torch.tensor(EDGES)[edges]
    ends, values = [], []
    for corner in from_to.unbind(1):
        local = torch.stack([x[cell] + (corner & 1), y[cell] + (corner >> 1 & 1), z[cell] + (corner >> 2)], dim=1)
        ends.append(local + BLOCK * places[block[cell]])
        values.append(field[block[cell], local[:, 2], local[:, 1], local[:, 0]].double())
    share = values[0] / (values[0] - values[1])
    points = ends[0] + share[:, None] * (ends[1] - ends[0])
    number = 3 * _number(ends[0], BLOCK * span) + (edges // 4)  # four edges along each axis
    return number.view(-1, 3).numpy(), points.numpy()


@lru_cache(maxsize=1)
def table() -> NDArray[np.int8]:
    """[256, T, 3] edges at the corners of the triangles of each case, -1 where there are no more."""
    cases = [[triangle for loop in _loops(case) for triangle in _filled(loop)] for case in range(256)]
    filled = np.full((256, max(map(len, cases)), 3), -1, dtype=np.int8)
    for case, triangles in enumerate(cases):
        filled[case, : len(triangles)] = np.array(triangles, dtype=np.int8).reshape(-1, 3)
    return filled


def _loops(case: int) -> list[list[int]]:
    """Edges that the surface crosses, in the order of each loop around the cell, anticlockwise from outside."""
    after: dict[int, int] = {}
    for side in SIDES:
        inside = [case >> corner & 1 for corner in side]
        crossed = [EDGE_OF[frozenset((side[i], side[(i + 1) % 4]))] for i in range(4)]
        for i in range(4):
            if not inside[i] and inside[(i + 1) % 4]:
                end = next(k % 4 for k in range(i + 1, i + 5) if not inside[(k + 1) % 4])
                after[crossed[i]] = crossed[end]
    loops = []
    while after:
        first, edge = after.popitem()
        loop = [first]
        while edge != first:
            loop.append(edge)
            edge = after.pop(edge)
        loops.append(loop)
    return loops


def _filled(loop: list[int]) -> list[tuple[int, int, int]]:
    """Triangles that fill a loop, with as few of their inner edges as can be on a side of the cell.

    There, the neighbouring cell might draw the same one, and four faces would meet in it.
    """
    if len(loop) == 3:
        return [(loop[0], loop[1], loop[2])]
    ways = []
    for k in range(1, len(loop) - 1):  # the third corner of the triangle at the edge from the last to the first
        parts = [part for part in (loop[: k + 1], loop[k:]) if len(part) > 2]
        ways.append([(loop[-1], loop[0], loop[k]), *(triangle for part in parts for triangle in _filled(part))])
    return min(ways, key=lambda way: _on_sides(way, loop))


def _on_sides(triangles: list[tuple[int, int, int]], loop: list[int]) -> int:
    """How many inner edges of the triangles lie on a side of the cell."""
    around = {frozenset((a, b)) for a, b in zip(loop, loop[1:] + loop[:1], strict=True)}
    drawn = {frozenset((t[i], t[(i + 1) % 3])) for t in triangles for i in range(3)} - around
    flat = [{EDGE_OF[frozenset((side[i], side[(i + 1) % 4]))] for i in range(4)} for side in SIDES]
    return sum(any(pair <= side for side in flat) for pair in drawn)
