"""Score distillation against closed forms: for Gaussian priors the mean gradient of every method is known."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from generation.distill import Distilled, Surrounding, distil, source_loss
from generation.distill_kernel import Prompts
from generation.guidance import PRESETS, Guidance, Inversion, Method, scale_from_threestudio
from generation.guidance_schedules import Times
from generation.priors import Condition, GaussianPrior, Process
from scene.errors import InputError

DRAWS = 4096
SHAPE = (3, 2, 2)
TEXT, WRONG = "a", "b"
NUMBERS = torch.Generator().manual_seed(7)
MEANS = {name: torch.rand(SHAPE, generator=NUMBERS, dtype=torch.float64) - 0.5 for name in (TEXT, WRONG, None)}
VARIANCES = {name: 0.05 + torch.rand(SHAPE, generator=NUMBERS, dtype=torch.float64) for name in (TEXT, WRONG, None)}
PICTURE = torch.rand(SHAPE, generator=NUMBERS, dtype=torch.float64)  # 0..1
Z = 2 * PICTURE - 1


def gaussian(process: Process = "ddpm") -> GaussianPrior:
    return GaussianPrior({name: (MEANS[name], VARIANCES[name]) for name in MEANS}, process)


def prompts(count: int) -> Prompts:
    def all_of(text: str | None) -> Condition:
        return Condition((text,) * count)

    return Prompts((all_of(TEXT),), all_of(None), all_of(WRONG))


def fixed(method: Method, t: float, **changes) -> Guidance:
    """The preset at one time, with an ordinary scale."""
    return replace(PRESETS[method], times=Times("linear", t, t), scale=3.0, **changes)


def drawn(prior: GaussianPrior, guidance: Guidance, count: int = DRAWS, seed: int = 0, **arguments) -> Distilled:
    images = PICTURE.expand(count, *SHAPE).clone().requires_grad_()
    generator = torch.Generator().manual_seed(seed)
    return distil(prior, images, prompts(count), guidance, step=1, steps=10, generator=generator, **arguments)


def noise_at(name: str | None, z: Tensor, a: float, s: float) -> Tensor:
    """The prior's noise, linear in z, so also the mean noise of all z with this mean."""
    return s * (z - a * MEANS[name]) / (a * a * VARIANCES[name] + s * s)


def guided(z: Tensor, a: float, s: float, scale: float = 3.0) -> Tensor:
    null = noise_at(None, z, a, s)
    return null + scale * (noise_at(TEXT, z, a, s) - null)


def along(z: Tensor, times: list[float], levels: Callable[[float], tuple[float, float]], scale: float):
    """Mean of DDIM steps from z at times[0] on, and of the noise before the last one."""
    seen = z
    for now, after in itertools.pairwise(times):
        (a, s), (b, r) = levels(now), levels(after)
        seen = guided(z, a, s, scale)
        z = b * (z - s * seen) / a + r * seen
    return z, seen


def expected(method: Method, t: float, prior: GaussianPrior) -> Tensor:
    def levels(time: float) -> tuple[float, float]:
        a, s = prior.levels(torch.tensor([time], dtype=torch.float64))
        return float(a), float(s)

    a, s = levels(t)
    mean = a * Z
    weight = {"sds": s * s, "one": 1.0, "x0": s / a, "velocity": 1 / a}[PRESETS[method].weighting]
    if method == "csd":  # step 1 of 5000: c_u = -1/5000, c_0 = -1 + 1/5000
        terms = noise_at(TEXT, mean, a, s) - noise_at(WRONG, mean, a, s) / 5000
        return terms - (1 - 1 / 5000) * noise_at(None, mean, a, s)
    if method == "nfsd":
        wrong = noise_at(WRONG, mean, a, s) if t >= 0.2 else 0
        return weight * (guided(mean, a, s) - wrong)
    if method == "vsd":  # the second model is the prior under the wrong words
        return weight * (guided(mean, a, s) - noise_at(WRONG, mean, a, s))
    if method == "ism":
        last = t - 0.1 + 0.05 / 1500  # step 1 of 1500
        start = last - 5 * 0.2
        times = [0.001] if start < 0.001 else [start]
        while times[-1] < last - 1e-9:
            times.append(min(times[-1] + 0.2, last))
        z_t, seen = along(levels(times[0])[0] * Z, [*times, t], levels, 0.0)
        return 0.1 * weight * (guided(z_t, a, s) - seen)
    if method == "sdi":
        times = [0.001 + (t - 0.001) * i / 10 for i in range(11)]
        z_t, _ = along(Z, times, levels, -7.5)
        return weight * (guided(z_t, a, s) - (z_t - a * Z) / s)
    if method == "rfds-rev":
        noise = noise_at(TEXT, mean, a, s)
        return weight * (guided(mean + s * noise, a, s) - noise)
    scale = 0.5 if method == "rfds" else 1.0  # mean of sigmoid(N(0, 1))
    return scale * weight * guided(mean, a, s)


