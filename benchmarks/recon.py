"""Whole reconstructions: a list of sources in, one table of what came out.

    python -m benchmarks.recon photos/fox photos/sceaux --out runs/bench --json recon.json
    python -m benchmarks.recon photos/fox --out runs/bench -- --downscale 2 --preset draft

Each source runs as `maquette recon` in a process of its own; what follows `--` goes to every run. Figures are read
from metrics.json; peak memory is that of the largest process of the run. A source that fails keeps its row: its exit
code says why (contract, section 3). Exits with 1 when any did.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import HostLoad, record, table, write_json

COLUMNS = {
    "views_registered": "views",
    "views_total": "of",
    "psnr": "psnr",
    "ssim": "ssim",
    "chamfer": "chamfer",
    "primitives": "splats",
    "mesh_faces": "faces",
    "mesh_watertight": "closed",
    "steps": "steps",
    "seconds_sfm": "s sfm",
    "seconds_train": "s train",
    "seconds_total": "s total",
}


def run(source: str, folder: Path, extra: Sequence[str]) -> dict[str, Any]:
    """One reconstruction: exit code, wall and CPU seconds, peak memory, and its metrics."""
    command = [sys.executable, "-m", "apps.cli", "recon", source, "--out", str(folder), *extra]
    folder.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    with folder.with_suffix(".log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)  # it was reaped behind Popen's back
    kibibytes = usage.ru_maxrss / 1024 if sys.platform == "darwin" else usage.ru_maxrss
    metrics = folder / "metrics.json"
    return {
        "source": source,
        "exit": process.returncode,
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_memory_mb": round(kibibytes / 1024, 1),
        "metrics": json.loads(metrics.read_text()) if metrics.is_file() else {},
    }


def run_folder(base: Path, source: str) -> Path:
    """A folder for this source's run that does not exist yet."""
    name = Path(source).resolve().stem or "run"
    candidates = (base / (name if number == 1 else f"{name}-{number}") for number in range(1, 10_000))
    return next(folder for folder in candidates if not folder.exists())


def report(rows: Sequence[dict[str, Any]]) -> str:
    """The table."""
    head = ["source", "exit", *COLUMNS.values(), "wall s", "peak MB"]
    cells = [
        [
            Path(row["source"]).name,
            row["exit"],
            *(row["metrics"].get(key) for key in COLUMNS),
            row["seconds"],
            row["peak_memory_mb"],
        ]
        for row in rows
    ]
    return table(head, cells)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what the command line asks for."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    own, extra = (given[: given.index("--")], given[given.index("--") + 1 :]) if "--" in given else (given, [])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", metavar="SOURCE")
    parser.add_argument("--out", type=Path, required=True, help="where the run folders and logs go")
    parser.add_argument("--json", type=Path, help="where to write all figures")
    options = parser.parse_args(own)
    load, rows = HostLoad(), []
    for source in options.sources:
        rows.append(run(source, run_folder(options.out, source), extra))
        print(report(rows[-1:]), flush=True)
    print("\n" + report(rows))
    write_json(options.json, {"options": extra, "runs": rows, "record": record(load)})
    return int(any(row["exit"] != 0 for row in rows))


if __name__ == "__main__":
    sys.exit(main())
