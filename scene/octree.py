"""An octree of cubes with constant density and colour (PlenOctrees, Yu et al., 2021), and edits of its leaves.

Kept as the list of its leaves in Morton order, with a row of numbers for each (scene/ops/octree_render.py says which);
what no leaf covers is empty and costs nothing. A leaf of level l is a cube with side 2^-l of the unit cube, into which
a point x of the world falls at offset + invradius x. In PlenOctree files (scene/formats/octree_npz.py) a leaf of level
l is a child of a node of depth l - 1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from scene import sh
from scene.ops.octree_index import FINEST, OctreeIndex, build_index, decode, encode, locate, span


@dataclass(frozen=True)
class Octree:
    """Leaves and their numbers, a row for each leaf of `index`.

    sigmas: [L] density per unit of the world; below 0 it counts as 0.  sh_coeffs: [L, K, 3] colour before the sigmoid.
    """

    sigmas: Tensor
    sh_coeffs: Tensor
    index: OctreeIndex

    @staticmethod
    def of(
        codes: Tensor, levels: Tensor, sigmas: Tensor, sh_coeffs: Tensor, offset: Tensor, invradius: Tensor
    ) -> Octree:
        """An octree of leaves in ascending order of their codes; the index is built here.

        codes: [L] int64.  levels: [L] int32.  offset, invradius: [3].  Raises ValueError when leaves overlap or shapes
        do not fit.
        """
        if sigmas.shape != codes.shape or sh_coeffs.dim() != 3 or len(sh_coeffs) != len(codes):
            raise ValueError(
                f"sigmas must be [{len(codes)}] and sh_coeffs [{len(codes)}, K, 3], got {tuple(sigmas.shape)} and "
                f"{tuple(sh_coeffs.shape)}"
            )
        sh.degree_of(sh_coeffs.shape[1])
        return Octree(sigmas, sh_coeffs, build_index(codes, levels, offset, invradius))

    def __len__(self) -> int:
        return len(self.sigmas)

    @property
    def sh_degree(self) -> int:
        """Degree of the colours."""
        return sh.degree_of(self.sh_coeffs.shape[1])

    @property
    def sides(self) -> Tensor:
        """[L] side of each leaf in the unit cube."""
        return 0.5 ** self.index.levels.to(self.sigmas)

    @property
    def corners(self) -> Tensor:
        """[L, 3] lowest corner of each leaf in the unit cube."""
        return decode(self.index.codes).to(self.sigmas) / (1 << FINEST)

    def to_world(self, points: Tensor) -> Tensor:
        """Points [..., 3] of the unit cube in the world."""
        return (points - self.index.offset.to(points)) / self.index.invradius.to(points)

    def to_cube(self, points: Tensor) -> Tensor:
        """Points [..., 3] of the world in the unit cube."""
        return self.index.offset.to(points) + self.index.invradius.to(points) * points

    def query(self, points: Tensor) -> Tensor:
        """[P] int64: row of the leaf that holds each point [P, 3] of the world, -1 where it is empty."""
        return locate(self.index, self.to_cube(points))[0]

    def to(self, *, device: torch.device | str) -> Octree:
        """The same octree on another device."""
        i = self.index
        moved = {name: getattr(i, name).to(device) for name in ("codes", "levels", "top", "nodes")}
        return Octree(self.sigmas.to(device), self.sh_coeffs.to(device), replace(i, **moved))


def from_cells(
    cells: Tensor, level: int, sigmas: Tensor, sh_coeffs: Tensor, offset: Tensor, invradius: Tensor
) -> Octree:
    """An octree of leaves of one level at cells [L, 3] (0 to 2^level - 1, none twice), in any order."""
    codes, order = encode(cells.long() << FINEST - level).sort()
    levels = torch.full_like(codes, level, dtype=torch.int32)
    return Octree.of(codes, levels, sigmas[order], sh_coeffs[order], offset, invradius)


@dataclass(frozen=True)
class Edit:
    """An octree after an edit, and from which rows each of its leaves came.

    first: [L'] int64, row of the first source.  counts: [L'] int64; sources are consecutive rows, more than one where
    siblings were merged.
    """

    octree: Octree
    first: Tensor
    counts: Tensor

    def carry(self, values: Tensor) -> Tensor:
        """Per-row values [L, ...] such as moments, for the rows after the edit: a merged row gets the mean."""
        taken = values[self.first]
        merged = (self.counts > 1).nonzero().squeeze(1)
        if len(merged):
            taken[merged] = _sums(values, self.first[merged], self.counts[merged]) / self.counts[merged].to(
                values
            ).view(-1, *[1] * (values.dim() - 1))
        return taken

    def carry_sum(self, values: Tensor) -> Tensor:
        """As `carry`, but a merged row gets the sum."""
        taken = values[self.first]
        merged = (self.counts > 1).nonzero().squeeze(1)
        if len(merged):
            taken[merged] = _sums(values, self.first[merged], self.counts[merged])
        return taken


@dataclass(frozen=True)
class Siblings:
    """Groups of leaves that are all there is in their parent; other children of the parent are empty.

    first, counts: [G] int64, rows of the group.
    """

    first: Tensor
    counts: Tensor

    def sums(self, values: Tensor) -> Tensor:
        """[G, ...] sums of per-row values [L, ...] over each group."""
        return _sums(values, self.first, self.counts)


def siblings(octree: Octree) -> Siblings:
    """All groups of leaves that could be merged, in order."""
    codes, levels = octree.index.codes, octree.index.levels
    if not len(codes):
        return Siblings(codes, codes)
    parents = span((levels - 1).clamp_min(0))
    starts = codes & -parents
    key = torch.stack([starts, levels.long()])
    new = torch.ones_like(levels, dtype=torch.bool)
    new[1:] = (key[:, 1:] != key[:, :-1]).any(0)
    first = new.nonzero().squeeze(1)
    ends = torch.cat([first[1:], first.new_tensor([len(codes)])])
    before, behind = codes[(first - 1).clamp_min(0)], codes[ends.clamp_max(len(codes) - 1)]
    alone = ((first == 0) | (before < starts[first])) & (
        (ends == len(codes)) | (behind >= starts[first] + parents[first])
    )
    alone &= levels[first] > 1  # files have at least one node
    return Siblings(first[alone], (ends - first)[alone])


def keep(octree: Octree, kept: Tensor) -> Edit:
    """Only the leaves where kept [L] is true; the others become empty."""
    rows = kept.nonzero().squeeze(1)
    return _edit(octree, rows, torch.ones_like(rows), octree.index.levels[rows])


def merge(octree: Octree, group: Siblings) -> Edit:
    """Each group becomes one leaf: mean sigma over eight children, colours weighted by sigma (specs/recon.md, 2h)."""
    count, device = len(octree), octree.sigmas.device
    absorbed = torch.zeros(count, dtype=torch.bool, device=device)
    members, _ = _members(group.first, group.counts)
    absorbed[members] = True
    absorbed[group.first] = False
    counts = torch.ones(count, dtype=torch.int64, device=device)
    counts[group.first] = group.counts
    levels, sigmas, sh_coeffs = octree.index.levels.clone(), octree.sigmas.clone(), octree.sh_coeffs.clone()
    levels[group.first] -= 1
    sigmas[group.first], sh_coeffs[group.first] = _mixed(octree, group)
    rows = (~absorbed).nonzero().squeeze(1)
    return _edit(replace(octree, sigmas=sigmas, sh_coeffs=sh_coeffs), rows, counts[rows], levels[rows])


def split(octree: Octree, chosen: Tensor) -> Edit:
    """Leaves where chosen [L] is true become eight copies of half their side."""
    chosen = chosen & (octree.index.levels < FINEST)
    repeats = torch.where(chosen, 8, 1)
    rows = torch.repeat_interleave(torch.arange(len(octree), device=chosen.device), repeats)
    within = torch.arange(len(rows), device=chosen.device) - (repeats.cumsum(0) - repeats)[rows]
    levels = octree.index.levels[rows] + chosen[rows].int()
    codes = octree.index.codes[rows] + within * span(levels)
    new = Octree.of(codes, levels, *_rows(octree, rows))
    return Edit(new, rows, torch.ones_like(rows))


def _edit(octree: Octree, rows: Tensor, counts: Tensor, levels: Tensor) -> Edit:
    codes = octree.index.codes[rows] & -span(levels)
    return Edit(Octree.of(codes, levels, *_rows(octree, rows)), rows, counts)


def _rows(octree: Octree, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return octree.sigmas[rows], octree.sh_coeffs[rows], octree.index.offset, octree.index.invradius


def _mixed(octree: Octree, group: Siblings) -> tuple[Tensor, Tensor]:
    """sigmas [G] and sh_coeffs [G, K, 3] of the merged leaves."""
    weights = octree.sigmas.clamp_min(0)
    total = group.sums(weights)
    plain = group.sums(octree.sh_coeffs) / group.counts.to(total)[:, None, None]
    weighted = group.sums(octree.sh_coeffs * weights[:, None, None]) / total.clamp_min(1e-30)[:, None, None]
    return total / 8, torch.where((total > 0)[:, None, None], weighted, plain)


def _members(first: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of all groups, and to which group each belongs."""
    groups = torch.repeat_interleave(torch.arange(len(first), device=first.device), counts)
    within = torch.arange(len(groups), device=first.device) - (counts.cumsum(0) - counts)[groups]
    return first[groups] + within, groups


def _sums(values: Tensor, first: Tensor, counts: Tensor) -> Tensor:
    """Sums of consecutive rows."""
    members, groups = _members(first, counts)
    return values.new_zeros(len(first), *values.shape[1:]).index_add(0, groups, values[members])
