"""Octrees, rays and fields that several tests share."""

from __future__ import annotations

import torch
from torch import Tensor

from data.synthetic import Fixture, SoftScene
from data.synthetic_solids import Box
from scene.cameras import Camera, look_at
from scene.octree import Octree
from scene.octree_baking import Field
from scene.ops.octree_index import FINEST
from scene.ops.octree_render import Rays


def random_leaves(levels: int, seed: int = 0, share: float = 0.4) -> tuple[Tensor, Tensor]:
    """Codes and levels of leaves down to `levels`, with holes."""
    generator = torch.Generator().manual_seed(seed)
    codes, found = torch.zeros(1, dtype=torch.int64), []
    for level in range(1, levels + 1):
        codes = (codes[:, None] + (torch.arange(8) << 3 * (FINEST - level))).view(-1)
        draw = torch.rand(len(codes), generator=generator)
        leaf = draw < (0.6 if level == levels else share)
        found.append((codes[leaf], torch.full_like(codes[leaf], level, dtype=torch.int32)))
        codes = codes[draw > 0.7]
    codes, depths = (torch.cat(parts) for parts in zip(*found, strict=True))
    order = codes.argsort()
    return codes[order], depths[order]


def random_octree(levels: int, sh_degree: int = 1, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Octree:
    """Leaves of levels 1 to `levels` in a cube around the origin, some without density."""
    generator = torch.Generator().manual_seed(seed + 1)
    codes, depths = random_leaves(levels, seed)
    sigmas = 8 * torch.randn(len(codes), generator=generator, dtype=torch.float64) + 3
    sh_coeffs = torch.randn(len(codes), (sh_degree + 1) ** 2, 3, generator=generator, dtype=torch.float64)
    frame = torch.full((3,), 0.5), torch.tensor([0.5, 0.5, 0.45])
    return Octree.of(codes, depths, sigmas.to(dtype), sh_coeffs.to(dtype), *frame)


def uniform_octree(level: int, sigma: float = 3.0, sh_degree: int = 2) -> Octree:
    """The whole cube [-1, 1]^3 in leaves of one level that are all alike."""
    codes = torch.arange(8**level) << 3 * (FINEST - level)
    sh_coeffs = torch.randn(1, (sh_degree + 1) ** 2, 3, generator=torch.Generator().manual_seed(3))
    levels = torch.full_like(codes, level, dtype=torch.int32)
    frame = torch.full((3,), 0.5), torch.full((3,), 0.5)
    return Octree.of(codes, levels, torch.full((len(codes),), sigma), sh_coeffs.repeat(len(codes), 1, 1), *frame)


def camera(width: int = 40, height: int = 30, dtype: torch.dtype = torch.float32) -> Camera:
    """A camera outside the cube that sees all of it, turned about every axis."""
    K = torch.tensor([[1.1 * width, 0.0, width / 2], [0.0, 1.1 * width, height / 2], [0.0, 0.0, 1.0]])
    c2w = look_at(torch.tensor([1.5, -2.5, 1.0]), torch.zeros(3), torch.tensor([0.1, 0.0, 1.0]))
    return Camera(K, c2w, width, height).to(dtype=dtype)


def random_rays(count: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Rays:
    """Rays of any length from around and inside the cube towards points in it; some along an axis."""
    generator = torch.Generator().manual_seed(seed)
    origins = 6 * torch.rand(count, 3, generator=generator, dtype=torch.float64) - 3
    directions = 2 * torch.rand(count, 3, generator=generator, dtype=torch.float64) - 1 - origins
    directions *= 0.2 + torch.rand(count, 1, generator=generator, dtype=torch.float64)
    directions[: count // 20, :2] = 0
    return Rays(origins.to(dtype), directions.to(dtype))


def soft_field(fixture: Fixture) -> Field:
    """FX-A as a field; its colours are coefficients of a sum that a sigmoid follows only near one half."""
    scene = fixture.scene
    assert isinstance(scene, SoftScene)

    def inside(points: Tensor) -> Tensor:
        found = []
        for solid in scene.solids:
            local = (points.double() - solid.center) @ solid.rotation
            if isinstance(solid, Box):
                found.append((local.abs() < solid.half).all(1))
            else:
                found.append((local / solid.radii).square().sum(1) < 1)
        return torch.stack(found, dim=1)

    def density(points: Tensor) -> Tensor:
        return (scene.sigma * inside(points).sum(1)).to(points)

    def colors(points: Tensor) -> Tensor:
        return (4 * scene.sh[inside(points).long().argmax(1)]).to(points)

    return Field(density, colors)
