"""Octrees on the GPU's path, run by the host shim: against the compiled CPU kernels, and the same bits in any order."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor

from scene.octree import Octree
from scene.octree_step import EPS, FLOOR, STOP
from scene.ops import native
from scene.ops.octree_render import Rays, leaf_weights, render_octree, render_octree_reference, scene_arguments
from tests.scene.octrees import camera, random_octree, random_rays, uniform_octree

HostGpu = Callable[..., AbstractContextManager[None]]
needs_kernels = pytest.mark.skipif(not native.has(torch.device("cpu")), reason="the CPU module is the oracle")
SCHEDULES = ({"schedule": "forward"}, {"schedule": "reverse"}, {"schedule": "random", "seed": 5})
VIEW = Rays(camera=camera(37, 29))  # no whole number of tiles


def everything(octree: Octree, rays: Rays, stop: float = 0.0, least: float = 0.0) -> dict[str, Tensor]:
    """Pictures, gradients of a sum in which every ray has its share, and weights."""
    leaves = [octree.sigmas.clone().requires_grad_(), octree.sh_coeffs.clone().requires_grad_()]
    options: dict[str, Any] = {"stop": stop, "least": least}
    seen = render_octree(leaves[0], leaves[1], octree.index, rays, with_depth=True, **options)
    assert seen.depth is not None and seen.median is not None
    share = torch.linspace(-1, 1, 4 * len(rays)).view(-1, 4)
    loss = (seen.rgb * share[:, :3]).sum() + (seen.last * share[:, 3]).sum()
    v_sigmas, v_sh = torch.autograd.grad(loss, leaves)
    sums, maxima = torch.full((2, len(octree)), 0.25)
    leaf_weights(octree.sigmas, octree.index, rays, sums, maxima, **options)
    whole = render_octree(octree.sigmas, octree.sh_coeffs, octree.index, rays, whole=True, **options)
    found = {"rgb": seen.rgb, "last": seen.last, "depth": seen.depth, "median": seen.median, "whole": whole.rgb}
    found |= {"whole last": whole.last, "v_sigmas": v_sigmas, "v_sh": v_sh, "sums": sums, "maxima": maxima}
    return {name: value.detach() for name, value in found.items()}


def assert_agree(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """exp2 of the CPU is a polynomial; gradients are sums over very many rays of either sign."""
    for name, value in wanted.items():
        scale = float(value.abs().max().clamp_min(1))
        torch.testing.assert_close(got[name], value, rtol=1e-5, atol=1e-5 * scale, msg=lambda m: f"{name}: {m}")  # noqa: B023


@needs_kernels
@pytest.mark.parametrize(("levels", "sh_degree"), [(1, 0), (3, 1), (6, 2), (8, 3)])
@pytest.mark.parametrize("rays", [VIEW, random_rays(300)], ids=["view", "list"])
@pytest.mark.parametrize(("stop", "least"), [(0.0, 0.0), (0.05, 5.0)])
def test_agrees_with_the_cpu(
    levels: int, sh_degree: int, rays: Rays, stop: float, least: float, host_gpu: HostGpu
) -> None:
    octree = random_octree(levels, sh_degree)
    wanted = everything(octree, rays, stop, least)
    assert bool(wanted["v_sh"].any())
    with host_gpu():
        assert_agree(everything(octree, rays, stop, least), wanted)


def test_agrees_with_the_twin_in_double(host_gpu: HostGpu) -> None:
    octree, rays = random_octree(4, 2), random_rays(300)
    wanted = render_octree_reference(
        octree.sigmas.double(), octree.sh_coeffs.double(), octree.index, random_rays(300, dtype=torch.float64)
    )
    with host_gpu():
        found = render_octree(octree.sigmas, octree.sh_coeffs, octree.index, rays)
    # float32: places to 1e-6 of the cube, times densities of 30
    torch.testing.assert_close(found.rgb.double(), wanted.rgb, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.last.double(), wanted.last, rtol=0, atol=1e-4)


class Training:
    """Steps of the trainer that serves the CPU's tensors now, and what they left."""

    def __init__(self, octree: Octree, steps: int = 3, distortion: float = 0.5) -> None:
        generator = torch.Generator().manual_seed(0)
        self.sigmas, self.sh = octree.sigmas.clamp_min(FLOOR), octree.sh_coeffs.clone()
        count, numbers = len(octree), self.sh[0].numel()
        self.sigma_moments, self.sh_moments = torch.zeros(2, count), torch.zeros(2, count, numbers)
        self.weights, self.maxima = torch.zeros(count), torch.zeros(count)
        self.errors = torch.zeros(steps, dtype=torch.float64)
        trainer = native.kernels(torch.device("cpu")).OctreeTrainer()
        for number in range(steps):
            photo = torch.rand(len(VIEW), 3, generator=generator)
            background = torch.rand(3, generator=generator)
            *table, sigmas, sh, _, _, view, width, height, stop, least = scene_arguments(
                self.sigmas, self.sh, octree.index, VIEW, STOP, 0.0
            )
            moments = (self.sigma_moments, self.sh_moments, self.weights, self.maxima)
            lengths = (number + 1, 0.5, 0.05, 0.9, 0.99, EPS, FLOOR, distortion)
            image = (view, width, height, stop, least, photo, background)
            self.errors[number] = trainer.step(*table, sigmas, sh, *image, *moments, *lengths)


