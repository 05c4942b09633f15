"""Photos of the corner of a room by ray casting: three textured planes, cameras known exactly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from scene.cameras import Camera, look_at

FOCAL, WIDTH, HEIGHT = 300.0, 320, 240
_SIDE = 6.0  # the room: x, y and z from 0 to 6


def corner_cameras(count: int = 8, *, degrees: float = 60.0, spot: bool = False) -> list[Camera]:
    """Cameras on an arc around the corner, level, looking down a little; all on one `spot` if asked."""
    K = torch.tensor([[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1]], dtype=torch.float64)
    up = torch.tensor([0.0, 0, 1], dtype=torch.float64)
    cameras = []
    for i in range(count):
        angle = np.radians(45 + degrees * (i / max(count - 1, 1) - 0.5))
        place = 4.5 * np.array([np.cos(angle), np.sin(angle), 0.0]) + (0, 0, 2.2 + 0.5 * np.sin(2.1 * i))
        target = np.array([0.8, 0.8, 1.0])
        if spot:
            target, place = np.array([0.0, 0.0, 1.0]) + 3 * (place - (3.2, 3.2, 2.0)) / 4, np.array([3.2, 3.2, 2.0])
        c2w = look_at(torch.from_numpy(place), torch.from_numpy(target), up)
        cameras.append(Camera(K, c2w, WIDTH, HEIGHT))
    return cameras


def _texture(seed: int) -> np.ndarray:
    """A [1024, 1024, 3] picture with detail of all sizes, so that features are found from near and far."""
    import cv2

    random = np.random.default_rng(seed)
    picture = np.zeros((1024, 1024, 3), np.float32)
    for cells in (16, 32, 64, 128, 256):
        noise = random.normal(size=(cells, cells, 3)).astype(np.float32)
        picture += cv2.resize(noise, (1024, 1024), interpolation=cv2.INTER_CUBIC)
    return np.clip(128 + 38 * picture, 0, 255)


def render_corner(camera: Camera) -> np.ndarray:
    """The photo [H, W, 3] uint8 a camera takes, four samples per pixel."""
    import cv2

    fine = camera.scaled(2)
    origins, directions = (rays.numpy() for rays in fine.rays())
    origin = origins[0, 0]
    picture = np.zeros((*directions.shape[:2], 3), np.float32)
    nearest = np.full(directions.shape[:2], np.inf)
    for axis in range(3):
        with np.errstate(divide="ignore"):
            depth = -origin[axis] / directions[..., axis]
        hit = origin + depth[..., None] * directions
        u, v = (np.delete(hit, axis, axis=2) / _SIDE * 1023).transpose(2, 0, 1).astype(np.float32)
        colors = cv2.remap(_texture(axis), u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
        closer = (depth > 0) & (depth < nearest)
        nearest = np.where(closer, depth, nearest)
        picture[closer] = colors[closer]
    small = cv2.resize(picture, (camera.width, camera.height), interpolation=cv2.INTER_AREA)
    return np.clip(small + np.random.default_rng(7).normal(0, 1.5, small.shape), 0, 255).astype(np.uint8)


def write_photos(folder: Path, photos: list[np.ndarray]) -> Path:
    """Photos as PNG files `view 00.png` on; the space is on purpose."""
    import cv2

    folder.mkdir(parents=True, exist_ok=True)
    for i, photo in enumerate(photos):
        cv2.imwrite(str(folder / f"view {i:02d}.png"), photo[..., ::-1])
    return folder


def pose_errors(estimated: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Degrees and distances between poses [N, 4, 4] after the best similarity (Umeyama) of the camera centres.

    Distances are in the unit of `true`.
    """
    a, b = estimated[:, :3, 3], true[:, :3, 3]
    ca, cb = a - a.mean(0), b - b.mean(0)
    u, s, vt = np.linalg.svd(cb.T @ ca)
    flip = np.diag([1, 1, np.sign(np.linalg.det(u @ vt))])
    R = u @ flip @ vt
    scale = (s * flip.diagonal()).sum() / (ca**2).sum()
    distances = np.linalg.norm(scale * ca @ R.T - cb, axis=1)
    turns = R @ estimated[:, :3, :3] @ true[:, :3, :3].transpose(0, 2, 1)
    cosines = (np.trace(turns, axis1=1, axis2=2) - 1) / 2
    return np.degrees(np.arccos(np.clip(cosines, -1, 1))), distances
