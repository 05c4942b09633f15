"""The run folder: what a kill, a full disk or a second process may and may not do to it."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from scene import files
from scene.errors import InputError, ResourceError
from scene.runs import EVENT_KEYS, Run, StepReport, read_events

ROOT = Path(__file__).resolve().parents[2]
# mkdir, opening state.json to read it, then for each of three files: create, fsync, rename, open the folder, fsync it
DISK_OPERATIONS = 2 + 3 * 5


class Killed(BaseException):
    """Stands for kill -9: nothing of the program may catch it and go on."""


def make_run(folder: Path) -> Run:
    return Run.create(folder, "gaussians", {"source": "photos", "seed": 3})


def tensors_of(value: int) -> dict[str, torch.Tensor]:
    return {"means": torch.full((50, 3), float(value)), "ids": torch.full((7,), value, dtype=torch.int32)}


def assert_checkpoint_is(run: Run, allowed: set[int]) -> None:
    """The checkpoint is whole: tensors and state of the same generation, which is one of `allowed`."""
    loaded = run.load_checkpoint()
    assert loaded is not None
    tensors, state = loaded
    assert state["step"] in allowed
    for name, wanted in tensors_of(state["step"]).items():
        assert torch.equal(tensors[name], wanted)


def test_checkpoint_gives_back_every_bit_of_tensors_and_state(tmp_path: Path) -> None:
    kept = {
        "f32": torch.tensor([1.0, float("nan"), -0.0, float("inf")]),
        "f64": torch.tensor([0.1], dtype=torch.float64),
        "bf16": torch.randn(3, 2, generator=torch.Generator().manual_seed(0)).bfloat16(),
        "i64": torch.tensor([2**62]),
        "u8": torch.arange(256, dtype=torch.uint8),
        "flag": torch.tensor([True, False]),
        "empty": torch.zeros(0, 45, 3),
        "scalar": torch.tensor(2.5),
        "strided": torch.arange(12.0).reshape(3, 4).T,
    }
    state = {"step": 7, "lr": 0.1 + 0.2, "name": "Ünïcode \u2028", "nested": {"list": [1, 2.5, None]}}
    with make_run(tmp_path / "run") as run:
        assert run.load_checkpoint() is None
        run.save_checkpoint(kept, state)
        loaded = run.load_checkpoint()
    assert loaded is not None
    assert loaded[1] == state
    assert set(loaded[0]) == set(kept)
    for name, tensor in kept.items():
        assert loaded[0][name].dtype == tensor.dtype
        assert loaded[0][name].shape == tensor.shape
        got, wanted = loaded[0][name].contiguous().reshape(-1), tensor.contiguous().reshape(-1)
        assert torch.equal(got.view(torch.uint8), wanted.view(torch.uint8))


def test_checkpoint_opens_with_the_safetensors_library(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    with make_run(tmp_path / "run") as run:
        run.save_checkpoint(tensors_of(4), {"step": 4})
    loaded = load_file(tmp_path / "run" / "checkpoint" / "latest.safetensors")
    assert torch.equal(loaded["means"], tensors_of(4)["means"])
    facts = json.loads((tmp_path / "run" / "checkpoint" / "state.json").read_text())
    assert facts["state"] == {"step": 4}
    assert facts["bytes"] == (tmp_path / "run" / "checkpoint" / facts["file"]).stat().st_size


def killing_after(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise Killed at the `count`-th system call that changes the disk, leaving a torn file where it was a write.

    Clean-up code is switched off as well: a killed process runs none.
    """
    left = [count]

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return function(*args, **kwargs)

        return call

    real_open = Path.open

    def torn_open(self: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        file = real_open(self, mode, *args, **kwargs)
        if "w" in mode:
            left[0] -= 1
            if left[0] < 0:
                file.write(b'{"half": ')
                file.close()
                raise Killed
        return file

    monkeypatch.setattr(Path, "open", torn_open)
    monkeypatch.setattr(Path, "unlink", lambda self, missing_ok=False: None)
    for name in ("replace", "fsync", "open"):
        monkeypatch.setattr(os, name, counted(getattr(os, name)))
    monkeypatch.setattr(Path, "mkdir", counted(Path.mkdir))


@pytest.mark.parametrize("moment", range(DISK_OPERATIONS + 1))
def test_killed_between_any_two_disk_operations_the_old_or_the_new_checkpoint_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    run = make_run(tmp_path / "run")
    run.save_checkpoint(tensors_of(1), {"step": 1})
    with monkeypatch.context() as patch:
        killing_after(moment, patch)
        try:
            run.save_checkpoint(tensors_of(2), {"step": 2})
            run.finish("train", steps=2)
            survived = True
        except Killed:
            survived = False
    assert survived == (moment == DISK_OPERATIONS)  # else the test no longer visits every moment
    run.close()
    with Run.open(tmp_path / "run") as again:
        assert_checkpoint_is(again, {2} if survived else {1, 2})
        assert again.checkpoint_facts()["state"] == again.load_checkpoint()[1]  # type: ignore[index]
        assert again.finished("train") in (None, {"steps": 2})
        again.save_checkpoint(tensors_of(3), {"step": 3})
        assert_checkpoint_is(again, {3})
        assert not list((tmp_path / "run").rglob("*.tmp"))


WRITER = """
import sys, torch
from scene.runs import Run
run = Run.open(sys.argv[1])
loaded = run.load_checkpoint()
step = loaded[1]["step"] if loaded else 0
while True:
    step += 1
    tensors = {"means": torch.full((50, 3), float(step)), "ids": torch.full((7,), step, dtype=torch.int32)}
    run.save_checkpoint(tensors, {"step": step})
    run.event("saved", step=step)
    run.decide(f"decision {step}")
"""


def test_a_process_killed_at_random_moments_leaves_a_run_that_opens(tmp_path: Path) -> None:
    make_run(tmp_path / "run").close()
    random.seed(1)
    reached = 0
    for _ in range(3):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / "run")], cwd=ROOT)
        deadline = time.monotonic() + 60
        while not any(event["step"] == reached + 1 for event in read_events(tmp_path / "run" / "events.jsonl")):
            assert time.monotonic() < deadline
            assert writer.poll() is None
            time.sleep(0.02)
        time.sleep(random.random() * 0.2)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        with Run.open(tmp_path / "run") as run:  # the lock died with its holder
            loaded = run.load_checkpoint()
            assert loaded is not None
            steps = loaded[1]["step"]
            assert_checkpoint_is(run, {steps})
            told = [event["step"] for event in read_events(tmp_path / "run" / "events.jsonl")]
            assert steps >= max(step for step in told if step)
            reached = steps
    lines = (tmp_path / "run" / "events.jsonl").read_bytes().splitlines()
    assert all(isinstance(json.loads(line), dict) for line in lines)  # no torn line stayed in the middle


