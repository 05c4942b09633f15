"""Files that strangers wrote: the limits, and the only ways in which readers open, unpack and decode them.

Every reader of the project goes through here. What a file announces is checked against what it holds before memory is
taken for it; each refusal is one InputError that names the file, the reason and what to do. Imports nothing heavy.
"""

from __future__ import annotations

import io
import json
import math
import mmap
import os
import re
import stat
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

from scene.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

MAX_FILE_BYTES = 4 << 30  # of a mesh or splat file
MAX_MODEL_BYTES = 16 << 30  # of one COLMAP file; keypoints make them large
MAX_JSON_BYTES = 64 << 20  # 80,000 frames of a transforms.json
MAX_JSON_VALUES = 5_000_000  # an empty list takes 3 bytes of text and 64 of memory
MAX_TEXT_BYTES = 1 << 30
MAX_LINE_BYTES = 64 << 20  # the keypoints of one picture in a COLMAP text model
MAX_SPLATS = 1 << 26
MAX_PHOTOS = 100_000  # in one source

MAX_PIXELS = 170_000_000  # of a photo; below the size at which Pillow itself refuses
MAX_SIDE = 32_000  # px of a photo; cv2.remap counts in 16 bits
MAX_TEXTURE_PIXELS = 1 << 26  # 8192 x 8192; 256 MiB of RGBA
FREE_PIXELS = 1 << 24  # decoded whatever the file's size: 13 bytes a pixel at the worst, 208 MiB
PIXELS_PER_BYTE = 512  # at most: a JPEG spends a bit or more on each block of 8 x 8; photos spend 100 times that
MAX_DEFLATE_RATIO = 1032  # what deflate can do at best: 258 bytes from 2 bits
PICTURES = ("PNG", "JPEG", "WEBP")
MAX_NPY_HEADER = 10_000
_NPY_HEADER = {
    "descr": r"'([<>|=](?:[iu][1248]|f[248]))'",
    "fortran_order": r"(True|False)",
    "shape": r"\(((?:\s*\d{1,12}\s*,){0,3}(?:\s*\d{1,12})?\s*)\)",
}

MAX_ENTRIES = 100_000  # of an archive
PACKED_BY = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)  # LZMA asks for up to 4 GiB before it begins

# Sizes are checked here before anything is decoded; Pillow's earlier warning would only confuse, and so would its
# remarks on damaged metadata. Once for all: a filter set for a while is no use among threads.
warnings.filterwarnings("ignore", module=r"PIL\.")

_PICTURE_FAULTS = (
    *(OSError, ValueError, SyntaxError, EOFError, OverflowError, IndexError, TypeError, KeyError, MemoryError),
    *(AttributeError, ZeroDivisionError, NotImplementedError, RuntimeError, struct.error, zlib.error),
)  # what Pillow's parsers and codecs raise on damaged files, found by fuzzing
ARCHIVE_FAULTS = (
    *(zipfile.BadZipFile, zlib.error, EOFError, struct.error, NotImplementedError, RuntimeError, IndexError),
    *(ValueError, OverflowError, OSError),
)


