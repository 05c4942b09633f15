"""Adding depth images to a signed distance field: closed forms, the twin, invariances."""

from __future__ import annotations

import math

import pytest
import torch

from scene.cameras import Camera, look_at
from scene.ops import native
from scene.ops.tsdf import BLOCK, FREE_DEPTH, ObservedDepth, integrate, integrate_reference


def camera(eye=(0.0, 0.0, -2.0), target=(0.0, 0.0, 0.0), width: int = 48, height: int = 40) -> Camera:
    K = torch.tensor([[50.0, 0, width / 2], [0, 52.0, height / 2], [0, 0, 1]], dtype=torch.float64)
    pose = look_at(*(torch.tensor(v, dtype=torch.float64) for v in (eye, target, (0.0, -1.0, 0.1))))
    return Camera(K, pose, width, height)


def plain(view: Camera, depth: float | torch.Tensor, slope: float = 1.0, weight: float = 1.0) -> ObservedDepth:
    full = torch.ones(view.height, view.width, dtype=torch.float64)
    return ObservedDepth(view, full * depth, full * slope, full * weight)


def field(blocks: torch.Tensor, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(len(blocks), BLOCK, BLOCK, BLOCK, dtype=dtype), torch.zeros(
        len(blocks), BLOCK, BLOCK, BLOCK, dtype=dtype
    )


def positions(blocks: torch.Tensor, voxel: float) -> torch.Tensor:
    steps = torch.arange(BLOCK, dtype=torch.float64)
    z, y, x = torch.meshgrid(steps, steps, steps, indexing="ij")
    return (BLOCK * blocks[:, None, None, None].double() + torch.stack([x, y, z], -1)) * voxel


BLOCKS = torch.tensor([[x, y, z] for x in (-2, -1, 0, 1) for y in (-1, 0) for z in (-2, -1, 0, 1)], dtype=torch.int32)


def test_a_wall_seen_straight_on_gives_its_distance():
    tsdf, weights = field(BLOCKS)
    integrate(tsdf, weights, BLOCKS, plain(camera(), 2.0), voxel_size=0.04, truncation=0.2)  # the wall is z = 0
    z = positions(BLOCKS, 0.04)[..., 2]
    seen = weights > 0
    assert seen.any() and not seen[z > 0.2].any()  # nothing is said of what lies behind
    assert torch.allclose(tsdf[seen], -z[seen].clamp(-0.2, 0.2), atol=1e-12)
    before = seen & (z < 0)
    assert (weights[before] == 1).all()
    behind = seen & (z > 0)
    assert torch.allclose(weights[behind], 1 - z[behind] / 0.2)


def test_a_wall_seen_aslant_is_as_far_as_its_normal_says():
    angle = math.radians(50)
    view = camera(eye=(-2 * math.sin(angle), 0.0, -2 * math.cos(angle)))
    origins, rays = view.rays()
    depth = -origins[..., 2] / rays[..., 2]  # the wall is z = 0
    seen = ObservedDepth(view, depth, rays[..., 2].abs(), torch.ones_like(depth))
    tsdf, weights = field(BLOCKS)
    integrate(tsdf, weights, BLOCKS, seen, voxel_size=0.02, truncation=0.1)
    z = positions(BLOCKS, 0.02)[..., 2]
    near = (weights > 0) & (z.abs() < 0.09)
    # Depth is interpolated linearly between pixels, a wall aslant is not linear in depth: 2e-4 at this size.
    assert (tsdf + z)[near].abs().max() < 5e-4


def test_views_are_averaged_by_weight():
    tsdf, weights = field(BLOCKS)
    integrate(tsdf, weights, BLOCKS, plain(camera(), 2.03, weight=3.0), voxel_size=0.04, truncation=0.3)
    integrate(tsdf, weights, BLOCKS, plain(camera(), 1.99, weight=1.0), voxel_size=0.04, truncation=0.3)
    z = positions(BLOCKS, 0.04)[..., 2]
    front = (weights == 4) & (z > -0.2)
    assert front.any()
    assert torch.allclose(tsdf[front], 0.75 * (0.03 - z[front]) + 0.25 * (-0.01 - z[front]), atol=1e-12)


def test_a_free_ray_says_free_everywhere_and_a_weightless_one_nothing():
    tsdf, weights = field(BLOCKS)
    integrate(tsdf, weights, BLOCKS, plain(camera(), FREE_DEPTH), voxel_size=0.04, truncation=0.2)
    assert (weights == 1).sum() > 1000 and (tsdf[weights > 0] == 0.2).all()
    integrate(tsdf, weights, BLOCKS, plain(camera(), 2.0, weight=0.0), voxel_size=0.04, truncation=0.2)
    assert (tsdf[weights > 0] == 0.2).all() and weights.max() == 1


def test_what_is_behind_the_camera_or_out_of_view_is_not_touched():
    far = torch.tensor([[0, 0, -40], [400, 0, 0], [0, -400, 3]], dtype=torch.int32)
    tsdf, weights = field(far)
    integrate(tsdf, weights, far, plain(camera(), 2.0), voxel_size=0.04, truncation=100.0)
    assert not weights.any() and not tsdf.any()


def random_view(seed: int) -> ObservedDepth:
    """Depth with steps, holes and free pixels."""
    g = torch.Generator().manual_seed(seed)
    eye = torch.randn(3, generator=g, dtype=torch.float64)
    view = camera(eye=tuple((2 * eye / eye.norm()).tolist()), target=(0.1, -0.1, 0.05))
    shape = (view.height, view.width)
    depth = 2 + 0.1 * torch.randn(shape, generator=g, dtype=torch.float64)
    depth[torch.rand(shape, generator=g) < 0.1] = FREE_DEPTH
    slope = 0.1 + 0.9 * torch.rand(shape, generator=g, dtype=torch.float64)
    weight = torch.rand(shape, generator=g, dtype=torch.float64) * (torch.rand(shape, generator=g) < 0.8)
    return ObservedDepth(view, depth, slope, weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kernel_and_twin_agree(dtype: torch.dtype):
    ours, twin = field(BLOCKS, dtype), field(BLOCKS, dtype)
    for seed in range(6):
        integrate(*ours, BLOCKS, random_view(seed), voxel_size=0.03, truncation=0.12)
        integrate_reference(*twin, BLOCKS, random_view(seed), voxel_size=0.03, truncation=0.12)
    assert (ours[1] > 0).float().mean() > 0.5
    apart = ((ours[0] - twin[0]).abs() > 1e-5) | ((ours[1] - twin[1]).abs() > 1e-5)
    # In float32 a voxel on the border of two pixels may fall into either.
    assert apart.float().mean() < (1e-3 if dtype == torch.float32 else 1e-9)


@pytest.mark.skipif(not native.has(torch.device("cpu")), reason="the CPU module is not compiled")
def test_the_number_of_threads_changes_nothing():
    results = []
    for threads in (1, 2, 5):
        native.set_threads(threads)
        tsdf, weights = field(BLOCKS, torch.float32)
        integrate(tsdf, weights, BLOCKS, random_view(1), voxel_size=0.03, truncation=0.12)
        results.append((tsdf, weights))
    native.set_threads(native.len_affinity())
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_no_blocks_are_no_work():
    none = torch.zeros(0, 3, dtype=torch.int32)
    integrate(*field(none), none, plain(camera(), 2.0), voxel_size=0.1, truncation=0.1)


def test_depth_that_is_not_finite_is_not_believed():
    view = plain(camera(), 2.0)
    view.depth[:, ::2] = float("nan")
    for op in (integrate, integrate_reference):
        tsdf, weights = field(BLOCKS)
        op(tsdf, weights, BLOCKS, view, voxel_size=0.04, truncation=0.2)
        assert torch.isfinite(tsdf).all() and torch.isfinite(weights).all()


@pytest.mark.parametrize("wrong", ["blocks", "tsdf", "depth", "truncation"])
def test_shapes_that_do_not_match_are_refused(wrong: str):
    tsdf, weights = field(BLOCKS)
    view, blocks, truncation = plain(camera(), 2.0), BLOCKS, 0.1
    if wrong == "blocks":
        blocks = BLOCKS[:3]
    elif wrong == "tsdf":
        tsdf = tsdf[..., :4]
    elif wrong == "depth":
        view = ObservedDepth(view.camera, view.depth[:-1], view.slope, view.weight)
    else:
        truncation = 0.0
    with pytest.raises(ValueError, match="must"):
        integrate(tsdf, weights, blocks, view, voxel_size=0.1, truncation=truncation)
