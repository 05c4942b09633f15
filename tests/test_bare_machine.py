"""A machine with a GPU may have torch, numpy and pillow and no way to fetch more: the core imports nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# What our own files import beyond this is refused as if it were not installed. What torch, numpy and pillow import
# among themselves is theirs: the finder asks whose line of code the import is.
REFUSE = """
import sys
from pathlib import Path

ROOT = Path(sys.argv[1])
OURS = {"scene", "recon", "data", "apps", "benchmarks", "tests"}
ALLOWED = OURS | {"torch", "numpy", "PIL", "pytest"} | sys.stdlib_module_names


class Refuse:
    refused = []

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.split(".")[0] in ALLOWED:
            return None
        frame = sys._getframe(1)
        while frame is not None and ("importlib" in frame.f_code.co_filename):
            frame = frame.f_back
        source = Path(frame.f_code.co_filename if frame else "")
        if ROOT in source.parents and source.relative_to(ROOT).parts[0] in OURS:
            cls.refused.append(name)
            raise ModuleNotFoundError(f"No module named {name!r} (refused to {source}:{frame.f_lineno})", name=name)
        return None


sys.meta_path.insert(0, Refuse)
"""

IMPORT_ALL = """
import importlib
for module in sys.argv[2:]:
    importlib.import_module(module)
"""

TRAIN = """
import math, tempfile
import torch
from tests.apps.tiny import write_tiny
from data.captures import open_capture
from recon.gaussians import Config, train
from scene.formats import load_splats, save_splats

with tempfile.TemporaryDirectory() as folder:
    with open_capture(write_tiny(Path(folder) / "tiny", train=6)) as capture:
        config = Config(steps=30, max_splats=400, initial_splats=300, checkpoint_seconds=math.inf)
        gaussians = train(capture, config)
    save_splats(Path(folder) / "out.ply", gaussians)
    assert len(load_splats(Path(folder) / "out.ply")) == len(gaussians) > 0
assert bool(torch.isfinite(gaussians.means).all())
"""


def run(script: str, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", REFUSE + script, str(ROOT), *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def modules_of(package: str) -> list[str]:
    """All modules below a package, by their files: a new one is asked for at once."""
    files = sorted((ROOT / package).rglob("*.py"))
    dotted = [file.relative_to(ROOT).with_suffix("").parts for file in files]
    return [".".join(parts[:-1] if parts[-1] == "__init__" else parts) for parts in dotted]


def test_the_finder_refuses_what_a_bare_machine_lacks() -> None:
    run("""
code = compile("import trimesh", str(ROOT / "scene" / "x.py"), "exec")
try:
    exec(code, {"__name__": "scene.x"})
except ModuleNotFoundError as error:
    assert "trimesh" in str(error) and Refuse.refused == ["trimesh"]
else:
    raise SystemExit("trimesh was let through")
""")


def test_every_module_of_the_core_loads_with_torch_numpy_and_pillow_alone() -> None:
    run(IMPORT_ALL, *modules_of("scene"), "recon.gaussians", "recon.evaluation", "data.captures", "data.synthetic")


def test_the_gpu_benchmark_loads_there() -> None:
    run(IMPORT_ALL, "benchmarks.gpu", "benchmarks.gpu_check", "tests.gpu_ops", "tests.test_gpu")


@pytest.mark.parametrize("backend", ["reference", "compiled"])
def test_training_needs_nothing_else(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAQUETTE_BACKEND", "reference" if backend == "reference" else "")
    run(TRAIN)
