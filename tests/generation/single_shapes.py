"""One primitive of each kind, turned and moved, for tests."""

from __future__ import annotations

import math

import torch

from generation.shapes import Kind, ObjectModel

SIZES: dict[Kind, tuple[float, float, float]] = {
    Kind.ELLIPSOID: (0.5, 0.2, 0.35),
    Kind.BOX: (0.3, 0.15, 0.4),
    Kind.CYLINDER: (0.25, 0.25, 0.3),
    Kind.CONE: (0.35, 0.1, 0.3),
    Kind.CAPSULE: (0.15, 0.15, 0.35),
}


def rotation(seed: int) -> torch.Tensor:
    """A rotation [3, 3] in float64."""
    generator = torch.Generator().manual_seed(seed)
    q, r = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    q = q * r.diagonal().sign()
    return q * torch.linalg.det(q)


def single(
    kind: Kind,
    size: tuple[float, float, float] | None = None,
    at: tuple[float, float, float] = (0.0, 0.0, 0.0),
    turned: int | None = None,
) -> ObjectModel:
    """A red primitive in float64."""
    world = torch.eye(4, dtype=torch.float64)
    world[:3, 3] = torch.tensor(at)
    if turned is not None:
        world[:3, :3] = rotation(turned)
    zero = torch.zeros(1, dtype=torch.int64)
    return ObjectModel(
        kind=torch.tensor([int(kind)]),
        world_from_primitive=world[None],
        size=torch.tensor([size or SIZES[kind]], dtype=torch.float64),
        rgb=torch.tensor([[0.8, 0.1, 0.1]], dtype=torch.float64),
        material=zero,
        part=zero,
        instance=zero,
        parts=(f"shape {kind.name.lower()}",),
    )


def points(count: int, seed: int = 0, reach: float = 1.0) -> torch.Tensor:
    """Points [count, 3] spread over a cube, in float64."""
    generator = torch.Generator().manual_seed(seed)
    return reach * (2 * torch.rand(count, 3, generator=generator, dtype=torch.float64) - 1)


ROOT_HALF = math.sqrt(0.5)
