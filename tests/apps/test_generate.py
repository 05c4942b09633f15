"""`maquette generate` at the smallest size that runs: what it leaves behind, resuming, which prior, which options."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from apps import cli, generate, generate_stages, pipeline, priors
from apps.console import STAGES
from apps.generate_options import is_generated, job_of_generated, parse_generate
from apps.signals import StopSignal
from generation import lgm_splats
from generation.judging import judged_cameras
from generation.lgm import TOY_LGM
from generation.prior_training import new_network
from generation.prior_weights import GUIDE_FILE, LGM_FILE, PRIOR_FILE, SCORER_FILE, About, save_weights
from generation.priors import Condition
from generation.sds import PRESETS, Config
from generation.trained_prior import TrainedPrior
from scene.errors import InputError, Interrupted
from scene.formats import load_splats
from scene.ops import native
from scene.runs import EVENT_KEYS, METRIC_KEYS, read_events
from tests.apps.test_report import read
from tests.generation.prior_toys import TOY_GUIDE, TOY_LAYOUT, lively, toy_guide, toy_network

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "a red snowman"
TINY = ("--steps", "40", "--pixels", "16", "--voxels", "16", "--members", "2", "--faces", "300",
        "--checkpoint-seconds", "0", "--device", "cpu", "--prior", "bank")  # fmt: skip
MADE = ("scene.safetensors", "mesh.glb", "mesh_fine.ply", "splats.ply")

pytestmark = pytest.mark.skipif(not native.has(torch.device("cpu")), reason="the CPU module is not compiled")


@pytest.fixture(autouse=True, scope="module")
def small() -> Any:
    """Short films of small pictures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate, "FILM_SIZE", 32)
        patch.setattr(pipeline, "LEAST_FRAMES", 2)
        patch.setattr(pipeline, "TURNTABLE_FRAMES", 4)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("generate") / "whole"
    generate.main([PROMPT, "--out", str(out), *TINY])
    return out


def hashes(folder: Path) -> list[str]:
    return [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in MADE]


def test_it_leaves_the_files_and_figures_of_the_contract(whole: Path) -> None:
    for name in ("config.json", "environment.json", "cameras.json", "turntable.mp4", "preview.png", *MADE):
        assert (whole / name).stat().st_size > 100, name
    metrics = json.loads((whole / "metrics.json").read_text())
    assert set(metrics) <= METRIC_KEYS and metrics["method"] == "sds" and metrics["source"] == PROMPT
    assert metrics["steps"] == 40 and 0 < metrics["mesh_faces"] <= 300 and metrics["seconds_total"] > 0
    events = read_events(whole / "events.jsonl")
    assert all(set(event) == {*EVENT_KEYS, "stage"} for event in events)
    last = [event for event in events if event["stage"] == "train" and event["step"] is not None][-1]
    assert (last["step"], last["steps"], last["eta_s"]) == (40, 40, 0)
    stages = list(dict.fromkeys(event["stage"] for event in events))
    assert stages == ["prior", "train", "judge", "mesh", "splats", "turntable", "report"] and set(stages) <= set(STAGES)
    assert len(list((whole / "previews").glob("step_*.png"))) == 8
    with Image.open(whole / "preview.png") as picture:
        assert picture.size == (512, 256)


def test_the_report_tells_words_prior_judgement_and_growth(whole: Path) -> None:
    page = read(whole / "report.html")
    for said in (PROMPT, "bank prior", "Janus check", "Seed", "Step 40", "Nearest object of these words"):
        assert said in page.text, said
    for unsaid in ("Where the photos were taken", "not finished", "Judging held-out"):
        assert unsaid not in page.text, unsaid
    addresses = [value for _, attributes in page.tags for name, value in attributes.items() if name == "src" and value]
    assert len([a for a in addresses if a.startswith("data:image/png")]) == 8
    assert all(address.startswith("data:") for address in addresses)


def test_the_mesh_stands_upright_inside_the_ball_of_objects(whole: Path) -> None:
    from scene.formats import load_mesh

    low, high = load_mesh(whole / "mesh.glb", up=(0.0, 0.0, 1.0)).bounds()
    assert (high - low).argmax() == 2 and abs(low).max() < 0.85 and abs(high).max() < 0.85


