"""Points from known cameras: they lie where the rays meet, and on the surface of a scene with a known answer."""

from __future__ import annotations

import math

import numpy as np
import torch

from data.captures import MemoryPicture, capture_of_pictures
from recon.posed_points import MIN_ANGLE, points_from_poses, triangulate
from scene.cameras import Camera, look_at


def camera(x: float, y: float) -> Camera:
    K = torch.tensor([[300.0, 0.0, 160.0], [0.0, 300.0, 120.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    eye, up = torch.tensor([x, y, 0.5], dtype=torch.float64), torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    return Camera(K, look_at(eye, torch.zeros(3, dtype=torch.float64), up), 320, 240)


def test_rays_that_meet_give_the_point_and_the_angle_between_them() -> None:
    first, second = camera(3, 0), camera(2.8, 0.9)
    points = 0.4 * torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found, angles = triangulate(first, second, first.project(points)[0], second.project(points)[0])
    torch.testing.assert_close(found, points, rtol=0, atol=1e-9)
    rays = [torch.nn.functional.normalize(points - c.center, dim=1) for c in (first, second)]
    torch.testing.assert_close(angles, torch.arccos((rays[0] * rays[1]).sum(1)), rtol=0, atol=1e-9)


def test_points_behind_or_off_their_pixel_have_no_angle() -> None:
    first, second = camera(3, 0), camera(2.8, 0.9)
    behind = torch.tensor([[6.0, 0.5, 0.5]], dtype=torch.float64)
    at = torch.zeros(1, 3, dtype=torch.float64)
    x, y = first.project(at)[0], second.project(at)[0]
    assert float(triangulate(first, second, first.project(behind)[0], second.project(behind)[0])[1]) == 0
    assert float(triangulate(first, second, x, y + torch.tensor([[0.0, 8.0]]))[1]) == 0  # off the epipolar line
    assert float(triangulate(first, first, x, x)[1]) < MIN_ANGLE  # one eye sees no depth


def plane_picture(view: Camera) -> MemoryPicture:
    """What `view` sees of the plane z = 0 with a texture of smooth noise, by intersecting rays."""
    origins, directions = view.rays()
    ground = (origins - origins[..., 2:] / directions[..., 2:] * directions)[..., :2]
    noise = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    rgb = torch.nn.functional.grid_sample(noise, ground[None] / 1.5, mode="bicubic", align_corners=False)[0]
    return MemoryPicture((rgb.permute(1, 2, 0).clamp(0, 1) * 255).round().to(torch.uint8).numpy())


def test_points_of_a_textured_plane_lie_on_the_plane() -> None:
    views = [camera(math.cos(0.25 * turn), math.sin(0.25 * turn)) for turn in range(5)]
    pictures = {f"{number}.png": (plane_picture(view), view) for number, view in enumerate(views)}
    with capture_of_pictures("plane", pictures, holdout=0) as capture:
        cloud = points_from_poses(capture)
    assert len(cloud.xyz) == len(cloud.rgb) >= 200
    assert float(cloud.xyz[:, 2].abs().median()) < 0.005  # 0.3 px at a distance of 1.1 and 0.25 rad between views
    assert float((cloud.xyz[:, 2].abs() < 0.03).float().mean()) > 0.95
    assert cloud.rgb.dtype == torch.uint8


def test_views_without_texture_give_no_points() -> None:
    grey = MemoryPicture(np.full((240, 320, 3), 128, dtype=np.uint8))
    with capture_of_pictures("grey", {"a": (grey, camera(1, 0)), "b": (grey, camera(1, 0.2))}, holdout=0) as capture:
        assert len(points_from_poses(capture).xyz) == 0
