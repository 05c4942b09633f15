"""Every method on the same photos, the same split and the same time: one table, and strips of pictures to compare.

    maquette bench methods photos/lego --minutes 5 --downscale 2 --out runs/methods
    python -m benchmarks.methods photos/lego --methods gaussians dvgo --minutes 1 --json methods.json

Each method trains in a process of its own until its minutes are over (`--preset` sets the sizes of its scene, not how
long it trains), so that peak memory is its own and one that fails leaves the others alone; it keeps its row. Judged is
what the saved file holds, on the held-out views, with the same fit of exposures for all where the photos call for one.
`peak MB` is that of training; `ms` the median of whole pictures of held-out views on this machine. FOLDER gets the
table as methods.txt, methods.md and methods.json, strip.png (truth and every method, the view of median PSNR), strips/,
and per method its scene, its pictures and its log. Exits with 1 when any method failed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from apps.cli import explain
from apps.devices import choose_device
from apps.methods import Method, method_of
from benchmarks.common import HostLoad, record, table, write_json
from data.captures import Capture, open_capture
from recon import gaussians, sfm
from recon.evaluation import evaluate
from scene.environment import peak_memory_mb
from scene.errors import InputError

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "gaussians": ("gaussians", {}),
    "dvgo": ("dvgo", {}),
    "pot": ("dot", {"variant": "pot"}),
    "dot": ("dot", {}),
}
"""What is compared: the method, and the changes to its options."""

COLUMNS = {
    "psnr": "PSNR dB",
    "ssim": "SSIM",
    "seconds": "s train",
    "primitives": "primitives",
    "parameters": "parameters",
    "file_mb": "file MB",
    "frame_ms": "ms",
    "peak_mb": "peak MB",
}
ENDLESS = {"steps": 10_000_000, "grid_steps": 10_000_000, "epochs": 100_000}
"""Options that would end a training: more than the time lets anyone take, so that the time alone does."""
STRIPS = 8  # views of which a strip is drawn
TIMED, TIMED_SECONDS = 20, 10.0  # pictures that are timed, fewer where they take longer than this
LEAST_COLUMN = 150  # px, so that the words above a picture fit


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line. Raises InputError for a method or a time that there is none of."""
    parser = argparse.ArgumentParser(
        prog="maquette bench methods", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, metavar="SOURCE", help="as for maquette recon")
    parser.add_argument("--minutes", type=float, default=5.0, help="of training, each method")
    parser.add_argument("--downscale", type=float, default=1.0, help="work on photos this many times smaller")
    parser.add_argument("--holdout", type=int, default=8, help="judge on every N-th photo; a source's own split wins")
    parser.add_argument("--methods", nargs="+", default=list(VARIANTS), metavar="NAME", help=", ".join(VARIANTS))
    parser.add_argument("--preset", choices=("draft", "standard", "high"), default="standard", help="sizes of scenes")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/methods"), metavar="FOLDER")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write all figures as well")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    for name in options.methods:
        if name not in VARIANTS:
            raise InputError(f"there is no method {name!r} to compare; there are {', '.join(VARIANTS)}")
    if not 0 < options.minutes < 1e6:
        raise InputError(f"--minutes must be positive, got {options.minutes}")
    return options


def opened(options: argparse.Namespace, stack: ExitStack) -> Capture:
    """The source with its cameras; estimated ones are kept in FOLDER, so that every method has the same."""
    capture = stack.enter_context(
        open_capture(
            options.source,
            downscale=options.downscale,
            holdout=options.holdout,
            workdir=options.out / "capture",
        )
    )
    if any(view.camera is None for view in capture.views):
        result = sfm.estimate_cameras(capture, sfm.SfmConfig(), options.out / "sfm")
        capture = stack.enter_context(result.capture)
    if not capture.test:
        raise InputError("methods are compared on held-out views, and there are none; expected --holdout 2 or more")
    return capture


def configured(name: str, preset: str, seed: int) -> tuple[Method, Any]:
    """The method's module and its options, with no end to the steps."""
    method, changes = VARIANTS[name]
    module = method_of(method)
    config = module.Config()
    ends = {field.name: ENDLESS[field.name] for field in dataclasses.fields(config) if field.name in ENDLESS}
    return module, dataclasses.replace(config, **{**module.PRESETS[preset], "seed": seed, **ends, **changes})


