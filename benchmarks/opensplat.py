"""OpenSplat as a peer: times the given binary on a project in COLMAP's layout.

Only the binary's command line is used. A step's time is the difference of two runs divided by the difference of their
steps, so that loading and saving cancel out.
"""

from __future__ import annotations

import os
import re
import resource
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class OpenSplatTiming:
    """Per step in seconds: wall, and CPU time over all threads; what the binary calls itself."""

    seconds: float
    cpu_seconds: float
    steps: int
    threads: int
    version: str


class OpenSplatError(RuntimeError):
    """The binary failed; the message ends with what it printed last."""


def time_steps(binary: Path, project: Path, *, short: int, long: int, threads: int) -> OpenSplatTiming:
    """Runs the binary twice, for `short` and for `long` steps at full size without densification.

    Raises OpenSplatError when the binary fails.
    """
    first, last = (_run(binary, project, steps, threads) for steps in (short, long))
    wall, cpu = ((b - a) / (long - short) for a, b in zip(first, last, strict=True))
    return OpenSplatTiming(wall, cpu, long - short, threads, _version(binary))


def _run(binary: Path, project: Path, steps: int, threads: int) -> tuple[float, float]:
    """Wall and CPU seconds of one run."""
    with tempfile.TemporaryDirectory() as scratch:
        options = {
            "--num-iters": steps,
            "--downscale-factor": 1,
            "--num-downscales": 0,
            "--warmup-length": 1_000_000,  # no densification: the number of splats stays
            "--output": Path(scratch) / "splat.ply",
        }
        command = [str(binary), str(project), "--cpu", *(str(part) for pair in options.items() for part in pair)]
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        done = subprocess.run(
            command, env=os.environ | {"OMP_NUM_THREADS": str(threads)}, capture_output=True, text=True, check=False
        )
        wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0:
        raise OpenSplatError(f"{binary.name} ended with {done.returncode}: {(done.stderr or done.stdout)[-500:]}")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _version(binary: Path) -> str:
    done = subprocess.run([str(binary), "--help"], capture_output=True, text=True, check=False)
    found = re.search(r"\d+\.\d+\.\d+[^\n]*", done.stdout)
    return found.group(0) if found else "unknown"
