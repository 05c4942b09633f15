"""The run folder: events, decisions, checkpoints and metrics that survive a kill -9 at any instant.

Every file is written beside its final name, flushed to the disk and renamed over it, so a reader sees the old content
or the new, never a mixture. A checkpoint is one file: the JSON state travels in the header of `latest.safetensors`, so
one rename changes tensors and state together. `checkpoint/state.json` is its copy for people and other programs.

Beyond the contract: each event also has `stage`; `progress.json` holds finished stages, decisions and the capture
check (what `--resume` and the report need). `t` counts seconds of work since the run began, across resumes.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from torch import Tensor

from scene.checkpoints import read_checkpoint, write_checkpoint
from scene.environment import commit, library_versions, peak_memory_mb, system_facts, version
from scene.errors import InputError
from scene.files import disk_error, read_json, replacing, write_errors
from scene.untrusted import open_regular, parse_json, read_lines, size_of

log = logging.getLogger(__name__)

EVENT_KEYS = ("t", "step", "steps", "loss", "psnr", "splats", "eta_s", "message")
METRIC_KEYS = frozenset(
    (
        "method",
        "source",
        "views_total",
        "views_registered",
        "holdout_views",
        "psnr",
        "ssim",
        "lpips",
        "depth_mae",
        "chamfer",
        "steps",
        "seconds_sfm",
        "seconds_train",
        "seconds_total",
        "peak_memory_mb",
        "primitives",
        "parameters",
        "mesh_faces",
        "mesh_watertight",
        "device",
        "backend",
        "seed",
        "version",
    )
)
FORMAT = 1
MAX_EVENTS_BYTES, MAX_EVENT_BYTES = 512 << 20, 1 << 20


@dataclass(frozen=True)
class StepReport:
    """Where a training loop stands. loss and psnr are of the step; eta_s is seconds to the end of the loop."""

    step: int
    steps: int
    loss: float
    psnr: float | None
    splats: int
    eta_s: float | None
    message: str = ""


class Run:
    """A run folder held by this process. Make one with `create` or `open`; use as a context manager."""

    def __init__(self, folder: Path, *, writing: bool) -> None:
        self.folder = folder
        self.listeners: list[Callable[[dict[str, Any]], None]] = []
        self._lock = _lock_folder(folder) if writing else None
        if writing:
            for leftover in (*folder.glob(".*.tmp"), *folder.glob("checkpoint/.*.tmp")):
                leftover.unlink(missing_ok=True)
            _drop_torn_line(folder / "events.jsonl")
        self._events: BinaryIO | None = None
        progress = read_json(folder / "progress.json", {})
        self._progress: dict[str, Any] = progress if isinstance(progress, dict) else {}
        for key, empty in (("stages", {}), ("decisions", [])):
            if not isinstance(self._progress.get(key), type(empty)):
                self._progress[key] = empty
        self.stage = ""
        self._worked_before = last_event_time(folder / "events.jsonl") if writing else 0.0
        self._opened = time.monotonic()

    @classmethod
    def create(cls, folder: Path | str, method: str, options: Mapping[str, Any]) -> Self:
        """Start a run in a new or empty folder. Raises InputError when the folder already holds something."""
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise disk_error(error, folder, "make the run folder") from error
        run = cls(folder, writing=True)
        present = sorted(path.name for path in folder.iterdir() if path.name != ".lock")
        if present:
            run.close()
            if "config.json" in present:
                raise InputError(f"{folder} already holds a run; add --resume to go on with it, or name another --out")
            raise InputError(f"{folder} is not empty (it holds {present[0]}); name a new folder with --out")
        run.write_json("config.json", {"format": FORMAT, "method": method, **options})
        return run

    @classmethod
    def open(cls, folder: Path | str, *, writing: bool = True) -> Self:
        """Open an existing run. Raises InputError when `folder` is none or another process writes to it."""
        folder = Path(folder)
        if not (folder / "config.json").is_file():
            raise InputError(f"{folder} is not a run folder: it has no config.json")
        run = cls(folder, writing=writing)
        try:
            config = run.config
            if not isinstance(config, dict) or not isinstance(config.get("method"), str):
                raise InputError(f"{folder / 'config.json'} names no method; is this folder a run of Maquette?")
            if config.get("format") not in (None, *range(FORMAT + 1)):
                raise InputError(
                    f"{folder} was made by a newer version of Maquette (format {config['format']!s:.20}, this reads "
                    f"{FORMAT}); update this one"
                )
        except InputError:
            run.close()
            raise
        return run

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the folder free for another process."""
        if self._events is not None:
            self._events.close()
            self._events = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # What a run says while it goes.

    @property
    def seconds(self) -> float:
        """Seconds of work in this run so far, across resumes."""
        return self._worked_before + time.monotonic() - self._opened

    def event(
        self,
        message: str = "",
        *,
        step: int | None = None,
        steps: int | None = None,
        loss: float | None = None,
        psnr: float | None = None,
        splats: int | None = None,
        eta_s: float | None = None,
    ) -> None:
        """Append one event and pass it to the listeners (console, --json). Unknown and non-finite values are null."""
        values = (round(self.seconds, 3), step, steps, loss, psnr, splats, eta_s, message)
        event = {key: _finite_or_none(value) for key, value in zip(EVENT_KEYS, values)}
        event["stage"] = self.stage
        line = _json_bytes(event) + b"\n"
        try:
            if self._events is None:
                self._events = (self.folder / "events.jsonl").open("ab", buffering=0)
            self._events.write(line)  # unbuffered O_APPEND: whole lines, in order, without a flush to forget
        except OSError as error:
            raise disk_error(error, self.folder / "events.jsonl", "write an event") from error
        for listener in self.listeners:
            listener(event)

    def on_step(self, report: StepReport) -> None:
        """Record a training step as an event; pass this to `train(on_step=...)`."""
        values = asdict(report)
        self.event(values.pop("message"), **values)

    def decide(self, sentence: str) -> None:
        """Keep a decision for the report and say it. The same sentence is kept once, so a resume repeats none."""
        if sentence not in self._progress["decisions"]:
            self._progress["decisions"].append(sentence)
            self.write_json("progress.json", self._progress)
            self.event(sentence)

    @property
    def decisions(self) -> tuple[str, ...]:
        """The sentences given to `decide`, in order."""
        return tuple(str(sentence) for sentence in self._progress["decisions"])

    # Stages: what a resume may skip.

    def finished(self, stage: str) -> dict[str, Any] | None:
        """What `finish` recorded of a stage, or None when it has still to be done."""
        record = self._progress["stages"].get(stage)
        return dict(record) if isinstance(record, dict) else None

    @property
    def stages(self) -> dict[str, dict[str, Any]]:
        """All finished stages and their records, in order."""
        return {name: dict(record) for name, record in self._progress["stages"].items() if isinstance(record, dict)}

    def finish(self, stage: str, **record: Any) -> None:
        """Record that a stage is complete, its files being on the disk. Numbers that are not finite become null."""
        self._progress["stages"][stage] = _finite(record)
        self.write_json("progress.json", self._progress)

    def reopen_stage(self, stage: str) -> None:
        """Forget that a stage was finished, so that it is done again."""
        if self._progress["stages"].pop(stage, None) is not None:
            self.write_json("progress.json", self._progress)

    # Checkpoints.

    def save_checkpoint(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Replace the checkpoint by these tensors and this JSON-able state, atomically and durably.

        Raises ResourceError when the disk is full (the previous checkpoint stays), ValueError for a state JSON cannot
        hold exactly (NaN, infinities).
        """
        folder = self.folder / "checkpoint"
        before = self.checkpoint_facts().get("generation")
        generation = (before if type(before) is int else 0) + 1
        with write_errors(folder / "latest.safetensors", "save a checkpoint"):
            folder.mkdir(exist_ok=True)
            write_checkpoint(folder / "latest.safetensors", tensors, state, generation)
        self._write_checkpoint_facts(state, generation)

    def checkpoint_facts(self) -> dict[str, Any]:
        """`checkpoint/state.json`, or {} when there is none; may be one generation behind after a kill."""
        facts = read_json(self.folder / "checkpoint" / "state.json", {})
        return facts if isinstance(facts, dict) else {}

    def load_checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The last complete checkpoint as (tensors, state), or None. Raises InputError when the file is damaged."""
        path = self.folder / "checkpoint" / "latest.safetensors"
        if not (path.exists() or path.is_symlink()):
            return None
        tensors, state, generation = read_checkpoint(path)
        if self._lock is not None and self.checkpoint_facts().get("generation") != generation:
            self._write_checkpoint_facts(state, generation)  # the process was killed between the two renames
        return tensors, state

    def _write_checkpoint_facts(self, state: Mapping[str, Any], generation: int) -> None:
        name = "latest.safetensors"
        facts = {"generation": generation, "file": name, "bytes": (self.folder / "checkpoint" / name).stat().st_size}
        self.write_json("checkpoint/state.json", {**facts, "state": state})

    # JSON files.

    @property
    def config(self) -> dict[str, Any]:
        """config.json: every option with its final value, and the method's name."""
        return read_json(self.folder / "config.json", {})

    def change_options(self, **values: Any) -> None:
        """Give options of config.json other values, for a run that goes on with them."""
        self.write_json("config.json", {**self.config, **values})

    @property
    def metrics(self) -> dict[str, Any]:
        """metrics.json as it stands."""
        metrics = read_json(self.folder / "metrics.json", {})
        return metrics if isinstance(metrics, dict) else {}

    def add_metrics(self, **values: Any) -> None:
        """Merge values into metrics.json. None and non-finite numbers are left out: not known, never invented."""
        unknown = set(values) - METRIC_KEYS
        if unknown:
            raise ValueError(f"the contract knows no metric {sorted(unknown)}; it names {sorted(METRIC_KEYS)}")
        known = {key: value for key, value in values.items() if _finite_or_none(value) is not None}
        self.write_json("metrics.json", {**self.metrics, **known})

    def add_peak_memory(self) -> None:
        """Record the largest resident memory seen so far, over this process and those that worked on the run before."""
        self.add_metrics(peak_memory_mb=max(self.metrics.get("peak_memory_mb", 0.0), round(peak_memory_mb(), 1)))

    def write_environment(self, *, device: str, backend: str, seed: int) -> None:
        """Write environment.json and the metrics that repeat it."""
        facts = {"version": version(), "commit": commit(), "device": device, "kernels": backend, "seed": seed}
        self.write_json("environment.json", {**facts, **system_facts(), "libraries": library_versions()})
        self.add_metrics(device=device, backend=backend.split(" ")[0], seed=seed, version=version())

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file of the run atomically. Raises ResourceError when the disk is full."""
        with write_errors(self.folder / name, "write"), replacing(self.folder / name) as file:
            file.write(_json_bytes(value, indent=1) + b"\n")


def read_events(path: Path) -> list[dict[str, Any]]:
    """Events of a run, oldest first; a torn last line is skipped, an absent file is no event."""
    events = []
    for line in read_lines(path, MAX_EVENTS_BYTES, MAX_EVENT_BYTES) if path.is_file() else ():
        with contextlib.suppress(InputError):
            event = parse_json(line, path)
            if isinstance(event, dict):
                events.append(event)
    return events


def last_event_time(path: Path) -> float:
    """`t` of the last event, 0 when there is none."""
    if not path.is_file():
        return 0.0
    with open_regular(path) as file:
        file.seek(max(0, size_of(file) - 65536))
        lines = file.read().splitlines()
    for line in reversed(lines):
        with contextlib.suppress(InputError, ValueError, OverflowError, TypeError, KeyError):
            seconds = float(parse_json(line, path, finite=True)["t"])
            if math.isfinite(seconds):
                return max(0.0, seconds)
    return 0.0


def _json_bytes(value: Any, indent: int | None = None) -> bytes:
    """UTF-8. What a file name that is not UTF-8 holds is written as JSON's own escapes, which read back the same."""
    return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False).encode("utf-8", "backslashreplace")


def _lock_folder(folder: Path) -> int:
    """Hold the folder for this process. The system frees the lock when the process ends, however it ends."""
    import fcntl

    try:
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise disk_error(error, folder / ".lock", "lock the run folder") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"
        os.close(descriptor)
        raise InputError(
            f"{folder} is being written by {holder}; wait for it, stop it, or name another --out"
        ) from None
    except OSError as error:
        log.warning("%s cannot be locked (%s); make sure that no other process writes to it", folder, error)
        return descriptor
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {platform.node()}".encode(), 0)
    return descriptor


def _drop_torn_line(path: Path) -> None:
    """Cut an events file back to its last whole line, so that the next event does not join a torn one."""
    if not path.is_file():
        return
    with path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        start = max(0, size - (1 << 20))
        file.seek(start)
        end = start + file.read().rfind(b"\n") + 1
        if end < size:
            file.truncate(end)


def _finite(value: Any) -> Any:
    """Nested lists and objects without NaN and infinities, which JSON does not have."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return _finite_or_none(value)


def _finite_or_none(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
