"""The fused end of a training step on the GPU; arguments as of cuda/cpu/splat_update.cpp."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from scene.ops.gpu.adam import Constants
from scene.ops.gpu.launch import blocks, launch
from scene.ops.gpu.splat_project import SPLATS


def update_splats(
    params: Sequence[Tensor],
    exp_avg: Sequence[Tensor],
    exp_avg_sq: Sequence[Tensor],
    rates: Sequence[float],
    beta1: float,
    beta2: float,
    eps: float,
    step: int,
    opacity_pull: float,
    scale_pull: float,
    viewmat: Tensor,
    fx: float,
    fy: float,
    cx: float,
    cy: float,
    width: int,
    height: int,
    near: float,
    degree: int,
    antialias: bool,
    ids: Tensor,
    colors: Tensor,
    extents: Tensor,
    v_means2d: Tensor,
    v_conics: Tensor,
    v_opacities: Tensor,
    v_colors: Tensor,
    v_depths: Tensor | None,
    v_normals: Tensor | None,
    v_score: Tensor,
    score: Tensor,
    seen: Tensor,
    radius: Tensor,
) -> None:
    """Gradient of the projection, Adam and statistics of the rows of `ids` whose extents are above 0, in place.

    exp_avg, exp_avg_sq: all float32, or all uint16: the bits of bfloat16, rounded by chance (cuda/math/adam.h).

    ids ascend, so N of them are all Gaussians in order: the dense form, in which they are not read.
    """
    for param, first, second in zip(params, exp_avg, exp_avg_sq):
        if len(param) != len(score) or first.shape != param.shape or second.shape != param.shape:
            raise ValueError("parameters, moments and statistics must agree in shape")
    count, visible, sh_rest = len(score), len(ids), params[-1]
    each = [Constants.of(step, rate, beta1, beta2, eps) for rate in rates]
    constants = (each[0].new1, each[0].beta2, each[0].new2, each[0].inv_root_bias, each[0].eps)
    lens = (fx, fy, cx, cy, width, height, near, degree, antialias)
    rows = None if visible == count else ids
    upstream = (v_means2d, v_conics, v_opacities, v_colors, v_depths, v_normals, v_score)
    kernel = "update_splats" if exp_avg[0].dtype == torch.float32 else "update_splats_bfloat16"
    launch(
        *("splat_update", kernel, blocks(visible, SPLATS), SPLATS),
        *(*params, *exp_avg, *exp_avg_sq, sh_rest.shape[1]),
        *(constant.rate for constant in each),
        *(*constants, step & 0x7FFFFFFF, opacity_pull, scale_pull, viewmat, *lens),
        *(rows, visible, colors, extents, *upstream, score, seen, radius),
    )
