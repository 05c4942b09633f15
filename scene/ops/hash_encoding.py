"""Features of places in a multiresolution hash grid: Instant-NGP (Müller et al. 2022, 2201.05989), section 3.

Level l divides the unit cube into N_l = floor(base * growth^l) cells along an edge (eq. 2 and 3). Each vertex has a row
of features in the level's part of one table; where there are more vertices than 2^log2_rows, they share rows by a hash
(eq. 4). A place's features are interpolated between its cell's corners and put side by side, level after level.
Departures: dense parts are not padded to multiples of eight rows, as the authors' code does.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from scene.ops import native

PRIMES = (1, 2654435761, 805459861)
MOST_CELLS = 1 << 20  # along an edge; float32 then still tells eight places in a cell apart
MOST_ROWS = 2**31 - 1  # of the table: rows are numbered by int32


@dataclass(frozen=True)
class HashLevels:
    """The shape of a table. The defaults are the paper's for scenes, up to N = 4096.

    levels: L.  features: F, numbers in a row.  log2_rows: of T, the most rows of a level.  base: N_min.  growth: b.
    Raises ValueError for what no table can be.
    """

    levels: int = 16
    features: int = 2
    log2_rows: int = 19
    base: int = 16
    growth: float = 1.4473

    def __post_init__(self) -> None:
        if not (1 <= self.levels <= 64 and self.features in (1, 2, 4, 8) and 1 <= self.log2_rows <= 28):
            raise ValueError(
                f"a hash grid has 1 to 64 levels, 1, 2, 4 or 8 features and 2^1 to 2^28 rows a level, got {self.levels}"
                f" levels, {self.features} features and 2^{self.log2_rows} rows"
            )
        if not (self.base >= 1 and 1 <= self.growth < MOST_CELLS):
            raise ValueError(f"base and growth must be 1 or more, got {self.base} and {self.growth}")
        if self.base * self.growth ** (self.levels - 1) > MOST_CELLS or self.rows > MOST_ROWS:
            raise ValueError(
                f"the finest level may have {MOST_CELLS} cells along an edge and the table {MOST_ROWS} rows; take fewer"
                " levels, less growth or fewer rows"
            )

    @cached_property
    def cells(self) -> tuple[int, ...]:
        """N_l of each level."""
        return tuple(int(self.base * self.growth**level) for level in range(self.levels))

    @cached_property
    def first_rows(self) -> tuple[int, ...]:
        """Where each level's rows begin in the table, and how many there are in all."""
        firsts = [0]
        for cells in self.cells:
            firsts.append(firsts[-1] + min((cells + 1) ** 3, 1 << self.log2_rows))
        return tuple(firsts)

    @property
    def rows(self) -> int:
        """Of the whole table."""
        return self.first_rows[-1]

    @property
    def width(self) -> int:
        """Numbers that describe a place, L F."""
        return self.levels * self.features


def hash_encode(table: Tensor, levels: HashLevels, points: Tensor) -> Tensor:
    """Features [M, L F] of points, level by level.

    table: [levels.rows, F], float32 or float64.  points: [M, 3] in the unit cube; places outside count as the nearest
    face, NaN as 0.  Differentiable, once, in table and points; in points the slope is that of the cell, 0 outside.
    Raises ValueError when shapes, dtypes or devices do not fit.
    """
    _check(table, levels, points)
    if not native.has(table.device, table.dtype):
        return hash_encode_reference(table, levels, points)
    return _HashEncode.apply(table, points, levels)  # type: ignore[return-value]


def hash_encode_reference(table: Tensor, levels: HashLevels, points: Tensor) -> Tensor:
    """The same in plain torch."""
    inside, found = points.nan_to_num(0.0).clamp(0, 1), []
    for cells, first, end in zip(levels.cells, levels.first_rows, levels.first_rows[1:]):
        lower = (inside.detach() * cells).long().clamp(max=cells - 1)
        share = inside * cells - lower
        features = points.new_zeros(len(points), levels.features)
        for corner in range(8):
            up = torch.tensor([corner >> 2 & 1, corner >> 1 & 1, corner & 1], device=points.device)
            weight = torch.where(up == 1, share, 1 - share).prod(-1)
            row = _rows_of(lower + up, cells, end - first)
            features = features + weight[:, None] * table[first + row]
        found.append(features)
    return torch.cat(found, dim=1)


def _rows_of(vertices: Tensor, cells: int, rows: int) -> Tensor:
    """[M] rows in a level's part of the table of vertices [M, 3]."""
    x, y, z = vertices.unbind(-1)
    if rows == (cells + 1) ** 3:
        return x + (y + z * (cells + 1)) * (cells + 1)
    return (x * PRIMES[0] ^ y * PRIMES[1] ^ z * PRIMES[2]) % rows


class _HashEncode(torch.autograd.Function):
    @staticmethod
    def forward(ctx, table: Tensor, points: Tensor, levels: HashLevels) -> Tensor:
        ctx.save_for_backward(table, points)
        ctx.levels = levels
        table, points = table.detach().contiguous(), points.detach().contiguous()
        out = table.new_empty(len(points), levels.width)
        native.kernels(table.device).hash_encode(table, *_on(levels, table.device), points, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, v_out):  # pyright: ignore[reportIncompatibleMethodOverride]
        table, points = (value.detach().contiguous() for value in ctx.saved_tensors)
        v_out, v_table, v_points = v_out.contiguous(), None, None
        kernels, shape = native.kernels(table.device), _on(ctx.levels, table.device)
        if ctx.needs_input_grad[0]:
            v_table = torch.zeros_like(table)
            kernels.hash_encode_backward(v_out, *shape, points, v_table)
        if ctx.needs_input_grad[1]:
            v_points = torch.empty_like(points)
            kernels.hash_encode_slopes(v_out, table, *shape, points, v_points)
        return v_table, v_points, None


@lru_cache(maxsize=64)
def _on(levels: HashLevels, device: torch.device) -> tuple[Tensor, Tensor]:
    """cells and first_rows as kernels take them; copied to a device once."""
    cells, first_rows = (torch.tensor(values, dtype=torch.int32) for values in (levels.cells, levels.first_rows))
    return cells.to(device), first_rows.to(device)


def _check(table: Tensor, levels: HashLevels, points: Tensor) -> None:
    wanted = (levels.rows, levels.features)
    if tuple(table.shape) != wanted or table.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"table must be {wanted} float32 or float64, got {tuple(table.shape)} {table.dtype}")
    if points.dim() != 2 or points.shape[1] != 3 or points.dtype != table.dtype:
        raise ValueError(f"points must be [M, 3] {table.dtype} like table, got {tuple(points.shape)} {points.dtype}")
    if table.device != points.device:
        raise ValueError(f"table and points must lie on one device, got {table.device} and {points.device}")
