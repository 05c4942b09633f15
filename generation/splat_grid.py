"""Gaussians as a voxel grid: the field that their surface is taken from.

Depths of few and large Gaussians disagree from view to view, and what is fused of them has holes. As in DreamGaussian
(2309.16653, section 3.3) the surface is one of their density instead. A Gaussian that takes the share alpha of a ray
through its middle has the optical depth -ln(1 - alpha) there, along its shortest axis; so its density is

    sigma(x) = -ln(1 - alpha) / (sqrt(2 pi) s_min) exp(-0.5 (x - mean)^T Sigma^-1 (x - mean))

and densities add. Axes shorter than THINNEST voxels are taken for that long, or the grid would miss them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from generation.scenes import GridConfig, filled_grid, raw_density
from scene import sh
from scene.gaussians import Gaussians
from scene.ops.splat_project import quats_to_matrices
from scene.voxel_grid import VoxelGrid

REACH = 3.0  # standard deviations within which a Gaussian is looked at
THINNEST = 0.6  # voxels
MOST_OPAQUE = 0.999
DARKEST = 1e-4  # of colours; a logit has no 0 and no 1


@torch.no_grad()
def grid_of_gaussians(gaussians: Gaussians, config: GridConfig, *, denser: float = 1.0) -> VoxelGrid:
    """The grid of the densities, times `denser`, and colours at its corners; what lies outside of the cube is left out.

    gaussians: of constant colour; what depends on the direction is left out.
    """
    sigma, color = fields_of_gaussians(gaussians, config)
    rgb = color / sigma.clamp(min=1e-12)[..., None]
    return filled_grid(raw_density(denser * sigma, config), rgb.clamp(0, 1).logit(DARKEST).view(-1, 3), config)


def fields_of_gaussians(gaussians: Gaussians, config: GridConfig) -> tuple[Tensor, Tensor]:
    """Density per world unit [X, X, X] and density times colour [X, X, X, 3] at the corners of a grid's voxels."""
    g = gaussians.to(device="cpu", dtype=torch.float32)
    side, voxel = config.voxels, 2 * config.half / (config.voxels - 1)
    scales = g.log_scales.exp().clamp(min=THINNEST * voxel)
    axes = quats_to_matrices(torch.nn.functional.normalize(g.quats, dim=-1))
    inverse = axes @ torch.diag_embed(scales**-2) @ axes.mT
    reach = REACH * ((axes * scales[:, None]) ** 2).sum(-1).sqrt()  # of the box around it, along x, y and z
    depth = -torch.log1p(-g.opacities.clamp(max=MOST_OPAQUE))
    peak = depth / (math.sqrt(2 * math.pi) * scales.amin(-1))
    rgb = (g.sh_dc * sh.C0 + 0.5).clamp(0, 1)
    low = ((g.means - reach + config.half) / voxel).ceil().long().clamp(min=0)
    high = ((g.means + reach + config.half) / voxel).floor().long().clamp(max=side - 1) + 1
    sigma, color = torch.zeros(side, side, side), torch.zeros(side, side, side, 3)
    for i in (high > low).all(-1).nonzero().flatten().tolist():
        box = tuple(slice(*bounds) for bounds in zip(low[i].tolist(), high[i].tolist()))
        places = torch.meshgrid(
            *(torch.arange(part.start, part.stop) * voxel - config.half for part in box), indexing="ij"
        )
        away = torch.stack(places, -1) - g.means[i]
        own = peak[i] * torch.exp(-0.5 * ((away @ inverse[i]) * away).sum(-1))
        sigma[box] += own
        color[box] += own[..., None] * rgb[i]
    return sigma, color
