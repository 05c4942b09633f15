"""DOT: Dynamic PlenOctree for Adaptive Sampling Refinement in Explicit NeRF (Bai et al., ICCV 2023,
https://arxiv.org/abs/2307.15333), on top of PlenOctrees (Yu et al., ICCV 2021, https://arxiv.org/abs/2103.14024).

A radiance grid is trained and baked into an octree whose leaves hold a density and spherical harmonics. The leaves are
then optimised on whole photos: as they are ("pot", the PlenOctree baseline), or while the octree changes ("dot"): what
no ray uses goes, what rays use most is split, and the optimiser's moments follow their leaves.

Symbols: sigma -> sigmas, k -> sh_coeffs, S_leaf -> OctreeStep.weights, tau -> Config.prune, gamma -> Config.split.
Departures: the field is a voxel grid with spherical harmonics (`recon/grid_training.py`) instead of a NeRF-SH, which
takes minutes instead of days; Adam on the leaves that a photo meets instead of SGD or RMSProp; rates fall tenfold over
the run, so that the last octree is the best one and no views are held back to choose it; leaves are dropped rather
than merged (`scene/octree_refine.py` has the reasons and figures); a leaf also goes when no single ray takes much light
from it (PlenOctrees bake by that), which spares what few views see and is hard on fog; what is split is not what rays
use most, but where the photos still pull most at what rays use; a distortion loss (mip-NeRF 360) draws a ray's light
together, so that it ends after few leaves; colours that depend on the direction fade a little with each epoch, so that
only those stay which photos keep up; cut-out photos are trained over random backgrounds.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from data.captures import Capture
from recon.dot_state import Trainer, checkpoint_of, octree_of, planned_steps, restored
from recon.grid_state import grid_of
from recon.grid_training import Checkpoint, GridOptions, train_grid
from recon.initial_points import train_cameras
from recon.photo_cache import PhotoCache
from scene import sh
from scene.cameras import Camera
from scene.depth_fusion import DepthFrame
from scene.errors import InputError, Interrupted
from scene.formats.octree_npz import load_octree, save_octree
from scene.octree import Edit, Octree, keep
from scene.octree_baking import bake, field_of_grid
from scene.octree_refine import drop, grow, join
from scene.octree_step import FLOOR, OctreeStep, Rates
from scene.ops import native
from scene.ops.composite import composite
from scene.ops.octree_index import FINEST
from scene.ops.octree_render import LEAST_SIGMA, VIEWED, Rays, render_octree
from scene.runs import StepReport
from scene.volume_rendering import frame_of, render_grid
from scene.voxel_grid import VoxelGrid

__all__ = ["PRESETS", "Checkpoint", "Config", "train"]

SCENE_FILE = "scene.npz"


@dataclass(frozen=True)
class Config:
    """Options of DOT; the command line's flags are made from these fields."""

    variant: Literal["dot", "pot"] = "dot"
    """an octree that changes while it is trained (DOT), or stays as it was baked (PlenOctrees)"""
    grid_steps: int = 5000
    """training steps of the grid that the octree is baked from"""
    rays: int = 8192
    """rays of a step of the grid"""
    voxels: int = 160**3
    """voxels of the grid, about"""
    epochs: int = 20
    """how often the octree sees each photo, after baking"""
    level: int = 8
    """halvings of the scene's cube down to a baked leaf: 8 are 256 leaves along each axis"""
    sh_degree: int = 2
    """degree of the spherical harmonics that hold the view-dependent colour, 0 to 3"""
    sigma_lr: float = 0.03
    """learning rate of the densities, in optical depth of a baked leaf"""
    sh_lr: float = 0.02
    """learning rate of the colour coefficients"""
    prune: float = 0.06
    """a leaf goes when it sends less than this share of the light that baked leaves send on average (DOT)"""
    faint: float = 0.03
    """a leaf goes when no ray takes more than this share of its light from it (DOT)"""
    distortion: float = 0.35
    """weight of the distortion loss, which makes surfaces thin; 0 for scenes of real fog (DOT)"""
    split: float = 0.008
    """share of the leaves that is split, six times in a run (DOT)"""
    max_leaves: int = 4_000_000
    """cap on the number of leaves"""
    checkpoint_seconds: float = 30.0
    """time between checkpoints; a killed run loses no more than this"""
    seed: int = 0
    """seed of every random choice"""

    def __post_init__(self) -> None:
        for name, (least, most) in LIMITS.items():
            if not least <= getattr(self, name) <= most:  # false for NaN as well
                raise InputError(
                    f"--{name.replace('_', '-')} must lie between {least:g} and {most:g}, got {getattr(self, name)}"
                )


