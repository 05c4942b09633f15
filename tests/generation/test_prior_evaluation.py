"""The judges of samples, on pictures whose answer is known."""

from __future__ import annotations

import torch

from generation.prior_data import VIEWS, make_part
from generation.prior_evaluation import (
    background_of,
    cameras_of,
    consistency,
    contact_sheet,
    grain,
    hull_iou,
    sampled_pictures,
    true_pictures,
)
from generation.trained_prior import TrainedPrior
from tests.generation.prior_toys import toy_data, toy_network

DATA = make_part(3, 32, seed=1, count=8)


def test_true_views_agree_on_a_hull_and_mixed_up_ones_do_not() -> None:
    pictures = true_pictures(DATA)
    mixed = torch.stack(
        [pictures[(torch.arange(len(pictures)) + view) % len(pictures), view] for view in range(VIEWS)], 1
    )
    assert consistency(pictures, DATA) > 0.85
    assert consistency(mixed, DATA) < consistency(pictures, DATA) - 0.1


def test_views_that_change_places_agree_less() -> None:
    pictures, rows = true_pictures(DATA), range(len(DATA))
    right = [hull_iou(pictures[i], cameras_of(DATA, i)) for i in rows]
    wrong = [hull_iou(pictures[i, [1, 0, 2, 3]], cameras_of(DATA, i)) for i in rows]
    assert sum(wrong) < sum(right) - 0.2
    assert all(0 <= score <= 1 for score in [*right, *wrong])


def test_nothing_is_no_shape() -> None:
    assert hull_iou(torch.ones(VIEWS, 3, 32, 32), cameras_of(DATA, 0)) == 0


def test_grain_is_the_rms_in_the_corners() -> None:
    generator = torch.Generator().manual_seed(0)
    pictures = torch.full((16, VIEWS, 3, 32, 32), 0.2)
    assert grain(pictures) < 1e-6
    assert abs(grain(pictures + 0.1 * torch.randn(pictures.shape, generator=generator)) - 0.1) < 0.005
    pictures[..., 8:24, 8:24] = -1  # the object itself does not count
    assert grain(pictures) < 1e-6


def test_the_background_is_what_most_of_the_border_shows() -> None:
    pictures = torch.tensor([0.1, -0.5, 0.7]).view(1, 3, 1, 1).repeat(VIEWS, 1, 32, 32)
    pictures[0, :, 20:] = 1.0
    torch.testing.assert_close(background_of(pictures), torch.tensor([0.1, -0.5, 0.7]))


def test_a_sheet_has_the_views_of_a_set_side_by_side() -> None:
    pictures = torch.linspace(-1, 1, 3 * VIEWS).view(3, VIEWS, 1, 1, 1).expand(-1, -1, 3, 4, 4)
    sheet = contact_sheet(pictures, columns=2)
    assert sheet.shape == (2 * 4, 2 * VIEWS * 4, 3)
    assert sheet[0, ::4, 0].tolist() == [round(k / 11 * 255) for k in range(8)]
    assert sheet[4, ::4, 0].tolist() == [round(k / 11 * 255) for k in range(8, 12)] + [255] * 4


def test_samples_are_made_for_the_captions_and_cameras_of_the_data() -> None:
    prior, counted = TrainedPrior(toy_network()), []
    made = sampled_pictures(
        prior, toy_data(), 5, guidance=1.5, seed=0, steps=2, progress=lambda done, total: counted.append((done, total))
    )
    assert made.shape == (5, VIEWS, 3, 8, 8)
    assert counted == [(0, 5), (5, 5)]
    assert not torch.allclose(made[0], made[1], atol=1e-3)
