"""Voxel grids trained on photos, coarse to fine: the stages that DVGO (Sun et al., 2022) and the grids under an octree
share. `recon/dvgo.py` has the method's options and reasons.

Every schedule runs over progress p in [0, 1), the larger of steps taken over steps planned and seconds spent over
seconds allowed, so that a time budget ends with an annealed scene.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import torch

from data.captures import Capture
from recon.grid_recipes import GridOptions
from recon.grid_stages import Trainer, double, fresh, to_fine
from recon.grid_state import Checkpoint, checkpoint_of, restored
from scene.errors import Interrupted
from scene.grid_step import LearningRates
from scene.runs import StepReport
from scene.voxel_grid import VoxelGrid, dense_alpha, with_occupied

__all__ = ["Checkpoint", "GridOptions", "train_grid"]

LEAST_COARSE, MOST_COARSE = 600, 0.4  # steps of the coarse grid, and progress at which it ends all the same
LEAST_AT_A_SIZE = 300
LEAST_RAYS = 256
PRUNE_EVERY, PRUNE_FROM = 0.025, 0.0125  # of the fine stage: when occupied voxels are looked at again


def train_grid(
    capture: Capture,
    options: GridOptions,
    *,
    device: torch.device | str = "cpu",
    max_seconds: float | None = None,
    on_step: Callable[[StepReport], None] = lambda report: None,
    save: Callable[[Checkpoint], None] = lambda checkpoint: None,
    decide: Callable[[str], None] = lambda sentence: None,
    resume: Checkpoint | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> VoxelGrid:
    """Trains a voxel grid on `capture.train`; it comes back on `device`.

    Arguments as of `recon.gaussians.train`. On the CPU backend and without a time limit a resumed run equals the
    unbroken one bit for bit. Raises InputError where the capture allows no grid, Interrupted when `stop()` says so
    (after saving).
    """
    began = time.monotonic()
    device = torch.device(device)
    trainer = restored(capture, options, device, resume) if resume else fresh(capture, options, device, decide)
    began -= trainer.seconds
    last_save = last_report = time.monotonic()
    while (p := _progress(trainer, max_seconds)) < 1:
        _turn(trainer, p, decide)
        _one_step(trainer, p)
        trainer.done += 1
        now = time.monotonic()
        trainer.seconds = now - began
        if stop():
            save(checkpoint_of(trainer))
            raise Interrupted(f"stopped after {trainer.done} steps; --resume goes on from there")
        if now - last_save > options.checkpoint_seconds:
            save(checkpoint_of(trainer))
            last_save = time.monotonic()
        if now - last_report > 0.5:
            on_step(_report(trainer, max_seconds))
            last_report = now
    save(checkpoint_of(trainer))
    on_step(_report(trainer, max_seconds))
    return _finished(trainer)


def _progress(trainer: Trainer, max_seconds: float | None) -> float:
    share = trainer.done / trainer.options.steps
    return max(share, trainer.seconds / max_seconds) if max_seconds else share


def _least(trainer: Trainer) -> int:
    """Steps that a size is trained for at least: what is doubled sooner is fog, and twice as much of it."""
    return min(LEAST_AT_A_SIZE, trainer.options.steps // 50)


def _may_double(trainer: Trainer, p: float) -> bool:
    """Whether this size has been trained for long enough, and the next one will be: twice the least, at this pace."""
    return trainer.step.step >= _least(trainer) and trainer.done * (1 - p) / max(p, 1e-9) >= 2 * _least(trainer)


def _coarse_is_done(trainer: Trainer, p: float) -> bool:
    """After its share of the run; later where the steps taken are too few, for a fine grid full of fog costs more."""
    share = trainer.options.coarse_share
    return p >= share and (trainer.done >= min(LEAST_COARSE, 0.2 * trainer.options.steps) or p >= MOST_COARSE)


def _in_stage(trainer: Trainer, p: float) -> float:
    """Progress of the stage, 0 to 1."""
    if trainer.stage == "coarse":
        return min(1.0, p / max(1e-9, trainer.options.coarse_share))
    return min(1.0, max(0.0, (p - trainer.began_at) / (1 - trainer.began_at)))


def _one_step(trainer: Trainer, p: float) -> None:
    """Random rays of all photos: march, compare, learn."""
    step, recipe, within = trainer.step, trainer.recipe, _in_stage(trainer, p)
    pool = trainer.pool
    ids = pool.draw(trainer.rays, trainer.generator)
    origins, directions = pool.rays(ids)
    background = torch.ones(3, device=origins.device) if pool.has_alpha else torch.zeros(3, device=origins.device)
    if trainer.scene.kind == "unbounded" and not pool.has_alpha:  # what stays clear must not pass for black
        background = torch.rand(3, generator=trainer.generator).to(origins.device, non_blocking=True)
    target = pool.colors(ids, background)
    grid = step.grid
    spans = grid.frame.spans(origins, directions, grid.step, grid.near)
    fall = 0.1 ** (within if trainer.stage == "fine" else 0.25 * within)
    rates = LearningRates(*(fall * rate for rate in (recipe.rates.density, recipe.rates.features, recipe.rates.mlp)))
    weights = replace(recipe.weights, tv_touched_only=within >= recipe.dense_variation)
    loss = step.take(spans, directions, target, background, weights, rates)
    trainer.rays = _affordable(trainer, step.samples)
    mse = loss.mse.float()  # stays on the device: to read it would wait for the step
    trainer.error = mse if trainer.done == 0 else 0.98 * trainer.error + 0.02 * mse


def _affordable(trainer: Trainer, samples: int) -> int:
    """Rays of the next step: fewer while each sees much fog, so that a step costs about the same from first to last."""
    wanted = int(trainer.options.samples * trainer.rays / max(1, samples))
    return max(min(LEAST_RAYS, trainer.options.rays), min(trainer.options.rays, wanted))


def _turn(trainer: Trainer, p: float, decide: Callable[[str], None]) -> None:
    """Go over to the fine stage, double the voxels, drop those that turned out empty, when it is time."""
    if trainer.stage == "coarse" and _coarse_is_done(trainer, p):
        to_fine(trainer, p, decide)
    if trainer.stage != "fine":
        return
    within = _in_stage(trainer, p)
    doublings = trainer.recipe.doublings
    if trainer.doubled < len(doublings) and within >= doublings[trainer.doubled] and _may_double(trainer, p):
        double(trainer)
    due = int((within - PRUNE_FROM) / PRUNE_EVERY) + 1 if within >= PRUNE_FROM else 0
    if due > trainer.pruned:
        trainer.pruned = due
        grid = trainer.step.grid
        trainer.step.narrowed(grid.occupied & (dense_alpha(grid) > grid.threshold))


def _finished(trainer: Trainer) -> VoxelGrid:
    grid = trainer.step.grid
    kept = with_occupied(grid, grid.occupied & (dense_alpha(grid) > grid.threshold), features_of=grid)
    return kept if bool(kept.occupied.any()) else grid


def _report(trainer: Trainer, max_seconds: float | None) -> StepReport:
    p = max(1e-6, _progress(trainer, max_seconds))
    error = float(trainer.error)
    psnr = -10 * torch.tensor(max(error, 1e-10)).log10().item()
    steps = max(trainer.done, round(trainer.done / p))
    eta = trainer.seconds * (1 - p) / p
    message = "" if trainer.stage == "fine" else "coarse"
    return StepReport(trainer.done, steps, error, psnr, len(trainer.step.grid), eta, message)
