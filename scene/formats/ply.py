"""PLY files: strict reading of untrusted ones (ascii and both binary orders), writing of binary little-endian ones.

The header says how much follows; it is checked against the size of the file before anything is allocated for it.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from scene.errors import InputError
from scene.files import replacing, write_errors
from scene.untrusted import MAX_FILE_BYTES, check_size, open_regular, read_array

MAX_HEADER_BYTES = 1 << 16  # a splat header has about 1.5 kB
MAX_PROPERTIES = 1024
MAX_ROWS = 1 << 28
TYPES = {
    name: code
    for names, code in (
        ("char int8", "i1"),
        ("uchar uint8", "u1"),
        ("short int16", "i2"),
        ("ushort uint16", "u2"),
        ("int int32", "i4"),
        ("uint uint32", "u4"),
        ("float float32", "f4"),
        ("double float64", "f8"),
    )
    for name in names.split()
}
NAMES = {"i1": "char", "u1": "uchar", "i2": "short", "u2": "ushort", "i4": "int", "u4": "uint", "f4": "float"}
BYTE_ORDERS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}


@dataclass(frozen=True)
class Property:
    """One column of an element; `count_type` is set for a list."""

    name: str
    type: str  # numpy code without byte order, as "f4"
    count_type: str | None = None


@dataclass(frozen=True)
class Element:
    """A table of the file as its header announces it."""

    name: str
    rows: int
    properties: tuple[Property, ...]

    @property
    def has_lists(self) -> bool:
        return any(p.count_type for p in self.properties)

    def dtype(self, order: str) -> np.dtype:
        """Record type of a row without lists."""
        return np.dtype([(p.name, order + p.type) for p in self.properties])

    def least_bytes(self, order: str) -> int:
        """The least a row can take in the file: empty lists; in ascii a digit and a separator for each number."""
        if not order:
            return 2 * len(self.properties)
        return sum(np.dtype(p.count_type or p.type).itemsize for p in self.properties)


@dataclass(frozen=True)
class Table:
    """What an element held: columns by name [rows], and lists as (counts [rows], all values one after the other)."""

    rows: int
    columns: dict[str, NDArray]
    lists: dict[str, tuple[NDArray[np.int64], NDArray]]


def read_ply(path: Path, wanted: tuple[str, ...]) -> dict[str, Table]:
    """The `wanted` elements of a PLY file that it has.

    Raises InputError, before anything large is allocated, when the file is not PLY, its header is not well formed or it
    announces more than the file holds.
    """
    try:
        with open_regular(path) as file:
            size = check_size(file, MAX_FILE_BYTES, path)
            order, elements = _read_header(file, path)
            rest = size - file.tell()
            announced = sum(e.rows * e.least_bytes(order) for e in elements)
            # A last ascii line may end without its separator.
            if announced > rest + (0 if order else 1):
                raise InputError(
                    f"{path} is cut short or its header lies: it announces at least {announced} bytes of data, "
                    f"{rest} follow; get the file again or export it again"
                )
            return _read_body(file, order, elements, wanted, path)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def element_columns(path: Path) -> dict[str, tuple[str, ...]]:
    """Names of the properties of each element, from the header alone. Raises InputError when it is not PLY."""
    with open_regular(path) as file:
        return {element.name: tuple(p.name for p in element.properties) for element in _read_header(file, path)[1]}


def ply_comments(path: Path) -> list[str]:
    """The comments of the header of a PLY file. Raises InputError when it is not PLY."""
    with open_regular(path) as file:
        _read_header(file, path)
        end = file.tell()
        file.seek(0)
        lines = file.read(end).decode("utf-8", "replace").splitlines()
    return [line.removeprefix("comment").strip() for line in lines if line.startswith("comment ")]


def _read_header(file: BinaryIO, path: Path) -> tuple[str, tuple[Element, ...]]:
    head = file.read(MAX_HEADER_BYTES)
    if not re.match(rb"ply\r?\n", head):
        raise InputError(f"{path} is not a PLY file: it does not begin with the line `ply`")
    end = re.search(rb"\nend_header[ \t]*\r?\n", head)
    if end is None:
        raise InputError(f"{path} has no PLY header that ends (`end_header`) within {MAX_HEADER_BYTES} bytes")
    file.seek(end.end())
    order: str | None = None
    elements: list[tuple[str, int, list[Property]]] = []
    for raw in head[: end.start()].split(b"\n")[1:]:
        words = raw.decode("ascii", "replace").split()
        if not words or words[0] in ("comment", "obj_info"):
            continue
        if words[0] == "format" and len(words) == 3 and words[1] in BYTE_ORDERS and order is None:
            order = BYTE_ORDERS[words[1]]
        elif words[0] == "element" and len(words) == 3 and re.fullmatch(r"\d{1,12}", words[2], re.ASCII):
            elements.append((words[1], int(words[2]), []))
        elif words[0] == "property" and elements:
            elements[-1][2].append(_property(words, path))
        else:
            raise InputError(f"{path} has a line in its PLY header that is not understood: {' '.join(words)[:80]!r}")
    if order is None:
        raise InputError(f"{path} has no `format` line in its PLY header")
    return order, tuple(_checked(name, rows, properties, path) for name, rows, properties in elements)


def _property(words: list[str], path: Path) -> Property:
    if len(words) == 3 and words[1] in TYPES:
        return Property(words[2], TYPES[words[1]])
    if len(words) == 5 and words[1] == "list" and words[2] in TYPES and words[3] in TYPES:
        count = TYPES[words[2]]
        if count[0] != "f":
            return Property(words[4], TYPES[words[3]], count)
    raise InputError(f"{path} has a PLY property that is not understood: {' '.join(words)[:80]!r}")


def _checked(name: str, rows: int, properties: list[Property], path: Path) -> Element:
    if len({p.name for p in properties}) != len(properties) or len(properties) > MAX_PROPERTIES:
        raise InputError(f"{path}: the properties of `{name}` repeat a name or are more than {MAX_PROPERTIES}")
    if rows > MAX_ROWS or (rows and not properties):
        raise InputError(
            f"{path} announces {rows} rows of `{name}` with {len(properties)} properties; that is not read"
        )
    return Element(name, rows, tuple(properties))


def _read_body(
    file: BinaryIO, order: str, elements: tuple[Element, ...], wanted: tuple[str, ...], path: Path
) -> dict[str, Table]:
    tables = {}
    ascii_words = None if order else _AsciiReader(file, path)
    for element in elements:
        if not set(wanted) - set(tables):
            break
        try:
            if ascii_words:
                table = ascii_words.read(element)
            elif element.has_lists:
                table = _binary_lists(file, element, order)
            else:
                table = _binary_rows(file, element, order)
        except (ValueError, OverflowError) as error:
            raise InputError(f"{path} is damaged: the data of `{element.name}` do not match the header") from error
        if element.name in wanted:
            tables[element.name] = table
    return tables


def _binary_rows(file: BinaryIO, element: Element, order: str) -> Table:
    dtype = element.dtype(order)
    records = read_array(file, dtype, element.rows, f"its element `{element.name}`")
    return Table(element.rows, {p.name: records[p.name] for p in element.properties}, {})


def _binary_lists(file: BinaryIO, element: Element, order: str) -> Table:
    """Rows with lists. Files in which each row's lists are as long as the first row's (triangles) are read at once."""
    start = file.tell()
    first = _walk_rows(file, element, order, min(1, element.rows))
    lengths = {name: int(counts[0]) for name, (counts, _) in first.lists.items() if len(counts)}
    fields: list[tuple] = []
    for p in element.properties:
        if p.count_type:
            fields += [(p.name + " count", order + p.count_type), (p.name, order + p.type, (lengths.get(p.name, 0),))]
        else:
            fields.append((p.name, order + p.type))
    dtype = np.dtype(fields)
    file.seek(0, 2)
    available = file.tell() - start
    file.seek(start)
    if element.rows * dtype.itemsize <= available:
        records = read_array(file, dtype, element.rows, f"its element `{element.name}`")
        counts = {name: records[name + " count"] for name in lengths}
        if all((counts[name] == length).all() for name, length in lengths.items()):
            columns = {p.name: records[p.name] for p in element.properties if not p.count_type}
            lists = {n: (counts[n].astype(np.int64), records[n].reshape(-1)) for n in lengths}
            return Table(element.rows, columns, lists)
        file.seek(start)
    return _walk_rows(file, element, order, element.rows)


def _walk_rows(file: BinaryIO, element: Element, order: str, rows: int) -> Table:
    """Row by row, for lists of mixed lengths; holds no more than what the file really has."""
    start = file.tell()
    data = file.read() if rows > 1 else file.read(1 << 20)
    values: dict[str, list] = {p.name: [] for p in element.properties}
    counts: dict[str, list[int]] = {p.name: [] for p in element.properties if p.count_type}
    types = {p.name: (np.dtype(order + (p.count_type or p.type)), np.dtype(order + p.type)) for p in element.properties}
    at = 0
    for _ in range(rows):
        for p in element.properties:
            head, item = types[p.name]
            if not p.count_type:
                values[p.name].append(np.frombuffer(data, item, 1, at)[0])
                at += item.itemsize
                continue
            count = int(np.frombuffer(data, head, 1, at)[0])
            at += head.itemsize
            if count < 0 or at + count * item.itemsize > len(data):
                raise ValueError("a list reaches beyond the end")
            counts[p.name].append(count)
            values[p.name].append(np.frombuffer(data, item, count, at))
            at += count * item.itemsize
    file.seek(start + at)
    empty = {p.name: np.zeros(0, types[p.name][1]) for p in element.properties}
    columns = {p.name: np.array(values[p.name], types[p.name][1]) for p in element.properties if not p.count_type}
    lists = {
        name: (np.array(lengths, np.int64), np.concatenate([empty[name], *values[name]]))
        for name, lengths in counts.items()
    }
    return Table(rows, columns, lists)


class _AsciiReader:
    """Numbers of an ascii body; line ends mean nothing beyond separating them."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # older numpy only warns of text between the numbers
                # float64 holds every PLY type exactly, and this parser makes no Python object per number.
                self.numbers = np.fromstring(file.read().decode("ascii"), dtype=np.float64, sep=" ")
        except (ValueError, DeprecationWarning) as error:
            raise InputError(f"{path} has text where its PLY header announces numbers") from error
        self.at = 0

    def read(self, element: Element) -> Table:
        names = [p.name for p in element.properties]
        if not element.has_lists:
            stop = self.at + element.rows * len(names)
            if stop > len(self.numbers):
                raise ValueError("cut short")
            block = self.numbers[self.at : stop].reshape(element.rows, len(names))
            self.at = stop
            return Table(element.rows, {p.name: _cast(block[:, i], p) for i, p in enumerate(element.properties)}, {})
        columns: dict[str, list[float]] = {p.name: [] for p in element.properties if not p.count_type}
        lists: dict[str, list[NDArray]] = {p.name: [] for p in element.properties if p.count_type}
        for _ in range(element.rows):
            for p in element.properties:
                if self.at >= len(self.numbers):
                    raise ValueError("cut short")
                value = self.numbers[self.at]
                self.at += 1
                if not p.count_type:
                    columns[p.name].append(value)
                    continue
                count = int(value)
                if count < 0 or self.at + count > len(self.numbers):
                    raise ValueError("a list reaches beyond the end")
                lists[p.name].append(self.numbers[self.at : self.at + count])
                self.at += count
        types = {p.name: p for p in element.properties}
        return Table(
            element.rows,
            {name: _cast(np.array(column), types[name]) for name, column in columns.items()},
            {
                name: (np.array([len(x) for x in rows], np.int64), _cast(np.concatenate([[], *rows]), types[name]))
                for name, rows in lists.items()
            },
        )


