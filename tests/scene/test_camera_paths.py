"""Camera paths against what geometry says they must be: distances, directions, smoothness, and bad path files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from scene.camera_paths import along, automatic, covered_arc, from_file, nearest_to_axes, orbit, spiral, stage_of
from scene.cameras import Camera, look_at
from scene.errors import InputError

UP = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
TARGET = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)


def camera_at(eye: Tensor, target: Tensor = TARGET, width: int = 64, height: int = 48, focal: float = 50.0) -> Camera:
    K = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]], dtype=torch.float64)
    return Camera(K, look_at(eye, target, UP), width, height)


def ring(degrees: list[float], distance: float = 3.0, height: float = 1.0) -> list[Camera]:
    angles = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    heights = torch.full_like(angles, height)
    return [
        camera_at(TARGET + eye) for eye in torch.stack([distance * angles.cos(), distance * angles.sin(), heights], 1)
    ]


def rigidly_moved(cameras: list[Camera], rotation: Tensor, shift: Tensor, scale: float) -> list[Camera]:
    moved = []
    for camera in cameras:
        c2w = camera.c2w.clone()
        c2w[:3, :3] = rotation @ camera.c2w[:3, :3]
        c2w[:3, 3] = scale * rotation @ camera.center + shift
        moved.append(Camera(camera.K, c2w, camera.width, camera.height))
    return moved


def centers(path: list[Camera]) -> Tensor:
    return torch.stack([camera.center for camera in path])


def assert_rigid(path: list[Camera]) -> None:
    for camera in path:
        rotation = camera.c2w[:3, :3]
        assert torch.allclose(rotation @ rotation.T, torch.eye(3, dtype=rotation.dtype), atol=1e-9)
        assert float(torch.linalg.det(rotation)) == pytest.approx(1, abs=1e-9)


def test_stage_of_a_ring_is_its_middle() -> None:
    stage = stage_of(ring([0, 40, 80, 120, 160, 200, 240, 280, 320]))
    assert torch.allclose(stage.focus, TARGET, atol=1e-2)  # the weak pull forward moves it by a thousandth or so
    assert torch.allclose(stage.up, UP, atol=1e-9)
    assert stage.looking_in
    assert torch.allclose(stage.distances, torch.full((9,), 3.0, dtype=torch.float64), atol=2e-2)


def test_nearest_point_of_crossing_lines_is_where_they_cross() -> None:
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(6, 3, generator=generator, dtype=torch.float64), dim=-1)
    meeting = torch.tensor([3.0, 4.0, 5.0], dtype=torch.float64)
    found = nearest_to_axes(meeting - 2 * directions, directions)
    assert torch.allclose(found, meeting, atol=2e-2)


def test_parallel_axes_still_give_a_point_ahead() -> None:
    eyes = torch.tensor([[0.0, 0, 0], [1, 0, 0], [2, 0, 0]], dtype=torch.float64)
    found = nearest_to_axes(eyes, torch.tensor([[0.0, 1, 0]] * 3, dtype=torch.float64))
    assert bool(torch.isfinite(found).all())
    assert float(found[1]) > 0.5
    assert float(found[0]) == pytest.approx(1, abs=1e-6)


def test_orbit_is_a_level_circle_that_looks_at_the_focus() -> None:
    path = orbit(ring([0, 45, 90, 135, 180, 225, 270, 315]), 36, focus=TARGET)
    assert len(path) == 36
    assert_rigid(path)
    out = centers(path) - TARGET
    assert torch.allclose(out[:, 2], torch.ones(36, dtype=torch.float64), atol=1e-9)
    assert torch.allclose(out[:, :2].norm(dim=-1), torch.full((36,), 3.0, dtype=torch.float64), atol=1e-9)
    steps = (out - out.roll(1, 0)).norm(dim=-1)
    assert torch.allclose(steps, steps[:1].expand(36), atol=1e-9)  # even, and closed without a seam
    for camera in path:
        pixel, depth = camera.project(TARGET[None])
        assert torch.allclose(pixel[0], torch.tensor([32.0, 24.0], dtype=torch.float64), atol=1e-6)
        assert float(depth) > 0


def test_orbit_stays_on_the_arc_that_was_photographed() -> None:
    path = orbit(ring([350, 10, 30, 50]), 60, focus=TARGET)
    out = centers(path) - TARGET
    azimuths = torch.atan2(out[:, 1], out[:, 0]).rad2deg()
    assert float(azimuths.min()) >= -10 - 1e-6
    assert float(azimuths.max()) <= 50 + 1e-6
    assert float(azimuths.max() - azimuths.min()) > 45  # and shows most of it
    assert float((out - out.roll(1, 0)).norm(dim=-1).max()) < 0.3  # ends where it starts


def test_paths_move_with_the_world() -> None:
    cameras = ring([0, 50, 95, 155, 200, 240, 305, 340])
    angle = math.radians(35)
    rotation = torch.tensor(
        [[math.cos(angle), 0, math.sin(angle)], [0, 1, 0], [-math.sin(angle), 0, math.cos(angle)]], dtype=torch.float64
    )
    shift = torch.tensor([5.0, 6.0, -7.0], dtype=torch.float64)
    moved = rigidly_moved(cameras, rotation, shift, 2.5)
    for make in (orbit, spiral, along):
        expected = rigidly_moved(make(cameras, 12), rotation, shift, 2.5)
        for got, wanted in zip(make(moved, 12), expected):
            assert torch.allclose(got.c2w, wanted.c2w, atol=1e-6)


def test_along_passes_through_every_photo_and_ends_at_the_last() -> None:
    cameras = ring([0, 20, 50, 60, 120])
    path = along(cameras, 2001)
    assert_rigid(path)
    assert torch.allclose(path[0].c2w, cameras[0].c2w, atol=1e-9)
    assert torch.allclose(path[-1].c2w, cameras[-1].c2w, atol=1e-6)
    for camera in cameras:
        nearest = (centers(path) - camera.center).norm(dim=-1).argmin()
        assert torch.allclose(path[int(nearest)].c2w, camera.c2w, atol=5e-3)


def test_along_flies_at_an_even_speed() -> None:
    cameras = [camera_at(torch.tensor([x, 0.0, 0.0], dtype=torch.float64)) for x in (0.0, 0.1, 0.2, 3.0, 3.1)]
    straight = [Camera(c.K, torch.eye(4, dtype=torch.float64), c.width, c.height) for c in cameras]
    for camera, posed in zip(cameras, straight):
        posed.c2w[:3, 3] = camera.center
    moved = (centers(along(straight, 200))[1:] - centers(along(straight, 200))[:-1]).norm(dim=-1)
    assert float(moved.max() / moved.mean()) < 1.35  # the photos themselves are 28 times denser at the ends


def test_along_unordered_photos_takes_the_short_way() -> None:
    cameras = ring([0, 10, 20, 30, 40, 50, 60, 70])
    shuffled = [cameras[i] for i in (3, 0, 6, 1, 7, 2, 5, 4)]
    length = [float((centers(p)[1:] - centers(p)[:-1]).norm(dim=-1).sum()) for p in (along(cameras, 300),)]
    tour = centers(along(shuffled, 300, ordered=False))
    assert float((tour[1:] - tour[:-1]).norm(dim=-1).sum()) == pytest.approx(length[0], rel=1e-3)


def test_half_a_turn_between_two_photos_is_still_a_turn() -> None:
    first = camera_at(TARGET + torch.tensor([2.0, 0, 0], dtype=torch.float64))
    second = Camera(first.K, first.c2w.clone(), first.width, first.height)
    second.c2w[:3, :3] = first.c2w[:3, :3] @ torch.diag(torch.tensor([-1.0, 1, -1], dtype=torch.float64))
    path = along([first, second], 9)
    assert_rigid(path)
    assert torch.allclose(path[-1].c2w, second.c2w, atol=1e-6)
    angles = [float(torch.acos((path[i].forward @ path[i + 1].forward).clamp(-1, 1))) for i in range(8)]
    assert max(angles) == pytest.approx(math.pi / 8, rel=0.05)


def test_spiral_loops_near_the_middle_photo_and_closes() -> None:
    cameras = [camera_at(TARGET + torch.tensor([x, -4.0, z], dtype=torch.float64)) for x in (-1, 0, 1) for z in (0, 1)]
    path = spiral(cameras, 48)
    assert_rigid(path)
    middle = centers(cameras).mean(0)
    assert float((centers(path) - middle).norm(dim=-1).max()) < 2
    steps = (centers(path) - centers(path).roll(1, 0)).norm(dim=-1)
    assert float(steps[0]) < 2 * float(steps.median())
    assert float(centers(path).std(0).norm()) > 0.1


def test_one_photo_is_enough_for_every_path() -> None:
    single = ring([30])
    for make in (orbit, spiral, along, automatic):
        path = make(single, 5)
        assert len(path) == 5
        assert all(bool(torch.isfinite(camera.c2w).all()) for camera in path)


def test_photos_that_look_outwards_get_a_flight_along_them() -> None:
    inwards = ring([0, 60, 120, 180, 240, 300])
    outwards = []
    for camera in inwards:
        c2w = camera.c2w.clone()
        c2w[:3, [0, 2]] *= -1
        outwards.append(Camera(camera.K, c2w, camera.width, camera.height))
    path = automatic(outwards, 31)
    assert torch.allclose(path[0].c2w, outwards[0].c2w, atol=1e-9)
    assert not torch.allclose(automatic(inwards, 31)[0].c2w, inwards[0].c2w, atol=1e-3)


@pytest.mark.parametrize(
    ("degrees", "start", "length"),
    [([10, 50, 30], 10, 40), ([350, 10], 350, 20), ([0, 90, 180, 270], 0, 270), ([45], 45, 0), ([-170, 170], 170, 20)],
)
def test_covered_arc_is_the_shortest_that_holds_all(degrees: list[float], start: float, length: float) -> None:
    got = covered_arc(torch.tensor(degrees, dtype=torch.float64).deg2rad())
    assert math.degrees(got[1]) == pytest.approx(length, abs=1e-6)
    if length != 270:  # four equal gaps: any of them is the widest
        assert math.degrees(got[0]) % 360 == pytest.approx(start, abs=1e-6)


def written(folder: Path, content: Any) -> Path:
    path = folder / "path.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_file_of_poses_is_read_in_either_spelling(tmp_path: Path) -> None:
    camera = camera_at(TARGET + torch.tensor([2.0, 1.0, 1.0], dtype=torch.float64))
    eye = camera.center.tolist()
    frames = [{"c2w": camera.c2w.tolist()}, {"eye": eye, "target": TARGET.tolist(), "fov_y": 90}]
    path = from_file(written(tmp_path, {"width": 64, "height": 48, "K": camera.K.tolist(), "frames": frames}))
    assert torch.allclose(path[0].c2w, path[1].c2w, atol=1e-6)
    assert torch.equal(path[0].K, camera.K.float())
    assert float(path[1].K[1, 1]) == pytest.approx(24)
    typical = from_file(written(tmp_path, {"frames": frames[:1]}), typical=camera)
    assert (typical[0].width, typical[0].height) == (64, 48)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("not json", "JSON"),
        ("[" * 100_000, "JSON"),
        ([1, 2], "frames"),
        ({"frames": []}, "frames"),
        ({"width": 0, "height": 2, "frames": [{}]}, "width"),
        ({"width": True, "height": 2, "frames": [{}]}, "width"),
        ({"width": 10**9, "height": 2, "frames": [{}]}, "width"),
        ({"width": 8, "height": 8, "frames": [{}]}, "fov_y"),
        ({"width": 8, "height": 8, "fov_y": 200, "frames": [{}]}, "fov_y"),
        ({"width": 8, "height": 8, "fov_y": 50, "frames": [{}]}, "eye"),
        ({"width": 8, "height": 8, "fov_y": 50, "frames": [7]}, "frame 0"),
        ({"width": 8, "height": 8, "fov_y": 50, "frames": [{"eye": [0, 0, 0], "target": [0, 0, 1]}]}, "parallel"),
        ({"width": 8, "height": 8, "fov_y": 50, "frames": [{"eye": [0, 0, "x"], "target": [0, 0, 1]}]}, "eye"),
        ({"width": 8, "height": 8, "fov_y": 50, "frames": [{"c2w": [[1]]}]}, "c2w"),
        ({"width": 8, "height": 8, "fov_y": 50, "frames": [{"c2w": (2 * torch.eye(4)).tolist()}]}, "rotation"),
        ({"width": 8, "height": 8, "K": [[0, 0, 0]] * 3, "frames": [{}]}, "focal"),
        ('{"width": 8, "height": 8, "fov_y": NaN, "frames": [{}]}', "fov_y"),
    ],
)
def test_bad_path_file_says_what_is_wrong(tmp_path: Path, content: Any, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        from_file(written(tmp_path, content))


def test_absent_path_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        from_file(tmp_path / "nowhere.json")


@pytest.mark.parametrize("frames", [0, -3, 10**9])
def test_number_of_frames_is_bounded(frames: int) -> None:
    with pytest.raises(InputError, match="frames"):
        orbit(ring([0, 90, 180]), frames)


def test_no_cameras_no_path() -> None:
    for make in (orbit, spiral, along):
        with pytest.raises(InputError, match="at least one"):
            make([], 3)
