"""The methods of score distillation and their numbers, as one frozen config each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from generation.guidance_schedules import Number, Ramp, Times, jump

Method = Literal["sds", "sjc", "vsd", "ism", "csd", "nfsd", "x0", "sdi", "hifa", "rfds", "rfds-rev"]
Weighting = Literal["one", "sds", "fantasia3d", "x0", "velocity"]


@dataclass(frozen=True)
class Inversion:
    """How ISM and SDI find the noise of a picture. Times in 0..1.

    steps, stride: of ISM's way to z_s.  interval: from z_s to z_t.  scale: CFG on the way.  churn: share of fresh noise
    in each step (eta of DDIM, eq. 16).
    """

    steps: int = 5
    stride: float = 0.2
    interval: Number = 0.08
    scale: float = 0.0
    churn: float = 0.0


@dataclass(frozen=True)
class Guidance:
    """A method and its numbers.

    scale: s of CFG.  negative, null: scales of e_neg and e_null in CSD.  variance_reduced: SJC without (true) or with
    the drawn noise in its gradient.  split: t below which NFSD takes e_null for clean of noise.  rescale: phi of CFG
    rescale.  clamp: largest number of a gradient (Debiased SDS).  normalise: each picture's gradient to length 1.
    factor: of all of it.  random_weight: each picture's weight times sigmoid(N(0, 1)).  pictures: weight of HiFA's term
    in pictures.
    """

    method: Method
    scale: float
    weighting: Weighting = "sds"
    times: Times = field(default_factory=Times)
    negative: Number = -1.0
    null: Number = 0.0
    variance_reduced: bool = True
    split: float = 0.2
    inversion: Inversion = field(default_factory=Inversion)
    rescale: float = 0.0
    clamp: Number | None = None
    normalise: bool = False
    factor: float = 1.0
    random_weight: bool = False
    pictures: float = 0.0


_FLOW = Times(low=0.3, high=0.98, flow_shift=3.0)
PRESETS: dict[Method, Guidance] = {
    "sds": Guidance("sds", 100.0),
    "sjc": Guidance("sjc", 100.0, "one", Times(low=0.01, high=0.97)),
    "vsd": Guidance("vsd", 7.5, times=Times(high=jump(0.98, 0.5, 5000))),
    "ism": Guidance(
        "ism",
        7.5,
        "x0",
        Times(high=Ramp(0.98, 0.5, (0, 1500))),
        inversion=Inversion(interval=Ramp(0.1, 0.05, (0, 1500))),
        factor=0.1,
    ),
    "csd": Guidance(
        "csd",
        1.0,
        "one",
        Times(high=jump(0.98, 0.5, 5000)),
        negative=Ramp(0.0, -1.0, (0, 5000)),
        null=Ramp(-1.0, 0.0, (0, 5000)),
    ),
    "nfsd": Guidance("nfsd", 7.5),
    "x0": Guidance(
        "x0", 50.0, "x0", Times(low=Ramp(0.98, 0.02, (0, 8000)), high=Ramp(0.98, 0.5, (0, 8000))), rescale=0.5
    ),
    "sdi": Guidance(
        "sdi", 7.5, "x0", Times("linear", 0.25, 0.98), inversion=Inversion(steps=10, scale=-7.5, churn=0.3)
    ),
    "hifa": Guidance("hifa", 100.0, times=Times("sqrt", 0.3, 0.98), pictures=0.01),
    "rfds": Guidance("rfds", 100.0, "velocity", _FLOW, random_weight=True),
    "rfds-rev": Guidance("rfds-rev", 100.0, "velocity", _FLOW),
}
"""As published, for Stable Diffusion and runs of 10,000 to 25,000 steps; shorter ones through `stretched`."""


def scale_from_threestudio(scale: float) -> float:
    """CFG scale here of one given for threestudio's plain SDS, e_text + scale (e_text - e_null)."""
    return scale + 1
