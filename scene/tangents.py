"""Tangent frames of a mesh with uvs, as those who read a normal map build them (MikkTSpace, which glTF prescribes).

Normals and tangents are interpolated over a face as they are, not made unit or perpendicular again; the bitangent is
their cross product. A map baked for another frame shows its seams.
Source: Mikkelsen, Simulation of Wrinkled Surfaces Revisited (2008).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scene.mesh import Mesh


@dataclass(frozen=True)
class Frames:
    """tangents, normals: [F, 3, 3] unit vector at each corner.  signs: [F] 1, or -1 where the uvs are mirrored."""

    tangents: NDArray[np.float64]
    normals: NDArray[np.float64]
    signs: NDArray[np.float64]

    def at(
        self, faces: NDArray[np.integer], shares: NDArray[np.floating]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Tangents, bitangents and normals [P, 3] between the corners of faces [P] with shares [P, 3]."""
        share = shares.astype(np.float64)[:, :, None]
        tangents, normals = (self.tangents[faces] * share).sum(1), (self.normals[faces] * share).sum(1)
        return tangents, self.signs[faces][:, None] * np.cross(normals, tangents), normals


def tangent_frames(mesh: Mesh) -> Frames:
    """Frames at the corners: tangents along growing u, averaged by angle over the corners that share vertex and uv.

    Raises ValueError for a mesh without uvs.
    """
    if mesh.uvs is None:
        raise ValueError("tangents follow the uvs, and this mesh has none")
    normals = mesh.vertex_normals[mesh.faces]
    corners, uvs = mesh.vertices[mesh.faces], mesh.uvs.astype(np.float64)
    edge, turn = corners[:, 1:] - corners[:, :1], uvs[:, 1:] - uvs[:, :1]
    area = turn[:, 0, 0] * turn[:, 1, 1] - turn[:, 0, 1] * turn[:, 1, 0]
    signs = np.where(area < 0, -1.0, 1.0)
    along = signs[:, None] * (edge[:, 0] * turn[:, 1, 1:] - edge[:, 1] * turn[:, 0, 1:])
    tangents = along[:, None] - normals * (normals * along[:, None]).sum(2, keepdims=True)
    tangents = _unit(tangents) * _angles(corners)[:, :, None]

    same = np.concatenate([mesh.faces.reshape(-1, 1), uvs.reshape(-1, 2), np.repeat(signs, 3)[:, None]], axis=1)
    order = np.lexsort(same.T)
    new = np.any(same[order[1:]] != same[order[:-1]], axis=1)
    group = np.empty(len(order), dtype=np.int64)
    group[order] = np.concatenate([[0], np.cumsum(new)])
    flat = tangents.reshape(-1, 3)
    sums = np.stack([np.bincount(group, flat[:, i]) for i in range(3)], axis=1)[group].reshape(-1, 3, 3)
    return Frames(_unit(sums), normals, signs)


def _angles(corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """[F, 3] angle at each corner of triangles [F, 3, 3]."""
    ahead, behind = _unit(corners[:, [1, 2, 0]] - corners), _unit(corners[:, [2, 0, 1]] - corners)
    return np.arccos(np.clip((ahead * behind).sum(2), -1, 1))


def _unit(vectors: NDArray[Any]) -> NDArray[np.float64]:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-300)
