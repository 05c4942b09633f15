"""report.html: what came in, what was decided, how good the result is; one file that opens offline.

Made from the run folder alone, so that it can be made again, and with whatever is there: a run that stopped early has a
report too. Names and messages come from untrusted files; everything is escaped and the page may fetch nothing.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

from apps.console import clock
from apps.generate_report import generated_sections, is_generation
from apps.methods import Words, words_of
from apps.report_page import data_uri, page, section, table
from apps.report_plots import camera_maps, curve
from apps.run_cameras import RunCameras, read_cameras
from apps.run_page import section_of_run
from apps.run_scene import SCENE_FILES, SPLATS_FILE, about_splats, sample_of_scene, scene_splats
from apps.scene_page import viewer_script, viewer_style
from scene.errors import InputError
from scene.files import read_json, replacing, write_errors
from scene.runs import Run, read_events
from scene.untrusted import open_picture, open_regular, read_bytes

log = logging.getLogger(__name__)

PICTURE_BYTES = 5 << 20  # of all held-out pictures together
VIDEO_BYTES = 4 << 20  # a larger film is linked, not carried
SCENE_BYTES = 14 << 20  # of the 3D view's data
MAX_VIEWS = 12
FEW = 40  # points of a curve that are marked one by one
PICTURE_WIDTHS = (900, 640, 420)  # pixels; smaller where there are many or large views
STAGE_NAMES = {
    "cameras": "Cameras",
    "train": "Training",
    "judge": "Judging",
    "evaluate": "Judging held-out photos",
    "mesh": "Mesh",
    "splats": "Splats of the scene",
    "turntable": "Film",
    "other": "Everything else",
}
COLORS = ("#b4541f", "#d99a3c", "#1668b8", "#3f9d8c", "#c2708f", "#8a63b8", "#9a9ea4")


def write_report(run: Run) -> Path:
    """Write RUN/report.html and return its path."""
    config, metrics = run.config, run.metrics
    title = _title(config)
    seen = None
    with contextlib.suppress(InputError):
        seen = read_cameras(run)
    scene, words = _scene(run), words_of(config.get("method"))
    parts = [
        _header(run, title, config, metrics),
        _hero(run, seen),
        generated_sections(run),
        scene,
        _cards(metrics, words),
        _decisions(run),
        _capture_check(run),
        _cameras(run, seen),
        _views(run),
        _curves(run, words),
        _timings(run, metrics),
        _mesh(run),
        _files(run, words),
        _details(run, config),
        f"<footer>Made by Maquette {escape(str(metrics.get('version', '')))}. This file needs no network.</footer>",
    ]
    path = run.folder / "report.html"
    with write_errors(path, "write the report"), replacing(path) as file:
        viewer = {"style": viewer_style(), "script": viewer_script()} if scene else {}
        file.write(page(f"{title}: Maquette report", "\n".join(parts), **viewer).encode())
    return path


def _title(config: dict[str, Any]) -> str:
    source = Path(str(config.get("source", "")))
    # Photos often lie in a folder of a name that says nothing; the one above then says what they show.
    named = source.parent if source.name.lower() in ("images", "photos", "input", "train") else source
    return named.name.replace("_", " ") or source.name or "Reconstruction"


def _header(run: Run, title: str, config: dict[str, Any], metrics: dict[str, Any]) -> str:
    facts = [words_of(config.get("method")).name]
    if "preset" in config:
        facts.append(f"preset {config['preset']}")
    if metrics.get("backend"):
        how = " by plain torch" if metrics["backend"] == "reference" else ""
        facts.append(f"computed on {metrics.get('device', 'cpu')}{how}")
    facts.append(str(config.get("source", "")))
    ended = "" if run.finished("train") else "<p><b>This run has not finished its training.</b></p>"
    return f"<header><h1>{escape(title)}</h1><p>{escape(' · '.join(facts))}</p>{ended}</header>"


def _hero(run: Run, seen: RunCameras | None) -> str:
    film = run.folder / "turntable.mp4"
    if not film.is_file():
        return ""
    if film.stat().st_size > VIDEO_BYTES:
        return '<p><a href="turntable.mp4">turntable.mp4</a></p>'
    source = data_uri(read_bytes(film, VIDEO_BYTES), "video/mp4")
    shade = "light" if seen is not None and float(seen.background.mean()) > 0.5 else "dark"
    return f'<div class="hero {shade}"><video src="{source}" autoplay muted loop controls playsinline></video></div>'


def _scene(run: Run) -> str:
    """The scene itself, to turn round; nothing where there is none yet."""
    try:
        return section("The scene", section_of_run(run, max_bytes=SCENE_BYTES), escape(about_splats(run)))
    except InputError as error:
        log.info("the report has no 3D view: %s", error)
        return ""


def _cards(metrics: dict[str, Any], words: Words) -> str:
    """The figures that say at a glance how it went; those that are not known are not shown."""
    shown: list[tuple[str, str]] = []

    def card(name: str, label: str, form: str) -> None:
        if isinstance(metrics.get(name), (int, float)):
            shown.append((form.format(metrics[name]), label))

    card("psnr", "dB PSNR on held-out photos", "{:.2f}")
    card("ssim", "SSIM on held-out photos", "{:.4f}")
    if "views_total" in metrics:
        registered = metrics.get("views_registered")
        of = f"{registered}/{metrics['views_total']}" if registered is not None else str(metrics["views_total"])
        shown.append((of, "photos with cameras" if registered is not None else "photos"))
    card("primitives", words.counted, "{:,}")
    card("mesh_faces", "mesh faces", "{:,}")
    card("chamfer", "Chamfer distance to the truth", "{:.4g}")
    if isinstance(metrics.get("seconds_total"), (int, float)):
        shown.append((clock(metrics["seconds_total"]), "time in all"))
    card("peak_memory_mb", "MB of memory at peak", "{:,.0f}")
    cards = (f'<div class="card"><b>{escape(value)}</b><span>{escape(label)}</span></div>' for value, label in shown)
    return f'<div class="cards">{"".join(cards)}</div>' if shown else ""


def _decisions(run: Run) -> str:
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in run.decisions)
    return section("What was decided, and why", f'<ul class="plain">{items}</ul>' if items else "")


def _capture_check(run: Run) -> str:
    items = []
    for stage in ("check_photos", "check_cameras"):
        for finding in (run.finished(stage) or {}).get("findings", []):
            level = finding.get("level") if finding.get("level") in ("good", "warn", "bad") else "warn"
            topic, sentence = escape(str(finding.get("topic", ""))), escape(str(finding.get("sentence", "")))
            items.append(f'<li class="{level}"><b>{topic}.</b> {sentence}</li>')
    return section(
        "The capture",
        f'<ul class="plain">{"".join(items)}</ul>' if items else "",
        "Green is fine, amber costs quality, red is the first thing to improve when photographing again.",
    )


def _cameras(run: Run, seen: RunCameras | None) -> str:
    if seen is None or not seen.cameras or is_generation(run):  # where no photos were taken
        return ""
    if not len(seen.points):
        with contextlib.suppress(InputError):
            seen = replace(seen, points=sample_of_scene(scene_splats(run)))
    held = sum(seen.held_out)
    key = (
        f'<span class="key"><i style="background:var(--accent)"></i>{len(seen.cameras) - held} trained'
        f'<i style="background:var(--held)"></i>{held} held out</span>'
    )
    unit = "The world is in metres." if seen.metric else "The world has no known scale."
    return section("Where the photos were taken", f'<div class="grid2">{camera_maps(seen)}</div>', f"{key}. {unit}")


def _views(run: Run) -> str:
    """Held-out photos against renders, worst first, as many as fit."""
    views = (run.finished("evaluate") or {}).get("views", [])
    whole = [view for view in views if all(path.is_file() for path in _pictures(run, view).values())]
    whole.sort(key=lambda view: float(view.get("psnr", 0)))
    # Worst, best and evenly between: an honest choice when not all fit.
    step = max(1.0, (len(whole) - 1) / (MAX_VIEWS - 1))
    chosen = [whole[round(i * step)] for i in range(min(len(whole), MAX_VIEWS))] if whole else []
    blocks: list[str] = []
    for width in PICTURE_WIDTHS:
        blocks = [_view(run, view, width) for view in chosen]
        if sum(map(len, blocks)) < PICTURE_BYTES:
            break
    else:
        blocks = blocks[: max(1, len(blocks) * PICTURE_BYTES // max(1, sum(map(len, blocks))))]
    if not blocks:
        return ""
    low, high = float(whole[0].get("psnr", 0)), float(whole[-1].get("psnr", 0))
    note = (
        f"Kept out of the training to judge it: PSNR from {low:.1f} to {high:.1f} dB over {len(whole)} photos. "
        f"{len(blocks)} of them below, the worst first. Drag across a picture: photo on the left, render on the right."
    )
    return section("Photos the scene was not trained on", f'<div class="views">{"".join(blocks)}</div>', note)


def _pictures(run: Run, view: dict[str, Any]) -> dict[str, Path]:
    stem = Path(str(view.get("files", ""))).name  # a name only: no way out of the folder
    return {kind: run.folder / "renders" / f"{stem}_{kind}.png" for kind in ("truth", "render", "error")}


def _view(run: Run, view: dict[str, Any], width: int) -> str:
    pictures = _pictures(run, view)
    truth, aspect = _jpeg(pictures["truth"], width)
    render, _ = _jpeg(pictures["render"], width)
    error, _ = _jpeg(pictures["error"], width // 2)
    name = escape(str(view.get("name", "")))
    facts = f"<span>PSNR {float(view.get('psnr', 0)):.2f} dB</span><span>SSIM {float(view.get('ssim', 0)):.4f}</span>"
    return (
        f'<div class="view{" wide" if aspect > 1.1 else ""}"><p><b>{name}</b>{facts}</p><div class="pair">'
        f'<div class="slider"><img src="{truth}" alt="photo"><img class="over" src="{render}" alt="render">'
        f'<input type="range" min="0" max="100" value="50" aria-label="photo or render of {name}">'
        '<span class="tag left">photo</span><span class="tag right">render</span></div>'
        f'<figure><img src="{error}" alt="difference"><figcaption>Difference: black none, white a quarter of '
        "the range or more</figcaption></figure></div></div>"
    )


def _jpeg(path: Path, width: int) -> tuple[str, float]:
    """A picture as a data URI at most `width` pixels wide, and its width over its height."""
    from PIL import Image

    with open_regular(path) as file, open_picture(file, path) as picture:
        height = max(1, round(picture.height * width / picture.width))
        small = picture if picture.width <= width else picture.resize((width, height), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        small.convert("RGB").save(buffer, "JPEG", quality=84)
    return data_uri(buffer.getvalue(), "image/jpeg"), small.width / small.height


def _curves(run: Run, words: Words) -> str:
    points: dict[str, dict[int, float]] = {"loss": {}, "psnr": {}, "splats": {}}
    for event in read_events(run.folder / "events.jsonl"):
        step = event.get("step")
        if event.get("stage") != "train" or not isinstance(step, int):
            continue
        for name, known in points.items():
            # A killed run repeats steps after its checkpoint: what a resume redid replaces what came before.
            for later in [s for s in reversed(known) if s > step]:
                del known[later]
            if isinstance(event.get(name), (int, float)):
                known[step] = float(event[name])
    changes = [(step, value) for i, (step, value) in _changes(points["psnr"])]
    plots = [
        curve("Loss", smoothed(list(points["loss"].items())), logarithmic=True),
        curve(words.psnr, changes, dots=len(changes) < FEW),
        curve(words.curve, list(points["splats"].items())),
    ]
    body = "".join(plots)
    return section("Training", f'<div class="grid2">{body}</div>' if body else "", "Over the steps of the training.")


def _changes(values: dict[int, float]) -> Iterator[tuple[int, tuple[int, float]]]:
    """The points at which a repeated value is first told."""
    last = None
    for i, (step, value) in enumerate(values.items()):
        if value != last:
            yield i, (step, value)
        last = value


def smoothed(points: list[tuple[int, float]], keep: float = 0.85) -> list[tuple[float, float]]:
    """Exponential mean: single photos differ more than the training moves."""
    mean, out = None, []
    for step, value in points:
        mean = value if mean is None else keep * mean + (1 - keep) * value
        out.append((float(step), mean))
    return out


def _timings(run: Run, metrics: dict[str, Any]) -> str:
    spent = {
        stage: float(record["seconds"])
        for stage, record in run.stages.items()
        if stage in STAGE_NAMES and isinstance(record.get("seconds"), (int, float))
    }
    total = metrics.get("seconds_total")
    if not isinstance(total, (int, float)) or total <= 0:
        return ""
    spent["other"] = max(0.0, total - sum(spent.values()))
    ordered = [(stage, spent[stage]) for stage in STAGE_NAMES if stage in spent]
    whole = sum(seconds for _, seconds in ordered) or 1.0
    bar, rows = "", ""
    for (stage, seconds), color in zip(ordered, COLORS):
        bar += f'<i style="width:{100 * seconds / whole:.2f}%;background:{color}"></i>'
        swatch = f'<span class="swatch" style="background:{color}"></span>'
        rows += f"<tr><th>{swatch}{STAGE_NAMES[stage]}</th><td>{clock(seconds)}</td></tr>"
    rows += f"<tr><th>Total</th><td>{clock(total)}</td></tr>"
    return section("Where the time went", f'<div class="bar">{bar}</div><table>{rows}</table>')


def _mesh(run: Run) -> str:
    """What the mesh is, what its gate said, and how its texture shows photos that took no part."""
    record = run.finished("mesh") or {}
    facts, texture, label = (_object(record.get(name)) for name in ("facts", "texture", "label"))
    if not facts:
        return ""
    labels = {"vertices": "Vertices", "faces": "Faces", "components": "Separate parts", "boundary_edges": "Open edges"}
    rows = [(title, _said(facts[name])) for name, title in labels.items() if facts.get(name) is not None]
    if texture:
        rows.append(("Texture", f"{_said(texture.get('size'))} px a side, {_said(texture.get('charts'))} charts"))
        rows.append(("Seen by a photo", _percent(texture.get("coverage"))))
    if isinstance(record.get("held_out_psnr"), float):
        cover = _percent(record.get("held_out_cover"))
        rows.append(("On held-out photos", f"{record['held_out_psnr']:.2f} dB over the {cover} that it covers"))
    checks = label.get("checks")
    levels: dict[Any, str] = {True: "good", False: "bad"}
    lines = "".join(
        f'<li class="{levels.get(check.get("ok"), "")}"><b>{escape(str(check.get("name", "")))}.</b> '
        f"{escape(str(check.get('sentence', '')))}</li>"
        for check in (checks if isinstance(checks, list) else [])
        if isinstance(check, dict)
    )
    return section("The mesh", table(rows) + (f'<ul class="plain">{lines}</ul>' if lines else ""), "mesh.glb, +Y up")


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _percent(value: Any) -> str:
    return f"{100 * value:.0f} %" if isinstance(value, (int, float)) else "unknown share"


def _said(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _files(run: Run, words: Words) -> str:
    about = {
        **dict.fromkeys(SCENE_FILES, words.file),
        SPLATS_FILE: f"splats made of the {words.scene}, for viewers and splat formats",
        "mesh.glb": "the textured mesh, for Blender, game engines and browsers",
        "mesh_fine.ply": "the mesh before it was cut to size, for exports of other sizes",
        "edits.json": "what was cleaned, cropped, turned or scaled since",
        "turntable.mp4": "the film",
        "renders": "held-out photos, renders and differences",
        "sfm": "the estimated cameras, a COLMAP model",
        "cameras.json": "all cameras, as JSON",
        "metrics.json": "all figures of this page, as JSON",
        "events.jsonl": "the log of the run",
    }
    rows = ""
    for name, what in about.items():
        path = run.folder / name
        if path.exists():
            size = f"{path.stat().st_size / 1e6:.1f} MB" if path.is_file() else ""
            rows += f'<tr><th><a href="{name}"><code>{name}</code></a></th><td>{what}</td><td>{size}</td></tr>'
    return section("Files of this run", f"<table>{rows}</table>" if rows else "", f"In {escape(str(run.folder))}.")


def _details(run: Run, config: dict[str, Any]) -> str:
    environment = read_json(run.folder / "environment.json", {})
    blocks = ""
    for title, content in (("All options", config), ("Environment", environment), ("All figures", run.metrics)):
        rows = list(_flat(content))
        blocks += f"<details><summary>{title}</summary>{table(rows)}</details>" if rows else ""
    return section("Details", blocks)


def _flat(content: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested JSON objects as rows of text."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield from _flat(value, f"{prefix} {key}".strip())
    elif content is not None:
        yield prefix, _said(content) if isinstance(content, bool) else str(content)
