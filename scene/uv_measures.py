"""What can be measured of how a mesh lies in its texture: overlap, padding and density, texel by texel.

A texel belongs to the triangles that hold its centre. Rows are filled between edge crossings, and an edge that two
triangles share crosses a row at one and the same float for both: neighbours neither overlap nor leave a gap.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scene.mesh import Mesh, connected_parts


@dataclass(frozen=True)
class UvMeasures:
    """How a mesh lies in a texture of width x height texels.

    outside: the farthest that a corner lies outside [0, 1].  overlap: share of the covered texels that several faces
    cover.  covered: share of the texture.  islands: pieces that hang together by their uvs.  padding: half of the
    texels between the two nearest islands, what each has for itself; infinite for one island.
    density: texels per unit of length at 5, 50 and 95 % of the surface.
    """

    width: int
    height: int
    outside: float
    overlap: float
    covered: float
    islands: int
    padding: float
    density: tuple[float, float, float]


def measure_uvs(mesh: Mesh, width: int, height: int) -> UvMeasures:
    """Measure the uvs of a mesh for a texture of this size. Raises ValueError for a mesh without uvs or faces."""
    if mesh.uvs is None or not len(mesh.faces):
        raise ValueError("there are no uvs to measure")
    uvs = mesh.uvs.astype(np.float64)
    texels = uvs * [width, height]
    islands = uv_islands(mesh)
    count = coverage(texels, width, height)
    covered = count > 0
    return UvMeasures(
        width=width,
        height=height,
        outside=max(0.0, float((np.abs(uvs - 0.5) - 0.5).max())),
        overlap=float((count > 1).sum() / max(int(covered.sum()), 1)),
        covered=float(covered.mean()),
        islands=int(islands.max()) + 1,
        padding=_padding(texels, islands, count),
        density=_density(mesh, texels),
    )


def coverage(
    triangles: NDArray[np.float64], width: int, height: int, weights: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """[height, width] how many triangles [F, 3, 2], in texels, hold a texel's centre, or the sum of their weights."""
    start, stop = triangles, np.roll(triangles, -1, axis=1)
    edge = (stop - start).reshape(-1, 2)
    # Sorted ends: the crossing of a common edge comes out the same whichever way a face runs along it.
    upwards = edge[:, 1] > 0
    low = np.where(upwards[:, None], start.reshape(-1, 2), stop.reshape(-1, 2))
    high = np.where(upwards[:, None], stop.reshape(-1, 2), start.reshape(-1, 2))
    limit = 4.0 * max(width, height)  # far outside: nothing there is drawn, and rows stay countable
    first = np.clip(np.ceil(np.clip(low[:, 1], -limit, limit) - 0.5), 0, height).astype(np.int64)
    last = np.clip(np.ceil(np.clip(high[:, 1], -limit, limit) - 0.5), 0, height).astype(np.int64)
    rows = last - first
    of_edge = np.repeat(np.arange(len(edge)), rows)
    row = np.arange(len(of_edge)) - np.repeat(np.cumsum(rows) - rows, rows) + first[of_edge]
    slope = (high[:, 0] - low[:, 0]) / np.where(rows > 0, high[:, 1] - low[:, 1], 1)
    crossing = low[of_edge, 0] + (row + 0.5 - low[of_edge, 1]) * slope[of_edge]
    column = np.clip(np.ceil(np.clip(crossing, -limit, limit) - 0.5), 0, width).astype(np.int64)
    area = edge.reshape(-1, 3, 2)
    turn = np.sign(area[:, 0, 0] * area[:, 1, 1] - area[:, 0, 1] * area[:, 1, 0])
    weight = turn if weights is None else turn * weights
    # Counter-clockwise faces lie to the left of their edges: one that goes up ends the row, one that goes down starts.
    change = np.repeat(weight, 3) * np.where(upwards, -1.0, 1.0)
    steps = np.bincount(row * (width + 1) + column, change[of_edge], height * (width + 1)).astype(np.int64)
    return np.cumsum(steps.reshape(height, width + 1), axis=1)[:, :width]


def uv_islands(mesh: Mesh) -> NDArray[np.int32]:
    """[F] number of the island of each face: faces hang together that share a vertex at the same place in the uvs."""
    assert mesh.uvs is not None
    corners = np.empty((3 * len(mesh.faces), 3), dtype=np.int64)
    corners[:, 0] = mesh.faces.reshape(-1)
    corners[:, 1:] = (mesh.uvs.reshape(-1, 2) + np.float32(0.0)).view(np.int32)  # + 0: of -0 and 0 one
    order = np.lexsort(corners.T)
    new = np.any(np.diff(corners[order], axis=0, prepend=-1) != 0, axis=1)
    node = np.empty(len(corners), dtype=np.int64)
    node[order] = np.cumsum(new) - 1
    node = node.reshape(-1, 3)
    parts = connected_parts(
        int(node.max()) + 1, np.concatenate([node[:, 0], node[:, 0]]), np.concatenate([node[:, 1], node[:, 2]])
    )
    return np.unique(parts[node[:, 0]], return_inverse=True)[1].reshape(-1).astype(np.int32)


def _padding(texels: NDArray[np.float64], islands: NDArray[np.int32], count: NDArray[np.int64]) -> float:
    """Half of the texels between the nearest two islands.

    Each empty texel is given its nearest covered one; where two neighbours are given those of different islands, these
    two are candidates for the nearest pair.
    """
    import cv2

    height, width = count.shape
    owner = coverage(texels, width, height, islands.astype(np.int64))
    single = count == 1
    if int(islands.max()) == 0 or not single.any():
        return float("inf")
    # The nearest texel of a label map by chamfer distance: it need not be quite the nearest, its distance is exact.
    _, labels = cv2.distanceTransformWithLabels(
        np.where(single, 0, 1).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    label = np.asarray(labels).astype(np.int32)
    places = np.flatnonzero(single)
    place_of_label = np.zeros(int(label.max()) + 1, dtype=np.int32)
    place_of_label[label.reshape(-1)[places]] = places
    nearest = place_of_label[label]
    island = owner.astype(np.int32).reshape(-1)[nearest]
    least = np.inf
    for a, b in (((slice(None), slice(1, None)), (slice(None), slice(-1))), ((slice(1, None),), (slice(-1),))):
        apart = island[a] != island[b]
        one, other = nearest[a][apart], nearest[b][apart]
        if len(one):
            gap = np.hypot(one % width - other % width, one // width - other // width)
            least = min(least, float(gap.min()))
    return max(0.5 * (least - 1), 0.0)


def _density(mesh: Mesh, texels: NDArray[np.float64]) -> tuple[float, float, float]:
    """Texels per unit of length at 5, 50 and 95 % of the surface."""
    a, b = texels[:, 1] - texels[:, 0], texels[:, 2] - texels[:, 0]
    in_texture = 0.5 * np.abs(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0])
    there = mesh.face_areas > 0
    density = np.sqrt(in_texture[there] / mesh.face_areas[there])
    order = np.argsort(density)
    share = np.cumsum(mesh.face_areas[there][order])
    if not len(order):
        return (0.0, 0.0, 0.0)
    places = np.searchsorted(share, np.array([0.05, 0.5, 0.95]) * share[-1])
    low, middle, high = density[order][np.minimum(places, len(order) - 1)].tolist()
    return (low, middle, high)
