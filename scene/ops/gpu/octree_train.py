"""Drives cuda/gpu/octree_train.cu: gradients of leaves, their weights and training steps, as cuda/cpu/octree_train.cpp.

Each ray is walked twice, to count the leaves it meets and to write them. In between their number is read from the card:
one wait a call, and another for a step's error. All sums take the same order every time.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from scene.ops.gpu.adam import Constants
from scene.ops.gpu.launch import Argument, blocks, launch, scratch
from scene.ops.gpu.octree_render import MOST, THREADS, OctreeScene
from scene.ops.gpu.radix_sort import sort_places
from scene.ops.gpu.scan import exclusive_sum

SUM_THREADS, PIECE = 256, 32  # kSumThreads and kPiece of cuda/gpu/octree_train.cu


class Records(NamedTuple):
    """Leaves met by all rays. begins: [R + 1], where those of each ray begin.  rows: [H].  records: [H, 4].

    spans: [H, 2] t at which each piece begins and its length, where they are wanted.
    """

    begins: Tensor
    rows: Tensor
    records: Tensor
    spans: Tensor | None = None


class Gradients(NamedTuple):
    """By the logits and sigma of each record [H, 4], the rays' basis functions [R, K], and squared errors [R]."""

    gradients: Tensor
    basis: Tensor
    errors: Tensor


def octree_weights(
    top: Tensor,
    nodes: Tensor,
    boxes: Tensor,
    shape: Tensor,
    frame: Tensor,
    sigmas: Tensor,
    sh: Tensor,
    origins: Tensor | None,
    directions: Tensor | None,
    camera: Tensor | None,
    width: int,
    height: int,
    stop: float,
    least: float,
    sums: Tensor,
    maxima: Tensor,
) -> None:
    """Adds each leaf's weights over all rays to sums [L] and raises maxima [L] to the largest."""
    seen = (origins, directions, camera, width, height, stop, least)
    scene = OctreeScene.of(top, nodes, shape, frame, sigmas, sh, *seen)
    found = _walk(scene, sigmas)
    _sum_by_leaf("octree_sum_weights", found, (), len(sigmas), 1, 2, (sums, maxima))


def octree_backward(
    top: Tensor,
    nodes: Tensor,
    boxes: Tensor,
    shape: Tensor,
    frame: Tensor,
    sigmas: Tensor,
    sh: Tensor,
    origins: Tensor | None,
    directions: Tensor | None,
    camera: Tensor | None,
    width: int,
    height: int,
    stop: float,
    least: float,
    v_rgb: Tensor,
    v_last: Tensor,
    v_sigmas: Tensor,
    v_sh: Tensor,
) -> None:
    """Writes the gradient of a picture by the leaves, whole."""
    seen = (origins, directions, camera, width, height, stop, least)
    scene = OctreeScene.of(top, nodes, shape, frame, sigmas, sh, *seen)
    found = _walk(scene, sigmas)
    by_record = _differentiate(scene, found, (v_rgb, v_last, None, None))
    v_sigmas.zero_()
    v_sh.zero_()
    functions = by_record.basis.shape[1]
    inputs = (by_record.gradients, by_record.basis, functions)
    _sum_by_leaf("octree_sum_gradients", found, inputs, len(sigmas), functions + 1, 3, (v_sigmas, v_sh))


