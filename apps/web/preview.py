"""A job's scene as a page of the project's own viewer, made in a child: of the result, or of the last checkpoint."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from apps.cli import as_user_error
from apps.film import path_cameras
from apps.run_page import page_of_run
from apps.scene_page import Look, scene_page
from apps.view import RunSource
from scene.errors import InputError
from scene.files import replacing
from scene.runs import Run

MAX_BYTES = 16 << 20  # of a page that many people load; the whole scene is among the downloads


def main(arguments: Sequence[str]) -> int:
    """Write the page of the run arguments[0] to arguments[1], titled arguments[2]."""
    run, target, title = Path(arguments[0]), Path(arguments[1]), arguments[2]
    try:
        page = page_of(run, title)
        target.parent.mkdir(exist_ok=True)
        with replacing(target) as file:
            file.write(page.encode())
    except Exception as error:
        known = as_user_error(error)
        sys.stderr.write(f"maquette: {known or f'this scene cannot be shown ({type(error).__name__})'}\n")
        return known.exit_code if known else 1
    return 0


def page_of(folder: Path, title: str) -> str:
    """The page of the finished scene, or of what training has so far. Raises InputError when there is nothing yet."""
    try:
        with Run.open(folder, writing=False) as run:
            return page_of_run(run, title, max_bytes=MAX_BYTES)
    except InputError:
        content = RunSource(folder).read()
    seen = content.seen
    return scene_page(
        splats=content.splats,
        mesh=content.mesh,
        up=content.up,
        cameras=() if seen is None else seen.cameras,
        title=title,
        look=None if seen is None else Look(seen.names, seen.held_out, path_cameras(seen, frames=8)[0]),
        max_bytes=MAX_BYTES,
    )
