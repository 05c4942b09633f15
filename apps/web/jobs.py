"""Jobs on the disk: one folder each with a name nobody can guess, whole at any instant, found again after a restart.

JOBS/<key>/job.json   what is asked, by whom, and how far it is     source/    what was uploaded
           run/       the run folder, as `maquette recon` makes it  exports/   formats that were asked for
           check.json what the capture check found                  log.txt    what the worker said
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from apps.options import from_json
from apps.web.limits import Busy, Limits, size_words
from scene.errors import InputError
from scene.files import read_json, replacing

log = logging.getLogger(__name__)

State = Literal["draft", "queued", "running", "stopping", "done", "stopped", "failed"]
ACTIVE: tuple[State, ...] = ("queued", "running", "stopping")
KEY_BYTES = 24  # 192 bits
_KEY = re.compile(r"[A-Za-z0-9_-]{32}")
MAX_TITLE = 80
UPLOADS = ".uploads"


@dataclass(frozen=True)
class Job:
    """One job. owner: `owner_of` its visitor.  arguments: flags of the command.  queued: orders the queue.

    message: one line for the visitor.  code: exit code of the last worker.  starts: of workers; crashes: of those that
    ended without a word.  pid: of the worker at work.
    """

    key: str
    owner: str
    kind: Literal["recon", "generate"]
    title: str
    created: float
    changed: float
    state: State = "draft"
    prompt: str = ""
    arguments: tuple[str, ...] = ()
    minutes: float = 0.0
    queued: float = 0.0
    starts: int = 0
    crashes: int = 0
    pid: int = 0
    code: int | None = None
    size: int = 0
    message: str = ""


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[Path]:
    """The folder of jobs for one server alone, and a folder in it for what is being uploaded, empty before and after.

    Raises InputError while another server has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"another maquette web keeps its jobs in {folder}; name another --folder") from error
        shutil.rmtree(folder / UPLOADS, ignore_errors=True)  # of a server that was killed
        (folder / UPLOADS).mkdir(mode=0o700)
        try:
            yield folder / UPLOADS
        finally:
            shutil.rmtree(folder / UPLOADS, ignore_errors=True)


def owner_of(visitor: str) -> str:
    """What is kept of a visitor's secret: enough to know it again, not enough to act as that visitor."""
    return hashlib.sha256(visitor.encode()).hexdigest()


