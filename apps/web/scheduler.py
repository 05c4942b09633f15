"""Who works next: one job at a time on each device, visitors in turn, stopped within seconds, found after a restart."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from apps.web import worker
from apps.web.jobs import Job, State, Store
from apps.web.limits import size_words
from scene.errors import InputError, MaquetteError

log = logging.getLogger(__name__)

TICK = 0.25  # seconds
PATIENCE, LAST_PATIENCE = 3.5, 4.5  # seconds after the first SIGINT: a second one leaves at once, then SIGKILL
# Not SIGTERM: glog, which comes with pycolmap, takes that over and ends the process without saving.
MOST_CRASHES = 2  # in a row, after which a job is not taken up again by itself
HOUSEKEEPING = 10.0  # seconds between two looks at sizes and ages
INTERRUPTED = 130


@dataclass
class _Lane:
    """A device and the job that it works on."""

    name: str
    environment: Mapping[str, str]
    key: str = ""
    process: subprocess.Popen | None = None  # None: a worker of a server that was here before
    stopped: float = 0.0  # when it was told to
    then: State = "stopped"  # what becomes of a job that was told to


class Scheduler:
    """Runs the jobs of a store. A context manager: as it ends, workers stop, and their jobs wait for a restart."""

    def __init__(self, store: Store, lanes: Sequence[str] = ("cpu",), reads: Iterable[Path] = ()) -> None:
        """reads: folders of models that workers may read, beside their own."""
        self.store = store
        shared = {worker.READABLE: os.pathsep.join(map(str, reads))}
        self._lanes = [_Lane(name, {**shared, **_environment(name)}) for name in lanes]
        self._last: dict[str, float] = {}  # owner -> when a job of theirs was last started
        self._wake, self._ending = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="scheduler", daemon=True)
        self._looked = 0.0

    def __enter__(self) -> Scheduler:
        self._adopt()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._wake.set()
        self._thread.join()
        self._stop_all()

    # What visitors ask for; each returns at once.

    def start(self, job: Job, **facts: object) -> Job:
        """Let a job wait for its turn. Raises InputError or Busy when a quota is used up."""
        job = self.store.enqueue(job, **facts)
        self._wake.set()
        return job

    def resume(self, job: Job) -> Job:
        """Let a stopped job go on. Raises InputError where there is nothing to go on from."""
        if not self.store.resumable(job):
            raise InputError("there is nothing to go on from; start this job anew")
        return self.start(job, crashes=0)

    def cancel(self, job: Job) -> Job:
        """Stop a job: a waiting one at once, a running one after it has saved. Raises InputError for another one."""
        with self.store.changing():
            now = self.store.known(job.key)
            if now is None or now.state not in ("queued", "running", "stopping"):
                raise InputError("this job neither waits nor runs")
            if now.state == "queued":
                return self.store.change(job.key, state="stopped", message="cancelled before it began")
            now = self.store.change(job.key, state="stopping")
        self._wake.set()
        return now

    def position(self, job: Job) -> int:
        """How many jobs come before a waiting one, those at work included; 0 when it does not wait."""
        order = [other.key for other in self.order()]
        busy = sum(1 for lane in self._lanes if lane.key)
        return busy + order.index(job.key) if job.key in order else 0

    def order(self) -> list[Job]:
        """Waiting jobs in the order of their turns: visitors with less at work and longer without a turn come first."""
        jobs = self.store.all()
        waiting = sorted((job for job in jobs if job.state == "queued"), key=lambda job: (job.queued, job.key))
        turns = Counter(job.owner for job in jobs if job.state in ("running", "stopping"))
        last, ordered = dict(self._last), []
        while waiting:
            chosen = min(waiting, key=lambda job: (turns[job.owner], last.get(job.owner, 0.0), job.queued))
            waiting.remove(chosen)
            ordered.append(chosen)
            turns[chosen.owner] += 1
        return ordered

    # The thread.

    def _work(self) -> None:
        while not self._ending.is_set():
            self._wake.wait(TICK)
            self._wake.clear()
            try:
                self._tick()
            except Exception:
                log.exception("the scheduler goes on after a fault of ours")

    def _tick(self) -> None:
        for lane in self._lanes:
            if lane.key:
                self._watch(lane)
        for lane in self._lanes:
            if not lane.key and (order := self.order()):
                self._start(lane, order[0])
        if time.monotonic() - self._looked > HOUSEKEEPING:
            self._looked = time.monotonic()
            self._keep_house()

    def _start(self, lane: _Lane, job: Job) -> None:
        folder, minutes = self.store.path(job), job.minutes or self.store.limits.minutes
        try:
            with self.store.changing():  # so that nobody cancels or deletes it in between
                if (self.store.known(job.key) or job).state != "queued":
                    return
                lane.process = worker.start(
                    folder, self._command(job), seconds=60 * minutes + 120, environment=lane.environment
                )
                self.store.change(job.key, state="running", starts=job.starts + 1, pid=lane.process.pid, message="")
        except (MaquetteError, OSError) as error:
            log.warning("job %s could not be started: %s", job.key[:6], error)
            self.store.change(job.key, state="failed", message="this job could not be started; try again later")
            return
        lane.key, lane.stopped, lane.then = job.key, 0.0, "stopped"
        self._last[job.owner] = time.time()

    def _command(self, job: Job) -> list[str]:
        """The command line of a job; a run that has begun goes on."""
        run = str(self.store.run_folder(job))
        if (self.store.run_folder(job) / "config.json").is_file():
            return [job.kind, run, "--resume", "--json"]
        shared = ["--out", run, "--json", *job.arguments]
        if job.kind == "generate":
            return ["generate", *shared, "--", job.prompt]
        return ["recon", *shared, "--", str(self.store.source(job))]

    def _watch(self, lane: _Lane) -> None:
        """See whether a lane's worker has ended, or is to be stopped."""
        job = self.store.known(lane.key)
        if job is None:
            lane.key, lane.process = "", None
            return
        folder = self.store.path(job)
        ended = lane.process.poll() is not None if lane.process is not None else not worker.held(folder)
        if ended:
            self._settle(lane, job, folder)
        elif job.state == "stopping":
            self._press(lane, job)

    def _press(self, lane: _Lane, job: Job) -> None:
        """Ask, ask again, insist."""
        now = time.monotonic()
        if not lane.stopped:
            lane.stopped = now
            _signal(job, signal.SIGINT)
        elif now - lane.stopped > LAST_PATIENCE:
            _signal(job, signal.SIGKILL, group=True)
        elif now - lane.stopped > PATIENCE:
            _signal(job, signal.SIGINT)

    def _settle(self, lane: _Lane, job: Job, folder: Path) -> None:
        """Write down how a worker ended."""
        code = worker.outcome(folder)
        if code is None and lane.process is not None and lane.process.returncode == INTERRUPTED:
            code = INTERRUPTED
        if lane.process is not None:
            _signal(job, signal.SIGKILL, group=True)  # what a worker that was killed may have left behind
        lane.key, lane.process = "", None
        facts = self._ending_of(job, code, folder, lane.then)
        self.store.change(job.key, pid=0, code=code, size=self.store.measure(job), **facts)

    def _ending_of(self, job: Job, code: int | None, folder: Path, then: State) -> dict[str, object]:
        if code == 0:
            return {"state": "done", "message": "", "crashes": 0}
        if job.state == "stopping":
            return {"state": then, "message": job.message or "cancelled; it can be resumed"}
        if code == INTERRUPTED:
            return {"state": "stopped", "message": "its time was up; it can be resumed"}
        if code is None and job.crashes < MOST_CRASHES:  # killed from outside, or the machine went down
            return {"state": "queued", "message": "interrupted; it goes on by itself", "crashes": job.crashes + 1}
        if code in (2, 3, 4):
            return {"state": "failed", "message": worker.last_words(folder)}
        log.error("job %s ended with code %s; its log is %s", job.key[:6], code, folder / worker.LOG)
        return {"state": "failed", "message": "this failed by a fault of ours; the server's owner finds it in the log"}

    def _keep_house(self) -> None:
        limits = self.store.limits
        for lane in self._lanes:
            if lane.key and (job := self.store.known(lane.key)) is not None and job.state == "running":
                size = self.store.measure(job)
                if size > limits.job_bytes:
                    why = f"stopped: it took {size_words(size)} of disk, and {size_words(limits.job_bytes)} are allowed"
                    self.store.change(job.key, state="stopping", message=why)
        for job in self.store.expire(time.time()):
            log.info("job %s has expired", job.key[:6])

    # A server that begins and ends.

    def _adopt(self) -> None:
        """Take over what an earlier server left: workers at work go on, others wait for their turn again."""
        free = list(self._lanes)
        for job in sorted(self.store.all(), key=lambda job: job.queued):
            if job.state not in ("running", "stopping"):
                continue
            if worker.held(self.store.path(job)):
                if free:
                    free.pop(0).key = job.key
                    continue
                _signal(job, signal.SIGKILL, group=True)  # this machine had more devices before
            self._settle(_Lane("", {}, key=job.key), job, self.store.path(job))

    def _stop_all(self) -> None:
        """Stop the workers of this server as it ends; their jobs wait, to go on when it starts again."""
        for lane in self._lanes:
            if lane.key and (job := self.store.known(lane.key)) is not None and job.state == "running":
                lane.then = "queued"
                self.store.change(job.key, state="stopping", message="it goes on when the server is back")
        while busy := [lane for lane in self._lanes if lane.key]:
            for lane in busy:
                self._watch(lane)
            time.sleep(0.05)


def _environment(lane: str) -> dict[str, str]:
    """What a worker of a lane finds in its environment: a GPU's lane sees that GPU only."""
    device, _, index = lane.partition(":")
    return {"CUDA_VISIBLE_DEVICES": index if device == "cuda" else ""}


def _signal(job: Job, number: int, *, group: bool = False) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        (os.killpg if group else os.kill)(job.pid, number)


def devices() -> list[str]:
    """The lanes of this machine: one for each NVIDIA GPU, else one for the processor."""
    import torch

    return [f"cuda:{i}" for i in range(torch.cuda.device_count())] or ["cpu"]
