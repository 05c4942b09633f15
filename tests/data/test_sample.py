"""The embedded sample: its photos show its truth, and a reconstruction is laid over that truth by its cameras alone."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.assets.still_life.render import intrinsics, shots
from data.assets.still_life.shapes import Shape, revolve, rounded_box
from data.captures import open_capture
from data.sample import Similarity, align_cameras, inside_box, sample_photos, sample_truth, similarity_between
from scene.cameras import Camera, look_at
from scene.mesh import Mesh
from scene.mesh_rays import RayCaster


def random_similarity(seed: int, scale: float = 2.7) -> Similarity:
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    rotation = q * torch.sign(torch.linalg.det(q))
    return Similarity(scale, rotation, torch.randn(3, generator=generator, dtype=torch.float64))


def points(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("seed", range(5))
def test_similarity_is_recovered_exactly_from_points_that_obey_it(seed: int) -> None:
    truth, source = random_similarity(seed, scale=10.0 ** (seed - 2)), points(7, seed)
    found = similarity_between(source, truth.points(source))
    assert found.scale == pytest.approx(truth.scale, rel=1e-12)
    torch.testing.assert_close(found.rotation, truth.rotation, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.points(source), truth.points(source), rtol=1e-12, atol=1e-12)


def test_similarity_of_noisy_points_is_a_least_squares_minimum() -> None:
    source = points(20, 1)
    target = random_similarity(3).points(source) + 0.2 * points(20, 2)
    found = similarity_between(source, target)

    def error(s: Similarity) -> float:
        return float((s.points(source) - target).square().sum())

    best = error(found)
    for axis in range(3):
        for step in (-1e-3, 1e-3):
            spin = torch.zeros(3, 3, dtype=torch.float64)
            spin[axis - 1, axis - 2], spin[axis - 2, axis - 1] = step, -step
            shift = torch.zeros(3, dtype=torch.float64)
            shift[axis] = step
            turned = torch.linalg.matrix_exp(spin) @ found.rotation
            assert error(Similarity(found.scale, turned, found.translation)) > best
            assert error(Similarity(found.scale, found.rotation, found.translation + shift)) > best
            assert error(Similarity(found.scale * (1 + step), found.rotation, found.translation)) > best


def test_a_mirror_image_is_answered_with_a_rotation() -> None:
    source = points(10)
    found = similarity_between(source, source * torch.tensor([-1.0, 1, 1], dtype=torch.float64))
    assert float(torch.linalg.det(found.rotation)) == pytest.approx(1.0)


def test_coplanar_points_are_aligned_without_mirroring() -> None:
    source = points(6)
    source[:, 2] = 0
    truth = random_similarity(9)
    found = similarity_between(source, truth.points(source))
    torch.testing.assert_close(found.rotation, truth.rotation, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "source",
    [
        points(2),
        points(4)[:, :2],
        torch.outer(torch.arange(5.0), torch.tensor([1.0, 2.0, 3.0])),
        torch.zeros(4, 3),
        torch.full((4, 3), math.nan),
    ],
    ids=["two", "flat array", "line", "one place", "nan"],
)
def test_points_that_fix_no_similarity_are_refused(source: torch.Tensor) -> None:
    with pytest.raises(ValueError):
        similarity_between(source, source)
    with pytest.raises(ValueError):
        similarity_between(source, points(9))


def test_cameras_in_another_frame_are_aligned_to_the_truth() -> None:
    truth = sample_truth()
    there = random_similarity(4, scale=0.3)
    estimated = {name: there.camera(camera) for name, camera in truth.cameras.items()}
    alignment = align_cameras({**estimated, "stranger.jpg": next(iter(estimated.values()))}, truth.cameras)
    assert alignment.views == len(truth.cameras)
    assert alignment.position_error < 1e-9
    assert alignment.rotation_error < 1e-6
    assert alignment.similarity.scale == pytest.approx(1 / there.scale)
    with pytest.raises(ValueError, match="3 cameras"):
        align_cameras({"stranger.jpg": next(iter(estimated.values()))}, truth.cameras)


def test_a_turned_camera_shows_as_rotation_error() -> None:
    true = {}
    for k in range(6):
        eye = torch.tensor([math.cos(k), math.sin(k), 0.2 * k], dtype=torch.float64)
        up = torch.tensor([0.0, 0, 1], dtype=torch.float64)
        true[str(k)] = Camera(torch.eye(3, dtype=torch.float64), look_at(eye, torch.zeros_like(eye), up), 4, 4)
    estimated = dict(true)
    turn = torch.eye(4, dtype=torch.float64)
    angle = math.radians(30)
    turn[:2, :2] = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    estimated["0"] = Camera(torch.eye(3, dtype=torch.float64), true["0"].c2w @ turn, 4, 4)
    assert align_cameras(estimated, true).rotation_error == pytest.approx(30 / 6)


def test_a_moved_camera_sees_the_moved_point_at_the_same_pixel() -> None:
    camera = next(iter(sample_truth().cameras.values()))
    move = random_similarity(8)
    seen = camera.center + camera.forward * 0.7 + 0.1 * points(5)
    before, depth = camera.project(seen)
    after, moved_depth = move.camera(camera).project(move.points(seen))
    torch.testing.assert_close(after, before)
    torch.testing.assert_close(moved_depth, move.scale * depth)


def test_the_photos_are_what_the_sample_promises() -> None:
    truth = sample_truth()
    files = sorted(sample_photos().glob("*.jpg"))
    assert [file.name for file in files] == sorted(truth.cameras) and len(files) == 36
    assert sum(file.stat().st_size for file in files) < 5_000_000
    assert truth.mesh.stat().st_size < 1_500_000
    assert all(abs(stops) <= 0.25 for stops in truth.exposure_stops.values())
    for file in files:
        with Image.open(file) as image:
            assert image.size == (640, 480)
            focal_35mm = image.getexif().get_ifd(0x8769)[0xA405]
        focal = float(truth.cameras[file.name].K[0, 0])
        assert focal_35mm == round(43.27 * focal / 800)  # over the diagonal, as the standard says


def test_cameras_stand_around_the_still_life_and_look_at_it() -> None:
    truth = sample_truth()
    for camera in truth.cameras.values():
        torch.testing.assert_close(camera.c2w[:3, :3] @ camera.c2w[:3, :3].T, torch.eye(3, dtype=torch.float64))
        pixel, depth = camera.project(truth.box.mean(0)[None])
        assert 0.3 < float(depth[0]) < 1.0
        assert 160 < float(pixel[0, 0]) < 480 and 80 < float(pixel[0, 1]) < 400


def test_shipped_cameras_are_those_of_the_script() -> None:
    truth = sample_truth()
    for shot in shots():
        camera = truth.cameras[shot.name]
        assert np.abs(camera.c2w.numpy() - shot.c2w).max() < 1e-8
        assert truth.exposure_stops[shot.name] == shot.stops
        assert np.abs(camera.K.numpy() - intrinsics(640, 480)).max() < 1e-9


def test_the_reader_finds_focal_length_and_one_camera() -> None:
    with open_capture(sample_photos()) as capture:
        assert capture.kind == "photos" and len(capture.views) == 36
        assert len({view.camera_group for view in capture.views}) == 1
        for view in capture.views:
            assert view.focal_px == pytest.approx(34 / 36 * 640, rel=0.015)  # EXIF rounds to whole millimetres


@pytest.mark.parametrize(
    ("shape", "volume"),
    [
        (revolve(np.array([[math.sin(a), math.cos(a)] for a in np.linspace(0, math.pi, 80)]), 160), 4 / 3 * math.pi),
        (rounded_box((0.2, 0.3, 0.4), 1e-4), 0.024),
        (rounded_box((0.2, 0.2, 0.2), 0.1, cells=40), 4 / 3 * math.pi * 1e-3),
    ],
    ids=["ball", "box", "box rounded to a ball"],
)
def test_shapes_are_closed_and_face_outwards(shape: Shape, volume: float) -> None:
    a, b, c = (shape.vertices[shape.faces[:, k]] for k in range(3))
    assert np.einsum("fi,fi->", a, np.cross(b, c)) / 6 == pytest.approx(volume, rel=4e-3)
    outward = (shape.normals() * shape.vertices).sum(1)
    assert outward.min() > 0


def read_truth(path: Path) -> tuple[np.ndarray, np.ndarray]:
    import trimesh

    mesh = trimesh.load_mesh(path, process=False)
    return np.asarray(mesh.vertices), np.asarray(mesh.faces)


def test_photos_show_the_true_surface_from_the_true_cameras() -> None:
    """Colours carried from one photo through the true surface into another photo agree, and only without a shift.

    An independent check of geometry, poses, K and pixel convention at once: half a pixel or a wrong axis spoils it.
    """
    truth = sample_truth()
    rays = RayCaster(Mesh(*read_truth(truth.mesh)))
    scores = dict.fromkeys((0.0, -2.0, 2.0), 0.0)
    for first, second in (("photo_01.jpg", "photo_02.jpg"), ("photo_21.jpg", "photo_22.jpg")):
        a, b = truth.cameras[first], truth.cameras[second]
        origins, directions = a.rays()
        depth_a = torch.from_numpy(_cast(rays, origins, directions)).double()
        hit = depth_a.isfinite()
        world = origins + torch.where(hit, depth_a, 1.0)[..., None] * directions
        pixel, depth_b = b.project(world.reshape(-1, 3))
        in_b = world.reshape(-1, 3) - b.center
        free = torch.from_numpy(_cast(rays, b.center.expand_as(in_b), in_b)).double()
        good = hit.flatten() & (free > 1 - 0.004) & (depth_b > 0)
        good &= ((pixel > 4) & (pixel < torch.tensor([b.width - 4.0, b.height - 4.0]))).all(1)
        assert float(good.double().mean()) > 0.25
        colour_a = _grey(sample_photos() / first).flatten()[good]
        for shift in scores:
            colour_b = _bilinear(_grey(sample_photos() / second), pixel[good] + torch.tensor([shift, 0.0]))
            scores[shift] += 0.5 * float(torch.corrcoef(torch.stack([colour_a, colour_b]))[0, 1])
    assert scores[0.0] > 0.95
    assert scores[0.0] > max(scores[-2.0], scores[2.0]) + 0.02


def _cast(rays: RayCaster, origins: torch.Tensor, directions: torch.Tensor) -> np.ndarray:
    hits = rays.cast(origins.reshape(-1, 3).numpy(), directions.reshape(-1, 3).numpy())
    return np.where(hits.face >= 0, hits.depth, np.inf).reshape(origins.shape[:-1])


def _grey(path: Path) -> torch.Tensor:
    with Image.open(path) as image:
        return torch.from_numpy(np.asarray(image.convert("L"), dtype=np.float64))


def _bilinear(image: torch.Tensor, pixel: torch.Tensor) -> torch.Tensor:
    size = torch.tensor([image.shape[1], image.shape[0]], dtype=torch.float64)
    grid = (2 * pixel / size - 1)[None, None]
    return torch.nn.functional.grid_sample(image[None, None], grid, align_corners=False)[0, 0, 0]


def test_true_surface_lies_in_its_box_and_is_seen() -> None:
    truth = sample_truth()
    vertices, faces = read_truth(truth.mesh)
    surface = torch.from_numpy(vertices.astype(np.float64))
    assert bool(inside_box(surface, truth.box + torch.tensor([[-1e-6], [1e-6]])).all())
    assert faces.max() < len(vertices) and len(np.unique(faces)) == len(vertices)
    assert 0.8 < float((surface.amax(0) - surface.amin(0)).norm()) < 1.0
    assert float(surface[:, 2].min()) > -0.004  # no underside of the table
    seen = torch.zeros(len(surface), dtype=torch.int64)
    for camera in truth.cameras.values():
        pixel, depth = camera.project(surface)
        seen += ((pixel >= 0) & (pixel < torch.tensor([640, 480]))).all(1) & (depth > 0)
    assert int(seen.min()) >= 2


def test_box_cuts_points_outside() -> None:
    box = torch.tensor([[0.0, 0, 0], [1, 2, 3]])
    inside = inside_box(torch.tensor([[0.5, 1.9, 3.0], [0.5, 2.1, 1.0], [-0.1, 1, 1], [math.nan, 1, 1]]), box)
    assert inside.tolist() == [True, False, False, False]
