"""Triangle meshes as PLY: binary, uchar colours, texture by corner as MeshLab writes it; the scene's own axes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scene.errors import InputError
from scene.formats.materials import Surface, dressed, vertex_colors
from scene.formats.pictures import PicturesBeside, encode_png, picture_path, write_picture
from scene.formats.ply import Table, ply_comments, read_ply, write_ply
from scene.formats.polygons import fans
from scene.formats.welding import weld_seams
from scene.mesh import Mesh

VERTEX_UVS = (("s", "t"), ("u", "v"), ("texture_u", "texture_v"))  # names that Blender, and others, give them
MAX_TEXTURES = 256


def write_mesh_ply(path: Path, mesh: Mesh) -> None:
    """Write vertices, uchar colours and faces; of a textured mesh also each face's `texcoord`, and a picture beside it.

    A textured mesh gets vertex colours from its texture, because most readers know only those.
    """
    colors = vertex_colors(mesh)
    fields = [(axis, "<f4") for axis in "xyz"]
    if colors is not None:
        fields += [(name, "u1") for name in ("red", "green", "blue")]
    vertices = np.empty(len(mesh.vertices), np.dtype(fields))
    for i, axis in enumerate("xyz"):
        vertices[axis] = mesh.vertices[:, i]
    if colors is not None:
        for i, name in enumerate(("red", "green", "blue")):
            vertices[name] = colors[:, i]
    lists: list[tuple[str, str, tuple[int], NDArray]] = [("vertex_indices", "<i4", (3,), mesh.faces)]
    if mesh.uvs is not None:
        lists.append(("texcoord", "<f4", (6,), mesh.uvs.reshape(-1, 6)))
    kinds = [part for name, kind, shape, _ in lists for part in ((f"{name} count", "u1"), (name, kind, shape))]
    faces = np.empty(len(mesh.faces), np.dtype(kinds))
    for name, _, shape, values in lists:
        faces[f"{name} count"], faces[name] = shape[0], values
    comments = ["Maquette"]
    if mesh.material is not None:
        picture = picture_path(path, "base_color")
        write_picture(picture, encode_png(mesh.material.base_color))
        comments.append(f"TextureFile {picture.name}")
    write_ply(path, {"vertex": vertices, "face": faces}, comments=comments)


def read_mesh_ply(path: Path) -> Mesh:
    """Read vertices, colours, faces and texture; polygons are cut into fans, vertices split for their uvs are joined.

    Raises InputError or ValueError for a bad file.
    """
    tables = read_ply(path, ("vertex", "face"))
    vertex, face = (tables.get(name, Table(0, {}, {})) for name in ("vertex", "face"))
    if any(axis not in vertex.columns for axis in "xyz"):
        raise InputError(f"{path} has no vertices with x, y and z")
    polygons = face.lists.get("vertex_indices") or face.lists.get("vertex_index")
    if polygons is None:
        raise InputError(f"{path} has no faces; a point cloud is not a mesh")
    counts, corners = polygons
    vertices = np.stack([vertex.columns[axis] for axis in "xyz"], axis=1)
    colors = None
    if all(vertex.columns.get(c, np.zeros(0)).dtype == np.uint8 for c in ("red", "green", "blue")):
        colors = np.stack([vertex.columns[c] for c in ("red", "green", "blue")], axis=1)
    faces = fans(counts, corners, len(vertices))
    triangles = fans(counts, np.arange(len(corners)), len(corners))  # which corners of the file each triangle has
    mesh = Mesh(vertices, faces, colors, _face_uvs(face, counts, triangles))
    if mesh.uvs is None:
        of_vertices = _vertex_uvs(vertex)
        if of_vertices is not None:
            mesh = weld_seams(Mesh(vertices, faces, colors, of_vertices[faces]))
    surfaces = _surfaces(path) if mesh.uvs is not None else []
    if not surfaces:
        return mesh
    number = face.columns.get("texnumber", np.zeros(len(counts))).astype(np.int64)
    number = np.clip(number, 0, len(surfaces) - 1)[np.repeat(np.arange(len(counts)), np.maximum(counts - 2, 0))]
    return dressed(mesh, number, surfaces)


def _face_uvs(face: Table, counts: NDArray[np.int64], triangles: NDArray[np.int32]) -> NDArray[np.float32] | None:
    """[F, 3, 2] of the triangles from the `texcoord` of each polygon: two numbers for each corner, or none at all."""
    if "texcoord" not in face.lists:
        return None
    lengths, values = face.lists["texcoord"]
    if not ((lengths == 2 * counts) | (lengths == 0)).all():
        raise ValueError("a face's texcoord list does not have two numbers for each corner")
    if not lengths.any():
        return None
    uvs = np.zeros((int(counts.sum()), 2), np.float32)
    uvs[np.repeat(lengths > 0, counts)] = values.reshape(-1, 2)
    return np.nan_to_num(uvs, posinf=0, neginf=0)[triangles]


def _vertex_uvs(vertex: Table) -> NDArray[np.float32] | None:
    for names in VERTEX_UVS:
        if all(name in vertex.columns for name in names):
            uvs = np.stack([vertex.columns[name] for name in names], axis=1).astype(np.float32)
            return np.nan_to_num(uvs, posinf=0, neginf=0)
    return None


def _surfaces(path: Path) -> list[Surface]:
    """A surface for each `TextureFile` that the header names; without a picture where it cannot be read."""
    names = [c.removeprefix("TextureFile").strip() for c in ply_comments(path) if c.startswith("TextureFile ")]
    pictures = PicturesBeside(path)
    return [Surface(base_color=pictures.get(name)) for name in names[:MAX_TEXTURES]]
