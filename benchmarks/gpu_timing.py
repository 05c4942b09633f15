"""Timing on a device: laps by events, candidates by turns, kernels by stage, peak memory, a copy's bandwidth."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol
from unittest import mock

import torch

# Which functions of the kernels make up each stage.
STAGE_CALLS = {
    "project": ("project_splats", "project_splats_dense"),
    "sort and bin": ("SplatBins.build",),
    "blend forward": ("SplatBlend.forward",),
    "loss": ("photometric_loss",),
    "blend backward": ("SplatBlend.backward",),
    "update": ("update_splats",),
}

Candidate = Callable[[], object]


@dataclass
class Laps:
    """Milliseconds of code on the device, by events on a GPU and by the clock on a CPU."""

    device: torch.device
    samples: dict[str, list[float]] = field(default_factory=dict)
    _open: list[tuple[str, Any, Any]] = field(default_factory=list)

    @contextmanager
    def lap(self, name: str) -> Iterator[None]:
        """One sample: what the block gives the device to do. Nothing is waited for before `close`."""
        if self.device.type != "cuda":
            began = time.perf_counter()
            yield
            self.samples.setdefault(name, []).append(1e3 * (time.perf_counter() - began))
            return
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        yield
        end.record()
        self._open.append((name, start, end))

    def close(self) -> None:
        """Waits for the device and reads the events."""
        if self._open:
            torch.cuda.synchronize(self.device)
        for name, start, end in self._open:
            self.samples.setdefault(name, []).append(start.elapsed_time(end))
        self._open.clear()

    def medians(self) -> dict[str, float]:
        return {name: statistics.median(values) for name, values in self.samples.items()}

    def spread(self) -> dict[str, tuple[float, float]]:
        """10th and 90th percentile."""
        sorted_by_name = {name: sorted(values) for name, values in self.samples.items()}
        return {n: (v[round(0.1 * (len(v) - 1))], v[round(0.9 * (len(v) - 1))]) for n, v in sorted_by_name.items()}


def by_turns(candidates: Mapping[str, Candidate], device: torch.device, *, samples: int, per_turn: int = 6) -> Laps:
    """At least `samples` of each, a few of one after a few of the other, so that the card's clock favours none."""
    laps = Laps(device)
    for _ in range(-(-samples // per_turn)):
        for name, run in candidates.items():
            run()  # caches and allocator are this candidate's again
            for _ in range(per_turn):
                with laps.lap(name):
                    run()
            laps.close()
    return laps


@contextmanager
def stages_timed(kernels: Any, laps: Laps, stages: Mapping[str, tuple[str, ...]] = STAGE_CALLS) -> Iterator[None]:
    """Within it every call of a kernel that `stages` names is a sample of its stage."""
    patches = []
    for stage, calls in stages.items():
        for call in calls:
            owner, name = _owner(kernels, call)
            if name in vars(owner):
                patches.append(mock.patch.object(owner, name, _lapped(vars(owner)[name], stage, laps)))
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in patches:
            patch.stop()


def _owner(kernels: Any, call: str) -> tuple[Any, str]:
    of, _, name = call.rpartition(".")
    return (getattr(kernels, of) if of else kernels), name


def _lapped(function: Callable[..., Any], stage: str, laps: Laps) -> Callable[..., Any]:
    def timed(*arguments: Any, **named: Any) -> Any:
        with laps.lap(stage):
            return function(*arguments, **named)

    return timed


class Runs(Protocol):
    """A training step, ours or the peer's."""

    def run(self) -> None: ...


def peak_bytes(make: Callable[[], Runs], device: torch.device) -> int | None:
    """Most memory of a training step with all that it keeps: parameters, moments, buffers. None on a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    step = make()
    for _ in range(2):  # the second one holds the moments as well
        step.run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def copy_rate(device: torch.device, *, megabytes: int = 2048) -> float:
    """Bytes a second, read and written, of a copy within the device's memory: median of 20."""
    source = torch.empty(megabytes << 20, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    laps = by_turns({"copy": lambda: target.copy_(source)}, device, samples=20)
    return 2e3 * source.numel() / laps.medians()["copy"]
