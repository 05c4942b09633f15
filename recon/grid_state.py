"""What a training of a voxel grid goes on from after it was stopped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from data.captures import Capture
from recon.grid_recipes import COARSE, RECIPES, GridOptions, Recipe
from recon.grid_scenes import GridScene
from recon.grid_stages import VIEW_NUMBERS, Trainer, draw_hits
from recon.ray_pool import RayPool
from scene.errors import InputError, is_out_of_memory
from scene.grid_step import GridStep
from scene.ops.color_mlp import ColorMlp
from scene.ops.grid_march import pack_bits, unpack_bits
from scene.ray_space import GridFrame, Space
from scene.voxel_grid import Head, VoxelGrid, live_rows


@dataclass(frozen=True)
class Checkpoint:
    """What a training goes on from: tensors for safetensors, state for JSON."""

    tensors: Mapping[str, Tensor]
    state: Mapping[str, Any]


def checkpoint_of(trainer: Trainer) -> Checkpoint:
    """Everything that the rest of the training depends on."""
    step = trainer.step
    grid = step.grid
    tensors = {
        "density": grid.density,
        "shifts": grid.shifts,
        "features": grid.features,
        "occupied": pack_bits(grid.occupied),
        "entry": pack_bits(trainer.entry),
        "box": trainer.scene.box,
        "frame_from_world": trainer.scene.space.frame_from_world,
        "generator": trainer.generator.get_state(),
        "error": trainer.error.reshape(1),
    }
    if grid.mlp is not None:
        tensors |= {f"mlp.{i}": tensor for i, tensor in enumerate(grid.mlp)}
    for name, (first, second) in step.moments.items():
        tensors |= {f"{name}.exp_avg": first, f"{name}.exp_avg_sq": second}
    if step.rates is not None:
        tensors["rates"] = step.rates
    state = {
        "step": trainer.done,
        "steps": trainer.options.steps,
        "seconds": trainer.seconds,
        "stage": trainer.stage,
        "adam_step": step.step,
        "size": list(grid.frame.size),
        "final_size": list(trainer.final_size),
        "entry_size": list(trainer.entry.shape),
        "interval": grid.interval,
        "space": trainer.scene.kind,
        "lens": list(trainer.scene.space.lens),
        "space_near": trainer.scene.space.near,
        "near": trainer.scene.near,
        **{name: getattr(trainer, name) for name in ("began_at", "doubled", "rays", "pruned")},
    }
    return Checkpoint(tensors, state)


def restored(capture: Capture, options: GridOptions, device: torch.device, checkpoint: Checkpoint) -> Trainer:
    """The training where the checkpoint left it. Raises InputError when it does not fit the options."""
    if checkpoint.state.get("steps") != options.steps:
        raise InputError(
            f"the checkpoint was made for {checkpoint.state.get('steps')} steps, not {options.steps}; resume with its "
            "options"
        )
    try:
        return _unpacked(capture, options, device, checkpoint)
    except (KeyError, TypeError, ValueError, RuntimeError, IndexError, OverflowError) as error:
        if is_out_of_memory(error):
            raise
        raise InputError(f"the checkpoint does not fit this training ({error}); start again in a new --out") from error


def grid_of(options: GridOptions, checkpoint: Checkpoint) -> VoxelGrid:
    """The grid that a checkpoint of these options holds, on the CPU. Raises InputError when it is none."""
    try:
        return _grid(options, checkpoint)
    except (KeyError, TypeError, ValueError, RuntimeError, IndexError, OverflowError) as error:
        if is_out_of_memory(error):
            raise
        raise InputError(f"the checkpoint holds no voxel grid of these options ({error})") from error


def _recipe(state: Mapping[str, Any]) -> Recipe:
    return COARSE if state["stage"] == "coarse" else RECIPES[state["space"]]


def _grid(options: GridOptions, checkpoint: Checkpoint) -> VoxelGrid:
    tensors, state = checkpoint.tensors, checkpoint.state
    space = Space(state["space"], tensors["frame_from_world"], tuple(state["lens"]), state["space_near"])
    recipe, size = _recipe(state), _three(state["size"])
    occupied = unpack_bits(tensors["occupied"], size[2])
    head: Head = options.head if state["stage"] == "fine" else "rgb"
    mlp = ColorMlp(*(tensors[f"mlp.{i}"].clone() for i in range(6))) if head == "mlp" else None
    grid = VoxelGrid(
        GridFrame(space, tensors["box"], size),
        tensors["density"].clone(),
        tensors["shifts"],
        occupied,
        live_rows(occupied),
        tensors["features"].clone(),
        head,
        mlp,
        state["interval"],
        recipe.threshold,
        recipe.step,
        state["near"],
    )
    _check_grid(grid, options)
    return grid


def _unpacked(capture: Capture, options: GridOptions, device: torch.device, checkpoint: Checkpoint) -> Trainer:
    tensors, state = checkpoint.tensors, checkpoint.state
    grid, stage, recipe = _grid(options, checkpoint), state["stage"], _recipe(state)
    space, entry_size = grid.frame.space, _three(state["entry_size"])
    scene = GridScene(space, tensors["box"], None, state["near"])
    entry, rates = unpack_bits(tensors["entry"], entry_size[2]), tensors.get("rates")
    _check_shape("entry", entry, entry_size)
    if rates is not None:
        _check_shape("rates", rates, grid.frame.size)
    grid = grid.to(device=device)
    step = GridStep(grid, None if rates is None else rates.to(device))
    step.step = state["adam_step"]
    for name, moments in step.moments.items():
        for moment, kept in zip(moments, ("exp_avg", "exp_avg_sq"), strict=True):
            _check_shape(f"{name}.{kept}", tensors[f"{name}.{kept}"], tuple(moment.shape))
            moment.copy_(tensors[f"{name}.{kept}"])
    generator = torch.Generator()
    generator.set_state(tensors["generator"])
    trainer = Trainer(
        capture,
        options,
        device,
        scene,
        RayPool(capture, device),
        generator,
        stage,
        step,
        recipe,
        _three(state["final_size"]),
        entry.to(device),
        state["step"],
        state["seconds"],
        state["began_at"],
        state["doubled"],
        state["rays"],
        state["pruned"],
        tensors["error"][0].clone(),
    )
    _check_numbers(trainer)
    if stage == "fine":
        entry_frame = GridFrame(space, tensors["box"], entry_size).to(device)
        draw_hits(trainer.pool, entry_frame, trainer.entry, recipe.step, scene.near)
    return trainer


def _check_grid(grid: VoxelGrid, options: GridOptions) -> None:
    """Kernels trust the arrays of a training. Raises ValueError where they do not fit each other or the options."""
    size = grid.frame.size
    channels = 3 if grid.head == "rgb" else options.channels
    _check_shape("box", grid.frame.box, (2, 3))
    _check_shape("density", grid.density, size)
    _check_shape("occupied", grid.occupied, size)
    _check_shape("shifts", grid.shifts, size[2:])
    _check_shape("features", grid.features, (max(1, int(grid.rows.max()) + 1), channels))
    if grid.mlp is not None:
        wanted = ColorMlp.drawn(channels, VIEW_NUMBERS, options.width, torch.Generator())
        for i, (mine, theirs) in enumerate(zip(grid.mlp, wanted, strict=True)):
            _check_shape(f"mlp.{i}", mine, tuple(theirs.shape))
    if min(size) < 2 or not bool((grid.frame.box[1] > grid.frame.box[0]).all()) or not grid.interval > 0:
        raise ValueError("a box or voxels without size")


def _check_shape(name: str, tensor: Tensor, wanted: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != tuple(wanted):
        raise ValueError(f"{name} is {tuple(tensor.shape)}, not {tuple(wanted)}")


def _check_numbers(trainer: Trainer) -> None:
    options, doublings = trainer.options, len(trainer.recipe.doublings)
    if trainer.stage not in ("coarse", "fine") or not (0 <= trainer.done <= options.steps and trainer.step.step >= 0):
        raise ValueError(f"step {trainer.done} of the stage {trainer.stage}")
    if not (0 <= trainer.doubled <= doublings and 1 <= trainer.rays <= options.rays and trainer.pruned >= 0):
        raise ValueError(f"{trainer.doubled} doublings, {trainer.rays} rays")
    if not (trainer.seconds >= 0 and 0 <= trainer.began_at < 1):
        raise ValueError(f"{trainer.seconds} seconds, a stage from {trainer.began_at} on")


def _three(numbers: list[int]) -> tuple[int, int, int]:
    x, y, z = numbers
    return x, y, z
