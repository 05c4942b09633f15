"""Binning of splats on the GPU, counterpart of the compiled SplatBins: cuda/gpu/splat_bin.cu.

How many tiles each splat touches is counted; the splats are sorted by depth; a scan of the counts in that order gives
each splat its slots; each splat writes the tiles it touches there; a stable sort by tile leaves each tile's splats in
depth order. The number of pairs stays on the device: see `SplatBins.build`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scene.ops.gpu.late_read import LateRead
from scene.ops.gpu.launch import blocks, launch, scratch
from scene.ops.gpu.radix_sort import sort_places
from scene.ops.gpu.scan import exclusive_sum
from scene.ops.splat_bin import block_masks, tile_grid

THREADS = 256
MOST_SIDE = 1 << 16  # px
MOST_PAIRS = 1 << 30  # slots are ints, and sums of counts stop at 2^31 - 1
SPARE = 1.25  # room per pair that was needed: views differ, and splats grow


class SplatBins:
    """Which splats touch which tile, front to back. All tensors are int32 on the device, valid until the next build."""

    width: int
    height: int
    columns: int  # of tiles
    rows: int
    count: int  # splats, V
    order: Tensor  # [V] splats front to back; ties by row, NaN last or first by its sign
    tile_begin: Tensor  # [tiles + 1] where each tile's pairs begin; the last entry is the number of pairs listed
    pair_splat: Tensor  # [room] sorted by tile, then by depth
    pair_slot: Tensor  # [room] where the pair stands when pairs are listed splat by splat
    slot_first: Tensor  # [V] the slots of a splat are slot_first .. slot_first + slot_count - 1
    slot_count: Tensor  # [V]
    total: Tensor  # [1] pairs there are; those beyond the room are not listed
    overflow: Tensor  # [1] whether there were any since the last `check`

    def __init__(self) -> None:
        self.capacity = 0  # pairs that the next build has room for; the lists of the last are as long as pair_slot
        self._sized_for = (0, 0)  # tiles and splats of the build that last sized the room
        self._late = LateRead()
        self._state: Tensor | None = None  # total, overflow, largest total since the last check

    @property
    def pairs(self) -> int:
        """Pairs of the last build. Waits for the device."""
        return int(self.total.item())

    def build(
        self,
        means2d: Tensor,
        conics: Tensor,
        opacities: Tensor,
        depths: Tensor,
        extents: Tensor,
        width: int,
        height: int,
    ) -> None:
        """Fields of scene/ops/splat_project.py's Projected: contiguous float32, V rows. V = 0 is fine.

        Waits for the device only where the room says little: at the first build, with more tiles than ever, and with a
        quarter more splats; the lists are then whole. Otherwise there is room for SPARE times the pairs met before;
        what does not fit, the farthest splats, is left out; `check` tells, and `watch` makes room in time.
        Raises ValueError for image sides beyond 65536 px and, where it waits, for more than 2^30 pairs.
        """
        if not (1 <= width <= MOST_SIDE and 1 <= height <= MOST_SIDE):
            raise ValueError(f"image sides must be between 1 and {MOST_SIDE} pixels, got {width} x {height}")
        self.width, self.height, self.count = width, height, means2d.shape[0]
        self.columns, self.rows = tile_grid(width, height)
        self._splats = (means2d, conics, opacities, extents)
        if self._state is None or self._state.device != means2d.device:
            self._state = torch.zeros(3, dtype=torch.int32, device=means2d.device)
            self._sized_for = (0, 0)
        self.total, self.overflow = self._state[:1], self._state[1:2]
        first_by_rank = self._order_and_count(depths)
        tiles = self.columns * self.rows
        if tiles > self._sized_for[0] or self.count > SPARE * self._sized_for[1]:
            self._make_room(self.pairs)
            self._sized_for = (max(tiles, self._sized_for[0]), max(self.count, self._sized_for[1]))
        self._list_pairs(first_by_rank, tiles)

    def check(self) -> bool:
        """Whether any build since the last check left pairs out for want of room. Waits for the device.

        The room grows with what was met, so the next build of the same splats is whole. Raises ValueError for more than
        2^30 pairs.
        """
        if self._state is None:
            return False
        self._late.forget()
        _, short, most = self._state.tolist()
        self._state[1:].zero_()
        self._make_room(most)
        return bool(short)

    def watch(self) -> None:
        """Makes room by what was met two builds before, once nine tenths are in use. To be called after each build.

        The device is never left without work. Raises ValueError for more than 2^30 pairs.
        """
        if self._state is not None and (met := self._late.read(self._state)) is not None:
            self._make_room(int(met[2]))

    def lists(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """order [V], tile_offsets [tiles + 1], splats [P], block_masks [P], int64, as on the CPU; for tests.

        The splats must not have changed since the build. A mask is 0 where the splat touches no pixel centre.
        """
        offsets = self.tile_begin.long()
        listed = self.pair_splat[: int(offsets[-1])].long()
        tiles = torch.repeat_interleave(torch.arange(len(offsets) - 1, device=offsets.device), offsets.diff())
        pairs = torch.stack([tiles // self.columns, tiles % self.columns, listed], 1)
        means2d, conics, opacities, _ = self._splats
        masks = [block_masks(part, means2d, conics, opacities, self.width, self.height) for part in pairs.split(4096)]
        return self.order.long(), offsets, listed, torch.cat(masks)

    def _order_and_count(self, depths: Tensor) -> Tensor:
        """Sets order, slot_count and total; returns the first slot of the splat of each rank."""
        means2d, conics, opacities, extents = self._splats
        self.slot_count, keys = self._ints(self.count), self._ints(self.count)
        launch(
            *("splat_bin", "bin_count", blocks(self.count, THREADS), THREADS),
            *(means2d, conics, opacities, depths, extents, self.count, self.width, self.height, self.slot_count, keys),
        )
        _, self.order = sort_places(keys, 32)
        first_by_rank = self._ints(self.count)
        exclusive_sum(self.slot_count, first_by_rank, self.total, places=self.order)
        return first_by_rank

    def _list_pairs(self, first_by_rank: Tensor, tiles: int) -> None:
        means2d, conics, opacities, extents = self._splats
        self.slot_first = self._ints(self.count)
        tile_by_slot, splat_by_slot = self._ints(self.capacity), self._ints(self.capacity)
        launch(
            *("splat_bin", "bin_list", blocks(self.count, THREADS), THREADS, self.order, first_by_rank),
            *(means2d, conics, opacities, extents, self.count, self.width, self.height, self.capacity),
            *(self.slot_count, self.slot_first, tile_by_slot, splat_by_slot),
        )
        bits = (tiles - 1).bit_length()
        pair_tile, self.pair_slot = sort_places(tile_by_slot, bits, count=self.total, keep_keys=True)
        self.tile_begin, self.pair_splat = self._ints(tiles + 1), self._ints(self.capacity)
        launch(
            *("splat_bin", "bin_finish", blocks(max(self.capacity, tiles + 1), THREADS), THREADS),
            *(pair_tile, self.pair_slot, splat_by_slot, tiles, self.capacity, self._state),
            *(self.tile_begin, self.pair_splat),
        )

    def _make_room(self, pairs: int) -> None:
        """Room for `pairs` and some to spare; keeps the room there is while a tenth of it is spare."""
        if pairs > MOST_PAIRS:
            raise ValueError("more than 2^30 pairs of tile and splat; render a smaller image or fewer splats")
        if 1.1 * pairs > self.capacity or self.capacity == 0:
            self.capacity = min(int(SPARE * pairs) + 1, MOST_PAIRS)

    def _ints(self, size: int) -> Tensor:
        """From torch's allocator, which lends what only a build needs to the later stages of a step."""
        return scratch(size, torch.int32, self._splats[0])
