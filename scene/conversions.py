"""From one representation to another where no photos are at hand: a mesh as splats, and cameras to mesh splats with.

Any scene to a mesh is `scene/mesh_extraction.py`, any scene to Gaussians `scene/field_conversion.py`; both ask it for
frames of colour and depth.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scene import sh
from scene.cameras import Camera, look_at
from scene.errors import InputError
from scene.gaussians import Gaussians
from scene.mesh import Mesh

DISC_THINNESS = 0.05  # thickness of a surface splat over its width
DISC_OPACITY = 0.99
OVERLAP = 0.75  # standard deviation of a disc over the mean distance of discs: less shows holes, more blurs
GOLDEN_ANGLE = math.pi * (3 - math.sqrt(5))


def mesh_to_gaussians(mesh: Mesh, count: int = 200_000, *, seed: int = 0) -> Gaussians:
    """The mesh covered with `count` flat, opaque Gaussians of its own colours, spread evenly over its area.

    Colours come from the texture, else from the vertices, else are grey; they do not depend on the direction.
    Raises InputError for a mesh without any area.
    """
    area = float(mesh.face_areas.sum())
    if not area > 0:
        raise InputError("the mesh has no area, so no splats can be laid on it")
    faces, weights = _even_samples(mesh, count, np.random.default_rng(seed))
    corners = mesh.vertices[mesh.faces[faces]]
    means = np.einsum("nk,nkc->nc", weights, corners)
    spacing = math.sqrt(area / count)
    log_scales = torch.full((count, 3), math.log(OVERLAP * spacing))
    log_scales[:, 2] += math.log(DISC_THINNESS)
    return Gaussians(
        means=torch.from_numpy(means).float(),
        quats=_turned_to(torch.from_numpy(mesh.face_normals[faces])).float(),
        log_scales=log_scales,
        opacity_logits=torch.logit(torch.full((count,), DISC_OPACITY)),
        sh_dc=sh.from_rgb(torch.from_numpy(_colors(mesh, faces, weights)).float()),
        sh_rest=torch.zeros(count, 0, 3),
    )


def cameras_around(gaussians: Gaussians, count: int = 64, *, size: int = 512) -> list[Camera]:
    """Cameras on a sphere around the bulk of a scene, all looking at its middle: for splats that came without any.

    A scene that was photographed from its inside (a room) is not served by them: its walls are seen from behind.
    """
    if len(gaussians) < 10:
        raise InputError(f"a scene of {len(gaussians)} splats is too small to look at")
    solid = gaussians.means[gaussians.opacities > 0.3].double()
    points = solid if len(solid) >= 10 else gaussians.means.double()
    centre = points.median(0).values
    radius = float((points - centre).norm(dim=1).quantile(0.9)) or 1.0
    focal = 1.2 * size
    distance = 2.4 * radius * focal / (0.5 * size) / 2
    K = torch.tensor([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]], dtype=torch.float64)
    cameras = []
    for i in range(count):
        height = 1 - 2 * (i + 0.5) / count
        around = math.sqrt(1 - height * height)
        direction = [around * math.cos(i * GOLDEN_ANGLE), around * math.sin(i * GOLDEN_ANGLE), height]
        eye = centre + distance * torch.tensor(direction, dtype=torch.float64)
        up = torch.tensor([0.0, 0.0, 1.0] if abs(height) < 0.95 else [0.0, 1.0, 0.0], dtype=torch.float64)
        cameras.append(Camera(K.float(), look_at(eye, centre, up).float(), size, size))
    return cameras


def _even_samples(mesh: Mesh, count: int, random: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Faces [count] and barycentric weights [count, 3] of points that are even over the area (stratified)."""
    ends = np.cumsum(mesh.face_areas)
    at = (np.arange(count) + random.random(count)) / count * ends[-1]
    faces = np.minimum(np.searchsorted(ends, at, side="right"), len(mesh.faces) - 1)
    a, b = np.sqrt(random.random(count)), random.random(count)
    return faces, np.stack([1 - a, a * (1 - b), a * b], axis=1)


def _turned_to(normals: Tensor) -> Tensor:
    """[N, 4] wxyz quaternions that turn +Z to the normals [N, 3] (any length; zero ones keep +Z)."""
    z = torch.nn.functional.normalize(normals, dim=1)
    quats = torch.stack([1 + z[:, 2], -z[:, 1], z[:, 0], torch.zeros_like(z[:, 0])], dim=1)
    quats[quats.norm(dim=1) < 1e-6] = torch.tensor([0.0, 1.0, 0.0, 0.0], dtype=quats.dtype)  # straight down
    return torch.nn.functional.normalize(quats, dim=1)


def _colors(mesh: Mesh, faces: NDArray[np.int64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """[N, 3] colours in 0 to 1 at points of the faces."""
    if mesh.material is not None and mesh.uvs is not None:
        picture = mesh.material.base_color
        uv = np.einsum("nk,nkc->nc", weights, mesh.uvs[faces].astype(np.float64)) % 1.0
        column = np.minimum((uv[:, 0] * picture.shape[1]).astype(int), picture.shape[1] - 1)
        row = np.minimum(((1 - uv[:, 1]) * picture.shape[0]).astype(int), picture.shape[0] - 1)
        return picture[row, column] / 255.0
    if mesh.colors is not None:
        return np.einsum("nk,nkc->nc", weights, mesh.colors[mesh.faces[faces]] / 255.0)
    return np.full((len(faces), 3), 0.7)
