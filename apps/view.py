"""`maquette view`: a run or a file in the browser of this machine, by viser: splats, mesh, photos, depth, a crop box.

Serves on the loopback only unless asked otherwise. A run that is still training is shown from its checkpoints and
renewed with each. The page itself is `apps/view_stage.py`; what there is to show is read here.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import socket
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Protocol

import tyro
from tyro.conf import Positional

from apps.console import Watcher
from apps.export import COLMAP_UP
from apps.film import up_of
from apps.generate_options import is_generated
from apps.methods import words_of
from apps.options import is_run, parse
from apps.run_cameras import RunCameras, edited_cameras
from apps.run_scene import SPLATS_FILE, about_splats, edited_mesh, edited_splats, splats_antialias, splats_file
from apps.run_splats import live_splats
from apps.signals import StopSignal
from scene.errors import InputError
from scene.formats import FILE_UP, UP, kind_of, load_mesh, load_splats
from scene.gaussians import Gaussians
from scene.mesh import Mesh
from scene.runs import Run

POLL_SECONDS = 2.0  # between two looks at whether the files have changed
PORTS_TRIED = 20
LOOPBACK = ("127.0.0.1", "localhost", "::1")

Stamp = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class View:
    """Show a run, a splat file or a mesh in the browser; a run that is still training is shown live."""

    path: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN|FILE")]
    """run folder, or a splat or mesh file"""
    port: int = 8080
    """port of the page; the next free one when it is taken"""
    host: str = "127.0.0.1"
    """address to serve on; 127.0.0.1 is reached from this machine only"""
    debug: bool = False
    """show tracebacks"""

    def __post_init__(self) -> None:
        if not 1 <= self.port <= 65535:
            raise InputError(f"--port must lie between 1 and 65535, got {self.port}")


@dataclass(frozen=True)
class Content:
    """What there is to show now. status: one line about it."""

    splats: Gaussians | None
    mesh: Mesh | None
    seen: RunCameras | None
    up: tuple[float, float, float]
    antialias: bool
    status: str


class Source(Protocol):
    """Something on the disk that is shown and may change."""

    path: Path

    def stamp(self) -> Stamp:
        """What tells one state of the files from the next."""
        ...

    def read(self) -> Content:
        """The present state. Raises InputError when there is nothing to show."""
        ...


class RunSource:
    """A run folder: its scene, or its last checkpoint while it trains."""

    FILES = ("scene.ply", SPLATS_FILE, "mesh.glb", "cameras.json", "edits.json", "checkpoint/latest.safetensors")

    def __init__(self, folder: Path) -> None:
        self.path = folder

    def stamp(self) -> Stamp:
        """Times and sizes of the files that are read."""
        return stamp_of(self.path / name for name in self.FILES)

    def read(self) -> Content:
        """Splats of the scene or of the newest checkpoint, the mesh and the cameras, as far as there are any."""
        with Run.open(self.path, writing=False) as run:
            seen = mesh = None
            with contextlib.suppress(InputError):
                seen = edited_cameras(run)
            up = UP if seen is None else up_of(seen)
            if (self.path / "mesh.glb").is_file():
                mesh = edited_mesh(run)
            splats, status = self._splats(run)
            if splats is None and mesh is None:
                raise InputError(f"{self.path} has nothing to show yet; the first checkpoint comes within a minute")
            return Content(splats, mesh, seen, up, splats_antialias(run), status)

    def _splats(self, run: Run) -> tuple[Gaussians | None, str]:
        if splats_file(run).is_file():
            splats = edited_splats(run)
            return splats, " · ".join(filter(None, (f"{len(splats):,} splats", about_splats(run))))
        if run.config.get("method") != "gaussians":
            return (None, "") if (self.path / "mesh.glb").is_file() else self._laid(run)
        loaded = run.load_checkpoint()
        if loaded is None:
            return None, ""
        tensors, state = loaded
        names = ("means", "quats", "log_scales", "opacity_logits", "sh_dc", "sh_rest")
        try:
            splats = Gaussians(**{name: tensors[f"gaussians.{name}"] for name in names})
        except (KeyError, ValueError) as error:
            raise InputError(f"the checkpoint of {run.folder} holds no splats ({error})") from error
        return splats, f"in training: step {state.get('step')} of {state.get('steps')}, {len(splats):,} splats"

    def _laid(self, run: Run) -> tuple[Gaussians | None, str]:
        """Splats that stand for what another method has so far."""
        made = live_splats(run)
        if made is None:
            return None, ""
        splats, state = made
        scene, when = words_of(run.config.get("method")).scene, "" if run.finished("train") else "in training: "
        where = f"step {state.get('step')} of {state.get('steps')}"
        return splats, f"{when}{where}, {len(splats):,} splats stand for the {scene}"


class FileSource:
    """A single splat or mesh file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def stamp(self) -> Stamp:
        """Time and size of the file."""
        return stamp_of([self.path])

    def read(self) -> Content:
        """The file's splats or mesh."""
        if kind_of(self.path) == "splats":
            splats = load_splats(self.path)
            up = UP if self.path.suffix.lower() in FILE_UP else COLMAP_UP
            return Content(splats, None, None, up, False, f"{len(splats):,} splats")
        mesh = load_mesh(self.path)
        return Content(None, mesh, None, UP, False, f"{len(mesh.faces):,} faces")


