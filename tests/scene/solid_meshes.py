"""Meshes and photos of them with a known answer, for texturing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.synthetic import Shown
from scene.cameras import Camera
from scene.mesh import Mesh
from scene.texture import PhotoView


def icosphere(level: int, radius: float = 0.7) -> Mesh:
    """20 * 4^level triangles about the origin, normals outwards."""
    import trimesh

    ball = trimesh.creation.icosphere(level, radius)
    return Mesh(np.asarray(ball.vertices), np.asarray(ball.faces))


def bumpy(mesh: Mesh, height: float = 0.02) -> Mesh:
    """The mesh with bumps along its normals, some six across the ball."""
    bumps = np.sin(9 * mesh.vertices).prod(axis=1, keepdims=True)
    return replace(mesh, vertices=mesh.vertices + height * bumps * mesh.vertex_normals)


def square(cells: int, *, z: float = 0.0, side: float = 1.0) -> Mesh:
    """A square of cells^2 * 2 triangles about (0, 0, z) that faces -z, as cameras that look along +z see it."""
    steps = (np.arange(cells + 1) / cells - 0.5) * side
    x, y = np.meshgrid(steps, steps, indexing="xy")
    vertices = np.stack([x.reshape(-1), y.reshape(-1), np.full(x.size, z)], axis=1)
    corner = (np.arange(cells)[:, None] * (cells + 1) + np.arange(cells)).reshape(-1)
    right, below, across = corner + 1, corner + cells + 1, corner + cells + 2
    faces = np.concatenate([np.stack([corner, below, right], 1), np.stack([right, below, across], 1)])
    return Mesh(vertices, faces)


def camera_at(x: float, y: float, z: float, *, size: int = 64, focal: float = 64.0) -> Camera:
    """A camera at a place that looks along +z."""
    K = torch.tensor([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]], dtype=torch.float64)
    c2w = torch.eye(4, dtype=torch.float64)
    c2w[:3, 3] = torch.tensor([x, y, z], dtype=torch.float64)
    return Camera(K, c2w, size, size)


def photo_of(shown: Shown, gain: float = 1.0) -> PhotoView:
    """The photo that a fixture shows, with its cut-out, made brighter by a gain."""
    rgb = (shown.color / shown.alpha.clamp(min=1e-9)[..., None] * gain * 255).round().clamp(0, 255).to(torch.uint8)
    alpha = (shown.alpha * 255).round().to(torch.uint8)
    return PhotoView(shown.camera, lambda: (rgb, alpha))


def painted(camera: Camera, color: Callable[[NDArray[np.float64]], NDArray[np.float64]], z: float) -> Tensor:
    """[H, W, 3] uint8 photo of the plane at `z`, painted by a function of (x, y) [P, 2] to 0..1 [P, 3]."""
    origins, directions = camera.rays()
    depth = (z - origins[..., 2]) / directions[..., 2]
    points = (origins + depth[..., None] * directions)[..., :2].reshape(-1, 2).numpy()
    tones = torch.from_numpy(color(points)).reshape(camera.height, camera.width, 3)
    return (tones * 255).round().clamp(0, 255).to(torch.uint8)


def photos(pictures: Sequence[tuple[Camera, Tensor]]) -> list[PhotoView]:
    """Photos without a cut-out."""
    return [PhotoView(camera, lambda picture=picture: (picture, None)) for camera, picture in pictures]
