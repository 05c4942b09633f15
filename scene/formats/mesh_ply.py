"""Triangle meshes as PLY: binary, uchar colours; the scene's own axes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from scene.errors import InputError
from scene.formats.ply import Table, read_ply, write_ply
from scene.formats.polygons import fans
from scene.mesh import Mesh


def write_mesh_ply(path: Path, mesh: Mesh) -> None:
    """Write vertices, uchar colours and faces."""
    fields = [(axis, "<f4") for axis in "xyz"]
    if mesh.colors is not None:
        fields += [(name, "u1") for name in ("red", "green", "blue")]
    vertices = np.empty(len(mesh.vertices), np.dtype(fields))
    for i, axis in enumerate("xyz"):
        vertices[axis] = mesh.vertices[:, i]
    if mesh.colors is not None:
        for i, name in enumerate(("red", "green", "blue")):
            vertices[name] = mesh.colors[:, i]
    faces = np.empty(len(mesh.faces), np.dtype([("count", "u1"), ("values", "<i4", (3,))]))
    faces["count"], faces["values"] = 3, mesh.faces
    write_ply(path, {"vertex": vertices, "face": faces}, lists={"face": "vertex_indices"})


def read_mesh_ply(path: Path) -> Mesh:
    """Read vertices, colours and faces; polygons are cut into fans. Raises InputError or ValueError for a bad file."""
    tables = read_ply(path, ("vertex", "face"))
    vertex, face = (tables.get(name, Table(0, {}, {})) for name in ("vertex", "face"))
    if any(axis not in vertex.columns for axis in "xyz"):
        raise InputError(f"{path} has no vertices with x, y and z")
    polygons = face.lists.get("vertex_indices") or face.lists.get("vertex_index")
    if polygons is None:
        raise InputError(f"{path} has no faces; a point cloud is not a mesh")
    vertices = np.stack([vertex.columns[axis] for axis in "xyz"], axis=1)
    colors = None
    if all(vertex.columns.get(c, np.zeros(0)).dtype == np.uint8 for c in ("red", "green", "blue")):
        colors = np.stack([vertex.columns[c] for c in ("red", "green", "blue")], axis=1)
    return Mesh(vertices, fans(*polygons, len(vertices)), colors)
