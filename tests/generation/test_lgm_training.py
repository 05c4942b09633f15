"""Training of LGM-tiny: the loss by hand, distortions, stopping and going on, and that held-out objects profit."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from generation import lgm_training
from generation.lgm import TOY_LGM, LgmLayout, LgmNetwork
from generation.lgm_training import (
    DEPTH,
    FEATURES,
    TILT,
    TURN,
    Seen,
    cameras_of,
    chamfer,
    distorted,
    drawn,
    jittered,
    lgm_loss,
    reconstruction_loss,
    reconstruction_scores,
    surface_shown,
    truth,
    turned,
)
from generation.prior_data import HELD_OUT_PART, draw_part, make_part
from generation.prior_training import Hooks, Pace, Trainer, new_network, train
from generation.surface_points import surface_points
from generation.views import orbit_camera
from scene.errors import Interrupted
from scene.gaussians import Gaussians
from tests.generation.prior_toys import toy_data, toy_guide

WHITE = torch.ones(1, 3, 1, 1)


def trainer_of(layout: LgmLayout = TOY_LGM, rate: float = 4e-3) -> Trainer:
    return Trainer(new_network(layout, 0), rate=rate, warm_up=5, average=0.9, seed=5, bfloat16=False)


def test_the_loss_is_the_weighted_sum_of_four_errors() -> None:
    guide, data = toy_guide(), toy_data()
    true = truth(data, 0, WHITE, (0, 1))
    assert float(reconstruction_loss(true, true, guide)) == 0
    off = Seen(true.rgb, true.alpha + 0.3, true.depth - 0.2)
    torch.testing.assert_close(float(reconstruction_loss(off, true, guide)), 0.09 + DEPTH * 0.04, atol=1e-6, rtol=1e-4)
    darker = Seen(0.9 * true.rgb, true.alpha, true.depth)
    apart = (guide.features(2 * darker.rgb[4:] - 1) - guide.features(2 * true.rgb[4:] - 1)).square().mean()
    wanted = (0.1 * true.rgb).square().mean() + FEATURES * apart
    torch.testing.assert_close(reconstruction_loss(darker, true, guide), wanted)


def test_true_depth_is_that_of_points_on_the_true_surface() -> None:
    """Pictures, depths, cameras and objects of a part belong together: pixels go back to the surface."""
    data, objects = make_part(HELD_OUT_PART, 32, seed=3, count=4), draw_part(HELD_OUT_PART, 32, 3, 4).objects
    for row, model in enumerate(objects):
        surface = surface_points(model, 8192, torch.Generator().manual_seed(0)).points
        points = surface_shown(truth(data, row, WHITE, (0,)), cameras_of(data, row, 0))
        # Depth is a mean over a pixel, which cuts corners; typical points lie as near as the samples do.
        assert float(torch.cdist(points, surface).amin(1).median()) < 0.02


def test_drawn_depth_is_weighted_by_alpha_and_counts_from_the_origin() -> None:
    camera = orbit_camera(0, 0, 40, 2.5, 16)
    wall = torch.cartesian_prod(torch.linspace(-1, 1, 40), torch.linspace(-1, 1, 40))
    for x, opacity in ((0.3, 0.999), (-0.2, 0.4)):
        points = torch.cat([torch.full((1600, 1), x), wall], dim=1)
        made = Gaussians.from_points(points, torch.zeros(1600, 3, dtype=torch.uint8), sh_degree=0, opacity=opacity)
        seen = drawn(made, [camera], torch.ones(3))
        torch.testing.assert_close(seen.depth, -x * seen.alpha, atol=2e-3, rtol=0)


def test_distortion_keeps_flat_pictures_and_moves_others_a_little() -> None:
    g = torch.Generator().manual_seed(0)
    flat = torch.full((3, 3, 32, 32), 0.3)
    torch.testing.assert_close(distorted(flat, g), flat)
    ramp = torch.linspace(0, 1, 32).expand(4, 3, 32, 32)
    moved = distorted(ramp, g)
    assert bool((moved[..., 1:] >= moved[..., :-1] - 1e-6).all())  # nothing folds over
    shift = (moved - ramp).abs().amax((1, 2, 3)) * 31  # pixels
    assert bool(((shift > 0.2) & (shift < 32 / 7 / 4 + 0.6)).all())  # a quarter of a cell, and what blurring adds
    assert not torch.equal(moved[0], moved[1])


def test_jittered_cameras_still_look_at_the_origin_from_as_far() -> None:
    g, camera = torch.Generator().manual_seed(0), orbit_camera(40, 20, 40, 2.5, 32)
    limit = math.radians(TURN) + math.radians(TILT)
    angles = []
    for _ in range(50):
        other = jittered(camera, g)
        torch.testing.assert_close(other.c2w[:3, :3] @ other.c2w[:3, :3].T, torch.eye(3), atol=1e-5, rtol=0)
        torch.testing.assert_close(-other.center / 2.5, other.forward, atol=1e-5, rtol=0)
        angles.append(float(torch.acos((other.forward @ camera.forward).clamp(max=1))))
    assert 0.5 * limit < max(angles) <= limit


def test_rotations_turn_by_the_right_hand() -> None:
    z = torch.tensor([0.0, 0.0, 1.0])
    torch.testing.assert_close(turned(z, math.pi / 2) @ torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 1, 0]))
    torch.testing.assert_close(turned(z, 0.4) @ turned(z, -0.4), torch.eye(3))


def test_chamfer_is_the_distance_of_points_from_the_surface() -> None:
    model = draw_part(0, 32, 0, 1).objects[0]
    points = surface_points(model, 1024, torch.Generator().manual_seed(9)).points
    assert chamfer(points, model, seed=0) < 0.02
    assert 8 < chamfer(points + torch.tensor([10.0, 0, 0]), model, seed=0) < 10
    assert 0.1 < chamfer(points[:0], model, seed=0) < 1


def test_a_stopped_training_goes_on_bit_for_bit() -> None:
    data, guide = toy_data(), toy_guide()
    loss_of = lgm_loss(data, guide, 2)
    whole, first, second = trainer_of(), trainer_of(), trainer_of()
    train(whole, loss_of, Pace(5), Hooks())
    kept = []
    with pytest.raises(Interrupted):
        train(first, loss_of, Pace(5), Hooks(save=kept.append, stop=lambda: first.step == 2))
    second.restore(copy.deepcopy(kept[-1]))
    train(second, loss_of, Pace(5), Hooks())
    wanted, found = whole.checkpoint().tensors, second.checkpoint().tensors
    assert wanted.keys() == found.keys()
    assert [name for name in wanted if not torch.equal(wanted[name], found[name])] == []


def test_objects_never_seen_come_out_better_after_seconds_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Solid things at 16 pixels, without distortions and without the features of a guide that has learned nothing."""
    for name in ("FEATURES", "DISTORT", "JITTER"):
        monkeypatch.setattr(lgm_training, name, 0.0)
    part = make_part(0, 16, 0, 128)
    rows = [i for i, kind in enumerate(part.kinds) if kind in ("ball", "snowman", "bottle", "box", "house", "mug")]
    data, held_out = part.select(rows[:-6]), part.select(rows[-6:])
    trainer = trainer_of(LgmLayout(16, 2, (16, 32), (False, True), 1, 16))
    assert isinstance(trainer.average, LgmNetwork)
    before = reconstruction_scores(trainer.average, held_out, ())
    loss_of = lgm_loss(data, toy_guide(), 2)
    for step in range(40):
        trainer.update(loss_of, step / 40)
    after = reconstruction_scores(trainer.average, held_out, [draw_part(0, 16, 0, 128).objects[rows[-6]]])
    assert after["psnr"] > before["psnr"] + 1.5  # 3.6 after 50 steps when measured
    assert after["psnr"] > after["blank_psnr"] + 4  # 6.5
    assert 0 < after["gaussians"] < before["gaussians"] == 4 * 16 * 16
    assert 0 < after["true_chamfer"] < after["chamfer"] < 0.5
