"""A distillation that may stop anywhere and go on: `text_to_scene.py` a step at a time, with checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from generation.distill import distil
from generation.guidance_schedules import at
from generation.priors import Prior
from generation.regularisers import sparsity
from generation.scenes import Target, draw_views
from generation.text_to_scene import BETAS, EPS, Config, Stage, Step
from generation.view_prompts import prompts_for
from scene.errors import InputError


@dataclass(frozen=True)
class Checkpoint:
    """What goes on where it stopped: scene, Adam's moments and the generator; and the number of the next step."""

    tensors: dict[str, Tensor]
    state: dict[str, Any]


class Distillation:
    """One scene at work. `next` is the number of the step to come, of `config.steps`."""

    def __init__(
        self, prompt: str, prior: Prior, target: Target, config: Config, *, image: Tensor | None = None
    ) -> None:
        """image: [3, H, W] in 0..1, a picture of what is wanted, for priors that take one."""
        self.prompt, self.prior, self.target, self.config, self.image = prompt, prior, target, config, image
        self.next, self._last = 0, 0  # a run with a time limit leaves out numbers
        self.generator = torch.Generator().manual_seed(config.seed)
        self.optimizer = self._new_optimizer()

    def stage(self, step: int) -> Stage:
        """How fine the scene and its pictures are at a step."""
        stages, share = self.config.stages, step / self.config.steps
        return next((stage for stage in reversed(stages) if stage.start <= share), stages[0])

    def advance(self) -> Step:
        """One step. Raises InputError for what the prior does not know."""
        step, config, prior = self.next, self.config, self.prior
        stage = self.stage(step)
        if self.target.refined(stage.voxels):
            self.optimizer = self._new_optimizer()
        for group, rate in zip(self.optimizer.param_groups, self._rates(step), strict=True):
            group["lr"] = rate
        sets = [draw_views(config.views, stage.pixels, prior.views, self.generator) for _ in range(config.sets)]
        cameras = tuple(camera for views in sets for camera in views)
        which = int(torch.randint(len(config.backgrounds), (), generator=self.generator))
        seen = self.target.render(cameras, torch.tensor(config.backgrounds[which]), self.generator)
        prompts = prompts_for(self.prompt, cameras, config.rule, negative=config.negative, image=self.image)
        found = distil(
            prior, seen.rgb, prompts, config.guidance, step=step, steps=config.steps, generator=self.generator
        )
        pixels = found.gradient.shape[-2] * found.gradient.shape[-1]
        loss = found.loss + at(config.sparsity, step) * pixels * sparsity(seen.opacity)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.next, self._last = step + 1, step
        with torch.no_grad():
            wanted = None if found.clean is None else prior.decode(found.clean)
        return Step(step, float(loss.detach()), float(found.t.mean()), seen.rgb.detach(), wanted)

    def checkpoint(self) -> Checkpoint:
        """Where it stands after the last step."""
        tensors = {"generator": self.generator.get_state()}
        for name, parameter in self.target.parameters().items():
            tensors[name] = parameter.detach().clone()
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"adam.{key}.{name}"] = torch.as_tensor(value).clone()
        return Checkpoint(tensors, {"step": self.next, "last": self._last})

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint of the same prompt, prior and config. Raises InputError where it does not fit."""
        tensors = checkpoint.tensors
        try:
            self.next, self._last = int(checkpoint.state["step"]), int(checkpoint.state["last"])
            if self.next:
                self.target.refined(self.stage(self._last).voxels)
            self.optimizer = self._new_optimizer()
            for name, parameter in self.target.parameters().items():
                with torch.no_grad():
                    parameter.copy_(_like(tensors[name], parameter))
                moments = {
                    key.split(".")[1]: value
                    for key, value in tensors.items()
                    if key.startswith("adam.") and key.endswith(f".{name}")
                }
                if moments:
                    steps = moments.pop("step")
                    moments = {key: _like(value, parameter) for key, value in moments.items()}
                    self.optimizer.state[parameter] = {"step": steps, **moments}
            self.generator.set_state(tensors["generator"].cpu())
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"the checkpoint does not belong to this scene ({error}); start a new run") from error

    def _rates(self, step: int) -> list[float]:
        return list(self.target.rates(step / self.config.steps).values())

    def _new_optimizer(self) -> torch.optim.Adam:
        groups = [{"params": [tensor], "lr": 0.0} for tensor in self.target.parameters().values()]
        return torch.optim.Adam(groups, betas=BETAS, eps=EPS)


def _like(tensor: Tensor, parameter: Tensor) -> Tensor:
    if tensor.shape != parameter.shape:
        raise ValueError(f"{tuple(tensor.shape)} where {tuple(parameter.shape)} was expected")
    return tensor.to(parameter)
