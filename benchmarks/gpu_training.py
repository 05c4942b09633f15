"""Whole trainings on the GPU: seconds until the held-out views reach a PSNR."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.psnr_over_time import held_out_psnr
from benchmarks.scenes import fox_capture, fox_folder
from data.captures import Capture, open_capture
from data.synthetic import opaque_solids
from recon.gaussians import Checkpoint, Config, learns_exposure, train
from scene.errors import Interrupted
from scene.gaussians import Gaussians

NAMES = ("means", "quats", "log_scales", "opacity_logits", "sh_dc", "sh_rest")


@dataclass(frozen=True)
class Task:
    """A capture, how to train on it, and the PSNR that are waited for, dB."""

    name: str
    capture: Capture
    config: Config
    targets: tuple[float, ...]


@contextmanager
def tasks() -> Iterator[list[Task]]:
    """Lego at 800x800 and the fox where MAQUETTE_DATA holds them; else a synthetic scene made on the spot."""
    lego, fox = Path(os.environ.get("MAQUETTE_DATA", "")) / "blender" / "lego", fox_folder()
    found: list[Task] = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            if (lego / "transforms_train.json").is_file():
                config = Config(steps=7000, max_splats=300_000, checkpoint_seconds=2.0)
                found.append(Task("lego", open_capture(lego), config, (33.0, 35.0)))
            if fox is not None:
                config = Config(steps=7000, max_splats=120_000, checkpoint_seconds=2.0)
                found.append(Task("fox 270x480", fox_capture(fox), config, (24.0, 26.0)))
            if not found:
                capture = opaque_solids(train=40, test=6, size=160).capture(Path(folder))
                config = Config(steps=3000, max_splats=20_000, initial_splats=5000, checkpoint_seconds=0.5)
                found.append(Task("synthetic solids 160x160", capture, config, (28.0, 31.0)))
            yield found
        finally:
            for task in found:
                task.capture.close()


def seconds_to_targets(task: Task, *, device: torch.device, max_seconds: float) -> dict[str, Any]:
    """Trains until the last target is met, the steps are done or the time is over; judging is off the clock.

    The schedule is that of an unhurried run: it is not shortened by max_seconds.
    """
    rows: list[dict[str, float]] = []
    judging, began = 0.0, time.monotonic()
    exposure = learns_exposure(task.capture, task.config)

    def met() -> bool:
        return bool(rows) and rows[-1]["psnr"] >= task.targets[-1]

    def look(checkpoint: Checkpoint) -> None:
        nonlocal judging
        if met():
            return  # what is saved on the way out says nothing new
        now = time.monotonic()
        gaussians = Gaussians(*(checkpoint.tensors[f"gaussians.{name}"].to(device) for name in NAMES))
        psnr = held_out_psnr(gaussians, task.capture, exposure=exposure)
        seconds, step = now - began - judging, float(checkpoint.state["step"])
        rows.append({"seconds": round(seconds, 3), "step": step, "psnr": psnr, "splats": float(len(gaussians))})
        judging += time.monotonic() - now

    def stop() -> bool:
        return met() or time.monotonic() - began > max_seconds

    with suppress(Interrupted):
        train(task.capture, task.config, device=device, save=look, stop=stop)
    reached = first_times(rows, task.targets)
    return {"scene": task.name, "seconds_to_psnr": reached, "judging_seconds": round(judging, 4), "rows": rows}


def first_times(rows: Sequence[dict[str, float]], targets: Sequence[float]) -> dict[str, float | None]:
    """Seconds of the first row at or above each PSNR; None where none is."""
    return {
        f"{target:g} dB": next((row["seconds"] for row in rows if row["psnr"] >= target), None) for target in targets
    }
