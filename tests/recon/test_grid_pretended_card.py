"""Training of voxel grids on a card that is pretended: no mixed devices, and few moments at which the host waits."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from data.captures import Capture
from data.synthetic import opaque_solids
from recon import dvgo, grid_training
from recon.grid_stages import Trainer
from scene.ops import color_mlp
from scene.ops.color_mlp import ColorMlp
from scene.ray_space import GridFrame
from tests.pretended_card import CARD, pretended_card

TINY = dvgo.Config(steps=12, rays=32, voxels=1000, coarse_voxels=1000, width=64, checkpoint_seconds=1e9)
MOST_WAITS = 1  # of a step: for the number of samples, whose memory is taken on the host
WAITS_FOR_FRAME = 6  # of the first step on a grid of another size: lengths that follow from it
MOST_OPERATIONS = 130  # of torch

needs_no_card = pytest.mark.skipif(torch.cuda.is_available(), reason="a real card is the better test")
pytestmark = [needs_no_card, pytest.mark.usefixtures("host_gpu")]


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Capture:
    """Sphere, torus and box: 4 views of 20 pixels, 1 held out."""
    return opaque_solids(train=4, test=1, size=20, supersample=1).capture(tmp_path_factory.mktemp("solids"))


def mlp_backward(
    mlp: ColorMlp, features: Tensor, rays: Tensor, view: Tensor, rgb: Tensor, v_rgb: Tensor
) -> tuple[Tensor, ColorMlp]:
    """By hand: autograd's engine asks for a real card."""
    inputs = torch.cat([features, view[rays.long()]], dim=1)
    one = torch.relu(linear(inputs, mlp.w1, mlp.b1))
    two = torch.relu(linear(one, mlp.w2, mlp.b2))
    v_three = v_rgb * rgb * (1 - rgb)
    v_two = (v_three @ mlp.w3) * (two > 0)
    v_one = (v_two @ mlp.w2) * (one > 0)
    by_weights = (v_one.T @ inputs, v_one.sum(0), v_two.T @ one, v_two.sum(0), v_three.T @ two, v_three.sum(0))
    return v_one @ mlp.w1[:, : features.shape[1]], ColorMlp(*by_weights)


@pytest.mark.parametrize("scene", ["bounded", "forward", "unbounded"])
def test_training_mixes_no_devices_and_seldom_waits(
    scene: str, capture: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(color_mlp, "_backward", mlp_backward)
    one_step, waits, operations = grid_training._one_step, [], []
    frames: list[GridFrame] = []
    first_waits = []
    with pretended_card() as card:

        def step(trainer: Trainer, p: float) -> None:
            card.forget()
            one_step(trainer, p)
            frames.append(trainer.step.grid.frame)
            (waits if any(frame is frames[-1] for frame in frames[:-1]) else first_waits).append([*card.waits])
            operations.append(sum(card.operations.values()))

        monkeypatch.setattr(grid_training, "_one_step", step)
        grid = dvgo.train(capture, replace(TINY, scene=scene), device=CARD)  # type: ignore[arg-type]
    assert grid.density.device == grid.features.device == CARD and len(frames) == TINY.steps
    assert len(waits) >= TINY.steps // 3
    assert max(len(one) for one in first_waits) <= WAITS_FOR_FRAME, Counter(max(first_waits, key=len))
    assert max(len(one) for one in waits) <= MOST_WAITS, Counter(max(waits, key=len))
    assert max(operations) <= MOST_OPERATIONS
