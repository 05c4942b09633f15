"""Depth images to a mesh: a truncated signed distance field in sparse blocks, marching cubes, colours from the images.

Curless and Levoy (1996). What a pixel is worth (`judge`) decides the result more than the averaging does: pixels at
depth discontinuities say nothing, pixels that see the surface aslant say little, and all say that the space before
their surface is free, which is what removes floaters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scene.cameras import Camera
from scene.errors import InputError, ResourceError
from scene.marching_cubes import marching_cubes
from scene.mesh import Mesh
from scene.mesh_distance import Box
from scene.ops.tsdf import BLOCK, FREE_DEPTH, ObservedDepth, integrate

GRAZING = 0.1  # cosine below which a surface is seen too much aslant to say where it is (84 degrees)
FREE_ALPHA = 0.05  # a ray that less than this of the scene stops is free
MAX_BLOCKS = 1 << 18  # of 512 voxels with 8 bytes: 1 GiB, and about as much again while the mesh is extracted
COLOR_SHARPNESS = 4  # power of the cosine in the weight of a view's colour: the view from straight above counts most


def ignore(done: int, total: int, message: str) -> None:
    """Progress that nobody watches."""


@dataclass(frozen=True)
class DepthFrame:
    """What one camera sees. depth: [H, W] z-depth in scene units, 0 where nothing is.  rgb: [H, W, 3] uint8, sRGB.

    alpha: [H, W] in 0 to 1, how sure the depth is, or None where each depth is sure.  empty_is_free: a pixel without
    depth (of an alpha near 0) says that its whole ray is free; else it says nothing.
    """

    camera: Camera
    depth: Tensor
    rgb: Tensor
    alpha: Tensor | None = None
    empty_is_free: bool = False


@dataclass(frozen=True)
class _Surface:
    """Local planes of a depth image, all [H, W]: inverse depth, |n . ray|, cosine to the ray, reliable or not."""

    inverse: Tensor
    slope: Tensor
    cosine: Tensor
    smooth: Tensor


def _surface(frame: DepthFrame, jump: float) -> _Surface:
    """Planes fitted to each pixel. Inverse depth is linear over the image of a plane, so its second difference shows
    edges and nothing else; `jump` is the step in depth, in scene units, that counts as one.
    """
    depth = frame.depth
    there = depth > 0
    inverse = torch.where(there, 1 / torch.where(there, depth, 1), 0)
    K = frame.camera.K.to(depth)
    padded = torch.nn.functional.pad(inverse[None, None], (1, 1, 1, 1), mode="replicate")[0, 0]
    gaps = torch.nn.functional.pad((~there)[None, None].to(depth), (1, 1, 1, 1))[0, 0]
    middle = slice(1, -1)
    by_x = 0.5 * (padded[middle, 2:] - padded[middle, :-2]) * K[0, 0]
    by_y = 0.5 * (padded[2:, middle] - padded[:-2, middle]) * K[1, 1]
    bend = torch.maximum(
        (padded[middle, 2:] + padded[middle, :-2] - 2 * inverse).abs(),
        (padded[2:, middle] + padded[:-2, middle] - 2 * inverse).abs(),
    )
    near_gap = gaps[middle, 2:] + gaps[middle, :-2] + gaps[2:, middle] + gaps[:-2, middle] > 0
    rows, columns = torch.meshgrid(
        torch.arange(depth.shape[0], dtype=depth.dtype) + 0.5,
        torch.arange(depth.shape[1], dtype=depth.dtype) + 0.5,
        indexing="ij",
    )
    x, y = (columns - K[0, 2]) / K[0, 0], (rows - K[1, 2]) / K[1, 1]
    # n . X = h on the plane, so 1/z = (n/h) . (x, y, 1) and the gradient of 1/z gives n/h.
    along = inverse - by_x * x - by_y * y
    slope = inverse / torch.sqrt(by_x**2 + by_y**2 + along**2).clamp_min(1e-30)
    cosine = slope / torch.sqrt(x**2 + y**2 + 1)
    smooth = there & ~near_gap & (bend * depth**2 < jump)
    return _Surface(inverse, slope, cosine, smooth)


def judge(frame: DepthFrame, *, jump: float) -> ObservedDepth:
    """What each pixel of a frame is worth to the field: depth, slope and weight.

    The weight is alpha^2, how sure the pixel is, times the cosine to the surface; pixels within a pixel of a step in
    depth of more than `jump` (scene units) or of the end of the surface have none.
    """
    surface = _surface(frame, jump)
    sure = torch.ones_like(frame.depth) if frame.alpha is None else frame.alpha.to(frame.depth)
    weight = torch.where(surface.smooth & (surface.cosine > GRAZING), sure**2 * surface.cosine, 0)
    depth = frame.depth
    if frame.empty_is_free:
        empty = (frame.depth <= 0) if frame.alpha is None else (sure < FREE_ALPHA)
        # A pixel beside the surface may hold some of it.
        held = torch.nn.functional.max_pool2d((~empty)[None, None].to(depth), 3, 1, 1)[0, 0] > 0
        depth = torch.where(empty, FREE_DEPTH, depth)
        weight = torch.where(empty, torch.where(held, 0, 1.0), weight)
    return ObservedDepth(frame.camera, depth, surface.slope.clamp_min(GRAZING), weight)


def fuse_depths(
    frames: Sequence[DepthFrame],
    *,
    voxel_size: float,
    truncation: float,
    box: Box | None = None,
    least_weight: float = 1.0,
    progress: Callable[[int, int, str], None] = ignore,
    stop: Callable[[], bool] = lambda: False,
) -> Mesh:
    """The surface that the frames agree on, in the world frame of their cameras; see `colors_from_frames` for colours.

    voxel_size, truncation: scene units; the surface must be known to well within the truncation.  box: nothing outside
    it is built.  least_weight: sum of weights (at most 1 per frame) that a corner of a cell needs.
    progress(done, total, message) is called per frame.  Between frames, `stop` is asked.
    Raises InputError when no surface comes out, ResourceError when the field would not fit into memory.
    """
    total = 2 * len(frames)
    observed = []
    marks = _Blocks(box or _bounds(frames, pad=truncation + BLOCK * voxel_size), voxel_size)
    for done, frame in enumerate(frames):
        if stop():
            break
        seen = judge(frame, jump=truncation)
        marks.mark(seen, truncation)
        observed.append(seen)
        progress(done + 1, total, "finding the surface")
    blocks = marks.blocks()
    if not len(blocks):
        raise InputError(
            "no camera sees a surface well enough to build a mesh; look at the scene itself, it may need more training"
        )
    tsdf = torch.zeros(len(blocks), BLOCK, BLOCK, BLOCK)
    weights = torch.zeros_like(tsdf)
    shift = torch.as_tensor(marks.origin, dtype=torch.float64)
    for done, seen in enumerate(observed):
        if stop():
            break
        seen = replace(seen, camera=_moved(seen.camera, -shift))
        integrate(tsdf, weights, blocks, seen, voxel_size=voxel_size, truncation=truncation)
        progress(len(frames) + done + 1, total, "fusing depth images")
    mesh = marching_cubes(tsdf, weights, blocks, voxel_size=voxel_size, least_weight=least_weight)
    if not len(mesh.faces):
        raise InputError(
            "the cameras do not agree on any surface, so there is no mesh; look at the scene itself, it may need more "
            "training"
        )
    return replace(mesh, vertices=mesh.vertices + marks.origin)


def colors_from_frames(mesh: Mesh, frames: Sequence[DepthFrame], *, tolerance: float) -> NDArray[np.uint8]:
    """[V, 3] colour of each vertex: mean of the frames that see it, those from straight above and near first.

    A frame sees a vertex that lies within `tolerance` (scene units) of its depth. Vertices that none sees take the
    colour of the nearest that one does.
    """
    vertices = torch.from_numpy(mesh.vertices)
    normals = torch.from_numpy(mesh.vertex_normals)
    sums = torch.zeros(len(vertices), 4, dtype=torch.float64)
    for frame in frames:
        camera = frame.camera.to(dtype=torch.float64)
        pixels, z = camera.project(vertices)
        size = torch.tensor([camera.width, camera.height])
        inside = ((z > 0) & (pixels >= 0.5).all(1) & (pixels < size - 0.5).all(1)).nonzero()[:, 0]
        z, pixels = z[inside], pixels[inside]
        away = torch.nn.functional.normalize(vertices[inside] - camera.center, dim=1)
        cosine = -(away * normals[inside]).sum(1)
        column, row = pixels.long().unbind(1)
        near = (frame.depth.double()[row, column] - z).abs() * cosine.clamp_min(0) < tolerance
        weight = torch.where(near & (cosine > GRAZING), cosine**COLOR_SHARPNESS / z.square(), 0)
        sums[inside, :3] += weight[:, None] * _bilinear(frame.rgb, pixels)
        sums[inside, 3] += weight
    colors = (sums[:, :3] / sums[:, 3:].clamp_min(1e-300)).round().clamp(0, 255).to(torch.uint8).numpy()
    seen = sums[:, 3].numpy() > 0
    if seen.any() and not seen.all():
        from scipy.spatial import KDTree

        colors[~seen] = colors[seen][KDTree(mesh.vertices[seen]).query(mesh.vertices[~seen])[1]]
    return colors


def _bilinear(image: Tensor, pixels: Tensor) -> Tensor:
    """[P, C] float64 of an image [H, W, C] at pixels [P, 2] that lie at least half a pixel inside."""
    corner = (pixels - 0.5).floor().long()
    a, b = (pixels - 0.5 - corner).unbind(1)
    left, top = corner.unbind(1)
    right, below = (left + 1).clamp(max=image.shape[1] - 1), (top + 1).clamp(max=image.shape[0] - 1)
    a, b = a[:, None], b[:, None]
    upper = (1 - a) * image[top, left].double() + a * image[top, right].double()
    lower = (1 - a) * image[below, left].double() + a * image[below, right].double()
    return (1 - b) * upper + b * lower


def back_project(frame: DepthFrame, pixels: Tensor) -> Tensor:
    """[P, 3] float64 world points of the pixels [P, 2] (row, column) at their depth."""
    camera = frame.camera.to(dtype=torch.float64)
    row, column = pixels.unbind(1)
    x = (column.double() + 0.5 - camera.K[0, 2]) / camera.K[0, 0]
    y = (row.double() + 0.5 - camera.K[1, 2]) / camera.K[1, 1]
    directions = torch.stack([x, y, torch.ones_like(x)], dim=1) @ camera.c2w[:3, :3].T
    return camera.center + frame.depth[row, column].double()[:, None] * directions


def _bounds(frames: Sequence[DepthFrame], pad: float) -> Box:
    points = [back_project(frame, (frame.depth > 0).nonzero()[::7]) for frame in frames]
    cloud = torch.cat(points) if points else torch.zeros(0, 3)
    if not len(cloud):
        raise InputError("none of the depth images holds a depth, so there is no mesh to build")
    low, high = (cloud.amin(0) - pad).tolist(), (cloud.amax(0) + pad).tolist()
    return Box((low[0], low[1], low[2]), (high[0], high[1], high[2]))


class _Blocks:
    """Which blocks of the box hold a surface: one byte per block, so the box may be large."""

    def __init__(self, box: Box, voxel_size: float) -> None:
        self.side = BLOCK * voxel_size
        low, high = np.array(box.low), np.array(box.high)
        self.origin = low
        self.shape = np.ceil((high - low) / self.side).astype(np.int64) + 1
        if float(np.prod(self.shape.astype(np.float64))) > 1 << 28:
            raise ResourceError(
                f"a field of {' x '.join(str(8 * n) for n in self.shape)} voxels is too large; take a larger voxel"
            )
        self.marked = np.zeros(tuple(self.shape), dtype=bool)

    def mark(self, seen: ObservedDepth, truncation: float) -> None:
        """Mark all blocks within the truncation of the surface along the rays."""
        usable = (seen.weight > 0) & (seen.depth < FREE_DEPTH)
        if not usable.any():
            return
        # Every n-th pixel, such that at the median depth no block falls between two; its neighbours are marked anyway.
        footprint = float(seen.depth[usable].median() / seen.camera.K[0, 0])
        stride = int(min(8, max(1, 0.5 * self.side / footprint)))
        pixels = stride * usable[::stride, ::stride].nonzero()
        points = back_project(DepthFrame(seen.camera, seen.depth, seen.depth), pixels).numpy()
        away = points - seen.camera.center.double().numpy()
        away /= np.linalg.norm(away, axis=1, keepdims=True)
        # Steps of less than half a block, out to where the tangent plane of a slanted surface is a truncation away.
        reach = truncation / seen.slope[pixels[:, 0], pixels[:, 1]].double().clamp_min(0.3).numpy()
        steps = int(np.ceil(2 * float(reach.max(initial=0.0)) / (0.5 * self.side)))
        for t in np.linspace(-1, 1, max(2, steps + 1)):
            index = np.floor((points + (t * reach)[:, None] * away - self.origin) / self.side).astype(np.int64)
            inside = ((index >= 0) & (index < self.shape)).all(axis=1)
            self.marked[tuple(index[inside].T)] = True

    def blocks(self) -> Tensor:
        """[B, 3] int32 indices of the marked blocks and of those beside them, in a fixed order."""
        from scipy.ndimage import binary_dilation

        blocks = np.ascontiguousarray(np.argwhere(binary_dilation(self.marked)), dtype=np.int32)
        if len(blocks) > MAX_BLOCKS:
            raise ResourceError(
                f"the surface needs {len(blocks)} blocks of voxels, {MAX_BLOCKS} fit into memory; take a larger voxel"
            )
        return torch.from_numpy(blocks)


def _moved(camera: Camera, by: Tensor) -> Camera:
    """The camera displaced in the world by [3]."""
    c2w = camera.c2w.double().clone()
    c2w[:3, 3] += by
    return replace(camera, K=camera.K.double(), c2w=c2w)
