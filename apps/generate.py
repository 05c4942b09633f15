"""`maquette generate`: from words to a scene, a textured mesh, a film and a report, each stage once.

As `maquette recon` does it (`apps/pipeline.py`): what a stage has finished is recorded in the run, so that --resume
goes on where a killed run was.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from apps.console import JsonLines, Watcher
from apps.devices import choose_device
from apps.film import pictures_along, up_of, write_film
from apps.generate_options import GenerateJob, parse_generate
from apps.generate_stages import (
    FILM_SIZE,
    Preview,
    film_path,
    judged,
    keep_reference,
    load_reference,
    texture_views,
    write_generated_cameras,
)
from apps.meshing import budget, fine_mesh_file, finish
from apps.methods import SPLAT_METHODS, Trained, method_of, words_of
from apps.pipeline import TURNTABLE_FPS, TURNTABLE_FRAMES, affordable_film
from apps.priors import ChosenPrior, choose_prior
from apps.report import write_report
from apps.run_cameras import read_cameras
from apps.run_scene import splats_file, trained_scene
from apps.run_splats import OF_WORDS, make_splats
from apps.signals import StopSignal
from apps.time_limit import renew_limit, seconds_before
from scene.errors import InputError, Interrupted
from scene.formats import load_mesh, save_mesh
from scene.mesh import Mesh
from scene.runs import Run, StepReport

AFTER_SHARE, SHORTEST_AFTER, LONGEST_AFTER = 0.4, 20.0, 90.0  # of --max-minutes for mesh, film and report; seconds
SHORTEST_TRAINING = 5.0  # seconds
SHORTEST_FIT = 3.0  # seconds for the splats
FILM_SECONDS = 15.0  # scenes that are slow to draw get fewer frames


def main(arguments: Sequence[str]) -> None:
    """The `maquette generate` command."""
    job = parse_generate(arguments)
    with StopSignal("Finishing this step and saving; press Ctrl-C again to stop at once.") as stop:
        generate(job, stop)


def generate(job: GenerateJob, stop: StopSignal) -> Path:
    """Make a whole scene of words, or the rest of one, and show its progress. Returns the run folder."""
    request = job.request
    device, unused = choose_device(request.device)
    image = load_reference(job)
    chosen = choose_prior(
        request.prior,
        request.prompt,
        job.config.negative,
        pictured=image is not None,
        pixels=job.config.pixels,
        members=job.config.members,
        seed=request.seed,
        device=device,
        allow_download=request.allow_download,
    )
    job = dataclasses.replace(job, request=dataclasses.replace(request, prior=chosen.name))
    with contextlib.ExitStack() as stack:
        run = stack.enter_context(Run.open(job.out) if job.resumes else Run.create(job.out, job.method, job.as_json()))
        if request.json:
            run.listeners.append(stack.enter_context(JsonLines(stop.request)))
        else:
            run.listeners.append(stack.enter_context(Watcher(words_of(job.method).pieces)))
        if unused is not None:
            run.decide(unused)
        renew_limit(run, request.max_minutes, ["budget"], "train")
        try:
            _Work(run, job, chosen, image, device, stop).all_stages()
        except Interrupted as interrupted:
            raise Interrupted(f"{interrupted}; go on with: maquette generate {job.out} --resume") from interrupted
        finally:
            run.add_peak_memory()
    return job.out


class _Work:
    """One generation at work: the run, what was asked, and the stages in their order."""

    def __init__(
        self,
        run: Run,
        job: GenerateJob,
        chosen: ChosenPrior,
        image: Tensor | None,
        device: torch.device,
        stop: StopSignal,
    ) -> None:
        self.run, self.job, self.chosen, self.image, self.device, self.stop = run, job, chosen, image, device, stop
        self.method: Any = method_of(job.method)

    def all_stages(self) -> None:
        """Every stage that has not been finished yet. Raises the errors of the contract."""
        run, request = self.run, self.job.request
        run.write_environment(
            device=self.device.type, backend=self.method.explain(self.job.config, self.device), seed=request.seed
        )
        run.add_metrics(method=self.job.method, source=request.prompt)
        run.stage = "prior"
        run.event()
        for sentence in (self.chosen.sentence, *self.method.decisions(self.job.config, self.chosen.prior)):
            run.decide(sentence)
        if self.image is not None:
            keep_reference(run, self.image)
            run.decide(f"The picture {request.image} says with the words what is wanted.")
        run.finish("prior", **self.chosen.facts)
        write_generated_cameras(run, self.job.config.voxels)
        self.stop.check()
        trained = self.trained()
        self.judged(trained)
        self.meshed(trained)
        self.splatted(trained)
        self.filmed(trained)
        self.reported()

    def train_seconds(self) -> float | None:
        """Time for distillation: what the stages after it leave. Fixed when it first starts."""
        minutes = self.job.request.max_minutes
        if minutes is None:
            return None
        kept = self.run.finished("budget")
        if kept is not None:
            return float(kept["train_seconds"])
        total = 60 * minutes
        after = min(LONGEST_AFTER, max(SHORTEST_AFTER, AFTER_SHARE * total))
        seconds = max(SHORTEST_TRAINING, total - after - seconds_before(self.run))
        self.run.finish("budget", train_seconds=seconds)
        return seconds

    def trained(self) -> Trained:
        """The distilled scene: from its file when that has finished, else from the checkpoint or the start."""
        run, method, request = self.run, self.method, self.job.request
        if run.finished("train") is not None and (run.folder / method.SCENE_FILE).is_file():
            return trained_scene(run)
        run.stage = "train"
        loaded = run.load_checkpoint()
        resume = None if loaded is None else method.Checkpoint(*loaded)
        run.event(f"Going on from step {resume.state.get('step')}" if resume else "")
        last: list[StepReport] = []
        began = time.monotonic()

        def on_step(report: StepReport) -> None:
            last[:] = [report]
            run.on_step(report)

        scene = method.train(
            request.prompt,
            self.chosen.prior,
            self.job.config,
            image=self.image,
            seed=request.seed,
            device=self.device,
            max_seconds=self.train_seconds(),
            on_step=on_step,
            on_pictures=Preview(run, max(1, self.job.config.steps)),
            save=lambda checkpoint: run.save_checkpoint(checkpoint.tensors, checkpoint.state),
            resume=resume,
            stop=self.stop,
        )
        method.save_scene(run.folder / method.SCENE_FILE, scene)
        trained = trained_scene(run)  # what the file holds, so that a resume after this point sees the same scene
        state = run.checkpoint_facts().get("state", {})
        spent = float(state.get("seconds", time.monotonic() - began))
        steps = last[0].step if last else int(state.get("step", 0))
        primitives, parameters = method.counts(trained.scene)
        run.add_metrics(seconds_train=round(spent, 1), steps=steps, primitives=primitives, parameters=parameters)
        run.add_peak_memory()
        run.finish("train", seconds=spent, steps=steps)
        return trained

    def judged(self, trained: Trained) -> None:
        """What the scene is worth: its nearest reference, its fronts, the held-out scorer's choice."""
        run = self.run
        if run.finished("judge") is not None:
            return
        run.stage = "judge"
        run.event()
        began = time.monotonic()
        record, sentences = judged(trained.to(self.device), self.job, self.chosen)
        for sentence in sentences:
            run.decide(sentence)
        run.finish("judge", seconds=time.monotonic() - began, **record)

    def meshed(self, trained: Trained) -> None:
        """mesh_fine.ply and mesh.glb; a scene that gives none is said to, and the rest goes on."""
        run, request = self.run, self.job.request
        if run.finished("mesh") is not None and (run.folder / "mesh.glb").is_file():
            return
        run.stage = "mesh"
        run.event()
        began = time.monotonic()
        seen, shown = read_cameras(run), trained.to(self.device)
        try:
            fine = self.fine_mesh(shown)
        except InputError as error:
            run.decide(f"No mesh: {error}")
            return
        views = texture_views(shown.picture, seen.train)
        made = finish(fine, views, budget(request.mesh, request.faces), progress=self.progress, stop=self.stop)
        save_mesh(run.folder / "mesh.glb", made.mesh, up=up_of(seen), label=made.label.as_json())
        facts = made.mesh.facts()
        run.add_metrics(mesh_faces=facts.faces, mesh_watertight=facts.watertight)
        run.finish("mesh", seconds=time.monotonic() - began, **made.record())
        for fault in made.label.faults:
            run.decide(f"The mesh has a fault: {fault.sentence}")
        run.event(f"{facts.faces:,} faces, texture {made.textured.facts.size} px")

    def fine_mesh(self, trained: Trained) -> Mesh:
        """The mesh before decimation, kept in the run. Raises InputError when no surface comes out."""
        path = fine_mesh_file(self.run.folder)
        if self.run.finished("surface") is not None and path.is_file():
            return load_mesh(path)
        began = time.monotonic()
        save_mesh(path, self.method.fine_mesh(trained.scene))
        self.run.finish("surface", seconds=time.monotonic() - began)
        return load_mesh(path)  # what the file holds, so that a resume after this point sees the same mesh

    def splatted(self, trained: Trained) -> None:
        """splats.ply: what splat formats hold of a scene that is no splats."""
        run, minutes = self.run, self.job.request.max_minutes
        if trained.method in SPLAT_METHODS or (run.finished("splats") is not None and splats_file(run).is_file()):
            return
        run.stage = "splats"
        run.event()
        left = None if minutes is None else max(SHORTEST_FIT, 60 * minutes - run.seconds - FILM_SECONDS)
        shown, cameras = trained.to(self.device), read_cameras(run).train
        make = partial(make_splats, config=OF_WORDS, device=self.device, max_seconds=left, progress=self.progress)
        try:
            make(run, None, shown, shown.surface, cameras)
        except InputError as error:
            run.decide(f"No splats: {error}")

    def filmed(self, trained: Trained) -> None:
        """turntable.mp4."""
        run = self.run
        if run.finished("turntable") is not None and (run.folder / "turntable.mp4").is_file():
            return
        run.stage = "turntable"
        run.event()
        began = time.monotonic()
        draw, background = trained.to(self.device).picture, read_cameras(run).background
        minutes = self.job.request.max_minutes
        left = FILM_SECONDS if minutes is None else min(FILM_SECONDS, 60 * minutes - run.seconds)
        count, width = affordable_film(lambda wide: draw(film_path(1, wide)[0], background), left, FILM_SIZE)
        frames = pictures_along(
            draw, film_path(count, width), background, lambda done, all_: self.progress(done, all_, "")
        )
        write_film(run.folder / "turntable.mp4", frames, fps=round(TURNTABLE_FPS * count / TURNTABLE_FRAMES))
        run.finish("turntable", seconds=time.monotonic() - began)

    def reported(self) -> None:
        """report.html, from what the run folder holds."""
        run = self.run
        run.stage = "report"
        run.event()
        run.add_metrics(seconds_total=round(run.seconds, 1))
        run.add_peak_memory()
        write_report(run)
        run.event(f"Report: {run.folder / 'report.html'}")

    def progress(self, done: int, total: int, message: str) -> None:
        """Progress of a stage other than training, at most a few events per second. Raises Interrupted on Ctrl-C."""
        self.stop.check()
        now = time.monotonic()
        if now - self._last_progress > 0.3 or done >= total:
            self._last_progress = now
            self.run.event(message, step=done, steps=total)

    _last_progress = 0.0
