"""Closes small holes of a manifold mesh with triangles between their corners, where the surface goes on across them.

Each hole gets the triangulation that folds least and, of equals, has the least area: Liepa, Filling Holes in Meshes
(2003), section 3, by dynamic programming over its chords. No vertex is added, so colours stay right.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from scene.mesh import Edges, Mesh, connected_parts

# Between neighbouring normals: the last face of a tetrahedron goes in, a lid that folds back onto the surface does not.
LEAST_COSINE = -0.35
LEAST_SHAPE = 1e-5  # height by length; a thinner face is no better than the hole
SMALL, LARGEST_LID = 12, 0.1  # a hole of more edges than that is closed when its lid is small beside the part around it
MOST_HOLES = 4000  # more are not pinholes: the mesh is a heap of loose faces, and would take minutes

Fold = tuple[float, float]  # worst 1 - cosine between neighbours, area


def fill_holes(mesh: Mesh, most_edges: int) -> tuple[Mesh, int]:
    """The mesh with holes of at most `most_edges` edges closed, and how many were.

    The mesh must be manifold and consistently oriented, and stays so. A hole stays open where every filling would fold
    back, be degenerate, or lay a second edge between vertices that have one; a larger one also where its lid would be
    a good share of the part it belongs to, for it is then the mouth of a bowl. Time and memory of a hole grow with the
    cube of its edges: 160 take a second and 250 MB.
    """
    holes = _holes(mesh, most_edges)
    if not holes or len(holes) > MOST_HOLES:
        return mesh, 0
    around = np.zeros(len(mesh.vertices), dtype=bool)
    around[np.concatenate([hole.vertices for hole in holes])] = True
    ends = np.concatenate([mesh.faces[:, [i, (i + 1) % 3]] for i in range(3)])
    ends = np.sort(ends[around[ends].all(axis=1)], axis=1)
    taken = set(map(tuple, ends.tolist()))
    added: list[tuple[int, int, int]] = []
    filled = 0
    area_around = _area_of_part(mesh)
    for hole in holes:
        faces = _filling(mesh, hole, taken)
        if len(hole.vertices) > SMALL and _area(mesh, faces) > LARGEST_LID * area_around[hole.vertices[0]]:
            continue
        if faces:
            filled += 1
            added += faces
            taken |= {tuple(sorted((face[i], face[i - 1]))) for face in faces for i in range(3)}
    if not added:
        return mesh, 0
    return replace(mesh, faces=np.concatenate([mesh.faces, np.array(added, dtype=np.int32)])), filled


def _area_of_part(mesh: Mesh) -> NDArray[np.float64]:
    """[V] area of the connected part that each vertex belongs to."""
    ends = np.concatenate([mesh.faces[:, 1], mesh.faces[:, 2]])
    parts = connected_parts(len(mesh.vertices), np.concatenate([mesh.faces[:, 0]] * 2), ends)
    areas = np.bincount(parts[mesh.faces[:, 0]], mesh.face_areas, int(parts.max(initial=-1)) + 1)
    return areas.astype(np.float64)[parts]


def _area(mesh: Mesh, faces: list[tuple[int, int, int]]) -> float:
    """Area of faces between the mesh's vertices."""
    corners = mesh.vertices[np.array(faces, dtype=np.int64).reshape(-1, 3)]
    return 0.5 * float(
        np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1).sum()
    )


@dataclass(frozen=True)
class _Hole:
    """vertices: [n], running as the faces that would close it.  normals: [n, 3] unit, beyond edge i to i + 1."""

    vertices: NDArray[np.int64]
    normals: NDArray[np.float64]


