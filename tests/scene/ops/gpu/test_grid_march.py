"""Marching on the GPU's path, run by the host shim: against the compiled CPU kernel, and the same bits in any order."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from scene.ops import native
from scene.ops.grid_march import Density, Limits, Marched, RaySpans, hits, march, march_reference
from tests.scene.density_grids import a_density, bent_rays, full_density, straight_rays

HostGpu = Callable[..., AbstractContextManager[None]]
needs_kernels = pytest.mark.skipif(not native.has(torch.device("cpu")), reason="the CPU module is the oracle")
SHAPES = [(20, 17, 23), (9, 1, 12), (1, 1, 1), (2, 3, 70)]
KINDS = ["straight", "bent", "bent, beyond the grid"]
DVGO = Limits(interval=0.5, alpha=1e-3, weight=1e-3)
COARSE = Limits(interval=0.3, alpha=1e-7, weight=1e-7, stop=1e-4)


def rays_of(kind: str, shape: tuple[int, int, int], count: int = 50) -> RaySpans:
    if kind == "straight":
        return straight_rays(shape, count, dtype=torch.float32)
    return bent_rays(shape, count, spread=1.15 if kind == "bent, beyond the grid" else 1.0, dtype=torch.float32)


def everything(density: Density, spans: RaySpans, limits: Limits) -> dict[str, Tensor]:
    """Samples, hits, and the gradient of a sum in which every weight and every remainder has its share."""
    found = Marched(density, spans, limits)
    v_weights = (found.samples.points.sum(-1) * 1.7).sin() + 0.3
    v_last = torch.linspace(-1, 1, len(spans.origins))
    v_density = torch.full(density.values.shape, 0.25)
    found.backward(v_weights, v_last, v_density)
    met = hits(density.occupied, density.values.shape[2], spans)
    return found.samples._asdict() | {"hits": met, "v_density": v_density - 0.25}


def assert_agree(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Places up to 100 voxels from a grid in which raw changes by 8 per voxel: rounding of a place reaches alpha.

    In a single voxel thousands of gradients of both signs meet.
    """
    for name in ("rays", "offsets", "hits"):
        assert torch.equal(got[name], wanted[name]), name
    for name in ("points", "weights", "steps", "last"):
        torch.testing.assert_close(got[name], wanted[name], rtol=1e-4, atol=1e-5)
    apart, size = (got["v_density"] - wanted["v_density"]).norm(), wanted["v_density"].norm()
    assert float(apart) <= 2e-5 * float(size) + 1e-8 * len(wanted["weights"])


@needs_kernels
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("limits", [DVGO, COARSE], ids=["fine", "coarse"])
def test_agrees_with_the_cpu(kind: str, shape: tuple[int, int, int], limits: Limits, host_gpu: HostGpu) -> None:
    spans, density = rays_of(kind, shape), a_density(shape, dtype=torch.float32)
    wanted = everything(density, spans, limits)
    assert len(wanted["weights"])
    with host_gpu():
        assert_agree(everything(density, spans, limits), wanted)


def test_agrees_with_the_twin_in_double(host_gpu: HostGpu) -> None:
    shape = (20, 17, 23)
    spans, density = rays_of("straight", shape), a_density(shape)
    values = density.values.requires_grad_()
    as_double = replace(spans, **{n: getattr(spans, n).double() for n in ("origins", "directions", "starts")})
    wanted = march_reference(density, as_double, DVGO)
    v_weights, v_last = (wanted.points.detach().sum(-1) * 1.7).sin() + 0.3, torch.linspace(-1, 1, 50)
    loss = (v_weights * wanted.weights).sum() + (v_last * wanted.last).sum()
    (v_density,) = torch.autograd.grad(loss, values)
    same = {"hits": hits(density.occupied, shape[2], as_double), "v_density": v_density.float()}
    same |= {n: v.detach().float() if v.is_floating_point() else v for n, v in wanted._asdict().items()}
    with host_gpu():
        assert_agree(everything(a_density(shape, dtype=torch.float32), spans, DVGO), same)


@pytest.mark.parametrize("kind", ["straight", "bent"])
def test_the_order_in_which_threads_run_changes_no_bit(kind: str, host_gpu: HostGpu) -> None:
    shape = (6, 5, 7)
    spans, density = rays_of(kind, shape), a_density(shape, dtype=torch.float32)
    results = []
    for settings in ({"schedule": "forward"}, {"schedule": "reverse"}, {"schedule": "random", "seed": 5}):
        with host_gpu(**settings):
            results.append(everything(density, spans, COARSE))
    for other in results[1:]:
        assert all(torch.equal(results[0][name], value) for name, value in other.items())


