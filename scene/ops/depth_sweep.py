"""Plane sweep around a known depth: how alike the pictures are when each pixel is tried a little nearer and farther."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scene.cameras import Camera
from scene.ops import native

NOISE = 1e-5  # variance of a window of values in 0 to 1 that says nothing


@dataclass(frozen=True)
class Neighbour:
    """Another picture of the scene. grey: [H', W'] in 0 to 1.  sees: [H, W] of the reference, how much of each of its
    pixels this camera sees: 0 where it is hidden from it.
    """

    grey: Tensor
    camera: Camera
    sees: Tensor


def sweep(
    grey: Tensor,
    depth: Tensor,
    camera: Camera,
    neighbours: Sequence[Neighbour],
    scales: Tensor,
    *,
    radius: int = 2,
) -> Tensor:
    """[L, H, W] likeness in -1 to 1 of each pixel's window if its depth were depth * scales[l], 0 where nobody sees it.

    grey: [H, W] in 0 to 1, the reference; depth: [H, W] z, 0 where unknown.  The window of (2 radius + 1)^2 pixels
    follows the shape of `depth`, so slanted and curved surfaces are not taken for steps. The likeness is the mean
    normalised cross-correlation with the neighbours, weighted by how much they see; a window that is not whole in a
    neighbour's picture does not count there.  float32 or float64, as `grey`.  Not differentiable.
    Source: Collins (1996), with windows on the prior surface instead of on planes.
    Raises ValueError when sizes do not match.
    """
    size = (camera.height, camera.width)
    if any(tuple(image.shape) != size for image in (grey, depth, *(n.sees for n in neighbours))):
        raise ValueError(f"grey, depth and what neighbours see must have the camera's size {size}")
    if any(tuple(n.grey.shape) != (n.camera.height, n.camera.width) or min(n.grey.shape) < 2 for n in neighbours):
        raise ValueError("each neighbour's picture must have its camera's size, at least 2 x 2")
    if not neighbours:
        return grey.new_zeros(len(scales), *size)
    projections = torch.stack([_projection(camera, n.camera) for n in neighbours]).to(grey)
    pictures = [n.grey.to(grey).contiguous() for n in neighbours]
    sees = torch.stack([n.sees for n in neighbours]).to(grey)
    depth, scales = depth.to(grey), scales.to(grey)
    if not native.has(grey.device):
        return sweep_reference(grey, depth, pictures, projections, sees, scales, radius=radius)
    out = torch.empty(len(scales), *size, dtype=grey.dtype)
    native.cpu().depth_sweep(
        *(grey.contiguous(), depth.contiguous(), scales.contiguous(), pictures, projections, sees, radius, NOISE, out)
    )
    return out


def sweep_reference(
    grey: Tensor,
    depth: Tensor,
    pictures: Sequence[Tensor],
    projections: Tensor,
    sees: Tensor,
    scales: Tensor,
    *,
    radius: int,
) -> Tensor:
    """The same in plain torch: the oracle and the fallback. projections: [S, 3, 4], pixel and depth to source pixel."""
    height, width = grey.shape
    v, u = torch.meshgrid(torch.arange(height).to(grey) + 0.5, torch.arange(width).to(grey) + 0.5, indexing="ij")
    pixels = torch.stack([u, v, torch.ones_like(u)], dim=-1)
    volume = []
    for scale in scales:
        points = pixels * (depth * scale)[..., None]
        total, seen = torch.zeros_like(grey), torch.zeros_like(grey)
        for picture, projection, visible in zip(pictures, projections, sees, strict=True):
            q = points @ projection[:, :3].T + projection[:, 3]
            alike = _correlation(grey, _sampled(picture, q, known=depth > 0), radius)
            whole = ~alike.isnan()
            total += torch.where(whole, visible * alike, 0)
            seen += torch.where(whole, visible, 0)
        volume.append(torch.where(seen > 0, total / seen, 0))
    return torch.stack(volume)


def _projection(reference: Camera, source: Camera) -> Tensor:
    """[3, 4] float64: (u z, v z, z) of the reference, extended by 1, to homogeneous pixels of the source."""
    reference, source = reference.to(dtype=torch.float64), source.to(dtype=torch.float64)
    source_from_reference = source.viewmat @ reference.c2w
    rays = source.K @ source_from_reference[:3, :3] @ torch.linalg.inv(reference.K)
    return torch.cat([rays, (source.K @ source_from_reference[:3, 3])[:, None]], dim=1)


def _sampled(picture: Tensor, q: Tensor, known: Tensor) -> Tensor:
    """[H, W] bilinear values at homogeneous pixels [H, W, 3]; NaN outside the centres of the border pixels."""
    height, width = picture.shape
    x, y = q[..., 0] / q[..., 2] - 0.5, q[..., 1] / q[..., 2] - 0.5
    seen = known & (q[..., 2] > 0) & (x >= 0) & (y >= 0) & (x <= width - 1) & (y <= height - 1)
    x, y = torch.where(seen, x, 0), torch.where(seen, y, 0)
    left, top = x.long().clamp(max=width - 2), y.long().clamp(max=height - 2)
    a, b = x - left, y - top
    upper = torch.lerp(picture[top, left], picture[top, left + 1], a)
    lower = torch.lerp(picture[top + 1, left], picture[top + 1, left + 1], a)
    return torch.where(seen, torch.lerp(upper, lower, b), torch.nan)


def _correlation(a: Tensor, b: Tensor, radius: int) -> Tensor:
    """[H, W] regularised normalised cross-correlation of the windows around each pixel; NaN where one is not whole."""

    def mean(image: Tensor) -> Tensor:
        padded = torch.nn.functional.pad(image[None, None], (radius,) * 4, value=torch.nan)
        return torch.nn.functional.avg_pool2d(padded, 2 * radius + 1, stride=1)[0, 0]

    mean_a, mean_b = mean(a), mean(b)
    var_a, var_b = (mean(a * a) - mean_a**2).clamp_min(0), (mean(b * b) - mean_b**2).clamp_min(0)
    return (mean(a * b) - mean_a * mean_b) / ((var_a + NOISE) * (var_b + NOISE)).sqrt()
