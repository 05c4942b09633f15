"""How far a run is, read from its events: cheap enough to be asked every second by everyone who watches."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from apps.console import STAGES
from scene.errors import InputError
from scene.files import read_json
from scene.runs import METRIC_KEYS, read_events

POINTS = 120  # of a curve
REMEMBERED = 16  # runs
SENTENCES = 60
WORDS = {"prior": "Choosing what knows the words", "judge": "Judging the scene"}


@dataclass(frozen=True)
class Progress:
    """Where a run stands. curves: "loss" and "psnr" over the steps of training, thinned.  sentences: what was said."""

    stage: str = ""
    words: str = ""
    step: int | None = None
    steps: int | None = None
    eta_s: float | None = None
    pieces: int | None = None
    curves: dict[str, list[tuple[float, float]]] | None = None
    sentences: tuple[str, ...] = ()


def progress_of(run: Path) -> Progress:
    """The present state of a run folder; an empty one before it has begun."""
    path = run / "events.jsonl"
    try:
        facts = path.stat()
    except OSError:
        return Progress()
    return _read(path, facts.st_mtime_ns, facts.st_size)


@lru_cache(maxsize=REMEMBERED)
def _read(path: Path, stamp: int, size: int) -> Progress:
    """stamp, size: tell one state of the file from the next, so that many watchers cost one reading."""
    try:
        events = read_events(path)
    except InputError:
        return Progress()
    if not events:
        return Progress()
    last = events[-1]
    stage = str(last.get("stage") or "")
    trained = [event for event in events if event.get("stage") == "train" and _is_number(event.get("step"))]
    pieces = next((event["splats"] for event in reversed(events) if _is_number(event.get("splats"))), None)
    said = [str(event["message"]) for event in events if event.get("message") and event.get("step") is None]
    return Progress(
        stage=stage,
        words=STAGES.get(stage, WORDS.get(stage, stage)),
        step=last.get("step"),
        steps=last.get("steps"),
        eta_s=last.get("eta_s"),
        pieces=pieces,
        curves={name: _curve(trained, name) for name in ("loss", "psnr")},
        sentences=tuple(dict.fromkeys(said))[-SENTENCES:],
    )


def _curve(events: list[dict[str, Any]], name: str) -> list[tuple[float, float]]:
    points = [(event["step"], event[name]) for event in events if _is_number(event.get(name))]
    if len(points) > POINTS:
        points = [points[i * (len(points) - 1) // (POINTS - 1)] for i in range(POINTS)]
    return [(float(x), float(y)) for x, y in points]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def metrics_of(run: Path) -> dict[str, Any]:
    """The figures of a run for people: those of the contract, without the paths of this machine."""
    try:
        metrics = read_json(run / "metrics.json", {})
    except (InputError, OSError):
        return {}
    known = METRIC_KEYS - {"source"}
    return {key: value for key, value in metrics.items() if key in known} if isinstance(metrics, dict) else {}


def check_of(folder: Path) -> dict[str, Any] | None:
    """What the capture check of a job found, None before there was one."""
    try:
        return json.loads((folder / "check.json").read_bytes())
    except (OSError, ValueError):
        return None
