"""Safe reading of files that others wrote: paths that stay inside, JSON and text of bounded size."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from scene.errors import InputError

_PLAIN = (".jpg", ".jpeg", ".jpe", ".png", ".tif", ".tiff", ".webp", ".bmp", ".ppm", ".pgm", ".pnm")
PHOTO_SUFFIXES = frozenset((*_PLAIN, ".heic", ".heif", ".hif", ".avif"))
RAW_SUFFIXES = frozenset([".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".rw2", ".orf", ".pef", ".srw"])
VIDEO_SUFFIXES = frozenset(
    [".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".mts", ".m2ts", ".3gp", ".insv"]
)

MAX_JSON_BYTES = 256 * 2**20
MAX_TEXT_BYTES = 2**30
MAX_PHOTOS = 100_000  # in one source


def inside(root: Path, name: str) -> Path:
    """The file that `name` (with / or \\ between folders) means below `root`; it need not exist.

    Raises InputError when the name is absolute, climbs with `..`, or leads out of `root` through a link.
    """
    parts = [part for part in re.split(r"[/\\]", name) if part not in ("", ".")]
    if not parts or name[0] in "/\\" or re.match(r"[A-Za-z]:", name) or ".." in parts or "\0" in name:
        raise InputError(
            f"the path {name[:200]!r} leads out of its source folder; expected a relative path without '..'"
        )
    path = root.joinpath(*parts)
    if not path.resolve().is_relative_to(root.resolve()):
        raise InputError(f"the path {name[:200]!r} leads out of its source folder through a link")
    return path


def read_text(path: Path, max_bytes: int = MAX_TEXT_BYTES) -> str:
    """The text of a file no larger than `max_bytes`.  Raises InputError naming the file and the reason."""
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise InputError(f"{path.name} has {size} bytes; at most {max_bytes} are read from such a file")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path.name} should be UTF-8 text, but is not: {error.reason}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file, sizes and depth bounded.  Raises InputError naming the file and the reason."""
    text = read_text(path, MAX_JSON_BYTES)
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise InputError(f"{path.name} nests too deeply to be a camera file") from error
    except ValueError as error:
        raise InputError(f"{path.name} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path.name} should hold a JSON object, got a {type(value).__name__}")
    return value


def read_numbers(path: Path, row: int | None = None) -> list[list[float]]:
    """Rows of numbers in a text file; every row has `row` numbers when that is given."""
    rows = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
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

    Hidden folders, those named in `skip`, and links that leave the folder are left out.
    """
    skipped = {name.lower() for name in skip}
    root = folder.resolve()
    names: list[str] = []
    waiting = [folder]
    while waiting:
        for entry in sorted(waiting.pop().iterdir()):
            if entry.name.startswith((".", "__MACOSX")):
                continue
            if entry.is_dir():
                # A linked folder could lead outside, or back up into an endless walk.
                if entry.name.lower() not in skipped and not entry.is_symlink():
                    waiting.append(entry)
            elif entry.suffix.lower() in PHOTO_SUFFIXES and entry.resolve().is_relative_to(root):
                names.append(entry.relative_to(folder).as_posix())
                if len(names) > MAX_PHOTOS:
                    raise InputError(f"{folder} holds more than {MAX_PHOTOS} photos; name a smaller folder")
    return sorted(names, key=natural_key)


def listing(names: Sequence[str], limit: int = 5) -> str:
    """A few names for a sentence: 'a, b, c and 7 more'."""
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
