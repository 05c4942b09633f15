"""Pictures, alpha and depth of radiance fields along camera rays: voxel grids, and any field given as a function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from scene.cameras import Camera
from scene.depth_fusion import DepthFrame
from scene.ops.grid_march import RaySpans, Samples, march
from scene.ops.volume_loss import composite_rays
from scene.ray_space import GridFrame
from scene.voxel_grid import VoxelGrid

RAYS_AT_ONCE = 1 << 15
HALF = 0.5  # of the light that a ray loses: the surface lies there
SOLID = 0.5  # a pixel with less alpha shows no surface


@dataclass(frozen=True)
class Rendered:
    """What a camera sees of a field.

    rgb: [H, W, 3] over the background.  alpha: [H, W].  depth: [H, W] z-depth where half of the light that the ray
    loses is lost; 0 where alpha is below one half.
    """

    rgb: Tensor
    alpha: Tensor
    depth: Tensor


@torch.no_grad()
def render_grid(grid: VoxelGrid, camera: Camera, background: Tensor) -> Rendered:
    """A voxel grid seen by a camera, on the grid's device. background: [3]."""
    device = grid.density.device
    origins, directions = (part.reshape(-1, 3) for part in camera.to(device=device, dtype=torch.float32).rays())
    background, density, limits = background.to(device), grid.packed_density(), grid.limits()
    pixels, alphas, depths = [], [], []
    for first in range(0, len(origins), RAYS_AT_ONCE):
        o, d = origins[first : first + RAYS_AT_ONCE], directions[first : first + RAYS_AT_ONCE]
        unit = torch.nn.functional.normalize(d, dim=-1)
        spans = grid.frame.spans(o, unit, grid.step, grid.near)
        samples = march(density, spans, limits)
        rgb = grid.colors(samples, unit)
        pixels.append(composite_rays(rgb, samples.weights, samples.rays, samples.offsets, samples.last, background))
        alphas.append(1 - samples.last)
        depths.append(depth_of(grid.frame, spans, samples, camera))
    shape = (camera.height, camera.width)
    return Rendered(torch.cat(pixels).view(*shape, 3), torch.cat(alphas).view(shape), torch.cat(depths).view(shape))


def frame_of(rendered: Rendered, camera: Camera) -> DepthFrame:
    """What a mesh is made from, on the CPU, of a rendering over black."""
    rgb = (rendered.rgb.clamp(0, 1) * 255).round().to(torch.uint8)
    return DepthFrame(camera, rendered.depth.cpu(), rgb.cpu(), rendered.alpha.cpu(), empty_is_free=True)


def depth_of(frame: GridFrame, spans: RaySpans, samples: Samples, camera: Camera) -> Tensor:
    """[R] z-depth of the sample in which half of what a ray loses is lost, between it and the one before.

    A sample speaks for what lies before it: behind a sharp surface the first one stops the ray, half a step too deep.
    """
    depth = torch.zeros_like(samples.last)
    if len(samples.weights) == 0:
        return depth
    offsets, rays = samples.offsets.long(), samples.rays.long()
    total = torch.cat([samples.weights.new_zeros(1, dtype=torch.float64), samples.weights.double().cumsum(0)])
    after = total[1:] - total[offsets[rays]]
    of_ray = (total[offsets[1:]] - total[offsets[:-1]])[rays]
    before = after - samples.weights
    crossing = ((after >= HALF * of_ray) & (before < HALF * of_ray)).nonzero()[:, 0]
    chosen, points = rays[crossing], samples.points[crossing]
    back = 1 - ((HALF * of_ray - before) / samples.weights.clamp(min=1e-12))[crossing].float()
    if spans.curve is None:
        points = points - back[:, None] * spans.directions[chosen]
    c2w = camera.c2w.to(points)
    z = (frame.world_from_grid(points) - c2w[:3, 3]) @ c2w[:3, 2]
    if spans.curve is not None:
        index = samples.steps[crossing].long()
        nearer = spans.curve.distances[(index - 1).clamp(min=0)] / spans.curve.distances[index]
        z = z * (1 - back * (1 - nearer))
    depth[chosen] = torch.where(1 - samples.last[chosen] >= SOLID, z.clamp(min=0), 0.0)
    return depth


Field = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@torch.no_grad()
def render_field(field: Field, camera: Camera, background: Tensor, near: float, far: float, samples: int) -> Rendered:
    """Any field(points [P, 3], unit directions [P, 3]) -> (sigmas [P] per unit, rgbs [P, 3]) seen by a camera.

    Quadrature of NeRF (2020), eq. 3, with `samples` even steps between the z-depths near and far; plain and slow, for
    conversions, comparisons and tests.
    """
    origins, directions = (part.reshape(-1, 3) for part in camera.rays())
    step = (far - near) / samples
    z = near + step * (torch.arange(samples, dtype=origins.dtype, device=origins.device) + 0.5)
    pixels, alphas, depths = [], [], []
    for first in range(0, len(origins), max(1, (1 << 20) // samples)):
        o, d = (part[first : first + max(1, (1 << 20) // samples)] for part in (origins, directions))
        length = d.norm(dim=-1, keepdim=True)
        points = o[:, None] + z[:, None] * d[:, None]
        unit = (d / length)[:, None].expand_as(points)
        sigmas, rgbs = field(points.reshape(-1, 3), unit.reshape(-1, 3))
        tau = sigmas.view(len(o), samples) * step * length
        before = torch.exp(-(tau.cumsum(-1) - tau))
        weights = before * -torch.expm1(-tau)
        alpha = weights.sum(-1)
        pixels.append((weights[..., None] * rgbs.view(len(o), samples, 3)).sum(1) + (1 - alpha)[:, None] * background)
        at = (weights.cumsum(-1) >= HALF * alpha[:, None]).long().argmax(-1)
        depths.append(torch.where(alpha >= SOLID, z[at], 0.0))
        alphas.append(alpha)
    shape = (camera.height, camera.width)
    return Rendered(torch.cat(pixels).view(*shape, 3), torch.cat(alphas).view(shape), torch.cat(depths).view(shape))