def main(arguments: Sequence[str]) -> None:
    """The `maquette view` command: serves until Ctrl-C."""
    request = parse(View, "view", arguments)
    source = source_of(request.path)
    content = source.read()  # what is wrong is said before a page opens
    try:
        importlib.import_module("viser")
    except ModuleNotFoundError as error:
        raise InputError("`maquette view` needs viser: pip install 'maquette[view]'") from error
    watcher, port = Watcher(), free_port(request.host, request.port)
    if port != request.port:
        watcher.say(f"Port {request.port} is taken; {port} is used instead.")
    if request.host not in LOOPBACK:
        watcher.say(f"Serving on {request.host}: everyone who reaches this machine can look, without a password.")
    with StopSignal() as stop:
        serve(source, content, request.host, port, stop, watcher)


def source_of(path: Path) -> Source:
    """What a path of the command line means. Raises InputError when it is nothing that can be shown."""
    if path.is_dir():
        if not (is_run(path) or is_generated(path)):
            raise InputError(f"{path} is a folder but no run of Maquette; name a run, or a splat or mesh file")
        return RunSource(path)
    if not path.exists():
        raise InputError(f"{path} does not exist; name a run folder, or a splat or mesh file")
    return FileSource(path)


def serve(source: Source, content: Content, host: str, port: int, stop: StopSignal, watcher: Watcher) -> None:
    """Serve the page and renew it when the files change, until stopped."""
    from apps.view_stage import Stage

    stage = Stage(source.path, host, port)
    try:
        stage.show(content)
        watcher.say(f"Open http://{'localhost' if host in LOOPBACK else host}:{port}   (Ctrl-C ends)")
        shown, looked = source.stamp(), time.monotonic()
        while not stop():
            stage.work()
            if time.monotonic() - looked < POLL_SECONDS:
                continue
            looked = time.monotonic()
            if (now := source.stamp()) != shown:
                shown = now
                try:
                    stage.show(source.read())
                except InputError as error:
                    stage.say(str(error))
    finally:
        stage.close()


def stamp_of(paths: Iterable[Path]) -> Stamp:
    """Names, times and sizes of those of the files that exist."""
    found = []
    for path in paths:
        with contextlib.suppress(OSError):
            facts = path.stat()
            found.append((path.name, facts.st_mtime_ns, facts.st_size))
    return tuple(found)


def free_port(host: str, port: int) -> int:
    """`port`, or the first one after it that nobody listens on. Raises InputError when there is none near."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for candidate in range(port, min(port + PORTS_TRIED, 65536)):
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, candidate))
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    continue
                raise InputError(f"cannot serve on {host}:{candidate}: {error.strerror or error}") from error
            return candidate
    raise InputError(f"ports {port} to {port + PORTS_TRIED - 1} are all taken; name another with --port")