def test_events_have_the_contracts_keys_and_no_invented_numbers(tmp_path: Path) -> None:
    with make_run(tmp_path / "run") as run:
        heard: list[dict[str, Any]] = []
        run.listeners.append(heard.append)
        run.event("hello\nwörld")
        run.on_step(StepReport(step=3, steps=10, loss=float("nan"), psnr=None, splats=5, eta_s=float("inf")))
    events = read_events(tmp_path / "run" / "events.jsonl")
    assert events == heard
    assert all(tuple(event)[: len(EVENT_KEYS)] == EVENT_KEYS for event in events)
    assert events[0]["message"] == "hello\nwörld"
    assert events[1]["loss"] is None
    assert events[1]["eta_s"] is None
    assert 0 <= events[0]["t"] <= events[1]["t"]


def test_time_of_events_goes_on_where_a_killed_process_left_it(tmp_path: Path) -> None:
    with make_run(tmp_path / "run") as run:
        run._worked_before = 100.0
        run.event("before")
    with (tmp_path / "run" / "events.jsonl").open("ab") as file:
        file.write(b'{"t": 999, "ste')
    with Run.open(tmp_path / "run") as run:
        run.event("after")
    times = [event["t"] for event in read_events(tmp_path / "run" / "events.jsonl")]
    assert len(times) == 2
    assert 100 <= times[0] <= times[1] < 160


