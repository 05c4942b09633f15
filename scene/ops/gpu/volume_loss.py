"""Drives cuda/gpu/volume_loss.cu: nothing is read back, so the loss stays on the device."""

from __future__ import annotations

import torch
from torch import Tensor

from scene.ops.gpu.launch import blocks, launch, scratch

THREADS, RAYS, SUM_THREADS = 256, 8, 256  # as kThreads, kWarps and kSumThreads there


def volume_loss(
    rgb: Tensor,
    weights: Tensor,
    s: Tensor | None,
    offsets: Tensor,
    last: Tensor,
    target: Tensor,
    background: Tensor,
    interval: float,
    per_point: float,
    entropy: float,
    distortion: float,
    v_rgb: Tensor,
    v_weights: Tensor,
    v_last: Tensor,
) -> tuple[Tensor, Tensor]:
    """The loss and its part that is the mean squared error; writes the gradients. All as in the CPU module.

    The offsets are not checked, which would wait for the card: they are cut to the samples that there are.
    """
    samples, rays = len(weights), len(last)
    count, share = blocks(rays, RAYS), 1 / max(1, rays)
    terms = (share / 3, per_point * share, entropy * share, distortion * share, float(interval))
    sums, loss = scratch(2 * count, torch.float32, rgb), scratch(2, torch.float32, rgb)
    inputs = (rgb, weights, s, offsets, last, target, background)
    launch(
        "volume_loss",
        "volume_loss",
        count,
        THREADS,
        *inputs,
        samples,
        rays,
        *terms,
        v_rgb,
        v_weights,
        v_last,
        sums,
    )
    launch("volume_loss", "volume_loss_totals", 1, SUM_THREADS, sums, count, loss[:1], loss[1:])
    return loss[0], loss[1]


def composite_rays(
    rgb: Tensor, weights: Tensor, offsets: Tensor, last: Tensor, background: Tensor, out: Tensor
) -> None:
    """Writes each ray's colour over the background into out."""
    samples, rays = len(weights), len(last)
    inputs = (rgb, weights, offsets, last, background)
    launch("volume_loss", "composite_rays", blocks(rays, RAYS), THREADS, *inputs, samples, rays, out)
