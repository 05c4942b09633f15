"""Many visitors at once on a real `maquette web` over loopback, with one training at work; prints and writes JSON.

    python -m benchmarks.web --visitors 20 --minutes 5 --json FILE

Each visitor opens the page now and then, asks for a job's state every second as the page does, and starts, cancels and
deletes jobs of their own. Told: times of the page and of states (median, 95th percentile), answers by status, memory of
the server before and after, and what it grew by a job.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.common import HostLoad, record
from data.sample import sample_photos
from tests.apps.web.server import Server, Visitor, running

PAGE_EVERY, JOB_EVERY, STATE_EVERY = 15.0, 5.0, 1.0  # seconds
WARM_UP = 60  # jobs before memory is first looked at: caches, thread pools and allocators fill
LIMITS = {"page_p95_s": 0.5, "state_p95_s": 1.0, "server_errors": 0, "memory_kib_per_job": 32.0}


@dataclass
class Seen:
    """What all visitors saw; lists are only appended to, which threads may."""

    pages: list[float] = field(default_factory=list)
    states: list[float] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    jobs: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 1 when a limit is passed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.web", description=__doc__)
    parser.add_argument("--visitors", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    load = HostLoad()
    with tempfile.TemporaryDirectory(prefix="maquette-load-") as folder, running(Path(folder) / "jobs") as server:
        figures = measured(server, options.visitors, 60 * options.minutes)
    passed = all(figures[name] <= most for name, most in LIMITS.items()) and figures["training"] in ("running", "done")
    result = {**record(), "host": load.facts(), "limits": LIMITS, **figures, "passed": passed}
    text = json.dumps(result, indent=1)
    print(text)
    if options.json is not None:
        options.json.write_text(text + "\n")
    return 0 if passed else 1


def measured(server: Server, visitors: int, seconds: float) -> dict[str, Any]:
    """Let them all at it; the figures."""
    owner = Visitor(server)
    training = started_training(owner, seconds)
    seen, end = Seen(), threading.Event()
    crowd = [threading.Thread(target=visit, args=(server, seen, end, i / visitors)) for i in range(visitors)]
    for thread in crowd:
        thread.start()
    began, before, counted = time.monotonic(), 0, 0
    while time.monotonic() - began < seconds:
        time.sleep(0.2)
        if not before and len(seen.jobs) >= WARM_UP:
            before, counted = memory(server), len(seen.jobs)
    after, jobs = memory(server), len(seen.jobs) - counted
    end.set()
    for thread in crowd:
        thread.join()
    return {
        "visitors": visitors,
        "seconds": seconds,
        "training": owner.status(training)["state"],
        "pages": len(seen.pages),
        "page_median_s": round(statistics.median(seen.pages), 4),
        "page_p95_s": round(share(seen.pages, 0.95), 4),
        "states": len(seen.states),
        "state_median_s": round(statistics.median(seen.states), 4),
        "state_p95_s": round(share(seen.states, 0.95), 4),
        "statuses": dict(sorted(Counter(map(str, seen.statuses)).items())),
        "server_errors": sum(status >= 500 for status in seen.statuses) + len(seen.faults),
        "faults": seen.faults[:5],
        "jobs": len(seen.jobs),
        "memory_mb": round(after / 2**20, 1),
        "memory_kib_per_job": round((after - before) / 1024 / jobs, 2) if before and jobs else float("inf"),
    }


def started_training(owner: Visitor, seconds: float) -> str:
    """A reconstruction of the sample that lasts as long as the test does."""
    files = {path.name: path.read_bytes() for path in sorted(sample_photos().glob("*.jpg"))}
    found = owner.check(owner.upload(files))
    minutes = min(60.0, 2 * seconds / 60 + 5)
    job = owner.named("reconstruct", job=found["job"], preset="high", minutes=minutes)["job"]
    owner.until(job, ["running"], 60)
    return job


def visit(server: Server, seen: Seen, end: threading.Event, offset: float) -> None:
    """What one visitor does until the end."""
    visitor, own = Visitor(server), ""
    next_page, next_job = time.monotonic() + PAGE_EVERY * offset, time.monotonic() + JOB_EVERY * offset
    while not end.wait(STATE_EVERY):
        try:
            now = time.monotonic()
            if now >= next_page:
                next_page = now + PAGE_EVERY
                timed(visitor, "/", seen.pages, seen)
            if now >= next_job:
                next_job = now + JOB_EVERY
                if own:
                    seen.statuses += [visitor.post(f"/maquette/job/{own}/{act}").status for act in ("cancel", "delete")]
                own = visitor.named("generate", prompt="a red chair", preset="draft").get("job", "")
                seen.jobs += [own] if own else []
            timed(visitor, f"/maquette/job/{own}" if own else "/maquette/jobs", seen.states, seen)
        except (OSError, ValueError) as error:
            seen.faults.append(f"{type(error).__name__}: {error}")


def timed(visitor: Visitor, path: str, times: list[float], seen: Seen) -> None:
    began = time.perf_counter()
    status = visitor.get(path).status
    times.append(time.perf_counter() - began)
    seen.statuses.append(status)


def share(values: Sequence[float], part: float) -> float:
    """The value that this part of all does not exceed."""
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


def memory(server: Server) -> int:
    """Bytes that the server has resident."""
    for line in Path(f"/proc/{server.process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError("this needs Linux, whose /proc tells a process's memory")


if __name__ == "__main__":
    sys.exit(main())
