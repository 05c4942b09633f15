"""Drives cuda/gpu/photometric_loss.cu: nothing is read back, so the loss stays on the device."""

from __future__ import annotations

import torch
from torch import Tensor

from scene.ops.gpu.launch import blocks, launch, scratch

TILE, THREADS, SUM_THREADS = (32, 16), 256, 256  # as kWide, kTall, kThreads and kSumThreads there
MAPS = 9  # derivatives of SSIM: three by each of three channels
SUMS = 8  # of a tile: L1, SSIM, six by exposure


def photometric_loss(
    image: Tensor,
    target: Tensor,
    mask: Tensor | None,
    exposure: Tensor | None,
    ssim_weight: float,
    v_image: Tensor,
    v_exposure: Tensor | None,
) -> Tensor:
    """The loss, a 0-dim tensor; writes the gradients into v_image and v_exposure. All as in the CPU module."""
    height, width = image.shape[:2]
    tiles = (blocks(width, TILE[0]), blocks(height, TILE[1]))
    count, pixels = tiles[0] * tiles[1], height * width
    maps, sums = scratch(MAPS * pixels, torch.float32, image), scratch(SUMS * count, torch.float32, image)
    valid = None if mask is None else torch.zeros(1, dtype=torch.int32, device=image.device)
    loss = torch.empty((), dtype=torch.float32, device=image.device)
    kind = "bytes" if target.dtype == torch.uint8 else "floats"
    inputs = (image, target, mask, exposure, width, height, maps)
    launch("photometric_loss", f"loss_statistics_{kind}", tiles, THREADS, *inputs, sums, valid)
    launch(
        "photometric_loss", f"loss_gradient_{kind}", tiles, THREADS, *inputs, valid, float(ssim_weight), v_image, sums
    )
    launch(
        "photometric_loss",
        "loss_totals",
        1 if exposure is None else 1 + 6,
        SUM_THREADS,
        sums,
        count,
        valid,
        float(pixels),
        float(ssim_weight),
        loss,
        v_exposure,
    )
    return loss
