"""Compositing, TSDF and texture kernels on the GPU's path, run on the host: against the CPU kernels and the twins."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from scene.cameras import Camera, look_at
from scene.ops.composite import composite, composite_reference
from scene.ops.texture_bake import ObservedPhoto, Samples, Surface, blend, blend_reference, gather, gather_reference
from scene.ops.triangle_raster import cover, cover_reference, mesh_depth, mesh_depth_reference
from scene.ops.tsdf import FREE_DEPTH, ObservedDepth, integrate, integrate_reference

HostGpu = Callable[..., AbstractContextManager[None]]

SIZES = [(1, 1), (7, 5), (33, 50), (70, 64)]
SCHEDULES = ["reverse", "random"]


def camera(size: tuple[int, int], eye: tuple[float, float, float] = (0.3, -0.2, -2.5)) -> Camera:
    height, width = size
    K = torch.tensor([[1.1 * width, 0, width / 2], [0, 1.2 * height, height / 2], [0, 0, 1]])
    return Camera(K, look_at(torch.tensor(eye), torch.zeros(3), torch.tensor([0.0, -1, 0])), width, height)


@pytest.mark.parametrize("size", [*SIZES, (0, 5)])
def test_composite_agrees(size: tuple[int, int], host_gpu: HostGpu) -> None:
    generator = torch.Generator().manual_seed(1)
    rgb = torch.randint(0, 256, (*size, 3), generator=generator, dtype=torch.uint8)
    alpha = torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)
    background = torch.tensor([0.2, 1.0, 0.0])
    with host_gpu():
        got = composite(rgb, alpha, background)
    torch.testing.assert_close(got, composite(rgb, alpha, background), rtol=0, atol=1e-6)
    torch.testing.assert_close(got, composite_reference(rgb, alpha, background), rtol=0, atol=1e-6)


def observed_depth(size: tuple[int, int], seed: int, odd: float = FREE_DEPTH) -> ObservedDepth:
    """Depth with steps, holes, free pixels and some `odd` ones."""
    generator = torch.Generator().manual_seed(seed)
    depth = 2.4 + 0.2 * torch.randn(size, generator=generator)
    depth[torch.rand(size, generator=generator) < 0.1] = FREE_DEPTH
    depth[torch.rand(size, generator=generator) < 0.05] = odd
    slope = 0.1 + 0.9 * torch.rand(size, generator=generator)
    weight = torch.rand(size, generator=generator) * (torch.rand(size, generator=generator) < 0.8)
    return ObservedDepth(camera(size, eye=(0.3 * seed - 0.5, -0.2, -2.5)), depth, slope, weight)


@pytest.mark.parametrize("odd", [FREE_DEPTH, math.nan, math.inf])
def test_tsdf_agrees(odd: float, host_gpu: HostGpu) -> None:
    steps = torch.arange(-2, 2, dtype=torch.int32)
    blocks = torch.cartesian_prod(steps, steps, steps)
    ours, cpu, twin = ([torch.zeros(len(blocks), 8, 8, 8) for _ in range(2)] for _ in range(3))
    for seed, size in enumerate(SIZES):
        seen = observed_depth(size, seed, odd)
        with host_gpu(schedule="random", seed=seed):
            integrate(ours[0], ours[1], blocks, seen, voxel_size=0.06, truncation=0.25)
        integrate(cpu[0], cpu[1], blocks, seen, voxel_size=0.06, truncation=0.25)
        integrate_reference(twin[0], twin[1], blocks, seen, voxel_size=0.06, truncation=0.25)
    assert float((ours[1] > 0).float().mean()) > 0.5
    # Beside a pixel that is no number the kernels say nothing, the twin believes the voxel's own pixel.
    for other in [cpu] if math.isnan(odd) else [cpu, twin]:
        apart = ((ours[0] - other[0]).abs() > 1e-5) | ((ours[1] - other[1]).abs() > 1e-5)
        assert float(apart.float().mean()) < 1e-3  # a voxel on the border of two pixels may fall into either


def test_tsdf_without_blocks_is_no_work(host_gpu: HostGpu) -> None:
    with host_gpu():
        nothing = torch.zeros(0, 8, 8, 8)
        blocks = torch.zeros(0, 3, dtype=torch.int32)
        integrate(nothing, nothing.clone(), blocks, observed_depth((7, 5), 0), voxel_size=0.1, truncation=0.4)


def random_triangles(count: int, size: tuple[int, int]) -> Tensor:
    """Triangles of all sizes, mirrored ones, and corners on pixel centres, so that edges run through them."""
    generator = torch.Generator().manual_seed(count)
    extent = torch.tensor([size[1], size[0]], dtype=torch.float64)
    triangles = torch.rand(count, 1, 2, generator=generator, dtype=torch.float64) * extent
    triangles = triangles + torch.randn(count, 3, 2, generator=generator, dtype=torch.float64) * extent / 5
    triangles[::2] = triangles[::2].floor() + 0.5
    triangles[5::9] = torch.nan
    return triangles


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_cover_is_that_of_the_cpu_to_the_bit(size: tuple[int, int], schedule: str, host_gpu: HostGpu) -> None:
    triangles = random_triangles(60, size)
    with host_gpu(schedule=schedule, seed=2):
        faces, lost = cover(triangles, *size)
    for wanted in (cover(triangles, *size), cover_reference(triangles, *size)):
        assert torch.equal(faces, wanted[0])
        assert torch.equal(lost, wanted[1])
    assert bool((faces >= 0).any())


def test_no_triangles_cover_nothing(host_gpu: HostGpu) -> None:
    with host_gpu():
        faces, lost = cover(torch.zeros(0, 3, 2), 3, 4)
    assert bool((faces == -1).all())
    assert not len(lost)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_mesh_depth_agrees_also_for_triangles_that_reach_behind_the_camera(
    size: tuple[int, int], schedule: str, host_gpu: HostGpu
) -> None:
    generator = torch.Generator().manual_seed(3)
    vertices = 1.5 * torch.randn(40, 3, generator=generator)
    faces = torch.randint(0, 40, (30, 3), generator=generator)
    view = camera(size, eye=(0.1, 0.2, -0.7))
    with host_gpu(schedule=schedule, seed=4):
        got = mesh_depth(vertices, faces, view)
    torch.testing.assert_close(got, mesh_depth(vertices, faces, view), rtol=1e-6, atol=0)
    exact = view.to(dtype=torch.float64)
    z = exact.project(vertices.double())[1]
    wanted = mesh_depth_reference(vertices.double(), faces.int(), exact, 1e-3 * float(z[z > 0].median()))
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=0)


def ball(texels: int) -> Surface:
    normals = torch.nn.functional.normalize(torch.randn(texels, 3, generator=torch.Generator().manual_seed(1)), dim=1)
    return Surface(normals.clone(), normals)


def observed_photos() -> list[ObservedPhoto]:
    """Noise photos of the unit ball from around it, with its true depth, and pixels here and there of no worth."""
    generator = torch.Generator().manual_seed(2)
    photos = []
    for eye in [(0.0, 0.0, -3.0), (2.6, 0.3, -1.5), (2.6, -0.4, 1.5), (-0.2, 0.1, 3.0), (-2.6, 0.0, 0.8)]:
        view = camera((33, 50), eye=eye)
        origins, directions = view.rays()
        a, b = (directions**2).sum(-1), (origins * directions).sum(-1)
        root = b * b - a * ((origins**2).sum(-1) - 1)
        depth = torch.where(root > 0, (-b - root.clamp_min(0).sqrt()) / a, 0)
        worth = torch.rand(33, 50, generator=generator).clamp_min(0.1)
        worth[torch.rand(33, 50, generator=generator) < 0.03] = 0
        rgb = torch.randint(0, 256, (33, 50, 3), generator=generator, dtype=torch.uint8)
        photos.append(ObservedPhoto(view, rgb, worth, depth))
    return photos


def assert_same_samples(got: Samples, wanted: Samples) -> None:
    torch.testing.assert_close(got.weights, wanted.weights, rtol=1e-4, atol=1e-4)
    same = got.views == wanted.views
    assert float(same.float().mean()) > 0.999  # two photos that see a texel equally well may swap by rounding
    assert int((got.colors.int() - wanted.colors.int()).abs().amax(-1)[same].max()) <= 1


def test_samples_and_their_blend_agree(host_gpu: HostGpu) -> None:
    surface = ball(700)
    ours, cpu, twin = (Samples.empty(700, 3) for _ in range(3))
    for view, photo in enumerate(observed_photos()):
        with host_gpu(schedule="random", seed=view):
            gather(surface, photo, view, ours, tolerance=0.05, grazing=0.15)
        gather(surface, photo, view, cpu, tolerance=0.05, grazing=0.15)
        gather_reference(surface, photo, view, twin, tolerance=0.05, grazing=0.15)
    assert float((ours.weights[:, 0] > 0).float().mean()) > 0.3
    assert_same_samples(ours, cpu)
    assert_same_samples(ours, twin)

    generator = torch.Generator().manual_seed(5)
    gains, offsets = 1 + 0.1 * torch.randn(5, 3, generator=generator), torch.randn(5, 3, generator=generator)
    with host_gpu():
        got = blend(ours, gains, offsets, power=2.0, spread=30.0)
    torch.testing.assert_close(got, blend(ours, gains, offsets, power=2.0, spread=30.0), rtol=1e-5, atol=1e-3)
    wanted = blend_reference(ours, gains, offsets, power=2.0, spread=30.0)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-2)
    assert not got[ours.weights[:, 0] == 0].any()


def test_tensors_of_another_type_are_refused_before_a_kernel_reads_them(host_gpu: HostGpu) -> None:
    photo, samples = observed_photos()[0], Samples.empty(9, 2)
    with host_gpu(), pytest.raises(ValueError, match="must be float32"):
        gather(ball(9), replace(photo, depth=photo.depth.double()), 0, samples, tolerance=0.05, grazing=0.15)
