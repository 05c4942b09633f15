"""Kills a reconstruction at random moments until it is done, and compares it with one that nobody disturbed.

    python -m tests.apps.kill_resume [--method dvgo] [--kills 20] [--seed 0] [--source FOLDER] [FLAGS OF maquette recon]

Ends with 0 when each killed run came through with equal metrics, scene and mesh, bit for bit; prints one line per kill.
Where a run is done before it was killed often enough, another one takes the other kills. Without --source it makes a
tiny capture of its own. The code must not change meanwhile: run it on a checkout that nobody edits.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apps.methods import method_of
from apps.run_scene import SPLATS_FILE
from tests.apps.tiny import write_tiny

log = logging.getLogger("kill_resume")

ROOT = Path(__file__).resolve().parents[2]
TIMELESS = ("psnr", "ssim", "steps", "primitives", "parameters", "mesh_faces", "mesh_watertight", "views_registered")
TINY_FLAGS = {
    "gaussians": ("--steps", "1500", "--max-splats", "1500", "--initial-splats", "500", "--checkpoint-seconds", "0.3"),
    "dvgo": ("--steps", "400", "--rays", "1024", "--voxels", "27000", "--coarse-voxels", "8000", "--width", "64",
             "--checkpoint-seconds", "0.3"),
    "dot": ("--grid-steps", "300", "--rays", "1024", "--voxels", "27000", "--level", "5", "--epochs", "10",
            "--checkpoint-seconds", "0.3"),
}  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What must not depend on having been killed."""

    metrics: dict[str, Any]
    scene: str  # hash of the method's scene file
    mesh: str  # hash of mesh.glb
    splats: str  # hash of splats.ply; a run of Gaussians has none

    @staticmethod
    def of(run: Path) -> Outcome:
        metrics = json.loads((run / "metrics.json").read_text())
        names = (method_of(metrics["method"]).SCENE_FILE, "mesh.glb", SPLATS_FILE)
        return Outcome({name: metrics.get(name) for name in TIMELESS}, *(hash_of(run / name) for name in names))


def hash_of(path: Path) -> str:
    """What tells one content of a file from another; empty where there is no such file."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def start(source: Path, run: Path, flags: tuple[str, ...]) -> subprocess.Popen[bytes]:
    """A reconstruction in a process of its own; goes on with the run where there is one already."""
    command = [sys.executable, "-m", "apps.cli", "recon", str(source), "--out", str(run), "--resume", *flags]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)


def finish(process: subprocess.Popen[bytes]) -> None:
    _, errors = process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"maquette recon ended with {process.returncode}:\n{errors.decode()[-2000:]}")


def kill_until_done(source: Path, run: Path, flags: tuple[str, ...], kills: int, whole_s: float, seed: int) -> int:
    """Kill the run up to `kills` times, at moments spread over its whole length, then let it end. Returns the kills.

    whole_s: seconds that an undisturbed run works, from which the moments are drawn.
    """
    rng = random.Random(seed)
    for made in range(kills):
        process = start(source, run, flags)
        # Imports take seconds and are the same each time: the clock starts when this process has written something.
        mark = _last_change(run)
        while process.poll() is None and _last_change(run) == mark:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.7 * whole_s))
        if process.poll() is not None:
            finish(process)  # done before it could be killed
            return made
        process.send_signal(signal.SIGKILL)
        process.communicate()
        log.info("kill %2d: %s", made + 1, _where(run))
    finish(start(source, run, flags))
    return kills


def _last_change(run: Path) -> int:
    path = run / "events.jsonl"
    return path.stat().st_size if path.exists() else -1


def _where(run: Path) -> str:
    path = run / "events.jsonl"
    lines = path.read_bytes().splitlines() if path.exists() else []
    try:
        event = json.loads(lines[-1])
        return f"{event['stage'] or 'start'} {event['step'] or ''}"
    except (IndexError, ValueError):
        return "start" if not lines else "in the middle of an event"


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--method", choices=list(TINY_FLAGS), default="gaussians")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--source", type=Path)
    parser.add_argument("--keep", type=Path, help="folder for the two runs; default a temporary one")
    options, flags = parser.parse_known_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        source = options.source or write_tiny(Path(temporary) / "ball")
        wanted = ("--method", options.method, *(TINY_FLAGS[options.method] if options.source is None else ()), *flags)
        finish(start(source, folder / "whole", wanted))
        whole = Outcome.of(folder / "whole")
        seconds = json.loads((folder / "whole" / "metrics.json").read_text())["seconds_total"]
        log.info("undisturbed: %.1f s, %s", seconds, whole.metrics)
        made, different = 0, 0
        for attempt in range(3 * options.kills):  # a run may be done before its first kill comes
            if made == options.kills:
                break
            run, left = folder / f"killed-{attempt + 1}", options.kills - made
            made += kill_until_done(source, run, wanted, left, seconds, options.seed + attempt)
            killed = Outcome.of(run)
            different += killed != whole
            log.info("run %d is done after %d kills: %s", attempt + 1, made, "equal" if killed == whole else killed)
    return 0 if made == options.kills and not different else 1


if __name__ == "__main__":
    sys.exit(main())
