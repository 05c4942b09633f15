"""`maquette web`: serves the page until Ctrl-C."""

from __future__ import annotations

import importlib
import webbrowser
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from apps.console import Watcher
from apps.options import parse
from apps.view import LOOPBACK, free_port
from apps.web import sandbox
from apps.web.jobs import Store, claimed
from apps.web.limits import Limits, size_words
from apps.web.scheduler import Scheduler, devices
from apps.web.server import application, prepare, run
from apps.web.service import Service
from scene.errors import InputError
from scene.untrusted import read_text

NEEDED = ("gradio", "fastapi", "uvicorn")
FOLDER = Path("runs") / "web"
MAX_USERS_BYTES = 1 << 20
SAMPLE_QUERY = "?sample"  # of a page that begins with the photos that come with Maquette


@dataclass(frozen=True)
class Web:
    """Reconstruction and generation in the browser, for you or for many people, on this machine's processor or GPUs."""

    folder: Path = FOLDER
    """where jobs are kept; they are found again when the page is started anew"""
    port: int = 7860
    """port of the page; the next free one when it is taken"""
    host: str = "127.0.0.1"
    """address to serve on; 127.0.0.1 is reached from this machine only"""
    name: tuple[str, ...] = ()
    """names by which the page is reached behind a proxy, such as 3d.example.org; requests for others are refused"""
    users: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """file of lines name:password; without it nobody is asked"""
    model: tuple[Path, ...] = ()
    """folders of priors that visitors may choose for words, as generate --prior takes them"""
    minutes: float = Limits.minutes
    """longest time of a job"""
    active: int = Limits.active
    """jobs of a visitor that wait or run at a time"""
    keep_hours: float = Limits.keep_seconds / 3600
    """a job and its files are removed this long after it has ended"""
    open: bool = True
    """open the page in this machine's browser"""
    debug: bool = False
    """show tracebacks"""

    def __post_init__(self) -> None:
        if not 1 <= self.port <= 65535:
            raise InputError(f"--port must lie between 1 and 65535, got {self.port}")
        for flag, value, least in (
            ("minutes", self.minutes, 0.1),
            ("active", self.active, 1),
            ("keep-hours", self.keep_hours, 0.1),
        ):
            if not least <= value < 1e6:
                raise InputError(f"--{flag} must be at least {least:g}, got {value}")


def main(arguments: Sequence[str]) -> None:
    """The `maquette web` command."""
    serve(parse(Web, "web", arguments), Watcher())


def serve(request: Web, watcher: Watcher, *, query: str = "") -> None:
    """Serve until stopped. query: what the page is opened with."""
    check_installed()
    users = None if request.users is None else read_users(request.users)
    port, local = free_port(request.host, request.port), request.host in LOOPBACK
    if port != request.port:
        watcher.say(f"Port {request.port} is taken; {port} is used instead.")
    if not local and users is None:
        watcher.say(
            f"WARNING: {request.host} lets everyone who reaches this machine upload files and use its processor;"
        )
        watcher.say("         give --users FILE with lines name:password, and a proxy that speaks https.")
    if not sandbox.version():
        watcher.say(
            "This system has no Landlock: workers are not shut into their folders; the readers alone stand guard."
        )
    limits = Limits(minutes=request.minutes, active=request.active, keep_seconds=3600 * request.keep_hours)
    models = {path.name: path.resolve() for path in request.model}
    if missing := [path for path in models.values() if not path.is_dir()]:
        raise InputError(f"there is no folder {missing[0]}; --model names folders of priors")
    lanes, folder = devices(), request.folder.resolve()
    address = f"http://{'localhost' if local else request.host}:{port}/{query}"
    with claimed(folder) as empty, Scheduler(Store(folder, limits), lanes, reads=models.values()) as scheduler:
        service = Service(scheduler.store, scheduler, prepare(empty), models)
        names = frozenset((*LOOPBACK, *request.name)) if local else frozenset(request.name)
        app = application(service, names=names, users=users)
        watcher.say(f"Jobs are kept in {folder}; they run on {', '.join(lanes)}.")
        watcher.say(f"At most {size_words(limits.upload_bytes)} an upload. Open {address}   (Ctrl-C ends)")
        if request.open and local:
            webbrowser.open(address)
        try:
            run(app, request.host, port)
        finally:
            service.chores.close()


def check_installed() -> None:
    """Raise InputError where a package of the page is missing."""
    for package in NEEDED:
        try:
            importlib.import_module(package)
        except ModuleNotFoundError as error:
            raise InputError("`maquette web` needs gradio: pip install 'maquette[web]'") from error


def read_users(path: Path) -> Mapping[str, str]:
    """Passwords by name, from lines name:password. Raises InputError for another file."""
    users = {}
    for number, line in enumerate(read_text(path, MAX_USERS_BYTES).splitlines(), 1):
        name, colon, password = line.strip().partition(":")
        if line.strip() and not (name and colon and len(password) >= 8):
            raise InputError(f"{path}, line {number}: expected name:password, the password of 8 characters or more")
        users |= {name: password} if name else {}
    if not users:
        raise InputError(f"{path} names nobody; expected lines name:password")
    return users
