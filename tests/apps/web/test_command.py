"""What `maquette web` is told: flags, passwords, a missing package; and what pages are made of without any server."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from apps import cli
from apps.web import command, exports, progress
from apps.web.command import Web, check_installed, read_users
from generation.captions import parse
from scene.errors import InputError
from scene.runs import Run, StepReport


def test_passwords_are_read_from_lines(tmp_path: Path) -> None:
    path = tmp_path / "users"
    path.write_text("anna:correct horse\n\nben:with:colons and more\n")
    assert read_users(path) == {"anna": "correct horse", "ben": "with:colons and more"}
    for wrong, words in (
        ("", "names nobody"),
        ("anna", "line 1"),
        (":password", "line 1"),
        ("a:short", "8 characters"),
    ):
        path.write_text(wrong)
        with pytest.raises(InputError, match=words):
            read_users(path)


@pytest.mark.parametrize("facts", [{"port": 0}, {"minutes": 0}, {"active": 0}, {"keep_hours": float("nan")}])
def test_flags_that_make_no_sense_are_refused(facts: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="must"):
        Web(**facts)


def test_a_missing_package_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(command.importlib, "import_module", missing)
    with pytest.raises(InputError, match=r"pip install 'maquette\[web\]'"):
        check_installed()
    monkeypatch.undo()
    assert importlib.import_module("apps.web.command") is command
    assert cli.run(["web", "--port", "0"]) == 2 and "--port must lie between" in capsys.readouterr().err


def test_the_embedded_prior_knows_every_suggestion() -> None:
    page = importlib.import_module("apps.web.page")
    for words in page.WORDS:
        parse(words)


def test_gradio_waits_until_the_page_is_served() -> None:
    import subprocess
    import sys

    code = "import sys, apps.cli, apps.web.command, apps.web.page; sys.exit('gradio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3]).returncode == 0


def test_progress_is_read_from_a_runs_events(tmp_path: Path) -> None:
    assert progress.progress_of(tmp_path / "run") == progress.Progress()
    with Run.create(tmp_path / "run", "gaussians", {}) as run:
        run.stage = "train"
        for step in range(1, 501):
            psnr = 20 + step / 100 if step % 50 == 0 else None
            run.on_step(StepReport(step, 500, 1 / step, psnr, 40 * step, 500.0 - step))
        run.decide("The lens is known.")
        now = progress.progress_of(tmp_path / "run")
        assert now.stage == "train" and now.words == "Training" and now.pieces == 20_000
        assert now.curves is not None
        assert len(now.curves["loss"]) == progress.POINTS and now.curves["loss"][-1] == (500.0, 1 / 500)
        assert [x for x, _ in now.curves["psnr"]] == [50.0 * k for k in range(1, 11)]
        assert now.sentences == ("The lens is known.",)
        run.stage = "mesh"
        run.event("", step=3, steps=9)
        later = progress.progress_of(tmp_path / "run")  # the file has grown, so it is read anew
        assert (later.words, later.step, later.steps) == ("Making the mesh", 3, 9)
        run.add_metrics(psnr=30.0, source="/a/private/folder")
        assert progress.metrics_of(tmp_path / "run") == {"psnr": 30.0}


def test_events_that_are_no_numbers_do_no_harm(tmp_path: Path) -> None:
    lines = [{"stage": "train", "step": "x", "loss": {}, "splats": True}, {"stage": 7, "step": None, "message": ["a"]}]
    (tmp_path / "events.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n[1]\n{"torn')
    now = progress.progress_of(tmp_path)
    assert now.curves == {"loss": [], "psnr": []} and now.pieces is None


def test_downloads_have_names_from_a_list_and_places_inside_the_job(tmp_path: Path) -> None:
    for each in exports.FORMATS:
        assert exports.place_of(tmp_path, each.file).is_relative_to(tmp_path)
    for wrong in ("../job.json", "job.json", "", "mesh.glb/../../job.json", "config.json"):
        with pytest.raises(InputError, match="is not written"):
            exports.place_of(tmp_path, wrong)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mesh.glb").touch()
    assert exports.place_of(tmp_path, "mesh.glb") == tmp_path / "run" / "mesh.glb"  # the run's own, not a copy


def test_an_obj_and_what_belongs_to_it_is_one_file(tmp_path: Path) -> None:
    import zipfile

    wanted = exports.format_of("mesh.obj.zip")
    made = exports.made_at(tmp_path, wanted)
    made.parent.mkdir(parents=True)
    for name in ("mesh.obj", "mesh.mtl", "mesh.png"):
        (made.parent / name).write_text(name)
    assert exports.command_for(tmp_path, wanted)[-2:] == ["--what", "mesh"] and made.name == "mesh.obj"
    exports.put_in_place(tmp_path, wanted)
    with zipfile.ZipFile(exports.place_of(tmp_path, wanted.file)) as archive:
        assert archive.namelist() == ["mesh.mtl", "mesh.obj", "mesh.png"]
