"""`maquette generate` on a fixed suite of 40 prompts, each judged against the procedural truth and the held-out scorer.

    python -m benchmarks.generate --prior bank --count 20 --out runs/suite --sheet sheet.png --json generate.json

Each prompt is a run of the command in a process of its own, so that time and peak memory are its own. The first 20
prompts are one of each kind of thing; the other 20 name combinations of colours that no network was trained on.

    psnr       four views against the nearest object that the words stand for, dB ("the attained mode")
    iou        solid volume against that object, 64^3 places of its box
    chamfer    mean of accuracy and completeness of the mesh against its surface, % of its diagonal
    hull       how well the four views agree on one silhouette hull, IoU
    fronts     views of four that show the front, of things that have one, told by a part of true objects (snowman nose,
               chair back) that no prior had a hand in; 1 is right, more is Janus
    rank       place of the prompt among 100 captions by the scorer, which takes part in no loss; where it is installed
    right_kind whether the caption that the scorer puts first names the same kind of thing
    rank_between, right_kind_between   the same by the four views 45 degrees on, between those of the others
    seconds, peak MB   of the whole command

Below the table: medians, and shares with a one-sided bound that holds at 90 % (bootstrap over prompts).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from apps.priors import embedded_clip
from apps.run_scene import trained_scene
from benchmarks.common import HostLoad, record, table, write_json
from generation.bank_prior import BankConfig, BankPrior
from generation.caption_parsing import parse_caption
from generation.clip import Clip
from generation.judging import (
    judged_cameras,
    judged_sides,
    reference_pictures,
    scored,
    true_objects,
    views_of_the_front,
)
from generation.prior_evaluation import hull_iou
from generation.shapes import ObjectModel
from generation.surface_points import surface_points
from scene.errors import InputError
from scene.formats import load_mesh
from scene.mesh import Mesh
from scene.mesh_distance import point_to_mesh, sample_surface
from scene.mesh_rays import RayCaster
from scene.runs import Run

PLAIN = (
    "a red chair",
    "a wooden stool",
    "a table with brown top and black legs",
    "a blue mug",
    "a lamp with yellow shade and blue base",
    "a green car",
    "a truck with red cabin and white trailer",
    "a house with white walls and red roof",
    "a tree with green leaves and brown trunk",
    "a cactus with green stem and orange pot",
    "a snowman with white body and black hat",
    "a rocket with white body and red fins",
    "a green bottle",
    "a robot with blue body and white head",
    "a person with red shirt and blue trousers",
    "a sword with white blade and brown hilt",
    "a box with brown sides and red lid",
    "a ball with red surface and white band",
    "a brown horse",
    "a board with purple deck and black wheels",
)
HELD_OUT = (
    "a chair with red seat and blue legs",
    "a stool with white seat and green legs",
    "a table with red top and white legs",
    "a mug with brown body and red handle",
    "a lamp with brown shade and purple base",
    "a car with orange body and green cabin",
    "a truck with blue cabin and purple trailer",
    "a house with pink walls and brown roof",
    "a tree with white leaves and red trunk",
    "a cactus with brown stem and blue pot",
    "a snowman with white body and purple hat",
    "a rocket with red body and orange fins",
    "a bottle with blue body and green cap",
    "a robot with yellow body and orange head",
    "a person with white shirt and brown trousers",
    "a sword with blue blade and black hilt",
    "a box with red sides and black lid",
    "a ball with purple surface and brown band",
    "a horse with yellow body and purple mane",
    "a board with red deck and pink wheels",
)
PROMPTS = PLAIN + HELD_OUT
BETWEEN = 45.0  # degrees
SIZE = 64  # pixels of the views that are judged
PLACES = 64  # along an edge of the box in which volumes are compared
SAMPLES = 16_384  # of a surface
TILTS = ((1.0, 0.013, 0.007), (0.011, 1.0, 0.017), (0.019, 0.005, 1.0))  # no edge of a grid lies along them
RESAMPLED, CERTAINTY = 2000, 0.9
SHEET_COLUMNS, SHEET_SIZE, WORDS_HEIGHT = 2, 96, 16


@dataclass(frozen=True)
class Judged:
    """One prompt's figures; None where something has none."""

    prompt: str
    psnr: float | None = None
    iou: float | None = None
    chamfer: float | None = None
    hull: float | None = None
    fronts: int | None = None
    rank: int | None = None
    right_kind: bool | None = None
    rank_between: int | None = None
    right_kind_between: bool | None = None
    seconds: float | None = None
    peak_mb: float | None = None
    failed: str | None = None


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", default="embedded", help="as for maquette generate")
    parser.add_argument("--count", type=int, default=len(PROMPTS), help="of the suite's prompts, from the first on")
    parser.add_argument("--first", type=int, default=0, help="which prompt is the first")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/suite"), metavar="FOLDER", help="of the runs")
    parser.add_argument("--sheet", type=Path, metavar="FILE", help="all results on one picture")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write all figures")
    parser.add_argument("flags", nargs="*", help="more flags for maquette generate, after --")
    return parser.parse_args(arguments)


