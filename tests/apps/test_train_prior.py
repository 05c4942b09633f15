"""`maquette train-prior` at the smallest size that runs: what it leaves behind, resuming, exit codes, options."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from apps import cli, train_prior
from apps.console import PRIOR_STAGES
from apps.signals import StopSignal
from generation.prior_weights import (
    GUIDE_FILE,
    LGM_FILE,
    PRIOR_FILE,
    SCORER_FILE,
    load_clip,
    load_lgm,
    load_prior_network,
)
from generation.trained_prior import TrainedPrior
from scene.errors import Interrupted
from scene.runs import EVENT_KEYS, read_events

ROOT = Path(__file__).resolve().parents[2]
FEW = ("--objects", "8", "--judged", "2", "--batch", "2", "--lgm-batch", "1", "--device", "cpu")
TINY = (*FEW, "--clip-steps", "2", "--steps", "6", "--lgm-steps", "2")
FILES = (PRIOR_FILE, GUIDE_FILE, SCORER_FILE, LGM_FILE)


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cli.COMMANDS, "train-prior", ("apps.train_prior", "train the embedded networks"))


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Here and in the processes that are killed: sums of torch depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def whole(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prior") / "whole"
    train_prior.main(["--out", str(out), *TINY])
    return out


def weights(folder: Path) -> list[dict[str, torch.Tensor]]:
    return [load_file(folder / name) for name in FILES]


def same(first: Path, second: Path) -> bool:
    pairs = zip(weights(first), weights(second))
    return all(a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a) for a, b in pairs)


def test_it_leaves_weights_with_their_scores_and_pictures_to_look_at(whole: Path) -> None:
    _, about = load_prior_network(whole / PRIOR_FILE)
    assert {"sample_exact", "sample_kind", "true_exact", "hull_iou", "grain", "loss", "steps"} <= set(about.metrics)
    assert about.metrics["steps"] == 6
    for name in ("samples.png", "truth.png"):
        assert (whole / name).read_bytes()[:4] == b"\x89PNG"
    assert TrainedPrior.load(whole).guide is not None
    scorer = load_clip(whole / SCORER_FILE, "clip_scorer")[1]
    assert scorer.layout != load_clip(whole / GUIDE_FILE, "clip_guide")[1].layout
    progress = json.loads((whole / "progress.json").read_text())
    assert list(progress["stages"]) == ["data", "clip_guide", "clip_scorer", "lgm", "prior", "judge"]
    assert len(progress["decisions"]) == 4
    lgm = load_lgm(whole / LGM_FILE)[1].metrics
    assert {
        "objects",
        "steps",
        "loss",
        "psnr",
        "seen_psnr",
        "blank_psnr",
        "gaussians",
        "chamfer",
        "true_chamfer",
    } == set(lgm)
    assert f"{lgm['psnr']:.1f} dB" in progress["decisions"][0]


def test_an_unproven_scorer_is_called_so() -> None:
    scores = {"sample_exact": 0.5, "sample_kind": 0.6, "hull_iou": 0.9, "true_hull_iou": 0.97, "grain": 0.02}
    doubted = train_prior.told({"true_exact": 0.96, "true_kind": 1.0}, scores, 200)
    assert "96.0%" in doubted[0] and "counts for little" in doubted[0]
    proven = train_prior.told({"true_exact": 0.97, "true_kind": 1.0}, scores, 200)
    assert "of 100 held-out captions" in proven[0] and "little" not in proven[0]


def test_events_say_stage_step_and_time_left(whole: Path) -> None:
    events = read_events(whole / "events.jsonl")
    assert all(set(event) == {*EVENT_KEYS, "stage"} for event in events)
    stages = list(dict.fromkeys(event["stage"] for event in events))
    assert stages == ["data", "clip_guide", "clip_scorer", "lgm", "prior", "judge"] == list(PRIOR_STAGES)
    last = [event for event in events if event["stage"] == "prior" and event["step"] is not None][-1]
    assert (last["step"], last["steps"], last["eta_s"]) == (6, 6, 0)
    assert last["loss"] > 0


class StopAfter(StopSignal):
    """Asked for a stop at its so many-th call, as a user who presses Ctrl-C then."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.left = calls

    def __call__(self) -> bool:
        self.left -= 1
        self.requested |= self.left == 0
        return self.requested


