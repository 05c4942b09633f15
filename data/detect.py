"""What is this source? Looks at names only, most specific first, and hands it to its reader."""

from __future__ import annotations

from pathlib import Path

from data.colmap import find_colmap, read_colmap
from data.files import PHOTO_SUFFIXES
from data.frames import Source
from data.photos import read_photos
from data.transforms import find_transforms, read_transforms
from scene.errors import InputError

_EXPECTED = (
    "a folder of photos, a video, a .zip of either, a COLMAP model, a transforms.json, an LLFF, Middlebury or KITTI "
    "folder, or the folder of an earlier run"
)


def read_source(path: Path, workdir: Path | None) -> Source:
    """The frames of `path`, whatever it is. Raises InputError when it is nothing known or holds nothing usable."""
    if not path.exists():
        raise InputError(f"{path} does not exist; expected {_EXPECTED}")
    if path.is_file():
        return _read_file(path, workdir)
    return _read_folder(path, workdir)


def _read_file(path: Path, workdir: Path | None) -> Source:
    suffix = path.suffix.lower()
    if suffix == ".json":
        return read_transforms(find_transforms(path))
    if suffix in PHOTO_SUFFIXES:
        raise InputError(f"{path} is a single photo; expected several of one scene. Name the folder that holds them")
    raise InputError(f"{path} is of no known kind; expected {_EXPECTED}")


def _read_folder(folder: Path, workdir: Path | None) -> Source:
    if files := find_transforms(folder):
        return read_transforms(files)
    model = find_colmap(folder)
    if model is not None:
        return read_colmap(folder, model)
    return read_photos(folder)
