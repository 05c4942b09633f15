"""Times over a run: bounds, ends, and densities."""

from __future__ import annotations

import pytest
import torch

from generation.guidance import PRESETS
from generation.guidance_schedules import Ramp, Times, at, draw_times, flow_time, jump, stretched
from generation.priors import process_levels


def levels(t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return process_levels(t, "ddpm")


def drawn(times: Times, step: int, steps: int = 100, count: int = 2000) -> torch.Tensor:
    return draw_times(times, step, steps, count, levels, torch.Generator().manual_seed(step))


def test_ramps_rest_before_and_after() -> None:
    ramp = Ramp(1.0, 3.0, (10, 20))
    assert [at(ramp, step) for step in (0, 10, 15, 20, 99)] == [1, 1, 2, 3, 3]
    assert [at(jump(1.0, 3.0, 10), step) for step in (9, 10, 11)] == [1, 1, 3]
    assert at(0.5, 7) == 0.5


def test_stretching_reaches_ramps_inside_configs() -> None:
    short = stretched(PRESETS["ism"], 0.1)
    assert short.times.high == Ramp(0.98, 0.5, (0, 150))
    assert short.inversion.interval == Ramp(0.1, 0.05, (0, 150))
    assert short.scale == PRESETS["ism"].scale


def test_uniform_times_fill_their_bounds_and_the_bounds_move() -> None:
    times = Times(low=Ramp(0.98, 0.02, (0, 100)), high=Ramp(0.98, 0.5, (0, 100)))
    assert drawn(times, 0).tolist() == pytest.approx([0.98] * 2000)
    late = drawn(times, 100)
    assert 0.02 <= float(late.min()) < 0.025 and 0.495 < float(late.max()) <= 0.5
    assert float(late.mean()) == pytest.approx(0.26, abs=0.01)


def test_annealed_times_go_from_high_to_low() -> None:
    for times, half in ((Times("linear", 0.3, 0.98), 0.64), (Times("sqrt", 0.3, 0.98), 0.98 - 0.68 * 0.5**0.5)):
        values = [float(drawn(times, step, count=1)) for step in (0, 50, 100)]
        assert values == pytest.approx([0.98, half, 0.3])
    gaussian = [float(drawn(Times("dreamgaussian"), step, count=1)) for step in (0, 1, 50, 99, 100)]
    assert gaussian == pytest.approx([0.98, 0.98, 0.5, 0.02, 0.02])


def test_dreamtime_spends_its_steps_where_its_density_is() -> None:
    times = Times("dreamtime")
    found = torch.cat([drawn(times, step, 2000, 1) for step in range(2000)]).double()
    assert bool((found.diff() <= 0).all())
    grid = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    a, s = levels(grid)
    density = s / a * torch.exp(-((grid - 0.5) ** 2) / (2 * 0.125**2))
    density = density / density.sum()
    for low, high in ((0.3, 0.4), (0.5, 0.6), (0.7, 0.8)):
        share = float(((found >= low) & (found < high)).double().mean())
        assert share == pytest.approx(float(density[(grid >= low) & (grid < high)].sum()), abs=0.005)


def test_places_in_a_shifted_flow_are_not_times() -> None:
    assert float(flow_time(torch.tensor(0.3), 3.0)) == pytest.approx(0.875)
    assert flow_time(torch.tensor([0.0, 1.0]), 3.0).tolist() == [1, 0]
    assert float(flow_time(torch.tensor(0.3), 1.0)) == pytest.approx(0.7)
    t = drawn(PRESETS["rfds"].times, 3)
    assert float(t.max()) == pytest.approx(0.875, abs=0.002) and float(t.min()) == pytest.approx(0.0577, abs=0.004)


def test_the_same_seed_draws_the_same_times() -> None:
    assert torch.equal(drawn(Times(), 5), drawn(Times(), 5))
    assert not torch.equal(drawn(Times(), 5), drawn(Times(), 6))
