"""Exact depth images of known solids fused to meshes."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh
from torch import Tensor

from scene.cameras import Camera, look_at
from scene.depth_fusion import DepthFrame, colors_from_frames, fuse_depths, judge
from scene.errors import InputError, ResourceError
from scene.mesh import Mesh, clean, face_components
from scene.mesh_distance import Box, chamfer

Ball = tuple[tuple[float, float, float], float]  # centre, radius


def around(count: int, *, radius: float = 3.0, size: tuple[int, int] = (160, 120)) -> list[Camera]:
    """Cameras spread evenly over a sphere (Fibonacci), looking at the origin."""
    width, height = size
    K = torch.tensor([[1.1 * width, 0, width / 2], [0, 1.1 * width, height / 2], [0, 0, 1]], dtype=torch.float64)
    cameras = []
    for i in range(count):
        z, turn = 1 - 2 * (i + 0.5) / count, i * math.pi * (3 - math.sqrt(5))
        flat = math.sqrt(1 - z * z)
        eye = radius * torch.tensor([flat * math.cos(turn), flat * math.sin(turn), z], dtype=torch.float64)
        up = torch.tensor([0.1, 0.2, 1.0], dtype=torch.float64)
        cameras.append(Camera(K, look_at(eye, torch.zeros(3, dtype=torch.float64), up), width, height))
    return cameras


def depth_of(camera: Camera, balls: list[Ball]) -> Tensor:
    """Exact z-depth [H, W] of the nearest ball, 0 where there is none."""
    origins, rays = camera.rays()
    nearest = torch.full(rays.shape[:2], torch.inf, dtype=torch.float64)
    for centre, radius in balls:
        away = origins - torch.tensor(centre, dtype=torch.float64)
        a, b, c = (rays * rays).sum(-1), (away * rays).sum(-1), (away * away).sum(-1) - radius**2
        inside = b * b - a * c
        nearest = torch.minimum(nearest, torch.where(inside > 0, (-b - inside.clamp(min=0).sqrt()) / a, torch.inf))
    return torch.where(nearest.isfinite(), nearest, 0).float()


def frames_of(balls: list[Ball], cameras: list[Camera], **options) -> list[DepthFrame]:
    grey = torch.full((cameras[0].height, cameras[0].width, 3), 128, dtype=torch.uint8)
    return [DepthFrame(camera, depth_of(camera, balls), grey, **options) for camera in cameras]


def icosphere(balls: list[Ball]) -> Mesh:
    solids = [trimesh.creation.icosphere(5, radius=r).apply_translation(c) for c, r in balls]
    starts = np.cumsum([0] + [len(s.vertices) for s in solids[:-1]])
    faces = [np.asarray(s.faces) + start for s, start in zip(solids, starts, strict=True)]
    return Mesh(np.concatenate([s.vertices for s in solids]), np.concatenate(faces).astype(np.int32))


def test_a_sphere_comes_out_closed_with_the_right_volume():
    ball: Ball = ((0.1, -0.05, 0.2), 0.8)
    voxel = 0.02
    mesh = fuse_depths(frames_of([ball], around(24)), voxel_size=voxel, truncation=4 * voxel)
    facts = mesh.facts()
    assert facts.watertight and facts.manifold and facts.components == 1
    # A pixel is 0.017 wide here; on average the errors of the views cancel to a fiftieth of a voxel.
    assert facts.volume == pytest.approx(4 / 3 * math.pi * 0.8**3, rel=2e-3)
    off = np.linalg.norm(mesh.vertices - np.array(ball[0]), axis=1) - 0.8
    assert np.sqrt(np.mean(off**2)) < 0.05 * voxel and np.abs(off).max() < 0.5 * voxel
    assert chamfer(mesh, icosphere([ball]), samples=20_000).chamfer < 0.05 * voxel


def test_two_spheres_stay_and_a_floater_goes():
    balls: list[Ball] = [((-0.6, 0, 0), 0.5), ((0.7, 0, 0.1), 0.4)]
    floater: Ball = ((0.0, 0.9, 0.5), 0.06)
    mesh = fuse_depths(frames_of([*balls, floater], around(24)), voxel_size=0.02, truncation=0.08)
    assert face_components(clean(mesh, min_share=1e-3)).max() + 1 == 3
    tidy = clean(mesh, min_share=0.05)
    assert face_components(tidy).max() + 1 == 2
    assert chamfer(tidy, icosphere(balls), samples=20_000).chamfer < 0.002
    assert tidy.facts().watertight


def test_what_one_view_imagines_before_the_surface_is_carved_away():
    ball: Ball = ((0, 0, 0), 0.8)
    cameras = around(24)
    frames = frames_of([ball], cameras)
    ghost: Ball = ((1.2 * 0.5, 1.2 * 0.6, 1.2 * 0.62), 0.15)  # in front of the ball for some, over its edge for others
    frames[5] = replace(frames[5], depth=depth_of(cameras[5], [ball, ghost]))
    mesh = fuse_depths(frames, voxel_size=0.02, truncation=0.08)
    tidy = clean(mesh, min_share=0.02)
    assert np.abs(np.linalg.norm(tidy.vertices, axis=1) - 0.8).max() < 0.03


def test_empty_rays_carve_only_where_they_are_known_to_be_free():
    ball: Ball = ((0, 0, 0), 0.5)
    cameras = around(16)
    liar: Ball = ((0.0, 0.0, 0.8), 0.15)  # eight views see it, eight see nothing there
    for free in (False, True):
        frames = frames_of([ball, liar], cameras[:8], empty_is_free=free)
        frames += frames_of([ball], cameras[8:], empty_is_free=free)
        heights = fuse_depths(frames, voxel_size=0.04, truncation=0.12).vertices[:, 2]
        # A mean over views that disagree: what is free for half of them shrinks.
        assert (heights > 0.92).any() != free


def test_pixels_at_a_step_in_depth_say_nothing():
    camera = around(1)[0]
    depth = torch.full((camera.height, camera.width), 2.0)
    depth[:, 80:] = 2.5
    depth[20:23, 20:23] = 0
    seen = judge(DepthFrame(camera, depth, torch.zeros(120, 160, 3, dtype=torch.uint8)), jump=0.1)
    assert not seen.weight[30:, 79:81].any() and seen.weight[30:, 78].min() > 0.5 and seen.weight[30:, 81].min() > 0.5
    assert not seen.weight[19:24, 20:23].any() and seen.weight[18, 20] > 0.5


def test_the_slope_of_a_plane_is_exact():
    camera = around(1)[0]
    origins, rays = camera.rays()
    normal = torch.tensor([0.3, -0.5, -0.8], dtype=torch.float64)
    normal = camera.c2w[:3, :3] @ (normal / normal.norm())
    depth = (normal @ (camera.forward * 2.0)) / (rays @ normal)  # through the point 2 ahead
    seen = judge(DepthFrame(camera, depth, torch.zeros(120, 160, 3, dtype=torch.uint8)), jump=0.01)
    inner = (slice(1, -1), slice(1, -1))
    assert torch.allclose(seen.slope[inner], (rays @ normal).abs()[inner], atol=1e-9)
    cosine = (rays @ normal).abs() / rays.norm(dim=-1)
    assert torch.allclose(seen.weight[inner], cosine[inner], atol=1e-9)
    assert origins.shape == rays.shape


def test_colours_come_from_the_views_that_see_the_point():
    ball: Ball = ((0, 0, 0), 0.8)
    cameras = around(24)
    frames = []
    for camera in cameras:
        depth = depth_of(camera, [ball])
        origins, rays = camera.rays()
        points = origins + depth[..., None] * rays
        rgb = torch.where(depth[..., None] > 0, 127.5 + 150 * points, 0).clamp(0, 255).round().to(torch.uint8)
        frames.append(DepthFrame(camera, depth, rgb))
    mesh = fuse_depths(frames, voxel_size=0.04, truncation=0.12)
    colors = colors_from_frames(mesh, frames, tolerance=0.12)
    wanted = 127.5 + 150 * mesh.vertices
    # 8-bit rounding, the pixel grid, and the background that a pixel at the limb mixes in.
    assert np.abs(colors - wanted).mean() < 1.0 and np.abs(colors - wanted).max() < 8


def test_the_box_cuts_the_mesh():
    ball: Ball = ((0, 0, 0), 0.8)
    frames = frames_of([ball], around(12))
    mesh = fuse_depths(frames, voxel_size=0.05, truncation=0.2, box=Box((-1, -1, 0), (1, 1, 1)))
    assert mesh.vertices[:, 2].min() >= 0 and mesh.vertices[:, 2].max() > 0.75
    assert not mesh.facts().watertight


def test_moving_the_world_moves_the_mesh():
    frames = frames_of([((0, 0, 0), 0.8)], around(12))
    turn = torch.eye(4, dtype=torch.float64)
    turn[:3, 3] = torch.tensor([1000.0, -2000.0, 300.0])
    moved = [replace(f, camera=replace(f.camera, c2w=turn @ f.camera.c2w)) for f in frames]
    here = fuse_depths(frames, voxel_size=0.05, truncation=0.2)
    there = fuse_depths(moved, voxel_size=0.05, truncation=0.2)
    assert abs(len(here.faces) - len(there.faces)) < 0.02 * len(here.faces)
    back = np.linalg.inv(turn.numpy())
    # The grid begins at another corner by rounding, no more.
    assert chamfer(there.transformed(back), here, samples=20_000).chamfer < 1e-4


def test_no_surface_is_an_error_in_words():
    camera = around(2)
    blank = [DepthFrame(c, torch.zeros(120, 160), torch.zeros(120, 160, 3, dtype=torch.uint8)) for c in camera]
    with pytest.raises(InputError, match="no mesh"):
        fuse_depths(blank, voxel_size=0.1, truncation=0.3)
    ball = frames_of([((0, 0, 0), 0.8)], around(12))
    with pytest.raises(InputError, match="mesh"):
        fuse_depths(ball, voxel_size=0.1, truncation=0.3, box=Box((5, 5, 5), (6, 6, 6)))
    with pytest.raises(InputError, match="do not agree"):
        fuse_depths(ball, voxel_size=0.1, truncation=0.3, least_weight=1e9)


def test_a_field_that_does_not_fit_into_memory_is_refused_before_it_is_made():
    frames = frames_of([((0, 0, 0), 0.8)], around(2))
    with pytest.raises(ResourceError, match="larger voxel"):
        fuse_depths(frames, voxel_size=1e-5, truncation=1e-4)


def test_progress_reaches_the_end():
    calls = []
    fuse_depths(
        frames_of([((0, 0, 0), 0.8)], around(6)),
        voxel_size=0.08,
        truncation=0.3,
        least_weight=0.5,
        progress=lambda done, total, message: calls.append((done, total)),
    )
    assert calls[-1] == (12, 12) and [done for done, _ in calls] == list(range(1, 13))
