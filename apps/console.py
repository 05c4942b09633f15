"""What a user sees while a run goes: a bar with ETA on a terminal, plain lines elsewhere, JSON lines for programs."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

PLAIN_SECONDS = 5.0  # between two progress lines where there is no terminal to redraw on

STAGES = {
    "capture": "Reading the source",
    "check": "Checking the capture",
    "cameras": "Estimating cameras",
    "prior": "Choosing the prior",
    "train": "Training",
    "judge": "Judging the scene",
    "evaluate": "Judging held-out photos",
    "mesh": "Making the mesh",
    "splats": "Making splats of the scene",
    "turntable": "Filming",
    "report": "Writing the report",
}
"""What a stage of a run that makes a scene is called."""

PRIOR_STAGES = {
    "data": "Making objects to learn from",
    "clip_guide": "Training the network that guides",
    "clip_scorer": "Training the network that scores",
    "lgm": "Training the network that makes Gaussians of views",
    "prior": "Training the prior",
    "judge": "Judging held-out combinations",
}
"""The same where the networks are made that `generate` takes its pictures from."""


class Watcher:
    """Listens to a run's events and shows them on stderr."""

    def __init__(self, pieces: str = "splats", stages: Mapping[str, str] = STAGES) -> None:
        """pieces: what a scene of the method at work is made of.  stages: what they are called."""
        self._pieces, self._stages = pieces, stages
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=28),
            TextColumn("{task.fields[facts]}", markup=False),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
        )
        self._task: Any = None
        self._stage = ""
        self._last_line = 0.0

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.console.is_terminal:
            self._progress.stop()

    def __call__(self, event: dict[str, Any]) -> None:
        stage = str(event.get("stage") or "")
        if stage != self._stage:
            self._enter_stage(stage)
        step, steps, message = event["step"], event["steps"], event["message"]
        if message and step is None:
            self.console.print(f"  {message}", markup=False)
        if step is None:
            return
        facts = progress_facts(event, self._pieces)
        if self.console.is_terminal:
            if self._task is not None:
                self._progress.update(self._task, completed=step, total=steps or None, facts=facts)
        elif time.monotonic() - self._last_line > PLAIN_SECONDS or step == steps:
            self._last_line = time.monotonic()
            self.console.print(f"  {facts}", markup=False)

    def say(self, sentence: str) -> None:
        """Print a line above the bar."""
        self.console.print(sentence, markup=False)

    def progress(self, stage: str, done: int, total: int) -> None:
        """Move the bar of a stage that has no run to write events to."""
        blank = dict.fromkeys(("loss", "psnr", "splats", "eta_s", "message"))
        self({"stage": stage, "step": done, "steps": total, **blank})

    def _enter_stage(self, stage: str) -> None:
        self._stage, self._last_line = stage, time.monotonic()
        title = self._stages.get(stage, stage)
        if not title:
            return
        self.console.print(f"[bold]{title}[/bold]")
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(title, total=None, facts="")


def progress_facts(event: dict[str, Any], pieces: str = "splats") -> str:
    """One line of what an event says in numbers: `1200/7000 · loss 0.031 · 29.4 dB · 80,123 splats · 3:20 left`."""
    parts = [f"{event['step']:,}" + (f"/{event['steps']:,}" if event["steps"] else "")]
    if event["loss"] is not None:
        parts.append(f"loss {event['loss']:.4f}")
    if event["psnr"] is not None:
        parts.append(f"{event['psnr']:.1f} dB")
    if event["splats"]:
        parts.append(f"{event['splats']:,} {pieces}")
    if event["eta_s"] is not None:
        parts.append(f"{clock(event['eta_s'])} left")
    if event["message"]:
        parts.append(event["message"])
    return " · ".join(parts)


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    whole = max(0, round(seconds))
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class JsonLines:
    """Prints JSON lines on stdout and keeps everything else from it. Use as a context manager.

    What libraries print, in Python or in C++, goes to stderr meanwhile. A reader that went away stops the run as
    Ctrl-C does.
    """

    def __init__(self, stop: Callable[[], None] = lambda: None) -> None:
        self._stop = stop

    def __enter__(self) -> Self:
        sys.stdout.flush()
        self._stdout = os.dup(1)
        os.dup2(2, 1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        sys.stdout.flush()
        os.dup2(self._stdout, 1)
        os.close(self._stdout)

    def __call__(self, value: Any) -> None:
        line = (json.dumps(value, ensure_ascii=True) + "\n").encode()
        try:
            while line:
                line = line[os.write(self._stdout, line) :]
        except BrokenPipeError:
            self._stop()
