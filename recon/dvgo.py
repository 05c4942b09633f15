"""DVGO: direct voxel grid optimization (Sun, Sun and Chen, CVPR 2022, https://arxiv.org/abs/2111.11215), with the
improvements of DVGOv2 (2022, https://arxiv.org/abs/2206.05085).

A scene is a grid of raw densities and a grid of feature vectors. A sample's density is interpolated first and activated
afterwards; its colour is a small network's answer to the interpolated features and the viewing direction. A coarse grid
of colours finds where the object is; the fine grid then starts small and doubles its voxels, each time with b - 1.

Symbols: V^(density) -> VoxelGrid.density, V^(feat) -> features, b -> shifts, delta -> interval, alpha^(init) ->
Recipe.alpha_init, lambda's -> Weights. Stages, losses and their weights: `recon/grid_training.py`; the step itself:
`scene/grid_step.py`; spaces of forward-facing (NDC) and unbounded scenes (contraction): `scene/ray_space.py`.

Departures: schedules run over progress, so that a time budget ends with an annealed scene; where photos are cut out,
the box and the coarse stage's occupied voxels come from the silhouettes, and the coarse stage starts from alpha 1e-4
with rates of 0.3, which finds in hundreds of steps what 1e-6 and 0.1 find in thousands; the fine grid starts from the
coarse one's densities and colours, as fine as that one, and the network adds to a colour that all directions share
(`rgbnet_direct=False` of the code), so that nothing is learned twice; b falls at a doubling in bounded scenes only;
total variation weighs a hundredth; features are stored for live voxels only, which changes no result; eps of Adam as in
its paper. Figures: docs/decisions.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from data.captures import Capture
from recon.grid_state import grid_of
from recon.grid_training import Checkpoint, GridOptions, train_grid
from scene.cameras import Camera
from scene.depth_fusion import DepthFrame
from scene.errors import InputError
from scene.ops import native
from scene.runs import StepReport
from scene.volume_rendering import frame_of, render_grid
from scene.voxel_grid import VoxelGrid, load_voxel_grid, save_voxel_grid

__all__ = ["PRESETS", "Checkpoint", "Config", "train"]

SCENE_FILE = "scene.safetensors"


@dataclass(frozen=True)
class Config:
    """Options of DVGO; the command line's flags are made from these fields."""

    steps: int = 10_000
    """training steps, the coarse ones included"""
    rays: int = 8192
    """rays per step, from all photos, at most"""
    samples: int = 250_000
    """samples per step that get a colour, about: while rays see much fog, fewer are taken"""
    voxels: int = 160**3
    """voxels of the final grid, about; its sides follow the scene's box"""
    coarse_voxels: int = 100**3
    """voxels of the grid that finds where the object is (bounded scenes)"""
    coarse_share: float = 0.08
    """share of the training for the coarse grid"""
    features: int = 12
    """numbers of a feature vector"""
    width: int = 128
    """neurons of the two hidden layers of the colour network: 64 or 128"""
    scene: Literal["auto", "bounded", "forward", "unbounded"] = "auto"
    """an object in a box, a view to one side (NDC), or surroundings on all sides (contraction)"""
    checkpoint_seconds: float = 30.0
    """time between checkpoints; a killed run loses no more than this"""
    seed: int = 0
    """seed of every random choice"""

    def __post_init__(self) -> None:
        for name, (least, most) in LIMITS.items():
            if not least <= getattr(self, name) <= most:  # false for NaN as well
                raise InputError(
                    f"--{name.replace('_', '-')} must lie between {least:g} and {most:g}, got {getattr(self, name)}"
                )
        if self.width not in (64, 128):
            raise InputError(f"--width must be 64 or 128, got {self.width}")


LIMITS: dict[str, tuple[float, float]] = {
    "steps": (1, 10_000_000),
    "rays": (1, 1 << 20),
    "samples": (1000, 1 << 24),
    "voxels": (1000, 640**3),
    "coarse_voxels": (1000, 640**3),
    "coarse_share": (0, 0.9),
    "features": (3, 32),
    "checkpoint_seconds": (0, math.inf),
    "seed": (0, 2**63 - 1),
}
"""What options may be; beyond it training could only fail after the cameras have been estimated."""

PRESETS: dict[str, dict[str, int]] = {
    "draft": {"steps": 3000, "rays": 4096, "voxels": 100**3, "coarse_voxels": 64**3},
    "standard": {},
    "high": {"steps": 25_000, "voxels": 256**3},
}


def train(
    capture: Capture,
    config: Config,
    *,
    device: torch.device | str = "cpu",
    max_seconds: float | None = None,
    on_step: Callable[[StepReport], None] = lambda report: None,
    save: Callable[[Checkpoint], None] = lambda checkpoint: None,
    decide: Callable[[str], None] = lambda sentence: None,
    resume: Checkpoint | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> VoxelGrid:
    """Trains a voxel grid on `capture.train`; it comes back on `device`. Arguments and errors as of `train_grid`."""
    return train_grid(
        capture,
        grid_options(config),
        device=device,
        max_seconds=max_seconds,
        on_step=on_step,
        save=save,
        decide=decide,
        resume=resume,
        stop=stop,
    )


def grid_options(config: Config) -> GridOptions:
    """Of the grid with DVGO's head."""
    return GridOptions(
        steps=config.steps,
        rays=config.rays,
        samples=config.samples,
        voxels=config.voxels,
        coarse_voxels=config.coarse_voxels,
        coarse_share=config.coarse_share,
        channels=config.features,
        head="mlp",
        width=config.width,
        scene=config.scene,
        checkpoint_seconds=config.checkpoint_seconds,
        seed=config.seed,
    )


def check(config: Config, device: torch.device) -> None:
    """Every option trains on every device."""


def explain(config: Config, device: torch.device) -> str:
    """One line: what computes on `device`."""
    return native.explain(device)


def learns_exposure(capture: Capture, config: Config) -> bool:
    """DVGO knows no exposures: photos are compared as they are."""
    return False


def save_scene(path: Path, scene: VoxelGrid) -> None:
    """Write scene.safetensors. Raises ResourceError when the disk is full."""
    save_voxel_grid(path, scene)


def load_scene(path: Path) -> VoxelGrid:
    """Read scene.safetensors. Raises InputError when it holds no sound grid."""
    return load_voxel_grid(path)


def picture(scene: VoxelGrid, camera: Camera, background: Tensor, config: Config) -> Tensor:
    """The grid as `camera` sees it over `background` [3]: [H, W, 3], without gradients."""
    return render_grid(scene, camera, background).rgb


def surface_frame(scene: VoxelGrid, camera: Camera, config: Config) -> DepthFrame:
    """Colour and depth of the surface that `camera` sees."""
    return frame_of(render_grid(scene, camera, torch.zeros(3)), camera)


def live(checkpoint: Checkpoint, config: Config) -> Callable[[Camera], DepthFrame]:
    """Colour and depth of what a checkpoint holds. Raises InputError when that is no grid of these options."""
    grid = grid_of(grid_options(config), checkpoint)
    return lambda camera: surface_frame(grid, camera, config)


def counts(scene: VoxelGrid) -> tuple[int, int]:
    """How many voxels hold something, and how many numbers hold the scene."""
    return len(scene), scene.parameters
