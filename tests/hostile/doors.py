"""Calls the real command in a process with limits of time and memory, and says what a user sees."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MOST_SECONDS = 60.0  # of all calls of one process; the machine may be busy
MOST_BYTES = 640 << 20  # above what is taken once everything is imported: threads, and photos of the size that is free

CHILD = """
import contextlib, io, json, resource, sys, time
import apps.cli, apps.pipeline, apps.export, apps.film, apps.judge, data.captures, cv2
import tests.hostile.fuzzing as fuzzing
job = json.load(sys.stdin)
def limit(kind, most):
    resource.setrlimit(kind, (most, resource.getrlimit(kind)[1]))


limit(resource.RLIMIT_AS, fuzzing.peak_bytes() + job["memory"])
if job["file_bytes"]:
    limit(resource.RLIMIT_FSIZE, job["file_bytes"])
told = []
for arguments in job["calls"]:
    out, err, began = io.StringIO(), io.StringIO(), time.monotonic()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = apps.cli.run(arguments)
    told.append([code, out.getvalue(), err.getvalue(), time.monotonic() - began])
print(json.dumps(told))
"""


@dataclass(frozen=True)
class Outcome:
    """What one call of the command came to."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def sentence(self) -> str:
        """The one line that says why."""
        lines = [line for line in self.err.splitlines() if line.startswith("maquette: ")]
        assert len(lines) == 1, self.err
        assert self.err.rstrip().endswith(lines[0]), self.err
        return lines[0]


def calls(
    arguments: Sequence[Sequence[str | Path]], *, memory: int = MOST_BYTES, file_bytes: int = 0, cwd: Path | None = None
) -> list[Outcome]:
    """Run `maquette` with each of the argument lists, one after the other in one limited process."""
    job = {"calls": [[str(word) for word in words] for words in arguments], "memory": memory, "file_bytes": file_bytes}
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n" + CHILD
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=MOST_SECONDS,
        check=False,
        env=environment(),
    )
    assert done.returncode == 0, f"the process ended by {done.returncode}: {done.stderr[-2000:]}"
    return [Outcome(*told) for told in json.loads(done.stdout.splitlines()[-1])]


def environment() -> dict[str, str]:
    """One thread and one heap: address space is then what is asked for."""
    import os

    return {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1", "MAQUETTE_THREADS": "1"}


def refused(outcome: Outcome, *words: str, code: int = 2) -> None:
    """The call was refused with this exit code, in one line that has these words, without a traceback."""
    assert outcome.code == code, outcome.err
    assert "Traceback" not in outcome.err
    for word in words:
        assert word.lower() in outcome.sentence.lower(), f"{word!r} is not in: {outcome.sentence}"
    assert len(outcome.sentence) < 1200
    assert outcome.seconds < 20, outcome
