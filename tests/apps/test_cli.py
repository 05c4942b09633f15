"""Exit codes, what goes to which stream, and options: what users and scripts rely on."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from apps import cli, options, pipeline
from apps.options import from_json, job_of_run, parse_recon
from recon.gaussians import PRESETS, Config
from scene.errors import CamerasError, InputError, Interrupted, ResourceError
from scene.runs import EVENT_KEYS, Run, read_events
from tests.apps.tiny import write_tiny

ROOT = Path(__file__).resolve().parents[2]
FAST = ("--steps", "30", "--max-splats", "150", "--initial-splats", "100")


@pytest.fixture(scope="module")
def ball(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("source") / "ball", train=8, held_out=2, size=32)


def command(*arguments: str | Path, **more: Any) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "apps.cli", *map(str, arguments)]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False, **more)


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(job: Any, stop: Any) -> Path:
        raise error

    monkeypatch.setattr(pipeline, "reconstruct", fail)


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (InputError("expected photos, got a cat"), 2, "got a cat"),
        (CamerasError("only 2 of 9 photos connect"), 3, "2 of 9"),
        (ResourceError("the disk is full"), 4, "disk"),
        (MemoryError(), 4, "--resume"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), 4, "out of memory"),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), 4, "disk is full"),
        (Interrupted("stopped; go on with --resume"), 130, "--resume"),
        (KeyboardInterrupt(), 130, "stopped"),
        (ZeroDivisionError("1/0"), 1, "report"),
        (OSError(errno.EIO, "Input/output error", "/x"), 1, "report"),
    ],
)
def test_every_outcome_has_its_exit_code_and_no_traceback(
    ball: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    told: str,
) -> None:
    failing(monkeypatch, error)
    assert cli.run(["recon", str(ball)]) == code
    said = capsys.readouterr()
    assert told in said.err
    assert "Traceback" not in said.err
    assert said.out == ""


def test_a_fault_of_ours_leaves_a_log_that_is_named(
    ball: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, ZeroDivisionError("one by nothing"))
    assert cli.run(["recon", str(ball)]) == 1
    words = capsys.readouterr().err.replace(",", " ").replace(";", " ").split()
    log = next(Path(word) for word in words if word.endswith(".log"))
    content = log.read_text()
    log.unlink()
    assert "ZeroDivisionError: one by nothing" in content
    assert "Traceback" in content
    assert "torch" in content  # versions


def test_debug_shows_the_traceback_of_a_users_mistake(
    ball: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, InputError("a mistake"))
    assert cli.run(["recon", str(ball), "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["paint"],
        ["recon"],
        ["recon", "no/such/folder"],
        ["recon", "BALL", "--steps", "many"],
        ["recon", "BALL", "--no-such-flag", "1"],
        ["recon", "BALL", "--method", "magic"],
        ["recon", "BALL", "--downscale", "0.5"],
        ["recon", "BALL", "--holdout", "1"],
        ["recon", "BALL", "--max-minutes", "-1"],
        ["recon", "BALL", "--device", "cuda"],
        ["export", "BALL", "--to", "x.ply"],
        ["render", "BALL"],
        ["eval", "BALL"],
        ["bench", "everything"],
        ["generate", "a purple flurb"],
        ["avatar", "someone.jpg"],
    ],
)
def test_a_wrong_request_is_2_and_says_why(
    ball: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run([str(ball) if word == "BALL" else word for word in arguments]) == 2
    said = capsys.readouterr()
    assert len(said.err) > 20
    assert "Traceback" not in said.err
    assert not (tmp_path / "runs").exists()  # nothing was begun


def test_help_and_version_go_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in cli.COMMANDS)
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("maquette ")
    for name in cli.COMMANDS:
        assert cli.run([name, "--help"]) == 0
        assert f"maquette {name}" in capsys.readouterr().out


def test_no_command_is_an_error_that_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([]) == 2
    assert "maquette recon" in capsys.readouterr().err


def test_json_prints_events_and_nothing_else(ball: Path, tmp_path: Path) -> None:
    done = command("recon", ball, "--out", tmp_path / "run", "--json", *FAST)
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert events == read_events(tmp_path / "run" / "events.jsonl")
    assert all(set(EVENT_KEYS) <= set(event) for event in events)
    assert any(event["step"] == 30 for event in events)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_saves_and_says_how_to_go_on(ball: Path, tmp_path: Path, number: signal.Signals) -> None:
    run = tmp_path / "run"
    line = [sys.executable, "-m", "apps.cli", "recon", str(ball), "--out", str(run), "--steps", "1000000"]
    process = subprocess.Popen(line, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    wait_for_training(process, run)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"maquette recon {run} --resume" in errors
    assert "Traceback" not in errors
    with Run.open(run) as opened:
        loaded = opened.load_checkpoint()
    assert loaded is not None
    assert loaded[1]["step"] > 0


def test_two_signals_leave_at_once_with_130(ball: Path, tmp_path: Path) -> None:
    code = (
        "import time\nfrom apps.signals import StopSignal\n"
        "with StopSignal('saving') as stop:\n print('ready', flush=True)\n time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == 130
    assert time.monotonic() - began < 5


def wait_for_training(process: subprocess.Popen[str], run: Path) -> None:
    deadline = time.monotonic() + 90
    while not any(event["step"] for event in read_events(run / "events.jsonl")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_reader_that_goes_away_stops_the_run_like_ctrl_c(ball: Path, tmp_path: Path) -> None:
    line = [sys.executable, "-m", "apps.cli", "recon", str(ball), "--out", str(tmp_path / "run"), "--json"]
    line += ["--steps", "1000000"]
    process = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=90) == 130


def recon_flags(*arguments: str | Path) -> options.ReconJob:
    return parse_recon([str(argument) for argument in arguments])


def test_flags_of_the_method_start_from_the_preset(ball: Path) -> None:
    job = recon_flags(ball, "--preset", "draft", "--sh-degree", "1", "--seed", "5")
    assert job.config == replace(Config(), **PRESETS["draft"], sh_degree=1, seed=5)
    assert job.request.seed == 5
    assert recon_flags(ball, "--steps", "12").config.steps == 12


def test_default_run_folders_are_numbered(ball: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert recon_flags(ball).out == Path("runs/ball-gaussians-1")
    Path("runs/ball-gaussians-1").mkdir(parents=True)
    assert recon_flags(ball).out == Path("runs/ball-gaussians-2")


def begun(ball: Path, run: Path, *flags: str) -> options.ReconJob:
    job = recon_flags(ball, "--out", run, *flags)
    Run.create(run, job.method, job.as_json()).close()
    return job


def test_config_json_gives_back_the_same_job(ball: Path, tmp_path: Path) -> None:
    job = begun(ball, tmp_path / "run", "--steps", "77", "--max-minutes", "3", "--downscale", "2")
    again = job_of_run(tmp_path / "run")
    assert again.config == job.config
    for name in ("max_minutes", "downscale", "holdout", "seed", "preset", "device"):
        assert getattr(again.request, name) == getattr(job.request, name)
    assert again.request.source == ball.resolve()


def test_resume_takes_the_runs_options_and_refuses_others(
    ball: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    job = begun(ball, Path("runs/ball-gaussians-1"), "--steps", "77", "--preset", "draft")
    spellings = [
        [ball, "--resume"],
        [job.out, "--resume"],
        [ball, "--out", job.out, "--resume"],
        ["--resume", ball, "--steps", "77"],
    ]
    for words in spellings:
        resumed = recon_flags(*words)
        assert resumed.resumes
        assert resumed.config == job.config
        assert resumed.out == job.out
    with pytest.raises(InputError, match="--steps 77"):
        recon_flags(ball, "--resume", "--steps", "78")
    with pytest.raises(InputError, match="--downscale"):
        recon_flags(ball, "--resume", "--downscale", "2")
    with pytest.raises(InputError, match="run of"):
        recon_flags(tmp_path, "--out", job.out, "--resume")


def test_resume_where_nothing_began_starts(ball: Path, tmp_path: Path) -> None:
    job = recon_flags(ball, "--out", tmp_path / "new", "--resume")
    assert not job.resumes
    assert job.out == tmp_path / "new"


def test_resume_without_any_run_says_so(ball: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="--out RUN"):
        recon_flags(ball, "--resume")


@pytest.mark.parametrize(
    "change",
    [
        {"options": {"steps": "many"}},
        {"options": {"no_such_option": 1}},
        {"options": 7},
        {"options": []},
        {"options": ""},
        {"seed": True},
        {"preset": "best"},
        {"source": None},
    ],
)
def test_a_config_that_was_tampered_with_is_refused(ball: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    begun(ball, tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError, match=r"config\.json"):
        job_of_run(tmp_path / "run")


def test_from_json_keeps_integers_integers() -> None:
    assert type(from_json(Config, {"means_lr": 1}).means_lr) is float
    with pytest.raises(ValueError, match="steps"):
        from_json(Config, {"steps": 1.5})


def test_help_answers_within_half_a_second() -> None:
    best = min(timed_help() for _ in range(3))
    assert best < 0.5


def timed_help() -> float:
    began = time.monotonic()
    done = command("--help", env={**os.environ, "PYTHONDONTWRITEBYTECODE": ""})
    assert done.returncode == 0
    return time.monotonic() - began


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from apps.cli import run; run(['--help']); print(sorted(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in ("torch", "numpy", "tyro", "rich", "PIL"):
        assert f"'{name}'" not in done.stderr
