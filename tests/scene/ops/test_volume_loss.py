"""The losses of composited rays against their twin, autograd, and what is known of them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from scene.ops import native
from scene.ops.volume_loss import (
    composite_rays,
    composite_rays_reference,
    distortion_by_prefix_sums,
    volume_loss_and_grad,
    volume_loss_reference,
)

needs_kernels = pytest.mark.skipif(not native.has(torch.device("cpu")), reason="the CPU module is not compiled")
WEIGHTS: dict[str, Any] = {"interval": 1 / 200, "per_point": 0.1, "entropy": 0.01, "distortion": 0.3}
DTYPES = [torch.float32, torch.float64]


def packed(counts: list[int], dtype: torch.dtype = torch.float64, seed: int = 0) -> dict[str, Any]:
    """Rays of so many samples, whose weights and light left over are at most 1 together."""
    generator = torch.Generator().manual_seed(seed)
    count, total = len(counts), sum(counts)

    def drawn(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    rays = torch.repeat_interleave(torch.arange(count), torch.tensor(counts, dtype=torch.long))
    raw, last = drawn(total), drawn(count)
    sums = torch.zeros(count, dtype=torch.float64).index_add(0, rays, raw)
    weights = raw * ((1 - last) / sums.clamp_min(1e-9))[rays]
    s = (rays + drawn(total)).sort().values - rays  # ascending on each ray
    floats = {"rgb": drawn(total, 3), "weights": weights, "last": last, "target": drawn(count, 3), "s": s}
    ends = torch.tensor([0, *counts]).cumsum(0).int()
    found = {name: value.to(dtype) for name, value in floats.items()} | {"background": drawn(3).to(dtype)}
    return found | {"rays": rays.int(), "offsets": ends}


def twin(inputs: dict[str, Any], **options: Any) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Loss, squared error and gradients, in double."""
    known = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items() if k != "offsets"}
    leaves = {name: known[name].requires_grad_() for name in ("rgb", "weights", "last")}
    loss, mse = volume_loss_reference(**known, **options)
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    return loss.detach(), mse.detach(), {f"v_{name}": g for name, g in zip(leaves, gradients, strict=True)}


def spread_of_pairs(w: Tensor, s: Tensor, interval: float) -> Tensor:
    """The distortion of one ray as it is written, over all pairs."""
    return (w[:, None] * w * (s[:, None] - s).abs()).sum() + interval / 3 * w.square().sum()


COUNTS = [[5, 0, 17, 1, 0, 40], [3], [0, 0], [], [2] * 300]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("options", [{}, WEIGHTS, *({k: v, "interval": 0.01} for k, v in WEIGHTS.items())])
def test_loss_and_gradients_are_those_of_the_twin(
    counts: list[int], dtype: torch.dtype, options: dict[str, Any]
) -> None:
    inputs = packed(counts, dtype)
    got = volume_loss_and_grad(**inputs, **options)
    loss, mse, gradients = twin(inputs, **options)
    close: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-11, "atol": 1e-14}
    assert got.loss.shape == got.mse.shape == () and got.loss.dtype == got.mse.dtype == dtype
    torch.testing.assert_close(got.loss.double(), loss, **close)
    torch.testing.assert_close(got.mse.double(), mse, **close)
    for name, wanted in gradients.items():
        torch.testing.assert_close(getattr(got, name).double(), wanted, **close)


def test_distortion_is_the_sum_over_pairs() -> None:
    # T3 of the specification: 64 samples at uneven places.
    inputs = packed([64])
    got = volume_loss_and_grad(**inputs, interval=1 / 64, distortion=1.0)
    plain = volume_loss_and_grad(**inputs)
    w = inputs["weights"].clone().requires_grad_()
    wanted = spread_of_pairs(w, inputs["s"], 1 / 64)
    (gradient,) = torch.autograd.grad(wanted, w)
    assert float((got.loss - plain.loss - wanted.detach()).abs()) < 1e-12
    assert float((got.v_weights - plain.v_weights - gradient).abs().max()) < 1e-10
    w = inputs["weights"]
    by_twin = distortion_by_prefix_sums(w, inputs["s"], inputs["rays"].long(), 1, 1 / 64)
    assert float((by_twin[0] - wanted.detach()).abs()) < 1e-12


