"""Stable sort on the GPU of a number of keys that only the GPU knows: cuda/gpu/radix_sort.cu."""

from __future__ import annotations

import torch
from torch import Tensor

from scene.ops.gpu.launch import blocks, launch, scratch

THREADS = 256
BLOCK_KEYS = 4096  # keys that a block moves
DIGIT_BITS = 8
DIGITS = 1 << DIGIT_BITS


def sort_places(
    keys: Tensor, bits: int, *, count: Tensor | None = None, keep_keys: bool = False
) -> tuple[Tensor, Tensor]:
    """(keys, places): the keys in ascending order and where each stood, equal keys in the order they stood in.

    keys: [N] int32, read as unsigned, all below 2^bits; overwritten.  count: [1] int32 on the device, None means N;
    only the first min(count, N) keys are sorted, what lies beyond them in the results is undefined.
    The results are int32 [N]; the keys are undefined unless keep_keys, and may lie where the keys given did.
    """
    size = keys.shape[0]
    rows = blocks(size, BLOCK_KEYS)
    histogram, digit_counts, spare_keys, places, spare_places = (
        scratch(length, torch.int32, keys) for length in (DIGITS * rows, DIGITS, size, size, size)
    )
    passes = max(1, blocks(bits, DIGIT_BITS))
    for step in range(passes):
        shift = step * DIGIT_BITS
        launch("radix_sort", "radix_histogram", rows, THREADS, keys, count, size, shift, rows, histogram)
        if rows:
            launch("radix_sort", "radix_places", DIGITS, THREADS, count, size, rows, histogram, digit_counts)
        wanted = keep_keys or step + 1 < passes
        launch(
            *("radix_sort", "radix_scatter", rows, THREADS, keys, places if step else None),
            *(count, size, shift, rows, histogram, digit_counts, spare_keys if wanted else None, spare_places),
        )
        keys, spare_keys = spare_keys, keys
        places, spare_places = spare_places, places
    return keys, places
