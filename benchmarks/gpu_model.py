"""What one training step must move and compute at least, stage by stage: the floors beside our measured times.

The model is that of one step of 3D Gaussian Splatting with degree 3 and float32: N splats, of which V are visible, in
P pairs of tile and splat, on A pixels. Bytes are counted once for each array that a stage must read or write; caches
are taken to hold nothing between stages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.common import table

PARAMETERS = 59  # floats of a splat: 3 + 4 + 3 + 1 + 3 + 45
GEOMETRY_BYTES, SH_BYTES = 44, 192  # read for every splat, and for the visible ones
RECORD_BYTES, SLOT_BYTES = 48, 64  # of a projected splat, and of the gradient sums of one pair
ADAM_BYTES = 24 * PARAMETERS  # parameter and two moments, read and written; the gradient never leaves the chip

# Lane instructions of one pixel meeting one splat: turned away early, or drawn (forward and backward).
REJECTED, DRAWN, DRAWN_BACKWARD = 12, 20, 57
MET, USEFUL = 100, 0.46  # splats a pixel meets at most before light runs out, and the share of them it draws
LANE_RATE_PER_SM = 2.53e11  # float32 instructions a second: 128 lanes at 1.98 GHz

STAGES = ("project", "sort and bin", "blend forward", "loss", "blend backward", "update")


@dataclass(frozen=True)
class Work:
    """How large a step is."""

    splats: int
    visible: int
    pairs: int
    pixels: int


@dataclass(frozen=True)
class Card:
    """What the card can do: bytes a second of a copy, read and written, as measured; and its multiprocessors."""

    copy_rate: float
    multiprocessors: int


@dataclass(frozen=True)
class Stage:
    """One row of the table."""

    name: str
    ms: float | None
    bytes: int
    floor_ms: float
    bandwidth_share: float | None  # bytes of the model over the measured time, as a share of the copy's rate


def bytes_moved(work: Work) -> dict[str, int]:
    """Bytes by stage."""
    n, v, p, a = work.splats, work.visible, work.pairs, work.pixels
    return {
        "project": GEOMETRY_BYTES * n + (SH_BYTES + RECORD_BYTES) * v,
        # Records in and pairs of tile and splat out; four passes over 8-byte depth keys; two over 6-byte tile keys.
        "sort and bin": (RECORD_BYTES + 4 * 2 * 8) * v + (8 + 2 * 2 * 6) * p,
        "blend forward": RECORD_BYTES * p + 20 * a,
        "loss": 132 * a,
        "blend backward": RECORD_BYTES * p + 32 * a + 2 * SLOT_BYTES * p,
        "update": (300 + ADAM_BYTES) * v,
    }


def lane_instructions(work: Work) -> dict[str, float]:
    """Instructions of the two stages that compute more than they move."""
    met = min(MET, 256 * work.pairs / max(1, work.pixels))
    turned_away, drawn = (1 - USEFUL) * met * REJECTED, USEFUL * met
    return {
        "blend forward": work.pixels * (turned_away + drawn * DRAWN),
        "blend backward": work.pixels * (turned_away + drawn * DRAWN_BACKWARD),
    }


def floors_ms(work: Work, card: Card) -> dict[str, float]:
    """The time below which no program can be: bytes over the copy's rate or instructions over the lanes' rate."""
    computing = lane_instructions(work)
    rate = card.multiprocessors * LANE_RATE_PER_SM
    return {
        name: 1e3 * max(moved / card.copy_rate, computing.get(name, 0.0) / rate)
        for name, moved in bytes_moved(work).items()
    }


def stage_table(work: Work, card: Card, measured_ms: Mapping[str, float]) -> list[Stage]:
    """All stages, in order, with what was measured of them, and the whole step as the last row."""
    moved, floors = bytes_moved(work), floors_ms(work, card)
    rows = [_stage(name, measured_ms.get(name), moved[name], floors[name], card) for name in STAGES]
    total = sum(measured_ms[name] for name in STAGES) if all(name in measured_ms for name in STAGES) else None
    return [*rows, _stage("all stages", total, sum(moved.values()), sum(floors.values()), card)]


def _stage(name: str, ms: float | None, moved: int, floor: float, card: Card) -> Stage:
    share = None if not ms else moved / (1e-3 * ms) / card.copy_rate
    return Stage(name, ms, moved, floor, share)


def ratios(ms: Mapping[str, float], peaks: Mapping[str, int | None]) -> dict[str, float | None]:
    """The figures that goals are stated in, null where the peer is missing.

    Speed is theirs over ours, the larger the better; memory is ours over theirs.
    """
    found: dict[str, float | None] = {}
    for name in ("forward + backward", "step", "step, selective Adam"):
        theirs, ours = ms.get(f"gsplat: {name}"), ms[f"ours: {name.removesuffix(', selective Adam')}"]
        found[f"gsplat over ours, {name}"] = None if theirs is None else theirs / ours
    ours, theirs = peaks.get("ours"), peaks.get("gsplat")
    found["ours over gsplat, peak memory"] = ours / theirs if ours and theirs else None
    return found


def stage_text(stages: Sequence[Stage]) -> str:
    """The stages as a table."""
    head = ["stage", "ms", "MB", "floor ms", "times floor", "of copy's bandwidth"]
    rows = [
        [s.name, s.ms, s.bytes / 1e6, s.floor_ms, None if s.ms is None else s.ms / s.floor_ms, s.bandwidth_share]
        for s in stages
    ]
    return table(head, rows)
