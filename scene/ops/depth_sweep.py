"""Plane sweep around a known depth: how alike the pictures are when each pixel is tried a little nearer and farther."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from scene.cameras import Camera
from scene.ops import native

BEST = 2  # pictures that must agree; the surface may be hidden in the others
NOISE = (2 / 255) ** 2  # variance of a window that is blank but for noise


def sweep(
    grey: Tensor,
    depth: Tensor,
    camera: Camera,
    sources: Sequence[tuple[Tensor, Camera]],
    scales: Tensor,
    *,
    radius: int = 3,
) -> Tensor:
    """[L, H, W] likeness in -1 to 1 of each pixel's window if its depth were depth * scales[l], -1 where unknown.

    grey: [H, W] in 0 to 1, the reference; depth: [H, W] z, 0 where unknown.  sources: other pictures [H', W'] with
    their cameras.  The window of (2 radius + 1)^2 pixels follows the shape of `depth`, so slanted and curved surfaces
    are not taken for steps. The likeness is the mean of the BEST highest normalised cross-correlations with a source.
    float32 or float64.  Not differentiable.
    Source: Collins (1996) with windows on the prior surface instead of on planes.
    Raises ValueError when sizes do not match or there are fewer than BEST sources.
    """
    size = (camera.height, camera.width)
    if tuple(grey.shape) != size or tuple(depth.shape) != size:
        raise ValueError(f"grey and depth must have the camera's size {size}, got {tuple(grey.shape)}")
    if len(sources) < BEST or any(tuple(g.shape) != (c.height, c.width) or min(g.shape) < 2 for g, c in sources):
        raise ValueError(f"at least {BEST} sources are needed, each of its camera's size, got {len(sources)}")
    projections = torch.stack([_projection(camera, other) for _, other in sources]).to(grey)
    pictures = [picture.to(grey).contiguous() for picture, _ in sources]
    scales = scales.to(grey)
    if not native.has(grey.device):
        return sweep_reference(grey, depth, pictures, projections, scales, radius=radius)
    out = torch.empty(len(scales), *size, dtype=grey.dtype)
    native.cpu().depth_sweep(
        grey.contiguous(), depth.to(grey).contiguous(), scales.contiguous(), pictures, projections, radius, NOISE, out
    )
    return out


def sweep_reference(
    grey: Tensor, depth: Tensor, pictures: Sequence[Tensor], projections: Tensor, scales: Tensor, *, radius: int
) -> Tensor:
    """The same in plain torch: the oracle and the fallback. projections: [S, 3, 4], pixel and depth to source pixel."""
    height, width = grey.shape
    v, u = torch.meshgrid(torch.arange(height).to(grey) + 0.5, torch.arange(width).to(grey) + 0.5, indexing="ij")
    pixels = torch.stack([u, v, torch.ones_like(u)], dim=-1)
    volume = []
    for scale in scales:
        points = pixels * (depth.to(grey) * scale)[..., None]
        alike = []
        for picture, projection in zip(pictures, projections, strict=True):
            q = points @ projection[:, :3].T + projection[:, 3]
            alike.append(_correlation(grey, _sampled(picture, q, known=depth > 0), radius))
        volume.append(torch.stack(alike).topk(BEST, dim=0).values.mean(0))
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
    """[H, W] regularised normalised cross-correlation of the windows around each pixel; -1 where one is not whole."""

    def mean(image: Tensor) -> Tensor:
        padded = torch.nn.functional.pad(image[None, None], (radius,) * 4, value=torch.nan)
        return torch.nn.functional.avg_pool2d(padded, 2 * radius + 1, stride=1)[0, 0]

    mean_a, mean_b = mean(a), mean(b)
    var_a, var_b = (mean(a * a) - mean_a**2).clamp_min(0), (mean(b * b) - mean_b**2).clamp_min(0)
    alike = (mean(a * b) - mean_a * mean_b) / ((var_a + NOISE) * (var_b + NOISE)).sqrt()
    return torch.where(alike >= -1, alike, -1)
