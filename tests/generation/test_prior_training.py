"""Training: the loss by hand, what is left out how often, stopping and going on, and that it learns."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from generation.captions import PAD
from generation.networks import LEAST_TIME, TOY_LAYOUT, Given, MultiViewUNet
from generation.prior_data import VIEWS, PriorData
from generation.prior_evaluation import true_pictures
from generation.prior_training import (
    LAST_RATE,
    Batch,
    Checkpoint,
    Hooks,
    Pace,
    Trainer,
    draw_batch,
    flow_loss,
    new_network,
    prior_loss,
    train,
)
from generation.priors import Condition
from generation.trained_prior import TrainedPrior
from scene.errors import InputError, Interrupted
from scene.runs import StepReport
from tests.generation.prior_toys import TOYS, toy_cameras, toy_data, toy_given, toy_guide


def toy_trainer(seed: int = 0, rate: float = 2e-3, average: float = 0.98) -> Trainer:
    network = new_network(TOY_LAYOUT, seed)
    return Trainer(network, rate=rate, warm_up=10, average=average, seed=seed, bfloat16=False)


class Off(nn.Module):
    """Predicts the clean frames with a constant error."""

    def __init__(self, clean: Tensor, error: float) -> None:
        super().__init__()
        self.clean, self.error = clean, error

    def forward(self, z_t: Tensor, t: Tensor, given: Given) -> Tensor:
        return self.clean + self.error


def test_the_loss_is_the_error_of_the_velocity() -> None:
    g = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(3, 4, 3, 8, 8, generator=g, dtype=torch.float64) for _ in range(2))
    t = torch.tensor([[0.5], [0.2], [0.01]], dtype=torch.float64).expand(-1, 4)
    batch = Batch(clean, t, toy_given(3, 4))
    assert float(flow_loss(Off(clean, 0.0), batch, noise)) < 1e-10  # float32 on the way out of the network
    wanted = ((0.1 / 0.5) ** 2 + (0.1 / 0.2) ** 2 + (0.1 / LEAST_TIME) ** 2) / 3
    torch.testing.assert_close(float(flow_loss(Off(clean, 0.1), batch, noise)), wanted, atol=0, rtol=1e-5)
    # Above the least time: |v - (e - x)|^2 with the network's own velocity.
    first = Batch(clean[:1], t[:1], batch.given)
    z_t = 0.5 * clean[:1] + 0.5 * noise[:1]
    v = (z_t - (clean[:1] + 0.1)) / 0.5
    by_hand = float((v - (noise[:1] - clean[:1])).square().mean())
    torch.testing.assert_close(float(flow_loss(Off(clean[:1], 0.1), first, noise[:1])), by_hand, atol=0, rtol=1e-5)


def batches(count: int, size: int) -> list[Batch]:
    data, guide, g = toy_data(), toy_guide(), torch.Generator().manual_seed(0)
    return [draw_batch(data, guide, size, g) for _ in range(count)]


def share(hits: list[float]) -> float:
    return sum(hits) / len(hits)


def test_captions_pictures_cameras_and_joint_views_are_left_out_as_often_as_meant() -> None:
    drawn = batches(500, 8)
    together = [b for b in drawn if b.clean.shape[1] == VIEWS]
    silent = [float((b.given.words == PAD).all(1).float().mean()) for b in together]
    blind = [1 - float(b.given.cameras_known.mean()) for b in together]
    # 3 standard errors: 500 draws, or 8 times as many where each set draws for itself.
    assert share([float(b.clean.shape[1] == 1) for b in drawn]) == pytest.approx(0.2, abs=0.055)
    assert share([float(b.given.features is None) for b in drawn]) == pytest.approx(0.5, abs=0.07)
    assert share(silent) == pytest.approx(0.1, abs=0.017)
    assert share(blind) == pytest.approx(0.05, abs=0.013)
    single = [b for b in drawn if b.clean.shape[1] == 1]
    assert share([float(b.given.cameras_known.mean()) for b in single]) == pytest.approx(0.5, abs=0.04)
    assert all(b.given.reference is None for b in single)
    assert all((b.given.reference is None) == (b.given.features is None) for b in together)


def test_times_are_logit_normal_and_the_views_of_a_set_share_theirs() -> None:
    drawn = [b for b in batches(200, 16) if b.clean.shape[1] == VIEWS]
    assert all(bool((b.t == b.t[:, :1]).all()) for b in drawn)
    logits = torch.cat([b.t[:, 0] for b in drawn]).logit()
    assert float(logits.mean()) == pytest.approx(0.2, abs=0.08)
    assert float(logits.std()) == pytest.approx(1.2, abs=0.06)


def test_a_batch_shows_its_objects_from_the_cameras_that_it_names() -> None:
    data = toy_data()
    for batch in batches(20, 8):
        if batch.clean.shape[1] != VIEWS:
            continue
        said = [data.words[:, 0].tolist().index(row) for row in batch.given.words.tolist() if any(row)]
        seen = [i for i, row in enumerate(batch.given.words.tolist()) if any(row)]
        middle = batch.clean[seen, 0, :, 4, 4]
        torch.testing.assert_close(middle, true_pictures(data)[said, 0, :, 4, 4], atol=1e-5, rtol=0)
        torch.testing.assert_close(batch.given.cameras, data.cameras[:1, 0].expand(8, -1, -1))


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.checkpoint().tensors.items()}


def test_a_killed_training_goes_on_bit_for_bit() -> None:
    data, guide = toy_data(), toy_guide()
    whole = toy_trainer()
    train(whole, prior_loss(data, guide, 4), Pace(8), Hooks())
    saved: list[Checkpoint] = []
    calls = iter(range(100))
    first = toy_trainer()
    with pytest.raises(Interrupted):
        hooks = Hooks(save=lambda c: saved.append(copy.deepcopy(c)), stop=lambda: next(calls) == 4)
        train(first, prior_loss(data, guide, 4), Pace(8), hooks)
    assert saved[-1].state["step"] == 5
    second = toy_trainer(seed=3)  # other weights and random numbers: all of it must come from the checkpoint
    second.restore(saved[-1])
    train(second, prior_loss(data, guide, 4), Pace(8), Hooks())
    wanted, got = weights(whole), weights(second)
    assert wanted.keys() == got.keys()
    assert all(torch.equal(wanted[name], got[name]) for name in wanted)
    assert second.loss == whole.loss


def test_a_checkpoint_of_another_network_is_refused() -> None:
    wider = Trainer(
        MultiViewUNet(replace(TOY_LAYOUT, context=32)), rate=1e-3, warm_up=1, average=0.9, seed=0, bfloat16=False
    )
    with pytest.raises(InputError, match="does not fit"):
        toy_trainer().restore(wider.checkpoint())


def test_the_average_follows_the_weights_and_warms_up() -> None:
    data, guide, trainer = toy_data(), toy_guide(), toy_trainer()
    name, wanted = "conv_out.weight", None
    for step in range(1, 6):
        trainer.update(prior_loss(data, guide, 2), 0.0)
        decay, now = min(0.98, step / (step + 9)), trainer.network.state_dict()[name].double()
        wanted = now * (1 - decay) + decay * (wanted if wanted is not None else torch.zeros_like(now))
    assert trainer.average is not None and wanted is not None
    torch.testing.assert_close(trainer.average.state_dict()[name].double(), wanted, atol=1e-9, rtol=1e-5)


def rate_of(trainer: Trainer) -> float:
    return trainer.optimizer.param_groups[0]["lr"]


def test_the_rate_rises_then_falls_as_a_cosine() -> None:
    data, guide, trainer = toy_data(), toy_guide(), toy_trainer(rate=1e-3)
    loss_of = prior_loss(data, guide, 1)
    trainer.update(loss_of, 0.0)
    assert rate_of(trainer) == pytest.approx(LAST_RATE + (1e-3 - LAST_RATE) / 10)
    trainer.step = 100
    for progress, wanted in ((0.0, 1e-3), (0.5, (1e-3 + LAST_RATE) / 2), (1.0, LAST_RATE)):
        trainer.update(loss_of, progress)
        assert rate_of(trainer) == pytest.approx(wanted)


def test_a_time_limit_ends_the_training_and_is_reported() -> None:
    data, guide, trainer = toy_data(), toy_guide(), toy_trainer()
    reports: list[StepReport] = []
    train(trainer, prior_loss(data, guide, 1), Pace(10**6, seconds=0.3), Hooks(on_step=reports.append))
    assert 0 < trainer.step < 10**4
    assert 0.3 <= trainer.seconds < 3
    assert reports[-1].steps == reports[-1].step == trainer.step
    assert reports[-1].eta_s == 0


def fit(data: PriorData, steps: int) -> TrainedPrior:
    trainer = toy_trainer(rate=5e-3, average=0.97)
    guide = toy_guide()
    loss_of = prior_loss(data, guide, 8)
    for step in range(steps):
        trainer.update(loss_of, step / steps)
    assert isinstance(trainer.average, MultiViewUNet)
    return TrainedPrior(trainer.average, guide)


def test_eight_objects_are_learned_by_heart() -> None:
    data = toy_data()
    prior = fit(data, 200)
    texts = tuple(text for text, _ in TOYS for _ in range(VIEWS))
    made = prior.sample(Condition(texts, toy_cameras() * 8), torch.Generator().manual_seed(0), guidance=1.5, steps=12)
    middle = made.unflatten(0, (8, VIEWS))[..., 3:5, 3:5].mean((-1, -2))
    truth = true_pictures(data)[..., 3:5, 3:5].mean((-1, -2))
    apart = (middle[:, None] - truth[None]).square().mean((-1, -2)).sqrt()  # [made, true]
    assert apart.argmin(1).tolist() == list(range(8))
    assert float(apart.diagonal().mean()) < 0.45  # of a range of 2; 0.34 when measured, others' are at 1
