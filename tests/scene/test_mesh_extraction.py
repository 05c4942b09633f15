"""Gaussians laid on known surfaces, meshed."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh

from data.synthetic import OpaqueScene, opaque_solids
from scene import sh
from scene.cameras import Camera, look_at
from scene.depth_fusion import DepthFrame, judge
from scene.errors import InputError
from scene.gaussians import Gaussians
from scene.mesh import Mesh
from scene.mesh_distance import Box, chamfer, sample_surface
from scene.mesh_extraction import MeshConfig, evenly, gaussians_to_mesh, render_frame, surface_to_mesh, well_seen

SMALL = MeshConfig(voxels=96, faces=20_000)


def surfels(mesh: Mesh, count: int, *, thickness: float = 0.1, seed: int = 0) -> Gaussians:
    """Flat opaque Gaussians on a surface, coloured by their place."""
    points, faces = sample_surface(mesh, count, np.random.default_rng(seed))
    normals = mesh.face_normals[faces] / (2 * mesh.face_areas[faces, None])
    size = 0.9 * math.sqrt(mesh.face_areas.sum() / count)
    # The rotation from +Z to the normal, by half-way quaternions; straight down is a half turn about x.
    quats = np.stack([1 + normals[:, 2], -normals[:, 1], normals[:, 0], np.zeros(count)], axis=1)
    quats[normals[:, 2] < -0.999999] = [0, 1, 0, 0]
    colors = torch.tensor(0.5 + 0.4 * np.sin(3 * points), dtype=torch.float32)
    return Gaussians(
        means=torch.tensor(points, dtype=torch.float32),
        quats=torch.tensor(quats, dtype=torch.float32),
        log_scales=torch.tensor([size, size, thickness * size]).log().repeat(count, 1),
        opacity_logits=torch.full((count,), 4.0),
        sh_dc=sh.from_rgb(colors),
        sh_rest=torch.zeros(count, 0, 3),
    )


def around(count: int = 24, radius: float = 3.0) -> list[Camera]:
    K = torch.tensor([[160.0, 0, 80], [0, 160.0, 60], [0, 0, 1]])
    cameras = []
    for i in range(count):
        z, turn = 1 - 2 * (i + 0.5) / count, i * math.pi * (3 - math.sqrt(5))
        flat = math.sqrt(1 - z * z)
        eye = radius * torch.tensor([flat * math.cos(turn), flat * math.sin(turn), z])
        cameras.append(Camera(K, look_at(eye, torch.zeros(3), torch.tensor([0.1, 0.2, 1.0])), 160, 120))
    return cameras


def ball(radius: float = 0.8, center: tuple[float, float, float] = (0, 0, 0)) -> Mesh:
    solid = trimesh.creation.icosphere(4, radius=radius)
    return Mesh(np.asarray(solid.vertices) + center, np.asarray(solid.faces, np.int32))


def test_a_sphere_of_splats_becomes_that_sphere():
    truth = ball()
    splats = surfels(truth, 8000)
    mesh = gaussians_to_mesh(splats, around(), SMALL)
    result = chamfer(mesh, truth, samples=20_000)
    # A voxel is 0.6 % of the diagonal, a splat 1 %; the surface is sought before the centres, where photos put it.
    assert result.percent < 0.4
    facts = mesh.facts()
    assert facts.components == 1 and facts.faces <= 20_000
    assert mesh.colors is not None
    wanted = 255 * (0.5 + 0.4 * np.sin(3 * mesh.vertices))
    assert np.abs(mesh.colors - wanted).mean() < 4  # splats 0.03 wide blur what changes by 300 per unit


def test_thick_translucent_splats_do_not_push_the_surface_back():
    truth = ball()
    splats = surfels(truth, 8000, thickness=0.5)
    splats.opacity_logits -= 4  # 0.5: a ray passes several before half of its light is gone
    result = chamfer(gaussians_to_mesh(splats, around(), SMALL), truth, samples=10_000)
    assert result.chamfer < float(splats.scales[0, 0])  # within the size of a splat


def test_a_wall_of_splats_seen_aslant_has_its_true_depth():
    wall = Mesh(
        np.array([[-2, -2, 0], [2, -2, 0], [2, 2, 0], [-2, 2, 0]], float), np.array([[0, 1, 2], [0, 2, 3]], np.int32)
    )
    pose = look_at(torch.tensor([1.5, 0.0, 1.0]), torch.zeros(3), torch.tensor([0.0, 0.0, 1.0]))
    K = torch.tensor([[100.0, 0, 40], [0, 100.0, 30], [0, 0, 1]])
    camera = Camera(K, pose, 80, 60)
    frame = render_frame(surfels(wall, 20_000, thickness=0.01), camera)
    origins, rays = camera.rays()
    wanted = -origins[..., 2] / rays[..., 2]
    assert (frame.depth > 0).all()
    assert ((frame.depth - wanted).abs() / wanted).max() < 2e-3


def test_the_far_background_is_left_out():
    scene = Gaussians.concat([surfels(ball(), 4000), surfels(ball(30.0), 6000, seed=1)])
    mesh = gaussians_to_mesh(scene, around(36), SMALL)
    # Cameras 3 away from the centre look at a ball of 0.8: what lies 30 away is no part of it.
    assert np.abs(mesh.vertices).max() < 1.2
    assert chamfer(mesh, ball(), samples=10_000).chamfer < float(scene.scales[0, 0])  # within the size of a splat


def test_a_floater_before_one_camera_goes():
    cameras = around()
    eye = cameras[4].center.numpy()
    scene = Gaussians.concat([surfels(ball(), 8000), surfels(ball(0.05, tuple(0.55 * eye)), 200, seed=2)])
    mesh = gaussians_to_mesh(scene, cameras, SMALL)
    assert np.abs(np.linalg.norm(mesh.vertices, axis=1) - 0.8).max() < 0.05


def test_a_box_bounds_the_mesh_and_one_without_a_surface_is_an_error():
    splats = surfels(ball(), 4000)
    half = Box((-1.0, -1.0, 0.1), (1.0, 1.0, 1.0))
    mesh = gaussians_to_mesh(splats, around(), replace(SMALL, box=half))
    low, high = mesh.bounds()
    assert low[2] >= 0.1 - 1e-6 and low[2] < 0.15 and high[2] > 0.75
    assert not mesh.facts().watertight
    with pytest.raises(InputError, match="no surface lies in the box"):
        gaussians_to_mesh(splats, around(), replace(SMALL, box=Box((2.0, 2.0, 2.0), (3.0, 3.0, 3.0))))


def test_rays_that_no_splat_stops_carve():
    frame = render_frame(surfels(ball(), 4000), around()[0])
    assert frame.empty_is_free and frame.alpha is not None
    assert float(frame.alpha[0, 0]) == 0 and float(frame.alpha[60, 80]) > 0.99
    weight = judge(frame, jump=0.1).weight
    assert float(weight[0, 0]) == 1 and float(weight[60, 80]) > 0.9


def test_the_same_scene_gives_the_same_mesh():
    splats = surfels(ball(), 2000)
    one, two = (gaussians_to_mesh(splats, around(8), SMALL) for _ in range(2))
    assert np.array_equal(one.vertices, two.vertices) and np.array_equal(one.faces, two.faces)


def test_nothing_to_mesh_is_an_error_in_words():
    splats = surfels(ball(), 500)
    with pytest.raises(InputError, match="two cameras"):
        gaussians_to_mesh(splats, around()[:1], SMALL)
    with pytest.raises(InputError, match="Gaussians"):
        gaussians_to_mesh(splats.select(torch.zeros(0, dtype=torch.int64)), around(), SMALL)
    faint = surfels(ball(), 500)
    faint.opacity_logits -= 8
    with pytest.raises(InputError, match="no mesh"):
        gaussians_to_mesh(faint, around(), SMALL)


def test_progress_runs_to_the_end_and_stop_is_asked():
    calls: list[tuple[int, int]] = []
    gaussians_to_mesh(
        surfels(ball(), 1000), around(8), SMALL, progress=lambda done, total, message: calls.append((done, total))
    )
    assert calls[-1][0] == calls[-1][1] and calls == sorted(calls)


def test_views_are_chosen_evenly_and_the_region_is_where_they_look():
    cameras = around(24)
    assert len(evenly(cameras, 30)) == 24
    assert all(a is cameras[b] for a, b in zip(evenly(cameras, 5), (0, 6, 12, 17, 23), strict=True))
    frames = [render_frame(surfels(ball(), 4000), camera) for camera in cameras]
    region = well_seen(frames)
    assert np.allclose(region.box.low, -0.85, atol=0.06) and np.allclose(region.box.high, 0.85, atol=0.06)
    assert region.footprint == pytest.approx(2.3 / 160, rel=0.1)


def test_any_scene_that_gives_frames_becomes_a_mesh():
    scene = opaque_solids(train=1, test=0, size=8, shape="torus").scene
    assert isinstance(scene, OpaqueScene)

    def frame_of(camera: Camera) -> DepthFrame:
        shown = scene.show(camera.to(dtype=torch.float64))
        return DepthFrame(camera, shown.depth, (shown.color * 255).round().to(torch.uint8), shown.alpha, True)

    mesh = surface_to_mesh(frame_of, around(48), SMALL)
    distances = scene.distance(torch.from_numpy(mesh.vertices)).abs()
    footprint = 2.4 / 160  # of a pixel on the surface
    assert float(distances.mean()) < 0.3 * footprint
    facts = mesh.facts()
    assert facts.components == 1 and facts.watertight
    assert 2 * facts.vertices == facts.faces  # Euler's number of a torus, which has one hole


def test_one_camera_is_too_few_for_any_scene():
    with pytest.raises(InputError, match="two cameras"):
        surface_to_mesh(lambda camera: pytest.fail("nothing need be drawn"), around()[:1])
