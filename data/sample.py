"""The embedded sample: photos of a still life, with the true cameras and the true surface to judge a reconstruction by.

Protocol for the Chamfer distance. A reconstruction from photos has a frame of its own, so it is first moved onto the
truth by a similarity fitted to the camera centres alone; the surfaces are never fitted to each other. Both surfaces are
then sampled and cut to `SampleTruth.box`: the still life and the cloth under it, which all cameras look at. Beyond the
box lie the table's far parts and the room, seen at a grazing angle or from few cameras, which nobody photographs the
scene for. The true surface holds only what two cameras or more see: no underside, nothing inside an object.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from scene.cameras import Camera

_FOLDER = Path(__file__).parent / "assets" / "still_life"


@dataclass(frozen=True)
class SampleTruth:
    """What the sample's photos show. Metres, z up."""

    mesh: Path  # binary PLY, no colours
    cameras: dict[str, Camera]  # by file name; float64
    exposure_stops: dict[str, float]  # how much brighter than the middle exposure, in powers of two
    box: Tensor  # [2, 3] lowest and highest corner of what is judged
    up: Tensor  # [3]


@dataclass(frozen=True)
class Similarity:
    """x -> scale * rotation @ x + translation."""

    scale: float
    rotation: Tensor  # [3, 3]
    translation: Tensor  # [3]

    def points(self, points: Tensor) -> Tensor:
        """Moved points [..., 3], in their own dtype."""
        moved = self.scale * points.to(self.rotation.dtype) @ self.rotation.T + self.translation
        return moved.to(points.dtype)

    def camera(self, camera: Camera) -> Camera:
        """The camera that sees in the moved world what `camera` sees in its own."""
        c2w = camera.c2w.clone()
        c2w[:3, :3] = self.rotation.to(c2w.dtype) @ camera.c2w[:3, :3]
        c2w[:3, 3] = self.points(camera.center)
        return replace(camera, c2w=c2w)


@dataclass(frozen=True)
class Alignment:
    """A similarity onto the truth and how well the cameras agree after it."""

    similarity: Similarity
    views: int
    position_error: float  # root mean square over cameras, metres
    rotation_error: float  # mean over cameras, degrees


def sample_photos() -> Path:
    """The folder of the sample's JPEGs."""
    return _FOLDER / "images"


def sample_truth() -> SampleTruth:
    """The true surface, cameras and exposures of the sample."""
    content = json.loads((_FOLDER / "truth_cameras.json").read_text(encoding="utf-8"))
    K = torch.tensor(content["K"], dtype=torch.float64)
    size = content["width"], content["height"]
    views = content["views"]
    return SampleTruth(
        mesh=_FOLDER / "truth.ply",
        cameras={
            name: Camera(K, torch.tensor(view["c2w"], dtype=torch.float64), *size) for name, view in views.items()
        },
        exposure_stops={name: float(view["exposure_stops"]) for name, view in views.items()},
        box=torch.tensor(content["box"], dtype=torch.float64),
        up=torch.tensor(content["up"], dtype=torch.float64),
    )


def similarity_between(source: Tensor, target: Tensor) -> Similarity:
    """The similarity that brings source [P, 3] closest to target [P, 3] in the least-squares sense, in float64.

    Source: Umeyama (1991), eq. 40-43.  Raises ValueError for fewer than three points, for shapes that differ, for
    numbers that are not finite and for points on a line, about which a turn stays free.
    """
    if source.ndim != 2 or source.shape[1:] != (3,) or source.shape != target.shape or len(source) < 3:
        raise ValueError(
            f"expected two [P, 3] of 3 points or more, got {tuple(source.shape)} and {tuple(target.shape)}"
        )
    a, b = source.to(torch.float64), target.to(torch.float64)
    if not bool(a.isfinite().all() and b.isfinite().all()):
        raise ValueError("points to align must be finite")
    a_mean, b_mean = a.mean(0), b.mean(0)
    a, b = a - a_mean, b - b_mean
    for points in (a, b):
        spread = torch.linalg.svdvals(points)
        if spread[1] <= 1e-6 * spread[0] or spread[0] == 0:
            raise ValueError("points to align lie on a line or in one place: a turn about it stays free")
    u, singular, vt = torch.linalg.svd(b.T @ a)
    sign = torch.ones(3, dtype=torch.float64)
    sign[2] = torch.sign(torch.linalg.det(u) * torch.linalg.det(vt))  # a rotation, never a mirror image
    rotation = u @ torch.diag(sign) @ vt
    scale = float((singular * sign).sum() / a.square().sum())
    return Similarity(scale, rotation, b_mean - scale * rotation @ a_mean)


def align_cameras(estimated: Mapping[str, Camera], true: Mapping[str, Camera]) -> Alignment:
    """The similarity from the frame of estimated cameras to that of the true ones, by the centres of those in both.

    Raises ValueError as `similarity_between` does.
    """
    names = sorted(set(estimated) & set(true))
    if len(names) < 3:
        raise ValueError(f"expected 3 cameras or more that have a true one of the same name, got {len(names)}")
    centers = torch.stack([estimated[name].center.to(torch.float64).cpu() for name in names])
    goals = torch.stack([true[name].center.to(torch.float64).cpu() for name in names])
    similarity = similarity_between(centers, goals)
    apart = (similarity.points(centers) - goals).square().sum(1).mean().sqrt()
    angles = []
    for name in names:
        turned = similarity.rotation @ estimated[name].c2w[:3, :3].to(torch.float64).cpu()
        difference = turned.T @ true[name].c2w[:3, :3].to(torch.float64).cpu()
        # By the sine for small angles: the cosine alone loses all digits there.
        sine = 0.5 * torch.linalg.matrix_norm(difference - difference.T) / 2**0.5
        angles.append(torch.atan2(sine, 0.5 * (difference.trace() - 1)))
    return Alignment(similarity, len(names), float(apart), float(torch.stack(angles).mean().rad2deg()))


def inside_box(points: Tensor, box: Tensor) -> Tensor:
    """[P] which of the points [P, 3] lie in the box [2, 3]; to cut surface samples before a Chamfer distance."""
    low, high = box.to(points)
    return ((points >= low) & (points <= high)).all(dim=1)
