"""Edits of octrees: what they keep, what moments follow, and that pictures of uniform fields do not change."""

from __future__ import annotations

import pytest
import torch

from data.synthetic import soft_solids
from scene.octree import Edit, Octree, from_cells, keep, merge, siblings, split
from scene.octree_baking import bake, cube_around
from scene.octree_refine import drop, grow, join
from scene.octree_step import FLOOR, OctreeStep, Rates
from scene.ops import native
from scene.ops.octree_index import FINEST, decode, encode
from scene.ops.octree_render import Rays, render_octree
from tests.scene.octrees import camera, random_octree, soft_field, uniform_octree

needs_kernels = pytest.mark.skipif(not native.has(torch.device("cpu")), reason="the CPU module is not compiled")


def image(octree: Octree, size: int = 40) -> torch.Tensor:
    view = Rays(camera=camera(size, size))
    seen = render_octree(octree.sigmas, octree.sh_coeffs, octree.index, view)
    return torch.cat([seen.rgb, seen.last[:, None]], dim=1)


def volume(octree: Octree) -> float:
    return float((octree.sides.double() ** 3).sum())


def test_a_point_falls_into_the_leaf_around_it() -> None:
    octree = random_octree(5)
    inside = octree.corners + octree.sides[:, None] * torch.rand(len(octree), 3, generator=torch.Generator())
    rows = octree.query(octree.to_world(inside))
    near_face = (rows != torch.arange(len(octree))).nonzero()
    assert len(near_face) < 3  # float32 may carry a point over a face
    assert int(octree.query(torch.full((1, 3), 5.0))) == -1


def test_merging_a_uniform_field_changes_no_picture() -> None:
    octree = uniform_octree(3)
    edit = merge(octree, siblings(octree))
    assert len(edit.octree) == 64 and bool((edit.octree.index.levels == 2).all())
    torch.testing.assert_close(image(edit.octree), image(octree), rtol=0, atol=1e-5)
    torch.testing.assert_close(image(join(octree, 0.01).octree), image(octree), rtol=0, atol=1e-5)


def test_splitting_changes_no_picture() -> None:
    octree = random_octree(4, 2)
    chosen = torch.rand(len(octree), generator=torch.Generator().manual_seed(0)) < 0.3
    edit = split(octree, chosen)
    assert len(edit.octree) == len(octree) + 7 * int(chosen.sum())
    assert volume(edit.octree) == pytest.approx(volume(octree))
    torch.testing.assert_close(image(edit.octree), image(octree), rtol=0, atol=1e-4)


def test_merging_keeps_optical_depth_and_the_colour_of_what_is_dense() -> None:
    cells = torch.tensor([[2, 2, 2], [3, 2, 2]])
    sigmas = torch.tensor([6.0, 0.0])
    colors = torch.tensor([[[1.0, 2.0, 3.0]], [[-9.0, -9.0, -9.0]]])
    octree = from_cells(cells, 2, sigmas, colors, torch.full((3,), 0.5), torch.full((3,), 0.5))
    merged = merge(octree, siblings(octree)).octree
    assert len(merged) == 1 and float(merged.sigmas) == pytest.approx(6 / 8)
    torch.testing.assert_close(merged.sh_coeffs, colors[:1])


def test_siblings_are_all_that_is_in_their_parent() -> None:
    octree = random_octree(6)
    found = siblings(octree)
    codes, levels = octree.index.codes, octree.index.levels.long()
    groups: dict[tuple[int, int], list[int]] = {}
    for row, (code, level) in enumerate(zip(codes.tolist(), levels.tolist(), strict=True)):
        shift = 3 * (FINEST - level + 1)
        groups.setdefault((code >> shift << shift, level), []).append(row)
    wanted = []
    for (start, level), rows in groups.items():
        end = start + (1 << 3 * (FINEST - level + 1))
        if level > 1 and int(((codes >= start) & (codes < end)).sum()) == len(rows):
            wanted.append((rows[0], len(rows)))
    assert sorted(wanted) == list(zip(found.first.tolist(), found.counts.tolist(), strict=True))


