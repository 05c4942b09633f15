"""Wavefront OBJ: colours behind the coordinates (x y z r g b); the scene's own axes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from scene.errors import InputError
from scene.files import replacing, write_errors
from scene.formats.polygons import fans
from scene.mesh import Mesh


def write_obj(path: Path, mesh: Mesh) -> None:
    """Write vertices, with their colours where there are any, and faces."""
    rows = [f"{x:.9g} {y:.9g} {z:.9g}" for x, y, z in mesh.vertices.tolist()]
    if mesh.colors is not None:
        colors = (mesh.colors / 255).tolist()
        rows = [f"{row} {r:.6g} {g:.6g} {b:.6g}" for row, (r, g, b) in zip(rows, colors, strict=True)]
    lines = ["# Maquette", *(f"v {row}" for row in rows)]
    lines += [f"f {a} {b} {c}" for a, b, c in (mesh.faces + 1).tolist()]
    with write_errors(path, "write the mesh"), replacing(path) as file:
        file.write(("\n".join(lines) + "\n").encode("ascii"))


def read_obj(path: Path) -> Mesh:
    """Read vertices, colours and faces; polygons are cut into fans. Raises InputError or ValueError for a bad file."""
    positions: list[list[bytes]] = []
    corners: list[int] = []
    counts: list[int] = []
    with path.open("rb") as file:
        for line in file:
            words = line.split()
            if not words:
                continue
            if words[0] == b"v":
                positions.append(words[1:7] if len(words) >= 7 else words[1:4])
            elif words[0] == b"f":
                # "v", "v/t", "v//n" or "v/t/n"; negative numbers count back from the last vertex so far.
                polygon = [int(word.split(b"/", 1)[0]) for word in words[1:]]
                corners += [i - 1 if i > 0 else len(positions) + i if i < 0 else -1 for i in polygon]
                counts.append(len(polygon))
    widths = {len(row) for row in positions}
    if not widths <= {3, 6}:
        raise InputError(f"{path} has a vertex without three coordinates")
    coloured = widths == {6}
    values = np.array([row[: 6 if coloured else 3] for row in positions], dtype=np.float64)
    colors = np.round(255 * np.clip(np.nan_to_num(values[:, 3:]), 0, 1)).astype(np.uint8) if coloured else None
    faces = fans(np.array(counts, np.int64), np.array(corners, np.int64), len(values))
    return Mesh(values.reshape(-1, values.shape[1] if len(values) else 3)[:, :3], faces, colors)
