"""Rays and points against triangles: the twin, every triangle in turn, closed forms, and the sides between them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from scene.ops import native, triangle_tree
from scene.ops.triangle_tree import (
    Found,
    TriangleTree,
    first_hits,
    first_hits_reference,
    nearest,
    nearest_reference,
)

KERNELS = native.has(torch.device("cpu"))


def soup(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    middles = torch.rand(count, 1, 3, generator=generator) - 0.5
    return middles + 0.15 * torch.randn(count, 3, 3, generator=generator)


def rays(count: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(count, 3, generator=generator)
    directions[::7] = torch.tensor([0.0, 0.0, -1.0])  # along an axis: inverse directions have no bound
    return 1.2 * torch.rand(count, 3, generator=generator) - 0.6, directions


def sheet(cells: int) -> Tensor:
    """The square from -1 to 1 at z = 0 in 2 cells^2 triangles."""
    x, y = torch.meshgrid(*[torch.arange(cells, dtype=torch.float32)] * 2, indexing="ij")
    at = torch.stack([x, y, torch.zeros_like(x)], -1).reshape(-1, 3)
    right, up = torch.tensor([1.0, 0, 0]), torch.tensor([0, 1.0, 0])
    both = torch.cat(
        [torch.stack([at, at + right, at + up], 1), torch.stack([at + right + up, at + up, at + right], 1)]
    )
    return both * (2 / cells) - torch.tensor([1.0, 1, 0])


def every_hit(corners: Tensor, origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """t [R], inf for none, and the triangle of the first hit, by solving for each ray and triangle in float64."""
    a, b, c = corners.double().unbind(1)
    o, d = origins.double()[:, None], directions.double()[:, None]
    system = torch.stack([*torch.broadcast_tensors(a - b, a - c, d)], dim=-1)  # [R, F, 3, 3]
    found = torch.linalg.solve(system, (a - o)[..., None])[..., 0]
    v, w, t = found.unbind(-1)
    t = torch.where((v >= 0) & (w >= 0) & (v + w <= 1) & (t >= 0), t, math.inf)
    return t.min(1).values, t.argmin(1)


def places_of(corners: Tensor, found: Found) -> Tensor:
    return (found.shares[..., None] * corners[found.face.clamp(min=0)]).sum(1)


@pytest.mark.parametrize("count", [1, 2, 5, 7, 200])
def test_first_hits_are_those_of_every_triangle_in_turn(count: int) -> None:
    corners, (origins, directions) = soup(count), rays(400)
    found = first_hits(TriangleTree.of(corners), origins, directions)
    t, face = every_hit(corners, origins, directions)
    hit = t.isfinite()
    assert torch.equal(found.face >= 0, hit)
    assert torch.equal(found.face[hit], face[hit])
    assert torch.allclose(found.distance[hit].double(), t[hit], rtol=1e-3, atol=1e-4)  # slivers, seen edge-on
    assert torch.allclose(found.shares[hit].sum(1), torch.ones(int(hit.sum())), atol=1e-5)
    there = origins + found.distance[:, None] * directions
    assert torch.allclose(places_of(corners, found)[hit], there[hit], atol=1e-3)
    assert not found.distance[~hit].any() and not found.shares[~hit].any()


@pytest.mark.parametrize("count", [1, 2, 5, 7, 200])
def test_the_nearest_place_is_that_of_every_triangle_in_turn(count: int) -> None:
    corners = soup(count, seed=2)
    points = rays(300, seed=3)[0]
    found = nearest(TriangleTree.of(corners), points)
    # A dense choice of places on every triangle is never nearer, and almost as near.
    steps = torch.arange(21)
    shares = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), -1).reshape(-1, 2)
    shares = torch.cat([shares, 20 - shares.sum(1, keepdim=True)], dim=1)
    shares = shares[(shares >= 0).all(1)] / 20
    dense = torch.einsum("sk,fkc->fsc", shares, corners).reshape(-1, 3)
    least = torch.cdist(points, dense).amin(1)
    assert (found.distance <= least + 1e-6).all()
    assert float((least - found.distance).mean()) < 5e-3
    assert torch.allclose((places_of(corners, found) - points).norm(dim=1), found.distance, atol=1e-6)
    assert (found.shares >= 0).all()


def test_distances_to_the_face_the_sides_and_the_corners_of_a_triangle() -> None:
    corner = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [0, 1, 0]]])
    points = torch.tensor([[0.25, 0.25, 0.5], [0.5, -2, 0], [1, 1, 0], [-3, -4, 0], [2, 0, 0], [0, 3, 0], [-1, 0.5, 0]])
    found = nearest(TriangleTree.of(corner), points)
    assert found.distance.tolist() == pytest.approx([0.5, 2, math.sqrt(0.5), 5, 1, 2, 1], abs=1e-6)


@pytest.mark.skipif(not KERNELS, reason="there are no kernels to compare with the twin")
def test_kernels_equal_their_twins() -> None:
    corners = torch.cat([soup(300, seed=5), sheet(9)])
    tree, (origins, directions) = TriangleTree.of(corners), rays(3000, seed=6)
    for got, wanted in (
        (first_hits(tree, origins, directions), first_hits_reference(tree, origins, directions)),
        (first_hits(tree, origins, directions, 0.2), first_hits_reference(tree, origins, directions, 0.2)),
        (nearest(tree, origins), nearest_reference(tree, origins)),
    ):
        # Rounding differs: of two places equally near either is found, and slivers seen edge-on are met or not.
        same = got.face == wanted.face
        assert float(same.float().mean()) > 0.995
        assert torch.allclose(got.distance[same], wanted.distance[same], rtol=1e-3, atol=1e-5)
        assert torch.allclose(got.shares[same], wanted.shares[same], atol=2e-3)


@pytest.mark.parametrize("backend", ["kernels", "reference"])
def test_no_ray_slips_between_triangles_that_share_a_side(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAQUETTE_BACKEND", "reference" if backend == "reference" else "")
    corners = sheet(16)
    generator = torch.Generator().manual_seed(7)
    onto = corners.reshape(-1, 3)[torch.randint(0, 3 * len(corners), (4000,), generator=generator)]
    other = corners.reshape(-1, 3)[torch.randint(0, 3 * len(corners), (4000,), generator=generator)]
    onto = torch.cat([onto, 0.5 * (onto + other)]) * 0.999  # corners and sides within rounding, not the rim
    eye = torch.tensor([0.37, -0.21, 3.1])
    found = first_hits(TriangleTree.of(corners), eye.expand_as(onto), onto - eye)
    assert (found.face >= 0).all()
    assert torch.allclose(found.distance, torch.ones(len(onto)), atol=1e-5)


def test_both_sides_count_and_what_lies_behind_or_beyond_the_reach_does_not() -> None:
    tree = TriangleTree.of(sheet(3))
    origins = torch.tensor([[0.1, 0.2, 1.0], [0.1, 0.2, -1.0], [0.1, 0.2, 1.0], [3.0, 0, 1.0]])
    directions = torch.tensor([[0.0, 0, -2], [0, 0, 2], [0, 0, 2], [0, 0, -1]])
    found = first_hits(tree, origins, directions)
    assert (found.face >= 0).tolist() == [True, True, False, False]
    assert found.distance[:2].tolist() == pytest.approx([0.5, 0.5])
    assert (first_hits(tree, origins, directions, 0.6).face[:2] >= 0).all()
    assert (first_hits(tree, origins, directions, 0.4).face < 0).all()


@pytest.mark.skipif(not KERNELS, reason="packets are the kernels'")
def test_a_ray_finds_the_same_alone_and_among_others_on_any_number_of_threads() -> None:
    tree, (origins, directions) = TriangleTree.of(soup(500, seed=8)), rays(10_001, seed=9)
    whole, near = first_hits(tree, origins, directions), nearest(tree, origins)
    for which in (0, 5, 9_999, 10_000):
        alone = first_hits(tree, origins[which : which + 1], directions[which : which + 1])
        assert (int(alone.face), float(alone.distance)) == (int(whole.face[which]), float(whole.distance[which]))
    native.set_threads(1)
    try:
        assert torch.equal(first_hits(tree, origins, directions).distance, whole.distance)
        assert torch.equal(nearest(tree, origins).face, near.face)
    finally:
        native.set_threads(native.len_affinity())


def test_triangles_without_area_are_met_by_no_ray_and_still_have_a_place() -> None:
    flat = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [0.5, 0, 0]], [[2.0, 2, 2]] * 3])
    tree = TriangleTree.of(flat)
    assert (first_hits(tree, torch.tensor([[0.3, 0, 1.0]]), torch.tensor([[0.0, 0, -1]])).face < 0).all()
    found = nearest(tree, torch.tensor([[0.7, 0.0, 0.2], [2.0, 2, 3]]))
    assert found.distance.tolist() == pytest.approx([0.2, 1.0])
    assert found.face.tolist() == [0, 1]


@pytest.mark.parametrize("backend", ["kernels", "reference"])
@pytest.mark.parametrize("count", [1, 2, 3, 5, 6, 11, 100, 1000])
def test_the_tree_holds_each_triangle_once_and_each_box_what_is_below_it(
    count: int, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAQUETTE_BACKEND", "reference" if backend == "reference" else "")
    corners = soup(count, seed=10)
    tree = TriangleTree.of(corners)
    assert tree.faces.sort().values.tolist() == list(range(count))
    assert torch.equal(tree.triangles.view(-1, 3, 3), corners[tree.faces])
    sizes = tree.starts.diff()
    assert int(tree.starts[0]) == 0 and int(tree.starts[-1]) == count
    assert int(sizes.min()) >= 1 and int(sizes.max()) <= 6
    for node in range(1, 2 * tree.leaves):
        if node < tree.leaves:
            below = tree.boxes[2 * node : 2 * node + 2]
            low, high = below[:, :3].amin(0), below[:, 3:].amax(0)
        else:
            first, last = tree.starts[node - tree.leaves : node - tree.leaves + 2].tolist()
            held = tree.triangles[first:last].view(-1, 3)
            low, high = held.amin(0), held.amax(0)
        assert torch.equal(tree.boxes[node], torch.cat([low, high]))


@pytest.mark.skipif(not KERNELS, reason="there are no kernels to compare with the twin")
def test_halves_equal_those_of_the_twin() -> None:
    centres = soup(1000, seed=11).mean(1)
    got, wanted = triangle_tree._halved(centres, 256), triangle_tree.halved_reference(centres, 256)
    assert torch.equal(got.sort().values, torch.arange(1000))
    leaf = torch.repeat_interleave(torch.arange(256), triangle_tree._starts(1000, 256).diff())
    assert torch.equal(leaf[got.argsort()], leaf[wanted.argsort()])  # within a leaf any order will do


def test_triangles_in_one_place_make_a_tree_as_well() -> None:
    tree = TriangleTree.of(soup(1).repeat(500, 1, 1))
    assert int(tree.starts.diff().max()) <= 6
    assert (nearest(tree, torch.zeros(3, 3)).face >= 0).all()


def test_what_cannot_be_searched_is_refused() -> None:
    tree, good = TriangleTree.of(soup(4)), torch.zeros(2, 3)
    for bad in (torch.zeros(2, 2), torch.zeros(3, 3), torch.full((2, 3), math.nan), torch.full((2, 3), math.inf)):
        with pytest.raises(ValueError, match="directions"):
            first_hits(tree, good, bad)
    with pytest.raises(ValueError, match="finite"):
        nearest(tree, torch.full((1, 3), math.nan))
    for corners in (torch.zeros(0, 3, 3), torch.zeros(2, 9), torch.full((1, 3, 3), math.inf)):
        with pytest.raises(ValueError, match="corners"):
            TriangleTree.of(corners)


def test_no_rays_find_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    tree, none = TriangleTree.of(soup(4)), torch.zeros(0, 3)
    for found in (first_hits(tree, none, none), nearest(tree, none), nearest_reference(tree, none)):
        assert found.face.shape == (0,) and found.shares.shape == (0, 3)
    monkeypatch.setattr(triangle_tree, "AT_ONCE", 7)
    origins, directions = rays(20)
    assert len(first_hits_reference(tree, origins, directions).face) == 20
