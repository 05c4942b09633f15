"""Any scene as Gaussians, from nothing but its own pictures: surface points become discs, a short fit does the rest.

A representation is asked for frames of colour and depth, as it is for a mesh (`scene/mesh_extraction.py`). Their
pixels, carried to their depths, are merged on voxels of the size that a pixel has there, and what the views contradict
goes. Each point that is left becomes a splat with the shape of its neighbourhood and the mean of the colours that the
views see there. That already looks like the scene, but each rim is a pixel too wide; the fit, the training step of the
Gaussians on the frames over changing backgrounds, draws it in and learns what depends on the direction. Held-out views
take no part in any of it. What comes out is a scene to look at or to write as splats, and a start for training.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from scene import sh
from scene.cameras import Camera
from scene.depth_fusion import DepthFrame, back_project, ignore
from scene.errors import InputError
from scene.gaussians import Gaussians
from scene.mesh_extraction import evenly, on_cpu, smaller
from scene.metrics import psnr
from scene.ops.photometric_loss import photometric_loss_and_grad
from scene.ops.splat_step import AdamState, Rates, SplatStep
from scene.rasterize import render

LEAST_ALPHA = 0.5  # a pixel that lets more light through has no surface
MOST_POINTS = 3_000_000  # pixels that are carried to their depths, from all views together
AGREEMENT, SLACK = 0.01, 3.0  # of the depth, and px: a view that is no farther off than both together sees a point
NEIGHBOURS = 8  # of a point, which say how the surface lies there
WIDTH, THINNEST, WIDEST = 0.4, 0.1, 2.0  # sigma over the distance of neighbours; least over it; that over the voxel
OPACITY = 0.5  # on the ray of a pixel there are several; the fit starts better from too little than from too much
SSIM_WEIGHT = 0.2
RATES = Rates(means=0.2, quats=2e-3, log_scales=3e-2, opacity_logits=5e-2, sh_dc=2e-2, sh_rest=4e-3)  # means: in voxels
LAST_RATE = 0.1  # of the first, at the end of the fit
JUDGED = 16  # views, where the caller names none


@dataclass(frozen=True)
class ConversionConfig:
    """How Gaussians are made from frames."""

    splats: int = 200_000  # budget; fewer where a splat per pixel takes fewer
    sh_degree: int = 2
    steps: int = 500  # of the fit, one frame each; 0 leaves the discs as they were laid
    max_seconds: float | None = None  # for the fit, which then ends earlier with all of its schedule
    max_views: int = 64  # evenly chosen when there are more
    max_pixels: int = 640 * 480  # per view; larger ones are drawn smaller
    seed: int = 0


@dataclass(frozen=True)
class Conversion:
    """The Gaussians, and the mean PSNR (dB) of their pictures against those of the scene they were made from."""

    gaussians: Gaussians
    psnr: float


@torch.no_grad()
def gaussians_from_frames(
    frame_of: Callable[[Camera], DepthFrame],
    cameras: Sequence[Camera],
    config: ConversionConfig | None = None,
    *,
    judged: Sequence[Camera] = (),
    device: torch.device | str = "cpu",
    progress: Callable[[int, int, str], None] = ignore,
    stop: Callable[[], bool] = lambda: False,
) -> Conversion:
    """Gaussians that look as the frames do, on `device`, where they are fitted too.

    frame_of: what the scene looks like from one of the cameras or a smaller one; colours over black where it gives an
    alpha.  judged: cameras for the PSNR, for which none of what they see is learned; some of `cameras` where empty.
    progress(done, total, message) is called after each view and each step; `stop` is asked as often, and what is done
    by then is judged and comes back.
    Raises InputError when no surface that several views see alike comes out.
    """
    config = config or ConversionConfig()
    views = [smaller(camera, config.max_pixels) for camera in evenly(cameras, config.max_views)]
    total = 2 * len(views) + config.steps
    frames: list[DepthFrame] = []
    for camera in views:
        if stop():
            break
        frames.append(on_cpu(frame_of(camera)))
        progress(len(frames), total, "rendering depth")
    points, voxels = merged_points(frames, config.splats)
    points, voxels, colors = seen_alike(
        points, voxels, frames, lambda done: progress(len(frames) + done, total, "comparing the views")
    )
    gaussians = fitted(
        discs(points, voxels, colors, config.sh_degree).to(device=device),
        frames,
        config,
        voxel=float(voxels.median()),
        progress=lambda done: progress(2 * len(views) + done, total, "fitting splats"),
        stop=stop,
    )
    shown = [on_cpu(frame_of(smaller(camera, config.max_pixels))) for camera in judged]
    return Conversion(gaussians, psnr_kept(gaussians, shown or frames[:: math.ceil(len(frames) / JUDGED)]))


def merged_points(frames: Sequence[DepthFrame], most: int) -> tuple[Tensor, Tensor]:
    """Surface points [P, 3] of the frames, P <= most, and the side of the voxel that each stands for [P], float64.

    Raises InputError when no frame has a surface.
    """
    surfaces = [f.depth > 0 if f.alpha is None else (f.depth > 0) & (f.alpha >= LEAST_ALPHA) for f in frames]
    step = max(1, math.ceil(sum(int(there.sum()) for there in surfaces) / MOST_POINTS))
    points, footprints = [torch.zeros(0, 3, dtype=torch.float64)], [torch.zeros(0, dtype=torch.float64)]
    for frame, there in zip(frames, surfaces, strict=True):
        pixels = there.nonzero()[::step]
        points.append(back_project(frame, pixels))
        footprints.append(frame.depth[pixels[:, 0], pixels[:, 1]].double() / float(frame.camera.K[0, 0]))
    cloud, footprint = torch.cat(points), torch.cat(footprints)
    if not len(cloud):
        raise InputError(
            "none of the views shows a surface that stops half of the light, so there is nothing to lay splats on; "
            "the scene may be empty or not trained yet"
        )
    coarser = 1.0
    while len((found := _on_voxels(cloud, coarser * footprint))[0]) > most:
        coarser *= 1.02 * math.sqrt(len(found[0]) / most)  # a surface has as many voxels as their side squared fits in
    return found


def _on_voxels(points: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Means of the points in each voxel, and its side: the median size times the power of two nearest to theirs.

    Where points with small voxels are, those with large ones (seen from farther away) are dropped.
    """
    middle = float(sizes.median())
    octaves = (sizes / middle).log2().round()
    kept, sides = points[:0], sizes[:0]
    for octave in octaves.unique().tolist():
        side = middle * 2.0**octave
        mine = points[octaves == octave]
        low = torch.cat([mine, kept]).amin(0)
        cells, taken = ((part - low).div(side).floor().long() for part in (mine, kept))
        span = torch.cat([cells, taken]).amax(0) + 1
        keys, used = ((part[:, 0] * span[1] + part[:, 1]) * span[2] + part[:, 2] for part in (cells, taken))
        keys, which, counts = keys.unique(return_inverse=True, return_counts=True)
        means = torch.zeros(len(keys), 3, dtype=points.dtype).index_add_(0, which, mine) / counts[:, None]
        means = means[~torch.isin(keys, used)]
        kept = torch.cat([kept, means])
        sides = torch.cat([sides, torch.full((len(means),), side, dtype=sizes.dtype)])
    return kept, sides


