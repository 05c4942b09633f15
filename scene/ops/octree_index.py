"""Where the leaves of an octree lie, and a table that finds the leaf at a point in one to three look-ups.

A leaf is a cube with side 2^-level of the unit cube. Its code is the Morton number of its corner on the finest lattice
of 2^16 cells a side; leaves ascend by code, so that all that lies inside a cube is one range of rows. What no leaf
covers is empty. The table is rebuilt when the leaves change: a grid of at most 64^3 words, then nodes of 4x4x4 words
(two levels at a time). A word names a leaf and its level, or a node; the word of an empty cell tells for each of the
eight octants how large a cube with its corner in this cell is empty, so that a ray crosses free space in few steps and
leaves a surface as fast as it pleases.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

FINEST = 16  # levels of the lattice that codes count on
TOP_LEVEL = 6
EMPTY = 1 << 30  # as in cuda/math/octree.h: words from here on name no leaf
MAX_LEAVES = 1 << 25
REACHES = (1, 1, 2, 3, 4, 6, 8, 12)  # cells, by the three bits that an empty word has for each octant
NODE_REACH = 4  # cells of a node, seen with its neighbours


@dataclass(frozen=True)
class OctreeIndex:
    """The table for one set of leaves; see `build_index`.

    codes: [L] int64, ascending.  levels: [L] int32.  offset, invradius: [3] float64 on the CPU; a point x of the world
    is offset + invradius x in the unit cube.  top: [T, T, T] int32.  nodes: [N, 4, 4, 4] int32.  boxes:
    [B, 6] int16, of what each cell of the grid holds, first corner and last in quarters of a cell.  shape: [8] int32 on
    the CPU: levels of the grid and of the lattice that the words count on, then the box of that lattice that holds
    all leaves, first cells and ends.
    """

    codes: Tensor
    levels: Tensor
    offset: Tensor
    invradius: Tensor
    top: Tensor
    nodes: Tensor
    boxes: Tensor
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

    top = torch.full((1 << 3 * top_level,), EMPTY, dtype=torch.int32, device=codes.device)
    nodes = torch.full((count, 64), EMPTY, dtype=torch.int32, device=codes.device)
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
    nodes = nodes[:, _order(2).to(codes.device)].view(count, 4, 4, 4)
    for i in range(wide):
        part = nodes[first[i] : first[i + 1]]
        part += _node_reaches(part < EMPTY, keys[i], codes, levels, top_level + 2 * i)
    top = top[_order(top_level).to(codes.device)].view(3 * (1 << top_level,))
    low, high = _bounds(codes, levels, lattice)
    return OctreeIndex(
        codes,
        levels,
        offset.detach().cpu().double(),
        invradius.detach().cpu().double(),
        top + _grid_reaches(top < EMPTY),
        nodes,
        _boxes(top, nodes),
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


def _boxes(top: Tensor, nodes: Tensor) -> Tensor:
    """The boxes of what the cells of the grid hold, [B, 6] int16. top: [T, T, T].  nodes: [N, 4, 4, 4]."""
    cells = (top < EMPTY).nonzero()
    words = top[cells.unbind(1)]
    boxes = 4 * torch.cat([cells, cells + 1], dim=1)  # of leaves
    deeper = words < 0
    held = nodes[~words[deeper].long()] < EMPTY
    for axis in range(3):
        others = [1 + other for other in range(3) if other != axis]
        slices = held.any(others[1]).any(others[0])  # [B', 4]
        boxes[deeper, axis] += (slices.cumsum(1) == 0).sum(1)
        boxes[deeper, 3 + axis] -= (slices.flip(1).cumsum(1) == 0).sum(1)
    return boxes.short()


def _grid_reaches(held: Tensor) -> Tensor:
    """What empty words of the grid tell: [T, T, T] int32, three bits for each octant. held: [T, T, T] bool."""
    told = torch.zeros_like(held, dtype=torch.int32)
    for octant in range(8):
        flips = [axis for axis in range(3) if not octant >> (2 - axis) & 1]
        near = held.flip(flips)
        reach = torch.ones_like(near, dtype=torch.uint8)
        for _ in range(2, REACHES[-1] + 1):
            for axis in range(3):
                wider = near.clone()
                wider.narrow(axis, 0, len(near) - 1).logical_or_(near.narrow(axis, 1, len(near) - 1))
                near = wider
            reach += ~near
        told |= _code_of(reach).flip(flips) << 3 * octant
    return torch.where(held, 0, told)


def _node_reaches(held: Tensor, keys: Tensor, codes: Tensor, levels: Tensor, level: int) -> Tensor:
    """As `_grid_reaches` for the cells of nodes [N, 4, 4, 4] that fill cubes `keys` [N] of `level`, up to NODE_REACH.

    Cells along z become bits, four of a node and four of its neighbour in one byte.
    """
    count = len(keys)
    beside = _neighbours(keys, codes, levels, level).view(3, 3, 3, count)
    bits = torch.tensor([1, 2, 4, 8], dtype=torch.uint8, device=held.device)
    told = torch.zeros(count, 4, 4, 4, dtype=torch.int32, device=held.device)
    nothing = torch.tensor([[[0]], [[15]]], dtype=torch.uint8, device=held.device).expand(2, 4, 4)
    for octant in range(8):
        up = [1 if octant >> (2 - axis) & 1 else -1 for axis in range(3)]
        flips = [1 + axis for axis in range(3) if up[axis] < 0]
        nibbles = torch.cat([(held.flip(flips) * bits).sum(-1, dtype=torch.uint8), nothing])  # as seen on this way
        block = nibbles.new_empty(count, 8, 8)
        for x in (0, 1):
            for y in (0, 1):
                near, far = (nibbles[beside[1 + x * up[0], 1 + y * up[1], 1 + z * up[2]]] for z in (0, 1))
                block[:, 4 * x : 4 * x + 4, 4 * y : 4 * y + 4] = near | far << 4
        reach = torch.ones_like(told, dtype=torch.uint8)
        for _ in range(2, NODE_REACH + 1):
            block = block | block >> 1
            block = block[:, :-1] | block[:, 1:]
            block = block[:, :, :-1] | block[:, :, 1:]
            reach += (block[:, :4, :4, None] & bits) == 0
        code = reach - (reach == 1).to(reach.dtype)  # of REACHES: 0, 2, 3, 4
        told |= code.flip(flips).int() << 3 * octant
    return torch.where(held, 0, told)


def _neighbours(keys: Tensor, codes: Tensor, levels: Tensor, level: int) -> Tensor:
    """[27, N] numbers of the nodes around each node, itself in the middle, sides in order of x, y, z.

    N stands for an empty cube, N + 1 for one that a leaf covers.
    """
    count, fine = len(keys), FINEST - level
    cells = decode(keys << 3 * fine) >> fine
    steps = torch.arange(-1, 2, device=keys.device)
    cells = cells + torch.stack(torch.meshgrid(steps, steps, steps, indexing="ij"), dim=-1).view(27, 1, 3)
    inside = ((cells >= 0) & (cells < 1 << level)).all(-1)
    beside = encode(cells.clamp(0, (1 << level) - 1))
    found = torch.searchsorted(keys, beside).clamp_max(count - 1)
    found = torch.where((keys[found] == beside) & inside, found, count)
    missing = ((found == count) & inside).nonzero(as_tuple=True)
    starts = beside[missing] << 3 * fine
    rows = (torch.searchsorted(codes, starts, right=True) - 1).clamp_min(0)
    covered = (codes[rows] <= starts) & (starts < codes[rows] + span(levels[rows]))
    found[missing] += covered.long()
    return found


def _code_of(reach: Tensor) -> Tensor:
    """The largest of REACHES that is no more than each of `reach` (uint8, 1 or more), as its number; int32."""
    codes = [max(i for i, each in enumerate(REACHES) if each <= cells) for cells in range(1, REACHES[-1] + 1)]
    codes = [0 if code == 1 else code for code in codes]
    return torch.tensor([0, *codes], dtype=torch.int32, device=reach.device)[reach.int()]


@lru_cache(maxsize=8)
def _order(level: int) -> Tensor:
    """Morton number of each cell of a grid of 2^level cells a side, in order of x, y, z; [8^level] int64."""
    steps = torch.arange(1 << level)
    return encode(torch.stack(torch.meshgrid(steps, steps, steps, indexing="ij"), dim=-1).view(-1, 3))
