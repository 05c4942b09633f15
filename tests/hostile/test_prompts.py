"""Prompts, pictures and priors that cannot be: one clear line each, exit code 2, and nothing is left behind."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from apps import cli
from generation.prior_weights import PRIOR_FILE, About, save_weights
from tests.generation import small_pipelines
from tests.generation.prior_toys import TOY_LAYOUT, toy_network
from tests.hostile.test_prior_folders import BAD, POINTER, Bomb

GOOD = "a red chair"
DAMAGED = ("pickles of a network", "code by a map", "pointer of weights", "another shape")  # of a pipeline
PROMPTS = [
    ("", "the prompt is empty"),
    (" \n\t", "the prompt is empty"),
    ("chair " * 20_000, "the prompt has 120,000 characters"),
    ("x" * 100_000, "the prompt has 100,000 characters"),
    ("a red\0chair", "U+0000"),
    ("a red \x1b[31mchair", "U+001B"),
    ("a red \ud800chair", "U+D800"),
    ("?!...", "no words"),
    ("a glowing dragon", "unknown words 'glowing', 'dragon'"),
    ("a red chiar", "did you mean 'chair'"),
    ("ein roter Stuhl", "--prior FOLDER|HUB_ID"),
    ("red", "names no thing"),
    ("a mug on top of a table on top of a box", "at most two"),
]


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a refused request gets."""
    assert cli.run(["generate", *arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("maquette: "), lines
    assert len(lines[0]) < 1500
    return lines[0]


@pytest.mark.parametrize(("prompt", "why"), PROMPTS, ids=range(len(PROMPTS)))
def test_prompts_that_mean_nothing(prompt: str, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert why in refused([prompt, "--out", str(out)], capsys)
    assert not out.exists()


def pickled(folder: Path) -> None:
    folder.mkdir()
    (folder / PRIOR_FILE).write_bytes(pickle.dumps(Bomb(folder / "ran")))


def pickled_pipeline(folder: Path) -> None:
    folder.mkdir()
    (folder / "model.bin").write_bytes(pickle.dumps(Bomb(folder / "ran")))


def pointer(folder: Path) -> None:
    folder.mkdir()
    (folder / PRIOR_FILE).write_text(POINTER)


def wrong_shapes(folder: Path) -> None:
    folder.mkdir()
    other = replace(TOY_LAYOUT, channels=(16, 16))
    network = toy_network(other)
    save_weights(folder / PRIOR_FILE, network, About("prior", TOY_LAYOUT, 0, "abc", {}))


def empty(folder: Path) -> None:
    folder.mkdir()


def remote_code(folder: Path) -> None:
    folder.mkdir()
    (folder / "model_index.json").write_text('{"_class_name": "StolenPipeline", "unet": ["my_code", "Unet"]}')
    (folder / "my_code.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")


def pipeline(damage: Callable[[Path], None]) -> Callable[[Path], None]:
    """A folder in the layout of diffusers with one thing wrong."""

    def make(folder: Path) -> None:
        small_pipelines.stable_diffusion(folder)
        damage(folder)

    return make


PRIORS: list[tuple[Callable[[Path], None], str]] = [
    (pickled, "is a pickle"),
    (pickled_pipeline, "model_index.json"),
    (pointer, "LFS pointer"),
    (wrong_shapes, "should be"),
    (empty, "model_index.json"),
    (remote_code, "runs no code of model folders"),
    (lambda folder: None, "no folder"),
    *((pipeline(BAD[case][0]), BAD[case][1]) for case in DAMAGED),
]


@pytest.mark.parametrize(("make", "why"), PRIORS, ids=range(len(PRIORS)))
def test_priors_that_cannot_be(
    make: Callable[[Path], None], why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "prior", tmp_path / "run"
    make(folder)
    capsys.readouterr()  # what its maker said
    assert why in refused([GOOD, "--prior", str(folder), "--out", str(out)], capsys)
    assert not out.exists() and not list(tmp_path.rglob("ran*"))


@pytest.mark.parametrize(
    ("prompt", "pictured", "why"), [("a red dragon", False, "unknown word 'dragon'"), (GOOD, True, "takes no --image")]
)
def test_what_a_trained_prior_cannot_take_is_told_before_a_run_begins(
    prompt: str, pictured: bool, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out, picture = tmp_path / "prior", tmp_path / "run", tmp_path / "reference.png"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(picture)
    save_weights(folder / PRIOR_FILE, toy_network(), About("prior", TOY_LAYOUT, 0, "abc", {}))
    flags = ["--image", str(picture)] if pictured else []
    assert why in refused([prompt, "--prior", str(folder), "--out", str(out), *flags], capsys)
    assert not out.exists()


def test_a_diffusers_prior_takes_no_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "reference.png")
    words = [GOOD, "--prior", "someones/model", "--image", str(tmp_path / "reference.png")]
    assert "words, not pictures" in refused([*words, "--out", str(tmp_path / "run")], capsys)
    assert not (tmp_path / "run").exists()


def test_nothing_is_fetched_unasked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a connection was tried"))
    line = refused([GOOD, "--prior", "nobody/nothing-of-this-name", "--out", str(tmp_path / "run")], capsys)
    assert "--allow-download" in line


@pytest.mark.parametrize(
    ("content", "why"),
    [(None, "is no file"), (b"", "picture"), (b"GIF89a", "picture"), (b"\x89PNG\r\n\x1a\n" * 9, "picture")],
)
def test_pictures_that_are_none(
    content: bytes | None, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "reference.png"
    if content is not None:
        picture.write_bytes(content)
    assert why in refused([GOOD, "--image", str(picture), "--out", str(tmp_path / "run")], capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "flags",
    [("--seed", "-1"), ("--max-minutes", "0"), ("--max-minutes", "nan"), ("--faces", "3"), ("--steps", "0"),
     ("--voxels", "100000"), ("--scale", "nan"), ("--members", "0"), ("--prior", " "), ("--sets", "1000")],
)  # fmt: skip
def test_values_out_of_range(flags: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert flags[0] in refused([GOOD, "--out", str(tmp_path / "run"), *flags], capsys)
    assert not (tmp_path / "run").exists()
