"""Targets: what they draw, that gradients are right, and what becomes of them at another resolution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from generation.distillation import BETAS, EPS
from generation.scenes import (
    GridConfig,
    GridTarget,
    HashConfig,
    HashTarget,
    Rings,
    SplatConfig,
    SplatTarget,
    Target,
    draw_views,
    view_sets,
)
from generation.views import ViewRange, azimuth_of, elevation_of, orthogonal_cameras
from scene.cameras import Camera
from scene.hash_field import Blob
from scene.mesh_extraction import MeshConfig
from scene.ops import native
from scene.ops.hash_encoding import HashLevels
from scene.volume_rendering import render_grid

needs_kernels = pytest.mark.skipif(not native.has(torch.device("cpu")), reason="the CPU module is not compiled")
CAMERAS = orthogonal_cameras(20.0, 15.0, 40.0, 2.7, 12)
GREY = torch.tensor([0.2, 0.5, 0.9])


SMALL_HASH = HashConfig(
    levels=HashLevels(levels=4, log2_rows=10, base=4, growth=1.6), hidden=16, samples=32, voxels=16, refresh=4
)


def targets() -> dict[str, Target]:
    return {
        "grid": GridTarget(GridConfig(voxels=12)),
        "hash": HashTarget(SMALL_HASH),
        "splats": SplatTarget(SplatConfig(count=300)),
    }


def colored(target: GridTarget) -> GridTarget:
    with torch.no_grad():
        target.grid.features.copy_(torch.randn(target.grid.features.shape, generator=torch.Generator().manual_seed(0)))
        target.grid.density.add_(2.0)
    return target


def loss_of(target: Target, weights: Tensor) -> Tensor:
    seen = target.render(CAMERAS, GREY)
    return (torch.cat([seen.rgb, seen.opacity], dim=1) * weights).sum()


def rough(target: HashTarget) -> HashTarget:
    """Every row counts, so that each has a gradient."""
    with torch.no_grad():
        target.field.table.mul_(5e3)
    return target


@pytest.mark.parametrize("kind", ["grid", "hash"])
def test_gradients_of_grids_are_those_of_finite_differences(kind: str) -> None:
    target = colored(GridTarget(GridConfig(voxels=12))) if kind == "grid" else rough(HashTarget(SMALL_HASH))
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(4, 4, 12, 12, generator=generator)
    loss_of(target, weights).backward()
    for tensor in target.parameters().values():
        direction = torch.randn(tensor.shape, generator=generator)
        assert tensor.grad is not None
        wanted = float((tensor.grad * direction).sum())
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                tensor += sign * 1e-3 * direction
                values.append(float(loss_of(target, weights)))
                tensor -= sign * 1e-3 * direction
        assert (values[0] - values[1]) / 2e-3 == pytest.approx(wanted, rel=0.03, abs=0.1)  # float32 pictures


def test_every_parameter_of_splats_has_a_gradient_that_leads_downhill() -> None:
    target, generator = SplatTarget(SplatConfig(count=300, opacity=0.5)), torch.Generator().manual_seed(1)
    with torch.no_grad():  # round ones would not turn
        target.gaussians.log_scales.add_(0.3 * torch.randn(300, 3, generator=generator))
    weights = torch.rand(4, 4, 12, 12, generator=generator)
    before = loss_of(target, weights)
    before.backward()
    for name, tensor in target.parameters().items():
        assert tensor.grad is not None and float(tensor.grad.abs().max()) > 0, name
        with torch.no_grad():
            step = 0.3 * tensor.grad / tensor.grad.square().sum()  # lowers a linear loss by 0.3
            tensor -= step
            assert float(loss_of(target, weights)) == pytest.approx(float(before.detach()) - 0.3, abs=0.15), name
            tensor += step


def test_all_views_at_once_are_the_pictures_of_the_grid() -> None:
    target = colored(GridTarget(GridConfig(voxels=12)))
    seen = target.render(CAMERAS, GREY)
    for i, camera in enumerate(CAMERAS):
        alone = render_grid(target.grid, camera, GREY)
        torch.testing.assert_close(seen.rgb[i].permute(1, 2, 0), alone.rgb, rtol=0, atol=1e-5)
        torch.testing.assert_close(seen.opacity[i, 0], alone.alpha, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["grid", "hash", "splats"])
def test_the_background_shows_where_the_scene_is_clear(name: str) -> None:
    target = targets()[name]
    with torch.no_grad():
        black, grey = target.render(CAMERAS, torch.zeros(3)), target.render(CAMERAS, GREY)
    clear = (1 - black.opacity) * GREY.view(3, 1, 1)
    torch.testing.assert_close(grey.rgb, black.rgb + clear, rtol=0, atol=1e-5)
    assert 0.05 < float(black.opacity.max()) <= 1 and float(black.opacity.min()) < 0.2


def test_a_finer_grid_looks_like_the_one_it_was_made_from() -> None:
    target = GridTarget(GridConfig(voxels=12))
    before = target.render(CAMERAS, GREY)
    assert not target.refined(12) and target.refined(24)
    after = target.render(CAMERAS, GREY)
    assert target.grid.density.shape == (24, 24, 24) and target.grid.density.requires_grad
    thicker = 1 - (1 - before.opacity) ** (23 / 11)  # as many more steps of the same optical depth
    torch.testing.assert_close(after.opacity, thicker, rtol=0, atol=0.05)


def test_shifted_samples_change_little_and_are_reproducible() -> None:
    target = colored(GridTarget(GridConfig(voxels=12)))
    plain = target.render(CAMERAS, GREY).rgb
    drawn = [target.render(CAMERAS, GREY, torch.Generator().manual_seed(seed)).rgb for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert float((drawn[0] - plain).detach().abs().mean()) < 0.02


def test_rings_hold_every_view_once_and_ranges_are_drawn_from() -> None:
    sets = view_sets(Rings(3, (0.0, 30.0)), 8, 4)
    seen = [(round(azimuth_of(c)) % 360, round(elevation_of(c))) for views in sets for c in views]
    assert sorted(seen) == sorted((30 * i, e) for i in range(12) for e in (0, 30))
    generator = torch.Generator().manual_seed(0)
    drawn = {round(azimuth_of(draw_views(Rings(3, (0.0,)), 8, 4, generator)[0])) for _ in range(30)}
    assert drawn == {0, 30, 60}
    views = draw_views(ViewRange(elevation=(10.0, 12.0)), 8, 4, generator)
    assert len(views) == 4 and 10 <= elevation_of(views[0]) <= 12


def test_rates_fall_towards_the_end() -> None:
    grid = GridTarget(GridConfig(voxels=4, rate=0.1, last_rate=0.1, falls_from=0.5))
    assert [grid.rates(share)["density"] for share in (0.0, 0.5, 0.75, 1.0)] == pytest.approx(
        [0.1, 0.1, 0.0316, 0.01], rel=1e-3
    )
    hashed = HashTarget(replace(SMALL_HASH, rate=0.1, mlp_rate=0.01, last_rate=0.1, falls_from=0.5))
    assert list(hashed.rates(0.0)) == list(hashed.parameters())
    assert list(hashed.rates(0.3).values()) == [0.1, 0.01, 0.01]
    assert list(hashed.rates(1.0).values()) == pytest.approx([0.01, 0.001, 0.001])
    splats = SplatTarget(SplatConfig(count=10))
    assert [splats.rates(share)["means"] for share in (0.0, 0.6, 1.0)] == pytest.approx([1e-3, 2e-5, 2e-5])
    assert list(splats.rates(0.0)) == list(splats.parameters())


@needs_kernels
def test_a_hash_grid_learns_pictures_of_a_ball_of_three_colours() -> None:
    """Views that it has not seen, too; every surface point's colour says which way it faces."""

    def pictures(cameras: Sequence[Camera], background: float) -> Tensor:
        found = []
        for camera in cameras:
            origins, directions = camera.rays()
            unit = functional.normalize(directions, dim=-1)
            along = -(origins * unit).sum(-1)
            room = 0.5**2 - (origins + along[..., None] * unit).square().sum(-1)
            facing = (origins + (along - room.clamp(min=0).sqrt())[..., None] * unit) / 0.5
            found.append(torch.where((room > 0)[..., None], 0.5 + 0.4 * facing, background).permute(2, 0, 1))
        return torch.stack(found)

    views = [orthogonal_cameras(30.0 * turn, e, 40.0, 2.7, 24) for turn in range(3) for e in (-30.0, 0.0, 30.0)]
    target = HashTarget(replace(SMALL_HASH, levels=HashLevels(levels=5, log2_rows=12, base=6, growth=1.5)))
    optimizer = torch.optim.Adam([{"params": [p]} for p in target.parameters().values()], betas=BETAS, eps=EPS)
    generator = torch.Generator().manual_seed(0)
    for step in range(90):
        for group, rate in zip(optimizer.param_groups, target.rates(step / 90).values(), strict=True):
            group["lr"] = rate
        cameras, back = views[step % len(views)], float(step % 2)
        seen = target.render(cameras, torch.full((3,), back), generator)
        loss = (seen.rgb - pictures(cameras, back)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    new = orthogonal_cameras(15.0, 15.0, 40.0, 2.7, 24)
    with torch.no_grad():
        error = (target.render(new, torch.zeros(3)).rgb - pictures(new, 0.0)).square().mean()
    assert -10 * math.log10(float(error)) > 24  # the silhouette is one pixel wide
    assert float(target.occupancy.occupied.float().mean()) < 0.6
    grid = target.voxel_grid(48)  # what a run keeps
    with torch.no_grad():
        shown = torch.stack([render_grid(grid, camera, torch.zeros(3)).rgb.permute(2, 0, 1) for camera in new])
        loss = (shown - target.render(new, torch.zeros(3)).rgb).square().mean()
    assert -10 * math.log10(float(loss)) > 30


def test_a_hash_grid_is_made_and_refreshed_by_its_seeds() -> None:
    def drawn(seed: int, number: int) -> Tensor:
        target = HashTarget(replace(SMALL_HASH, seed=seed))
        return target.render(CAMERAS, GREY, torch.Generator().manual_seed(number)).rgb.detach()

    first = drawn(0, 0)
    assert torch.equal(drawn(0, 0), first)
    assert not torch.equal(drawn(1, 0), first) and not torch.equal(drawn(0, 1), first)
    assert not HashTarget(SMALL_HASH).refined(64)


@needs_kernels
def test_a_ball_of_a_hash_grid_becomes_a_ball_of_triangles() -> None:
    target = HashTarget(replace(SMALL_HASH, samples=64, blob=Blob(2000.0, 0.45)))
    cameras = [c for e in (-35.0, 0.0, 35.0) for c in orthogonal_cameras(e, e, 40.0, 2.7, 48, 6)]
    mesh = target.mesh(cameras, MeshConfig(voxels=32, faces=0))
    radii = torch.from_numpy(mesh.vertices).norm(dim=1)
    assert float((radii - 0.45).abs().mean()) < 0.024  # a step between samples
    assert mesh.colors is not None and abs(float(mesh.colors.mean()) - 128) < 3


@needs_kernels
def test_an_opaque_ball_becomes_a_ball_of_triangles() -> None:
    target = GridTarget(GridConfig(voxels=32))
    with torch.no_grad():  # raw density 0 at half the radius of the start
        axis = torch.linspace(-0.75, 0.75, 32)
        away = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")).norm(dim=0)
        target.grid.density.copy_(((0.45 - away) / 0.048 * 6).clamp(-12, 12))
        target.grid.features[:, 0] = 8.0
        target.grid.features[:, 1:] = -8.0
    cameras = [c for e in (-35.0, 0.0, 35.0) for c in orthogonal_cameras(e, e, 40.0, 2.7, 48, 6)]
    mesh = target.mesh(cameras, MeshConfig(voxels=32, faces=0))
    radii = torch.from_numpy(mesh.vertices).norm(dim=1)
    assert float((radii - 0.45).abs().mean()) < 0.024  # half a voxel
    assert mesh.colors is not None and mesh.colors[:, 0].mean() > 240 and mesh.colors[:, 1:].mean() < 15
