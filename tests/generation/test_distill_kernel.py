"""The kernel: which noises it adds up, what is perpendicular, and how gradients are tamed."""

from __future__ import annotations

import pytest
import torch

from generation.distill_kernel import (
    Noises,
    Prompts,
    Scales,
    cfg,
    clip_pixels,
    combined,
    perp,
    predict,
    surrogate_loss,
    tamed,
    weights,
)
from generation.guidance import Guidance
from generation.guidance_schedules import Ramp
from generation.priors import Condition, GaussianPrior

GENERATOR = torch.Generator().manual_seed(0)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


def test_the_kernel_is_linear_and_scales_may_differ_by_picture() -> None:
    noises = Noises(*(normal(3, 2, 4, 4) for _ in range(6)))
    each = torch.tensor([1.0, 0.0, -2.0])
    found = combined(noises, Scales(text=2.0, negative=each, drawn=-1.0))
    for i in range(3):
        wanted = 2 * noises[0][i] + each[i] * noises[1][i] - noises[3][i]  # type: ignore[index]
        torch.testing.assert_close(found[i], wanted)


def test_cfg_of_one_is_the_prompt_alone_and_of_zero_none() -> None:
    text, null, zero = normal(2, 1, 3, 3), normal(2, 1, 3, 3), torch.zeros(2, 1, 3, 3, dtype=torch.float64)
    for scale, wanted in ((1.0, text), (0.0, null), (3.0, null + 3 * (text - null))):
        found = combined(Noises(text=text, null=null, repelled=zero), cfg(scale))
        torch.testing.assert_close(found, wanted)


def test_perp_has_nothing_along_its_axis_and_keeps_the_rest() -> None:
    vector, axis = normal(5, 3, 4, 4), normal(5, 3, 4, 4)
    found = perp(vector, axis)
    assert float((found * axis).flatten(1).sum(1).abs().max()) < 1e-9
    along = vector - found
    cosine = torch.nn.functional.cosine_similarity(along.flatten(1), axis.flatten(1))
    torch.testing.assert_close(cosine.abs(), torch.ones_like(cosine))
    assert float(perp(axis, axis).abs().max()) < 1e-9


def test_perp_neg_turns_away_only_across_the_wanted_direction() -> None:
    names = ("front", "side", "back", None)
    prior = GaussianPrior({name: (normal(1, 3, 3), torch.ones(1, 3, 3, dtype=torch.float64)) for name in names})
    conditions = tuple(Condition((name,) * 2) for name in ("front", "side", "back"))
    mix = torch.tensor([[0.5, 0.0], [0.5, 0.2], [0.0, 0.8]], dtype=torch.float64)
    repel = torch.tensor([[-0.7, -1.5], [-0.3, -0.1], [0.0, 0.0]], dtype=torch.float64)
    z_t, t = normal(2, 1, 3, 3), torch.tensor([0.4, 0.4], dtype=torch.float64)
    prompts = Prompts(conditions, Condition((None,) * 2), mix=mix, repel=repel)
    found = predict(prior, prompts, z_t, t, cfg(2.0))
    each = prior.predict(z_t, t, [*conditions, Condition((None,) * 2)])
    null = each[3]
    for n in range(2):
        positive = sum(mix[p, n] * each[p, n] for p in range(3)) - null[n]
        wanted = torch.zeros_like(positive)
        for p in range(3):
            d = each[p, n] - null[n]
            wanted += repel[p, n] * (d - (d * positive).sum() / (positive * positive).sum() * positive)
        assert found.repelled is not None and found.text is not None
        torch.testing.assert_close(found.repelled[n], wanted)
        torch.testing.assert_close(found.text[n] - null[n], positive)
        assert abs(float((found.repelled[n] * positive).sum())) < 1e-9


def test_weights_turn_noise_into_pictures_and_velocities() -> None:
    a, s = torch.tensor([0.8, 0.6]), torch.tensor([0.6, 0.8])
    assert weights("one", a, s).tolist() == [1, 1]
    torch.testing.assert_close(weights("sds", a, s), 1 - a**2)
    torch.testing.assert_close(weights("fantasia3d", a, s), a * (1 - a**2))
    torch.testing.assert_close(weights("x0", a, s), (1 - a**2).sqrt() / a)
    torch.testing.assert_close(weights("velocity", a, s), 1 / a)


def test_the_surrogate_has_the_gradient_and_survives_nan() -> None:
    z = normal(4, 3, 2, 2).requires_grad_()
    gradient = normal(4, 3, 2, 2)
    gradient[0, 0, 0, 0] = torch.nan
    surrogate_loss(z, gradient).backward()
    torch.testing.assert_close(z.grad, gradient.nan_to_num() / 4)


def test_clamps_open_over_the_run() -> None:
    guidance = Guidance("sds", 1.0, clamp=Ramp(2.0, 8.0, (0, 1000)))
    gradient = torch.linspace(-10, 10, 9).view(1, 1, 3, 3)
    for step, most in ((0, 2.0), (500, 5.0), (1000, 8.0), (5000, 8.0)):
        assert float(tamed(gradient, guidance, step).abs().max()) == pytest.approx(most)
    normed = tamed(normal(3, 2, 4, 4), Guidance("csd", 1.0, normalise=True), 0)
    torch.testing.assert_close(normed.flatten(1).norm(dim=1), torch.ones(3, dtype=torch.float64))


def test_pixels_are_clipped_in_their_direction() -> None:
    gradient = normal(2, 3, 5, 5)
    found = clip_pixels(gradient, 0.5)
    lengths, before = found.norm(dim=1), gradient.norm(dim=1)
    torch.testing.assert_close(lengths, before.clamp(max=0.5))
    torch.testing.assert_close(found * before[:, None], gradient * lengths[:, None])
