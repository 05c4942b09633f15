"""The state of a training run of Gaussians: how it becomes a checkpoint, and a checkpoint it.

`recon/gaussians.py` is the method; this is what it keeps between two steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from data.captures import Capture
from recon.exposure import Exposures
from recon.photo_cache import PhotoCache
from scene.errors import InputError, is_out_of_memory
from scene.gaussians import Gaussians
from scene.ops import gsplat_raster, native
from scene.ops.splat_step import AdamState, SplatStep, Statistics

if TYPE_CHECKING:
    from recon.gaussians import Config


@dataclass(frozen=True)
class Checkpoint:
    """Everything that training needs to go on as if it had not been stopped: tensors, and a JSON-able state."""

    tensors: dict[str, Tensor]
    state: dict[str, float | int | str]


@dataclass
class Trainer:
    """The state of one training run; `train` drives it."""

    capture: Capture
    photos: PhotoCache
    config: Config
    step: SplatStep
    exposures: Exposures | None
    generator: torch.Generator
    extent: float
    queue: Tensor  # views still to come in this epoch
    first_count: int
    cap: int  # on the count of splats
    done: int = 0
    seconds: float = 0.0
    refined: tuple[int, float] = (0, 0.0)  # step and progress of the last refinement
    watched: int = 0
    psnr: float | None = None
    loss: Tensor | float = math.nan  # on the device; reading it waits for the step, so only reports do
    _v_image: Tensor | None = None

    def v_image_like(self, image: Tensor) -> Tensor:
        """The kept buffer for the gradient by the picture."""
        if self._v_image is None or self._v_image.shape != image.shape:
            self._v_image = torch.empty_like(image)
        return self._v_image


def checkpoint_of(trainer: Trainer) -> Checkpoint:
    """The whole state as tensors on the CPU and plain numbers; they may be the live ones: write before going on."""
    step, statistics = trainer.step, trainer.step.statistics
    if len(statistics.score) != len(step.gaussians):  # memory ran out while SplatStep.replace made new ones
        statistics = Statistics.zeros(len(step.gaussians))
    tensors = {
        "queue": trainer.queue,
        "generator": trainer.generator.get_state(),
        "score": statistics.score,
        "seen": statistics.seen,
        "radius": statistics.radius,
    }
    for name, value in step.gaussians.parameters().items():
        tensors[f"gaussians.{name}"] = value
        tensors[f"exp_avg.{name}"] = step.adam.exp_avg[name]
        tensors[f"exp_avg_sq.{name}"] = step.adam.exp_avg_sq[name]
    if trainer.exposures is not None:
        tensors |= {f"exposures.{name}": value for name, value in trainer.exposures.tensors().items()}
    state = {
        "step": trainer.done,
        "steps": trainer.config.steps,
        "seconds": trainer.seconds,
        "adam_steps": step.adam.steps,
        "refined_step": trainer.refined[0],
        "refined_progress": trainer.refined[1],
        "first_count": trainer.first_count,
        "cap": trainer.cap,
        "watched": trainer.watched,
        "extent": trainer.extent,
        "loss": float(trainer.loss),
    }
    return Checkpoint({name: value.cpu() for name, value in tensors.items()}, state)


def check(config: Config, device: torch.device) -> None:
    """Raises InputError when the rasterizer asked for cannot be used on `device`."""
    if config.rasterizer == "gsplat":
        gsplat_raster.check(device)


def explain(config: Config, device: torch.device) -> str:
    """One line: what draws the splats on `device`, its first word being the backend."""
    return gsplat_raster.explain() if config.rasterizer == "gsplat" else native.explain(device)


def step_of(gaussians: Gaussians, adam: AdamState, config: Config) -> SplatStep:
    """A training step by the rasterizer asked for."""
    check(config, gaussians.means.device)
    if config.rasterizer == "gsplat":
        return SplatStep(gaussians, adam, gsplat_raster.GsplatPass())
    return SplatStep(gaussians, adam)


def restored(capture: Capture, config: Config, checkpoint: Checkpoint, device: torch.device) -> Trainer:
    """The state that `checkpoint_of` saved. Raises InputError when it does not fit this capture and config."""
    if checkpoint.state.get("steps") != config.steps:
        raise InputError(
            f"the checkpoint was made for {checkpoint.state.get('steps')} steps, not {config.steps}; resume with its "
            "options"
        )
    try:
        return unpacked(capture, config, checkpoint, device)
    except (KeyError, TypeError, ValueError, OverflowError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        raise InputError(
            f"the checkpoint does not hold a state of this method ({error}); start again in a new --out"
        ) from error


def unpacked(capture: Capture, config: Config, checkpoint: Checkpoint, device: torch.device) -> Trainer:
    """The state that `checkpoint_of` saved. Raises many errors when it is none."""
    tensors, state = checkpoint.tensors, checkpoint.state

    def group(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

    def moved(prefix: str) -> dict[str, Tensor]:
        return {name: value.to(device) for name, value in group(prefix).items()}

    gaussians = Gaussians(**moved("gaussians."))
    step = step_of(gaussians, AdamState(moved("exp_avg."), moved("exp_avg_sq."), int(state["adam_steps"])), config)
    step.statistics.score.copy_(tensors["score"])
    step.statistics.seen.copy_(tensors["seen"])
    step.statistics.radius.copy_(tensors["radius"])
    generator = torch.Generator()
    generator.set_state(tensors["generator"])
    exposures = group("exposures.")
    return Trainer(
        capture,
        PhotoCache(capture, device),
        config,
        step,
        Exposures.from_tensors(exposures, capture.train).to(device) if exposures else None,
        generator,
        float(state["extent"]),
        queue=tensors["queue"],
        first_count=int(state["first_count"]),
        cap=min(int(state.get("cap", config.max_splats)), config.max_splats),  # older checkpoints have none
        done=int(state["step"]),
        seconds=float(state["seconds"]),
        refined=(int(state["refined_step"]), float(state["refined_progress"])),
        watched=int(state["watched"]),
        loss=float(state["loss"]),
    )


def brightest(checkpoint: Checkpoint, cap: int) -> Checkpoint:
    """A checkpoint with the `cap` most opaque of its splats, and statistics that start again."""
    tensors = dict(checkpoint.tensors)
    kept = tensors["gaussians.opacity_logits"].topk(cap).indices.sort().values
    for name in tensors:
        if name.startswith(("gaussians.", "exp_avg")):
            tensors[name] = tensors[name][kept]
    for name in ("score", "seen", "radius"):
        tensors[name] = tensors[name].new_zeros(cap)
    return Checkpoint(tensors, {**checkpoint.state, "cap": cap})
