"""Which way the closed parts of a mesh are turned: their normals point out of the solid, those of a cavity into it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from scene.mesh import Edges, Mesh, face_components


def outward(mesh: Mesh) -> tuple[Mesh, int]:
    """The mesh with its closed parts turned so that their normals point out of the solid, and how many were turned."""
    wrong = inward_parts(mesh)
    if not wrong.any():
        return mesh, 0
    parts = face_components(mesh)
    faces = np.where(wrong[parts][:, None], mesh.faces[:, ::-1], mesh.faces)
    return replace(mesh, faces=faces), int(wrong.sum())


def inward_parts(mesh: Mesh) -> NDArray[np.bool_]:
    """[components] which closed parts of a manifold mesh have normals that point into the solid.

    The wall of a cavity, a closed part that lies in a larger one, is right when it encloses a negative volume.
    """
    parts = face_components(mesh)
    volumes, closed = closed_volumes(mesh, parts)
    wrong = closed & (volumes < 0)
    for part in np.flatnonzero(wrong):
        around = _parts_around(mesh, parts, closed & (np.abs(volumes) > abs(volumes[part])), int(part))
        wrong[part] = around % 2 == 0
    return wrong


def closed_volumes(mesh: Mesh, parts: NDArray[np.int32]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Signed volume of each part and whether it is closed: [components], [components]."""
    count = int(parts.max(initial=-1)) + 1
    edges = Edges.of(mesh.faces)
    per_edge = np.bincount(edges.ids, minlength=edges.count)
    open_edge = ((per_edge != 2) | (edges.balance() != 0))[edges.ids].reshape(-1, 3).any(axis=1)
    closed = np.bincount(parts, open_edge, count) == 0
    size = np.maximum(np.bincount(parts, minlength=count), 1)
    corners = mesh.vertices[mesh.faces]
    centres = np.stack([np.bincount(parts, corners[:, 0, axis], count) for axis in range(3)], axis=1) / size[:, None]
    a, b, c = (corners[:, i] - centres[parts] for i in range(3))
    tetrahedra = np.einsum("ij,ij->i", a, np.cross(b, c)) / 6
    return np.bincount(parts, tetrahedra, count).astype(np.float64), closed


def _parts_around(mesh: Mesh, parts: NDArray[np.int32], among: NDArray[np.bool_], part: int) -> int:
    """How many of the closed parts `among` have a vertex of `part` inside, by their winding numbers."""
    inside = 0
    point = mesh.vertices[mesh.faces[np.flatnonzero(parts == part)[0], 0]]
    for other in np.flatnonzero(among):
        corners = mesh.vertices[mesh.faces[parts == other]]
        flat = corners.reshape(-1, 3)
        if (point > flat.min(axis=0)).all() and (point < flat.max(axis=0)).all():
            inside += abs(_winding_number(corners - point)) > 0.5
    return inside


def _winding_number(corners: NDArray[np.float64]) -> float:
    """How often triangles [F, 3, 3] surround the origin. Source: van Oosterom and Strackee (1983), eq. 8."""
    a, b, c = corners[:, 0], corners[:, 1], corners[:, 2]
    la, lb, lc = (np.linalg.norm(x, axis=1) for x in (a, b, c))
    top = np.einsum("ij,ij->i", a, np.cross(b, c))
    below = la * lb * lc + (a * b).sum(1) * lc + (b * c).sum(1) * la + (c * a).sum(1) * lb
    return float(np.arctan2(top, below).sum() / (2 * np.pi))
