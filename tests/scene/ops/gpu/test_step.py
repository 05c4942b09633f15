"""What a training step promises on a GPU alone: it waits for nothing, and finds out in time that pairs lacked room."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from scene.ops import native
from scene.ops.photometric_loss import photometric_loss_and_grad
from scene.ops.splat_step import AdamState, Rates, SplatStep
from tests.scene.splats import a_camera, random_gaussians

HostGpu = Callable[..., AbstractContextManager[None]]
pytestmark = pytest.mark.skipif(not native.has(torch.device("cpu")), reason="the CPU module is the oracle")

RATES = Rates(means=1e-3, quats=1e-3, log_scales=5e-3, opacity_logits=5e-2, sh_dc=2.5e-3, sh_rest=1.25e-4)
CAMERA = a_camera()


def start(count: int, **options: Any) -> SplatStep:
    scene = random_gaussians(count, **options)
    return SplatStep(scene, AdamState.zeros(scene))


def forward(step: SplatStep, *, with_geometry: bool = False) -> Tensor:
    return step.forward(CAMERA, torch.zeros(3), sh_degree=3, with_geometry=with_geometry)


class Waits(TorchDispatchMode):
    """Collects the operations whose result the host has to wait for, were the tensors on a GPU."""

    NAMES = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal", "repeat_interleave")

    def __init__(self) -> None:
        super().__init__()
        self.met: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.split(".")[0]
        indexed_by_mask = name in ("index", "index_put_") and any(
            part is not None and part.dtype == torch.bool for part in args[1]
        )
        if name in self.NAMES or indexed_by_mask:
            self.met.append(name)
        return func(*args, **(kwargs or {}))


def test_a_step_waits_for_nothing(host_gpu: HostGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    to_lists: list[tuple[int, ...]] = []
    tolist = Tensor.tolist
    monkeypatch.setattr(Tensor, "tolist", lambda tensor: (to_lists.append(tuple(tensor.shape)), tolist(tensor))[1])
    target = torch.rand(36, 40, 3, generator=torch.Generator().manual_seed(0))
    with host_gpu():
        step = start(100)
        forward(step)  # the first makes room, for which it counts the pairs
        to_lists.clear()
        with Waits() as waits:
            for with_geometry in (False, True):
                image = forward(step, with_geometry=with_geometry)
                step.backward(photometric_loss_and_grad(image, target)[1], absgrad=with_geometry)
                step.update(RATES)
    assert waits.met == []
    assert set(to_lists) <= {(3, 3)}  # K, which stays on the CPU


def test_room_that_ran_out_is_found_out_and_grows(host_gpu: HostGpu) -> None:
    with host_gpu():
        step = start(150, log_scale=-4.5)
        forward(step)
        step.gaussians.log_scales += 2.5  # many more pairs, of the same number of splats
        wanted = forward(SplatStep(step.gaussians, AdamState.zeros(step.gaussians))).clone()
        images = [forward(step).clone() for _ in range(5)]
    assert all(bool(image.isfinite().all()) for image in images)
    assert not torch.equal(images[0], wanted)  # pairs were dropped, and nobody asked
    assert torch.equal(images[3], wanted)  # two steps later there is room
    assert torch.equal(images[4], wanted)


def test_room_grows_ahead_of_splats_that_grow_steadily(host_gpu: HostGpu) -> None:
    with host_gpu():
        step = start(150, log_scale=-3.0)
        forward(step)
        before = step._pass.bins.pairs  # type: ignore[union-attr]
        for _ in range(14):
            step.gaussians.log_scales += 0.05
            image = forward(step).clone()
            wanted = forward(SplatStep(step.gaussians, AdamState.zeros(step.gaussians)))
            assert torch.equal(image, wanted)
        assert step._pass.bins.pairs > 1.4 * before  # type: ignore[union-attr]  # more than there was room for


def test_other_gaussians_are_drawn_in_full_at_once(host_gpu: HostGpu) -> None:
    with host_gpu():
        step = start(150, log_scale=-4.5)
        forward(step)
        larger = random_gaussians(150, log_scale=-2.0)
        step.replace(larger, AdamState.zeros(larger))
        image = forward(step).clone()
        wanted = forward(SplatStep(larger, AdamState.zeros(larger)))
    assert torch.equal(image, wanted)


def test_visible_and_gradients_are_those_of_the_cpu(host_gpu: HostGpu) -> None:
    v_image = torch.randn(36, 40, 3, generator=torch.Generator().manual_seed(0))

    def run() -> tuple[Tensor, dict[str, Tensor]]:
        step = start(120)
        step.gaussians.means[5] = torch.nan
        forward(step)
        step.backward(v_image)
        return step.visible, step.gradients()

    visible, wanted = run()
    with host_gpu():
        seen, got = run()
    assert torch.equal(seen, visible)
    assert 0 < len(seen) < 120
    for name, value in wanted.items():
        assert float((got[name] - value).abs().max()) <= 1e-4 * float(value.abs().max()), name
