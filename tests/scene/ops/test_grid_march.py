"""Rays through a density grid: closed forms, the twin, finite differences, invariances, and what must not crash."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from scene.ops import native
from scene.ops.grid_march import (
    Density,
    Limits,
    Marched,
    RaySpans,
    Samples,
    contract,
    hits,
    march,
    march_reference,
    pack_bits,
    raw_to_alpha,
    unpack_bits,
)
from tests.scene.density_grids import SHELL, a_density, bent_rays, drawn, full_density, straight_rays

CPU = torch.device("cpu")
needs_kernels = pytest.mark.skipif(not native.has(CPU), reason="needs the compiled CPU module")
EVERYTHING = Limits(interval=0.5, alpha=0.0, weight=0.0, stop=0.0)
DVGO = Limits(interval=0.5, alpha=1e-3, weight=1e-3)
SHAPES = [(20, 17, 23), (9, 1, 12), (1, 1, 1), (2, 3, 70)]


def rays_of(kind: str, shape: tuple[int, int, int], count: int = 300, dtype: torch.dtype = torch.float64) -> RaySpans:
    if kind == "straight":
        return straight_rays(shape, count, dtype=dtype)
    return bent_rays(shape, count, spread=1.15 if kind == "bent, beyond the grid" else 1.0, dtype=dtype)


def along_x(depth: int, *, count: int, step: float = 0.5, dtype: torch.dtype = torch.float64) -> RaySpans:
    """One ray along the x axis through the middle of the others, from x = 0."""
    middle = (depth - 1) / 2
    place, direction = torch.tensor([[0.0, middle, middle]]), torch.tensor([[step, 0.0, 0.0]])
    return RaySpans(place.to(dtype), direction.to(dtype), torch.zeros(1, dtype=dtype), torch.tensor([count]).int())


def select(spans: RaySpans, which: Tensor) -> RaySpans:
    """Some of the rays, in the order of `which`."""
    named = {name: getattr(spans, name)[which] for name in ("origins", "directions", "starts", "counts")}
    return replace(spans, **named)


def gradient(call, density: Density, spans: RaySpans, limits: Limits) -> Tensor:
    """By the density, of a sum of weights and last with shares that depend on the sample's place and ray."""
    values = density.values.clone().requires_grad_()
    found = call(replace(density, values=values), spans, limits)
    by_weights = (found.points.detach().sum(-1) * 1.7).sin() + 0.3
    by_last = torch.linspace(-1, 1, len(found.last)).to(found.last)
    loss = (by_weights * found.weights).sum() + (by_last * found.last).sum()
    return torch.autograd.grad(loss, values)[0]


@pytest.mark.parametrize("alpha_init", [1e-2, 1e-4, 1e-6])
def test_a_grid_of_zeros_is_as_clear_as_it_was_asked_to_start(alpha_init: float) -> None:
    """Spec 1(d): 5.0126e-3, 5.0e-5 and 5.0e-7 of alpha per sample at half a voxel (T1)."""
    wanted = -math.expm1(0.5 * math.log1p(-alpha_init))
    assert wanted == pytest.approx({1e-2: 5.0126e-3, 1e-4: 5.0e-5, 1e-6: 5.0e-7}[alpha_init], rel=3e-5)
    shift = math.log(1 / (1 - alpha_init) - 1)
    density = full_density(torch.zeros(5, 5, 5, dtype=torch.float64), shift)
    found = march(density, along_x(5, count=9), EVERYTHING)
    assert len(found.weights) == 9
    through = wanted * (1 - wanted) ** torch.arange(9, dtype=torch.float64)
    torch.testing.assert_close(found.weights, through, rtol=1e-9, atol=0)
    assert float(raw_to_alpha(torch.tensor(shift, dtype=torch.float64), 0.5)) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_alpha_is_that_of_the_formula_from_clear_to_opaque(dtype: torch.dtype) -> None:
    """One sample in a grid of one voxel; the formula in double. float32 keeps its digits where alpha is tiny."""
    raws = torch.linspace(-25, 25, 401, dtype=torch.float64).to(dtype)
    wanted = -torch.expm1(-0.5 * torch.nn.functional.softplus(raws.double(), threshold=100))
    got = []
    for raw in raws:
        found = march(full_density(raw.view(1, 1, 1)), along_x(1, count=1, dtype=dtype), EVERYTHING)
        got.append(found.weights.double())
    torch.testing.assert_close(torch.cat(got), wanted, rtol=2e-6 if dtype == torch.float32 else 1e-12, atol=0)


