"""What visitors can do, whichever door they come through: the page, its buttons, HTTP or a Python client.

Each function takes the visitor's secret first, answers with plain values that JSON can hold, and raises InputError with
one line for people. Paths never come in: files are named by their job's key and a name from a fixed list.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from apps.generate_options import EMBEDDED, Generate, check_prompt
from apps.options import METHODS, Recon
from apps.web import exports, forms, progress
from apps.web.chores import Chores, Renewed
from apps.web.jobs import ACTIVE, Job, Store
from apps.web.limits import Limits, size_words
from apps.web.scheduler import Scheduler
from data.sample import sample_photos
from scene.errors import InputError
from scene.untrusted import real

PREVIEW, PREVIEW_EVERY, PREVIEW_SECONDS = "view.html", 15.0, 120.0
MAX_SEED = (1 << 31) - 1


class Service:
    """The web door without its page."""

    def __init__(
        self, store: Store, scheduler: Scheduler, uploads: Path, models: Mapping[str, Path] | None = None
    ) -> None:
        """uploads: the only folder that uploaded files are taken from.

        models: priors of the server's owner, by the names that visitors see.
        """
        self.store, self.scheduler, self.uploads, self.models = store, scheduler, uploads, dict(models or {})
        self.chores = Chores(store.limits.memory_bytes)
        self._previews = Renewed(self.chores, PREVIEW_EVERY)

    @property
    def limits(self) -> Limits:
        """The quotas."""
        return self.store.limits

    # Photos.

    def check(self, visitor: str, files: Sequence[Path]) -> dict[str, Any]:
        """Take uploaded files as a new draft and check them; what was found, and the draft's key."""
        for path in files:  # gradio looks at this as well
            if path.is_symlink() or not path.is_file() or not real(path).is_relative_to(real(self.uploads)):
                raise InputError("a file was named that was not uploaded; upload it again")
        job = self.store.create(visitor, "recon", _title_of(files))
        try:
            self.store.take_upload(job, list(files))
            return self._checked(job)
        except BaseException:
            self.store.remove(job)
            raise

    def check_sample(self, visitor: str) -> dict[str, Any]:
        """The same with the photos that come with Maquette."""
        job = self.store.create(visitor, "recon", "the sample")
        shutil.copytree(sample_photos(), self.store.path(job) / "source")
        return self._checked(job)

    def _checked(self, job: Job) -> dict[str, Any]:
        folder, limits = self.store.path(job), self.limits
        command = ["check", str(self.store.source(job)), str(limits.pixels)]
        self.chores.run(folder, "check", command, limits.check_seconds)
        self.store.change(job.key, size=self.store.measure(job))
        return {"job": job.key, **(progress.check_of(folder) or {})}

    def reconstruct(
        self,
        visitor: str,
        key: str,
        *,
        method: str = "auto",
        preset: str = "standard",
        minutes: float = 10.0,
        downscale: float = 1.0,
        mesh: str = "game",
        seed: int = 0,
        options: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Let a checked draft be reconstructed. options: of the method's Config, by their names."""
        job = self.store.get(key, visitor)
        if job.kind != "recon" or job.state != "draft":
            raise InputError("this job was started already; upload the photos again for another one")
        own = "gaussians" if method == "auto" else method
        if own not in METHODS:
            raise InputError(f"there is no method {str(method)[:40]!r}; there are auto, {', '.join(METHODS)}")
        flags = forms.as_flags(own, options or {})
        words = _checked_words(preset, forms.presets_of(own), "preset"), _checked_words(mesh, SIZES, "mesh")
        request = Recon(
            Path("source"),
            max_minutes=self._minutes(minutes),
            downscale=_number(downscale, "downscale"),
            seed=_seed(seed),
        )
        arguments = ["--method", own, "--preset", words[0], "--mesh", words[1], "--seed", str(request.seed)]
        arguments += ["--max-minutes", str(request.max_minutes), "--downscale", str(request.downscale), *flags]
        started = self.scheduler.start(job, arguments=tuple(arguments), minutes=float(minutes))
        return self._summary(started)

    # Words.

    def generate(
        self,
        visitor: str,
        prompt: str,
        *,
        prior: str = "embedded",
        preset: str = "standard",
        minutes: float = 5.0,
        mesh: str = "web",
        seed: int = 0,
        options: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Let words become a scene."""
        check_prompt(prompt)
        known = {**{name: name for name in EMBEDDED}, **{name: str(path) for name, path in self.models.items()}}
        if prior not in known:
            raise InputError(f"there is no prior {str(prior)[:40]!r} here; there are {', '.join(known)}")
        flags = forms.as_flags("sds", options or {})
        words = _checked_words(preset, forms.presets_of("sds"), "preset"), _checked_words(mesh, SIZES, "mesh")
        request = Generate(prompt, max_minutes=self._minutes(minutes), seed=_seed(seed))
        arguments = ["--prior", known[prior], "--preset", words[0], "--mesh", words[1], "--seed", str(request.seed)]
        arguments += ["--max-minutes", str(request.max_minutes), *flags]
        job = self.store.create(visitor, "generate", prompt, prompt=prompt)
        try:
            started = self.scheduler.start(job, arguments=tuple(arguments), minutes=float(minutes))
        except InputError:
            self.store.remove(job)
            raise
        return self._summary(started)

    def _minutes(self, minutes: float) -> float:
        if not 0.1 <= (number := _number(minutes, "minutes")) <= self.limits.minutes:
            raise InputError(f"minutes must lie between 0.1 and {self.limits.minutes:g}, got {number:g}")
        return number

    # Jobs.

    def jobs(self, visitor: str) -> list[dict[str, Any]]:
        """A visitor's jobs, newest first; drafts are not among them."""
        return [self._summary(job) for job in self.store.of(visitor) if job.state != "draft"]

    def status(self, visitor: str, key: str) -> dict[str, Any]:
        """All that a page shows of a job."""
        job = self.store.get(key, visitor)
        folder, run = self.store.path(job), self.store.run_folder(job)
        now = progress.progress_of(run)
        renewing, done = self._renew_preview(job), job.state == "done"
        return {
            **self._summary(job),
            **dataclasses.asdict(now),
            "view": _stamp(folder / "exports" / PREVIEW),
            "renewing": renewing,
            "picture": _stamp(run / "preview.png") if job.kind == "generate" and not done else None,
            "report": _stamp(run / "report.html"),
            "film": _stamp(run / "turntable.mp4"),
            "metrics": progress.metrics_of(run),
            "check": progress.check_of(folder),
            "downloads": self._downloads(job) if done else [],
        }

    def _summary(self, job: Job) -> dict[str, Any]:
        hours = self.limits.keep_seconds / 3600
        return {
            "job": job.key,
            "kind": job.kind,
            "title": job.title,
            "state": job.state,
            "position": self.scheduler.position(job),
            "message": job.message,
            "resumable": self.store.resumable(job),
            "created": job.created,
            "size": size_words(job.size) if job.size else "",
            "kept": "" if job.state in ACTIVE else f"removed after {hours:g} hours",
        }

    def _renew_preview(self, job: Job) -> bool:
        """Let the viewer's page be made of what there is, if that is newer than the page; whether it is."""
        folder, run = self.store.path(job), self.store.run_folder(job)
        if job.state in ("done", "stopped"):
            source = run / "progress.json"
        elif job.state == "running" and job.kind == "recon":  # words have `preview.png`
            source = run / "checkpoint" / "latest.safetensors"
        else:
            return False
        target = folder / "exports" / PREVIEW
        command = ["preview", str(run), str(target), job.title]
        return self._previews.look(folder, source, target, command, PREVIEW_SECONDS)

    def _downloads(self, job: Job) -> list[dict[str, Any]]:
        """Every format, with its size where it has been made."""
        folder = self.store.path(job)
        rows = [(each.file, each.label) for each in exports.FORMATS] + list(exports.IN_RUN.items())
        found = []
        for file, label in rows:
            place = exports.place_of(folder, file)
            ready = place.is_file()
            if ready or file not in exports.IN_RUN:
                size = size_words(place.stat().st_size) if ready else ""
                found.append({"file": file, "label": label, "ready": ready, "size": size})
        return found

    def export(self, visitor: str, key: str, file: str) -> dict[str, Any]:
        """Make one format of a finished job, if it is not there yet; its size."""
        job = self.store.get(key, visitor)
        wanted = exports.format_of(file)
        if job.state != "done":
            raise InputError("this job has no result to export yet")
        folder = self.store.path(job)
        place = exports.place_of(folder, file)
        if not place.is_file():
            new = exports.made_at(folder, wanted).parent
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir(parents=True)
            self.chores.run(folder, file, exports.command_for(folder, wanted), self.limits.export_seconds)
            exports.put_in_place(folder, wanted)
            shutil.rmtree(new, ignore_errors=True)
            self.store.change(job.key, size=self.store.measure(job))
            place = exports.place_of(folder, file)
        return {"job": key, "file": file, "bytes": place.stat().st_size, "size": size_words(place.stat().st_size)}

    def file(self, visitor: str, key: str, name: str) -> Path:
        """A file of a job by its name from the fixed lists. Raises InputError when there is none."""
        job = self.store.get(key, visitor)
        folder, run = self.store.path(job), self.store.run_folder(job)
        shown = {"sheet": folder / "check.jpg", "picture": run / "preview.png", "view": folder / "exports" / PREVIEW}
        path = shown[name] if name in shown else exports.place_of(folder, name)
        if not path.is_file():
            raise InputError(f"this job has no {name} yet")
        return path

    def cancel(self, visitor: str, key: str) -> dict[str, Any]:
        """Stop a job; it saves first and can be resumed."""
        return self._summary(self.scheduler.cancel(self.store.get(key, visitor)))

    def resume(self, visitor: str, key: str) -> dict[str, Any]:
        """Let a stopped job go on."""
        return self._summary(self.scheduler.resume(self.store.get(key, visitor)))

    def delete(self, visitor: str, key: str) -> dict[str, Any]:
        """Remove a job and all its files."""
        job = self.store.get(key, visitor)
        self.store.remove(job)
        self._previews.forget(self.store.path(job))
        return {"job": key, "state": "deleted"}


SIZES = ("web", "game", "film")


def _checked_words(word: Any, known: Sequence[str], what: str) -> str:
    if word not in known:
        raise InputError(f"{what} must be one of {', '.join(known)}, got {str(word)[:40]!r}")
    return word


def _number(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{what} must be a number, got {str(value)[:20]!r}")
    return float(value)


def _seed(seed: Any) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int | float) or not float(seed).is_integer() or seed > MAX_SEED:
        raise InputError(f"seed must be a whole number from 0 to {MAX_SEED}, got {str(seed)[:20]}")
    return int(seed)  # below 0 the command's own check says so


def _title_of(files: Sequence[Path]) -> str:
    return files[0].stem if len(files) == 1 else f"{len(files)} photos"


def _stamp(path: Path) -> str | None:
    """Tells one state of a file from the next; None where there is none."""
    return str(path.stat().st_mtime_ns) if path.is_file() else None