LIMITS: dict[str, tuple[float, float]] = {
    "grid_steps": (1, 10_000_000),
    "rays": (1, 1 << 20),
    "voxels": (1000, 640**3),
    "epochs": (0, 100_000),
    "level": (2, 10),
    "sh_degree": (0, sh.MAX_DEGREE),
    "sigma_lr": (0, 1e6),
    "sh_lr": (0, 1e3),
    "prune": (0, 1),
    "faint": (0, 1),
    "distortion": (0, 1e6),
    "split": (0, 1),
    "max_leaves": (1, 1 << 25),
    "checkpoint_seconds": (0, math.inf),
    "seed": (0, 2**63 - 1),
}
"""What options may be; beyond it training could only fail after the cameras have been estimated."""

PRESETS: dict[str, dict[str, Any]] = {
    "draft": {"grid_steps": 1500, "rays": 4096, "voxels": 100**3, "level": 7, "epochs": 8},
    "standard": {},
    "high": {"grid_steps": 15_000, "voxels": 256**3, "level": 9, "epochs": 30},
}

COARSE_VOXELS, COARSE_SHARE = 64**3, 0.08
COARSE_LEVEL = 5  # of leaves where nothing is known
GRID_SHARE = 0.55  # of a time budget
FALL = 0.1  # of the learning rates over the octree's training
PRUNE_FROM, PRUNE_FULL, PRUNE_TO = 0.02, 0.6, 0.7  # progress of the octree's training; full strength from the second
SPLIT_AT = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
FADE = 0.04  # of the colours that depend on the direction, in the first epoch; it falls with the learning rates
FINEST_SPLIT = 2  # levels below the baked ones
ALIKE = 0.05  # siblings that differ by less are merged


