"""Splats made of a run's scene that is something else: RUN/splats.ply, and what they lose against it; and quick ones
of its last checkpoint, to be looked at while it trains.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from statistics import fmean
from typing import Any

import torch

from apps.methods import FrameOf, Progress, Trained, method_of, words_of
from apps.run_cameras import read_cameras
from apps.run_scene import SPLATS_FILE, Drawing, settings, splats_picture
from data.captures import Capture
from recon.evaluation import evaluate
from scene.cameras import Camera
from scene.field_conversion import ConversionConfig, gaussians_from_frames
from scene.formats import load_splats, save_splats
from scene.gaussians import Gaussians
from scene.mesh_extraction import MeshConfig, evenly
from scene.metrics import psnr
from scene.runs import Run

COMPARED_VIEWS = 8
OF_PHOTOS = ConversionConfig(max_pixels=MeshConfig.max_pixels)
OF_WORDS = ConversionConfig(splats=40_000, sh_degree=0, steps=200, max_pixels=256 * 256)
LIVE = ConversionConfig(splats=60_000, sh_degree=0, steps=0, max_views=24, max_pixels=200 * 200)


def make_splats(
    run: Run,
    capture: Capture | None,
    trained: Trained,
    frame_of: FrameOf,
    cameras: Sequence[Camera],
    *,
    config: ConversionConfig = OF_PHOTOS,
    device: torch.device | str = "cpu",
    max_seconds: float | None = None,
    progress: Progress,
) -> None:
    """Write splats.ply and record how well it shows held-out photos, beside the scene itself.

    capture: where the photos are, None for a scene of words; then, and without held-out ones, its own pictures are
    compared.  frame_of: the surface of `trained`.  cameras: views to make them of.  device, max_seconds: where the
    splats are fitted to it, and for how long.  Raises InputError when the scene gives no splats.
    """
    began = time.monotonic()
    config = replace(config, max_seconds=max_seconds)
    splats = gaussians_from_frames(frame_of, cameras, config, device=device, progress=progress).gaussians
    save_splats(run.folder / SPLATS_FILE, splats.to(device="cpu"))
    splats = load_splats(run.folder / SPLATS_FILE)
    scene = words_of(trained.method).scene
    scores = {}
    if capture is not None and capture.test:
        scores["psnr"] = held_out(splats, capture, trained)
        if (before := run.metrics.get("psnr")) is not None:
            scores["cost_db"] = before - scores["psnr"]
        run.event(f"{len(splats):,} splats made of the {scene}: {scores['psnr']:.2f} dB on held-out photos")
    else:
        draw = partial(splats_picture, splats, antialias=False)
        scores["alike_db"] = likeness(draw, trained, cameras)
        run.event(f"{len(splats):,} splats made of the {scene}: {scores['alike_db']:.2f} dB from its own pictures")
    run.finish("splats", seconds=time.monotonic() - began, splats=len(splats), **scores)


def live_splats(run: Run) -> tuple[Gaussians, dict[str, Any]] | None:
    """Splats laid on the surface of what the last checkpoint holds, and its state; None before there is one.

    Raises InputError when the checkpoint shows no surface yet.
    """
    loaded = run.load_checkpoint()
    if loaded is None:
        return None
    cameras = read_cameras(run).cameras
    method, config = settings(run)
    module = method_of(method)
    frame_of = module.live(module.Checkpoint(*loaded), config)
    return gaussians_from_frames(frame_of, cameras, LIVE).gaussians, loaded[1]


def held_out(splats: Gaussians, capture: Capture, trained: Trained) -> float:
    """Mean PSNR of the splats on held-out photos, judged as the scene was."""
    exposure = trained.module.learns_exposure(capture, trained.config)
    draw = partial(splats_picture, splats, antialias=False)
    return fmean(score.psnr for score in evaluate(draw, capture, exposure=exposure))


def likeness(draw: Drawing, trained: Trained, cameras: Sequence[Camera]) -> float:
    """Mean PSNR of pictures of something made of a scene against the scene's own, from some of the cameras."""
    black, chosen = torch.zeros(3), evenly(cameras, COMPARED_VIEWS)
    pairs = ((draw(camera, black).cpu(), trained.picture(camera, black).cpu()) for camera in chosen)
    return fmean(float(psnr(drawn, own)) for drawn, own in pairs)
