"""Camera paths for films: around the scene, in a spiral before it, along the photos, or from a file.

A path is a list of cameras, all of one image size. Where `up` and `focus` are not given they come from the cameras: the
mean of the images' upward directions, and the point nearest to all optical axes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scene.cameras import Camera, look_at
from scene.errors import InputError
from scene.untrusted import parse_json, read_bytes

MAX_FRAMES = 20_000
MAX_SIDE = 8192
MAX_FILE_BYTES = 64 << 20
FULL_TURN_GAP = math.radians(120)  # photos that leave a wider gap than this have not gone around the scene


@dataclass(frozen=True)
class Stage:
    """What the cameras stand around: a focus point, an up direction, and where the cameras are as seen from it.

    focus, up: [3].  azimuths: [C] radians about `up`.  distances, heights: [C], across and along `up` from the focus.
    """

    focus: Tensor
    up: Tensor
    azimuths: Tensor
    distances: Tensor
    heights: Tensor
    axes: Tensor  # [2, 3] directions of azimuth 0 and 90 degrees
    looking_in: bool  # most cameras have the focus before them


def stage_of(cameras: Sequence[Camera], *, up: Tensor | None = None, focus: Tensor | None = None) -> Stage:
    """Finds the stage that the cameras stand around. Raises InputError without cameras."""
    if not cameras:
        raise InputError("a camera path needs the cameras of at least one photo")
    c2w = torch.stack([camera.c2w for camera in cameras]).double().cpu()
    centers, forwards = c2w[:, :3, 3], c2w[:, :3, 2]
    up = _unit(-c2w[:, :3, 1].mean(0) if up is None else up.double().cpu(), fallback=-c2w[0, :3, 1])
    focus = nearest_to_axes(centers, forwards) if focus is None else focus.double().cpu()
    ahead = ((focus - centers) * forwards).sum(-1)
    horizontal = (centers - focus) - ((centers - focus) @ up)[:, None] * up
    first = _unit(horizontal[0], fallback=_any_perpendicular(up))
    axes = torch.stack([first, torch.linalg.cross(up, first)])
    azimuths = torch.atan2(horizontal @ axes[1], horizontal @ axes[0])
    inwards = bool((ahead > 0).double().mean() > 0.6)
    return Stage(focus, up, azimuths, horizontal.norm(dim=-1), (centers - focus) @ up, axes, inwards)


def nearest_to_axes(centers: Tensor, forwards: Tensor) -> Tensor:
    """The point [3] with the least squared distance to the lines centers + t forwards, both [C, 3].

    Almost parallel axes meet nowhere in particular: there a weak pull keeps the point ahead of the cameras, at the
    distance that they spread over.
    """
    projector = torch.eye(3, dtype=centers.dtype) - forwards[:, :, None] * forwards[:, None, :]
    spread = (centers - centers.mean(0)).norm(dim=-1).mean().clamp_min(1e-6)
    guess = centers.mean(0) + _unit(forwards.mean(0), fallback=forwards[0]) * 2 * spread
    pull = 1e-3 * torch.eye(3, dtype=centers.dtype)
    return torch.linalg.solve(projector.mean(0) + pull, (projector @ centers[:, :, None]).mean(0)[:, 0] + pull @ guess)


def automatic(
    cameras: Sequence[Camera], frames: int, *, up: Tensor | None = None, ordered: bool = True
) -> list[Camera]:
    """The path that suits the photos: an orbit where they look at something, else along them."""
    if stage_of(cameras, up=up).looking_in:
        return orbit(cameras, frames, up=up)
    return along(cameras, frames, ordered=ordered)


def orbit(
    cameras: Sequence[Camera], frames: int, *, up: Tensor | None = None, focus: Tensor | None = None
) -> list[Camera]:
    """A turn around the scene at the photos' median distance and height.

    Where the photos leave a wide gap the path swings to and fro over the arc they cover: behind it nothing was seen.
    """
    _check_frames(frames)
    stage = stage_of(cameras, up=up, focus=focus)
    distance = float(stage.distances.median().clamp_min(1e-3 * stage.heights.abs().max() + 1e-9))
    height = float(stage.heights.median())
    start, length = covered_arc(stage.azimuths)
    share = torch.arange(frames, dtype=torch.float64) / frames
    if 2 * math.pi - length < FULL_TURN_GAP:
        azimuths = 2 * math.pi * share  # from the first photo's side
    else:
        azimuths = start + length / 2 + 0.45 * length * torch.sin(2 * math.pi * share)
    poses = []
    for azimuth in azimuths.tolist():
        out = math.cos(azimuth) * stage.axes[0] + math.sin(azimuth) * stage.axes[1]
        eye = stage.focus + distance * out + height * stage.up
        poses.append(look_at(eye, stage.focus, stage.up))
    return _cameras(poses, _typical(cameras))


def spiral(
    cameras: Sequence[Camera], frames: int, *, up: Tensor | None = None, focus: Tensor | None = None, turns: int = 2
) -> list[Camera]:
    """Loops around the middle photo's place, looking at the focus: shows depth without leaving what was seen.

    The loops are as wide as the photos spread, at most a quarter of the distance to the focus; a closed path.
    """
    _check_frames(frames)
    stage = stage_of(cameras, up=up, focus=focus)
    c2w = torch.stack([camera.c2w for camera in cameras]).double().cpu()
    middle = c2w[int((c2w[:, :3, 3] - c2w[:, :3, 3].mean(0)).norm(dim=-1).argmin())]
    distance = float((stage.focus - middle[:3, 3]).norm().clamp_min(1e-9))
    offsets = ((c2w[:, :3, 3] - middle[:3, 3]) @ middle[:3, :3]).abs()
    reach = torch.quantile(offsets, 0.8, dim=0)
    # A single photo has no spread to take the width from: a twentieth of the distance shows some depth.
    reach = torch.where(reach.max() > 1e-6 * distance, reach, torch.full_like(reach, 0.05 * distance))
    reach = reach.clamp(max=0.25 * distance)
    target = middle[:3, 3] + middle[:3, 2] * distance if not stage.looking_in else stage.focus
    poses = []
    for i in range(frames):
        turn = 2 * math.pi * turns * i / frames
        local = torch.tensor([math.cos(turn), -math.sin(turn), math.sin(turn / 2)], dtype=torch.float64) * reach
        poses.append(look_at(middle[:3, 3] + middle[:3, :3] @ local, target, -middle[:3, 1]))
    return _cameras(poses, _typical(cameras))


def along(cameras: Sequence[Camera], frames: int, *, ordered: bool = True) -> list[Camera]:
    """A smooth flight through the photos' own poses, at an even speed, from the first to the last.

    ordered: the photos' order is the way they were taken; else each next one is the nearest not yet visited.
    """
    _check_frames(frames)
    if not cameras:
        raise InputError("a camera path needs the cameras of at least one photo")
    c2w = torch.stack([camera.c2w for camera in cameras]).double().cpu()
    if not ordered:
        c2w = c2w[_greedy_tour(c2w)]
    times = _even_times(c2w, frames)
    return _cameras([_interpolated(c2w, time) for time in times], _typical(cameras))


def from_file(path: Path, *, typical: Camera | None = None) -> list[Camera]:
    """Reads a path from JSON: {"width", "height", "fov_y" (degrees) or "K", "frames": [pose, ...]}.

    A pose is {"c2w": 4x4 OpenCV} or {"eye", "target", "up" (optional)}, and may have its own "fov_y" or "K". Image size
    and lens may be left out where `typical` gives them. Raises InputError naming what is wrong.
    """
    content = parse_json(read_bytes(path, MAX_FILE_BYTES), path, unique=True)
    poses = content.get("frames") if isinstance(content, dict) else None
    if not isinstance(poses, list) or not 1 <= len(poses) <= MAX_FRAMES:
        raise InputError(f'{path} needs "frames", a list of 1 to {MAX_FRAMES} poses')
    width = _whole(content, "width", typical.width if typical else None, path)
    height = _whole(content, "height", typical.height if typical else None, path)
    cameras = []
    for i, pose in enumerate(poses):
        where = f"{path}, frame {i}"
        if not isinstance(pose, dict):
            raise InputError(f"{where}: expected an object with c2w, or eye and target")
        lens = {**{key: content[key] for key in ("K", "fov_y") if key in content}, **pose}
        if "K" in pose or "fov_y" in pose:  # a frame's own lens replaces the file's, whichever way it is written
            lens = pose
        cameras.append(Camera(_lens(lens, width, height, typical, where), _pose(pose, where), width, height))
    return cameras


def covered_arc(azimuths: Tensor) -> tuple[float, float]:
    """Start and length, in radians, of the shortest arc that holds all azimuths [C]; (a, 0) for a single one."""
    ordered = azimuths.remainder(2 * math.pi).sort().values
    gaps = torch.cat([ordered[1:] - ordered[:-1], ordered[:1] + 2 * math.pi - ordered[-1:]])
    widest = int(gaps.argmax())
    return float(ordered[(widest + 1) % len(ordered)]), 2 * math.pi - float(gaps[widest])


def _check_frames(frames: int) -> None:
    if not 1 <= frames <= MAX_FRAMES:
        raise InputError(f"a camera path has 1 to {MAX_FRAMES} frames, not {frames}")


def _typical(cameras: Sequence[Camera]) -> Camera:
    """The camera whose size is the most common one, and of those the one with the middle focal length."""
    sizes = [(camera.width, camera.height) for camera in cameras]
    size = max(sorted(set(sizes)), key=sizes.count)
    same = sorted((c for c in cameras if (c.width, c.height) == size), key=lambda camera: float(camera.K[0, 0]))
    return same[len(same) // 2]


def _cameras(poses: Sequence[Tensor], typical: Camera) -> list[Camera]:
    return [Camera(typical.K, pose.to(typical.c2w), typical.width, typical.height) for pose in poses]


def _unit(vector: Tensor, *, fallback: Tensor) -> Tensor:
    length = float(vector.norm())
    return vector / length if length > 1e-9 else fallback / fallback.norm()


def _any_perpendicular(vector: Tensor) -> Tensor:
    axis = torch.zeros(3, dtype=vector.dtype)
    axis[int(vector.abs().argmin())] = 1.0
    return torch.linalg.cross(vector, axis)


def _greedy_tour(c2w: Tensor) -> Tensor:
    """Order of the poses [C, 4, 4] that starts at an end and always goes on to the nearest pose left."""
    centers = c2w[:, :3, 3]
    current = int((centers - centers.mean(0)).norm(dim=-1).argmax())
    left = torch.ones(len(c2w), dtype=torch.bool)
    order = []
    for _ in range(len(c2w)):
        order.append(current)
        left[current] = False
        distances = (centers - centers[current]).norm(dim=-1).masked_fill(~left, math.inf)
        current = int(distances.argmin())
    return torch.tensor(order)


def _even_times(c2w: Tensor, frames: int) -> list[float]:
    """Times (0 = first pose, C-1 = last) at which an even speed passes; turning counts as moving.

    A radian of turn weighs as the mean step between poses, so that a camera on a tripod still turns evenly.
    """
    count = len(c2w)
    if count == 1 or frames == 1:
        return [0.0] * frames
    dense = torch.linspace(0, count - 1, 16 * (count - 1) + 1, dtype=torch.float64)
    poses = torch.stack([_interpolated(c2w, float(time)) for time in dense])
    moved = (poses[1:, :3, 3] - poses[:-1, :3, 3]).norm(dim=-1)
    cosine = ((poses[1:, :3, :3] * poses[:-1, :3, :3]).sum((-1, -2)) - 1) / 2
    turned = torch.acos(cosine.clamp(-1, 1))
    scale = float(moved.sum() / (count - 1)) or 1.0
    length = torch.cat([torch.zeros(1, dtype=torch.float64), (moved / scale + turned + 1e-9).cumsum(0)])
    wanted = torch.linspace(0, float(length[-1]), frames, dtype=torch.float64)
    right = torch.searchsorted(length, wanted).clamp(1, len(length) - 1)
    share = (wanted - length[right - 1]) / (length[right] - length[right - 1])
    return (dense[right - 1] + share.clamp(0, 1) * (dense[right] - dense[right - 1])).tolist()


def _interpolated(c2w: Tensor, time: float) -> Tensor:
    """Pose between poses: Catmull-Rom through the centres, the shortest turn between the rotations."""
    last = len(c2w) - 1
    i = min(int(time), max(0, last - 1))
    t = time - i
    before, start, end, after = (c2w[min(max(k, 0), last)] for k in (i - 1, i, i + 1, i + 2))
    p0, p1, p2, p3 = (pose[:3, 3] for pose in (before, start, end, after))
    center = 0.5 * (
        2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2 + (3 * p1 - p0 - 3 * p2 + p3) * t**3
    )
    pose = torch.eye(4, dtype=c2w.dtype)
    pose[:3, :3] = start[:3, :3] @ _partial_turn(start[:3, :3].T @ end[:3, :3], t)
    pose[:3, 3] = center
    return pose


def _partial_turn(rotation: Tensor, share: float) -> Tensor:
    """The rotation [3, 3] by `share` of the angle about the same axis (Rodrigues)."""
    angle = math.acos(max(-1.0, min(1.0, (float(rotation.trace()) - 1) / 2)))
    if angle < 1e-9:
        return torch.eye(3, dtype=rotation.dtype)
    if angle > math.pi - 1e-4:  # the antisymmetric part vanishes at half a turn: the axis comes from R + R^T
        outer = (rotation + rotation.T) / 2 + torch.eye(3, dtype=rotation.dtype)
        axis = _unit(outer[int(outer.diagonal().argmax())], fallback=outer[0])
    else:
        skew = (rotation - rotation.T) / (2 * math.sin(angle))
        axis = torch.stack([skew[2, 1], skew[0, 2], skew[1, 0]])
    x, y, z = axis.tolist()
    cross = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=rotation.dtype)
    turned = share * angle
    return torch.eye(3, dtype=rotation.dtype) + math.sin(turned) * cross + (1 - math.cos(turned)) * cross @ cross


def _whole(content: dict[str, Any], key: str, default: int | None, path: Path) -> int:
    value = content.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_SIDE:
        raise InputError(f'{path} needs "{key}", a whole number of pixels from 1 to {MAX_SIDE}, got {value!r}')
    return value


def _numbers(value: Any, shape: tuple[int, ...], what: str, where: str) -> Tensor:
    """A finite float64 tensor of the given shape from JSON lists."""
    try:
        numbers = torch.tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        numbers = torch.empty(0)
    if tuple(numbers.shape) != shape or not bool(torch.isfinite(numbers).all()):
        raise InputError(f"{where}: {what} must be {' x '.join(map(str, shape))} finite numbers")
    return numbers


def _lens(content: dict[str, Any], width: int, height: int, typical: Camera | None, where: str) -> Tensor:
    if "K" in content:
        K = _numbers(content["K"], (3, 3), "K", where)
        if float(K[0, 0]) <= 0 or float(K[1, 1]) <= 0:
            raise InputError(f"{where}: the focal lengths in K must be positive")
        return K.float()
    if "fov_y" in content:
        fov = float(_numbers(content["fov_y"], (), "fov_y", where))
        if not 0 < fov < 180:
            raise InputError(f"{where}: fov_y must lie between 0 and 180 degrees, got {fov}")
        focal = 0.5 * height / math.tan(math.radians(fov) / 2)
        return torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    if typical is None:
        raise InputError(f'{where}: give "fov_y" in degrees or "K"')
    return typical.resized(width, height).K.float()


def _pose(content: dict[str, Any], where: str) -> Tensor:
    if "c2w" in content:
        c2w = _numbers(content["c2w"], (4, 4), "c2w", where)
        rotation = c2w[:3, :3]
        error = (rotation @ rotation.T - torch.eye(3, dtype=torch.float64)).abs().max()
        if float(error) > 1e-3 or float(torch.linalg.det(rotation)) < 0:
            raise InputError(f"{where}: the upper left 3 x 3 of c2w must be a rotation")
        return c2w.float()
    if "eye" not in content or "target" not in content:
        raise InputError(f'{where}: expected "c2w", or "eye" and "target"')
    eye, target, up = (
        _numbers(content.get(key, default), (3,), key, where)
        for key, default in (("eye", None), ("target", None), ("up", [0.0, 0.0, 1.0]))
    )
    try:
        return look_at(eye, target, up).float()
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error
