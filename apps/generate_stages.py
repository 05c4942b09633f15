"""What the stages of `maquette generate` are made of: cameras, live pictures, the judgement, the reference picture."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from apps.generate_options import GenerateJob
from apps.methods import Trained
from apps.priors import ChosenPrior, embedded_clip
from apps.run_scene import Drawing
from generation.bank_prior import BankPrior
from generation.distillation import Step
from generation.judging import (
    judged_cameras,
    judged_sides,
    reference_objects,
    reference_pictures,
    scored,
    true_objects,
    views_of_the_front,
)
from generation.views import cameras_around, orbit_camera
from scene.cameras import Camera
from scene.errors import InputError
from scene.formats.pictures import encode_png, write_picture
from scene.mesh_extraction import evenly
from scene.runs import Run
from scene.texture import PhotoView
from scene.untrusted import open_picture, open_regular

FOV, DISTANCE = 40.0, 2.7  # of all cameras here: degrees, world units
FILM_SIZE, JUDGE_SIZE = 384, 64  # pixels
PIXELS_PER_VOXEL, LEAST_MESH_SIZE, MOST_MESH_SIZE = 6, 48, 512  # of the pictures that colour a mesh
TEXTURED_VIEWS = 16  # a texture blends few pictures, and each costs time
FILM_ELEVATION = 20.0
PREVIEW_FILE, PREVIEWS, REFERENCE_FILE = "preview.png", "previews", "reference.png"
PREVIEW_SECONDS, KEPT_PREVIEWS = 2.0, 8
PREVIEW_PIXELS = 128  # of a view's side on a sheet, at least
REFERENCES = 16
LARGEST_REFERENCE = 512  # pixels of a side that is kept of --image


def mesh_cameras(voxels: int) -> list[Camera]:
    """The cameras around a scene: rings around the object, and one from above and one from below.

    voxels: along an edge of the scene's grid.
    """
    size = min(MOST_MESH_SIZE, max(LEAST_MESH_SIZE, PIXELS_PER_VOXEL * voxels))
    return cameras_around(FOV, DISTANCE, size)


def texture_views(draw: Drawing, cameras: Sequence[Camera]) -> list[PhotoView]:
    """Pictures of the scene that colour its mesh, with the alpha of their soft edges."""

    def loader(camera: Camera) -> Callable[[], tuple[Tensor, Tensor | None]]:
        def load() -> tuple[Tensor, Tensor | None]:
            black, white = (draw(camera, torch.full((3,), shade)).cpu() for shade in (0.0, 1.0))
            alpha = (1 - (white - black).mean(-1)).clamp(0, 1)
            rgb = (black / alpha.clamp(min=1e-3)[..., None]).clamp(0, 1)
            return (rgb * 255).round().to(torch.uint8), (alpha * 255).round().to(torch.uint8)

        return load

    return [PhotoView(camera, loader(camera)) for camera in evenly(cameras, TEXTURED_VIEWS)]


def film_path(frames: int, size: int) -> list[Camera]:
    """One turn around the object, from its front on, in square pictures of an even number of pixels."""
    even = size - size % 2
    return [orbit_camera(360 * i / frames, FILM_ELEVATION, FOV, DISTANCE, even) for i in range(frames)]


def write_generated_cameras(run: Run, voxels: int) -> None:
    """cameras.json of a scene without photos: those of its mesh, over white, +Z up."""
    views = [
        {
            "name": f"view_{i:02}",
            "split": "train",
            "width": camera.width,
            "height": camera.height,
            "K": camera.K.tolist(),
            "c2w": camera.c2w.tolist(),
        }
        for i, camera in enumerate(mesh_cameras(voxels))
    ]
    facts = {"up": [0.0, 0.0, 1.0], "ordered": True, "metric": False, "background": [1.0] * 3}
    run.write_json("cameras.json", {**facts, "views": views, "points": []})


class Preview:
    """Writes what a run looks like now, every few seconds, and keeps a few of these pictures for the report.

    On a sheet: the views of the step, above what the prior takes them for.
    """

    def __init__(self, run: Run, steps: int) -> None:
        self.run, self.steps = run, steps
        self.last = 0.0

    def __call__(self, step: Step) -> None:
        """After each step."""
        kept = (step.step + 1) * KEPT_PREVIEWS // self.steps > step.step * KEPT_PREVIEWS // self.steps
        now = time.monotonic()
        if not kept and now - self.last < PREVIEW_SECONDS:
            return
        self.last = now
        data = encode_png(sheet(step).numpy())
        write_picture(self.run.folder / PREVIEW_FILE, data)
        if kept:
            (self.run.folder / PREVIEWS).mkdir(exist_ok=True)
            write_picture(self.run.folder / PREVIEWS / f"step_{step.step + 1:06}.png", data)


def sheet(step: Step) -> Tensor:
    """[H, W, 3] uint8: the views of a step side by side, what the prior takes them for below."""
    rows = []
    for pictures in (step.seen, step.wanted):
        if pictures is not None:
            views = pictures[:4].detach().float().cpu().clamp(0, 1)
            rows.append(torch.nn.functional.interpolate(views, (PREVIEW_PIXELS, PREVIEW_PIXELS), mode="nearest"))
    strips = [views.permute(2, 0, 3, 1).flatten(1, 2) for views in rows]
    return (torch.cat(strips) * 255).round().to(torch.uint8)


def load_reference(job: GenerateJob) -> Tensor | None:
    """[3, H, W] in 0..1 of --image over white, at most LARGEST_REFERENCE wide. Raises InputError for no picture.

    The run keeps a copy, which a resumed run goes on with.
    """
    if job.request.image is None:
        return None
    kept = job.out / REFERENCE_FILE
    path = kept if job.resumes and kept.is_file() else job.request.image
    if not path.is_file():
        raise InputError(f"--image {path} is no file; expected a picture of what is wanted")
    with open_regular(path) as file, open_picture(file, path) as picture:
        picture.thumbnail((LARGEST_REFERENCE, LARGEST_REFERENCE))
        rgba = torch.from_numpy(_array(picture.convert("RGBA"))).float() / 255
    rgb = rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:]
    return (rgb * 255).round().div(255).permute(2, 0, 1).contiguous()  # as the copy of it holds it


def keep_reference(run: Run, image: Tensor) -> None:
    """The run's own copy of the picture of `load_reference`."""
    path = run.folder / REFERENCE_FILE
    if not path.is_file():
        write_picture(path, encode_png((image.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()))


def _array(picture: Any) -> Any:
    import numpy as np

    return np.array(picture)


def judged(trained: Trained, job: GenerateJob, chosen: ChosenPrior) -> tuple[dict[str, Any], list[str]]:
    """What the scene is worth, as a record for the run and as sentences; less where the words are not the grammar's."""
    prompt, cameras = job.request.prompt, judged_cameras(JUDGE_SIZE)
    white = torch.ones(3)
    pictures = torch.stack([trained.picture(camera, white).cpu().clamp(0, 1).permute(2, 0, 1) for camera in cameras])
    try:
        bank = chosen.prior if isinstance(chosen.prior, BankPrior) else None
        objects = bank.members(prompt) if bank else reference_objects(prompt, REFERENCES, job.request.seed)
        sides = judged_sides(pictures, reference_pictures(tuple(o.to("cpu") for o in objects), JUDGE_SIZE))
        truth = true_objects(prompt, JUDGE_SIZE)
    except InputError:
        return {}, ["The words are not those of the embedded grammar, so nothing here can judge the result."]
    record: dict[str, Any] = {
        "nearest": sides.nearest,
        "nearest_psnr": sides.psnr,
        "looks_like": list(sides.looks_like),
    }
    sentences = [
        f"Of {len(objects)} objects that the words stand for, number {sides.nearest} is {sides.psnr:.1f} dB away."
    ]
    shown = views_of_the_front(pictures, truth)
    if shown is None:
        sentences.append("Janus check: the object has no part to tell its front by, so there is nothing to check.")
    else:
        record |= {"fronts": sum(shown), "front_part": truth.part}
        found = "as it should be" if sum(shown) == 1 else "a scene with one front shows it once"
        sentences.append(f"Janus check: the front ({truth.part}) is seen in {sum(shown)} of 4 views; {found}.")
    scorer = embedded_clip("clip_scorer")
    if scorer is not None:
        score = scored(scorer, pictures, prompt)
        record["scorer"] = {
            "rank": score.rank,
            "among": score.among,
            "similarity": score.similarity,
            "best": score.best,
        }
        sentences.append(
            f"The held-out scorer puts the prompt in place {score.rank} of {score.among} captions"
            + ("." if score.rank == 1 else f", behind {score.best!r}.")
        )
    return record, sentences
