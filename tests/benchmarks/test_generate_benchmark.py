"""The suite of prompts: what its measures say of known shapes, its bounds, and one short run of the command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image

from benchmarks import generate as benchmark
from generation.captions import is_held_out, parse
from generation.shapes import Kind
from scene.mesh import Mesh
from tests.generation.single_shapes import single

HALF = (0.3, 0.2, 0.4)


def box(scale: float = 1.0) -> Mesh:
    made = trimesh.creation.box(extents=2 * scale * np.asarray(HALF))
    return Mesh(np.asarray(made.vertices), np.asarray(made.faces))


def test_a_mesh_of_the_object_itself_has_no_distance_and_all_of_the_volume() -> None:
    truth = single(Kind.BOX, HALF)
    truth = replace(
        truth, world_from_primitive=truth.world_from_primitive.float(), size=truth.size.float(), rgb=truth.rgb.float()
    )
    assert benchmark.volume_iou(box(), truth) == 1
    assert benchmark.chamfer_percent(box(), truth) < 1e-4
    assert benchmark.volume_iou(box(0.8), truth) == pytest.approx(0.8**3, rel=0.06)  # of cells of a 64th
    # Sides that are a fifth nearer: the mean over the box's surface of what separates them.
    areas = np.array([HALF[1] * HALF[2], HALF[0] * HALF[2], HALF[0] * HALF[1]])
    apart = 0.2 * float(areas @ np.array(HALF)) / areas.sum() / (2 * np.linalg.norm(HALF))
    assert benchmark.chamfer_percent(box(0.8), truth) == pytest.approx(100 * apart, rel=0.15)


def test_inside_is_told_of_a_shape_with_a_hole() -> None:
    torus = trimesh.creation.torus(0.5, 0.2)
    mesh = Mesh(np.asarray(torus.vertices), np.asarray(torus.faces))
    points = np.random.default_rng(0).uniform(-0.8, 0.8, (2000, 3))
    away = np.hypot(np.hypot(points[:, 0], points[:, 1]) - 0.5, points[:, 2])
    clear = np.abs(away - 0.2) > 0.02  # from the facets
    assert np.array_equal(benchmark.inside(mesh, points)[clear], (away < 0.2)[clear])


def test_the_suite_is_forty_prompts_of_which_the_second_half_is_held_out() -> None:
    assert len(set(benchmark.PROMPTS)) == 40
    assert not any(is_held_out(parse(prompt)) for prompt in benchmark.PLAIN)
    assert all(is_held_out(parse(prompt)) for prompt in benchmark.HELD_OUT)
    nouns = [[parse(prompt).phrase.noun for prompt in half] for half in (benchmark.PLAIN, benchmark.HELD_OUT)]
    assert nouns[0] == nouns[1] and len(set(nouns[0])) == 20


def test_bounds_hold_for_most_samples_of_a_known_share() -> None:
    rng, held = np.random.default_rng(0), 0
    for _ in range(100):
        values = (rng.random(40) < 0.8).astype(float).tolist()
        held += benchmark.lower_bound(values, lambda v: sum(v) / len(v)) <= 0.8
    assert 80 <= held <= 100  # 90 % are promised
    assert benchmark.lower_bound([3.0] * 5, np.median) == 3


def test_a_summary_counts_what_has_a_figure() -> None:
    found = [
        benchmark.Judged("a", psnr=30.0, fronts=1, rank=1),
        benchmark.Judged("b", psnr=20.0, fronts=None, rank=4),
        benchmark.Judged("c", failed="no"),
    ]
    result = benchmark.summary(found)
    assert result["prompts"] == 3 and result["failed"] == 1 and "iou" not in result
    assert result["psnr"]["median"] == 25 and result["one_front"] == {"share": 1, "of": 1, "bound": 1}
    assert result["first_of_100"]["share"] == 0.5


def test_one_prompt_from_the_command_to_the_sheet(tmp_path: Path) -> None:
    sheet, file = tmp_path / "sheet.png", tmp_path / "suite.json"
    words = ["--prior", "bank", "--count", "1", "--out", str(tmp_path / "runs"), "--sheet", str(sheet)]
    flags = ["--", "--steps", "60", "--pixels", "32", "--voxels", "24", "--faces", "500"]
    assert benchmark.main([*words, "--json", str(file), *flags]) == 0
    found = json.loads(file.read_text())
    one = found["prompts"][0]
    assert one["prompt"] == benchmark.PROMPTS[0] and one["failed"] is None
    assert one["psnr"] > 15 and one["iou"] > 0.1 and one["chamfer"] < 10 and one["seconds"] > 0 and one["peak_mb"] > 100
    with Image.open(sheet) as picture:
        assert picture.size == (benchmark.SHEET_COLUMNS * 4 * benchmark.SHEET_SIZE, 112)
        assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 50


def test_a_prompt_that_fails_keeps_its_row_and_nothing_to_show_is_said(tmp_path: Path) -> None:
    words = ["--prior", str(tmp_path / "none"), "--count", "1", "--out", str(tmp_path / "runs")]
    file = tmp_path / "suite.json"
    assert benchmark.main([*words, "--json", str(file)]) == 1
    found = json.loads(file.read_text())["prompts"][0]
    assert "none" in found["failed"] and found["psnr"] is None
    with pytest.raises(benchmark.InputError, match="no prompt"):
        benchmark.main([*words, "--sheet", str(tmp_path / "sheet.png")])
