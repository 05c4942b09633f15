"""Picks the NVRTC that the driver can follow, and what it is asked to compile for.

A driver loads cubins of its own CUDA major version and of older ones, never of a newer one. cuda-pathfinder, which
cuda.bindings asks for NVRTC, takes the newest that is installed, whatever the driver; but before that it takes one that
the process has loaded. So the fitting one is loaded here first: mostly the one that torch's own wheels brought along.
cuda.bindings 13 drives NVRTC 12 (tried with 12.4 and 12.8).
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Collection
from pathlib import Path

# Where NVIDIA's wheels put NVRTC of a CUDA major version, newest first, and the name of the wheel.
WHEELS = {13: ("nvidia/cu13/lib", "nvidia-cuda-nvrtc"), 12: ("nvidia/cuda_nvrtc/lib", "nvidia-cuda-nvrtc-cu12")}
# Tegra's chips: their code does not run on cards, nor theirs on Tegra.
EMBEDDED = frozenset((72, 87, 88, 101, 110))


def load(driver: int) -> None:
    """Loads the newest NVRTC for CUDA `driver` (a major version) or older that this process can find.

    Where there is none, or not on Linux, cuda.bindings is left to search on its own. (On Windows torch has loaded its
    own copy by now.)
    """
    if sys.platform != "linux":
        return
    for major, (folder, _) in WHEELS.items():
        if major <= driver and (_loaded(major) or _load_wheel(major, folder) or _try(f"libnvrtc.so.{major}")):
            return


def wheel(driver: int) -> str:
    """The wheel whose NVRTC a driver for CUDA `driver` (a major version) follows; the oldest served for older ones."""
    return next((name for major, (_, name) in WHEELS.items() if major <= driver), WHEELS[min(WHEELS)][1])


def target(card: int, known: Collection[int]) -> str:
    """What to compile for, for card generation `card` (90 for sm_90), by an NVRTC that knows `known`.

    A generation newer than the compiler takes code of an older one of the same major version, which runs unchanged
    (CUDA programming guide, binary compatibility); else "compute_N": PTX, which the driver translates at loading.
    Empty when nothing fits.
    """
    if card in known:
        return f"sm_{card}"
    older = [one for one in known if one < card and one not in EMBEDDED]
    same = [one for one in older if one // 10 == card // 10 and card not in EMBEDDED]
    if same:
        return f"sm_{max(same)}"
    return f"compute_{max(older)}" if older else ""


def _loaded(major: int) -> bool:
    return _try(f"libnvrtc.so.{major}", ctypes.DEFAULT_MODE | os.RTLD_NOLOAD)


def _load_wheel(major: int, folder: str) -> bool:
    # All of sys.path, where cuda-pathfinder looks only into site-packages: wheels may be carried to a bare machine.
    for place in sys.path:
        path = Path(place or ".").absolute() / folder / f"libnvrtc.so.{major}"
        if path.is_file():
            # NVRTC 13.0 does not find its own second half beside itself, but takes one that is loaded.
            builtins = [_try(str(one)) for one in path.parent.glob("libnvrtc-builtins.so.*")]
            if _try(str(path)) and builtins:
                return True
    return False


def _try(name: str, mode: int = ctypes.DEFAULT_MODE) -> bool:
    """Loads a library. Not for all to link with: torch may need NVRTC of another version beside this one."""
    try:
        ctypes.CDLL(name, mode)
    except OSError:
        return False
    return True
