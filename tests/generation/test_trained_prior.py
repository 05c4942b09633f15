"""The trained prior as distillation sees it: predictions by hand, conditions, refusals."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from generation.captions import PAD, TOKENS, tokenize
from generation.networks import Given, camera_numbers, resized
from generation.priors import Condition, Prior, clean_of_noise
from generation.trained_prior import TrainedPrior, tokens_of
from scene.errors import InputError
from tests.generation.prior_toys import toy_cameras, toy_guide, toy_network


def toy_prior(views: int = 4) -> TrainedPrior:
    return TrainedPrior(toy_network(), toy_guide(), views=views)


def noisy(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 8, 8, generator=g), torch.rand(count // 4, generator=g).repeat_interleave(4)


def red(count: int, **more: object) -> Condition:
    return replace(Condition(("a red chair",) * count, toy_cameras(count // 4)), **more)


def test_predictions_agree_with_a_computation_by_hand() -> None:
    prior: Prior = toy_prior()
    z, t = noisy(8)
    t[:4] = 0.02  # below the least time
    got = prior.predict(z, t, [red(8), Condition((None,) * 8)])
    cameras = torch.stack([camera_numbers(camera) for camera in toy_cameras(2)]).view(2, 4, 16)
    words = torch.tensor([tokenize("a red chair")] * 2)
    silent = Given(torch.full((2, TOKENS), PAD), torch.zeros(2, 4, 16), torch.zeros(2, 4))
    for k, given in enumerate((Given(words, cameras, torch.ones(2, 4)), silent)):
        x = toy_network()(z.view(2, 4, 3, 8, 8), t.view(2, 4), given).view(8, 3, 8, 8)
        wide = t.view(-1, 1, 1, 1)
        wanted = z + (1 - wide) * (z - x) / wide.clamp(min=0.05)
        torch.testing.assert_close(got[k], wanted, atol=1e-4, rtol=1e-4)
        a, s = prior.levels(t[4:])
        torch.testing.assert_close(clean_of_noise(z[4:], got[k, 4:], a, s), x[4:], atol=1e-4, rtol=1e-4)


def test_conditions_in_one_call_are_those_of_their_own_calls() -> None:
    prior = toy_prior()
    z, t = noisy(8)
    picture = torch.rand(3, 20, 20, generator=torch.Generator().manual_seed(3))
    conditions = [
        red(8),
        red(8, image=picture),
        Condition(("a blue mug",) * 4 + (None,) * 4),
        Condition((None,) * 8, toy_cameras(2), picture, toy_cameras()[1]),
    ]
    together = prior.predict(z, t, conditions)
    for k, condition in enumerate(conditions):
        torch.testing.assert_close(together[k], prior.predict(z, t, [condition])[0], atol=1e-4, rtol=1e-4)
        assert all(not torch.allclose(together[k], together[j], atol=1e-3) for j in range(k))


def test_views_are_denoised_together_or_singly() -> None:
    z, t = noisy(4)
    changed = z.clone()
    changed[0] += 1
    for views, coupled in ((4, True), (1, False)):
        prior = toy_prior(views)
        apart = prior.predict(changed, t, [red(4)]) - prior.predict(z, t, [red(4)])
        assert bool(apart[0, 1:].abs().max() > 1e-3) is coupled


def test_a_sets_views_share_a_caption_whose_view_the_cameras_say() -> None:
    prior = toy_prior()
    z, t = noisy(4)
    viewed = replace(red(4), texts=tuple(f"a red chair, {view} view" for view in ("front", "side", "back", "overhead")))
    assert torch.equal(prior.predict(z, t, [viewed]), prior.predict(z, t, [red(4)]))
    with pytest.raises(InputError, match="share one caption"):
        prior.predict(z, t, [replace(red(4), texts=("a red chair", "a red mug") * 2)])
    single = toy_prior(views=1)
    assert not torch.allclose(single.predict(z, t, [viewed]), single.predict(z, t, [red(4)]), atol=1e-3)


def test_single_views_take_a_picture_by_its_features() -> None:
    prior = toy_prior(views=1)
    z, t = noisy(4)
    pictures = [torch.zeros(3, 8, 8), torch.ones(3, 8, 8)]
    first, second = prior.predict(z, t, [red(4, image=picture) for picture in pictures])
    assert not torch.allclose(first, second, atol=1e-4)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a zeppelin", "zeppelin"),
        ("chair " * 20_000, "24 words|chair"),
        (
            "a red chair with blue legs next to a red chair with blue legs and a mug and a car and a house and a lamp",
            "24",
        ),
    ],
)
def test_captions_that_it_was_not_trained_for_are_refused_in_one_line(text: str, told: str) -> None:
    z, t = noisy(4)
    with pytest.raises(InputError, match=told) as caught:
        toy_prior().predict(z, t, [Condition((text,) * 4)])
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 2000


def test_pictures_that_it_cannot_take_are_refused() -> None:
    z, t = noisy(4)
    with pytest.raises(InputError, match=r"\[3, H, W\]"):
        toy_prior().predict(z, t, [red(4, image=torch.zeros(8, 8))])
    with pytest.raises(InputError, match="clip_guide"):
        TrainedPrior(toy_network()).predict(z, t, [red(4, image=torch.zeros(3, 8, 8))])


def test_wrong_shapes_are_the_callers_mistake() -> None:
    prior = toy_prior()
    z, t = noisy(4)
    for bad_z, bad_t, condition in (
        (z[:3], t[:3], red(4)),
        (z[..., :7], t, red(4)),
        (z, t[:2], red(4)),
        (z, t, red(8)),
    ):
        with pytest.raises(ValueError, match=r"must be|needs"):
            prior.predict(bad_z, bad_t, [condition])


def test_gradients_flow_to_the_pictures_only_if_asked_for() -> None:
    prior = toy_prior()
    z, t = noisy(4)
    assert not prior.predict(z, t, [red(4)]).requires_grad
    z.requires_grad_()
    prior.predict(z, t, [red(4)]).sum().backward()
    assert z.grad is not None
    assert float(z.grad.abs().sum()) > 0
    assert all(parameter.grad is None for parameter in prior.network.parameters())


def test_colours_are_encoded_and_decoded_and_larger_pictures_averaged() -> None:
    prior = toy_prior()
    pictures = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(prior.decode(prior.encode(pictures)), pictures)
    flat = torch.full((1, 3, 64, 64), 0.3)
    torch.testing.assert_close(prior.encode(flat), torch.full((1, 3, 8, 8), -0.4))
    large = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    small = resized(large, 8)
    assert float(small.detach().std()) < 0.5 * float(large.detach().std())
    small.sum().backward()
    assert large.grad is not None and bool((large.grad > 0).all())


def test_samples_depend_on_the_seed_alone_and_follow_the_guidance() -> None:
    prior = toy_prior()

    def sampled(seed: int, guidance: float) -> Tensor:
        return prior.sample(red(4), torch.Generator().manual_seed(seed), guidance=guidance, steps=5)

    assert torch.equal(sampled(0, 2.0), sampled(0, 2.0))
    assert not torch.allclose(sampled(0, 2.0), sampled(1, 2.0), atol=1e-3)
    assert not torch.allclose(sampled(0, 2.0), sampled(0, 1.0), atol=1e-4)


def test_a_sampler_of_a_perfect_network_arrives_at_its_picture() -> None:
    prior = toy_prior()
    target = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    prior.clean = lambda z_t, t, conditions: target.expand(len(conditions), -1, -1, -1, -1)  # type: ignore[method-assign]
    made = prior.sample(red(4), torch.Generator().manual_seed(0), steps=10)
    torch.testing.assert_close(made, target, atol=1e-4, rtol=0)


def test_no_caption_and_an_empty_one_are_padding_and_others_end_in_it() -> None:
    assert tokens_of(None) == tokens_of("") == (PAD,) * TOKENS
    assert list(tokens_of("a red chair")) == tokenize("a red chair")