def test_other_commands_take_the_run(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    targets = [str(tmp_path / name) for name in ("page.html", "mesh.obj", "scene.safetensors", "splats.spz")]
    assert cli.run(["export", str(whole), "--to", *targets]) == 0
    assert all(Path(name).stat().st_size > 100 for name in targets)
    assert "Splats stand for the voxel grid here" in capsys.readouterr().err
    page = read(Path(targets[0])).text
    assert "42 views" in page and "where the views were taken" in page and "photos" not in page
    film = tmp_path / "film"
    assert cli.run(["render", str(whole), "--frames", "2", "--width", "32", "--out", str(film)]) == 0
    assert len(list(film.glob("*.png"))) == 2
    capsys.readouterr()
    assert cli.run(["eval", str(whole)]) == 2
    assert "made of words" in capsys.readouterr().err


def stopping(stop: StopSignal, stage: str, count: int) -> Callable[[object, dict[str, Any]], None]:
    """Asks a run to stop at the event `count` of a stage."""
    seen: list[str] = []

    def watch(watcher: object, event: dict[str, Any]) -> None:
        seen.append(event["stage"])
        if seen.count(stage) == count:
            stop.request()

    return watch


def test_a_stopped_run_goes_on_to_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    job = parse_generate([PROMPT, "--out", str(out), *TINY])
    for stage, events in (("train", 2), ("mesh", 3)):
        stop = StopSignal()
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted, match="--resume"):
            patch.setattr(generate.Watcher, "__call__", stopping(stop, stage, events))
            generate.generate(job, stop)
        assert not (out / "report.html").exists()
        job = parse_generate([str(out), "--resume"])
    generate.main([str(out), "--resume"])
    assert hashes(out) == hashes(whole)
    said, unbroken = (json.loads((run / "progress.json").read_text())["decisions"] for run in (out, whole))
    assert said == unbroken  # and none of them twice


def test_a_killed_run_goes_on_to_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "apps.cli", "generate", PROMPT, "--out", str(out), *TINY]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not (out / "checkpoint" / "latest.safetensors").is_file() and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    generate.main([PROMPT, "--out", str(out), "--resume"])
    assert hashes(out) == hashes(whole)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_seed_gives_the_same_bytes_with_any_number_of_threads(
    whole: Path, tmp_path: Path, threads: int
) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        native.set_threads(threads)
        generate.main([PROMPT, "--out", str(tmp_path / "run"), *TINY])
    finally:
        torch.set_num_threads(before)
        native.set_threads(native.len_affinity())
    assert hashes(tmp_path / "run") == hashes(whole)


def test_a_picture_goes_with_the_words_and_is_kept(tmp_path: Path) -> None:
    picture = tmp_path / "reference.jpg"
    Image.new("RGB", (40, 30), (200, 30, 20)).save(picture)
    out = tmp_path / "run"
    generate.main([PROMPT, "--out", str(out), "--image", str(picture), *TINY, "--steps", "2"])
    assert (out / "reference.png").is_file()
    assert "the picture that came with the words" in (out / "report.html").read_text()
    picture.unlink()
    image = generate_stages.load_reference(parse_generate([str(out), "--resume"]))
    assert image is not None and tuple(image.shape) == (3, 30, 40)


