"""`maquette recon`: from a source to cameras, a scene, a mesh, a film and a report, each stage once.

What a stage has finished is recorded in the run, so that --resume goes on where a killed run was: the camera model is
reused, training continues from its checkpoint, files that are missing are made again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from apps.console import JsonLines, Watcher, clock
from apps.devices import choose_device
from apps.film import path_cameras, pictures_along, up_of, write_film
from apps.judge import judge
from apps.meshing import budget, fine_mesh_file, finish, held_out_psnr, photo_views
from apps.methods import Checkpoint, FrameOf, Trained, drawn_once, method_of, words_of
from apps.options import ReconJob, parse_recon
from apps.report import write_report
from apps.run_cameras import RunCameras, read_cameras, write_cameras
from apps.run_scene import SPLATS_FILE, trained_scene
from apps.run_splats import make_splats
from apps.signals import StopSignal
from apps.time_limit import renew_limit, seconds_before
from data.captures import Capture, open_capture
from recon import capture_check, sfm
from scene.errors import CamerasError, InputError, Interrupted, OutOfMemory, ResourceError, is_out_of_memory
from scene.formats import load_mesh, save_mesh
from scene.mesh import Mesh
from scene.mesh_extraction import MeshConfig, evenly, smaller, surface_to_mesh
from scene.runs import Run, StepReport

SFM_SHARE = 0.4  # of --max-minutes, for the cameras
AFTER_SHARE, SHORTEST_AFTER, LONGEST_AFTER = 0.25, 40.0, 240.0  # for judging, mesh, texture, film and report; seconds
MARCHED_SHARE = 0.33  # instead of AFTER_SHARE for scenes whose rays are marched: a picture takes up to a second
SURFACE_SHARE = 0.5  # of the time that is left after judging, for the surface of a mesh
LEAST_MESH_VIEWS, MOST_MESH_VIEWS = 40, MeshConfig.max_views
FUSING_SECONDS = 0.4  # of a view beside its rendering
SHORTEST_FIT = 5.0  # seconds, for the splats of a scene that is none
SHORTEST_TRAINING = 10.0  # seconds; less makes no scene at all
TURNTABLE_FRAMES, TURNTABLE_WIDTH, TURNTABLE_FPS = 120, 640, 24
LEAST_FRAMES, TURNTABLE_SECONDS = 40, 30.0  # scenes that are slow to draw get fewer frames, shown as much longer
LEAST_WIDTH, SHORTEST_FILM = 240, 8.0  # and then smaller ones; pixels, seconds


def main(arguments: Sequence[str]) -> None:
    """The `maquette recon` command."""
    job = parse_recon(arguments)
    with StopSignal("Finishing this step and saving; press Ctrl-C again to stop at once.") as stop:
        reconstruct(job, stop)


def reconstruct(job: ReconJob, stop: StopSignal) -> Path:
    """Do a whole reconstruction, or the rest of one, and show its progress. Returns the run folder."""
    request = job.request
    device, unused = choose_device(request.device)
    method_of(job.method).check(job.config, device)
    if not request.source.exists():
        raise InputError(f"there is no file or folder {request.source}; expected photos, a video or posed images")
    with contextlib.ExitStack() as stack:
        run = stack.enter_context(Run.open(job.out) if job.resumes else Run.create(job.out, job.method, job.as_json()))
        if request.json:
            run.listeners.append(stack.enter_context(JsonLines(stop.request)))
        else:
            run.listeners.append(stack.enter_context(Watcher(words_of(job.method).pieces)))
        if unused is not None:
            run.decide(unused)
        renew_limit(run, request.max_minutes, ["budget"], "train")
        work = _Work(run, job, device, stop)
        try:
            work.all_stages()
        except (MemoryError, RuntimeError, OutOfMemory) as error:
            if not is_out_of_memory(error):
                raise
            smaller = f"start a new run with --downscale or {words_of(job.method).smaller}"
            raise ResourceError(
                f"out of memory on {device}, in the stage {run.stage}; close other programs and go on with: maquette "
                f"recon {job.out} --resume; or {smaller}"
            ) from error
        except Interrupted as interrupted:
            raise Interrupted(f"{interrupted}; go on with: maquette recon {job.out} --resume") from interrupted
        finally:
            run.add_peak_memory()
    return job.out


def seconds_of(draw: Callable[[], object]) -> float:
    """What one picture takes."""
    began = time.monotonic()
    draw()
    return max(1e-6, time.monotonic() - began)


def affordable_film(draw: Callable[[int], object], seconds: float, width: int) -> tuple[int, int]:
    """Frames of a turntable and their width, at most `width`. draw: one frame of a width."""
    one, seconds = seconds_of(lambda: draw(width)), max(SHORTEST_FILM, seconds)
    narrower = width * math.sqrt(min(1.0, seconds / (LEAST_FRAMES * one)))  # what a frame takes goes with its pixels
    return int(max(LEAST_FRAMES, min(TURNTABLE_FRAMES, seconds / one))), max(min(width, LEAST_WIDTH), round(narrower))


def affordable_views(draw: Callable[[], object], seconds: float) -> int:
    """Views of a mesh."""
    return int(max(LEAST_MESH_VIEWS, min(MOST_MESH_VIEWS, seconds / (seconds_of(draw) + FUSING_SECONDS))))


class _Work:
    """One reconstruction at work: the run, what was asked, and the stages in their order."""

    def __init__(self, run: Run, job: ReconJob, device: torch.device, stop: StopSignal) -> None:
        self.run, self.job, self.device, self.stop = run, job, device, stop
        self.method = method_of(job.method)

    def all_stages(self) -> None:
        """Every stage that has not been finished yet. Raises the errors of the contract."""
        run, request = self.run, self.job.request
        kernels = self.method.explain(self.job.config, self.device)
        run.write_environment(device=self.device.type, backend=kernels, seed=request.seed)
        run.add_metrics(method=self.job.method, source=str(request.source))
        with contextlib.ExitStack() as stack:
            capture = stack.enter_context(self.open_source())
            if any(view.camera is None for view in capture.views):
                capture = stack.enter_context(self.with_cameras(capture))
            write_cameras(run, capture)
            run.add_metrics(views_registered=len(capture.views), holdout_views=len(capture.test))
            self.stop.check()
            trained = self.trained(capture)
            self.judged(capture, trained)
            self.shaped(capture, trained)
        self.filmed(trained)
        self.reported()

    def open_source(self) -> Capture:
        """Detect and open the source; its decisions go into the report."""
        run, request = self.run, self.job.request
        run.stage = "capture"
        run.event()
        unpacked = run.folder / "capture"
        capture = open_capture(request.source, downscale=request.downscale, holdout=request.holdout, workdir=unpacked)
        for decision in capture.decisions:
            run.decide(decision)
        run.add_metrics(views_total=len(capture.views))
        return capture

    def with_cameras(self, capture: Capture) -> Capture:
        """The capture with estimated cameras; a finished model in the run is used again."""
        run = self.run
        run.stage = "check"
        run.event()
        if run.finished("check_photos") is None:
            self.keep_findings("check_photos", capture_check.check_photos(capture))
        self.stop.check()
        run.stage = "cameras"
        run.event()
        began = time.monotonic()
        try:
            result = sfm.estimate_cameras(
                capture, self.sfm_config(), run.folder / "sfm", progress=self.progress, stop=self.stop
            )
        except CamerasError:
            self.reported()
            raise
        seconds = time.monotonic() - began
        for decision in result.decisions:
            run.decide(decision)
        if run.finished("cameras") is None:  # else the time of the run that estimated them stands
            run.add_metrics(seconds_sfm=round(seconds, 1))
            run.finish(
                "cameras",
                registered=result.registered,
                total=result.total,
                reprojection_px=result.mean_reprojection_px,
                seconds=seconds,
            )
            self.keep_findings("check_cameras", capture_check.check_cameras(result))
        return result.capture

    def keep_findings(self, stage: str, check: capture_check.CaptureCheck) -> None:
        """Say what a capture check found, and keep it for the report."""
        for finding in check.findings:
            if finding.level != "good":
                self.run.event(finding.sentence)
        self.run.finish(stage, findings=[dataclasses.asdict(finding) for finding in check.findings])

    def sfm_config(self) -> sfm.SfmConfig:
        """Camera estimation within its share of the time."""
        minutes = self.job.request.max_minutes
        if minutes is None:
            return sfm.SfmConfig()
        return sfm.SfmConfig(max_seconds=max(20.0, SFM_SHARE * 60 * minutes))

    def train_seconds(self) -> float | None:
        """Time for training: what cameras have left, less what the stages after it need. Fixed when it first starts."""
        minutes = self.job.request.max_minutes
        if minutes is None:
            return None
        kept = self.run.finished("budget")
        if kept is not None:
            return float(kept["train_seconds"])
        total = 60 * minutes
        share = AFTER_SHARE if self.job.method == "gaussians" else MARCHED_SHARE
        after = min(LONGEST_AFTER, max(SHORTEST_AFTER, share * total))
        seconds = max(SHORTEST_TRAINING, total - after - seconds_before(self.run))
        self.run.decide(f"Training may take {clock(seconds)}, so that everything ends within {minutes:g} minutes.")
        self.run.finish("budget", train_seconds=seconds)
        return seconds

    def seconds_left(self, for_later: float = 0.0) -> float | None:
        """Seconds of --max-minutes that are left, less those that later stages take; None without such a limit."""
        minutes = self.job.request.max_minutes
        return None if minutes is None else 60 * minutes - self.run.seconds - for_later

    def trained(self, capture: Capture) -> Trained:
        """The trained scene: from its file when training has finished, else from the checkpoint or the start."""
        run, method = self.run, self.method
        if run.finished("train") is not None and (run.folder / method.SCENE_FILE).is_file():
            return trained_scene(run)
        seconds = self.train_seconds()
        run.stage = "train"
        loaded = run.load_checkpoint()
        resume = None if loaded is None else method.Checkpoint(*loaded)
        run.event(f"Going on from step {resume.state.get('step')}" if resume else "")
        last: list[StepReport] = []

        def on_step(report: StepReport) -> None:
            last[:] = [report]
            run.on_step(report)

        def save(checkpoint: Checkpoint) -> None:
            run.save_checkpoint(checkpoint.tensors, checkpoint.state)

        scene = method.train(
            capture,
            self.job.config,
            device=self.device,
            max_seconds=seconds,
            on_step=on_step,
            save=save,
            decide=run.decide,
            resume=resume,
            stop=self.stop,
        )
        method.save_scene(run.folder / method.SCENE_FILE, scene)
        del scene
        trained = trained_scene(run)  # what the file holds, so that a resume after this point sees the same scene
        state = run.checkpoint_facts().get("state", {})
        spent, steps = float(state.get("seconds", 0.0)), last[0].step if last else int(state.get("step", 0))
        primitives, parameters = method.counts(trained.scene)
        run.add_metrics(seconds_train=round(spent, 1), steps=steps, primitives=primitives, parameters=parameters)
        run.add_peak_memory()
        run.finish("train", seconds=spent, steps=steps)
        return trained

    def judged(self, capture: Capture, trained: Trained) -> None:
        """Held-out views rendered and measured."""
        if self.run.finished("evaluate") is None:
            self.run.stage = "evaluate"
            self.run.event()
            judge(self.run, capture, trained.to(self.device), self.progress, self.stop)

    def shaped(self, capture: Capture, trained: Trained) -> None:
        """The mesh, and the splats of a scene that is none, both from the same frames of its surface."""
        if trained.method == "gaussians":
            self.meshed(capture, trained.surface)
            return
        trained = trained.to(self.device)
        frame_of = drawn_once(trained.surface)
        self.meshed(capture, frame_of)
        self.splatted(capture, trained, frame_of)

    def meshed(self, capture: Capture, frame_of: FrameOf) -> None:
        """mesh_fine.ply and mesh.glb; a scene that gives none is said to, and the rest goes on."""
        run, request = self.run, self.job.request
        if run.finished("mesh") is not None and (run.folder / "mesh.glb").is_file():
            return
        run.stage = "mesh"
        run.event()
        began = time.monotonic()
        seen = read_cameras(run)
        try:
            fine = self.fine_mesh(frame_of, seen)
        except InputError as error:
            run.decide(f"No mesh: {error}")
            return
        wanted = budget(request.mesh, request.faces)
        made = finish(fine, photo_views(capture), wanted, progress=self.progress, stop=self.stop)
        save_mesh(run.folder / "mesh.glb", made.mesh, up=up_of(seen), label=made.label.as_json())
        facts = made.mesh.facts()
        run.add_metrics(mesh_faces=facts.faces, mesh_watertight=facts.watertight)
        exposure = self.method.learns_exposure(capture, self.job.config)
        judged = held_out_psnr(made.mesh, capture, exposure=exposure)
        held_out = {} if judged is None else {"held_out_psnr": judged[0], "held_out_cover": judged[1]}
        run.finish("mesh", seconds=time.monotonic() - began, **made.record(), **held_out)
        shows = "" if judged is None else f", {judged[0]:.1f} dB on held-out photos where it covers them"
        for fault in made.label.faults:
            run.decide(f"The mesh has a fault: {fault.sentence}")
        run.event(f"{facts.faces:,} faces, texture {made.textured.facts.size} px{shows}")

    def fine_mesh(self, frame_of: FrameOf, seen: RunCameras) -> Mesh:
        """The mesh before decimation, kept in the run. Raises InputError when no surface comes out."""
        path = fine_mesh_file(self.run.folder)
        if self.run.finished("surface") is not None and path.is_file():
            return load_mesh(path)
        began = time.monotonic()
        config = MeshConfig(faces=0, max_views=self.mesh_views(frame_of, seen))
        fine = surface_to_mesh(frame_of, seen.train, config, progress=self.progress, stop=self.stop)
        save_mesh(path, fine)
        self.run.finish("surface", seconds=time.monotonic() - began, views=config.max_views)
        return load_mesh(path)  # what the file holds, so that a resume after this point sees the same mesh

    def mesh_views(self, frame_of: FrameOf, seen: RunCameras) -> int:
        """Views that a mesh is made of: with a time limit those that its share of it allows for."""
        left, most = self.seconds_left(), min(MOST_MESH_VIEWS, len(seen.train))
        if left is None or most <= LEAST_MESH_VIEWS:
            return most
        first = smaller(seen.train[0], MeshConfig.max_pixels)
        views = min(most, affordable_views(lambda: frame_of(first), SURFACE_SHARE * left))
        if views < most:
            self.run.decide(f"The mesh is made of {views} of {len(seen.train)} views, for time allows for no more.")
        return views

    def splatted(self, capture: Capture, trained: Trained, frame_of: FrameOf) -> None:
        """splats.ply: what viewers and splat formats show of a scene that is no splats, and what that costs."""
        if self.run.finished("splats") is not None and (self.run.folder / SPLATS_FILE).is_file():
            return
        self.run.stage = "splats"
        self.run.event()
        left = self.seconds_left(for_later=TURNTABLE_SECONDS)
        seconds = None if left is None else max(SHORTEST_FIT, left)
        views = (self.run.finished("surface") or {}).get("views", MeshConfig.max_views)  # whose frames are there
        cameras = evenly(read_cameras(self.run).train, int(views))
        device, progress = self.device, self.progress
        try:
            make_splats(
                self.run, capture, trained, frame_of, cameras, device=device, max_seconds=seconds, progress=progress
            )
        except InputError as error:
            self.run.decide(f"No splats: {error}")

    def filmed(self, trained: Trained) -> None:
        """turntable.mp4."""
        run = self.run
        if run.finished("turntable") is not None and (run.folder / "turntable.mp4").is_file():
            return
        run.stage = "turntable"
        run.event()
        began = time.monotonic()
        seen = read_cameras(run)
        width = min(TURNTABLE_WIDTH, seen.cameras[0].width)
        draw = trained.to(self.device).picture
        left = self.seconds_left()
        seconds = TURNTABLE_SECONDS if left is None else min(TURNTABLE_SECONDS, left)
        count, width = affordable_film(
            lambda wide: draw(path_cameras(seen, "auto", 2, wide)[0], seen.background), seconds, width
        )
        path = path_cameras(seen, "auto", count, width)
        frames = pictures_along(draw, path, seen.background, lambda done, total: self.progress(done, total, ""))
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
