"""Files of the field: Gaussians as 3DGS PLY; meshes as .glb, .ply, .obj and .stl. Files read are not trusted.

Each file follows its own format's convention and the scene keeps ours: meshes are handed over and come back in the
scene's frame, whose up is +Z unless `up` says otherwise. glTF stands +Y up with linear colours; PLY, OBJ and STL name
no axes and keep the scene's; 3DGS PLY keeps the source's frame. All writes are atomic.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from scene.errors import InputError
from scene.files import replacing, write_errors
from scene.gaussians import Gaussians
from scene.gltf import read_glb, write_glb
from scene.mesh import Mesh, clean
from scene.ply import Table, read_ply, write_ply

UP = (0.0, 0.0, 1.0)
MAX_MESH_BYTES = 4 << 30
SH_REST = {0: 0, 9: 1, 24: 2, 45: 3}  # f_rest values per Gaussian -> degree


def splat_properties(rest: int) -> list[str]:
    """Names of the 3DGS vertex properties in their order, with `rest` spherical-harmonics values beyond the first."""
    return [
        *("x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"),
        *(f"f_rest_{i}" for i in range(rest)),
        *("opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"),
    ]


def save_splats(path: Path, gaussians: Gaussians) -> None:
    """Write a 3DGS PLY: unactivated values in the source's frame, normals zero, f_rest red first, then green, blue.

    Spherical harmonics have their own frame: whoever turns the means for another format turns them too.
    """
    g = gaussians.detach().to(device="cpu", dtype=torch.float32)
    n = len(g)
    columns = torch.cat(
        [
            *(g.means, torch.zeros(n, 3), g.sh_dc, g.sh_rest.transpose(1, 2).reshape(n, 3 * g.sh_rest.shape[1])),
            *(g.opacity_logits[:, None], g.log_scales, torch.nn.functional.normalize(g.quats, dim=1)),
        ],
        dim=1,
    )
    names = splat_properties(3 * g.sh_rest.shape[1])
    records = columns.contiguous().numpy().astype("<f4").view(np.dtype([(name, "<f4") for name in names]))
    write_ply(Path(path), {"vertex": records.reshape(n)})


def load_splats(path: Path) -> Gaussians:
    """Read a 3DGS PLY, binary or ascii, its properties in any order; other properties are ignored.

    Raises InputError when it is not one, is damaged, or holds values that are not finite or quaternions of length 0.
    """
    path = Path(path)
    table = read_ply(path, ("vertex",)).get("vertex")
    rest = len([name for name in table.columns if re.fullmatch(r"f_rest_\d+", name)]) if table else 0
    if rest not in SH_REST:
        raise InputError(f"{path} has {rest} f_rest values per Gaussian; 3DGS files have {sorted(SH_REST)}")
    names = [name for name in splat_properties(rest) if name not in ("nx", "ny", "nz")]
    missing = [name for name in names if table is None or name not in table.columns]
    if table is None or missing:
        raise InputError(
            f"{path} is not a 3DGS splat file: it lacks {', '.join(missing[:4])}"
            f"{' and more' if len(missing) > 4 else ''}; a plain point cloud or mesh cannot be read as splats"
        )

    def block(*wanted: str) -> torch.Tensor:
        return torch.from_numpy(np.stack([table.columns[name].astype(np.float32) for name in wanted], axis=1))

    gaussians = Gaussians(
        means=block("x", "y", "z"),
        quats=block("rot_0", "rot_1", "rot_2", "rot_3"),
        log_scales=block("scale_0", "scale_1", "scale_2"),
        opacity_logits=block("opacity")[:, 0],
        sh_dc=block("f_dc_0", "f_dc_1", "f_dc_2"),
        sh_rest=(
            block(*(f"f_rest_{i}" for i in range(rest))).reshape(table.rows, 3, rest // 3).transpose(1, 2).contiguous()
            if rest
            else torch.zeros(table.rows, 0, 3)
        ),
    )
    for name, tensor in gaussians.parameters().items():
        if not torch.isfinite(tensor).all():
            raise InputError(
                f"{path} holds values of {name} that are not finite; the training that wrote it went wrong"
            )
    if (gaussians.quats.norm(dim=1) == 0).any():
        raise InputError(f"{path} holds rotations (rot_0..3) of length zero")
    return gaussians


def y_up_from_scene(up: tuple[float, float, float] = UP) -> NDArray[np.float64]:
    """[4, 4] the rotation that takes the scene's up to +Y; for up = +Z it takes +Y to -Z and keeps +X.

    Raises ValueError when `up` has no length.
    """
    y = np.asarray(up, dtype=np.float64)
    if not np.isfinite(y).all() or np.linalg.norm(y) < 1e-12:
        raise ValueError(f"up must be a direction, got {up}")
    y = y / np.linalg.norm(y)
    x = np.array([1.0, 0.0, 0.0]) if abs(y[0]) < 0.9 else np.array([0.0, 0.0, -1.0])
    x = x - (x @ y) * y
    x /= np.linalg.norm(x)
    matrix = np.eye(4)
    matrix[:3, :3] = [x, y, np.cross(x, y)]
    return matrix


def save_mesh(path: Path, mesh: Mesh, *, up: tuple[float, float, float] = UP) -> None:
    """Write a mesh in the format that the name's ending asks for.

    .glb: turned so that the scene's `up` is +Y, linear vertex colours, two-sided only when the mesh is open.
    .ply: binary, uchar colours.  .obj: colours behind the coordinates (x y z r g b).  .stl: binary, no colours.
    Raises InputError for an unknown ending and for an empty mesh: no file is better than an empty one.
    """
    path = Path(path)
    writer = _WRITERS.get(path.suffix.lower())
    if writer is None:
        raise InputError(
            f"meshes are written as {', '.join(_WRITERS)}, not as {path.suffix or 'a file without ending'}"
        )
    if not len(mesh.faces):
        raise InputError(f"the mesh is empty, so {path.name} was not written")
    writer(path, mesh, up)


def load_mesh(path: Path, *, up: tuple[float, float, float] = UP) -> Mesh:
    """Read a .glb, .ply, .obj or .stl into the scene's frame; polygons are cut into fans, STL corners merged.

    Raises InputError when the file is damaged, has no faces, or is of another kind.
    """
    path = Path(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"meshes are read from {', '.join(_READERS)}, not from {path.suffix or path.name}")
    try:
        size = path.stat().st_size
        if size > MAX_MESH_BYTES:
            raise InputError(f"{path} has {size >> 20} MiB; meshes are read up to {MAX_MESH_BYTES >> 20} MiB")
        mesh = reader(path, up)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, OverflowError) as error:
        raise InputError(f"{path} is not a sound mesh: {error}") from error
    if not len(mesh.faces):
        raise InputError(f"{path} has no faces; a point cloud is not a mesh")
    return mesh


def _save_glb(path: Path, mesh: Mesh, up: tuple[float, float, float]) -> None:
    write_glb(path, mesh.transformed(y_up_from_scene(up)), double_sided=not mesh.facts().watertight)


def _load_glb(path: Path, up: tuple[float, float, float]) -> Mesh:
    return read_glb(path).transformed(y_up_from_scene(up).T)


def _save_ply(path: Path, mesh: Mesh, up: tuple[float, float, float]) -> None:
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


def _load_ply(path: Path, up: tuple[float, float, float]) -> Mesh:
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
    return Mesh(vertices, _fans(*polygons, len(vertices)), colors)


def _save_obj(path: Path, mesh: Mesh, up: tuple[float, float, float]) -> None:
    rows = [f"{x:.9g} {y:.9g} {z:.9g}" for x, y, z in mesh.vertices.tolist()]
    if mesh.colors is not None:
        colors = (mesh.colors / 255).tolist()
        rows = [f"{row} {r:.6g} {g:.6g} {b:.6g}" for row, (r, g, b) in zip(rows, colors, strict=True)]
    lines = ["# Maquette", *(f"v {row}" for row in rows)]
    lines += [f"f {a} {b} {c}" for a, b, c in (mesh.faces + 1).tolist()]
    with write_errors(path, "write the mesh"), replacing(path) as file:
        file.write(("\n".join(lines) + "\n").encode("ascii"))


def _load_obj(path: Path, up: tuple[float, float, float]) -> Mesh:
    positions: list[list[bytes]] = []
    corners: list[int] = []
    counts: list[int] = []
    with path.open("rb") as file:
        for line in file:
            words = line.split()
            if not words:
                continue
            if words[0] == b"v":
                positions.append(words[1:7] if len(words) >= 7 else words[1:4])
            elif words[0] == b"f":
                # "v", "v/t", "v//n" or "v/t/n"; negative numbers count back from the last vertex so far.
                polygon = [int(word.split(b"/", 1)[0]) for word in words[1:]]
                corners += [i - 1 if i > 0 else len(positions) + i if i < 0 else -1 for i in polygon]
                counts.append(len(polygon))
    widths = {len(row) for row in positions}
    if not widths <= {3, 6}:
        raise InputError(f"{path} has a vertex without three coordinates")
    coloured = widths == {6}
    values = np.array([row[: 6 if coloured else 3] for row in positions], dtype=np.float64)
    colors = np.round(255 * np.clip(np.nan_to_num(values[:, 3:]), 0, 1)).astype(np.uint8) if coloured else None
    faces = _fans(np.array(counts, np.int64), np.array(corners, np.int64), len(values))
    return Mesh(values.reshape(-1, values.shape[1] if len(values) else 3)[:, :3], faces, colors)


_STL_FACE = np.dtype([("normal", "<f4", (3,)), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])


def _save_stl(path: Path, mesh: Mesh, up: tuple[float, float, float]) -> None:
    records = np.zeros(len(mesh.faces), _STL_FACE)
    records["normal"] = mesh.face_normals / np.maximum(2 * mesh.face_areas[:, None], 1e-300)
    records["corners"] = mesh.vertices[mesh.faces]
    with write_errors(path, "write the mesh"), replacing(path) as file:
        file.write(b"Maquette, binary STL".ljust(80, b" "))
        file.write(np.uint32(len(records)).tobytes())
        file.write(records.data)


def _load_stl(path: Path, up: tuple[float, float, float]) -> Mesh:
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(84)
        count = int.from_bytes(head[80:84], "little")
        # Binary files may begin with "solid" too; the size decides.
        if len(head) == 84 and 84 + count * _STL_FACE.itemsize <= size and not _is_ascii_stl(head, count, size):
            corners = np.fromfile(file, _STL_FACE, count)["corners"].reshape(-1, 3)
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


def _fans(counts: NDArray[np.int64], corners: NDArray, vertices: int) -> NDArray[np.int32]:
    """Polygons, given as their numbers of corners and all corners in a row, as triangles from their first corner."""
    corners = corners.astype(np.int64)
    if len(corners) and (corners.min() < 0 or corners.max() >= vertices):
        raise ValueError(f"faces point to vertex {corners.min()} to {corners.max()}, there are {vertices}")
    triangles = np.maximum(counts - 2, 0)
    starts = np.repeat(np.cumsum(counts) - counts, triangles)
    step = np.arange(int(triangles.sum())) - np.repeat(np.cumsum(triangles) - triangles, triangles)
    return np.stack([corners[starts], corners[starts + step + 1], corners[starts + step + 2]], axis=1).astype(np.int32)


_WRITERS: dict[str, Callable[[Path, Mesh, tuple[float, float, float]], None]] = {
    ".glb": _save_glb,
    ".ply": _save_ply,
    ".obj": _save_obj,
    ".stl": _save_stl,
}
_READERS: dict[str, Callable[[Path, tuple[float, float, float]], Mesh]] = {
    ".glb": _load_glb,
    ".ply": _load_ply,
    ".obj": _load_obj,
    ".stl": _load_stl,
}
