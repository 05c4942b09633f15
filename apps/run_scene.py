"""The scene of a run, whatever method made it: as it was trained, as splats, and with the run's edits applied.

Splats are what viewers, pages and splat formats take. A Gaussian run has them in scene.ply; other methods leave
splats.ply beside their own scene file, made of it when training has ended.

Edits turn, scale and crop. A grid or an octree stays as it was trained: turning and scaling move the cameras instead,
which gives the same pictures; crops and removed floaters apply to the splats and to the mesh.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from apps.generate_options import GENERATORS, job_of_generated
from apps.methods import SPLAT_METHODS, Trained, method_of, words_of
from apps.options import METHODS, job_of_run
from apps.run_cameras import MAP_POINTS, read_cameras
from recon import gaussians
from scene import edits, sh
from scene.cameras import Camera
from scene.edits import Crop, Edits, RemoveFloaters
from scene.errors import InputError
from scene.formats import load_mesh, load_splats
from scene.gaussians import Gaussians
from scene.mesh import Mesh
from scene.rasterize import RasterSettings, render
from scene.runs import Run

SPLATS_FILE = "splats.ply"  # of a run whose own scene is something else
SCENE_FILES = ("scene.ply", "scene.npz", "scene.safetensors")
AGAIN = "let it go on with --resume first"

Drawing = Callable[[Camera, Tensor], Tensor]
"""(camera, background [3]) -> picture [H, W, 3]"""


def trained_scene(run: Run) -> Trained:
    """The scene of a run as its method left it. Raises InputError when training has not finished."""
    method, config = settings(run)
    module = method_of(method)
    path = run.folder / module.SCENE_FILE
    if not path.is_file():
        raise InputError(f"{run.folder} has no {path.name} yet; {AGAIN}")
    return Trained(method, module, config, module.load_scene(path))


def settings(run: Run) -> tuple[str, Any]:
    """The method of a run and its options, whether photos or words came in."""
    generated = run.config.get("method") in GENERATORS
    job = job_of_generated(run.folder) if generated else job_of_run(run.folder)
    return job.method, job.config


def splats_file(run: Run) -> Path:
    """Where the splats of a run are, or will be."""
    return run.folder / ("scene.ply" if run.config.get("method") in SPLAT_METHODS else SPLATS_FILE)


def scene_splats(run: Run) -> Gaussians:
    """The scene of a run as splats. Raises InputError when there are none yet."""
    path = splats_file(run)
    if not path.is_file():
        raise InputError(f"{run.folder} has no {path.name} yet; {AGAIN}")
    return load_splats(path)


def edited_splats(run: Run) -> Gaussians:
    """The splats of a run with RUN/edits.json applied. Raises as `scene_splats`."""
    return edits.load(run.folder).of_gaussians(scene_splats(run))


def edited_mesh(run: Run) -> Mesh:
    """mesh.glb of a run, in the frame of its edited scene and cropped as that. Raises InputError when there is none."""
    path = run.folder / "mesh.glb"
    if not path.is_file():
        raise InputError(f"{run.folder} has no mesh.glb; {AGAIN}")
    up = read_cameras(run).up
    mesh = load_mesh(path) if up is None else load_mesh(path, up=(float(up[0]), float(up[1]), float(up[2])))
    return edits.load(run.folder).of_mesh(mesh)


def edited_drawing(run: Run) -> tuple[Drawing, str]:
    """What draws the edited scene for films, and a sentence where that is not the trained scene itself.

    Raises InputError as `trained_scene` and `scene_splats` do.
    """
    trained, done = trained_scene(run), edits.load(run.folder)
    if trained.method in SPLAT_METHODS:
        return Trained(trained.method, trained.module, trained.config, done.of_gaussians(trained.scene)).picture, ""
    if not cuts(done):
        return lambda camera, background: trained.picture(done.camera_before(camera), background), ""
    splats = edited_splats(run)
    scene = words_of(trained.method).scene
    return (
        lambda camera, background: splats_picture(splats, camera, background, antialias=False),
        f"What was cropped or removed is gone from the splats made of the {scene}: the film shows those.",
    )


def cuts(done: Edits) -> bool:
    """Whether something is missing after the edits; else they only turn and scale."""
    return any(isinstance(edit, Crop | RemoveFloaters) for edit in done.items)


def splats_antialias(run: Run) -> bool:
    """Whether the splats of a run are drawn with Mip-Splatting's filter, as they were trained."""
    config = settings(run)[1]
    return isinstance(config, gaussians.Config) and config.antialias


def splats_picture(splats: Gaussians, camera: Camera, background: Tensor, *, antialias: bool) -> Tensor:
    """[H, W, 3] splats as a camera sees them over `background` [3]."""
    settings = RasterSettings(antialias=antialias)
    with torch.no_grad():
        return render(splats, camera, background=background.to(splats.means), settings=settings).rgb


def sample_of_scene(splats: Gaussians) -> Tensor:
    """Places and colours of the more opaque splats, [P, 6], for the map of a source without a point cloud."""
    solid = (splats.opacities > 0.5).nonzero()[:, 0]
    solid = solid[:: max(1, math.ceil(len(solid) / MAP_POINTS))]
    colors = (splats.sh_dc[solid] * sh.C0 + 0.5).clamp(0, 1) * 255
    return torch.cat([splats.means[solid], colors], dim=1)


def about_splats(run: Run) -> str:
    """What the splats of a run of another method stand for, and what that costs; nothing for a Gaussian run."""
    name, record = run.config.get("method"), run.finished("splats") or {}
    if name not in METHODS | GENERATORS or name in SPLAT_METHODS or not splats_file(run).is_file():
        return ""
    sentence = f"Splats stand for the {words_of(name).scene} here"
    psnr, cost, alike = (record.get(key) for key in ("psnr", "cost_db", "alike_db"))
    if isinstance(psnr, float) and isinstance(cost, float):
        than = f"{abs(cost):.1f} dB {'less' if cost > 0 else 'more'} than the {words_of(name).scene} itself"
        return f"{sentence}: {psnr:.1f} dB on held-out photos, {than}."
    return f"{sentence}, {alike:.1f} dB from its own pictures." if isinstance(alike, float) else f"{sentence}."
