"""A capture in COLMAP's layout, for peers that read it."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data.captures import Capture, PointCloud

PINHOLE = 1  # COLMAP's number of the camera model


def write_project(folder: Path, capture: Capture, points: PointCloud) -> None:
    """images/ and sparse/0/*.bin with the training views, numbered from 1 in their order, and the points."""
    model = folder / "sparse" / "0"
    model.mkdir(parents=True)
    (folder / "images").mkdir()
    cameras, images = [], []
    for number, index in enumerate(capture.train, start=1):
        camera = capture.views[index].camera
        assert camera is not None
        name = f"{number:04d}.png"
        Image.fromarray(capture.photo(index).rgb.numpy()).save(folder / "images" / name)
        lens = [float(camera.K[row, column]) for row, column in ((0, 0), (1, 1), (0, 2), (1, 2))]
        cameras.append(struct.pack("<IiQQ4d", number, PINHOLE, camera.width, camera.height, *lens))
        pose = [*quaternion(camera.viewmat[:3, :3]), *camera.viewmat[:3, 3].tolist()]
        images.append(struct.pack("<I7dI", number, *pose, number) + name.encode() + b"\0" + struct.pack("<Q", 0))
    (model / "cameras.bin").write_bytes(struct.pack("<Q", len(cameras)) + b"".join(cameras))
    (model / "images.bin").write_bytes(struct.pack("<Q", len(images)) + b"".join(images))
    rows = np.zeros(
        len(points.xyz),
        dtype=[("id", "<u8"), ("xyz", "<f8", 3), ("rgb", "u1", 3), ("error", "<f8"), ("track", "<u8")],
    )
    rows["id"] = np.arange(1, len(rows) + 1)
    rows["xyz"], rows["rgb"] = points.xyz.numpy(), points.rgb.numpy()
    (model / "points3D.bin").write_bytes(struct.pack("<Q", len(rows)) + rows.tobytes())


def quaternion(rotation: Tensor) -> list[float]:
    """Unit quaternion wxyz of a rotation matrix [3, 3], by the largest eigenvalue (Bar-Itzhack, 2000)."""
    m = rotation.double()
    k = torch.zeros(4, 4, dtype=torch.float64)
    k[0, 0] = m.trace()
    k[1:, 1:] = m + m.T - m.trace() * torch.eye(3, dtype=torch.float64)
    k[0, 1:] = k[1:, 0] = torch.stack([m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]])
    return torch.linalg.eigh(k / 3).eigenvectors[:, -1].tolist()
