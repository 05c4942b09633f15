"""The training loop on a card that is pretended: no mixed devices, no waiting inside the loop, few operations."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import pytest
import torch

from data.captures import Capture
from data.synthetic import opaque_solids
from recon import gaussians as method
from recon.gaussians import Checkpoint, Config, train
from recon.gaussians_state import Trainer
from scene.errors import Interrupted
from scene.ops.gpu.launch import launch
from tests.pretended_card import CARD, PretendedCard, pretended_card

TINY = Config(
    steps=16, max_splats=150, initial_splats=100, coarse_levels=0, sh_degree=1, checkpoint_seconds=1e9, exposure="on"
)
MOST_OPERATIONS = 12  # of torch in an ordinary step: 2 copies there, 1 back, 7 of the exposures; 2 for a new photo

needs_no_card = pytest.mark.skipif(torch.cuda.is_available(), reason="a real card is the better test")
pytestmark = [needs_no_card, pytest.mark.usefixtures("host_gpu")]


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Capture:
    """Sphere, torus and box: 4 views of 20 pixels, 1 held out."""
    return opaque_solids(train=4, test=1, size=20, supersample=1).capture(tmp_path_factory.mktemp("solids"))


@dataclass(frozen=True)
class Taken:
    """One step, and what it asked of the card."""

    ordinary: bool  # neither first, nor refining or after it, nor judging held-out views
    waits: list[str]
    doubles: list[str]
    operations: int


@pytest.fixture
def steps_taken(monkeypatch: pytest.MonkeyPatch) -> Callable[[PretendedCard], list[Taken]]:
    """Keeps a record of every step from then on."""

    def watched(card: PretendedCard) -> list[Taken]:
        taken: list[Taken] = []
        one_step, sized = method._one_step, [False]

        def step(trainer: Trainer, p: float) -> None:
            card.forget()
            before = trainer.refined, trainer.watched
            one_step(trainer, p)
            quiet = before == (trainer.refined, trainer.watched)
            operations = sum(card.operations.values())
            taken.append(Taken(quiet and sized[0], [*card.waits], [*card.doubles], operations))
            sized[0] = before[0] == trainer.refined  # what comes after a refinement finds its room anew

        monkeypatch.setattr(method, "_one_step", step)
        return taken

    return watched


@pytest.mark.parametrize("densify", ["mcmc", "absgrad"])
def test_training_mixes_no_devices_and_waits_for_nothing_inside_the_loop(
    capture: Capture, steps_taken: Callable[[PretendedCard], list[Taken]], densify: str
) -> None:
    with pretended_card() as card:
        taken = steps_taken(card)
        trained = train(capture, replace(TINY, densify=densify), device=CARD)  # type: ignore[arg-type]
        assert trained.means.device == CARD
    ordinary = [one for one in taken if one.ordinary]
    assert len(ordinary) >= 4 and len(taken) == TINY.steps
    assert [wait for one in ordinary for wait in one.waits] == []
    assert max(one.operations for one in ordinary) <= MOST_OPERATIONS
    others = [double for one in taken for double in one.doubles if "densify.py" not in double]
    assert others == [], "float64 costs a consumer card 64 times as much; only eq. 9 of MCMC needs it"


def test_a_run_goes_on_between_the_card_and_the_cpu(capture: Capture) -> None:
    saved: list[Checkpoint] = []
    asked = iter(range(1, 100))
    with pretended_card():
        with pytest.raises(Interrupted):
            train(capture, TINY, device=CARD, save=saved.append, stop=lambda: next(asked) == 3)
        assert {type(value) for value in saved[-1].tensors.values()} == {torch.Tensor}
        near_its_end = Checkpoint(saved[-1].tensors, {**saved[-1].state, "step": TINY.steps - 2})
        assert train(capture, TINY, device=CARD, resume=near_its_end).means.device == CARD
    assert train(capture, TINY, resume=near_its_end).means.device.type == "cpu"


def test_the_pretended_card_refuses_what_a_card_refuses(host_gpu: Callable[..., AbstractContextManager[None]]) -> None:
    with pretended_card() as card:
        here, there = torch.ones(4), torch.ones(4, device=CARD)
        with pytest.raises(RuntimeError, match="same device"):
            torch.add(here, there)
        with pytest.raises(RuntimeError, match="generator"):
            torch.rand(3, device=CARD, generator=torch.Generator())
        with pytest.raises(RuntimeError, match="illegal memory access"):
            launch("adam", "adam_dense", 1, 256, here, there, there, there, 4, 1, 0.1, 0.9, 0.1, 0.1, 1.0, 1e-8)
        assert card.waits == []
        assert (there + torch.tensor(2.0)).device == CARD  # a number may come from anywhere
        there.to("cpu", non_blocking=True)
        here.to(CARD, non_blocking=True)
        assert card.waits == []
        for ask in (lambda: float(there[0]), there.nonzero, lambda: there[there > 0], there.cpu, lambda: here.to(CARD)):
            ask()
        assert len(card.waits) == 5, card.waits
