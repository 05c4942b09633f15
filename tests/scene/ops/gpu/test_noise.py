"""Exploration noise by counting: known words, the moments of its normals, and the kernel against its twin."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch

from scene.gaussians import Gaussians
from scene.ops.position_noise import normal3, philox, scatter_means, scatter_means_reference
from scene.ops.splat_project import quats_to_matrices

CPU = torch.device("cpu")


def splats(count: int) -> Gaussians:
    """Of any shape, most of them faint enough to be moved."""
    rng = torch.Generator().manual_seed(0)
    return Gaussians(
        means=torch.randn(count, 3, generator=rng),
        quats=torch.randn(count, 4, generator=rng),
        log_scales=torch.randn(count, 3, generator=rng) - 2,
        opacity_logits=torch.randn(count, generator=rng) - 4,
        sh_dc=torch.zeros(count, 3),
        sh_rest=torch.zeros(count, 0, 3),
    )


def test_the_words_are_those_of_philox() -> None:
    """Known answers of Random123 (kat_vectors, philox4x32 10)."""
    words = philox(1, seed=0, step=0, device=CPU)[0].tolist()
    assert words == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


def test_each_row_step_and_seed_draws_its_own_numbers() -> None:
    drawn = [philox(4, seed=seed, step=step, device=CPU) for seed in (0, 1, 1 << 40) for step in (0, 7)]
    words = torch.cat(drawn).flatten()
    assert len(words.unique()) == len(words)
    assert torch.equal(philox(9, seed=3, step=5, device=CPU)[:4], philox(4, seed=3, step=5, device=CPU))


def test_the_deviates_are_normal_and_independent() -> None:
    count = 200_000
    drawn = normal3(count, seed=1, step=2, device=CPU).double()
    slack = 5 / count**0.5  # five standard deviations of a mean
    assert drawn.mean(0).abs().max() < slack
    assert (drawn.T @ drawn / count - torch.eye(3, dtype=torch.float64)).abs().max() < 1.5 * slack
    assert ((drawn**4).mean(0) - 3).abs().max() < 10 * slack
    below = (drawn < 1.0).double().mean(0)
    assert (below - 0.841345).abs().max() < slack


@pytest.mark.parametrize("count", [0, 1, 255, 1000])
def test_the_kernel_moves_what_its_twin_moves(
    host_gpu: Callable[..., AbstractContextManager[None]], count: int
) -> None:
    start, ours, twin = splats(count), splats(count), splats(count)
    with host_gpu(schedule="random", seed=1):
        scatter_means(ours, strength=0.5, seed=(3 << 60) + 5, step=2**32 - 1)
    scatter_means_reference(twin, strength=0.5, seed=(3 << 60) + 5, step=2**32 - 1)
    # float32 sines and logarithms differ by units in the last place, times noise of up to 6 and scales of up to 5
    torch.testing.assert_close(ours.means, twin.means, atol=1e-5, rtol=1e-5)
    opaque = start.opacities >= 0.07
    assert torch.equal(ours.means[opaque], start.means[opaque])
    if count == 1000:
        assert (ours.means != start.means).any(1).sum() > 100


def test_noise_is_shaped_like_the_splat() -> None:
    """Eq. 8 moves by Sigma times noise, so the moves' covariance is Sigma squared."""
    count = 100_000
    one = splats(1)
    one.opacity_logits.fill_(-20)
    many = one.select(torch.zeros(count, dtype=torch.int64))
    scatter_means(many, strength=1.0, seed=0, step=0)
    moves = (many.means - one.means).double()
    turn = quats_to_matrices(one.quats)[0].double()
    sigma = turn @ torch.diag(one.scales[0].double() ** 2) @ turn.T
    weight = torch.sigmoid(torch.tensor(0.5))
    wanted = (weight**2 * sigma @ sigma).double()
    assert (moves.T @ moves / count - wanted).abs().max() < 0.02 * wanted.abs().max()


def test_seeds_and_steps_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="seed"):
        scatter_means(splats(3), strength=1.0, seed=-1, step=0)
    with pytest.raises(ValueError, match="step"):
        scatter_means(splats(3), strength=1.0, seed=0, step=2**32)
