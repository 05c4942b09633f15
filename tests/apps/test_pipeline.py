"""The whole way from pictures to the report on a tiny capture, resumed after every kind of interruption."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from apps import cli, pipeline
from apps.console import JsonLines
from apps.film import path_cameras, write_film
from apps.judge import ERROR_AT_WHITE, error_picture, table
from apps.options import job_of_run, parse_recon
from apps.run_cameras import read_cameras
from apps.run_scene import scene_splats
from apps.signals import StopSignal
from recon import gaussians, sfm
from scene.errors import CamerasError, InputError, Interrupted, ResourceError
from scene.formats import load_mesh
from scene.runs import METRIC_KEYS, Run, StepReport, read_events
from tests.apps.kill_resume import Outcome, finish, kill_until_done, start
from tests.apps.tiny import tiny_camera, write_tiny

FAST = ("--steps", "400", "--max-splats", "800", "--initial-splats", "400", "--mesh", "web", "--faces", "2000")


@pytest.fixture(scope="module")
def ball(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("source") / "ball")


@pytest.fixture(scope="module")
def finished(ball: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that went through undisturbed."""
    return reconstruct(ball, tmp_path_factory.mktemp("runs") / "whole")


def reconstruct(source: Path, out: Path, *flags: str) -> Path:
    job = parse_recon([str(source), "--out", str(out), *FAST, *flags])
    return pipeline.reconstruct(job, StopSignal())


def resumed(run: Path) -> Path:
    return pipeline.reconstruct(parse_recon([str(run), "--resume"]), StopSignal())


def test_a_run_holds_what_the_contract_names(finished: Path) -> None:
    for name in ("config.json", "environment.json", "events.jsonl", "metrics.json", "report.html", "scene.ply"):
        assert (finished / name).stat().st_size > 0
    for name in (
        "mesh.glb",
        "mesh_fine.ply",
        "turntable.mp4",
        "checkpoint/latest.safetensors",
        "checkpoint/state.json",
    ):
        assert (finished / name).stat().st_size > 0
    metrics = json.loads((finished / "metrics.json").read_text())
    assert set(metrics) <= METRIC_KEYS
    assert (metrics["views_total"], metrics["views_registered"], metrics["holdout_views"]) == (19, 19, 3)
    assert metrics["steps"] == 400
    assert metrics["psnr"] > 17  # a ball on white that was not learned at all gives about 10
    assert metrics["primitives"] == len(scene_splats(Run.open(finished, writing=False)))
    mesh = load_mesh(finished / "mesh.glb")
    assert metrics["mesh_faces"] == len(mesh.faces) <= 2_000  # as FAST asks
    assert mesh.material is not None and mesh.uvs is not None
    assert metrics["seconds_total"] >= metrics["seconds_train"] > 0
    assert "seconds_sfm" not in metrics  # no cameras were estimated, so no number is given


def test_held_out_pictures_are_truth_render_and_their_difference(finished: Path) -> None:
    names = sorted(path.name for path in (finished / "renders").iterdir())
    assert len(names) == 9
    stem = names[0].removesuffix("_error.png")
    pictures = [
        torch.from_numpy(np.array(Image.open(finished / "renders" / f"{stem}_{kind}.png"))).float() / 255
        for kind in ("truth", "render", "error")
    ]
    again = error_picture(pictures[0], pictures[1])
    assert float((again - pictures[2]).abs().max()) < 0.06  # each of the three was rounded to 8 bits
    assert float((pictures[0] - pictures[1]).abs().mean()) < 0.1


def test_error_picture_grows_from_black_to_white() -> None:
    truth = torch.zeros(1, 5, 3)
    shown = truth + torch.tensor([0, 0.25, 0.5, 1, 2])[None, :, None] * ERROR_AT_WHITE
    heat = error_picture(truth, shown)
    assert heat[0, 0].tolist() == [0, 0, 0]
    assert heat[0, 3].tolist() == heat[0, 4].tolist() == [1, 1, 1]
    assert bool((heat.sum(-1)[0].diff()[:3] > 0).all())


def test_a_finished_run_resumes_to_the_same_without_training(finished: Path) -> None:
    before = Outcome.of(finished)
    scene_time = (finished / "scene.ply").stat().st_mtime_ns
    steps = sum(event["stage"] == "train" for event in read_events(finished / "events.jsonl"))
    (finished / "mesh.glb").unlink()
    (finished / "turntable.mp4").unlink()
    (finished / "report.html").unlink()
    resumed(finished)
    assert Outcome.of(finished) == before
    assert (finished / "scene.ply").stat().st_mtime_ns == scene_time
    assert sum(event["stage"] == "train" for event in read_events(finished / "events.jsonl")) == steps
    assert (finished / "report.html").exists()


