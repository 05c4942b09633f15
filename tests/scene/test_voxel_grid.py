"""Voxel grids: resampling is exact for linear fields, live voxels are all that samples read, files keep every bit."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import max_pool3d

from scene.checkpoints import read_checkpoint, write_checkpoint
from scene.errors import InputError
from scene.ops.color_mlp import color_mlp
from scene.ops.grid_march import march
from scene.ops.sh_color import sh_color
from scene.ops.trilinear import trilinear_reference
from scene.voxel_grid import (
    VoxelGrid,
    dense_alpha,
    dilate,
    embed,
    live_rows,
    load_voxel_grid,
    new_grid,
    resampled,
    save_voxel_grid,
    with_occupied,
)
from tests.scene.density_grids import drawn
from tests.scene.voxel_grids import CHANNELS, KINDS, a_frame, ball, grid_of, places, rays_for

SIZE = (9, 7, 11)
RATE = torch.tensor([0.21, -0.13, 0.17])


def linear(points: Tensor) -> Tensor:
    """A raw density that is linear in the world."""
    return points @ RATE - 0.1


def three_linear(points: Tensor) -> Tensor:
    """Three features that are."""
    return torch.stack([linear(points), 0.3 - 2 * linear(points), points[:, 1]], dim=1)


def dense_features(grid: VoxelGrid) -> Tensor:
    """[X, Y, Z, C], zeros where none are stored."""
    return torch.where(grid.rows[..., None] >= 0, grid.features[grid.rows.clamp(min=0).long()], 0.0)


def seen(grid: VoxelGrid, kind: str) -> list[Tensor]:
    """Samples and colours of rays through the grid."""
    origins, directions = rays_for(kind, 200, dtype=torch.float32)
    samples = march(grid.packed_density(), grid.frame.spans(origins, directions, grid.step), grid.limits())
    return [samples.points, samples.weights, samples.last, grid.colors(samples, directions)]


@pytest.mark.parametrize("size", [(18, 14, 22), (12, 9, 10), (5, 7, 3)])
def test_resampling_a_linear_field_is_exact(size: tuple[int, int, int]) -> None:
    """Spec 1(j), T5. float32 numbers below 1: each of the eight terms is rounded by up to 6e-8."""
    frame = a_frame("bounded", SIZE)
    grid = grid_of(frame, linear, features=three_linear)
    grid.shifts.copy_(torch.linspace(-3, -1, SIZE[2]))
    again = resampled(grid, size, interval=0.5)
    assert again.frame.size == tuple(again.density.shape) == size and bool(again.occupied.all())
    points = again.frame.world_from_grid(places(size))
    assert float((again.density.flatten() - linear(points)).abs().max()) < 1e-6
    assert float((dense_features(again).view(-1, 3) - three_linear(points)).abs().max()) < 1e-6
    torch.testing.assert_close(again.shifts, torch.linspace(-3, -1, size[2]), rtol=0, atol=1e-6)


def test_a_doubling_lowers_b_by_one_and_changes_nothing_else() -> None:
    grid = grid_of(a_frame("bounded", SIZE), linear, features=three_linear)
    size = (11, 9, 14)
    plain = resampled(grid, size, interval=0.4)
    doubled = resampled(grid, size, interval=0.4, shift_by=-1.0)
    torch.testing.assert_close(doubled.shifts, plain.shifts - 1, rtol=0, atol=0)
    assert torch.equal(doubled.density, plain.density) and torch.equal(doubled.features, plain.features)
    assert plain.interval == doubled.interval == 0.4 and plain.step == grid.step
    # so the densities are as if e^raw were e times smaller: of thin ones alpha too, but for its square
    torch.testing.assert_close(doubled.alpha(), plain.alpha() / math.e, rtol=0.02, atol=0)


def test_resampling_drops_voxels_in_which_nothing_is_dense() -> None:
    frame = a_frame("bounded", (17, 15, 19))
    grid = replace(grid_of(frame, ball((0, 0, 0), 0.5, frame)), threshold=1e-4)
    again = resampled(grid, (30, 26, 34), interval=0.25)
    points = again.frame.world_from_grid(places(again.frame.size))
    kept = again.occupied.flatten()
    assert bool(kept[points.norm(dim=-1) < 0.5].all()) and not bool(kept[points.norm(dim=-1) > 0.9].any())
    assert len(again) == int((again.rows >= 0).sum()) == int(dilate(again.occupied).sum())


def test_live_voxels_are_those_that_samples_near_occupied_ones_are_interpolated_from() -> None:
    occupied = drawn(*SIZE, seed=4) < 0.05
    rows = live_rows(occupied)
    points = drawn(20_000, 3, seed=5) * torch.tensor(SIZE) - 0.5
    x, y, z = (points + 0.5).floor().long().unbind(-1)
    points = points[occupied[x, y, z]].clamp(min=0).minimum(torch.tensor(SIZE) - 1)
    read = torch.zeros(SIZE, dtype=torch.bool)
    for corner in torch.cartesian_prod(*(torch.arange(2),) * 3):
        at = (points.floor().long() + corner).minimum(torch.tensor(SIZE) - 1)
        weight = (1 - (points - at).abs()).clamp(min=0).prod(-1)
        read[at[weight > 0].unbind(-1)] = True
    assert bool((rows[read] >= 0).all())
    assert float((rows >= 0)[~read].float().mean()) < 0.02  # and hardly more: places drawn at random miss some
    assert torch.equal(rows[rows >= 0], torch.arange(int(rows.max()) + 1, dtype=torch.int32))  # in the grid's order


def test_the_most_of_a_voxel_and_its_neighbours_is_that_of_a_pool() -> None:
    voxels = drawn(*SIZE, seed=1) < 0.03
    assert torch.equal(dilate(voxels), max_pool3d(voxels[None, None].float(), 3, 1, 1)[0, 0] > 0)
    grid = grid_of(a_frame("bounded", SIZE), lambda points: 4 * drawn(len(points), seed=2).float())
    assert torch.equal(dense_alpha(grid), max_pool3d(grid.alpha()[None, None], 3, 1, 1)[0, 0])


@pytest.mark.parametrize("head", ["rgb", "sh", "mlp"])
def test_other_occupied_voxels_keep_the_features_of_their_place(head: str) -> None:
    grid = grid_of(a_frame("bounded", SIZE), linear, head=head)  # type: ignore[arg-type]
    fewer = with_occupied(grid, drawn(*SIZE, seed=7) < 0.1, features_of=grid)
    live = fewer.rows >= 0
    assert 0 < len(fewer) == int(live.sum()) < len(grid)
    assert torch.equal(dense_features(fewer)[live], dense_features(grid)[live])
    assert not bool(with_occupied(grid, torch.zeros(SIZE, dtype=torch.bool), features_of=grid).features.any())


@pytest.mark.parametrize("head", ["rgb", "sh", "mlp"])
def test_colours_are_what_the_head_makes_of_interpolated_features(head: str) -> None:
    grid = grid_of(a_frame("bounded", SIZE), linear, head=head)  # type: ignore[arg-type]
    origins, directions = rays_for("bounded", 50, dtype=torch.float32)
    samples = march(grid.packed_density(), grid.frame.spans(origins, directions, grid.step), grid.limits())
    features = trilinear_reference(grid.features, grid.rows, samples.points)
    if head == "mlp":
        assert grid.mlp is not None
        wanted = color_mlp(grid.mlp, features, samples.rays, embed(directions))
    else:
        wanted = features.sigmoid() if head == "rgb" else sh_color(features, samples.rays, directions)
    assert len(wanted) > 300
    torch.testing.assert_close(grid.colors(samples, directions), wanted, rtol=0, atol=1e-5)  # float32 sums


def test_directions_are_embedded_with_sines_and_cosines_of_four_octaves() -> None:
    x, y, z = 0.6, 0.0, -0.8
    (found,) = embed(torch.tensor([[x, y, z]])).tolist()
    scaled = [axis * 2**octave for axis in (x, y, z) for octave in range(4)]
    assert found == pytest.approx([x, y, z, *map(math.sin, scaled), *map(math.cos, scaled)], abs=1e-6)


def test_a_new_grid_starts_clear_and_says_how_large_it_is() -> None:
    occupied = torch.zeros(SIZE, dtype=torch.bool)
    occupied[4, 3, 5] = True
    shifts = torch.full((SIZE[2],), math.log(1 / (1 - 1e-2) - 1))
    frame = a_frame("bounded", SIZE)
    grid = new_grid(frame, occupied, channels=5, head="mlp", mlp=None, shifts=shifts, interval=0.5, threshold=1e-4)
    assert float(grid.alpha().max()) == pytest.approx(5.0126e-3, rel=1e-4)  # spec 1(j), T1
    assert len(grid) == 27 and grid.parameters == 27 * (1 + 5)
    mlp = grid_of(frame, linear, head="mlp").mlp
    assert mlp is not None  # with 64 neurons: (12 + 27) * 64 + 64, 64 * 64 + 64, 64 * 3 + 3
    assert replace(grid, mlp=mlp).parameters == 27 * 6 + (12 + 27) * 64 + 64 + 64 * 64 + 64 + 64 * 3 + 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head", ["rgb", "sh", "mlp"])
def test_a_file_keeps_what_is_seen_to_the_bit(tmp_path: Path, kind: str, head: str) -> None:
    frame = a_frame(kind, (15, 13, 18))
    occupied = drawn(*frame.size, seed=11) < 0.2
    grid = grid_of(frame, lambda p: 5 * drawn(len(p), seed=8).float(), head=head, occupied=occupied)  # type: ignore[arg-type]
    grid = replace(grid, near=0.25, threshold=1e-5)
    save_voxel_grid(tmp_path / "scene.safetensors", grid)
    again = load_voxel_grid(tmp_path / "scene.safetensors")
    mine, theirs = seen(grid, kind), seen(again, kind)
    assert len(mine[0]) > 100 and all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    assert (len(again), again.parameters, again.near) == (len(grid), grid.parameters, grid.near)
    assert again.features.shape[1] == CHANNELS[head]  # type: ignore[index]
    save_voxel_grid(tmp_path / "again.safetensors", again)
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "scene.safetensors").read_bytes()


def test_a_grid_in_which_nothing_is_occupied_can_be_saved(tmp_path: Path) -> None:
    grid = grid_of(a_frame("bounded", SIZE), linear, features=three_linear)
    empty = with_occupied(grid, torch.zeros(SIZE, dtype=torch.bool), features_of=grid)
    save_voxel_grid(tmp_path / "a.safetensors", empty)
    points, _, last, _ = seen(load_voxel_grid(tmp_path / "a.safetensors"), "bounded")
    assert len(points) == 0 and bool((last == 1).all())


def spoilt(path: Path, change: Callable[[dict[str, Tensor], dict[str, Any]], object], kind: str = "bounded") -> Path:
    """A file of a sound grid, written again after a change, with checksums that fit."""
    frame = a_frame(kind, SIZE)
    save_voxel_grid(path, grid_of(frame, linear, head="mlp", occupied=drawn(*SIZE, seed=1) < 0.05))
    tensors, state, generation = read_checkpoint(path)
    change(tensors, state)
    write_checkpoint(path, tensors, state, generation)
    return path


SPOILS: dict[str, Callable[[dict[str, Tensor], dict[str, Any]], object]] = {
    "another kind of file": lambda t, s: s.update(kind="octree"),
    "another space": lambda t, s: s.update(space="curved"),
    "colours of an earlier version": lambda t, s: s.pop("first_colors"),
    "another head": lambda t, s: s.update(head="spline"),
    "no size": lambda t, s: s.pop("size"),
    "two sides": lambda t, s: s.update(size=[9, 7]),
    "a side of one voxel": lambda t, s: s.update(size=[1, 7, 11]),
    "other sides": lambda t, s: s.update(size=[7, 9, 11]),
    "more voxels than a file can hold": lambda t, s: s.update(size=[600, 600, 600]),
    "more voxels than there can be": lambda t, s: s.update(size=[10**6] * 3),
    "sizes in words": lambda t, s: s.update(size="many"),
    "an endless step": lambda t, s: s.update(step=1e9),
    "an interval of nothing": lambda t, s: s.update(interval=0),
    "a negative threshold": lambda t, s: s.update(threshold=-1),
    "a lens without width": lambda t, s: s.update(lens=[0, 1]),
    "a place nearer than nothing": lambda t, s: s.update(near=-1),
    "a place farther than float32 knows": lambda t, s: s.update(near=1e300),
    "a lens of one number": lambda t, s: s.update(lens=[1]),
    "a voxel before the first": lambda t, s: t["cells"].__setitem__(0, -1),
    "a voxel behind the last": lambda t, s: t["cells"].__setitem__(-1, math.prod(SIZE)),
    "voxels out of order": lambda t, s: t.update(cells=t["cells"].flip(0)),
    "a voxel twice": lambda t, s: t["cells"].__setitem__(1, int(t["cells"][0])),
    "a density too few": lambda t, s: t.update(density=t["density"][1:]),
    "densities in two columns": lambda t, s: t.update(density=t["density"][:, None].repeat(1, 2)),
    "features for too few": lambda t, s: t.update(features=t["features"][1:]),
    "features for too many": lambda t, s: t.update(features=torch.cat([t["features"]] * 2)),
    "features in three ways": lambda t, s: t.update(features=t["features"][..., None].repeat(1, 1, 2)),
    "no features": lambda t, s: t.pop("features"),
    "a feature that is not a number": lambda t, s: t["features"].__setitem__((3, 2), float("nan")),
    "an endless density": lambda t, s: t["density"].__setitem__(3, float("inf")),
    "a weight that is not a number": lambda t, s: t["mlp.2"].__setitem__((1, 1), float("nan")),
    "shifts for another depth": lambda t, s: t.update(shifts=t["shifts"][1:]),
    "occupied voxels of another grid": lambda t, s: t.update(occupied=t["occupied"][1:]),
    "occupied voxels as numbers": lambda t, s: t.update(occupied=t["occupied"].float()),
    "a network without its last layer": lambda t, s: t.pop("mlp.5"),
    "a network of another width": lambda t, s: t.update({"mlp.4": t["mlp.4"][:, 1:].contiguous()}),
    "a network without neurons": lambda t, s: [
        t.update({f"mlp.{i}": t[f"mlp.{i}"][:0] for i in range(4)}),
        t.update({"mlp.2": t["mlp.2"][:, :0], "mlp.4": t["mlp.4"][:, :0]}),
    ],
    "a box without volume": lambda t, s: t["box"].__setitem__((1, 2), float(t["box"][0, 2])),
    "a box that is too large": lambda t, s: t.update(box=torch.tensor([[-3e38] * 3, [3e38] * 3])),
    "a box as flat as paper": lambda t, s: t.update(box=torch.tensor([[0.0, -1, -1], [1e-20, 1, 1]])),
    "a box of one corner": lambda t, s: t.update(box=t["box"][:1]),
    "a world that is flat": lambda t, s: t["frame_from_world"][1].zero_(),
    "a world that is skewed": lambda t, s: t["frame_from_world"].__setitem__((0, 1), 0.3),
    "a world in perspective": lambda t, s: t["frame_from_world"].__setitem__((3, 0), 0.3),
}


@pytest.mark.parametrize("spoil", SPOILS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_spoilt_file_is_refused(tmp_path: Path, kind: str, spoil: str) -> None:
    with pytest.raises(InputError, match="does not hold a voxel grid"):
        load_voxel_grid(spoilt(tmp_path / "a.safetensors", SPOILS[spoil], kind))


def test_a_forward_space_needs_a_nearest_plane(tmp_path: Path) -> None:
    path = spoilt(tmp_path / "a.safetensors", lambda tensors, state: state.update(space_near=0.0), "forward")
    with pytest.raises(InputError, match="nearest plane"):
        load_voxel_grid(path)


def test_a_file_that_was_cut_off_or_changed_is_refused(tmp_path: Path) -> None:
    path = spoilt(tmp_path / "a.safetensors", lambda tensors, state: None)
    whole = path.read_bytes()
    assert len(load_voxel_grid(path)) > 100
    for content in (whole[:-7], whole[: len(whole) // 2], whole[:5], b"", whole[:-9] + b"\x55" + whole[-8:]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=str(path.name)):
            load_voxel_grid(path)
    with pytest.raises(InputError):
        load_voxel_grid(tmp_path / "nothing.safetensors")
