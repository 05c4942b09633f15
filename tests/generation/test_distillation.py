"""A distillation that stops and goes on is the one that nobody stopped, bit for bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from generation.bank_prior import BankConfig, BankPrior
from generation.distillation import Checkpoint, Config, Distillation, Stage
from generation.scenes import GridConfig, GridTarget, Rings
from generation.text_to_scene import distil_scene
from scene.errors import InputError

PROMPT = "a yellow mug"
BANK = BankConfig(members=2, mixed=2, size=16, samples=1)
CONFIG = Config(steps=6, views=Rings(2, (15.0,)), stages=(Stage(0.0, 12, 8), Stage(0.5, 16, 12)), seed=3)


def work(config: Config = CONFIG) -> tuple[Distillation, GridTarget]:
    target = GridTarget(GridConfig(voxels=8))
    return Distillation(PROMPT, BankPrior([PROMPT], BANK), target, config), target


@pytest.mark.parametrize("at", [0, 1, 3, 4])
def test_a_run_that_stopped_anywhere_ends_as_the_unbroken_one(at: int) -> None:
    whole, wanted = work()
    while whole.next < CONFIG.steps:
        whole.advance()
    first, _ = work()
    for _ in range(at):
        first.advance()
    kept = first.checkpoint()
    first_next, _ = work()
    again, found = work()
    again.restore(kept)
    assert again.next == at and first_next.next == 0
    while again.next < CONFIG.steps:
        again.advance()
    for name, tensor in wanted.parameters().items():
        assert torch.equal(found.parameters()[name], tensor), name
    assert found.grid.frame.size == (12, 12, 12)


def test_it_does_what_words_to_a_scene_does() -> None:
    target = GridTarget(GridConfig(voxels=8))
    distil_scene(PROMPT, BankPrior([PROMPT], BANK), target, CONFIG)
    own, found = work()
    while own.next < CONFIG.steps:
        own.advance()
    assert torch.equal(found.grid.density, target.grid.density) and torch.equal(
        found.grid.features, target.grid.features
    )


def test_a_checkpoint_of_another_scene_is_refused() -> None:
    first, _ = work()
    first.advance()
    kept = first.checkpoint()
    other, _ = work(replace(CONFIG, stages=(Stage(0.0, 12, 10),)))
    with pytest.raises(InputError, match="does not belong"):
        other.restore(kept)
    for missing in ("density", "generator"):
        tensors = {name: tensor for name, tensor in kept.tensors.items() if name != missing}
        with pytest.raises(InputError, match="does not belong"):
            work()[0].restore(Checkpoint(tensors, kept.state))
