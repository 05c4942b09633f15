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
    """Signed volume of each part, 0 where rounding decides its sign, and whether it is closed: two of [components]."""
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
    largest = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1) * np.linalg.norm(c, axis=1)
    volumes, noise = np.bincount(parts, tetrahedra, count), 1e-12 * np.bincount(parts, largest, count)
    return np.where(np.abs(volumes) > noise, volumes, 0.0), closed


def _parts_around(mesh: Mesh, parts: NDArray[np.int32], among: NDArray[np.bool_], part: int) -> int:
    """How many of the closed parts `among` have a vertex of `part` inside, by their winding numbers."""
    inside = 0
    point = mesh.vertices[mesh.faces[np.flatnonzero(parts == part)[0], 0]]
    for other in np.flatnonzero(among):
        shell = replace(mesh, faces=mesh.faces[parts == other])
        low, high = shell.bounds()
        if (point > low).all() and (point < high).all():
            inside += abs(float(winding_numbers(shell, point[None])[0])) > 0.5
    return inside


def winding_numbers(
    mesh: Mesh, points: NDArray[np.float64], *, without: NDArray[np.integer] | None = None
) -> NDArray[np.float64]:
    """[P] how often the surface surrounds each point: 1 inside a closed one, 0 outside, parts of it near an open one.

    without: [P] a face that each point lies on, which is not counted.  Source: Jacobson et al. (2013), eq. 5, solid
    angles by van Oosterom and Strackee (1983), eq. 8.
    """
    corners = mesh.vertices[mesh.faces]
    numbers = np.empty(len(points))
    for i, point in enumerate(points):
        angles = _half_solid_angles(corners - point)
        numbers[i] = (angles.sum() - (angles[without[i]] if without is not None else 0)) / (2 * np.pi)
    return numbers


def _half_solid_angles(corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """[F] half the solid angle of each triangle [F, 3, 3] seen from the origin, in -pi to pi."""
    a, b, c = corners[:, 0], corners[:, 1], corners[:, 2]
    la, lb, lc = (np.sqrt(np.einsum("ij,ij->i", x, x)) for x in (a, b, c))
    ab, bc, ca = (np.einsum("ij,ij->i", x, y) for x, y in ((a, b), (b, c), (c, a)))
    volume = np.einsum("ij,ij->i", a, np.cross(b, c))
    return np.arctan2(volume, la * lb * lc + ab * lc + bc * la + ca * lb)
