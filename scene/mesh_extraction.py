"""From any scene to a mesh: depth is rendered at the training cameras, refined, fused, cleaned, decimated, coloured.

`surface_to_mesh` asks a representation for nothing but frames of colour and depth; `gaussians_to_mesh` gives it those
of splats.

The recipe of 2DGS (Huang et al., 2024) with another depth. Splats trained on photos are thick and translucent: the mean
depth along a ray lies deep behind the surface and the planes of their shortest axes mean little. What serves is the
splat that takes the first fifth of the light, and where the ray meets its density, as in RaDe-GS (Zhang et al., 2024).
From there the pictures of neighbouring views find the surface (scene/depth_refinement.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scene.cameras import Camera
from scene.depth_fusion import DepthFrame, back_project, colors_from_frames, fuse_depths, ignore
from scene.depth_refinement import refine_depths
from scene.errors import InputError
from scene.gaussians import Gaussians
from scene.mesh import Mesh, clean, decimate, face_components, select_faces
from scene.mesh_cleaning import smooth
from scene.mesh_distance import Box
from scene.ops.splat_bin import bin_splats
from scene.ops.splat_blend import blend
from scene.ops.splat_project import project, quats_to_matrices

MEDIAN_LIGHT = 0.8  # share of the light that is left where the surface is
INWARDS = 0.5  # standard deviations; splats are trained to lie with their centres behind what is seen of them
LEAST_ALPHA = 0.5  # a pixel that lets more light through has no surface
SAMPLES = 40_000  # points that are looked up in all views, from all views together
AGREEMENT = 0.03  # of the depth: a point is seen by a camera that has this depth there
LEAST_VIEWS = 3
LEAST_WEIGHT = 0.5  # sum of cosines over the views; more leaves holes where few look, less brings no accuracy
MOST_NOISE = 1.5  # px: more is no noise of the depth but a wrong one, which smoothing would only spread
CUT_OFF = 0.1  # share of the largest part's area below which a part that ends at the box is cut off
WELL_SEEN = 0.15  # share of the best-seen points' pixels per area


@dataclass(frozen=True)
class MeshConfig:
    """How the mesh is made."""

    voxels: int = 384  # along the longest side of what the cameras look at
    faces: int = 200_000  # budget after decimation; 0 keeps all
    truncation: float = 5.0  # voxels, at least; more where the depths of the views disagree more
    min_part: float = 0.01  # parts with less area than this share of the largest one's are dropped
    max_views: int = 120  # evenly chosen when there are more
    max_pixels: int = 640 * 480  # per view; larger ones are rendered smaller
    antialias: bool = False  # as the Gaussians were trained; nothing to other scenes
    smoothing: int = 10  # rounds over the fine mesh: bumps of a few voxels go, larger shapes stay
    box: Box | None = None  # nothing outside is built; None: what many of the cameras see


def surface_to_mesh(
    frame_of: Callable[[Camera], DepthFrame],
    cameras: Sequence[Camera],
    config: MeshConfig | None = None,
    *,
    progress: Callable[[int, int, str], None] = ignore,
    stop: Callable[[], bool] = lambda: False,
) -> Mesh:
    """The coloured surface of what the cameras look at, in the frame of the cameras.

    frame_of: what a scene looks like, colour and depth, from one of the cameras or a smaller one; on any device.
    progress(done, total, message) is called after each view of each stage; `stop` is asked as often.
    Raises InputError when no surface comes out (an empty mesh is never returned), ResourceError when it is too large.
    """
    config = config or MeshConfig()
    views = evenly(cameras, config.max_views)
    if len(views) < 2:
        raise InputError(f"a mesh needs two cameras or more, got {len(views)}")
    total = 5 * len(views)
    frames = []
    for done, camera in enumerate(views):
        frames.append(on_cpu(frame_of(smaller(camera, config.max_pixels))))
        progress(done + 1, total, "rendering depth")
        if stop():
            break
    region = well_seen(frames)
    frames = refine_depths(
        frames,
        noise=min(region.disagreement, MOST_NOISE * region.footprint),
        progress=lambda done, _, message: progress(len(views) + done, total, message),
        stop=stop,
    )
    region = well_seen(frames, config.box)
    voxel_size = max(region.longest_side / config.voxels, 0.5 * region.footprint)
    mesh = fuse_depths(
        frames,
        voxel_size=voxel_size,
        truncation=max(config.truncation * voxel_size, 3 * region.disagreement),
        box=region.box,
        least_weight=LEAST_WEIGHT,
        progress=lambda done, _, message: progress(3 * len(views) + done, total, message),
        stop=stop,
    )
    mesh = smooth(clean(mesh, min_share=config.min_part), config.smoothing)
    if config.box is None:
        mesh = without_cut_offs(mesh, region.box, margin=2 * voxel_size)
    if config.faces:
        # Collapsing edges parts what hung together by a thread.
        mesh = clean(decimate(mesh, config.faces), min_share=config.min_part)
    return replace(mesh, colors=colors_from_frames(mesh, frames, tolerance=config.truncation * voxel_size))


def gaussians_to_mesh(
    gaussians: Gaussians,
    cameras: Sequence[Camera],
    config: MeshConfig | None = None,
    *,
    progress: Callable[[int, int, str], None] = ignore,
    stop: Callable[[], bool] = lambda: False,
) -> Mesh:
    """The coloured surface of what the cameras look at, in the Gaussians' frame; see `surface_to_mesh`."""
    config = config or MeshConfig()
    if not len(gaussians):
        raise InputError("a mesh needs Gaussians, got none")
    frame_of = partial(render_frame, gaussians, antialias=config.antialias)
    return surface_to_mesh(frame_of, cameras, config, progress=progress, stop=stop)


