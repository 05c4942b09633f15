"""The report: fetches nothing, runs nothing that a file name smuggles in, and exists whatever a run lacks."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from apps.report import smoothed, write_report
from apps.report_page import SCRIPT
from apps.report_plots import curve, log_ticks, nice_ticks, number
from scene.runs import Run
from tests.apps.tiny import tiny_camera

EVIL = "</script><script>alert(1)</script><img src=http://evil.example/x onerror=alert(2)>\"'&"


class Reader(HTMLParser):
    """What a browser would make of the page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._in_script = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._in_script = tag == "script"
        if self._in_script:
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._in_script = False

    def handle_data(self, data: str) -> None:
        if self._in_script:
            self.scripts[-1] += data
        else:
            self.text += data


def read(path: Path) -> Reader:
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    return reader


def assert_harmless(reader: Reader) -> None:
    """No address outside the file, no script but ours, no handler in an attribute, and a policy that forbids them."""
    assert reader.scripts == [SCRIPT]
    for tag, attributes in reader.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "poster", "srcset", "xlink:href", "action"):
                assert value is not None
                assert value.startswith("data:") or ("//" not in value and ":" not in value)
    policies = [a["content"] for tag, a in reader.tags if tag == "meta" and a.get("http-equiv")]
    assert len(policies) == 1
    assert policies[0] is not None
    assert policies[0].startswith("default-src 'none'")


def make_run(folder: Path, name: str = "a.jpg", views: int = 3) -> Run:
    """A finished run with everything a report can show, written by hand."""
    run = Run.create(folder, "gaussians", {"source": f"/photos/{name}", "preset": "draft", "options": {"steps": 5}})
    run.write_environment(device="cpu", backend="cpu kernels, build x", seed=0)
    run.decide(f"Photos, because of {name}.")
    finding = {"level": "warn", "topic": "Blur", "sentence": f"{name} is blurred.", "value": 3.0}
    run.finish("check_photos", findings=[finding, {**finding, "level": name}])
    cameras = [tiny_camera(0.5 * i, 0.3) for i in range(6)]
    written = [
        {
            "name": name if i == 0 else f"{i}.jpg",
            "split": "test" if i < views else "train",
            "width": camera.width,
            "height": camera.height,
            "K": camera.K.tolist(),
            "c2w": camera.c2w.tolist(),
        }
        for i, camera in enumerate(cameras)
    ]
    facts = {"up": [0, 0, 1], "ordered": True, "metric": False, "background": [0, 0, 0]}
    run.write_json("cameras.json", {**facts, "views": written, "points": [[0, 0, 0, 200, 100, 50]] * 20})
    run.stage = "train"
    for step in range(0, 200, 10):
        run.event(step=step, steps=200, loss=0.5 / (step + 1), psnr=10 + step / 50, splats=100 + step, eta_s=1.0)
    run.stage = name
    run.event(name)
    (folder / "renders").mkdir()
    scores = []
    for i in range(views):
        for kind in ("truth", "render", "error"):
            noise = torch.randint(0, 255, (60, 80, 3), generator=torch.Generator().manual_seed(i)).to(torch.uint8)
            Image.fromarray(noise.numpy()).save(folder / "renders" / f"{i:04}_{kind}.png")
        score = {"name": name, "files": f"{i:04}", "psnr": 20.0 + i, "ssim": 0.9, "psnr_plain": 19.0}
        scores.append(score)
    run.finish("evaluate", views=scores, seconds=1.0)
    run.finish("mesh", seconds=2.0, facts={"faces": 1234567, "watertight": False, "volume": None, "area": 2.5})
    run.add_metrics(method="gaussians", psnr=21.0, ssim=0.9, views_total=6, views_registered=6, seconds_total=9.0)
    return run


def test_report_shows_what_the_run_knows(tmp_path: Path) -> None:
    with make_run(tmp_path / "run") as run:
        reader = read(write_report(run))
    assert_harmless(reader)
    for words in (
        "21.00",
        "6/6",
        "1,234,567",
        "Photos, because of a.jpg.",
        "a.jpg is blurred.",
        "PSNR 20.00 dB",
        "Loss",
    ):
        assert words in reader.text
    assert sum(tag == "img" for tag, _ in reader.tags) == 3 * 3
    assert reader.text.index("PSNR 20.00") < reader.text.index("PSNR 22.00")  # the worst comes first


def test_names_from_files_cannot_become_code(tmp_path: Path) -> None:
    with make_run(tmp_path / "run", name=EVIL) as run:
        reader = read(write_report(run))
    assert_harmless(reader)
    assert EVIL in reader.text  # shown as it is, as text