def test_a_run_is_not_started_twice_by_accident(ball: Path, finished: Path) -> None:
    assert cli.run(["recon", str(ball), "--out", str(finished), *FAST]) == 2


def breaking(monkeypatch: pytest.MonkeyPatch, name: str, module: Any = pipeline) -> None:
    """Let one stage fail as a full disk would."""

    def full(*arguments: Any, **more: Any) -> Any:
        raise ResourceError("the disk is full")

    monkeypatch.setattr(module, name, full)


@pytest.mark.parametrize("stage", ["write_cameras", "save_scene", "judge", "save_mesh", "write_film", "write_report"])
def test_whatever_stage_fails_a_resume_gives_the_undisturbed_outcome(
    ball: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    with monkeypatch.context() as patch:
        breaking(patch, stage, gaussians if stage == "save_scene" else pipeline)
        with pytest.raises(ResourceError):
            reconstruct(ball, tmp_path / "run")
    resumed(tmp_path / "run")
    assert Outcome.of(tmp_path / "run") == Outcome.of(finished)


def test_stopped_in_the_middle_of_training_and_resumed_equals_undisturbed(
    ball: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = StopSignal()
    train = gaussians.train

    def stopping(*arguments: Any, on_step: Callable[[StepReport], None], **more: Any) -> Any:
        calls = [0]

        def asked() -> bool:
            calls[0] += 1
            return calls[0] == 137

        return train(*arguments, **{**more, "on_step": on_step, "stop": asked})

    monkeypatch.setattr(gaussians, "train", stopping)
    job = parse_recon([str(ball), "--out", str(tmp_path / "run"), *FAST])
    with pytest.raises(Interrupted, match="--resume"):
        pipeline.reconstruct(job, stop)
    monkeypatch.undo()
    state = json.loads((tmp_path / "run" / "checkpoint" / "state.json").read_text())["state"]
    assert state["step"] == 137
    resumed(tmp_path / "run")
    assert Outcome.of(tmp_path / "run") == Outcome.of(finished)


@pytest.mark.slow
def test_killed_again_and_again_the_outcome_is_that_of_an_undisturbed_run(
    ball: Path, finished: Path, tmp_path: Path
) -> None:
    flags = (*FAST, "--checkpoint-seconds", "0.05")
    finish(start(ball, tmp_path / "whole", flags))
    seconds = json.loads((tmp_path / "whole" / "metrics.json").read_text())["seconds_total"]
    assert kill_until_done(ball, tmp_path / "killed", flags, kills=3, whole_s=seconds, seed=2) >= 1
    assert Outcome.of(tmp_path / "killed") == Outcome.of(tmp_path / "whole") == Outcome.of(finished)


def test_time_budget_is_fixed_once_and_leaves_room_for_the_rest(ball: Path, tmp_path: Path) -> None:
    job = parse_recon([str(ball), "--out", str(tmp_path / "run"), "--max-minutes", "2", *FAST])
    with Run.create(job.out, job.method, job.as_json()) as run:
        work = pipeline._Work(run, job, torch.device("cpu"), StopSignal())
        seconds = work.train_seconds()
        assert seconds is not None
        assert 60 < seconds < 110
    with Run.open(job.out) as run:
        run._worked_before = 80.0
        assert pipeline._Work(run, job_of_run(job.out), torch.device("cpu"), StopSignal()).train_seconds() == seconds
    free = parse_recon([str(ball), "--out", str(tmp_path / "free")])
    with Run.create(free.out, free.method, free.as_json()) as run:
        assert pipeline._Work(run, free, torch.device("cpu"), StopSignal()).train_seconds() is None


def test_no_surface_is_told_and_the_rest_goes_on(ball: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*arguments: Any, **more: Any) -> Any:
        raise InputError("the cameras agree on no surface")

    monkeypatch.setattr(pipeline, "surface_to_mesh", nothing)
    run = reconstruct(ball, tmp_path / "run", "--steps", "20")
    assert not (run / "mesh.glb").exists()
    assert "mesh_faces" not in json.loads((run / "metrics.json").read_text())
    assert "agree on no surface" in (run / "report.html").read_text()


def test_without_held_out_photos_no_score_is_invented(ball: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for path in ball.rglob("*train*"):
        if path.is_file():
            (tmp_path / "photos" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "photos" / "train").mkdir()
    for path in (ball / "train").iterdir():
        (tmp_path / "photos" / "train" / path.name).write_bytes(path.read_bytes())
    run = reconstruct(tmp_path / "photos", tmp_path / "run", "--holdout", "0", "--steps", "20")
    metrics = json.loads((run / "metrics.json").read_text())
    assert "psnr" not in metrics
    assert "ssim" not in metrics
    assert metrics["holdout_views"] == 0
    assert "held out" in (run / "report.html").read_text()


def test_cameras_that_cannot_be_estimated_leave_a_report_and_exit_3(
    ball: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def poor(*arguments: Any, **more: Any) -> Any:
        raise CamerasError("cameras of only 2 of 16 photos could be estimated; take more photos")

    monkeypatch.setattr(sfm, "estimate_cameras", poor)
    assert cli.run(["recon", str(ball / "train"), "--out", str(tmp_path / "run")]) == 3
    assert "take more photos" in capsys.readouterr().err
    assert "has not finished" in (tmp_path / "run" / "report.html").read_text()
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["views_total"] == 16
    assert "psnr" not in metrics


def test_eval_gives_the_same_scores_again(finished: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = json.loads((finished / "metrics.json").read_text())
    assert cli.run(["eval", str(finished), "--json"]) == 0
    after = json.loads(capfd.readouterr().out)
    assert (after["psnr"], after["ssim"]) == (before["psnr"], before["ssim"])
    assert cli.run(["eval", str(finished)]) == 0
    assert "mean" in capfd.readouterr().out


def test_what_libraries_print_does_not_reach_a_json_reader(capfd: pytest.CaptureFixture[str]) -> None:
    with JsonLines() as say:
        say({"a": 1})
        os.write(1, b"a library written in C speaks\n")
        say({"b": "\u2028"})
    os.write(1, b"after\n")
    said = capfd.readouterr()
    assert said.out == '{"a": 1}\n{"b": "\\u2028"}\nafter\n'
    assert "speaks" in said.err


def test_table_of_nothing_says_so() -> None:
    assert "nothing to judge" in table({"views": []})


def test_render_writes_films_of_even_size_and_frames(finished: Path, tmp_path: Path) -> None:
    import av

    film = tmp_path / "film.mp4"
    flags = ["--frames", "7", "--width", "33", "--fps", "25"]
    assert cli.run(["render", str(finished), "--path", "spiral", "--out", str(film), *flags]) == 0
    with av.open(str(film)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert stream.average_rate == 25
    assert len(frames) == 7
    assert frames[0].shape == (32, 32, 3)
    folder = tmp_path / "frames"
    assert cli.run(["render", str(finished), "--path", "train", "--out", str(folder), "--frames", "3"]) == 0
    assert [path.name for path in sorted(folder.iterdir())] == ["00000.png", "00001.png", "00002.png"]
    again = np.asarray(Image.open(folder / "00000.png")).astype(float)
    assert again.shape == (48, 48, 3)
    assert again[0, 0].min() > 240  # white behind a cut-out object
    assert cli.run(["render", str(finished), "--out", str(folder)]) == 2  # already holds pictures
    assert cli.run(["render", str(finished), "--path", "sideways", "--out", str(tmp_path / "x.mp4")]) == 2
    assert cli.run(["render", str(finished), "--out", str(tmp_path / "x.gif")]) == 2


def test_render_along_a_file_uses_its_poses(finished: Path, tmp_path: Path) -> None:
    camera = tiny_camera(0.3, 0.4)
    content = {"width": 40, "height": 30, "fov_y": 40, "frames": [{"c2w": camera.c2w.tolist()}] * 2}
    (tmp_path / "path.json").write_text(json.dumps(content))
    with Run.open(finished, writing=False) as run:
        path = path_cameras(read_cameras(run), str(tmp_path / "path.json"))
    assert [(c.width, c.height) for c in path] == [(40, 30)] * 2
    assert torch.allclose(path[0].c2w, camera.c2w.float(), atol=1e-6)


def test_an_interrupted_film_leaves_no_file(tmp_path: Path) -> None:
    def pictures() -> Any:
        yield np.zeros((16, 16, 3), np.uint8)
        raise Interrupted("stopped")

    with pytest.raises(Interrupted):
        write_film(tmp_path / "film.mp4", pictures(), fps=10)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change",
    [
        {"views": 3},
        {"views": [{"name": "a"}]},
        {"up": [1, 2]},
        {"background": "white"},
        {"points": [[1, 2]]},
        {"views": [{"name": "a", "split": "x", "width": 10**9, "height": 1, "K": [[1]], "c2w": [[1]]}]},
    ],
)
def test_cameras_json_is_not_trusted(finished: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    content = json.loads((finished / "cameras.json").read_text())
    with Run.create(tmp_path / "run", "gaussians", {}) as run:
        run.write_json("cameras.json", {**content, **change})
        with pytest.raises(InputError, match=r"cameras\.json"):
            read_cameras(run)