def seen_alike(
    points: Tensor, voxels: Tensor, frames: Sequence[DepthFrame], progress: Callable[[int], None]
) -> tuple[Tensor, Tensor, Tensor]:
    """The points that two views or more see, and no more views see through; their voxels; their mean colours [P, 3].

    Raises InputError when too few are left to be a surface.
    """
    seen, through = torch.zeros(2, len(points))
    colors = torch.zeros(len(points), 3)
    for done, frame in enumerate(frames):
        camera = frame.camera.to(dtype=torch.float64)
        pixels, z = camera.project(points)
        inside = (z > 0) & (pixels >= 0).all(1) & (pixels[:, 0] < camera.width) & (pixels[:, 1] < camera.height)
        which = inside.nonzero()[:, 0]
        column, row = pixels[which].long().unbind(1)
        behind = frame.depth[row, column].double() - z[which]
        slack = (AGREEMENT + SLACK / float(camera.K[0, 0])) * z[which]
        empty = frame.depth[row, column] <= 0
        near = ~empty & (behind.abs() <= slack)
        through[which] += ((~empty & (behind > slack)) | (empty & frame.empty_is_free)).float()
        seen[which] += near.float()
        shown = frame.rgb[row, column].float() / 255
        if frame.alpha is not None:
            shown /= frame.alpha[row, column].float().clamp_min(LEAST_ALPHA)[:, None]
        colors[which] += torch.where(near[:, None], shown, 0)
        progress(done + 1)
    kept = (seen >= min(2, len(frames))) & (through <= seen)
    if int(kept.sum()) <= NEIGHBOURS:
        raise InputError(
            f"the views see only {int(kept.sum())} points of a surface alike, so there is nothing to lay splats on; "
            "the scene may not be trained yet"
        )
    return points[kept], voxels[kept], (colors[kept] / seen[kept, None]).clamp(0, 1)


