"""Words to Gaussians in one pass: what the pass is, what distillation then does, resuming, what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from generation import lgm_splats
from generation.bank_prior import BankConfig, BankPrior
from generation.distillation import Step
from generation.lgm import LEAST_OPACITY, TOY_LGM, LgmNetwork, reconstruct
from generation.networks import TOY_LAYOUT
from generation.opening import Opening, opened, opening_cameras, opening_draws
from generation.prior_training import new_network
from generation.prior_weights import GUIDE_FILE, LGM_FILE, PRIOR_FILE, About, load_lgm, save_weights
from generation.scenes import SplatConfig, SplatTarget
from generation.trained_prior import TrainedPrior
from scene.errors import InputError, Interrupted
from scene.gaussians import Gaussians
from tests.generation.prior_toys import TOY_GUIDE, lively, toy_guide, toy_network

PROMPT = "a red chair"
CONFIG = lgm_splats.Config(steps=12, pixels=8, guesses=2, checkpoint_seconds=0.0)


@pytest.fixture
def prior(tmp_path: Path) -> TrainedPrior:
    network = new_network(TOY_LGM, 0)
    assert isinstance(network, LgmNetwork)
    save_weights(tmp_path / PRIOR_FILE, toy_network(), About("prior", TOY_LAYOUT, 0, "abc", {}))
    save_weights(tmp_path / GUIDE_FILE, toy_guide(), About("clip_guide", TOY_GUIDE, 0, "abc", {}))
    save_weights(tmp_path / LGM_FILE, lively(network), About("lgm", TOY_LGM, 0, "abc", {}))
    return TrainedPrior.load(tmp_path)


def alike(a: Gaussians, b: Gaussians) -> bool:
    mine, theirs = a.parameters(), b.parameters()
    return all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_without_steps_it_is_the_one_pass_over_the_chosen_views(prior: TrainedPrior) -> None:
    steps: list[Step] = []
    scene = lgm_splats.train(PROMPT, prior, replace(CONFIG, steps=0), seed=5, on_pictures=steps.append)
    assert prior.folder is not None
    views = opened(prior, PROMPT, Opening(2), opening_draws(5))
    made = reconstruct(load_lgm(prior.folder / LGM_FILE)[0], views.pictures, opening_cameras(8, 4))
    assert len(scene) > 10 and alike(scene, made)
    assert len(steps) == 1 and steps[0].wanted is not None and torch.equal(steps[0].wanted, views.pictures)
    again = SplatTarget(gaussians=made).render(opening_cameras(8, 4), views.background.flatten()).rgb
    torch.testing.assert_close(steps[0].seen, again)


def test_distillation_first_draws_it_nearer_to_the_views_then_goes_below_its_first_time(prior: TrainedPrior) -> None:
    steps: list[Step] = []
    scene = lgm_splats.train(PROMPT, prior, replace(CONFIG, steps=80), on_pictures=steps.append)
    views = opened(prior, PROMPT, Opening(2), opening_draws(0)).pictures
    errors = [float((step.seen - views).square().mean()) for step in steps[:21]]  # the pass, then 20 that follow
    assert errors[20] < 0.9 * errors[0], (errors[0], errors[20])
    later = [step.t for step in steps[21:]]
    assert len(later) == 60 and max(later) <= lgm_splats.FIRST_TIME and later == sorted(later, reverse=True)
    assert len(scene) > 0 and bool((scene.opacities > LEAST_OPACITY).all())


def test_a_stopped_one_goes_on_to_the_same_gaussians(prior: TrainedPrior) -> None:
    whole = lgm_splats.train(PROMPT, prior, CONFIG, seed=3)
    kept: list[lgm_splats.Checkpoint] = []
    seen: list[Step] = []
    with pytest.raises(Interrupted, match="after 5 steps"):
        lgm_splats.train(
            PROMPT, prior, CONFIG, seed=3, on_pictures=seen.append, save=kept.append, stop=lambda: len(seen) == 6
        )
    resumed = lgm_splats.train(PROMPT, prior, CONFIG, seed=3, resume=kept[-1])
    assert alike(whole, resumed)
    camera = opening_cameras(16, 4)[0]
    frame = lgm_splats.live(kept[-1], CONFIG)(camera)
    assert frame.rgb.shape == (16, 16, 3)
    broken = replace(kept[-1], tensors={**kept[-1].tensors, "quats": torch.zeros(3, 4)})
    with pytest.raises(InputError, match="holds no Gaussians"):
        lgm_splats.live(broken, CONFIG)


def test_it_says_what_it_needs(prior: TrainedPrior) -> None:
    bank = BankPrior([PROMPT], BankConfig(members=1, size=8, samples=1))
    with pytest.raises(InputError, match=r"needs the trained prior.*not bank"):
        lgm_splats.train(PROMPT, bank, CONFIG)
    assert prior.folder is not None
    (prior.folder / LGM_FILE).unlink()
    with pytest.raises(InputError, match=r"no lgm.safetensors.*--stage lgm"):
        lgm_splats.decisions(CONFIG, prior)


def test_views_of_nothing_end_in_one_line(prior: TrainedPrior) -> None:
    assert prior.folder is not None
    network = load_lgm(prior.folder / LGM_FILE)[0]
    with torch.no_grad():
        network.conv_out.weight.zero_()  # type: ignore[union-attr]
        network.conv_out.bias.fill_(-20.0)  # type: ignore[union-attr]
    views = opened(prior, PROMPT, Opening(2), opening_draws(0))
    with pytest.raises(InputError, match="another --seed"):
        lgm_splats.one_pass(network, views)


@pytest.mark.parametrize("wrong", [{"steps": -1}, {"guesses": 0}, {"pixels": 7}, {"scale": -1.0}])
def test_options_are_checked(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=f"--{next(iter(wrong))} must lie between"):
        lgm_splats.Config(**wrong)  # type: ignore[arg-type]


def test_a_target_of_given_gaussians_leaves_them_alone() -> None:
    given = SplatTarget(SplatConfig(count=20)).gaussians.detach()
    before = given.clone()
    target = SplatTarget(gaussians=given)
    with torch.no_grad():
        target.gaussians.means += 1
    assert alike(given, before) and target.gaussians.means.requires_grad
