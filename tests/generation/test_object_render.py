"""Pictures of objects against rays through every primitive, the exact distance, and each other."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from generation.captions import parse, sample_caption
from generation.object_render import (
    ObjectPictures,
    composited,
    render_objects,
    sample_backgrounds,
)
from generation.objects import make_object
from generation.ray_hits import first_hit
from generation.shapes import Kind, ObjectModel, union
from generation.views import orbit_camera, orthogonal_cameras, sample_cameras
from scene.cameras import Camera
from tests.generation.single_shapes import single

SIZE = 24


def some(count: int, seed: int = 0) -> tuple[list[ObjectModel], list[tuple[Camera, ...]]]:
    generator = torch.Generator().manual_seed(seed)
    objects = [make_object(sample_caption(generator), generator) for _ in range(count)]
    return objects, [sample_cameras(generator, 2, SIZE) for _ in objects]


def by_brute_force(model: ObjectModel, camera: Camera) -> tuple[torch.Tensor, torch.Tensor]:
    """Depth and primitive [H, W] from every ray through every primitive."""
    origins, directions = (part.reshape(-1, 3).double() for part in camera.rays())
    best = torch.full((len(origins),), torch.inf, dtype=torch.float64)
    winner = torch.full((len(origins),), -1)
    for row in range(len(model)):
        world = model.world_from_primitive[row].double()
        o, d = (origins - world[:3, 3]) @ world[:3, :3], directions @ world[:3, :3]
        t = first_hit(Kind(int(model.kind[row])), o, d, model.size[row].double().expand_as(o))
        winner = torch.where(t < best, row, winner)
        best = torch.minimum(best, t)
    return best.view(SIZE, SIZE), winner.view(SIZE, SIZE)


def at_edges(winner: torch.Tensor) -> torch.Tensor:
    """[H, W] pixels with a neighbour that shows another primitive, or nothing."""
    edges = torch.zeros_like(winner, dtype=torch.bool)
    for dim in (0, 1):
        apart = winner.diff(dim=dim) != 0
        nothing = torch.zeros_like(apart.narrow(dim, 0, 1))
        edges |= torch.cat([apart, nothing], dim) | torch.cat([nothing, apart], dim)
    return edges


def test_pictures_are_those_of_every_ray_through_every_primitive() -> None:
    objects, cameras = some(8)
    seen = render_objects(objects, cameras)
    differ = 0.0
    for index, model in enumerate(objects):
        for view, camera in enumerate(cameras[index]):
            depth, winner = by_brute_force(model, camera)
            same = seen.primitive[index, view, 0] == winner
            shared = (seen.depth[index, view, 0].double() - depth).abs() < 1e-5  # surfaces of two that coincide
            wrong = ~same & ~shared
            differ += float(wrong.double().mean())
            assert bool(at_edges(winner)[wrong].all())  # where single precision may decide otherwise
            hit = same & (winner >= 0)
            assert torch.equal(seen.alpha[index, view, 0][same] > 0, winner[same] >= 0)
            error = (seen.depth[index, view, 0].double() - depth)[hit].abs()
            assert float(error.quantile(0.99)) < 1e-4
            assert torch.equal(seen.part[index, view, 0][hit], model.part[winner[hit]])
    assert differ / 16 < 2e-3  # a pixel of a picture


def test_what_is_seen_lies_on_the_surface_and_normals_are_its_gradient() -> None:
    objects, cameras = some(6, seed=1)
    seen = render_objects(objects, cameras)
    for index, model in enumerate(objects):
        for view, camera in enumerate(cameras[index]):
            origins, directions = camera.rays()
            depth, normal = seen.depth[index, view, 0], seen.normal[index, view].permute(1, 2, 0)
            hit = seen.alpha[index, view, 0] > 0
            points = (origins + depth[..., None] * directions)[hit].double()
            off = model.distance(points).abs()
            assert float(off.max()) < 5e-5
            assert bool(((normal * directions).sum(-1)[hit] < 1e-3).all())  # towards the camera
            out = model.distance(points + 1e-3 * normal[hit].double())
            assert float((out > 0.9e-3).double().mean()) > 0.97  # less where another primitive is near
            free = points - 1e-3 * directions[hit].double() / directions[hit].norm(dim=1, keepdim=True)
            assert float(model.inside(free).double().mean()) < 0.02


def test_empty_pixels_are_rays_that_stay_outside() -> None:
    objects, cameras = some(3, seed=2)
    seen = render_objects(objects, cameras)
    for index, model in enumerate(objects):
        camera = cameras[index][0]
        origins, directions = camera.rays()
        empty = seen.alpha[index, 0, 0] == 0
        t = torch.linspace(1.0, 4.5, 60).view(-1, 1, 1)
        points = (origins[empty] + t * directions[empty]).reshape(-1, 3)
        assert float(model.inside(points).double().mean()) < 1e-4


def test_a_ball_by_hand() -> None:
    ball = single(Kind.ELLIPSOID, (0.5, 0.5, 0.5))
    camera = orbit_camera(30.0, 20.0, 40.0, 3.0, 101)
    seen = render_objects([ball], [[camera]])
    assert float(seen.depth[0, 0, 0, 50, 50]) == pytest.approx(2.5, abs=1e-6)
    torch.testing.assert_close(seen.normal[0, 0, :, 50, 50].float(), camera.center / 3.0, atol=1e-5, rtol=0)
    radius = 0.5 / 35**0.5 * 2 * float(camera.K[0, 0])  # tan of asin(0.5 / 3) is 1 / sqrt(35)
    assert float(seen.alpha.sum()) == pytest.approx(3.14159 * radius**2, rel=0.01)


def test_objects_are_drawn_together_as_they_are_alone() -> None:
    objects, cameras = some(5, seed=3)
    together = render_objects(objects, cameras)
    for index in range(5):
        alone = render_objects(objects[index : index + 1], cameras[index : index + 1])
        for one in fields(ObjectPictures):
            assert torch.equal(getattr(alone, one.name)[0], getattr(together, one.name)[index])


def test_the_same_seed_gives_the_same_bytes() -> None:
    first, second = (render_objects(*some(4, seed=9)) for _ in range(2))
    for one in fields(ObjectPictures):
        assert torch.equal(getattr(first, one.name), getattr(second, one.name))


def test_turning_object_and_camera_together_changes_no_depth() -> None:
    model = make_object(parse("a red chair"), torch.Generator().manual_seed(0))
    quarter = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    views = [orbit_camera(azimuth, 20.0, 40.0, 2.6, SIZE) for azimuth in (10.0, 100.0)]
    plain, turned = (render_objects([m], [[c]]) for m, c in ((model, views[0]), (model.turned(quarter), views[1])))
    torch.testing.assert_close(plain.depth, turned.depth, atol=1e-4, rtol=0)
    assert float((plain.alpha != turned.alpha).float().mean()) < 2e-3


def test_of_two_surfaces_at_one_place_the_first_primitive_is_seen() -> None:
    box = single(Kind.BOX, (0.4, 0.4, 0.4))
    seen = render_objects([union([box, box])], [[orbit_camera(20.0, 20.0, 40.0, 3.0, SIZE)]])
    assert set(seen.primitive.unique().tolist()) == {-1, 0}


def test_cameras_inside_beside_and_turned_away() -> None:
    ball = single(Kind.ELLIPSOID, (0.5, 0.5, 0.5))
    inside = render_objects([ball], [[orbit_camera(0.0, 0.0, 40.0, 0.1, 9)]])
    assert bool((inside.alpha == 1).all()) and float(inside.depth[0, 0, 0, 4, 4]) == pytest.approx(0.6, abs=1e-6)
    behind = render_objects([ball.moved(1.0, (5.0, 0.0, 0.0))], [[orbit_camera(0.0, 0.0, 40.0, 3.0, 9)]])
    assert float(behind.alpha.sum()) == 0 and bool((behind.part == -1).all())
    near = render_objects([ball.moved(1.0, (0.0, 0.7, 0.0))], [[orbit_camera(0.0, 0.0, 120.0, 0.2, 33)]])
    assert 0.02 < float(near.alpha.mean()) < 0.6


def test_several_samples_are_the_mean_of_a_finer_picture() -> None:
    model = make_object(parse("a green cactus"), torch.Generator().manual_seed(0))
    camera = orbit_camera(20.0, 10.0, 40.0, 2.6, 16)
    fine = render_objects([model], [[camera.resized(48, 48)]])
    coarse = render_objects([model], [[camera]], samples=3)
    pool = torch.nn.functional.avg_pool2d
    torch.testing.assert_close(coarse.alpha[0], pool(fine.alpha[0], 3))
    torch.testing.assert_close((coarse.rgb * coarse.alpha)[0], pool((fine.rgb * fine.alpha)[0], 3), atol=1e-6, rtol=0)
    assert torch.equal(coarse.part >= 0, coarse.alpha > 0)
    assert float(coarse.rgb.max()) <= 1 + 1e-6


def test_composites_show_the_background_where_nothing_is() -> None:
    objects, cameras = some(3, seed=5)
    seen = render_objects(objects, cameras)
    color = torch.tensor([0.2, 0.4, 0.6])
    over = composited(seen, color)
    empty = (seen.alpha == 0).expand_as(over)
    assert torch.equal(over[empty].unique(), color)
    torch.testing.assert_close(over[~empty], seen.rgb[~empty])
    backgrounds = sample_backgrounds(torch.Generator().manual_seed(0), 3000)
    torch.testing.assert_close(
        composited(seen, backgrounds[:3])[:, :, :, 0, 0], backgrounds[:3, :, :, 0, 0].expand(3, 2, 3)
    )
    white, grey = ((backgrounds == value).flatten(1).all(1).float().mean() for value in (1.0, 0.5))
    assert float(white) == pytest.approx(0.3, abs=0.035) and float(grey) == pytest.approx(0.2, abs=0.03)


def test_sets_of_cameras_that_differ_are_refused() -> None:
    objects, cameras = some(2)
    for wrong in (cameras[:1], [cameras[0], cameras[1][:1]], [cameras[0], orthogonal_cameras(0, 0, 40, 3, 16, 2)]):
        with pytest.raises(ValueError, match="same number of cameras of one size"):
            render_objects(objects, wrong)
