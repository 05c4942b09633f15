"""From a scene to the mesh that users take away: extracted, cut to a budget, repaired, textured from photos, labelled.

`maquette recon` and `maquette export` both come here; the photos are those that trained the scene, never held-out ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import torch
from torch import Tensor

from apps.methods import Progress
from apps.run_scene import Drawing
from data.captures import Capture
from recon.exposure import cross_fitted
from scene.cameras import Camera
from scene.mesh import Mesh
from scene.mesh_gate import MeshLabel, label_mesh
from scene.mesh_rays import RayCaster
from scene.mesh_render import render_mesh
from scene.mesh_repair import decimate_and_repair
from scene.metrics import psnr
from scene.texture import PhotoView, TextureConfig, Textured, texture_mesh

MeshPreset = Literal["web", "game", "film"]
MIN_PART = 0.01  # of the largest part's area, as for the fine mesh: decimation parts what hung together by a thread
LEAST_COVERED = 0.05  # of a held-out picture; where the mesh covers less, its figure would say nothing


@dataclass(frozen=True)
class Budget:
    """How large a delivered mesh may be: triangles, and texels along the side of its texture."""

    faces: int
    texture: int


BUDGETS: dict[str, Budget] = {"web": Budget(20_000, 1024), "game": Budget(50_000, 2048), "film": Budget(200_000, 4096)}


@dataclass(frozen=True)
class Finished:
    """A mesh ready to be handed over, and what is known of it."""

    mesh: Mesh
    repairs: tuple[str, ...]
    textured: Textured
    label: MeshLabel

    def record(self) -> dict[str, Any]:
        """What the run keeps for its report."""
        return {
            "facts": dataclasses.asdict(self.mesh.facts()),
            "texture": dataclasses.asdict(self.textured.facts),
            "label": self.label.as_json(),
            "repairs": list(self.repairs),
        }


def budget(preset: str, faces: int | None) -> Budget:
    """The budget of a preset, with another number of faces where that is asked; the texture grows and shrinks along."""
    chosen = BUDGETS[preset]
    if faces is None:
        return chosen
    texture = next((b.texture for b in BUDGETS.values() if faces <= b.faces), BUDGETS["film"].texture)
    return Budget(faces, texture)


def finish(
    fine: Mesh,
    views: Sequence[PhotoView],
    wanted: Budget,
    *,
    progress: Progress,
    stop: Callable[[], bool],
) -> Finished:
    """Cut the fine mesh to its budget, mend it, lay the photos on it, and say what it is worth."""
    progress(0, 1, f"decimating to {wanted.faces:,} faces")
    mesh, repairs = decimate_and_repair(dataclasses.replace(fine, colors=None), wanted.faces, min_share=MIN_PART)
    config = TextureConfig(max_size=wanted.texture)
    textured = texture_mesh(mesh, views, config, fine=fine, progress=progress, stop=stop)
    progress(0, 1, "checking the mesh")
    label = label_mesh(textured.mesh, reference=fine, budget=wanted.faces)
    return Finished(textured.mesh, repairs, textured, label)


def photo_views(capture: Capture) -> list[PhotoView]:
    """The photos that trained the scene, each loaded when it is needed."""

    def loader(index: int) -> Callable[[], tuple[Tensor, Tensor | None]]:
        def load() -> tuple[Tensor, Tensor | None]:
            photo = capture.photo(index)
            return photo.rgb, photo.alpha

        return load

    views = ((index, capture.views[index].camera) for index in capture.train)
    return [PhotoView(camera, loader(index)) for index, camera in views if camera is not None]


def rendered_views(draw: Drawing, cameras: Sequence[Camera]) -> list[PhotoView]:
    """Pictures of the scene in place of photos, for scenes whose photos are not at hand."""

    def loader(camera: Camera) -> Callable[[], tuple[Tensor, Tensor | None]]:
        def load() -> tuple[Tensor, Tensor | None]:
            return (draw(camera, torch.zeros(3)).clamp(0, 1) * 255).round().to(torch.uint8).cpu(), None

        return load

    return [PhotoView(camera, loader(camera)) for camera in cameras]


def held_out_psnr(mesh: Mesh, capture: Capture, *, exposure: bool) -> tuple[float, float] | None:
    """Mean PSNR of the textured mesh at held-out views over the pixels it covers, and the share that it covers.

    exposure: photos whose exposure is not known are compared after `cross_fitted`, as the scene is.
    None without held-out views that show the mesh.
    """
    scores, shares = [], []
    caster = RayCaster(mesh)
    for index in capture.test:
        camera = capture.views[index].camera
        assert camera is not None
        photo = capture.photo(index)
        shown = render_mesh(mesh, camera, caster=caster)
        covered = shown.alpha > 0.5
        if photo.alpha is not None:
            covered &= photo.alpha > 127
        shares.append(float(covered.float().mean()))
        if shares[-1] < LEAST_COVERED:
            continue
        truth = photo.rgb.float() / 255
        picture = cross_fitted(shown.rgb.float(), truth, mask=covered) if exposure else shown.rgb
        scores.append(float(psnr(picture, truth, covered)))
    return (fmean(scores), fmean(shares)) if scores else None


def fine_mesh_file(folder: Path) -> Path:
    """Where a run keeps its mesh before decimation, so that exports may choose another budget."""
    return folder / "mesh_fine.ply"
