"""The GPU's projection, run by the host shim, against the compiled CPU kernels."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from scene.cameras import Camera
from scene.gaussians import Gaussians
from scene.ops import native
from scene.ops.gpu import splat_project as gpu
from scene.ops.splat_project import Lens, Projected, allocate
from tests.scene.splats import a_camera, random_gaussians

HostGpu = Callable[..., AbstractContextManager[None]]
pytestmark = pytest.mark.skipif(not native.has(torch.device("cpu")), reason="the CPU module is the oracle")

FIELDS = ("means2d", "conics", "opacities", "colors", "depths", "normals", "extents")
SCHEDULES = [{"schedule": "forward"}, {"schedule": "reverse"}, {"schedule": "random", "seed": 3}]


def a_lens(camera: Camera, degree: int, antialias: bool = False) -> Lens:
    return Lens.of(camera.K, camera.width, camera.height, 0.01, degree, antialias)


def project(
    by: Any, gaussians: Gaussians, *, degree: int = 3, antialias: bool = False, with_normals: bool = True
) -> Projected:
    """What `by`, a function with project_splats' arguments, writes."""
    camera = a_camera()
    out = allocate(gaussians.means, len(gaussians), with_normals=with_normals)
    count = by(*gaussians.parameters().values(), camera.viewmat, *a_lens(camera, degree, antialias), *out.arrays())
    rows: list[Any] = [None if part is None else part[:count] for part in out.arrays()]
    return Projected(*rows)


def gradients(by: Any, gaussians: Gaussians, seen: Projected, *, degree: int, antialias: bool) -> dict[str, Tensor]:
    """Gradients of a random linear function of the footprints; `seen` is the forward's."""
    generator, camera = torch.Generator().manual_seed(1), a_camera()
    v = {
        name: None if value is None else torch.randn(value.shape, generator=generator)
        for name, value in vars(seen).items()
    }
    upstream = (v["means2d"], v["conics"], v["opacities"], v["colors"], v["depths"], v["normals"])
    out = {name: torch.zeros_like(value) for name, value in gaussians.parameters().items()}
    out["viewmat"] = torch.full((4, 4), torch.nan)
    lens = a_lens(camera, degree, antialias)
    parameters = gaussians.parameters().values()
    by(*parameters, camera.viewmat, *lens, seen.ids, seen.colors, *upstream, *out.values())
    return out


def spoiled(count: int) -> Gaussians:
    """A scene whose first Gaussians are each wrong in another way."""
    scene, nan, inf = random_gaussians(count), torch.nan, torch.inf
    camera = a_camera()
    scene.means[0], scene.means[1] = nan, inf
    scene.means[2] = camera.center - camera.forward  # behind
    scene.means[3] = camera.center  # where directions have no length
    scene.means[4] = 50.0  # beside the image
    scene.quats[5], scene.quats[6] = 0.0, nan
    scene.log_scales[7], scene.log_scales[8], scene.log_scales[9] = nan, 60.0, 5.0  # overflows; huge, but drawn
    scene.opacity_logits[10], scene.opacity_logits[11] = nan, -9.0
    scene.sh_dc[12, 1], scene.sh_dc[13], scene.sh_rest[14, 3, 2] = nan, -inf, nan
    scene.sh_dc[15] = -4.0  # the clamp at zero
    return scene


def assert_close(got: Tensor, wanted: Tensor, tolerance: float, name: str) -> None:
    """To `tolerance` of the largest number: what cancels is not known better than what it is made of."""
    assert got.shape == wanted.shape, name
    if wanted.numel():
        assert float((got - wanted).abs().max()) <= tolerance * float(wanted.abs().max()), name


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("with_normals", [False, True])
def test_visible_splats_equal_those_of_the_cpu(
    degree: int, antialias: bool, with_normals: bool, host_gpu: HostGpu
) -> None:
    options: dict[str, Any] = {"degree": degree, "antialias": antialias, "with_normals": with_normals}
    scene = random_gaussians(300)
    wanted = project(native.cpu().project_splats, scene, **options)
    with host_gpu(guard=True):
        got = project(gpu.project_splats, scene, **options)
        found = gradients(gpu.project_splats_backward, scene, got, degree=degree, antialias=antialias)
    assert 50 < len(wanted) < 300
    assert torch.equal(got.ids, wanted.ids)
    for name in FIELDS[: None if with_normals else -2]:
        assert_close(getattr(got, name), getattr(wanted, name), 1e-5, name)
    expected = gradients(native.cpu().project_splats_backward, scene, wanted, degree=degree, antialias=antialias)
    for name, value in expected.items():
        assert_close(found[name], value, 1e-4, name)


