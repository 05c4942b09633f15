"""Voxel grids and octrees on an NVIDIA GPU; part of benchmarks/gpu.py.

A training step of DVGO (8192 rays, 160^3), its parts, and a picture; the same step in plain torch and, where it can be
imported, with nerfacc, by turns, after losses and gradients were compared. A picture and a training step of an octree.
A whole training of DVGO to a PSNR.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import nerfacc_cuda
from benchmarks.common import table
from benchmarks.dvgo import WEIGHTS, Batch, batches, copied, object_grid
from benchmarks.dvgo_reference import Seen, TorchGrid
from benchmarks.gpu_timing import Candidate, Laps, by_turns, peak_bytes, stages_timed
from data.captures import Capture, open_capture
from data.synthetic import dome_cameras, opaque_solids
from recon import dvgo
from recon.evaluation import evaluate
from recon.grid_recipes import RATES
from scene.cameras import Camera
from scene.grid_step import GridStep
from scene.octree import Octree, from_cells
from scene.octree_step import OctreeStep
from scene.octree_step import Rates as OctreeRates
from scene.ops import native
from scene.ops.grid_march import RaySpans
from scene.ops.octree_render import LEAST_SIGMA, VIEWED, Rays, render_octree
from scene.volume_rendering import render_grid
from scene.voxel_grid import VoxelGrid

# Which functions of the kernels make up each stage of a step; the network is torch's and is not among them.
STAGES = {
    "march": ("GridMarch.march", "GridMarch.emit"),
    "features": ("trilinear",),
    "loss": ("volume_loss",),
    "features backward": ("trilinear_backward",),
    "density backward": ("GridMarch.backward",),
    "update": ("masked_adam", "adam"),
}
STANDING = replace(RATES, density=1e-30, features=1e-30, mlp=1e-30)  # all the work, and the scene stays what it was
LIMITS = {"loss": 1e-4, "density": 1e-3, "features": 1e-3}  # to a peer: relative; gradients by Euclidean length
STRAY = 1e-4  # a neuron of one sample in a million is just on in one and just off in the other
PICTURE, LEVEL = 800, 8  # px; of the octree's leaves: as large as the cells of 256^3
PEERS: dict[str, Callable[[TorchGrid, RaySpans], Seen] | None] = {"torch": None, "nerfacc": nerfacc_cuda.march}


@dataclass
class OurStep:
    """A training step of ours on the device that holds the grid and the rays."""

    grid: VoxelGrid
    batch: Batch

    def __post_init__(self) -> None:
        self.step = GridStep(copied(self.grid))
        self.white = torch.ones(3, device=self.batch.target.device)

    def gradients(self) -> dict[str, Tensor]:
        """Loss, and the gradients by densities [X, Y, Z] and features [X, Y, Z, C]."""
        batch, grid = self.batch, self.step.grid
        loss, _ = self.step.gradients(batch.spans, batch.directions, batch.target, self.white, WEIGHTS)
        rows = grid.rows.clamp(min=0).long()
        features = torch.where(grid.rows[..., None] >= 0, self.step.features_grad[rows], 0.0)
        found = {"loss": loss.loss.clone(), "density": self.step.density_grad.clone(), "features": features}
        self.step.density_grad.zero_()
        self.step.features_grad.zero_()
        return found

    def run(self) -> None:
        """The whole step."""
        batch = self.batch
        self.step.take(batch.spans, batch.directions, batch.target, self.white, WEIGHTS, STANDING)


@dataclass
class TheirStep:
    """The same in plain torch or with nerfacc."""

    grid: VoxelGrid
    batch: Batch
    peer: str

    def __post_init__(self) -> None:
        self.step = TorchGrid(self.grid, STANDING, PEERS[self.peer])
        self.white = torch.ones(3, device=self.batch.target.device)

    def gradients(self) -> dict[str, Tensor]:
        """As `OurStep.gradients`."""
        batch, step = self.batch, self.step
        step.optimizer.zero_grad()
        loss, _ = step.loss(batch.spans, batch.directions, batch.target, self.white, WEIGHTS)
        loss.backward()
        assert step.density.grad is not None and step.features.grad is not None
        live = (self.grid.rows >= 0)[..., None]
        features = torch.where(live, step.features.grad[0].permute(1, 2, 3, 0), 0.0)
        return {"loss": loss.detach(), "density": step.density.grad[0, 0].clone(), "features": features}

    def run(self) -> None:
        """The whole step."""
        batch = self.batch
        self.step.take(batch.spans, batch.directions, batch.target, self.white, WEIGHTS)


def differences(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> dict[str, float]:
    """Relative distances of loss and gradients, but for the STRAY share of voxels that differ most."""
    found = {}
    for name, value in theirs.items():
        apart = (ours[name] - value).square().view(*value.shape[:3], -1).sum(-1).flatten().sort().values
        kept = apart[: max(1, int(len(apart) * (1 - STRAY)))]
        found[name] = float(kept.sum().sqrt() / value.norm().clamp_min(1e-30))
    return found


def race(device: torch.device, *, rays: int, voxels: int, samples: int, nerfacc: bool) -> dict[str, Any]:
    """All figures of a step of DVGO on the device."""
    grid = object_grid(voxels).to(device=device)
    (batch,) = batches(grid, rays, 1)
    camera = picture_camera()
    peers = [name for name in PEERS if nerfacc or name != "nerfacc"]
    peaks = {"ours": peak_bytes(lambda: OurStep(grid, batch), device)}
    ours = OurStep(grid, batch)
    mine, again = ours.gradients(), ours.gradients()
    facts: dict[str, Any] = {"rays": rays, "voxels": list(grid.frame.size), "live": len(grid), "differences": {}}
    facts["equal_to_the_bit"] = all(torch.equal(mine[name], value) for name, value in again.items())
    candidates: dict[str, Candidate] = {"ours": ours.run, "picture": lambda: render_grid(grid, camera, torch.ones(3))}
    for name in peers:
        peaks[name] = peak_bytes(lambda name=name: TheirStep(grid, batch, name), device)
        theirs = TheirStep(grid, batch, name)
        apart = differences(mine, theirs.gradients())
        facts["differences"][name] = apart
        if all(value <= LIMITS[part] for part, value in apart.items()):  # what differs is not worth timing
            candidates[name] = theirs.run
    laps = by_turns(candidates, device, samples=samples, per_turn=min(6, samples))
    facts |= {"ms": laps.medians(), "p10_p90_ms": laps.spread(), "peak_bytes": peaks}
    facts["ratios"] = {name: facts["ms"][name] / facts["ms"]["ours"] if name in candidates else None for name in PEERS}
    stages = Laps(device)
    with stages_timed(native.kernels(device), stages, STAGES):
        for _ in range(samples):
            ours.run()
        stages.close()
    # A stage of several calls counts with all of them.
    facts["stages"] = {name: sum(values) / samples for name, values in stages.samples.items()}
    return facts


def picture_camera() -> Camera:
    """One of those around the object."""
    return dome_cameras(8, PICTURE)[3].to(dtype=torch.float32)


def object_octree(level: int, device: torch.device, *, seed: int = 0) -> Octree:
    """Leaves of one level around the surface of a torus, colours of degree 2."""
    generator = torch.Generator().manual_seed(seed)
    side = 2.4 / 2**level
    line = (torch.arange(2**level, dtype=torch.float32) + 0.5) * side - 1.2
    across = (line[:, None].square() + line.square()).sqrt()[..., None] - 0.75
    depth = ((across.square() + line.square()).sqrt() - 0.25) / side  # leaves
    cells = (depth.abs() < 2.5).nonzero()
    sigmas = (3 - depth[tuple(cells.T)]) * 40 + 5 * torch.rand(len(cells), generator=generator)
    sh_coeffs = 0.3 * torch.randn(len(cells), 9, 3, generator=generator)
    offset = torch.full((3,), 0.5, dtype=torch.float64)
    octree = from_cells(cells, level, sigmas, sh_coeffs, offset, torch.full((3,), 1 / 2.4, dtype=torch.float64))
    return octree.to(device=device)


def octree_race(device: torch.device, *, level: int, samples: int) -> dict[str, Any]:
    """A picture as a viewer makes it, and a training step on one, or why there is none."""
    if "octree_render" not in vars(native.kernels(device)):
        return {"missing": "the GPU has no kernels for octrees"}
    octree, camera = object_octree(level, device), picture_camera()
    step, rates = OctreeStep(octree), OctreeRates(1e-30, 1e-30)
    target = torch.rand(PICTURE, PICTURE, 3, generator=torch.Generator().manual_seed(1)).to(device)
    white = torch.ones(3, device=device)

    def picture() -> None:
        leaves = (octree.sigmas, octree.sh_coeffs, octree.index)
        render_octree(*leaves, Rays(camera=camera), stop=VIEWED, least=LEAST_SIGMA, whole=True)

    candidates: dict[str, Candidate] = {"picture": picture, "step": lambda: step.take(camera, target, white, rates)}
    laps = by_turns(candidates, device, samples=samples, per_turn=min(6, samples))
    return {"leaves": len(octree), "ms": laps.medians(), "p10_p90_ms": laps.spread()}


def report(facts: Mapping[str, Any]) -> str:
    """A race of steps as text."""
    sides = "x".join(str(side) for side in facts["voxels"])
    lines = [
        f"\nDVGO, {facts['rays']} rays, {sides} voxels, {facts['live']} of them live; "
        f"two passes equal to the bit: {facts['equal_to_the_bit']}"
    ]
    for name, apart in facts["differences"].items():
        not_timed = "" if name in facts["ms"] else "; NOT TIMED"
        lines.append(f"difference to {name}: " + ", ".join(f"{k} {v:.1e}" for k, v in apart.items()) + not_timed)
    rows = [[name, ms, *facts["p10_p90_ms"][name], facts["peak_bytes"].get(name)] for name, ms in facts["ms"].items()]
    lines.append(table(["", "median ms", "p10", "p90", "peak bytes"], rows))
    lines.append("stages: " + ", ".join(f"{name} {ms:.3f} ms" for name, ms in facts["stages"].items()))
    ratios = facts["ratios"].items()
    lines.append(", ".join(f"{name} over ours {'-' if v is None else f'{v:.2f}'}" for name, v in ratios))
    return "\n".join(lines)


def octree_report(facts: Mapping[str, Any]) -> str:
    """A race of octrees as text."""
    if "missing" in facts:
        return f"\noctree: {facts['missing']}"
    ms = facts["ms"]
    return (
        f"\noctree of {facts['leaves']} leaves, {PICTURE}x{PICTURE}: picture {ms['picture']:.3f} ms "
        f"({1e3 / ms['picture']:.0f} frames a second), training step {ms['step']:.3f} ms"
    )


@contextmanager
def a_capture() -> Iterator[tuple[str, Capture]]:
    """Lego at 800x800 where MAQUETTE_DATA holds it; else a synthetic scene made on the spot."""
    lego = Path(os.environ.get("MAQUETTE_DATA", "")) / "blender" / "lego"
    with tempfile.TemporaryDirectory() as folder:
        there = (lego / "transforms_train.json").is_file()
        name = "lego" if there else "synthetic solids 160x160"
        capture = open_capture(lego) if there else opaque_solids(train=40, test=6, size=160).capture(Path(folder))
        try:
            yield name, capture
        finally:
            capture.close()


def train_to_psnr(capture: Capture, config: dvgo.Config, device: torch.device, max_seconds: float) -> dict[str, Any]:
    """A training that ends annealed after `max_seconds` at the latest, and the PSNR of its held-out views."""
    began = time.monotonic()
    grid = dvgo.train(capture, config, device=device, max_seconds=max_seconds)
    seconds = time.monotonic() - began

    def draw(camera: Camera, background: Tensor) -> Tensor:
        return dvgo.picture(grid, camera, background, config)

    scores = [score.psnr for score in evaluate(draw, capture, exposure=False)]
    return {"seconds": round(seconds, 2), "psnr": sum(scores) / max(1, len(scores)), "live": len(grid)}
