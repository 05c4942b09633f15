"""Masked Adam against its twin and against torch.optim.Adam."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from scene.ops import native
from scene.ops.masked_adam import adam_masked, adam_masked_reference

needs_kernels = pytest.mark.skipif(not native.has(torch.device("cpu")), reason="the CPU module is not compiled")
DTYPES = [torch.float32, torch.float64]
SHAPES = [(0,), (1,), (15,), (16,), (17,), (33, 4), (7, 5, 9, 3), (1000, 12), (0, 5)]


def state(shape: tuple[int, ...], dtype: torch.dtype, *, touched: float = 0.3, seed: int = 0) -> list[Tensor]:
    """Parameter, gradient that is zero but for a share, and two moments as after a few steps."""
    generator = torch.Generator().manual_seed(seed)
    param, grad, average, square = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(4))
    grad = grad * (torch.rand(shape, generator=generator) < touched)
    return [value.to(dtype) for value in (param, grad, 0.1 * average, square**2)]


def copies(values: list[Tensor]) -> list[Tensor]:
    return [value.clone() for value in values]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_touched_numbers_are_those_of_torch_adam_and_the_others_keep_every_bit(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    # T4 of the specification.
    param, *_, average, square = state(shape, dtype)
    average, square = torch.zeros_like(average), torch.zeros_like(square)
    chosen = torch.rand(shape, generator=torch.Generator().manual_seed(9)) < 0.4
    first, theirs = param.clone(), param.clone().requires_grad_()
    optimiser = torch.optim.Adam([theirs], lr=0.01, betas=(0.9, 0.99), eps=1e-8)
    for step in range(1, 20):
        grad = state(shape, dtype, touched=1.0, seed=step)[1] * chosen
        theirs.grad = grad.clone()
        optimiser.step()
        adam_masked(param, grad, average, square, step=step, lr=0.01)
        assert not grad.any()
    # A unit in the last place of numbers up to 4 is 2.4e-7; 19 steps round as many times.
    torch.testing.assert_close(param, theirs.detach(), rtol=1e-7, atol=1e-6 if dtype == torch.float32 else 1e-12)
    assert torch.equal(param[~chosen], first[~chosen])
    assert not average[~chosen].any() and not square[~chosen].any()


def test_one_step_is_that_of_torch_adam_to_1e_7() -> None:
    grad = state((500,), torch.float32, touched=1.0)[1]
    param, average, square = torch.zeros(500), torch.zeros(500), torch.zeros(500)
    theirs = param.clone().requires_grad_()
    theirs.grad = grad.clone()
    torch.optim.Adam([theirs], lr=0.1, betas=(0.9, 0.99), eps=1e-8).step()
    adam_masked(param, grad, average, square, step=1, lr=0.1)
    torch.testing.assert_close(param, theirs.detach(), rtol=0, atol=1e-7)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rated", [None, 0, 1])
@pytest.mark.parametrize("clear", [False, True])
def test_twin_agrees(shape: tuple[int, ...], dtype: torch.dtype, rated: int | None, clear: bool) -> None:
    ours = state(shape, dtype)
    twin, before = copies(ours), copies(ours)
    rates = None
    if rated is not None:  # rates for all numbers, or for the rows of the last axis
        of = shape[: len(shape) - rated]
        rates = torch.rand(of, generator=torch.Generator().manual_seed(4)).to(dtype)
        rates[rates < 0.3] = 0
    options: dict[str, Any] = {"step": 7, "lr": 0.02, "rates": rates, "clear": clear}
    adam_masked(*ours, **options)
    adam_masked_reference(*twin, **options)
    for got, wanted in zip(ours, twin, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-6 if dtype == torch.float32 else 1e-14, atol=1e-7)
    rests = before[1] == 0
    if rates is not None:
        rests |= (rates == 0).view(*rates.shape, *[1] * (len(shape) - rates.dim()))
    for got, then in zip((ours[0], *ours[2:]), (before[0], *before[2:]), strict=True):
        assert torch.equal(got[rests], then[rests])
    assert torch.equal(ours[1], torch.zeros_like(ours[1]) if clear else before[1])


def test_what_rests_may_be_anything() -> None:
    ours = state((200,), torch.float32)
    rests = ours[1] == 0
    for value in (ours[0], ours[2], ours[3]):
        value[rests] = torch.tensor(0x7FC12345, dtype=torch.int32).view(torch.float32)  # a NaN with a message
    before = [value.view(torch.int32).clone() for value in ours]
    adam_masked(*ours, step=3, lr=0.1)
    for k in (0, 2, 3):
        assert torch.equal(ours[k].view(torch.int32)[rests], before[k][rests])
        assert bool(ours[k][~rests].isfinite().all())


def test_the_rate_multiplies_the_step() -> None:
    param, average, square = torch.zeros(4, 2), torch.zeros(4, 2), torch.zeros(4, 2)
    rates = torch.tensor([0.0, 0.5, 1.0, 2.0])
    adam_masked(param, torch.full((4, 2), -3.0), average, square, step=1, lr=0.1, rates=rates)
    torch.testing.assert_close(param, 0.1 * rates[:, None].expand(4, 2))
    assert not average[0].any() and bool(average[1:].all())


def test_a_nan_gradient_is_no_zero_and_spoils_its_own_number_only() -> None:
    ours = state((64,), torch.float32)
    clean = copies(ours)
    adam_masked(*clean, step=2, lr=0.1)
    ours[1][10] = math.nan
    adam_masked(*ours, step=2, lr=0.1)
    assert bool(ours[0][10].isnan())
    assert torch.equal(torch.cat([ours[0][:10], ours[0][11:]]), torch.cat([clean[0][:10], clean[0][11:]]))
    assert not ours[1].any()


def test_the_smallest_gradient_is_no_zero() -> None:
    ours = [torch.zeros(40), torch.zeros(40), torch.zeros(40), torch.ones(40)]
    ours[1][33] = 1e-30
    ours[1][3] = -0.0
    adam_masked(*ours, step=1, lr=1.0)
    assert (ours[3] != 1).nonzero().tolist() == [[33]]


def test_it_takes_a_parameter_of_autograd() -> None:
    ours = state((33,), torch.float32)
    wanted = copies(ours)
    adam_masked(*wanted, step=1, lr=0.1)
    adam_masked(torch.nn.Parameter(ours[0]), *ours[1:], step=1, lr=0.1)
    assert torch.equal(ours[0], wanted[0])


@needs_kernels
def test_threads_change_no_bit() -> None:
    results, before = [], native.cpu().threads()
    try:
        for threads in (1, 2, 5):
            native.set_threads(threads)
            ours = state((70_001, 3), torch.float32)
            adam_masked(*ours, step=9, lr=0.1, rates=torch.rand(70_001, generator=torch.Generator().manual_seed(1)))
            results.append(ours)
    finally:
        native.set_threads(before)
    for result in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(results[0], result, strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": 0}, "step counts from 1"),
        ({"param": torch.zeros(4, 3, dtype=torch.int32)}, "param must be float"),
        ({"exp_avg": torch.zeros(4, 2)}, "exp_avg must be"),
        ({"exp_avg_sq": torch.zeros(4, 3).double()}, "exp_avg_sq must be"),
        ({"grad": torch.zeros(12)}, "grad must be"),
        ({"grad": torch.zeros(3, 4).T}, "contiguous"),
        ({"param": torch.zeros(3, 4).T}, "contiguous"),
        ({"rates": torch.zeros(3)}, "rates must have"),
        ({"rates": torch.zeros(4).double()}, "rates must have"),
        ({"rates": torch.zeros(4, 3, 1)}, "rates must have"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(change: dict[str, Any], message: str) -> None:
    names = ("param", "grad", "exp_avg", "exp_avg_sq")
    arguments: dict[str, Any] = {name: torch.zeros(4, 3) for name in names} | {"step": 1} | change
    with pytest.raises(ValueError, match=message):
        adam_masked(**arguments, lr=0.1)
