"""Pictures of a mesh as a camera sees it: rays against triangles on the CPU, for judging a mesh and for looking at it.

Unlit: what is shown are the mesh's own colours, so that a textured mesh can be held against the photos it came from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scene.cameras import Camera
from scene.mesh import Mesh
from scene.mesh_rays import Hits, RayCaster
from scene.tangents import Frames, tangent_frames

Shading = Literal["texture", "normals", "clay"]

CLAY = 0.85  # grey of a clay surface that faces the camera
RIM = 0.35  # share of it that a surface seen edge-on keeps
CHUNK = 1 << 18  # rays at once, which bounds the memory


@dataclass(frozen=True)
class MeshPicture:
    """What a camera sees of a mesh.

    rgb: [H, W, 3] in 0 to 1, over the background.  alpha: [H, W] share of the pixel's rays that meet the mesh.
    depth: [H, W] z-depth at the pixel centre, 0 where nothing is.  faces: [H, W] int64 face there, -1 where nothing is.
    """

    rgb: Tensor
    alpha: Tensor
    depth: Tensor
    faces: Tensor


def render_mesh(
    mesh: Mesh,
    camera: Camera,
    *,
    background: float | Tensor = 1.0,
    shading: Shading = "texture",
    supersample: int = 2,
    caster: RayCaster | None = None,
) -> MeshPicture:
    """The mesh as the camera sees it.

    background: a grey value or [3], sRGB 0 to 1.  shading: `texture` shows the material or else the vertex colours (or
    else clay), unlit; `normals` the world normals as (n + 1) / 2, `clay` grey lit from the camera, both by smooth
    normals and the normal map, where there is one.  supersample: colour and alpha are means over that many rays
    squared.  caster: the mesh made ready before, when it is rendered many times.
    """
    caster = caster or RayCaster(mesh)
    size = (camera.height, camera.width)
    centres = caster.view(camera)
    fine = camera.resized(camera.width * supersample, camera.height * supersample)
    hits = centres if supersample == 1 else caster.view(fine)
    tones = np.zeros((len(hits.face), 3), dtype=np.float32)
    has_map = mesh.material is not None and mesh.material.normal is not None
    frames = tangent_frames(mesh) if has_map and shading != "texture" else None
    hit = np.flatnonzero(hits.face >= 0)
    for part in np.array_split(hit, max(1, -(-len(hit) // CHUNK))):
        at = Hits(hits.face[part], hits.shares[part], hits.depth[part])
        tones[part] = _texture(mesh, at) if shading == "texture" else _lit(mesh, at, camera, shading, frames)
    alpha = (hits.face >= 0).astype(np.float32)
    color, alpha = (_pooled(part.reshape(*size_of(fine), -1), supersample) for part in (tones, alpha))
    behind = torch.as_tensor(background, dtype=torch.float32)
    return MeshPicture(
        rgb=color + (1 - alpha) * behind,
        alpha=alpha[..., 0],
        depth=torch.from_numpy(centres.depth.reshape(size)),
        faces=torch.from_numpy(centres.face.reshape(size)),
    )


def size_of(camera: Camera) -> tuple[int, int]:
    """Rows and columns of a camera's picture."""
    return camera.height, camera.width


def corner_mean(values: NDArray[Any], hits: Hits) -> NDArray[np.float64]:
    """[R, C] values at the hits, of values per corner [F, 3, C]."""
    return np.einsum("rk,rkc->rc", hits.shares.astype(np.float64), values[hits.face])


def smooth_normals(mesh: Mesh, hits: Hits) -> NDArray[np.float64]:
    """[R, 3] unit normals at hits, between those of the vertices; the face's own where these cancel out."""
    normals = np.einsum("rk,rkc->rc", hits.shares.astype(np.float64), mesh.vertex_normals[mesh.faces[hits.face]])
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    flat = mesh.face_normals[hits.face]
    flat = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-300)
    return np.where(length > 1e-6, normals / np.maximum(length, 1e-6), flat)


def mapped_normals(mesh: Mesh, hits: Hits, frames: Frames) -> NDArray[np.float64]:
    """[R, 3] unit normals at hits as the material's normal map turns them."""
    assert mesh.material is not None and mesh.material.normal is not None and mesh.uvs is not None
    local = sample_picture(mesh.material.normal, corner_mean(mesh.uvs, hits)) / 127.5 - 1
    axes = frames.at(hits.face, hits.shares)
    normals = sum(local[:, i : i + 1] * axis for i, axis in enumerate(axes))
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-300)


def sample_picture(picture: NDArray[Any], uvs: NDArray[np.floating]) -> NDArray[np.float64]:
    """[R, C] bilinear values of a picture [H, W, C] at uvs [R, 2]; v = 1 is the top edge; the edges go on outside."""
    height, width = picture.shape[:2]
    x = np.clip(uvs[:, 0] * width - 0.5, 0, width - 1)
    y = np.clip((1 - uvs[:, 1]) * height - 0.5, 0, height - 1)
    left, top = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    right, below = np.minimum(left + 1, width - 1), np.minimum(top + 1, height - 1)
    a, b = (x - left)[:, None], (y - top)[:, None]
    upper = (1 - a) * picture[top, left] + a * picture[top, right]
    lower = (1 - a) * picture[below, left] + a * picture[below, right]
    return (1 - b) * upper + b * lower


def _texture(mesh: Mesh, hits: Hits) -> NDArray[np.float64]:
    if mesh.material is not None and mesh.uvs is not None:
        return sample_picture(mesh.material.base_color, corner_mean(mesh.uvs, hits)) / 255
    if mesh.colors is not None:
        return np.einsum("rk,rkc->rc", hits.shares.astype(np.float64), mesh.colors[mesh.faces[hits.face]]) / 255
    return np.full((len(hits.face), 3), CLAY)


def _lit(mesh: Mesh, hits: Hits, camera: Camera, shading: Shading, frames: Frames | None) -> NDArray[np.float64]:
    normals = smooth_normals(mesh, hits) if frames is None else mapped_normals(mesh, hits, frames)
    if shading == "normals":
        return 0.5 * normals + 0.5
    points = np.einsum("rk,rkc->rc", hits.shares.astype(np.float64), mesh.vertices[mesh.faces[hits.face]])
    away = points - camera.center.double().numpy()
    away /= np.maximum(np.linalg.norm(away, axis=1, keepdims=True), 1e-300)
    facing = np.abs((away * normals).sum(axis=1, keepdims=True))
    return np.repeat(CLAY * (RIM + (1 - RIM) * facing), 3, axis=1)


def _pooled(values: NDArray[np.float32], supersample: int) -> Tensor:
    """Means over blocks of supersample x supersample pixels of [H, W, C]."""
    height, width = values.shape[0] // supersample, values.shape[1] // supersample
    blocks = torch.from_numpy(values).reshape(height, supersample, width, supersample, -1)
    return blocks.mean((1, 3))
