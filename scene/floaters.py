"""Splats that float in free space: found by what the cameras see through and by standing alone, without the photos.

A splat is in free space when its pixels see a surface clearly behind it in most of the views that see it at all. Thin
things of the real scene pass that test too (a wire stands before the wall behind it), but they hang together with the
rest; a floater does not. Both together are sure enough to delete by, and so is standing alone where no camera looks.
Haze that does hang together with the rest goes while it is so faint that no picture shows it.

The share of a splat in a pixel is the gradient of the pixel's colour by the splat's, so one backward pass of the
blender with a picture v as upstream gradient gives every splat's sum of w v: with v = 1 its light, with v = 1 / depth
the mean inverse depth of what its pixels see.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scene.cameras import Camera
from scene.errors import InputError
from scene.gaussians import Gaussians
from scene.ops.splat_bin import bin_splats
from scene.ops.splat_blend import blend
from scene.ops.splat_project import project

MOST_VIEWS = 40  # evenly chosen when there are more
MOST_PIXELS = 320 * 240  # of a view; larger ones are looked at smaller
WINDOW = 1 / 12  # of a picture's longer side: a thing that is narrower is looked past when its surroundings are farther
BEFORE = 0.1  # of the depth: how far before the surface free space begins
IN_FREE_SPACE = 0.7  # share of a splat's light that it sends from free space
UNSEEN = 0.05  # pixels of light in all views together
NEIGHBOURS = 16
REACH = 10.0  # neighbours hang together within so many sizes of the smaller one
SMALL_PART = 0.005  # share of the light above which a part is a thing of its own
GAP = 0.02  # of the cameras' distance, from the rest of the scene
HAZE = 2e-6  # of all light: a splat before a surface that sends less is haze that no picture shows
FAR = 1e6  # times the cameras' distance: what pixels without a surface see


@dataclass(frozen=True)
class FloaterReport:
    """score: share of the light in all views that floaters send, 0 for a clean scene.  ids: [M] which splats float.

    isolated: how many of them stand alone; the others are haze.
    """

    score: float
    ids: Tensor
    isolated: int
    splats: int

    @property
    def sentence(self) -> str:
        """What was found, for people."""
        if not len(self.ids):
            return f"none of the {self.splats:,} splats floats in free space"
        return (
            f"{len(self.ids):,} of {self.splats:,} splats float in free space ({self.isolated:,} alone, "
            f"{len(self.ids) - self.isolated:,} as haze) and send {self.score:.3%} of the light"
        )


def floater_score(
    gaussians: Gaussians,
    cameras: Sequence[Camera],
    *,
    antialias: bool = False,
) -> FloaterReport:
    """Which splats float in free space, judged by the views of these cameras, and how much of what is seen they are.

    antialias: as the Gaussians were trained.  Takes some 40 ms a view for 100,000 splats, for 40 views at most.
    Raises InputError for fewer than 3 cameras: with less nothing is seen from another side.
    """
    views = _few(cameras)
    if len(views) < 3:
        raise InputError(f"floaters are told by 3 cameras or more, got {len(views)}")
    gaussians = gaussians.detach()
    if not len(gaussians):
        return FloaterReport(0.0, torch.zeros(0, dtype=torch.int64), 0, 0)
    centres = torch.stack([camera.center for camera in views]).to(gaussians.means)
    distance = float((centres - gaussians.means.median(0).values).norm(dim=1).median())
    light, past, before = torch.zeros(3, len(gaussians), dtype=torch.float64)
    for camera in views:
        ids, seen = _light_of_view(gaussians, camera, distance, antialias)
        light[ids] += seen.light
        past[ids] += torch.where(seen.looked_past, seen.light, 0)
        before[ids] += torch.where(seen.before, seen.light, 0)
    total = light.sum().clamp_min(1e-12)
    unseen = light < UNSEEN
    alone = _stands_alone(gaussians, light.numpy(), past.numpy(), GAP * distance)
    floats = alone & (unseen | (past > IN_FREE_SPACE * light))
    haze = ~floats & ~unseen & (before > IN_FREE_SPACE * light) & (light < HAZE * total)
    both = floats | haze
    score = float(light[both].sum() / total)
    return FloaterReport(score, both.nonzero()[:, 0], int(floats.sum()), len(gaussians))


def without_floaters(
    gaussians: Gaussians, cameras: Sequence[Camera], *, antialias: bool = False
) -> tuple[Gaussians, FloaterReport]:
    """The scene without its floaters, and what they were. Raises InputError as `floater_score` does."""
    report = floater_score(gaussians, cameras, antialias=antialias)
    keep = torch.ones(len(gaussians), dtype=torch.bool)
    keep[report.ids] = False
    return gaussians.select(keep.to(gaussians.means.device)), report


def _few(cameras: Sequence[Camera]) -> list[Camera]:
    """At most MOST_VIEWS of the cameras, over images of at most MOST_PIXELS."""
    chosen = np.unique(np.linspace(0, len(cameras) - 1, min(len(cameras), MOST_VIEWS)).round().astype(int))
    return [
        cameras[i].scaled(min(1.0, (MOST_PIXELS / (c.width * c.height)) ** 0.5)) for i in chosen for c in [cameras[i]]
    ]


@dataclass(frozen=True)
class _Seen:
    """Of each splat that a view draws [V]: its light in pixels, and whether most of it comes from before a surface.

    before: the surface that is seen.  looked_past: the one that is seen around narrow things, too.
    """

    light: Tensor
    before: Tensor
    looked_past: Tensor


def _light_of_view(gaussians: Gaussians, camera: Camera, distance: float, antialias: bool) -> tuple[Tensor, _Seen]:
    """[V] ids of the splats that the view draws, and what was seen of them."""
    camera = camera.to(device=gaussians.means.device, dtype=gaussians.means.dtype)
    with torch.no_grad():
        projected = project(
            **gaussians.parameters(),
            viewmat=camera.viewmat,
            K=camera.K,
            width=camera.width,
            height=camera.height,
            sh_degree=0,
            antialias=antialias,
            near=0.01,
            with_normals=True,
        )
        bins = bin_splats(projected, camera.width, camera.height)
        depth = blend(projected, bins, with_geometry=True).median_depth
    assert depth is not None
    depth = torch.where(depth > 0, depth, FAR * distance)
    upstream = torch.stack([torch.ones_like(depth), 1 / depth, 1 / _past_narrow_things(depth)], dim=-1)
    colors = torch.zeros_like(projected.colors).requires_grad_()
    rgb = blend(replace(projected, colors=colors), bins).rgb
    (sums,) = torch.autograd.grad(rgb, colors, upstream)
    light, nearness, nearness_past = sums.double().cpu().unbind(-1)
    free = (1 - BEFORE) * light / projected.depths.double().cpu()
    return projected.ids.long().cpu(), _Seen(light, nearness < free, nearness_past < free)


def _past_narrow_things(depth: Tensor) -> Tensor:
    """Depth in which what is narrower than the window has the depth of its surroundings: a morphological closing."""
    import cv2

    size = max(3, int(WINDOW * max(depth.shape)) | 1)
    pixels = depth.float().cpu().numpy()
    closed = cv2.morphologyEx(
        pixels, cv2.MORPH_CLOSE, np.ones((size, size), dtype=np.uint8), borderType=cv2.BORDER_REPLICATE
    )
    return torch.from_numpy(np.asarray(closed)).to(depth)


def _stands_alone(gaussians: Gaussians, light: NDArray[np.float64], past: NDArray[np.float64], gap: float) -> Tensor:
    """[N] which splats belong to a part that is small, or in free space as a whole, and farther than `gap` from others.

    light, past: [N] of each splat, all and from free space.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import KDTree

    count = len(gaussians)
    places = gaussians.means.double().cpu().numpy()
    near = min(NEIGHBOURS + 1, count)
    distances, neighbours = KDTree(places).query(places, k=near)
    distances, neighbours = distances.reshape(count, near), neighbours.reshape(count, near)
    size = np.sort(gaussians.scales.double().cpu().numpy(), axis=1)[
        :, 1
    ]  # needles are long, but touch with their sides
    touch = distances < REACH * np.minimum(size[:, None], size[neighbours])
    one, other = np.nonzero(touch)
    edges = coo_matrix((np.ones(len(one), dtype=np.int8), (one, neighbours[one, other])), shape=(count, count))
    parts = connected_components(edges, directed=False)[1]
    light_of_part = np.bincount(parts, light)
    loose = light_of_part < SMALL_PART * light.sum()
    loose |= np.bincount(parts, past) > IN_FREE_SPACE * light_of_part
    loose[light_of_part.argmax()] = False
    small = loose[parts]
    alone = np.zeros(count, dtype=bool)
    if small.any():
        alone[small] = KDTree(places[~small]).query(places[small])[0] > gap
    return torch.from_numpy(alone)
