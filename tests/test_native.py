"""Which backend runs: found, overridden, explained; every build of the CPU module computes the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from scene.ops import native
from scene.rasterize import render
from tests.scene.splats import a_camera, random_gaussians

needs_kernels = pytest.mark.skipif(not native.has(torch.device("cpu")), reason="the CPU module is not compiled")


def test_reference_can_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAQUETTE_BACKEND", "reference")
    assert not native.has(torch.device("cpu"))
    assert native.backend() == "reference"
    assert "MAQUETTE_BACKEND" in native.explain()


@needs_kernels
def test_backends_draw_the_same_image(monkeypatch: pytest.MonkeyPatch) -> None:
    scene, camera = random_gaussians(40), a_camera()
    compiled = render(scene, camera, with_geometry=True)
    monkeypatch.setenv("MAQUETTE_BACKEND", "reference")
    plain = render(scene, camera, with_geometry=True)
    for name in ("rgb", "alpha", "depth", "normal", "median_depth"):
        # float32 sums of a few dozen terms of order one
        torch.testing.assert_close(getattr(compiled, name), getattr(plain, name), atol=2e-5, rtol=1e-5)


@needs_kernels
def test_explanation_names_build_and_threads() -> None:
    assert "cpu kernels, build" in native.explain()
    assert native.backend() == "cpu"
    assert not native.has(torch.device("meta"))


@needs_kernels
def test_threads_can_be_set() -> None:
    before = native.cpu().threads()
    native.set_threads(3)
    assert native.cpu().threads() == 3
    native.set_threads(before)


PROBE = """
import json, torch
from scene.ops import native
from scene.gaussians import Gaussians
from scene.rasterize import render
from tests.scene.splats import a_camera, random_gaussians
scene = random_gaussians(40)
leaves = Gaussians(**{k: v.requires_grad_() for k, v in scene.parameters().items()})
out = render(leaves, a_camera(), with_geometry=True)
(out.rgb.sum() + out.depth.sum()).backward()
sums = [float(v.grad.double().abs().sum()) for v in leaves.parameters().values()]
print(json.dumps({"explain": native.explain(), "rgb": out.rgb.detach().flatten().tolist(), "sums": sums}))
"""


@needs_kernels
def test_every_build_that_this_processor_runs_agrees() -> None:
    results = {}
    for level, needs in native.LEVELS:
        if not needs <= native.processor_flags():
            continue
        environment = os.environ | {"MAQUETTE_CPU_LEVEL": level, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-c", PROBE],
            env=environment,
            cwd=Path(__file__).parent.parent,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        results[level] = json.loads(done.stdout)
        assert f"build {level} " in results[level]["explain"]
    best, *others = results.values()
    for other in others:
        torch.testing.assert_close(torch.tensor(other["rgb"]), torch.tensor(best["rgb"]), atol=2e-6, rtol=0)
        torch.testing.assert_close(torch.tensor(other["sums"]), torch.tensor(best["sums"]), atol=0, rtol=1e-4)
