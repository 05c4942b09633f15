"""Mesh files of all formats behind one pair of functions; which way is up in them, and what each can hold.

                    texture   normal map   vertex colours   cameras   up
.glb (.gltf read)   inside    inside       yes              yes       +Y
.usdz .usda .usdc   inside    inside       yes              yes       +Y     (.usda and .usdc: pictures beside them)
.obj + .mtl + .png  beside    beside       yes              -         +Y
.ply + .png         beside    -            yes              -         the scene's
.stl                -         -            -                -         the scene's
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scene.cameras import Camera
from scene.errors import InputError
from scene.formats.axes import UP, file_from_scene
from scene.formats.glb import read_glb, write_glb
from scene.formats.mesh_ply import read_mesh_ply, write_mesh_ply
from scene.formats.obj import read_obj, write_obj
from scene.formats.stl import read_stl, write_stl
from scene.formats.usd import ENDINGS as USD
from scene.formats.usd import read_usd_mesh, write_usd_mesh
from scene.mesh import Mesh
from scene.untrusted import check_size, open_regular

MAX_MESH_BYTES = 4 << 30


@dataclass(frozen=True)
class MeshExtras:
    """What may go into a file besides the mesh. cameras: by name, with the pose [4, 4] in the file's axes."""

    double_sided: bool = False
    cameras: Mapping[str, tuple[Camera, NDArray[np.float64]]] = field(default_factory=dict)
    label: Mapping[str, Any] = field(default_factory=dict)


def _write_usd(path: Path, mesh: Mesh, extras: MeshExtras) -> None:
    write_usd_mesh(path, mesh, double_sided=extras.double_sided, cameras=extras.cameras, label=extras.label)


WRITERS: dict[str, Callable[[Path, Mesh, MeshExtras], None]] = {
    ".glb": lambda path, mesh, extras: write_glb(
        path, mesh, double_sided=extras.double_sided, cameras=extras.cameras, label=extras.label
    ),
    ".obj": lambda path, mesh, extras: write_obj(path, mesh),
    ".ply": lambda path, mesh, extras: write_mesh_ply(path, mesh),
    ".stl": lambda path, mesh, extras: write_stl(path, mesh),
    **dict.fromkeys(USD, _write_usd),
}
READERS: dict[str, Callable[[Path], Mesh]] = {
    ".glb": read_glb,
    ".gltf": read_glb,
    ".obj": read_obj,
    ".ply": read_mesh_ply,
    ".stl": read_stl,
    **dict.fromkeys(USD, read_usd_mesh),
}


def save_mesh(
    path: Path,
    mesh: Mesh,
    *,
    up: tuple[float, float, float] = UP,
    cameras: Sequence[Camera] | Mapping[str, Camera] = (),
    label: Mapping[str, Any] | None = None,
) -> None:
    """Write a mesh, with its texture where the format has any, in the format that the name's ending asks for.

    up: the scene's own up; formats that stand +Y up are turned so.  cameras: in the scene's frame, by name or numbered;
    for formats that have cameras.  label: JSON values that a .glb or USD file keeps about the mesh.
    An open mesh is two-sided where the format can say so. Each file is written whole or not at all; pictures that lie
    beside a mesh are there before it.
    Raises InputError for an unknown ending and for an empty mesh: no file is better than an empty one.
    """
    path = Path(path)
    ending = path.suffix.lower()
    writer = WRITERS.get(ending)
    if writer is None:
        raise InputError(f"meshes are written as {', '.join(WRITERS)}, not as {ending or 'a file without ending'}")
    if not len(mesh.faces):
        raise InputError(f"the mesh is empty, so {path.name} was not written")
    turn = file_from_scene(ending, up)
    named = cameras if isinstance(cameras, Mapping) else {f"camera_{i:04}": c for i, c in enumerate(cameras)}
    posed = {name: (camera, turn @ camera.c2w.detach().cpu().double().numpy()) for name, camera in named.items()}
    # JSON has no NaN and no infinity: a figure that is not known is null.
    plain = json.loads(json.dumps(dict(label or {}), default=float), parse_constant=lambda _: None)
    writer(path, mesh.transformed(turn), MeshExtras(not mesh.facts().watertight, posed, plain))


def load_mesh(path: Path, *, up: tuple[float, float, float] = UP) -> Mesh:
    """Read a mesh with its texture into the frame whose up is `up`; polygons are cut into fans.

    Formats that name no axes come back in the file's own. Pictures are taken from the file or from its folder only; one
    that is missing or damaged is left out where the format keeps it beside the mesh.
    Raises InputError when the file is damaged, has no faces, or is of another kind.
    """
    path = Path(path)
    ending = path.suffix.lower()
    reader = READERS.get(ending)
    if reader is None:
        raise InputError(f"meshes are read from {', '.join(READERS)}, not from {path.name}")
    with open_regular(path) as file:
        check_size(file, MAX_MESH_BYTES, path)
    try:
        with np.errstate(all="ignore"):  # what overflows is not finite, and a Mesh refuses that
            mesh = reader(path)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, OverflowError) as error:
        raise InputError(f"{path} is not a sound mesh: {error}") from error
    if not len(mesh.faces):
        raise InputError(f"{path} has no faces; a point cloud is not a mesh")
    return mesh.transformed(file_from_scene(ending, up).T)
