"""The fused training step against the composed ops with torch's own Adam, and its promises."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from scene.gaussians import Gaussians
from scene.ops import native, splat_step
from scene.ops.splat_step import AdamState, Rates, SplatStep
from scene.rasterize import RasterSettings, render
from tests.scene.splats import a_camera, random_gaussians

RATES = Rates(means=1e-3, quats=1e-3, log_scales=5e-3, opacity_logits=5e-2, sh_dc=2.5e-3, sh_rest=1.25e-4)
needs_kernels = pytest.mark.skipif(not native.has(torch.device("cpu")), reason="the CPU module is not compiled")
PATHS = [pytest.param(splat_step._Fused, marks=needs_kernels), splat_step._Composed]


def start(gaussians: Gaussians, path: type | None = None, moments: torch.dtype | None = None) -> SplatStep:
    step = SplatStep(gaussians.clone(), AdamState.zeros(gaussians, moments))
    if path is not None:
        step._pass = path()
    return step


def train(step: SplatStep, steps: int, *, rates: Rates = RATES, geometry: bool = False, **options: object) -> Tensor:
    """Some steps towards random gradients over random backgrounds; returns the last image."""
    generator = torch.Generator().manual_seed(7)
    camera, image = a_camera(), torch.empty(0)
    h, w = camera.height, camera.width
    for _ in range(steps):
        background = torch.rand(3, generator=generator)
        image = step.forward(camera, background, **{"sh_degree": 3, "with_geometry": geometry} | options)  # pyright: ignore[reportArgumentType]
        shapes = [(h, w, 3), (h, w), (h, w), (h, w, 3)] if geometry else [(h, w, 3)]
        step.backward(*(torch.randn(shape, generator=generator) for shape in shapes))
        step.update(rates)
    return image


def state(step: SplatStep) -> dict[str, Tensor]:
    tensors = {f"param.{name}": value for name, value in step.gaussians.parameters().items()}
    tensors |= {f"exp_avg.{name}": value for name, value in step.adam.exp_avg.items()}
    tensors |= {f"exp_avg_sq.{name}": value for name, value in step.adam.exp_avg_sq.items()}
    s = step.statistics
    return tensors | {"score": s.score, "seen": s.seen, "radius": s.radius}


@needs_kernels
@pytest.mark.parametrize("geometry", [False, True])
@pytest.mark.parametrize("sh_degree", [0, 1, 2, 3])
def test_fused_step_equals_composed_ops(sh_degree: int, geometry: bool) -> None:
    rates = replace(RATES, opacity_pull=0.5, scale_pull=0.3)
    scene = random_gaussians(300)
    fused, composed = start(scene, splat_step._Fused), start(scene, splat_step._Composed)
    options = {"sh_degree": sh_degree, "antialias": geometry}
    image = train(fused, 3, rates=rates, geometry=geometry, **options)
    torch.testing.assert_close(image, train(composed, 3, rates=rates, geometry=geometry, **options), atol=2e-6, rtol=0)
    wanted = state(composed)
    for name, tensor in state(fused).items():
        # The same sums in another order; Adam's first steps divide a gradient by its own size, which keeps the error.
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-4, atol=1e-6 * float(wanted[name].abs().max()) + 1e-12)


@pytest.mark.parametrize("path", PATHS)
def test_one_step_is_torch_adam_on_the_gradient_of_render(path: type) -> None:
    scene, camera = random_gaussians(60, sh_degree=2), a_camera()
    step = start(scene, path)
    background, v_image = (
        torch.tensor([0.2, 0.5, 0.9]),
        torch.randn(36, 40, 3, generator=torch.Generator().manual_seed(0)),
    )
    image = step.forward(camera, background, sh_degree=2).clone()
    step.backward(v_image)
    visible = step.visible.long()
    step.update(RATES)

    leaves = Gaussians(**{name: value.clone().requires_grad_() for name, value in scene.parameters().items()})
    drawn = render(leaves, camera, background=background, settings=RasterSettings(sh_degree=2))
    torch.testing.assert_close(image, drawn.rgb.detach(), atol=1e-6, rtol=0)
    (drawn.rgb * v_image).sum().backward()
    for (name, leaf), rate in zip(leaves.parameters().items(), RATES.by_group()):
        torch.optim.Adam([leaf], lr=rate, eps=RATES.eps).step()
        got = step.gaussians.parameters()[name]
        torch.testing.assert_close(got[visible], leaf.detach()[visible], atol=1e-3 * rate, rtol=1e-6)
        unseen = torch.ones(60, dtype=torch.bool).index_fill(0, visible, False)
        assert torch.equal(got[unseen], scene.parameters()[name][unseen])


@needs_kernels
def test_moments_in_sixteen_bits_are_those_of_the_composed_ops() -> None:
    fused, composed, precise = (
        start(random_gaussians(300), path, moments)
        for path, moments in (
            (splat_step._Fused, torch.bfloat16),
            (splat_step._Composed, torch.bfloat16),
            (splat_step._Fused, None),
        )
    )
    for step in (fused, composed, precise):
        train(step, 5)
    for moments in ("exp_avg", "exp_avg_sq"):
        for name, value in getattr(fused.adam, moments).items():
            assert value.dtype == torch.bfloat16
            # Where sums in another order differ, chance may take the next number, and the paths part from there.
            other = getattr(composed.adam, moments)[name]
            assert float((value != other).float().mean()) < 0.05, name
            wanted = getattr(precise.adam, moments)[name]
            assert float((value.float() - wanted).abs().sum()) < 2**-6 * float(wanted.abs().sum()), name


@needs_kernels
@pytest.mark.parametrize("moments", [torch.float32, torch.bfloat16])
def test_bits_do_not_depend_on_the_number_of_threads(moments: torch.dtype) -> None:
    before, results = native.cpu().threads(), []
    try:
        for threads in (1, 2, 3):
            native.set_threads(threads)
            step = start(random_gaussians(4000, log_scale=-3.5), moments=moments)
            train(step, 3, geometry=True)
            results.append(state(step))
    finally:
        native.set_threads(before)
    for other in results[1:]:
        for name, tensor in results[0].items():
            assert torch.equal(tensor, other[name]), name


@pytest.mark.parametrize("path", PATHS)
def test_dense_gradients_equal_autograd(path: type) -> None:
    scene, camera = random_gaussians(80), a_camera()
    step = start(scene, path)
    v_image = torch.randn(36, 40, 3, generator=torch.Generator().manual_seed(0))
    step.forward(camera, torch.zeros(3), sh_degree=3)
    step.backward(v_image)
    got = step.gradients()
    leaves = Gaussians(**{name: value.clone().requires_grad_() for name, value in scene.parameters().items()})
    (render(leaves, camera).rgb * v_image).sum().backward()
    for name, leaf in leaves.parameters().items():
        assert leaf.grad is not None
        torch.testing.assert_close(got[name], leaf.grad, rtol=1e-4, atol=1e-5 * float(leaf.grad.abs().max()))
    assert float(got["viewmat"].abs().max()) > 0


@pytest.mark.parametrize("path", PATHS)
def test_statistics_count_views_and_sum_gradients_in_image_units(path: type) -> None:
    scene, camera = random_gaussians(50), a_camera()
    step = start(scene, path)
    half = torch.tensor([0.5 * camera.width, 0.5 * camera.height])
    still = Rates(0, 0, 0, 0, 0, 0)
    expected = torch.zeros(50)
    for seed in range(3):
        v_image = torch.randn(36, 40, 3, generator=torch.Generator().manual_seed(seed))
        step.forward(camera, torch.zeros(3), sh_degree=3)
        step.backward(v_image)
        v_means2d = _v_means2d(scene, v_image)
        expected[step.visible.long()] += (v_means2d * half).norm(dim=1)
        step.update(still)
    seen = torch.zeros(50, dtype=torch.int32)
    seen[step.visible.long()] = 3
    assert torch.equal(step.statistics.seen, seen)
    torch.testing.assert_close(step.statistics.score, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(step.statistics.radius > 0, seen > 0)
    for name, value in step.gaussians.parameters().items():
        assert torch.equal(value, scene.parameters()[name])


def _v_means2d(scene: Gaussians, v_image: Tensor) -> Tensor:
    from scene.ops.splat_bin import bin_splats
    from scene.ops.splat_blend import blend
    from scene.ops.splat_project import project

    camera = a_camera()
    g, w, h = scene, camera.width, camera.height
    projected = project(
        g.means, g.quats, g.log_scales, g.opacity_logits, g.sh_dc, g.sh_rest, camera.viewmat, camera.K, w, h
    )
    means2d = projected.means2d.detach().requires_grad_()
    projected = replace(projected, means2d=means2d)
    rgb = blend(projected, bin_splats(projected, camera.width, camera.height)).rgb
    return torch.autograd.grad((rgb * v_image).sum(), means2d)[0]


@needs_kernels
def test_rows_apart_are_updated_as_rows_together() -> None:
    # Every second splat looks away from the camera, so that what is seen lies in rows that do not follow each other.
    scene, dense = random_gaussians(200), random_gaussians(200)
    for sh_degree in (1, 2, 3):
        spread = Gaussians(**{name: torch.stack([t, t], 1).flatten(0, 1) for name, t in dense.parameters().items()})
        spread.means[1::2] += 100 * (a_camera().center - dense.means)
        apart, together = start(spread), start(scene)
        train(apart, 2, sh_degree=sh_degree)
        train(together, 2, sh_degree=sh_degree)
        for name, value in together.gaussians.parameters().items():
            # Each number is worked out alone; only how the compiler fuses products and sums may differ.
            torch.testing.assert_close(apart.gaussians.parameters()[name][::2], value, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("path", PATHS)
def test_a_rate_of_zero_leaves_parameter_and_moments_alone(path: type) -> None:
    scene = random_gaussians(50)
    step = start(scene, path)
    train(step, 1)
    before = {name: value.clone() for name, value in state(step).items()}
    train(step, 1, rates=replace(RATES, sh_rest=0.0, quats=0.0))
    for name, value in state(step).items():
        assert torch.equal(value, before[name]) == ("sh_rest" in name or "quats" in name), name


@needs_kernels
def test_absolute_gradient_scores_at_least_the_gradient() -> None:
    scores = []
    for absgrad in (False, True):
        step = start(random_gaussians(50))
        step.forward(a_camera(), torch.zeros(3), sh_degree=3)
        step.backward(torch.randn(36, 40, 3, generator=torch.Generator().manual_seed(0)), absgrad=absgrad)
        step.update(RATES)
        scores.append(step.statistics.score)
    assert bool((scores[1] >= scores[0] * (1 - 1e-5)).all())
    assert float(scores[1].sum()) > 1.5 * float(scores[0].sum())  # gradients of noise cancel, their sizes do not


@pytest.mark.parametrize("path", PATHS)
def test_pulls_make_what_is_seen_fainter_and_smaller(path: type) -> None:
    scene = random_gaussians(50)
    step = start(scene, path)
    rates = replace(RATES, opacity_pull=1.0, scale_pull=1.0)
    step.forward(a_camera(), torch.zeros(3), sh_degree=3)
    step.backward(torch.zeros(36, 40, 3))
    step.update(rates)
    rows = step.visible.long()
    # Adam's first step moves each number by its rate.
    lower = scene.opacity_logits[rows] - step.gaussians.opacity_logits[rows]
    torch.testing.assert_close(lower, torch.full_like(lower, rates.opacity_logits), rtol=1e-4, atol=0)
    smaller = scene.log_scales[rows] - step.gaussians.log_scales[rows]
    torch.testing.assert_close(smaller, torch.full_like(smaller, rates.log_scales), rtol=1e-4, atol=0)


@pytest.mark.parametrize("path", PATHS)
def test_replacing_goes_on_with_another_count_and_other_images(path: type) -> None:
    step = start(random_gaussians(20), path)
    train(step, 1)
    more = random_gaussians(70, seed=1)
    step.replace(more, AdamState.zeros(more))
    assert not step.statistics.seen.any()
    big = a_camera(width=70, height=50)
    image = step.forward(big, torch.zeros(3), sh_degree=3, with_geometry=True).clone()
    assert step.images.depth is not None
    fresh = start(more, path)
    assert torch.equal(fresh.forward(big, torch.zeros(3), sh_degree=3, with_geometry=True), image)
    step.forward(a_camera(), torch.zeros(3), sh_degree=1)
    assert step.images.depth is None


@pytest.mark.parametrize("path", PATHS)
def test_nothing_in_view_changes_nothing(path: type) -> None:
    scene = replace(random_gaussians(5), means=torch.full((5, 3), -50.0))
    for gaussians in (scene, random_gaussians(0)):
        step = start(gaussians, path)
        background = torch.tensor([0.1, 0.2, 0.3])
        image = step.forward(a_camera(), background, sh_degree=3)
        torch.testing.assert_close(image, background.expand_as(image))
        step.backward(torch.ones(36, 40, 3))
        step.update(RATES)
        for name, value in step.gaussians.parameters().items():
            assert torch.equal(value, gaussians.parameters()[name])


@needs_kernels
def test_a_poisoned_splat_stays_alone() -> None:
    scene = random_gaussians(60)
    scene.means[13] = float("nan")
    step = start(scene)
    train(step, 2)
    others = torch.arange(60) != 13
    for value in step.gaussians.parameters().values():
        assert bool(value[others].isfinite().all())


def test_moments_that_do_not_fit_are_refused() -> None:
    scene = random_gaussians(5)
    with pytest.raises(ValueError, match="remap the moments"):
        SplatStep(scene, AdamState.zeros(random_gaussians(4)))
    step = start(scene)
    step.forward(a_camera(), torch.zeros(3), sh_degree=3)
    with pytest.raises(ValueError, match="with_geometry=True"):
        step.backward(torch.zeros(36, 40, 3), v_depth=torch.zeros(36, 40))
