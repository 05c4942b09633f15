"""Draws Gaussians: project -> bin -> blend, each a named stage with its own op and reference twin.

3D Gaussian Splatting (Kerbl et al. 2023), section 4 and 6; constants in specs/recon.md, 0.4. Stages:
`scene/ops/splat_project.py` (ellipses, colours), `scene/ops/splat_blend.py` (tiles in depth order, compositing).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scene.cameras import Camera
from scene.gaussians import Gaussians
from scene.ops.splat_bin import bin_splats
from scene.ops.splat_blend import blend
from scene.ops.splat_project import project


@dataclass(frozen=True)
class RasterSettings:
    """How splats are drawn.

    antialias: opacity compensated for the low-pass filter (Mip-Splatting), for scenes trained that way.
    near: camera z at or below which nothing is drawn, scene units.  sh_degree: highest degree used, None for all.
    """

    antialias: bool = False
    near: float = 0.01
    sh_degree: int | None = None


@dataclass
class Render:
    """What a camera sees.

    rgb: [H, W, 3], background included.  alpha: [H, W].  depth: [H, W], expected camera z, 0 where alpha is 0.
    normal: [H, W, 3], sum of w n in the world, not normalised.  median_depth: [H, W], z at which half of the light is
    gone, else 0; not differentiable.  The last three are None unless geometry was asked for.
    """

    rgb: Tensor
    alpha: Tensor
    depth: Tensor | None
    normal: Tensor | None
    median_depth: Tensor | None


def render(
    gaussians: Gaussians,
    camera: Camera,
    *,
    background: Tensor | None = None,
    settings: RasterSettings | None = None,
    with_geometry: bool = False,
) -> Render:
    """The image of `gaussians` in `camera`, differentiable in all Gaussian tensors and in camera.c2w.

    background: [3], black where None.  with_geometry: also depth, normal and median depth.
    The camera takes the Gaussians' dtype and device.
    """
    settings = settings or RasterSettings()
    camera = camera.to(device=gaussians.means.device, dtype=gaussians.means.dtype)
    projected = project(
        **gaussians.parameters(),
        viewmat=camera.viewmat,
        K=camera.K,
        width=camera.width,
        height=camera.height,
        sh_degree=settings.sh_degree,
        antialias=settings.antialias,
        near=settings.near,
        with_normals=with_geometry,
    )
    bins = bin_splats(projected, camera.width, camera.height)
    blended = blend(projected, bins, background, with_geometry=with_geometry)
    depth = None
    if blended.depth is not None:
        covered = blended.alpha > 0
        depth = torch.where(covered, blended.depth / torch.where(covered, blended.alpha, 1), 0)
    return Render(
        rgb=blended.rgb,
        alpha=blended.alpha,
        depth=depth,
        normal=blended.normal,
        median_depth=blended.median_depth,
    )
