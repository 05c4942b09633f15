"""What --device and --rasterizer mean on machines with, without and with a broken GPU, through the real command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from apps import cli, devices
from apps.devices import choose_device
from scene.errors import InputError
from scene.ops import gsplat_raster, native
from scene.ops.gpu import runtime
from scene.runs import Run
from tests.apps.tiny import write_tiny

BROKEN = "the driver of Card X (sm_80) is for CUDA 11.8 and cannot load what NVRTC 13.0 makes; update the driver"
SHORT = (
    "--steps",
    "20",
    "--max-splats",
    "100",
    "--initial-splats",
    "60",
    "--mesh",
    "web",
    "--faces",
    "500",
    "--seed",
    "3",
)


def machine(monkeypatch: pytest.MonkeyPatch, *, usable: bool, why: str, card: bool) -> None:
    """Whether the GPU can be used, what the runtime says of it, and whether a driver is there."""
    monkeypatch.setattr(runtime, "usable", lambda *index: (usable, why))
    monkeypatch.setattr(devices, "NVIDIA_DRIVER", Path("/" if card else "/no/such/driver"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: card and usable)


@pytest.mark.parametrize(
    ("usable", "card", "wanted", "device", "said"),
    [
        (True, True, "auto", "cuda", False),
        (True, True, "cuda", "cuda", False),
        (True, True, "cpu", "cpu", False),
        (False, True, "auto", "cpu", True),
        (False, True, "cpu", "cpu", False),
        (False, False, "auto", "cpu", False),
    ],
)
def test_the_device_follows_the_machine_and_the_wish(
    monkeypatch: pytest.MonkeyPatch, usable: bool, card: bool, wanted: str, device: str, said: bool
) -> None:
    machine(monkeypatch, usable=usable, why=BROKEN, card=card)
    monkeypatch.delenv("MAQUETTE_BACKEND", raising=False)
    chosen, sentence = choose_device(wanted)
    assert chosen.type == device
    assert (sentence == f"Computing on the CPU: {BROKEN}.") if said else (sentence is None)


def test_auto_leaves_the_card_to_those_who_compare_with_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, usable=True, why="", card=True)
    monkeypatch.setenv("MAQUETTE_BACKEND", "reference")
    assert choose_device("auto") == (torch.device("cpu"), None)
    assert choose_device("cuda") == (torch.device("cuda"), None)


def test_a_gpu_that_cannot_be_used_is_an_error_of_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine(monkeypatch, usable=False, why=BROKEN, card=True)
    source = write_tiny(tmp_path / "ball", train=4, held_out=1)
    assert cli.run(["recon", str(source), "--device", "cuda", "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert BROKEN in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_auto_on_a_broken_machine_says_so_once_and_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine(monkeypatch, usable=False, why=BROKEN, card=True)
    source = write_tiny(tmp_path / "ball", train=6, held_out=1)
    assert cli.run(["recon", str(source), "--out", str(tmp_path / "run"), *SHORT]) == 0
    with Run.open(tmp_path / "run", writing=False) as run:
        assert [sentence for sentence in run.decisions if BROKEN in sentence] == [f"Computing on the CPU: {BROKEN}."]
        assert run.metrics["device"] == "cpu"
        assert run.metrics["backend"] == native.backend()
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["device"] == "cpu"
    assert environment["kernels"] == native.explain()


@pytest.mark.parametrize(("installed", "words"), [(False, "pip install gsplat"), (True, "needs an NVIDIA GPU")])
def test_gsplat_where_it_cannot_run_is_an_error_of_one_line(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    installed: bool,
    words: str,
) -> None:
    machine(monkeypatch, usable=False, why=BROKEN, card=False)
    monkeypatch.setattr(gsplat_raster, "installed", lambda: installed)
    source = write_tiny(tmp_path / "ball", train=4, held_out=1)
    assert cli.run(["recon", str(source), "--rasterizer", "gsplat", "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_gpu_asked_for_by_name_and_not_there_says_why() -> None:
    if runtime.usable()[0]:
        pytest.skip("this machine has a GPU")
    with pytest.raises(InputError, match="--device cuda cannot be used here"):
        choose_device("cuda")
