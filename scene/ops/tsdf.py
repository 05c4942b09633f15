"""Adding a depth image to a truncated signed distance field kept in blocks of voxels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scene.cameras import Camera
from scene.ops import native

BLOCK = 8  # voxels along the side of a block
FREE_DEPTH = 1e30  # as kFreeDepth in cuda/math/tsdf.h: nothing is there, the whole ray is free


@dataclass(frozen=True)
class ObservedDepth:
    """A depth image with what is known of each pixel; all [H, W], of the dtype of the field.

    depth: z, FREE_DEPTH where the ray meets nothing.  slope: distance to the tangent plane per unit of z.
    weight: >= 0, 0 where the pixel says nothing.
    """

    camera: Camera
    depth: Tensor
    slope: Tensor
    weight: Tensor


def integrate(
    tsdf: Tensor, weights: Tensor, blocks: Tensor, seen: ObservedDepth, *, voxel_size: float, truncation: float
) -> None:
    """Add one view to the running weighted mean, in place.

    tsdf, weights: [B, 8, 8, 8] indexed block, z, y, x; float32 or float64; signed distance in scene units, positive
    before the surface, clipped at +-truncation; and the sum of weights.  blocks: [B, 3] int32; voxel (x, y, z) of a
    block lies at (8 * block + (x, y, z)) * voxel_size.  Not differentiable.
    Source: Curless and Levoy (1996), eq. 3 and 4, with the departures named in cuda/math/tsdf.h.
    Raises ValueError when shapes or dtypes do not match.
    """
    count = blocks.shape[0]
    size = (seen.camera.height, seen.camera.width)
    if blocks.shape != (count, 3) or tsdf.shape != (count, BLOCK, BLOCK, BLOCK) or weights.shape != tsdf.shape:
        raise ValueError(
            f"blocks must be [B, 3], tsdf and weights [B, {BLOCK}, {BLOCK}, {BLOCK}], got {list(blocks.shape)}, "
            f"{list(tsdf.shape)} and {list(weights.shape)}"
        )
    if (weights.dtype, weights.device) != (tsdf.dtype, tsdf.device):
        raise ValueError(f"weights must be {tsdf.dtype} on {tsdf.device}, got {weights.dtype} on {weights.device}")
    if any(tuple(image.shape) != size for image in (seen.depth, seen.slope, seen.weight)):
        raise ValueError(f"depth, slope and weight must have the camera's size {size}, got {tuple(seen.depth.shape)}")
    if not truncation > 0 or not voxel_size > 0:
        raise ValueError(f"voxel_size and truncation must be positive, got {voxel_size} and {truncation}")
    camera = seen.camera.to(device=tsdf.device, dtype=tsdf.dtype)
    if native.has(tsdf.device, tsdf.dtype):
        images = [image.to(tsdf).contiguous() for image in (seen.depth, seen.slope, seen.weight)]
        native.kernels(tsdf.device).tsdf_integrate(
            tsdf,
            weights,
            blocks.to(tsdf.device, torch.int32).contiguous(),
            *images,
            camera.viewmat.contiguous(),
            camera.K.contiguous(),
            voxel_size,
            truncation,
        )
    else:
        integrate_reference(tsdf, weights, blocks, seen, voxel_size=voxel_size, truncation=truncation)


def integrate_reference(
    tsdf: Tensor, weights: Tensor, blocks: Tensor, seen: ObservedDepth, *, voxel_size: float, truncation: float
) -> None:
    """The same in plain torch: the oracle and the fallback. Blocks go by the thousand to bound the memory."""
    camera = seen.camera.to(device=tsdf.device, dtype=tsdf.dtype)
    steps = torch.arange(BLOCK, device=tsdf.device, dtype=tsdf.dtype)
    z, y, x = torch.meshgrid(steps, steps, steps, indexing="ij")
    offsets = torch.stack([x, y, z], dim=-1)
    for part in torch.arange(len(blocks), device=tsdf.device).split(1000):
        points = (BLOCK * blocks[part].to(tsdf)[:, None, None, None] + offsets) * voxel_size
        distance, weight = _observe(seen, camera, points.reshape(-1, 3), truncation)
        distance, weight = distance.view_as(tsdf[part]), weight.view_as(tsdf[part])
        total = weights[part] + weight
        share = torch.where(weight > 0, weight / torch.where(total > 0, total, 1), 0)
        tsdf[part] += (distance - tsdf[part]) * share
        weights[part] = total


def _observe(seen: ObservedDepth, camera: Camera, points: Tensor, truncation: float) -> tuple[Tensor, Tensor]:
    """Truncated distance and weight of world points [P, 3] in one view: [P], [P]."""
    images = torch.stack([seen.depth, seen.slope, seen.weight]).to(points)
    pixels, z = camera.project(points)
    size = pixels.new_tensor([camera.width, camera.height])
    inside = (z > 1e-6) & (pixels >= 0).all(1) & (pixels < size).all(1)
    pixels = torch.where(inside[:, None], pixels, 0.5)

    column, row = pixels.long().unbind(1)
    depth, slope, weight = images[:, row, column]
    weight = torch.where(inside, weight, 0)

    # Between four seen pixels of a surface: bilinear. Far from the surface the pixel decides alone.
    rough = (depth - z) * slope
    corner = (pixels - 0.5).floor().long()
    fraction = pixels - 0.5 - corner
    has_four = (corner >= 0).all(1) & (corner + 1 < size).all(1)
    left, top = torch.where(has_four[:, None], corner, 0).unbind(1)
    right, below = (left + 1).clamp(max=camera.width - 1), (top + 1).clamp(max=camera.height - 1)
    four = images[:, torch.stack([top, top, below, below]), torch.stack([left, right, left, right])]  # [3, 4, P]
    has_four &= (rough.abs() <= 2 * truncation) & (four[2] > 0).all(0) & (four[0] < FREE_DEPTH).all(0)
    a, b = fraction.unbind(1)
    shares = torch.stack([(1 - a) * (1 - b), a * (1 - b), (1 - a) * b, a * b])
    depth = torch.where(has_four, (four[0] * shares).sum(0), depth)
    slope = torch.where(has_four, (four[1] * shares).sum(0), slope)

    distance = torch.where(rough.abs() > 2 * truncation, rough, (depth - z) * slope)
    weight = torch.where(distance > -truncation, weight * (1 + distance / truncation).clamp(0, 1), 0)
    # Nothing is believed of a depth that is not a number.
    return torch.where(weight > 0, distance.clamp(-truncation, truncation), 0), weight