def test_two_writers_never_share_a_run(tmp_path: Path) -> None:
    with make_run(tmp_path / "run"):
        with pytest.raises(InputError, match=f"process {os.getpid()}"):
            Run.open(tmp_path / "run")
        assert Run.open(tmp_path / "run", writing=False).config["seed"] == 3
    Run.open(tmp_path / "run").close()


def test_a_folder_with_something_in_it_is_not_taken_over(tmp_path: Path) -> None:
    make_run(tmp_path / "run").close()
    with pytest.raises(InputError, match="--resume"):
        make_run(tmp_path / "run")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("dear reader")
    with pytest.raises(InputError, match=r"thesis\.tex"):
        make_run(tmp_path / "mine")
    with pytest.raises(InputError, match=r"config\.json"):
        Run.open(tmp_path / "mine")


def test_full_disk_is_a_resource_error_and_the_old_checkpoint_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with make_run(tmp_path / "run") as run:
        run.save_checkpoint(tensors_of(1), {"step": 1})
        with monkeypatch.context() as patch:
            patch.setattr(files.os, "fsync", full)
            with pytest.raises(ResourceError, match="disk is full"):
                run.save_checkpoint(tensors_of(2), {"step": 2})
            with pytest.raises(ResourceError, match="disk is full"):
                run.add_metrics(psnr=30.0)
        assert_checkpoint_is(run, {1})
        assert not list((tmp_path / "run").rglob("*.tmp"))


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "foreign"])
def test_a_damaged_checkpoint_is_named_not_loaded(tmp_path: Path, damage: str) -> None:
    from safetensors.torch import save_file

    with make_run(tmp_path / "run") as run:
        run.save_checkpoint(tensors_of(1), {"step": 1})
        path = tmp_path / "run" / "checkpoint" / "latest.safetensors"
        content = bytearray(path.read_bytes())
        if damage == "flip":
            content[-5] ^= 1
        path.write_bytes({"flip": content, "cut": content[:-9], "empty": b"", "foreign": b""}[damage])
        if damage == "foreign":
            save_file(tensors_of(1), path)
        with pytest.raises(InputError, match=r"latest\.safetensors"):
            run.load_checkpoint()


def test_state_that_json_would_change_is_refused(tmp_path: Path) -> None:
    with make_run(tmp_path / "run") as run, pytest.raises(ValueError, match="JSON"):
        run.save_checkpoint(tensors_of(1), {"loss": float("nan")})


def test_metrics_merge_and_leave_out_what_is_not_known(tmp_path: Path) -> None:
    with make_run(tmp_path / "run") as run:
        run.add_metrics(psnr=30.5, ssim=None)
        run.add_metrics(psnr=31.0, steps=10, chamfer=float("nan"))
        assert run.metrics == {"psnr": 31.0, "steps": 10}
        with pytest.raises(ValueError, match="fid"):
            run.add_metrics(fid=3.0)
        run.add_peak_memory()
        assert 10 < run.metrics["peak_memory_mb"] < 100_000


def test_decisions_and_stages_come_back_once_each(tmp_path: Path) -> None:
    with make_run(tmp_path / "run") as run:
        run.decide("Photos, because there are 12 JPEGs.")
        run.finish("cameras", seconds=2.5, found=[{"value": float("nan")}])
    with Run.open(tmp_path / "run") as run:
        run.decide("Photos, because there are 12 JPEGs.")
        assert run.decisions == ("Photos, because there are 12 JPEGs.",)
        assert run.finished("cameras") == {"seconds": 2.5, "found": [{"value": None}]}
        run.reopen_stage("cameras")
        assert run.finished("cameras") is None


def test_environment_says_what_ran(tmp_path: Path) -> None:
    with make_run(tmp_path / "run") as run:
        run.write_environment(device="cpu", backend="cpu kernels, build x", seed=3)
        environment = json.loads((tmp_path / "run" / "environment.json").read_text())
        assert {"version", "commit", "device", "kernels", "seed", "libraries", "python"} <= set(environment)
        assert run.metrics["backend"] == "cpu"