def train_one(options: argparse.Namespace) -> dict[str, Any]:
    """In a process of its own: one method trained, saved, judged, timed. Returns its row; writes its pictures."""
    name, folder = options.one, options.out / options.one
    module, config = configured(name, options.preset, options.seed)
    device, _ = choose_device(options.device)
    module.check(config, device)
    with ExitStack() as stack:
        capture = opened(options, stack)
        began = time.perf_counter()
        trained = module.train(
            capture,
            config,
            device=device,
            max_seconds=60 * options.minutes,
            on_step=lambda report: None,
            save=lambda checkpoint: None,
            decide=lambda sentence: print(sentence, flush=True),
            resume=None,
            stop=lambda: False,
        )
        seconds, peak = time.perf_counter() - began, peak_memory_mb()
        file = folder / module.SCENE_FILE
        module.save_scene(file, trained)
        del trained
        scene = module.load_scene(file).to(device=device)
        primitives, parameters = module.counts(scene)
        views = []
        exposure = gaussians.learns_exposure(capture, gaussians.Config())  # all are judged as the Gaussians are
        for score in evaluate(lambda camera, b: module.picture(scene, camera, b, config), capture, exposure=exposure):
            stem = f"{score.index:04}"
            save_png(score.render, folder / f"{stem}.png")
            if not (options.out / "truth" / f"{stem}.png").exists():
                save_png(score.truth, options.out / "truth" / f"{stem}.png")
            views.append({"name": score.name, "stem": stem, "psnr": score.psnr, "ssim": score.ssim})
        frames = frame_times(lambda camera: module.picture(scene, camera, torch.ones(3), config), capture, device)
    return {
        "psnr": statistics.fmean(view["psnr"] for view in views),
        "ssim": statistics.fmean(view["ssim"] for view in views),
        "seconds": round(seconds, 1),
        "primitives": primitives,
        "parameters": parameters,
        "file_mb": file.stat().st_size / 1e6,
        "frame_ms": 1e3 * statistics.median(frames),
        "frames_timed": len(frames),
        "peak_mb": round(peak),
        "gpu_peak_mb": round(torch.cuda.max_memory_allocated() / 2**20) if device.type == "cuda" else None,
        "device": str(device),
        "kernels": module.explain(config, device),
        "config": dataclasses.asdict(config),
        "views": views,
    }


def frame_times(draw: Any, capture: Capture, device: torch.device) -> list[float]:
    """Seconds for whole pictures of the held-out views in turn, after one that is not timed."""
    cameras = [view.camera for view in (capture.views[i] for i in capture.test) if view.camera is not None]
    draw(cameras[0])
    times: list[float] = []
    while len(times) < TIMED and (len(times) < 3 or sum(times) < TIMED_SECONDS):
        began = time.perf_counter()
        draw(cameras[len(times) % len(cameras)])
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return times


def save_png(picture: Tensor, path: Path) -> None:
    """[H, W, 3] in 0 to 1."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((picture.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()).save(path)


def run_one(name: str, given: Sequence[str], folder: Path) -> dict[str, Any]:
    """The row of one method, from a process of its own; its exit code and last words where it failed."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    row_file, log = folder / name / "row.json", folder / f"{name}.log"
    row_file.unlink(missing_ok=True)
    root = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "benchmarks.methods", *given, "--one", name]
    with log.open("w") as file:
        code = subprocess.call(command, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, "PYTHONPATH": path})
    row = json.loads(row_file.read_text()) if code == 0 and row_file.is_file() else {}
    words = [line for line in log.read_text(errors="replace").splitlines() if line.strip()] or ["without a word"]
    ours = [line.removeprefix("maquette: ") for line in words if line.startswith("maquette: ")]
    return {"method": name, "exit": code, **row, **({} if row else {"error": (ours or words)[-1]})}


