"""DOT against the PlenOctree that stays as it was baked ("POT"): leaves, pictures per second and PSNR from one grid.

    python -m benchmarks.dot photos/lego --downscale 2 --grid /tmp/lego.safetensors --json dot.json
    python -m benchmarks.dot photos/lego --downscale 2 --held-back 8        # to choose options by

The grid is trained once (and kept in --grid). Either octree is baked from it anew, which gives the same leaves, trained
for the same epochs in the same order of photos, saved, read back and judged as a user has it: in 16 bits, by the
viewer's picture. Pictures of the two take turns. With --held-back N nothing is looked at that the source keeps for
judging: every N-th training photo is left out of training, of the grid's as well, and judged instead.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import HostLoad, Stopwatch, record, table, write_json
from data.captures import Capture, open_capture
from recon import dot
from recon.evaluation import evaluate
from recon.grid_training import train_grid
from scene.octree import Octree
from scene.ops import native
from scene.voxel_grid import VoxelGrid, load_voxel_grid, save_voxel_grid

ROUNDS = 5  # over all held-out views


@dataclass(frozen=True)
class Trained:
    """An octree as its file gives it back, and what it took."""

    config: dot.Config
    octree: Octree
    baked: int
    seconds: float
    file_mb: float


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="photos with cameras")
    parser.add_argument("--downscale", type=float, default=1.0)
    parser.add_argument("--grid", type=Path, help="a file that keeps the trained grid")
    parser.add_argument("--held-back", type=int, metavar="N", help="judge on every N-th training photo, left out")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="options of DOT, for both")
    parser.add_argument("--json", type=Path, help="where to write all figures")
    return parser.parse_args(arguments)


def configured(settings: Sequence[str]) -> dot.Config:
    """DOT's options with the changes that `settings` name."""
    defaults = dataclasses.asdict(dot.Config())
    given = (setting.partition("=") for setting in settings)
    return dot.Config(**defaults | {name: type(defaults[name])(value) for name, _, value in given})


def judged_on(capture: Capture, held_back: int | None) -> Capture:
    """The capture whose `test` is judged: its own, or every N-th training photo in its place."""
    if held_back is None:
        return capture
    back = capture.train[::held_back]
    return dataclasses.replace(capture, train=tuple(i for i in capture.train if i not in back), test=back)


def grid_of(capture: Capture, config: dot.Config, file: Path | None) -> VoxelGrid:
    """The grid that both are baked from, from its file where there is one."""
    if file is not None and file.is_file():
        return load_voxel_grid(file)
    grid = train_grid(capture, dot.grid_options(config))
    if file is not None:
        save_voxel_grid(file, grid)
    return grid


def trained(capture: Capture, config: dot.Config, grid: VoxelGrid) -> Trained:
    """Baked from `grid`, trained, through a file."""
    trainer = dot.from_grid(capture, config, grid)
    began = time.perf_counter()
    octree = dot.train_octree(trainer)
    seconds = time.perf_counter() - began
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / dot.SCENE_FILE
        dot.save_scene(file, octree)
        return Trained(config, dot.load_scene(file), trainer.baked, seconds, file.stat().st_size / 1e6)


def psnr(capture: Capture, one: Trained) -> float:
    """Mean over the held-out views."""
    scores = evaluate(lambda camera, b: dot.picture(one.octree, camera, b, one.config), capture, exposure=False)
    return statistics.fmean(score.psnr for score in scores)


def race(capture: Capture, found: dict[str, Trained]) -> Stopwatch:
    """Pictures of all held-out views by each in turn."""
    watch, white = Stopwatch(), torch.ones(3)
    for turn in range(ROUNDS):
        for index in capture.test:
            camera = capture.views[index].camera
            assert camera is not None
            for name, one in found.items():
                if turn == 0:
                    dot.picture(one.octree, camera, white, one.config)  # tables into the caches, as a viewer has them
                with watch.measure(name):
                    dot.picture(one.octree, camera, white, one.config)
    return watch


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what the command line asks for."""
    options = parse(arguments)
    load, config = HostLoad(), configured(options.set)
    with open_capture(options.source, downscale=options.downscale) as opened:
        capture = judged_on(opened, options.held_back)
        grid = grid_of(capture, config, options.grid)
        found = {
            variant: trained(capture, dataclasses.replace(config, variant=variant), grid) for variant in ("pot", "dot")
        }
        timings = race(capture, found).timings()
        facts: dict[str, Any] = {}
        for name, one in found.items():
            leaves, parameters = dot.counts(one.octree)
            facts[name] = {
                "psnr": psnr(capture, one),
                "leaves": leaves,
                "parameters": parameters,
                "baked": one.baked,
                "file_mb": one.file_mb,
                "train_seconds": one.seconds,
                "picture": timings[name],
            }
    pot, changed = facts["pot"], facts["dot"]
    ratios = {
        "parameters": changed["parameters"] / pot["parameters"],
        "speed": pot["picture"].median_ms / changed["picture"].median_ms,
        "psnr": changed["psnr"] - pot["psnr"],
    }
    columns = ("psnr", "leaves", "parameters", "file_mb", "train_seconds")
    rows = [[name, *(one[column] for column in columns), one["picture"].median_ms] for name, one in facts.items()]
    print(table(["", *columns, "ms"], rows))
    print(
        f"DOT: {100 * (1 - ratios['parameters']):.1f} % fewer parameters, {ratios['speed']:.2f} times the pictures, "
        f"{ratios['psnr']:+.2f} dB"
    )
    settings = {"config": dataclasses.asdict(config), "held_back": options.held_back, "source": options.source.name}
    write_json(options.json, settings | facts | {"ratios": ratios, "kernels": native.explain(), "record": record(load)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