class RegularFile(io.BufferedReader):
    """An opened regular file. Python takes memory for all that a read asks for; here, for no more than there is."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > io.DEFAULT_BUFFER_SIZE:
            size = min(size, max(0, os.fstat(self.fileno()).st_size - self.tell()))
        return super().read(size)


def open_regular(path: Path) -> RegularFile:
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
    return RegularFile(io.FileIO(handle))


def size_of(file: BinaryIO) -> int:
    """Bytes of an opened regular file, whatever was read of it."""
    return os.fstat(file.fileno()).st_size


def check_size(file: BinaryIO, most: int, path: Path) -> int:
    """Bytes of an opened regular file. Raises InputError when they are more than `most`."""
    size = size_of(file)
    if size > most:
        raise InputError(f"{path} has {size:,} bytes; at most {most:,} are read from such a file")
    return size


def read_bytes(path: Path, most: int = MAX_FILE_BYTES) -> bytes:
    """All bytes of a regular file of at most `most` bytes. Raises InputError otherwise."""
    with open_regular(path) as file:
        return file.read(check_size(file, most, path))  # read(n) takes n bytes of memory before it reads


def map_bytes(path: Path, most: int = MAX_MODEL_BYTES) -> mmap.mmap | bytes:
    """The bytes of a regular file without reading it into memory. Raises InputError as `read_bytes` does."""
    with open_regular(path) as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if check_size(file, most, path) else b""


def looks_pickled(data: mmap.mmap | bytes) -> bool:
    """Whether bytes that should be safetensors are a pickle, bare or in torch's .zip.

    Safetensors begin with the length of their header, whose first byte is that of a pickle in one file of 32.
    """
    return data[:4] == b"PK\x03\x04" or (data[:1] == b"\x80" and data[8:9] != b"{")


def read_array(file: BinaryIO, dtype: np.dtype, count: int, name: object) -> NDArray:
    """The next `count` records of an opened regular file, writable.

    Raises InputError, before memory is taken, when the file has fewer left.
    """
    import numpy as np

    left = size_of(file) - file.tell()
    if count < 0 or count * dtype.itemsize > left:
        raise InputError(f"{name} is cut short: {count:,} records of {dtype.itemsize} bytes announced, {left:,} left")
    return np.fromfile(file, dtype=dtype, count=count)


def read_npy(path: Path, most: int = MAX_FILE_BYTES) -> NDArray:
    """The array of numbers in a .npy file. Raises InputError for objects (pickles) and for a shape the file lacks."""
    import numpy as np

    with open_regular(path) as file:
        check_size(file, most, path)
        start = file.read(10)
        wide = start[6:8] != b"\x01\x00"  # versions 2 and 3 count the header in four bytes
        length = int.from_bytes(start[8:10] + (file.read(2) if wide else b""), "little")
        header = file.read(min(length, MAX_NPY_HEADER)).decode("latin-1")
        # Numpy's own reader evaluates this text as Python.
        found = [re.search(rf"'{key}':\s*{value}", header) for key, value in _NPY_HEADER.items()]
        if start[:6] != b"\x93NUMPY" or length > MAX_NPY_HEADER or None in found:
            raise InputError(f"{path} is not an .npy file of plain numbers; save it again with numpy.save")
        kind, by_columns, sizes = (match.group(1) for match in found if match)
        shape = [int(word) for word in sizes.split(",") if word.strip()]
        flat = read_array(file, np.dtype(kind), math.prod(shape), path)
        return flat.reshape(shape, order="F" if by_columns == "True" else "C")


def read_text(path: Path, most: int = MAX_TEXT_BYTES) -> str:
    """The text of a UTF-8 file of at most `most` bytes. Raises InputError naming the file and the reason."""
    return decode_text(read_bytes(path, most), path)


def decode_text(data: bytes, name: object) -> str:
    """UTF-8 text, a byte order mark left out. Raises InputError naming `name`."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{name} should be UTF-8 text, but is not: {error.reason}; save it as UTF-8") from error


def read_lines(path: Path, most: int = MAX_TEXT_BYTES, most_line: int = MAX_LINE_BYTES) -> Iterator[bytes]:
    """The lines of a text file one by one, without their ends.

    Raises InputError when the file is larger than `most` bytes or a line longer than `most_line`.
    """
    with open_regular(path) as file:
        check_size(file, most, path)
        number = 0
        while line := file.readline(most_line + 1):
            number += 1
            if len(line) > most_line:
                raise InputError(f"{path}, line {number} does not end within {most_line >> 20} MiB; is it a text file?")
            yield line.rstrip(b"\r\n")


def text_lines(path: Path, most: int = MAX_TEXT_BYTES) -> Iterator[str]:
    """As `read_lines`, decoded from UTF-8."""
    for line in read_lines(path, most):
        yield decode_text(line, path)


