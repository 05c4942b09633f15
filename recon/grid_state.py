"""What a training of a voxel grid goes on from after it was stopped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from data.captures import Capture
from recon.grid_recipes import COARSE, RECIPES, GridOptions
from recon.grid_scenes import GridScene
from recon.grid_stages import Trainer, draw_hits
from recon.ray_pool import RayPool
from scene.errors import InputError
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
    tensors, state = checkpoint.tensors, checkpoint.state
    try:
        space = Space(state["space"], tensors["frame_from_world"], tuple(state["lens"]), state["space_near"])
        scene = GridScene(space, tensors["box"], None, state["near"])
        stage, recipe = state["stage"], COARSE if state["stage"] == "coarse" else RECIPES[state["space"]]
        size, entry_size = _three(state["size"]), _three(state["entry_size"])
        occupied = unpack_bits(tensors["occupied"], size[2])
        fine = stage == "fine"
        head: Head = options.head if fine else "rgb"
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
        ).to(device=device)
        step = GridStep(grid, tensors["rates"].to(device) if "rates" in tensors else None)
        step.step = state["adam_step"]
        for name, moments in step.moments.items():
            for moment, kept in zip(moments, ("exp_avg", "exp_avg_sq"), strict=True):
                moment.copy_(tensors[f"{name}.{kept}"])
        entry = unpack_bits(tensors["entry"], entry_size[2]).to(device)
        generator = torch.Generator()
        generator.set_state(tensors["generator"])
        pool = RayPool(capture, device)
        if fine:
            draw_hits(pool, GridFrame(space, tensors["box"], entry_size).to(device), entry, recipe.step, scene.near)
        return Trainer(
            capture,
            options,
            device,
            scene,
            pool,
            generator,
            stage,
            step,
            recipe,
            _three(state["final_size"]),
            entry,
            state["step"],
            state["seconds"],
            state["began_at"],
            state["doubled"],
            state["rays"],
            state["pruned"],
            tensors["error"][0].clone(),
        )
    except (KeyError, TypeError, ValueError, RuntimeError, IndexError) as error:
        raise InputError(f"the checkpoint does not fit this training ({error}); start again in a new --out") from error


def _three(numbers: list[int]) -> tuple[int, int, int]:
    x, y, z = numbers
    return x, y, z
