"""gsplat (Ye et al., 2024) as another rasterizer for training: a peer to compare with, where it is installed.

`SplatStep(gaussians, adam, GsplatPass())` draws and back-propagates by `gsplat.rasterization` and its autograd; Adam is
ours. What is drawn is the same to the last digits: blur of 0.3 px^2, near plane, SH layout, alphas from 1/255 on.
Differences: gsplat cuts a splat off at 3.33 sigma, which ours does at an alpha of 1/255; its sums are atomic, so no
two runs are equal to the bit.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from scene.errors import InputError
from scene.gaussians import Gaussians
from scene.ops.adam import adam_visible
from scene.ops.splat_blend import Blended
from scene.ops.splat_step import AdamState, Rates, Shot, Statistics, Upstream

BLUR = 0.3  # px^2, the low-pass filter of splat_project


def installed() -> bool:
    """Whether gsplat is there."""
    return importlib.util.find_spec("gsplat") is not None


def check(device: torch.device) -> None:
    """Raises InputError when gsplat is not installed or `device` is none it runs on."""
    if not installed():
        raise InputError("--rasterizer gsplat needs gsplat: pip install gsplat, or leave the flag out")
    if device.type != "cuda":
        raise InputError(f"--rasterizer gsplat needs an NVIDIA GPU, not {device.type}; leave the flag out")


def explain() -> str:
    """One line for environment.json."""
    return f"gsplat {importlib.metadata.version('gsplat')} on {torch.cuda.get_device_name()}"


class GsplatPass:
    """The stages of `SplatStep` by gsplat.

    rasterize: stands in for `gsplat.rasterization` in tests, which have no GPU.
    """

    def __init__(self, rasterize: Callable[..., Any] | None = None) -> None:
        self._rasterize: Callable[..., Any] = rasterize or importlib.import_module("gsplat").rasterization

    def visible(self) -> Tensor:
        """[V] int32, ascending: what the last forward drew."""
        return (self._radii > 0).all(1).nonzero()[:, 0].int()

    def forward(self, gaussians: Gaussians, shot: Shot) -> Blended:
        """Colour and alpha. Raises ValueError when depth or normals are asked for."""
        if shot.with_geometry:
            raise ValueError("gsplat's pass draws no normals; use SplatStep without it")
        means, camera = gaussians.means, shot.camera
        self._size = camera.width, camera.height
        self._leaves = {name: value.detach().requires_grad_() for name, value in gaussians.parameters().items()}
        self._leaves["viewmat"] = camera.viewmat.to(means).detach().requires_grad_()
        drawn = Gaussians(**{name: self._leaves[name] for name in gaussians.parameters()})
        rgb, alpha, meta = self._rasterize(
            drawn.means,
            drawn.quats,
            drawn.scales,
            drawn.opacities,
            drawn.sh_coeffs,
            self._leaves["viewmat"][None],
            camera.K.to(means)[None],
            camera.width,
            camera.height,
            near_plane=shot.near,
            eps2d=BLUR,
            sh_degree=shot.sh_degree,
            packed=False,
            backgrounds=shot.background.to(means)[None],
            absgrad=True,
            rasterize_mode="antialiased" if shot.antialias else "classic",
        )
        self._means2d, self._radii = meta["means2d"], meta["radii"].reshape(-1, 2)
        self._blended = Blended(rgb[0], alpha[0, ..., 0], None, None, None)
        return Blended(self._blended.rgb.detach(), self._blended.alpha.detach(), None, None, None)

    def backward(self, upstream: Upstream, absgrad: bool) -> None:
        """Gradients by what the last forward drew from."""
        pairs = [(self._blended.rgb, upstream.rgb), (self._blended.alpha, upstream.alpha)]
        used = [(image, v) for image, v in pairs if v is not None]
        gradients = torch.autograd.grad(
            [image for image, _ in used],
            [*self._leaves.values(), self._means2d],
            [v for _, v in used],
            allow_unused=True,
            materialize_grads=True,
        )
        self._v = {name: v.contiguous() for name, v in zip(self._leaves, gradients)}
        v_means2d = self._means2d.absgrad if absgrad else gradients[-1]  # gsplat leaves it there in its backward
        self._v_score = v_means2d.reshape(-1, 2)

    def gradients(self, gaussians: Gaussians) -> dict[str, Tensor]:
        """By all Gaussians, dense, and by viewmat."""
        return dict(self._v)

    @torch.no_grad()
    def update(self, gaussians: Gaussians, adam: AdamState, statistics: Statistics, rates: Rates) -> None:
        """Sparse Adam over what was drawn, and the statistics, as `SplatStep` states them."""
        ids, count = self.visible(), max(1, len(gaussians))
        opacities, v = gaussians.opacities, dict(self._v)
        v["opacity_logits"] = v["opacity_logits"] + rates.opacity_pull / count * opacities * (1 - opacities)
        v["log_scales"] = v["log_scales"] + rates.scale_pull / (3 * count) * gaussians.scales
        betas = (rates.beta1, rates.beta2)
        for (name, value), rate in zip(gaussians.parameters().items(), rates.by_group()):
            if value.numel() > 0 and rate != 0:
                moments = (adam.exp_avg[name], adam.exp_avg_sq[name])
                adam_visible(value, v[name], ids, *moments, step=adam.steps, lr=rate, betas=betas, eps=rates.eps)
        rows = ids.long()
        half = 0.5 * torch.tensor(self._size, dtype=self._v_score.dtype, device=self._v_score.device)
        statistics.score[rows] += (self._v_score[rows] * half).norm(dim=1)
        statistics.seen[rows] += 1
        reach = self._radii[rows].amax(1).to(statistics.radius)
        statistics.radius[rows] = torch.maximum(statistics.radius[rows], reach)
