"""The GPU's Adam, run by the host shim, against the compiled CPU kernel."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor

from scene.ops import native
from scene.ops.gpu.adam import adam

HostGpu = Callable[..., AbstractContextManager[None]]
pytestmark = pytest.mark.skipif(not native.has(torch.device("cpu")), reason="the CPU module is the oracle")
SHAPES = [(0, 3), (1, 1), (57, 1), (40, 3), (257, 4), (130, 45), (9, 0)]
SETTINGS = (3, 2e-3, 0.9, 0.999, 1e-15)  # step, rate, beta1, beta2, eps


def a_state(shape: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Parameter, dense gradient and two moments as after a few steps."""
    generator = torch.Generator().manual_seed(math.prod(shape))
    param, grad, average, square = (torch.randn(shape, generator=generator) for _ in range(4))
    return param, grad, 0.1 * average, square.square()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", ["all", "compact", "listed", "none"])
def test_update_equals_that_of_the_cpu(shape: tuple[int, int], form: str, host_gpu: HostGpu) -> None:
    results = []
    listed = torch.arange(0, 0 if form == "none" else shape[0], 2, dtype=torch.int32)
    visible = None if form == "all" else listed
    for by_gpu in (False, True):
        param, grad, average, square = a_state(shape)
        grad = grad[listed.long()] if form == "compact" else grad
        if by_gpu:
            with host_gpu(guard=True):
                adam(param, grad, visible, average, square, *SETTINGS)
        else:
            native.cpu().adam(param, grad, visible, average, square, *SETTINGS)
        results.append((param, average, square))
    for got, wanted in zip(results[1], results[0]):
        # A product and a sum may be rounded once or twice.
        torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-7)
    untouched = torch.ones(shape[0], dtype=torch.bool)
    untouched[slice(None) if visible is None else listed.long()] = False
    param, _, average, square = a_state(shape)
    for got, before in zip(results[1], (param, average, square)):
        assert torch.equal(got[untouched], before[untouched])


def test_rows_that_do_not_exist_are_skipped(host_gpu: HostGpu) -> None:
    # Nobody looks at the ids, which would wait for the card; `guard` fails on a write outside the tensors.
    param, grad, average, square = a_state((6, 3))
    wanted = param.clone()
    with host_gpu(guard=True):
        adam(param, grad, torch.tensor([-1, 2, 6], dtype=torch.int32), average, square, *SETTINGS)
    assert torch.equal((param != wanted).any(1).nonzero().squeeze(1), torch.tensor([2]))


def test_a_hundred_steps_follow_torch(host_gpu: HostGpu) -> None:
    # The bias corrections and the complements of the betas are made in double, so nothing drifts.
    param, _, average, square = a_state((20, 3))
    average.zero_()
    square.zero_()
    leaf = param.clone().requires_grad_()
    optimiser = torch.optim.Adam([leaf], lr=1e-2, eps=1e-15)
    generator = torch.Generator().manual_seed(0)
    with host_gpu():
        for step in range(1, 101):
            grad = torch.randn(20, 3, generator=generator)
            adam(param, grad, None, average, square, step, 1e-2, 0.9, 0.999, 1e-15)
            leaf.grad = grad
            optimiser.step()
    torch.testing.assert_close(param, leaf.detach(), rtol=1e-5, atol=1e-5)
