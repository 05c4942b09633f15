"""Starts kernels of cuda/gpu by name: on the card of the tensors, or, in tests, on the host.

    launch("composite", "composite", grid, block, rgb, alpha, background, out, pixels)

Arguments reach an `extern "C" __global__` function in order: a Tensor (contiguous) as the pointer to its data, None as
a null pointer, bool and int as int, float as float. Kernels run in order on torch's current stream and are not waited
for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

Argument = Tensor | None | bool | int | float
Size = tuple[int, int, int]


class Launcher(Protocol):
    """Runs one kernel `name` of cuda/gpu/`source`.cu."""

    def __call__(self, source: str, name: str, grid: Size, block: Size, arguments: Sequence[Argument]) -> None: ...


_host: Launcher | None = None


@contextmanager
def on_host(launcher: Launcher) -> Iterator[None]:
    """For tests: within it kernels run on CPU tensors through `launcher`, and all ops take the GPU's path."""
    global _host
    before, _host = _host, launcher
    try:
        yield
    finally:
        _host = before


def runs_on_host() -> bool:
    """Whether `on_host` is in force."""
    return _host is not None


def launch(
    source: str, name: str, grid: int | tuple[int, ...], block: int | tuple[int, ...], *arguments: Argument
) -> None:
    """Starts a kernel; does nothing when the grid is empty. Raises ValueError for a tensor that is not contiguous."""
    sizes = _three(grid), _three(block)
    if 0 in sizes[0]:
        return
    for argument in arguments:
        if isinstance(argument, Tensor) and not argument.is_contiguous():
            raise ValueError(f"{source}.{name} takes contiguous tensors, got strides {argument.stride()}")
    if _host is not None:
        _host(source, name, *sizes, arguments)
        return
    from scene.ops.gpu import runtime

    runtime.launch(source, name, *sizes, arguments)


def blocks(count: int, per_block: int) -> int:
    """Blocks that cover `count`."""
    return -(-count // per_block)


def _three(size: int | tuple[int, ...]) -> Size:
    x, y, z = (*((size,) if isinstance(size, int) else size), 1, 1)[:3]
    return x, y, z


def scratch(numel: int, dtype: torch.dtype, like: Tensor) -> Tensor:
    """Uninitialised room on the device of `like`."""
    return torch.empty(numel, dtype=dtype, device=like.device)
