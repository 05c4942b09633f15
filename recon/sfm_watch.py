"""Progress, the user's stop and the time box of one camera estimation."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from scene.errors import Interrupted

Progress = Callable[[int, int, str], None]


@dataclass
class Watch:
    """Passed down through all stages; each asks it often and leaves when told."""

    progress: Progress
    stop: Callable[[], bool]
    seconds: float  # time box of the whole estimation
    started: float = field(default_factory=time.monotonic)

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.started

    @property
    def left(self) -> float:
        return self.seconds - self.elapsed

    def check(self) -> None:
        """Raises Interrupted when the user wants to stop."""
        if self.stop():
            raise Interrupted("stopped while estimating cameras; run again with --resume to go on where it was")

    def stage(self, what: str, total: int) -> Stage:
        """A stage of `total` steps, `what` being done in it."""
        return Stage(self, what, total)


@dataclass
class Stage:
    """Counts the steps of a stage and says how long the rest may take."""

    watch: Watch
    what: str
    total: int
    done: int = 0
    started: float = field(default_factory=time.monotonic)

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Report so many more steps; raises Interrupted when the user wants to stop."""
        self.done += steps
        seconds = time.monotonic() - self.started
        text = f"{self.what}: {self.done} of {self.total}{note}"
        if 0 < self.done < self.total and seconds > 1:
            text += f", about {seconds / self.done * (self.total - self.done):.0f} s left"
        self.watch.progress(min(self.done, self.total), self.total, text)
        self.watch.check()
