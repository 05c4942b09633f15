"""What kind of scene a capture shows to a voxel grid, where its box lies, and which voxels the silhouettes leave."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from data.captures import Capture
from recon.initial_points import HULL_LEVEL, initial_points, look_at_point, train_cameras
from scene.cameras import Camera
from scene.errors import InputError
from scene.ray_space import SHELL, GridFrame, Space, grid_size

Kind = Literal["bounded", "forward", "unbounded"]
FACING = math.cos(math.radians(50))  # all cameras within this of their mean direction: a forward-facing scene
HULL_VOXELS, HULL_PIXELS = 64**3, 64  # and the least side of the pictures in which silhouettes are looked up
MARGIN = 0.03  # of the hull's box, on every side
NEAR_SHARE = 0.75  # LLFF: the nearest plane lies at three quarters of the nearest depth
NEAREST = 0.005  # quantile of the points' depths that counts as nearest
VIEW_COUNT_STRIDE = 2  # voxels are looked up in the views at every second place along each axis


@dataclass(frozen=True)
class GridScene:
    """Space and box of a scene; for objects with silhouettes the hull, [x, y, z] bool over the box."""

    space: Space
    box: Tensor
    hull: Tensor | None
    near: float  # bounded: nothing lies closer to a camera, in world units

    @property
    def kind(self) -> Kind:
        """bounded, forward or unbounded."""
        return self.space.kind


def kind_of(capture: Capture) -> tuple[Kind, str]:
    """The kind of scene, and a sentence that says why."""
    cameras = train_cameras(capture)
    if not cameras or len(cameras) < len(capture.train):
        raise InputError("training needs photos with known cameras; estimate them first (maquette recon does)")
    if all(capture.views[i].has_alpha for i in capture.train):
        return "bounded", "The photos are cut out, so the grid's box is drawn around their silhouettes (bounded scene)."
    forward = torch.stack([camera.forward.double() for camera in cameras])
    mean = functional.normalize(forward.mean(0), dim=0)
    if float((forward @ mean).min()) > FACING:
        return "forward", "All cameras look one way, so the grid lies in normalised device coordinates (forward scene)."
    return "unbounded", "The cameras look around, so space beyond them is contracted into the grid (unbounded scene)."


def scene_of(capture: Capture, kind: Kind, generator: torch.Generator) -> GridScene:
    """Space and box for this kind of scene. Raises InputError where the cameras allow none."""
    cameras = train_cameras(capture)
    if kind == "bounded":
        return _bounded(capture, cameras)
    if kind == "forward":
        return _forward(capture, cameras, generator)
    centres = torch.stack([camera.center.float() for camera in cameras])
    low, high = centres.amin(0), centres.amax(0)
    centre, radius = (low + high) / 2, float((high - low).max()) / 2
    if radius < 1e-9:
        raise InputError("all cameras stand on one point, so an unbounded scene has no size; move between the photos")
    frame = torch.eye(4)
    frame[:3, :3] /= radius
    frame[:3, 3] = -centre / radius
    edge = torch.full((3,), 1 + SHELL)
    return GridScene(Space("unbounded", frame), torch.stack([-edge, edge]), None, 0.0)


def _bounded(capture: Capture, cameras: list[Camera]) -> GridScene:
    centre = look_at_point(cameras)
    distances = torch.stack([(camera.center - centre).norm() for camera in cameras])
    half = float(distances.median()) * math.tan(max(max(c.fov_x, c.fov_y) for c in cameras) / 2)
    if half < 1e-9:
        raise InputError("all cameras stand on one point, so an object has no place; move around it between the photos")
    box = torch.stack([centre - half, centre + half])
    near = 0.05 * float(distances.median())
    if not all(capture.views[i].has_alpha for i in capture.train):
        if capture.points is not None and len(capture.points.xyz) >= 100:
            xyz = capture.points.xyz.float()
            low, high = torch.quantile(xyz, 0.02, dim=0), torch.quantile(xyz, 0.98, dim=0)
            box = torch.stack([low, high]) + MARGIN * 3 * (high - low) * torch.tensor([[-1.0], [1.0]])
        return GridScene(Space("bounded", torch.eye(4)), box, None, near)
    for _ in range(2):  # the hull in the whole view, then again in its own box, finer
        hull = _hull(capture, box)
        if not bool(hull.any()):
            raise InputError("the silhouettes have no place in common; are the cameras those of these photos?")
        box = _around(hull, box)
    return GridScene(Space("bounded", torch.eye(4)), box, _hull(capture, box), near)


def _around(hull: Tensor, box: Tensor) -> Tensor:
    """The box of the set voxels, a voxel and a margin wider."""
    places = hull.nonzero().float()
    size = torch.tensor(hull.shape)
    voxel = (box[1] - box[0]) / (size - 1)
    low, high = box[0] + (places.amin(0) - 1) * voxel, box[0] + (places.amax(0) + 1) * voxel
    return torch.stack([low, high]) + MARGIN * (high - low) * torch.tensor([[-1.0], [1.0]])


def _hull(capture: Capture, box: Tensor) -> Tensor:
    """Voxels of the box that no training view sees as empty; silhouettes are widened by a voxel."""
    sides = [min(capture.views[i].width, capture.views[i].height) for i in capture.train]
    level = max(0, min(HULL_LEVEL, int(math.log2(min(sides) / HULL_PIXELS))))
    size = grid_size(box, HULL_VOXELS)
    frame = GridFrame(Space("bounded", torch.eye(4)), box, size)
    points = frame.world_from_grid(_places(size))
    alive = torch.ones(len(points), dtype=torch.bool)
    for index in capture.train:
        photo, camera = capture.photo(index, level), capture.views[index].camera
        assert photo.alpha is not None and camera is not None
        height, width = photo.alpha.shape
        small = camera.resized(width, height)
        ids = alive.nonzero()[:, 0]
        pixels, depths = small.project(points[ids])
        column, row = pixels.floor().clamp(-1, 1e6).long().unbind(-1)
        inside = (depths > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
        nearest = float(depths[inside].min()) if bool(inside.any()) else 1.0
        reach = math.ceil(frame.voxel_size * float(small.K[0, 0]) / nearest)
        solid = (photo.alpha > 0).float()[None, None]
        wide = functional.max_pool2d(solid, 2 * reach + 1, stride=1, padding=reach)[0, 0] > 0
        seen = wide.flatten()[row.clamp(0, height - 1) * width + column.clamp(0, width - 1)]
        alive[ids[inside & ~seen]] = False
    return alive.view(size)


def _forward(capture: Capture, cameras: list[Camera], generator: torch.Generator) -> GridScene:
    forward = functional.normalize(torch.stack([camera.forward.double() for camera in cameras]).mean(0), dim=0)
    down = torch.stack([camera.c2w[:3, 1].double() for camera in cameras]).mean(0)
    right = functional.normalize(torch.linalg.cross(down, forward), dim=0)
    rotation = torch.stack([right, torch.linalg.cross(forward, right), forward])  # reference camera from world
    centre = torch.stack([camera.center.double() for camera in cameras]).mean(0)
    frame = torch.eye(4, dtype=torch.float64)
    frame[:3, :3], frame[:3, 3] = rotation, -rotation @ centre
    points = initial_points(capture, count=10_000, generator=generator).xyz.double()
    depths = torch.cat([depth[depth > 0] for depth in (camera.project(points.float())[1] for camera in cameras)])
    if len(depths) == 0:
        raise InputError("no point of the scene lies before a camera, so its nearest plane is not known")
    near = NEAR_SHARE * float(torch.quantile(depths[:: max(1, len(depths) // 100_000)].float(), NEAREST))
    lens = (float(cameras[0].K[0, 0]) / (cameras[0].width / 2), float(cameras[0].K[1, 1]) / (cameras[0].height / 2))
    space = Space("forward", frame.float(), lens, near)
    return GridScene(space, _seen_box(space, cameras), None, 0.0)


def _seen_box(space: Space, cameras: list[Camera]) -> Tensor:
    """The box of all corner rays in normalised device coordinates, from the nearest plane to infinity."""
    frame = GridFrame(space, torch.tensor([[-1.0] * 3, [1.0] * 3]), (2, 2, 2))
    ends = []
    for camera in cameras:
        origins, directions = camera.to(dtype=torch.float32).resized(2, 2).rays()
        spread = directions - directions.mean((0, 1))
        directions = functional.normalize(directions + spread, dim=-1)  # corners of the picture, not of its 2x2 centres
        spans = frame.spans(origins.reshape(-1, 3), directions.reshape(-1, 3), 1.0)
        there = spans.counts > 0
        first = spans.origins[there]
        last = first + spans.directions[there] * (spans.counts[there, None] - 1)
        ends += [first, last]
    grid = torch.cat(ends)
    low, high = grid.amin(0) * 2 - 1, grid.amax(0) * 2 - 1
    low[2], high[2] = -1.0, 1.0
    return torch.stack([low, high])


def view_counts(frame: GridFrame, capture: Capture) -> Tensor:
    """[X, Y, Z] how many training views have each voxel in their picture."""
    size = frame.size
    coarse = tuple(-(-n // VIEW_COUNT_STRIDE) for n in size)
    places = _places((coarse[0], coarse[1], coarse[2])) * VIEW_COUNT_STRIDE
    points = frame.world_from_grid(places)
    counts = torch.zeros(len(points))
    for camera in train_cameras(capture):
        pixels, depths = camera.project(points)
        inside = (pixels >= 0).all(-1) & (pixels[:, 0] < camera.width) & (pixels[:, 1] < camera.height)
        counts += inside & (depths > 0)
    return functional.interpolate(counts.view(1, 1, *coarse), size, mode="nearest")[0, 0]


def too_near(frame: GridFrame, capture: Capture, near: float) -> Tensor:
    """[X, Y, Z] bool: voxels closer than `near` to a training camera."""
    points = frame.world_from_grid(_places(frame.size))
    close = torch.zeros(len(points), dtype=torch.bool)
    for camera in train_cameras(capture):
        close |= (points - camera.center).square().sum(-1) < near * near
    return close.view(frame.size)


def _places(size: tuple[int, int, int]) -> Tensor:
    return torch.cartesian_prod(*(torch.arange(n, dtype=torch.float32) for n in size))
