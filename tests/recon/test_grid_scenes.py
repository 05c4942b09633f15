"""Kinds of scenes and their boxes: what captures of each kind show lies within, and what allows no grid is said."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from data.captures import Capture, MemoryPicture, capture_of_pictures
from data.synthetic import Fixture
from data.synthetic_solids import Ellipsoid, Torus
from recon.grid_scenes import GridScene, _around, kind_of, scene_of, too_near, view_counts
from recon.initial_points import train_cameras
from scene.cameras import look_at
from scene.errors import InputError
from scene.ray_space import GridFrame, Space
from tests.recon.grid_captures import UP, cut_out, opaque_capture, painted, room_fixture, vector, wall_fixture
from tests.scene.density_grids import drawn
from tests.scene.voxel_grids import places


@pytest.fixture(scope="module")
def wall() -> Fixture:
    return wall_fixture()


@pytest.fixture(scope="module")
def room() -> Fixture:
    return room_fixture(size=16)


@pytest.fixture(scope="module")
def solids(tmp_path_factory: pytest.TempPathFactory) -> Capture:
    return cut_out(tmp_path_factory.mktemp("solids"))


def a_generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def seen_points(fixture: Fixture) -> Tensor:
    """Places of surfaces that training views see."""
    return fixture.points(3000).xyz


def inside(points: Tensor, box: Tensor) -> Tensor:
    return ((points >= box[0]) & (points <= box[1])).all(-1)


def solid_points(count: int = 20_000) -> Tensor:
    """Places inside the solids of FX-B, which `cut_out` shows."""
    from data.synthetic import opaque_solids

    points = 2 * drawn(count, 3, seed=4) - 1
    within = torch.zeros(count, dtype=torch.bool)
    for solid in opaque_solids(train=1, test=1, size=8).scene.solids:  # type: ignore[attr-defined]
        assert isinstance(solid, Ellipsoid | Torus) or hasattr(solid, "half")
        within |= solid.distance(points) < 0
    return points[within].float()


def test_cut_out_photos_make_a_bounded_scene(solids: Capture) -> None:
    kind, why = kind_of(solids)
    assert kind == "bounded" and "silhouettes" in why


def test_cameras_that_look_one_way_make_a_forward_scene(wall: Fixture) -> None:
    kind, why = kind_of(opaque_capture(wall))
    assert kind == "forward" and "one way" in why


def test_cameras_that_look_around_make_an_unbounded_scene(room: Fixture) -> None:
    kind, why = kind_of(opaque_capture(room))
    assert kind == "unbounded" and "look around" in why


def test_a_capture_of_which_only_some_photos_are_cut_out_is_judged_by_its_cameras() -> None:
    assert kind_of(painted([(12, 12)] * 3, cut_out=(0, 2)))[0] == "forward"
    assert kind_of(painted([(12, 12)] * 3, cut_out=(0, 1, 2)))[0] == "bounded"


def test_the_box_around_silhouettes_holds_the_solids_and_little_more(solids: Capture) -> None:
    scene, points = scene_of(solids, "bounded", a_generator()), solid_points()
    assert scene.kind == "bounded" and scene.hull is not None
    assert bool(inside(points, scene.box).all())
    extent, box = points.amax(0) - points.amin(0), scene.box[1] - scene.box[0]
    assert bool((box < 1.4 * extent + 0.5).all())  # a pixel of 32 is 0.1 wide there, and 12 views leave corners
    frame = GridFrame(scene.space, scene.box, tuple(scene.hull.shape))  # type: ignore[arg-type]
    x, y, z = (frame.grid_from_world(points) + 0.5).floor().long().unbind(-1)
    assert bool(scene.hull[x, y, z].all())
    assert 0.05 < float(scene.hull.float().mean()) < 0.7


def test_the_box_around_voxels_is_a_voxel_and_a_margin_wider_than_their_centres() -> None:
    hull = torch.zeros(11, 11, 21, dtype=torch.bool)
    hull[3:7, 5, 4:15] = True
    box = _around(hull, torch.tensor([[0.0, 0, 0], [1, 2, 4]]))  # voxels of 0.1, 0.2 and 0.2
    low, high = torch.tensor([0.2, 0.8, 0.6]), torch.tensor([0.7, 1.2, 3.0])
    margin = 0.03 * (high - low)
    torch.testing.assert_close(box, torch.stack([low - margin, high + margin]), rtol=0, atol=1e-6)


def test_the_nearest_place_is_a_small_share_of_the_way_to_the_object(solids: Capture) -> None:
    scene = scene_of(solids, "bounded", a_generator())
    assert scene.near == pytest.approx(0.05 * 4, rel=0.1)  # cameras stand 4 units away


def test_a_bounded_scene_without_silhouettes_lies_around_its_points(room: Fixture) -> None:
    capture = opaque_capture(room, points=2000)
    assert capture.points is not None
    box = scene_of(capture, "bounded", a_generator()).box
    assert float(inside(capture.points.xyz, box).float().mean()) > 0.97
    around = scene_of(replace(capture, points=None), "bounded", a_generator()).box  # where cameras look, as it seems
    assert bool((around[1] > around[0]).all())


def test_the_forward_box_holds_all_that_any_camera_sees(wall: Fixture) -> None:
    capture = opaque_capture(wall)
    scene = scene_of(capture, "forward", a_generator())
    assert bool(inside(scene.space.from_world(seen_points(wall)), scene.box).all())
    frame = GridFrame(scene.space, scene.box, (20, 20, 16))
    for camera in train_cameras(capture):
        origins, directions = (part.reshape(-1, 3) for part in camera.rays())
        spans = frame.spans(origins, torch.nn.functional.normalize(directions, dim=-1), 1.0)
        for share in (0.0, 0.5, 1.0):
            at = spans.origins + share * (spans.counts - 1)[:, None] * spans.directions
            assert bool(inside(at, torch.tensor([[-1e-3] * 3, [19.001, 19.001, 15.001]])).all())
    nearest = min(float(camera.project(seen_points(wall))[1].min()) for camera in train_cameras(capture))
    assert 0.5 * nearest < scene.space.near < nearest


def test_the_unbounded_cube_holds_the_cameras_and_its_shell_the_rest(room: Fixture) -> None:
    capture = opaque_capture(room)
    scene = scene_of(capture, "unbounded", a_generator())
    centres = torch.stack([camera.center for camera in train_cameras(capture)])
    at = scene.space.from_world(centres)
    assert float(at.abs().max()) == pytest.approx(1, abs=1e-5)  # the cube just holds them
    beyond = scene.space.from_world(seen_points(room))
    assert bool(inside(beyond, scene.box).all()) and float(beyond.abs().amax(-1).min()) > 1


def test_voxels_count_the_views_that_have_them_in_their_picture(solids: Capture) -> None:
    frame = GridFrame(Space("bounded", torch.eye(4)), torch.tensor([[-3.0] * 3, [3.0] * 3]), (9, 7, 11))
    counts = view_counts(frame, solids)
    points = frame.world_from_grid(places(frame.size))
    wanted = torch.zeros(len(points))
    for camera in train_cameras(solids):
        pixels, depths = camera.project(points)
        wanted += (depths > 0) & (pixels >= 0).all(-1) & (pixels < 32).all(-1)
    even = torch.zeros(frame.size, dtype=torch.bool)
    even[::2, ::2, ::2] = True  # looked up there, and taken over by those between
    assert torch.equal(counts[even], wanted.view(frame.size)[even])
    assert float((counts.flatten() - wanted).abs().mean()) < 0.25 * len(solids.train)
    assert 0 <= float(counts.min()) < float(counts.max()) == len(solids.train)


def test_voxels_that_touch_a_camera_are_found(solids: Capture) -> None:
    frame = GridFrame(Space("bounded", torch.eye(4)), torch.tensor([[-5.0] * 3, [5.0] * 3]), (21, 21, 21))
    found, points = too_near(frame, solids, 0.8), frame.world_from_grid(places(frame.size))
    centres = torch.stack([camera.center for camera in train_cameras(solids)])
    assert torch.equal(found.flatten(), torch.cdist(points, centres).amin(1) < 0.8) and bool(found.any())


def turned(capture: Capture, step: float) -> Capture:
    """Cameras on one point, each turned `step` further."""
    views, eye = [], vector(1, 2, 3)
    for i, view in enumerate(capture.views):
        assert view.camera is not None
        c2w = look_at(eye, eye + vector(math.cos(step * i), math.sin(step * i), 0.1), UP)
        views.append(replace(view, camera=replace(view.camera, c2w=c2w.float())))
    return replace(capture, views=tuple(views))


def test_photos_without_cameras_are_refused(solids: Capture) -> None:
    for kept in (0, 5):
        views = tuple(replace(v, camera=v.camera if i < kept else None) for i, v in enumerate(solids.views))
        with pytest.raises(InputError, match="cameras"):
            kind_of(replace(solids, views=views))


def test_silhouettes_that_have_no_place_in_common_are_refused(solids: Capture) -> None:
    pictures = {}
    for index in solids.train:  # every other view says that nothing is there
        photo, view = solids.photo(index), solids.views[index]
        assert photo.alpha is not None
        alpha = photo.alpha.numpy() * (index % 2)
        pictures[view.name] = (MemoryPicture(photo.rgb.numpy(), alpha), view.camera)
    with pytest.raises(InputError, match="silhouettes"):
        scene_of(capture_of_pictures("half empty", pictures, holdout=0), "bounded", a_generator())


def test_cameras_on_one_point_are_refused(room: Fixture) -> None:
    capture = turned(opaque_capture(room), 0.5)
    with pytest.raises(InputError, match="one point"):
        scene_of(capture, "unbounded", a_generator())


@pytest.mark.parametrize("kind", ["bounded", "forward", "unbounded"])
@pytest.mark.parametrize("step", [0.0, 0.01, 0.5])
def test_cameras_on_one_point_end_in_an_answer(kind: str, step: float) -> None:
    """Whatever the kind and however they look: a scene with a box, or an error for users."""
    capture = turned(painted([(16, 16)] * 4), step)
    try:
        scene = scene_of(capture, kind, a_generator())  # type: ignore[arg-type]
    except InputError:
        return
    assert isinstance(scene, GridScene) and bool(scene.box.isfinite().all())
    assert bool((scene.box[1] > scene.box[0]).all())
