"""Vertices that a file had to split, for two uvs or normals in one place, joined again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from scene.mesh import Mesh, select_faces

FOLDED = -0.9999  # cosine between normals: faces back to back are the two sides of a sheet, not a seam


def weld_seams(mesh: Mesh) -> Mesh:
    """Join vertices along edges that two faces share in space but not by index, and drop unused vertices.

    An edge is closed where exactly two faces run along the same two positions, in opposite directions and with the same
    vertex colours. So a closed surface that was split at seams or hard edges is closed again, while sheets that merely
    touch (in a point, in an edge of four faces, or back to back) stay apart: no new edge joins more than two faces.
    """
    if not len(mesh.faces):
        return mesh
    places = np.unique(mesh.vertices + 0.0, axis=0, return_inverse=True)[1].reshape(-1)  # -0.0 is 0.0
    starts = mesh.faces.reshape(-1).astype(np.int64)
    stops = np.roll(mesh.faces, -1, axis=1).reshape(-1).astype(np.int64)
    low, high = np.minimum(places[starts], places[stops]), np.maximum(places[starts], places[stops])
    keys = low * (int(places.max()) + 1) + high
    order = np.argsort(keys, kind="stable")
    runs = np.flatnonzero(np.diff(keys[order], prepend=-1, append=-1))
    pairs = runs[:-1][np.diff(runs) == 2]
    first, second = order[pairs], order[pairs + 1]
    a, b, c, d = starts[first], stops[first], starts[second], stops[second]
    opposed = (places[a] == places[d]) & (places[b] == places[c]) & (places[a] != places[b])
    seam = opposed & ((a != d) | (b != c)) & _not_folded(mesh, first // 3, second // 3)
    if mesh.colors is not None:
        seam &= (mesh.colors[a] == mesh.colors[d]).all(axis=1) & (mesh.colors[b] == mesh.colors[c]).all(axis=1)
    if not seam.any():
        return select_faces(mesh, np.arange(len(mesh.faces)))
    joined = _representatives(
        len(mesh.vertices), np.concatenate([a[seam], b[seam]]), np.concatenate([d[seam], c[seam]])
    )
    return select_faces(replace(mesh, faces=joined[mesh.faces]), np.arange(len(mesh.faces)))


def _not_folded(mesh: Mesh, first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.bool_]:
    normals, areas = mesh.face_normals, 2 * mesh.face_areas
    cosines = np.einsum("ij,ij->i", normals[first], normals[second])
    return cosines >= FOLDED * areas[first] * areas[second]


def _representatives(count: int, a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.int32]:
    """[count] for each vertex the lowest number of those it is joined with by the pairs a-b."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    graph = coo_matrix((np.ones(len(a), dtype=np.int8), (a, b)), shape=(count, count))
    parts = connected_components(graph, directed=False)[1]
    return np.unique(parts, return_index=True)[1][parts].astype(np.int32)
