"""Rasterisation by gsplat's plain-torch reference on the CPU, with its parts timed.

gsplat 1.5.3 ships `gsplat.cuda._torch_impl`, whose `_rasterize_to_pixels` calls two helpers that exist for CUDA only:
`rasterize_to_indices_in_range` (which splat meets which pixel) and nerfacc's packed scan and sum. Both are given here
in torch; their forward time is reported apart as `shim`, so that nobody takes our substitute for gsplat's speed.
"""

from __future__ import annotations

import importlib
import sys
import time
from dataclasses import dataclass
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from scene.ops.splat_bin import MIN_ALPHA, TILE
from scene.ops.splat_blend import MAX_ALPHA, MIN_TRANSMITTANCE
from scene.ops.splat_project import Projected


@dataclass
class ReferenceRaster:
    """Image [H, W, 3], gradients by means2d, conics, opacities and colours, and wall and CPU seconds of each part."""

    rgb: Tensor
    gradients: tuple[Tensor, ...]
    seconds: dict[str, tuple[float, float]]


class _Clock:
    """Wall and CPU seconds since it was made."""

    def __init__(self) -> None:
        self.start = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        return time.perf_counter() - self.start[0], time.process_time() - self.start[1]


@dataclass
class _Shim:
    """The two helpers; counts the seconds spent in them."""

    wall: float = 0.0
    cpu: float = 0.0

    def count(self, clock: _Clock) -> None:
        wall, cpu = clock.read()
        self.wall, self.cpu = self.wall + wall, self.cpu + cpu

    def indices_in_range(
        self,
        first: int,
        last: int,
        transmittances: Tensor,  # [1, H, W]
        means2d: Tensor,  # [1, N, 2]
        conics: Tensor,
        opacities: Tensor,
        width: int,
        height: int,
        tile: int,
        offsets: Tensor,  # [1, rows, columns]
        ids: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(splat, pixel, image) of all pairs that blend, pixel by pixel, front to back."""
        clock = _Clock()
        columns, bounds = offsets.shape[-1], [*offsets.flatten().tolist(), len(ids)]
        splats, pixels = [], []
        with torch.no_grad():
            for index in range(len(bounds) - 1):
                begin = bounds[index] + first * tile * tile
                listed = ids[begin : min(bounds[index] + last * tile * tile, bounds[index + 1])].long()
                if len(listed) == 0:
                    continue
                top, left = index // columns * tile, index % columns * tile
                y, x = torch.meshgrid(
                    torch.arange(top, min(top + tile, height)),
                    torch.arange(left, min(left + tile, width)),
                    indexing="ij",
                )
                x, y = x.flatten(), y.flatten()
                dx, dy = (x[:, None] + 0.5 - means2d[0, listed, 0]), (y[:, None] + 0.5 - means2d[0, listed, 1])
                a, b, c = conics[0, listed].unbind(-1)
                power = 0.5 * (a * dx**2 + c * dy**2) + b * dx * dy
                alphas = (opacities[0, listed] * torch.exp(-power)).clamp_max(MAX_ALPHA)
                drawn = alphas >= MIN_ALPHA
                factors = torch.where(drawn, 1 - alphas, torch.ones_like(alphas))
                before = torch.cat([torch.ones_like(factors[:, :1]), factors.cumprod(1)[:, :-1]], dim=1)
                before = before * transmittances[0, y, x][:, None]
                pixel, rank = torch.nonzero(drawn & (before >= MIN_TRANSMITTANCE), as_tuple=True)
                splats.append(listed[rank])
                pixels.append((y * width + x)[pixel])
        splat = torch.cat(splats) if splats else torch.zeros(0, dtype=torch.int64)
        pixel = torch.cat(pixels) if pixels else torch.zeros(0, dtype=torch.int64)
        self.count(clock)
        return splat, pixel, torch.zeros_like(splat)

    def weights_from_alpha(self, alphas: Tensor, *, ray_indices: Tensor, n_rays: int) -> tuple[Tensor, Tensor]:
        """w_i = alpha_i prod_{j < i in the same ray} (1 - alpha_j); the pairs of a ray follow each other."""
        clock = _Clock()
        logs = torch.log1p(-alphas.double())  # one scan over all rays: float64, or rays at the end would lose digits
        before = logs.cumsum(0) - logs
        begins = torch.ones_like(ray_indices, dtype=torch.bool)
        begins[1:] = ray_indices[1:] != ray_indices[:-1]
        first = torch.nonzero(begins).squeeze(1)[begins.cumsum(0) - 1]
        transmittance = torch.exp(before - before[first]).to(alphas.dtype)
        self.count(clock)
        return alphas * transmittance, transmittance

    def sum_along_rays(self, weights: Tensor, values: Tensor | None, *, ray_indices: Tensor, n_rays: int) -> Tensor:
        """[n_rays, C] sum of w_i v_i."""
        clock = _Clock()
        terms = weights[:, None] if values is None else weights[:, None] * values
        total = torch.zeros(n_rays, terms.shape[1], dtype=terms.dtype).index_add(0, ray_indices, terms)
        self.count(clock)
        return total


def installed() -> bool:
    """Whether gsplat with its torch reference is there."""
    try:
        importlib.import_module("gsplat.cuda._torch_impl")
    except ImportError:
        return False
    return True


def rasterize(projected: Projected, width: int, height: int, v_rgb: Tensor) -> ReferenceRaster:
    """Sorts into tiles, blends on black and back-propagates v_rgb [H, W, 3].

    The tile boxes come from our opacity-aware extents, which gives gsplat fewer pairs than its own 3.33 sigma would.
    """
    reference: Any = importlib.import_module("gsplat.cuda._torch_impl")
    wrapper: Any = importlib.import_module("gsplat.cuda._wrapper")
    shim, nerfacc = _Shim(), ModuleType("nerfacc")
    nerfacc.__dict__.update(accumulate_along_rays=shim.sum_along_rays, render_weight_from_alpha=shim.weights_from_alpha)
    columns, rows = -(-width // TILE), -(-height // TILE)
    fields = (projected.means2d, projected.conics, projected.opacities, projected.colors)
    inputs = [value.detach().clone().requires_grad_() for value in fields]
    means2d, conics, opacities, colors = (value[None] for value in inputs)
    seconds = {}

    clock = _Clock()
    radii = projected.extents.ceil().int()[None]
    _, keys, ids = reference._isect_tiles(means2d.detach(), radii, projected.depths.detach()[None], TILE, columns, rows)
    offsets = reference._isect_offset_encode(keys, 1, columns, rows)
    seconds["isect"] = clock.read()

    clock = _Clock()
    with (
        mock.patch.dict(sys.modules, {"nerfacc": nerfacc}),
        mock.patch.object(wrapper, "rasterize_to_indices_in_range", shim.indices_in_range),
    ):
        rgb, _ = reference._rasterize_to_pixels(
            means2d, conics, colors, opacities, width, height, TILE, offsets.reshape(1, rows, columns), ids
        )
    wall, cpu = clock.read()
    seconds["blend"], seconds["shim"] = (wall - shim.wall, cpu - shim.cpu), (shim.wall, shim.cpu)

    clock = _Clock()
    gradients = torch.autograd.grad((rgb[0] * v_rgb).sum(), inputs)
    seconds["backward"] = clock.read()
    return ReferenceRaster(rgb[0].detach(), gradients, seconds)
