"""Faces without height, taken out so that no gap opens: short sides collapse, long ones turn to the face beyond."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from scene.mesh import Edges, Mesh, connected_parts, select_faces

SLIVER = 1e-6  # height by length of a face that shows nothing
NEEDLE = 1e-3  # of a sliver's length: a side shorter than this is collapsed
ROUNDS = 4  # taking one out may make another

Indices = NDArray[np.int64]


def without_slivers(mesh: Mesh) -> Mesh:
    """Faces that show nothing collapsed or flipped away, so that no gap opens where they were."""
    for _ in range(ROUNDS):
        shape = mesh.face_shapes()
        thin = np.flatnonzero(shape < SLIVER)
        corners = np.sort(mesh.faces[thin], axis=1)
        thin = thin[(corners[:, 0] != corners[:, 1]) & (corners[:, 1] != corners[:, 2])]
        if not len(thin):
            break
        sides = np.linalg.norm(
            mesh.vertices[np.roll(mesh.faces[thin], -1, axis=1)] - mesh.vertices[mesh.faces[thin]], axis=2
        )
        short = sides.min(axis=1) <= NEEDLE * sides.max(axis=1)
        corner = np.where(short, sides.argmin(axis=1), sides.argmax(axis=1))
        if short.any():
            mesh = _collapsed(mesh, thin[short], corner[short])
        else:
            mesh = _flipped(mesh, thin, corner)
    return mesh


def _collapsed(mesh: Mesh, thin: Indices, corner: Indices) -> Mesh:
    """The ends of these edges (from `corner` of faces `thin` to the next) made one vertex."""
    a, b = mesh.faces[thin, corner], mesh.faces[thin, (corner + 1) % 3]
    parts = connected_parts(len(mesh.vertices), a, b)
    keeper = np.unique(parts, return_index=True)[1]
    faces = keeper[parts][mesh.faces]
    flat = (faces == np.roll(faces, 1, axis=1)).any(axis=1)
    return select_faces(replace(mesh, faces=faces), ~flat)


def _flipped(mesh: Mesh, thin: Indices, corner: Indices) -> Mesh:
    """The long edges of flat faces turned to the face beyond, where there is just one that has not changed yet."""
    edges = Edges.of(mesh.faces)
    partner = np.full(3 * len(mesh.faces), -1, dtype=np.int64)
    per_edge = np.bincount(edges.ids, minlength=edges.count)
    first, second = edges.pairs()
    simple = (per_edge[edges.ids[first]] == 2) & (edges.ascending[first] != edges.ascending[second])
    partner[first[simple]], partner[second[simple]] = second[simple], first[simple]
    faces = mesh.faces.copy()
    keep = np.ones(len(faces), dtype=bool)
    touched: set[int] = set()
    for face, at in zip(thin.tolist(), corner.tolist(), strict=True):
        beyond = int(partner[3 * face + at])
        if face in touched or beyond // 3 in touched:
            continue
        if beyond < 0:
            keep[face] = False  # nothing lies behind it: without it the border just becomes straight
            continue
        a, b, c = (int(mesh.faces[face, (at + i) % 3]) for i in range(3))
        d = int(mesh.faces[beyond // 3, (beyond + 2) % 3])
        if c != d:
            touched |= {face, beyond // 3}
            faces[face], faces[beyond // 3] = (a, d, c), (d, b, c)
    return select_faces(replace(mesh, faces=faces), keep)
