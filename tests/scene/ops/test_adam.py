"""Sparse Adam against its twin and against torch.optim.Adam."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from scene.ops import native
from scene.ops.adam import adam_visible, adam_visible_reference, round_by_chance, rounding_words

needs_kernels = pytest.mark.skipif(not native.has(torch.device("cpu")), reason="the CPU module is not compiled")
SHAPES = [(0, 3), (1,), (57,), (40, 3), (33, 4), (21, 15, 3), (5000, 7)]


def state(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Parameter, dense gradient and two moments as after a few steps."""
    generator = torch.Generator().manual_seed(seed)
    param, grad, average, square = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(4))
    return param.to(dtype), grad.to(dtype), (0.1 * average).to(dtype), (square**2).to(dtype)


def some_rows(rows: int, seed: int = 0) -> Tensor:
    chosen = torch.rand(rows, generator=torch.Generator().manual_seed(seed)) < 0.6
    return chosen.nonzero()[:, 0].int()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_with_every_row_it_is_torch_adam(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    param, *_ = state(shape, dtype)
    theirs = param.clone().requires_grad_()
    optimiser = torch.optim.Adam([theirs], lr=0.01, betas=(0.9, 0.99), eps=1e-8)
    moments = torch.zeros_like(param), torch.zeros_like(param)
    for step in range(1, 20):
        _, grad, *_ = state(shape, dtype, seed=step)
        theirs.grad = grad
        optimiser.step()
        adam_visible(param, grad, None, *moments, step=step, lr=0.01, betas=(0.9, 0.99), eps=1e-8)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6  # 19 steps of rounding in parameters of about one
    torch.testing.assert_close(param, theirs.detach(), rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("compact", [False, True])
def test_twin_agrees_on_visible_rows(shape: tuple[int, ...], dtype: torch.dtype, compact: bool) -> None:
    visible = some_rows(shape[0])
    param, grad, *moments = state(shape, dtype)
    grad = grad[visible.long()] if compact else grad
    twin, *twin_moments = (value.clone() for value in (param, *moments))
    adam_visible(param, grad, visible, moments[0], moments[1], step=7, lr=0.02)
    adam_visible_reference(twin, grad, visible, twin_moments[0], twin_moments[1], step=7, lr=0.02)
    for got, wanted in zip((param, *moments), (twin, *twin_moments), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-6 if dtype == torch.float32 else 1e-14, atol=1e-7)


def test_rows_that_are_not_seen_keep_every_bit() -> None:
    param, grad, *moments = state((200, 5), torch.float32)
    before = [value.clone() for value in (param, *moments)]
    visible = some_rows(200)
    unseen = torch.ones(200, dtype=torch.bool)
    unseen[visible.long()] = False
    grad[unseen] = math.nan  # and their gradient is not read into anything
    adam_visible(param, grad, visible, moments[0], moments[1], step=3, lr=0.1)
    for now, then in zip((param, *moments), before, strict=True):
        assert torch.equal(now[unseen], then[unseen])
        assert bool((now[~unseen] != then[~unseen]).all())
        assert bool(now.isfinite().all())


def test_seeing_all_by_list_is_the_same_as_no_list() -> None:
    results = []
    for visible in (None, torch.arange(300, dtype=torch.int32)):
        param, grad, *moments = state((300, 3), torch.float32)
        adam_visible(param, grad, visible, moments[0], moments[1], step=5, lr=0.1)
        results.append((param, *moments))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_a_nan_gradient_spoils_its_own_number_only() -> None:
    param, grad, *moments = state((64, 3), torch.float32)
    clean, *clean_moments = (value.clone() for value in (param, *moments))
    adam_visible(clean, grad, None, clean_moments[0], clean_moments[1], step=2, lr=0.1)
    grad[10, 1] = math.nan
    adam_visible(param, grad, None, moments[0], moments[1], step=2, lr=0.1)
    assert bool(param[10, 1].isnan())
    keep = torch.ones(64, 3, dtype=torch.bool)
    keep[10, 1] = False
    assert torch.equal(param[keep], clean[keep])


def test_first_step_is_the_learning_rate_whatever_the_size_of_the_gradient() -> None:
    grad = torch.tensor([1e-12, -1e-3, 1.0, -1e15])
    param, moments = torch.zeros(4), (torch.zeros(4), torch.zeros(4))
    adam_visible(param, grad, None, *moments, step=1, lr=0.25)
    torch.testing.assert_close(param, -0.25 * grad.sign(), rtol=2e-3, atol=0)  # eps = 1e-15 is a thousandth of 1e-12


def test_a_gradient_of_zero_moves_nothing_that_rests() -> None:
    param, moments = torch.ones(9), (torch.zeros(9), torch.zeros(9))
    adam_visible(param, torch.zeros(9), None, *moments, step=1, lr=1.0)
    assert torch.equal(param, torch.ones(9))


@needs_kernels
def test_threads_change_no_bit() -> None:
    results, before = [], native.cpu().threads()
    visible = some_rows(30_000)
    try:
        for threads in (1, 2, 5):
            native.set_threads(threads)
            param, grad, *moments = state((30_000, 3), torch.float32)
            adam_visible(param, grad, visible, moments[0], moments[1], step=9, lr=0.1)
            results.append((param, *moments))
    finally:
        native.set_threads(before)
    for result in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(results[0], result, strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": 0}, "step counts from 1"),
        ({"exp_avg": torch.zeros(4, 2)}, "exp_avg must be"),
        ({"exp_avg_sq": torch.zeros(4, 3, dtype=torch.float64)}, "exp_avg_sq must be"),
        ({"grad": torch.zeros(3, 3)}, "grad must be"),
        ({"grad": torch.zeros(4, 2)}, "grad must be"),
        ({"visible": torch.tensor([0, 2])}, "int32"),
        ({"visible": torch.tensor([2, 0], dtype=torch.int32)}, "ascend"),
        ({"visible": torch.tensor([1, 1], dtype=torch.int32)}, "ascend"),
        ({"visible": torch.tensor([0, 4], dtype=torch.int32)}, "ascend"),
        ({"visible": torch.tensor([-1, 2], dtype=torch.int32)}, "ascend"),
        ({"param": torch.zeros(3, 4).T}, "contiguous"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(change: dict[str, Tensor | int], message: str) -> None:
    names = ("param", "grad", "exp_avg", "exp_avg_sq")
    arguments = {name: torch.zeros(4, 3) for name in names} | {"visible": None, "step": 1} | change
    with pytest.raises(ValueError, match=message):
        adam_visible(**arguments, lr=0.1)  # type: ignore[arg-type]


def test_small_changes_are_not_lost_in_sixteen_bits() -> None:
    # v gains a thousandth of g^2 per step: less than half a unit of bfloat16, which rounding to nearest would drop.
    param, grad = torch.zeros(4000, 5), torch.full((4000, 5), 2.0)
    average, square = (torch.ones(4000, 5, dtype=torch.bfloat16) for _ in range(2))
    for step in range(1, 201):
        adam_visible(param, grad, None, average, square, step=step, lr=1e-3)
    wanted = 4 - 3 * 0.999**200
    assert float(square.float().mean()) == pytest.approx(wanted, rel=1e-3)
    assert float(average.float().mean()) == pytest.approx(2.0, rel=1e-3)
    assert float(square.float().std()) < 0.05 * wanted


def test_rounding_by_chance_keeps_the_mean_and_what_needs_no_rounding() -> None:
    words = rounding_words(torch.arange(100_000), 2, step=7)
    for chances in (words & 0xFFFF, words >> 16):
        for value in (0.3, -1e-20, 7e30):
            rounded = round_by_chance(torch.full((100_000, 2), value), chances).double()
            assert len(rounded.unique()) == 2
            assert float(rounded.mean()) == pytest.approx(value, rel=5e-5)  # 4 sigma of a unit, 2^-8, over 447
    exact = torch.tensor([0.0, -0.0, 1.5, -256.0, math.inf, -math.inf])
    assert torch.equal(round_by_chance(exact, torch.full((6,), 0xFFFF)).float(), exact)
    assert bool(round_by_chance(torch.tensor([math.nan]), torch.tensor([0xFFFF])).isnan())


def test_words_differ_from_step_to_step_and_from_place_to_place() -> None:
    rows = torch.arange(5000)
    words = torch.stack([rounding_words(rows, 3, step).flatten() for step in range(1, 21)]).double()
    assert float(torch.corrcoef(words).tril(-1).abs().max()) < 0.04  # 5 sigma of 15,000 pairs
    assert float(torch.corrcoef(torch.stack([words[:, :-1].flatten(), words[:, 1:].flatten()]))[0, 1].abs()) < 0.01
    some = torch.tensor([3, 4000])
    assert torch.equal(rounding_words(some, 3, 9), rounding_words(rows, 3, 9)[some])
