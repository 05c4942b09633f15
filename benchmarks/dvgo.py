"""One training step of DVGO: ours against the same step in plain torch on the same cores, and the memory of both.

    python -m benchmarks.dvgo [--rays 8192] [--voxels 4096000] [--steps 20] [--json FILE]

The scene is an object as a grid knows it in the middle of its training: a torus and balls with soft surfaces, occupied
voxels around them, rays of cameras around it that meet one. Both start from the same numbers; losses and gradients are
compared before anything is timed. Memory is the growth of a process of its own over 5 steps, with the grid made there.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import HostLoad, Stopwatch, record, table, write_json
from benchmarks.dvgo_reference import TorchGrid
from data.synthetic import dome_cameras
from recon.grid_recipes import RATES, RECIPES, shift_of
from scene.environment import peak_memory_mb
from scene.grid_step import GridStep
from scene.ops import native
from scene.ops.color_mlp import ColorMlp
from scene.ops.grid_march import RaySpans, hits, pack_bits
from scene.ray_space import GridFrame, Space, grid_size
from scene.voxel_grid import VoxelGrid, dense_alpha, new_grid, with_occupied

WEIGHTS = RECIPES["bounded"].weights
BAR_SPEED, BAR_MEMORY = 8.0, 0.25


@dataclass(frozen=True)
class Batch:
    """Rays of one step and what their pixels should be."""

    spans: RaySpans
    directions: Tensor
    target: Tensor


def object_grid(voxels: int, *, channels: int = 12, width: int = 128, seed: int = 0) -> VoxelGrid:
    """A grid in the middle of its training."""
    generator = torch.Generator().manual_seed(seed)
    box = torch.tensor([[-1.2, -1.2, -0.9], [1.2, 1.2, 0.9]])
    frame = GridFrame(Space("bounded", torch.eye(4)), box, grid_size(box, voxels))
    places = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float32) for n in frame.size))
    points = frame.world_from_grid(places)
    ring = ((points[:, :2].norm(dim=-1) - 0.75).square() + points[:, 2].square()).sqrt() - 0.25
    balls = torch.stack([(points - points.new_tensor(c)).norm(dim=-1) - 0.22 for c in ((0, 0, 0.4), (0.5, 0.5, 0.5))])
    depth = torch.minimum(ring, balls.amin(0)) / frame.voxel_size
    raw = (6 - 3.5 * depth).clamp(-6, 12) + 0.5 * torch.randn(len(depth), generator=generator)
    recipe = RECIPES["bounded"]
    grid = new_grid(
        frame,
        (depth < 3).view(frame.size),
        channels=channels,
        head="mlp",
        mlp=ColorMlp.drawn(channels, 27, width, generator),
        shifts=torch.full((frame.size[2],), shift_of(recipe.alpha_init) - 4),
        interval=recipe.step,
        threshold=recipe.threshold,
    )
    grid.density.copy_(raw.view(frame.size))
    grid.features.copy_(torch.randn(grid.features.shape, generator=generator))
    return with_occupied(grid, grid.occupied & (dense_alpha(grid) > grid.threshold), features_of=grid)


def batches(grid: VoxelGrid, rays: int, count: int, *, seed: int = 1) -> list[Batch]:
    """Random rays of cameras around the object that meet something occupied, on the grid's device."""
    generator = torch.Generator().manual_seed(seed)
    cameras = dome_cameras(40, 100)
    pairs = [camera.to(dtype=torch.float32).rays() for camera in cameras]
    device = grid.density.device
    origins, directions = (torch.cat([pair[i].reshape(-1, 3) for pair in pairs]).to(device) for i in (0, 1))
    directions = torch.nn.functional.normalize(directions, dim=-1)
    met = hits(pack_bits(grid.occupied), grid.frame.size[2], grid.frame.spans(origins, directions, grid.step))
    origins, directions = origins[met], directions[met]
    made = []
    for _ in range(count):
        ids = torch.randint(len(origins), (rays,), generator=generator).to(device)
        spans = grid.frame.spans(origins[ids], directions[ids], grid.step)
        made.append(Batch(spans, directions[ids], torch.rand(rays, 3, generator=generator).to(device)))
    return made


