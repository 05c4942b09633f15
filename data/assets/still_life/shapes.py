"""Meshes of the still life: surfaces of revolution, rounded boxes, tubes, sheets. Metres, z up, table at z = 0."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Faces = NDArray[np.int64]


@dataclass(frozen=True)
class Shape:
    """Triangles with texture coordinates.

    vertices: [V, 3] metres.  uv: [V, 2], (0, 0) is the top-left texel corner.  faces: [F, 3], outside anticlockwise.
    Seams repeat a vertex with another uv.
    """

    vertices: Array
    uv: Array
    faces: Faces

    def placed(self, at: tuple[float, float, float], turn: float = 0.0, tilt: float = 0.0) -> Shape:
        """Tilted about x, turned about z (radians), then moved."""
        ct, st, cz, sz = np.cos(tilt), np.sin(tilt), np.cos(turn), np.sin(turn)
        about_x = np.array([[1, 0, 0], [0, ct, -st], [0, st, ct]])
        about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
        return replace(self, vertices=self.vertices @ (about_z @ about_x).T + np.array(at))

    def normals(self) -> Array:
        """[V, 3] smooth unit normals, equal on both sides of a seam."""
        _, group = np.unique(np.round(self.vertices, 6), axis=0, return_inverse=True)
        corners = self.vertices[self.faces]
        area = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        total = np.zeros((group.max() + 1, 3))
        for k in range(3):
            np.add.at(total, group.ravel()[self.faces[:, k]], area)
        normals = total[group.ravel()]
        return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-20)


def grid_faces(rows: int, columns: int) -> Faces:
    """Triangles [2 (rows-1) (columns-1), 3] of a row-major grid of vertices; anticlockwise with rows going down."""
    a = (np.arange(rows - 1)[:, None] * columns + np.arange(columns - 1)).ravel()
    b, c, d = a + 1, a + columns, a + columns + 1
    return np.concatenate([np.stack([a, c, b], 1), np.stack([b, c, d], 1)])


def smooth_profile(points: list[tuple[float, float]], samples: int) -> Array:
    """[samples, 2] (radius, height) along a Catmull-Rom curve through the points, evenly spaced by arc length."""
    p = np.array(points, dtype=float)
    padded = np.concatenate([2 * p[:1] - p[1:2], p, 2 * p[-1:] - p[-2:-1]])
    t = np.linspace(0, 1, 32, endpoint=False)[:, None]
    pieces = []
    for i in range(len(p) - 1):
        a, b, c, d = padded[i : i + 4]
        pieces.append(0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - 3 * c + d - a) * t**3))
    dense = np.concatenate([*pieces, p[-1:]])
    dense[:, 0] = np.maximum(dense[:, 0], 0.0)
    return resampled(dense, samples)


def resampled(curve: Array, samples: int) -> Array:
    """The polyline [P, D] as [samples, D] evenly spaced by arc length."""
    length = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(curve, axis=0), axis=1))])
    at = np.linspace(0, length[-1], samples)
    return np.stack([np.interp(at, length, curve[:, k]) for k in range(curve.shape[1])], axis=1)


def revolve(profile: Array, segments: int, displace: Callable[[Array], Array] | None = None) -> Shape:
    """A profile (radius, height) from top to bottom turned about z; `displace` moves points [P, 3] afterwards."""
    angle = np.linspace(0, 2 * np.pi, segments + 1)
    radius, height = profile[:, 0, None], profile[:, 1, None]
    points = np.stack([radius * np.cos(angle), radius * np.sin(angle), height + 0 * angle], axis=-1)
    v = np.linspace(0, 1, len(profile))[:, None] + 0 * angle
    uv = np.stack([np.linspace(0, 1, segments + 1) + 0 * v, v], axis=-1).reshape(-1, 2)
    vertices = points.reshape(-1, 3)
    if displace is not None:
        vertices = displace(vertices)
    return Shape(vertices, uv, grid_faces(len(profile), segments + 1))


def rounded_box(size: tuple[float, float, float], radius: float, cells: int = 10) -> Shape:
    """A box centred on the origin whose edges are rounded. Faces +x -x +y -y +z -z lie in a 3 x 2 texture atlas."""
    half = np.array(size) / 2
    ease = np.sin(np.linspace(-np.pi / 2, np.pi / 2, cells + 1))  # vertices gather where the rounding is
    frames = [(0, 1, 2, 1), (0, 1, 2, -1), (1, 0, 2, -1), (1, 0, 2, 1), (2, 0, 1, 1), (2, 0, 1, -1)]
    vertices, uvs, faces = [], [], []
    for side, (axis, across, up, sign) in enumerate(frames):
        outward = 1 if side % 2 == 0 else -1
        v, u = np.meshgrid(ease, ease, indexing="ij")
        points = np.zeros((cells + 1, cells + 1, 3))
        points[..., axis] = outward
        points[..., across] = u * sign
        points[..., up] = -v
        points = points.reshape(-1, 3) * half
        core = np.clip(points, -(half - radius), half - radius)
        away = points - core
        away /= np.maximum(np.linalg.norm(away, axis=1, keepdims=True), 1e-12)
        vertices.append(core + radius * away)
        inset = 0.02  # keeps the neighbouring atlas cell out of the texture filter
        cell = np.stack([u, v], -1).reshape(-1, 2) * (0.5 - inset) + 0.5
        uvs.append((cell + np.array([side % 3, side // 3])) / np.array([3, 2]))
        faces.append(grid_faces(cells + 1, cells + 1) + side * (cells + 1) ** 2)
    return Shape(np.concatenate(vertices), np.concatenate(uvs), np.concatenate(faces))


def tube(path: Array, radii: Array, segments: int = 14) -> Shape:
    """A round tube along a path [P, 3] with a radius [P] at each point; its ends are left open."""
    tangent = np.gradient(path, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    side = np.cross(tangent, np.array([0.31, 0.95, 0.05]))
    side /= np.linalg.norm(side, axis=1, keepdims=True)
    other = np.cross(tangent, side)
    angle = np.linspace(0, 2 * np.pi, segments + 1)[None, :, None]
    ring = np.cos(angle) * side[:, None] + np.sin(angle) * other[:, None]
    vertices = path[:, None] + radii[:, None, None] * ring
    v, u = np.meshgrid(np.linspace(0, 1, len(path)), np.linspace(0, 1, segments + 1), indexing="ij")
    return Shape(
        vertices.reshape(-1, 3), np.stack([u, v], -1).reshape(-1, 2), grid_faces(len(path), segments + 1)[:, ::-1]
    )


def sheet(size: tuple[float, float], cells: tuple[int, int], height: Callable[[Array], Array] | None = None) -> Shape:
    """A horizontal rectangle around the origin, seen from above; `height` gives z from x and y [P, 2]."""
    y, x = np.meshgrid(
        np.linspace(size[1] / 2, -size[1] / 2, cells[1] + 1),
        np.linspace(-size[0] / 2, size[0] / 2, cells[0] + 1),
        indexing="ij",
    )
    flat = np.stack([x, y], -1).reshape(-1, 2)
    z = np.zeros(len(flat)) if height is None else height(flat)
    uv = flat * np.array([1, -1]) / np.array(size) + 0.5
    return Shape(np.column_stack([flat, z]), uv, grid_faces(cells[1] + 1, cells[0] + 1))


def joined(shapes: list[Shape]) -> Shape:
    """Several shapes as one; they share a texture."""
    starts = np.cumsum([0, *(len(s.vertices) for s in shapes[:-1])])
    return Shape(
        np.concatenate([s.vertices for s in shapes]),
        np.concatenate([s.uv for s in shapes]),
        np.concatenate([s.faces + start for s, start in zip(shapes, starts)]),
    )


def write_ply(path: Path, vertices: Array, faces: Faces, normals: Array | None = None, uv: Array | None = None) -> None:
    """Binary little-endian PLY in float32, with normals and texture coordinates where given."""
    columns = [vertices, *(extra for extra in (normals, uv) if extra is not None)]
    names = [
        "x",
        "y",
        "z",
        *(["nx", "ny", "nz"] if normals is not None else []),
        *(["u", "v"] if uv is not None else []),
    ]
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(vertices)}"]
    header += [f"property float {name}" for name in names]
    header += [f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header", ""]
    records = np.zeros(len(faces), dtype=[("count", "u1"), ("index", "<i4", (3,))])
    records["count"], records["index"] = 3, faces
    with path.open("wb") as file:
        file.write("\n".join(header).encode())
        file.write(np.concatenate(columns, axis=1).astype("<f4").tobytes())
        file.write(records.tobytes())
