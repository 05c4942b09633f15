"""Files of the field, in and out: splats and meshes, by the ending of the name. Files read are not trusted.

Each file follows its own format's convention and the scene keeps ours: meshes are handed over and come back in the
scene's frame, whose up is +Z unless `up` says otherwise. glTF stands +Y up with linear colours; PLY, OBJ and STL name
no axes and keep the scene's; 3DGS PLY keeps the source's frame. All writes are atomic.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from scene.errors import InputError
from scene.formats.axes import UP, y_up_from_scene
from scene.formats.glb import read_glb, write_glb
from scene.formats.mesh_ply import read_mesh_ply, write_mesh_ply
from scene.formats.obj import read_obj, write_obj
from scene.formats.splat_ply import read_splat_ply, write_splat_ply
from scene.formats.stl import read_stl, write_stl
from scene.gaussians import Gaussians
from scene.mesh import Mesh

MAX_MESH_BYTES = 4 << 30


def save_splats(path: Path, gaussians: Gaussians) -> None:
    """Write Gaussians as the 3DGS PLY of the original implementation; see `scene/formats/splat_ply.py`."""
    write_splat_ply(Path(path), gaussians)


def load_splats(path: Path) -> Gaussians:
    """Read a 3DGS PLY. Raises InputError when it is not one or is damaged."""
    return read_splat_ply(Path(path))


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


_WRITERS: dict[str, Callable[[Path, Mesh, tuple[float, float, float]], None]] = {
    ".glb": _save_glb,
    ".ply": lambda path, mesh, up: write_mesh_ply(path, mesh),
    ".obj": lambda path, mesh, up: write_obj(path, mesh),
    ".stl": lambda path, mesh, up: write_stl(path, mesh),
}
_READERS: dict[str, Callable[[Path, tuple[float, float, float]], Mesh]] = {
    ".glb": _load_glb,
    ".ply": lambda path, up: read_mesh_ply(path),
    ".obj": lambda path, up: read_obj(path),
    ".stl": lambda path, up: read_stl(path),
}
