"""Which texels lie on a mesh, and where on it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from scene.mesh import Mesh
from scene.ops.triangle_raster import cover

CHUNK = 1 << 20  # texels at once, which bounds the memory


@dataclass(frozen=True)
class Texels:
    """The texels that lie on the mesh. index: [T] in the flattened picture.  faces: [T].  shares: [T, 3] of corners."""

    index: NDArray[np.int64]
    faces: NDArray[np.int32]
    shares: NDArray[np.float32]


def texels_of(mesh: Mesh, size: int) -> Texels:
    """The texels whose centres lie on the mesh, and where on it."""
    assert mesh.uvs is not None
    under = texel_faces(mesh.uvs, size).reshape(-1)
    index = np.flatnonzero(under >= 0)
    faces = under[index]
    shares = np.empty((len(index), 3), dtype=np.float32)
    for start in range(0, len(index), CHUNK):
        part = slice(start, start + CHUNK)
        at = np.stack([index[part] % size + 0.5, size - index[part] // size - 0.5], axis=1) / size
        shares[part] = _shares(mesh.uvs[faces[part]].astype(np.float64), at)
    return Texels(index, faces, shares)


def _shares(corners: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.float64]:
    """[P, 3] shares of the corners [P, 3, 2] at points [P, 2]."""
    b, c, p = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0], points - corners[:, 0]
    area = b[:, 0] * c[:, 1] - b[:, 1] * c[:, 0]
    second = (p[:, 0] * c[:, 1] - p[:, 1] * c[:, 0]) / area
    third = (b[:, 0] * p[:, 1] - b[:, 1] * p[:, 0]) / area
    return np.stack([1 - second - third, second, third], axis=1)


def texel_faces(uvs: NDArray[np.float32], size: int) -> NDArray[np.int32]:
    """[S, S] face whose uvs cover each texel's centre, -1 for none; row 0 is v = 1."""
    pixels = np.stack([uvs[..., 0], 1 - uvs[..., 1].astype(np.float64)], axis=2) * size
    # Rows run against v, which turns the corners round.
    return cover(torch.from_numpy(np.ascontiguousarray(pixels[:, ::-1])), size, size)[0].numpy()
