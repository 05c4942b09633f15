"""Judging scenes: with pictures of known objects it is known what has to be found."""

from __future__ import annotations

import pytest
import torch

from generation.captions import parse, tokenize
from generation.judging import judged_sides, reference_objects, reference_pictures, scored
from tests.generation.prior_toys import toy_guide

SIZE = 32


@pytest.fixture(scope="module")
def snowmen() -> torch.Tensor:
    return reference_pictures(reference_objects("a snowman", 3), SIZE)


def test_a_reference_is_its_own_nearest_and_shows_its_front_once(snowmen: torch.Tensor) -> None:
    for k in range(3):
        sides = judged_sides(snowmen[k], snowmen)
        assert (sides.nearest, sides.looks_like, sides.fronts, sides.janus) == (k, (0, 1, 2, 3), 1, False)
        assert sides.psnr > 90


def test_a_second_front_is_found_and_a_lost_one_too(snowmen: torch.Tensor) -> None:
    twice = snowmen[1].clone()
    twice[2] = twice[0]
    assert judged_sides(twice, snowmen).fronts == 2 and judged_sides(twice, snowmen).janus
    never = snowmen[1].clone()
    never[0] = never[2]
    assert judged_sides(never, snowmen).fronts == 0 and not judged_sides(never, snowmen).janus


def test_likeness_is_peak_signal_to_noise(snowmen: torch.Tensor) -> None:
    assert judged_sides(snowmen[0] + 0.1, snowmen[:1]).psnr == pytest.approx(20, abs=1e-3)


def test_what_looks_the_same_from_all_sides_has_no_front(snowmen: torch.Tensor) -> None:
    turned = snowmen[:, 1:2].expand(-1, 4, -1, -1, -1)
    assert judged_sides(turned[0], turned).fronts is None and not judged_sides(turned[0], turned).janus


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
