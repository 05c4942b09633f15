"""Words to a scene: views of it are drawn, a prior says what it would change about them, and Adam follows.

The loop of DreamFusion (2209.14988), with several views a step as in MVDream (2308.16512). What is distilled is a
target (`scenes.py`), by any method of `distill.py`; the defaults are those of the bank prior.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from generation.distill import distil
from generation.distill_kernel import Predictor, Prompts
from generation.guidance import Guidance
from generation.guidance_schedules import Number, Times, at
from generation.priors import Prior
from generation.regularisers import sparsity
from generation.scenes import Rings, Seen, Target, draw_views
from generation.view_prompts import ViewRule, prompts_for
from generation.views import ViewRange
from scene.cameras import Camera

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

    sets: of views, in each step.  sparsity: weight of a pixel's opacity beside its colours.  backgrounds: colours in
    0..1 of which a step's views share one; those of a bank prior, where it is one.
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
    seed: int = 0


class Step(NamedTuple):
    """What a step was: its loss, time t, and its pictures [V, 3, H, W] beside what the prior takes them for."""

    step: int
    loss: float
    t: float
    seen: Tensor
    wanted: Tensor | None


def distil_scene(
    prompt: str,
    prior: Prior,
    target: Target,
    config: Config | None = None,
    *,
    source: Callable[[Tensor, Prompts], Predictor] | None = None,
    on_step: Callable[[Step], None] = lambda step: None,
    stop: Callable[[], bool] = lambda: False,
) -> int:
    """Changes `target` until it looks like the prompt; returns the number of steps that were taken.

    source: VSD's second model, from the z of a step's views and their prompts.  Reproducible on the CPU.
    Raises InputError for what the prior does not know.
    """
    config = config or Config()
    generator = torch.Generator().manual_seed(config.seed)
    optimizer = _optimizer(target)
    for step in range(config.steps):
        if stop():
            return step
        share = step / config.steps
        stage = next(each for each in reversed(config.stages) if each.start <= share or each is config.stages[0])
        if target.refined(stage.voxels):
            optimizer = _optimizer(target)
        for group, rate in zip(optimizer.param_groups, target.rates(share).values(), strict=True):
            group["lr"] = rate
        cameras = tuple(
            camera
            for _ in range(config.sets)
            for camera in draw_views(config.views, stage.pixels, prior.views, generator)
        )
        seen = _seen(target, cameras, config, generator)
        prompts = prompts_for(prompt, cameras, config.rule, negative=config.negative)
        second = None if source is None else source(prior.encode(seen.rgb).detach(), prompts)
        found = distil(
            prior,
            seen.rgb,
            prompts,
            config.guidance,
            step=step,
            steps=config.steps,
            generator=generator,
            source=second,
        )
        pixels = found.gradient.shape[-2] * found.gradient.shape[-1]
        loss = found.loss + at(config.sparsity, step) * pixels * sparsity(seen.opacity)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        wanted = None if found.clean is None else prior.decode(found.clean)
        on_step(Step(step, float(loss.detach()), float(found.t.mean()), seen.rgb.detach(), wanted))
    return config.steps


def _seen(target: Target, cameras: tuple[Camera, ...], config: Config, generator: torch.Generator) -> Seen:
    """The step's views over one of the backgrounds."""
    which = int(torch.randint(len(config.backgrounds), (), generator=generator))
    return target.render(cameras, torch.tensor(config.backgrounds[which]), generator)


def _optimizer(target: Target) -> torch.optim.Adam:
    groups = [{"params": [tensor], "lr": 0.0} for tensor in target.parameters().values()]
    return torch.optim.Adam(groups, betas=BETAS, eps=EPS)
