"""Words to a scene: views of it are drawn, a prior says what it would change about them, and Adam follows.

The step of DreamFusion (2209.14988), with several views as in MVDream (2308.16512), and after it one of VSD's second
model (2305.16213, algorithm 1). What is distilled is a target (`scenes.py`), by any method of `distill.py`; defaults
are those of the bank prior. A distillation may stop anywhere and go on from a checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from generation.adam_state import adam_tensors, placed_like, restore_adam, under
from generation.distill import distil, source_condition
from generation.guidance import Guidance
from generation.guidance_schedules import Number, Times, at
from generation.opening import Opened, Opening, Sampler, follow, opened, opening_cameras, opening_draws
from generation.priors import Prior
from generation.regularisers import opaqueness, sparsity, total_variation
from generation.scenes import Rings, Seen, Target, draw_views
from generation.second_model import SecondConfig, second_model
from generation.view_prompts import ViewRule, prompts_for
from generation.views import ViewRange
from scene.errors import InputError

BETAS, EPS = (0.9, 0.99), 1e-15
BANK_GUIDANCE = Guidance("x0", 1.0, "x0", Times("linear", 0.02, 0.98))


@dataclass(frozen=True)
class Stage:
    """From a share of the run on: pixels of a view's side, and voxels along the edge of a grid."""

    start: float
    pixels: int
    voxels: int


