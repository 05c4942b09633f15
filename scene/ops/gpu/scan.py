"""Sums of all that comes before, on the GPU: cuda/gpu/scan.cu."""

from __future__ import annotations

import torch
from torch import Tensor

from scene.ops.gpu.launch import blocks, launch, scratch

THREADS = 256
BLOCK_VALUES = 4096  # values that a block scans


def exclusive_sum(values: Tensor, out: Tensor, total: Tensor, *, places: Tensor | None = None) -> None:
    """out[i] = values[places[0]] + .. + values[places[i - 1]]; total[0] = the sum of all.

    values, out, places: [N] int32, values >= 0, out none of the others.  places: 0, 1, 2, .. when None.
    total: [1] int32, stays on the device.
    A sum beyond 2^31 - 1 stays at 2^31 - 1.
    """
    count = out.shape[0]
    sums = max(1, blocks(count, BLOCK_VALUES))  # of nothing too there is a total
    block_sums = scratch(sums, torch.int32, out)
    launch("scan", "scan_block_sums", sums, THREADS, values, places, count, block_sums)
    launch("scan", "scan_write", sums, THREADS, values, places, count, block_sums, out, total)
