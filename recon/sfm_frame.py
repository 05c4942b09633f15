"""The frame of an estimated scene: up is +Z, the subject at the origin, median camera distance 1, or metres by GPS.

Similarities are given as (scale, R [3, 3], t [3]): new = scale R old + t.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Similarity:
    """new = scale * R @ old + t."""

    scale: float
    R: Floats  # [3, 3]
    t: Floats  # [3]

    def apply(self, points: Floats) -> Floats:
        """Points [P, 3] in the new frame."""
        return self.scale * points @ self.R.T + self.t

    def after(self, first: Similarity) -> Similarity:
        """`first`, then this one."""
        return Similarity(self.scale * first.scale, self.R @ first.R, self.apply(first.t[None])[0])


@dataclass(frozen=True)
class SceneFrame:
    """How the reconstruction's frame was chosen."""

    similarity: Similarity
    metric: bool
    decision: str


def choose_frame(c2w: Floats, points: Floats, gps: list[tuple[float, float, float] | None]) -> SceneFrame:
    """The scene's frame from camera poses [N, 4, 4], points [P, 3] and GPS positions (degrees, degrees, metres)."""
    up, how = up_direction(c2w[:, :3, :3])
    level = Similarity(1.0, rotation_between(up, np.array([0.0, 0.0, 1.0])), np.zeros(3))
    centers = level.apply(c2w[:, :3, 3])
    forward = c2w[:, :3, 2] @ level.R.T
    focus = scene_center(centers, forward, level.apply(points))
    to_metres = fit_gps(centers, gps)
    if to_metres is not None:
        ground, spread, error = to_metres
        moved = ground.apply(focus[None])[0]
        rest = Similarity(ground.scale, ground.R, ground.t - moved)
        decision = (
            f"Up is +Z ({how}), x points east; lengths are metres by GPS "
            f"(photos spread over {spread:.0f} m, median GPS deviation {error:.1f} m)."
        )
        return SceneFrame(rest.after(level), True, decision)
    distance = float(np.median(np.linalg.norm(centers - focus, axis=1)))
    scale = 1.0 / distance if distance > 1e-12 else 1.0
    rest = Similarity(scale, np.eye(3), -scale * focus)
    decision = f"Up is +Z ({how}); the median distance of the cameras to the middle of the scene is 1."
    return SceneFrame(rest.after(level), False, decision)


def up_direction(rotations: Floats) -> tuple[Floats, str]:
    """Unit up vector of the world and how it was found, from camera rotations [N, 3, 3] (world from camera).

    People hold cameras level but tilt them, so the x axes lie in the horizontal plane whatever the tilt: up is the
    direction most at right angles to all of them, found robustly because some photos are rolled.  When all look the
    same way the x axes agree and say nothing of the tilt; then up is the mean of what is up in the pictures.
    """
    right, above = rotations[:, :, 0], -rotations[:, :, 1]
    mean = above.mean(0)
    weights = np.ones(len(right))
    up, spread = mean, 0.0
    for _ in range(20):
        values, vectors = np.linalg.eigh((right * weights[:, None]).T @ right / weights.sum())
        up, spread = vectors[:, 0], float(values[1])
        weights = 1.0 / (0.05**2 + (right @ up) ** 2)  # Cauchy, 3 degrees
    if spread < 0.03 or len(right) < 3:  # x axes within some 10 degrees of one line
        length = float(np.linalg.norm(mean))
        return (mean / length if length > 1e-6 else np.array([0.0, 0.0, 1.0])), "what is up in the photos, on average"
    lean = float(above.mean(0) @ up)
    if abs(lean) > 0.2:
        sign = math.copysign(1.0, lean)
    else:  # photos straight down (or up) have no common picture-up; seen from above is by far the usual case
        sign = -math.copysign(1.0, float(rotations[:, :, 2].mean(0) @ up))
    return sign * up, "at right angles to the cameras' horizontal axes"


def rotation_between(source: Floats, target: Floats) -> Floats:
    """The smallest rotation [3, 3] that turns unit vector `source` into unit vector `target`."""
    cosine = float(source @ target)
    axis = np.asarray(np.cross(source, target), dtype=np.float64)
    if cosine < -1 + 1e-12:
        other = np.eye(3)[np.argmin(np.abs(source))]
        axis = np.asarray(np.cross(source, other), dtype=np.float64)
        axis = axis / np.linalg.norm(axis)
        return 2 * np.outer(axis, axis) - np.eye(3)
    skew = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    return np.eye(3) + skew + skew @ skew / (1 + cosine)


