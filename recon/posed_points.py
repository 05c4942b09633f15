"""3D points of a source whose cameras are known but which brings no points: matched features, triangulated.

Each view is matched with the views whose centres are nearest and that look the same way; a match becomes the midpoint
of its two rays where they meet (Hartley and Zisserman, 2004, section 12) at a fair angle and before both cameras.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from data.captures import Capture, PointCloud
from recon.sfm_features import Features, FeatureSettings, find_features, match_descriptors
from scene.cameras import Camera

NEIGHBOURS = 8  # views matched with each view
SAME_WAY = math.cos(math.radians(60))  # views that look further apart share little
MIN_ANGLE = math.radians(1.5)  # between the two rays; depth is a guess below
MAX_ERROR = 1.5  # px of the picture that was searched
SEARCHED_SIZE = 1000  # px, pictures are halved until their longer side is about this


def points_from_poses(capture: Capture, settings: FeatureSettings | None = None) -> PointCloud:
    """Coloured points seen by two training views or more; each feature gives at most one.

    Needs cameras for all training views; may find no point at all.
    """
    settings = settings or FeatureSettings()
    views, cameras, features, colors = list(capture.train), [], [], []
    with ThreadPoolExecutor(2) as pool:
        level = _level(capture)
        for view, (found, color) in zip(views, pool.map(lambda v: _searched(capture, v, level, settings), views)):
            camera = capture.views[view].camera
            assert camera is not None
            cameras.append(camera.to(dtype=torch.float64).scaled(0.5**level))
            features.append(found)
            colors.append(color)
    taken = [torch.zeros(len(found), dtype=torch.bool) for found in features]  # features that have their point
    nearest, xyz, rgb = _nearest(cameras), [], []
    for i in range(len(views)):
        best = torch.full((len(features[i]),), MIN_ANGLE, dtype=torch.float64)
        points = torch.zeros(len(features[i]), 3, dtype=torch.float64)
        for j in nearest[i]:
            if j < i and i in nearest[j]:
                continue  # this pair had its turn
            pairs = match_descriptors(_descriptors(features[i]), _descriptors(features[j]))
            pairs = pairs[~taken[i][pairs[:, 0]] & ~taken[j][pairs[:, 1]]]
            pixels = [torch.from_numpy(features[k].keypoints[:, :2]).double()[pairs[:, n]] for n, k in ((0, i), (1, j))]
            found, angles = triangulate(cameras[i], cameras[j], *pixels)
            good = angles > best[pairs[:, 0]]
            best[pairs[good, 0]], points[pairs[good, 0]] = angles[good], found[good]
            taken[j][pairs[angles > MIN_ANGLE, 1]] = True
        new = best > MIN_ANGLE
        xyz.append(points[new].float())
        rgb.append(colors[i][new])
    return PointCloud(torch.cat(xyz), torch.cat(rgb))


def triangulate(first: Camera, second: Camera, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Points [M, 3] nearest to both rays through pixels x, y [M, 2], and the angle between the rays [M].

    The angle is 0 where the point lies behind a camera or is seen more than MAX_ERROR from its pixel.
    """
    rays = [_directions(camera, pixels) for camera, pixels in ((first, x), (second, y))]
    base, cosine = second.center - first.center, (rays[0] * rays[1]).sum(-1)
    along = [(ray * base).sum(-1) for ray in rays]
    sine2 = (1 - cosine**2).clamp_min(1e-12)
    t = (along[0] - cosine * along[1]) / sine2
    s = (cosine * along[0] - along[1]) / sine2
    points = (first.center + t[:, None] * rays[0] + second.center + s[:, None] * rays[1]) / 2
    good = (t > 0) & (s > 0)
    for camera, pixels in ((first, x), (second, y)):
        seen, depths = camera.project(points)
        good &= (depths > 0) & ((seen - pixels).norm(dim=-1) < MAX_ERROR)
    return points, torch.where(good, torch.arccos(cosine.clamp(-1, 1)), torch.zeros_like(cosine))


def _directions(camera: Camera, pixels: Tensor) -> Tensor:
    """Unit directions [M, 3] in the world through pixels [M, 2]."""
    in_camera = (pixels - camera.K[:2, 2]) / camera.K.diagonal()[:2]
    rays = torch.cat([in_camera, torch.ones_like(in_camera[:, :1])], dim=1) @ camera.c2w[:3, :3].T
    return torch.nn.functional.normalize(rays, dim=-1)


def _nearest(cameras: list[Camera]) -> list[list[int]]:
    """For each view the NEIGHBOURS nearest views that look the same way."""
    centres = torch.stack([camera.center for camera in cameras])
    forward = torch.stack([camera.forward for camera in cameras])
    distances = torch.cdist(centres, centres).masked_fill(forward @ forward.T < SAME_WAY, math.inf)
    distances.fill_diagonal_(math.inf)
    order = distances.argsort(dim=1)[:, :NEIGHBOURS].tolist()
    return [[j for j in row if math.isfinite(distances[i, j])] for i, row in enumerate(order)]


def _level(capture: Capture) -> int:
    longest = max(max(capture.views[i].width, capture.views[i].height) for i in capture.train)
    return max(0, round(math.log2(longest / SEARCHED_SIZE)))


def _searched(capture: Capture, view: int, level: int, settings: FeatureSettings) -> tuple[Features, Tensor]:
    """Features of a view and the colour under each [F, 3] uint8."""
    photo = capture.photo(view, level)
    found = find_features(photo.rgb.numpy(), settings, None if photo.alpha is None else photo.alpha.numpy())
    column, row = torch.from_numpy(found.keypoints[:, :2]).long().unbind(-1)
    height, width = photo.rgb.shape[:2]
    return found, photo.rgb[row.clamp(0, height - 1), column.clamp(0, width - 1)]


def _descriptors(features: Features) -> Tensor:
    return torch.from_numpy(features.descriptors).float()
