"""Quality against time: trains on photos and judges the held-out ones every few seconds, off the clock."""

from __future__ import annotations

import time
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.scenes import fox_config
from data.captures import Capture
from recon.evaluation import evaluate
from recon.gaussians import Checkpoint, learns_exposure, train
from scene.cameras import Camera
from scene.gaussians import Gaussians
from scene.rasterize import render


def psnr_over_time(
    capture: Capture, *, steps: int, every_seconds: float, splats: int = 24_000
) -> list[dict[str, float]]:
    """Rows of seconds, step, mean PSNR (dB) of the held-out views, and splats; the last is the finished scene."""
    config = replace(fox_config(steps, splats), checkpoint_seconds=every_seconds)
    rows: list[dict[str, float]] = []
    start, judging = time.monotonic(), 0.0

    def look(checkpoint: Checkpoint) -> None:
        nonlocal judging
        now = time.monotonic()
        names = ("means", "quats", "log_scales", "opacity_logits", "sh_dc", "sh_rest")
        gaussians = Gaussians(*(checkpoint.tensors[f"gaussians.{name}"] for name in names))
        rows.append(
            {
                "seconds": round(now - start - judging, 2),
                "step": float(checkpoint.state["step"]),
                "psnr": held_out_psnr(gaussians, capture, exposure=learns_exposure(capture, config)),
                "splats": float(len(gaussians)),
            }
        )
        judging += time.monotonic() - now

    train(capture, config, save=look)
    return rows


def held_out_psnr(gaussians: Gaussians, capture: Capture, *, exposure: bool) -> float:
    """Mean over the held-out views, dB."""

    def draw(camera: Camera, background: Tensor) -> Tensor:
        return render(gaussians, camera, background=background).rgb

    scores = [score.psnr for score in evaluate(draw, capture, exposure=exposure)]
    return float(torch.tensor(scores).mean())
