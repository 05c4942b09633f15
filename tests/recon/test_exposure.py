"""Exposure per photo: learned for trained photos, cross-fitted for held-out ones."""

from __future__ import annotations

import pytest
import torch

from recon.exposure import Exposures, cross_fitted, fit_exposure
from scene.ops.photometric_loss import apply_exposure


def test_exposures_of_known_photos_are_found_up_to_their_common_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    scene = torch.rand(24, 32, 3, generator=generator)
    log_gains = torch.tensor([-0.2, 0.0, 0.2])
    offsets = torch.tensor([0.03, -0.01, -0.02])
    exposures = Exposures.identity(4, (0, 1, 2))
    for step in range(900):
        view = step % 3
        truth = scene * log_gains[view].exp() + offsets[view]
        exposure = exposures.of(view)
        v_shown = 2 * (apply_exposure(scene, exposure) - truth) / scene.numel()
        exposures.learn(view, torch.stack([(v_shown * scene).sum((0, 1)), v_shown.sum((0, 1))]), step / 900)
    assert torch.allclose(exposures.values[:3, 0], log_gains[:, None].expand(3, 3), atol=0.01)
    assert torch.allclose(exposures.values[:3, 1], offsets[:, None].expand(3, 3), atol=0.01)
    assert torch.equal(exposures.values[3], torch.zeros(2, 3)), "a held-out photo's exposure is never learned"


def test_checkpoint_round_trip_keeps_everything() -> None:
    exposures = Exposures.identity(3, (0, 2))
    exposures.learn(2, torch.rand(2, 3), 0.1)
    again = Exposures.from_tensors(exposures.tensors(), (0, 2))
    for name, value in exposures.tensors().items():
        assert torch.equal(value, again.tensors()[name]), name


def test_cross_fit_undoes_an_exposure_change_but_forgives_no_wrong_picture() -> None:
    generator = torch.Generator().manual_seed(2)
    scene = torch.rand(32, 40, 3, generator=generator) * 0.6 + 0.1
    truth = scene * torch.tensor([1.2, 1.0, 0.9]) + 0.02
    assert torch.allclose(cross_fitted(scene, truth), truth, atol=1e-5)
    other = torch.rand(32, 40, 3, generator=generator)
    wrong = ((cross_fitted(other, truth) - truth) ** 2).mean()
    spread = ((truth - truth.mean((0, 1))) ** 2).mean()
    assert float(wrong) > 0.95 * float(spread), "an unrelated picture earns no more than the mean colour would"


def test_no_pixel_is_judged_by_a_fit_that_it_took_part_in() -> None:
    scene = torch.rand(16, 16, 3, generator=torch.Generator().manual_seed(3)) * 0.5
    field = (torch.arange(16)[:, None] // 2 + torch.arange(16) // 2) % 2 == 0
    truth = torch.where(field[..., None], scene * 1.5, scene)  # a fit on all would settle between the two exposures
    fitted = cross_fitted(scene, truth)
    assert torch.allclose(fitted[field], scene[field], atol=1e-5)
    assert torch.allclose(fitted[~field], scene[~field] * 1.5, atol=1e-5)


def test_a_picture_of_one_pixel_stays_as_it_is() -> None:
    pixel = torch.full((1, 1, 3), 0.5)
    assert torch.equal(cross_fitted(pixel, pixel * 0.9), pixel)


def test_a_flat_channel_gets_an_offset_only() -> None:
    gain, offset = fit_exposure(torch.full((10, 3), 0.25), torch.full((10, 3), 0.5))
    assert gain.tolist() == [1.0, 1.0, 1.0]
    assert offset.tolist() == pytest.approx([0.25] * 3)
