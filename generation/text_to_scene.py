"""Words to a scene in one call: the loop over the steps of `distillation.py`."""

from __future__ import annotations

from collections.abc import Callable

from generation.distillation import Config, Distillation, Step
from generation.priors import Prior
from generation.scenes import Target


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