@pytest.mark.parametrize("t", [0.15, 0.6])
@pytest.mark.parametrize("method", sorted(set(PRESETS) - {"hifa"}))
def test_the_mean_gradient_is_the_one_in_closed_form(method: Method, t: float) -> None:
    prior = gaussian("flow" if method.startswith("rfds") else "ddpm")
    changes = {"rescale": 0.0} if method == "x0" else {}
    second = GaussianPrior({TEXT: (MEANS[WRONG], VARIANCES[WRONG])})
    found = drawn(prior, fixed(method, t, **changes), source=second).gradient
    error = found.std(0) / DRAWS**0.5
    away = (found.mean(0) - expected(method, t, prior)).abs()
    assert bool((away <= 3 * error + 1e-6).all()), (away / error).max()


@pytest.mark.parametrize("method", sorted(PRESETS))
def test_the_loss_has_the_gradient_that_was_found(method: Method) -> None:
    images = PICTURE.expand(4, *SHAPE).clone().requires_grad_()
    guidance = replace(fixed(method, 0.5), pictures=0.0)
    second = Surrounding(gaussian(), Z, 0.01)
    generator = torch.Generator().manual_seed(1)
    found = distil(gaussian(), images, prompts(4), guidance, step=0, steps=9, generator=generator, source=second)
    found.loss.backward()
    torch.testing.assert_close(images.grad, 2 * found.gradient / 4)  # z = 2 x - 1
    assert found.clean is not None and found.clean.shape == (4, *SHAPE)


