"""Training of LGM-tiny (`lgm.py`) on procedural objects, and its scores on held-out ones.

LGM, sections 3.3 and 3.4: the network sees four views, and its Gaussians are drawn at these and at four others.

    loss = |rgb - truth|^2 + |alpha - truth|^2 + 0.5 |f(rgb) - f(truth)|^2 + 0.1 |depth - truth|^2    (means)

f are the features of CLIP-G, in the place of LPIPS; of the views that were not seen only, for they take as long as all
the rest. Depth is taken from the plane through the origin and weighted by
alpha, so that nothing is divided by an alpha near 0. Pictures that a prior makes agree less than true ones; so half of
the objects show all views but the first distorted, half have all cameras but the first turned about the origin.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from generation.clip import Clip
from generation.lgm import LgmNetwork, frames_of, gaussians_of, reconstruct
from generation.networks import camera_of_numbers
from generation.object_render import sample_backgrounds
from generation.prior_data import SETS, VIEWS, PriorData, over_background
from generation.prior_training import Trainer, draw_backgrounds
from generation.shapes import ObjectModel
from generation.surface_points import surface_points
from scene.cameras import Camera
from scene.gaussians import Gaussians
from scene.metrics import psnr
from scene.rasterize import render

FEATURES, DEPTH = 0.5, 0.1  # weights of the loss
DISTORT, JITTER = 0.5, 0.5  # how often, object by object
CELLS, STRENGTH = (8, 17), 0.5  # lines of the distorted grid from, to; how far they move, in cells
TURN, TILT = 0.1 * 180, 0.05 * 180  # degrees to either side that a camera is turned about its down and right axes
SOLID = 0.5  # alpha from which a pixel shows a surface
SURFACE_POINTS = 8_192


@dataclass(frozen=True)
class Seen:
    """What C cameras show.

    rgb: [C, 3, h, w] over a background.  alpha: [C, h, w].  depth: [C, h, w] alpha times z, less the origin's z.
    """

    rgb: Tensor
    alpha: Tensor
    depth: Tensor


def lgm_loss(data: PriorData, guide: Clip, batch: int) -> Callable[[Trainer], Tensor]:
    """The loss of `batch` objects: one of their sets is seen, both are drawn."""

    def loss_of(trainer: Trainer) -> Tensor:
        network, g = trainer.network, trainer.choices
        assert isinstance(network, LgmNetwork)
        chosen = torch.randint(len(data), (batch,), generator=g).tolist()
        which = torch.randint(SETS, (batch,), generator=g).tolist()
        behind, before = draw_backgrounds(g, batch), sample_backgrounds(g, batch)
        pictures, posed, frames = [], [], []
        with torch.autocast(trainer.device.type, enabled=False):  # cameras and rays are not rounded to 8 bits
            for row, seen, background in zip(chosen, which, behind):
                cameras = cameras_of(data, row, seen)
                shown = 0.5 * (over_background(data.rgba[row, seen], background.to(trainer.device)) + 1)
                shown = torch.cat([shown[:1], distorted(shown[1:], g)]) if _chance(g, DISTORT) else shown
                if _chance(g, JITTER):
                    cameras = (cameras[0], *(jittered(camera, g) for camera in cameras[1:]))
                pictures.append(shown)
                posed.append(cameras)
                frames.append(frames_of(shown, cameras))
        raws = network(torch.stack(frames))
        with torch.autocast(trainer.device.type, enabled=False):
            losses = []
            for raw, shown, cameras, row, seen, background in zip(raws, pictures, posed, chosen, which, before):
                made = gaussians_of(raw, shown, cameras)
                order = (seen, 1 - seen)
                views = drawn(made, [c for k in order for c in cameras_of(data, row, k)], background.flatten())
                losses.append(reconstruction_loss(views, truth(data, row, background, order), guide))
            return torch.stack(losses).mean()

    return loss_of


def reconstruction_loss(made: Seen, true: Seen, guide: Clip) -> Tensor:
    """|rgb|^2 + |alpha|^2 + FEATURES |CLIP-G|^2 + DEPTH |depth|^2 of the differences, each a mean.

    The features are compared in the last VIEWS views.
    """
    with torch.no_grad():
        wanted = guide.features(2 * true.rgb[-VIEWS:] - 1)
    return (
        F.mse_loss(made.rgb, true.rgb)
        + F.mse_loss(made.alpha, true.alpha)
        + FEATURES * F.mse_loss(guide.features(2 * made.rgb[-VIEWS:] - 1), wanted)
        + DEPTH * F.mse_loss(made.depth, true.depth)
    )


def cameras_of(data: PriorData, row: int, which: int) -> tuple[Camera, ...]:
    """The cameras of a set of an object, on the data's device."""
    numbers, size = data.cameras[row, which].cpu(), data.rgba.shape[-1]
    return tuple(camera_of_numbers(each, size).to(device=data.rgba.device) for each in numbers)