@needs_kernels
@pytest.mark.parametrize("octree", [random_octree(5, 2), random_octree(3, 1), uniform_octree(1, 1.0, 3)])
def test_training_steps_agree_with_the_cpu(octree: Octree, host_gpu: HostGpu) -> None:
    wanted, one = Training(octree), Training(octree, steps=1)
    with host_gpu():
        got, got_one = Training(octree), Training(octree, steps=1)
    torch.testing.assert_close(got.errors, wanted.errors, rtol=1e-4, atol=0)
    assert_agree(
        {name: getattr(got_one, name) for name in ("sigma_moments", "sh_moments", "weights", "maxima", "errors")},
        {name: getattr(one, name) for name in ("sigma_moments", "sh_moments", "weights", "maxima", "errors")},
    )
    for name, rate in (("sigmas", 0.5), ("sh", 0.05)):
        apart = (getattr(got, name) - getattr(wanted, name)).abs()
        # Where a gradient is nearly 0, Adam makes a step of its noise.
        assert float((apart <= 0.02 * 3 * rate).float().mean()) > 0.99, name
    torch.testing.assert_close(got.weights, wanted.weights, rtol=1e-3, atol=1e-3)
    assert float(got.sigmas.min()) >= 0.99 * FLOOR


@pytest.mark.parametrize("rays", [VIEW, random_rays(70)], ids=["view", "list"])
def test_the_order_in_which_threads_run_changes_no_bit(rays: Rays, host_gpu: HostGpu) -> None:
    octree, results = random_octree(3, 1), []
    for settings in SCHEDULES:
        with host_gpu(**settings):
            training = Training(octree, steps=2)
            results.append(everything(octree, rays, 0.05) | vars(training))
    for other in results[1:]:
        assert all(torch.equal(results[0][name], value) for name, value in other.items())


@needs_kernels
def test_one_leaf_met_by_every_ray(host_gpu: HostGpu) -> None:
    """Its sum goes over many pieces of 32 records, of which the last is the only one in part."""
    octree = uniform_octree(0, 1.0, 1)
    directions = torch.randn(331, 3, generator=torch.Generator().manual_seed(2))
    rays = Rays(torch.zeros(331, 3), torch.nn.functional.normalize(directions, dim=1))
    wanted = everything(octree, rays)
    assert float(wanted["sums"]) > 50
    with host_gpu():
        assert_agree(everything(octree, rays), wanted)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e30])
def test_rays_that_are_none_see_nothing_and_end(bad: float, host_gpu: HostGpu) -> None:
    origins, directions = torch.zeros(4, 3), torch.ones(4, 3)
    origins[0], directions[1, 1], origins[2] = bad, bad, -3
    directions[3] = 0
    with host_gpu():
        found = everything(random_octree(4), Rays(origins, directions))
    assert bool(found["rgb"][2].isfinite().all()) and float(found["last"][2]) < 1


def test_nothing_gives_nothing(host_gpu: HostGpu) -> None:
    none, half = torch.zeros(0), torch.full((3,), 0.5)
    octree = Octree.of(none.long(), none.int(), none, none.view(0, 1, 3), half, half)
    with host_gpu():
        for rays in (VIEW, random_rays(10)):
            found = everything(octree, rays)
            assert not found["rgb"].any() and bool((found["last"] == 1).all())
        assert len(everything(random_octree(2), random_rays(0))["rgb"]) == 0
        away = Rays(torch.full((10, 3), 5.0), torch.ones(10, 3))
        assert not everything(random_octree(2), away)["v_sigmas"].any()
