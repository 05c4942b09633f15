"""The world in the box of a grid: inverses, samples on their rays, entries in closed form, straight rays in NDC."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from data.synthetic_solids import Box
from scene.ops.grid_march import Samples, contract
from scene.ray_space import FARTHEST, SHELL, GridFrame, Space, grid_size, plane_size
from tests.scene.density_grids import drawn
from tests.scene.voxel_grids import KINDS, a_frame, a_pose, a_space, places, rays_for

STEP = 0.5


def world_points(kind: str, count: int = 500) -> Tensor:
    """Places that the space has room for: ahead of the nearest plane, or near and far on all sides."""
    origins, directions = rays_for(kind, count)
    lengths = 10 ** (3 * drawn(count, 1, seed=9) - 0.5) if kind != "bounded" else 8 * drawn(count, 1, seed=9)
    return origins + (1 + lengths) * directions


def sample_places(frame: GridFrame, origins: Tensor, directions: Tensor, index: Tensor, **named: float) -> Tensor:
    """World places [R, 3] of one sample of each ray."""
    spans = frame.spans(origins, directions, STEP, **named)
    if spans.curve is None:
        return frame.world_from_grid(spans.origins + (spans.starts + index)[:, None] * spans.directions)
    bent = contract(spans.origins + spans.curve.distances[index][:, None] * spans.directions, SHELL)
    return frame.space.to_world(bent)


def off_ray(points: Tensor, origins: Tensor, directions: Tensor) -> Tensor:
    """Distances [R] of places from the lines of rays, over their distance from the origins."""
    away = points - origins
    return (away - (away * directions).sum(-1, keepdim=True) * directions).norm(dim=-1) / away.norm(dim=-1)


@pytest.mark.parametrize("kind", KINDS)
def test_the_way_into_the_box_and_back_leads_to_the_same_place(kind: str) -> None:
    space, points = a_space(kind), world_points(kind)
    # float64 to 1e-12 of the distance; 1.2 - 0.2 / n loses n / 0.2 of that for places n inner radii away, up to 1e3
    torch.testing.assert_close(space.to_world(space.from_world(points)), points, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_the_way_from_the_grid_into_the_world_and_back_leads_to_the_same_voxel(kind: str) -> None:
    frame = a_frame(kind, (5, 7, 9), torch.float64)
    inner = places(frame.size, torch.float64)[places(frame.size).amax(-1) < 4]  # not the layers at infinity
    inner = inner[inner.amin(-1) > 0]
    torch.testing.assert_close(frame.grid_from_world(frame.world_from_grid(inner)), inner, rtol=0, atol=1e-6)


def test_outermost_voxel_centres_lie_on_the_faces_of_the_box() -> None:
    frame = a_frame("bounded", dtype=torch.float64)
    corners = torch.tensor([[0.0, 0, 0], [20, 16, 24]], dtype=torch.float64)
    torch.testing.assert_close(frame.world_from_grid(corners), frame.box, rtol=0, atol=1e-12)
    edges = (frame.box[1] - frame.box[0]) / torch.tensor([20, 16, 24])
    assert frame.voxel_size == pytest.approx(float(edges.prod()) ** (1 / 3), rel=1e-12)


def test_contraction_is_continuous_at_the_cube_and_ends_at_its_shell() -> None:
    """Spec 1(j), T6."""
    space = Space("unbounded", torch.eye(4, dtype=torch.float64))
    around = torch.tensor([[1 - 1e-9, 0.3, -0.2], [1 + 1e-9, 0.3, -0.2]], dtype=torch.float64)
    inside, outside = space.from_world(around)
    assert float((inside - outside).norm()) < 1e-6
    far = space.from_world(torch.tensor([[1e6, 2.0, -3.0]], dtype=torch.float64))
    assert float(far[0, 0]) == pytest.approx(1.2 - 2e-7, abs=1e-12)
    assert bool(space.to_world(torch.full((1, 3), 1 + SHELL, dtype=torch.float64)).isfinite().all())


@pytest.mark.parametrize("near", [0.0, 3.6])
def test_bounded_rays_enter_and_leave_where_the_slabs_say(near: float) -> None:
    frame = a_frame("bounded", dtype=torch.float64)
    origins, directions = rays_for("bounded", 400)
    origins[:100] *= 0.15  # from inside the box
    half = (frame.box[1] - frame.box[0]) / 2
    entry, leave = Box(frame.box[0] + half, half).interval(origins, directions)
    entry, met = entry.clamp(min=near), leave > entry.clamp(min=near)
    spans, stride = frame.spans(origins, directions, STEP, near), STEP * frame.voxel_size
    assert 80 < int(met.sum()) < 380
    assert bool((spans.counts[~met] == 0).all())
    # an exact multiple of the stride may round to either side; none is that near here
    assert torch.equal(spans.counts[met].double(), ((leave - entry)[met] / stride).ceil())
    first = sample_places(frame, origins, directions, torch.zeros_like(entry), near=near)
    torch.testing.assert_close(first[met], (origins + entry[:, None] * directions)[met], rtol=0, atol=1e-9)
    second = sample_places(frame, origins, directions, torch.ones_like(entry), near=near)
    steps = (second - first).norm(dim=-1)[met]
    torch.testing.assert_close(steps, torch.full_like(steps, stride), rtol=1e-9, atol=0)


def test_rays_along_the_axes_meet_the_box_only_between_its_faces() -> None:
    frame = a_frame("bounded")
    origins = torch.tensor([[-5.0, 0.1, 0.2], [-5.0, 0.95, 0.2], [5.0, 0.1, 0.2], [0.1, 9.0, 0.0], [0.1, 0.2, 0.3]])
    directions = torch.tensor([[1.0, 0, 0], [1.0, 0, 0], [1.0, 0, 0], [0, -1.0, 0], [0, 0, -1.0]])
    counts = frame.spans(origins, directions, STEP).counts
    stride = STEP * frame.voxel_size
    assert counts.tolist() == [round(length / stride + 0.5) for length in (2.1, -stride / 2, -stride / 2, 1.7, 1.5)]


def test_straight_rays_stay_straight_in_ndc() -> None:
    frame = a_frame("forward", dtype=torch.float64)
    origins, directions = rays_for("forward", 200)
    spans = frame.spans(origins, directions, STEP)
    for distance in (1.2, 3.0, 40.0, 1e4):  # whatever lies on the ray lies on its line in the grid
        at = frame.grid_from_world(origins + distance * directions)
        along = (at - spans.origins)[:, 2:] / spans.directions[:, 2:]
        torch.testing.assert_close(spans.origins + along * spans.directions, at, rtol=0, atol=1e-8)


def test_ndc_rays_start_on_the_nearest_plane_and_end_at_infinity() -> None:
    frame = a_frame("forward", dtype=torch.float64)
    origins, directions = rays_for("forward", 200)
    spans = frame.spans(origins, directions, STEP)
    assert spans.counts.unique().tolist() == [round((frame.size[2] - 1) / STEP) + 1]
    first = sample_places(frame, origins, directions, torch.zeros(200))
    pose = a_pose()
    depth = (first - pose[:3, 3]) @ pose[:3, 2]
    torch.testing.assert_close(depth, torch.full_like(depth, frame.space.near), rtol=0, atol=1e-9)
    assert float(off_ray(first, origins, directions).max()) < 1e-9
    last = spans.origins + (spans.counts - 1)[:, None] * spans.directions
    torch.testing.assert_close(last[:, 2], torch.full_like(depth, frame.size[2] - 1), rtol=0, atol=1e-9)


def test_rays_that_look_back_have_no_samples_in_ndc() -> None:
    frame = a_frame("forward")
    origins, directions = rays_for("forward", 20, dtype=torch.float32)
    assert bool((frame.spans(origins, -directions, STEP).counts == 0).all())


def test_bent_samples_lie_on_their_rays_from_the_camera_to_far_away() -> None:
    frame = a_frame("unbounded", (33, 33, 33), torch.float64)
    origins, directions = rays_for("unbounded", 100)
    spans = frame.spans(origins, directions, STEP)
    assert spans.curve is not None
    distances = spans.curve.distances
    assert bool((distances.diff() > 0).all())
    inner_radius = 2.5  # of this space, in world units
    for index in (0, 20, len(distances) // 2, len(distances) - 1):
        at = sample_places(frame, origins, directions, torch.full((100,), index))
        assert float(off_ray(at, origins, directions).max()) < 1e-6
        length = (at - origins).norm(dim=-1) / inner_radius
        torch.testing.assert_close(length, distances[index].expand(100), rtol=1e-6, atol=0)
    inner = distances[distances < 2].diff() / (2 * (1 + SHELL) / (33 - 1))
    assert float(inner.max()) <= STEP  # voxels apart, at most, where space is not contracted
    assert 0.8 * 2 / FARTHEST > float(distances[-1]) > 0.3 * 2 / FARTHEST  # the middle of the last interval


@pytest.mark.parametrize("kind", KINDS)
def test_shares_of_a_ray_ascend_from_its_start_to_its_end(kind: str) -> None:
    frame = a_frame(kind)
    origins, directions = rays_for(kind, 60, dtype=torch.float32)
    spans = frame.spans(origins, directions, STEP)
    counts = spans.counts.long()
    rays = torch.repeat_interleave(torch.arange(60), counts)
    index = torch.cat([torch.arange(n) for n in counts.tolist()])
    nothing = torch.empty(0)
    samples = Samples(nothing, nothing, spans.starts[rays] + index, rays.int(), nothing.int(), nothing)
    shares, interval = frame.ray_shares(spans, samples, STEP)
    assert float(shares.min()) >= 0 and float(shares.max()) <= 1
    same = rays.diff() == 0
    assert bool((shares.diff()[same] > 0).all())
    assert float(shares[index == 0].max()) <= 0.03  # a sample of a coarse grid
    if kind != "bounded":  # whose rays may cut a corner
        assert float(shares.max()) > 1 - interval
        assert interval == pytest.approx(1 / int(counts[0]))


def test_grids_have_about_the_voxels_that_were_asked_for_along_the_edges_of_the_box() -> None:
    box = torch.tensor([[0.0, 0, 0], [4, 2, 1]])
    assert grid_size(box, 8 * 20**3) == (80, 40, 20)
    assert grid_size(box, 1) == (2, 2, 2)
    assert plane_size(torch.tensor([[-1.0, -1, -1], [1, 0.5, 1]]), 128 * 40 * 30, 128) == (40, 30, 128)


def test_a_frame_moves_as_a_whole() -> None:
    frame = a_frame("forward")
    moved = frame.to("cpu")
    assert torch.equal(moved.box, frame.box) and moved.space.lens == frame.space.lens
    assert moved.space.near == frame.space.near and replace(moved, size=(2, 2, 2)).size == (2, 2, 2)