def discs(points: Tensor, voxels: Tensor, colors: Tensor, sh_degree: int) -> Gaussians:
    """A Gaussian on each point [P, 3], with axes and lengths of the cloud of its neighbours: flat where that is."""
    from scipy.spatial import KDTree
    from scipy.spatial.transform import Rotation

    xyz = points.numpy()
    _, near = KDTree(xyz).query(xyz, k=NEIGHBOURS + 1)  # the nearest is the point itself
    offsets = torch.from_numpy(xyz[np.asarray(near)[:, 1:]] - xyz[:, None])
    variances, axes = torch.linalg.eigh(offsets.mT @ offsets / NEIGHBOURS)  # ascending
    axes = axes.flip(2)
    axes[:, :, 2] *= torch.linalg.det(axes).sign()[:, None]
    # On an even plane the k nearest of points a distance d apart have the variance d^2 k / (4 pi) along each axis.
    spacing = (variances.clamp_min(0) * (4 * math.pi / NEIGHBOURS)).sqrt().flip(1)
    scales = WIDTH * spacing.minimum(WIDEST * voxels[:, None])
    scales = scales.maximum(THINNEST * scales[:, :1])
    quats = np.roll(Rotation.from_matrix(axes.numpy()).as_quat(), 1, axis=1)  # xyzw to wxyz
    count = len(points)
    return Gaussians(
        means=points.float(),
        quats=torch.from_numpy(quats).float(),
        log_scales=scales.log().float(),
        opacity_logits=torch.logit(torch.full((count,), OPACITY)),
        sh_dc=sh.from_rgb(colors),
        sh_rest=torch.zeros(count, sh.coefficients(sh_degree) - 1, 3),
    )


def fitted(
    gaussians: Gaussians,
    frames: Sequence[DepthFrame],
    config: ConversionConfig,
    *,
    voxel: float,
    progress: Callable[[int], None] = lambda done: None,
    stop: Callable[[], bool] = lambda: False,
) -> Gaussians:
    """The Gaussians after config.steps steps of training on the frames; how many there are stays.

    voxel: length in scene units by which centres may move.  Frames with an alpha are seen over a new random background
    in each step, so that rims and holes are learned too.
    """
    device = gaussians.means.device
    step = SplatStep(gaussians.clone(), AdamState.zeros(gaussians))
    generator = torch.Generator().manual_seed(config.seed)
    order: list[int] = []
    began, done = time.monotonic(), 0
    while (share := _share(done, time.monotonic() - began, config)) < 1 and not stop():
        order = order or torch.randperm(len(frames), generator=generator).tolist()
        frame = frames[order.pop()]
        background = torch.rand(3, generator=generator) if frame.alpha is not None else torch.zeros(3)
        image = step.forward(frame.camera, background, sh_degree=config.sh_degree)
        _, v_image = photometric_loss_and_grad(image, over(frame, background).to(device), ssim_weight=SSIM_WEIGHT)
        step.backward(v_image)
        step.update(_rates(LAST_RATE**share, voxel))
        done += 1
        progress(round(config.steps * _share(done, time.monotonic() - began, config)))
    return step.gaussians


def _share(done: int, seconds: float, config: ConversionConfig) -> float:
    """Of the fit, 0 to 1: of its steps or of its time, whichever is further."""
    steps = done / config.steps if config.steps else 1.0
    return min(1.0, max(steps, seconds / config.max_seconds) if config.max_seconds else steps)


def _rates(share: float, voxel: float) -> Rates:
    return Rates(
        means=share * RATES.means * voxel,
        quats=share * RATES.quats,
        log_scales=share * RATES.log_scales,
        opacity_logits=share * RATES.opacity_logits,
        sh_dc=share * RATES.sh_dc,
        sh_rest=share * RATES.sh_rest,
    )


def over(frame: DepthFrame, background: Tensor) -> Tensor:
    """The frame's picture [H, W, 3], 0 to 1, on a background [3]; as it is where it has no alpha."""
    rgb = frame.rgb.float() / 255
    return rgb if frame.alpha is None else rgb + (1 - frame.alpha.float())[..., None] * background


@torch.no_grad()
def psnr_kept(gaussians: Gaussians, frames: Sequence[DepthFrame]) -> float:
    """Mean PSNR (dB) of the Gaussians' pictures against the frames, on white where they have an alpha."""
    figures = []
    for frame in frames:
        background = torch.full((3,), 0.0 if frame.alpha is None else 1.0)
        picture = render(gaussians, frame.camera, background=background.to(gaussians.means)).rgb
        figures.append(float(psnr(picture.cpu(), over(frame, background))))
    return sum(figures) / len(figures)
