"""`maquette bench`: a door to the benchmarks, which live in the source checkout and not in the installed package."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from scene.errors import InputError

BENCHMARKS = {
    "gaussians": "speed of Gaussian training",
    "methods": "every method on the same photos and time: one table, one strip of pictures",
    "recon": "whole reconstructions: time and quality",
}

HELP = """usage: maquette bench WHICH [FLAGS]        (maquette bench WHICH --help says more)

{benchmarks}
"""


def main(arguments: Sequence[str]) -> None:
    """The `maquette bench` command."""
    wanted = [word for word in arguments if word != "--debug"]
    if not wanted or wanted[0] in ("-h", "--help"):
        sys.stdout.write(HELP.format(benchmarks="\n".join(f"  {name:10} {what}" for name, what in BENCHMARKS.items())))
        return
    if wanted[0] not in BENCHMARKS:
        raise InputError(f"there is no benchmark {wanted[0]!r}; there are {', '.join(BENCHMARKS)}")
    try:
        benchmark = importlib.import_module(f"benchmarks.{wanted[0]}")
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("benchmarks"):
            raise
        raise InputError(
            "benchmarks are part of the source checkout; run this command, or make bench, there"
        ) from error
    raise SystemExit(benchmark.main(wanted[1:]))
