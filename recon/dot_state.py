"""The state of a training run of DOT: how it becomes a checkpoint, and a checkpoint it.

`recon/dot.py` is the method; this is what it keeps between two photos.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from data.captures import Capture
from recon.grid_training import Checkpoint
from recon.photo_cache import PhotoCache
from scene.errors import InputError
from scene.octree import Octree
from scene.octree_step import OctreeStep

if TYPE_CHECKING:
    from recon.dot import Config

PLAIN = ("baked", "done", "seconds", "began", "splits", "error", "epoch_error")


@dataclass
class Trainer:
    """The octree's training at work; the grid's is `recon/grid_training.py`."""

    capture: Capture
    config: Config
    photos: PhotoCache
    step: OctreeStep
    generator: torch.Generator
    queue: Tensor  # views still to come in this epoch
    baked: int  # leaves before the first step
    done: int = 0  # photos
    seconds: float = 0.0  # of the whole run
    began: float = 0.0  # seconds at which the octree's training began
    splits: int = 0
    error: float = 0.0  # sum of squared errors over this epoch's photos
    epoch_error: float | None = None  # mean of the last whole epoch


def planned_steps(capture: Capture, config: Config) -> int:
    """Steps of the grid, then one for each photo of each epoch."""
    return config.grid_steps + config.epochs * len(capture.train)


def checkpoint_of(trainer: Trainer) -> Checkpoint:
    """Everything that the rest of the training depends on."""
    step, index = trainer.step, trainer.step.octree.index
    tensors = {
        "codes": index.codes,
        "levels": index.levels,
        "frame": index.frame,
        "sigmas": step.octree.sigmas,
        "sh_coeffs": step.octree.sh_coeffs,
        "sigma_moments": step.sigma_moments,
        "sh_moments": step.sh_moments,
        "weights": step.weights,
        "maxima": step.maxima,
        "queue": trainer.queue,
        "generator": trainer.generator.get_state(),
    }
    state = {
        "stage": "octree",
        "step": trainer.config.grid_steps + trainer.done,
        "steps": planned_steps(trainer.capture, trainer.config),
        "adam_steps": step.steps,
        **{name: getattr(trainer, name) for name in PLAIN},
    }
    return Checkpoint({name: value.detach().cpu() for name, value in tensors.items()}, state)


def octree_of(checkpoint: Checkpoint, device: torch.device | str = "cpu") -> Octree:
    """The octree that a checkpoint holds. Raises KeyError, TypeError, ValueError and RuntimeError where it is none."""
    names = ("codes", "levels", "sigmas", "sh_coeffs", "frame")
    codes, levels, sigmas, sh_coeffs, frame = (checkpoint.tensors[name].to(device) for name in names)
    return Octree.of(codes, levels, sigmas, sh_coeffs, frame[:3], frame[3:])


def restored(capture: Capture, config: Config, device: torch.device, checkpoint: Checkpoint) -> Trainer:
    """The training where the checkpoint left it. Raises InputError when it does not fit the options."""
    tensors, state = checkpoint.tensors, checkpoint.state
    steps = planned_steps(capture, config)
    if state.get("steps") != steps:
        raise InputError(
            f"the checkpoint was made for {state.get('steps')} steps, not {steps}; resume with its options"
        )
    try:
        step = OctreeStep(octree_of(checkpoint, device), int(state["adam_steps"]))
        for name in ("sigma_moments", "sh_moments", "weights", "maxima"):
            getattr(step, name).copy_(tensors[name])
        generator = torch.Generator()
        generator.set_state(tensors["generator"])
        trainer = Trainer(capture, config, PhotoCache(capture, device), step, generator, tensors["queue"].clone(), 1)
        for name in PLAIN:
            setattr(trainer, name, state[name])
        return trainer
    except (KeyError, TypeError, ValueError, RuntimeError, IndexError) as error:
        raise InputError(f"the checkpoint does not fit this training ({error}); start again in a new --out") from error
