"""Each method through every door, by the real command on a tiny capture: the whole run, resumed, judged, exported."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast, get_args, get_type_hints

import numpy as np
import pytest
import torch
from PIL import Image

from apps import cli, options, pipeline, run_splats
from apps.export import FIELDS
from apps.film import path_cameras
from apps.methods import WORDS, drawn_once, method_of
from apps.options import METHODS, parse_recon
from apps.run_cameras import read_cameras
from apps.run_scene import SPLATS_FILE, scene_splats, trained_scene
from apps.signals import StopSignal
from apps.view import RunSource
from recon.evaluation import evaluate
from scene.cameras import Camera
from scene.depth_fusion import DepthFrame
from scene.errors import InputError, Interrupted, OutOfMemory, ResourceError
from scene.formats import kind_of, load_mesh, load_splats
from scene.formats.octree_npz import load_octree
from scene.rasterize import render
from scene.runs import METRIC_KEYS, Run, StepReport, read_events
from tests.apps.browser import Page, chromium
from tests.apps.kill_resume import Outcome, kill_until_done
from tests.apps.test_report import read
from tests.apps.tiny import tiny_camera, write_tiny

FAST: dict[str, tuple[str, ...]] = {
    "dvgo": ("--steps", "700", "--rays", "512", "--voxels", "15000", "--coarse-voxels", "8000", "--width", "64"),
    "dot": ("--grid-steps", "500", "--rays", "512", "--voxels", "27000", "--level", "5", "--epochs", "20"),
}
"""Each method but Gaussians, which the other tests of this folder take; flags that train it in seconds."""
MESH = ("--mesh", "web", "--faces", "1000")
LEAST_PSNR = 15.0  # a ball on white that was not learned at all gives about 10


@pytest.fixture(scope="module")
def ball(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("source") / "ball")


@pytest.fixture(scope="module", params=list(FAST))
def finished(request: pytest.FixtureRequest, ball: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a method that went through undisturbed."""
    out = tmp_path_factory.mktemp("runs") / request.param
    assert cli.run(words(ball, out, request.param)) == 0
    return out


def words(source: Path, out: Path, method: str) -> list[str]:
    """The arguments of the command."""
    return ["recon", str(source), "--method", method, "--out", str(out), *FAST[method], *MESH]


def method_name(run: Path) -> str:
    return json.loads((run / "config.json").read_text())["method"]


def copied(run: Path, to: Path) -> Path:
    """The run again, to do harm to."""
    return Path(shutil.copytree(run, to))


def test_a_run_holds_what_the_contract_names(finished: Path) -> None:
    module = method_of(method_name(finished))
    names = [module.SCENE_FILE, SPLATS_FILE, "mesh.glb", "mesh_fine.ply", "turntable.mp4", "report.html"]
    for name in (*names, "checkpoint/latest.safetensors", "checkpoint/state.json", "events.jsonl", "environment.json"):
        assert (finished / name).stat().st_size > 0
    metrics = json.loads((finished / "metrics.json").read_text())
    assert set(metrics) <= METRIC_KEYS
    assert metrics["method"] == method_name(finished)
    assert metrics["psnr"] > LEAST_PSNR
    with Run.open(finished, writing=False) as run:
        trained = trained_scene(run)
        assert (metrics["primitives"], metrics["parameters"]) == module.counts(trained.scene)
        assert run.finished("splats") is not None
    assert metrics["mesh_faces"] == len(load_mesh(finished / "mesh.glb").faces) <= 1000
    assert len(list((finished / "renders").glob("*.png"))) == 9


