"""Pictures of voxel grids: against plain quadrature, closed forms and exact first hits; alpha, backgrounds, depth."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from data.synthetic import OpaqueScene, soft_solids
from data.synthetic_solids import Box, Ellipsoid, Solid, checker
from scene import volume_rendering
from scene.cameras import Camera
from scene.ops.trilinear import trilinear_reference
from scene.ray_space import GridFrame
from scene.volume_rendering import Field, Rendered, frame_of, render_field, render_grid
from scene.voxel_grid import VoxelGrid
from tests.scene.voxel_grids import a_frame, a_pose, ball, grid_of, looking_at, places, solid_where

BLACK, WHITE = torch.zeros(3), torch.ones(3)
EYE = (1.9, -2.6, 1.4)


def hilly(points: Tensor) -> Tensor:
    """A smooth raw density, dense in places; a tenth of the light comes through."""
    return 4 * (2.1 * points[:, 0]).sin() * (1.7 * points[:, 1] + 0.4).cos() + 3 * points[:, 2] + 1


def colourful(points: Tensor) -> Tensor:
    return 2 * torch.stack([points[:, 0], (3 * points[:, 1]).sin(), points[:, 2]], dim=1)


def field_of(grid: VoxelGrid) -> Field:
    """A grid of colours as a function of places in the world, in plain torch."""
    table = (grid.density + grid.shifts).reshape(-1, 1)
    rows = torch.arange(len(table), dtype=torch.int32).view(grid.density.shape)

    def field(points: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        at, last = grid.frame.grid_from_world(points), torch.tensor(grid.frame.size) - 1
        raw = trilinear_reference(table, rows, at)[:, 0]
        sigmas = torch.nn.functional.softplus(raw) * grid.interval / (grid.step * grid.frame.voxel_size)
        inside = ((at >= 0) & (at <= last)).all(-1)
        return torch.where(inside, sigmas, 0.0), trilinear_reference(grid.features, grid.rows, at).sigmoid()

    return field


def test_a_grid_looks_as_plain_quadrature_of_its_field() -> None:
    grid = grid_of(a_frame("bounded"), hilly, features=colourful, step=0.05)
    camera = looking_at(EYE, size=16)
    found = render_grid(grid, camera, BLACK)
    wanted = render_field(field_of(grid), camera, BLACK, 1.5, 6.0, 1500)
    assert float(wanted.alpha.min()) < 0.01 and float(wanted.alpha.max()) > 0.99
    # Samples stand for the 0.05 voxels behind them: what changes over that is 1 % of the whole, and rays end at 1e-3.
    for a, b in ((found.alpha, wanted.alpha), (found.rgb, wanted.rgb)):
        assert float((a - b).abs().max()) < 0.015 and float((a - b).abs().mean()) < 2e-3
    both = (found.depth > 0) & (wanted.depth > 0)
    assert float(both.float().mean()) > 0.3
    assert float((found.depth - wanted.depth)[both].abs().max()) < 0.1 * grid.frame.voxel_size


def test_fog_is_as_thick_as_its_way_through_the_box() -> None:
    """alpha = 1 - exp(-sigma length) in closed form, within the step by which a way is rounded up."""
    frame = a_frame("bounded")
    grid = grid_of(frame, lambda points: torch.full_like(points[:, 0], 2.5), features=colourful)
    camera = looking_at(EYE)
    sigma = math.log1p(math.exp(2.5 + float(grid.shifts[0]))) / frame.voxel_size
    origins, directions = (part.reshape(-1, 3).double() for part in camera.rays())
    unit = torch.nn.functional.normalize(directions, dim=-1)
    half = (frame.box[1] - frame.box[0]).double() / 2
    entry, leave = Box(frame.box[0].double() + half, half).interval(origins, unit)
    length = torch.where(entry.isfinite(), leave - entry, 0.0)
    found = render_grid(grid, camera, BLACK).alpha.flatten().double()
    exact = [-torch.expm1(-sigma * way) for way in (length, length + grid.step * frame.voxel_size * (length > 0))]
    assert float(exact[0].max()) > 0.5 and float(exact[0].min()) == 0
    assert bool((found > exact[0] - 1e-4).all() and (found < exact[1] + 1e-4).all())  # float32 sums of 50 samples


def seen_exactly(camera: Camera, *solids: Solid) -> tuple[Tensor, Tensor]:
    """Depth of first hits [H, W] and what is hit, at pixel centres."""
    light = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    shown = OpaqueScene(solids, checker(0.2), light).show(camera.to(dtype=torch.float64))
    return shown.depth, shown.mask


def inner(mask: Tensor, width: int = 2) -> Tensor:
    """Pixels that are farther than `width` from anything unset."""
    outside = torch.nn.functional.max_pool2d((~mask)[None].float(), 2 * width + 1, stride=1, padding=width)[0]
    return outside == 0


def opaque_ball(voxels: int = 41) -> tuple[GridFrame, VoxelGrid, Ellipsoid]:
    frame = a_frame("bounded", (voxels, voxels, voxels))
    grid = grid_of(frame, ball((0.1, -0.05, 0.0), 0.6, frame), features=colourful)
    centre = torch.tensor([0.1, -0.05, 0.0], dtype=torch.float64)
    return frame, grid, Ellipsoid(centre, torch.full((3,), 0.6, dtype=torch.float64))


def test_depth_and_silhouette_of_an_opaque_ball_are_those_of_its_surface() -> None:
    frame, grid, solid = opaque_ball()
    camera = looking_at(EYE, size=60, fov=0.5)
    found = render_grid(grid, camera, BLACK)
    depth, mask = seen_exactly(camera, solid)
    facing = inner(mask)
    assert float(facing.float().mean()) > 0.2
    error = (found.depth - depth)[facing] / frame.voxel_size
    # Samples lie half a voxel apart, and half of the light is lost a tenth of a voxel behind the surface.
    assert float(error.abs().max()) < 0.35 and abs(float(error.mean())) < 0.1
    assert float(found.alpha[facing].min()) > 0.99
    outside = inner(~mask)
    assert float(found.alpha[outside].max()) < 1e-3 and not bool(found.depth[outside].any())


def test_depth_is_along_the_axis_of_the_camera_not_along_the_ray() -> None:
    """A wall that is parallel to the picture has one depth, up to the corners."""
    frame = a_frame("bounded", (41, 41, 41))
    grid = grid_of(frame, lambda points: solid_where(points[:, 1] - 0.2, frame.voxel_size))
    camera = looking_at((0.0, -3.0, 0.0), (0.0, 0.0, 0.0), size=32, fov=0.45)
    depth = render_grid(grid, camera, BLACK).depth
    torch.testing.assert_close(depth, torch.full((32, 32), 3.2), rtol=0, atol=0.35 * frame.voxel_size)


@pytest.mark.parametrize(
    ("kind", "away", "within"), [("forward", 2.7, 0.6), ("unbounded", 1.5, 0.35), ("unbounded", 6.0, 0.7)]
)
def test_depth_of_a_wall_is_known_where_space_is_bent(kind: str, away: float, within: float) -> None:
    """A wall before a camera, to a share of the voxels there; unbounded: in the cube and beyond it.

    Samples lie half a voxel apart; in NDC a whole one, and in the shell where crowded ones are left out.
    """
    frame = a_frame(kind, (31, 31, 61) if kind == "forward" else (81, 81, 81))
    pose = a_pose(torch.float32)
    if kind == "unbounded":  # from the middle, through the inner cube's face
        pose[:3, 3] = torch.tensor([-0.5, 0.25, -0.75])
    camera = Camera(torch.tensor([[60.0, 0, 16], [0, 60.0, 16], [0, 0, 1]]), pose, 32, 32)
    at = frame.grid_from_world(torch.stack([pose[:3, 3] + z * pose[:3, 2] for z in (away, away + 0.01)]))
    voxel = 0.01 / float((at[1] - at[0]).norm())
    grid = grid_of(frame, lambda points: solid_where((points - pose[:3, 3]) @ pose[:3, 2] - away, voxel))
    found = render_grid(grid, camera, BLACK)
    torch.testing.assert_close(found.depth, torch.full_like(found.depth, away), rtol=0, atol=within * voxel)
    assert float(found.alpha.min()) > 0.99


def test_the_background_shows_by_what_alpha_leaves() -> None:
    grid = grid_of(a_frame("bounded"), hilly, features=colourful)
    camera = looking_at(EYE)
    black, white = render_grid(grid, camera, BLACK), render_grid(grid, camera, WHITE)
    red = render_grid(grid, camera, torch.tensor([1.0, 0.0, 0.0]))
    left = (1 - black.alpha)[..., None]
    torch.testing.assert_close(white.rgb, black.rgb + left, rtol=0, atol=1e-6)
    torch.testing.assert_close(red.rgb, black.rgb + left * torch.tensor([1.0, 0, 0]), rtol=0, atol=1e-6)
    assert torch.equal(black.alpha, white.alpha) and torch.equal(black.depth, white.depth)
    assert float(black.alpha.min()) >= 0 and float(black.alpha.max()) <= 1
    assert bool((black.depth[black.alpha < 0.5] == 0).all()) and bool((black.depth[black.alpha > 0.5] > 0).all())


def test_a_grid_in_which_nothing_is_dense_shows_the_background() -> None:
    grid = replace(grid_of(a_frame("bounded"), lambda points: torch.full_like(points[:, 0], -30.0)), threshold=1e-6)
    seen = render_grid(grid, looking_at(EYE, size=8), torch.tensor([0.2, 0.4, 0.6]))
    assert torch.equal(seen.rgb, torch.tensor([0.2, 0.4, 0.6]).expand(8, 8, 3))
    assert not bool(seen.alpha.any()) and not bool(seen.depth.any())


def test_pictures_do_not_depend_on_how_many_rays_go_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = grid_of(a_frame("bounded"), hilly, features=colourful)
    camera = looking_at(EYE, size=20)
    whole = render_grid(grid, camera, WHITE)
    monkeypatch.setattr(volume_rendering, "RAYS_AT_ONCE", 77)
    parts = render_grid(grid, camera.to(dtype=torch.float64), WHITE)
    for name in ("rgb", "alpha"):
        assert torch.equal(getattr(whole, name), getattr(parts, name))
    torch.testing.assert_close(parts.depth, whole.depth, rtol=1e-6, atol=0)  # sums of other samples come before


def test_plain_quadrature_shows_soft_solids_as_they_are() -> None:
    """FX-A, whose pictures are exact integrals: midpoint steps of 2 mm know an edge to 1 mm, and sigma is 40."""
    fixture = soft_solids(train=1, test=1, size=20)
    scene, shown = fixture.scene, fixture.train[0]

    def field(points: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        inside = []
        for solid in scene.solids:  # type: ignore[attr-defined]
            local = (points - solid.center) @ solid.rotation
            if isinstance(solid, Box):
                inside.append((local.abs() < solid.half).all(-1))
            else:
                inside.append((local / solid.radii).norm(dim=-1) < 1)
        sigmas = 40.0 * torch.stack(inside).sum(0)
        return sigmas, torch.zeros(len(points), 3, dtype=points.dtype)

    found = render_field(field, shown.camera, torch.zeros(3, dtype=torch.float64), 2.0, 6.0, 2000)
    torch.testing.assert_close(found.alpha, shown.alpha, rtol=0, atol=0.05)
    assert float((found.alpha - shown.alpha).abs().mean()) < 2e-3
    solid = shown.alpha > 0.99
    # Half of the light is lost log 2 / 40 behind the surface, the mean of it 1 / 40.
    torch.testing.assert_close(found.depth[solid], shown.depth[solid] + (math.log(2) - 1) / 40, rtol=0, atol=0.02)


def test_frames_for_meshes_hold_bytes_and_the_depth_of_surfaces() -> None:
    _, grid, _ = opaque_ball(21)
    camera = looking_at(EYE, size=20)
    rendered = render_grid(grid, camera, BLACK)
    frame = frame_of(Rendered(rendered.rgb * 1.5, rendered.alpha, rendered.depth), camera)
    assert frame.camera is camera and frame.empty_is_free and frame.rgb.dtype == torch.uint8
    assert torch.equal(frame.rgb, (255 * (1.5 * rendered.rgb).clamp(max=1)).round().to(torch.uint8))
    assert torch.equal(frame.depth, rendered.depth) and torch.equal(frame.alpha, rendered.alpha)  # type: ignore[arg-type]


def test_turning_camera_and_grid_together_changes_nothing() -> None:
    """By a quarter: voxels fall on voxels, so that only the order of sums differs."""
    frame = a_frame("bounded", (21, 21, 21))
    frame = replace(frame, box=torch.tensor([[-1.0, -1, -1], [1, 1, 1]]))
    turn = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    camera = looking_at(EYE, size=24)
    c2w = camera.c2w.clone()
    c2w[:3] = turn @ c2w[:3]
    straight = grid_of(frame, hilly, features=colourful)
    turned = grid_of(frame, lambda p: hilly(p @ turn), features=lambda p: colourful(p @ turn))
    assert len(places(frame.size)) == len(turned)
    a, b = render_grid(straight, camera, BLACK), render_grid(turned, replace(camera, c2w=c2w), BLACK)
    # A way that ends on a face may be rounded to one sample more.
    assert float((a.rgb - b.rgb).abs().mean()) < 1e-5 and float((a.alpha - b.alpha).abs().max()) < 0.05
