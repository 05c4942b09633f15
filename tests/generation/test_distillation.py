"""A distillation that stops and goes on is the one that nobody stopped, bit for bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load, save

from generation.bank_prior import BankConfig, BankPrior
from generation.distillation import Checkpoint, Config, Distillation, Stage, Step
from generation.guidance import PRESETS
from generation.lora import LoraConfig
from generation.regularisers import opaqueness, sparsity, total_variation
from generation.scenes import GridConfig, GridTarget, HashConfig, HashTarget, Rings, Seen
from generation.second_model import SecondConfig, StandIn
from generation.text_to_scene import distil_scene
from generation.trained_prior import TrainedPrior
from generation.views import orthogonal_cameras
from scene.errors import InputError
from scene.ops.hash_encoding import HashLevels
from tests.generation.prior_toys import toy_network

PROMPT = "a yellow mug"
BANK = BankConfig(members=2, mixed=2, size=16, samples=1)
CONFIG = Config(steps=6, views=Rings(2, (15.0,)), stages=(Stage(0.0, 12, 8), Stage(0.5, 16, 12)), seed=3)
VSD = replace(CONFIG, guidance=PRESETS["vsd"], second=SecondConfig(LoraConfig(rate=1e-2)))


def work(config: Config = CONFIG, *, trained: bool = False) -> tuple[Distillation, GridTarget]:
    """By the bank, or by a trained prior of 8 pixels."""
    target = GridTarget(GridConfig(voxels=8))
    prior = TrainedPrior(toy_network()) if trained else BankPrior([PROMPT], BANK)
    return Distillation(PROMPT, prior, target, config), target


def done(it: Distillation, steps: int = CONFIG.steps) -> list[Step]:
    return [it.advance() for _ in range(steps - it.next)]


def assert_same(found: Checkpoint, wanted: Checkpoint) -> None:
    assert found.state == wanted.state and found.tensors.keys() == wanted.tensors.keys()
    for name, tensor in wanted.tensors.items():
        assert torch.equal(found.tensors[name], tensor), name


@pytest.mark.parametrize("at", [0, 1, 3, 4])
@pytest.mark.parametrize("vsd", [False, True])
def test_a_run_that_stopped_anywhere_ends_as_the_unbroken_one(at: int, vsd: bool) -> None:
    config = VSD if vsd else CONFIG
    whole, wanted = work(config, trained=vsd)
    done(whole)
    first, _ = work(config, trained=vsd)
    done(first, at)
    kept = Checkpoint({k: v.clone() for k, v in first.checkpoint().tensors.items()}, first.checkpoint().state)
    again, found = work(config, trained=vsd)
    again.restore(kept)
    assert again.next == at
    done(again)
    assert_same(again.checkpoint(), whole.checkpoint())
    assert torch.equal(found.grid.density, wanted.grid.density) and found.grid.frame.size == (12, 12, 12)


def test_a_target_that_remembers_more_than_its_parameters_goes_on_as_the_unbroken_one() -> None:
    """A hash grid's occupancy is refreshed every few steps by what was met before."""

    def begun() -> Distillation:
        levels = HashLevels(levels=2, log2_rows=8, base=4)
        target = HashTarget(HashConfig(levels=levels, hidden=8, samples=12, voxels=6, refresh=2))
        return Distillation(PROMPT, BankPrior([PROMPT], BANK), target, CONFIG)

    whole, first, again = begun(), begun(), begun()
    done(whole)
    done(first, 3)
    again.restore(Checkpoint(save_and_load(first.checkpoint().tensors), first.checkpoint().state))
    done(again)
    assert_same(again.checkpoint(), whole.checkpoint())
    assert int(whole.checkpoint().tensors["target.steps"]) == CONFIG.steps
    with pytest.raises(InputError, match="does not belong"):
        begun().restore(Checkpoint(work()[0].checkpoint().tensors, {"step": 0, "last": 0}))


def test_vsds_second_model_learns_beside_the_scene_and_is_kept_in_plain_tensors() -> None:
    it, _ = work(VSD, trained=True)
    before = it.checkpoint().tensors
    done(it, 2)
    after = save_and_load(it.checkpoint().tensors)
    adapters = [name for name in before if name.startswith("second.lora.")]
    assert len(adapters) > 10 and not any(torch.equal(after[name], before[name]) for name in adapters)
    assert float(after["second.adam.step.keys.up"]) == 2


def test_a_prior_of_exact_scores_gets_a_gaussian_for_the_second_model() -> None:
    it, target = work(VSD)
    before = target.grid.density.detach().clone()
    done(it, 2)
    assert isinstance(it.second, StandIn) and not torch.equal(target.grid.density, before)
    assert not any(name.startswith("second.") for name in it.checkpoint().tensors)
    assert work()[0].second is None


def test_regularisers_have_the_weight_that_they_are_given() -> None:
    def end(**weights: float) -> Seen:
        it, target = work(replace(CONFIG, **{"sparsity": 0.0, **weights}))
        done(it)
        with torch.no_grad():
            return target.render(orthogonal_cameras(0.0, 15.0, 40.0, 2.7, 12), torch.ones(3))

    plain = end()
    assert float(sparsity(end(sparsity=5.0).opacity)) < float(sparsity(plain.opacity))
    assert float(opaqueness(end(opaqueness=5.0).opacity)) < float(opaqueness(plain.opacity))
    assert float(total_variation(end(total_variation=5.0).rgb)) < float(total_variation(plain.rgb))


def test_it_does_what_words_to_a_scene_does() -> None:
    target = GridTarget(GridConfig(voxels=8))
    distil_scene(PROMPT, BankPrior([PROMPT], BANK), target, CONFIG)
    own, found = work()
    done(own)
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
    with pytest.raises(InputError, match="does not belong"):
        work(VSD, trained=True)[0].restore(kept)  # no second model in it


def save_and_load(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return load(save(tensors))
