"""Compiles cuda/gpu/*.cu for the card found, keeps the result on disk, and launches on torch's current stream."""

from __future__ import annotations

from collections.abc import Sequence

from scene.ops.gpu.launch import Argument, Size


def usable() -> tuple[bool, str]:
    """Whether kernels can run on the current card, and one sentence that says why or why not."""
    return False, "this build has no GPU runtime yet"


def launch(source: str, name: str, grid: Size, block: Size, arguments: Sequence[Argument]) -> None:
    """Starts one kernel."""
    raise NotImplementedError
