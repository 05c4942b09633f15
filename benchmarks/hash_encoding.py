"""Speed of the hash encoding: forward and backward beside the same in plain torch, by turns.

    python -m benchmarks.hash_encoding --json result.json
    python -m benchmarks.hash_encoding --places 2000 --rounds 2          # seconds, for a look

Two tables: the CPU's of text-to-scene (8 levels, 2^14 rows) and the paper's (16 levels, 2^19 rows). Places lie along
rays through the cube, as a picture's samples do. Features and gradients are compared before anything is timed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import HostLoad, Stopwatch, record, table, write_json
from generation.scenes import SMALL_LEVELS
from scene.ops import native
from scene.ops.hash_encoding import HashLevels, hash_encode, hash_encode_reference

LIMIT = 1e-4  # largest difference from plain torch: of features, and of gradients relative to their largest
LEVELS = {"small": SMALL_LEVELS, "paper": HashLevels()}
ON_A_RAY = 64
TURNS = 10  # of ours to one of plain torch


def places(count: int, generator: torch.Generator) -> Tensor:
    """[count, 3] in the unit cube, 64 on each ray."""
    ends = torch.rand(2, -(-count // ON_A_RAY), 1, 3, generator=generator)
    share = torch.linspace(0, 1, ON_A_RAY)[:, None]
    return torch.lerp(ends[0], ends[1], share).view(-1, 3)[:count].contiguous()


def race(name: str, count: int, rounds: int) -> dict[str, Any]:
    """All timings of one table."""
    levels, generator, watch = LEVELS[name], torch.Generator().manual_seed(0), Stopwatch()
    rows = (torch.rand(levels.rows, levels.features, generator=generator) - 0.5).requires_grad_()
    points, v_out = places(count, generator), torch.rand(count, levels.width, generator=generator) - 0.5

    def both(call: Callable[..., Tensor], label: str, stopwatch: Stopwatch) -> tuple[Tensor, Tensor]:
        with stopwatch.measure(f"forward{label}"):
            out = call(rows, levels, points)
        with stopwatch.measure(f"backward{label}"):
            (grad,) = torch.autograd.grad(out, rows, v_out)
        return out.detach(), grad

    got, wanted = both(hash_encode, "", Stopwatch()), both(hash_encode_reference, "", Stopwatch())
    apart = [float((a - b).abs().max() / b.abs().max()) for a, b in zip(got, wanted, strict=True)]
    if max(apart) > LIMIT:
        raise SystemExit(f"nothing was timed: kernel and twin differ by {max(apart):.1e}")
    for _ in range(rounds):
        both(hash_encode_reference, ", plain torch", watch)
        for _ in range(TURNS):
            both(hash_encode, "", watch)
    timings = watch.timings()
    ratios = {
        part: timings[f"{part}, plain torch"].median_ms / timings[part].median_ms for part in ("forward", "backward")
    }
    return {"table": name, "places": count, "apart": apart, "timings": timings, "over_plain_torch": ratios}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="+", choices=list(LEVELS), default=list(LEVELS))
    parser.add_argument("--places", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="where to write all figures")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what the command line asks for."""
    options = parse(arguments)
    if native.backend() != "cpu":
        raise SystemExit(f"the compiled kernels are what is timed here, but {native.explain()}")
    torch.set_num_threads(options.threads)
    native.set_threads(options.threads)
    load = HostLoad()
    found = [race(name, options.places, options.rounds) for name in options.tables]
    for facts in found:
        print(f"\n{facts['table']} table, {facts['places']:,} places, {options.threads} threads")
        rows = [[name, one.median_ms, one.p10_ms, one.cpu_ms, one.samples] for name, one in facts["timings"].items()]
        print(table(["", "median ms", "p10", "cpu ms", "n"], rows))
        print(
            ", ".join(f"{part} {ratio:.0f} times" for part, ratio in facts["over_plain_torch"].items()), "plain torch"
        )
    write_json(options.json, {"threads": options.threads, "tables": found, "record": record(load)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
