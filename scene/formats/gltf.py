"""glTF 2.0 as a container: reading .glb and .gltf files that strangers wrote, writing a .glb from arrays.

What lies in the arrays is the business of `glb.py` (meshes) and `glb_splats.py` (Gaussians).
"""

from __future__ import annotations

import base64
import binascii
import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from scene.errors import InputError
from scene.files import replacing, write_errors
from scene.untrusted import MAX_FILE_BYTES, MAX_JSON_BYTES, inside, parse_json, read_bytes

MAGIC, JSON_CHUNK, BIN_CHUNK = b"glTF", b"JSON", b"BIN\x00"
FLOAT, UNSIGNED_BYTE, UNSIGNED_SHORT, UNSIGNED_INT = 5126, 5121, 5123, 5125
COMPONENTS = {5120: "i1", 5121: "u1", 5122: "i2", 5123: "u2", 5125: "u4", 5126: "f4"}
CODES = {kind: code for code, kind in COMPONENTS.items()}
WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}
KINDS = {width: kind for kind, width in WIDTHS.items()}
ARRAY_BUFFER, ELEMENT_ARRAY_BUFFER = 34962, 34963
MAX_NODES, MAX_DEPTH = 20_000, 64
# They change where the vertices are; other extensions change how a surface looks, and may be ignored.
PACKED = ("KHR_draco_mesh_compression", "EXT_meshopt_compression", "KHR_meshopt_compression")