def test_one_sample_on_one_ray_by_hand() -> None:
    c, w, last, seen, behind = torch.tensor([0.2, 0.4, 0.9]).double(), 0.75, 0.25, 0.5, 1.0
    got = volume_loss_and_grad(
        c[None],
        torch.tensor([w]).double(),
        torch.zeros(1, dtype=torch.int32),
        torch.tensor([0, 1], dtype=torch.int32),
        torch.tensor([last]).double(),
        torch.full((1, 3), seen).double(),
        torch.full((3,), behind).double(),
        s=torch.tensor([0.3]).double(),
        interval=0.1,
        per_point=2.0,
        entropy=3.0,
        distortion=4.0,
    )
    off = w * c + last * behind - seen
    mse = float(off.square().mean())
    bits = -(last * math.log(last) + (1 - last) * math.log(1 - last))
    assert float(got.mse) == pytest.approx(mse, rel=1e-12)
    own = float((c - seen).square().sum())
    assert float(got.loss) == pytest.approx(mse + 2 * w * own + 3 * bits + 4 * 0.1 / 3 * w**2, rel=1e-12)
    torch.testing.assert_close(got.v_rgb[0], w * (2 / 3 * off + 2 * 2 * (c - seen)))
    # Not by the sample's own error, for which its weight is fixed.
    assert float(got.v_weights) == pytest.approx(float((2 / 3 * off * c).sum()) + 4 * 0.2 / 3 * w, rel=1e-12)
    slope = 3 * math.log((1 - last) / last)
    assert float(got.v_last) == pytest.approx(float((2 / 3 * off).sum()) * behind + slope, rel=1e-12)


