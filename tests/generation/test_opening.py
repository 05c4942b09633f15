"""What a scene opens with: the prior's own views, the best by its guide, which the scene then follows."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from generation.bank_prior import BankConfig, BankPrior
from generation.distillation import Checkpoint, Config, Distillation, Stage
from generation.opening import Opening, Sampler, follow, likeness, opened, opening_cameras
from generation.priors import Condition
from generation.scenes import GridConfig, GridTarget
from generation.trained_prior import TrainedPrior, tokens_of
from generation.views import azimuth_of
from scene.errors import InputError
from tests.generation.prior_toys import toy_guide, toy_network

PROMPT = "a red chair"
OPENING = Opening(guesses=3, share=0.5, steps=4)
CONFIG = Config(steps=8, stages=(Stage(0.0, 8, 8),), opening=OPENING, seed=3)


def toy_prior(guided: bool = True) -> TrainedPrior:
    return TrainedPrior(toy_network(), toy_guide() if guided else None)


def work(config: Config = CONFIG) -> Distillation:
    return Distillation(PROMPT, toy_prior(), GridTarget(GridConfig(voxels=8)), config)


def test_the_set_that_fits_the_words_best_is_chosen() -> None:
    prior = toy_prior()
    found = opened(prior, PROMPT, OPENING, torch.Generator().manual_seed(1))
    cameras = opening_cameras(8, 4)
    drawn = prior.sample(Condition((PROMPT,) * 12, cameras * 3), torch.Generator().manual_seed(1), steps=4)
    sets = drawn.clamp(-1, 1).view(3, 4, 3, 8, 8)
    guide, words = toy_guide(), torch.tensor([tokens_of(PROMPT)])
    fits = [float(functional.cosine_similarity(guide.image(s).mean(0), guide.text(words)[0], 0)) for s in sets]
    assert len(set(fits)) == 3
    torch.testing.assert_close(found.pictures, (sets[fits.index(max(fits))] + 1) / 2)
    torch.testing.assert_close(likeness(guide, sets, PROMPT), torch.tensor(fits))
    assert found.background.shape == (3,) and 0 <= float(found.background.min()) <= float(found.background.max()) <= 1


def test_without_a_guide_one_set_is_drawn_and_taken() -> None:
    prior = toy_prior(guided=False)
    found = opened(prior, PROMPT, OPENING, torch.Generator().manual_seed(1))
    condition = Condition((PROMPT,) * 4, opening_cameras(8, 4))
    wanted = prior.sample(condition, torch.Generator().manual_seed(1), steps=4).clamp(-1, 1)
    torch.testing.assert_close(found.pictures, (wanted + 1) / 2)


def test_views_go_around_from_the_front() -> None:
    assert [round(azimuth_of(camera)) % 360 for camera in opening_cameras(8, 4)] == [0, 90, 180, 270]


def test_a_picture_is_moved_straight_to_the_view_that_it_follows() -> None:
    prior = toy_prior()
    generator = torch.Generator().manual_seed(0)
    images, wanted = (torch.rand(4, 3, 8, 8, generator=generator) for _ in range(2))
    images.requires_grad_()
    found = follow(prior, images, wanted)
    found.loss.backward()
    assert images.grad is not None
    torch.testing.assert_close(images.grad, 4 * (images.detach() - wanted) / 4)  # z = 2 x - 1 twice, and the mean of 4
    assert found.clean is not None
    torch.testing.assert_close(prior.decode(found.clean), wanted)


def test_a_scene_follows_its_opening_and_is_distilled_after_it() -> None:
    it = work()
    steps = [it.advance() for _ in range(CONFIG.steps)]
    shown = it.shown(0)
    assert shown is not None and it.shown(4) is None
    for step in steps:
        assert step.wanted is not None
        followed = torch.allclose(step.wanted, shown.pictures, atol=1e-6)
        assert followed == (step.step < 4) and (step.t == 0) == followed
    assert steps[4].t == pytest.approx(0.5)  # where the schedule stands after half of the run
    errors = [float((step.seen - shown.pictures).square().mean()) for step in steps[:4]]
    assert errors[3] < errors[0]


@pytest.mark.parametrize("at", [2, 4, 6])
def test_a_run_that_stopped_in_or_after_its_opening_ends_as_the_unbroken_one(at: int) -> None:
    whole, first, again = work(), work(), work()
    for it, count in ((whole, 8), (first, at)):
        for _ in range(count):
            it.advance()
    kept = first.checkpoint()
    again.restore(Checkpoint({name: tensor.clone() for name, tensor in kept.tensors.items()}, kept.state))
    for _ in range(8 - at):
        again.advance()
    found, wanted = again.checkpoint(), whole.checkpoint()
    assert all(torch.equal(found.tensors[name], wanted.tensors[name]) for name in wanted.tensors)


def test_without_an_opening_nothing_is_drawn() -> None:
    plain, shut = work(replace(CONFIG, opening=None)), work(replace(CONFIG, opening=replace(OPENING, share=0.0)))
    for it in (plain, shut):
        it.advance()
    assert plain.shown(0) is None and shut.shown(0) is None
    assert all(torch.equal(plain.checkpoint().tensors[k], v) for k, v in shut.checkpoint().tensors.items())


def test_a_prior_that_draws_nothing_by_itself_opens_no_scene() -> None:
    prior = BankPrior([PROMPT], BankConfig(members=1, mixed=1, size=8, samples=1))
    assert not isinstance(prior, Sampler) and isinstance(toy_prior(), Sampler)
    with pytest.raises(InputError, match="draws no views"):
        Distillation(PROMPT, prior, GridTarget(GridConfig(voxels=8)), CONFIG)