class Store:
    """All jobs below a folder. Every method may be called from any thread."""

    def __init__(self, folder: Path, limits: Limits | None = None) -> None:
        self.folder, self.limits = folder, limits or Limits()
        self._lock = threading.RLock()
        self._jobs: dict[str, Job] = {}
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        for path in folder.iterdir():
            if path.is_dir() and _KEY.fullmatch(path.name):
                self._read(path)

    def _read(self, path: Path) -> None:
        try:
            job = from_json(Job, read_json(path / "job.json", None))
        except (InputError, ValueError, OSError) as error:
            log.warning("%s is left out: it is no job of this version (%s)", path, error)
            return
        if job.key == path.name:
            self._jobs[job.key] = job

    def path(self, job: Job) -> Path:
        """The folder of a job."""
        return self.folder / job.key

    def run_folder(self, job: Job) -> Path:
        """Where the run of a job is, or will be."""
        return self.path(job) / "run"

    def resumable(self, job: Job) -> bool:
        """Whether `maquette ... --resume` could go on with it."""
        return job.state in ("stopped", "failed") and (self.run_folder(job) / "config.json").is_file()

    # Finding. A key of another visitor is answered like one that was never given out.

    def get(self, key: str, visitor: str) -> Job:
        """A visitor's own job. Raises InputError when the visitor has none of this name."""
        with self._lock:
            job = self._jobs.get(key) if isinstance(key, str) else None
        if job is None or not visitor or not secrets.compare_digest(job.owner, owner_of(visitor)):
            raise InputError("there is no such job; it may have been deleted or have expired")
        return job

    def known(self, key: str) -> Job | None:
        """A job by its key, for the server itself."""
        with self._lock:
            return self._jobs.get(key)

    def of(self, visitor: str) -> list[Job]:
        """A visitor's jobs, newest first."""
        owner = owner_of(visitor) if visitor else ""
        return sorted((job for job in self.all() if job.owner == owner), key=lambda job: -job.created)

    def all(self) -> list[Job]:
        """Every job."""
        with self._lock:
            return list(self._jobs.values())

    # Making and changing.

    def changing(self) -> threading.RLock:
        """Held while several facts are read and changed as one."""
        return self._lock

    def create(self, visitor: str, kind: Literal["recon", "generate"], title: str, **facts: Any) -> Job:
        """A new job with an empty folder. Raises InputError or Busy when a quota is used up."""
        limits = self.limits
        if not visitor:
            raise InputError("no visitor is named; allow this page's cookie, or send the header X-Maquette-Visitor")
        if shutil.disk_usage(self.folder).free < limits.free_bytes:
            raise Busy("the disk of this server is full; try again later")
        with self._lock:
            self._make_room(owner_of(visitor))
            key, now = secrets.token_urlsafe(KEY_BYTES), time.time()
            job = Job(key, owner_of(visitor), kind, _plain(title), created=now, changed=now, **facts)
            (self.folder / key).mkdir(mode=0o700)
            self._put(job)
        return job

    def _make_room(self, owner: str) -> None:
        """Drafts go first; a visitor's own results are never removed to make room."""
        mine = [job for job in self.all() if job.owner == owner]
        if len(mine) < self.limits.kept:
            return
        drafts = sorted((job for job in mine if job.state == "draft"), key=lambda job: job.changed)
        if not drafts:
            raise InputError(f"you have {len(mine)} jobs, and {self.limits.kept} are kept; delete one in My jobs first")
        self.remove(drafts[0])

    def change(self, key: str, **facts: Any) -> Job:
        """The job with other facts, written down before it is answered. Raises InputError when it is gone."""
        with self._lock:
            job = self._jobs.get(key)
            if job is None:
                raise InputError("there is no such job any more")
            job = dataclasses.replace(job, **{"changed": time.time(), **facts})
            self._put(job)
        return job

    def _put(self, job: Job) -> None:
        with replacing(self.folder / job.key / "job.json") as file:
            file.write(json.dumps(dataclasses.asdict(job)).encode())
        self._jobs[job.key] = job

    def enqueue(self, job: Job, **facts: Any) -> Job:
        """Let a job wait for its turn. Raises InputError or Busy when a quota is used up."""
        with self._lock:
            waiting = [other for other in self.all() if other.state in ACTIVE]
            if self._jobs.get(job.key, job).state in ACTIVE:
                raise InputError("this job waits or runs already")
            if sum(other.owner == job.owner for other in waiting) >= self.limits.active:
                raise InputError(f"you have {self.limits.active} jobs at work; wait for one, or cancel one in My jobs")
            if len(waiting) >= self.limits.queue:
                raise Busy(f"{len(waiting)} jobs wait already, and no more are taken; try again later")
            return self.change(job.key, state="queued", queued=time.time(), message="", code=None, **facts)

    def remove(self, job: Job) -> None:
        """Forget a job and all its files. Raises InputError while it runs."""
        with self._lock:
            now = self._jobs.get(job.key)
            if now is None:
                return
            if now.state in ("running", "stopping"):
                raise InputError("this job is running; cancel it first")
            self._jobs.pop(job.key)
            shutil.rmtree(self.folder / job.key, ignore_errors=True)

    def expire(self, now: float) -> list[Job]:
        """Remove what nobody ran or looked at for the stated time; what was removed."""
        gone = []
        for job in self.all():
            kept = self.limits.draft_seconds if job.state == "draft" else self.limits.keep_seconds
            if job.state not in ACTIVE and now - job.changed > kept:
                self.remove(job)
                gone.append(job)
        return gone

    def measure(self, job: Job) -> int:
        """Bytes of a job on the disk."""
        total = 0
        for folder, _, names in os.walk(self.path(job)):
            for name in names:
                with contextlib.suppress(OSError):  # a temporary file that was renamed meanwhile
                    total += Path(folder, name).lstat().st_size
        return total

    # Uploads.

    def take_upload(self, job: Job, files: list[Path]) -> None:
        """Move uploaded files into the job's source folder. Raises InputError when they are too many or too large."""
        limits, folder = self.limits, self.path(job) / "source"
        if not files:
            raise InputError("nothing was uploaded; drop photos, a .zip or a video first")
        if len(files) > limits.files:
            raise InputError(f"{len(files)} files came, and at most {limits.files} are taken; send them as one .zip")
        total = sum(path.stat().st_size for path in files)
        if total > limits.upload_bytes:
            most = size_words(limits.upload_bytes)
            raise InputError(f"{size_words(total)} came, and at most {most} are taken; make the photos smaller")
        folder.mkdir(mode=0o700)
        taken: set[str] = set()
        for path in files:
            name = safe_name(path.name, taken)
            taken.add(name.lower())
            shutil.move(path, folder / name)

    def source(self, job: Job) -> Path:
        """What the job's command is given: its only file where that is no photo, else the folder."""
        folder = self.path(job) / "source"
        files = [path for path in folder.iterdir() if path.is_file()]
        alone = len(files) == 1 and files[0].suffix.lower() not in (".jpg", ".jpeg", ".png", ".heic", ".heif")
        return files[0] if alone else folder


def safe_name(name: str, taken: set[str]) -> str:
    """A file name of plain letters that is not taken yet, with the ending that it came with."""
    plain = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "-_.") else "_" for letter in name)
    stem, dot, ending = plain.rpartition(".")
    if not (dot and ending.isalnum() and len(ending) <= 8):
        stem, dot, ending = plain, "", ""
    stem, ending = stem.lstrip(".-")[:80] or "file", dot + ending
    wanted, n = stem + ending, 2
    while wanted.lower() in taken:
        wanted, n = f"{stem}-{n}{ending}", n + 1
    return wanted


def _plain(title: str) -> str:
    """A title without characters that do not print."""
    return "".join(letter for letter in title if letter.isprintable())[:MAX_TITLE].strip() or "untitled"