def _holes(mesh: Mesh, most_edges: int) -> list[_Hole]:
    """The closed borders of at most that many edges, in the order of their lowest vertex."""
    if not len(mesh.faces):
        return []
    edges = Edges.of(mesh.faces)
    border = np.flatnonzero(np.bincount(edges.ids)[edges.ids] == 1)
    if not len(border):
        return []
    start = mesh.faces.reshape(-1)[border].astype(np.int64)
    stop = np.roll(mesh.faces, -1, axis=1).reshape(-1)[border].astype(np.int64)
    # The hole's own edges run against those of the faces around it; in a manifold mesh each vertex starts one.
    following = np.full(len(mesh.vertices), -1, dtype=np.int64)
    following[stop] = start
    face_beyond = np.full(len(mesh.vertices), -1, dtype=np.int64)
    face_beyond[stop] = border // 3
    parts = connected_parts(len(mesh.vertices), start, stop)
    size = np.bincount(parts[stop], minlength=int(parts.max()) + 1)
    small = np.flatnonzero((size >= 3) & (size <= most_edges))
    on_border = np.unique(stop)
    first = np.full(len(size), -1, dtype=np.int64)
    first[parts[on_border][::-1]] = on_border[::-1]
    normals = mesh.face_normals / np.maximum(np.linalg.norm(mesh.face_normals, axis=1, keepdims=True), 1e-300)
    holes = []
    for part in small[np.argsort(first[small])]:
        loop = [int(first[part])]
        while len(loop) < size[part]:
            loop.append(int(following[loop[-1]]))
        vertices = np.array(loop)
        holes.append(_Hole(vertices, normals[face_beyond[vertices]]))
    return holes


def _filling(mesh: Mesh, hole: _Hole, taken: set[tuple[int, ...]]) -> list[tuple[int, int, int]]:
    """The faces that close a hole, or none where nothing closes it well."""
    n = len(hole.vertices)
    number = hole.vertices.tolist()
    triangles = _Triangles.of(mesh.vertices[hole.vertices])
    # best[i, k]: the fold of the best filling between the chord i-k and the border from i to k, and its apex.
    best: dict[tuple[int, int], tuple[Fold, int]] = {(i, i + 1): ((0.0, 0.0), -1) for i in range(n - 1)}
    normal: dict[tuple[int, int], NDArray[np.float64]] = {(i, i + 1): hole.normals[i] for i in range(n - 1)}
    for span in range(2, n):
        for i in range(n - span):
            k = i + span
            closing = span == n - 1
            if not closing and tuple(sorted((number[i], number[k]))) in taken:
                continue
            found: tuple[Fold, int] | None = None
            for apex in range(i + 1, k):
                sides = ((i, apex), (apex, k))
                unit, area = triangles.unit[i, apex, k], triangles.area[i, apex, k]
                if area == 0 or sides[0] not in best or sides[1] not in best:
                    continue
                cosine = min(float(unit @ normal[side]) for side in sides)
                if closing:
                    cosine = min(cosine, float(unit @ hole.normals[n - 1]))
                if cosine < LEAST_COSINE:
                    continue
                (fold_a, area_a), (fold_b, area_b) = best[sides[0]][0], best[sides[1]][0]
                fold = (max(1 - cosine, fold_a, fold_b), area + area_a + area_b)
                if found is None or fold < found[0]:
                    found = (fold, apex)
            if found is not None:
                best[i, k] = found
                normal[i, k] = triangles.unit[i, found[1], k]
    if (0, n - 1) not in best:
        return []
    faces, chords = [], [(0, n - 1)]
    while chords:
        i, k = chords.pop()
        apex = best[i, k][1]
        if apex >= 0:
            faces.append((number[i], number[apex], number[k]))
            chords += [(i, apex), (apex, k)]
    return faces


@dataclass(frozen=True)
class _Triangles:
    """Unit normals [n, n, n, 3] and areas [n, n, n] of all triangles between n points; area 0 marks degenerate ones."""

    unit: NDArray[np.float64]
    area: NDArray[np.float64]

    @staticmethod
    def of(points: NDArray[np.float64]) -> _Triangles:
        sides = points[None] - points[:, None]  # [i, j] from i to j
        cross = np.cross(sides[:, :, None], sides[:, None, :])  # [i, j, k]
        length = np.linalg.norm(cross, axis=-1)
        squares = np.square(sides).sum(-1)
        longest = np.maximum(np.maximum(squares[:, :, None], squares[:, None, :]), squares[None])
        unit = cross / np.maximum(length, 1e-300)[..., None]
        return _Triangles(unit, np.where(length > LEAST_SHAPE * longest, 0.5 * length, 0.0))