def generated(prompt: str, folder: Path, options: argparse.Namespace) -> str | None:
    """Runs the command, or the rest of an earlier run of it; the last line of what it said when it failed."""
    command = [sys.executable, "-m", "apps.cli", "generate", prompt, "--out", str(folder), "--prior", options.prior]
    command += ["--seed", str(options.seed), "--json", *options.flags]
    if folder.exists():
        command.append("--resume")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]


def views(folder: Path) -> tuple[Tensor, Tensor]:
    """Twice [4, 3, SIZE, SIZE] in 0..1 of a run's scene over white, by `judged_cameras` and BETWEEN these."""
    with Run.open(folder, writing=False) as run:
        trained = trained_scene(run)
    white = torch.ones(3)
    cameras = (*judged_cameras(SIZE), *judged_cameras(SIZE, BETWEEN))
    pictures = torch.stack([trained.picture(camera, white).clamp(0, 1).permute(2, 0, 1) for camera in cameras])
    return pictures[:4], pictures[4:]


def inside(mesh: Mesh, points: np.ndarray) -> np.ndarray:
    """[P] whether points lie inside of a closed mesh: most of three rays leave it by a face seen from behind."""
    caster, normals = RayCaster(mesh), mesh.face_normals
    votes = np.zeros(len(points), dtype=np.int64)
    for tilt in TILTS:
        direction = np.asarray(tilt) / np.linalg.norm(tilt)
        found = caster.cast(points, np.broadcast_to(direction, points.shape))
        hit = found.face >= 0
        votes[hit] += normals[found.face[hit]] @ direction > 0
    return votes >= 2


def volume_iou(mesh: Mesh, truth: ObjectModel) -> float:
    """Intersection over union of the solids, at PLACES^3 places of the box around both."""
    low, high = (bound.numpy().astype(np.float64) for bound in truth.bounds())
    low, high = np.minimum(low, mesh.vertices.min(0)), np.maximum(high, mesh.vertices.max(0))
    steps = (np.arange(PLACES) + 0.5) / PLACES
    points = low + np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3) * (high - low)
    ours, theirs = inside(mesh, points), truth.inside(torch.from_numpy(points).float()).numpy()
    return float((ours & theirs).sum() / max(1, (ours | theirs).sum()))


def chamfer_percent(mesh: Mesh, truth: ObjectModel) -> float:
    """Mean of the distances from mesh to object and from object to mesh, in percent of the object's diagonal."""
    on_mesh, _ = sample_surface(mesh, SAMPLES, np.random.default_rng(0))
    on_truth = surface_points(truth, SAMPLES, torch.Generator().manual_seed(0)).points.double().numpy()
    accuracy = truth.distance(torch.from_numpy(on_mesh).float()).abs().mean()
    completeness = point_to_mesh(on_truth, mesh).mean()
    low, high = truth.bounds()
    return float(50 * (float(accuracy) + completeness) / float((high - low).norm()))


def kind(caption: str) -> str:
    """The noun of the first thing that a caption names."""
    return parse_caption(caption).phrase.noun


def judge(prompt: str, folder: Path, members: int, seed: int, scorer: Clip | None) -> tuple[Judged, Tensor]:
    """A finished run's figures, and its views."""
    pictures, between = views(folder)
    objects = BankPrior([prompt], BankConfig(size=SIZE, members=members, seed=seed)).members(prompt)
    sides = judged_sides(pictures, reference_pictures(objects, SIZE))
    fronts = views_of_the_front(pictures, true_objects(prompt, SIZE))
    truth, metrics = objects[sides.nearest], json.loads((folder / "metrics.json").read_text())
    iou = chamfer = None
    if (folder / "mesh_fine.ply").is_file():
        mesh = load_mesh(folder / "mesh_fine.ply")
        iou, chamfer = volume_iou(mesh, truth), chamfer_percent(mesh, truth)
    score, other = (None if scorer is None else scored(scorer, each, prompt) for each in (pictures, between))
    found = Judged(
        prompt,
        psnr=sides.psnr,
        iou=iou,
        chamfer=chamfer,
        hull=hull_iou(2 * pictures - 1, judged_cameras(SIZE)),
        fronts=None if fronts is None else sum(fronts),
        rank=None if score is None else score.rank,
        right_kind=None if score is None else kind(score.best) == kind(prompt),
        rank_between=None if other is None else other.rank,
        right_kind_between=None if other is None else kind(other.best) == kind(prompt),
        seconds=metrics["seconds_total"],
        peak_mb=metrics["peak_memory_mb"],
    )
    return found, pictures


