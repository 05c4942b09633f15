"""Splat files of all formats behind one pair of functions; which format, and which way is up in it.

The scene keeps its own frame. What a format says about its axes is followed: means, axes and spherical harmonics are
turned on writing, and back by the same `up` on reading.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from scene import untrusted
from scene.errors import InputError
from scene.formats import axes
from scene.formats.axes import FILE_UP, UP
from scene.formats.glb_splats import has_splats, read_glb_splats, write_glb_splats
from scene.formats.gltf import GltfFile, sound
from scene.formats.ply import element_columns
from scene.formats.quantised import checked
from scene.formats.sog import META, read_sog, write_sog
from scene.formats.splat import read_splat, write_splat
from scene.formats.splat_ply import read_splat_ply, write_splat_ply
from scene.formats.spz import read_spz, write_spz
from scene.formats.usd import ENDINGS as USD
from scene.formats.usd_splats import has_usd_splats, read_usd_splats, write_usd_splats
from scene.gaussians import Gaussians

Up = tuple[float, float, float]

MAGICS = {b"ply": ".ply", b"glTF": ".glb", b"NGSP": ".spz", b"\x1f\x8b": ".spz", b"PK\x03\x04": ".sog"}
WRITERS: dict[str, Callable[[Path, Gaussians], None]] = {
    ".ply": write_splat_ply,
    ".splat": write_splat,
    ".spz": write_spz,
    ".sog": write_sog,
    ".glb": write_glb_splats,
    **dict.fromkeys(USD, write_usd_splats),
}
READERS: dict[str, Callable[[Path], Gaussians]] = {
    ".ply": read_splat_ply,
    ".splat": read_splat,
    ".spz": read_spz,
    ".sog": read_sog,
    ".json": read_sog,
    ".glb": read_glb_splats,
    ".gltf": read_glb_splats,
    **dict.fromkeys(USD, read_usd_splats),
}


def save_splats(path: Path, gaussians: Gaussians, *, up: Up = UP) -> None:
    """Write Gaussians in the format that the name's ending asks for; up: the scene's own up.

    .ply: 3DGS PLY, exact, in the scene's frame.  .glb: KHR_gaussian_splatting, exact, +Y up.  .spz: 8 to 24 bits, +Y
    up.  .sog: 8 to 16 bits and a palette, -Y up.  .splat: 8 bits and no view-dependent colour, -Y up.
    .usdz, .usda, .usdc: ParticleField3DGaussianSplat, exact, +Y up; needs the extra `usd`.
    Raises InputError for an unknown ending and for values that are not finite.
    """
    path = Path(path)
    writer = WRITERS.get(path.suffix.lower())
    if writer is None:
        raise InputError(f"splats are written as {', '.join(WRITERS)}, not as {path.suffix or 'a file without ending'}")
    gaussians = checked(gaussians.detach().to(device="cpu", dtype=torch.float32), "the scene")
    writer(path, _turned(gaussians, file_from_scene(path.suffix.lower(), up)))


def load_splats(path: Path, *, up: Up = UP) -> Gaussians:
    """Read a splat file of any format into the frame whose up is `up`; its first bytes decide, then its name.

    3DGS and compressed PLY come back in the file's own frame. Raises InputError when it is none or is damaged.
    """
    path = _file(path)
    ending = _ending(path)
    reader = READERS.get(ending)
    if reader is None:
        raise InputError(f"splats are read from {', '.join(READERS)}, not from {path.suffix or path.name}")
    return _turned(reader(path), file_from_scene(ending, up).T)


def kind_of(path: Path) -> Literal["splats", "mesh"]:
    """What a file holds, by its content where the ending leaves it open. Raises InputError for other kinds of files."""
    path = _file(path)
    ending = _ending(path)
    if ending == ".ply":
        columns = element_columns(path).get("vertex", ())
        return "splats" if "scale_0" in columns or "packed_position" in columns else "mesh"
    if ending in (".glb", ".gltf"):
        with sound(path):
            return "splats" if has_splats(GltfFile(path).document) else "mesh"
    if ending in USD:
        return "splats" if has_usd_splats(path) else "mesh"
    if ending in READERS:
        return "splats"
    if ending in (".obj", ".stl"):
        return "mesh"
    raise InputError(
        f"{path} is neither a splat file ({', '.join(READERS)}) nor a mesh (.glb, .obj, .ply, .stl, .usdz)"
    )


def file_from_scene(ending: str, up: Up) -> np.ndarray:
    """[3, 3] rotation from the scene's frame to that of files with this ending; no turn where the format names none."""
    return axes.file_from_scene(".sog" if ending == ".json" else ending, up)[:3, :3]


def _turned(gaussians: Gaussians, matrix: np.ndarray) -> Gaussians:
    return gaussians if np.array_equal(matrix, np.eye(3)) else gaussians.turned(torch.from_numpy(matrix))


def _file(path: Path) -> Path:
    """The file itself; of a folder the meta.json in it."""
    path = Path(path)
    return path / META if (path / META).is_file() else path


def _ending(path: Path) -> str:
    """The ending that the content asks for, else that of the name. A zip may be of several kinds: its name decides."""
    ending = path.suffix.lower()
    with untrusted.open_regular(path) as file:
        head = file.read(4)
    found = next((kind for magic, kind in MAGICS.items() if head.startswith(magic)), ending)
    return ending if found == ".sog" and ending in FILE_UP else found
