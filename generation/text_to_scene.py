"""Words to a scene: the loop over the steps of `distillation.py`, as one call or as a run that tells and resumes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from generation.distillation import Checkpoint, Config, Distillation, Step
from generation.priors import Prior
from generation.scenes import Target
from scene.errors import Interrupted
from scene.runs import StepReport

REPORT_SECONDS = 0.5


@dataclass(frozen=True)
class Hooks:
    """What a run is told and asked: every step, reports, checkpoints each `save_seconds`, and whether to stop."""

    on_step: Callable[[StepReport], None] = lambda report: None
    on_pictures: Callable[[Step], None] = lambda step: None
    save: Callable[[Checkpoint], None] = lambda checkpoint: None
    stop: Callable[[], bool] = lambda: False
    save_seconds: float = 10.0


def distil_scene(
    prompt: str,
    prior: Prior,
    target: Target,
    config: Config | None = None,
    *,
    on_step: Callable[[Step], None] = lambda step: None,
    stop: Callable[[], bool] = lambda: False,
) -> int:
    """Changes `target` until it looks like the prompt; returns the number of steps that were taken.

    Reproducible on the CPU.  Raises InputError for what the prior does not know.
    """
    work = Distillation(prompt, prior, target, config or Config())
    while work.next < work.config.steps and not stop():
        on_step(work.advance())
    return work.next


def distilled(
    work: Distillation,
    hooks: Hooks,
    *,
    pieces: Callable[[], int] = lambda: 0,
    resume: Checkpoint | None = None,
    max_seconds: float | None = None,
) -> None:
    """The rest of `work`, from `resume` on. With a time limit the steps that it has no time for are left out.

    pieces: how many parts the scene has.  Raises Interrupted when `hooks.stop()` says so, after saving.
    """
    steps, spent = work.config.steps, 0.0
    if resume is not None:
        work.restore(resume)
        spent = float(resume.state.get("seconds", 0.0))
    last_save = time.monotonic()
    began = last_save - spent
    last_report, first = 0.0, work.next

    def checkpoint() -> Checkpoint:
        found = work.checkpoint()
        return Checkpoint(found.tensors, {**found.state, "steps": steps, "seconds": time.monotonic() - began})

    while work.next < steps:
        step = work.advance()
        now = time.monotonic()
        if max_seconds is not None:
            work.next = min(steps, max(work.next, int((now - began) / max_seconds * steps)))
        hooks.on_pictures(step)
        if hooks.stop():
            hooks.save(checkpoint())
            raise Interrupted(f"stopped after {work.next} steps; --resume goes on from there")
        if now - last_save > hooks.save_seconds:
            hooks.save(checkpoint())
            last_save = now
        if now - last_report > REPORT_SECONDS or work.next == steps:
            last_report = now
            left = (now - began - spent) / max(1, work.next - first) * (steps - work.next)
            hooks.on_step(StepReport(work.next, steps, step.loss, None, pieces(), left))
    hooks.save(checkpoint())