def lower_bound(values: Sequence[float], of: Callable[[Sequence[float]], float], seed: int = 0) -> float:
    """What `of` of other samples like this one exceeds with CERTAINTY (one-sided bootstrap)."""
    drawn = np.random.default_rng(seed).integers(0, len(values), (RESAMPLED, len(values)))
    return float(np.quantile([of([values[i] for i in row]) for row in drawn], 1 - CERTAINTY))


def summary(found: Sequence[Judged]) -> dict[str, Any]:
    """Medians and shares over the prompts that have a figure; bounds of what should be large."""

    def of(name: str) -> list[float]:
        return [float(value) for one in found if (value := getattr(one, name)) is not None]

    result: dict[str, Any] = {"prompts": len(found), "failed": sum(one.failed is not None for one in found)}
    for name in ("psnr", "iou", "chamfer", "hull", "seconds", "peak_mb"):
        if values := of(name):
            result[name] = {"median": statistics.median(values), "least": min(values), "most": max(values)}
            result[name]["bound"] = lower_bound(values, statistics.median)
    shares = {"one_front": "fronts", "first_of_100": "rank", "right_kind": "right_kind"}  # 1 is right
    shares |= {"first_of_100_between": "rank_between", "right_kind_between": "right_kind_between"}
    for name, right in ((name, [n == 1 for n in of(field)]) for name, field in shares.items()):
        if right:
            result[name] = {
                "share": statistics.fmean(right),
                "of": len(right),
                "bound": lower_bound([float(each) for each in right], statistics.fmean),
            }
    return result


def contact_sheet(shown: Sequence[tuple[str, Tensor]]) -> Image.Image:
    """Prompts with their four views, SHEET_COLUMNS side by side."""
    width, height = 4 * SHEET_SIZE, SHEET_SIZE + WORDS_HEIGHT
    rows = -(-len(shown) // SHEET_COLUMNS)
    sheet = Image.new("RGB", (SHEET_COLUMNS * width, rows * height), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (words, pictures) in enumerate(shown):
        x, y = i % SHEET_COLUMNS * width, i // SHEET_COLUMNS * height
        draw.text((x + 4, y + 2), words, fill="black")
        for side, picture in enumerate(pictures):
            rgb = (picture.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
            view = Image.fromarray(rgb).resize((SHEET_SIZE, SHEET_SIZE), Image.Resampling.BICUBIC)
            sheet.paste(view, (x + side * SHEET_SIZE, y + WORDS_HEIGHT))
    return sheet


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the suite; 1 when any prompt failed."""
    options = parse(arguments)
    load, scorer = HostLoad(), embedded_clip("clip_scorer")
    config = BankConfig()
    found: list[Judged] = []
    shown: list[tuple[str, Tensor]] = []
    for number, prompt in enumerate(PROMPTS[options.first : options.first + options.count], options.first):
        folder, began = options.out / f"{number:02}", time.monotonic()
        failed = generated(prompt, folder, options)
        if failed is None:
            one, pictures = judge(prompt, folder, config.members, options.seed, scorer)
            shown.append((prompt, pictures))
        else:
            one = Judged(prompt, failed=failed)
        found.append(one)
        print(
            f"{number + 1:3} {prompt}: {failed or f'{one.psnr:.1f} dB'}, {time.monotonic() - began:.0f} s", flush=True
        )
    columns = ("prompt", "psnr", "iou", "chamfer", "hull", "fronts", "rank", "rank_between", "seconds", "peak_mb")
    print(table(columns, [[getattr(one, name) for name in columns] for one in found]))
    result = summary(found)
    for name, value in result.items():
        parts = value if isinstance(value, dict) else {"": value}
        print(f"{name}: " + ", ".join(f"{word} {number:.4g}".strip() for word, number in parts.items()))
    if options.sheet is not None:
        if not shown:
            raise InputError("no prompt gave a scene, so there is nothing to put on a sheet")
        contact_sheet(shown).save(options.sheet, optimize=True)
    facts = record(load) | {"prior": options.prior, "seed": options.seed, "flags": options.flags}
    write_json(options.json, {"record": facts, "summary": result, "prompts": [asdict(one) for one in found]})
    return int(any(one.failed is not None for one in found))


if __name__ == "__main__":
    sys.exit(main())
