"""Everything that needs an NVIDIA GPU, in one go: tests, compute-sanitizer, speed. `make gpu-check` runs it.

    python -m benchmarks.gpu_check [--minutes 9.5] [--commit HASH]

Asks for torch, numpy, pillow, pytest and the GPU's compiler wheels, and no network. Where a C++ compiler, nanobind and
scikit-build-core are there and our CPU kernels are not, those are built for the run, so that the GPU is compared with
them too and not with the plain-torch reference alone.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "gpu-check"
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
ENOUGH = 15.0  # seconds below which no further step is begun


@dataclass
class Check:
    """The steps so far, and the time they may still take."""

    deadline: float
    outcomes: list[tuple[str, str]] = field(default_factory=list)
    failed: bool = False

    def run(
        self,
        name: str,
        command: Sequence[str],
        *,
        at_most: float = 600.0,
        required: bool = True,
        extra: Mapping[str, str] | None = None,
    ) -> bool:
        """Runs one step with its output on the terminal; notes how it went and whether that fails the whole check.

        at_most: seconds.  extra: environment variables.
        """
        left = self.deadline - time.monotonic()
        if left < ENOUGH:
            self._note(name, "not run: the time is over", bad=required)
            return False
        print(f"\n== {name}", flush=True)
        began = time.monotonic()
        # In a session of its own: when the time is over, compilers that a step has started must end with it.
        step = subprocess.Popen(list(command), cwd=ROOT, env=environment() | dict(extra or {}), start_new_session=True)
        try:
            code = step.wait(timeout=min(at_most, left))
            outcome = "passed" if code == 0 else f"FAILED (exit {code})"
        except subprocess.TimeoutExpired:
            os.killpg(step.pid, signal.SIGKILL)
            step.wait()
            outcome = "FAILED (time was over)"
        good = outcome == "passed"
        self._note(name, f"{outcome}, {time.monotonic() - began:.0f} s", bad=required and not good)
        return good

    def skip(self, name: str, why: str) -> None:
        """Notes a step that this machine has no use for."""
        self._note(name, why, bad=False)

    def _note(self, name: str, outcome: str, *, bad: bool) -> None:
        self.outcomes.append((name, outcome))
        self.failed = self.failed or bad


def environment() -> dict[str, str]:
    """Of the steps: the checkout is importable without being installed, and torch's threads do not spin."""
    path = os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH", "")) if part)
    return os.environ | {"PYTHONPATH": path, "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE")}


def test_files() -> list[str]:
    """Those with tests for a GPU; the others import libraries that a bare machine lacks."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(file.relative_to(ROOT)) for file in files if "pytest.mark.cuda" in file.read_text(encoding="utf-8")]


def gpu() -> str | None:
    """Name of the card that torch sees; None without one."""
    try:
        import torch
    except ImportError:
        return None
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def missing_for_build() -> str | None:
    """What the CPU kernels' build lacks here; None when nothing."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if not compiler:
        return "no C++ compiler"
    lacking = [name for name in ("nanobind", "scikit_build_core", "pip") if importlib.util.find_spec(name) is None]
    return f"no {' and no '.join(lacking)}" if lacking else None


@contextmanager
def cpu_kernels(check: Check) -> Iterator[None]:
    """Within it the CPU kernels are importable, if this machine has or can build them; afterwards nothing is left."""
    probe = "import torch; from scene.ops import native; raise SystemExit(native.backend('cpu') != 'cpu')"
    there = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, env=environment(), capture_output=True)
    lacking = missing_for_build()
    if there.returncode == 0 or lacking:
        check.skip("CPU kernels", "there" if there.returncode == 0 else f"{lacking}: the reference is the only oracle")
        yield
        return
    shutil.rmtree(BUILD, ignore_errors=True)
    install = ["-m", "pip", "install", "-q", "--no-build-isolation", "--no-deps", "--no-index", "--target", str(BUILD)]
    copies: list[Path] = []
    try:
        if check.run("CPU kernels", [sys.executable, *install, "."], at_most=180, required=False):
            for built in (BUILD / "scene" / "ops").glob("_cpu_*.so"):
                copies.append(ROOT / "scene" / "ops" / built.name)
                shutil.copyfile(built, copies[-1])
        yield
    finally:
        for copy in copies:  # left behind they would shadow a later build without a word
            copy.unlink(missing_ok=True)


def sanitize(check: Check) -> None:
    """Each tool of compute-sanitizer on a run of every kernel."""
    tool = shutil.which("compute-sanitizer") or _beside_cuda("compute-sanitizer")
    for name in SANITIZERS:
        if tool is None:
            check.skip(name, "not available: no compute-sanitizer on this machine")
            continue
        # Exit code 9 for any report; torch gives back every tensor at once, so that no access beyond one is hidden.
        command = [tool, "--tool", name, "--error-exitcode", "9", sys.executable, "-m", "tests.gpu_ops"]
        check.run(f"compute-sanitizer {name}", command, at_most=75, extra={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})


def measure(check: Check, commit: str) -> None:
    """benchmarks/gpu.py, against gsplat and nerfacc where those are installed and their kernels compile in time."""
    without = [f"--no-{peer}" for peer in ("gsplat", "nerfacc") if not _builds(check, peer)]
    command = [sys.executable, "-m", "benchmarks.gpu", "--json", "benchmarks/results/gpu_{card}.json"]
    training = min(70.0, max(10.0, (check.deadline - time.monotonic() - 170) / 3))
    check.run("speed", [*command, "--commit", commit, "--training-seconds", f"{training:.0f}", *without])


def _builds(check: Check, peer: str) -> bool:
    """Whether a peer is there, its kernels compiled."""
    if importlib.util.find_spec(peer) is None:
        check.skip(f"{peer}'s kernels", f"{peer} is not installed: its columns stay empty")
        return False
    build = f"from benchmarks.{peer}_cuda import why_not; raise SystemExit(why_not())"
    return check.run(f"{peer}'s kernels", [sys.executable, "-c", build], at_most=180, required=False)


def _beside_cuda(name: str) -> str | None:
    for folder in (os.environ.get("CUDA_HOME", "/usr/local/cuda"), "/usr/local/cuda"):
        for place in (Path(folder) / "bin" / name, Path(folder) / "compute-sanitizer" / name):
            if place.is_file():
                return str(place)
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs all steps and sums them up; 0 when none failed, or when there is no GPU to check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.5, help="longest time for all steps")
    parser.add_argument("--commit", default="", help="commit of a tree that came without its history")
    options = parser.parse_args(arguments)
    card = gpu()
    if card is None:
        print("gpu-check: torch sees no NVIDIA GPU here, so there is nothing to check")
        return 0
    check = Check(time.monotonic() + 60 * options.minutes)
    print(f"gpu-check on {card}, with {sys.executable}", flush=True)
    with cpu_kernels(check):
        check.run("tests", [sys.executable, "-m", "pytest", "-m", "cuda", *test_files()], at_most=200)
        sanitize(check)
        measure(check, options.commit)
    print("\n== gpu-check")
    for name, outcome in check.outcomes:
        print(f"{name:>30}  {outcome}")
    return int(check.failed)


if __name__ == "__main__":
    sys.exit(main())
