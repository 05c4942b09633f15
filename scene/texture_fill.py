"""Texels that no photo saw, the room between charts, and how well charts meet at their seams."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from scene.mesh import Mesh
from scene.mesh_render import sample_picture

DIFFUSION = 200  # rounds in which colours spread over the vertices that nobody saw
SEAM_POINTS = 5  # along each edge of a seam


def colors_of_vertices(
    mesh: Mesh, faces: NDArray[np.integer], colors: NDArray[np.float32], seen: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """[V, 3] a colour for every vertex: of the seen texels on its faces, or else spread from its neighbours.

    faces: [T] face of each texel.  colors: [T, 3].  seen: [T]. A mesh of which nothing was seen is grey.
    """
    from scipy.sparse import coo_matrix

    used, count = faces[seen], len(mesh.vertices)
    texels = np.bincount(used, minlength=len(mesh.faces)).astype(np.float64)
    sums = np.stack([np.bincount(used, colors[seen, i], len(mesh.faces)) for i in range(3)], axis=1)
    corners = mesh.faces.reshape(-1)
    weight = np.bincount(corners, np.repeat(texels, 3), count)
    total = np.stack([np.bincount(corners, np.repeat(sums[:, i], 3), count) for i in range(3)], axis=1)
    known = weight > 0
    if not known.any():
        return np.full((count, 3), 127.0)
    result: Any = total / np.maximum(weight, 1)[:, None]
    if known.all():
        return result
    from scipy.spatial import KDTree

    blind: Any = np.flatnonzero(~known)
    result[blind] = result[known][KDTree(mesh.vertices[known]).query(mesh.vertices[blind])[1]]
    ends = mesh.faces.reshape(-1), np.roll(mesh.faces, -1, axis=1).reshape(-1)
    edges = coo_matrix((np.ones(len(ends[0])), ends), shape=(count, count)).tocsr()
    edges = edges + edges.T
    degree = np.maximum(np.asarray(edges.sum(axis=1)).reshape(-1), 1)[:, None]
    rows, share = edges[blind], degree[blind]
    for _ in range(DIFFUSION):
        result[blind] = 0.5 * (result[blind] + rows @ result / share)
    return result


def spread(picture: NDArray[np.uint8], covered: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The picture [S, S, ...] with every texel outside the charts a copy of the nearest inside [S, S]."""
    import cv2

    if not covered.any() or covered.all():
        return picture
    labels: Any = cv2.distanceTransformWithLabels(
        (~covered).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )[1]
    where = np.zeros(int(labels.max()) + 1, dtype=np.int64)
    inside = np.flatnonzero(covered)
    where[labels.reshape(-1)[inside]] = inside
    flat = picture.reshape(covered.size, -1)
    return flat[where[labels.reshape(-1)]].reshape(picture.shape)


def seam_error(mesh: Mesh, picture: NDArray[np.uint8]) -> float:
    """Mean absolute difference, 0 to 1, of what the two sides of the seams show; 0 for a mesh without seams."""
    assert mesh.uvs is not None
    first, second = seams(mesh)
    if not len(first):
        return 0.0
    shares = (np.arange(SEAM_POINTS) + 0.5) / SEAM_POINTS
    sides = []
    for ends in (first, second):
        along = ends[:, None, 0] * (1 - shares[:, None]) + ends[:, None, 1] * shares[:, None]
        sides.append(sample_picture(picture, along.reshape(-1, 2)))
    lengths = np.linalg.norm(first[:, 1] - first[:, 0], axis=1)
    apart = np.abs(sides[0] - sides[1]).mean(axis=1).reshape(len(first), -1).mean(axis=1)
    return float((apart * lengths).sum() / max(float(lengths.sum()), 1e-30) / 255)


def seams(mesh: Mesh) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """[E, 2, 2], [E, 2, 2] the uvs of the two ends of each edge whose two faces have different ones."""
    assert mesh.uvs is not None
    start, stop = mesh.faces.reshape(-1), np.roll(mesh.faces, -1, axis=1).reshape(-1)
    keys = np.minimum(start, stop).astype(np.int64) * len(mesh.vertices) + np.maximum(start, stop)
    ends = np.stack([mesh.uvs, np.roll(mesh.uvs, -1, axis=1)], axis=2).reshape(-1, 2, 2).astype(np.float64)
    ends = np.where((start < stop)[:, None, None], ends, ends[:, ::-1])
    order = np.argsort(keys, kind="stable")
    same = keys[order[1:]] == keys[order[:-1]]
    first, second = ends[order[:-1][same]], ends[order[1:][same]]
    apart = np.abs(first - second).max(axis=(1, 2)) > 1e-7
    return first[apart], second[apart]
