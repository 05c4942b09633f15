"""Projection on the GPU; arguments as of cuda/cpu/splat_project.cpp, plus the dense form of the training step."""

from __future__ import annotations

import torch
from torch import Tensor

from scene.ops.gpu.launch import blocks, launch, scratch

SPLATS = 128  # per block: kSplats of cuda/gpu/splat_rows.h
_SUMS = 16  # numbers per block of the camera's gradient: kSumColumns of cuda/gpu/splat_project.cu
_SUM_THREADS = 1024  # kSumThreads


def project_splats_dense(
    means: Tensor,
    quats: Tensor,
    log_scales: Tensor,
    opacity_logits: Tensor,
    sh_dc: Tensor,
    sh_rest: Tensor,
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
    ids: Tensor | None,
    means2d: Tensor,
    conics: Tensor,
    opacities: Tensor,
    colors: Tensor,
    depths: Tensor,
    normals: Tensor | None,
    extents: Tensor,
) -> int:
    """Row i of the outputs is Gaussian i; returns N, without waiting for the card.

    A Gaussian that is not seen has extents, opacity and all else 0 and an infinite depth; whoever is seen has extents
    above 0. ids, where given, becomes 0 .. N - 1.
    """
    count = len(means)
    inputs = (means, quats, log_scales, opacity_logits, sh_dc, sh_rest, count, sh_rest.shape[1], viewmat)
    lens = (fx, fy, cx, cy, width, height, near, degree, antialias)
    outputs = (ids, means2d, conics, opacities, colors, depths, normals, extents)
    launch("splat_project", "project_dense", blocks(count, SPLATS), SPLATS, *inputs, *lens, *outputs)
    return count


def project_splats(
    means: Tensor,
    quats: Tensor,
    log_scales: Tensor,
    opacity_logits: Tensor,
    sh_dc: Tensor,
    sh_rest: Tensor,
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
    means2d: Tensor,
    conics: Tensor,
    opacities: Tensor,
    colors: Tensor,
    depths: Tensor,
    normals: Tensor | None,
    extents: Tensor,
) -> int:
    """Writes the visible splats in ascending order and returns how many there are, for which it waits for the card."""
    outputs = (means2d, conics, opacities, colors, depths, normals, extents)
    dense = [None if out is None else out.new_empty((len(means), *out.shape[1:])) for out in outputs]
    inputs = (means, quats, log_scales, opacity_logits, sh_dc, sh_rest, viewmat)
    lens = (fx, fy, cx, cy, width, height, near, degree, antialias)
    project_splats_dense(*inputs, *lens, None, *dense)  # pyright: ignore[reportArgumentType]
    assert dense[-1] is not None
    rows = (dense[-1][:, 0] > 0).nonzero().squeeze(1)
    ids[: len(rows)] = rows
    for source, out in zip(dense, outputs):
        if source is not None and out is not None:
            torch.index_select(source, 0, rows, out=out[: len(rows)])
    return len(rows)


def project_splats_backward(
    means: Tensor,
    quats: Tensor,
    log_scales: Tensor,
    opacity_logits: Tensor,
    sh_dc: Tensor,
    sh_rest: Tensor,
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
    v_means2d: Tensor,
    v_conics: Tensor,
    v_opacities: Tensor,
    v_colors: Tensor,
    v_depths: Tensor | None,
    v_normals: Tensor | None,
    v_means: Tensor,
    v_quats: Tensor,
    v_log_scales: Tensor,
    v_opacity_logits: Tensor,
    v_sh_dc: Tensor,
    v_sh_rest: Tensor,
    v_viewmat: Tensor,
) -> None:
    """Gradients at the rows of `ids`, the others being left as they are, and v_viewmat; the same bits every time."""
    visible = len(ids)
    grid = blocks(visible, SPLATS)
    sums = scratch(grid * _SUMS, torch.float32, means)
    inputs = (means, quats, log_scales, opacity_logits, sh_dc, sh_rest, sh_rest.shape[1], viewmat)
    lens = (fx, fy, cx, cy, width, height, near, degree, antialias)
    upstream = (ids, visible, colors, v_means2d, v_conics, v_opacities, v_colors, v_depths, v_normals)
    outputs = (v_means, v_quats, v_log_scales, v_opacity_logits, v_sh_dc, v_sh_rest, sums)
    launch("splat_project", "project_backward", grid, SPLATS, *inputs, *lens, *upstream, *outputs)
    launch("splat_project", "sum_view_gradient", 1, _SUM_THREADS, sums, grid, viewmat, v_viewmat)
