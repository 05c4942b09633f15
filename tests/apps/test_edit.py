"""`maquette edit`: edits replayed for all who show or export a run, taken back, and refused with one clear line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from apps import edit, film
from apps.options import parse_recon
from apps.run_cameras import edited_cameras, read_cameras
from apps.run_scene import edited_mesh, edited_splats, scene_splats
from scene import edits
from scene.errors import InputError
from scene.formats import save_mesh, save_splats
from scene.gaussians import Gaussians
from scene.mesh import Mesh
from scene.rasterize import render
from scene.runs import Run
from tests.scene.still_life import planted, ring, still_life

PLANTED = 40


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A finished run as far as edits care: a still life with floaters, its cameras and a mesh of its ball."""
    (tmp_path / "photos").mkdir()
    job = parse_recon([str(tmp_path / "photos"), "--out", str(tmp_path / "run")])
    with Run.create(tmp_path / "run", job.method, job.as_json()) as made:
        save_splats(made.folder / "scene.ply", Gaussians.concat([still_life(), planted(PLANTED)]))
        ball = trimesh.creation.icosphere(2, radius=0.5)
        save_mesh(
            made.folder / "mesh.glb",
            Mesh(np.asarray(ball.vertices) + np.array([0, 0, 0.5]), np.asarray(ball.faces, np.int32)),
        )
        views = [
            {"name": f"{i}.png", "split": "test" if i == 3 else "train", "width": c.width, "height": c.height,
             "K": c.K.tolist(), "c2w": c.c2w.tolist()}
            for i, c in enumerate(ring())
        ]  # fmt: skip
        facts = {"up": None, "ordered": True, "metric": False, "background": [0.0, 0.0, 0.0]}
        made.write_json("cameras.json", {**facts, "views": views, "points": [[0, 0, 1, 9, 9, 9], [0, 5, 0, 9, 9, 9]]})
    return Run.open(tmp_path / "run", writing=False)


def asked(run: Run, *flags: str) -> None:
    edit.main([str(run.folder), *flags])


def test_edits_are_seen_by_all_and_the_trained_files_stay(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("scene.ply", "mesh.glb", "cameras.json")
    before = [(run.folder / name).read_bytes() for name in names]
    asked(run, "--up", "-x", "--scale", "4")
    assert [(run.folder / name).read_bytes() for name in names] == before
    plain, turned = scene_splats(run), edited_splats(run)
    assert len(plain) == len(turned)
    assert torch.allclose(turned.means[:, 2], -4 * plain.means[:, 0], atol=1e-4)
    seen = edited_cameras(run)
    assert seen.metric and seen.up is not None and seen.up.tolist() == [0, 0, 1] and not read_cameras(run).metric
    mesh = edited_mesh(run)
    assert np.abs(np.linalg.norm(mesh.vertices - [2.0, 0, 0], axis=1) - 2).max() < 1e-3  # +Z of before is +X now
    assert seen.points[:, :3].norm(dim=1).tolist() == pytest.approx([4, 20])
    view = render(plain, read_cameras(run).cameras[0]).rgb, render(turned, seen.cameras[0]).rgb
    assert (view[0] - view[1]).abs().mean() < 1e-3
    assert "is +Z" in capsys.readouterr().err


def test_a_film_along_the_photos_shows_the_edited_scene_from_the_edited_cameras(run: Run, tmp_path: Path) -> None:
    def filmed(name: str) -> np.ndarray:
        film.main([str(run.folder), "--path", "train", "--frames", "3", "--width", "64", "--out", str(tmp_path / name)])
        files = sorted((tmp_path / name).glob("*.png"))
        return np.stack([np.asarray(Image.open(file), dtype=float) for file in files])

    before = filmed("before")
    asked(run, "--up", "0.3,-1,0.2", "--scale", "30")
    assert np.abs(filmed("turned") - before).mean() < 0.5  # of 255
    asked(run, "--floaters")
    assert np.abs(filmed("cleaned") - before).mean() > 0.5


def test_floaters_are_removed_scored_and_brought_back(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    count = len(scene_splats(run))
    asked(run, "--floaters")
    said = capsys.readouterr().err
    assert "float in free space" in said and "Floaters now send 0.0" in said
    assert count - 60 < len(edited_splats(run)) <= count - 0.95 * PLANTED
    while edits.load(run.folder):
        asked(run, "--undo")
    assert len(edited_splats(run)) == count and edits.load(run.folder) == edits.Edits()
    with pytest.raises(InputError, match="no edits"):
        asked(run, "--undo")


def test_several_edits_in_one_call_and_the_list_of_them(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    asked(run, "--measure", "0,0,0:0,0,1:2.5", "--crop", "-2,-2,-0.1:2,2,4")
    capsys.readouterr()
    asked(run)
    said = capsys.readouterr().err
    assert "1. scaled by 2.5" in said and "2. cropped to the box from (-2, -2, -0.1) to (2, 2, 4)" in said
    means = edited_splats(run).means
    assert (means >= torch.tensor([-2, -2, -0.1])).all() and float(means[:, 2].max()) == pytest.approx(2.5, abs=0.3)
    assert json.loads((run.folder / "edits.json").read_text())["format"] == 1


def test_automatic_up_levels_the_ground(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    asked(run, "--up", "0.1,0,1")
    asked(run, "--undo")
    edits.save(run.folder, edits.Edits().then(edits.Up((0.12, -0.1, 1.0))))  # a scene that stands askew
    asked(run, "--up", "auto")
    assert "ground's normal" in capsys.readouterr().err
    scene = edited_splats(run)
    floor = scene.means[4000:12100]
    assert float(floor[:, 2].max() - floor[:, 2].min()) < 0.02


@pytest.mark.parametrize(
    ("flags", "wrong"),
    [
        (["--crop", "0,0,0"], "--crop must look like"),
        (["--crop", "0,0:1,1,1"], "three|3 numbers"),
        (["--crop", "0,0,0:1,1,0"], "lower and a higher"),
        (["--crop", "90,90,90:91,91,91"], "away"),
        (["--crop", "a,b,c:1,1,1"], "number"),
        (["--up", "sideways"], "number"),
        (["--up", "0,0,0"], "length"),
        (["--scale", "0"], "scale"),
        (["--scale", "nan"], "scale"),
        (["--measure", "0,0,0:0,0,0:1"], "differ"),
        (["--measure", "0,0,0:0,0,1:inf"], "finite"),
        (["--measure", "0,0,0:0,0,1"], "look like"),
    ],
)
def test_what_makes_no_sense_is_refused_and_not_kept(run: Run, flags: list[str], wrong: str) -> None:
    with pytest.raises(InputError, match=wrong):
        asked(run, *flags)
    assert not (run.folder / "edits.json").exists()


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a run"):
        edit.main([str(tmp_path), "--list"])
