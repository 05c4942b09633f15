"""Cutting a mesh into charts that lie flat: regions that face one way, projected along it without overlap.

Reconstructed surfaces are bumpy, and charts cut by the normals as they are fall into thousands of crumbs. Here normals
of a smoothed mesh say where to cut, and bumps that fold over in the projection are pulled flat.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scene.mesh import Mesh

AXES = np.concatenate([np.eye(3), -np.eye(3)])
SMOOTHING = 8  # rounds over vertices before labelling; more would cut beside the edges of boxes, and stretch their rims
COHERENCE = 0.8  # how much a face would rather go with its neighbours than face its direction
ROUNDS = 24  # of labelling
SMALL_CHART = 2e-3  # share of the area; smaller charts go to a neighbour where they face it at all
FACING = 0.2  # least cosine between the directions of two charts that are joined
LEAST_AREA = 0.15  # of the area of a face that it must have in its chart; less shows as combed texels
UNFOLDING = 150  # rounds of moving vertices out of folds
ATTEMPTS = 6  # at projecting what overlapped or faced away; then each face that is left becomes a chart of its own


@dataclass(frozen=True)
class Charts:
    """uvs: [F, 3, 2] flat place of each corner, in lengths of the mesh.  ids: [F] chart of each face, from 0."""

    uvs: NDArray[np.float64]
    ids: NDArray[np.int64]

    @property
    def count(self) -> int:
        """Number of charts."""
        return int(self.ids.max(initial=-1)) + 1


def neighbours(faces: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """[P], [P] faces on the two sides of each edge; an edge of more than two gives a chain."""
    start = faces.reshape(-1).astype(np.int64)
    stop = np.roll(faces, -1, axis=1).reshape(-1).astype(np.int64)
    keys = np.minimum(start, stop) * (int(faces.max(initial=0)) + 1) + np.maximum(start, stop)
    order = np.argsort(keys, kind="stable")
    same = keys[order[1:]] == keys[order[:-1]]
    return order[:-1][same] // 3, order[1:][same] // 3


def smoothed(mesh: Mesh, rounds: int = SMOOTHING) -> Mesh:
    """Vertices moved half-way to the mean of their neighbours, round after round; those of a border along it only."""
    from scipy.sparse import coo_matrix, diags

    count = len(mesh.vertices)
    start, stop = mesh.faces.reshape(-1), np.roll(mesh.faces, -1, axis=1).reshape(-1)
    ends = np.concatenate([start, stop]), np.concatenate([stop, start])
    edges = coo_matrix((np.ones(len(ends[0])), ends), shape=(count, count)).tocsr()
    border = edges.multiply(edges == 1)
    on_border = np.asarray(border.sum(axis=1)).reshape(-1) > 0
    kept = diags(on_border.astype(float)) @ border + diags((~on_border).astype(float)) @ edges
    mean = diags(1 / np.maximum(np.asarray(kept.sum(axis=1)).reshape(-1), 1)) @ kept
    vertices = mesh.vertices
    alone = np.asarray(kept.sum(axis=1)).reshape(-1) == 0
    for _ in range(rounds):
        vertices = np.where(alone[:, None], vertices, 0.5 * (vertices + mean @ vertices))
    return Mesh(vertices, mesh.faces)


def cut(mesh: Mesh, overlapping: Callable[[Charts], NDArray[np.bool_]]) -> Charts:
    """All faces in charts in which nothing overlaps, as `overlapping` [F] sees it: it names the faces that must leave.

    Faces keep the order of the mesh. A chart is a connected piece; each corner of it has one place per vertex.
    """
    uvs = np.zeros((len(mesh.faces), 3, 2))
    ids = np.full(len(mesh.faces), -1, dtype=np.int64)
    labels = _labels(_unit(smoothed(mesh).face_normals) @ AXES.T, neighbours(mesh.faces))
    rest, count = np.arange(len(mesh.faces)), 0
    for attempt in range(ATTEMPTS):
        if not len(rest):
            break
        part = Mesh(mesh.vertices, mesh.faces[rest])
        pieces = _pieces(len(rest), neighbours(part.faces), labels[rest])
        if attempt == 0:
            pieces = _without_crumbs(part, pieces)
        flat, stays = _projected(part, pieces, overlapping)
        charts = _connected(Charts(flat, np.where(stays, pieces, -1)), part.faces)
        kept = rest[stays]
        uvs[kept], ids[kept] = charts.uvs[stays], charts.ids[stays] + count
        count += charts.count
        rest = rest[~stays]
        if attempt > 0:  # what would not lie flat together is cut by where its faces themselves look
            labels = (_unit(mesh.face_normals) @ AXES.T).argmax(axis=1)
        else:
            labels = np.zeros(len(mesh.faces), dtype=np.int64)
    ids[rest] = count + np.arange(len(rest))
    uvs[rest] = _each_flat(mesh.vertices[mesh.faces[rest]])
    return Charts(uvs, ids)


def _projected(
    mesh: Mesh, ids: NDArray[np.int64], overlapping: Callable[[Charts], NDArray[np.bool_]]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """[F, 3, 2] faces along the mean normal of their piece, folds smoothed out, and which faces [F] lie flat there."""
    directions = _unit(_sums(ids, mesh.face_normals))
    right = _unit(np.cross(np.where(np.abs(directions[:, :1]) < 0.6, [[1.0, 0, 0]], [[0, 1.0, 0]]), directions))
    up = np.cross(directions, right)
    corners = mesh.vertices[mesh.faces]
    uvs = np.stack([np.einsum("fkc,fc->fk", corners, axis[ids]) for axis in (right, up)], axis=2)
    uvs, flat = _unfolded(mesh, ids, uvs)
    # Of faces over each other the one in front stays: what leaves is then whole sheets, not every other face.
    order = np.argsort(-(corners.mean(axis=1) * directions[ids]).sum(axis=1), kind="stable")
    flat[order] &= ~overlapping(Charts(uvs[order], ids[order]))
    return uvs, flat


def _unfolded(
    mesh: Mesh, ids: NDArray[np.int64], uvs: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Places with the inner vertices around faces that lie upside down or on edge moved between their neighbours, as
    in Tutte's embedding, which has no folds; and which faces lie the right way up in the end.
    """
    from scipy.sparse import coo_matrix

    keys = ids[:, None] * len(mesh.vertices) + mesh.faces
    _, first, corner = np.unique(keys.reshape(-1), return_index=True, return_inverse=True)
    corner = corner.reshape(-1, 3)
    places = uvs.reshape(-1, 2)[first]
    start, stop = corner.reshape(-1), np.roll(corner, -1, axis=1).reshape(-1)
    ends = np.concatenate([start, stop]), np.concatenate([stop, start])
    edges = coo_matrix((np.ones(len(ends[0])), ends), shape=(len(places), len(places))).tocsr()
    at_border = np.zeros(len(places), dtype=bool)
    at_border[ends[0][np.asarray(edges[ends]).reshape(-1) == 1]] = True
    degree = np.maximum(np.asarray(edges.sum(axis=1)).reshape(-1), 1)[:, None]
    least = LEAST_AREA * mesh.face_areas
    moving = np.zeros(len(places), dtype=bool)
    for _ in range(UNFOLDING):
        folded = flat_areas(places[corner]) < least
        if not folded.any():
            break
        moving[corner[folded]] = True
        moves = moving & ~at_border
        places = np.where(moves[:, None], 0.5 * (places + edges @ places / degree), places)
    placed = places[corner]
    return placed, flat_areas(placed) >= least


