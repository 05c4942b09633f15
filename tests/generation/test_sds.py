"""Score distillation onto a grid: a picture chooses, parts left over go, time limits hold, every option is checked."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Literal

import pytest
import torch

from generation import sds
from generation.bank_prior import BankConfig, BankPrior
from generation.distillation import Step
from generation.judging import judged_cameras, judged_sides, reference_pictures
from generation.priors import GaussianPrior
from generation.scenes import GridConfig, GridTarget
from generation.trained_prior import TrainedPrior
from scene.errors import InputError, Interrupted
from scene.voxel_grid import dilate
from tests.generation.prior_toys import toy_network

PROMPT = "a car with red body and black wheels"
SMALL = sds.Config(steps=60, pixels=24, voxels=24, coarse=0.3, members=4)


def bank(pixels: int = 24, members: int = 4) -> BankPrior:
    return BankPrior([PROMPT], BankConfig(members=members, size=pixels, samples=1))


# A hash grid is at 19.8 dB after so few steps.
@pytest.mark.parametrize(("k", "target", "least"), [(0, "grid", 20.0), (2, "grid", 20.0), (2, "hash", 19.5)])
def test_a_picture_decides_which_object_is_made(k: int, target: Literal["grid", "hash"], least: float) -> None:
    prior = bank()
    truth = reference_pictures(prior.members(PROMPT), 24)
    scene = sds.train(PROMPT, prior, replace(SMALL, target=target), image=truth[k, 0])
    seen = torch.stack([sds.picture(scene, c, torch.ones(3), SMALL).permute(2, 0, 1) for c in judged_cameras(24)])
    sides = judged_sides(seen.clamp(0, 1), truth)
    assert sides.nearest == k and sides.psnr > least, sides


@torch.no_grad()
def test_cleaning_takes_small_parts_and_haze_and_nothing_else() -> None:
    target = GridTarget(GridConfig(voxels=24))
    grid = replace(target.grid, density=torch.full((24, 24, 24), -3.0), features=target.grid.features.detach())
    grid.density[6:16, 6:16, 6:16] = 6.0
    grid.density[20:22, 20:22, 20:22] = 6.0
    clean = sds.cleaned(grid)
    camera = judged_cameras(48)[0]
    alone = replace(grid, density=grid.density.clone())
    alone.density[19:, 19:, 19:] = -30.0
    alone.density[~dilate(dilate(alone.density > 0))] = -30.0  # what is interpolated with the box stays
    found, wanted = (sds.picture(g, camera, torch.ones(3), SMALL) for g in (clean, alone))
    assert float((found - wanted).abs().mean()) < 0.01
    assert bool(clean.occupied[10, 10, 10]) and not bool(clean.occupied[20:, 20:, 20:].any())


def test_with_a_time_limit_steps_are_left_out_and_the_last_one_is_done() -> None:
    seen: list[Step] = []
    slow = replace(SMALL, steps=100_000)
    began = time.monotonic()
    sds.train(PROMPT, bank(), slow, max_seconds=2.0, on_pictures=seen.append)
    numbers = [step.step for step in seen]
    assert numbers == sorted(set(numbers)) and len(numbers) < 10_000 and numbers[-1] > 80_000
    assert time.monotonic() - began < 20
    assert seen[-1].t < 0.25 < 0.9 < seen[0].t


def test_stopping_saves_first() -> None:
    kept: list[sds.Checkpoint] = []
    seen: list[Step] = []
    with pytest.raises(Interrupted, match="after 3 steps"):
        sds.train(PROMPT, bank(), SMALL, on_pictures=seen.append, save=kept.append, stop=lambda: len(seen) == 3)
    assert [c.state["step"] for c in kept] == [3] and kept[0].state["steps"] == 60


def test_options_follow_the_prior() -> None:
    own = sds.options_of(SMALL, bank(), 5)
    assert (own.guidance.method, own.guidance.scale, own.sets, own.seed) == ("x0", 1.0, 1, 5)
    assert [(s.start, s.pixels, s.voxels) for s in own.stages] == [(0.0, 12, 12), (0.3, 24, 24)]
    trained = sds.options_of(SMALL, TrainedPrior(toy_network()), 0)
    assert (trained.guidance.method, trained.guidance.scale) == ("x0", TrainedPrior.guidance)
    assert trained.stages[-1].pixels == 8 and not trained.rule.words
    single = GaussianPrior({None: (torch.zeros(3, 8, 8), torch.ones(3, 8, 8))})
    plain = sds.options_of(SMALL, single, 0)
    assert (plain.guidance.method, plain.guidance.scale, plain.sets, plain.rule.words) == ("sds", 100.0, 4, True)
    flow = sds.options_of(SMALL, GaussianPrior(single.gaussians, "flow"), 0)
    assert flow.guidance.method == "rfds"
    asked = sds.options_of(replace(SMALL, guidance="csd", scale=3.0, sets=2), single, 0)
    assert (asked.guidance.method, asked.guidance.scale, asked.sets) == ("csd", 3.0, 2)
    vsd = replace(SMALL, guidance="vsd", lora_rank=2, lora_rate=0.01, opaqueness=0.1)
    learned = sds.options_of(vsd, TrainedPrior(toy_network()), 0)
    assert (learned.guidance.method, learned.guidance.scale, learned.rule.threshold) == ("vsd", 2.0, 30.0)
    assert (learned.second.lora.rank, learned.second.lora.rate, learned.opaqueness) == (2, 0.01, 0.1)


def test_a_run_is_told_which_second_model_vsd_has() -> None:
    vsd = replace(SMALL, guidance="vsd")
    assert sds.decisions(SMALL, bank()) == []
    assert [sentence.split(",")[0] for sentence in sds.decisions(vsd, bank())] == [
        "VSD's second model: a Gaussian of variance 0.01 around each picture"
    ]
    assert "adapters of rank 4" in sds.decisions(vsd, TrainedPrior(toy_network()))[0]


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"pixels": 4}, {"voxels": 10_000}, {"coarse": float("nan")}, {"members": 0}, {"sets": 0},
              {"scale": -1.0}, {"sparsity": float("inf")}, {"lora_rank": 0}, {"lora_rate": 1.0},
              {"checkpoint_seconds": float("nan")}]
)  # fmt: skip
def test_options_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match="must lie between"):
        replace(SMALL, **wrong)


def test_presets_are_options() -> None:
    assert all(replace(sds.Config(), **changes) for changes in sds.PRESETS.values())
    assert set(sds.PRESETS) == {"draft", "standard", "high"}


def test_a_checkpoint_shows_the_scene_so_far() -> None:
    kept: list[sds.Checkpoint] = []
    scene = sds.train(PROMPT, bank(), SMALL, save=kept.append)
    camera = judged_cameras(24)[0]
    shown, frame = sds.live(kept[-1], SMALL)(camera), sds.surface_frame(scene, camera, SMALL)
    assert shown.alpha is not None and frame.alpha is not None and float(frame.alpha.mean()) > 0.05
    apart = (shown.rgb.float() - frame.rgb.float()).abs().mean()
    assert float(apart) < 2  # of 255: cleaning takes haze
    hashed = replace(SMALL, target="hash", steps=2)
    sds.train(PROMPT, bank(), hashed, save=kept.append)
    for broken in (kept[-1], sds.Checkpoint({**kept[0].tensors, "density": torch.zeros(3, 4, 5)}, {})):
        with pytest.raises(InputError, match="holds no voxel grid"):
            sds.live(broken, hashed)
