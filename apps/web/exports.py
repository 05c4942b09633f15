"""What a finished job can be downloaded as: every format that `maquette export` writes, made when it is asked for."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

from scene.errors import InputError, did_you_mean


@dataclass(frozen=True)
class Format:
    """One download. file: its name.  what: splats or mesh, for `maquette export --what`.  label: for people."""

    file: str
    what: str
    label: str


FORMATS = (
    Format("mesh.glb", "mesh", "Mesh with texture, for Blender, Unreal, the web"),
    Format("mesh.obj.zip", "mesh", "Mesh with material and texture, for everything"),
    Format("mesh.usdz", "mesh", "Mesh for Houdini, Omniverse, iPhones"),
    Format("mesh.ply", "mesh", "Mesh with colours, for MeshLab, CloudCompare"),
    Format("mesh.stl", "mesh", "Shape alone, for 3D printers"),
    Format("splats.ply", "splats", "Gaussians in full, as 3DGS writes them"),
    Format("splats.spz", "splats", "Gaussians, small, as Niantic's SPZ"),
    Format("splats.sog", "splats", "Gaussians, smallest, for SuperSplat and PlayCanvas"),
    Format("splats.splat", "splats", "Gaussians without highlights, for web viewers"),
    Format("splats.glb", "splats", "Gaussians in glTF (KHR_gaussian_splatting)"),
    Format("splats.usdz", "splats", "Gaussians in USD"),
    Format("scene.html", "auto", "One page that opens offline"),
)
IN_RUN = {"turntable.mp4": "Film around the scene", "report.html": "Report"}
OWN = {"mesh.glb": "mesh.glb", "splats.ply": "scene.ply"}
"""Downloads that a run has by itself, with the file's name there."""


def format_of(file: str) -> Format:
    """A format by its file's name. Raises InputError for another one."""
    found = next((each for each in FORMATS if each.file == file), None)
    if found is None:
        names = [each.file for each in FORMATS]
        raise InputError(
            f"{str(file)[:40]!r} is not written{did_you_mean(str(file), names)}; there is {', '.join(names)}"
        )
    return found


def place_of(job: Path, file: str) -> Path:
    """Where a download of a job is, or will be. Raises InputError for a name that is none."""
    if file in IN_RUN:
        return job / "run" / file
    made = job / "exports" / format_of(file).file
    own = job / "run" / OWN[file] if file in OWN else None
    return own if own is not None and not made.is_file() and own.is_file() else made


def command_for(job: Path, wanted: Format) -> list[str]:
    """The command line that makes it, in a folder of its own beside the place where it belongs."""
    target = made_at(job, wanted)
    return ["export", str(job / "run"), "--to", str(target), "--what", wanted.what]


def made_at(job: Path, wanted: Format) -> Path:
    """Where the command writes: an OBJ is three files, which are packed into one afterwards."""
    return job / "exports" / ".new" / wanted.file / wanted.file.removesuffix(".zip")


def put_in_place(job: Path, wanted: Format) -> None:
    """Move a finished export to where it is downloaded from, whole."""
    made, target = made_at(job, wanted), job / "exports" / wanted.file
    if wanted.file.endswith(".zip"):
        packed = made.parent / wanted.file
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(made.parent.iterdir()):
                if path != packed:
                    archive.write(path, path.name)
        made = packed
    made.replace(target)