def on_cpu(frame: DepthFrame) -> DepthFrame:
    """The frame where it is compared with others and fused."""
    return replace(
        frame,
        camera=frame.camera.to(device="cpu"),
        depth=frame.depth.to("cpu", torch.float32),
        rgb=frame.rgb.cpu(),
        alpha=None if frame.alpha is None else frame.alpha.cpu(),
    )


def without_cut_offs(mesh: Mesh, box: Box, margin: float) -> Mesh:
    """Without the small parts that end at the box: they are bits of something outside it."""
    low, high = np.array(box.low) + margin, np.array(box.high) - margin
    parts = face_components(mesh)
    areas = np.bincount(parts, mesh.face_areas)
    outside = np.any((mesh.vertices < low) | (mesh.vertices > high), axis=1)
    at_border = np.any(np.asarray(outside)[mesh.faces], axis=1)
    cut = np.bincount(parts, at_border) > 0
    return select_faces(mesh, ~(cut & (areas < CUT_OFF * areas.max()))[parts])


def evenly(cameras: Sequence[Camera], count: int) -> list[Camera]:
    """At most `count` of the cameras, evenly spaced in their order."""
    if len(cameras) <= count:
        return list(cameras)
    return [cameras[int(i)] for i in np.linspace(0, len(cameras) - 1, count).round()]


def smaller(camera: Camera, pixels: int) -> Camera:
    """The camera over an image of at most about `pixels`."""
    return camera.scaled(min(1.0, (pixels / (camera.width * camera.height)) ** 0.5))


@torch.no_grad()
def render_frame(gaussians: Gaussians, camera: Camera, *, antialias: bool = False) -> DepthFrame:
    """Colour, depth and how opaque the scene is, as one camera sees the Gaussians.

    The surface is taken to lie in the splat that takes the light of the pixel below MEDIAN_LIGHT, INWARDS standard
    deviations before the place where the ray meets the most of it.
    """
    camera = camera.to(device=gaussians.means.device, dtype=gaussians.means.dtype)
    projected = project(
        **gaussians.parameters(),
        viewmat=camera.viewmat,
        K=camera.K,
        width=camera.width,
        height=camera.height,
        sh_degree=None,
        antialias=antialias,
        near=0.01,
        with_normals=True,
    )
    bins = bin_splats(projected, camera.width, camera.height)
    # The blender's median depth is any number that the median splat carries: here its index, counted from 1.
    count = torch.arange(1, len(projected) + 1, dtype=torch.float32)
    denser = (projected.opacities * (math.log(0.5) / math.log(MEDIAN_LIGHT))).clamp_max(0.999)
    marked = blend(replace(projected, depths=count, opacities=denser), bins, with_geometry=True).median_depth
    drawn = blend(projected, bins)
    assert marked is not None
    there = (marked > 0) & (drawn.alpha > LEAST_ALPHA)
    depth = torch.zeros_like(marked)
    depth[there] = _depth_in(gaussians, camera, camera.rays()[1][there], projected.ids.long(), marked[there].long() - 1)
    return DepthFrame(
        camera,
        _smooth(depth.clamp_min(0)),
        (drawn.rgb.clamp(0, 1) * 255).round().to(torch.uint8),
        drawn.alpha,
        empty_is_free=True,  # the splats were trained to leave a ray without light where a photo shows nothing
    )


