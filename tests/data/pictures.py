"""Pictures with a known answer: blobs at known pixels, whose centroids tell where a reader put them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIGMA = 3.0  # px; wide enough to survive JPEG and halving


def blobs(width: int, height: int, pixels: np.ndarray, sigma: float = SIGMA) -> np.ndarray:
    """[H, W, 3] uint8: a bright Gaussian spot at each of `pixels` [3, 2] in its own colour, or one white one [1, 2].

    Pixel centres at +0.5. Own colours, so that spots which overlap do not pull at each other's centroids.
    """
    y, x = np.mgrid[:height, :width] + 0.5
    spots = [np.exp(-((x - u) ** 2 + (y - v) ** 2) / (2 * sigma**2)) for u, v in pixels]
    return np.stack([np.rint(spot * 255).astype(np.uint8) for spot in (spots * 3)[:3]], axis=-1)


def centroid(picture: np.ndarray, near: tuple[float, float], radius: float, colour: int = 0) -> np.ndarray:
    """[2] intensity centroid of the spot of one colour around `near`, pixel centres at +0.5; NaN where it is dark."""
    weights = picture[..., colour].astype(np.float64)
    y, x = np.mgrid[: picture.shape[0], : picture.shape[1]] + 0.5
    weights = weights * (np.hypot(x - near[0], y - near[1]) < radius)
    total = weights.sum()
    return np.array([(x * weights).sum(), (y * weights).sum()]) / total if total else np.full(2, np.nan)


def noise(width: int, height: int, seed: int = 0, channels: int = 3, grain: int = 8) -> np.ndarray:
    """[H, W, C] uint8, smooth enough for JPEG, different everywhere; features of about `grain` px."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, size=(max(2, height // grain), max(2, width // grain), channels), dtype=np.uint8)
    planes = [
        np.asarray(Image.fromarray(coarse[..., c]).resize((width, height), Image.Resampling.BICUBIC))
        for c in range(channels)
    ]
    return np.stack(planes, axis=-1)


def save(path: Path, pixels: np.ndarray, **options: object) -> Path:
    """Write a picture, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)  # type: ignore[arg-type]
    return path


def poses(count: int, radius: float = 4.0) -> list[np.ndarray]:
    """OpenCV c2w [4, 4] on a ring around the origin, tilted, all different."""
    result = []
    for i in range(count):
        angle = 0.4 * i + 0.1
        eye = radius * np.array([np.cos(angle), np.sin(angle), 0.3 + 0.05 * i])
        forward = -eye / np.linalg.norm(eye)
        right = np.cross(forward, (0, 0, 1.0))
        right /= np.linalg.norm(right)
        c2w = np.eye(4)
        c2w[:3, :4] = np.stack([right, np.cross(forward, right), forward, eye], axis=1)
        result.append(c2w)
    return result


POINTS = np.array([[0.1, 0.2, 0.1], [-0.7, 0.3, 0.4], [0.5, -0.6, -0.2]])  # world; one for each colour


def in_camera(c2w: np.ndarray, points: np.ndarray = POINTS) -> np.ndarray:
    """World points [P, 3] in OpenCV camera axes."""
    return (np.linalg.inv(c2w) @ np.c_[points, np.ones(len(points))].T).T[:, :3]


def colmap_pixels(camera: Any, points: np.ndarray) -> np.ndarray:
    """Pixels [P, 2] of points [P, 3] in camera axes, by a pycolmap camera."""
    pixels = camera.img_from_cam(points)
    assert pixels is not None
    return pixels
