"""`maquette export`: a run's scene or mesh in other formats; the file's ending says which."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from apps.console import Watcher
from apps.film import up_of
from apps.options import Export, parse
from apps.run_cameras import load_scene, read_cameras
from scene.errors import InputError
from scene.files import replacing, write_errors
from scene.formats import load_mesh, save_mesh
from scene.runs import Run

MESH_SUFFIXES = (".glb", ".obj", ".stl", ".ply")


def main(arguments: Sequence[str]) -> None:
    """The `maquette export` command."""
    request = parse(Export, "export", arguments)
    for target in request.to:
        check_target(target)
    with Run.open(request.run, writing=False) as run:
        for target in request.to:
            export(run, target)
            Watcher().say(f"{target}: {target.stat().st_size / 1e6:.1f} MB")


def check_target(target: Path) -> None:
    """Raise InputError for a format that is not written, before any is."""
    if target.suffix.lower() not in MESH_SUFFIXES:
        raise InputError(
            f"{target}: expected a name that ends in .ply (splats, or the mesh when the name has 'mesh' in it), .glb, "
            f".obj or .stl; {target.suffix or 'no ending'} is not written by this version"
        )


def holds_mesh(target: Path) -> bool:
    """Whether a file of this name gets the mesh; a .ply is splats unless its name says mesh."""
    return target.suffix.lower() != ".ply" or "mesh" in target.stem.lower()


def export(run: Run, target: Path) -> None:
    """Write one file. Raises InputError when the run does not hold what it should contain."""
    with write_errors(target, "export"):
        target.parent.mkdir(parents=True, exist_ok=True)
        if not holds_mesh(target):
            load_scene(run)  # a damaged file is told, not copied
            with (run.folder / "scene.ply").open("rb") as source, replacing(target) as file:
                shutil.copyfileobj(source, file)
            return
        mesh = run.folder / "mesh.glb"
        if not mesh.is_file():
            raise InputError(f"{run.folder} has no mesh.glb; let `maquette recon` go on with --resume first")
        up = up_of(read_cameras(run))
        save_mesh(target, load_mesh(mesh, up=up), up=up)