@needs_kernels
def test_autograd_takes_the_same_way(host_gpu: HostGpu) -> None:
    shape = (6, 5, 7)
    spans, gradients = rays_of("straight", shape), []
    with host_gpu():
        for values in [a_density(shape, dtype=torch.float32).values.requires_grad_() for _ in range(2)]:
            found = march(replace(a_density(shape, dtype=torch.float32), values=values), spans, DVGO)
            (found.weights.square().sum() + found.last.sum()).backward()
            gradients.append(values.grad)
    assert torch.equal(*gradients) and bool(gradients[0].any())


@needs_kernels
def test_very_many_samples_in_one_cell(host_gpu: HostGpu) -> None:
    """More than the pieces of 32 that a cell's sum is made of, and cells that end with a piece."""
    shape = (2, 2, 3)
    spans = straight_rays(shape, 96, step=0.02, dtype=torch.float32)
    density = full_density(torch.full(shape, -6.0))
    wanted = everything(density, spans, COARSE)
    assert len(wanted["weights"]) > 3000
    with host_gpu():
        assert_agree(everything(density, spans, COARSE), wanted)


@needs_kernels
def test_a_reused_workspace_changes_nothing(host_gpu: HostGpu) -> None:
    shape = (6, 5, 7)
    density, found = a_density(shape, dtype=torch.float32), None
    with host_gpu():
        for count, seed in ((40, 1), (3, 2), (0, 3), (60, 4)):
            spans = straight_rays(shape, count, seed=seed, dtype=torch.float32)
            found = Marched(density, spans, DVGO, reuse=found)
            fresh = Marched(density, spans, DVGO)
            assert all(torch.equal(a, b) for a, b in zip(found.samples, fresh.samples, strict=True))


@pytest.mark.parametrize("kind", ["straight", "bent"])
def test_rays_that_meet_nothing(kind: str, host_gpu: HostGpu) -> None:
    shape = (6, 5, 9)
    spans, density = rays_of(kind, shape, 20), a_density(shape, dtype=torch.float32)
    nobody = replace(spans, **{n: getattr(spans, n)[:0] for n in ("origins", "directions", "starts", "counts")})
    cases = [
        (density, nobody),
        (density, replace(spans, counts=torch.zeros_like(spans.counts))),
        (replace(density, occupied=torch.zeros_like(density.occupied)), spans),
        (replace(density, values=torch.full_like(density.values, -1e30)), spans),
    ]
    with host_gpu():
        for grid, rays in cases:
            found = everything(grid, rays, DVGO)
            assert len(found["weights"]) == 0 and not found["offsets"].any() and not found["v_density"].any()
            assert torch.equal(found["last"], torch.ones(len(rays.origins)))


@needs_kernels
@pytest.mark.parametrize("kind", ["straight", "bent"])
def test_rays_of_no_numbers_see_nothing_and_disturb_nobody(kind: str, host_gpu: HostGpu) -> None:
    shape = (6, 5, 9)
    spans, density = rays_of(kind, shape), a_density(shape, dtype=torch.float32)
    origins, directions = spans.origins.clone(), spans.directions.clone()
    for ray, value in zip(range(3, 50, 6), (math.nan, math.inf, -math.inf, 3e38, -3e38, 1e20, 4e9), strict=False):
        (origins if ray % 4 == 3 else directions)[ray, ray % 3] = value
    odd = replace(spans, origins=origins, directions=directions)
    wanted = everything(density, odd, DVGO)
    with host_gpu():
        assert_agree(everything(density, odd, DVGO), wanted)


@needs_kernels
def test_nan_is_clear(host_gpu: HostGpu) -> None:
    shape = (6, 5, 9)
    spans, density = rays_of("straight", shape), a_density(shape, dtype=torch.float32)
    density.values[2] = math.nan
    wanted = everything(density, spans, DVGO)
    with host_gpu():
        assert_agree(everything(density, spans, DVGO), wanted)


def test_counts_beyond_the_curve_read_nothing_beyond_it(host_gpu: HostGpu) -> None:
    """Nobody looks at the counts, which would wait for the card; `guard` and the last distances hold."""
    shape = (6, 5, 9)
    spans, density = rays_of("bent", shape, 10), a_density(shape, dtype=torch.float32)
    with host_gpu(guard=True):
        found = everything(density, replace(spans, counts=spans.counts + 5000), DVGO)
    assert all(bool(torch.isfinite(value).all()) for value in found.values())


def test_what_does_not_fit_is_refused(host_gpu: HostGpu) -> None:
    shape = (6, 5, 9)
    spans, density = rays_of("straight", shape), a_density(shape, dtype=torch.float32)
    with host_gpu():
        found = Marched(density, spans, DVGO)
        weights, last = found.samples.weights, found.samples.last
        for wrong in ((weights[1:], last, shape), (weights, last[1:], shape), (weights, last, (6, 5, 8))):
            with pytest.raises(ValueError, match="must fit"):
                found.backward(wrong[0], wrong[1], torch.zeros(wrong[2]))
