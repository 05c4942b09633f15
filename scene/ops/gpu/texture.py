"""Drives cuda/gpu/texture.cu."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scene.ops.gpu.launch import blocks, launch

THREADS, WARP = 256, 32  # as kThreads and kWarp there
MOST_SAMPLES = 16  # as kMostSamples in cuda/math/texture.h


def cover(triangles: Tensor, faces: Tensor, lost: Tensor) -> None:
    """The first triangle under each pixel centre, or -1, into faces [H, W]; 1 into lost for those that came later.

    lost: [F] uint8, zero before.
    """
    count, (height, width) = len(triangles), faces.shape
    grid = blocks(count, THREADS // WARP)
    faces.fill_(-1)  # without its sign, as the kernels take it: the largest number
    launch("texture", "cover", grid, THREADS, triangles, count, width, height, faces)
    launch("texture", "cover_lost", grid, THREADS, triangles, count, width, height, faces, lost)


def mesh_depth(vertices: Tensor, faces: Tensor, viewmat: Tensor, K: Tensor, near: float, depth: Tensor) -> None:
    """z of the nearest triangle at each pixel centre into depth [H, W], 0 where none is."""
    count, (height, width) = len(faces), depth.shape
    depth.fill_(math.inf)
    before = torch.full((1,), near, dtype=torch.float64, device=depth.device)  # a double; arguments are floats
    bits = depth.view(torch.int32)
    grid = blocks(count, THREADS // WARP)
    launch("texture", "mesh_depth", grid, THREADS, vertices, faces, count, viewmat, K, before, width, height, bits)
    depth.masked_fill_(depth.isinf(), 0)


def gather_photo(
    points: Tensor,
    normals: Tensor,
    rgb: Tensor,
    worth: Tensor,
    depth: Tensor,
    viewmat: Tensor,
    K: Tensor,
    view: int,
    tolerance: float,
    grazing: float,
    weights: Tensor,
    colors: Tensor,
    views: Tensor,
) -> None:
    """Enters what one photo says of each texel among its best samples, in place."""
    count, keep = weights.shape
    height, width = depth.shape
    photo = (rgb, worth, depth, width, height, viewmat, K, view, float(tolerance), float(grazing))
    samples = (keep, weights, colors, views)
    launch("texture", "gather_photo", blocks(count, THREADS), THREADS, points, normals, count, *photo, *samples)


def blend_texels(
    weights: Tensor,
    colors: Tensor,
    views: Tensor,
    gains: Tensor,
    offsets: Tensor,
    power: float,
    spread: float,
    out: Tensor,
) -> None:
    """One colour of each texel that has a sample into out [T, 3]."""
    count, keep = weights.shape
    if keep > MOST_SAMPLES:
        raise ValueError(f"at most {MOST_SAMPLES} samples a texel can be blended, got {keep}")
    photos = (gains, offsets, float(power), float(spread))
    launch(
        "texture", "blend_texels", blocks(count, THREADS), THREADS, weights, colors, views, count, keep, *photos, out
    )
