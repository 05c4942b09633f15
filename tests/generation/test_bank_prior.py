"""The bank prior: which objects, from where, over what; and that words and none agree about what is certain."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from generation.bank_prior import BankConfig, BankPrior
from generation.captions import parse
from generation.object_render import composited, render_objects
from generation.priors import Condition, noised
from generation.views import orbit_camera, orthogonal_cameras
from scene.cameras import Camera
from scene.errors import InputError

CHAIR, MUG = "a red chair with blue legs", "a yellow mug"
SMALL = BankConfig(members=3, mixed=4, size=16, samples=1)


def around(azimuth: float = 0.0, elevation: float = 15.0) -> tuple[Camera, ...]:
    return orthogonal_cameras(azimuth, elevation, 40.0, 2.7, 16)


def pictures(prior: BankPrior, text: str, cameras: tuple[Camera, ...], background: float = 1.0) -> Tensor:
    """[K, V, 3, h, w] in -1..1, rendered apart from the prior."""
    objects = list(prior.members(text))
    seen = render_objects(objects, [cameras] * len(objects), samples=prior.config.samples)
    return 2 * composited(seen, torch.full((3,), background)) - 1


def predicted(prior: BankPrior, clean: Tensor, t: float, condition: Condition) -> tuple[Tensor, Tensor]:
    """Noise that the prior finds in clean pictures [N, 3, h, w] at t, and z_t."""
    times = torch.full((len(clean),), t)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    z_t = noised(clean, noise, *prior.levels(times))
    return prior.predict(z_t, times, [condition])[0], z_t


@pytest.fixture(scope="module")
def prior() -> BankPrior:
    return BankPrior([CHAIR, MUG], SMALL)


def test_the_noise_is_that_of_the_member_that_is_shown_with_or_without_words(prior: BankPrior) -> None:
    cameras = (*around(), *around(30, 0))  # two sets
    clean = torch.cat([pictures(prior, CHAIR, cameras[:4])[1], pictures(prior, MUG, cameras[4:])[2]])
    words = Condition((f"{CHAIR}, front view",) * 4 + (MUG,) * 4, cameras)
    found, z_t = predicted(prior, clean, 0.4, words)
    a, s = (level.view(-1, 1, 1, 1) for level in prior.levels(torch.full((8,), 0.4)))
    wanted = s * (z_t - a * clean) / (a**2 * SMALL.kernel**2 + s**2)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
    null, _ = predicted(prior, clean, 0.4, Condition((None,) * 8, cameras))
    torch.testing.assert_close(null, found, rtol=0, atol=1e-4)


def test_objects_depend_on_their_caption_and_the_seed_alone(prior: BankPrior) -> None:
    other = BankPrior([MUG, f"a photo of {MUG}, side view"], SMALL)
    assert len(other.banks) == 1
    for mine, theirs in zip(prior.members(MUG), other.members("a photo of a yellow cup"), strict=True):
        assert torch.equal(mine.size, theirs.size) and torch.equal(mine.rgb, theirs.rgb)
    again = BankPrior([MUG], replace(SMALL, seed=1))
    assert not torch.equal(prior.members(MUG)[0].rgb, again.members(MUG)[0].rgb)


def test_what_is_remembered_is_what_would_be_rendered(prior: BankPrior) -> None:
    key, cameras = next(iter(prior.banks)), around(60)
    first = prior.rgba(key, cameras)
    assert torch.equal(prior.rgba(key, cameras[::-1]), first.flip(1))
    small = BankPrior([CHAIR], replace(SMALL, kept=2))
    assert torch.equal(small.rgba(key, cameras), first) and torch.equal(small.rgba(key, cameras), first)
    large = tuple(camera.resized(64, 64) for camera in cameras)  # of a scene that is drawn larger
    torch.testing.assert_close(prior.rgba(key, large), first, rtol=0, atol=1e-4)


def test_far_from_every_member_the_noise_stays_finite(prior: BankPrior) -> None:
    clean = torch.full((4, 3, 16, 16), 5.0)
    for t in (1e-3, 0.02, 0.98, 0.999):
        found, _ = predicted(prior, clean, t, Condition((MUG,) * 4, around()))
        assert bool(found.isfinite().all())


def test_a_scene_may_stand_before_any_of_the_backgrounds() -> None:
    prior = BankPrior([MUG], SMALL)
    for background in (0.0, 1.0):
        clean = pictures(prior, MUG, around(), background)[0]
        found, z_t = predicted(prior, clean, 0.3, Condition((MUG,) * 4, around()))
        a, s = (level.view(-1, 1, 1, 1) for level in prior.levels(torch.full((4,), 0.3)))
        torch.testing.assert_close(found, s * (z_t - a * clean) / (a**2 * 0.01 + s**2), rtol=0, atol=1e-4)


@pytest.mark.parametrize("known", [True, False])
def test_a_picture_chooses_the_member_that_it_shows(known: bool) -> None:
    prior = BankPrior([CHAIR, MUG], replace(SMALL, backgrounds=((1.0, 1.0, 1.0),)))
    camera = orbit_camera(60.0, 15.0, 40.0, 2.7, 16)
    cameras, blank = around(), torch.zeros(4, 3, 16, 16)
    for k in range(3):
        image = 0.5 * (pictures(prior, MUG, (camera,))[k, 0] + 1)
        condition = Condition((MUG,) * 4, cameras, image, camera if known else None)
        found, z_t = predicted(prior, blank, 0.999, condition)  # all noise: the words leave all members open
        a, s = (level.view(-1, 1, 1, 1) for level in prior.levels(torch.full((4,), 0.999)))
        mean = (z_t - found * (a**2 * 0.01 + s**2) / s) / a
        torch.testing.assert_close(mean, pictures(prior, MUG, cameras)[k], rtol=0, atol=0.02)


def test_pictures_of_any_size_are_encoded(prior: BankPrior) -> None:
    images = torch.rand(2, 3, 40, 24, generator=torch.Generator().manual_seed(0)).requires_grad_()
    z = prior.encode(images)
    assert z.shape == (2, 3, 16, 16)
    z.sum().backward()
    assert images.grad is not None and float(images.grad.abs().min()) > 0
    plain = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(prior.decode(prior.encode(plain)), plain)


def test_likeness_is_highest_for_the_member_that_is_shown(prior: BankPrior) -> None:
    cameras = around(45)
    for k in range(3):
        images = 0.5 * (pictures(prior, MUG, cameras)[k] + 1)
        noisy = images + 0.1 * torch.randn(images.shape, generator=torch.Generator().manual_seed(k))
        found = prior.likeness(MUG, noisy, cameras)
        assert int(found.argmax()) == k and float(found[k]) == pytest.approx(20, abs=0.3)


def test_what_the_bank_does_not_know_is_said_in_one_line(prior: BankPrior) -> None:
    z, t = torch.zeros(4, 3, 16, 16), torch.full((4,), 0.5)
    with pytest.raises(InputError, match="made for other captions"):
        prior.predict(z, t, [Condition(("a green car",) * 4, around())])
    with pytest.raises(InputError, match="cameras"):
        prior.predict(z, t, [Condition((MUG,) * 4)])
    with pytest.raises(InputError, match="dragon"):
        BankPrior(["a red dragon"], SMALL)
    assert parse(MUG).phrase.noun == "mug"