@pytest.mark.parametrize("count", [0, 1, 17, 128, 257])
def test_any_number_of_splats_and_what_must_not_be_drawn(count: int, host_gpu: HostGpu) -> None:
    scene = spoiled(count) if count >= 17 else random_gaussians(count)
    wanted = project(native.cpu().project_splats, scene)
    with host_gpu(guard=True):
        got = project(gpu.project_splats, scene)
        found = gradients(gpu.project_splats_backward, scene, got, degree=3, antialias=False)
    assert torch.equal(got.ids, wanted.ids)
    if count >= 17:
        assert not set(got.ids.tolist()) & {*range(9), 10, 11, 12, 13, 14}
        assert 9 in got.ids.tolist()
    for name in FIELDS:
        assert_close(getattr(got, name), getattr(wanted, name), 1e-5, name)
    expected = gradients(native.cpu().project_splats_backward, scene, wanted, degree=3, antialias=False)
    for name, value in expected.items():
        assert_close(found[name], value, 1e-4, name)


def test_dense_rows_are_the_visible_ones_and_zeros_at_infinite_depth(host_gpu: HostGpu) -> None:
    scene = spoiled(200)
    with host_gpu():
        dense, compact = project(gpu.project_splats_dense, scene), project(gpu.project_splats, scene)
    assert torch.equal(dense.ids, torch.arange(200, dtype=torch.int32))
    seen = dense.extents[:, 0] > 0
    assert torch.equal(seen.nonzero().squeeze(1).int(), compact.ids)
    for name in FIELDS:
        values = getattr(dense, name)
        assert torch.equal(values[seen], getattr(compact, name)), name
        rest = values[~seen]
        assert torch.equal(rest, torch.full_like(rest, torch.inf if name == "depths" else 0.0)), name


def test_a_splat_on_the_edge_of_visible_has_an_extent(host_gpu: HostGpu) -> None:
    # An opacity of 1/255 reaches nowhere, yet it is listed, as on the CPU: an extent of 0 would say it is not.
    scene = random_gaussians(64)
    logits = torch.logit(torch.tensor(1 / 255, dtype=torch.float64)).float() + torch.arange(-32, 32) * 1e-7
    scene = replace(scene, means=torch.zeros(64, 3), opacity_logits=logits)
    wanted = project(native.cpu().project_splats, scene)
    with host_gpu():
        got = project(gpu.project_splats, scene)
    assert 0 < len(got) < 64
    assert abs(len(got) - len(wanted)) <= 16  # the last bit of exp decides


@pytest.mark.parametrize("schedule", SCHEDULES[1:])
def test_bits_do_not_depend_on_the_order_of_threads(schedule: dict[str, Any], host_gpu: HostGpu) -> None:
    scene, runs = spoiled(300), []
    for settings in (SCHEDULES[0], schedule):
        with host_gpu(**settings):
            out = project(gpu.project_splats, scene)
            found = gradients(gpu.project_splats_backward, scene, out, degree=3, antialias=True)
        runs.append([*out.arrays(), *found.values()])
    assert all(torch.equal(a, b) for a, b in zip(*runs))


def test_the_cameras_gradient_sums_over_many_blocks(host_gpu: HostGpu) -> None:
    scene = random_gaussians(9000, log_scale=-4.0)  # over 64 blocks: each thread of the last sum reads several
    wanted = project(native.cpu().project_splats, scene, degree=0)
    expected = gradients(native.cpu().project_splats_backward, scene, wanted, degree=0, antialias=False)
    with host_gpu():
        found = gradients(gpu.project_splats_backward, scene, wanted, degree=0, antialias=False)
    assert len(wanted) > 64 * gpu.SPLATS
    assert_close(found["viewmat"], expected["viewmat"], 1e-4, "viewmat")