def test_gradients_are_finite_differences() -> None:
    inputs = packed([4, 0, 6])
    options: dict[str, Any] = WEIGHTS | {"per_point": 0.0}  # its weights are fixed, which differences cannot know
    got = volume_loss_and_grad(**inputs, **options)
    step = 1e-6
    for name in ("rgb", "weights", "last"):
        flat, gradient = inputs[name].view(-1), getattr(got, f"v_{name}").view(-1)
        for i in range(flat.numel()):
            before, found = float(flat[i]), []
            for value in (before + step, before - step):
                flat[i] = value
                found.append(float(volume_loss_and_grad(**inputs, **options).loss))
            flat[i] = before
            # Rounding of the loss over the step is 1e-10, the third derivative of the entropy times step^2 less.
            assert float(gradient[i]) == pytest.approx((found[0] - found[1]) / (2 * step), rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("last", [0.0, 1.0, 1e-7, 1 - 1e-7])
@pytest.mark.parametrize("dtype", DTYPES)
def test_where_light_surely_ends_or_passes_entropy_has_no_gradient(last: float, dtype: torch.dtype) -> None:
    inputs = packed([3, 2], dtype)
    inputs["last"][0] = last
    with_it, without = (volume_loss_and_grad(**inputs, entropy=weight) for weight in (1.0, 0.0))
    assert torch.equal(with_it.v_last[0], without.v_last[0])
    assert not torch.equal(with_it.v_last[1], without.v_last[1])
    assert bool(with_it.loss.isfinite())
    torch.testing.assert_close(with_it.v_last.double(), twin(inputs, entropy=1.0)[2]["v_last"], rtol=1e-5, atol=1e-6)


def test_moving_a_ray_away_leaves_its_distortion_and_joining_samples_ends_it() -> None:
    inputs = packed([30])
    w, s, rays = inputs["weights"], inputs["s"], inputs["rays"].long()
    here, there = (distortion_by_prefix_sums(w, s + shift, rays, 1, 0.02) for shift in (0.0, 5.0))
    torch.testing.assert_close(here, there, rtol=1e-10, atol=0)
    inputs["s"] = torch.full_like(s, 0.5)
    got = volume_loss_and_grad(**inputs, distortion=1.0, interval=0.0)
    assert float(got.loss - got.mse) == pytest.approx(0, abs=1e-15)


def test_rays_do_not_know_each_other() -> None:
    inputs = packed([7, 5, 0, 9], torch.float32)
    clean = volume_loss_and_grad(**inputs, **WEIGHTS)
    inputs["rgb"][8, 1] = math.nan
    got = volume_loss_and_grad(**inputs, **WEIGHTS)
    assert bool(got.loss.isnan() & got.mse.isnan())
    of_other = inputs["rays"] != 1
    assert torch.equal(got.v_rgb[of_other], clean.v_rgb[of_other])
    assert torch.equal(got.v_weights[of_other], clean.v_weights[of_other])
    assert torch.equal(got.v_last[[0, 2, 3]], clean.v_last[[0, 2, 3]])


def test_without_distortion_places_are_not_looked_at() -> None:
    inputs = packed([7, 5], torch.float32)
    wanted = volume_loss_and_grad(**inputs, per_point=0.1)
    inputs["s"] = torch.full_like(inputs["s"], math.nan)
    for got, other in zip(volume_loss_and_grad(**inputs, per_point=0.1), wanted, strict=True):
        assert torch.equal(got, other)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("counts", COUNTS)
def test_compositing_is_that_of_the_twin(counts: list[int], dtype: torch.dtype) -> None:
    inputs = {name: value for name, value in packed(counts, dtype).items() if name not in ("target", "s")}
    got = composite_rays(**inputs)
    del inputs["offsets"]
    torch.testing.assert_close(got, composite_rays_reference(**inputs), rtol=1e-6, atol=1e-6)
    assert got.shape == (len(counts), 3)


def test_grey_samples_before_grey_give_grey() -> None:
    inputs = {name: value for name, value in packed([9, 0, 3]).items() if name not in ("target", "s")}
    inputs["rgb"], inputs["background"] = torch.full_like(inputs["rgb"], 0.5), torch.full((3,), 0.5).double()
    inputs["last"][1] = 1  # nothing in the way
    torch.testing.assert_close(composite_rays(**inputs), torch.full((3, 3), 0.5).double())


def test_inputs_may_lie_strided() -> None:
    inputs = packed([7, 5], torch.float32)
    wanted = volume_loss_and_grad(**inputs, **WEIGHTS)
    for name in ("rgb", "weights", "s", "last", "target"):
        inputs[name] = torch.stack([inputs[name]] * 2, -1)[..., 0]
    for got, other in zip(volume_loss_and_grad(**inputs, **WEIGHTS), wanted, strict=True):
        assert torch.equal(got, other)


@needs_kernels
def test_threads_change_no_bit() -> None:
    inputs = packed([i % 23 for i in range(1000)], torch.float32)
    results, before = [], native.cpu().threads()
    try:
        for threads in (1, 2, 5):
            native.set_threads(threads)
            results.append(volume_loss_and_grad(**inputs, **WEIGHTS))
    finally:
        native.set_threads(before)
    for result in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(results[0], result, strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rgb": torch.zeros(5, 4)}, r"rgb must be float \[M, 3\]"),
        ({"rgb": torch.zeros(5, 3, dtype=torch.int32)}, "rgb must be float"),
        ({"weights": torch.zeros(4)}, "weights must be"),
        ({"weights": torch.zeros(5).double()}, "weights must be torch.float32"),
        ({"rays": torch.zeros(5)}, "rays must be int32"),
        ({"rays": torch.zeros(4, dtype=torch.int32)}, "rays must be int32"),
        ({"offsets": torch.tensor([0, 3, 5])}, "offsets must be int32"),
        ({"offsets": torch.tensor([0, 5], dtype=torch.int32)}, "last must be"),
        ({"last": torch.zeros(2, 1)}, "last must be"),
        ({"target": torch.zeros(3, 3)}, "target must be"),
        ({"background": torch.zeros(2, 3)}, "background must be"),
        ({"s": torch.zeros(4)}, "s must be"),
        ({"s": None}, "distortion needs s"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        volume_loss_and_grad(**(packed([3, 2], torch.float32) | change), distortion=1.0)


@needs_kernels
@pytest.mark.parametrize("offsets", [[1, 3, 5], [0, 3, 4], [0, 3, 6], [0, 6, 5], [0, -1, 5]])
def test_offsets_that_do_not_name_each_sample_once_are_refused(offsets: list[int]) -> None:
    inputs: dict[str, Any] = packed([3, 2], torch.float32) | {"offsets": torch.tensor(offsets, dtype=torch.int32)}
    with pytest.raises(ValueError, match="offsets must ascend"):
        volume_loss_and_grad(**inputs)
    with pytest.raises(ValueError, match="offsets must ascend"):
        composite_rays(**{name: value for name, value in inputs.items() if name not in ("target", "s")})
