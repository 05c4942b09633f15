"""Fuzzes every reader of strangers' files and prints JSON: executions, how many were read, failures with their numbers.

    python -m benchmarks.fuzz --executions 200000 --jobs 2 [READER ...] [--from 0] [--keep FOLDER]

A failure is an exception that is none of those written for users, more than 2 s of processor time, more than 256 MiB
asked for, or the end of the process; tests/hostile/fuzzing.py judges, tests/hostile/readers.py names the readers.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict

EXECUTIONS = 200_000


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 1 when there is a failure."""
    # One thread and one heap, before torch is imported: address space is then what is asked for.
    os.environ.update(OMP_NUM_THREADS="1", MALLOC_ARENA_MAX="1")
    from benchmarks.common import record
    from tests.hostile import fuzzing

    options = fuzzing.parse(sys.argv[1:] if arguments is None else arguments, EXECUTIONS)
    fuzzing.preload()
    verdicts = fuzzing.run(options)
    print(json.dumps({**record(), "readers": [asdict(verdict) for verdict in verdicts]}, indent=1))
    return int(any(verdict.failures for verdict in verdicts))


if __name__ == "__main__":
    sys.exit(main())