def test_json_lines_and_a_time_limit(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["generate", PROMPT, "--out", str(tmp_path / "run"), *TINY, "--json", "--max-minutes", "0.2"]
    assert cli.run([*arguments, "--steps", "1000000"]) == 0
    events = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert all(set(event) == {*EVENT_KEYS, "stage"} for event in events) and events[-1]["stage"] == "report"
    steps = [event["step"] for event in events if event["stage"] == "train" and event["step"]]
    assert steps[-1] == 1_000_000


# Which prior.


def choose(wanted: str = "embedded", prompt: str = PROMPT) -> priors.ChosenPrior:
    options: dict[str, Any] = {"pictured": False, "pixels": 16, "members": 2, "seed": 0, "device": torch.device("cpu")}
    return priors.choose_prior(wanted, prompt, None, allow_download=False, **options)


GOOD = {"sample_exact": 0.75, "sample_kind": 0.92}


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "priors" / "toy"
    folder.mkdir(parents=True)
    save_weights(folder / PRIOR_FILE, toy_network(), About("prior", TOY_LAYOUT, 0, "abc", GOOD))
    save_weights(folder / GUIDE_FILE, toy_guide(), About("clip_guide", TOY_GUIDE, 0, "abc", {}))
    save_weights(folder / SCORER_FILE, toy_guide(1), About("clip_scorer", TOY_GUIDE, 0, "abc", {}))
    monkeypatch.setattr(priors, "WEIGHTS", tmp_path / "priors")
    return folder


def test_weights_that_know_the_words_come_first_then_the_bank(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose().name == "trained" and choose().facts["sample_exact"] == 0.75
    assert choose("bank").name == "bank"
    assert choose(str(weights)).name == str(weights)
    assert priors.embedded_clip("clip_scorer") is not None
    with pytest.raises(InputError, match=r"unknown word 'dragon'.*--prior FOLDER"):
        choose(prompt="a red dragon")
    monkeypatch.setattr(priors, "WEIGHTS", weights / "nothing")
    assert choose().name == "bank" and priors.embedded_clip("clip_scorer") is None
    with pytest.raises(InputError, match="maquette train-prior"):
        choose("trained")


@pytest.mark.parametrize("scores", [{}, {**GOOD, "sample_exact": 0.74}, {**GOOD, "sample_kind": 0.91}])
def test_weights_that_are_not_good_enough_wait_until_they_are_asked_for(
    weights: Path, scores: dict[str, float]
) -> None:
    save_weights(weights / PRIOR_FILE, toy_network(), About("prior", TOY_LAYOUT, 0, "abc", scores))
    assert choose().name == "bank" and choose("trained").name == "trained"


def test_the_weights_that_come_with_maquette_make_pictures_of_words() -> None:
    prior = choose("trained", "a green cactus").prior
    assert isinstance(prior, TrainedPrior) and prior.views == 4 and prior.guide is not None
    cameras = judged_cameras(32)
    found = prior.sample(Condition(("a green cactus",) * 4, cameras), torch.Generator().manual_seed(0), steps=10)
    pictures = prior.decode(found)
    middle = pictures[:, :, 10:22, 12:20].mean((0, 2, 3))
    assert float(middle[1] - middle[0]) > 0.05 and float(middle[1] - middle[2]) > 0.05, middle  # green


def test_the_lgm_that_comes_with_maquette_makes_splats_of_words_in_one_pass() -> None:
    words = "a purple mug"
    prior = choose("trained", words).prior
    scene = lgm_splats.train(words, prior, lgm_splats.Config(steps=0, guesses=2))
    cameras = judged_cameras(32, 45.0)  # between those that the network saw
    black, white = ([lgm_splats.picture(scene, c, torch.full((3,), s), None) for c in cameras] for s in (0.0, 1.0))
    alpha = torch.stack([(1 - (w - b).mean(-1)).clamp(0, 1) for w, b in zip(white, black)])
    solid = alpha > 0.5
    assert 0.05 < float(solid.float().mean()) < 0.5
    red, green, blue = torch.stack(black)[solid].mean(0).tolist()
    assert min(red, blue) > 1.5 * green, (red, green, blue)
    assert lgm_splats.fine_mesh(scene).facts().watertight


def test_trained_weights_make_a_scene_that_the_scorer_judges(weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    tiny = TINY[: TINY.index("--prior")]
    generate.main([PROMPT, "--out", str(out), *tiny, "--steps", "3", "--guidance", "vsd"])
    assert json.loads((out / "config.json").read_text())["prior"] == "trained"
    progress = json.loads((out / "progress.json").read_text())
    record = progress["stages"]["judge"]
    assert any(sentence.startswith("VSD's second model: adapters") for sentence in progress["decisions"])
    assert 1 <= record["scorer"]["rank"] <= record["scorer"]["among"] == 100
    assert "Held-out scorer" in (out / "report.html").read_text()


def test_lgm_makes_splats_that_every_command_takes(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    flags = ["--method", "lgm", "--steps", "4", "--guesses", "2", "--faces", "300", "--device", "cpu"]
    assert cli.run(["generate", PROMPT, "--out", str(out), *flags]) == 2
    assert "no lgm.safetensors" in capsys.readouterr().err and not (out / "scene.ply").exists()
    network = new_network(TOY_LGM, 0)
    save_weights(weights / LGM_FILE, lively(network), About("lgm", TOY_LGM, 0, "abc", {}))
    assert cli.run(["generate", PROMPT, "--out", str(out), *flags, "--resume"]) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    splats = load_splats(out / "scene.ply")
    assert metrics["method"] == "lgm" and metrics["primitives"] == len(splats) > 0 and metrics["steps"] == 4
    assert not (out / "splats.ply").exists() and (out / "turntable.mp4").stat().st_size > 100
    decisions = json.loads((out / "progress.json").read_text())["decisions"]
    assert any(sentence.startswith("LGM-tiny makes Gaussians of the best of 2 sets") for sentence in decisions)
    assert cli.run(["export", str(out), "--to", str(tmp_path / "x.spz"), str(tmp_path / "x.html")]) == 0
    job = parse_generate([PROMPT, "--out", str(out), "--resume"])
    assert job.method == "lgm" and job.config.steps == 4
    with pytest.raises(InputError, match="was made by --method lgm, not sds"):
        parse_generate([PROMPT, "--out", str(out), "--resume", "--method", "sds"])


def test_a_scorer_without_a_prior_judges_what_the_bank_makes(weights: Path, tmp_path: Path) -> None:
    (weights / PRIOR_FILE).unlink()
    assert priors.embedded_clip("clip_guide") is not None
    out = tmp_path / "run"
    generate.main([PROMPT, "--out", str(out), *TINY[: TINY.index("--prior")], "--steps", "2"])
    assert json.loads((out / "config.json").read_text())["prior"] == "bank"
    assert json.loads((out / "progress.json").read_text())["stages"]["judge"]["scorer"]["among"] == 100
    assert "Held-out scorer" in (out / "report.html").read_text()


# Options.


def test_flags_are_those_of_the_request_and_the_method(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["generate", "--help"]) == 0
    told = capsys.readouterr().out
    for flag in (
        "--prior",
        "--image",
        "--max-minutes",
        "--resume",
        "--json",
        "--seed",
        "--steps",
        "--guidance",
        "--scale",
    ):
        assert flag in told, flag


def test_a_method_has_its_own_options(capsys: pytest.CaptureFixture[str]) -> None:
    job = parse_generate([PROMPT, "--method", "lgm", "--guesses", "3"])
    assert job.method == "lgm" and job.config == lgm_splats.Config(guesses=3)
    assert job.out.name.startswith("a-red-snowman-lgm-")
    with pytest.raises(SystemExit):
        parse_generate([PROMPT, "--method", "lgm", "--voxels", "32"])
    assert "Unrecognized options: --voxels" in capsys.readouterr().err


def test_a_preset_is_where_options_start_from() -> None:
    job = parse_generate([PROMPT, "--preset", "draft", "--steps", "7"])
    assert job.config == replace(Config(), **{**PRESETS["draft"], "steps": 7})
    assert job.out.parent == Path("runs") and job.out.name.startswith("a-red-snowman-sds-")


def test_a_run_keeps_its_options(whole: Path) -> None:
    assert is_generated(whole) and job_of_generated(whole).request.prompt == PROMPT
    job = parse_generate([PROMPT, "--out", str(whole), "--resume"])
    assert job.resumes and job.config.steps == 40
    for flags in (["--seed", "3"], ["--steps", "41"], ["--prior", "trained"]):
        with pytest.raises(InputError, match="was started with"):
            parse_generate([PROMPT, "--out", str(whole), "--resume", *flags])
    with pytest.raises(InputError, match="not of 'a blue snowman'"):
        parse_generate(["a blue snowman", "--out", str(whole), "--resume"])
    with pytest.raises(InputError, match="already holds a run"):
        generate.main([PROMPT, "--out", str(whole), *TINY])


def test_a_run_is_found_by_its_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="no run of"):
        parse_generate([PROMPT, "--resume"])
    Path("runs").mkdir()
    (Path("runs") / "a-red-snowman-sds-1").symlink_to(whole)
    assert parse_generate([PROMPT, "--resume"]).out == Path("runs/a-red-snowman-sds-1")
