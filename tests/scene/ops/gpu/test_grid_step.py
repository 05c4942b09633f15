"""Whole training steps of voxel grids on the GPU's path, its kernels on the host shim, against the CPU kernels."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from data.synthetic import dome_cameras
from scene.grid_step import GridStep, LearningRates, Weights
from scene.ops import native
from scene.ops.color_mlp import ColorMlp
from scene.ops.grid_march import RaySpans
from scene.ray_space import GridFrame, Space
from scene.voxel_grid import Head, VoxelGrid, new_grid

HostGpu = Callable[..., AbstractContextManager[None]]
pytestmark = pytest.mark.skipif(not native.has(torch.device("cpu")), reason="the CPU module is the oracle")

SIZE, RAYS = (12, 10, 9), 80
RATES = LearningRates(density=0.1, features=0.1, mlp=1e-3)
WEIGHTS = Weights(per_point=0.1, entropy=0.01, distortion=0.01, tv_density=1e-5, tv_features=1e-6)


def a_grid(head: Head, kind: str) -> VoxelGrid:
    """A ball of soft surface, in the middle of its training."""
    generator = torch.Generator().manual_seed(3)
    half = 1.2 if kind == "unbounded" else 1.0
    box = torch.tensor([[-half] * 3, [half] * 3])
    frame = GridFrame(Space(kind, torch.eye(4)), box, SIZE)  # type: ignore[arg-type]
    places = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float32) for n in SIZE)) / (torch.tensor(SIZE) - 1)
    depth = (places - 0.5).norm(dim=-1) - 0.3
    channels = {"rgb": 3, "sh": 27, "mlp": 12}[head]
    grid = new_grid(
        frame,
        (depth < 0.1).view(SIZE),
        channels=channels,
        head=head,
        mlp=ColorMlp.drawn(channels, 27, 64, generator) if head == "mlp" else None,
        shifts=torch.linspace(-4.5, -4.0, SIZE[2]),
        interval=0.5,
        threshold=1e-4,
    )
    grid.density.copy_((4 - 40 * depth + torch.randn(len(depth), generator=generator)).clamp(-5, 9).view(SIZE))
    grid.features.copy_(torch.randn(grid.features.shape, generator=generator))
    return grid


def rays_around(grid: VoxelGrid) -> tuple[RaySpans, Tensor]:
    """Rays of cameras around the ball, and their unit directions."""
    pairs = [camera.to(dtype=torch.float32).rays() for camera in dome_cameras(6, 9)]
    origins, directions = (torch.cat([pair[i].reshape(-1, 3) for pair in pairs]) for i in (0, 1))
    ids = torch.randperm(len(origins), generator=torch.Generator().manual_seed(4))[:RAYS]
    unit = torch.nn.functional.normalize(directions[ids], dim=-1)
    return grid.frame.spans(0.8 * origins[ids], unit, grid.step), unit


def taken(grid: VoxelGrid, steps: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """After some steps: the first step's loss and gradients; parameters and moments."""
    mlp = None if grid.mlp is None else ColorMlp(*(tensor.clone() for tensor in grid.mlp))
    mine = replace(grid, density=grid.density.clone(), features=grid.features.clone(), mlp=mlp)
    rates = torch.linspace(0.2, 1, grid.density.numel()).view(SIZE)
    step, found = GridStep(mine, rates), {}
    spans, directions = rays_around(mine)
    target = torch.rand(RAYS, 3, generator=torch.Generator().manual_seed(5))
    arguments = (spans, directions, target, torch.ones(3), WEIGHTS)
    for number in range(steps):
        if number == 0:
            loss, mlp_grads = step.gradients(*arguments)
            found = {"loss": loss.loss.clone(), "mse": loss.mse.clone()}
            found |= {"density": step.density_grad.clone(), "features": step.features_grad.clone()}
            found |= {f"mlp.{i}": grad.clone() for i, grad in enumerate(mlp_grads)}
            step._update(RATES, mlp_grads)
        else:
            step.take(*arguments, RATES)
    state = {name: value.clone() for name, value in step.parameters().items()}
    for name, moments in step.moments.items():
        state |= {f"{name}, {which} moment": value for which, value in zip(("first", "second"), moments, strict=True)}
    return found, state


def apart(got: Tensor, wanted: Tensor) -> float:
    """Euclidean distance, relative to the length."""
    return float((got.double() - wanted.double()).norm() / wanted.double().norm().clamp(min=1e-30))


@pytest.mark.parametrize("kind", ["bounded", "unbounded"])
@pytest.mark.parametrize("head", ["rgb", "sh", "mlp"])
def test_three_steps_on_the_shim_equal_those_of_the_cpu(head: Head, kind: str, host_gpu: HostGpu) -> None:
    grid = a_grid(head, kind)
    first, state = taken(grid, 3)
    with host_gpu():
        first_there, there = taken(grid, 3)
    assert first_there.keys() == first.keys() and there.keys() == state.keys()
    # Sums of float32 in another order: 2e-6 as measured. A neuron of one sample may be just on here and just off there.
    flips = 3e-4 if head == "mlp" else 0.0
    for name, wanted in first.items():
        assert bool(wanted.any()) and apart(first_there[name], wanted) < 1e-5 + flips, name
    # Adam's first steps are as long for a gradient that is nearly rounding alone as for a large one.
    for name, wanted in state.items():
        assert apart(there[name], wanted) < 2e-5 + flips, name
    untouched = state["density, second moment"] == 0
    assert bool(untouched.any()) and torch.equal(there["density"][untouched], grid.density[untouched])


def test_a_step_on_the_shim_gives_the_same_bits_in_any_order(host_gpu: HostGpu) -> None:
    grid, results = a_grid("mlp", "bounded"), []
    for settings in ({"schedule": "forward"}, {"schedule": "reverse"}, {"schedule": "random", "seed": 2}):
        with host_gpu(**settings):
            results.append(taken(grid, 2))
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert all(torch.equal(one[name], two[name]) for name in one)
