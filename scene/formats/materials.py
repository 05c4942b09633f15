"""Between a file's materials and ours: many to one on reading, a texture to vertex colours on writing.

A `Mesh` has one material. A file with several gets an atlas: the pictures side by side, the uvs moved into them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from scene.mesh import Material, Mesh
from scene.untrusted import MAX_TEXTURE_PIXELS

MAX_ATLAS = 8192  # px
BORDER = 4  # px of repeated edge around each picture of an atlas: linear sampling and two mip levels stay inside
MAX_SURFACES = 4096  # in one atlas
FLAT = 8  # px, side of the field of a material without a picture
MAX_TILES = 64  # a picture that one face repeats more often is finer than the atlas could show: its mean colour stands
WHITE = (1.0, 1.0, 1.0)


def srgb_to_linear(srgb: NDArray[np.uint8]) -> NDArray[np.float32]:
    """sRGB bytes to linear light in 0 to 1 (IEC 61966-2-1)."""
    x = np.arange(256) / 255.0
    curve = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4).astype(np.float32)
    return curve[srgb]


def linear_to_srgb(linear: NDArray) -> NDArray[np.uint8]:
    """Linear light, clipped to 0 to 1, to the nearest sRGB byte."""
    x = np.clip(np.nan_to_num(linear.astype(np.float64)), 0, 1)
    srgb = np.where(x <= 0.0031308, 12.92 * x, 1.055 * x ** (1 / 2.4) - 0.055)
    return np.round(255 * srgb).astype(np.uint8)


@dataclass(frozen=True, eq=False)
class Surface:
    """One material of a file. factor: linear light, multiplies the picture; pictures as in `Material`, or None."""

    factor: tuple[float, float, float] = WHITE
    base_color: NDArray[np.uint8] | None = None
    normal: NDArray[np.uint8] | None = None
    occlusion: NDArray[np.uint8] | None = None

    @property
    def flat(self) -> bool:
        """Whether it has no picture, so that it needs no uvs."""
        return self.base_color is None and self.normal is None and self.occlusion is None

    def tinted(self) -> NDArray[np.uint8]:
        """[H, W, 3] sRGB: the picture times the factor; a single texel where there is no picture."""
        factor = np.clip(np.nan_to_num(np.array(self.factor, np.float64)), 0, 1)
        if self.base_color is None:
            size = next((p.shape[:2] for p in (self.normal, self.occlusion) if p is not None), (1, 1))
            return np.broadcast_to(linear_to_srgb(factor), (*size, 3)).copy()
        if (factor == 1).all():
            return self.base_color
        every = srgb_to_linear(np.arange(256, dtype=np.uint8))
        curves = linear_to_srgb(every[:, None] * factor)  # [256, 3]
        return np.stack([curves[self.base_color[..., i], i] for i in range(3)], axis=-1)


def dressed(mesh: Mesh, surface_of_face: NDArray[np.integer], surfaces: Sequence[Surface]) -> Mesh:
    """The mesh with one material in which each face looks as its own surface says; without pictures, in vertex colours.

    surface_of_face: [F] index into surfaces. With one surface the uvs stay as they are (they may repeat the picture by
    leaving 0 to 1). With several the pictures lie side by side in an atlas, and a surface without a picture has a field
    of its colour there; all shrink where they would not fit 8192 px. Vertex colours count where no face has a picture.
    """
    used = [int(i) for i in np.unique(surface_of_face)]
    flat = all(surfaces[i].flat for i in used)
    if flat and (mesh.colors is not None or len({surfaces[i].factor for i in used}) <= 1):
        return replace(mesh, colors=_tinted_colors(mesh, surface_of_face, surfaces))
    if len({id(surfaces[i]) for i in used}) == 1:
        if mesh.uvs is None:
            return mesh
        surface = surfaces[used[0]]
        material = Material(surface.tinted(), _like(surface.normal, 3), _like(surface.occlusion, 0))
        return replace(mesh, colors=None, material=material)
    uvs = np.zeros((len(mesh.faces), 3, 2), np.float32) if mesh.uvs is None else mesh.uvs
    uvs, material = _atlas(uvs, surface_of_face, [(i, surfaces[i]) for i in used])
    return replace(mesh, colors=None, uvs=uvs, material=material)


def _tinted_colors(
    mesh: Mesh, surface_of_face: NDArray[np.integer], surfaces: Sequence[Surface]
) -> NDArray[np.uint8] | None:
    """Vertex colours times the factor of a face at each vertex; factors alone colour every vertex."""
    factors = np.clip(np.nan_to_num(np.array([surface.factor for surface in surfaces], np.float64)), 0, 1)
    if (factors[np.unique(surface_of_face)] == 1).all():
        return mesh.colors
    of_vertex = np.ones(mesh.vertices.shape)
    of_vertex[mesh.faces.reshape(-1)] = factors[np.repeat(surface_of_face, 3)]
    return linear_to_srgb(of_vertex if mesh.colors is None else srgb_to_linear(mesh.colors) * of_vertex)


def _like(picture: NDArray[np.uint8] | None, channels: int) -> NDArray[np.uint8] | None:
    """A picture of any number of channels as [H, W, 3] or, for 0, its first channel [H, W]."""
    if picture is None or (picture.ndim == 3) == bool(channels):
        return picture
    return picture[..., 0] if picture.ndim == 3 else np.repeat(picture[..., None], 3, axis=-1)


def _atlas(
    uvs: NDArray[np.float32], surface_of_face: NDArray[np.integer], used: list[tuple[int, Surface]]
) -> tuple[NDArray[np.float32], Material]:
    if len(used) > MAX_SURFACES:
        raise ValueError(f"it has {len(used)} materials, more than the {MAX_SURFACES} that are joined into one texture")
    moved = uvs.astype(np.float64)
    faces_of = _faces_by_surface(surface_of_face, [index for index, _ in used])
    tiles: list[tuple[int, int]] = []
    pictures: list[NDArray[np.uint8]] = []
    for mine, (_, surface) in zip(faces_of, used, strict=True):
        picture, moved[mine], across = _tile(surface, moved[mine])
        tiles.append(across)
        pictures.append(picture)
    width, height, boxes = _fitted(pictures, tiles)
    for mine, (x, y, w, h), (n, m) in zip(faces_of, boxes, tiles, strict=True):
        moved[mine, :, 0] = (x + moved[mine, :, 0] / n * w) / width
        moved[mine, :, 1] = 1 - (y + (1 - moved[mine, :, 1] / m) * h) / height
    layers = {"base_color": _filled(pictures, boxes, tiles, (height, width, 3), 0)}
    normals, occlusions = [s.normal for _, s in used], [s.occlusion for _, s in used]
    if any(picture is not None for picture in normals):
        layers["normal"] = _filled([_like(p, 3) for p in normals], boxes, tiles, (height, width, 3), (128, 128, 255))
    if any(picture is not None for picture in occlusions):
        layers["occlusion"] = _filled([_like(p, 0) for p in occlusions], boxes, tiles, (height, width), 255)
    return moved.astype(np.float32), Material(**layers)


def _tile(surface: Surface, uvs: NDArray[np.float64]) -> tuple[NDArray[np.uint8], NDArray[np.float64], tuple[int, int]]:
    """The picture of a surface, the uvs of its faces moved to where few repeats do, and how many those are each way."""
    picture = surface.tinted()
    if not surface.flat:
        # Whole repeats do not matter: each face moves to the first tile.
        moved = uvs - np.floor(uvs.min(axis=1, keepdims=True) + 1e-6)
        n, m = (max(1, int(most)) for most in np.ceil(moved.max(axis=(0, 1)) - 1e-6))
        if max(n, m) <= MAX_TILES:
            return picture, moved, (n, m)
    color = picture.mean(axis=(0, 1)).round().astype(np.uint8)
    return np.broadcast_to(color, (FLAT, FLAT, 3)), np.full_like(uvs, 0.5), (1, 1)


def _fitted(
    pictures: Sequence[NDArray[np.uint8]], tiles: Sequence[tuple[int, int]]
) -> tuple[int, int, list[tuple[int, int, int, int]]]:
    """Width and height of an atlas, and the place (x, y, width, height) of each picture with its repeats in it."""
    shrink = 1.0
    while shrink > 1e-4:
        sizes = [
            (max(1, round(p.shape[1] * shrink)) * n, max(1, round(p.shape[0] * shrink)) * m)
            for p, (n, m) in zip(pictures, tiles, strict=True)
        ]
        width, height, places = _shelves([(w + 2 * BORDER, h + 2 * BORDER) for w, h in sizes])
        if max(width, height) <= MAX_ATLAS and width * height <= MAX_TEXTURE_PIXELS:
            return width, height, [(x + BORDER, y + BORDER, *size) for (x, y), size in zip(places, sizes, strict=True)]
        shrink *= 0.7
    raise ValueError(f"it has {len(pictures)} materials, which do not fit into one texture")


def _faces_by_surface(surface_of_face: NDArray[np.integer], numbers: Sequence[int]) -> list[NDArray[np.intp]]:
    """The faces of each of the surfaces `numbers`, which ascend."""
    order = np.argsort(surface_of_face, kind="stable")
    return np.split(order, np.searchsorted(surface_of_face[order], numbers[1:]))


def _shelves(sizes: list[tuple[int, int]]) -> tuple[int, int, list[tuple[int, int]]]:
    """Rectangles (width, height) in rows, tallest first: width and height of the whole, and their top left corners."""
    widest = max(w for w, _ in sizes)
    limit = max(widest, int(np.ceil(np.sqrt(sum(w * h for w, h in sizes)))))
    places = [(0, 0)] * len(sizes)
    x = y = row = width = 0
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i][1]):
        w, h = sizes[i]
        if x and x + w > limit:
            x, y, row = 0, y + row, 0
        places[i] = (x, y)
        x, row = x + w, max(row, h)
        width = max(width, x)
    return width, y + row, places


def _filled(
    pictures: Sequence[NDArray[np.uint8] | None],
    boxes: list[tuple[int, int, int, int]],
    tiles: list[tuple[int, int]],
    shape: tuple[int, ...],
    background: int | tuple[int, int, int],
) -> NDArray[np.uint8]:
    from PIL import Image

    out = np.empty(shape, np.uint8)
    out[:] = background
    for picture, (x, y, w, h), (n, m) in zip(pictures, boxes, tiles, strict=True):
        if picture is None:
            continue
        size = (w // n, h // m)
        if (picture.shape[1], picture.shape[0]) != size:
            picture = np.asarray(Image.fromarray(np.ascontiguousarray(picture)).resize(size, Image.Resampling.BOX))
        tiled = np.tile(picture, (m, n) + (1,) * (len(shape) - 2))
        border = [(BORDER, BORDER), (BORDER, BORDER)] + [(0, 0)] * (len(shape) - 2)
        out[y - BORDER : y + h + BORDER, x - BORDER : x + w + BORDER] = np.pad(tiled, border, mode="edge")
    return out


def sample(picture: NDArray[np.uint8], uvs: NDArray) -> NDArray[np.float64]:
    """[..., C] values of a picture at uvs [..., 2], linear between texel centres, repeated outside 0 to 1."""
    height, width = picture.shape[:2]
    inside = np.where((uvs < 0) | (uvs > 1), uvs % 1.0, uvs).astype(np.float64)  # 1 is the far edge, not the near one
    x, y = inside[..., 0] * width - 0.5, (1 - inside[..., 1]) * height - 0.5
    x0, y0 = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    fx, fy = (x - x0)[..., None], (y - y0)[..., None]
    left, right = np.clip(x0, 0, width - 1), np.clip(x0 + 1, 0, width - 1)
    above, below = np.clip(y0, 0, height - 1), np.clip(y0 + 1, 0, height - 1)
    top = picture[above, left] * (1 - fx) + picture[above, right] * fx
    bottom = picture[below, left] * (1 - fx) + picture[below, right] * fx
    return top * (1 - fy) + bottom * fy


def vertex_colors(mesh: Mesh) -> NDArray[np.uint8] | None:
    """[V, 3] sRGB for formats without textures: the mesh's own colours, else the texture's mean over the corners."""
    if mesh.colors is not None or mesh.material is None or mesh.uvs is None:
        return mesh.colors
    light = sample(mesh.material.base_color, mesh.uvs).reshape(-1, 3)
    corners = mesh.faces.reshape(-1)
    count = np.maximum(np.bincount(corners, minlength=len(mesh.vertices)), 1)
    sums = [np.bincount(corners, light[:, i], len(mesh.vertices)) for i in range(3)]
    return np.round(np.stack(sums, axis=1) / count[:, None]).astype(np.uint8)