def agreement(grid: VoxelGrid, batch: Batch) -> dict[str, float]:
    """How far losses and gradients of the two are apart, as norms of the difference over norms.

    Not by the largest element: a neuron that is zero up to rounding is on in one and off in the other.
    """
    white = torch.ones(3)
    theirs = TorchGrid(grid, RATES)
    loss, samples = theirs.loss(batch.spans, batch.directions, batch.target, white, WEIGHTS)
    loss.backward()
    ours = GridStep(copied(grid))
    mine, _ = ours.gradients(batch.spans, batch.directions, batch.target, white, WEIGHTS)
    assert theirs.density.grad is not None and theirs.features.grad is not None
    live = grid.rows >= 0
    pairs = {
        "density": (ours.density_grad, theirs.density.grad[0, 0]),
        "features": (ours.features_grad, theirs.features.grad[0].permute(1, 2, 3, 0)[live]),
    }
    apart = {name: float((a - b).norm() / b.norm()) for name, (a, b) in pairs.items()}
    return {"loss": abs(float(mine.loss - loss.detach()) / float(loss.detach())), **apart, "samples": samples}


def copied(grid: VoxelGrid) -> VoxelGrid:
    """A grid that may be trained without changing this one."""
    assert grid.mlp is not None
    mlp = ColorMlp(*(tensor.clone() for tensor in grid.mlp))
    return replace(grid, density=grid.density.clone(), features=grid.features.clone(), mlp=mlp)


def timed(grid: VoxelGrid, made: Sequence[Batch], steps: int) -> Stopwatch:
    """Both by turns."""
    white, watch = torch.ones(3), Stopwatch()
    ours, theirs = GridStep(copied(grid)), TorchGrid(grid, RATES)
    for number in range(steps + 2):
        batch = made[number % len(made)]
        arguments = (batch.spans, batch.directions, batch.target, white, WEIGHTS)
        taken = watch if number >= 2 else Stopwatch()
        with taken.measure("ours"):
            ours.take(*arguments, RATES)
        with taken.measure("torch"):
            theirs.take(*arguments)
    return watch


def memory_of(which: str, rays: int, voxels: int) -> float:
    """MB by which a process of its own grows while it makes the grid's training state and takes 5 steps."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.dvgo",
        "--memory-of",
        which,
        "--rays",
        str(rays),
        "--voxels",
        str(voxels),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout)["grown_mb"])


def measure_memory(which: str, rays: int, voxels: int) -> float:
    """The same in this process."""
    grid = object_grid(voxels)
    made, white = batches(grid, rays, 5), torch.ones(3)
    torch.nn.functional.linear(torch.ones(8, 8), torch.ones(8, 8))  # torch's own workspaces are nobody's
    _touch_peak()
    before = _resident_mb()
    step = GridStep(grid) if which == "ours" else TorchGrid(grid, RATES)
    for batch in made:
        arguments = (batch.spans, batch.directions, batch.target, white, WEIGHTS)
        if isinstance(step, GridStep):
            step.take(*arguments, RATES)
        else:
            step.take(*arguments)
    return peak_memory_mb() - before


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def _touch_peak() -> None:
    """Forget the largest size so far, so that making the grid does not count."""
    Path("/proc/self/clear_refs").write_text("5")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; returns the exit code: 1 when the two do not compute the same."""
    parser = argparse.ArgumentParser(prog="benchmarks.dvgo", description="One DVGO step, ours and torch's")
    parser.add_argument("--rays", type=int, default=8192)
    parser.add_argument("--voxels", type=int, default=160**3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--memory-of", choices=("ours", "torch"), help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    torch.set_num_threads(native.len_affinity())
    if asked.memory_of:
        print(json.dumps({"grown_mb": measure_memory(asked.memory_of, asked.rays, asked.voxels)}))
        return 0
    load = HostLoad()
    grid = object_grid(asked.voxels)
    made = batches(grid, asked.rays, 8)
    apart = agreement(grid, made[0])
    if not (apart["loss"] < 1e-4 and apart["density"] < 1e-3 and apart["features"] < 5e-3):
        print(f"the two do not compute the same: {apart}")
        return 1
    timings = timed(grid, made, asked.steps).timings()
    memory = {name: memory_of(name, asked.rays, asked.voxels) for name in ("ours", "torch")}
    speed = timings["torch"].median_ms / timings["ours"].median_ms
    share = memory["ours"] / memory["torch"]
    rows = [[name, t.median_ms, t.best_ms, t.cpu_ms, memory[name]] for name, t in timings.items()]
    print(
        f"{asked.rays} rays, {math.prod(grid.frame.size):,} voxels, {len(grid):,} live, {apart['samples']:,} coloured"
    )
    print(table(["", "median ms", "best ms", "cpu ms", "grown MB"], rows))
    print(f"speed {speed:.1f}x (bar {BAR_SPEED:g}), memory {share:.2f} (bar {BAR_MEMORY:g})")
    result: dict[str, Any] = {
        "record": record(load),
        "rays": asked.rays,
        "voxels": list(grid.frame.size),
        "live": len(grid),
        "agreement": apart,
        "timings": timings,
        "grown_mb": memory,
        "speed": speed,
        "memory_share": share,
    }
    write_json(asked.json, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
