"""Judging scenes: with pictures of known objects it is known what has to be found."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from generation.captions import parse, tokenize
from generation.judging import (
    judged_sides,
    reference_objects,
    reference_pictures,
    scored,
    true_objects,
    views_of_the_front,
)
from generation.shapes import ObjectModel, union
from tests.generation.prior_toys import toy_guide

SIZE = 32
FRONTS = {
    "a snowman with white body and black hat": "snowman nose",
    "a car with orange body and green cabin": "car cabin",
    "a chair with red seat and blue legs": "chair back",
}


@pytest.fixture(scope="module")
def snowmen() -> torch.Tensor:
    return reference_pictures(reference_objects("a snowman", 3), SIZE)


def test_a_reference_is_its_own_nearest_and_shows_its_sides_in_order(snowmen: torch.Tensor) -> None:
    for k in range(3):
        sides = judged_sides(snowmen[k], snowmen)
        assert (sides.nearest, sides.looks_like) == (k, (0, 1, 2, 3))
        assert sides.psnr > 90


def test_likeness_is_peak_signal_to_noise(snowmen: torch.Tensor) -> None:
    assert judged_sides(snowmen[0] + 0.1, snowmen[:1]).psnr == pytest.approx(20, abs=1e-3)


def two_faced(model: ObjectModel) -> ObjectModel:
    """The thing and itself turned by half a turn."""
    half_turn = torch.diag(torch.tensor([-1.0, -1.0, 1.0, 1.0]))
    return union([model, replace(model, world_from_primitive=half_turn @ model.world_from_primitive)])


@pytest.mark.parametrize("prompt", FRONTS)
def test_true_objects_show_one_front_and_two_faced_ones_do_not(prompt: str) -> None:
    truth, objects = true_objects(prompt, 64), reference_objects(prompt, 10, seed=7)
    assert truth.part == FRONTS[prompt]
    seen = [views_of_the_front(pictures, truth) for pictures in reference_pictures(objects, 64)]
    assert seen.count((True, False, False, False)) >= 9
    both = reference_pictures(tuple(two_faced(model) for model in objects), 64)
    doubled = [views_of_the_front(pictures, truth) for pictures in both]
    assert sum(views is not None and sum(views) == 1 for views in doubled) <= 1


def test_a_second_front_is_found_and_a_lost_one_too() -> None:
    truth = true_objects("a white snowman", SIZE)
    twice, never = truth.pictures[1].clone(), truth.pictures[1].clone()
    twice[2], never[0] = twice[0], never[2]
    assert views_of_the_front(twice, truth) == (True, False, True, False)
    assert views_of_the_front(never, truth) == (False,) * 4


def test_what_has_no_part_at_its_front_is_not_checked() -> None:
    truth = true_objects("a red ball", SIZE)
    assert truth.part == "" and views_of_the_front(truth.pictures[0], truth) is None


def test_a_score_is_the_rank_among_captions() -> None:
    scorer, prompt = toy_guide(), "a red chair"
    pictures = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    score = scored(scorer, pictures, prompt, among=20)
    assert score.among == 20 and 1 <= score.rank <= 20 and -1 <= score.similarity <= 1
    assert (score.best == prompt) == (score.rank == 1)
    with torch.no_grad():  # another way to the same cosine
        views = scorer.image(2 * pictures - 1)
        text = scorer.text(torch.tensor([tokenize(prompt)]))[0]
    assert score.similarity == pytest.approx(float(torch.cosine_similarity(views.mean(0), text, dim=0)), abs=1e-5)
    best = scored(scorer, pictures, score.best, among=20)
    assert parse(score.best) is not None and best.rank <= score.rank
