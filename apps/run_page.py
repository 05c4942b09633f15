"""A run's scene as an offline page, and as the part of its report that can be turned round."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from apps.film import path_cameras
from apps.generate_report import is_generation
from apps.methods import SPLAT_METHODS, words_of
from apps.report_page import data_uri
from apps.run_cameras import RunCameras, edited_cameras
from apps.run_scene import edited_mesh, edited_splats, splats_antialias, splats_file, splats_picture
from apps.scene_page import MAX_BYTES, Look, scene_page, viewer_section
from scene.cameras import Camera
from scene.errors import InputError
from scene.gaussians import Gaussians
from scene.mesh import Mesh
from scene.mesh_render import render_mesh
from scene.runs import Run

POSTER_SIZE = (992, 620)  # pixels; the place that the viewer has in a report


@dataclass(frozen=True)
class Shown:
    """What there is to show of a run."""

    splats: Gaussians | None
    mesh: Mesh | None
    seen: RunCameras
    start: Camera
    antialias: bool
    made_of: str
    camera: Literal["photo", "view"]

    @property
    def look(self) -> Look:
        """How the viewer starts: the view and the background of the run's film."""
        light = float(self.seen.background.mean()) > 0.5
        seen = self.seen
        return Look(seen.names, seen.held_out, self.start, light, self.antialias, self.made_of, self.camera)


def page_of_run(run: Run, title: str, *, max_bytes: int = MAX_BYTES) -> str:
    """The whole HTML document of a run's splats, mesh and cameras. Raises InputError when it has no scene yet."""
    shown = _shown(run)
    return scene_page(
        splats=shown.splats,
        mesh=shown.mesh,
        up=shown.seen.up,
        cameras=shown.seen.cameras,
        title=title,
        look=shown.look,
        max_bytes=max_bytes,
    )


def section_of_run(run: Run, *, max_bytes: int) -> str:
    """The same as a part of the report. Raises InputError when the run has no scene yet."""
    shown = _shown(run)
    return viewer_section(
        splats=shown.splats,
        mesh=shown.mesh,
        up=shown.seen.up,
        cameras=shown.seen.cameras,
        title="the scene",
        poster=_poster(shown),
        look=shown.look,
        max_bytes=max_bytes,
    )


def _shown(run: Run) -> Shown:
    seen = edited_cameras(run)
    splats, mesh, antialias = None, None, False
    if (run.folder / "mesh.glb").is_file():
        with contextlib.suppress(InputError):  # a damaged mesh does not hide the splats
            mesh = edited_mesh(run)
    if mesh is None or splats_file(run).is_file():
        splats = edited_splats(run)
    with contextlib.suppress(InputError):
        antialias = splats_antialias(run)
    method = run.config.get("method")
    made_of = "" if method in SPLAT_METHODS else words_of(method).scene
    start, camera = path_cameras(seen, frames=8)[0], "view" if is_generation(run) else "photo"
    return Shown(splats, mesh, seen, start, antialias, made_of, camera)


def _poster(shown: Shown) -> str:
    """The first view, drawn beforehand: what the viewer then shows is the same."""
    from PIL import Image

    camera = _contained(shown.start, *POSTER_SIZE)
    background = torch.ones(3) if shown.look.light else torch.zeros(3)
    rgb = _drawn(shown, camera, background)
    buffer = io.BytesIO()
    Image.fromarray((rgb.clamp(0, 1) * 255).round().to(torch.uint8).numpy()).save(buffer, "JPEG", quality=86)
    return data_uri(buffer.getvalue(), "image/jpeg")


def _drawn(shown: Shown, camera: Camera, background: Tensor) -> Tensor:
    """[H, W, 3] what the viewer shows first: the splats, or the mesh where there are none."""
    if shown.splats is not None:
        return splats_picture(shown.splats, camera, background, antialias=shown.antialias)
    assert shown.mesh is not None
    return render_mesh(shown.mesh, camera, background=background).rgb


def _contained(camera: Camera, width: int, height: int) -> Camera:
    """The camera over a picture of another shape that holds all of its own in the middle, as the viewer does it."""
    scale = min(width / camera.width, height / camera.height)
    K = camera.K.clone()
    K[:2] *= scale
    K[0, 2] += (width - scale * camera.width) / 2
    K[1, 2] += (height - scale * camera.height) / 2
    return replace(camera, K=K, width=width, height=height)
