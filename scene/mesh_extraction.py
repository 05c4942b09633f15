"""From Gaussians to a mesh: depth is rendered at the training cameras, fused, cleaned, decimated and coloured.

The recipe of 2DGS (Huang et al., 2024), with depths from planes as in PGSR (Chen et al., 2024): a splat's centre says
where it is, its plane says where the ray meets it, which matters for every splat seen aslant.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from scene.cameras import Camera
from scene.depth_fusion import DepthFrame, back_project, colors_from_frames, fuse_depths, ignore
from scene.errors import InputError
from scene.gaussians import Gaussians
from scene.mesh import Mesh, clean, decimate
from scene.mesh_distance import Box
from scene.ops.splat_bin import bin_splats
from scene.ops.splat_blend import blend
from scene.ops.splat_project import project

LEAST_ALPHA = 0.5  # a pixel that lets more light through has no surface
SAMPLES = 40_000  # points that are looked up in all views, from all views together
AGREEMENT = 0.03  # of the depth: a point is seen by a camera that has this depth there
LEAST_VIEWS = 3
WELL_SEEN = 0.05  # share of the best-seen points' pixels per area


@dataclass(frozen=True)
class MeshConfig:
    """How the mesh is made."""

    voxels: int = 384  # along the longest side of what the cameras look at
    faces: int = 200_000  # budget after decimation; 0 keeps all
    depth: Literal["plane", "median", "expected"] = "plane"  # where along the ray the surface is taken to be
    truncation: float = 4.0  # voxels, at least; more where the depths of the views disagree more
    min_part: float = 0.01  # parts with less area than this share of the largest one's are dropped
    max_views: int = 120  # evenly chosen when there are more
    max_pixels: int = 640 * 480  # per view; larger ones are rendered smaller
    antialias: bool = False  # as the Gaussians were trained


def gaussians_to_mesh(
    gaussians: Gaussians,
    cameras: Sequence[Camera],
    config: MeshConfig | None = None,
    *,
    progress: Callable[[int, int, str], None] = ignore,
    stop: Callable[[], bool] = lambda: False,
) -> Mesh:
    """The coloured surface of what the cameras look at, in the Gaussians' frame.

    progress(done, total, message) is called after each view of each stage; `stop` is asked as often.
    Raises InputError when no surface comes out (an empty mesh is never returned), ResourceError when it is too large.
    """
    config = config or MeshConfig()
    views = evenly(cameras, config.max_views)
    if not len(gaussians) or len(views) < 2:
        raise InputError(f"a mesh needs Gaussians and two cameras or more, got {len(gaussians)} and {len(views)}")
    total = 3 * len(views)
    frames = []
    for done, camera in enumerate(views):
        frames.append(render_frame(gaussians, smaller(camera, config.max_pixels), config))
        progress(done + 1, total, "rendering depth")
        if stop():
            break
    region = well_seen(frames)
    voxel_size = max(region.longest_side / config.voxels, 0.5 * region.footprint)
    mesh = fuse_depths(
        frames,
        voxel_size=voxel_size,
        truncation=max(config.truncation * voxel_size, 3 * region.disagreement),
        box=region.box,
        least_weight=LEAST_VIEWS * 0.4,
        progress=lambda done, _, message: progress(len(views) + done, total, message),
        stop=stop,
    )
    mesh = clean(mesh, min_share=config.min_part)
    if config.faces:
        mesh = decimate(mesh, config.faces)
    return replace(mesh, colors=colors_from_frames(mesh, frames, tolerance=config.truncation * voxel_size))


def evenly(cameras: Sequence[Camera], count: int) -> list[Camera]:
    """At most `count` of the cameras, evenly spaced in their order."""
    if len(cameras) <= count:
        return list(cameras)
    return [cameras[int(i)] for i in np.linspace(0, len(cameras) - 1, count).round()]


def smaller(camera: Camera, pixels: int) -> Camera:
    """The camera over an image of at most about `pixels`."""
    return camera.scaled(min(1.0, (pixels / (camera.width * camera.height)) ** 0.5))


@torch.no_grad()
def render_frame(gaussians: Gaussians, camera: Camera, config: MeshConfig) -> DepthFrame:
    """Colour, depth and how sure the depth is, as one camera sees the Gaussians.

    The plane depth is sum w d / -(sum w n) . ray, d the distance of the camera from a splat's plane and n its normal.
    """
    camera = camera.to(device=gaussians.means.device, dtype=gaussians.means.dtype)
    projected = project(
        **gaussians.parameters(),
        viewmat=camera.viewmat,
        K=camera.K,
        width=camera.width,
        height=camera.height,
        sh_degree=None,
        antialias=config.antialias,
        near=0.01,
        with_normals=True,
    )
    bins = bin_splats(projected, camera.width, camera.height)
    drawn = blend(projected, bins, with_geometry=True)
    assert drawn.depth is not None and drawn.normal is not None and drawn.median_depth is not None
    expected = drawn.depth / drawn.alpha.clamp_min(1e-6)
    depth = {"expected": expected, "median": drawn.median_depth}.get(config.depth)
    if depth is None:
        assert projected.normals is not None
        away = gaussians.means[projected.ids.long()] - camera.center
        distance = -(away * projected.normals).sum(1).clamp(max=0)
        planes = blend(replace(projected, colors=distance[:, None].expand(-1, 3).contiguous()), bins).rgb[..., 0]
        facing = -(drawn.normal * camera.rays()[1]).sum(-1)
        depth = planes / facing.clamp_min(1e-6)
        # Where the normals do not agree there is no plane; the mean depth of the splats is all that is known.
        near = ((depth - expected).abs() < 0.05 * expected) & (facing > 0.1 * drawn.alpha)
        depth = torch.where(near, depth, expected)
    there = (drawn.alpha > LEAST_ALPHA) & (depth > 0)
    spread = (drawn.median_depth - expected).abs() / expected.clamp_min(1e-6)
    sure = drawn.alpha / (1 + (spread / 0.01) ** 2)
    return DepthFrame(
        camera,
        torch.where(there, depth, 0),
        (drawn.rgb.clamp(0, 1) * 255).round().to(torch.uint8),
        torch.where(there, sure, drawn.alpha * 0),
        empty_is_free=False,
    )


@dataclass(frozen=True)
class Region:
    """What the cameras look at. Lengths in scene units: side of the box, a pixel on the surface, depth noise."""

    box: Box
    longest_side: float
    footprint: float
    disagreement: float


def well_seen(frames: Sequence[DepthFrame]) -> Region:
    """The box of what many of the cameras see, without the far background.

    Points of all views are looked up in all others. How well a point is seen is the sum of 1 / z^2 over the cameras that
    see it, which is the number of pixels that a piece of surface there gets from all of them; points with at least
    a twentieth of what the best ones have, seen by 3 cameras or more, span the box.
    Raises InputError when there are not enough such points.
    """
    points, footprints = [], []
    for frame in frames:
        there = (frame.depth > 0).nonzero()
        pixels = there[:: max(1, len(there) * len(frames) // SAMPLES)]
        points.append(back_project(frame, pixels))
        footprints.append(frame.depth[pixels[:, 0], pixels[:, 1]].double() / float(frame.camera.K[0, 0]))
    cloud, footprint = torch.cat(points), torch.cat(footprints)
    views, pixels_seen = torch.zeros(2, len(cloud), dtype=torch.float64)
    errors = []
    for frame in frames:
        near, z, error = _sees(frame, cloud)
        views += near
        pixels_seen += torch.where(near, z.clamp_min(1e-12) ** -2, 0)
        errors.append(error[near])
    kept = views >= min(LEAST_VIEWS, len(frames))
    if int(kept.sum()) < 100:
        raise InputError(
            f"no surface is seen alike by {LEAST_VIEWS} cameras, so there is no mesh; the splats may not be trained yet"
        )
    kept &= pixels_seen >= WELL_SEEN * float(torch.quantile(pixels_seen[kept], 0.95))
    cloud, footprint = cloud[kept].numpy(), footprint[kept]
    low, high = np.quantile(cloud, 0.005, axis=0), np.quantile(cloud, 0.995, axis=0)
    margin = 0.03 * float((high - low).max())
    low, high = (low - margin).tolist(), (high + margin).tolist()
    error = torch.cat(errors)
    return Region(
        box=Box((low[0], low[1], low[2]), (high[0], high[1], high[2])),
        longest_side=max(b - a for a, b in zip(low, high, strict=True)),
        footprint=float(footprint.median()),
        disagreement=float(error.median()),
    )


def _sees(frame: DepthFrame, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which of the points [P, 3] lie on the frame's surface, their z, and how far off its depth they are."""
    camera = frame.camera.to(dtype=torch.float64)
    pixels, z = camera.project(points)
    inside = (z > 0) & (pixels >= 0).all(1) & (pixels[:, 0] < camera.width) & (pixels[:, 1] < camera.height)
    column, row = torch.where(inside[:, None], pixels, 0).long().unbind(1)
    depth = frame.depth[row, column].double()
    error = (depth - z).abs()
    return inside & (depth > 0) & (error < AGREEMENT * z), z, error
