"""What `maquette doctor` says of the GPU on machines with and without one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from apps import doctor
from scene.ops.gpu import compiler, runtime


def gpu() -> doctor.Line:
    return next(line for line in doctor.examine() if line.topic == "gpu")


@pytest.fixture(autouse=True)
def only_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "CHECKS", {"gpu": doctor.CHECKS["gpu"]})


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
