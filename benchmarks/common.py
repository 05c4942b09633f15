"""What all benchmarks share: timing by turns, summaries, the record of machine and versions, tables and JSON."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scene import environment


@dataclass(frozen=True)
class Timing:
    """Wall times of one candidate in ms, and the CPU time of all its threads."""

    median_ms: float
    p10_ms: float
    p90_ms: float
    best_ms: float
    cpu_ms: float  # median
    samples: int

    @staticmethod
    def of(wall: Sequence[float], cpu: Sequence[float]) -> Timing:
        """From samples in seconds."""
        ordered = sorted(wall)
        at = [ordered[round(share * (len(ordered) - 1))] for share in (0.1, 0.9)]
        ms = [1e3 * value for value in (statistics.median(wall), *at, ordered[0], statistics.median(cpu))]
        return Timing(*ms, samples=len(wall))


class Stopwatch:
    """Collects samples by name."""

    def __init__(self) -> None:
        self.wall: dict[str, list[float]] = {}
        self.cpu: dict[str, list[float]] = {}

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Adds one sample: the time spent in the block."""
        cpu, wall = time.process_time(), time.perf_counter()
        yield
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        self.add(name, wall, cpu)

    def add(self, name: str, wall: float, cpu: float) -> None:
        """Adds one sample in seconds."""
        self.wall.setdefault(name, []).append(wall)
        self.cpu.setdefault(name, []).append(cpu)

    def timings(self) -> dict[str, Timing]:
        """Summary by name, in the order of the first samples."""
        return {name: Timing.of(wall, self.cpu[name]) for name, wall in self.wall.items()}


class HostLoad:
    """How busy the machine was: by others before the run, and by others while it went on."""

    def __init__(self, sample_seconds: float = 1.0) -> None:
        idle, total = _jiffies()
        time.sleep(sample_seconds)
        after = _jiffies()
        self.idle_before = (after[0] - idle) / max(1, after[1] - total)
        self._start, self._wall, self._cpu = after, time.monotonic(), time.process_time()

    def facts(self) -> dict[str, float]:
        """idle_before: share of the machine idle before we began.  other_cores: cores that others used since."""
        idle, total = (now - then for now, then in zip(_jiffies(), self._start, strict=True))
        cores = os.cpu_count() or 1
        busy = cores * (1 - idle / max(1, total))
        ours = (time.process_time() - self._cpu) / max(1e-9, time.monotonic() - self._wall)
        return {"idle_before": round(self.idle_before, 3), "other_cores": round(max(0.0, busy - ours), 2)}


def _jiffies() -> tuple[int, int]:
    """Idle and total time of all processors, from /proc/stat; zeros where there is none."""
    try:
        numbers = [int(part) for part in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    except (OSError, ValueError, IndexError):
        return 0, 0
    return numbers[3] + numbers[4], sum(numbers)


def record(load: HostLoad | None = None) -> dict[str, Any]:
    """Commit, machine and versions: what a figure means nothing without."""
    facts = {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": environment.commit(),
        "version": environment.version(),
        "system": environment.system_facts(),
        "libraries": environment.library_versions(),
    }
    return facts if load is None else facts | {"host": load.facts()}


def write_json(path: Path | None, result: Mapping[str, Any]) -> None:
    """Writes the result where the caller wants it; dataclasses become objects."""
    if path is not None:
        path.write_text(json.dumps(result, indent=1, default=lambda value: asdict(value)) + "\n")


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Columns padded to their widest cell; floats with three significant digits or one decimal."""
    cells = [[_cell(value) for value in row] for row in (head, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    return "\n".join("  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) for row in cells)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.1f}" if abs(value) >= 100 else f"{value:.3g}"
    return "-" if value is None else str(value)
