"""CLIP's loss and retrieval against known answers, and that it learns which caption belongs to which picture."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from generation.clip import CPU_GUIDE, CPU_SCORER, Clip, contrastive_loss, r_precision
from generation.prior_data import halves
from generation.prior_evaluation import retrieval_scores, true_pictures
from generation.prior_training import Trainer, clip_loss, new_network
from tests.generation.prior_toys import TOY_GUIDE, lively, toy_data, toy_guide


def unit(n: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(n, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=-1)


def test_without_repeats_the_loss_is_cross_entropy_both_ways() -> None:
    images, texts, scale = unit(5, 0), unit(5, 1), torch.tensor(7.0, dtype=torch.float64)
    logits, right = 7 * images @ texts.T, torch.arange(5)
    wanted = F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)
    torch.testing.assert_close(contrastive_loss(images, texts, right, scale), wanted)


def test_a_repeated_caption_is_no_wrong_answer() -> None:
    images = texts = torch.eye(3, dtype=torch.float64)[[0, 0, 1]]
    scale = torch.tensor(50.0, dtype=torch.float64)
    shared = contrastive_loss(images, texts, torch.tensor([0, 0, 1]), scale)
    # The two alike share their target: -log(1/2) for two of three rows, both ways.
    torch.testing.assert_close(shared, torch.tensor(4 / 3, dtype=torch.float64) * torch.log(shared.new_tensor(2.0)))


def test_retrieval_counts_own_captions_and_own_kinds() -> None:
    texts = torch.eye(4)
    images = texts[[0, 1, 3, 2]]  # the last two are taken for each other
    found = r_precision(images, texts, "abcd", ["car", "mug", "tree", "tree"], among=4)
    assert found.hits.tolist() == [True, True, False, False]
    assert found.exact == 0.5
    assert found.kind == 1.0


def test_a_tie_is_no_hit_and_another_picture_of_the_same_meaning_no_rival() -> None:
    same = torch.ones(3, 2)
    assert r_precision(same, same, "abc", "abc").exact == 0
    assert r_precision(same, same, "aaa", "aaa").exact == 1


def test_fewer_rivals_are_drawn_than_there_are() -> None:
    generator = torch.Generator().manual_seed(0)
    images, texts = torch.randn(300, 2, generator=generator), torch.randn(300, 2, generator=generator)
    chance = r_precision(images, texts, range(300), range(300), among=10).exact
    assert 0.04 < chance < 0.17  # 1 in 10 by chance; 3 standard errors of 300 draws


def test_guide_and_scorer_differ_in_width_and_see_disjoint_objects() -> None:
    assert CPU_GUIDE.channels != CPU_SCORER.channels
    first, second = halves(101, seed=3)
    assert sorted([*first.tolist(), *second.tolist()]) == list(range(101))
    assert not torch.equal(first, halves(101, seed=4)[0])


def test_features_hold_the_cells_and_their_mean_and_vectors_are_unit() -> None:
    guide, pictures = toy_guide(), true_pictures(toy_data())[:, 0]
    features = guide.features(pictures)
    assert features.shape == (8, 5, 16)
    torch.testing.assert_close(features[:, 4], features[:, :4].mean(1))
    for vectors in (guide.image(pictures), guide.text(toy_data().words[:, 0])):
        torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(8))


def test_training_reads_its_own_half_of_the_objects_only() -> None:
    data, rows = toy_data(), torch.tensor([1, 3, 4])
    data.words[[0, 2, 5, 6, 7]] = -1  # no such word: reading one would fail
    network = lively(new_network(TOY_GUIDE, 0))
    trainer = Trainer(network, rate=1e-3, warm_up=1, average=None, seed=0, bfloat16=False)
    for _ in range(10):
        trainer.update(clip_loss(data, rows, 16), 0.0)
    assert trainer.loss > 0


def test_it_learns_eight_objects() -> None:
    data = toy_data()
    network = new_network(TOY_GUIDE, 0)
    assert isinstance(network, Clip)
    trainer = Trainer(network, rate=5e-3, warm_up=5, average=None, seed=0, bfloat16=False)
    before = retrieval_scores(network, true_pictures(data), data, "true")["true_exact"]
    for step in range(120):
        trainer.update(clip_loss(data, torch.arange(8), 32), step / 120)
    after = retrieval_scores(network, true_pictures(data), data, "true")
    assert before < 0.6
    assert after["true_exact"] == 1.0
    assert after["true_view_kind"] >= 0.75  # from one view alone