def truth(data: PriorData, row: int, background: Tensor, sets: Sequence[int]) -> Seen:
    """What some sets of an object show, one after the other, over `background` [1, 3, 1, 1] in 0..1."""
    which = list(sets)
    rgba, depth = data.rgba[row, which].flatten(0, 1), data.depth[row, which].flatten(0, 1).float()
    alpha = rgba[:, 3].float() / 255
    origin = torch.stack([origin_depth(camera) for k in which for camera in cameras_of(data, row, k)])
    rgb = 0.5 * (over_background(rgba, background.to(rgba.device)) + 1)
    return Seen(rgb, alpha, alpha * (depth - origin.view(-1, 1, 1)))


def drawn(made: Gaussians, cameras: Sequence[Camera], background: Tensor) -> Seen:
    """What Gaussians show to cameras over `background` [3] in 0..1; differentiable."""
    behind = background.to(made.means)
    pictures = [render(made, camera, background=behind, with_geometry=True) for camera in cameras]
    depth = [_relative(picture.depth, picture.alpha, camera) for picture, camera in zip(pictures, cameras)]
    rgb = torch.stack([picture.rgb for picture in pictures]).permute(0, 3, 1, 2)
    return Seen(rgb, torch.stack([picture.alpha for picture in pictures]), torch.stack(depth))


def _relative(depth: Tensor | None, alpha: Tensor, camera: Camera) -> Tensor:
    assert depth is not None
    return alpha * (depth - origin_depth(camera))


def origin_depth(camera: Camera) -> Tensor:
    """z of the origin in the camera."""
    return -(camera.center @ camera.forward)


def _chance(generator: torch.Generator, probability: float) -> bool:
    return float(torch.rand((), generator=generator)) < probability


def distorted(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures [V, 3, h, w] whose columns and rows are stretched and squeezed, each picture in its own way.

    The lines of a coarse grid move by up to STRENGTH / 2 of a cell, what lies between them with them (LGM, grid
    distortion). The outermost lines stay.
    """
    grids = []
    for _ in pictures:
        lines = int(torch.randint(*CELLS, (), generator=generator))
        ys, xs = (_moved(lines, side, generator) for side in pictures.shape[-2:])
        y, x = torch.meshgrid(ys, xs, indexing="ij")
        grids.append(torch.stack([x, y], dim=-1))
    grid = torch.stack(grids).to(pictures)
    return F.grid_sample(pictures, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _moved(lines: int, pixels: int, generator: torch.Generator) -> Tensor:
    """[pixels] where in -1..1 each pixel's centre of one axis is read from."""
    at = torch.linspace(-1, 1, lines)
    moved = at + STRENGTH * (torch.rand(lines, generator=generator) - 0.5) * 2 / (lines - 1)
    moved[0], moved[-1] = -1, 1
    centres = (torch.arange(pixels) + 0.5) / pixels * (lines - 1)
    left = centres.floor().long()
    return torch.lerp(moved[left], moved[left + 1], centres - left)


def jittered(camera: Camera, generator: torch.Generator) -> Camera:
    """The camera turned about the origin, at random, still looking at it (LGM, orbital camera jitter)."""
    turn, tilt = ((2 * torch.rand(2, generator=generator) - 1) * torch.tensor([TURN, TILT])).deg2rad().tolist()
    right, down = camera.c2w[:3, 0], camera.c2w[:3, 1]
    rotation = torch.eye(4).to(camera.c2w)
    rotation[:3, :3] = turned(down, turn) @ turned(right, tilt)
    return replace(camera, c2w=rotation @ camera.c2w)


def turned(axis: Tensor, angle: float) -> Tensor:
    """[3, 3] rotation by `angle` radians about a unit axis [3] (Rodrigues)."""
    x, y, z = (angle * axis).tolist()
    return torch.linalg.matrix_exp(torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]]).to(axis))