def _depth_in(gaussians: Gaussians, camera: Camera, rays: Tensor, seen: Tensor, which: Tensor) -> Tensor:
    """[P] z-depth at which rays [P, 3] (of camera-z 1) come to the surface of the Gaussian seen[which] of each."""
    axes = quats_to_matrices(gaussians.quats[seen])  # columns: the axes of the Gaussian in the world
    whiten = torch.exp(-gaussians.log_scales[seen])[:, None] * axes  # |x @ whiten| is in standard deviations
    centres = ((gaussians.means[seen] - camera.center)[:, None] @ whiten)[:, 0]
    along, centre = (rays[:, None] @ whiten[which])[:, 0], centres[which]
    length = (along * along).sum(1).clamp_min(1e-20)
    return (along * centre).sum(1) / length - INWARDS / length.sqrt()


def _smooth(depth: Tensor) -> Tensor:
    """Median of 5x5 pixels, twice: neighbouring pixels end in different splats, edges stay."""
    import cv2

    pixels = depth.to(torch.float32).numpy()
    return torch.from_numpy(cv2.medianBlur(cv2.medianBlur(pixels, 5), 5))


@dataclass(frozen=True)
class Region:
    """What the cameras look at. Lengths in scene units: side of the box, a pixel on the surface, depth noise."""

    box: Box
    longest_side: float
    footprint: float
    disagreement: float


def well_seen(frames: Sequence[DepthFrame], box: Box | None = None) -> Region:
    """The box of what many of the cameras see, without the far background; or `box`, and what they see in it.

    Points of all views are looked up in all others. How well a point is seen is the sum of 1 / z^2 over the cameras
    that see it, the number of pixels that a piece of surface there gets from all of them; points with at least a
    seventh of what the best ones have, seen by 3 cameras or more, span the box.
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
            f"no surface is seen alike by {LEAST_VIEWS} cameras, so there is no mesh; the scene may not be trained yet"
        )
    if box is None:
        kept &= pixels_seen >= WELL_SEEN * float(torch.quantile(pixels_seen[kept], 0.95))
        box = _box_around(cloud[kept].numpy())
    else:
        kept &= torch.from_numpy(box.holds(cloud.numpy()))
        if not kept.any():
            raise InputError(f"no surface lies in the box from {box.low} to {box.high}; look where the scene is")
    footprint = footprint[kept]
    error = torch.cat(errors)
    return Region(
        box=box,
        longest_side=max(b - a for a, b in zip(box.low, box.high, strict=True)),
        footprint=float(footprint.median()),
        disagreement=float(error.median()),
    )


def _box_around(cloud: NDArray[np.float64]) -> Box:
    """The box of nearly all points [P, 3], a little enlarged."""
    low, high = np.quantile(cloud, 0.005, axis=0), np.quantile(cloud, 0.995, axis=0)
    margin = 0.03 * float((high - low).max())
    low, high = (low - margin).tolist(), (high + margin).tolist()
    return Box((low[0], low[1], low[2]), (high[0], high[1], high[2]))


def _sees(frame: DepthFrame, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which of the points [P, 3] lie on the frame's surface, their z, and how far off its depth they are."""
    camera = frame.camera.to(dtype=torch.float64)
    pixels, z = camera.project(points)
    inside = (z > 0) & (pixels >= 0).all(1) & (pixels[:, 0] < camera.width) & (pixels[:, 1] < camera.height)
    column, row = torch.where(inside[:, None], pixels, 0).long().unbind(1)
    depth = frame.depth[row, column].double()
    error = (depth - z).abs()
    return inside & (depth > 0) & (error < AGREEMENT * z), z, error