def test_sjc_is_its_denoiser_against_the_picture() -> None:
    # D(zs) = zs - sigma e_cfg, asked at zs / sqrt(1 + sigma^2); g = -(D - z) / sigma, or -(D - zs) / sigma
    guidance = fixed("sjc", 0.4)
    found, plain = (drawn(gaussian(), replace(guidance, variance_reduced=r), count=8) for r in (True, False))
    noise = torch.randn(8, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a, s = (float(level) for level in gaussian().levels(torch.tensor(0.4, dtype=torch.float64)))
    sigma = s / a
    noisy = Z + sigma * noise
    denoised = noisy - sigma * guided(noisy / (1 + sigma**2) ** 0.5, a, s)
    torch.testing.assert_close(found.gradient, -(denoised - Z) / sigma, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(plain.gradient, -(denoised - noisy) / sigma, rtol=1e-5, atol=1e-6)


def test_threestudios_scale_of_100_is_101_here() -> None:
    generator = torch.Generator().manual_seed(3)
    text, null = torch.randn(2, 50, generator=generator, dtype=torch.float64)
    theirs = text + 100 * (text - null)
    scale = scale_from_threestudio(100)
    assert scale == 101
    torch.testing.assert_close(null + scale * (text - null), theirs, rtol=0, atol=1e-6)


def test_x0_is_the_step_to_the_clean_picture_and_rescale_gives_it_the_spread_of_the_plain_one() -> None:
    prior = gaussian()
    prior.views = 2
    a, s = (float(level) for level in prior.levels(torch.tensor(0.5, dtype=torch.float64)))
    noise = torch.randn(8, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z_t = a * Z + s * noise
    clean = (z_t - s * guided(z_t, a, s, 10.0)) / a
    plain = (z_t - s * noise_at(TEXT, z_t, a, s)) / a
    for phi in (0.0, 0.5, 1.0):
        guidance = replace(fixed("x0", 0.5, rescale=phi), scale=10.0)
        ratio = plain.view(4, -1).std(1) / clean.view(4, -1).std(1)
        wanted = Z - (phi * ratio.repeat_interleave(2).view(-1, 1, 1, 1) + 1 - phi) * clean
        torch.testing.assert_close(drawn(prior, guidance, count=8).gradient, wanted, rtol=1e-5, atol=1e-5)


def test_hifas_term_in_pictures_draws_them_to_the_decoded_estimate() -> None:
    images = PICTURE.expand(4, *SHAPE).clone().requires_grad_()
    guidance = fixed("hifa", 0.5)
    grads = []
    for pictures in (0.0, 1.0):
        generator = torch.Generator().manual_seed(0)
        found = distil(
            gaussian(), images, prompts(4), replace(guidance, pictures=pictures), step=0, steps=9, generator=generator
        )
        grads.append(torch.autograd.grad(found.loss, images)[0])
    a, s = (float(level) for level in gaussian().levels(torch.tensor(0.5, dtype=torch.float64)))
    noise = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z_t = a * Z + s * noise
    target = 0.5 * ((z_t - s * guided(z_t, a, s)) / a + 1)
    torch.testing.assert_close(grads[1] - grads[0], s * s * a / s * (PICTURE - target) / 4, rtol=1e-5, atol=1e-6)


def test_vsd_with_the_exact_model_of_the_renders_has_the_mean_of_sds_and_less_noise() -> None:
    prior = gaussian()
    sds = drawn(prior, fixed("sds", 0.5)).gradient
    vsd = drawn(prior, fixed("vsd", 0.5), source=Surrounding(prior, Z, 0.3)).gradient
    assert float(vsd.var(0).sum()) < float(sds.var(0).sum())
    assert float((vsd.mean(0) - sds.mean(0)).abs().max()) < 3 * float((sds.std(0) / DRAWS**0.5).max())


def test_vsd_needs_a_second_model() -> None:
    with pytest.raises(InputError, match="second model"):
        drawn(gaussian(), fixed("vsd", 0.5), count=2)


def test_views_of_a_set_share_their_time() -> None:
    prior = gaussian()
    prior.views = 4
    t = drawn(prior, replace(PRESETS["sds"], scale=1.0), count=8).t
    assert len(t.unique()) == 2 and bool((t.view(2, 4) == t.view(2, 4)[:, :1]).all())
    with pytest.raises(InputError, match="4 views"):
        drawn(prior, PRESETS["sds"], count=6)


@pytest.mark.parametrize(("method", "scale", "wanted"), [("sds", 1.0, 1), ("sds", 3.0, 2), ("nfsd", 3.0, 3)])
def test_only_the_noises_that_count_are_asked_for(method: Method, scale: float, wanted: int) -> None:
    class Counting(GaussianPrior):
        asked = 0

        def predict(self, z_t, t, conditions):  # type: ignore[no-untyped-def]
            self.asked += len(conditions)
            return super().predict(z_t, t, conditions)

    prior = Counting(gaussian().gaussians)
    drawn(prior, replace(fixed(method, 0.5), scale=scale), count=2)
    assert prior.asked == wanted


def test_inverted_noise_without_churn_leads_back_to_the_picture() -> None:
    # under the same words and scale, the clean picture seen in the inverted z_t is the one that was inverted
    prior = GaussianPrior({TEXT: (MEANS[TEXT], torch.full(SHAPE, 1e-4)), None: (MEANS[TEXT], torch.full(SHAPE, 1e-4))})
    way = Inversion(steps=10, scale=1.0)
    guidance = replace(fixed("sdi", 0.9), inversion=way, scale=1.0)
    images = ((MEANS[TEXT] + 1) / 2).expand(4, *SHAPE).clone().requires_grad_()
    generator = torch.Generator().manual_seed(0)
    found = distil(prior, images, prompts(4), guidance, step=0, steps=1, generator=generator)
    assert float(found.gradient.abs().max()) < 1e-5


def test_a_second_model_learns_the_renders() -> None:
    class Shifting(torch.nn.Module):
        """The prior's noise with a mean that is learned."""

        def __init__(self) -> None:
            super().__init__()
            self.mean = torch.nn.Parameter(torch.zeros(SHAPE, dtype=torch.float64))

        def predict(self, z_t, t, conditions):  # type: ignore[no-untyped-def]
            a, s = (level.view(-1, 1, 1, 1) for level in gaussian().levels(t))
            noise = s * (z_t - a * self.mean) / (a * a * 0.01 + s * s)
            return noise.expand(len(conditions), *noise.shape)

    model, generator = Shifting(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(250):
        optimizer.zero_grad()
        loss = source_loss(model, gaussian(), Z.expand(16, *SHAPE), prompts(16).texts[0], generator)
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(model.mean.detach(), Z, rtol=0, atol=0.05)
