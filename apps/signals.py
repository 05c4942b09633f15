"""Ctrl-C once: finish the step, save, leave with exit code 130. Twice: leave at once. SIGTERM is the same."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from types import FrameType, TracebackType
from typing import Self

from scene.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignal:
    """Asked between steps whether the user wants to stop. Use as a context manager in the main thread.

    Signals are noticed by a thread of their own, so a second one ends the process even while the main thread is deep
    in a library's C++ code, where Python's handlers do not run. Every file of a run is whole at any instant, so that
    leaving at once loses work since the last checkpoint and nothing else.
    """

    def __init__(self, note: str = "") -> None:
        self.note = note
        self.requested = False

    def __call__(self) -> bool:
        return self.requested

    def request(self) -> None:
        """Stop as if the user had asked for it."""
        self.requested = True

    def check(self) -> None:
        """Raise Interrupted when a stop was asked for."""
        if self.requested:
            raise Interrupted("stopped as you asked")

    def __enter__(self) -> Self:
        self._inbox, self._outbox = socket.socketpair()
        self._outbox.setblocking(False)
        self._old_wakeup = signal.set_wakeup_fd(self._outbox.fileno(), warn_on_full_buffer=False)
        self._old = {number: signal.signal(number, _ignore) for number in SIGNALS}
        threading.Thread(target=self._watch, name="signals", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_wakeup)
        self._outbox.close()  # ends the watching thread

    def _watch(self) -> None:
        with self._inbox:
            while received := self._inbox.recv(1):
                if received[0] not in SIGNALS:
                    continue
                if self.requested:
                    os._exit(Interrupted.exit_code)
                self.requested = True
                if self.note:
                    sys.stderr.write(f"\n{self.note}\n")
                    sys.stderr.flush()


def _ignore(number: int, frame: FrameType | None) -> None:
    """Python wakes the watching thread only for signals that have a Python handler."""
