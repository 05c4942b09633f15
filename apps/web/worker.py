"""The child process that does one piece of work in a job's folder: python -m apps.web.worker

It runs a command of `maquette` as the command line does, under limits, and leaves its exit code in JOB/exit.json. It
needs no server: one that was killed finds the child again by the lock that the child holds (`held`).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from apps.web import sandbox
from scene.errors import InputError
from scene.files import read_json, replacing
from scene.ops.gpu.compiler import cache_folder

LOCK, EXIT, LOG = "worker.lock", "exit.json", "log.txt"
NICE = 10  # below the server, whose pages stay quick while both cores train
READABLE, MEMORY = "MAQUETTE_WORKER_READS", "MAQUETTE_WORKER_MEMORY"  # in the environment: folders of models; bytes
LARGEST_FILE = 16 << 30
MAX_LOG = 1 << 20
_SAID = "maquette: "


def start(
    folder: Path, command: Sequence[str], *, seconds: float, environment: Mapping[str, str], root: Path | None = None
) -> subprocess.Popen:
    """Start a worker in a session of its own, with the folder's lock in its hands from its first instant.

    folder: for its lock, log and exit code.  root: all that it sees; `folder` where None.
    Raises InputError when another worker holds it.
    """
    (folder / EXIT).unlink(missing_ok=True)
    lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with (folder / LOG).open("wb") as said:
            return subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "apps.web.worker",
                    str(root or folder),
                    str(folder),
                    str(seconds),
                    *command,
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=said,
                cwd=folder,
                env={**os.environ, **environment},
                pass_fds=[lock],  # the lock belongs to what is open, so it is free when the worker has ended, however
                start_new_session=True,
            )
    except BlockingIOError as error:
        raise InputError("this job is at work already") from error
    finally:
        os.close(lock)


def held(folder: Path) -> bool:
    """Whether a worker is at work in a job's folder."""
    try:
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def outcome(folder: Path) -> int | None:
    """The exit code that the last worker left, None when it ended without a word."""
    with contextlib.suppress(InputError, OSError):
        facts = read_json(folder / EXIT, {})
        code = facts.get("code") if isinstance(facts, dict) else None
        return code if type(code) is int else None
    return None


def last_words(folder: Path, root: Path | None = None) -> str:
    """The line in which the command said what was wrong, without the server's own paths."""
    try:
        with (folder / LOG).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - MAX_LOG))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    said = [line.removeprefix(_SAID) for line in lines if line.startswith(_SAID)]
    text = said[-1] if said else ""
    root = root or folder
    for path in (f"{root / 'source'}/", f"{root}/", str(root)):
        text = text.replace(path, "")
    return text[:400]


def limit(name: int, most: int) -> None:
    """Lower a limit of this process; one that is lower already stays."""
    _, hard = resource.getrlimit(name)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(name, (most, most))


def confined(folder: Path) -> None:
    """Shut this process into the job's folder; what is temporary goes there too."""
    temporary = folder / "tmp"
    temporary.mkdir(exist_ok=True)
    os.environ["TMPDIR"] = str(temporary)
    home = Path.home()
    named = os.environ.get(READABLE, "").split(os.pathsep)
    reads = [
        cache_folder(),
        home / ".config" / "matplotlib",
        home / ".cache" / "matplotlib",
        *map(Path, filter(None, named)),
    ]
    sandbox.confine([folder], [path for path in reads if path is not None])


def main(arguments: Sequence[str]) -> int:
    """Do the work and return its exit code."""
    root, folder, seconds, command = Path(arguments[0]), Path(arguments[1]), float(arguments[2]), arguments[3:]
    os.nice(NICE)
    os.umask(0o077)
    limit(resource.RLIMIT_CORE, 0)
    limit(resource.RLIMIT_FSIZE, LARGEST_FILE)
    if memory := int(os.environ.get(MEMORY, "0")):
        limit(resource.RLIMIT_AS, memory)
    confined(root)
    timer = threading.Timer(
        seconds, os.kill, (os.getpid(), signal.SIGINT)
    )  # saves and ends; not SIGTERM, see scheduler.py
    timer.daemon = True
    timer.start()
    if command[0] == "check":
        from apps.web.check import main as check

        code = check(root, command[1:])
    elif command[0] == "preview":
        from apps.web.preview import main as preview

        code = preview(command[1:])
    else:
        from apps import cli

        code = cli.run(command)
    with replacing(folder / EXIT) as file:
        file.write(json.dumps({"code": code}).encode())
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