def parse_json(text: bytes | str, name: object, *, finite: bool = False, unique: bool = False) -> Any:
    """The value of a JSON text of at most MAX_JSON_BYTES and MAX_JSON_VALUES.

    finite: NaN and Infinity, which Python takes for numbers though JSON has none, are refused.  unique: so are objects
    that name a key twice, of which readers would take one or the other.  Raises InputError naming `name`.
    """
    if len(text) > MAX_JSON_BYTES:
        raise InputError(f"{name} has more than {MAX_JSON_BYTES >> 20} MiB of JSON, more than such a file ever has")
    marks: tuple[Any, ...] = (b",", b"[", b"{") if isinstance(text, bytes) else (",", "[", "{")
    if sum(text.count(mark) for mark in marks) > MAX_JSON_VALUES:
        raise InputError(f"{name} has more than {MAX_JSON_VALUES:,} values, more than such a file ever has")

    def refuse_constant(word: str) -> NoReturn:
        raise ValueError(f"it holds {word}, which is no JSON number")

    def without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [key for key, _ in pairs]
            twin = next(key for key in found if names.count(key) > 1)
            raise ValueError(f"the key {twin[:80]!r} stands twice in one object")
        return found

    try:
        return json.loads(
            text,
            parse_constant=refuse_constant if finite else None,
            object_pairs_hook=without_twins if unique else None,
        )
    except RecursionError as error:
        raise InputError(f"the JSON of {name} nests too deeply; expected a few levels") from error
    except ValueError as error:
        raise InputError(f"{name} is not valid JSON: {error}") from error


def load_json(path: Path, *, finite: bool = False, unique: bool = False) -> Any:
    """The value of a JSON file, as `parse_json`."""
    return parse_json(read_bytes(path, MAX_JSON_BYTES), path, finite=finite, unique=unique)


def inflate(data: bytes, most: int, name: object, *, wbits: int = 31) -> bytes:
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


@contextmanager
def open_archive(path: Path, most_entries: int = MAX_ENTRIES) -> Iterator[zipfile.ZipFile]:
    """A .zip opened for reading; its directory is bounded before Python makes an object for each of its entries.

    Raises InputError when it is no archive, is damaged, or lists more than `most_entries`. What the block raises on
    reading from it stays as it is.
    """
    with open_regular(path) as file:
        count = _count_entries(file)
        if count > most_entries:
            raise InputError(f"{path} holds {count} files; at most {most_entries} are unpacked from one archive")
        try:
            archive = zipfile.ZipFile(file)
        except (*ARCHIVE_FAULTS, MemoryError) as error:
            raise InputError(f"{path} is not a usable .zip ({error}); pack it again") from error
        with archive:
            yield archive


def _count_entries(file: BinaryIO) -> int:
    """Entries in a .zip's directory, counted in its bytes before an object is made for each; the file is rewound."""
    size = size_of(file)
    file.seek(max(0, size - (1 << 16) - 98))  # a comment of 64 kB, the end record, the 64-bit one and its locator
    tail = file.read()
    stated = 0  # bytes of the directory, by its end records
    for mark, layout in ((b"PK\x05\x06", "<8x4xI"), (b"PK\x06\x06", "<36x4xQ")):
        for found in re.finditer(re.escape(mark), tail):
            if found.start() + struct.calcsize(layout) + 4 <= len(tail):
                stated = max(stated, min(size, struct.unpack_from(layout, tail, found.start())[0]))
    file.seek(max(0, size - len(tail) - stated))
    count = sum(file.read(1 << 20).count(b"PK\x01\x02") for _ in range(0, len(tail) + stated, 1 << 20))
    file.seek(0)
    return count


def read_entry(archive: zipfile.ZipFile, entry: str, most: int, name: object) -> bytes:
    """One file of a .zip, at most `most` bytes of it, whatever its header announces. Raises InputError for worse."""
    try:
        packing = archive.getinfo(entry).compress_type
        if packing not in PACKED_BY:
            raise InputError(f"{name}: {entry!r} is packed by method {packing}; pack it again with deflate")
        with archive.open(entry) as file:
            data = file.read(most + 1)
    except KeyError as error:
        raise InputError(f"{name} lacks {entry!r}") from error
    except ARCHIVE_FAULTS as error:
        raise InputError(f"{name} is damaged: {entry!r} cannot be unpacked ({error})") from error
    if len(data) > most:
        raise InputError(f"{name}: {entry!r} has more than {most:,} bytes")
    return data


