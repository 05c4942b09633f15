"""When a distillation looks at which noise: numbers that change over a run, and the kinds of times t that are drawn.

Sources: DreamFusion (2209.14988): uniform. ProlificDreamer (2305.16213), MVDream (2308.16512): uniform between bounds
that jump or move. HiFA (2305.18766): square root. DreamGaussian (2309.16653): linear in whole steps. DreamTime
(2306.12422): a density, inverted by its cumulative sum.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

TIMES = 1000  # steps that papers count in
Config = TypeVar("Config")
Levels = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Ramp:
    """A number that goes from `first` to `last`, linearly over the steps over[0] to over[1], and stays there."""

    first: float
    last: float
    over: tuple[int, int]


Number = float | Ramp


def jump(first: float, last: float, step: int) -> Ramp:
    """`first` up to a step, `last` from the next one on."""
    return Ramp(first, last, (step, step + 1))


def at(number: Number, step: int) -> float:
    """Its value at a step."""
    if not isinstance(number, Ramp):
        return number
    start, end = number.over
    share = min(1.0, max(0.0, (step - start) / max(1, end - start)))
    return number.first + share * (number.last - number.first)


def stretched(config: Config, factor: float) -> Config:
    """A config whose ramps, also those in configs within it, take `factor` times as many steps."""
    changed: dict[str, Any] = {}
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, field.name)
        if isinstance(value, Ramp):
            start, end = (round(step * factor) for step in value.over)
            changed[field.name] = dataclasses.replace(value, over=(start, max(start + 1, end)))
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            changed[field.name] = stretched(value, factor)
    return dataclasses.replace(config, **changed)  # type: ignore[type-var]


@dataclass(frozen=True)
class Times:
    """How the times t of a run are drawn.

    uniform: between low and high, which may be ramps.  linear: from high to low over the run.  sqrt: the same with the
    root of the step (HiFA).  dreamgaussian: linear from 1, in whole steps of 1000, cut to low..high.  dreamtime: where
    the share of the run is that of the density W(t) = s/a exp(-(t - centre)^2 / (2 width^2)) above t.
    flow_shift: where it is given, low and high are places in the list of times of a rectified-flow scheduler of that
    shift, which runs from noise (0) to clean (1): place .3 of Stable Diffusion 3 (shift 3) is t = .875.
    """

    kind: Literal["uniform", "linear", "sqrt", "dreamgaussian", "dreamtime"] = "uniform"
    low: Number = 0.02
    high: Number = 0.98
    centre: float = 0.5
    width: float = 0.125
    flow_shift: float | None = None


def draw_times(times: Times, step: int, steps: int, count: int, levels: Levels, generator: torch.Generator) -> Tensor:
    """[count] times in (0, 1) for a step of a run of `steps`; all alike unless they are uniform. Float32."""
    low, high = at(times.low, step), at(times.high, step)
    share = step / max(1, steps)
    if times.kind == "uniform":
        t = low + (high - low) * torch.rand(count, generator=generator, device=generator.device)
        return t if times.flow_shift is None else flow_time(t, times.flow_shift)
    if times.kind == "linear":
        value = high - (high - low) * share
    elif times.kind == "sqrt":
        value = high - (high - low) * share**0.5
    elif times.kind == "dreamgaussian":
        value = min(max(round((1 - share) * TIMES) / TIMES, low), high)
    else:
        value = min(max(_dreamtime(share, times, levels), low), high)
    t = torch.full((count,), value, device=generator.device)
    return t if times.flow_shift is None else flow_time(t, times.flow_shift)


def flow_time(place: Tensor, shift: float) -> Tensor:
    """t at a place (0 noise, 1 clean) of a rectified-flow scheduler with a shift (Esser et al., 2403.03206, eq. 23)."""
    even = 1 - place
    return shift * even / (1 + (shift - 1) * even)


def _dreamtime(share: float, times: Times, levels: Levels) -> float:
    """t above which `share` of the density lies."""
    t = (torch.arange(TIMES, dtype=torch.float64) + 0.5) / TIMES
    a, s = levels(t)
    density = s / a.clamp(min=1e-6) * torch.exp(-((t - times.centre) ** 2) / (2 * times.width**2))
    above = density.flip(0).cumsum(0) / density.sum()
    index = int(torch.searchsorted(above, torch.tensor(share, dtype=above.dtype)))
    return float(t.flip(0)[min(index, TIMES - 1)])
