"""Depth images moved to where the pictures agree: stereo in a narrow band around the depth that the splats give.

Splats match photos with a fog of translucent ellipsoids, so the depth at which a ray ends in them is noisy and some
pixels are wrong. The pictures know more: a patch that is carried over the local surface into a neighbouring view looks
the same there only at the right depth. This is the plane sweep of multi-view stereo (Collins, 1996) along the surface
at hand, scored by zero-mean normalised cross-correlation. Noise is first smoothed away between edges, so that patches
lie flat; then each pixel of each view tries a few depths in its neighbours and takes the best where the pictures have
enough detail to tell. Where they have not, the shift of the sure pixels around is taken over. At last a pixel stays
only where other views confirm its depth.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from scene.cameras import Camera
from scene.depth_fusion import DepthFrame, ignore

Image = NDArray[Any]  # [H, W] float32; the stubs of OpenCV and numpy's promotion know no float types

SHIFTS = ((0.0, 0.25, 0.5, 0.8, 1.25, 1.9), (0.0, 0.12, 0.25, 0.5, 0.95))  # px in the neighbours, each way; two rounds
WINDOW = 5  # px; larger ones carry depth over edges
NEIGHBOURS, LOOKS = 4, 200  # neighbours of a view, less where views times neighbours would be more than this
NEAR_ANGLE, BEST_ANGLE, FAR_ANGLE = 4.0, 15.0, 35.0  # degrees between two views of a point, to see the same and differ
OCCLUDED = 0.03  # of the depth: a neighbour whose depth is farther off sees something else
LEAST_SCORE = 0.6  # correlation below which the pictures do not agree at all
GREY_NOISE = 1e-5  # variance of pixels in 0 to 1 that says nothing
SPREAD = 2.0  # px, of the Gaussian by which sure pixels tell those around
RANGE = 4.0  # times the noise of the depth: a step this large is an edge, and not smoothed
WITNESSES, CONFIRMED = 10, 0.01  # views asked whether they see a pixel at its depth, and how close it must be to that
WITNESS_ANGLES = (2.0, 60.0)  # degrees
MANY_WITNESSES = 8


@dataclass(frozen=True)
class _View:
    """A frame as float32 numpy arrays. rays: [H, W] x and y at z = 1."""

    camera: Camera
    depth: Image
    grey: Image
    ray_x: Image
    ray_y: Image


def refine_depths(
    frames: Sequence[DepthFrame],
    *,
    noise: float,
    progress: Callable[[int, int, str], None] = ignore,
    stop: Callable[[], bool] = lambda: False,
) -> list[DepthFrame]:
    """The frames with depths at which their pictures agree; pixels that no two others confirm lose theirs.

    noise: how far the depths of two views of a point differ, scene units.  Pixels without depth keep none.
    progress(done, total, message) is called per frame; `stop` is asked as often, and what is done by then comes back.
    """
    views = [_view_of(frame) for frame in frames]
    total = len(views) * len(SHIFTS)
    count = max(1, min(NEIGHBOURS, LOOKS // max(1, len(views))))
    near = [_neighbours(views, i, (NEAR_ANGLE, FAR_ANGLE))[:count] for i in range(len(views))]
    # OpenCV and numpy let go of the interpreter, so that views side by side use all cores; the order stays.
    pool = ThreadPoolExecutor(max_workers=os.cpu_count())
    try:
        for round_, shifts in enumerate(SHIFTS):
            views = list(pool.map(lambda view: replace(view, depth=_smooth(view.depth, RANGE * noise)), views))
            jobs = [
                pool.submit(_moved, view, [views[j] for j, _ in others], [angle for _, angle in others], shifts)
                for view, others in zip(views, near, strict=True)
            ]
            views = []
            for job in jobs:
                if stop():
                    return list(frames)
                views.append(job.result())
                progress(round_ * len(frames) + len(views), total, "comparing the views")
    finally:
        pool.shutdown(cancel_futures=True)
    depths = _confirmed(views)
    return [replace(frame, depth=torch.from_numpy(depth)) for frame, depth in zip(frames, depths, strict=True)]


def _view_of(frame: DepthFrame) -> _View:
    import cv2

    K = frame.camera.K.double().numpy()
    rows, columns = np.mgrid[: frame.camera.height, : frame.camera.width].astype(np.float32) + np.float32(0.5)
    return _View(
        frame.camera,
        frame.depth.to(torch.float32).numpy(),
        cv2.cvtColor(frame.rgb.numpy(), cv2.COLOR_RGB2GRAY).astype(np.float32) / np.float32(255),
        ((columns - K[0, 2]) / K[0, 0]).astype(np.float32),
        ((rows - K[1, 2]) / K[1, 1]).astype(np.float32),
    )


def _neighbours(views: Sequence[_View], which: int, angles: tuple[float, float]) -> list[tuple[int, float]]:
    """Views that see what this one looks at from another side, best first, each with the angle between in degrees."""
    camera, depth = views[which].camera, views[which].depth
    if not (depth > 0).any():
        return []
    eye, forward = camera.center.double().numpy(), camera.forward.double().numpy()
    middle = eye + forward * float(np.median(depth[depth > 0]))
    away = eye - middle
    found = []
    for other, view in enumerate(views):
        there = view.camera.center.double().numpy() - middle
        ahead = float(view.camera.forward.double().numpy() @ forward)
        if other == which or ahead < 0.5 or not np.linalg.norm(there) > 0:
            continue
        nearer = np.linalg.norm(there) / np.linalg.norm(away)
        cosine = float(there @ away / np.linalg.norm(there) / np.linalg.norm(away))
        angle = float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
        if angles[0] <= angle <= angles[1]:
            found.append((abs(np.log(angle / BEST_ANGLE)) + abs(np.log(nearer)), other, angle))
    return [(other, angle) for _, other, angle in sorted(found)]


def _smooth(depth: Image, step: float) -> Image:
    """Bilateral filter of the inverse depth, twice: planes stay planes, steps much larger than `step` stay steps."""
    import cv2

    there = depth > 0
    if not there.any():
        return depth
    middle = np.float32(np.median(depth[there]))
    inverse = np.where(there, middle / np.where(there, depth, 1), 0).astype(np.float32)  # about 1
    for _ in range(2):
        inverse = cv2.bilateralFilter(inverse, 9, max(step / float(middle), 1e-6), 3.0)
    return np.where(there, middle / np.maximum(inverse, np.float32(1e-6)), 0).astype(np.float32)


def _moved(view: _View, neighbours: Sequence[_View], angles: Sequence[float], shifts: Sequence[float]) -> _View:
    """The view with the depth that its neighbours agree on; `shifts` in px, from 0 up."""
    if not neighbours:
        return view
    per_pixel = 1 / (float(view.camera.K[0, 0]) * np.sin(np.radians(np.mean(angles))))  # share of the depth
    steps = per_pixel * np.array([*(-shift for shift in reversed(shifts[1:])), *shifts])
    shift, confidence = _peak(_scores(view, neighbours, steps), steps)
    return replace(view, depth=view.depth * (1 + _spread(shift, confidence)))


def _scores(view: _View, neighbours: Sequence[_View], steps: NDArray[np.float64]) -> Image:
    """[steps, H, W] mean correlation with the neighbours that see the pixel, 0 where none does, per relative shift."""
    import cv2

    def box(image: Image) -> Image:
        return cv2.boxFilter(image, -1, (WINDOW, WINDOW), borderType=cv2.BORDER_REFLECT)

    grey = view.grey
    mean = box(grey)
    variance = np.maximum(box(grey * grey) - mean * mean, 0) + np.float32(GREY_NOISE)
    total = np.zeros((len(steps), *grey.shape), np.float32)
    seen = np.zeros(grey.shape, np.float32)
    for other in neighbours:
        path = _Path.between(view, other)
        sees = _depth_error(view, other, path) < OCCLUDED
        seen += sees
        for score, step in zip(total, steps, strict=True):
            x, y, _ = path.at(1 + step)
            warped = cv2.remap(other.grey, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
            warped_mean = box(warped)
            warped_variance = np.maximum(box(warped * warped) - warped_mean * warped_mean, 0) + np.float32(GREY_NOISE)
            score += sees * (box(grey * warped) - mean * warped_mean) / np.sqrt(variance * warped_variance)
    return total / np.maximum(seen, 1)


@dataclass(frozen=True)
class _Path:
    """Where a view's surface falls in another one when its depths are scaled by s: s turned + offset, homogeneous."""

    turned: tuple[Image, Image, Image]
    offset: NDArray[np.float32]  # [3]

    @staticmethod
    def between(view: _View, other: _View) -> _Path:
        other_from_view = (other.camera.viewmat.double() @ view.camera.c2w.double()).numpy()
        K = other.camera.K.double().numpy()
        A, offset = (K @ other_from_view[:3, :3]).astype(np.float32), (K @ other_from_view[:3, 3]).astype(np.float32)
        x, y, z = ((row[0] * view.ray_x + row[1] * view.ray_y + row[2]) * view.depth for row in A)
        return _Path((x, y, z), offset)

    def at(self, scale: float) -> tuple[Image, Image, Image]:
        """Pixel as OpenCV counts them, centres at whole numbers, and z: each [H, W]."""
        x, y, z = (np.float32(scale) * part + shift for part, shift in zip(self.turned, self.offset, strict=True))
        per_z = 1 / np.maximum(z, np.float32(1e-6))
        return x * per_z - np.float32(0.5), y * per_z - np.float32(0.5), z


