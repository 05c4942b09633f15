"""The GPU's fused end of a training step, run by the host shim, against the compiled CPU kernel."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from scene.gaussians import Gaussians
from scene.ops import native
from scene.ops.gpu import splat_project, splat_update
from scene.ops.splat_project import Lens, Projected, allocate
from scene.ops.splat_step import AdamState, Rates, Statistics
from tests.scene.splats import a_camera, random_gaussians

HostGpu = Callable[..., AbstractContextManager[None]]
pytestmark = pytest.mark.skipif(not native.has(torch.device("cpu")), reason="the CPU module is the oracle")

RATES = Rates(means=1e-3, quats=1e-3, log_scales=5e-3, opacity_logits=5e-2, sh_dc=2.5e-3, sh_rest=1.25e-4)


@dataclass
class Training:
    """All that a step changes."""

    gaussians: Gaussians
    adam: AdamState
    statistics: Statistics

    @staticmethod
    def of(gaussians: Gaussians, moments: torch.dtype = torch.float32) -> Training:
        """Some steps in: moments that are not zero, a square no less than what makes one."""
        adam, generator = AdamState.zeros(gaussians), torch.Generator().manual_seed(5)
        for name, value in gaussians.parameters().items():
            noise = torch.randn(value.shape, generator=generator)
            adam.exp_avg[name] = (0.1 * noise).to(moments)
            adam.exp_avg_sq[name] = (0.1 * noise.square() + 0.1).to(moments)
        adam.steps = 4
        return Training(gaussians.clone(), adam, Statistics.zeros(len(gaussians)))

    def tensors(self) -> dict[str, Tensor]:
        groups = {"": self.gaussians.parameters(), "m.": self.adam.exp_avg, "v.": self.adam.exp_avg_sq}
        named = {prefix + name: value for prefix, group in groups.items() for name, value in group.items()}
        return named | vars(self.statistics)


def step(kernels: Any, project: Any, state: Training, lens: Lens, rates: Rates, *, normals: bool) -> Projected:
    """One step towards gradients that each Gaussian has of its own, whatever else is listed."""
    gaussians, count, camera = state.gaussians, len(state.gaussians), a_camera()
    out = allocate(gaussians.means, count, with_normals=normals)
    listed = project(*gaussians.parameters().values(), camera.viewmat, *lens, *out.arrays())
    rows: list[Any] = [None if part is None else part[:listed] for part in out.arrays()]
    seen, generator = Projected(*rows), torch.Generator().manual_seed(state.adam.steps)

    def upstream(*width: int) -> Tensor:
        return torch.randn(count, *width, generator=generator)[seen.ids.long()]

    v = (upstream(2), upstream(3), upstream(), upstream(3))
    v_depths, v_normals, v_score = upstream(), upstream(3), upstream(2)
    state.adam.steps += 1
    moments = [[bits_of(value) for value in group.values()] for group in (state.adam.exp_avg, state.adam.exp_avg_sq)]
    kernels.update_splats(
        *(tuple(group) for group in (gaussians.parameters().values(), *moments)),
        *(rates.by_group(), rates.beta1, rates.beta2, rates.eps, state.adam.steps),
        *(rates.opacity_pull, rates.scale_pull, camera.viewmat, *lens, seen.ids, seen.colors, seen.extents, *v),
        *(v_depths if normals else None, v_normals if normals else None, v_score),
        *vars(state.statistics).values(),
    )
    return seen


def bits_of(moment: Tensor) -> Tensor:
    return moment.view(torch.uint16) if moment.dtype == torch.bfloat16 else moment


def train(kernels: Any, project: Any, scene: Gaussians, *, steps: int = 2, **options: Any) -> Training:
    degree, rates = options.get("degree", 3), options.get("rates", RATES)
    state, normals = Training.of(scene, options.get("moments", torch.float32)), options.get("normals", False)
    lens = Lens.of(a_camera().K, 40, 36, 0.01, degree, options.get("antialias", False))
    for _ in range(steps):
        step(kernels, project, state, lens, rates, normals=normals)
    return state


def on_cpu(scene: Gaussians, **options: Any) -> Training:
    return train(native.cpu(), native.cpu().project_splats, scene, **options)


def assert_same(got: Training, wanted: Training) -> None:
    """Gradients agree to 1e-4 of the largest; a moment in bfloat16 may be rounded the other way, to the next number."""
    expected = wanted.tensors()
    for name, value in got.tensors().items():
        if value.numel():
            away, largest = (value - expected[name]).abs().float(), expected[name].abs().max()
            if value.dtype == torch.bfloat16:
                away -= 2**-7 * expected[name].abs().float()
            assert float(away.max()) <= 1e-4 * float(largest), name


@pytest.mark.parametrize("form", ["project_splats_dense", "project_splats"])
@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize(
    "options", [{}, {"antialias": True, "normals": True}, {"moments": torch.bfloat16}], ids=["", "all", "bfloat16"]
)
def test_step_equals_that_of_the_cpu(form: str, degree: int, options: dict[str, Any], host_gpu: HostGpu) -> None:
    options = options | {"degree": degree, "rates": replace(RATES, opacity_pull=0.02, scale_pull=0.01)}
    scene = random_gaussians(300)
    wanted = on_cpu(scene, **options)
    with host_gpu(guard=True):
        got = train(splat_update, getattr(splat_project, form), scene, **options)
    assert_same(got, wanted)
    assert torch.equal(got.statistics.seen, wanted.statistics.seen)
    unseen = got.statistics.seen == 0
    assert 0 < int(unseen.sum()) < 300
    for name, value in got.gaussians.parameters().items():
        assert torch.equal(value[unseen], scene.parameters()[name][unseen]), name
        used = 3 * ((degree + 1) ** 2 - 1)
        if name == "sh_rest":  # what the degree does not use is not read, nor moved
            assert torch.equal(value.flatten(1)[:, used:], scene.sh_rest.flatten(1)[:, used:])


@pytest.mark.parametrize("form", ["project_splats_dense", "project_splats"])
@pytest.mark.parametrize("count", [0, 1, 257])
def test_any_number_of_splats(form: str, count: int, host_gpu: HostGpu) -> None:
    scene = random_gaussians(count, sh_degree=2)
    with host_gpu(guard=True):
        got = train(splat_update, getattr(splat_project, form), scene, degree=2)
    assert_same(got, on_cpu(scene, degree=2))


def test_a_rate_of_zero_leaves_parameter_and_moments_alone(host_gpu: HostGpu) -> None:
    scene = random_gaussians(100)
    before = Training.of(scene).tensors()
    for resting in ("means", "quats", "log_scales", "opacity_logits", "sh_dc", "sh_rest"):
        with host_gpu():
            got = train(
                splat_update,
                splat_project.project_splats_dense,
                scene,
                steps=1,
                rates=replace(RATES, **{resting: 0.0}),
            )
        for name, value in got.tensors().items():
            assert torch.equal(value, before[name]) == (name.split(".")[-1] == resting), (resting, name)


@pytest.mark.parametrize("moments", [torch.float32, torch.bfloat16])
def test_dense_and_compact_steps_and_all_orders_of_threads_give_the_same_bits(
    moments: torch.dtype, host_gpu: HostGpu
) -> None:
    scene, runs = random_gaussians(200), []
    scene.means[13], scene.quats[20], scene.opacity_logits[30] = torch.nan, 0.0, torch.inf
    for settings in ({}, {"schedule": "reverse"}, {"schedule": "random", "seed": 1}):
        for form in ("project_splats_dense", "project_splats"):
            with host_gpu(**settings):
                runs.append(
                    train(splat_update, getattr(splat_project, form), scene, normals=True, moments=moments).tensors()
                )
    for other in runs[1:]:
        for name, value in runs[0].items():
            assert torch.equal(value.nan_to_num(9), other[name].nan_to_num(9)), name
    others = torch.arange(200) != 13
    assert all(bool(value[others].isfinite().all()) for name, value in runs[0].items() if "opacity" not in name)


def test_moments_that_do_not_fit_are_refused(host_gpu: HostGpu) -> None:
    state = Training.of(random_gaussians(5))
    state.adam.exp_avg["quats"] = torch.zeros(4, 4)
    lens = Lens.of(a_camera().K, 40, 36, 0.01, 3, False)
    with host_gpu(), pytest.raises(ValueError, match="must agree in shape"):
        step(splat_update, splat_project.project_splats_dense, state, lens, RATES, normals=False)