@contextmanager
def open_picture(
    file: BinaryIO,
    name: object,
    *,
    formats: Sequence[str] = PICTURES,
    most_pixels: int = MAX_TEXTURE_PIXELS,
    most_side: int = 1 << 16,
) -> Iterator[Image.Image]:
    """An encoded picture whose header was read and found plausible; decoding it in the block is bounded.

    file: an opened regular file or bytes in a BytesIO.  Raises InputError when it is of another format, too large, too
    large for the bytes that are there, or damaged, also for what Pillow raises in the block.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        limits = _PictureLimits(file, name, most_pixels, most_side)
        if webp := _webp_size(file):
            limits.check(webp, "WEBP", "RGBA")  # before: Pillow takes memory for all of it on opening the file
        with Image.open(file, formats=tuple(formats)) as image:
            limits.check(image.size, image.format or "", image.mode)
            yield image
    except UnidentifiedImageError as error:
        raise InputError(f"{name} is not a picture of a known format, or is damaged; export it again") from error
    except Image.DecompressionBombError as error:
        raise InputError(f"{name} has more than {most_pixels / 1e6:.0f} million pixels; make it smaller") from error
    except _PICTURE_FAULTS as error:
        raise InputError(f"{name} is cut off or damaged and cannot be decoded ({error}); copy it again") from error


def _webp_size(file: BinaryIO) -> tuple[int, int] | None:
    """Width and height that a WebP file announces, None for another file; it is rewound."""
    head = file.read(30)
    file.seek(0)
    if head[:4] != b"RIFF" or head[8:12] != b"WEBP" or len(head) < 30:
        return None
    if head[12:16] == b"VP8X":
        return int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1
    if head[12:16] == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return int.from_bytes(head[26:28], "little") & 0x3FFF, int.from_bytes(head[28:30], "little") & 0x3FFF


@dataclass(frozen=True)
class _PictureLimits:
    file: BinaryIO
    name: object
    pixels: int
    side: int

    def check(self, size: tuple[int, int], kind: str, mode: str) -> None:
        """Raise InputError for a picture that is too large, or too large for its bytes."""
        width, height = size
        if width * height > self.pixels or max(size) > self.side:
            raise InputError(
                f"{self.name} is {width} x {height}; pictures of at most {self.pixels / 1e6:.0f} million pixels and "
                f"{self.side} px a side are read; make it smaller"
            )
        length = self.file.seek(0, os.SEEK_END)
        self.file.seek(0)
        free = FREE_PIXELS // (2 if kind in ("WEBP", "HEIF", "AVIF") else 1)  # their decoders take twice the memory
        if width * height > max(free, most_of_bytes(kind, mode, length)):
            raise InputError(
                f"{self.name} claims {width} x {height}, which its {length:,} bytes cannot hold; copy it again"
            )


def most_of_bytes(kind: str, mode: str, size: int) -> int:
    """Pixels that a picture file of `size` bytes can hold at best, by Pillow's names of its format and mode."""
    raw = {"1": 1, "L": 8, "P": 8, "LA": 16, "RGB": 24, "RGBA": 32, "I": 16, "I;16": 16}.get(mode, 8)
    if kind in ("BMP", "PPM"):
        return 8 * size * (64 if kind == "BMP" else 1)  # run lengths in some BMP files
    if kind == "PNG":
        return min(8 * MAX_DEFLATE_RATIO * size // raw, 2 * MAX_DEFLATE_RATIO * size)
    return PIXELS_PER_BYTE * size


def decode_picture(
    data: bytes, name: str, *, formats: Sequence[str] = PICTURES, most_pixels: int = MAX_TEXTURE_PIXELS
) -> NDArray[np.uint8]:
    """[H, W, C] uint8 of an encoded texture, C = 1, 3 or 4 as it was stored; values exactly as in the file.

    Raises InputError when it is of another format, too large, or damaged.
    """
    import numpy as np

    with open_picture(io.BytesIO(data), name, formats=formats, most_pixels=most_pixels) as image:
        if image.mode not in ("L", "RGB", "RGBA"):
            image = image.convert("RGBA" if "A" in image.mode or "transparency" in image.info else "RGB")
        pixels = np.array(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def real(path: Path) -> Path:
    """Where a path leads through all links; a link to itself leads nowhere, without an error."""
    return Path(os.path.realpath(path))  # Path.resolve raises RuntimeError for such a link


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
    if not real(path).is_relative_to(real(root)):
        raise InputError(f"the path {name[:200]!r} leads out of its source folder through a link")
    return path
