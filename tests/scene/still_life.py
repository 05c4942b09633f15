"""A ball on a floor with a thin pole beside it, made of Gaussians, cameras around it, and floaters to plant there."""

from __future__ import annotations

import math

import torch

from scene.cameras import Camera, look_at
from scene.gaussians import Gaussians


def shell(points: torch.Tensor, size: float, color: tuple[int, int, int], opacity: float = 0.95) -> Gaussians:
    rgb = torch.tensor(color, dtype=torch.uint8).expand(len(points), 3)
    made = Gaussians.from_points(points, rgb, sh_degree=0, opacity=opacity)
    made.log_scales = torch.full_like(made.log_scales, math.log(size))
    return made


def still_life() -> Gaussians:
    """A ball on a floor, and a thin pole that stands before it in every view that looks past it."""
    step = torch.arange(4000) + 0.5
    z, angle = 1 - 2 * step / 4000, step * 2.39996
    radius = (1 - z * z).sqrt()
    ball = 0.5 * torch.stack([radius * angle.cos(), radius * angle.sin(), z + 1], dim=1)
    x, y = torch.meshgrid(torch.linspace(-2, 2, 90), torch.linspace(-2, 2, 90), indexing="ij")
    floor = torch.stack([x.flatten(), y.flatten(), torch.zeros(8100)], dim=1)
    pole = torch.stack([torch.full((60,), 0.9), torch.zeros(60), torch.linspace(0, 1.2, 60)], dim=1)
    return Gaussians.concat(
        [shell(ball, 0.015, (200, 60, 40)), shell(floor, 0.03, (90, 120, 90)), shell(pole, 0.012, (20, 20, 20))]
    )


def ring(count: int = 16) -> list[Camera]:
    K = torch.tensor([[130.0, 0, 80], [0, 130, 60], [0, 0, 1]])
    up, target = torch.tensor([0.0, 0, 1]), torch.tensor([0.0, 0, 0.4])
    return [
        Camera(K, look_at(torch.tensor([3 * math.cos(a), 3 * math.sin(a), 1.0 + 0.8 * (i % 2)]), target, up), 160, 120)
        for i in range(count)
        for a in [2 * math.pi * i / count]
    ]


def planted(count: int, seed: int = 0) -> Gaussians:
    """Blobs of all sizes and opacities between the cameras and what they look at, clear of it."""
    generator = torch.Generator().manual_seed(seed)
    angle, height = 2 * math.pi * torch.rand(count, generator=generator), torch.rand(count, generator=generator)
    distance = 1.2 + 1.2 * torch.rand(count, generator=generator)
    places = torch.stack([distance * angle.cos(), distance * angle.sin(), 0.5 + 0.8 * height], dim=1)
    made = shell(places, 1.0, (250, 250, 250))
    made.log_scales = (0.008 + 0.03 * torch.rand(count, 3, generator=generator)).log()
    made.opacity_logits = torch.logit(0.15 + 0.8 * torch.rand(count, generator=generator))
    return made
