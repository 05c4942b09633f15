"""Which way is up, made exact by the ground: the largest flat thing that lies below the rest and nearly level."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

TILT = np.deg2rad(25.0)  # between the first guess of up and the ground's normal, at most
TRIES = 2000
THICKNESS = 0.01  # of the scene's size: points so near to a plane lie on it
LEAST_SHARE = 0.12  # of the points that must lie on the ground
BELOW = 0.05  # of the points that may lie below it; reflections and noise do

Floats = NDArray[np.float64]


def level_with_ground(points: Floats, up: Floats, *, seed: int = 0) -> Floats | None:
    """[3] unit normal of the ground under points [P, 3], upwards, or None where there is no ground to be seen.

    up: a first guess, from the cameras.  Planes through three random points, the fullest one fitted to its points.
    """
    up = up / np.linalg.norm(up)
    if len(points) < 100:
        return None
    middle = np.median(points, axis=0)
    size = 2 * float(np.quantile(np.linalg.norm(points - middle, axis=1), 0.75))
    points = points[np.linalg.norm(points - middle, axis=1) < 2 * size] - middle
    rng = np.random.default_rng(seed)
    some = points[rng.choice(len(points), min(len(points), 4000), replace=False)]
    corners = some[rng.integers(0, len(some), (TRIES, 3))]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    length = np.linalg.norm(normals, axis=1)
    level = np.abs(normals @ up) > np.cos(TILT) * np.maximum(length, 1e-300)
    normals = normals[level] / length[level][:, None]
    normals *= np.sign(normals @ up)[:, None]
    heights = np.einsum("td,td->t", normals, corners[level, 0])
    best, share = None, LEAST_SHARE
    for normal, height in zip(normals, heights, strict=True):
        above = some @ normal - height
        on = float((np.abs(above) < THICKNESS * size).mean())
        if on > share and float((above < -3 * THICKNESS * size).mean()) < BELOW:
            best, share = (normal, height), on
    if best is None:
        return None
    on_plane = points[np.abs(points @ best[0] - best[1]) < THICKNESS * size]
    normal = np.linalg.svd(on_plane - on_plane.mean(axis=0), full_matrices=False)[2][2]
    return normal * np.sign(normal @ up)
