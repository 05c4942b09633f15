"""Splats with known shapes, and a blending oracle that shares no line with the library: numpy, one pixel at a time."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from scene.ops.splat_project import Projected

FIELDS = ("means2d", "conics", "opacities", "colors", "depths", "normals")


def make_projected(
    means2d: Tensor, covariances: Tensor, opacities: Tensor, colors: Tensor, depths: Tensor, normals: Tensor
) -> Projected:
    """covariances: [V, 3] xx, xy, yy in px^2. Conics and extents follow as `project` defines them."""
    xx, xy, yy = covariances.unbind(1)
    determinant = xx * yy - xy**2
    reach = 2 * torch.log(255 * opacities).clamp(min=0)
    extents = torch.stack([(reach * xx).sqrt(), (reach * yy).sqrt()], dim=1)
    conics = torch.stack([yy, -xy, xx], dim=1) / determinant[:, None]
    ids = torch.arange(len(depths), dtype=torch.int32)
    return Projected(ids, means2d, conics, opacities, colors, depths, normals, extents)


def random_projected(
    count: int, width: int, height: int, *, seed: int = 0, dtype: torch.dtype = torch.float32, opaque: float = 0.9
) -> Projected:
    """Splats of 1 to 7 px in any direction over the image and a little beyond; opacities from 0.01 to `opaque`."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    sigmas, angle = torch.exp(2 * rand(count, 2)), np.pi * rand(count)
    axes = torch.stack([angle.cos(), angle.sin(), -angle.sin(), angle.cos()], dim=1).view(-1, 2, 2)
    covariances = axes @ torch.diag_embed(sigmas**2 + 0.3) @ axes.mT
    covariances = torch.stack([covariances[:, 0, 0], covariances[:, 0, 1], covariances[:, 1, 1]], dim=1)
    size = torch.tensor([width, height], dtype=torch.float64)
    normals = torch.nn.functional.normalize(rand(count, 3) - 0.5, dim=1)
    splats = make_projected(
        (1.2 * rand(count, 2) - 0.1) * size,
        covariances,
        0.01 + (opaque - 0.01) * rand(count),
        rand(count, 3),
        1 + 9 * rand(count),
        normals,
    )
    return cast(splats, dtype)


def cast(splats: Projected, dtype: torch.dtype) -> Projected:
    """The same splats in another dtype, as leaves of a new graph."""
    fields = {name: getattr(splats, name).detach().to(dtype) for name in (*FIELDS, "extents")}
    return Projected(ids=splats.ids, **fields)


def select(splats: Projected, rows: Tensor) -> Projected:
    """Some of the splats, in the order of `rows`."""
    return Projected(**{name: getattr(splats, name)[rows] for name in ("ids", *FIELDS, "extents")})


def blend_pixel_by_pixel(splats: Projected, width: int, height: int, background: np.ndarray) -> dict[str, np.ndarray]:
    """rgb, alpha, depth, normal, median_depth in float64, straight from the definition."""
    mean, conic, opacity, color, z, normal = (getattr(splats, name).double().numpy() for name in FIELDS)
    order = np.argsort(splats.depths.float().numpy(), kind="stable")
    images = {"rgb": np.zeros((height, width, 3)), "normal": np.zeros((height, width, 3))}
    images |= {name: np.zeros((height, width)) for name in ("alpha", "depth", "median_depth")}
    for row in range(height):
        for column in range(width):
            light = 1.0
            for i in order:
                dx, dy = mean[i] - (column + 0.5, row + 0.5)
                power = conic[i, 0] * dx * dx + 2 * conic[i, 1] * dx * dy + conic[i, 2] * dy * dy
                alpha = min(0.999, opacity[i] * np.exp(-0.5 * power))
                if light < 1e-4:
                    break
                if alpha < 1 / 255:
                    continue
                images["rgb"][row, column] += light * alpha * color[i]
                images["depth"][row, column] += light * alpha * z[i]
                images["normal"][row, column] += light * alpha * normal[i]
                if light >= 0.5 > light * (1 - alpha):
                    images["median_depth"][row, column] = z[i]
                light *= 1 - alpha
            images["rgb"][row, column] += light * background
            images["alpha"][row, column] = 1 - light
    return images
