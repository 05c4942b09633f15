"""The shape of a fine mesh as pictures on a coarse one: a tangent-space normal map, and how much sky a place sees."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from scene.mesh import Mesh
from scene.mesh_rays import Hits, RayCaster
from scene.mesh_render import smooth_normals
from scene.tangents import tangent_frames
from scene.texture_fill import spread
from scene.texture_texels import CHUNK, Texels, texels_of

REACH = 0.01  # of the diagonal: how far along its normal a texel looks for the fine mesh
BACK = 1e-4  # of the diagonal: where the two surfaces touch, a ray that starts on one would miss the other
AGREES = 0.2  # least cosine between the two surfaces' normals; less is the other side of a thin wall
SKY_RAYS = 32
SKY_REACH = 0.25  # of the diagonal: what is farther away does not darken


def normal_map(mesh: Mesh, fine: Mesh, *, size: int) -> NDArray[np.uint8]:
    """[S, S, 3] normals of `fine` in the tangent frames of `mesh`, which has uvs; as `scene.mesh.Material` has them."""
    texels = texels_of(mesh, size)
    frames, caster, diagonal = tangent_frames(mesh), RayCaster(fine), mesh.diagonal()
    picture = np.empty((size * size, 3), dtype=np.uint8)
    picture[:] = 128, 128, 255
    for start in range(0, len(texels.index), CHUNK):
        part = slice(start, start + CHUNK)
        tangents, bitangents, normals = frames.at(texels.faces[part], texels.shares[part])
        points = np.einsum(
            "pk,pkc->pc", texels.shares[part].astype(np.float64), mesh.vertices[mesh.faces[texels.faces[part]]]
        )
        there = _fine_normals(fine, caster, points, _unit(normals), diagonal)
        # The inverse of [tangent bitangent normal] without its determinant, which the length hides.
        local = np.stack(
            [
                (np.cross(bitangents, normals) * there).sum(1),
                (np.cross(normals, tangents) * there).sum(1),
                (np.cross(tangents, bitangents) * there).sum(1),
            ],
            axis=1,
        )
        picture[texels.index[part]] = np.rint(np.clip(0.5 + 0.5 * _unit(local), 0, 1) * 255).astype(np.uint8)
    return spread(picture.reshape(size, size, 3), _covered(texels, size))


def occlusion_map(mesh: Mesh, *, size: int) -> NDArray[np.uint8]:
    """[S, S] how much of the sky above each texel the mesh leaves open, 255 for all, weighted by the cosine."""
    texels = texels_of(mesh, size)
    caster, reach = RayCaster(mesh), SKY_REACH * mesh.diagonal()
    sky = _sky()
    picture = np.full(size * size, 255, dtype=np.uint8)
    for start in range(0, len(texels.index), CHUNK // SKY_RAYS):
        part = slice(start, start + CHUNK // SKY_RAYS)
        hits = Hits(texels.faces[part].astype(np.int64), texels.shares[part], np.zeros(0, np.float32))
        normals = smooth_normals(mesh, hits)
        points = np.einsum("pk,pkc->pc", hits.shares.astype(np.float64), mesh.vertices[mesh.faces[hits.face]])
        right = _unit(np.cross(np.where(np.abs(normals[:, :1]) < 0.6, [[1.0, 0, 0]], [[0, 1.0, 0]]), normals))
        basis = np.stack([right, np.cross(normals, right), normals], axis=1)
        rays = reach * np.einsum("sk,pkc->psc", sky, basis).reshape(-1, 3)
        origins = np.repeat(points + 4e-3 * reach * normals, len(sky), axis=0)
        found = caster.cast(origins, rays, reach=reach)
        open_ = (found.face < 0).reshape(-1, len(sky)).mean(axis=1)
        picture[texels.index[part]] = np.rint(255 * open_).astype(np.uint8)
    return spread(picture.reshape(size, size), _covered(texels, size))


def _fine_normals(
    fine: Mesh, caster: RayCaster, points: NDArray[np.float64], normals: NDArray[np.float64], diagonal: float
) -> NDArray[np.float64]:
    """[P, 3] smooth normals of the fine mesh where lines through the points along their normals meet it first."""
    best = np.full(len(points), np.inf)
    found = np.zeros_like(points)
    for way in (normals, -normals):
        hits = caster.cast(points - BACK * diagonal * way, way, reach=(BACK + REACH) * diagonal)
        away = np.where(hits.face >= 0, np.abs(hits.depth - BACK * diagonal), np.inf)
        at = smooth_normals(fine, Hits(np.maximum(hits.face, 0), hits.shares, hits.depth))
        better = (away < np.minimum(best, REACH * diagonal)) & ((at * normals).sum(1) > AGREES)
        best[better], found[better] = away[better], at[better]
    missed = np.flatnonzero(~np.isfinite(best))
    if len(missed):
        at = smooth_normals(fine, caster.closest(points[missed]))
        turned = (at * normals[missed]).sum(1) <= AGREES
        found[missed] = np.where(turned[:, None], normals[missed], at)
    return found


def _sky() -> NDArray[np.float64]:
    """[S, 3] directions about +z, as dense as the cosine, on a spiral."""
    k = np.arange(SKY_RAYS) + 0.5
    radius, angle = np.sqrt(k / SKY_RAYS), k * np.pi * (3 - np.sqrt(5))
    return np.stack([radius * np.cos(angle), radius * np.sin(angle), np.sqrt(1 - radius**2)], axis=1)


def _covered(texels: Texels, size: int) -> NDArray[np.bool_]:
    covered = np.zeros(size * size, dtype=bool)
    covered[texels.index] = True
    return covered.reshape(size, size)


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-300)
