"""Polygons of a file cut into triangles."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def fans(counts: NDArray[np.int64], corners: NDArray, vertices: int) -> NDArray[np.int32]:
    """Polygons, given as their numbers of corners and all corners in a row, as triangles from their first corner."""
    corners = corners.astype(np.int64)
    if len(corners) and (corners.min() < 0 or corners.max() >= vertices):
        raise ValueError(f"faces point to vertex {corners.min()} to {corners.max()}, there are {vertices}")
    triangles = np.maximum(counts - 2, 0)
    starts = np.repeat(np.cumsum(counts) - counts, triangles)
    step = np.arange(int(triangles.sum())) - np.repeat(np.cumsum(triangles) - triangles, triangles)
    return np.stack([corners[starts], corners[starts + step + 1], corners[starts + step + 2]], axis=1).astype(np.int32)