def train(
    capture: Capture,
    config: Config,
    *,
    device: torch.device | str = "cpu",
    max_seconds: float | None = None,
    on_step: Callable[[StepReport], None] = lambda report: None,
    save: Callable[[Checkpoint], None] = lambda checkpoint: None,
    decide: Callable[[str], None] = lambda sentence: None,
    resume: Checkpoint | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Octree:
    """Trains an octree on `capture.train`; it comes back on `device`.

    Arguments as of `recon.gaussians.train`. On the CPU backend and without a time limit a resumed run equals the
    unbroken one bit for bit. Raises InputError where the capture allows no bounded grid, Interrupted when `stop()`
    says so (after saving).
    """
    device = torch.device(device)
    _check_capture(capture)
    if resume is not None and resume.state.get("stage") == "octree":
        trainer = restored(capture, config, device, resume)
    else:
        trainer = _from_grid(capture, config, device, max_seconds, on_step, save, decide, resume, stop)
    return train_octree(trainer, max_seconds, on_step, save, stop)


def train_octree(
    trainer: Trainer,
    max_seconds: float | None = None,
    on_step: Callable[[StepReport], None] = lambda report: None,
    save: Callable[[Checkpoint], None] = lambda checkpoint: None,
    stop: Callable[[], bool] = lambda: False,
) -> Octree:
    """The octree's part of `train`, from where `trainer` stands."""
    began = time.monotonic() - trainer.seconds
    last_save = last_report = time.monotonic()
    while (p := _progress(trainer, max_seconds)) < 1:
        _one_photo(trainer, p)
        now = time.monotonic()
        trainer.seconds = now - began
        if stop():
            save(checkpoint_of(trainer))
            raise Interrupted(f"stopped after {_report(trainer, max_seconds).step} steps; --resume goes on from there")
        if now - last_save > trainer.config.checkpoint_seconds:
            save(checkpoint_of(trainer))
            last_save = time.monotonic()
        if now - last_report > 0.5:
            on_step(_report(trainer, max_seconds))
            last_report = now
    if trainer.config.variant == "dot":  # no picture shows the others; PlenOctrees keep what was baked
        _change(trainer.step, keep(trainer.step.octree, trainer.step.octree.sigmas > FLOOR))
    save(checkpoint_of(trainer))
    on_step(_report(trainer, max_seconds))
    return trainer.step.octree


def _check_capture(capture: Capture) -> None:
    if not capture.train or any(capture.views[i].camera is None for i in capture.train):
        raise InputError("training needs photos with known cameras; estimate them first (maquette recon does)")


def grid_options(config: Config) -> GridOptions:
    """Of the grid that the octree is baked from."""
    return GridOptions(
        steps=config.grid_steps,
        rays=config.rays,
        voxels=config.voxels,
        coarse_voxels=min(COARSE_VOXELS, config.voxels),
        coarse_share=COARSE_SHARE,
        channels=3 * sh.coefficients(config.sh_degree),
        head="sh",
        width=64,
        scene="bounded",
        checkpoint_seconds=config.checkpoint_seconds,
        seed=config.seed,
    )


def _from_grid(
    capture: Capture,
    config: Config,
    device: torch.device,
    max_seconds: float | None,
    on_step: Callable[[StepReport], None],
    save: Callable[[Checkpoint], None],
    decide: Callable[[str], None],
    resume: Checkpoint | None,
    stop: Callable[[], bool],
) -> Trainer:
    """The octree baked from a grid that is trained here, before its first step."""
    total = planned_steps(capture, config)
    spent = 0.0
    if resume is not None and (resume.state.get("stage") != "grid" or resume.state.get("steps") != total):
        raise InputError("the checkpoint was made by other options or another method; resume with its options")
    grid_seconds = None if max_seconds is None else GRID_SHARE * max_seconds

    def tell(report: StepReport) -> None:
        left = None if report.eta_s is None else report.eta_s / (GRID_SHARE if max_seconds else 1.0)
        on_step(replace(report, steps=total, eta_s=left, message=f"grid {report.message}".strip()))

    def wrap(checkpoint: Checkpoint) -> None:
        nonlocal spent
        spent = float(checkpoint.state["seconds"])
        inner = dict(checkpoint.state)
        state = {"stage": "grid", "step": inner["step"], "steps": total, "seconds": spent, "grid": inner}
        save(Checkpoint(checkpoint.tensors, state))

    grid = train_grid(
        capture,
        grid_options(config),
        device=device,
        max_seconds=grid_seconds,
        on_step=tell,
        save=wrap,
        decide=decide,
        resume=None if resume is None else Checkpoint(resume.tensors, resume.state["grid"]),
        stop=stop,
    )
    trainer = from_grid(capture, config, grid, decide)
    trainer.seconds = trainer.began = spent + trainer.seconds
    return trainer


def from_grid(
    capture: Capture, config: Config, grid: VoxelGrid, decide: Callable[[str], None] = lambda sentence: None
) -> Trainer:
    """The octree baked from `grid` (head "sh") on its device, before its first step."""
    began = time.monotonic()
    cameras = [camera.to(dtype=torch.float32) for camera in train_cameras(capture)]
    grid_field, (low, high) = field_of_grid(grid, config.sh_degree), grid.frame.box
    octree = bake(grid_field, low, high, config.level, cameras)
    if len(octree):
        decide(f"The grid was baked into an octree of {len(octree):,} leaves that photos see.")
    else:
        decide("The grid found nothing solid; the octree starts from all of it, coarsely.")
        octree = bake(grid_field, low, high, min(config.level, COARSE_LEVEL), [], least_alpha=0.0)
    generator = torch.Generator().manual_seed(config.seed)
    queue = torch.empty(0, dtype=torch.int64)
    photos = PhotoCache(capture, octree.sigmas.device)
    trainer = Trainer(capture, config, photos, OctreeStep(octree), generator, queue, max(1, len(octree)))
    trainer.seconds = trainer.began = time.monotonic() - began
    return trainer


def _progress(trainer: Trainer, max_seconds: float | None) -> float:
    """Of the octree's training."""
    photos = trainer.config.epochs * len(trainer.capture.train)
    share = trainer.done / photos if photos else 1.0
    if max_seconds is None:
        return share
    return max(share, (trainer.seconds - trainer.began) / max(1e-3, max_seconds - trainer.began))


def _one_photo(trainer: Trainer, p: float) -> None:
    """One photo: render, compare, learn; at the end of an epoch the octree may change."""
    capture, config = trainer.capture, trainer.config
    if len(trainer.queue) == 0:
        if trainer.done:
            _end_epoch(trainer, p)
        order = torch.randperm(len(capture.train), generator=trainer.generator)
        trainer.queue = torch.tensor(capture.train)[order]
    index, trainer.queue = int(trainer.queue[0]), trainer.queue[1:]
    photo, camera = trainer.photos.photo(index, 0), capture.views[index].camera
    trainer.photos.prefetch(trainer.queue[:4].tolist(), 0)
    assert camera is not None
    background = torch.rand(3, generator=trainer.generator) if photo.alpha is not None else torch.zeros(3)
    background = background.to(photo.rgb.device)
    if photo.alpha is None:
        target = photo.rgb.float() / 255
    else:
        target = composite(photo.rgb, photo.alpha, background)
    fall = FALL**p
    side = 0.5**config.level / float(trainer.step.octree.index.invradius.max())
    distortion = config.distortion if config.variant == "dot" and p < PRUNE_TO else 0.0
    rates = Rates(fall * config.sigma_lr / side, fall * config.sh_lr, distortion=distortion)
    trainer.error += trainer.step.take(camera.resized(target.shape[1], target.shape[0]), target, background, rates)
    trainer.done += 1


def _end_epoch(trainer: Trainer, p: float) -> None:
    """What the epoch's light says about the leaves (DOT): which go, which are split."""
    config, capture, step = trainer.config, trainer.capture, trainer.step
    trainer.epoch_error = trainer.error / len(capture.train)
    trainer.error = 0.0
    if config.variant == "dot" and PRUNE_FROM <= p < PRUNE_TO and len(step.octree):
        ramp = min(1.0, p / PRUNE_FULL)  # what goes early leaves time to make up for it
        least = ramp * config.prune * float(step.weights.sum()) / trainer.baked
        _change(step, drop(step.octree, (step.weights >= least) & (step.maxima >= ramp * config.faint)))
        due = sum(p >= at for at in SPLIT_AT)
        if due > trainer.splits:
            trainer.splits = due
            limit = min(FINEST, config.level + FINEST_SPLIT)
            _change(step, grow(step.octree, step.weights * step.pull(), config.split, config.max_leaves, limit))
        elif p > SPLIT_AT[-1]:
            _change(step, join(step.octree, ALIKE))
    if config.variant == "dot":
        step.octree.sh_coeffs[:, 1:] *= 1 - FADE * FALL**p
    step.forget_light()


def _change(step: OctreeStep, edit: Edit) -> None:
    if len(edit.octree):
        step.apply(edit)


def _report(trainer: Trainer, max_seconds: float | None) -> StepReport:
    p, config = _progress(trainer, max_seconds), trainer.config
    photos = config.epochs * len(trainer.capture.train)
    if max_seconds is not None and p > 0:
        photos = round(trainer.done / p)
    seen = trainer.done % len(trainer.capture.train)
    error = trainer.error / seen if seen else trainer.epoch_error
    return StepReport(
        step=config.grid_steps + trainer.done,
        steps=config.grid_steps + photos,
        loss=math.nan if error is None else error,
        psnr=-10 * math.log10(error) if error else None,
        splats=len(trainer.step.octree),
        eta_s=(trainer.seconds - trainer.began) * (1 - p) / p if p > 0 else None,
        message="octree",
    )


def check(config: Config, device: torch.device) -> None:
    """Every option trains on every device."""


def explain(config: Config, device: torch.device) -> str:
    """One line: what computes on `device`."""
    return native.explain(device)


def learns_exposure(capture: Capture, config: Config) -> bool:
    """DOT knows no exposures: photos are compared as they are."""
    return False


def save_scene(path: Path, scene: Octree) -> None:
    """Write scene.npz. Raises ResourceError when the disk is full."""
    save_octree(path, scene)


def load_scene(path: Path) -> Octree:
    """Read scene.npz. Raises InputError when it holds no sound octree."""
    return load_octree(path)


@torch.no_grad()
def picture(scene: Octree, camera: Camera, background: Tensor, config: Config) -> Tensor:
    """The octree as `camera` sees it over `background` [3]: [H, W, 3], without gradients."""
    rays = Rays(camera=camera.to(device=scene.sigmas.device, dtype=scene.sigmas.dtype))
    leaves = (scene.sigmas, scene.sh_coeffs, scene.index)
    seen = render_octree(*leaves, rays, stop=VIEWED, least=LEAST_SIGMA, whole=True, background=background)
    return seen.rgb.view(camera.height, camera.width, 3)


@torch.no_grad()
def surface_frame(scene: Octree, camera: Camera, config: Config) -> DepthFrame:
    """Colour and depth of the surface that `camera` sees: where half of the light is left."""
    rays = Rays(camera=camera.to(device=scene.sigmas.device, dtype=scene.sigmas.dtype))
    seen = render_octree(scene.sigmas, scene.sh_coeffs, scene.index, rays, least=LEAST_SIGMA, with_depth=True)
    assert seen.median is not None
    shape = (camera.height, camera.width)
    rgb = (seen.rgb.clamp(0, 1) * 255).round().to(torch.uint8).view(*shape, 3)
    alpha = (1 - seen.last).view(shape)
    return DepthFrame(camera, seen.median.view(shape).cpu(), rgb.cpu(), alpha.cpu(), empty_is_free=True)


def live(checkpoint: Checkpoint, config: Config) -> Callable[[Camera], DepthFrame]:
    """Colour and depth of what a checkpoint holds, the grid or the octree. Raises InputError when it is neither."""
    try:
        if checkpoint.state.get("stage") == "octree":
            octree = octree_of(checkpoint)
            return lambda camera: surface_frame(octree, camera, config)
        grid = grid_of(grid_options(config), Checkpoint(checkpoint.tensors, checkpoint.state["grid"]))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"the checkpoint holds no scene of these options ({error})") from error
    return lambda camera: frame_of(render_grid(grid, camera, torch.zeros(3)), camera)


def counts(scene: Octree) -> tuple[int, int]:
    """How many leaves hold something, and how many numbers hold the scene."""
    return len(scene), scene.sigmas.numel() + scene.sh_coeffs.numel()
