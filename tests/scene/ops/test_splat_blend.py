"""Blending: against its twin, an oracle that goes pixel by pixel, closed forms and finite differences."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import Tensor

from scene.ops import native
from scene.ops.splat_bin import Bins, bin_splats, bin_splats_reference
from scene.ops.splat_blend import Blended, blend, blend_reference
from scene.ops.splat_project import Projected
from tests.scene.projected_splats import (
    FIELDS,
    blend_pixel_by_pixel,
    cast,
    make_projected,
    random_projected,
    select,
)

needs_kernels = pytest.mark.skipif(not native.has(torch.device("cpu")), reason="the CPU module is not compiled")
BACKGROUND = torch.tensor([0.2, 0.5, 0.9])
IMAGES = ("rgb", "alpha", "depth", "normal", "median_depth")
# Rounding of a few hundred float32 operations. Near a cut-off it may decide otherwise; these scenes are not near one.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def blended_by(
    splats: Projected,
    width: int,
    height: int,
    *,
    geometry: bool = True,
    binning: Callable[..., Bins] = bin_splats,
    blending: Callable[..., Blended] = blend,
) -> dict[str, Tensor]:
    """Images, gradients of a random weighting of them by every field and the background, and absgrad."""
    dtype = splats.means2d.dtype
    leaves = {name: getattr(splats, name).requires_grad_() for name in FIELDS}
    background = BACKGROUND.to(dtype, copy=True).requires_grad_()
    absgrad = torch.full_like(splats.means2d, torch.nan)
    bins = binning(splats, width, height)
    blended = blending(splats, bins, background, with_geometry=geometry, absgrad=absgrad)
    images = {name: getattr(blended, name) for name in IMAGES if getattr(blended, name) is not None}
    generator = torch.Generator().manual_seed(1)
    loss = torch.zeros((), dtype=dtype)
    for name, image in images.items():
        if name != "median_depth":
            weights = torch.randn(image.shape, generator=generator, dtype=torch.float64)
            loss = loss + (image * weights.to(dtype)).sum()
    loss.backward()
    gradients = {f"v_{name}": leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    images = {name: image.detach() for name, image in images.items()}
    return images | gradients | {"v_background": background.grad, "absgrad": absgrad}


def assert_close(got: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float) -> None:
    assert got.keys() == wanted.keys()
    for name, want in wanted.items():
        scale = float(want.abs().max()) if want.numel() else 0.0
        worst = float((got[name].double() - want.double()).abs().max()) if want.numel() else 0.0
        assert worst <= tolerance * max(scale, 1e-6), f"{name}: off by {worst:.2e} at a scale of {scale:.2e}"


@contextmanager
def kernel_threads(count: int) -> Iterator[None]:
    before = native.cpu().threads()
    native.set_threads(count)
    try:
        yield
    finally:
        native.set_threads(before)


@needs_kernels
@pytest.mark.parametrize("size", [(1, 1), (16, 16), (17, 31), (5, 70), (50, 37)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("geometry", [False, True])
def test_kernels_and_twin_agree(size: tuple[int, int], dtype: torch.dtype, geometry: bool) -> None:
    width, height = size
    splats = random_projected(max(3, width * height // 8), width, height, seed=width)
    got = blended_by(cast(splats, dtype), width, height, geometry=geometry)
    wanted = blended_by(
        cast(splats, torch.float64),
        width,
        height,
        geometry=geometry,
        binning=bin_splats_reference,
        blending=blend_reference,
    )
    assert_close(got, wanted, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("binning", "blending"), [(bin_splats, blend), (bin_splats_reference, blend_reference)], ids=["public", "twin"]
)
def test_images_match_the_definition_pixel_by_pixel(dtype: torch.dtype, binning, blending) -> None:
    width, height = 21, 14
    splats = random_projected(60, width, height, seed=4, dtype=dtype, opaque=1.0)
    wanted = blend_pixel_by_pixel(splats, width, height, BACKGROUND.double().numpy())
    blended = blending(splats, binning(splats, width, height), BACKGROUND, with_geometry=True)
    for name in IMAGES:
        got = getattr(blended, name).double().numpy()
        np.testing.assert_allclose(got, wanted[name], atol=1e-5 * max(1, np.abs(wanted[name]).max()))


@needs_kernels
def test_gradients_match_finite_differences() -> None:
    width, height = 9, 7
    splats = random_projected(6, width, height, seed=2, dtype=torch.float64, opaque=0.8)
    bins = bin_splats(splats, width, height)
    background = BACKGROUND.double().requires_grad_()
    leaves = [getattr(splats, name).requires_grad_() for name in FIELDS]

    def images(*tensors: Tensor) -> tuple[Tensor, ...]:
        fields = dict(zip(FIELDS, tensors))
        moved = Projected(ids=splats.ids, extents=splats.extents, **fields)
        blended = blend(moved, bins, tensors[-1], with_geometry=True)
        assert blended.depth is not None and blended.normal is not None
        return blended.rgb, blended.alpha, blended.depth, blended.normal

    assert torch.autograd.gradcheck(images, (*leaves, background), eps=1e-7, atol=1e-5, rtol=1e-4)


def round_splats(opacities: list[float], depths: list[float], *, dtype: torch.dtype) -> Projected:
    """Round splats of variance 4 px^2 at the centre of pixel (2, 3), red, green, blue in turn."""
    count = len(opacities)
    fields = (
        torch.tensor([[2.5, 3.5]]).repeat(count, 1),
        torch.tensor([[4.0, 0.0, 4.0]]).repeat(count, 1),
        torch.tensor(opacities),
        torch.eye(3).repeat(count, 1)[:count],
        torch.tensor(depths),
        torch.tensor([[0.0, 0.0, -1.0]]).repeat(count, 1),
    )
    return make_projected(*(field.to(dtype) for field in fields))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_splat_is_a_gaussian_over_the_background(dtype: torch.dtype) -> None:
    splats = round_splats([0.7], [2.0], dtype=dtype)
    blended = blend(splats, bin_splats(splats, 6, 8), BACKGROUND, with_geometry=True)
    y, x = torch.meshgrid(torch.arange(8) + 0.5, torch.arange(6) + 0.5, indexing="ij")
    alpha = 0.7 * torch.exp(-((x - 2.5) ** 2 + (y - 3.5) ** 2) / 8)
    assert blended.depth is not None and blended.median_depth is not None
    torch.testing.assert_close(blended.alpha, alpha.to(dtype), atol=1e-6, rtol=0)
    rgb = alpha[..., None] * torch.tensor([1.0, 0, 0]) + (1 - alpha[..., None]) * BACKGROUND
    torch.testing.assert_close(blended.rgb, rgb.to(dtype), atol=1e-6, rtol=0)
    torch.testing.assert_close(blended.depth, 2 * alpha.to(dtype), atol=1e-6, rtol=0)
    assert torch.equal(blended.median_depth, torch.where(alpha > 0.5, 2.0, 0.0).to(dtype))


def test_two_splats_blend_front_to_back_whatever_their_order() -> None:
    for depths, front, back in (([1.0, 2.0], 0.6, 0.5), ([2.0, 1.0], 0.5, 0.6)):
        splats = round_splats([0.6, 0.5], depths, dtype=torch.float32)
        blended = blend(splats, bin_splats(splats, 6, 8), None, with_geometry=True)
        wanted = [front, (1 - front) * back, 0.0] if depths[0] < depths[1] else [(1 - front) * back, front, 0.0]
        assert blended.median_depth is not None and blended.normal is not None
        torch.testing.assert_close(blended.rgb[3, 2], torch.tensor(wanted))
        # Transmittance falls below a half at the first splat, or from a half, which is not below, at the second.
        assert float(blended.median_depth[3, 2]) == (1.0 if front > 0.5 else 2.0)
        torch.testing.assert_close(blended.normal[3, 2], torch.tensor([0.0, 0.0, -0.8]))


def test_equal_depths_blend_by_row() -> None:
    splats = round_splats([0.9, 0.9], [3.0, 3.0], dtype=torch.float32)
    rgb = blend(splats, bin_splats(splats, 6, 8)).rgb[3, 2]
    torch.testing.assert_close(rgb, torch.tensor([0.9, 0.09, 0.0]))


def test_weights_and_final_transmittance_sum_to_one() -> None:
    splats = random_projected(500, 50, 37, opaque=1.0)
    splats.colors = torch.ones_like(splats.colors)
    bins = bin_splats(splats, 50, 37)
    on_black, on_white = blend(splats, bins), blend(splats, bins, torch.ones(3))
    torch.testing.assert_close(on_black.rgb, on_black.alpha[..., None].expand(-1, -1, 3), atol=1e-6, rtol=0)
    torch.testing.assert_close(on_white.rgb, torch.ones_like(on_white.rgb), atol=1e-6, rtol=0)


def test_without_splats_there_is_the_background() -> None:
    splats = random_projected(0, 20, 20)
    results = blended_by(splats, 20, 18)
    assert torch.equal(results["rgb"], BACKGROUND.expand(18, 20, 3))
    assert all(not results[name].any() for name in ("alpha", "depth", "normal", "median_depth"))
    assert results["v_means2d"].shape == (0, 2)


def test_a_giant_splat_covers_everything() -> None:
    splats = random_projected(1, 70, 45)
    splats.conics, splats.extents = torch.tensor([[1e-10, 0.0, 1e-10]]), torch.tensor([[1e6, 1e6]])
    splats.opacities = torch.tensor([0.25])
    alpha = blend(splats, bin_splats(splats, 70, 45)).alpha
    torch.testing.assert_close(alpha, torch.full((45, 70), 0.25), atol=1e-6, rtol=0)


@pytest.mark.parametrize("opacity", [0.0041, 0.3, 1.0])
def test_thousands_of_splats_in_one_pixel(opacity: float) -> None:
    count = 5000
    splats = round_splats([opacity] * count, [1 + i / count for i in range(count)], dtype=torch.float32)
    blended = blend(splats, bin_splats(splats, 6, 8), torch.ones(3), with_geometry=True)
    step = 1 - min(opacity, 0.999)
    blends = min(count, int(np.ceil(np.log(1e-4) / np.log(step))))  # until less than 1e-4 of the light is left
    # 5000 products in float32, each rounded to 6e-8.
    torch.testing.assert_close(float(blended.alpha[3, 2]), 1 - step**blends, atol=3e-4 * step**blends + 1e-7, rtol=0)
    for name in IMAGES:
        assert torch.isfinite(getattr(blended, name)).all()


@needs_kernels
def test_gradients_of_thousands_of_splats_in_one_pixel_match_the_twin() -> None:
    count = 3000
    generator = torch.Generator().manual_seed(0)
    splats = round_splats([0.004 + 0.001 * i / count for i in range(count)], [1.0] * count, dtype=torch.float32)
    splats.depths = 1 + torch.rand(count, generator=generator)
    got = blended_by(cast(splats, torch.float32), 6, 8)
    twin = {"binning": bin_splats_reference, "blending": blend_reference}
    # Light falls to 1e-6 of itself in 3000 rounded products, and pixels stop a splat earlier or later.
    assert_close(got, blended_by(cast(splats, torch.float64), 6, 8, **twin), 2e-3)


def test_a_clamped_alpha_passes_no_gradient_to_its_shape() -> None:
    splats = round_splats([1.0], [1.0], dtype=torch.float32)
    leaves = {name: getattr(splats, name).requires_grad_() for name in FIELDS}
    blend(splats, bin_splats(splats, 6, 8)).rgb[3, 2].sum().backward()  # alpha would be 1 there
    assert not leaves["opacities"].grad.any() and not leaves["means2d"].grad.any()
    torch.testing.assert_close(leaves["colors"].grad, torch.full((1, 3), 0.999))


@pytest.mark.parametrize("name", ["means2d", "conics", "opacities"])
def test_a_splat_that_is_not_a_number_leaves_the_others_alone(name: str) -> None:
    splats = random_projected(50, 40, 30)
    rest = torch.cat([torch.arange(20), torch.arange(21, 50)])
    wanted = blended_by(select(splats, rest), 40, 30)
    broken = cast(splats, torch.float32)
    getattr(broken, name)[20] = torch.nan
    got = blended_by(broken, 40, 30)
    for key in (*IMAGES, "v_background"):
        torch.testing.assert_close(got[key], wanted[key])
    for key in ("v_means2d", "v_conics", "v_opacities", "v_colors", "absgrad"):
        torch.testing.assert_close(got[key][rest], wanted[key])


def test_the_order_of_the_rows_changes_nothing() -> None:
    splats = random_projected(300, 60, 45)
    mixed = torch.randperm(300, generator=torch.Generator().manual_seed(9))
    straight, shuffled = blended_by(splats, 60, 45), blended_by(select(cast(splats, torch.float32), mixed), 60, 45)
    for name in IMAGES:
        assert torch.equal(straight[name], shuffled[name])
    for name in ("v_means2d", "v_conics", "v_opacities", "v_colors", "v_depths", "v_normals", "absgrad"):
        torch.testing.assert_close(straight[name][mixed], shuffled[name])


def test_absgrad_of_one_pixel_is_the_size_of_the_mean_gradient() -> None:
    splats = random_projected(12, 1, 1, seed=6)
    results = blended_by(splats, 1, 1)
    torch.testing.assert_close(results["absgrad"], results["v_means2d"].abs())


def test_strided_inputs_give_the_same() -> None:
    splats = random_projected(100, 30, 30)
    wanted = blended_by(cast(splats, torch.float32), 30, 30)
    strided = cast(splats, torch.float32)
    for name in FIELDS:
        value = getattr(strided, name)
        setattr(strided, name, torch.stack([value, value], dim=-1)[..., 0].detach())
    got = blended_by(strided, 30, 30)
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)


@needs_kernels
def test_all_thread_counts_give_the_same_bytes() -> None:
    splats = random_projected(3000, 150, 110, opaque=1.0)
    results = []
    for threads in (1, 2, 3):
        with kernel_threads(threads):
            results.append(blended_by(cast(splats, torch.float32), 150, 110))
    for other in results[1:]:
        assert all(torch.equal(results[0][name], other[name]) for name in results[0])


@needs_kernels
def test_two_graphs_alive_at_once_keep_apart() -> None:
    scenes = [random_projected(80, 30, 30, seed=seed) for seed in (1, 2)]
    wanted = [blended_by(cast(splats, torch.float32), 30, 30, geometry=False)["v_means2d"] for splats in scenes]
    generator = torch.Generator().manual_seed(1)
    weights = [
        torch.randn(shape, generator=generator, dtype=torch.float64).float() for shape in ((30, 30, 3), (30, 30))
    ]
    losses = []
    for splats in scenes:
        splats.means2d.requires_grad_()
        blended = blend(splats, bin_splats(splats, 30, 30), BACKGROUND)
        losses.append((blended.rgb * weights[0]).sum() + (blended.alpha * weights[1]).sum())
    for loss in losses:
        loss.backward(retain_graph=True)
    for splats, want in zip(scenes, wanted):
        torch.testing.assert_close(splats.means2d.grad, want, atol=0, rtol=0)
    losses[0].backward()  # a second time through the same graph
    torch.testing.assert_close(scenes[0].means2d.grad, 2 * wanted[0])


def run_native(bins, state, splats: Projected, width: int, height: int) -> list[Tensor]:
    """The kernels without autograd, as scene/ops/splat_step.py calls them; outputs start as NaN."""
    count = len(splats)

    def blank(*shape: int) -> Tensor:
        return torch.full(shape, torch.nan)

    bins.build(splats.means2d, splats.conics, splats.opacities, splats.depths, splats.extents, width, height)
    images = [blank(height, width, 3), blank(height, width), blank(height, width), blank(height, width, 3)]
    median = blank(height, width)
    fields = [getattr(splats, name) for name in FIELDS]
    state.forward(bins, *fields, BACKGROUND, *images, median)
    upstream = [torch.sin(torch.arange(image.numel()).float()).view(image.shape) for image in images]
    gradients = [blank(count, 2), blank(count, 3), blank(count), blank(count, 3), blank(count), blank(count, 3)]
    absgrad = blank(count, 2)
    state.backward(bins, *images, *upstream, *gradients, absgrad)
    return [*images, median, *gradients, absgrad]


@needs_kernels
def test_what_workspaces_held_before_never_shows() -> None:
    bins, state = native.cpu().SplatBins(), native.cpu().SplatBlend()
    large, small = random_projected(2000, 120, 80, opaque=1.0), random_projected(150, 33, 50, seed=1)
    wanted = [run_native(native.cpu().SplatBins(), native.cpu().SplatBlend(), small, 33, 50) for _ in range(2)]
    run_native(bins, state, large, 120, 80)
    bins.poison()
    state.poison()
    got = run_native(bins, state, small, 33, 50)
    for fresh, used in zip(wanted[0], got):
        assert torch.isfinite(used).all()
        assert torch.equal(fresh, used)


@needs_kernels
def test_native_calls_refuse_what_does_not_fit() -> None:
    bins, state, splats = native.cpu().SplatBins(), native.cpu().SplatBlend(), random_projected(5, 20, 10)
    run_native(bins, state, splats, 20, 10)
    fields = [getattr(splats, name) for name in FIELDS[:4]]
    rgb, alpha = torch.empty(10, 20, 3), torch.empty(10, 20)
    with pytest.raises(ValueError, match="size of the bins"):
        state.forward(bins, *fields, None, None, None, torch.empty(20, 10, 3), alpha, None, None, None)
    with pytest.raises(ValueError, match="one row per binned splat"):
        state.forward(bins, *(field[:4] for field in fields), None, None, None, rgb, alpha, None, None, None)
    with pytest.raises(TypeError):  # a silent copy would lose the output
        state.forward(bins, *fields, None, None, None, rgb.double(), alpha, None, None, None)


def test_mistakes_are_named() -> None:
    splats = random_projected(5, 20, 20)
    bins = bin_splats(splats, 20, 20)
    with pytest.raises(ValueError, match="call bin_splats on these splats"):
        blend(select(splats, torch.arange(4)), bins)
    with pytest.raises(ValueError, match="absgrad must be"):
        blend(splats, bins, absgrad=torch.zeros(5))
    splats.normals = None
    with pytest.raises(ValueError, match="with_normals=True"):
        blend(splats, bins, with_geometry=True)


LEVEL_SCRIPT = """
import sys, torch
from scene.ops import native
from tests.scene.ops.test_splat_blend import run_native
from tests.scene.projected_splats import random_projected
bins, state = native.cpu().SplatBins(), native.cpu().SplatBlend()
results = run_native(bins, state, random_projected(700, 75, 50), 75, 50)
torch.save([sys.argv[1] in native.explain(), results], sys.argv[2])
"""


@needs_kernels
def test_all_builds_agree(tmp_path) -> None:
    runnable = [level for level, needs in native.LEVELS if needs <= native.processor_flags()]
    results = {}
    for level in runnable:
        file = tmp_path / f"{level}.pt"
        environment = os.environ | {"MAQUETTE_CPU_LEVEL": level, "OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, "-c", LEVEL_SCRIPT, level, file], check=True, env=environment)
        right_build, results[level] = torch.load(file, weights_only=True)
        assert right_build
    for level in runnable[1:]:
        for best, other in zip(results[runnable[0]], results[level]):
            scale = float(best.abs().max())
            assert float((best - other).abs().max()) <= 1e-5 * scale  # rounding differs where there is no fma
