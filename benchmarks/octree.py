"""Speed of octrees on the CPU: frames of a viewer and steps of training, side by side with the same in plain torch.

    python -m benchmarks.octree --json result.json
    python -m benchmarks.octree RUN/scene.npz --sizes 400 800
    python -m benchmarks.octree --level 5 --sizes 64 --rounds 2          # seconds, for a look

Without a file the scene is a ball with a wavy surface in leaves of one level. Pictures are compared before anything is
timed; candidates take turns. The twin walks all rays in step, as svox's fallback does.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import HostLoad, Stopwatch, record, table, write_json
from scene.cameras import Camera, look_at
from scene.formats.octree_npz import load_octree
from scene.octree import Octree
from scene.octree_baking import Field, bake
from scene.octree_step import OctreeStep, Rates
from scene.ops import native
from scene.ops.octree_render import LEAST_SIGMA, VIEWED, Rays, render_octree, render_octree_reference

LIMIT = 1e-3  # largest difference of a pixel between kernel and twin
STANDING = Rates(0.0, 0.0)  # all the work of a step, and the octree stays what it was


def wavy_ball(level: int) -> Octree:
    """A shell of leaves with colours of degree 2."""

    def density(points: torch.Tensor) -> torch.Tensor:
        radius = 0.75 + 0.05 * torch.sin(9 * points).prod(1)
        return 150.0 * ((points.norm(dim=1) - radius).abs() < 0.02).to(points)

    def colors(points: torch.Tensor) -> torch.Tensor:
        waves = torch.stack([torch.sin((k + 1) * points) for k in range(9)], dim=1)
        return waves / (1 + torch.arange(9.0))[:, None]

    edge = torch.ones(3)
    return bake(Field(density, colors), -edge, edge, level, [])


def viewer(size: int) -> Camera:
    """A camera with Blender's field of view that sees the unit ball."""
    focal = 0.5 * size / math.tan(0.345)
    K = torch.tensor([[focal, 0.0, size / 2], [0.0, focal, size / 2], [0.0, 0.0, 1.0]])
    return Camera(K, look_at(torch.tensor([2.0, -3.0, 1.8]), torch.zeros(3), torch.tensor([0.0, 0.0, 1.0])), size, size)


def race(octree: Octree, size: int, rounds: int, twin: bool) -> dict[str, Any]:
    """All timings at one size."""
    camera, watch = viewer(size), Stopwatch()
    rays, leaves = Rays(camera=camera), (octree.sigmas, octree.sh_coeffs, octree.index)
    options: dict[str, Any] = {"stop": VIEWED, "least": LEAST_SIGMA, "whole": True}
    shown = render_octree(*leaves, rays, **options)
    exact = render_octree(*leaves, rays)
    error = float((shown.rgb + shown.last[:, None] - exact.rgb - exact.last[:, None]).square().mean())
    facts: dict[str, Any] = {"size": size, "leaves": len(octree), "viewer_psnr": -10 * math.log10(max(error, 1e-12))}
    if twin:
        wanted = render_octree_reference(*leaves, rays, **options)
        facts["difference"] = float((shown.rgb - wanted.rgb).abs().max())
        if facts["difference"] > LIMIT:
            raise SystemExit(f"nothing was timed: kernel and twin differ by {facts['difference']:.1e}")
    step, target, white = OctreeStep(octree), torch.rand(size, size, 3), torch.ones(3)
    for _ in range(rounds):
        if twin:
            with watch.measure("frame, plain torch"):
                render_octree_reference(*leaves, rays, **options)
        for _ in range(10):
            with watch.measure("frame"):
                render_octree(*leaves, rays, **options)
            with watch.measure("training step"):
                step.take(camera, target, white, STANDING)
    facts["timings"] = timings = watch.timings()
    facts["frames_per_second"] = 1e3 / timings["frame"].median_ms
    if twin:
        facts["over_plain_torch"] = timings["frame, plain torch"].median_ms / timings["frame"].median_ms
    return facts


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("octree", nargs="?", type=Path, help="a PlenOctree .npz; a wavy ball where absent")
    parser.add_argument("--level", type=int, default=8, help="of the ball's leaves")
    parser.add_argument("--sizes", nargs="+", type=int, default=[400, 800])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-twin", action="store_true", help="leave out plain torch")
    parser.add_argument("--json", type=Path, help="where to write all figures")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what the command line asks for."""
    options = parse(arguments)
    if native.backend() != "cpu":
        raise SystemExit(f"the compiled kernels are what is timed here, but {native.explain()}")
    load = HostLoad()
    octree = load_octree(options.octree) if options.octree else wavy_ball(options.level)
    found = [race(octree, size, options.rounds, not options.no_twin) for size in options.sizes]
    for facts in found:
        print(f"\n{facts['size']} x {facts['size']}, {facts['leaves']:,} leaves")
        rows = [[name, one.median_ms, one.p10_ms, one.cpu_ms, one.samples] for name, one in facts["timings"].items()]
        print(table(["", "median ms", "p10", "cpu ms", "n"], rows))
        print(f"{facts['frames_per_second']:.1f} frames/s; {facts.get('over_plain_torch', 0):.0f} times plain torch")
    write_json(options.json, {"kernels": native.explain(), "scenes": found, "record": record(load)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
