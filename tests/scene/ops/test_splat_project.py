"""Projection of Gaussians: against its twin, finite differences, closed forms, and inputs that should draw nothing."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from scene.cameras import Camera
from scene.gaussians import Gaussians
from scene.ops import native
from scene.ops.splat_project import Projected, project, project_reference
from tests.scene.splats import a_camera, random_gaussians, random_rotation, turned

FIELDS = ("means2d", "conics", "opacities", "colors", "depths", "normals", "extents")
DIFFERENTIABLE = FIELDS[:-1]
needs_kernels = pytest.mark.skipif(not native.has(torch.device("cpu")), reason="the CPU module is not compiled")


def projected(gaussians: Gaussians, camera: Camera, *, by: Any = project, **options: Any) -> Projected:
    options = {"sh_degree": gaussians.sh_degree, "with_normals": True} | options
    return by(
        **gaussians.parameters(),
        viewmat=camera.viewmat,
        K=camera.K,
        width=camera.width,
        height=camera.height,
        **options,
    )


def weights_like(out: Projected) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(9)
    shapes = {name: getattr(out, name) for name in DIFFERENTIABLE}
    return {name: torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t) for name, t in shapes.items()}


def gradients(gaussians: Gaussians, camera: Camera, *, by: Any, **options: Any) -> tuple[Tensor, ...]:
    """Gradients of a random linear function of all outputs by all inputs, the view last."""
    leaves = [tensor.detach().requires_grad_() for tensor in gaussians.parameters().values()]
    viewmat = camera.viewmat.detach().requires_grad_()
    options = {"sh_degree": gaussians.sh_degree, "with_normals": True} | options
    out = by(*leaves, viewmat, camera.K, camera.width, camera.height, **options)
    loss = torch.stack([(getattr(out, name) * w).sum() for name, w in weights_like(out).items()]).sum()
    return torch.autograd.grad(loss, [*leaves, viewmat])


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_kernel_equals_twin_in_values_and_gradients(dtype: torch.dtype, antialias: bool, degree: int) -> None:
    # float32: a few roundings of numbers that cancel to a tenth; float64: the same at its precision.
    tolerance = 3e-6 if dtype == torch.float32 else 1e-13
    gaussians, camera = random_gaussians(300, dtype=dtype), a_camera(dtype=dtype)
    options = {"sh_degree": degree, "antialias": antialias}
    got = projected(gaussians, camera, **options)
    wanted = projected(gaussians, camera, by=project_reference, **options)
    assert torch.equal(got.ids, wanted.ids)
    assert 50 < len(got) < 300
    for name in FIELDS:
        a, b = getattr(got, name), getattr(wanted, name)
        assert float((a - b).abs().max()) <= tolerance * float(b.abs().max()), name
    pairs = zip(
        gradients(gaussians, camera, by=project, **options),
        gradients(gaussians, camera, by=project_reference, **options),
    )
    for name, (a, b) in zip([*gaussians.parameters(), "viewmat"], pairs):
        assert float((a - b).abs().max()) <= tolerance * float(b.abs().max()), name


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("by", [pytest.param(project, marks=needs_kernels), project_reference])
def test_gradients_equal_finite_differences(by: Any, antialias: bool) -> None:
    gaussians, camera = random_gaussians(6, seed=4, dtype=torch.float64), a_camera(dtype=torch.float64)
    # One splat outside the image, where the linearisation is held at the margin, but large enough to reach in.
    outside = gaussians.means.clone()
    outside[0] = torch.tensor([4.0, 0.0, 0.0])
    log_scales = gaussians.log_scales.clone()
    log_scales[0] = torch.tensor([1.5, 1.4, 1.6]).log()
    gaussians = replace(
        gaussians, means=outside, log_scales=log_scales, sh_dc=gaussians.sh_dc + 2
    )  # off the clamp at 0
    leaves = [tensor.detach().requires_grad_() for tensor in gaussians.parameters().values()]
    viewmat = camera.viewmat.detach().requires_grad_()

    def outputs(*inputs: Tensor) -> tuple[Tensor, ...]:
        out = by(
            *inputs,
            camera.K,
            camera.width,
            camera.height,
            sh_degree=3,
            antialias=antialias,
            near=0.01,
            with_normals=True,
        )
        assert len(out) == 6
        return tuple(getattr(out, name) for name in DIFFERENTIABLE)

    assert torch.autograd.gradcheck(outputs, [*leaves, viewmat], atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("by", [pytest.param(project, marks=needs_kernels), project_reference])
def test_round_splat_on_the_axis_has_the_closed_form(by: Any) -> None:
    # sigma = f s / z px on both axes; covariance sigma^2 + 0.3; 255 o exp(-r^2 / 2 cov) = 1 at the extent.
    f, z, s, o = 50.0, 4.0, 0.2, 0.6
    camera = Camera(torch.tensor([[f, 0, 20.0], [0, f, 15.0], [0, 0, 1]]), torch.eye(4), 40, 30)
    one = Gaussians(
        means=torch.tensor([[0.0, 0.0, z]]),
        quats=torch.tensor([[2.0, 1.0, -3.0, 0.5]]),
        log_scales=torch.full((1, 3), math.log(s)),
        opacity_logits=torch.logit(torch.tensor([o])),
        sh_dc=torch.tensor([[0.3, -0.2, 0.1]]),
        sh_rest=torch.zeros(1, 0, 3),
    )
    for antialias in (False, True):
        out = projected(one, camera, by=by, antialias=antialias)
        variance = (f * s / z) ** 2
        opacity = o * (variance / (variance + 0.3) if antialias else 1)
        reach = math.sqrt(2 * math.log(255 * opacity) * (variance + 0.3))
        torch.testing.assert_close(out.means2d, torch.tensor([[20.0, 15.0]]))
        torch.testing.assert_close(out.conics, torch.tensor([[1, 0, 1]]) / (variance + 0.3))
        torch.testing.assert_close(out.opacities, torch.tensor([opacity]))
        torch.testing.assert_close(out.extents, torch.full((1, 2), reach))
        torch.testing.assert_close(out.depths, torch.tensor([z]))
        torch.testing.assert_close(out.colors, 0.5 + 0.28209479177387814 * one.sh_dc)


def test_covariance_is_that_of_projected_samples() -> None:
    # A small splat is projected nearly linearly, so the spread of projected samples is an oracle free of any Jacobian.
    gaussians, camera = random_gaussians(5, seed=2, dtype=torch.float64, log_scale=-6.0), a_camera(dtype=torch.float64)
    out = projected(gaussians, camera, by=project_reference)
    generator = torch.Generator().manual_seed(0)
    from scene.ops.splat_project import quats_to_matrices

    for row, index in enumerate(out.ids.tolist()):
        noise = torch.randn(200_000, 3, generator=generator, dtype=torch.float64)
        axes = quats_to_matrices(gaussians.quats[index]) * gaussians.scales[index]
        pixels, _ = camera.project(gaussians.means[index] + noise @ axes.T)
        a, b, c = out.conics[row].tolist()
        covariance = torch.linalg.inv(torch.tensor([[a, b], [b, c]], dtype=torch.float64)) - 0.3 * torch.eye(2)
        # 200k samples: the standard error of a covariance is 0.5 per cent of it; the linearisation adds about as much.
        assert float((torch.cov(pixels.T) - covariance).abs().max()) < 0.02 * float(covariance.abs().max())


@pytest.mark.parametrize("by", [pytest.param(project, marks=needs_kernels), project_reference])
def test_turning_scene_and_camera_together_changes_nothing(by: Any) -> None:
    gaussians, camera = random_gaussians(80, dtype=torch.float64), a_camera(dtype=torch.float64)
    rotation, shift = random_rotation(5), torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    c2w = camera.c2w.clone()
    c2w[:3, :3], c2w[:3, 3] = rotation @ camera.c2w[:3, :3], rotation @ camera.c2w[:3, 3] + shift
    before = projected(gaussians, camera, by=by, antialias=True)
    after = projected(turned(gaussians, rotation, shift), replace(camera, c2w=c2w), by=by, antialias=True)
    assert torch.equal(before.ids, after.ids)
    for name in ("means2d", "conics", "opacities", "colors", "depths", "extents"):
        torch.testing.assert_close(getattr(after, name), getattr(before, name), atol=1e-9, rtol=1e-9)
    assert before.normals is not None and after.normals is not None
    torch.testing.assert_close(after.normals, before.normals @ rotation.T, atol=1e-9, rtol=0)


@needs_kernels
def test_permuting_the_gaussians_permutes_the_result() -> None:
    gaussians, camera = random_gaussians(1500), a_camera()  # several pieces
    order = torch.randperm(1500, generator=torch.Generator().manual_seed(0))
    before, after = projected(gaussians, camera), projected(gaussians.select(order), camera)
    place = torch.empty(1500, dtype=torch.int64).scatter_(0, order, torch.arange(1500))
    rows = place[before.ids.long()]
    back = torch.full((1500,), -1).scatter_(0, after.ids.long(), torch.arange(len(after)))[rows]
    assert bool((back >= 0).all())
    assert len(before) == len(after)
    for name in FIELDS:
        assert torch.equal(getattr(after, name)[back], getattr(before, name)), name


def test_normals_are_unit_shortest_axes_that_face_the_camera() -> None:
    gaussians, camera = random_gaussians(100, dtype=torch.float64), a_camera(dtype=torch.float64)
    out = projected(gaussians, camera)
    assert out.normals is not None
    rows = out.ids.long()
    torch.testing.assert_close(out.normals.norm(dim=1), torch.ones(len(rows), dtype=torch.float64))
    assert bool(((out.normals * (gaussians.means[rows] - camera.center)).sum(1) <= 0).all())
    # Along the normal the covariance is the smallest scale squared.
    from scene.ops.splat_project import quats_to_matrices

    axes = quats_to_matrices(gaussians.quats[rows]) * gaussians.scales[rows][:, None]
    along = (out.normals[:, None] @ axes).squeeze(1).norm(dim=1)
    torch.testing.assert_close(along, gaussians.scales[rows].amin(1))


BROKEN = [
    ("means", [float("nan"), 0.0, 0.0]),
    ("means", [float("inf"), 0.0, 0.0]),
    ("quats", [0.0, 0.0, 0.0, 0.0]),
    ("quats", [float("nan"), 0.0, 0.0, 1.0]),
    ("log_scales", [float("inf"), 0.0, 0.0]),
    ("log_scales", [float("-inf"), 0.0, 0.0]),
    ("log_scales", [80.0, 80.0, 80.0]),  # overflows on the way
    ("opacity_logits", float("nan")),
    ("opacity_logits", -8.0),  # fainter than 1/255 everywhere
    ("sh_dc", [float("nan"), 0.0, 0.0]),
    ("sh_dc", [float("-inf"), 0.0, 0.0]),  # would pass a clamp at zero unnoticed
    ("sh_rest", [[float("nan")] * 3] * 15),
]


@pytest.mark.parametrize("by", [pytest.param(project, marks=needs_kernels), project_reference])
@pytest.mark.parametrize("name, value", BROKEN)
def test_a_broken_splat_is_left_out_and_poisons_no_gradient(name: str, value: Any, by: Any) -> None:
    gaussians, camera = random_gaussians(40), a_camera()
    victim = int(projected(gaussians, camera).ids[7])
    parameters = {key: tensor.clone() for key, tensor in gaussians.parameters().items()}
    parameters[name][victim] = torch.tensor(value)
    broken = Gaussians(**parameters)
    out = projected(broken, camera, by=by)
    assert victim not in out.ids.tolist()
    others = torch.arange(40) != victim
    alone = projected(gaussians.select(others), camera, by=by)
    for field in FIELDS:
        assert torch.equal(getattr(out, field), getattr(alone, field))
    got, wanted = gradients(broken, camera, by=by), gradients(gaussians.select(others), camera, by=by)
    for a, b in zip(got[:-1], wanted[:-1]):
        assert not a[victim].any()
        # Other lanes of a SIMD register now hold a splat, so sums may round differently.
        torch.testing.assert_close(a[others], b, atol=1e-5, rtol=1e-5)
    assert bool(got[-1].isfinite().all())


@pytest.mark.parametrize("by", [pytest.param(project, marks=needs_kernels), project_reference])
def test_nothing_to_see(by: Any) -> None:
    camera = a_camera()
    behind = camera.center - 2 * camera.forward
    beside = camera.center + 0.5 * camera.forward + 30 * camera.c2w[:3, 0]
    near = camera.center + 0.005 * camera.forward
    for mean in (behind, beside, near):
        one = random_gaussians(1)
        out = projected(replace(one, means=mean[None]), camera, by=by)
        assert len(out) == 0
    empty = random_gaussians(0)
    assert len(projected(empty, camera, by=by)) == 0
    assert all(not g.any() for g in gradients(empty, camera, by=by))


@needs_kernels
def test_a_splat_larger_than_the_scene_agrees_with_the_twin() -> None:
    gaussians, camera = random_gaussians(8, dtype=torch.float64), a_camera(dtype=torch.float64)
    giant = replace(gaussians, log_scales=gaussians.log_scales + 8)
    got, wanted = projected(giant, camera), projected(giant, camera, by=project_reference)
    assert len(got) == 8
    for name in FIELDS:
        torch.testing.assert_close(getattr(got, name), getattr(wanted, name), rtol=1e-11, atol=1e-15)


def test_a_needle_keeps_its_shape_in_float32() -> None:
    # Axes of 1e4 and 1e-4 scene units seen askew: xx yy - xy^2 cancels to nothing in float32, the sum of squares stays.
    base = random_gaussians(20, seed=3, dtype=torch.float64)
    log_scales = torch.tensor([9.0, -9.0, -9.0], dtype=torch.float64).repeat(20, 1)
    exact = replace(base, log_scales=log_scales, sh_rest=base.sh_rest[:, :0])
    camera = a_camera(dtype=torch.float64)
    wanted = projected(exact, camera)
    got = projected(exact.to(dtype=torch.float32), camera.to(dtype=torch.float32))
    assert torch.equal(got.ids, wanted.ids)
    assert bool((got.conics[:, 0] * got.conics[:, 2] >= got.conics[:, 1] ** 2 * (1 - 1e-6)).all())
    torch.testing.assert_close(got.conics.double(), wanted.conics, rtol=2e-3, atol=1e-5)


@needs_kernels
def test_tensors_that_are_not_contiguous_are_read_rightly() -> None:
    gaussians, camera = random_gaussians(50), a_camera()
    strided = Gaussians(**{name: torch.stack([t, t + 1], dim=-1)[..., 0] for name, t in gaussians.parameters().items()})
    assert not strided.means.is_contiguous()
    for a, b in zip(gradients(strided, camera, by=project), gradients(gaussians, camera, by=project)):
        assert torch.equal(a, b)


@needs_kernels
def test_bits_do_not_depend_on_the_number_of_threads() -> None:
    gaussians, camera = random_gaussians(5000), a_camera()
    before = native.cpu().threads()
    try:
        results = []
        for threads in (1, 2, 5):
            native.set_threads(threads)
            out = projected(gaussians, camera)
            results.append([*(getattr(out, name) for name in FIELDS), *gradients(gaussians, camera, by=project)])
    finally:
        native.set_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


def test_mistakes_of_the_caller_are_named() -> None:
    gaussians, camera = random_gaussians(3, sh_degree=1), a_camera()
    with pytest.raises(ValueError, match="sh_degree must be 0 to 1"):
        projected(gaussians, camera, sh_degree=2)
    with pytest.raises(ValueError, match="viewmat must be float32"):
        projected(gaussians, a_camera(dtype=torch.float64))
    parameters = gaussians.parameters() | {"quats": gaussians.quats[:2]}
    with pytest.raises(ValueError, match=r"quats must be \[3, 4\], got \[2, 4\]"):
        project(*parameters.values(), viewmat=camera.viewmat, K=camera.K, width=8, height=8)