def test_values_follow_their_leaves_through_edits() -> None:
    octree = random_octree(6)
    values = torch.arange(len(octree), dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    kept = keep(octree, torch.rand(len(octree), generator=generator) < 0.8)
    merged = merge(kept.octree, siblings(kept.octree))
    cut = split(merged.octree, torch.rand(len(merged.octree), generator=generator) < 0.1)
    carried = merged.carry(kept.carry(values))
    assert float(merged.carry_sum(kept.carry(values)).sum()) == float(kept.carry(values).sum())
    alone = merged.counts == 1  # else the mean of two may be a whole number, too
    torch.testing.assert_close(merged.octree.sh_coeffs[alone], octree.sh_coeffs[carried[alone].long()])
    first = octree.corners[kept.first][merged.first]
    assert bool((first >= merged.octree.corners).all())
    assert torch.equal(cut.carry(carried), carried[cut.first])
    assert len(cut.octree.index.codes) == len(cut.octree)


def test_what_rays_do_not_use_goes_and_what_they_use_most_is_split() -> None:
    octree = random_octree(4)
    weights = torch.arange(len(octree), dtype=torch.float32)
    left = drop(octree, weights >= 10)
    assert bool((left.carry(weights) >= 10).all()) and bool((left.octree.sigmas > 0).all())
    finer = grow(octree, weights, 0.1, 1 << 20, 4)
    twice = torch.bincount(finer.first, minlength=len(octree)) == 8
    able = octree.index.levels < 4
    assert int(twice.sum()) == int(0.1 * len(octree))
    assert float(weights[twice].min()) > float(weights[able & ~twice].max())
    capped = grow(octree, weights, 1.0, len(octree) + 70, 4)
    assert len(capped.octree) <= len(octree) + 70


def test_a_baked_field_has_its_densities_and_looks_like_it() -> None:
    fixture = soft_solids(train=8, test=1, size=60)
    low, high = torch.full((3,), -1.05), torch.full((3,), 1.05)
    offset, invradius = cube_around(low, high)
    torch.testing.assert_close(offset + invradius * high.double(), torch.ones(3).double())
    cameras = [shown.camera.to(dtype=torch.float32) for shown in fixture.train]
    seen, whole = (bake(soft_field(fixture), low, high, 6, views) for views in (cameras, []))
    assert 0.3 * len(whole) < len(seen) < len(whole)
    assert float(whole.sigmas.median()) == pytest.approx(40.0) and float(whole.sigmas.max()) <= 80  # solids overlap
    solid = float((whole.sigmas / 40 * (whole.sides / invradius.float()[0]) ** 3).sum())
    wanted = 4 / 3 * torch.pi * (0.42**3 + 0.55 * 0.28 * 0.36) + 8 * 0.32 * 0.24 * 0.40
    assert solid == pytest.approx(wanted, rel=0.04)  # half of the rim's leaves fall below the least opacity
    alphas = []
    for octree in (seen, whole):
        rays = Rays(camera=cameras[0])
        alphas.append(1 - render_octree(octree.sigmas, octree.sh_coeffs, octree.index, rays).last)
        error = (alphas[-1].view(60, 60) - fixture.train[0].alpha.float()).abs()
        assert float(error.mean()) < 0.01
    torch.testing.assert_close(*alphas, rtol=0, atol=0.02)  # each leaf left out took less than a thousandth


@needs_kernels
@pytest.mark.parametrize("distortion", [0.0, 0.5])
def test_a_step_is_adam_on_the_gradient_of_the_loss(distortion: float, monkeypatch: pytest.MonkeyPatch) -> None:
    octree, view = random_octree(5, 2), camera()
    generator = torch.Generator().manual_seed(0)
    photos = torch.rand(3, view.height, view.width, 3, generator=generator)
    ours, rates = OctreeStep(octree), Rates(0.5, 0.05, distortion=distortion)
    monkeypatch.setenv("MAQUETTE_BACKEND", "reference")
    twin = OctreeStep(octree)
    monkeypatch.delenv("MAQUETTE_BACKEND")
    for photo in photos:
        background = torch.rand(3, generator=generator)
        errors = [step.take(view, photo, background, rates) for step in (ours, twin)]
        assert errors[0] == pytest.approx(errors[1], rel=1e-4)
    for name in ("sigmas", "sh_coeffs"):
        mine, others = getattr(ours.octree, name), getattr(twin.octree, name)
        close = (mine - others).abs() <= 0.02 * (rates.sigmas if name == "sigmas" else rates.sh_coeffs) * 3
        assert float(close.float().mean()) > 0.995  # where a gradient is nearly 0, Adam makes a step of its noise
    torch.testing.assert_close(ours.weights, twin.weights, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(ours.maxima, twin.maxima, rtol=1e-3, atol=1e-4)
    assert bool((ours.maxima <= ours.weights + 1e-6).all()) and float(ours.maxima.max()) > 0.3
    assert float(ours.octree.sigmas[ours.weights > 0].min()) >= 0.99 * FLOOR
    ours.forget_light()
    assert not bool(ours.weights.any()) and not bool(ours.maxima.any())
    assert ours.octree.sigmas.data_ptr() != octree.sigmas.data_ptr()


@needs_kernels
def test_the_distortion_loss_makes_fog_thin() -> None:
    """Fog along a ray in front of a picture it cannot explain better: light gathers in fewer leaves."""
    view, held = camera(), []
    for distortion in (0.0, 5.0):
        step = OctreeStep(uniform_octree(4, 1.0, 0))
        target = torch.full((view.height, view.width, 3), 0.5)
        for _ in range(60):
            step.forget_light()
            step.take(view, target, torch.zeros(3), Rates(0.3, 0.0, distortion=distortion))
        held.append(step)
    plain, drawn = held
    assert float(drawn.maxima.square().sum() / drawn.weights.sum()) > 2 * float(
        plain.maxima.square().sum() / plain.weights.sum()
    )


def test_photos_pull_at_the_leaves_that_they_show_otherwise() -> None:
    """Where a picture of the octree is painted over; the light of the leaves is the same on both sides."""
    view, octree = camera(), uniform_octree(3, 6.0, 0)
    rays = Rays(camera=view)
    own = render_octree(octree.sigmas, octree.sh_coeffs, octree.index, rays).rgb.view(view.height, view.width, 3)
    target = own.clone()
    target[:, view.width // 2 :] = torch.tensor([1.0, 0.0, 0.0])
    step = OctreeStep(octree)
    step.take(view, target, torch.zeros(3), Rates(0.0, 1e-4))
    seen = step.weights > 0.05 * step.weights.max()
    middles = decode(octree.index.codes) / (1 << FINEST) + 0.5**4 - 0.5
    right = middles @ view.c2w[:3, 0] > 0
    pull = step.pull()
    assert int((seen & right).sum()) > 20 and int((seen & ~right).sum()) > 20
    assert float(pull[seen & right].mean()) > 5 * float(pull[seen & ~right].mean())


def test_edits_of_nothing() -> None:
    octree = uniform_octree(2)
    nothing = keep(octree, torch.zeros(len(octree), dtype=torch.bool))
    assert len(nothing.octree) == 0
    for edit in (split(nothing.octree, torch.zeros(0, dtype=torch.bool)), join(nothing.octree, 0.1)):
        assert isinstance(edit, Edit) and len(edit.octree) == 0


def test_leaves_come_in_order_whatever_the_order_of_cells() -> None:
    cells = torch.tensor([[3, 1, 2], [0, 0, 1], [2, 3, 3]])
    numbers = torch.tensor([1.0, 2.0, 3.0])
    octree = from_cells(cells, 2, numbers, torch.zeros(3, 1, 3), torch.zeros(3), torch.ones(3))
    assert bool((octree.index.codes.diff() > 0).all())
    for cell, number in zip(cells, numbers, strict=True):
        row = (octree.index.codes == int(encode(cell << FINEST - 2))).nonzero()
        assert float(octree.sigmas[row]) == float(number)
