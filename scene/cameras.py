"""Pinhole cameras and the conventions everything else follows.

Frames: OpenCV camera axes (x right, y down, z forward); pixel centres at +0.5, so the top-left pixel is sampled at
(0.5, 0.5); `c2w` maps camera to world, `viewmat` is its inverse. Readers convert on load, exporters on save, nothing
in between does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Camera:
    """A pinhole camera with an image size.

    K: [3, 3] px, centres at +0.5; zero skew.  c2w: [4, 4] rigid, world from camera.  Both share dtype and device.
    """

    K: Tensor
    c2w: Tensor
    width: int
    height: int

    def __post_init__(self) -> None:
        if tuple(self.K.shape) != (3, 3) or tuple(self.c2w.shape) != (4, 4):
            raise ValueError(f"K must be [3, 3] and c2w [4, 4], got {tuple(self.K.shape)} and {tuple(self.c2w.shape)}")
        if self.width < 1 or self.height < 1:
            raise ValueError(f"image size must be positive, got {self.width} x {self.height}")

    @property
    def viewmat(self) -> Tensor:
        """[4, 4] camera from world, by the rigid inverse."""
        rotation, centre = self.c2w[:3, :3], self.c2w[:3, 3]
        top = torch.cat([rotation.T, -(rotation.T @ centre)[:, None]], dim=1)
        return torch.cat([top, self.c2w.new_tensor([[0.0, 0.0, 0.0, 1.0]])])

    @property
    def center(self) -> Tensor:
        """[3] centre of projection in the world."""
        return self.c2w[:3, 3]

    @property
    def forward(self) -> Tensor:
        """[3] unit viewing direction in the world."""
        return self.c2w[:3, 2]

    @property
    def fov_x(self) -> float:
        """Horizontal field of view in radians."""
        return 2 * math.atan(0.5 * self.width / float(self.K[0, 0]))

    @property
    def fov_y(self) -> float:
        """Vertical field of view in radians."""
        return 2 * math.atan(0.5 * self.height / float(self.K[1, 1]))

    def resized(self, width: int, height: int) -> Camera:
        """The same view over an image of another size: K follows each axis' true ratio, so nothing shifts."""
        K = self.K.clone()
        K[0] *= width / self.width
        K[1] *= height / self.height
        return replace(self, K=K, width=width, height=height)

    def scaled(self, factor: float) -> Camera:
        """The same view over an image `factor` times as large, sizes rounded as `scaled_size` does."""
        return self.resized(*scaled_size(self.width, self.height, factor))

    def to(self, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Camera:
        """The same camera on another device or in another float type."""
        return replace(self, K=self.K.to(device=device, dtype=dtype), c2w=self.c2w.to(device=device, dtype=dtype))

    def rays(self) -> tuple[Tensor, Tensor]:
        """Ray origins and directions through all pixel centres, each [H, W, 3] in the world.

        Directions are not normalised: the camera-z of each is 1, so that `origin + depth * direction` is the point at
        that z-depth.
        """
        v, u = torch.meshgrid(
            torch.arange(self.height, device=self.K.device, dtype=self.K.dtype) + 0.5,
            torch.arange(self.width, device=self.K.device, dtype=self.K.dtype) + 0.5,
            indexing="ij",
        )
        x = (u - self.K[0, 2]) / self.K[0, 0]
        y = (v - self.K[1, 2]) / self.K[1, 1]
        directions = torch.stack([x, y, torch.ones_like(x)], dim=-1) @ self.c2w[:3, :3].T
        return self.center.expand_as(directions), directions

    def project(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """World points [P, 3] to pixels [P, 2] and z-depths [P]; pixels mean nothing where the depth is <= 0."""
        in_camera = (points - self.center) @ self.c2w[:3, :3]
        depths = in_camera[:, 2]
        return in_camera[:, :2] / depths[:, None] * self.K.diagonal()[:2] + self.K[:2, 2], depths


def scaled_size(width: int, height: int, factor: float) -> tuple[int, int]:
    """Image size after scaling: rounded to whole pixels, at least one."""
    return max(1, round(width * factor)), max(1, round(height * factor))


def look_at(eye: Tensor, target: Tensor, up: Tensor) -> Tensor:
    """c2w [4, 4] of a camera at `eye` that sees `target` in its centre, with `up` upwards in the image.

    eye, target, up: [3].  Raises ValueError when the viewing direction is parallel to `up` or has no length.
    """
    forward = target - eye
    right = torch.linalg.cross(forward, up)
    if float(right.norm()) < 1e-9 * max(1.0, float(forward.norm() * up.norm())):
        raise ValueError("look_at needs a target away from the eye and a direction not parallel to up")
    forward = forward / forward.norm()
    right = right / right.norm()
    down = torch.linalg.cross(forward, right)
    c2w = torch.eye(4, dtype=eye.dtype, device=eye.device)
    c2w[:3, :4] = torch.stack([right, down, forward, eye], dim=1)
    return c2w
