"""OpenSplat as a peer: writes a capture in COLMAP's layout and times the given binary on it.

Only the binary's command line is used. A step's time is the difference of two runs divided by the difference of their
steps, so that loading and saving cancel out.
"""

from __future__ import annotations

import os
import re
import resource
import struct
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data.captures import Capture
from scene.gaussians import Gaussians
from scene.sh import to_rgb

PINHOLE = 1  # COLMAP's number of the camera model


@dataclass(frozen=True)
class OpenSplatTiming:
    """Per step in seconds: wall, and CPU time over all threads; what the binary calls itself."""

    seconds: float
    cpu_seconds: float
    steps: int
    threads: int
    version: str


class OpenSplatError(RuntimeError):
    """The binary failed; the message ends with what it printed last."""


def write_project(folder: Path, capture: Capture, gaussians: Gaussians) -> None:
    """images/ and sparse/0/*.bin with the training views and the splats' centres and base colours as points."""
    model = folder / "sparse" / "0"
    model.mkdir(parents=True)
    (folder / "images").mkdir()
    cameras, images = [], []
    for number, index in enumerate(capture.train, start=1):
        camera = capture.views[index].camera
        assert camera is not None
        name = f"{number:04d}.png"
        Image.fromarray(capture.photo(index).rgb.numpy()).save(folder / "images" / name)
        lens = [float(camera.K[row, column]) for row, column in ((0, 0), (1, 1), (0, 2), (1, 2))]
        cameras.append(struct.pack("<IiQQ4d", number, PINHOLE, camera.width, camera.height, *lens))
        pose = [*quaternion(camera.viewmat[:3, :3]), *camera.viewmat[:3, 3].tolist()]
        images.append(struct.pack("<I7dI", number, *pose, number) + name.encode() + b"\0" + struct.pack("<Q", 0))
    (model / "cameras.bin").write_bytes(struct.pack("<Q", len(cameras)) + b"".join(cameras))
    (model / "images.bin").write_bytes(struct.pack("<Q", len(images)) + b"".join(images))
    points = np.zeros(
        len(gaussians),
        dtype=[("id", "<u8"), ("xyz", "<f8", 3), ("rgb", "u1", 3), ("error", "<f8"), ("track", "<u8")],
    )
    points["id"] = np.arange(1, len(gaussians) + 1)
    points["xyz"] = gaussians.means.numpy()
    points["rgb"] = (to_rgb(gaussians.sh_dc).clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    (model / "points3D.bin").write_bytes(struct.pack("<Q", len(points)) + points.tobytes())


def quaternion(rotation: Tensor) -> list[float]:
    """Unit quaternion wxyz of a rotation matrix [3, 3], by the largest eigenvalue (Bar-Itzhack, 2000)."""
    m = rotation.double()
    k = torch.zeros(4, 4, dtype=torch.float64)
    k[0, 0] = m.trace()
    k[1:, 1:] = m + m.T - m.trace() * torch.eye(3, dtype=torch.float64)
    k[0, 1:] = k[1:, 0] = torch.stack([m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]])
    return torch.linalg.eigh(k / 3).eigenvectors[:, -1].tolist()


def time_steps(binary: Path, project: Path, *, short: int, long: int, threads: int) -> OpenSplatTiming:
    """Runs the binary twice, for `short` and for `long` steps at full size without densification.

    Raises OpenSplatError when the binary fails.
    """
    first, last = (_run(binary, project, steps, threads) for steps in (short, long))
    wall, cpu = ((b - a) / (long - short) for a, b in zip(first, last, strict=True))
    return OpenSplatTiming(wall, cpu, long - short, threads, _version(binary))


def _run(binary: Path, project: Path, steps: int, threads: int) -> tuple[float, float]:
    """Wall and CPU seconds of one run."""
    with tempfile.TemporaryDirectory() as scratch:
        options = {
            "--num-iters": steps,
            "--downscale-factor": 1,
            "--num-downscales": 0,
            "--warmup-length": 1_000_000,  # no densification: the number of splats stays
            "--output": Path(scratch) / "splat.ply",
        }
        command = [str(binary), str(project), "--cpu", *(str(part) for pair in options.items() for part in pair)]
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        done = subprocess.run(
            command, env=os.environ | {"OMP_NUM_THREADS": str(threads)}, capture_output=True, text=True, check=False
        )
        wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0:
        raise OpenSplatError(f"{binary.name} ended with {done.returncode}: {(done.stderr or done.stdout)[-500:]}")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _version(binary: Path) -> str:
    done = subprocess.run([str(binary), "--help"], capture_output=True, text=True, check=False)
    found = re.search(r"\d+\.\d+\.\d+[^\n]*", done.stdout)
    return found.group(0) if found else "unknown"
