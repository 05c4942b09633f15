"""Says which kernels serve a device and why; finds the compiled CPU module and its best build for this processor.

Backends: `cpu` (compiled kernels), `cuda` (scene/ops/gpu: compiled for the card at first use) and `reference` (the
plain-torch twins, everywhere). The device of the tensors picks the backend; `MAQUETTE_BACKEND=reference` overrides;
`MAQUETTE_THREADS` sets the number of kernel threads; `MAQUETTE_CPU_LEVEL` forces one build for tests.
"""

from __future__ import annotations

import importlib
import os
import platform
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from scene.ops.gpu import runtime
from scene.ops.gpu.launch import runs_on_host

# Best first: the build's name and the processor flags (as /proc/cpuinfo spells them) that it needs.
LEVELS: tuple[tuple[str, frozenset[str]], ...] = (
    (
        "x86_64_v4",
        frozenset(["avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx2", "fma", "f16c", "bmi2"]),
    ),
    ("x86_64_v3", frozenset(["avx2", "fma", "f16c", "bmi1", "bmi2", "movbe", "abm"])),
    ("baseline", frozenset()),
)


@lru_cache(maxsize=1)
def processor_flags() -> frozenset[str]:
    """Instruction-set flags of this processor; empty where the system does not tell."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                return frozenset(line.split(":", 1)[1].split())
    except OSError:
        pass
    return frozenset()


@lru_cache(maxsize=1)
def _load() -> tuple[ModuleType | None, str]:
    """The compiled module and its level, or None and the reason."""
    reasons = []
    wanted = os.environ.get("MAQUETTE_CPU_LEVEL")
    for level, needs in LEVELS:
        if (wanted and level != wanted) or (not wanted and not needs <= processor_flags()):
            continue
        try:
            module = importlib.import_module(f"scene.ops._cpu_{level}")
        except ImportError as error:
            reasons.append(f"{level}: {error}")
            continue
        module.set_threads(int(os.environ.get("MAQUETTE_THREADS", len_affinity())))
        return module, level
    return None, "the CPU module is not compiled (" + "; ".join(reasons) + "); install a C++17 compiler and reinstall"


def len_affinity() -> int:
    """Number of processors this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


def backend(device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> str:
    """Name of the backend that serves tensors of this device and dtype: `cpu`, `cuda` or `reference`."""
    device = torch.device(device)
    if os.environ.get("MAQUETTE_BACKEND") == "reference":
        return "reference"
    if device.type == "cuda" or runs_on_host():
        return "cuda" if dtype == torch.float32 and (runs_on_host() or runtime.usable(device.index)[0]) else "reference"
    return "cpu" if device.type == "cpu" and _load()[0] is not None else "reference"


def has(device: torch.device, dtype: torch.dtype = torch.float32) -> bool:
    """Whether compiled kernels serve tensors of this device and dtype."""
    return backend(device, dtype) != "reference"


def kernels(device: torch.device) -> Any:
    """The compiled CPU module or scene.ops.gpu.kernels, whichever serves `device`. Only where `has` said yes."""
    if device.type == "cuda" or runs_on_host():
        from scene.ops.gpu import kernels as gpu

        return gpu
    return cpu()


def cpu() -> Any:
    """The compiled CPU module."""
    module = _load()[0]
    assert module is not None, "native.cpu() without native.has()"
    return module


def set_threads(count: int) -> None:
    """Number of kernel threads; results do not depend on it."""
    module = _load()[0]
    if module is not None:
        module.set_threads(count)


def explain(device: torch.device | str = "cpu") -> str:
    """One line: which backend runs float32 on `device`, which build of it or which card, and why."""
    device = torch.device(device)
    if os.environ.get("MAQUETTE_BACKEND") == "reference":
        return "reference (plain torch), because MAQUETTE_BACKEND=reference"
    if device.type == "cuda":
        good, why = runtime.usable(device.index)
        return f"cuda kernels on {why}" if good else f"reference (plain torch), because {why}"
    module, why = _load()
    if module is None:
        return f"reference (plain torch), because {why}"
    return f"cpu kernels, build {why} for {platform.machine()}, {module.threads()} threads"