class OctreeTrainer:
    """Trains leaves on one picture at a time."""

    def step(
        self,
        top: Tensor,
        nodes: Tensor,
        boxes: Tensor,
        shape: Tensor,
        frame: Tensor,
        sigmas: Tensor,
        sh: Tensor,
        camera: Tensor,
        width: int,
        height: int,
        stop: float,
        least: float,
        target: Tensor,
        background: Tensor,
        sigma_moments: Tensor,
        sh_moments: Tensor,
        weights: Tensor,
        maxima: Tensor,
        number: int,
        lr_sigma: float,
        lr_sh: float,
        beta1: float,
        beta2: float,
        eps: float,
        floor: float,
        distortion: float,
    ) -> float:
        """Sum of squared errors against target [R, 3] over background [3]; then one step of Adam on the rows met, down
        the errors and `distortion` times each ray's distortion.

        sigma_moments: [2, L].  sh_moments: [2, L, 3K].  weights, maxima: [L], to which those in this picture are added,
        and which they raise.
        Sigmas stay at least at `floor`. All are written in place.
        """
        seen = (None, None, camera, width, height, stop, least)
        scene = OctreeScene.of(top, nodes, shape, frame, sigmas, sh, *seen)
        if tuple(target.shape) != (scene.rays, 3) or len(weights) != len(sigmas) or len(maxima) != len(sigmas):
            raise ValueError("target must have a row per pixel, weights a number per leaf")
        found = _walk(scene, sigmas, with_spans=distortion != 0)
        by_record = _differentiate(scene, found, (None, None, target, background), distortion)
        leaves = (len(sigmas), sigmas, sh, sigma_moments, sh_moments, weights, maxima)
        steps = (Constants.of(number, lr, beta1, beta2, eps) for lr in (lr_sigma, lr_sh))
        outputs = (*leaves, *(constant for step in steps for constant in step), float(floor))
        functions = by_record.basis.shape[1]
        inputs = (by_record.gradients, by_record.basis, functions)
        _sum_by_leaf("octree_train_leaves", found, inputs, len(sigmas), functions + 1, 3, outputs)
        return float(by_record.errors.sum(dtype=torch.float64))


def _walk(scene: OctreeScene, like: Tensor, with_spans: bool = False) -> Records:
    """Waits for the device."""
    counts, begins = (scratch(scene.rays + more, torch.int32, like) for more in (0, 1))
    launch("octree_train", "octree_walk", scene.grid, THREADS, *scene.arguments, None, counts, None, None, None)
    exclusive_sum(counts, begins[: scene.rays], begins[scene.rays :])
    total = int(begins[scene.rays :].item())
    if total >= MOST:
        raise ValueError(f"{scene.rays} rays meet more leaves than an int can count; take fewer at a time")
    rows, records = scratch(total, torch.int32, like), scratch(4 * total, torch.float32, like)
    spans = scratch(2 * total, torch.float32, like) if with_spans else None
    launch("octree_train", "octree_walk", scene.grid, THREADS, *scene.arguments, begins, None, rows, records, spans)
    return Records(begins, rows, records.view(total, 4), spans)


def _differentiate(
    scene: OctreeScene, found: Records, upstream: tuple[Tensor | None, ...], distortion: float = 0.0
) -> Gradients:
    functions = (scene.degree + 1) ** 2
    gradients = torch.empty_like(found.records)
    basis = scratch(scene.rays * functions, torch.float32, gradients).view(scene.rays, functions)
    errors = scratch(scene.rays, torch.float32, gradients)
    name = f"octree_gradients_{scene.degree}"
    outputs = (gradients, basis, errors)
    inputs = (found.begins, found.rows, found.records, *upstream, found.spans, float(distortion))
    launch("octree_train", name, scene.grid, THREADS, *scene.arguments, *inputs, *outputs)
    return Gradients(gradients, basis, errors)


def _sum_by_leaf(
    name: str,
    found: Records,
    inputs: tuple[Argument, ...],
    leaves: int,
    columns: int,
    numbers: int,
    outputs: tuple[Argument, ...],
) -> None:
    """Starts the two kernels of a sum; columns of `numbers` each are summed side by side. Overwrites found.rows."""
    count = len(found.rows)
    if not count:
        return
    rows, places = sort_places(found.rows, max(1, (leaves - 1).bit_length()), keep_keys=True)
    pieces = blocks(count, PIECE)
    heads, tails = (scratch(pieces * columns * numbers, torch.float32, found.records) for _ in range(2))
    block = (columns, SUM_THREADS // columns)
    for across in (0, 1):
        sorted_records = (rows, places, count, found.records, *inputs, across, heads, tails)
        launch("octree_train", name, blocks(pieces, block[1]), block, *sorted_records, *outputs)
