"""Photo-like pictures of a textured room with exact cameras, to test camera estimation without any real photo."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from data.synthetic import OpaqueScene, Shown
from data.synthetic_solids import Box, Ellipsoid, Solid, noise
from scene.cameras import Camera, look_at


def mottled(seed: int) -> Callable[[Tensor], Tensor]:
    """Blots of many sizes and colours with sharp edges, nowhere the same: what feature matching likes."""

    def texture(points: Tensor) -> Tensor:
        tone = 0.3 + 0.5 * noise(points * 3.1, seed, 2)
        coarse, fine, grain = noise(points * 5.0, seed + 1, 3).unbind(-1)
        spots = noise(points * 17.0, seed + 2, 2)
        dark = 1 - 0.4 * (coarse > 0.53).to(points) - 0.25 * (fine > 0.58).to(points)
        tone = tone * dark[:, None] + 0.22 * (spots > 0.62).to(points)
        return (tone + 0.2 * (grain - 0.5)[:, None]).clamp(0.02, 0.98)

    return texture


def room(seed: int = 0) -> OpaqueScene:
    """A floor of 6 x 6 units with walls around and five solid things in the middle; z up."""

    def box(x: float, y: float, z: float, a: float, b: float, c: float, turn: float = 0.0) -> Box:
        cos, sin = math.cos(turn), math.sin(turn)
        rotation = torch.tensor([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]], dtype=torch.float64)
        half = torch.tensor([a, b, c], dtype=torch.float64)
        return Box(torch.tensor([x, y, z], dtype=torch.float64), half, rotation)

    def ball(x: float, y: float, r: float) -> Ellipsoid:
        return Ellipsoid(torch.tensor([x, y, r], dtype=torch.float64), torch.full((3,), r, dtype=torch.float64))

    solids: tuple[Solid, ...] = (
        box(0, 0, -0.1, 4, 4, 0.1),
        *(
            box(3.1 * x, 3.1 * y, 2, 0.1 if x else 4, 0.1 if y else 4, 2.2)
            for x, y in ((1, 0), (-1, 0), (0, 1), (0, -1))
        ),
        box(0.1, 0.5, 0.4, 0.35, 0.22, 0.4, 0.5),
        box(-0.7, 0.0, 0.2, 0.25, 0.3, 0.2, 1.1),
        box(0.55, -0.55, 0.15, 0.3, 0.2, 0.15, -0.4),
        ball(-0.35, -0.75, 0.26),
        ball(0.85, 0.3, 0.2),
    )
    light = torch.nn.functional.normalize(torch.tensor([0.4, -0.5, 0.77], dtype=torch.float64), dim=0)
    return OpaqueScene(solids, mottled(seed), light, ambient=0.6)


def arc_cameras(views: int, size: tuple[int, int], *, sweep: float = 2.2, seed: int = 0) -> list[Camera]:
    """A walk along an arc of `sweep` radians, held by hand, focal length 0.9 of the width."""
    generator = torch.Generator().manual_seed(seed)
    width, height = size
    focal = 0.9 * width
    K = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]], dtype=torch.float64)
    cameras = []
    for k in range(views):
        shake = torch.randn(7, generator=generator, dtype=torch.float64)
        angle = -0.5 * math.pi + sweep * ((k + 0.5) / views - 0.5)
        eye = torch.tensor([2.3 * math.cos(angle), 2.3 * math.sin(angle), 1.25], dtype=torch.float64)
        target = torch.tensor([0, 0, 0.25], dtype=torch.float64) + 0.05 * shake[3:6]
        up = torch.tensor([0.02 * float(shake[6]), 0, 1], dtype=torch.float64)
        cameras.append(Camera(K, look_at(eye + 0.06 * shake[:3], target, up), width, height))
    return cameras


def write_photos(
    folder: Path,
    views: int = 12,
    size: tuple[int, int] = (320, 240),
    *,
    seed: int = 0,
    with_exif: bool = True,
    supersample: int = 2,
) -> dict[str, Shown]:
    """Photos of the room as JPEGs in `folder`, and by file name what they show exactly.

    seed: of room and walk.  with_exif: the focal length stands in the file.
    """
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    scene = room(seed)
    answers: dict[str, Shown] = {}
    for index, camera in enumerate(arc_cameras(views, size, seed=seed)):
        shown = scene.show(camera, supersample)
        pixels = (shown.over(0.5).clamp(0, 1) * 255).round().to(torch.uint8).numpy()
        name = f"view_{index:03d}.jpg"
        tags = Image.Exif()
        if with_exif:
            # FocalLengthIn35mmFilm: of a frame with the same field of view over the diagonal, in whole mm.
            tags.get_ifd(0x8769)[0xA405] = round(43.27 * float(camera.K[0, 0]) / math.hypot(*size))
        Image.fromarray(pixels).save(folder / name, quality=93, exif=tags)
        answers[name] = replace(shown, camera=camera)
    return answers
