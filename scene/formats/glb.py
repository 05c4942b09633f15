"""Binary glTF 2.0 (.glb): one coloured triangle mesh out, any triangles in.

Units and axes are glTF's own here (+Y up, colours linear); `scene/formats` turns the scene to them.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scene.errors import InputError
from scene.files import replacing, write_errors
from scene.mesh import Mesh, select_faces

MAGIC, JSON_CHUNK, BIN_CHUNK = b"glTF", b"JSON", b"BIN\x00"
FLOAT, UNSIGNED_BYTE, UNSIGNED_SHORT, UNSIGNED_INT = 5126, 5121, 5123, 5125
COMPONENTS = {5120: "i1", 5121: "u1", 5122: "i2", 5123: "u2", 5125: "u4", 5126: "f4"}
WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}
ARRAY_BUFFER, ELEMENT_ARRAY_BUFFER = 34962, 34963
MAX_JSON_BYTES = 64 << 20
MAX_NODES, MAX_DEPTH = 20_000, 64
MAX_CORNERS = 1 << 26  # summed over all instances: a few nodes may repeat one mesh without end


def srgb_to_linear(srgb: NDArray[np.uint8]) -> NDArray[np.float32]:
    """sRGB bytes to linear light in 0 to 1 (IEC 61966-2-1)."""
    x = srgb.astype(np.float64) / 255
    return np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4).astype(np.float32)


def linear_to_srgb(linear: NDArray) -> NDArray[np.uint8]:
    """Linear light, clipped to 0 to 1, to the nearest sRGB byte."""
    x = np.clip(np.nan_to_num(linear.astype(np.float64)), 0, 1)
    srgb = np.where(x <= 0.0031308, 12.92 * x, 1.055 * x ** (1 / 2.4) - 0.055)
    return np.round(255 * srgb).astype(np.uint8)


def write_glb(path: Path, mesh: Mesh, *, double_sided: bool) -> None:
    """Write a mesh that already stands +Y up; rough, not metallic, vertex colours as linear floats. Atomic."""
    chunks = [
        (mesh.vertices.astype("<f4"), "VEC3", FLOAT, ARRAY_BUFFER, "POSITION"),
        (mesh.vertex_normals.astype("<f4"), "VEC3", FLOAT, ARRAY_BUFFER, "NORMAL"),
    ]
    # A zero normal is not valid glTF; any unit vector does for a vertex without an area.
    chunks[1][0][~np.any(chunks[1][0], axis=1)] = (0, 1, 0)
    if mesh.colors is not None:
        chunks.append((srgb_to_linear(mesh.colors).astype("<f4"), "VEC3", FLOAT, ARRAY_BUFFER, "COLOR_0"))
    chunks.append((mesh.faces.reshape(-1).astype("<u4"), "SCALAR", UNSIGNED_INT, ELEMENT_ARRAY_BUFFER, "indices"))
    views, accessors, offset = [], [], 0
    for data, kind, component, target, name in chunks:
        views.append({"buffer": 0, "byteOffset": offset, "byteLength": data.nbytes, "target": target})
        accessor: dict[str, Any] = {
            "bufferView": len(accessors),
            "componentType": component,
            "count": len(data),
            "type": kind,
        }
        if name == "POSITION":
            accessor |= {"min": data.min(axis=0).tolist(), "max": data.max(axis=0).tolist()}
        accessors.append(accessor)
        offset += data.nbytes  # all are multiples of 4 bytes
    attributes = {name: i for i, (*_, name) in enumerate(chunks) if name != "indices"}
    material: dict[str, Any] = {"pbrMetallicRoughness": {"metallicFactor": 0.0, "roughnessFactor": 1.0}}
    if double_sided:
        material["doubleSided"] = True
    primitive = {"attributes": attributes, "indices": len(chunks) - 1, "material": 0, "mode": 4}
    document = {
        "asset": {"version": "2.0", "generator": "Maquette"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [primitive]}],
        "materials": [material],
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": offset}],
    }
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    total = 12 + 8 + len(text) + 8 + offset
    if total >= 1 << 32:
        raise InputError(f"{path}: a .glb file ends at 4 GiB, this mesh needs {total >> 20} MiB; decimate it first")
    with write_errors(path, "write the mesh"), replacing(path) as file:
        file.write(MAGIC + struct.pack("<II", 2, total) + struct.pack("<I", len(text)) + JSON_CHUNK + text)
        file.write(struct.pack("<I", offset) + BIN_CHUNK)
        for data, *_ in chunks:
            file.write(np.ascontiguousarray(data).data)


def read_glb(path: Path) -> Mesh:
    """All triangles of the default scene in one mesh, in glTF's axes; vertex colours where every part has them.

    Raises InputError for what is not a sound glTF 2.0 file, and for what is not read: compressed or sparse accessors,
    buffers outside the file.
    """
    try:
        document, binary = _chunks(path)
        return _Reader(document, binary).mesh()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, struct.error, RecursionError) as error:
        raise InputError(f"{path} is not a sound .glb file ({type(error).__name__}: {error})") from error


def _chunks(path: Path) -> tuple[dict[str, Any], memoryview]:
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(20)
        if len(head) < 20 or head[:4] != MAGIC or head[16:20] != JSON_CHUNK:
            raise ValueError("it does not begin as glTF 2.0 does")
        version, total, length = struct.unpack("<III", head[4:16])
        if version != 2 or total > size or length > min(total - 20, MAX_JSON_BYTES):
            raise ValueError(f"version {version}, {total} bytes announced, {size} there")
        document = json.loads(file.read(length))
        head = file.read(8)
        if len(head) < 8:
            return document, memoryview(b"")
        length = struct.unpack("<I", head[:4])[0]
        if head[4:] != BIN_CHUNK or length > size - file.tell():
            raise ValueError("its binary part is cut short")
        return document, memoryview(file.read(length))


class _Reader:
    def __init__(self, document: dict[str, Any], binary: memoryview) -> None:
        self.document, self.binary = document, binary
        self.instances: list[tuple[int, NDArray[np.float64]]] = []  # mesh number, world from mesh
        self.visited = self.corners = 0

    def mesh(self) -> Mesh:
        nodes = self.document.get("nodes", [])
        scenes = self.document.get("scenes")
        roots = scenes[self.document.get("scene", 0)].get("nodes", []) if scenes else list(range(len(nodes)))
        for root in roots:
            self._node(root, np.eye(4), 0)
        parts: list[Mesh] = []
        for number, world in self.instances:
            for primitive in self.document["meshes"][number]["primitives"]:
                part = self._primitive(primitive)
                if part is not None:
                    parts.append(part.transformed(world))
        if not parts:
            raise ValueError("no triangles in it")
        starts = np.cumsum([0] + [len(p.vertices) for p in parts[:-1]])
        colors = [p.colors for p in parts if p.colors is not None]
        return Mesh(
            np.concatenate([p.vertices for p in parts]),
            np.concatenate([p.faces + start for p, start in zip(parts, starts, strict=True)]),
            np.concatenate(colors) if len(colors) == len(parts) else None,
        )

    def _node(self, index: int, parent: NDArray[np.float64], depth: int) -> None:
        self.visited += 1
        if depth > MAX_DEPTH or self.visited > MAX_NODES:
            raise ValueError("its nodes are nested too deep or refer to each other in a circle")
        node = self.document["nodes"][_natural(index)]
        world = parent @ _matrix(node)
        if "mesh" in node:
            self.instances.append((_natural(node["mesh"]), world))
        for child in node.get("children", []):
            self._node(child, world, depth + 1)

    def _primitive(self, primitive: dict[str, Any]) -> Mesh | None:
        mode = primitive.get("mode", 4)
        if mode not in (4, 5, 6):
            return None  # points and lines
        if "KHR_draco_mesh_compression" in primitive.get("extensions", {}):
            raise ValueError("it is compressed with Draco; export it without compression")
        attributes = primitive["attributes"]
        vertices = self._accessor(attributes["POSITION"], "VEC3")
        indices = np.arange(len(vertices))
        if "indices" in primitive:
            indices = self._accessor(primitive["indices"], "SCALAR")[:, 0].astype(np.int64)
        self.corners += len(indices) + len(vertices)
        if self.corners > MAX_CORNERS:
            raise ValueError(f"more than {MAX_CORNERS} corners")
        if mode == 4:
            faces = indices[: len(indices) // 3 * 3].reshape(-1, 3)
        elif mode == 5:  # a strip turns every other triangle
            faces = np.stack([indices[:-2], indices[1:-1], indices[2:]], axis=1)
            faces[1::2] = faces[1::2, ::-1]
        else:
            faces = np.stack([np.full(max(0, len(indices) - 2), indices[:1]), indices[1:-1], indices[2:]], axis=1)
        colors = None
        if "COLOR_0" in attributes:
            colors = linear_to_srgb(self._accessor(attributes["COLOR_0"])[:, :3])
        if len(faces) and (faces.min() < 0 or faces.max() >= len(vertices)):
            raise ValueError(f"faces point to vertex {faces.max()}, there are {len(vertices)}")
        mesh = Mesh(vertices, faces.astype(np.int32), colors)
        return select_faces(mesh, np.arange(len(faces)))  # buffers are often shared: only the vertices of this part

    def _accessor(self, index: int, kind: str | None = None) -> NDArray[np.float64]:
        """[count, width] as float64, normalised integers mapped to 0 to 1."""
        accessor = self.document["accessors"][_natural(index)]
        if "sparse" in accessor or (kind and accessor["type"] != kind):
            raise ValueError(f"accessor {index} is sparse or of type {accessor['type']}, wanted {kind}")
        item, width = np.dtype("<" + COMPONENTS[accessor["componentType"]]), WIDTHS[accessor["type"]]
        count = _natural(accessor["count"])
        if "bufferView" not in accessor:
            raise ValueError(f"accessor {index} has no data (or compressed data, which is not read)")
        view = self.document["bufferViews"][_natural(accessor["bufferView"])]
        if view.get("buffer", 0) != 0 or "uri" in self.document["buffers"][0]:
            raise ValueError("its data lie outside the file")
        start = _natural(view.get("byteOffset", 0)) + _natural(accessor.get("byteOffset", 0))
        stride = _natural(view.get("byteStride", item.itemsize * width))
        row = item.itemsize * width
        stop = min(_natural(view.get("byteOffset", 0)) + _natural(view["byteLength"]), len(self.binary))
        if stride < row or (count and start + (count - 1) * stride + row > stop):
            raise ValueError(f"accessor {index} reaches beyond its buffer")
        rows = np.ndarray((count, width), item, self.binary, start, (stride, item.itemsize))
        values = rows.astype(np.float64)
        return values / np.iinfo(item).max if accessor.get("normalized") else values


def _natural(value: Any) -> int:
    """An index or size from the file. Python would take -1 as the last element, and a float as nothing at all."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 40:
        raise ValueError(f"{value!r} where an index or size should be")
    return value


def _matrix(node: dict[str, Any]) -> NDArray[np.float64]:
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