@dataclass(frozen=True)
class Config:
    """How a scene is distilled.

    sets: of views, in each step.  backgrounds: colours in 0..1 of which a step's views share one; those of the bank
    prior, where it is one.  sparsity, opaqueness: weights of a pixel's opacity beside its colours, total_variation: of
    its differences from its neighbours (`regularisers.py`).  second: of VSD.  opening: views of the prior's own that
    come first, None for none.
    """

    guidance: Guidance = BANK_GUIDANCE
    steps: int = 250
    sets: int = 1
    stages: tuple[Stage, ...] = (Stage(0.0, 32, 32),)
    views: Rings | ViewRange = field(default_factory=Rings)
    rule: ViewRule = field(default_factory=lambda: ViewRule(words=False))
    negative: str | None = None
    backgrounds: tuple[tuple[float, float, float], ...] = ((1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    sparsity: Number = 0.08
    opaqueness: Number = 0.0
    total_variation: Number = 0.0
    second: SecondConfig = field(default_factory=SecondConfig)
    opening: Opening | None = None
    seed: int = 0


class Step(NamedTuple):
    """What a step was: its loss, time t, and its pictures [V, 3, H, W] beside what the prior takes them for."""

    step: int
    loss: float
    t: float
    seen: Tensor
    wanted: Tensor | None


@dataclass(frozen=True)
class Checkpoint:
    """What goes on where it stopped: scene, second model, Adam's moments, generator; and the next step's number."""

    tensors: dict[str, Tensor]
    state: dict[str, Any]


class Distillation:
    """One scene at work. `next` is the number of the step to come, of `config.steps`."""

    def __init__(
        self,
        prompt: str,
        prior: Prior,
        target: Target,
        config: Config,
        *,
        image: Tensor | None = None,
        opening: Opened | None = None,
    ) -> None:
        """image: [3, H, W] in 0..1, a picture of what is wanted, for priors that take one.  opening: the views that
        `config.opening` would choose, where they have been drawn.

        Raises InputError where the method is VSD and the prior's network cannot be adapted, or where the scene is to
        open with views of a prior that draws none.
        """
        if config.opening is not None and not isinstance(prior, Sampler):
            raise InputError(f"the prior {prior.name} draws no views by itself, so a scene cannot open with them")
        self.prompt, self.prior, self.target, self.config, self.image = prompt, prior, target, config, image
        self.next, self._last = 0, 0  # a run with a time limit leaves out numbers
        self._opened = opening
        self.generator = torch.Generator().manual_seed(config.seed)
        self.optimizer = self._new_optimizer()
        vsd = config.guidance.method == "vsd"
        self.second = second_model(prior, config.second, config.seed + 1) if vsd else None

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
        shown = self.shown(step)
        if shown is None:
            sets = [draw_views(config.views, stage.pixels, prior.views, self.generator) for _ in range(config.sets)]
            cameras = tuple(camera for views in sets for camera in views)
            which = int(torch.randint(len(config.backgrounds), (), generator=self.generator))
            background = torch.tensor(config.backgrounds[which])
        else:
            cameras, background = opening_cameras(stage.pixels, prior.views), shown.background
        seen = self.target.render(cameras, background, self.generator)
        prompts = prompts_for(self.prompt, cameras, config.rule, negative=config.negative, image=self.image)
        if shown is None:
            found = distil(
                prior,
                seen.rgb,
                prompts,
                config.guidance,
                step=step,
                steps=config.steps,
                generator=self.generator,
                source=None if self.second is None else self.second.predictor(seen.rgb),
            )
        else:
            found = follow(prior, seen.rgb, shown.pictures)
        pixels = found.gradient.shape[-2] * found.gradient.shape[-1]
        loss = found.loss + pixels * self._regularised(seen)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        if self.second is not None:
            self.second.learn(found.z, source_condition(prompts), self.generator)
        self.next, self._last = step + 1, step
        with torch.no_grad():
            wanted = None if found.clean is None else prior.decode(found.clean)
        return Step(step, float(loss.detach()), float(found.t.mean()), seen.rgb.detach(), wanted)

    def shown(self, step: int) -> Opened | None:
        """The views that the scene follows at a step, drawn when they are first needed; None once it is distilled."""
        config, opening = self.config, self.config.opening
        if opening is None or step >= opening.share * config.steps:
            return None
        if self._opened is None:
            assert isinstance(self.prior, Sampler)
            self._opened = opened(self.prior, self.prompt, opening, opening_draws(config.seed), image=self.image)
        return self._opened

    def checkpoint(self) -> Checkpoint:
        """Where it stands after the last step."""
        parameters = self.target.parameters()
        tensors = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        tensors |= {f"adam.{key}": value for key, value in adam_tensors(self.optimizer, parameters).items()}
        if self.second is not None:
            tensors |= {f"second.{key}": value for key, value in self.second.tensors().items()}
        tensors |= {f"target.{key}": value for key, value in self.target.memory().items()}
        tensors["generator"] = self.generator.get_state()
        return Checkpoint(tensors, {"step": self.next, "last": self._last})

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint of the same prompt, prior and config. Raises InputError where it does not fit."""
        tensors = checkpoint.tensors
        try:
            self.next, self._last = int(checkpoint.state["step"]), int(checkpoint.state["last"])
            if self.next:
                self.target.refined(self.stage(self._last).voxels)
            self.optimizer = self._new_optimizer()
            parameters = self.target.parameters()
            with torch.no_grad():
                for name, parameter in parameters.items():
                    parameter.copy_(placed_like(tensors[name], parameter))
            self.target.recall(under("target.", tensors))
            restore_adam(self.optimizer, parameters, under("adam.", tensors))
            if self.second is not None:
                self.second.restore(under("second.", tensors))
            self.generator.set_state(tensors["generator"].cpu())
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"the checkpoint does not belong to this scene ({error}); start a new run") from error

    def _regularised(self, seen: Seen) -> Tensor:
        """The weighted regularisers of a step's views; those of weight 0 are not computed."""
        config = self.config
        terms = (
            (config.sparsity, sparsity, seen.opacity),
            (config.opaqueness, opaqueness, seen.opacity),
            (config.total_variation, total_variation, seen.rgb),
        )
        weighted = [at(weight, self.next) * term(of) for weight, term, of in terms if at(weight, self.next) != 0]
        return sum(weighted, seen.rgb.new_zeros(()))

    def _rates(self, step: int) -> list[float]:
        return list(self.target.rates(step / self.config.steps).values())

    def _new_optimizer(self) -> torch.optim.Adam:
        groups = [{"params": [tensor], "lr": 0.0} for tensor in self.target.parameters().values()]
        return torch.optim.Adam(groups, betas=BETAS, eps=EPS)
