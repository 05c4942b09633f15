"""Densification: what is moved, grown or pruned, and that the picture and the optimiser follow."""

from __future__ import annotations

import math

import pytest
import torch

from scene.densify import (
    Edit,
    add_position_noise,
    gradient_refine,
    mcmc_refine,
    reset_opacities,
    share_opacity,
)
from scene.gaussians import Gaussians
from scene.ops.splat_project import quats_to_matrices


def some_gaussians(count: int, seed: int = 0, opacity: float = 0.5) -> Gaussians:
    generator = torch.Generator().manual_seed(seed)
    return Gaussians(
        means=torch.randn(count, 3, generator=generator),
        quats=torch.randn(count, 4, generator=generator),
        log_scales=torch.randn(count, 3, generator=generator) * 0.3 - 3,
        opacity_logits=torch.full((count,), math.log(opacity / (1 - opacity))),
        sh_dc=torch.randn(count, 3, generator=generator),
        sh_rest=torch.randn(count, 3, 3, generator=generator),
    )


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("copies", [1, 2, 3, 7, 20])
@pytest.mark.parametrize("opacity", [0.05, 0.5, 0.97])
def test_shared_opacity_composites_to_the_original_and_keeps_the_light_along_a_line(
    copies: int, opacity: float
) -> None:
    new, scale = share_opacity(torch.tensor([opacity]), torch.ones(1, 3), torch.tensor([copies]))
    assert 1 - (1 - float(new)) ** copies == pytest.approx(opacity, abs=1e-5)  # float32 opacities
    # Eq. 9 keeps the integral of the composited alpha along a line through the centre: an independent quadrature.
    x = torch.linspace(-12, 12, 20001, dtype=torch.float64)
    one = opacity * torch.exp(-0.5 * x**2)
    each = float(new) * torch.exp(-0.5 * (x / float(scale[0, 0])) ** 2)
    together = 1 - (1 - each) ** copies
    assert float(torch.trapezoid(together, x)) == pytest.approx(float(torch.trapezoid(one, x)), rel=1e-4)


def test_mcmc_moves_the_dead_onto_the_living_and_grows_to_the_cap() -> None:
    before = some_gaussians(200)
    before.opacity_logits[:50] = -10.0
    edit = mcmc_refine(before, cap=230, growth=2.0, min_opacity=0.005, generator=rng())
    assert len(edit.gaussians) == 230
    assert bool((edit.gaussians.opacities > 0.005).all())
    assert bool((edit.source >= 50).all()), "every row now descends from a splat that was alive"
    untouched = ~edit.fresh
    assert torch.equal(edit.gaussians.means[untouched], before.means[edit.source[untouched]])
    counts = torch.bincount(edit.source, minlength=200)
    assert torch.equal(edit.fresh, counts[edit.source] > 1)


def test_mcmc_with_nothing_alive_or_nothing_to_do_changes_nothing() -> None:
    dead = some_gaussians(10, opacity=0.001)
    assert mcmc_refine(dead, cap=100, growth=1.5, min_opacity=0.005, generator=rng()).gaussians is dead
    full = some_gaussians(10)
    edit = mcmc_refine(full, cap=10, growth=1.5, min_opacity=0.005, generator=rng())
    assert edit.gaussians is full
    assert not bool(edit.fresh.any())


def test_mcmc_replaces_broken_splats() -> None:
    before = some_gaussians(20)
    before.means[3, 1] = math.nan
    edit = mcmc_refine(before, cap=20, growth=1.0, min_opacity=0.005, generator=rng())
    assert bool(torch.isfinite(edit.gaussians.means).all())


def test_remap_carries_moments_and_forgets_the_fresh() -> None:
    edit = Edit(some_gaussians(3), torch.tensor([2, 0, 2]), torch.tensor([False, False, True]))
    assert edit.remap(torch.tensor([10.0, 20.0, 30.0])).tolist() == [30.0, 10.0, 0.0]


def test_noise_moves_faint_splats_only_and_along_their_long_axis() -> None:
    gaussians = some_gaussians(4000, opacity=0.006)
    gaussians.opacity_logits[2000:] = 3.0
    gaussians.log_scales[:] = torch.tensor([0.0, -4.0, -4.0])
    before = gaussians.means.clone()
    add_position_noise(gaussians, strength=0.1, generator=rng())
    moved = gaussians.means - before
    assert torch.equal(moved[2000:], torch.zeros(2000, 3))
    local = torch.einsum("nji,nj->ni", quats_to_matrices(gaussians.quats[:2000]), moved[:2000])
    spread = local.std(0)
    # The noise is covariance * normal: deviations go with the square of the axis length.
    assert float(spread[1] / spread[0]) == pytest.approx(math.exp(-8), rel=0.2)


def test_high_gradients_clone_the_small_and_split_the_large() -> None:
    before = some_gaussians(6)
    before.log_scales[:] = math.log(0.01)
    before.log_scales[1] = math.log(0.5)
    before.opacity_logits[5] = -8.0  # faint: pruned
    score = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0, 1.0])
    edit = gradient_refine(
        before,
        score,
        threshold=0.5,
        split_scale=0.1,
        max_scale=2.0,
        min_opacity=0.005,
        cap=100,
        generator=rng(),
    )
    assert edit.source.tolist() == [0, 1, 2, 3, 4, 0, 1]
    assert edit.fresh.tolist() == [False, True, False, False, False, True, True]
    after = edit.gaussians
    assert torch.equal(after.means[5], before.means[0])
    assert not torch.equal(after.means[6], before.means[1])
    assert torch.allclose(after.scales[[1, 6]], torch.full((2, 3), 0.5 / 1.6))


def test_growth_keeps_the_cap_and_prefers_the_highest_score() -> None:
    before = some_gaussians(10)
    edit = gradient_refine(
        before,
        torch.arange(10.0),
        threshold=0.5,
        split_scale=9.0,
        max_scale=99.0,
        min_opacity=0.005,
        cap=12,
        generator=rng(),
    )
    assert len(edit.gaussians) == 12
    assert sorted(edit.source[10:].tolist()) == [8, 9]


def test_reset_lowers_opacity_but_never_raises_it() -> None:
    gaussians = some_gaussians(2)
    gaussians.opacity_logits[:] = torch.tensor([4.0, -7.0])
    reset_opacities(gaussians, 0.01)
    assert float(gaussians.opacities[0]) == pytest.approx(0.01, rel=1e-5)
    assert float(gaussians.opacity_logits[1]) == -7.0
