"""Blending on the GPU: drives cuda/gpu/splat_blend.cu and splat_blend_backward.cu.

Same arguments as the compiled CPU class; scene/ops/splat_blend.py states them. Workspaces come from torch's allocator
at each call: it keeps the memory, lends it to other stages in between and knows which stream uses it. Nothing waits for
the card. Pairs beyond the room of the bins were dropped there (SplatBins.check); here they count as not listed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from scene.ops.gpu.launch import blocks, launch, scratch

if TYPE_CHECKING:
    from scene.ops.gpu.splat_bin import SplatBins

FORWARD, BACKWARD = "splat_blend", "splat_blend_backward"
RECORD = 16  # float32 of a splat as the kernels read it, SplatRecord in cuda/math/splat_blend.h
BLEND_THREADS = 128  # kBlendThreads in cuda/gpu/splat_blend_tile.h
SPLAT_THREADS = 256


class SplatBlend:
    """One forward and its backwards."""

    def __init__(self) -> None:
        self._records: Tensor | None = None  # [V, 16], those of splats without pairs unwritten

    def forward(
        self,
        bins: SplatBins,
        means2d: Tensor,
        conics: Tensor,
        opacities: Tensor,
        colors: Tensor,
        depths: Tensor | None,
        normals: Tensor | None,
        background: Tensor | None,
        rgb: Tensor,
        alpha: Tensor,
        depth: Tensor | None,
        normal: Tensor | None,
        median_depth: Tensor | None,
    ) -> None:
        """Blends; raises ValueError when shapes do not fit the bins or each other."""
        _check_rows(bins, means2d, conics, opacities, colors, depths, normals)
        _check_size(bins, rgb, alpha, depth, normal, median_depth)
        geometry = (depth, normal, median_depth)
        if len({tensor is None for tensor in (depths, normals, *geometry)}) > 1:
            raise ValueError("depths, normals, depth, normal and median_depth must be given together")
        self._records = None  # its memory goes to the next line
        self._records = records = scratch(bins.count * RECORD, torch.float32, means2d)
        splats = (means2d, conics, opacities, colors, depths, normals)
        grid = blocks(bins.count, SPLAT_THREADS)
        launch(FORWARD, "pack_splats", grid, SPLAT_THREADS, *splats, bins.slot_count, records, bins.count)
        name, images = ("blend", (rgb, alpha)) if depth is None else ("blend_geometry", (rgb, alpha, *geometry))
        lists = (records, bins.tile_begin, bins.pair_splat)
        size = (bins.width, bins.height)
        launch(FORWARD, name, (bins.columns, bins.rows), BLEND_THREADS, *lists, background, *images, *size)

    def backward(
        self,
        bins: SplatBins,
        rgb: Tensor,
        alpha: Tensor,
        depth: Tensor | None,
        normal: Tensor | None,
        v_rgb: Tensor,
        v_alpha: Tensor | None,
        v_depth: Tensor | None,
        v_normal: Tensor | None,
        v_means2d: Tensor,
        v_conics: Tensor,
        v_opacities: Tensor,
        v_colors: Tensor,
        v_depths: Tensor | None,
        v_normals: Tensor | None,
        abs_means2d: Tensor | None,
    ) -> None:
        """Gradients of the last forward; raises ValueError when shapes do not fit the bins or each other."""
        _check_rows(bins, v_means2d, v_conics, v_opacities, v_colors, v_depths, v_normals, abs_means2d)
        _check_size(bins, rgb, alpha, depth, normal, v_rgb, v_alpha, v_depth, v_normal)
        geometry = v_depths is not None
        if (v_normals is not None) != geometry:
            raise ValueError("v_depths and v_normals must be given together")
        for v, image in ((v_depth, depth), (v_normal, normal)):
            if v is not None and (image is None or not geometry):
                raise ValueError(
                    "v_depth and v_normal need the forward's depth and normal, and v_depths and v_normals to write to"
                )
        records = self._records
        if records is None or records.numel() != bins.count * RECORD:
            raise ValueError("backward needs a forward of this SplatBlend with the same bins before it")
        suffix = ("_geometry" if geometry else "") + ("" if abs_means2d is None else "_absgrad")
        room = len(bins.pair_slot)  # of these lists; bins.capacity may have grown since, for the next
        slots = scratch(room * (16 if geometry else 12), torch.float32, v_means2d)
        lists = (records, bins.tile_begin, bins.pair_splat, bins.pair_slot)
        images = (rgb, alpha, depth, normal, v_rgb, v_alpha, v_depth, v_normal)
        size = (bins.width, bins.height)
        grid = (bins.columns, bins.rows)
        launch(BACKWARD, "blend_backward" + suffix, grid, BLEND_THREADS, *lists, *images, slots, *size)

        of_geometry = (v_depths, v_normals) if geometry else ()
        gradients = (v_means2d, v_conics, v_opacities, v_colors, *of_geometry, abs_means2d)
        name = "sum_slots_geometry" if geometry else "sum_slots"
        rows = (records, slots, bins.slot_first, bins.slot_count)
        grid = blocks(bins.count, SPLAT_THREADS)
        launch(BACKWARD, name, grid, SPLAT_THREADS, *rows, *gradients, bins.count, room)

    def poison(self) -> None:
        """Fills the workspace with NaN, for tests."""
        if self._records is not None:
            self._records.fill_(torch.nan)


def _check_rows(bins: SplatBins, *tensors: Tensor | None) -> None:
    for tensor in tensors:
        if tensor is not None and tensor.shape[0] != bins.count:
            raise ValueError(f"all arrays must have one row per binned splat, {bins.count}, got {tuple(tensor.shape)}")


def _check_size(bins: SplatBins, *images: Tensor | None) -> None:
    for image in images:
        if image is not None and tuple(image.shape[:2]) != (bins.height, bins.width):
            raise ValueError(
                f"all images must have the size of the bins, {bins.height} x {bins.width}, got {tuple(image.shape)}"
            )
