"""STL: triangles and nothing else; binary out, both kinds in; the scene's own axes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from scene.errors import InputError
from scene.files import replacing, write_errors
from scene.mesh import Mesh, clean
from scene.untrusted import MAX_FILE_BYTES, check_size, open_regular, read_array

_STL_FACE = np.dtype([("normal", "<f4", (3,)), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])


def write_stl(path: Path, mesh: Mesh) -> None:
    """Write a binary STL with the normal of each face."""
    records = np.zeros(len(mesh.faces), _STL_FACE)
    records["normal"] = mesh.face_normals / np.maximum(2 * mesh.face_areas[:, None], 1e-300)
    records["corners"] = mesh.vertices[mesh.faces]
    with write_errors(path, "write the mesh"), replacing(path) as file:
        file.write(b"Maquette, binary STL".ljust(80, b" "))
        file.write(np.uint32(len(records)).tobytes())
        file.write(records.data)


def read_stl(path: Path) -> Mesh:
    """Read a binary or ascii STL and merge equal corners. Raises InputError or ValueError for a bad file."""
    with open_regular(path) as file:
        size = check_size(file, MAX_FILE_BYTES, path)
        head = file.read(84)
        count = int.from_bytes(head[80:84], "little")
        # Binary files may begin with "solid" too; the size decides.
        if len(head) == 84 and 84 + count * _STL_FACE.itemsize <= size and not _is_ascii_stl(head, count, size):
            corners = read_array(file, _STL_FACE, count, path)["corners"].reshape(-1, 3)
        elif head[:5] == b"solid":
            file.seek(0)
            rows = re.findall(rb"vertex\s+(\S+)\s+(\S+)\s+(\S+)", file.read())
            corners = np.array(rows, dtype=np.float64).reshape(-1, 3)
            corners = corners[: len(corners) // 3 * 3]
        else:
            raise InputError(f"{path} announces {count} triangles, which is more than its {size} bytes hold")
    if not np.isfinite(corners).all():
        raise InputError(f"{path} has corners that are not finite")
    vertices, index = np.unique(corners, axis=0, return_inverse=True)
    return clean(Mesh(vertices, index.reshape(-1, 3).astype(np.int32)))


def _is_ascii_stl(head: bytes, count: int, size: int) -> bool:
    return head[:5] == b"solid" and 84 + count * _STL_FACE.itemsize != size
