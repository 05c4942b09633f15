"""Finds the compiled CPU module, picks the best build for this processor, and says which backend runs and why.

Backends: `cpu` (compiled kernels) and `reference` (the plain-torch twins, everywhere). `MAQUETTE_BACKEND=reference`
overrides; `MAQUETTE_THREADS` sets the number of kernel threads; `MAQUETTE_CPU_LEVEL` forces one build for tests.
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


def has(device: torch.device) -> bool:
    """Whether compiled kernels serve tensors on `device`."""
    return device.type == "cpu" and os.environ.get("MAQUETTE_BACKEND") != "reference" and _load()[0] is not None


def cpu() -> Any:
    """The compiled CPU module. Call only where `has` said yes."""
    module = _load()[0]
    assert module is not None, "native.cpu() without native.has()"
    return module


def set_threads(count: int) -> None:
    """Number of kernel threads; results do not depend on it."""
    module = _load()[0]
    if module is not None:
        module.set_threads(count)


def backend(device: torch.device | str = "cpu") -> str:
    """Name of the backend that serves `device`: `cpu` or `reference`."""
    return "cpu" if has(torch.device(device)) else "reference"


def explain() -> str:
    """One line: which backend runs on the CPU, which build of it, and why."""
    if os.environ.get("MAQUETTE_BACKEND") == "reference":
        return "reference (plain torch), because MAQUETTE_BACKEND=reference"
    module, why = _load()
    if module is None:
        return f"reference (plain torch), because {why}"
    return f"cpu kernels, build {why} for {platform.machine()}, {module.threads()} threads"
