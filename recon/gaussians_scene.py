"""What is done with trained Gaussians: shown, judged, kept in a file, counted. Every method has these functions.

`recon/gaussians.py` is the method; `apps/methods.py` says what each function is for.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from data.captures import Capture
from scene.cameras import Camera
from scene.depth_fusion import DepthFrame
from scene.formats import load_splats, save_splats
from scene.gaussians import Gaussians
from scene.mesh_extraction import render_frame
from scene.rasterize import RasterSettings, render

if TYPE_CHECKING:
    from recon.gaussians import Config

SCENE_FILE = "scene.ply"


def learns_exposure(capture: Capture, config: Config) -> bool:
    """Whether each photo gets its own exposure: on request, or for anything but rendered pictures with alpha."""
    rendered = capture.kind == "blender" or all(view.has_alpha for view in capture.views)
    return config.exposure == "on" or (config.exposure == "auto" and not rendered)


def picture(scene: Gaussians, camera: Camera, background: Tensor, config: Config) -> Tensor:
    """The Gaussians as `camera` sees them over `background` [3]: [H, W, 3], for evaluation, films and previews."""
    settings = RasterSettings(antialias=config.antialias)
    with torch.no_grad():
        return render(scene, camera, background=background.to(scene.means), settings=settings).rgb


def surface_frame(scene: Gaussians, camera: Camera, config: Config) -> DepthFrame:
    """Colour and depth of the surface that `camera` sees, for `scene/mesh_extraction.py`."""
    return render_frame(scene, camera, antialias=config.antialias)


def counts(scene: Gaussians) -> tuple[int, int]:
    """How many Gaussians there are, and how many numbers they hold."""
    return len(scene), sum(tensor.numel() for tensor in scene.parameters().values())


def save_scene(path: Path, scene: Gaussians) -> None:
    """Write scene.ply. Raises ResourceError when the disk is full."""
    save_splats(path, scene.to(device="cpu"))


def load_scene(path: Path) -> Gaussians:
    """Read scene.ply. Raises InputError when it holds no splats."""
    return load_splats(path)
