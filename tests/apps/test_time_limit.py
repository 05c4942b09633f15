"""--max-minutes on --resume: a run may get more or less time, says so, and keeps to it; nothing else may change."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from apps import generate, pipeline, train_prior
from apps.console import Watcher
from apps.generate_options import parse_generate
from apps.options import parse_recon
from apps.signals import StopSignal
from apps.time_limit import renew_limit, seconds_before
from generation.prior_weights import PRIOR_FILE
from scene.errors import Interrupted
from scene.ops import native
from scene.runs import Run
from tests.apps.tiny import write_tiny

ENDLESS = ("--steps", "1000000", "--device", "cpu", "--checkpoint-seconds", "0")
compiled = pytest.mark.skipif(not native.has(torch.device("cpu")), reason="the CPU module is not compiled")


def test_another_limit_is_recorded_and_gives_the_time_anew(tmp_path: Path) -> None:
    with Run.create(tmp_path / "run", "sds", {"max_minutes": 2.0, "seed": 1}) as run:
        run.finish("budget", train_seconds=60.0)
        renew_limit(run, 2.0, ["budget"], "train")
        assert run.finished("budget") is not None and not run.decisions
        renew_limit(run, 5.0, ["budget"], "train")
        assert run.finished("budget") is None
        assert run.config == {"format": 1, "method": "sds", "max_minutes": 5.0, "seed": 1}
        run.finish("train")
        renew_limit(run, None, ["budget"], "train")
    assert run.decisions == (
        "After 0:00 of work the time limit was changed from 2 minutes to 5 minutes.",
        "After 0:00 of work the time limit was changed from 5 minutes to none; training had ended by then.",
    )


def test_time_before_the_training_is_what_its_checkpoint_does_not_count(tmp_path: Path) -> None:
    with Run.create(tmp_path / "run", "sds", {}) as run:
        assert seconds_before(run) == pytest.approx(run.seconds, abs=1)
        run.save_checkpoint({}, {"step": 1, "seconds": 100.0, "stage": "prior"})
        assert seconds_before(run) == pytest.approx(run.seconds - 100, abs=1)
        assert seconds_before(run, "prior") == pytest.approx(run.seconds - 100, abs=1)
        assert seconds_before(run, "clip_guide") == pytest.approx(run.seconds, abs=1)


def stopped(start: Callable[[StopSignal], object], monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    """A run that is asked to stop at its second event of a stage."""
    stop, seen = StopSignal(), []

    def watch(watcher: object, event: dict[str, Any]) -> None:
        seen.append(event["stage"])
        if seen.count(stage) == 2:
            stop.request()

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Watcher, "__call__", watch)
        start(stop)


def limit_of(run: Path) -> tuple[float, str]:
    """What config.json says, and the decision about it."""
    decisions = json.loads((run / "progress.json").read_text())["decisions"]
    said = [sentence for sentence in decisions if "time limit was changed" in sentence]
    assert len(said) == 1
    return json.loads((run / "config.json").read_text())["max_minutes"], said[0].partition(" of work ")[2]


@compiled
def test_an_endless_generation_ends_when_it_is_given_less_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "SHORTEST_TRAINING", 0.5)
    monkeypatch.setattr(generate, "FILM_SIZE", 32)
    monkeypatch.setattr(pipeline, "TURNTABLE_FRAMES", 4)
    monkeypatch.setattr(pipeline, "LEAST_FRAMES", 2)
    small = ("--pixels", "16", "--voxels", "16", "--members", "2", "--faces", "300", "--prior", "bank", *ENDLESS)
    out = tmp_path / "run"
    job = parse_generate(["a red snowman", "--out", str(out), *small, "--max-minutes", "600"])
    stopped(lambda stop: generate.generate(job, stop), monkeypatch, "train")
    generate.main([str(out), "--resume", "--max-minutes", "0.1"])
    assert limit_of(out) == (0.1, "the time limit was changed from 600 minutes to 0.1 minutes.")
    assert (out / "report.html").is_file()
    assert parse_generate([str(out), "--resume"]).request.max_minutes == 0.1


@compiled
@pytest.mark.parametrize("method", ["gaussians", "dvgo", "dot"])
def test_an_endless_reconstruction_ends_when_it_is_given_less_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    ball = write_tiny(tmp_path / "ball", train=8, held_out=2, size=32)
    monkeypatch.setattr(pipeline, "SHORTEST_TRAINING", 0.5)
    small = {"gaussians": ("--max-splats", "150", "--initial-splats", "100"), "dvgo": ("--voxels", "4096"),
             "dot": ("--voxels", "4096", "--level", "4")}[method]  # fmt: skip
    endless = ("--epochs", "100000", *ENDLESS[2:]) if method == "dot" else ENDLESS
    out = tmp_path / "run"
    job = parse_recon([str(ball), "--method", method, "--out", str(out), *small, *endless, "--max-minutes", "600"])
    stopped(lambda stop: pipeline.reconstruct(job, stop), monkeypatch, "train")
    with monkeypatch.context() as patch:
        patch.setattr(pipeline._Work, "shaped", lambda work, capture, trained: None)
        patch.setattr(pipeline._Work, "filmed", lambda work, trained: None)
        pipeline.main([str(out), "--resume", "--max-minutes", "0.1"])
    assert limit_of(out) == (0.1, "the time limit was changed from 600 minutes to 0.1 minutes.")
    assert (out / "report.html").is_file()


def test_an_endless_training_of_the_prior_ends_when_it_is_given_less_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = ("--objects", "8", "--judged", "2", "--clip-steps", "2", "--batch", "2", "--lgm-steps", "2")
    out = tmp_path / "run"
    request = train_prior.asked(["--out", str(out), *small, *ENDLESS])
    stopped(lambda stop: train_prior.train_prior(request, stop), monkeypatch, "prior")
    train_prior.main(["--out", str(out), "--resume", "--max-minutes", "0.02"])
    assert limit_of(out) == (0.02, "the time limit was changed from none to 0.02 minutes.")
    assert (out / PRIOR_FILE).is_file()
    assert train_prior.asked(["--out", str(out), "--resume"]).max_minutes == 0.02
