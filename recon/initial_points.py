"""Where training starts: the source's 3D points, else the visual hull, else matched points, else anywhere in view."""

from __future__ import annotations

import torch
from torch import Tensor

from data.captures import Capture, Photo, PointCloud
from recon.posed_points import points_from_poses
from scene.cameras import Camera

MIN_POINTS = 100
HULL_LEVEL = 2  # silhouettes are looked up in pictures halved so many times


def train_cameras(capture: Capture) -> list[Camera]:
    """The cameras of the training views."""
    cameras = [capture.views[i].camera for i in capture.train]
    return [camera for camera in cameras if camera is not None]


def scene_extent(capture: Capture) -> float:
    """Size of the scene as 3DGS measures it: 1.1 times the largest distance of a camera from the mean of all."""
    centres = torch.stack([camera.center.float() for camera in train_cameras(capture)])
    extent = 1.1 * float((centres - centres.mean(0)).norm(dim=-1).max())
    return extent if extent > 1e-6 else 1.0


def look_at_point(cameras: list[Camera]) -> Tensor:
    """[3] point nearest to all viewing axes, least squares; ahead of the mean camera where the axes are parallel."""
    centres = torch.stack([camera.center.double() for camera in cameras])
    forward = torch.stack([camera.forward.double() for camera in cameras])
    across = torch.eye(3, dtype=torch.float64) - forward[:, :, None] * forward[:, None, :]
    system = across.sum(0)
    if float(torch.linalg.cond(system)) > 1e4:
        return (centres.mean(0) + forward.mean(0)).float()
    return torch.linalg.solve(system, (across @ centres[..., None]).sum(0))[:, 0].float()


def initial_points(capture: Capture, *, count: int, generator: torch.Generator) -> PointCloud:
    """The points to start from: all of the source's if it has enough, else about `count` made from the photos."""
    if capture.points is not None and len(capture.points.xyz) >= MIN_POINTS:
        return capture.points
    cameras = train_cameras(capture)
    centre = look_at_point(cameras)
    distances = torch.stack([(camera.center - centre).norm() for camera in cameras])
    if all(capture.views[i].has_alpha for i in capture.train):
        half = float(distances.median()) * max(cameras[0].fov_x, cameras[0].fov_y) / 2
        hull = _hull_points(capture, centre, half, count, generator)
        if len(hull.xyz) >= MIN_POINTS:
            return hull
    matched = points_from_poses(capture)
    if len(matched.xyz) >= MIN_POINTS:
        return matched
    return _points_in_view(capture, cameras, distances, count, generator)


def _hull_points(capture: Capture, centre: Tensor, half: float, count: int, generator: torch.Generator) -> PointCloud:
    """Random points of the box around `centre` that no training view sees as empty, coloured by the mean of views."""
    xyz = centre + (torch.rand(40 * count, 3, generator=generator) * 2 - 1) * half
    for index in capture.train:
        photo, inside, pixel = _look_up(capture, index, xyz)
        assert photo.alpha is not None
        xyz = xyz[~inside | (photo.alpha.flatten()[pixel] > 127)]
    xyz = xyz[:count]
    total, seen = torch.zeros(len(xyz), 3), torch.zeros(len(xyz), 1)
    for index in capture.train:
        photo, inside, pixel = _look_up(capture, index, xyz)
        total[inside] += photo.rgb.reshape(-1, 3)[pixel[inside]]
        seen[inside] += 1
    enough = seen[:, 0] >= 2
    return PointCloud(xyz[enough], (total / seen)[enough].to(torch.uint8))


def _look_up(capture: Capture, index: int, xyz: Tensor) -> tuple[Photo, Tensor, Tensor]:
    """A small version of a photo; of points [P, 3]: whether they are in view [P] and their flat pixel index [P]."""
    view = capture.views[index]
    photo = capture.photo(index, HULL_LEVEL)
    height, width = photo.rgb.shape[:2]
    assert view.camera is not None
    pixels, depths = view.camera.resized(width, height).project(xyz)
    column, row = pixels.floor().long().unbind(-1)
    inside = (depths > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    return photo, inside, row.clamp(0, height - 1) * width + column.clamp(0, width - 1)


def _points_in_view(
    capture: Capture, cameras: list[Camera], distances: Tensor, count: int, generator: torch.Generator
) -> PointCloud:
    """Points on random pixels of the training views, at depths spread in inverse depth around the look-at distance."""
    middle = float(distances.median()) or 1.0  # cameras on one point know no distance
    near, far = 0.4 * middle, 4.0 * middle
    share = -(-count // len(cameras))
    xyz, rgb = [], []
    for index, camera in zip(capture.train, cameras):
        photo = capture.photo(index, HULL_LEVEL)
        small = camera.resized(photo.rgb.shape[1], photo.rgb.shape[0])
        origins, directions = (rays.reshape(-1, 3) for rays in small.rays())
        chosen = torch.randint(len(origins), (share,), generator=generator)
        depth = 1 / (1 / far + (1 / near - 1 / far) * torch.rand(share, 1, generator=generator))
        xyz.append(origins[chosen] + depth * directions[chosen])
        rgb.append(photo.rgb.reshape(-1, 3)[chosen])
    return PointCloud(torch.cat(xyz)[:count].float(), torch.cat(rgb)[:count])