def flat_areas(uvs: NDArray[np.float64]) -> NDArray[np.float64]:
    """[F] signed areas of flat triangles [F, 3, 2]."""
    a, b = uvs[:, 1] - uvs[:, 0], uvs[:, 2] - uvs[:, 0]
    return 0.5 * (a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0])


def _unit(vectors: NDArray[Any]) -> NDArray[np.float64]:
    """[N, 3] directions of vectors; zero where there is none."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-300)


def _labels(scores: NDArray[np.float64], pairs: tuple[NDArray[np.int64], NDArray[np.int64]]) -> NDArray[np.int64]:
    """[F] best direction of each face [F, D], by its own score and by what its neighbours chose."""
    labels = scores.argmax(axis=1)
    a, b = pairs
    everyone = np.arange(len(scores))
    for turn in range(ROUNDS):
        votes = np.zeros_like(scores)
        np.add.at(votes, (a, labels[b]), 1.0)
        np.add.at(votes, (b, labels[a]), 1.0)
        better = (scores + COHERENCE / 3 * votes).argmax(axis=1)
        # Half of them at a time: two neighbours that follow each other would swap for ever.
        labels = np.where((everyone + turn) % 2 == 0, better, labels)
    return labels


def _without_crumbs(mesh: Mesh, ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Pieces with the small ones given to the neighbour with the longest common border that they face."""
    limit = SMALL_CHART * mesh.face_areas.sum()
    pairs = neighbours(mesh.faces)
    a, b = np.concatenate(pairs), np.concatenate(pairs[::-1])
    for _ in range(6):
        count = int(ids.max()) + 1
        areas = np.bincount(ids, mesh.face_areas, count)
        means = _unit(_sums(ids, mesh.face_normals))
        larger = (areas[ids[b]] > areas[ids[a]]) | ((areas[ids[b]] == areas[ids[a]]) & (ids[b] > ids[a]))
        crossing = (ids[a] != ids[b]) & (areas[ids[a]] < limit) & larger
        border, length = np.unique(ids[a][crossing] * count + ids[b][crossing], return_counts=True)
        small, large = border // count, border % count
        facing = (means[small] * means[large]).sum(axis=1) > FACING
        small, large, length = small[facing], large[facing], length[facing]
        if not len(small):
            break
        goal = np.arange(count)
        order = np.argsort(length, kind="stable")
        goal[small[order]] = large[order]  # the longest border is written last
        for _ in range(8):  # a small one may go to one that goes on itself
            goal = goal[goal]
        ids = np.unique(goal[ids], return_inverse=True)[1].reshape(-1)
    return ids