def _cast(values: NDArray, p: Property) -> NDArray:
    """To the announced type; a number that does not fit it raises ValueError."""
    kind = np.dtype(p.type)
    if kind.kind != "f" and len(values):
        limits = np.iinfo(kind)
        if not (np.isfinite(values).all() and values.min() >= limits.min and values.max() <= limits.max):
            raise ValueError(f"{p.name} does not fit {p.type}")
    return values.astype(kind)


def write_ply(path: Path, elements: dict[str, NDArray], *, comments: Sequence[str] = ()) -> None:
    """Write record arrays as a binary little-endian PLY, atomically.

    A list is two fields one after the other: `NAME count` (u1), and `NAME` with as many values in each row.
    """
    lines: list[str] = ["ply", "format binary_little_endian 1.0", *(f"comment {text}" for text in comments)]
    for name, records in elements.items():
        lines.append(f"element {name} {len(records)}")
        for field in records.dtype.names or ():
            kind = records.dtype[field]
            if kind.shape:
                lines.append(f"property list uchar {NAMES[kind.base.str[1:]]} {field}")
            elif not field.endswith(" count"):
                lines.append(f"property {NAMES[kind.str[1:]]} {field}")
    lines += ["end_header", ""]
    with write_errors(path, "write the PLY file"), replacing(path) as file:
        file.write("\n".join(lines).encode("utf-8"))
        for records in elements.values():
            file.write(np.ascontiguousarray(records).data)
