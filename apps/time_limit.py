"""--max-minutes of a run that goes on: the one option that may change, for it says how long and not what."""

from __future__ import annotations

from collections.abc import Sequence

from apps.console import clock
from scene.runs import Run


def renew_limit(run: Run, minutes: float | None, budgets: Sequence[str], training: str) -> None:
    """Give a run the time limit that it now goes on with, where it had another, and say so in its decisions.

    budgets: records of what stages were given of the old one; they are to be given their time anew.
    training: the stage that takes what is left of it.
    """
    before = run.config.get("max_minutes")
    if minutes == before:
        return
    for budget in budgets:
        run.reopen_stage(budget)
    late = "" if run.finished(training) is None else "; training had ended by then"
    run.decide(
        f"After {clock(run.seconds)} of work the time limit was changed from {_said(before)} to {_said(minutes)}{late}."
    )
    run.change_options(max_minutes=minutes)  # last: a run that is killed before does all of this again


def seconds_before(run: Run, stage: str | None = None) -> float:
    """Seconds of work before the training began of which there is a checkpoint; all, where there is none.

    stage: only a checkpoint counts that says it is of this one.
    """
    state = run.checkpoint_facts().get("state", {})
    return run.seconds - (float(state.get("seconds", 0.0)) if stage in (None, state.get("stage")) else 0.0)


def _said(minutes: float | None) -> str:
    return "none" if minutes is None else f"{minutes:g} minutes"
