"""Prompts, pictures and priors that cannot be: one clear line each, exit code 2, and nothing is left behind."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from apps import cli
from generation.prior_weights import PRIOR_FILE, About, save_weights
from tests.generation.prior_toys import TOY_LAYOUT, toy_network
from tests.hostile.test_prior_folders import POINTER, Bomb

GOOD = "a red chair"
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


PRIORS: list[tuple[Callable[[Path], None], str]] = [
    (pickled, "is a pickle"),
    (pickled_pipeline, "model_index.json"),
    (pointer, "LFS pointer"),
    (wrong_shapes, "should be"),
    (empty, "model_index.json"),
    (remote_code, "runs no code of model folders"),
    (lambda folder: None, "no folder"),
]


@pytest.mark.parametrize(("make", "why"), PRIORS, ids=[getattr(make, "__name__", "?") for make, _ in PRIORS])
def test_priors_that_cannot_be(
    make: Callable[[Path], None], why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "prior", tmp_path / "run"
    make(folder)
    assert why in refused([GOOD, "--prior", str(folder), "--out", str(out)], capsys)
    assert not out.exists() and not (folder / "ran").exists()


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


@pytest.mark.parametrize(
    "flags",
    [("--seed", "-1"), ("--max-minutes", "0"), ("--max-minutes", "nan"), ("--faces", "3"), ("--steps", "0"),
     ("--voxels", "100000"), ("--scale", "nan"), ("--members", "0"), ("--prior", " "), ("--sets", "1000")],
)  # fmt: skip
def test_values_out_of_range(flags: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert flags[0] in refused([GOOD, "--out", str(tmp_path / "run"), *flags], capsys)