def test_slope_of_alpha_is_that_of_autograd() -> None:
    """Forward and backward of the fused alpha, against autograd in double (T1)."""
    raws = torch.linspace(-25, 25, 401, dtype=torch.float64)
    for interval in (0.1, 0.5, 2.0):
        twin = raws.clone().requires_grad_()
        raw_to_alpha(twin, interval).sum().backward()
        for raw, wanted in zip(raws, twin.grad if twin.grad is not None else (), strict=True):
            values = raw.view(1, 1, 1).clone().requires_grad_()
            found = march(full_density(values), along_x(1, count=1), replace(EVERYTHING, interval=interval))
            assert float(found.weights.detach()) == pytest.approx(float(raw_to_alpha(raw, interval)), abs=1e-8)
            (got,) = torch.autograd.grad(found.weights.sum(), values)
            assert float(got) == pytest.approx(float(wanted), abs=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_are_alpha_times_the_light_that_is_left(dtype: torch.dtype) -> None:
    """A ray that meets one voxel per sample: weights against the running product, early stop included (T2)."""
    raws = (6 * drawn(200, seed=3) - 6).to(dtype)
    density = full_density(raws.view(-1, 1, 1).contiguous())
    alpha = raw_to_alpha(raws.double(), 0.5)
    after = (1 - alpha).cumprod(0)
    before = torch.cat([after.new_ones(1), after[:-1]])
    for stop in (0.0, 1e-3, 0.2):
        found = march(density, along_x(1, count=200, step=1.0, dtype=dtype), replace(EVERYTHING, stop=stop))
        seen = int((before >= stop).sum())
        assert len(found.weights) == seen and (seen < 200) == (stop > 0)
        assert float((found.weights.double() - (before * alpha)[:seen]).abs().max()) < 1e-6
        assert float(found.last) == pytest.approx(float(after[seen - 1]), abs=1e-6)
        assert torch.equal(found.steps, torch.arange(seen).to(dtype))


def test_light_through_a_slab_falls_as_the_length_says() -> None:
    """A constant density is exact for any step: light falls by (1 + e^raw)^-(interval samples)."""
    values, raw = torch.full((40, 5, 5), -30.0, dtype=torch.float64), 0.4
    values[10:31] = raw
    spans = along_x(5, count=79)
    found = march(full_density(values), spans, EVERYTHING)
    assert len(found.weights) == 79
    inside = int(((spans.directions[0, 0] * torch.arange(79) >= 10) & (0.5 * torch.arange(79) <= 30)).sum())
    ramps = [-30 + (raw + 30) * 0.5] * 2  # halfway between two voxels on either side: raw is interpolated, not alpha
    wanted = sum(math.log1p(math.exp(r)) for r in ramps) + inside * math.log1p(math.exp(raw))
    assert math.log(float(found.last)) == pytest.approx(-0.5 * wanted, rel=1e-9)


def test_raw_density_of_a_linear_field_is_exact_everywhere() -> None:
    """Trilinear interpolation holds linear fields; alpha tells which raw was found."""
    x, y, _ = torch.meshgrid(*[torch.arange(n, dtype=torch.float64) for n in (9, 8, 12)], indexing="ij")
    density = Density(0.11 * x - 0.2 * y - 1, 0.07 * torch.arange(12, dtype=torch.float64), pack_bits(x >= 0))
    found = march(density, straight_rays((9, 8, 12), 100), EVERYTHING)
    light = torch.ones(100, dtype=torch.float64)
    size = torch.tensor([8.0, 7.0, 11.0], dtype=torch.float64)
    for point, weight, ray in zip(found.points, found.weights, found.rays.tolist(), strict=True):
        px, py, pz = point.clamp(min=0).minimum(size).tolist()
        alpha = -math.expm1(-0.5 * math.log1p(math.exp(0.11 * px - 0.2 * py - 1 + 0.07 * pz)))
        assert float(weight / light[ray]) == pytest.approx(alpha, rel=1e-9)
        light[ray] *= 1 - alpha
    torch.testing.assert_close(found.last, light)


def test_weights_and_what_is_left_sum_to_one() -> None:
    for spans in (straight_rays((20, 17, 23), 200), bent_rays((20, 17, 23), 200)):
        found = march(a_density((20, 17, 23)), spans, EVERYTHING)
        total = found.last.clone().index_add(0, found.rays.long(), found.weights)
        torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["straight", "bent", "bent, beyond the grid"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("limits", [DVGO, Limits(0.3, 1e-7, 1e-7, 1e-4)], ids=["fine", "coarse"])
def test_twin_agrees(kind: str, shape: tuple[int, int, int], dtype: torch.dtype, limits: Limits) -> None:
    spans, density = rays_of(kind, shape, dtype=dtype), a_density(shape, dtype=dtype)
    got, wanted = march(density, spans, limits), march_reference(density, spans, limits)
    for name in ("rays", "offsets"):
        assert torch.equal(getattr(got, name), getattr(wanted, name)), name
    # Places up to 100 voxels from the grid, and the slope of a cell is up to 8: rounding of a place reaches alpha.
    rtol, atol = (1e-4, 3e-5) if dtype == torch.float32 else (1e-11, 1e-12)
    for name in ("points", "weights", "steps", "last"):
        torch.testing.assert_close(getattr(got, name), getattr(wanted, name), rtol=rtol, atol=atol)
    v_got, v_wanted = gradient(march, density, spans, limits), gradient(march_reference, density, spans, limits)
    # In a single voxel thousands of gradients of both signs meet.
    limit, each = (1e-4, 1e-8) if dtype == torch.float32 else (1e-11, 1e-16)
    assert float((v_got - v_wanted).norm()) <= limit * float(v_wanted.norm()) + each * len(got.weights)


@pytest.mark.parametrize("kind", ["straight", "bent"])
def test_gradient_is_that_of_finite_differences(kind: str) -> None:
    """No thresholds, so that nothing jumps."""
    shape = (4, 3, 5)
    spans, density = select(rays_of(kind, shape, 12), torch.arange(0, 12, 2)), a_density(shape)
    assert len(march(density, spans, EVERYTHING).weights) > 20

    def run(values: Tensor) -> tuple[Tensor, Tensor]:
        found = march(replace(density, values=values), spans, EVERYTHING)
        return found.weights, found.last

    assert torch.autograd.gradcheck(run, density.values.clone().requires_grad_(), eps=1e-6, atol=1e-7)


def test_samples_below_a_threshold_take_light_or_do_not() -> None:
    """Below `alpha` a sample is as if it were clear; below `weight` it takes light but is not handed out."""
    raws = torch.tensor([-2.0, -9.0, 0.0, 1.0, -2.0], dtype=torch.float64)
    alpha = raw_to_alpha(raws, 0.5)
    found = march(full_density(raws.view(-1, 1, 1)), along_x(1, count=5, step=1.0), Limits(0.5, 1e-3, 0.05, 0.0))
    kept = torch.where(alpha > 1e-3, alpha, 0.0)
    before = torch.cat([kept.new_ones(1), (1 - kept).cumprod(0)[:-1]])
    wanted = before * kept
    assert torch.equal(found.steps.long(), (wanted > 0.05).nonzero()[:, 0]) and 0 < len(found.steps) < 4
    torch.testing.assert_close(found.weights, wanted[wanted > 0.05])
    torch.testing.assert_close(found.last, (1 - kept).prod().view(1))


@pytest.mark.parametrize("kind", ["straight", "bent", "bent, beyond the grid"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rays_hit_what_they_would_sample(kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = (20, 17, 23)
    spans, density = rays_of(kind, shape, dtype=dtype), a_density(shape, occupied=0.02, dtype=dtype)
    got = hits(density.occupied, shape[2], spans)
    assert 0 < int(got.sum()) < len(got)
    with monkeypatch.context() as patch:
        patch.setenv("MAQUETTE_BACKEND", "reference")
        assert torch.equal(got, hits(density.occupied, shape[2], spans))
    opaque = replace(density, values=torch.full_like(density.values, 5.0))
    assert torch.equal(got, march(opaque, spans, EVERYTHING).offsets.diff() > 0)


@pytest.mark.parametrize("kind", ["straight", "bent"])
def test_the_order_of_rays_is_the_order_of_results(kind: str) -> None:
    shape = (20, 17, 23)
    spans, density = rays_of(kind, shape), a_density(shape)
    shuffled = torch.randperm(len(spans.origins), generator=torch.Generator().manual_seed(0))
    plain, mixed = march(density, spans, DVGO), march(density, select(spans, shuffled), DVGO)
    assert torch.equal(mixed.last, plain.last[shuffled])
    for new, old in enumerate(shuffled.tolist()):
        a, b = slice(*mixed.offsets[new : new + 2].tolist()), slice(*plain.offsets[old : old + 2].tolist())
        for name in ("points", "weights", "steps"):
            assert torch.equal(getattr(mixed, name)[a], getattr(plain, name)[b])
    torch.testing.assert_close(
        gradient(lambda *a: march(*a)._replace(last=march(*a).last[:0]), density, spans, DVGO),
        gradient(lambda *a: march(*a)._replace(last=march(*a).last[:0]), density, select(spans, shuffled), DVGO),
    )


@needs_kernels
@pytest.mark.parametrize("kind", ["straight", "bent"])
def test_threads_change_no_bit(kind: str) -> None:
    shape = (20, 17, 23)
    spans, density = rays_of(kind, shape, 1000, torch.float32), a_density(shape, dtype=torch.float32)
    before = native.cpu().threads()
    results: list[list[Tensor]] = []
    try:
        for threads in (1, 2, 5):
            native.set_threads(threads)
            results.append([*march(density, spans, DVGO), gradient(march, density, spans, DVGO)])
    finally:
        native.set_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@needs_kernels
def test_a_reused_workspace_changes_nothing() -> None:
    shape = (20, 17, 23)
    density, found = a_density(shape, dtype=torch.float32), None
    for count, seed in ((500, 1), (3, 2), (0, 3), (900, 4)):
        spans = straight_rays(shape, count, seed=seed, dtype=torch.float32)
        found = Marched(density, spans, DVGO, reuse=found)
        fresh = Marched(density, spans, DVGO)
        assert all(torch.equal(a, b) for a, b in zip(found.samples, fresh.samples, strict=True))
        grads = [torch.zeros(shape), torch.zeros(shape)]
        for one, grad in zip((found, fresh), grads, strict=True):
            one.backward(torch.ones_like(one.samples.weights), torch.ones(count), grad)
        assert torch.equal(*grads)


@needs_kernels
def test_gradients_are_added_to_what_is_there() -> None:
    shape = (5, 6, 7)
    found = Marched(a_density(shape), straight_rays(shape, 40), DVGO)
    v = (torch.ones_like(found.samples.weights), torch.zeros(40, dtype=torch.float64))
    once, twice = torch.zeros(shape, dtype=torch.float64), torch.full(shape, 3.0, dtype=torch.float64)
    found.backward(*v, once)
    found.backward(*v, twice)
    torch.testing.assert_close(twice, once + 3)


def empty(found: Samples, rays: int) -> bool:
    """Whether nothing was met and all the light is left."""
    return len(found.weights) == 0 and found.offsets.tolist() == [0] * (rays + 1) and bool((found.last == 1).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rays_that_meet_nothing(dtype: torch.dtype) -> None:
    shape = (6, 5, 9)
    spans, density = straight_rays(shape, 20, dtype=dtype), a_density(shape, dtype=dtype)
    assert empty(march(density, select(spans, torch.arange(0)), DVGO), 0)
    assert empty(march(density, replace(spans, origins=spans.origins + 1000), DVGO), 20)
    assert empty(march(density, replace(spans, counts=torch.zeros_like(spans.counts)), DVGO), 20)
    assert empty(march(replace(density, occupied=torch.zeros_like(density.occupied)), spans, DVGO), 20)
    clear = replace(density, values=torch.full_like(density.values, -1e30))
    assert empty(march(clear, spans, DVGO), 20)
    assert not gradient(march, clear, spans, DVGO).any()
    assert not hits(torch.zeros_like(density.occupied), 9, spans).any()


@pytest.mark.parametrize("kind", ["straight", "bent"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rays_of_no_numbers_see_nothing_and_disturb_nobody(kind: str, dtype: torch.dtype) -> None:
    shape = (20, 17, 23)
    spans, density = rays_of(kind, shape, 64, dtype), a_density(shape, dtype=dtype)
    plain = march(density, spans, DVGO)
    origins, directions, spoilt = spans.origins.clone(), spans.directions.clone(), torch.zeros(64, dtype=torch.bool)
    for ray, value in zip(range(3, 60, 7), (math.nan, math.inf, -math.inf, 3e38, -3e38, 1e20, 4e9), strict=False):
        (origins if ray % 2 else directions)[ray, ray % 3] = value
        spoilt[ray] = True
    odd = replace(spans, origins=origins, directions=directions)
    found = march(density, odd, DVGO)
    assert torch.equal(found.last[~spoilt], plain.last[~spoilt])
    assert bool(((found.last >= 0) & (found.last <= 1)).all())
    assert bool(torch.isfinite(found.points).all()) and bool(torch.isfinite(found.weights).all())
    assert bool(torch.isfinite(gradient(march, density, odd, DVGO)).all())
    assert torch.equal(hits(density.occupied, shape[2], odd)[~spoilt], hits(density.occupied, shape[2], spans)[~spoilt])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30, -1e30])
def test_densities_of_no_numbers_disturb_nobody(value: float) -> None:
    """NaN is clear. What lies between a finite and an infinite density may be anything from clear to opaque."""
    shape = (6, 5, 9)
    spans = straight_rays(shape, 60, dtype=torch.float32)
    plain, density = a_density(shape, dtype=torch.float32), a_density(shape, dtype=torch.float32)
    density.values[2] = value
    got = march(density, spans, DVGO)
    assert bool(torch.isfinite(got.weights).all()) and bool(((got.last >= 0) & (got.last <= 1)).all())
    if not math.isinf(value):
        wanted = march_reference(density, spans, DVGO)
        assert torch.equal(got.offsets, wanted.offsets)
        torch.testing.assert_close(got.last, wanted.last, rtol=1e-4, atol=1e-5)
    near = replace(plain, occupied=torch.zeros_like(plain.occupied))
    near.occupied[1:4] = plain.occupied[1:4]
    untouched = ~hits(near.occupied, shape[2], spans)
    assert 5 < int(untouched.sum()) < 55
    assert torch.equal(got.last[untouched], march(plain, spans, DVGO).last[untouched])


@pytest.mark.parametrize("norm", [1 - 1e-9, 1.0, 1 + 1e-9])
def test_contraction_is_continuous_where_the_inner_cube_ends(norm: float) -> None:
    """T6."""
    point = torch.tensor([[0.3, -norm, 0.8]], dtype=torch.float64)
    assert float((contract(point, SHELL) - torch.tensor([[0.3, -1.0, 0.8]])).abs().max()) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_contraction_of_a_place_far_out_by_the_kernel(dtype: torch.dtype) -> None:
    """T6: |x| = 1e6 lies at 1.2 - 2e-7; seen in the places of samples, in a grid with the contracted coordinates."""
    curve = bent_rays((3, 3, 3), 1).curve
    assert curve is not None
    distances = torch.tensor([0.0, 0.5, 1 - 1e-6, 1.0, 1 + 1e-6, 3.0, 1e6], dtype=dtype)
    curve = replace(curve, distances=distances, scale=(1.0, 1.0, 1.0), offset=(1.2, 1.2, 1.2), spacing=-1.0)
    zeros, along = torch.zeros(1, 3, dtype=dtype), torch.tensor([[1.0, -0.25, 0.0]], dtype=dtype)
    spans = RaySpans(zeros, along, zeros[:, 0], torch.tensor([7], dtype=torch.int32), curve)
    found = march(full_density(torch.zeros(4, 4, 4, dtype=dtype)), spans, EVERYTHING)
    t = distances.double()
    wanted = torch.where(t > 1, 1.2 - 0.2 / t.clamp(min=1), t)[:, None] * along.double() + 1.2
    assert float(wanted[-1, 0]) == pytest.approx(1.2 + 1.2 - 2e-7, abs=1e-12)
    assert float((found.points.double() - wanted).abs().max()) < (1e-12 if dtype == torch.float64 else 4e-7)
    assert float((found.points[4] - found.points[2]).abs().max()) < 4e-6  # no gap at |x| = 1


def test_bent_samples_far_out_keep_their_distance() -> None:
    spans = bent_rays((20, 17, 23), 50)
    assert spans.curve is not None
    found = march(full_density(torch.full((20, 17, 23), -8.0, dtype=torch.float64)), spans, EVERYTHING)
    scale, offset = (torch.tensor(v, dtype=torch.float64) for v in (spans.curve.scale, spans.curve.offset))
    bent = (found.points - offset) / scale
    same_ray = found.rays[1:] == found.rays[:-1]
    outside = bent[1:].abs().amax(-1) > 1
    assert int((same_ray & outside).sum()) > 100
    # Spacing is that of the way, which turns by a right angle where the contracted line meets an edge of the cube.
    assert float(bent.diff(dim=0).norm(dim=-1)[same_ray & outside].min()) > spans.curve.spacing / math.sqrt(2)


@pytest.mark.parametrize("shape", [(3, 4, 8), (2, 2, 1), (5, 1, 13), (1, 3, 64)])
def test_packed_bits_come_back(shape: tuple[int, int, int]) -> None:
    voxels = drawn(*shape, seed=5) < 0.5
    packed = pack_bits(voxels)
    assert packed.dtype == torch.uint8 and tuple(packed.shape) == (shape[0], shape[1], -(-shape[2] // 8))
    assert torch.equal(unpack_bits(packed, shape[2]), voxels)


def refusals() -> Iterator[tuple[str, Density, RaySpans, str]]:
    density, spans = a_density((4, 5, 6)), straight_rays((4, 5, 6), 8)
    bent = bent_rays((4, 5, 6), 8)
    yield "transposed", replace(density, values=density.values.transpose(0, 1)), spans, "density must be contiguous"
    yield "empty side", replace(density, values=density.values[:, :0]), spans, "density must be contiguous"
    yield "shifts", replace(density, shifts=density.shifts[:4]), spans, "shifts must be"
    yield "dtype of shifts", replace(density, shifts=density.shifts.float()), spans, "shifts must be"
    yield "bools", replace(density, occupied=density.values > 0), spans, "occupied must be"
    yield "origins", density, replace(spans, origins=spans.origins[:7]), "origins must be|directions must be"
    yield "dtype of rays", density, replace(spans, starts=spans.starts.float()), "starts must be"
    yield "dtype of counts", density, replace(spans, counts=spans.counts.long()), "counts must be"
    yield "too many", density, replace(bent, counts=bent.counts + 40), "counts must not exceed"


@pytest.mark.parametrize(("density", "spans", "message"), [pytest.param(*c[1:], id=c[0]) for c in refusals()])
def test_what_does_not_fit_is_refused_in_words(density: Density, spans: RaySpans, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        march(density, spans, DVGO)
