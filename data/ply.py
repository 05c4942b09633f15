"""Point clouds from PLY files (ascii and binary), as nerfstudio writes them; sizes checked before allocation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from data.frames import PointCloud
from scene.errors import InputError

_TYPES = {
    "char": "i1",
    "uchar": "u1",
    "short": "i2",
    "ushort": "u2",
    "int": "i4",
    "uint": "u4",
    "float": "f4",
    "int8": "i1",
    "uint8": "u1",
    "int16": "i2",
    "uint16": "u2",
    "int32": "i4",
    "uint32": "u4",
    "float32": "f4",
    "double": "f8",
    "float64": "f8",
}
_ORDERS = {"ascii": "=", "binary_little_endian": "<", "binary_big_endian": ">"}
_MAX_HEADER = 65536
_NOT_A_PLY = "should be a PLY file whose first element is 'vertex' with x, y, z and scalar properties"


def read_point_ply(path: Path) -> PointCloud:
    """The vertices of a PLY file; grey where it has no red, green, blue. Points that are not finite are dropped.

    Raises InputError when it is no such file or is shorter than its header says.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(_MAX_HEADER)
            order, count, names, kinds, start = _header(head, path.name)
            ascii_file = order == "="
            row = np.dtype([(name, order + kind) for name, kind in zip(names, kinds, strict=True)])
            least = 2 * len(names) if ascii_file else row.itemsize  # a digit and a blank per number
            if count * least > size - start + 1:
                raise InputError(f"{path.name} claims {count} points, but has only {size - start} bytes for them")
            file.seek(start)
            if ascii_file:
                table = _ascii_rows(file.read(), count, len(names), path.name)
                columns = {name: table[:, i] for i, name in enumerate(names)}
            else:
                rows = np.frombuffer(file.read(count * row.itemsize), dtype=row)
                columns = {name: rows[name] for name in names}
    except OSError as error:
        raise InputError(f"{path.name} cannot be read: {error.strerror}") from error
    with np.errstate(over="ignore", invalid="ignore"):
        xyz = np.stack([columns[axis] for axis in "xyz"], axis=1).astype(np.float32)
    good = np.isfinite(xyz).all(axis=1)
    rgb = np.full((count, 3), 128, dtype=np.uint8)
    if {"red", "green", "blue"} <= set(names):
        colours = np.stack([columns[name] for name in ("red", "green", "blue")], axis=1)
        floats = kinds[names.index("red")] in ("f4", "f8") and not ascii_file
        scaled = np.nan_to_num(colours.astype(np.float64)) * (255 if floats else 1)
        rgb = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
    return PointCloud(torch.from_numpy(xyz[good]), torch.from_numpy(rgb[good]))


def _header(head: bytes, name: str) -> tuple[str, int, list[str], list[str], int]:
    """Byte order, number of vertices, names and types of their properties, where the data starts."""
    end = head.find(b"end_header")
    line_end = head.find(b"\n", end)
    if not head.startswith(b"ply") or end < 0 or line_end < 0:
        raise InputError(f"{name} {_NOT_A_PLY}")
    order, count, names, kinds, element = "", -1, [], [], ""
    for line in head[:end].decode("ascii", errors="replace").splitlines():
        words = line.split()
        if words[:1] == ["format"] and len(words) > 1:
            order = _ORDERS.get(words[1], "")
        elif words[:1] == ["element"] and len(words) == 3:
            if not element and (words[1] != "vertex" or not words[2].isdecimal() or len(words[2]) > 12):
                raise InputError(f"{name} {_NOT_A_PLY}")
            element = words[1]
            count = int(words[2]) if element == "vertex" else count
        elif words[:1] == ["property"] and element == "vertex":
            if len(words) != 3 or words[1] not in _TYPES or words[2] in names:
                raise InputError(f"{name} {_NOT_A_PLY}, got {line[:60]!r}")
            kinds.append(_TYPES[words[1]])
            names.append(words[2])
    if not order or count < 0 or not {"x", "y", "z"} <= set(names):
        raise InputError(f"{name} {_NOT_A_PLY}")
    return order, count, names, kinds, line_end + 1


def _ascii_rows(text: bytes, count: int, columns: int, name: str) -> np.ndarray:
    try:
        numbers = np.array(text.split(maxsplit=count * columns)[: count * columns], dtype=np.float64)
    except ValueError as error:
        raise InputError(f"{name} should hold numbers only: {error}") from error
    if numbers.size != count * columns:
        raise InputError(f"{name} claims {count} points, but has numbers for {numbers.size // columns}")
    return numbers.reshape(count, columns)
