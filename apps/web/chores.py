"""Small work for a visitor beside the queue: the capture check, an export, a page of the viewer. Two at a time."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from apps.web import worker
from apps.web.limits import Busy
from scene.errors import InputError

AT_ONCE, WAITING = 2, 12
POLL_SECONDS = 0.05
LONGEST_WAIT = 60.0  # seconds for a place


class Chores:
    """Children that a request waits for. Every method may be called from any thread."""

    def __init__(self, memory: int) -> None:
        self._memory = memory
        self._places = threading.BoundedSemaphore(AT_ONCE)
        self._lock = threading.Lock()
        self._waiting = 0
        self._children: set[subprocess.Popen] = set()
        self._closed = False

    def close(self) -> None:
        """Stop what is at work, so that a server that ends need not wait for it, and take no more."""
        with self._lock:
            self._closed = True
            for child in self._children:
                os.killpg(child.pid, signal.SIGKILL)  # not reaped yet, so the number is still its own

    def run(self, root: Path, name: str, command: Sequence[str], seconds: float) -> None:
        """Do `command` in a child that sees nothing but the job's folder `root`.

        Raises InputError with the child's own words when it fails, Busy when too many wait.
        """
        with self._lock:
            if self._closed or self._waiting >= WAITING:
                raise Busy("this server is busy; try again in a minute")
            self._waiting += 1
        try:
            if not self._places.acquire(timeout=LONGEST_WAIT):
                raise Busy("this server is busy; try again in a minute")
            try:
                self._run(root, root / "chores" / name, command, seconds)
            finally:
                self._places.release()
        finally:
            with self._lock:
                self._waiting -= 1

    def _run(self, root: Path, folder: Path, command: Sequence[str], seconds: float) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        environment = {worker.MEMORY: str(self._memory), "CUDA_VISIBLE_DEVICES": ""}
        with self._lock:
            if self._closed:
                raise Busy("this server ends; try again when it is back")
            child = worker.start(folder, command, seconds=seconds, environment=environment, root=root)
            self._children.add(child)
        code = self._ended(child, seconds)
        if code is None:
            raise InputError(f"this took longer than {seconds:.0f} s and was stopped")
        words = worker.last_words(folder, root)
        shutil.rmtree(folder, ignore_errors=True)
        if code != 0:
            raise InputError(words or "this could not be done; the files may be damaged, or too large for this server")

    def _ended(self, child: subprocess.Popen, seconds: float) -> int | None:
        """The exit code of a child; None when it had to be stopped."""
        end = time.monotonic() + seconds + 5
        while True:
            with self._lock:  # a child is reaped and forgotten as one, so that `close` signals no stranger
                if child.poll() is not None or time.monotonic() > end:
                    self._children.discard(child)
                    break
            time.sleep(POLL_SECONDS)
        if child.returncode is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            return None
        return child.returncode


class Renewed:
    """Keeps one file new in the background while somebody looks at it: made again when its source has changed."""

    def __init__(self, chores: Chores, every: float) -> None:
        self._chores, self._every = chores, every
        self._lock = threading.Lock()
        self._busy: set[Path] = set()
        self._tried: dict[Path, tuple[int, float]] = {}  # target -> stamp of the source, when

    def look(self, root: Path, source: Path, target: Path, command: Sequence[str], seconds: float) -> bool:
        """Somebody looks: let `command` make `target` of `source` where that is newer; whether it is, at once."""
        try:
            stamp = source.stat().st_mtime_ns
        except OSError:
            return False
        if target.is_file() and target.stat().st_mtime_ns > stamp:
            return False
        with self._lock:
            before, when = self._tried.get(target, (0, -self._every))
            if target in self._busy:
                return True
            if before == stamp:  # it was tried, and there is nothing to show
                return False
            if time.monotonic() - when < self._every:
                return True
            self._busy.add(target)
            self._tried[target] = (stamp, time.monotonic())
        work = (root, target, command, seconds)
        threading.Thread(target=self._make, args=work, name="preview", daemon=True).start()
        return True

    def forget(self, root: Path) -> None:
        """Nothing below `root` is looked at any more."""
        with self._lock:
            for target in [target for target in self._tried if target.is_relative_to(root)]:
                del self._tried[target]

    def _make(self, root: Path, target: Path, command: Sequence[str], seconds: float) -> None:
        try:
            self._chores.run(root, target.name, command, seconds)
        except InputError:  # there is nothing to show yet, or no place now: the next look tries again
            return
        finally:
            with self._lock:
                self._busy.discard(target)
