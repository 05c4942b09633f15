"""Conversions between what networks predict, and the exact Gaussian prior."""

from __future__ import annotations

import pytest
import torch

from generation.priors import (
    Condition,
    GaussianPrior,
    Process,
    clean_of_noise,
    noise_of_clean,
    noise_of_velocity,
    noised,
    process_levels,
    velocity_of_noise,
)

TIMES = torch.tensor([0.02, 0.3, 0.7, 0.98])
GENERATOR = torch.Generator().manual_seed(0)
CLEAN, NOISE = torch.randn(2, 4, 3, 5, 5, generator=GENERATOR)


@pytest.mark.parametrize("process", ["ddpm", "flow"])
def test_noise_picture_and_velocity_convert_there_and_back(process: Process) -> None:
    a, s = process_levels(TIMES, process)
    z_t = noised(CLEAN, NOISE, a, s)
    wide = (-1, 1, 1, 1)
    velocity = a.view(wide) * NOISE - s.view(wide) * CLEAN if process == "ddpm" else NOISE - CLEAN
    torch.testing.assert_close(velocity_of_noise(z_t, NOISE, a, s, process), velocity, rtol=0, atol=3e-5)
    torch.testing.assert_close(noise_of_velocity(z_t, velocity, a, s, process), NOISE, rtol=0, atol=1e-5)
    torch.testing.assert_close(clean_of_noise(z_t, NOISE, a, s), CLEAN, rtol=0, atol=3e-5)
    torch.testing.assert_close(noise_of_clean(z_t, CLEAN, a, s), NOISE, rtol=0, atol=3e-5)


def test_a_flow_and_a_ddpm_state_of_the_same_ratio_are_one_up_to_a_factor() -> None:
    # z_flow / (1 - t) = z_ddpm / a where t / (1 - t) = s / a: the same noise to the same picture
    angle = torch.atan(TIMES / (1 - TIMES)) * 2 / torch.pi  # the cosine schedule's time with that ratio
    a, s = process_levels(angle, "ddpm")
    flow, ddpm = noised(CLEAN, NOISE, *process_levels(TIMES, "flow")), noised(CLEAN, NOISE, a, s)
    torch.testing.assert_close(flow * (a / (1 - TIMES)).view(-1, 1, 1, 1), ddpm, rtol=0, atol=1e-5)
    velocity = velocity_of_noise(flow, NOISE, *process_levels(TIMES, "flow"), "flow")
    noise = noise_of_velocity(flow, velocity, *process_levels(TIMES, "flow"), "flow")
    again = clean_of_noise(ddpm, noise, a, s)
    torch.testing.assert_close(again, CLEAN, rtol=0, atol=1e-4)


def test_the_gaussian_priors_noise_is_the_score() -> None:
    mean, variance = CLEAN[0], torch.rand(3, 5, 5, generator=GENERATOR) + 0.1
    prior = GaussianPrior({None: (mean, variance)})
    z_t = NOISE.clone().requires_grad_()
    a, s = (level.view(-1, 1, 1, 1) for level in prior.levels(TIMES))
    log_density = torch.distributions.Normal(a * mean, (a * a * variance + s * s).sqrt()).log_prob(z_t).sum()
    (gradient,) = torch.autograd.grad(log_density, z_t)
    found = prior.predict(z_t.detach(), TIMES, [Condition((None,) * 4)])[0]
    torch.testing.assert_close(found, -s * gradient, rtol=1e-4, atol=1e-5)