def scene_center(centers: Floats, forward: Floats, points: Floats) -> Floats:
    """What the cameras look at: where their axes nearly meet, if in front of most, else the middle of the points.

    centers, forward: [N, 3], forward of unit length.  points: [P, 3].
    """
    middle = np.median(points, axis=0) if len(points) else centers.mean(0) + forward.mean(0)
    depth = max(float(np.median(np.linalg.norm(centers - middle, axis=1))), 1e-9)
    across = np.eye(3) - forward[:, :, None] * forward[:, None, :]  # [N, 3, 3]
    weights = np.ones(len(centers))
    meeting = middle
    for _ in range(10):
        normal = (weights[:, None, None] * across).sum(0)
        if np.linalg.eigvalsh(normal)[0] < 0.02 * weights.sum():  # axes nearly parallel: they meet nowhere
            return middle
        meeting = np.linalg.solve(normal, (weights[:, None, None] * across @ centers[:, :, None]).sum(0)[:, 0])
        miss = np.linalg.norm((across @ (meeting - centers)[:, :, None])[:, :, 0], axis=1)
        weights = 1.0 / (0.1 * depth + miss)
    ahead = ((meeting - centers) * forward).sum(1)
    inside = np.linalg.norm(meeting - middle) < 1.5 * depth
    return meeting if (ahead > 0).mean() >= 0.8 and inside else middle


def enu(gps: Floats) -> Floats:
    """East, north and up in metres about the mean, [N, 3], of degrees north, degrees east and metres (WGS 84)."""
    latitude, longitude = np.radians(gps[:, 0]), np.radians(gps[:, 1])
    major, squared = 6_378_137.0, 6.694379990141e-3
    across = major / np.sqrt(1 - squared * np.sin(latitude) ** 2)
    earth: Floats = np.stack(
        [
            (across + gps[:, 2]) * np.cos(latitude) * np.cos(longitude),
            (across + gps[:, 2]) * np.cos(latitude) * np.sin(longitude),
            (across * (1 - squared) + gps[:, 2]) * np.sin(latitude),
        ],
        axis=1,
    )
    lat, lon = float(np.median(latitude)), float(np.median(longitude))
    east = np.array([-math.sin(lon), math.cos(lon), 0])
    north = np.array([-math.sin(lat) * math.cos(lon), -math.sin(lat) * math.sin(lon), math.cos(lat)])
    axes: Floats = np.stack([east, north, np.cross(east, north)], axis=1)
    return ((earth - earth.mean(0))[:, :, None] * axes).sum(1)


def fit_gps(
    centers: Floats, gps: list[tuple[float, float, float] | None], *, seed: int = 0
) -> tuple[Similarity, float, float] | None:
    """Level scene to metres east, north, up; with the spread of the places and the median deviation, both in metres.

    Heading, scale and shift only: `centers` [N, 3] are level already, and a phone's altitude is too poor to tilt by.
    RANSAC over pairs of photos, then least squares over what agrees.  None when GPS does not settle the scale: fewer
    than 5 places, a spread below 10 m, fewer than 60 % that agree, or deviations above a quarter of the spread.
    """
    known = [i for i, place in enumerate(gps) if place is not None and np.isfinite(place).all()]
    if len(known) < 5:
        return None
    places = enu(np.array([gps[i] for i in known], dtype=np.float64))
    flat, plane = centers[known][:, :2], places[:, :2]
    spread = 2 * float(np.median(np.linalg.norm(plane - np.median(plane, axis=0), axis=1)))  # outliers do not count
    if spread < 10:
        return None
    target, source = plane[:, 0] + 1j * plane[:, 1], flat[:, 0] + 1j * flat[:, 1]
    tolerance = max(3.0, 0.1 * spread)
    generator = np.random.default_rng(seed)
    best = np.zeros(len(known), dtype=bool)
    for _ in range(500):
        i, j = generator.choice(len(known), 2, replace=False)
        if abs(source[i] - source[j]) < 1e-9 or abs(target[i] - target[j]) < 0.3 * spread:
            continue
        turn = (target[i] - target[j]) / (source[i] - source[j])
        agree = np.abs(turn * (source - source[i]) + target[i] - target) < tolerance
        if agree.sum() > best.sum():
            best = agree
    if best.sum() < max(5, 0.6 * len(known)):
        return None
    a, b = source[best] - source[best].mean(), target[best] - target[best].mean()
    turn = (a.conj() * b).sum() / max(float((np.abs(a) ** 2).sum()), 1e-30)
    scale, angle = float(np.abs(turn)), float(np.angle(turn))
    shift = target[best].mean() - turn * source[best].mean()
    error = float(np.median(np.abs(turn * source + shift - target)))
    if scale < 1e-9 or error > 0.25 * spread:
        return None
    R = np.array([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]])
    height = float(np.median(places[:, 2] - scale * centers[known][:, 2]))
    return Similarity(scale, R, np.array([shift.real, shift.imag, height])), spread, error
