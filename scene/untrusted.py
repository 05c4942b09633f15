"""Files that strangers wrote: the limits, and the only ways in which readers open, unpack and decode them.

Every reader of the project goes through here. What a file announces is checked against what it holds before memory is
taken for it; each refusal is one InputError that names the file, the reason and what to do. Imports nothing heavy.
"""

from __future__ import annotations

import io
import json
import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from scene.errors import InputError

MAX_FILE_BYTES = 4 << 30  # of a mesh or splat file
MAX_JSON_BYTES = 64 << 20
MAX_SPLATS = 1 << 26
MAX_TEXTURE_PIXELS = 1 << 26  # 8192 x 8192; 256 MiB of RGBA
PICTURES = ("PNG", "JPEG", "WEBP")


def open_regular(path: Path) -> BinaryIO:
    """A regular file opened for reading; never waits on a FIFO, never reads a device.

    Raises InputError when it is missing, forbidden or of another kind.
    """
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InputError(f"cannot read {path}: {reason}") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise InputError(f"{path} is not a regular file; expected a file that holds its data")
    return os.fdopen(handle, "rb")


def read_bytes(path: Path, most: int = MAX_FILE_BYTES) -> bytes:
    """All bytes of a regular file of at most `most` bytes. Raises InputError otherwise."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise InputError(f"{path} has {size:,} bytes; at most {most:,} are read from such a file")
        return file.read(most)


def parse_json(text: bytes, name: str) -> Any:
    """The value of a JSON text of at most MAX_JSON_BYTES. Raises InputError naming `name`."""
    if len(text) > MAX_JSON_BYTES:
        raise InputError(f"{name} has more than {MAX_JSON_BYTES >> 20} MiB of JSON")
    try:
        return json.loads(text)
    except RecursionError as error:
        raise InputError(f"{name} nests too deeply") from error
    except ValueError as error:
        raise InputError(f"{name} is not valid JSON: {error}") from error


def inflate(data: bytes, most: int, name: str, *, wbits: int = 31) -> bytes:
    """Unpacked deflate data of at most `most` bytes; wbits: zlib's, 31 is gzip.

    Raises InputError when more comes out or the data are damaged.
    """
    machine = zlib.decompressobj(wbits)
    try:
        out = machine.decompress(data, most + 1)
    except zlib.error as error:
        raise InputError(f"{name} is damaged: its packed data cannot be read ({error})") from error
    if len(out) > most:
        raise InputError(f"{name} unpacks to more than {most:,} bytes, which its header does not account for")
    if not machine.eof:
        raise InputError(f"{name} is cut short: its packed data end early")
    return out


def read_entry(archive: zipfile.ZipFile, entry: str, most: int, name: str) -> bytes:
    """One file of a .zip, at most `most` bytes of it, whatever its header announces. Raises InputError for worse."""
    try:
        with archive.open(entry) as file:
            data = file.read(most + 1)
    except KeyError as error:
        raise InputError(f"{name} lacks {entry!r}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError, struct.error) as error:
        raise InputError(f"{name} is damaged: {entry!r} cannot be unpacked ({error})") from error
    if len(data) > most:
        raise InputError(f"{name}: {entry!r} has more than {most:,} bytes")
    return data


def decode_picture(
    data: bytes, name: str, *, formats: Sequence[str] = PICTURES, most_pixels: int = MAX_TEXTURE_PIXELS
) -> NDArray[np.uint8]:
    """[H, W, C] uint8 of an encoded texture, C = 1, 3 or 4 as it was stored; values exactly as in the file.

    Raises InputError when it is of another format, too large, or damaged.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=tuple(formats)) as image:
            if image.width * image.height > most_pixels:
                raise InputError(f"{name} is {image.width} x {image.height}; at most {most_pixels:,} pixels are read")
            if image.mode not in ("L", "RGB", "RGBA"):
                image = image.convert("RGBA" if "A" in image.mode or "transparency" in image.info else "RGB")
            pixels = np.array(image)
    except (OSError, ValueError, SyntaxError, EOFError, OverflowError, IndexError, TypeError, MemoryError) as error:
        raise InputError(f"{name} is not a picture that can be read ({error})") from error
    except Image.DecompressionBombError as error:
        raise InputError(f"{name} is too large a picture ({error})") from error
    return pixels[..., None] if pixels.ndim == 2 else pixels


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
