"""gsplat as the rasterizer of a training step: its picture, gradients and updates are ours."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from benchmarks.gsplat_reference import _Shim
from scene.cameras import Camera, look_at
from scene.gaussians import Gaussians
from scene.ops.gsplat_raster import GsplatPass
from scene.ops.splat_step import AdamState, Pass, Rates, SplatStep

gsplat = pytest.importorskip("gsplat")
RATES = Rates(means=1e-3, quats=1e-3, log_scales=5e-3, opacity_logits=2e-2, sh_dc=5e-3, sh_rest=5e-4, opacity_pull=0.01)
SIZE = (40, 28)


@contextmanager
def torch_rasterization() -> Iterator[Callable[..., Any]]:
    """gsplat's plain-torch rasterization, with the CUDA-only helpers that it calls replaced by its own torch ones."""
    from gsplat import rendering
    from gsplat.cuda import _torch_impl, _wrapper

    shim, nerfacc = _Shim(), ModuleType("nerfacc")
    nerfacc.__dict__.update(accumulate_along_rays=shim.sum_along_rays, render_weight_from_alpha=shim.weights_from_alpha)

    def tiles(means2d: Tensor, radii: Tensor, depths: Tensor, *sizes: Any, **_: object) -> Any:
        return _torch_impl._isect_tiles(means2d.detach(), radii, depths.detach(), *sizes)

    def harmonics(degree: int, directions: Tensor, coefficients: Tensor, masks: Tensor) -> Tensor:
        return _torch_impl._spherical_harmonics(degree, directions, coefficients)

    def rasterize(*args: object, packed: bool, absgrad: bool, **named: object) -> Any:
        assert not packed
        return rendering._rasterization(*args, **named)  # type: ignore[arg-type]

    with (
        mock.patch.dict(sys.modules, {"nerfacc": nerfacc}),
        mock.patch.object(_wrapper, "rasterize_to_indices_in_range", shim.indices_in_range),
        mock.patch.object(rendering, "isect_tiles", tiles),
        mock.patch.object(rendering, "isect_offset_encode", _torch_impl._isect_offset_encode),
        mock.patch.object(rendering, "spherical_harmonics", harmonics),
    ):
        yield rasterize


def splats(device: str = "cpu", count: int = 60) -> Gaussians:
    rng = torch.Generator().manual_seed(4)
    return Gaussians(
        means=torch.randn(count, 3, generator=rng) * 0.5,
        quats=torch.randn(count, 4, generator=rng),
        log_scales=torch.randn(count, 3, generator=rng) * 0.4 - 2.2,
        opacity_logits=torch.randn(count, generator=rng) - 1,
        sh_dc=torch.randn(count, 3, generator=rng),
        sh_rest=torch.randn(count, 15, 3, generator=rng) * 0.1,
    ).to(device=device)


def camera() -> Camera:
    eye = torch.tensor([2.0, 1.5, 1.0])
    K = torch.tensor([[35.0, 0, 20], [0, 35, 14], [0, 0, 1]])
    return Camera(K, look_at(eye, torch.zeros(3), torch.tensor([0.0, 0, 1])), *SIZE)


@dataclass
class Outcome:
    """One step: the picture, the gradients before the update and the state after it."""

    image: Tensor
    gradients: dict[str, Tensor]
    step: SplatStep


def one_step(rasterizer: Pass | None, antialias: bool, device: str = "cpu") -> Outcome:
    gaussians = splats(device)
    step = SplatStep(gaussians, AdamState.zeros(gaussians), rasterizer)
    image = step.forward(camera(), torch.tensor([0.2, 0.5, 0.9]), sh_degree=2, antialias=antialias).clone()
    step.backward(torch.randn(image.shape, generator=torch.Generator().manual_seed(1)).to(image))
    gradients = {name: value.clone() for name, value in step.gradients().items()}
    # Off the rigid motions the two mean different things: gsplat inverts viewmat, we transpose its rotation.
    gradients["viewmat"] = gradients["viewmat"][:3, 3]
    step.update(RATES)
    return Outcome(image, gradients, step)


def compare(theirs: Outcome, ours: Outcome) -> None:
    # gsplat ends a splat at 3.33 sigma, we at an alpha of 1/255: what lies between is at most 1/255 of a colour.
    difference = (theirs.image - ours.image).abs()
    assert difference.max() < 1 / 255
    assert difference.mean() < 1e-4
    for name, value in ours.gradients.items():
        assert (theirs.gradients[name] - value).norm() < 0.01 * value.norm(), name
    seen = ours.step.statistics.seen > 0
    assert seen.sum() > 30
    assert (theirs.step.statistics.seen[seen] == 1).all()
    score = ours.step.statistics.score
    assert (theirs.step.statistics.score - score).norm() < 0.01 * score.norm()
    for name, value in ours.step.gaussians.parameters().items():
        moved = (theirs.step.gaussians.parameters()[name] - value).abs()[seen]
        # Adam's first step is the rate times the sign: it differs where a gradient is as good as zero.
        assert (moved > 1e-6).float().mean() < 0.02, name


@pytest.mark.parametrize("antialias", [False, True])
def test_a_step_by_gsplat_on_the_cpu_is_ours(antialias: bool) -> None:
    with torch_rasterization() as rasterize:
        theirs = one_step(GsplatPass(rasterize), antialias)
    compare(theirs, one_step(None, antialias))


def test_depth_and_normals_are_refused() -> None:
    gaussians = splats()
    step = SplatStep(gaussians, AdamState.zeros(gaussians), GsplatPass(lambda *args, **named: None))
    with pytest.raises(ValueError, match="normals"):
        step.forward(camera(), torch.zeros(3), sh_degree=0, with_geometry=True)


@pytest.mark.cuda
@pytest.mark.parametrize("antialias", [False, True])
def test_a_step_by_gsplat_on_a_gpu_is_ours(antialias: bool) -> None:
    compare(one_step(GsplatPass(), antialias, "cuda"), one_step(None, antialias, "cuda"))
