"""Colours of procedural surfaces: patterns of materials, and one key light over an even ambient one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from generation.shapes import Material

STRIPES = 9.0  # bands a world unit; world units are those of the primitive's frame
RINGS = 16.0  # of wood, a world unit


@dataclass(frozen=True)
class Light:
    """Towards the key light (any length, in the world), and the share of light that comes from everywhere.

    With less ambient light than about 0.55 a white part in shade has the grey of a grey background.
    """

    direction: tuple[float, float, float] = (0.45, 0.3, 0.85)
    ambient: float = 0.6


DAYLIGHT = Light()


def shade(
    rgb: Tensor, material: Tensor, local: Tensor, size: Tensor, normal: Tensor, toward: Tensor, light: Light
) -> tuple[Tensor, Tensor]:
    """Albedo and lit colour [P, 3] of surface points.

    rgb: [P, 3] of the primitives.  material: [P].  local, size: [P, 3] the points in their primitives' frames and the
    primitives' sizes.  normal, toward: [P, 3] unit, in the world, outward and to the camera.
    """
    albedo = torch.where(
        (material == Material.WOODEN)[:, None],
        rgb * _wood(local)[:, None],
        torch.where((material == Material.STRIPED)[:, None], _striped(rgb, local, size), rgb),
    )
    key = F.normalize(normal.new_tensor(light.direction), dim=0)
    lambert = (normal @ key).clamp(min=0)
    diffuse = albedo * (light.ambient + (1 - light.ambient) * lambert)[:, None]
    half = F.normalize(toward + key, dim=-1)
    gloss = (normal * half).sum(-1).clamp(min=0)
    shiny = diffuse + 0.55 * gloss.pow(40)[:, None] * (1 - diffuse)
    sky = (2 * (normal * toward).sum(-1, keepdim=True) * normal - toward)[:, 2:]  # how far up the mirrored ray goes
    mirrored = (
        albedo * (0.55 + 0.60 * torch.sigmoid(6 * sky)) + 0.45 * gloss.pow(24)[:, None]
    )  # dark ground, bright sky
    lit = torch.where((material == Material.SHINY)[:, None], shiny, diffuse)
    return albedo, torch.where((material == Material.METALLIC)[:, None], mirrored, lit).clamp(0, 1)


def _wood(local: Tensor) -> Tensor:
    """[P] brightness of two tones: rings about an axis that lies off the primitive's own, with a slow wobble."""
    x, y, z = local.unbind(-1)
    radius = ((x + 0.3 + 0.05 * torch.sin(5 * z)).square() + (y - 0.2).square()).sqrt()
    wave = torch.sin(2 * math.pi * RINGS * radius + 2 * torch.sin(3 * z))
    return 0.86 + 0.2 * torch.sigmoid(4 * wave) - 0.1


def _striped(rgb: Tensor, local: Tensor, size: Tensor) -> Tensor:
    """Every other band across the primitive's longest axis is paler, of a dark colour more so."""
    along = local.gather(1, size.argmax(1, keepdim=True))[:, 0]
    band = torch.remainder(along * STRIPES, 1.0) < 0.5
    return torch.where(band[:, None], rgb, rgb + 0.55 * (1 - rgb))
