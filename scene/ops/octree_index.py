"""Where the leaves of an octree lie, and a table that finds the leaf at a point in one to three look-ups.

A leaf is a cube with side 2^-level of the unit cube. Its code is the Morton number of its corner on the finest lattice
of 2^16 cells a side; leaves ascend by code, so that all that lies inside a cube is one range of rows. What no leaf
covers is empty. The table is rebuilt when the leaves change: a grid of at most 64^3 words, then nodes of 4x4x4 words
(two levels at a time). A word names a leaf and its level, an empty cube and its level, or a node; an empty word of the
grid holds how far the nearest content is, so that a ray crosses free space in few steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

FINEST = 16  # levels of the lattice that codes count on
TOP_LEVEL = 6
EMPTY = (1 << 26) - 1  # as in cuda/math/octree.h: rows of words that name no leaf
FAR = (1 << 26) - 2
MAX_LEAVES = 1 << 25
REACH = 31  # cells that an empty word can tell


@dataclass(frozen=True)
class OctreeIndex:
    """The table for one set of leaves; see `build_index`.

    codes: [L] int64, ascending.  levels: [L] int32.  offset, invradius: [3] float64 on the CPU; a point x of the world
    is offset + invradius x in the unit cube.  top: [T, T, T] int32.  nodes: [N, 4, 4, 4] int32.  shape: [8] int32 on
    the CPU: levels of the grid and of the lattice that the words count on, then the box of that lattice that holds
    all leaves, first cells and ends.
    """

    codes: Tensor
    levels: Tensor
    offset: Tensor
    invradius: Tensor
    top: Tensor
    nodes: Tensor
    shape: Tensor

    @property
    def frame(self) -> Tensor:
        """[6] float64: offset and invradius."""
        return torch.cat([self.offset, self.invradius])


_SPREAD = ((16, 0xFF0000FF), (8, 0xF00F00F00F), (4, 0xC30C30C30C3), (2, 0x249249249249))


def encode(cells: Tensor) -> Tensor:
    """Morton numbers [...] int64 of cells [..., 3] (0 to 2^16 - 1); x is the highest of each three bits."""
    parts = cells.long()
    for shift, mask in _SPREAD:
        parts = (parts | parts << shift) & mask
    return parts[..., 0] << 2 | parts[..., 1] << 1 | parts[..., 2]


def decode(codes: Tensor) -> Tensor:
    """Cells [..., 3] int64 of Morton numbers; inverse of `encode`."""
    parts = torch.stack([codes >> 2, codes >> 1, codes], dim=-1) & _SPREAD[-1][1]
    for (shift, _), mask in zip(reversed(_SPREAD), (0xC30C30C30C3, 0xF00F00F00F, 0xFF0000FF, 0xFFFF), strict=True):
        parts = (parts | parts >> shift) & mask
    return parts


def span(levels: Tensor) -> Tensor:
    """How many finest cells a cube of each level holds, int64."""
    return torch.ones_like(levels, dtype=torch.int64) << 3 * (FINEST - levels.long())


def build_index(codes: Tensor, levels: Tensor, offset: Tensor, invradius: Tensor) -> OctreeIndex:
    """The table for leaves with these codes [L] int64 and levels [L] int32 (0 to 16).

    offset, invradius: [3].  Raises ValueError when the leaves do not ascend, overlap or leave the cube.
    """
    _check(codes, levels)
    finest = int(levels.max()) if len(levels) else 0
    top_level = min(TOP_LEVEL, finest)
    wide = -(-(finest - top_level) // 2)  # levels of nodes
    lattice = top_level + 2 * wide
    keys = [
        torch.unique_consecutive(_ancestors(codes[levels > top_level + 2 * i], top_level + 2 * i)) for i in range(wide)
    ]
    first = [sum(len(part) for part in keys[:i]) for i in range(wide + 1)]
    count = first[-1]

    top = torch.full((1 << 3 * top_level,), EMPTY << 5 | top_level, dtype=torch.int32, device=codes.device)
    nodes = torch.empty(count, 64, dtype=torch.int32, device=codes.device)
    for i in range(wide):
        nodes[first[i] : first[i + 1]] = EMPTY << 5 | (top_level + 2 * i + 2)
    rows = torch.arange(len(codes), device=codes.device)
    words = (rows << 5 | levels).int()
    _paint(top, words, codes, levels, (levels <= top_level).nonzero().squeeze(1), top_level, None)
    for i in range(wide):
        base = top_level + 2 * i
        inside = ((levels > base) & (levels <= base + 2)).nonzero().squeeze(1)
        _paint(nodes.view(-1), words, codes, levels, inside, base + 2, (keys[i], first[i]))
        holder = top if i == 0 else nodes.view(-1)
        places = keys[i] if i == 0 else _places(keys[i], keys[i - 1], first[i - 1])
        holder[places] = ~torch.arange(first[i], first[i + 1], dtype=torch.int32, device=codes.device)
    eights = nodes.view(count, 8, 8)
    hollow = (eights >> 5 == EMPTY).all(dim=2, keepdim=True)
    nodes = torch.where(hollow, eights - 1, eights).view(count, 64)[:, _order(2).to(codes.device)]
    top = top[_order(top_level).to(codes.device)].view(3 * (1 << top_level,))
    low, high = _bounds(codes, levels, lattice)
    return OctreeIndex(
        codes,
        levels,
        offset.detach().cpu().double(),
        invradius.detach().cpu().double(),
        _with_distances(top),
        nodes.view(-1, 4, 4, 4).contiguous(),
        torch.tensor([top_level, lattice, *low, *high], dtype=torch.int32),
    )


def locate(index: OctreeIndex, points: Tensor) -> tuple[Tensor, Tensor]:
    """Row of the leaf that holds each point of the unit cube [P, 3], -1 for none, and the point's code; [P] int64."""
    cells = (points * (1 << FINEST)).floor().long()
    inside = ((cells >= 0) & (cells < 1 << FINEST)).all(dim=-1)
    codes = encode(cells.clamp(0, (1 << FINEST) - 1))
    return torch.where(inside, locate_codes(index, codes), -1), codes


