"""Numbers that a device has computed, read without making it idle."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

LATE = 2  # reads: what is asked for was queued that long ago and has ended, or the device still has the rest to do


class LateRead:
    """Reads a small tensor as it was LATE calls ago.

    The host may wait for that moment, which also keeps it from running far ahead, but never for the newest work. Which
    call's numbers come does not depend on timing.
    """

    def __init__(self) -> None:
        self._queue: deque[tuple[Tensor, torch.cuda.Event | None]] = deque()

    def read(self, values: Tensor) -> Tensor | None:
        """The numbers of LATE calls ago, on the CPU; None at first."""
        if values.is_cuda:
            copy = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            copy.copy_(values, non_blocking=True)
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(values.device))
            self._queue.append((copy, event))
        else:  # kernels on the host have ended when they return
            self._queue.append((values.clone(), None))
        if len(self._queue) <= LATE:
            return None
        copy, event = self._queue.popleft()
        if event is not None:
            event.synchronize()
        return copy

    def forget(self) -> None:
        """Drops what was queued."""
        self._queue.clear()