def strip(rows: Sequence[dict[str, Any]], folder: Path, view: int) -> Image.Image:
    """Truth and the pictures of all methods side by side, with name and PSNR above."""
    stem = rows[0]["views"][view]["stem"]
    shown = [("truth", rows[0]["views"][view]["name"], folder / "truth" / f"{stem}.png")]
    for row in rows:
        figures = row["views"][view]
        shown.append((row["method"], f"{figures['psnr']:.2f} dB", folder / row["method"] / f"{stem}.png"))
    pictures = [Image.open(path).convert("RGB") for _, _, path in shown]
    times = max(1, -(-LEAST_COLUMN // pictures[0].width))
    width, height = times * pictures[0].width, times * pictures[0].height
    size = max(13, width // 24)
    band, font = round(3.2 * size), ImageFont.load_default(size)
    sheet = Image.new("RGB", (len(shown) * (width + 4) - 4, height + band), "white")
    draw = ImageDraw.Draw(sheet)
    for column, (picture, (name, words, _)) in enumerate(zip(pictures, shown, strict=True)):
        x = column * (width + 4)
        sheet.paste(picture.resize((width, height), Image.Resampling.NEAREST), (x, band))
        draw.text((x + 4, 0.2 * size), name, "black", font)
        draw.text((x + 4, 1.6 * size), words if len(words) < 20 else f"...{words[-17:]}", "#555555", font)
    return sheet


def write_strips(rows: Sequence[dict[str, Any]], folder: Path) -> list[str]:
    """strip.png and strips/; returns their names in FOLDER, the one of the view of median PSNR first."""
    made = [row for row in rows if "views" in row]
    if not made:
        return []
    means = [statistics.fmean(row["views"][i]["psnr"] for row in made) for i in range(len(made[0]["views"]))]
    middle = sorted(range(len(means)), key=means.__getitem__)[len(means) // 2]
    strip(made, folder, middle).save(folder / "strip.png")
    (folder / "strips").mkdir(exist_ok=True)
    names = ["strip.png"]
    for i in sorted({round(k * (len(means) - 1) / max(1, STRIPS - 1)) for k in range(STRIPS)} & set(range(len(means)))):
        names.append(f"strips/{made[0]['views'][i]['stem']}.png")
        strip(made, folder, i).save(folder / names[-1])
    return names


def cells(rows: Sequence[dict[str, Any]]) -> list[list[Any]]:
    """The table's body."""
    return [[row["method"], *(_rounded(name, row.get(name)) for name in COLUMNS)] for row in rows]


def _rounded(name: str, value: Any) -> Any:
    digits = {"psnr": "{:.2f}", "ssim": "{:.4f}", "frame_ms": "{:.1f}", "file_mb": "{:.1f}", "seconds": "{:.0f}"}
    return None if value is None else digits.get(name, "{:,}").format(value)


def failures(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A sentence for each method that failed."""
    return [
        f"{row['method']} failed with exit code {row['exit']}: {row['error']} (see {row['method']}.log)"
        for row in rows
        if "error" in row
    ]


def as_markdown(title: str, rows: Sequence[dict[str, Any]], strips: Sequence[str]) -> str:
    """Table, failures and pictures."""
    head = ["method", *COLUMNS.values()]
    lines = [f"# {title}", "", f"| {' | '.join(head)} |", f"| --- |{' ---: |' * len(COLUMNS)}"]
    lines += [f"| {' | '.join('-' if cell is None else str(cell) for cell in row)} |" for row in cells(rows)]
    lines += ["", *(f"- {sentence}" for sentence in failures(rows)), ""]
    lines += [f"![{name}]({name})\n" for name in strips]
    return "\n".join(lines)


def compare(options: argparse.Namespace, given: Sequence[str]) -> int:
    """Runs every method and writes table and pictures."""
    options.out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        capture = opened(options, stack)  # what is wrong with the source is said once, before anyone trains
        view = capture.views[capture.test[0]]
        title = (
            f"{options.source.name}: {len(capture.train)} views of {view.width}x{view.height}, "
            f"{len(capture.test)} held out, {options.minutes:g} minutes each"
        )
    for path in (options.out / "truth").glob("*.png"):
        path.unlink()  # of an earlier comparison at another size, perhaps
    print(title, flush=True)
    load, rows = HostLoad(), []
    for name in options.methods:
        rows.append(run_one(name, given, options.out))
        print("\n".join([table(["method", *COLUMNS.values()], cells(rows[-1:])), *failures(rows[-1:])]), flush=True)
    strips = write_strips(rows, options.out)
    text = "\n".join([title, "", table(["method", *COLUMNS.values()], cells(rows)), *failures(rows)])
    print(f"\n{text}")
    (options.out / "methods.txt").write_text(text + "\n")
    (options.out / "methods.md").write_text(as_markdown(title, rows, strips))
    result = {
        "title": title,
        "minutes": options.minutes,
        "preset": options.preset,
        "rows": rows,
        "record": record(load),
    }
    write_json(options.out / "methods.json", result)
    write_json(options.json, result)
    return int(any("error" in row for row in rows))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what the command line asks for."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = options_of(given)
    if options.one is None:
        return compare(options, given)
    try:
        row = train_one(options)
    except Exception as error:  # the last line of the log says in words what went wrong
        return explain(error, debug=True)
    write_json(options.out / options.one / "row.json", row)
    return 0


if __name__ == "__main__":
    sys.exit(main())
