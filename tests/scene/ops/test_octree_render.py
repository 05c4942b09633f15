"""Rays through octrees: against closed forms, the twin in double, finite differences, and sums that must hold."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from scene import sh
from scene.cameras import Camera, look_at
from scene.octree import Octree, from_cells
from scene.ops import native
from scene.ops.octree_index import (
    EMPTY,
    FINEST,
    NODE_REACH,
    REACHES,
    OctreeIndex,
    build_index,
    decode,
    encode,
    locate,
    locate_codes,
    span,
)
from scene.ops.octree_render import (
    Rays,
    Seen,
    distortion_reference,
    leaf_weights,
    render_octree,
    render_octree_reference,
)
from tests.scene.octrees import camera, random_leaves, random_octree, random_rays

needs_kernels = pytest.mark.skipif(not native.has(torch.device("cpu")), reason="the CPU module is not compiled")
HALF = torch.full((3,), 0.5)


def seen(octree: Octree, rays: Rays, **options: float | bool) -> Seen:
    return render_octree(octree.sigmas, octree.sh_coeffs, octree.index, rays, **options)  # pyright: ignore[reportArgumentType]


def seen_by_twin(octree: Octree, rays: Rays, **options: float | bool) -> Seen:
    return render_octree_reference(octree.sigmas, octree.sh_coeffs, octree.index, rays, **options)  # pyright: ignore[reportArgumentType]


def double(octree: Octree) -> Octree:
    return Octree(octree.sigmas.double(), octree.sh_coeffs.double(), octree.index)


def test_basis_functions_are_orthonormal() -> None:
    nodes, weights = np.polynomial.legendre.leggauss(16)
    angles = torch.arange(32, dtype=torch.float64) * (2 * math.pi / 32)
    z = torch.from_numpy(nodes)[:, None].expand(16, 32)
    flat = (1 - z * z).sqrt()
    directions = torch.stack([flat * angles.cos(), flat * angles.sin(), z], dim=-1).view(-1, 3)
    share = (torch.from_numpy(weights)[:, None] * (2 * math.pi / 32)).expand(16, 32).reshape(-1)
    values = sh.basis(directions, 3)
    gram = values.T @ (share[:, None] * values)
    torch.testing.assert_close(gram, torch.eye(16, dtype=torch.float64), rtol=0, atol=1e-12)


def test_codes_and_cells_are_inverse() -> None:
    cells = torch.randint(0, 1 << FINEST, (1000, 3), generator=torch.Generator().manual_seed(0))
    assert torch.equal(decode(encode(cells)), cells)
    assert encode(torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1]])).tolist() == [4, 2, 1]


@pytest.mark.parametrize("levels", [1, 2, 6, 7, 8])
def test_the_table_and_the_list_of_leaves_name_the_same_leaf(levels: int) -> None:
    codes, depths = random_leaves(levels)
    index = build_index(codes, depths, HALF, HALF)
    points = torch.rand(5000, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rows, _ = locate(index, points)
    top_level, lattice, *box = index.shape.tolist()
    at = (points * (1 << lattice)).floor().long()
    shift = torch.full((len(at), 1), lattice - top_level)
    words = index.top[tuple((at >> shift).T)].long()
    while bool((words < 0).any()):
        deeper = words < 0
        shift[deeper] -= 2
        x, y, z = (at[deeper] >> shift[deeper] & 3).T
        words[deeper] = index.nodes[~words[deeper], x, y, z].long()
    found = torch.where(words >= EMPTY, -1, words >> 5)
    assert torch.equal(found, rows)
    inside = ((at >= torch.tensor(box[:3])) & (at < torch.tensor(box[3:]))).all(1)
    assert bool((rows[~inside] == -1).all())


@pytest.mark.parametrize("levels", [2, 6, 7, 8, 9])
def test_boxes_are_the_quarters_of_grid_cells_that_leaves_reach_into(levels: int) -> None:
    codes, depths = random_leaves(levels)
    index = build_index(codes, depths, HALF, HALF)
    top_level = int(index.shape[0])
    quarter = 1 << (FINEST - top_level - 2)  # cells of the finest lattice
    wanted: dict[tuple[int, ...], list[int]] = {}
    low = decode(codes)
    high = low + (1 << FINEST - depths.long())[:, None]
    for first, last, depth in zip((low // quarter).tolist(), (-(-high // quarter)).tolist(), depths.tolist()):
        span_of = 1 << max(0, top_level - depth)  # cells along a side of the leaf
        for step in range(span_of**3):
            cell = tuple(first[i] // 4 + step // span_of ** (2 - i) % span_of for i in range(3))
            lows = [max(first[i], 4 * cell[i]) for i in range(3)]
            highs = [min(last[i], 4 * cell[i] + 4) for i in range(3)]
            box = wanted.setdefault(cell, [*lows, *highs])
            box[:] = [*(min(a, b) for a, b in zip(box[:3], lows)), *(max(a, b) for a, b in zip(box[3:], highs))]
    found = {tuple(box[i] // 4 for i in range(3)): box for box in index.boxes.tolist()}
    assert len(found) == len(index.boxes) and found == wanted


@pytest.mark.parametrize("levels", [2, 6, 7, 8, 9])
def test_what_an_empty_word_promises_is_empty_and_no_less_than_it_can_tell(levels: int) -> None:
    """For every octant: no point of the cube lies in a leaf, and the next larger cube holds one."""
    codes, depths = random_leaves(levels)
    index = build_index(codes, depths, HALF, HALF)
    top_level, lattice, *_ = index.shape.tolist()
    cells = 1 << lattice
    points = torch.rand(3000, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    near = points.clone()  # half of them beside leaves, where the promises are short
    some = torch.randint(0, len(codes), (1500,), generator=torch.Generator().manual_seed(3))
    near[:1500] = decode(codes[some]) / (1 << FINEST) + 0.03 * (points[:1500] - 0.5)
    at = (near.clamp(0, 1 - 1e-9) * cells).long()
    shift = torch.full((len(at), 1), lattice - top_level)
    words = index.top[tuple((at >> shift).T)].long()
    while bool((words < 0).any()):
        deeper = words < 0
        shift[deeper] -= 2
        x, y, z = (at[deeper] >> shift[deeper] & 3).T
        words[deeper] = index.nodes[~words[deeper], x, y, z].long()
    empty = words >= EMPTY
    at, words, shift = at[empty], words[empty], shift[empty]
    assert len(at) > 100
    offsets = torch.rand(64, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    for octant in range(8):
        reach = torch.tensor(REACHES)[words >> 3 * octant & 7][:, None]
        up = torch.tensor([octant >> 2 & 1, octant >> 1 & 1, octant & 1]).bool()
        here = at >> shift
        low = torch.where(up, here, here - reach + 1) << shift
        side = (reach << shift).double()
        inside = (low[:, None] + offsets * side[:, None]) / cells
        rows, _ = locate(index, inside.view(-1, 3))
        assert bool((rows == -1).all())
        most = torch.where(shift == lattice - top_level, REACHES[-1], NODE_REACH)
        for i in range(0, len(at), len(at) // 20):  # the next larger cube holds a leaf, or is more than can be told
            larger = min((each for each in REACHES if each > int(reach[i])), default=int(most[i]) + 1)
            if larger <= int(most[i]):
                assert holds_a_leaf(index, here[i], up, larger, FINEST - lattice + int(shift[i]))


def holds_a_leaf(index: OctreeIndex, cell: Tensor, up: Tensor, reach: int, fine: int) -> bool:
    """Whether a cube of reach^3 cells with its corner in `cell` does; cells are 2^fine of the finest ones wide."""
    steps = torch.stack(torch.meshgrid(*[torch.arange(reach)] * 3, indexing="ij"), dim=-1).view(-1, 3)
    around = torch.where(up, cell + steps, cell - steps)
    around = around[((around >= 0) & (around < 1 << FINEST - fine)).all(1)]
    first = encode(around << fine)
    held = torch.searchsorted(index.codes, first + (1 << 3 * fine)) > torch.searchsorted(index.codes, first)
    return bool((held | (locate_codes(index, first) >= 0)).any())


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("levels", [1, 4, 8])
def test_a_camera_sees_what_a_list_of_its_rays_sees(levels: int, dtype: torch.dtype) -> None:
    """A camera's packets begin at the first content and end behind the last; a list's begin at the box of all leaves.

    From outside, from within, across the edge of the view, behind the camera, through a tele and a wide lens.
    """
    octree = random_octree(levels, 1)
    octree = Octree(octree.sigmas.to(dtype), octree.sh_coeffs.to(dtype), octree.index)
    generator = torch.Generator().manual_seed(5)
    met = 0.0
    for number in range(24):
        eye = (torch.rand(3, generator=generator, dtype=dtype) - 0.5) * (0.8, 2.5, 6.0)[number % 3]
        target = (torch.rand(3, generator=generator, dtype=dtype) - 0.5) * (1.0, 3.0)[number % 2]
        focal = (12.0, 40.0, 400.0)[number // 8]
        K = torch.tensor([[focal, 0, 19.3], [0, 1.1 * focal, 15.1], [0, 0, 1]], dtype=dtype)
        view = Camera(K, look_at(eye, target, torch.tensor([0.1, 0.2, 1.0], dtype=dtype)), 37, 29)
        drawn, listed = (seen(octree, rays, with_depth=True) for rays in (Rays(camera=view), of_list(view)))
        tolerance = 1e-10 if dtype == torch.float64 else 2e-4  # float32: places to 1e-6 of the cube, densities of 30
        torch.testing.assert_close(drawn.rgb, listed.rgb, rtol=0, atol=tolerance)
        torch.testing.assert_close(drawn.last, listed.last, rtol=0, atol=tolerance)
        met += float((1 - drawn.last).mean())
    assert met > 1


def of_list(view: Camera) -> Rays:
    return Rays(*Rays(camera=view).expanded())


def test_distortion_of_two_leaves_in_closed_form() -> None:
    """A ray along x through two leaves of 0.25 with a gap between them, densities 2 and 3."""
    octree = from_cells(
        torch.tensor([[0, 1, 1], [2, 1, 1]]), 2, torch.tensor([2.0, 3.0]), torch.zeros(2, 1, 3), HALF, HALF
    )
    sigmas = octree.sigmas.double().requires_grad_()
    rays = Rays(torch.tensor([[-2.0, -0.3, -0.3]]).double(), torch.tensor([[1.0, 0.0, 0.0]]).double())
    found = distortion_reference(sigmas, octree.index, rays)
    first, second = 1 - math.exp(-1.0), math.exp(-1.0) * (1 - math.exp(-1.5))  # leaves are 0.5 of the world wide
    wanted = 2 * first * second * 1.0 + (first**2 + second**2) * 0.5 / 3
    assert float(found) == pytest.approx(wanted, rel=1e-9)
    assert torch.autograd.gradcheck(lambda s: distortion_reference(s, octree.index, rays), (sigmas,))


def test_leaves_that_overlap_are_refused() -> None:
    codes = torch.tensor([0, 0], dtype=torch.int64)
    with pytest.raises(ValueError, match="overlap"):
        build_index(codes, torch.tensor([1, 2], dtype=torch.int32), HALF, HALF)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_leaf_has_the_alpha_of_its_length(dtype: torch.dtype) -> None:
    """A leaf with world edge 0.5 crossed along an axis, along a diagonal, and missed."""
    leaf = from_cells(torch.tensor([[1, 2, 1]]), 2, torch.tensor([3.0]), torch.zeros(1, 1, 3), HALF, HALF)
    octree = Octree(leaf.sigmas.to(dtype), leaf.sh_coeffs.to(dtype), leaf.index)
    center = octree.to_world((octree.corners + octree.sides[:, None] / 2)[0])
    directions = torch.tensor([[0.0, 0.0, 2.0], [1.0, 1.0, 1.0], [0.0, 1.0, 0.0]], dtype=dtype)
    origins = center - 3 * directions
    origins[2] += torch.tensor([0.3, 0.0, 0.0], dtype=dtype)
    found = seen(octree, Rays(origins, directions), with_depth=True)
    wanted = 1 - torch.exp(-3.0 * torch.tensor([0.5, 0.5 * 3**0.5, 0.0], dtype=torch.float64))
    torch.testing.assert_close(1 - found.last.double(), wanted, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(found.rgb[:, 0].double(), 0.5 * wanted, rtol=1e-5, atol=1e-9)  # a colour of one half
    assert found.depth is not None and found.median is not None
    torch.testing.assert_close(found.depth.double(), torch.tensor([3.0, 3.0, 0.0]).double(), rtol=1e-5, atol=0)
    front = torch.tensor([3 - 0.125, 3 - 0.25])
    into = math.log(2) / 3 / torch.tensor([2.0, 3**0.5])  # half the light is left, in units of the direction
    torch.testing.assert_close(found.median[:2].float(), front + into, rtol=1e-5, atol=0)


@needs_kernels
@pytest.mark.parametrize("levels", [1, 3, 6, 8])
@pytest.mark.parametrize("sh_degree", [0, 1, 2, 3])
def test_agrees_with_the_twin(levels: int, sh_degree: int) -> None:
    octree = random_octree(levels, sh_degree)
    for rays, rays64 in [
        (Rays(camera=camera()), Rays(camera=camera(dtype=torch.float64))),
        (random_rays(1000), random_rays(1000, dtype=torch.float64)),
    ]:
        wanted = seen_by_twin(double(octree), rays64, with_depth=True)
        exact = seen(double(octree), rays64, with_depth=True)
        single = seen(octree, rays, with_depth=True)
        for name in ("rgb", "last", "depth", "median"):
            value = getattr(wanted, name)
            torch.testing.assert_close(getattr(exact, name), value, rtol=1e-9, atol=1e-9)
        # float32: places to 1e-6 of the cube, times densities of 30
        torch.testing.assert_close(single.rgb.double(), wanted.rgb, rtol=0, atol=1e-4)
        torch.testing.assert_close(single.last.double(), wanted.last, rtol=0, atol=1e-4)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_agree_with_finite_differences(dtype: torch.dtype) -> None:
    """1000 random rays through a tree of two levels: T3."""
    octree, rays = double(random_octree(2, 2)), random_rays(1000, dtype=torch.float64)
    generator = torch.Generator().manual_seed(5)
    v_rgb, v_last = (torch.rand(1000, n, generator=generator, dtype=torch.float64) - 0.5 for n in (3, 1))

    def loss(sigmas: Tensor, sh_coeffs: Tensor, where: Rays) -> Tensor:
        found = render_octree(sigmas, sh_coeffs, octree.index, where)
        return (found.rgb * v_rgb.to(found.rgb)).sum() + (found.last * v_last[:, 0].to(found.last)).sum()

    leaves = [value.to(dtype).requires_grad_() for value in (octree.sigmas, octree.sh_coeffs)]
    gradients = torch.autograd.grad(loss(leaves[0], leaves[1], random_rays(1000, dtype=dtype)), leaves)
    for place, (gradient, value) in enumerate(zip(gradients, (octree.sigmas, octree.sh_coeffs), strict=True)):
        scale = float(gradient.abs().max())
        for at in torch.randperm(value.numel(), generator=generator)[:25].tolist():
            ends = []
            for step in (1e-5, -1e-5):
                moved = [octree.sigmas.clone(), octree.sh_coeffs.clone()]
                moved[place].view(-1)[at] += step
                ends.append(float(loss(moved[0], moved[1], rays)))
            slope = (ends[0] - ends[1]) / 2e-5
            assert float(gradient.reshape(-1)[at]) == pytest.approx(slope, rel=1e-4, abs=1e-5 * scale)


def test_weights_add_up_to_the_light_that_was_lost() -> None:
    octree, rays = random_octree(6), random_rays(2000)
    sums, maxima = torch.zeros(2, len(octree))
    leaf_weights(octree.sigmas, octree.index, rays, sums, maxima)
    lost = 2000 - seen(octree, rays).last.sum()
    assert float(sums.sum()) == pytest.approx(float(lost), rel=1e-4)
    assert bool((maxima <= sums + 1e-6).all()) and float(maxima.max()) <= 1
    more = torch.zeros_like(sums)
    leaf_weights(octree.sigmas, octree.index, rays, sums, more)
    torch.testing.assert_close(sums, 2 * (sums / 2))
    assert torch.equal(more, maxima)


def test_the_kernel_sums_weights_as_the_twin_does(monkeypatch: pytest.MonkeyPatch) -> None:
    octree, rays = random_octree(5), random_rays(500)
    ours, twins = torch.zeros(2, 2, len(octree))
    leaf_weights(octree.sigmas, octree.index, rays, ours[0], ours[1])
    monkeypatch.setenv("MAQUETTE_BACKEND", "reference")
    leaf_weights(octree.sigmas, octree.index, rays, twins[0], twins[1])
    torch.testing.assert_close(ours, twins, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stop", [1e-2, 0.3])
def test_a_ray_ended_early_shows_what_it_has_gathered(stop: float) -> None:
    octree, rays = random_octree(5), random_rays(1000)
    whole, part = (seen(octree, rays, stop=stop, whole=whole) for whole in (True, False))
    ended = part.last < stop
    assert bool(ended.any()) and not bool(ended.all())
    assert not whole.last[ended].any()
    torch.testing.assert_close(whole.rgb[ended], part.rgb[ended] / (1 - part.last[ended])[:, None])
    assert torch.equal(whole.rgb[~ended], part.rgb[~ended])


def test_thin_leaves_are_passed_through() -> None:
    octree, rays = random_octree(4), random_rays(500)
    dense = Octree(torch.where(octree.sigmas > 5, octree.sigmas, 0), octree.sh_coeffs, octree.index)
    assert torch.equal(seen(octree, rays, least=5.0).rgb, seen(dense, rays).rgb)


@needs_kernels
def test_the_number_of_threads_changes_no_bit() -> None:
    octree, view = random_octree(7, 2), Rays(camera=camera(100, 80))
    before, results = native.cpu().threads(), []
    try:
        for count in (1, 2, 3):
            native.set_threads(count)
            leaves = [octree.sigmas.clone().requires_grad_(), octree.sh_coeffs.clone().requires_grad_()]
            found = render_octree(leaves[0], leaves[1], octree.index, view)
            gradients = torch.autograd.grad(found.rgb.square().sum() + found.last.sum(), leaves)
            results.append((found.rgb, found.last, *gradients))
    finally:
        native.set_threads(before)
    for result in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(result, results[0], strict=True))


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e30])
def test_rays_that_are_none_see_nothing_and_end(bad: float) -> None:
    octree = random_octree(4)
    origins, directions = torch.zeros(4, 3), torch.ones(4, 3)
    origins[0], directions[1, 1], origins[2] = bad, bad, -3
    directions[3] = 0
    found = seen(octree, Rays(origins, directions))
    assert bool(found.rgb[2].isfinite().all()) and float(found.last[2]) < 1


def test_nothing_gives_nothing() -> None:
    none = torch.zeros(0)
    octree = Octree.of(none.long(), none.int(), none, none.view(0, 1, 3), HALF, HALF)
    found = seen(octree, random_rays(10))
    assert not found.rgb.any() and bool((found.last == 1).all())
    assert len(seen(random_octree(2), random_rays(0)).rgb) == 0
    assert int(span(torch.tensor(FINEST))) == 1


@pytest.mark.parametrize(
    "change", [{"sigmas": torch.zeros(3)}, {"sh_coeffs": torch.zeros(5, 2, 3)}, {"rays": Rays(torch.zeros(2, 3))}]
)
def test_shapes_that_do_not_fit_are_refused(change: dict) -> None:
    octree = random_octree(2)
    arguments = {"sigmas": octree.sigmas, "sh_coeffs": octree.sh_coeffs, "index": octree.index, "rays": random_rays(3)}
    with pytest.raises(ValueError, match=r"must be|need|have 1, 4, 9"):
        render_octree(**(arguments | change))
