"""What photos say of texels: kernel against twin, order and threads, and what blending does with those who disagree."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from scene.cameras import Camera, look_at
from scene.ops import native
from scene.ops.texture_bake import ObservedPhoto, Samples, Surface, blend, blend_reference, gather, gather_reference

TEXELS, PHOTOS = 900, 6
ZERO, ONE = torch.zeros(PHOTOS, 3), torch.ones(PHOTOS, 3)


@pytest.fixture(params=[1, 2, 5])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = native.len_affinity()
    native.set_threads(request.param)
    yield request.param
    native.set_threads(before)


def ball() -> Surface:
    generator = torch.Generator().manual_seed(1)
    normals = torch.nn.functional.normalize(torch.randn(TEXELS, 3, generator=generator), dim=1)
    return Surface(normals.clone(), normals)


def observed() -> list[ObservedPhoto]:
    """Noise photos of the unit ball from around it, with its true depth, and pixels here and there of no worth."""
    generator = torch.Generator().manual_seed(2)
    photos = []
    for k in range(PHOTOS):
        angle = torch.tensor(2 * torch.pi * k / PHOTOS)
        eye = torch.stack([3 * angle.cos(), 3 * angle.sin(), torch.tensor(0.4)])
        K = torch.tensor([[40.0, 0, 20], [0, 42.0, 16], [0, 0, 1]])
        camera = Camera(K, look_at(eye, torch.zeros(3), torch.tensor([0.0, 0, 1])), 40, 32)
        origins, directions = camera.rays()
        a, b = (directions**2).sum(-1), (origins * directions).sum(-1)
        root = b * b - a * ((origins**2).sum(-1) - 1)
        depth = torch.where(root > 0, (-b - root.clamp_min(0).sqrt()) / a, 0)
        worth = torch.rand(32, 40, generator=generator).clamp_min(0.1)
        worth[torch.rand(32, 40, generator=generator) < 0.03] = 0
        rgb = torch.randint(0, 256, (32, 40, 3), generator=generator, dtype=torch.uint8)
        photos.append(ObservedPhoto(camera, rgb, worth, depth))
    return photos


def gathered(keep: int = 3) -> Samples:
    samples = Samples.empty(TEXELS, keep)
    for view, photo in enumerate(observed()):
        gather(ball(), photo, view, samples, tolerance=0.05, grazing=0.15)
    return samples


def test_gather_equals_its_twin() -> None:
    got, wanted = gathered(), Samples.empty(TEXELS, 3)
    for view, photo in enumerate(observed()):
        gather_reference(ball(), photo, view, wanted, tolerance=0.05, grazing=0.15)
    assert torch.allclose(got.weights, wanted.weights, rtol=1e-3, atol=1e-4)
    same = got.views == wanted.views
    assert float(same.float().mean()) > 0.999  # two photos that see a texel equally well may swap by rounding
    apart = (got.colors.int() - wanted.colors.int()).abs().amax(-1)
    assert int(apart[same].max()) <= 1
    assert 0.3 < float((got.weights[:, 0] > 0).float().mean()) < 1


def test_threads_do_not_change_a_bit(threads: int) -> None:
    got = gathered()
    native.set_threads(1)
    wanted = gathered()
    assert torch.equal(got.weights, wanted.weights)
    assert torch.equal(got.colors, wanted.colors)
    assert torch.equal(got.views, wanted.views)


def test_the_best_come_first_and_are_those_of_all_photos() -> None:
    few, many = gathered(2), gathered(PHOTOS)
    assert (many.weights[:, :-1] >= many.weights[:, 1:]).all()
    assert torch.equal(few.weights, many.weights[:, :2])
    assert torch.equal(few.views, many.views[:, :2])


def test_the_far_side_of_the_ball_is_not_seen() -> None:
    samples = Samples.empty(TEXELS, 1)
    photo = observed()[0]
    gather(ball(), photo, 0, samples, tolerance=0.05, grazing=0.0)
    towards = torch.nn.functional.normalize(photo.camera.center, dim=0)
    beyond_horizon = (ball().normals @ towards) < 1 / float(photo.camera.center.norm()) - 0.01
    assert not samples.weights[beyond_horizon].any()


def test_blend_equals_its_twin() -> None:
    samples = gathered(5)
    generator = torch.Generator().manual_seed(5)
    gains, offsets = 0.8 + 0.4 * torch.rand(PHOTOS, 3, generator=generator), 9 * ZERO + 3
    got = blend(samples, gains, offsets, power=4, spread=30)
    wanted = blend_reference(samples, gains, offsets, power=4, spread=30)
    assert torch.allclose(got, wanted, atol=0.05)


def test_one_photo_that_shows_something_else_changes_nothing() -> None:
    weights = torch.tensor([[1.5, 1.0, 0.9, 0.8]])
    colors = torch.tensor([[[255, 0, 255], [100, 90, 80], [102, 90, 80], [101, 91, 80]]], dtype=torch.uint8)
    samples = Samples(weights, colors, torch.tensor([[0, 1, 2, 3]], dtype=torch.int16))
    color = blend(samples, ONE, ZERO, power=4, spread=20)[0]
    assert (color - torch.tensor([101.0, 90.3, 80.0])).abs().max() < 1.5


def test_a_high_power_takes_the_best_photo_a_low_one_the_mean() -> None:
    samples = Samples(
        torch.tensor([[2.0, 1.0]]),
        torch.tensor([[[100, 100, 100], [110, 110, 110]]], dtype=torch.uint8),
        torch.tensor([[0, 1]], dtype=torch.int16),
    )
    assert float(blend(samples, ONE, ZERO, power=20, spread=1e6)[0, 0]) == pytest.approx(100, abs=0.01)
    assert float(blend(samples, ONE, ZERO, power=0, spread=1e6)[0, 0]) == pytest.approx(105, abs=0.01)


def test_texels_without_samples_stay_black_and_none_make_none() -> None:
    assert not blend(Samples.empty(4, 2), ONE, ZERO, power=4, spread=20).any()
    assert blend(Samples.empty(0, 2), ONE, ZERO, power=4, spread=20).shape == (0, 3)


def test_wrong_sizes_are_told() -> None:
    photo = observed()[0]
    with pytest.raises(ValueError, match="camera's size"):
        narrow = ObservedPhoto(photo.camera, photo.rgb[:, :-1], photo.worth, photo.depth)
        gather(ball(), narrow, 0, Samples.empty(TEXELS, 2), tolerance=1, grazing=0)
    with pytest.raises(ValueError, match="samples a texel"):
        Samples.empty(3, 99)
    with pytest.raises(ValueError, match="gains are given for 2"):
        blend(gathered(), torch.ones(2, 3), torch.zeros(2, 3), power=1, spread=1)
