"""Scenes to time: random splats of a stated size on screen, and the fox photos trained by our own trainer."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from data.captures import Capture, PointCloud, open_capture
from recon.gaussians import Config, train
from recon.posed_points import points_from_poses
from scene.cameras import Camera
from scene.formats import load_splats, save_splats
from scene.gaussians import Gaussians
from scene.sh import from_rgb


@dataclass(frozen=True)
class BenchmarkScene:
    """Splats, a camera that sees them and the photo [H, W, 3] uint8 that a training step compares with."""

    name: str
    gaussians: Gaussians
    camera: Camera
    photo: Tensor


def synthetic(count: int, width: int, height: int, *, sigma_px: float = 1.5, seed: int = 1) -> BenchmarkScene:
    """Splats spread evenly over the image at depths of 1 to 10.

    Standard deviations are log-normal about sigma_px (shape 0.5) per axis before the low-pass filter; opacities are
    0.05 + 0.9 u v for uniform u, v; the same statistics as prototypes' `synth`.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    focal = float(width)
    K = torch.tensor([[focal, 0.0, width / 2], [0.0, focal, height / 2], [0.0, 0.0, 1.0]])
    depths = 1 + 9 * uniform(count)
    pixels = uniform(count, 2) * torch.tensor([float(width), float(height)])
    rays = torch.cat([(pixels - K[:2, 2]) / focal, torch.ones(count, 1)], dim=1)
    opacities = 0.05 + 0.9 * uniform(count) * uniform(count)
    gaussians = Gaussians(
        means=rays * depths[:, None],
        quats=normal(count, 4),
        log_scales=(sigma_px * depths[:, None] / focal).log() + 0.5 * normal(count, 3),
        opacity_logits=torch.logit(opacities),
        sh_dc=from_rgb(uniform(count, 3)),
        sh_rest=0.05 * normal(count, 15, 3),
    )
    photo = (uniform(height, width, 3) * 255).to(torch.uint8)
    name = f"synthetic {count // 1000}k" if count >= 1000 else f"synthetic {count}"
    return BenchmarkScene(name, gaussians, Camera(K, torch.eye(4), width, height), photo)


def fox_folder() -> Path | None:
    """The instant-ngp fox photos under MAQUETTE_DATA, or None."""
    folder = Path(os.environ.get("MAQUETTE_DATA", "")) / "photos" / "fox"
    return folder if (folder / "transforms.json").is_file() else None


def fox_capture(folder: Path, points: PointCloud | None = None) -> Capture:
    """The fox photos at 270x480 with their given poses, and points where they are known."""
    return replace(open_capture(folder, downscale=4), points=points)


def fox_points(folder: Path) -> PointCloud:
    """Points triangulated from the photos at 540x960 and their given poses."""
    with open_capture(folder, downscale=2) as capture:
        return points_from_poses(capture)


def fox_config(steps: int, splats: int) -> Config:
    """A short run to `splats` Gaussians at full size."""
    return Config(steps=steps, max_splats=splats, initial_splats=splats, checkpoint_seconds=math.inf)


def fox(folder: Path, *, splats: int = 24_000, steps: int = 1000, cache: Path | None = None) -> BenchmarkScene:
    """The fox after a short training from triangulated points, seen by its first training camera.

    cache: a .ply that keeps the trained splats, so that runs of different commits time the same scene.
    """
    if cache is not None and cache.is_file():
        gaussians = load_splats(cache)
    else:
        with fox_capture(folder, fox_points(folder)) as capture:
            gaussians = train(capture, fox_config(steps, splats))
        if cache is not None:
            save_splats(cache, gaussians)
    with fox_capture(folder) as capture:
        index = capture.train[0]
        camera = capture.views[index].camera
        assert camera is not None
        return BenchmarkScene(f"fox {len(gaussians) // 1000}k", gaussians.detach(), camera, capture.photo(index).rgb)