def _depth_error(view: _View, other: _View, path: _Path) -> Image:
    """[H, W] difference of the depth of a view's surface to that of another view, relative; infinite where unseen."""
    import cv2

    x, y, z = path.at(1.0)
    depth = cv2.remap(other.depth, x, y, cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
    seen = (view.depth > 0) & (depth > 0) & (z > 1e-6)
    return np.where(seen, np.abs(depth - z) / np.where(seen, z, 1), np.inf).astype(np.float32)


def _peak(scores: Image, steps: NDArray[np.float64]) -> tuple[Image, Image]:
    """Shift with the best score, by a parabola through it and its two neighbours, and how sure that is; [H, W] each.

    Sure is what agrees well and much better than a little beside it. A best score at the end of the range is none.
    """
    best = scores.argmax(axis=0)
    middle = np.clip(best, 1, len(steps) - 2)
    low, top, high = (np.take_along_axis(scores, (middle + k)[None], axis=0)[0] for k in (-1, 0, 1))
    x0, x1, x2 = (steps.astype(np.float32)[middle + k] for k in (-1, 0, 1))
    rise = (top - low) / (x1 - x0)
    curvature = ((high - top) / (x2 - x1) - rise) / (x2 - x0)
    peaked = (best == middle) & (curvature < 0)
    shift = 0.5 * (x0 + x1 - rise / np.where(peaked, curvature, -1))
    sure = np.where(peaked, np.maximum(top - LEAST_SCORE, 0) * -curvature, 0)
    return np.where(peaked, np.clip(shift, x0, x2), 0).astype(np.float32), sure.astype(np.float32)


def _spread(shift: Image, confidence: Image) -> Image:
    """Mean of the shifts around, weighted by confidence; none where nothing around is sure."""
    import cv2

    if not (confidence > 0).any():
        return np.zeros_like(shift)
    # A few pixels at strong edges would outweigh all others.
    weight = np.minimum(confidence, np.quantile(confidence[confidence > 0], 0.9))
    total = cv2.GaussianBlur(weight, (0, 0), SPREAD) + np.float32(0.02) * weight.max()
    return cv2.GaussianBlur(weight * shift, (0, 0), SPREAD) / total


def _confirmed(views: Sequence[_View]) -> list[Image]:
    """The depths without those that too few other views have at that place: two, or one where few could."""
    depths = []
    for i, view in enumerate(views):
        witnesses = [views[j] for j, _ in _neighbours(views, i, WITNESS_ANGLES)[:WITNESSES]]
        needed = 2 if len(witnesses) >= MANY_WITNESSES else min(1, len(witnesses))
        agree = np.zeros(view.depth.shape, np.int32)
        for other in witnesses:
            agree += _depth_error(view, other, _Path.between(view, other)) < CONFIRMED
        depths.append(np.where(agree >= needed, view.depth, 0).astype(np.float32))
    return depths
