"""Workers of the web door: real reconstructions of a tiny capture, cancelled, resumed, orphaned and confined."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from apps.web import sandbox, worker
from apps.web.jobs import Job, Store
from apps.web.limits import Limits
from apps.web.scheduler import Scheduler
from scene.runs import last_event_time, read_events
from tests.apps.tiny import write_tiny

VISITOR = "visitor" * 6
LONG = ("--steps", "100000", "--max-splats", "500", "--checkpoint-seconds", "1")
SHORT = ("--steps", "30", "--max-splats", "300", "--faces", "300", "--preset", "draft")
SERVER = """
import sys, time
from pathlib import Path
from apps.web.jobs import Store
from apps.web.limits import Limits
from apps.web.scheduler import Scheduler
with Scheduler(Store(Path(sys.argv[1]), Limits(free_bytes=0))):
    print("up", flush=True)
    time.sleep(600)
"""


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("capture")
    return Path(shutil.make_archive(str(folder / "tiny"), "zip", write_tiny(folder / "tiny")))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "jobs", Limits(free_bytes=0))
    yield store
    for job in store.all():  # a test that failed leaves no worker behind
        if worker.held(store.path(job)):
            os.killpg(Store(store.folder).known(job.key).pid, signal.SIGKILL)  # type: ignore[union-attr]


def photos(store: Store, archive: Path, arguments: tuple[str, ...]) -> Job:
    copy = store.folder.parent / archive.name
    shutil.copy(archive, copy)
    job = store.create(VISITOR, "recon", "tiny", arguments=arguments, minutes=2.0)
    store.take_upload(job, [copy])
    return job


def until(true: Callable[[], bool], seconds: float) -> float:
    """Seconds until it is true."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < seconds, "it did not come true"
        time.sleep(0.02)
    return time.monotonic() - began


def checkpoint(store: Store, job: Job) -> Path:
    return store.run_folder(job) / "checkpoint" / "latest.safetensors"


def events(store: Store, job: Job) -> list[dict[str, Any]]:
    return read_events(store.run_folder(job) / "events.jsonl")


def state(store: Store, job: Job) -> str:
    now = store.known(job.key)
    assert now is not None
    return now.state


def test_a_job_is_cancelled_within_seconds_and_goes_on_where_it_was(store: Store, archive: Path) -> None:
    job = photos(store, archive, LONG)
    with Scheduler(store) as scheduler:
        scheduler.start(job)
        until(checkpoint(store, job).is_file, 60)
        began = time.monotonic()
        scheduler.cancel(job)
        assert time.monotonic() - began < 2 and state(store, job) == "stopping"
        freed = until(lambda: not worker.held(store.path(job)), 10)
        assert freed < 5  # the processor is free
        until(lambda: state(store, job) == "stopped", 2)
        stopped = store.get(job.key, VISITOR)
        assert store.resumable(stopped) and "resumed" in stopped.message
        worked = last_event_time(store.run_folder(job) / "events.jsonl")
        scheduler.resume(stopped)
        until(lambda: last_event_time(store.run_folder(job) / "events.jsonl") > worked + 0.5, 60)
        began = time.monotonic()
    assert time.monotonic() - began < 6  # a server that ends stops its worker
    assert state(store, job) == "queued"  # and takes the job up again when it is back


def test_a_killed_server_finds_its_job_at_work_and_one_whose_worker_died_goes_on(store: Store, archive: Path) -> None:
    job = store.enqueue(photos(store, archive, LONG))
    command = [sys.executable, "-c", SERVER, str(store.folder)]
    with subprocess.Popen(command, cwd=Path(__file__).parents[3], stdout=subprocess.PIPE) as server:
        until(checkpoint(store, job).is_file, 60)
        server.kill()
    again = Store(store.folder, store.limits)
    assert state(again, job) == "running" and worker.held(again.path(job))
    before = last_event_time(store.run_folder(job) / "events.jsonl")
    with Scheduler(again) as scheduler:
        until(lambda: last_event_time(store.run_folder(job) / "events.jsonl") > before + 0.2, 20)  # nothing was lost
        now = again.get(job.key, VISITOR)
        assert now.state == "running" and now.starts == 1
        os.kill(now.pid, signal.SIGKILL)  # as if memory had run out
        until(lambda: again.get(job.key, VISITOR).starts == 2, 20)
        until(lambda: any("Going on from step" in event["message"] for event in events(store, job)), 60)
        scheduler.cancel(job)
        until(lambda: state(again, job) == "stopped", 6)
    told = events(store, job)
    again_at = next(i for i, event in enumerate(told) if "Going on from step" in event["message"])
    kept = int(told[again_at]["message"].split()[-1])
    saved = next(event["t"] for event in told if (event["step"] or 0) >= kept)
    assert told[again_at - 1]["t"] - saved < 10  # seconds of work lost; the bar is 60, --checkpoint-seconds is 1 here


def test_a_run_ends_well_and_a_wrong_one_with_its_reason(store: Store, archive: Path) -> None:
    good, wrong = photos(store, archive, SHORT), photos(store, archive, ("--faces", "7"))
    with Scheduler(store) as scheduler:
        scheduler.start(wrong)
        scheduler.start(good)
        until(lambda: state(store, wrong) == "failed", 60)
        until(lambda: state(store, good) in ("done", "failed"), 90)
    done, failed = store.get(good.key, VISITOR), store.get(wrong.key, VISITOR)
    assert done.state == "done" and (store.run_folder(good) / "mesh.glb").is_file() and done.size > 100_000
    assert failed.code == 2 and failed.message.startswith("--faces must lie between")
    assert str(store.folder) not in failed.message


def test_a_lock_tells_whether_a_worker_is_at_work(tmp_path: Path) -> None:
    assert not worker.held(tmp_path)
    child = worker.start(tmp_path, ["--version"], seconds=60, environment={})
    assert worker.held(tmp_path) and child.wait(60) == 0
    assert not worker.held(tmp_path) and worker.outcome(tmp_path) == 0


LOOKS = """
import os, socket, sys
from pathlib import Path
from apps.web import sandbox
job, other = map(Path, sys.argv[1:])
assert sandbox.confine([job])
(job / "kept").write_text("x")
assert (job / "kept").read_text() == "x" and Path(os.__file__).read_text()
(job / "link").symlink_to(other / "secret")
for path in (other / "secret", job / "link", job / ".." / "other" / "secret", Path("/etc/passwd"), Path.home()):
    try:
        path.iterdir().__next__() if path.is_dir() else path.read_bytes()
    except PermissionError:
        continue
    sys.exit(f"{path} was opened")
for forbidden in (lambda: (other / "new").write_text("x"), lambda: (other / "secret").unlink()):
    try:
        forbidden()
    except PermissionError:
        continue
    sys.exit("something was written outside")
if sandbox.version() >= 4:
    try:
        socket.create_connection(("127.0.0.1", 9), timeout=2)
    except PermissionError:
        sys.exit(0)
    sys.exit("a connection was tried")
"""


@pytest.mark.skipif(not sandbox.version(), reason="needs a kernel with Landlock (Linux 5.13)")
def test_a_confined_worker_opens_nothing_outside_its_folder(tmp_path: Path) -> None:
    (tmp_path / "job").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "secret").write_text("of another visitor")
    command = [sys.executable, "-c", LOOKS, str(tmp_path / "job"), str(tmp_path / "other")]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "other" / "secret").read_text() == "of another visitor"
