"""A capture small enough to reconstruct in seconds: a chequered ball before nothing, in the Blender layout."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from scene.cameras import Camera, look_at

RADIUS = 0.6
FOV_X = 0.7
SIZE = 48
GL_FROM_CV = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64))


def tiny_camera(azimuth: float, height: float, size: int = SIZE) -> Camera:
    eye = torch.tensor([2.5 * math.cos(azimuth), 2.5 * math.sin(azimuth), height], dtype=torch.float64)
    focal = 0.5 * size / math.tan(FOV_X / 2)
    K = torch.tensor([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]], dtype=torch.float64)
    up = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    return Camera(K, look_at(eye, torch.zeros(3, dtype=torch.float64), up), size, size)


def ball_picture(camera: Camera) -> Tensor:
    """[H, W, 4] straight-alpha uint8 picture of the ball, by intersecting rays with the sphere."""
    origins, directions = camera.rays()
    directions = directions / directions.norm(dim=-1, keepdim=True)
    along = -(origins * directions).sum(-1)
    missed = RADIUS**2 - (origins.square().sum(-1) - along**2)
    hit = missed > 0
    points = origins + (along - missed.clamp_min(0).sqrt())[..., None] * directions
    squares = ((points * 5).floor().long().sum(-1) % 2).double()[..., None]
    color = squares * torch.tensor([0.9, 0.5, 0.2]) + (1 - squares) * torch.tensor([0.1, 0.3, 0.6])
    shaded = color * (0.6 + 0.4 * (points / RADIUS)[..., 2:])
    return (torch.cat([shaded, hit.double()[..., None]], dim=-1).clamp(0, 1) * 255).round().to(torch.uint8)


def write_tiny(folder: Path, train: int = 16, held_out: int = 3, size: int = SIZE) -> Path:
    """Write the capture and return its folder."""
    for split, count, turn in (("train", train, 0.0), ("test", held_out, 0.2)):
        frames = []
        (folder / split).mkdir(parents=True)
        for i in range(count):
            camera = tiny_camera(turn + 2 * math.pi * i / count, 1.2 * math.sin(2.4 * i), size)
            Image.fromarray(ball_picture(camera).numpy()).save(folder / split / f"r_{i}.png")
            matrix = (camera.c2w @ GL_FROM_CV).tolist()
            frames.append({"file_path": f"./{split}/r_{i}", "transform_matrix": matrix})
        content = {"camera_angle_x": FOV_X, "frames": frames}
        (folder / f"transforms_{split}.json").write_text(json.dumps(content))
    return folder