def _sums(ids: NDArray[np.int64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """[N, C] sums of values [F, C] by id."""
    return np.stack([np.bincount(ids, values[:, i]) for i in range(values.shape[1])], axis=1).astype(np.float64)


def _pieces(
    count: int, pairs: tuple[NDArray[np.int64], NDArray[np.int64]], labels: NDArray[np.int64]
) -> NDArray[np.int64]:
    """[F] number of the connected piece of equal label that each face lies in."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    same = labels[pairs[0]] == labels[pairs[1]]
    a, b = pairs[0][same], pairs[1][same]
    graph = coo_matrix((np.ones(len(a), dtype=np.int8), (a, b)), shape=(count, count))
    pieces: NDArray[np.int64] = connected_components(graph, directed=False)[1].astype(np.int64)
    return pieces


def _connected(charts: Charts, faces: NDArray[np.integer]) -> Charts:
    """Charts cut into their connected pieces; faces of id -1 stay out."""
    ids = np.full(len(faces), -1, dtype=np.int64)
    inside = charts.ids >= 0
    if inside.any():
        ids[inside] = _pieces(int(inside.sum()), neighbours(faces[inside]), charts.ids[inside])
    return Charts(charts.uvs, ids)


def _each_flat(corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """[F, 3, 2] each triangle [F, 3, 3] laid flat by itself, its first edge along u."""
    first, second = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    length = np.linalg.norm(first, axis=1)
    along = first / np.maximum(length, 1e-300)[:, None]
    u = (second * along).sum(axis=1)
    v = np.linalg.norm(second - u[:, None] * along, axis=1)
    zero = np.zeros_like(u)
    return np.stack([np.stack([zero, zero], 1), np.stack([length, zero], 1), np.stack([u, v], 1)], axis=1)
