"""What photos say of the texels of a texture: the best samples of each are kept, then blended into one colour.

Photos come one at a time and are needed once: a texel remembers the few that see it best. Gains between photos are
found afterwards from what different photos said of the same texels, and applied when the samples are blended.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scene.cameras import Camera
from scene.ops import native

MOST_SAMPLES = 16  # as kMostSamples in cuda/math/texture.h


@dataclass(frozen=True)
class Surface:
    """Where texels lie: points and unit normals [T, 3], float32, world frame."""

    points: Tensor
    normals: Tensor


@dataclass(frozen=True)
class ObservedPhoto:
    """A photo with what is known of each pixel.

    rgb: [H, W, 3] uint8.  worth: [H, W] float32 >= 0, 0 where the pixel says nothing.  depth: [H, W] float32 z of the
    mesh, 0 where it is not.
    """

    camera: Camera
    rgb: Tensor
    worth: Tensor
    depth: Tensor


@dataclass(frozen=True)
class Samples:
    """The best samples of each texel, best first. weights: [T, N] float32, 0 for none.  colors: [T, N, 3] uint8.
    views: [T, N] int16 number of the photo.
    """

    weights: Tensor
    colors: Tensor
    views: Tensor

    @staticmethod
    def empty(texels: int, keep: int, *, device: torch.device | str = "cpu") -> Samples:
        """No samples yet, room for `keep` a texel. Raises ValueError for more than MOST_SAMPLES."""
        if not 1 <= keep <= MOST_SAMPLES:
            raise ValueError(f"between 1 and {MOST_SAMPLES} samples a texel can be kept, got {keep}")
        return Samples(
            torch.zeros(texels, keep, device=device),
            torch.zeros(texels, keep, 3, dtype=torch.uint8, device=device),
            torch.full((texels, keep), -1, dtype=torch.int16, device=device),
        )


def gather(
    surface: Surface, photo: ObservedPhoto, view: int, samples: Samples, *, tolerance: float, grazing: float
) -> None:
    """Add what photo number `view` says of each texel to the samples, in place, where it is among the best.

    tolerance: how far off the mesh's depth a texel may lie, along its normal, in scene units.  grazing: cosine below
    which a surface is seen too much aslant.  The weight of a sample is stated in cuda/math/texture.h.
    Raises ValueError when shapes or types do not match.
    """
    size = (photo.camera.height, photo.camera.width)
    if tuple(photo.rgb.shape) != (*size, 3) or tuple(photo.worth.shape) != size or tuple(photo.depth.shape) != size:
        raise ValueError(f"rgb, worth and depth must have the camera's size {size}, got {tuple(photo.rgb.shape)}")
    texels = len(surface.points)
    if surface.normals.shape != (texels, 3) or samples.weights.shape[:1] != (texels,):
        raise ValueError(f"normals and samples must be those of {texels} texels, got {tuple(surface.normals.shape)}")
    device = surface.points.device
    floats = (surface.points, surface.normals, photo.worth, photo.depth, samples.weights)
    others = (photo.rgb, samples.colors, samples.views)
    if any(other.device != device for other in floats + others):
        raise ValueError(f"surface, photo and samples must be on one device, that of the points is {device}")
    if any(other.dtype != torch.float32 for other in floats) or photo.rgb.dtype != torch.uint8:
        raise ValueError(
            f"surface, worth, depth and weights must be float32 and rgb uint8, got {[f.dtype for f in floats]} and "
            f"{photo.rgb.dtype}"
        )
    camera = photo.camera.to(device=device, dtype=torch.float32)
    if not native.has(device):
        gather_reference(surface, photo, view, samples, tolerance=tolerance, grazing=grazing)
        return
    native.kernels(device).gather_photo(
        surface.points,
        surface.normals,
        photo.rgb.contiguous(),
        photo.worth.contiguous(),
        photo.depth.contiguous(),
        camera.viewmat.contiguous(),
        camera.K.contiguous(),
        view,
        tolerance,
        grazing,
        samples.weights,
        samples.colors,
        samples.views,
    )


def gather_reference(
    surface: Surface, photo: ObservedPhoto, view: int, samples: Samples, *, tolerance: float, grazing: float
) -> None:
    """The same in plain torch. Texels go by the hundred thousand to bound the memory."""
    keep = samples.weights.shape[1]
    for part in torch.arange(len(surface.points), device=surface.points.device).split(100_000):
        color, weight = _sample(photo, surface.points[part], surface.normals[part], tolerance, grazing)
        weights = torch.cat([samples.weights[part], weight[:, None]], dim=1)
        order = weights.argsort(dim=1, descending=True, stable=True)[:, :keep]
        colors = torch.cat([samples.colors[part], (color + 0.5).clamp(0, 255).to(torch.uint8)[:, None]], dim=1)
        new = torch.full((len(part), 1), view, dtype=torch.int16, device=part.device)
        views = torch.cat([samples.views[part], torch.where(weight[:, None] > 0, new, -1)], dim=1)
        samples.weights[part] = weights.gather(1, order)
        samples.views[part] = views.gather(1, order)
        samples.colors[part] = colors.gather(1, order[..., None].expand(-1, -1, 3))


def _sample(
    photo: ObservedPhoto, points: Tensor, normals: Tensor, tolerance: float, grazing: float
) -> tuple[Tensor, Tensor]:
    """Colour [P, 3] in 0 to 255 and weight [P] of points in a photo."""
    camera = photo.camera.to(device=points.device, dtype=torch.float32)
    away = points - camera.center
    cosine = -(away * normals).sum(1) / away.norm(dim=1).clamp_min(1e-30)
    pixels, z = camera.project(points)
    x, y = (pixels - 0.5).unbind(1)
    inside = (z > 1e-6) & (x >= 0) & (y >= 0) & (x < camera.width - 1) & (y < camera.height - 1) & (cosine > grazing)
    x, y = torch.where(inside, x, 0), torch.where(inside, y, 0)
    left, top = x.long(), y.long()
    a, b = x - left, y - top
    rows = torch.stack([top, top, (top + 1).clamp(max=camera.height - 1), (top + 1).clamp(max=camera.height - 1)])
    columns = torch.stack([left, (left + 1).clamp(max=camera.width - 1)] * 2)
    shares = torch.stack([(1 - a) * (1 - b), a * (1 - b), (1 - a) * b, a * b])
    worth, depth = photo.worth[rows, columns], photo.depth[rows, columns]
    inverse = torch.where(depth > 0, shares / torch.where(depth > 0, depth, 1), 0).sum(0)
    share = torch.where(depth > 0, shares, 0).sum(0)
    surface = share / inverse.clamp_min(1e-30)
    seen = inside & (worth > 0).all(0) & (share > 0) & (((z - surface) * cosine).abs() < tolerance)
    color = (shares[..., None] * photo.rgb[rows, columns].float()).sum(0)
    density = camera.K[0, 0] * camera.K[1, 1] / z.square()
    return color, torch.where(seen, (shares * worth).sum(0) * density * cosine.square(), 0)


def blend(samples: Samples, gains: Tensor, offsets: Tensor, *, power: float, spread: float) -> Tensor:
    """[T, 3] float32 colour 0 to 255 of each texel, 0 where it has no sample.

    gains, offsets: [V, 3] by photo; a sample's colour c counts as gain c + offset.  power: of a weight relative to the
    best one's.  spread: deviation from the colour that most agree with, 0 to 255, that counts for little.
    Raises ValueError when shapes do not match.
    """
    if gains.shape != offsets.shape or gains.ndim != 2 or gains.shape[1] != 3:
        raise ValueError(f"gains and offsets must be [V, 3], got {tuple(gains.shape)} and {tuple(offsets.shape)}")
    if int(samples.views.max()) >= len(gains) if samples.views.numel() else False:
        raise ValueError(f"samples come from photo {int(samples.views.max())}, gains are given for {len(gains)}")
    weights = samples.weights
    gains, offsets = gains.to(weights).contiguous(), offsets.to(weights).contiguous()
    if not native.has(weights.device):
        return blend_reference(samples, gains, offsets, power=power, spread=spread)
    out = weights.new_zeros(len(weights), 3)
    native.kernels(weights.device).blend_texels(
        weights, samples.colors, samples.views, gains, offsets, power, spread, out
    )
    return out


def blend_reference(samples: Samples, gains: Tensor, offsets: Tensor, *, power: float, spread: float) -> Tensor:
    """The same in plain torch."""
    parts = []
    for part in torch.arange(len(samples.weights), device=samples.weights.device).split(100_000):
        weights, view = samples.weights[part], samples.views[part].long().clamp_min(0)
        colors = gains[view] * samples.colors[part].float() + offsets[view]
        apart = (colors[:, :, None] - colors[:, None]).norm(dim=3)
        disagreement = (weights[:, None] * apart).sum(2)
        middle = torch.where(weights > 0, disagreement, torch.inf).argmin(1)
        deviation = (colors - colors.gather(1, middle[:, None, None].expand(-1, 1, 3))).square().sum(2)
        best = weights.amax(1, keepdim=True).clamp_min(1e-30)
        shares = (weights / best) ** power * torch.exp(-0.5 * deviation / spread**2) * (weights > 0)
        parts.append((shares[..., None] * colors).sum(1) / shares.sum(1, keepdim=True).clamp_min(1e-30))
    return torch.cat(parts) if parts else samples.weights.new_zeros(0, 3)