def locate_codes(index: OctreeIndex, codes: Tensor) -> Tensor:
    """Row of the leaf that holds each finest cell [P] int64, -1 for none."""
    if not len(index.codes):
        return torch.full_like(codes, -1)
    rows = torch.searchsorted(index.codes, codes, right=True) - 1
    near = rows.clamp_min(0)
    held = (rows >= 0) & (codes < index.codes[near] + span(index.levels[near]))
    return torch.where(held, rows, -1)


def _check(codes: Tensor, levels: Tensor) -> None:
    if codes.dtype != torch.int64 or levels.dtype != torch.int32 or codes.shape != levels.shape or codes.dim() != 1:
        raise ValueError(f"codes must be [L] int64 and levels [L] int32, got {codes.dtype} and {levels.dtype}")
    if len(codes) > MAX_LEAVES:
        raise ValueError(f"an octree has at most {MAX_LEAVES:,} leaves, got {len(codes):,}")
    if not len(codes):
        return
    ends = codes + span(levels)
    sound = (levels >= 0).all() & (levels <= FINEST).all() & ((codes & (span(levels) - 1)) == 0).all()
    if not bool(sound & (codes[1:] >= ends[:-1]).all() & (codes[0] >= 0) & (ends[-1] <= 1 << 3 * FINEST)):
        raise ValueError("leaves must ascend by code without overlap, each on the lattice of its level")


def _ancestors(codes: Tensor, level: int) -> Tensor:
    """Morton numbers on the lattice of `level`."""
    return codes >> 3 * (FINEST - level)


def _places(keys: Tensor, parents: Tensor, first: int) -> Tensor:
    """Where in `nodes` the cells with Morton numbers `keys` stand, two levels below the nodes `parents`."""
    return (torch.searchsorted(parents, keys >> 6) + first) * 64 + (keys & 63)


def _paint(
    table: Tensor,
    words: Tensor,
    codes: Tensor,
    levels: Tensor,
    rows: Tensor,
    level: int,
    parents: tuple[Tensor, int] | None,
) -> None:
    """Writes the words of `rows` into all cells of `level` that they cover."""
    if not len(rows):
        return
    counts = torch.ones_like(rows) << 3 * (level - levels[rows].long())
    keys = _ancestors(codes[rows], level)
    starts = keys if parents is None else _places(keys, *parents)
    if int(counts.max()) > 1:
        within = torch.arange(int(counts.sum()), device=codes.device)
        within -= torch.repeat_interleave(counts.cumsum(0) - counts, counts)
        starts, rows = torch.repeat_interleave(starts, counts) + within, torch.repeat_interleave(rows, counts)
    table[starts] = words[rows]


def _bounds(codes: Tensor, levels: Tensor, lattice: int) -> tuple[list[int], list[int]]:
    """First cells and ends of the box on the lattice of level `lattice` that holds all leaves."""
    if not len(codes):
        return [0] * 3, [0] * 3
    corners = decode(codes)
    low = corners.amin(0) >> FINEST - lattice
    sides = torch.ones_like(codes) << FINEST - levels.long()
    high = (corners + sides[:, None]).amax(0) - 1 >> FINEST - lattice
    return low.tolist(), (high + 1).tolist()


def _with_distances(top: Tensor) -> Tensor:
    """Empty words of the grid become FAR and the number of rings of cells around them up to the first content."""
    near = (top >> 5) != EMPTY
    distance = torch.ones_like(top)
    for ring in range(1, min(REACH, len(top))):
        grown = near
        for dim in range(3):
            wider, last = grown.clone(), len(top) - 1
            wider.narrow(dim, 0, last).logical_or_(grown.narrow(dim, 1, last))
            wider.narrow(dim, 1, last).logical_or_(grown.narrow(dim, 0, last))
            grown = wider
        if bool(grown.all()):
            break
        near = grown
        distance[~near] = ring + 1
    return torch.where((top >> 5) == EMPTY, FAR << 5 | distance, top).contiguous()


@lru_cache(maxsize=8)
def _order(level: int) -> Tensor:
    """Morton number of each cell of a grid of 2^level cells a side, in order of x, y, z; [8^level] int64."""
    steps = torch.arange(1 << level)
    return encode(torch.stack(torch.meshgrid(steps, steps, steps, indexing="ij"), dim=-1).view(-1, 3))
