"""`maquette doctor`: what this installation computes with and why, whether it works, and what would make it faster."""

from __future__ import annotations

import ctypes.util
import dataclasses
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from apps.options import Doctor, parse
from scene.environment import commit, library_versions, system_facts, version

LEAST_FREE_DISK = 2 << 30
MARKS = {"good": "ok  ", "warn": "note", "bad": "BAD "}


@dataclass(frozen=True)
class Line:
    """One finding: good, something to know, or something broken."""

    level: Literal["good", "warn", "bad"]
    topic: str
    sentence: str


def main(arguments: Sequence[str]) -> None:
    """The `maquette doctor` command. Exit code 1 when something is broken."""
    request = parse(Doctor, "doctor", arguments)
    lines = examine()
    if request.json:
        facts = {"version": version(), "commit": commit(), **system_facts(), "libraries": library_versions()}
        found: dict[str, Any] = {**facts, "findings": [dataclasses.asdict(line) for line in lines]}
        sys.stdout.write(json.dumps(found, indent=1) + "\n")
    else:
        for line in lines:
            sys.stdout.write(f"{MARKS[line.level]}  {line.topic:10}  {line.sentence}\n")
    if any(line.level == "bad" for line in lines):
        raise SystemExit(1)


def examine() -> list[Line]:
    """All findings. A check that itself fails is a finding, not a traceback."""
    lines = []
    for topic, check in CHECKS.items():
        try:
            level, sentence = check()
            lines.append(Line(level, topic, sentence))
        except Exception as error:
            lines.append(Line("bad", topic, f"this check failed with {type(error).__name__}: {error}"))
    return lines


Finding = tuple[Literal["good", "warn", "bad"], str]


def _version() -> Finding:
    return "good", f"Maquette {version()} {commit()}".rstrip() + f", Python {sys.version.split()[0]} on {sys.platform}"


def _machine() -> Finding:
    facts = system_facts()
    memory = f"{facts['memory_mb'] / 1024:.1f} GB of memory" if "memory_mb" in facts else "memory unknown"
    return "good", f"{facts.get('processor', facts['machine'])}, {facts['processors']} processors, {memory}"


def _kernels() -> Finding:
    import torch

    from scene.ops import native

    said = native.explain()
    return ("good" if native.has(torch.device("cpu")) else "warn"), said


def _libraries() -> Finding:
    import importlib

    broken = []
    modules = ("torch", "numpy", "PIL", "pillow_heif", "pycolmap", "trimesh", "fast_simplification")
    for name in (*modules, "av", "cv2", "scipy", "safetensors"):
        try:
            importlib.import_module(name)
        except Exception as error:  # a broken wheel fails in many ways, all worth telling
            broken.append(f"{name} ({type(error).__name__}: {error})")
    if broken:
        return "bad", "cannot be imported: " + "; ".join(broken) + ". Install again with: make install"
    return "good", ", ".join(f"{name} {number}" for name, number in library_versions().items())


def _gpu() -> Finding:
    """The card, its driver and compiler; compiles ahead of time what a run would have to wait for."""
    import torch

    from scene.ops.gpu import compiler, runtime

    if torch.version.cuda is None and not _has_nvidia_driver():
        return "good", "none found; not needed, everything runs on the CPU"
    began = time.perf_counter()
    usable, why = runtime.usable()
    if not usable:
        return "warn", f"not used: {why}; everything runs on the CPU"
    seconds, made = time.perf_counter() - began, runtime.loaded()
    anew = sum(not one.cached for one in made)
    sentence = f"{why}; {len(made)} kernel files ready, {anew} of them compiled now, in {seconds:.1f} s"
    return "good", f"{sentence}; {compiler.cache_state(compiler.cache_folder())}"


def _has_nvidia_driver() -> bool:
    return ctypes.util.find_library("cuda") is not None or Path("/proc/driver/nvidia/version").exists()


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free
    sentence = f"{free / (1 << 30):.1f} GB free in {Path.cwd()}"
    return ("good", sentence) if free > LEAST_FREE_DISK else ("bad", sentence + "; a run needs up to 2 GB")


def _folder() -> Finding:
    from scene.runs import Run

    with (
        tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".maquette-doctor-") as folder,
        Run.create(Path(folder) / "run", "gaussians", {}) as run,
    ):
        run.event("test")
    return "good", "run folders can be made, locked and written here"


def _film() -> Finding:
    import av

    av.Codec("libx264", "w")
    return "good", "H.264 films can be written"


def _self_test() -> Finding:
    """Kernels against their plain-torch twins, forward and backward, on a small scene of each kind."""
    import torch

    from apps import self_test
    from scene.ops import native

    if not native.has(torch.device("cpu")):
        return "warn", "no kernels to test; the plain-torch twins compute everything"
    sound, said = True, []
    for name, make in self_test.TESTS.items():
        found = self_test.compare(make)
        sound = sound and found.sound
        apart = f"picture {found.picture:.1e}, gradients {found.gradient:.1e} apart"
        said.append(f"{name}: {apart}, {found.speed:.0f} times as fast")
    return "good" if sound else "bad", "kernels against their twins: " + "; ".join(said)


CHECKS: dict[str, Callable[[], Finding]] = {
    "version": _version,
    "machine": _machine,
    "kernels": _kernels,
    "gpu": _gpu,
    "libraries": _libraries,
    "disk": _disk,
    "folder": _folder,
    "film": _film,
    "self test": _self_test,
}
