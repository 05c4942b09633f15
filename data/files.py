"""Names and small texts of a source: which files are photos, in which order, and tables of numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from scene.errors import InputError
from scene.untrusted import MAX_PHOTOS, load_json, real, text_lines

_PLAIN = (".jpg", ".jpeg", ".jpe", ".png", ".tif", ".tiff", ".webp", ".bmp", ".ppm", ".pgm", ".pnm")
PHOTO_SUFFIXES = frozenset((*_PLAIN, ".heic", ".heif", ".hif", ".avif"))
RAW_SUFFIXES = frozenset([".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".rw2", ".orf", ".pef", ".srw"])
VIDEO_SUFFIXES = frozenset(
    [".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".mts", ".m2ts", ".3gp", ".insv"]
)

MAX_TABLE_BYTES = 64 << 20
RUN_MARKS = ("config.json", "events.jsonl")  # what every run folder holds


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file of cameras, no key twice; NaN in it costs the one frame that holds it.

    Raises InputError naming the file and the reason.
    """
    value = load_json(path, unique=True)
    if not isinstance(value, dict):
        raise InputError(f"{path} should hold a JSON object, got a {type(value).__name__}")
    return value


def read_numbers(path: Path, row: int | None = None) -> list[list[float]]:
    """Rows of numbers in a text file; every row has `row` numbers when that is given."""
    rows = []
    for number, line in enumerate(text_lines(path, MAX_TABLE_BYTES), start=1):
        try:
            values = [float(word) for word in line.split()]
        except ValueError as error:
            raise InputError(f"{path.name}, line {number}: expected numbers ({error})") from error
        if row is not None and values and len(values) != row:
            raise InputError(f"{path.name}, line {number}: expected {row} numbers, got {len(values)}")
        if values:
            rows.append(values)
    return rows


def natural_key(name: str) -> tuple[Any, ...]:
    """Sorts names as people do: IMG_9 before IMG_10.  The name itself breaks ties such as 1 and 01."""
    parts = re.split(r"(\d+)", name)
    return tuple((1, int(part)) if part.isdecimal() else (0, part.lower()) for part in parts), name


def photo_files(folder: Path, *, skip: Iterable[str] = ()) -> list[str]:
    """Names (relative, with /) of the photos in a folder and below, in natural order.

    Hidden folders, run folders, those named in `skip`, and links that leave the folder are left out.
    """
    skipped = {name.lower() for name in skip}
    root = real(folder)
    names: list[str] = []
    waiting = [folder]
    while waiting:
        for entry in sorted(waiting.pop().iterdir()):
            if entry.name.startswith((".", "__MACOSX")):
                continue
            if entry.is_dir():
                # A linked folder could lead outside, or back up into an endless walk.
                if entry.name.lower() not in skipped and not entry.is_symlink() and not _is_run(entry):
                    waiting.append(entry)
            elif entry.suffix.lower() in PHOTO_SUFFIXES and real(entry).is_relative_to(root):
                names.append(entry.relative_to(folder).as_posix())
                if len(names) > MAX_PHOTOS:
                    raise InputError(f"{folder} holds more than {MAX_PHOTOS} photos; name a smaller folder")
    return sorted(names, key=natural_key)


def _is_run(folder: Path) -> bool:
    """Whether a folder is a run: one made inside its own photos must not become more photos on the next start."""
    return all((folder / name).is_file() for name in RUN_MARKS)


def listing(names: Sequence[str], limit: int = 5) -> str:
    """A few names for a sentence: 'a, b, c and 7 more'."""
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
