"""What `maquette doctor` says of the GPU on machines with and without one, and its self-test."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from apps import doctor, self_test
from scene.ops import grid_march, native, octree_render, splat_blend
from scene.ops.gpu import compiler, runtime

needs_kernels = pytest.mark.skipif(not native.has(torch.device("cpu")), reason="there are no kernels to test")


def gpu() -> doctor.Line:
    return line_on("gpu")


def line_on(topic: str) -> doctor.Line:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(doctor, "CHECKS", {topic: doctor.CHECKS[topic]})
        return doctor.examine()[0]


def test_no_gpu_is_one_good_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(doctor, "_has_nvidia_driver", lambda: False)
    assert gpu() == doctor.Line("good", "gpu", "none found; not needed, everything runs on the CPU")


def test_a_driver_beside_a_torch_for_the_cpu_is_worth_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(doctor, "_has_nvidia_driver", lambda: True)
    assert gpu().level == "warn" and "built for the CPU only" in gpu().sentence


def test_a_card_is_named_with_its_kernels_and_their_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = [compiler.Compiled("adam", b"", "", 1.0, cached) for cached in (True, False, False)]
    monkeypatch.setenv("MAQUETTE_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(runtime, "usable", lambda: (True, "NVIDIA H200 (sm_90), driver for CUDA 13.0"))
    monkeypatch.setattr(runtime, "loaded", lambda: made)
    line = gpu()
    assert line.level == "good"
    assert line.sentence.startswith(
        "NVIDIA H200 (sm_90), driver for CUDA 13.0; 3 kernel files ready, 2 of them compiled now"
    )
    assert f"kept in {tmp_path} (0 files, 0.0 MB)" in line.sentence


@needs_kernels
def test_the_kernels_of_every_kind_of_scene_are_tested() -> None:
    line = line_on("self test")
    assert line.level == "good"
    assert all(f"{name}: picture" in line.sentence for name in ("splats", "voxel grid", "octree"))
    assert "nan" not in line.sentence


@needs_kernels
@pytest.mark.parametrize("name", list(self_test.TESTS))
def test_twins_agree_and_are_slower(name: str) -> None:
    found = self_test.compare(self_test.TESTS[name])
    assert found.sound and found.speed > 1
    assert found.picture < 2e-3 and found.gradient < 2e-3


@needs_kernels
@pytest.mark.parametrize(
    ("name", "module", "twin"),
    [
        ("splats", splat_blend, "blend_reference"),
        ("voxel grid", grid_march, "march_reference"),
        ("octree", octree_render, "render_octree_reference"),
    ],
)
def test_kernels_that_compute_something_else_are_bad(
    name: str, module: Any, twin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(self_test, "TESTS", {name: self_test.TESTS[name]})
    whole = getattr(module, twin)
    monkeypatch.setattr(module, twin, lambda *words, **more: _dimmed(whole(*words, **more)))
    assert line_on("self test").level == "bad"


def _dimmed(found: Any) -> Any:
    """The same with another number in its first tensor of colours or weights."""
    if hasattr(found, "_replace"):
        return found._replace(weights=0.9 * found.weights)
    return replace(found, rgb=0.9 * found.rgb)


@needs_kernels
def test_the_self_test_leaves_the_backend_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    for before in (None, "cpu"):
        if before is None:
            monkeypatch.delenv("MAQUETTE_BACKEND", raising=False)
        else:
            monkeypatch.setenv("MAQUETTE_BACKEND", before)
        with pytest.raises(ZeroDivisionError), self_test.reference():
            assert native.backend() == "reference"
            _ = 1 / 0
        assert os.environ.get("MAQUETTE_BACKEND") == before
