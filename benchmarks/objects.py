"""Speed of procedural objects: captions, objects and their pictures, by the second.

    python -m benchmarks.objects --json result.json
    python -m benchmarks.objects --sizes 32 --objects 16 --rounds 2          # seconds, for a look

An object is one caption as training draws them, its primitives, a set of 4 cameras and the pictures from them: colour,
alpha, depth, normals, parts. Before anything is timed, depths are compared with marching along the exact distance.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import HostLoad, Stopwatch, record, table, write_json
from generation.captions import sample_caption
from generation.object_render import ObjectPictures, render_objects
from generation.objects import make_object
from generation.shapes import ObjectModel
from generation.views import sample_orthogonal
from scene.cameras import Camera

VIEWS = 4
LIMIT = 1e-3  # largest distance of a rendered surface point from the exact surface, in world units


def largest_miss(objects: Sequence[ObjectModel], cameras: Sequence[Sequence[Camera]], seen: ObjectPictures) -> float:
    """How far rendered points are from the surface by the exact distance."""
    worst = 0.0
    for index, (model, own) in enumerate(zip(objects, cameras, strict=True)):
        for view, camera in enumerate(own):
            origins, directions = camera.rays()
            hit = seen.alpha[index, view, 0] > 0
            points = (origins + seen.depth[index, view, 0][..., None] * directions)[hit]
            if len(points):
                worst = max(worst, float(model.distance(points).abs().max()))
    return worst


def race(size: int, count: int, rounds: int, device: str) -> dict[str, Any]:
    """All timings at one size of pictures."""
    generator, watch = torch.Generator().manual_seed(0), Stopwatch()
    captions = [sample_caption(generator) for _ in range(count)]
    objects = [make_object(caption, generator) for caption in captions]
    cameras = [sample_orthogonal(generator, size) for _ in objects]
    few = slice(0, 8)
    miss = largest_miss(objects[few], cameras[few], render_objects(objects[few], cameras[few]))
    if miss > LIMIT:
        raise SystemExit(f"nothing was timed: rendered points are {miss:.1e} from the surface")
    sync = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    for _ in range(rounds):
        with watch.measure("captions"):
            captions = [sample_caption(generator) for _ in range(count)]
        with watch.measure("objects"):
            objects = [make_object(caption, generator) for caption in captions]
        with watch.measure("cameras"):
            cameras = [sample_orthogonal(generator, size, count=VIEWS) for _ in objects]
        on_device = [model.to(device) for model in objects]
        sync()
        with watch.measure("pictures"):
            render_objects(on_device, cameras)
            sync()
    timings = watch.timings()
    total = sum(timing.median_ms for timing in timings.values())
    return {
        "size": size,
        "objects": count,
        "views": VIEWS,
        "primitives": sum(map(len, objects)) / count,
        "miss": miss,
        "objects_per_second": 1e3 * count / total,
        "objects_per_cpu_second": 1e3 * count / sum(timing.cpu_ms for timing in timings.values()),
        "rendered_per_second": 1e3 * count / timings["pictures"].median_ms,
        "timings": timings,
    }


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=int, default=[32, 64])
    parser.add_argument("--objects", type=int, default=128, help="in a batch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where pictures are made")
    parser.add_argument("--json", type=Path, help="where to write all figures")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what the command line asks for."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    load = HostLoad()
    found = [race(size, options.objects, options.rounds, options.device) for size in options.sizes]
    for facts in found:
        print(f"\n{facts['objects']} objects, {VIEWS} views of {facts['size']} x {facts['size']}, {options.device}")
        rows = [[name, one.median_ms, one.p10_ms, one.cpu_ms, one.samples] for name, one in facts["timings"].items()]
        print(table(["a batch", "median ms", "p10", "cpu ms", "n"], rows))
        per_cpu = facts["objects_per_cpu_second"]
        print(f"{facts['objects_per_second']:.0f} objects/s, {per_cpu:.0f} per CPU second")
    result = {"threads": options.threads, "device": options.device, "sets": found, "record": record(load)}
    write_json(options.json, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
