"""Facts about the machine and the installation that could change a result: what environment.json holds.

Imports no heavy library, so that `maquette --version` and `doctor` can answer on a broken installation.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any


def version() -> str:
    """Version of the installed distribution."""
    try:
        return importlib.metadata.version("maquette")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def commit() -> str:
    """Commit of the checkout this code runs from, with + when files differ from it; empty when installed as a wheel."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return ""
    try:
        git = ["git", "-C", str(root)]
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, timeout=10)
        dirty = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")


def library_versions() -> dict[str, str]:
    """Versions of the libraries whose change could change a result."""
    names = ("torch", "numpy", "pillow", "pillow-heif", "pycolmap", "trimesh", "fast-simplification", "scipy")
    found = {}
    for name in (*names, "opencv-python-headless", "av", "safetensors", "cuda-core", "nvidia-cuda-nvrtc", "gsplat"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def system_facts() -> dict[str, Any]:
    """Operating system, Python, processor and memory of this machine."""
    facts: dict[str, Any] = {
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processors": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        facts["processor"] = next(line for line in lines if line.startswith("model name")).split(":", 1)[1].strip()
    with contextlib.suppress(OSError, ValueError):
        facts["memory_mb"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
    return facts


def peak_memory_mb() -> float:
    """Largest resident memory of this process so far, plus that of its largest finished child, in MiB."""
    unit = 1024.0 if sys.platform == "darwin" else 1.0
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit  # KiB; bytes on macOS
    with contextlib.suppress(OSError, ValueError, StopIteration):
        # VmHWM starts anew at exec; ru_maxrss would repeat the peak of the process that started us.
        lines = Path("/proc/self/status").read_text().splitlines()
        own = float(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    return (own + resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / unit) / 1024.0
