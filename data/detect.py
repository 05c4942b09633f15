"""What is this source? Looks at names only, most specific first, and hands it to its reader."""

from __future__ import annotations

import stat
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from data.archive import unpack
from data.colmap import find_colmap, read_colmap, read_model
from data.files import PHOTO_SUFFIXES, VIDEO_SUFFIXES, photo_files
from data.frames import Source
from data.kitti import find_kitti, read_kitti
from data.llff import read_llff
from data.middlebury import find_middlebury, read_middlebury
from data.photos import read_photos
from data.transforms import find_transforms, read_transforms
from data.video import read_video
from scene.errors import InputError
from scene.untrusted import load_json

_EXPECTED = (
    "a folder of photos, a video, a .zip of either, a COLMAP model, a transforms.json, an LLFF, Middlebury or KITTI "
    "folder, or the folder of an earlier run"
)
_MAX_CHAIN = 8  # runs that name runs, archives that hold videos


def read_source(path: Path, workdir: Path | None, chain: int = 0) -> Source:
    """The frames of `path`, whatever it is. Raises InputError when it is nothing known or holds nothing usable."""
    if chain > _MAX_CHAIN:
        raise InputError(f"{path} names runs that name each other; name the photos themselves")
    try:
        kind = path.stat().st_mode
        if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
            raise InputError(f"{path} is neither a file nor a folder but a pipe or a device; expected {_EXPECTED}")
        return _read_file(path, workdir, chain) if stat.S_ISREG(kind) else _read_folder(path, workdir, chain)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; expected {_EXPECTED}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


def _read_file(path: Path, workdir: Path | None, chain: int) -> Source:
    suffix = path.suffix.lower()
    if suffix == ".json":
        return read_transforms(find_transforms(path))
    if suffix == ".zip":
        return _with_workdir(workdir, lambda place: _read_archive(path, place, chain))
    if suffix in VIDEO_SUFFIXES:
        return _with_workdir(workdir, lambda place: read_video(path, place))
    if path.name.endswith("_par.txt"):
        return read_middlebury(path)
    if path.name == "poses_bounds.npy" or path.name in ("cameras.bin", "images.bin", "cameras.txt", "images.txt"):
        return read_source(path.parent, workdir, chain + 1)
    if suffix in PHOTO_SUFFIXES:
        raise InputError(f"{path} is a single photo; expected several of one scene. Name the folder that holds them")
    raise InputError(f"{path} is of no known kind; expected {_EXPECTED}")


def _read_folder(folder: Path, workdir: Path | None, chain: int) -> Source:
    config = load_json(folder / "config.json") if (folder / "config.json").is_file() else None
    if isinstance(config, dict) and "method" in config:
        return _read_run(folder, config.get("source"), workdir, chain)
    if files := find_transforms(folder):
        return read_transforms(files)
    model = find_colmap(folder)
    if model is not None:
        return read_colmap(folder, model)
    if (folder / "poses_bounds.npy").is_file():
        return read_llff(folder)
    if (par_file := find_middlebury(folder)) is not None:
        return read_middlebury(par_file)
    if find_kitti(folder):
        return read_kitti(folder)
    entries = [entry for entry in sorted(folder.iterdir()) if not entry.name.startswith(".")]
    if not any(entry.suffix.lower() in PHOTO_SUFFIXES for entry in entries):
        films = [entry for entry in entries if entry.suffix.lower() in (*VIDEO_SUFFIXES, ".zip") and entry.is_file()]
        folders = [entry for entry in entries if entry.is_dir() and not entry.is_symlink() and photo_files(entry)]
        if len(films) == 1 and not folders:
            return read_source(films[0], workdir, chain + 1)
    return read_photos(folder)


def _read_archive(path: Path, workdir: Path, chain: int) -> Source:
    folder, decisions = unpack(path, workdir)
    found = read_source(folder, workdir, chain + 1)
    return replace(found, decisions=(*decisions, *found.decisions))


def _read_run(folder: Path, source: object, workdir: Path | None, chain: int) -> Source:
    """The source of an earlier run, with the cameras that run estimated."""
    if not isinstance(source, str) or not source:
        raise InputError(f"{folder / 'config.json'} is a run's, but names no source; name the photos themselves")
    places = [Path(source), folder / source, folder.parent / source]
    place = next((candidate for candidate in places if candidate.exists()), None)
    if place is None:
        raise InputError(f"the run {folder} was made from {source!r}, which is not there any more; name the photos")
    found = read_source(place, workdir, chain + 1)
    decisions = [f"{folder} is an earlier run; its source {source} is used.", *found.decisions]
    model = find_colmap(folder) if any(frame.c2w is None for frame in found.frames) else None
    if model is None:
        return replace(found, decisions=tuple(decisions))
    estimated = read_model(model)
    by_name = {image.name: image for image in estimated.images}
    frames = []
    for frame in found.frames:
        if (image := by_name.get(frame.name)) is not None:
            lens = estimated.lenses[image.camera_id].resized(frame.width, frame.height)
            frames.append(replace(frame, lens=lens, c2w=image.c2w))
    if not frames:
        return replace(
            found, decisions=(*decisions, f"The cameras in {model} belong to other photos and are not used.")
        )
    sentence = f"The cameras that run estimated are used again: {len(frames)} of {len(found.frames)} photos."
    return replace(
        found, frames=tuple(frames), points=estimated.points, up=(0.0, 0.0, 1.0), decisions=(*decisions, sentence)
    )


def _with_workdir(workdir: Path | None, read: Callable[[Path], Source]) -> Source:
    """`read` with a folder to unpack into; a temporary one goes when the source is closed, or fails to open."""
    if workdir is not None:
        return read(workdir)
    temporary = tempfile.TemporaryDirectory(prefix="maquette-")
    try:
        found = read(Path(temporary.name))
    except BaseException:
        temporary.cleanup()
        raise

    def close() -> None:
        found.close()
        temporary.cleanup()

    return replace(found, close=close)
