"""Wavefront OBJ with its MTL: colours behind the coordinates (x y z r g b), or a texture; +Y up as tools take it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scene.errors import InputError
from scene.files import replacing, write_errors
from scene.formats.materials import Surface, dressed, srgb_to_linear
from scene.formats.pictures import PicturesBeside, encode_png, picture_path, write_picture
from scene.formats.polygons import fans
from scene.mesh import Mesh
from scene.untrusted import inside, open_regular, read_bytes

log = logging.getLogger(__name__)

MAX_MTL_BYTES = 16 << 20
MAX_LIBRARIES = 16
NORMAL_MAPS = (b"norm", b"map_kn")
# Options of a map come before its name, each with this many words.
MAP_OPTIONS = {b"-s": 3, b"-o": 3, b"-t": 3, b"-mm": 2, b"-bm": 1, b"-clamp": 1, b"-blendu": 1, b"-blendv": 1}


def write_obj(path: Path, mesh: Mesh) -> None:
    """Write vertices and faces; of a textured mesh also uvs, and first the .mtl and the PNGs beside it.

    Vertex colours go only into an untextured file. The normal map goes as `norm`, occlusion has no word in an .mtl.
    """
    rows = [f"{x:.9g} {y:.9g} {z:.9g}" for x, y, z in mesh.vertices.tolist()]
    if mesh.colors is not None and mesh.material is None:
        colors = (mesh.colors / 255).tolist()
        rows = [f"{row} {r:.6g} {g:.6g} {b:.6g}" for row, (r, g, b) in zip(rows, colors, strict=True)]
    lines = ["# Maquette"]
    if mesh.material is not None:
        lines += [f"mtllib {_write_mtl(path, mesh)}", "usemtl surface"]
    lines += [f"v {row}" for row in rows]
    faces = mesh.faces + 1
    if mesh.uvs is None:
        lines += ["s 1", *(f"f {a} {b} {c}" for a, b, c in faces.tolist())]
    else:
        places, index = np.unique(mesh.uvs.reshape(-1, 2), axis=0, return_inverse=True)
        lines += [f"vt {u:.9g} {v:.9g}" for u, v in places.tolist()]
        both = np.stack([faces, index.reshape(-1, 3) + 1], axis=2).reshape(-1, 6)
        lines += ["s 1", *(f"f {a}/{i} {b}/{j} {c}/{k}" for a, i, b, j, c, k in both.tolist())]
    with write_errors(path, "write the mesh"), replacing(path) as file:
        file.write(("\n".join(lines) + "\n").encode("ascii"))


def _write_mtl(path: Path, mesh: Mesh) -> str:
    """The .mtl and its pictures, pictures first; returns the name of the .mtl."""
    assert mesh.material is not None
    lines = ["# Maquette", "newmtl surface", "Ka 0 0 0", "Kd 1 1 1", "Ks 0 0 0", "Pr 1", "Pm 0", "d 1", "illum 1"]
    base = picture_path(path, "base_color")
    write_picture(base, encode_png(mesh.material.base_color))
    lines.append(f"map_Kd {base.name}")
    if mesh.material.normal is not None:
        normal = picture_path(path, "normal")
        write_picture(normal, encode_png(mesh.material.normal))
        lines.append(f"norm {normal.name}")
    library = picture_path(path, "material", ".mtl")
    with write_errors(library, "write the material"), replacing(library) as file:
        file.write(("\n".join(lines) + "\n").encode("ascii"))
    return library.name


@dataclass
class _Lines:
    """What the lines of an .obj hold, collected."""

    positions: list[list[bytes]] = field(default_factory=list)
    uvs: list[list[bytes]] = field(default_factory=list)
    corners: list[int] = field(default_factory=list)  # from 0
    uv_corners: list[int] = field(default_factory=list)  # from 0; -1 where a corner has none
    counts: list[int] = field(default_factory=list)  # corners of each polygon
    materials: list[int] = field(default_factory=list)  # of each polygon, into names
    names: dict[bytes, int] = field(default_factory=lambda: {b"": 0})
    libraries: list[bytes] = field(default_factory=list)

    def polygon(self, words: list[bytes], material: int) -> None:
        """A face: `v`, `v/t`, `v//n` or `v/t/n` each; negative numbers count back from the last one so far."""
        for word in words:
            place, _, rest = word.partition(b"/")
            uv = rest.partition(b"/")[0]
            self.corners.append(_index(place, len(self.positions)))
            self.uv_corners.append(_index(uv, len(self.uvs)) if uv else -1)
        self.counts.append(len(words))
        self.materials.append(material)


def _index(word: bytes, count: int) -> int:
    number = int(word)
    if number == 0 or number < -count:
        raise ValueError(f"an index {number} where {count} rows have come so far")
    return number - 1 if number > 0 else count + number


def read_obj(path: Path) -> Mesh:
    """Read vertices, colours, uvs, faces and materials; polygons are cut into fans.

    Of a material counts the picture (`map_Kd`) or else the colour (`Kd`), and a `norm` map. A picture or .mtl that is
    not in the file's folder is left out with a warning. Raises InputError or ValueError for a bad file.
    """
    found = _read_lines(path)
    widths = {len(row) for row in found.positions}
    if not widths <= {3, 6}:
        raise InputError(f"{path} has a vertex without three coordinates")
    coloured = widths == {6}
    values = np.array([row[: 6 if coloured else 3] for row in found.positions], dtype=np.float64)
    values = values.reshape(-1, 6 if coloured else 3)
    colors = np.round(255 * np.clip(np.nan_to_num(values[:, 3:]), 0, 1)).astype(np.uint8) if coloured else None
    counts, corners = np.array(found.counts, np.int64), np.array(found.corners, np.int64)
    faces = fans(counts, corners, len(values))
    triangles = fans(counts, np.arange(len(corners)), len(corners))
    mesh = Mesh(values[:, :3], faces, colors, _uvs(found, triangles))
    surfaces = _surfaces(path, found)
    return dressed(mesh, np.repeat(np.array(found.materials, np.int64), np.maximum(counts - 2, 0)), surfaces)


def _read_lines(path: Path) -> _Lines:
    found = _Lines()
    material = 0
    with open_regular(path) as file:
        for words in _statements(file):
            match words[0]:
                case b"v":
                    found.positions.append(words[1:7] if len(words) >= 7 else words[1:4])
                case b"vt":
                    found.uvs.append(words[1:3] if len(words) >= 3 else [*words[1:2], b"0"])
                case b"f":
                    found.polygon(words[1:], material)
                case b"usemtl":
                    material = found.names.setdefault(b" ".join(words[1:]), len(found.names))
                case b"mtllib" if len(found.libraries) < MAX_LIBRARIES:
                    found.libraries.append(b" ".join(words[1:]))
                case _:
                    pass  # normals, groups, curves
    return found


def _statements(lines: Iterable[bytes]) -> Iterator[list[bytes]]:
    """The words of each line that has any; a line that ends with a backslash goes on in the next."""
    carried: list[bytes] = []
    for line in lines:
        words = line.split()
        if words and words[-1] == b"\\":
            carried += words[:-1]
            continue
        if carried:
            words, carried = carried + words, []
        if words:
            yield words


def _uvs(found: _Lines, triangles: NDArray[np.int32]) -> NDArray[np.float32] | None:
    """[F, 3, 2]; zero at corners without one, None where no corner has one."""
    index = np.array(found.uv_corners, np.int64)
    if not len(index) or index.max() < 0:
        return None
    if index.max() >= len(found.uvs):
        raise ValueError(f"faces point to uv {index.max() + 1}, there are {len(found.uvs)}")
    places = np.array([*found.uvs, [b"0", b"0"]], dtype=np.float64)
    return np.nan_to_num(places, posinf=0, neginf=0)[index[triangles]].astype(np.float32)  # -1 is the last row


def _surfaces(path: Path, found: _Lines) -> list[Surface]:
    """One surface for each material name that faces use; a plain one where no library describes it."""
    described: dict[bytes, Surface] = {}
    pictures = PicturesBeside(path)
    for words in found.libraries:
        # The specification allows several names in a line, and writers leave spaces in one.
        for name in [words] if _library(path, words) else words.split():
            library = _library(path, name)
            if library is None:
                log.warning("%s: its material library %r is not beside it", path.name, name.decode("utf-8", "replace"))
            else:
                described |= _read_mtl(library, pictures, found.names)
    return [described.get(name, Surface()) for name in found.names]


def _library(path: Path, name: bytes) -> Path | None:
    try:
        library = inside(path.parent, name.decode("utf-8", "replace"))
        return library if library.is_file() else None
    except (InputError, OSError, ValueError):
        return None


def _read_mtl(path: Path, pictures: PicturesBeside, wanted: dict[bytes, int]) -> dict[bytes, Surface]:
    """The materials of a library by name, those that are wanted."""
    described: dict[bytes, Surface] = {}
    name: bytes | None = None
    for line in read_bytes(path, MAX_MTL_BYTES).splitlines():
        words = line.split()
        if not words:
            continue
        key = words[0].lower()
        if key == b"newmtl":
            name = b" ".join(words[1:])
            name = name if name in wanted else None
            if name is not None:
                described[name] = Surface()
        elif name is not None and key in (b"kd", b"map_kd", *NORMAL_MAPS):
            described[name] = _with_line(described[name], key, words[1:], pictures)
    return described


def _with_line(surface: Surface, key: bytes, words: list[bytes], pictures: PicturesBeside) -> Surface:
    if key == b"kd":
        shades = [min(max(float(word), 0.0), 1.0) for word in words[:3]]
        if len(shades) < 3 or surface.base_color is not None:
            return surface
        r, g, b = srgb_to_linear(np.round(255 * np.nan_to_num(shades)).astype(np.uint8)).tolist()
        return Surface((r, g, b), None, surface.normal)
    while words and words[0].lower() in MAP_OPTIONS:
        words = words[1 + MAP_OPTIONS[words[0].lower()] :]
    picture = pictures.get(b" ".join(words).decode("utf-8", "replace"))
    if key == b"map_kd":
        # Exporters leave a grey Kd beside a picture and mean the picture alone.
        return surface if picture is None else Surface(base_color=picture, normal=surface.normal)
    return Surface(surface.factor, surface.base_color, picture)
