"""Meshes cut by a box: triangles are divided at its sides, with colours and uvs in between."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from scene.mesh import Edges, Mesh, select_faces


def crop_mesh(mesh: Mesh, low: tuple[float, float, float], high: tuple[float, float, float]) -> Mesh:
    """What of the mesh lies in the box, open where it was cut; neighbours share the vertices on the cut."""
    for axis in range(3):
        mesh = _cut(mesh, mesh.vertices[:, axis] - low[axis])
        mesh = _cut(mesh, high[axis] - mesh.vertices[:, axis])
    return mesh


def _cut(mesh: Mesh, side: NDArray[np.float64]) -> Mesh:
    """The part of the mesh where side [V], linear in space, is >= 0; vertices on the cut serve both parts."""
    on = np.abs(side) <= 1e-9 * float(np.ptp(side)) if len(side) else np.zeros(0, dtype=bool)
    inside = on | (side > 0)
    number = inside[mesh.faces].sum(axis=1)
    if (number == 3).all():
        return mesh
    if not (number % 3).any():
        return select_faces(mesh, number == 3)
    edges = Edges.of(mesh.faces)
    start = mesh.faces.reshape(-1)
    stop = np.roll(mesh.faces, -1, axis=1).reshape(-1)
    crossing = np.flatnonzero(inside[start] != inside[stop])
    _, first, which = np.unique(edges.ids[crossing], return_index=True, return_inverse=True)
    # From the lower vertex to the higher one, so that the faces on both sides place the cut alike to the bit.
    a, b = np.minimum(start, stop)[crossing[first]], np.maximum(start, stop)[crossing[first]]
    share = (side[a] / (side[a] - side[b]))[:, None]
    vertices = np.concatenate([mesh.vertices, mesh.vertices[a] + share * (mesh.vertices[b] - mesh.vertices[a])])
    colors = mesh.colors
    if colors is not None:
        between = colors[a] + share * (colors[b].astype(np.float64) - colors[a])
        colors = np.concatenate([colors, np.round(between).astype(np.uint8)])
    cut_vertex = np.full(len(start), -1, dtype=np.int64)
    cut_vertex[crossing] = len(mesh.vertices) + which.reshape(-1)
    for end in (start, stop):
        cut_vertex = np.where((cut_vertex >= 0) & on[end], end, cut_vertex)
    along = np.zeros(len(start))
    along[crossing] = side[start[crossing]] / (side[start[crossing]] - side[stop[crossing]])
    faces, uvs = _pieces(mesh, inside, cut_vertex.reshape(-1, 3), along.reshape(-1, 3))
    whole = (faces != np.roll(faces, 1, axis=1)).all(axis=1)
    return select_faces(replace(mesh, vertices=vertices, colors=colors, faces=faces, uvs=uvs), whole)


def _pieces(
    mesh: Mesh, inside: NDArray[np.bool_], cut_vertex: NDArray[np.int64], along: NDArray[np.float64]
) -> tuple[NDArray[np.int32], NDArray[np.float32] | None]:
    """The faces inside, and the one or two pieces of those that the cut divides, with their uvs.

    cut_vertex, along: [F, 3] the new vertex on each edge of each face and how far along it lies.
    """
    number = inside[mesh.faces].sum(axis=1)
    uvs = mesh.uvs
    kept_faces, kept_uvs = [mesh.faces[number == 3].astype(np.int64)], [] if uvs is None else [uvs[number == 3]]
    for count in (1, 2):
        rows = np.flatnonzero(number == count)
        # Turned so that the odd corner, the only one inside or outside, comes first.
        odd = (inside[mesh.faces[rows]] == (count == 1)).argmax(axis=1)
        turn = (odd[:, None] + np.arange(3)) % 3
        corners = np.take_along_axis(mesh.faces[rows].astype(np.int64), turn, axis=1)
        new = np.take_along_axis(cut_vertex[rows], turn, axis=1)
        # 0-2: the corners, 3: the cut after the odd corner, 4: the cut before it.
        points = np.concatenate([corners, new[:, [0]], new[:, [2]]], axis=1)
        patterns = ([0, 3, 4],) if count == 1 else ([3, 1, 2], [3, 2, 4])
        kept_faces += [points[:, pattern] for pattern in patterns]
        if uvs is not None:
            at = np.take_along_axis(uvs[rows].astype(np.float64), turn[..., None], axis=1)
            share = np.take_along_axis(along[rows], turn, axis=1)[..., None]
            after = at[:, 0] + share[:, 0] * (at[:, 1] - at[:, 0])
            before = at[:, 2] + share[:, 2] * (at[:, 0] - at[:, 2])
            all_uvs = np.concatenate([at, after[:, None], before[:, None]], axis=1).astype(np.float32)
            kept_uvs += [all_uvs[:, pattern] for pattern in patterns]
    return np.concatenate(kept_faces).astype(np.int32), np.concatenate(kept_uvs) if kept_uvs else None
