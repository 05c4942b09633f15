"""`maquette eval`: held-out photos against renders, and the pictures that show it (RUN/renders)."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from apps.console import JsonLines, Watcher
from apps.generate_report import is_generation
from apps.methods import Progress, Trained
from apps.options import Evaluate, job_of_run, parse
from apps.report import write_report
from apps.run_scene import trained_scene
from apps.signals import StopSignal
from data.captures import Capture, open_capture
from recon import sfm
from recon.evaluation import ViewScore, evaluate
from scene.cameras import Camera
from scene.errors import InputError
from scene.runs import Run

ERROR_AT_WHITE = 0.25  # mean absolute difference of the channels that the error pictures show as white


def main(arguments: Sequence[str]) -> None:
    """The `maquette eval` command."""
    request = parse(Evaluate, "eval", arguments)
    with contextlib.ExitStack() as stack:
        run = stack.enter_context(Run.open(request.run))
        stop = stack.enter_context(StopSignal())
        say = stack.enter_context(JsonLines()) if request.json else None
        if say is None:
            run.listeners.append(stack.enter_context(Watcher()))
        if is_generation(run):
            raise InputError(f"{request.run} was made of words: no photos were held out that it could be judged on")
        trained = trained_scene(run)
        run.stage = "evaluate"

        def progress(done: int, total: int, message: str) -> None:
            stop.check()
            run.event(message, step=done, steps=total)

        with reopened(run) as capture:
            judge(run, capture, trained, progress, stop)
        write_report(run)
        if say is not None:
            say(run.metrics)
    if not request.json:
        sys.stdout.write(table(run.finished("evaluate") or {}))


def reopened(run: Run) -> Capture:
    """The capture of a run with the run's own cameras. Raises InputError when the photos are gone."""
    job = job_of_run(run.folder)
    capture = open_capture(
        job.request.source,
        downscale=job.request.downscale,
        holdout=job.request.holdout,
        workdir=run.folder / "capture",
    )
    if all(view.camera is not None for view in capture.views):
        return capture
    if run.finished("cameras") is None:
        raise InputError(f"{run.folder} has no cameras yet; let `maquette recon` go on with --resume first")
    result = sfm.estimate_cameras(
        capture, sfm.SfmConfig(), run.folder / "sfm", progress=lambda done, total, message: None, stop=lambda: False
    )
    return result.capture


def judge(run: Run, capture: Capture, trained: Trained, progress: Progress, stop: StopSignal) -> None:
    """Measure every held-out view, write truth, render and error under renders/, and the means into metrics.json."""
    if not capture.test:
        run.decide("Nothing was held out, so this report cannot say how well new views look.")
        run.finish("evaluate", views=[], seconds=0.0)
        return
    began = time.monotonic()

    def shown(camera: Camera, background: Tensor) -> Tensor:
        return trained.picture(camera, background).cpu()

    folder = run.folder / "renders"
    folder.mkdir(exist_ok=True)
    views: list[dict[str, Any]] = []
    for score in evaluate(shown, capture, exposure=trained.module.learns_exposure(capture, trained.config)):
        stop.check()
        views.append(_kept(score, folder))
        progress(len(views), len(capture.test), f"{score.name}: {score.psnr:.2f} dB")
    mean = {name: fmean(view[name] for view in views) for name in ("psnr", "ssim", "psnr_plain")}
    run.add_metrics(psnr=round(mean["psnr"], 4), ssim=round(mean["ssim"], 5), holdout_views=len(views))
    run.finish("evaluate", views=views, seconds=time.monotonic() - began, psnr_plain=mean["psnr_plain"])
    run.event(f"Held-out PSNR {mean['psnr']:.2f} dB, SSIM {mean['ssim']:.4f} over {len(views)} views")


def _kept(score: ViewScore, folder: Path) -> dict[str, Any]:
    """Write a view's three pictures; returns what the report needs to show them."""
    stem = f"{score.index:04}_" + "".join(c if c.isalnum() or c in "-_." else "_" for c in Path(score.name).stem)
    pictures = {"truth": score.truth, "render": score.render, "error": error_picture(score.truth, score.render)}
    for kind, picture in pictures.items():
        _save_png(picture, folder / f"{stem}_{kind}.png")
    values = {"psnr": score.psnr, "ssim": score.ssim, "psnr_plain": score.psnr_plain}
    return {"name": score.name, "files": stem, **values}


def error_picture(truth: Tensor, shown: Tensor) -> Tensor:
    """Where a render differs: black for not at all, over red and yellow to white for `ERROR_AT_WHITE` and more."""
    heat = ((truth - shown).abs().mean(-1) / ERROR_AT_WHITE).clamp(0, 1)
    return torch.stack([(heat * 3 - channel).clamp(0, 1) for channel in range(3)], dim=-1)


def _save_png(picture: Tensor, path: Path) -> None:
    from PIL import Image

    Image.fromarray((picture.clamp(0, 1) * 255).round().to(torch.uint8).numpy()).save(path, compress_level=3)


def table(record: dict[str, Any]) -> str:
    """The scores of an `evaluate` record as text."""
    views = record.get("views") or []
    if not views:
        return "No photo was held out (--holdout 0), so there is nothing to judge with.\n"
    width = max(len(view["name"]) for view in views)
    lines = [f"{'view':{width}}   PSNR dB    SSIM"]
    lines += [f"{view['name']:{width}}   {view['psnr']:7.2f}  {view['ssim']:.4f}" for view in views]
    lines.append(f"{'mean':{width}}   {fmean(v['psnr'] for v in views):7.2f}  {fmean(v['ssim'] for v in views):.4f}")
    return "\n".join(lines) + "\n"
