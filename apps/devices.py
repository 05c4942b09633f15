"""Where a run computes: what --device means on this machine."""

from __future__ import annotations

from pathlib import Path

import torch

from scene.errors import InputError
from scene.ops import native
from scene.ops.gpu import runtime

NVIDIA_DRIVER = Path("/dev/nvidiactl")  # there as soon as a driver is, whatever torch makes of it


def choose_device(wanted: str) -> tuple[torch.device, str | None]:
    """The device for `--device` auto, cpu or cuda, and a sentence for the report where a card is left unused.

    Raises InputError when a GPU is asked for and cannot be used.
    """
    if wanted == "cpu":
        return torch.device("cpu"), None
    usable, why = runtime.usable()
    if wanted == "cuda":
        if not usable:
            raise InputError(f"--device cuda cannot be used here: {why}; --device auto takes the CPU")
        return torch.device("cuda"), None
    if usable and native.backend("cuda") == "cuda":  # the reference on a card is for comparing, not for auto
        return torch.device("cuda"), None
    unused = not usable and (NVIDIA_DRIVER.exists() or torch.cuda.is_available())
    return torch.device("cpu"), f"Computing on the CPU: {why}." if unused else None