def test_splats_cost_what_the_run_says_they_cost(finished: Path, ball: Path) -> None:
    from data.captures import open_capture

    with Run.open(finished, writing=False) as run, open_capture(ball) as capture:
        splats, record, metrics = scene_splats(run), run.finished("splats") or {}, run.metrics
        scores = [
            score.psnr for score in evaluate(lambda c, b: render(splats, c, background=b).rgb, capture, exposure=False)
        ]
    assert record["psnr"] == pytest.approx(np.mean(scores), abs=1e-3)
    assert record["cost_db"] == pytest.approx(metrics["psnr"] - np.mean(scores), abs=1e-3)
    assert record["splats"] == len(splats)


def test_without_held_out_photos_splats_are_held_against_the_scene_itself(
    finished: Path, ball: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from data.captures import open_capture

    made = copied(finished, tmp_path / "run")
    with Run.open(made) as run, open_capture(ball) as capture:
        capture = replace(capture, test=())
        trained = trained_scene(run)
        cameras = read_cameras(run).train
        run_splats.make_splats(
            run, capture, trained, trained.surface, cameras, progress=lambda done, total, message: None
        )
        record = run.finished("splats") or {}
    assert "psnr" not in record
    assert record["alike_db"] > 12


def test_a_finished_run_resumes_to_the_same_without_training(finished: Path, tmp_path: Path) -> None:
    run = copied(finished, tmp_path / "run")
    before = Outcome.of(run)
    assert before.splats and before.mesh
    steps = sum(event["stage"] == "train" for event in read_events(run / "events.jsonl"))
    for name in ("mesh.glb", "mesh_fine.ply", SPLATS_FILE, "turntable.mp4", "report.html"):
        (run / name).unlink()
    assert cli.run(["recon", str(run), "--resume"]) == 0
    assert Outcome.of(run) == before
    assert sum(event["stage"] == "train" for event in read_events(run / "events.jsonl")) == steps
    assert (run / "report.html").exists() and (run / "turntable.mp4").exists()


def test_stopped_in_the_middle_of_training_and_resumed_equals_undisturbed(
    finished: Path, ball: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = method_name(finished)
    module: Any = method_of(name)
    train = module.train
    for at in (20, 390):

        def stopping(*arguments: Any, on_step: Callable[[StepReport], None], at: int = at, **more: Any) -> Any:
            calls = iter(range(1, 10**9))
            return train(*arguments, **{**more, "on_step": on_step, "stop": lambda: next(calls) == at})

        monkeypatch.setattr(module, "train", stopping)
        resume = ["--resume"] if (tmp_path / "run").exists() else []
        with pytest.raises(Interrupted, match="--resume"):
            pipeline.reconstruct(parse_recon([*words(ball, tmp_path / "run", name)[1:], *resume]), StopSignal())
        monkeypatch.undo()
    assert cli.run(["recon", str(tmp_path / "run"), "--resume"]) == 0
    assert Outcome.of(tmp_path / "run") == Outcome.of(finished)


@pytest.mark.slow
def test_killed_again_and_again_the_outcome_is_that_of_an_undisturbed_run(
    finished: Path, ball: Path, tmp_path: Path
) -> None:
    name = method_name(finished)
    seconds = json.loads((finished / "metrics.json").read_text())["seconds_total"]
    flags = ("--method", name, "--checkpoint-seconds", "0.2", *FAST[name], *MESH)
    kill_until_done(ball, tmp_path / "killed", flags, kills=2, whole_s=seconds, seed=3)
    assert Outcome.of(tmp_path / "killed") == Outcome.of(finished)


def test_memory_and_disk_that_run_out_are_told_and_the_run_goes_on_to_the_same(
    finished: Path, ball: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_memory(*arguments: Any, **more: Any) -> Any:
        raise MemoryError

    def full_card(*arguments: Any, **more: Any) -> Any:
        raise OutOfMemory("the GPU's memory is full")

    def full(*arguments: Any, **more: Any) -> Any:
        raise ResourceError("the disk is full")

    name, run = method_name(finished), tmp_path / "run"
    module = method_of(name)
    for where, what, broken in (
        (module, "train", no_memory),
        (module, "train", full_card),
        (module, "save_scene", full),
        (run_splats, "save_splats", full),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(where, what, broken)
            assert cli.run([*words(ball, run, name), *(["--resume"] if run.exists() else [])]) == 4
        said = capsys.readouterr().err
        assert "the disk is full" in said or ("out of memory" in said and "--resume" in said)
        assert (WORDS[name].smaller in said) == (where is module and what == "train")
        assert "--max-splats" not in said  # an option of another method
    assert cli.run(["recon", str(run), "--resume"]) == 0
    assert Outcome.of(run) == Outcome.of(finished)


def test_no_splats_and_no_mesh_are_told_and_the_rest_goes_on(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(*arguments: Any, **more: Any) -> Any:
        raise InputError("nothing solid was found")

    run = copied(finished, tmp_path / "run")
    for name in ("mesh.glb", "mesh_fine.ply", SPLATS_FILE, "report.html"):
        (run / name).unlink()
    monkeypatch.setattr(pipeline, "surface_to_mesh", nothing)
    monkeypatch.setattr(run_splats, "gaussians_from_frames", nothing)
    assert cli.run(["recon", str(run), "--resume"]) == 0
    text = read(run / "report.html").text
    assert "No mesh: nothing solid was found" in text and "No splats: nothing solid was found" in text
    assert cli.run(["export", str(run), "--to", str(tmp_path / "a.ply")]) == 2


def test_mesh_and_splats_are_made_of_the_same_frames_each_drawn_once(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copied(finished, tmp_path / "run")
    for name in ("mesh.glb", "mesh_fine.ply", SPLATS_FILE):
        (run / name).unlink()
    module: Any = method_of(method_name(run))
    draw, drawn = module.surface_frame, []

    def counting(scene: Any, camera: Camera, config: Any) -> DepthFrame:
        drawn.append(tuple(camera.c2w.flatten().tolist()))
        return draw(scene, camera, config)

    monkeypatch.setattr(module, "surface_frame", counting)
    assert cli.run(["recon", str(run), "--resume"]) == 0
    with Run.open(run, writing=False) as opened:
        assert len(drawn) == len(set(drawn)) == len(read_cameras(opened).train)
    assert Outcome.of(run) == Outcome.of(finished)


def test_a_frame_is_drawn_again_for_another_view_or_size_only() -> None:
    drawn: list[Camera] = []

    def frame_of(camera: Camera) -> DepthFrame:
        drawn.append(camera)
        return DepthFrame(camera, torch.zeros(camera.height, camera.width), torch.zeros(1, dtype=torch.uint8))

    frame, here, there = drawn_once(frame_of), tiny_camera(0.3, 0.1), tiny_camera(0.3, 0.2)
    assert frame(here) is frame(tiny_camera(0.3, 0.1))
    assert frame(here.scaled(0.5)).depth.shape == (24, 24)
    assert frame(there) is not frame(here)
    assert len(drawn) == 3


@pytest.mark.parametrize(("worked", "expected"), [(300, 150), (440, 10), (700, pipeline.SHORTEST_FIT)])
def test_the_fit_of_the_splats_takes_what_the_time_has_left(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, worked: float, expected: float
) -> None:
    limits: list[float | None] = []
    monkeypatch.setattr(pipeline, "make_splats", lambda *words, max_seconds, **more: limits.append(max_seconds))
    path = copied(finished, tmp_path / "run")
    (path / SPLATS_FILE).unlink()
    for minutes in (None, 8):
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps({**config, "max_minutes": minutes}))
        job = options.job_of_run(path)
        with Run.open(path) as run:
            run._worked_before = float(worked)
            work = pipeline._Work(run, job, torch.device("cpu"), StopSignal())
            trained = trained_scene(run)
            work.splatted(cast(Any, None), trained, trained.surface)
    assert limits == [None, pytest.approx(expected, abs=5)]


def test_the_turntable_has_as_many_frames_as_there_is_time_for_and_then_smaller_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def slow(width: int) -> None:
        time.sleep(0.02)

    monkeypatch.setattr(pipeline, "SHORTEST_FILM", 0.1)
    least, (frames, width) = pipeline.LEAST_FRAMES, pipeline.affordable_film(slow, 0.4, 640)
    assert frames == least and 300 <= width <= 640 * 0.5**0.5  # half the time it takes: half the pixels
    assert pipeline.affordable_film(slow, -5, 640) == (least, pipeline.LEAST_WIDTH)
    assert pipeline.affordable_film(slow, -5, 100) == (least, 100)
    frames, width = pipeline.affordable_film(slow, 1.6, 640)
    assert least < frames <= 80 and width == 640
    assert pipeline.affordable_film(lambda width: None, 30, 640) == (pipeline.TURNTABLE_FRAMES, 640)


def test_a_mesh_is_made_of_as_many_views_as_there_is_time_for() -> None:
    assert pipeline.affordable_views(lambda: None, -5) == pipeline.LEAST_MESH_VIEWS
    views = pipeline.affordable_views(lambda: time.sleep(0.1), 30)  # half a second each
    assert pipeline.LEAST_MESH_VIEWS < views <= 60
    assert pipeline.affordable_views(lambda: None, 300) == pipeline.MOST_MESH_VIEWS


def test_eval_and_films_show_the_scene_itself(
    finished: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = json.loads((finished / "metrics.json").read_text())
    assert cli.run(["eval", str(finished), "--json"]) == 0
    after = json.loads(capfd.readouterr().out)
    assert (after["psnr"], after["ssim"]) == (before["psnr"], before["ssim"])
    film(finished, tmp_path / "film")
    with Run.open(finished, writing=False) as run:
        trained, seen = trained_scene(run), read_cameras(run)
        want = trained.picture(path_cameras(seen, "train", 3)[0], seen.background)
    got = torch.from_numpy(np.array(Image.open(tmp_path / "film" / "00000.png"))).float() / 255
    assert (got - want.clamp(0, 1)).abs().max() < 0.01


def film(run: Path, out: Path) -> np.ndarray:
    """Frames along the photos, [F, H, W, 3]."""
    assert cli.run(["render", str(run), "--path", "train", "--frames", "3", "--out", str(out)]) == 0
    return np.stack([np.asarray(Image.open(path), dtype=float) for path in sorted(out.glob("*.png"))])


def test_turning_and_scaling_move_the_cameras_and_crops_apply_to_the_splats(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copied(finished, tmp_path / "run")
    before = film(run, tmp_path / "before")
    assert cli.run(["edit", str(run), "--up", "0.3,-1,0.2", "--scale", "30"]) == 0
    assert np.abs(film(run, tmp_path / "turned") - before).mean() < 0.5
    assert "stays whole" not in capsys.readouterr().err
    assert cli.run(["edit", str(run), "--undo"]) == 0 == cli.run(["edit", str(run), "--undo"])
    assert cli.run(["edit", str(run), "--crop=-9,-9,0:9,9,9"]) == 0
    assert "stays whole" in capsys.readouterr().err
    cut = film(run, tmp_path / "cut")
    assert "the film shows those" in capsys.readouterr().err
    assert (cut > 240).mean() > (before > 240).mean() + 0.05  # white is behind the lower half now
    field, ply, glb = tmp_path / f"a{Path(own(run)).suffix}", tmp_path / "a.ply", tmp_path / "a.glb"
    assert cli.run(["export", str(run), "--to", str(field), str(ply), str(glb)]) == 0
    assert "without the run's edits" in capsys.readouterr().err
    assert field.read_bytes() == (run / own(run)).read_bytes()
    assert float(load_splats(ply).means[:, 2].min()) >= 0
    assert load_mesh(glb).vertices[:, 2].min() >= -1e-4


def own(run: Path) -> str:
    return method_of(method_name(run)).SCENE_FILE


def test_a_run_goes_into_every_kind_of_format_and_what_splats_cost_is_said(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    targets = [tmp_path / f"a{ending}" for ending in (".ply", ".spz", ".glb", ".obj", ".html")]
    field = tmp_path / own(finished)
    assert cli.run(["export", str(finished), "--to", *map(str, targets), str(field)]) == 0
    said = capsys.readouterr().err
    assert "Splats stand for the" in said and "dB" in said
    assert [kind_of(path) for path in targets[:4]] == ["splats", "splats", "mesh", "mesh"]
    assert len(load_splats(targets[0])) == len(load_splats(finished / SPLATS_FILE))
    assert field.read_bytes() == (finished / own(finished)).read_bytes()
    assert f"splats made of the {WORDS[method_name(finished)].scene}" in targets[4].read_text()


def test_grids_become_octrees_and_octrees_no_grids(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree, grid = tmp_path / "a.npz", tmp_path / "a.safetensors"
    assert cli.run(["export", str(finished), "--to", str(tree)]) == 0
    assert len(load_octree(tree)) > 500
    if method_name(finished) == "dvgo":
        assert "dB from its pictures" in capsys.readouterr().err
    else:
        assert cli.run(["export", str(finished), "--to", str(grid)]) == 2
        said = capsys.readouterr().err
        assert "is written as .npz" in said and not grid.exists()


def test_a_file_is_no_source_of_a_field(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["export", str(finished / SPLATS_FILE), "--to", str(tmp_path / own(finished))]) == 2
    assert "is a file" in capsys.readouterr().err


def test_without_its_photos_the_texture_comes_from_the_scene_itself(finished: Path, tmp_path: Path) -> None:
    run = copied(finished, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "source": str(tmp_path / "gone")}))
    assert cli.run(["export", str(run), "--to", str(tmp_path / "a.glb"), "--faces", "300"]) == 0
    material = load_mesh(tmp_path / "a.glb").material
    assert material is not None and material.base_color.std() > 3


def test_view_shows_splats_and_mesh_and_what_they_stand_for(finished: Path, tmp_path: Path) -> None:
    content = RunSource(finished).read()
    assert content.splats is not None and content.mesh is not None
    assert "Splats stand for the" in content.status


def test_view_shows_what_a_checkpoint_holds_as_splats(finished: Path, tmp_path: Path) -> None:
    run = copied(finished, tmp_path / "run")
    for name in (own(run), SPLATS_FILE, "mesh.glb"):
        (run / name).unlink()
    content = RunSource(run).read()
    assert content.splats is not None and content.mesh is None and len(content.splats) > 500
    assert "splats stand for the" in content.status and re.search(r"step \d+ of \d+", content.status)
    with Run.open(finished, writing=False) as done:
        trained, seen = trained_scene(done), read_cameras(done)
    background = seen.background
    for camera in seen.cameras[:2]:
        drawn = render(content.splats, camera, background=background).rgb
        apart = (drawn - trained.picture(camera, background)).square().mean()
        assert float(-10 * apart.log10()) > 15  # quick ones, each rim a pixel too wide
    shutil.rmtree(run / "checkpoint")
    with pytest.raises(InputError, match="within a minute"):
        RunSource(run).read()


def test_a_checkpoint_of_other_options_is_not_shown(finished: Path, tmp_path: Path) -> None:
    run = copied(finished, tmp_path / "run")
    for name in (own(run), SPLATS_FILE, "mesh.glb"):
        (run / name).unlink()
    name = {"dvgo": "density", "dot": "sigmas"}[method_name(finished)]
    with Run.open(run) as opened:
        loaded = opened.load_checkpoint()
        assert loaded is not None
        tensors, state = loaded
        opened.save_checkpoint({**tensors, name: tensors[name][1:].clone()}, state)
    with pytest.raises(InputError, match="the checkpoint holds no"):
        RunSource(run).read()


def test_the_report_speaks_of_the_methods_own_parts(finished: Path) -> None:
    text, spoken = read(finished / "report.html").text, WORDS[method_name(finished)]
    for expected in (spoken.name, spoken.file, spoken.curve, f"Splats stand for the {spoken.scene}"):
        assert expected in text
    assert "Number of Gaussians" not in text and "3D Gaussian Splatting" not in text
    messages = [event["message"] for event in read_events(finished / "events.jsonl")]
    assert any(message.endswith("on held-out photos") and "splats made of" in message for message in messages)


def test_the_report_opens_in_a_browser_with_its_scene(finished: Path) -> None:
    with chromium() as port:
        tab = Page(port, 1000, 900)
        tab.open(finished / "report.html")
        tab.wait("document.readyState === 'complete'")
        tab.run("document.querySelector('.poster .start').click()")
        tab.ready()
        assert tab.run("document.querySelector('.maquette-viewer').textContent").count("splats") >= 1
        assert not tab.troubles()
        assert [address for address in tab.requests() if not address.startswith(("file:", "data:", "blob:"))] == []
        tab.close()


# Flags and names, for all methods.


def test_what_makes_a_method_smaller_are_options_that_it_has() -> None:
    for name in METHODS:
        flags = set(re.findall(r"--([a-z-]+)", WORDS[name].smaller))
        assert flags and {flag.replace("-", "_") for flag in flags} <= options._fields(method_of(name).Config)


def test_every_method_can_be_named_and_is_described() -> None:
    named = get_args(get_type_hints(options.Recon)["method"])
    assert named == ("auto", *METHODS)
    assert set(METHODS) <= set(WORDS)
    assert set(FAST) == set(METHODS) - {"gaussians"}


@pytest.mark.parametrize("name", METHODS)
def test_help_lists_the_flags_of_the_method_asked_for(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["recon", "--method", name, "--help"]) == 0
    said = capsys.readouterr().out
    own_flags = {"--" + field.replace("_", "-") for field in options._fields(method_of(name).Config)}
    assert all(flag in said for flag in own_flags)
    assert f"{name} options" in said
    for preset in ("draft", "standard", "high"):
        assert parse_recon([".", "--method", name, "--preset", preset]).config is not None


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--method", "dvgo", "--max-splats", "9"), "--max-splats is an option of --method gaussians, not of dvgo"),
        (("--voxels=9000",), "--voxels is an option of --method dvgo"),
        (("--method", "gaussians", "--coarse-share", "0.1"), "not of gaussians"),
    ],
)
def test_a_flag_of_another_method_ends_in_one_line(
    ball: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], said: str
) -> None:
    assert cli.run(["recon", str(ball), "--out", str(tmp_path / "run"), *flags]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_with_its_own_method_only(
    finished: Path, ball: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run(["recon", str(finished), "--resume", "--method", "gaussians"]) == 2
    assert f"is a run of --method {method_name(finished)}" in capsys.readouterr().err
    name = method_name(finished)
    copied(finished, Path("runs") / f"ball-{name}-1")
    assert parse_recon([str(ball), "--resume"]).out == Path("runs") / f"ball-{name}-1"
    assert parse_recon([str(ball), "--resume", "--method", name]).method == name
    with pytest.raises(InputError, match="to resume"):
        parse_recon([str(ball), "--resume", "--method", "gaussians"])


def test_an_unknown_method_in_a_run_is_said(finished: Path, tmp_path: Path) -> None:
    run = copied(finished, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "method": "nerf"}))
    for arguments in (["render", str(run), "--out", str(tmp_path / "a.mp4")], ["eval", str(run)], ["view", str(run)]):
        assert cli.run(arguments) == 2


def test_endings_of_fields_are_those_of_the_methods() -> None:
    assert {Path(method_of(name).SCENE_FILE).suffix for name in METHODS} - {".ply"} <= set(FIELDS)
