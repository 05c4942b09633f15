"""Rays and points against a mesh: where rays meet it first, and the place on it that is nearest to a point."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scene.cameras import Camera
from scene.mesh import Mesh
from scene.ops.triangle_tree import Found, TriangleTree, first_hits, nearest


@dataclass(frozen=True)
class Hits:
    """Where rays meet a mesh. face: [R] -1 where they miss.  shares: [R, 3] of the face's corners.  depth: [R] z."""

    face: NDArray[np.int64]
    shares: NDArray[np.float32]
    depth: NDArray[np.float32]


class RayCaster:
    """A mesh made ready for rays. Front and back of a face are alike."""

    def __init__(self, mesh: Mesh) -> None:
        self._tree, self._centre, self._side = None, np.zeros(3), 1.0
        if len(mesh.faces):
            corners = mesh.vertices[mesh.faces]
            low, high = corners.min(axis=(0, 1)), corners.max(axis=(0, 1))
            # The tree is float32: of side 1 about the origin, nothing is lost for a mesh far away or of any size.
            self._centre, self._side = (low + high) / 2, float((high - low).max()) or 1.0
            self._tree = TriangleTree.of(torch.from_numpy((corners - self._centre) / self._side))

    def cast(self, origins: NDArray[np.float64], directions: NDArray[np.float64], *, reach: float = math.inf) -> Hits:
        """First hits of rays [R, 3], [R, 3] within `reach` (scene units); depths in lengths of the direction.

        Raises ValueError for rays that are not finite.
        """
        if not (np.isfinite(origins).all() and np.isfinite(directions).all()):
            raise ValueError("rays must be finite")
        lengths = np.linalg.norm(directions, axis=1)
        unit = directions / np.maximum(lengths, 1e-300)[:, None]
        if self._tree is None:
            return _hits(_nowhere(len(origins)), np.ones(len(origins)))
        found = first_hits(self._tree, self._placed(origins), torch.from_numpy(unit), reach / self._side)
        return _hits(found, self._side / np.maximum(lengths, 1e-300))

    def closest(self, points: NDArray[np.float64]) -> Hits:
        """The nearest place on the mesh for points [P, 3]; `depth` is how far it is. Raises ValueError for NaN."""
        if not np.isfinite(points).all():
            raise ValueError("points must be finite")
        if self._tree is None:
            return _hits(_nowhere(len(points)), np.ones(len(points)))
        return _hits(nearest(self._tree, self._placed(points)), np.full(len(points), self._side))

    def view(self, camera: Camera) -> Hits:
        """First hits of the rays through the camera's pixel centres, row by row; depths are z-depths."""
        origins, directions = (part.reshape(-1, 3).numpy() for part in camera.to(dtype=torch.float64).rays())
        return self.cast(origins, directions)

    def _placed(self, points: NDArray[np.float64]) -> Tensor:
        return torch.from_numpy((points - self._centre) / self._side)


def _nowhere(count: int) -> Found:
    return Found(torch.full((count,), -1), torch.zeros(count), torch.zeros(count, 3))


def _hits(found: Found, lengths: NDArray[np.float64]) -> Hits:
    """As found in a mesh of another size. lengths: [R] of what the distances are in."""
    depth = (found.distance.double().numpy() * lengths).astype(np.float32)
    return Hits(found.face.numpy(), found.shares.numpy(), depth)