@contextmanager
def sound(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong while an untrusted glTF file is taken apart into one InputError that names it."""
    try:
        with np.errstate(all="ignore"):
            yield
    except InputError as error:
        if str(path) in str(error):
            raise
        raise InputError(f"{path}: {error}") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError, struct.error) as error:
        raise InputError(f"{path} is not a sound glTF file ({type(error).__name__}: {error})") from error


class GltfFile:
    """A glTF file with its buffers. Methods raise anything that `sound` turns into an InputError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        data = memoryview(read_bytes(path))
        if path.suffix.lower() == ".gltf":
            self.document, self._embedded = parse_json(bytes(data), str(path)), memoryview(b"")
        else:
            self.document, self._embedded = _chunks(data, str(path))
        if not isinstance(self.document, dict) or not str(self.document["asset"]["version"]).startswith("2."):
            raise ValueError("it is not of version 2")
        packed = [name for name in self.document.get("extensionsRequired", []) if name in PACKED]
        if packed:
            raise ValueError(f"it is compressed with {packed[0]}; export it without compression")
        self._buffers: dict[int, memoryview] = {}

    @property
    def stored_bytes(self) -> int:
        """Bytes of the buffers read so far."""
        return sum(len(buffer) for buffer in self._buffers.values())

    def item(self, kind: str, index: Any) -> dict[str, Any]:
        """One object of a list of the document, such as the third of `accessors`."""
        found = self.document[kind][natural(index)]
        if not isinstance(found, dict):
            raise ValueError(f"{kind} {index} is not an object")
        return found

    def instances(self) -> list[tuple[int, NDArray[np.float64]]]:
        """Number and [4, 4] world transform of each mesh that the default scene shows."""
        nodes, scenes = self.document.get("nodes", []), self.document.get("scenes")
        roots = range(len(nodes))
        if scenes:
            roots = scenes[natural(self.document.get("scene", 0))].get("nodes", [])
        if len(roots) > MAX_NODES:
            raise ValueError("its nodes are too many")
        found: list[tuple[int, NDArray[np.float64]]] = []
        matrices: dict[int, NDArray[np.float64]] = {}
        waiting = [(root, np.eye(4), 0) for root in reversed(roots)]
        visited = 0
        while waiting:
            index, parent, depth = waiting.pop()
            visited += 1
            if depth > MAX_DEPTH or visited > MAX_NODES:
                raise ValueError("its nodes are too many, nested too deep or refer to each other in a circle")
            node = self.item("nodes", index)
            if index not in matrices:
                matrices[index] = node_matrix(node)
            world = parent @ matrices[index]
            if "mesh" in node:
                found.append((natural(node["mesh"]), world))
            children = node.get("children", [])
            if len(children) + len(waiting) > MAX_NODES:
                raise ValueError("its nodes are too many")
            waiting += [(child, world, depth + 1) for child in reversed(children)]
        return found

    def accessor(self, index: Any, kind: str | None = None) -> NDArray[np.float64]:
        """[count, width] as float64, normalised integers mapped to -1 to 1. kind: the type it must have."""
        accessor = self.item("accessors", index)
        if kind and accessor["type"] != kind:
            raise ValueError(f"accessor {index} is of type {accessor['type']}, wanted {kind}")
        item, width = np.dtype("<" + COMPONENTS[accessor["componentType"]]), WIDTHS[accessor["type"]]
        count = natural(accessor["count"])
        if "bufferView" not in accessor:
            raise ValueError(f"accessor {index} has no data (or compressed data, which is not read)")
        values = self._rows(accessor, count, item, width).astype(np.float64)
        if "sparse" in accessor:
            sparse = accessor["sparse"]
            changed = natural(sparse["count"])
            places = np.dtype("<" + COMPONENTS[sparse["indices"]["componentType"]])
            at = self._rows(sparse["indices"], changed, places, 1)[:, 0].astype(np.int64)
            if len(at) and (at.min() < 0 or at.max() >= count):
                raise ValueError(f"the sparse values of accessor {index} lie outside it")
            values[at] = self._rows(sparse["values"], changed, item, width)
        return np.maximum(values / np.iinfo(item).max, -1) if accessor.get("normalized") else values

    def _rows(self, place: dict[str, Any], count: int, item: np.dtype, width: int) -> NDArray:
        """[count, width] view of the numbers that begin at a bufferView and byteOffset."""
        view = self.item("bufferViews", place["bufferView"])
        data, start = self._view(view), natural(place.get("byteOffset", 0))
        row = item.itemsize * width
        stride = natural(view.get("byteStride", row))
        if stride < row or (count and start + (count - 1) * stride + row > len(data)):
            raise ValueError(f"{count} rows of {stride} bytes reach beyond their buffer view")
        return np.ndarray((count, width), item, data, start, (stride, item.itemsize))

    def _view(self, view: dict[str, Any]) -> memoryview:
        if "EXT_meshopt_compression" in view.get("extensions", {}):
            raise ValueError("it is compressed with EXT_meshopt_compression; export it without compression")
        buffer = self._buffer(natural(view.get("buffer", 0)))
        start, length = natural(view.get("byteOffset", 0)), natural(view["byteLength"])
        if start + length > len(buffer):
            raise ValueError("a buffer view reaches beyond its buffer")
        return buffer[start : start + length]

    def _buffer(self, index: int) -> memoryview:
        if index not in self._buffers:
            buffer = self.item("buffers", index)
            uri = buffer.get("uri")
            self._buffers[index] = self._embedded if uri is None and index == 0 else memoryview(self._fetched(uri))
        return self._buffers[index]

    def _fetched(self, uri: Any) -> bytes:
        """What a URI stands for: data written into it, or a file in the folder of this one."""
        if not isinstance(uri, str) or not uri:
            raise ValueError(f"its data lie at {uri!r}, which is no address")
        if uri[:5].lower() == "data:":
            head, _, text = uri.partition(",")
            if not head.endswith(";base64"):
                raise ValueError("it holds data that are not base64")
            try:
                return base64.b64decode(text, validate=True)
            except binascii.Error as error:
                raise ValueError(f"its base64 data are damaged: {error}") from error
        if "://" in uri:
            raise ValueError(f"its data lie outside the file, at {uri[:80]!r}; put them beside it")
        # Several buffers may name the same large file.
        return read_bytes(inside(self.path.parent, unquote(uri)), MAX_FILE_BYTES - self.stored_bytes)

    def image(self, texture: Any) -> tuple[int, bytes] | None:
        """Number and encoded bytes of the picture of a texture; None for a texture without one that can be read."""
        found = self.item("textures", texture)
        source = found.get("extensions", {}).get("EXT_texture_webp", found).get("source", found.get("source"))
        if source is None:
            return None
        image = self.item("images", source)
        if "bufferView" in image:
            return source, bytes(self._view(self.item("bufferViews", image["bufferView"])))
        return source, self._fetched(image.get("uri"))


def _chunks(data: memoryview, name: str) -> tuple[dict[str, Any], memoryview]:
    if len(data) < 20 or data[:4] != MAGIC or data[16:20] != JSON_CHUNK:
        raise ValueError("it does not begin as glTF 2.0 does")
    version, total, length = struct.unpack("<III", data[4:16])
    if version != 2 or total > len(data) or length > min(total - 20, MAX_JSON_BYTES):
        raise ValueError(f"version {version}, {total} bytes announced, {len(data)} there")
    document = parse_json(bytes(data[20 : 20 + length]), name)
    head = data[20 + length : 28 + length]
    if len(head) < 8:
        return document, memoryview(b"")
    size = struct.unpack("<I", head[:4])[0]
    if head[4:] != BIN_CHUNK or 28 + length + size > len(data):
        raise ValueError("its binary part is cut short")
    return document, data[28 + length : 28 + length + size]


def natural(value: Any) -> int:
    """An index or size from the file. Python would take -1 as the last element, and a float as nothing at all."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 40:
        raise ValueError(f"{value!r} where an index or size should be")
    return value


def node_matrix(node: dict[str, Any]) -> NDArray[np.float64]:
    """[4, 4] parent from node."""
    if "matrix" in node:
        return np.array(node["matrix"], np.float64).reshape(4, 4).T
    matrix = np.eye(4)
    x, y, z, w = np.array(node.get("rotation", (0, 0, 0, 1)), np.float64)
    matrix[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    matrix[:3, :3] *= np.array(node.get("scale", (1, 1, 1)), np.float64)
    matrix[:3, 3] = node.get("translation", (0, 0, 0))
    return matrix


class GlbWriter:
    """Collects arrays and pictures into one buffer; `write` puts the document and the buffer into a .glb."""

    def __init__(self) -> None:
        self.accessors: list[dict[str, Any]] = []
        self._views: list[dict[str, Any]] = []
        self._chunks: list[bytes | memoryview] = []
        self._size = 0

    def array(self, values: NDArray, target: int | None = ARRAY_BUFFER, *, bounds: bool = False) -> int:
        """Add [count, width] or [count] numbers and return the number of their accessor; bounds: with min and max."""
        values = np.ascontiguousarray(values)
        width = 1 if values.ndim == 1 else values.shape[1]
        component = CODES[values.dtype.str[1:]]
        accessor = {"bufferView": self.view(values.data.cast("B") if values.size else b"", target)}
        accessor |= {"componentType": component, "count": len(values), "type": KINDS[width]}
        if bounds:
            low, high = values.reshape(-1, width).min(axis=0), values.reshape(-1, width).max(axis=0)
            accessor |= {"min": low.tolist(), "max": high.tolist()}
        self.accessors.append(accessor)
        return len(self.accessors) - 1

    def view(self, data: bytes | memoryview, target: int | None = None) -> int:
        """Add bytes, begun at a multiple of 4, and return the number of their buffer view."""
        view: dict[str, Any] = {"buffer": 0, "byteOffset": self._size, "byteLength": len(data)}
        self._views.append(view if target is None else view | {"target": target})
        pad = -len(data) % 4
        self._chunks += [data, bytes(pad)]
        self._size += len(data) + pad
        return len(self._views) - 1

    def write(self, path: Path, document: dict[str, Any], *, what: str = "mesh") -> None:
        """Write the file atomically; the document lacks only accessors, bufferViews and buffers."""
        document = document | {
            "accessors": self.accessors,
            "bufferViews": self._views,
            "buffers": [{"byteLength": self._size}],
        }
        text = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
        text += b" " * (-len(text) % 4)
        total = 12 + 8 + len(text) + 8 + self._size
        if total >= 1 << 32:
            raise InputError(f"{path}: a .glb file ends at 4 GiB, this {what} needs {total >> 20} MiB; make it smaller")
        with write_errors(path, f"write the {what}"), replacing(path) as file:
            file.write(MAGIC + struct.pack("<II", 2, total) + struct.pack("<I", len(text)) + JSON_CHUNK + text)
            file.write(struct.pack("<I", self._size) + BIN_CHUNK)
            for chunk in self._chunks:
                file.write(chunk)