@torch.no_grad()
def reconstruction_scores(network: LgmNetwork, data: PriorData, objects: Sequence[ObjectModel]) -> dict[str, float]:
    """How well objects that were never seen come out of true pictures of their first sets, over white.

    psnr: of the views of the second sets, mean of dB.  seen_psnr: of the first sets' own.  blank_psnr: of white
    pictures in the place of the second sets' views, the score of nothing at all.  gaussians: mean number.  chamfer:
    of what all these views show and the true surfaces of `objects`, the first ones of `data`, world units;
    true_chamfer: the same of the true depths, the best that can be had at so many pixels.
    """
    white, sets = torch.ones(1, 3, 1, 1), range(SETS)
    names = ("psnr", "seen_psnr", "blank_psnr", "gaussians", "chamfer", "true_chamfer")
    found: dict[str, list[float]] = {name: [] for name in names}
    for row in range(len(data)):
        cameras = [camera for k in sets for camera in cameras_of(data, row, k)]
        true = truth(data, row, white, sets)
        made = reconstruct(network, true.rgb[:VIEWS], cameras[:VIEWS])
        shown = drawn(made, cameras, white.flatten())
        pairs = list(zip(shown.rgb.permute(0, 2, 3, 1), true.rgb.permute(0, 2, 3, 1)))
        found["seen_psnr"] += [float(psnr(*pair)) for pair in pairs[:VIEWS]]
        found["psnr"] += [float(psnr(*pair)) for pair in pairs[VIEWS:]]
        found["blank_psnr"] += [float(psnr(torch.ones_like(wanted), wanted)) for _, wanted in pairs[VIEWS:]]
        found["gaussians"].append(float(len(made)))
        if row < len(objects):
            for name, seen in (("chamfer", shown), ("true_chamfer", true)):
                found[name].append(chamfer(surface_shown(seen, cameras), objects[row], seed=row))
    return {name: sum(values) / len(values) for name, values in found.items() if values}


def surface_shown(seen: Seen, cameras: Sequence[Camera]) -> Tensor:
    """[P, 3] points at the depth that pixels show, of those with an alpha from SOLID on."""
    points = []
    for camera, alpha, depth in zip(cameras, seen.alpha, seen.depth):
        solid = alpha >= SOLID
        origins, directions = camera.rays()
        z = depth[solid] / alpha[solid] + origin_depth(camera)
        points.append(origins[solid] + z[:, None] * directions[solid])
    return torch.cat(points)


def chamfer(points: Tensor, model: ObjectModel, *, seed: int) -> float:
    """Mean of both mean distances between points [P, 3] and the object's outer surface; without points, the origin."""
    surface = surface_points(model, SURFACE_POINTS, torch.Generator().manual_seed(seed)).points.cpu()
    apart = torch.cdist(points.cpu() if len(points) else torch.zeros(1, 3), surface)
    return 0.5 * float(apart.amin(0).mean() + apart.amin(1).mean())