def test_a_stopped_training_goes_on_and_gives_the_same_weights(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "stopped"
    for calls in (3, 2, 4, 10**6):  # in the first step of the scorer and of LGM-tiny, the third of the prior, never
        request = train_prior.asked(["--out", str(out), "--resume", *TINY])
        if calls < 10**6:
            with pytest.raises(Interrupted, match="--resume"):
                train_prior.train_prior(request, StopAfter(calls))
        else:
            train_prior.train_prior(request, StopAfter(calls))
    assert same(whole, out)


def test_a_killed_training_goes_on_and_gives_the_same_weights(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    flags = ["--out", str(out), *TINY, "--checkpoint-seconds", "0"]
    code = "import sys; from apps.train_prior import main; main(sys.argv[1:])"
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", code, *flags], cwd=ROOT, env=env, stderr=subprocess.DEVNULL)
    facts = out / "checkpoint" / "state.json"
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if (
            facts.is_file()
            and (state := json.loads(facts.read_text())["state"])["stage"] == "prior"
            and state["step"] > 1
        ):
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / PRIOR_FILE).exists() or process.returncode == 0
    train_prior.main(["--out", str(out), "--resume"])
    assert same(whole, out)


def test_lgm_can_be_trained_alone_first_and_the_rest_later(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "alone"
    with pytest.raises(Interrupted, match="--stage lgm --resume"):
        train_prior.train_prior(train_prior.asked(["--out", str(out), "--stage", "lgm", *TINY]), StopAfter(3))
    train_prior.main(["--out", str(out), "--stage", "lgm", "--resume"])
    assert capsys.readouterr().err.rstrip().endswith(LGM_FILE)
    assert sorted(path.name for path in out.glob("*.safetensors")) == [GUIDE_FILE, LGM_FILE]
    train_prior.main(["--out", str(out), "--resume"])
    assert same(whole, out)


def test_a_training_begins_with_the_weights_of_an_earlier_one(
    whole: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "on"
    options = ["--start", str(whole), *FEW, "--clip-steps", "2", "--lgm-steps", "1", "--steps", "1"]
    train_prior.main(["--out", str(out), *options])
    for name in (GUIDE_FILE, SCORER_FILE):
        first, second = (load_file(folder / name) for folder in (whole, out))
        assert all(torch.equal(first[key], second[key]) for key in first)
    before, after = (load_prior_network(folder / PRIOR_FILE)[0].state_dict() for folder in (whole, out))
    moved = max(float((before[key] - after[key]).abs().max()) for key in before)
    assert 0 < moved < 0.02  # one step of at most 6e-4, kept in half precision
    assert "goes on from" in (out / "progress.json").read_text()
    assert cli.run(["train-prior", "--out", str(tmp_path / "x"), "--start", str(tmp_path)]) == 2
    assert "--start" in capfd.readouterr().err
    assert cli.run(["train-prior", "--out", str(tmp_path / "y"), "--size", "gpu", *FEW, "--start", str(whole)]) == 2
    assert "another size" in capfd.readouterr().err


def test_json_lines_are_all_that_stdout_gets(whole: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train_prior.main(["--out", str(whole), "--resume", "--json"])  # nothing is left to do
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert lines[-1]["message"].endswith(PRIOR_FILE)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--max-minutes", "0"), "--max-minutes must be positive"),
        (("--max-minutes", "nan"), "--max-minutes must be positive"),
        (("--steps", "0"), "--steps must lie between"),
        (("--lgm-batch", "0"), "--lgm-batch must lie between"),
        (("--stage", "clip"), "stage"),
        (("--objects", "1"), "--objects"),
        (("--judged", "1"), "--judged"),
        (("--seed", "-1"), "--seed"),
        (("--checkpoint-seconds", "-1"), "--checkpoint-seconds"),
        (("--size", "huge"), "size"),
    ],
)
def test_wrong_options_end_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], told: str
) -> None:
    assert cli.run(["train-prior", "--out", str(tmp_path / "new"), *flags]) == 2
    said = capsys.readouterr()
    assert told in said.err
    assert "Traceback" not in said.err
    assert not (tmp_path / "new").exists()


def test_a_training_keeps_its_options_and_its_folder(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["train-prior", "--out", str(whole), "--resume", "--steps", "7"]) == 2
    assert "started with --steps 6, not 7" in capsys.readouterr().err
    assert cli.run(["train-prior", "--out", str(whole)]) == 2
    assert "--resume" in capsys.readouterr().err
    (tmp_path / "config.json").write_text('{"format": 1, "method": "gaussians"}')
    assert cli.run(["train-prior", "--out", str(tmp_path), "--resume"]) == 2
    assert "no training of the prior" in capsys.readouterr().err


def test_ctrl_c_ends_with_130(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train_prior, "StopSignal", lambda note: _Entered(1))
    assert cli.run(["train-prior", "--out", str(tmp_path / "new"), *TINY]) == 130
    assert f"--out {tmp_path / 'new'} --resume" in capsys.readouterr().err


class _Entered(StopAfter):
    def __enter__(self) -> _Entered:
        return self

    def __exit__(self, *leaving: object) -> None:
        return None


def test_a_time_limit_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "short"
    began = time.process_time()
    train_prior.main(["--out", str(out), *FEW, "--max-minutes", "0.1"])
    assert load_prior_network(out / PRIOR_FILE)[1].metrics["steps"] >= 1
    assert time.process_time() - began < 60  # it may be started on a busy machine; work is what is limited
