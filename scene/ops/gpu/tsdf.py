"""Drives cuda/gpu/tsdf.cu."""

from __future__ import annotations

from torch import Tensor

from scene.ops.gpu.launch import launch

VOXELS = 8**3  # of a block, as kVoxels there


def tsdf_integrate(
    tsdf: Tensor,
    weights: Tensor,
    blocks: Tensor,
    depth: Tensor,
    slope: Tensor,
    weight: Tensor,
    viewmat: Tensor,
    K: Tensor,
    voxel_size: float,
    truncation: float,
) -> None:
    """Adds one view to the running weighted mean, in place."""
    height, width = depth.shape
    images = (depth, slope, weight, width, height)
    sizes = (float(voxel_size), float(truncation))
    launch("tsdf", "tsdf_integrate", len(blocks), VOXELS, tsdf, weights, blocks, *images, viewmat, K, *sizes)