def test_a_score_cannot_point_to_pictures_outside_the_run(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    for kind in ("truth", "render", "error"):
        Image.new("RGB", (8, 8)).save(secret / f"x_{kind}.png")
    with make_run(tmp_path / "run", views=1) as run:
        record = run.finished("evaluate") or {}
        record["views"][0]["files"] = "../../secret/x"
        run.finish("evaluate", **record)
        assert not [tag for tag, _ in read(write_report(run)).tags if tag == "img"]


@pytest.mark.parametrize(
    "missing", ["cameras.json", "environment.json", "events.jsonl", "metrics.json", "progress.json", "renders"]
)
def test_report_is_written_whatever_is_missing(tmp_path: Path, missing: str) -> None:
    make_run(tmp_path / "run").close()
    path = tmp_path / "run" / missing
    if path.is_dir():
        for picture in path.iterdir():
            picture.unlink()
        path.rmdir()
    else:
        path.unlink()
    with Run.open(tmp_path / "run") as run:
        assert_harmless(read(write_report(run)))


def test_report_of_a_run_that_just_began(tmp_path: Path) -> None:
    with Run.create(tmp_path / "run", "gaussians", {"source": "x"}) as run:
        reader = read(write_report(run))
    assert_harmless(reader)
    assert "has not finished" in reader.text


def test_report_without_held_out_photos_shows_no_empty_section(tmp_path: Path) -> None:
    with make_run(tmp_path / "run", views=0) as run:
        reader = read(write_report(run))
    assert "not trained on" not in reader.text


def test_many_large_pictures_stay_within_the_size(tmp_path: Path) -> None:
    with make_run(tmp_path / "run", views=0) as run:
        generator = torch.Generator().manual_seed(0)
        scores = []
        for i in range(14):
            noise = torch.randint(0, 255, (700, 1000, 3), generator=generator).to(torch.uint8).numpy()
            for kind in ("truth", "render", "error"):
                Image.fromarray(noise).save(run.folder / "renders" / f"{i}_{kind}.png", compress_level=0)
            scores.append({"name": f"{i}", "files": str(i), "psnr": float(i), "ssim": 0.5})
        run.finish("evaluate", views=scores, seconds=1.0)
        path = write_report(run)
    assert path.stat().st_size < 8e6
    shown = read(path).text
    assert "PSNR 0.00 dB" in shown


def test_a_film_is_carried_when_small_and_linked_when_large(tmp_path: Path) -> None:
    with make_run(tmp_path / "run") as run:
        (run.folder / "turntable.mp4").write_bytes(b"film" * 100)
        assert any(tag == "video" for tag, _ in read(write_report(run)).tags)
        (run.folder / "turntable.mp4").write_bytes(bytes(5 << 20))
        reader = read(write_report(run))
        assert not any(tag == "video" for tag, _ in reader.tags)
        assert any(a.get("href") == "turntable.mp4" for _, a in reader.tags)


def test_steps_done_again_after_a_kill_replace_the_first_ones(tmp_path: Path) -> None:
    with Run.create(tmp_path / "run", "gaussians", {"source": "x"}) as run:
        run.stage = "train"
        for step, splats in ((0, 10), (50, 20), (100, 999), (60, 30), (120, 40)):
            run.event(step=step, steps=200, splats=splats)
        page = write_report(run).read_text()
    line = page.split("Number of Gaussians</figcaption>")[1].split("</figure>")[0]
    assert "1k" not in line
    assert line.split('points="')[1].split('"')[0].count(",") == 4


@pytest.mark.parametrize("content", ['{"stage": "train"}\n', "nonsense\n", '{"step": "x", "stage": "train"}\n', "[]\n"])
def test_strange_events_do_not_matter(tmp_path: Path, content: str) -> None:
    with Run.create(tmp_path / "run", "gaussians", {"source": "x"}) as run:
        (run.folder / "events.jsonl").write_text(content)
        write_report(run)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (20.3, 29.7), (0, 7000), (5, 5), (-3, 2), (0, 1e-9), (1e6, 3e6)])
def test_ticks_are_few_and_cover_the_values(low: float, high: float) -> None:
    ticks = nice_ticks(low, high, 5)
    assert 2 <= len(ticks) <= 8
    assert ticks[0] <= low + 1e-12
    assert ticks[-1] >= high - 1e-12


def test_log_ticks_cover_the_values() -> None:
    ticks = log_ticks(-1.7, 0.4)
    assert ticks[0] <= -1.7
    assert ticks[-1] >= 0.4 - 1e-9 or len(ticks) > 3


def test_curve_leaves_out_what_is_not_finite() -> None:
    points: list[tuple[float, Any]] = [(0, 1.0), (1, float("nan")), (2, float("inf")), (3, 2.0)]
    assert curve("x", points).split('points="')[1].split('"')[0].count(",") == 2
    assert curve("x", points[:3]) == ""
    assert curve("x", [(0, -1.0), (1, 0.0)], logarithmic=True) == ""


def test_numbers_are_short() -> None:
    assert [number(value) for value in (0, 0.05, 1500, 2e6, 12.34)] == ["0", "0.05", "1.5k", "2M", "12.3"]


def test_smoothing_keeps_a_constant() -> None:
    assert smoothed([(0, 2.0), (1, 2.0)]) == [(0.0, 2.0), (1.0, 2.0)]


def test_metrics_json_is_json_with_known_keys_only(tmp_path: Path) -> None:
    make_run(tmp_path / "run").close()
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["psnr"] == 21.0
