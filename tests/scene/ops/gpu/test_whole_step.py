"""A whole training step on the GPU's path, its kernels on the host shim, against the compiled CPU kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from data.synthetic import opaque_solids
from recon.evaluation import evaluate
from recon.gaussians import Config, picture, train
from scene.gaussians import Gaussians
from scene.ops import native
from scene.ops.photometric_loss import photometric_loss, photometric_loss_and_grad
from scene.ops.splat_step import AdamState, Rates, SplatStep
from scene.rasterize import render
from tests.scene.splats import a_camera, random_gaussians

pytestmark = pytest.mark.skipif(not native.has(torch.device("cpu")), reason="the CPU module is not compiled")

RATES = Rates(
    *(1e-3, 1e-3, 5e-3, 5e-2, 2.5e-3, 1.25e-4),  # means, quats, log_scales, opacity_logits, sh_dc, sh_rest
    opacity_pull=0.01,
    scale_pull=0.01,
)
NAMES = ("means", "quats", "log_scales", "opacity_logits", "sh_dc", "sh_rest")  # in the order of the rates
WIDTH, HEIGHT = 64, 48


@dataclass(frozen=True)
class Taken:
    """What some steps gave; images, gradients and loss are the last step's."""

    images: dict[str, Tensor]
    loss: Tensor
    v_image: Tensor
    gradients: dict[str, Tensor]
    state: dict[str, Tensor]

    def tensors(self) -> dict[str, Tensor]:
        return self.images | self.gradients | self.state | {"loss": self.loss, "v_image": self.v_image}


def take(scene: Gaussians, steps: int = 1, *, geometry: bool = False, antialias: bool = False) -> Taken:
    """Trains a copy of the scene towards a picture of noise."""
    generator = torch.Generator().manual_seed(5)
    camera = a_camera(width=WIDTH, height=HEIGHT)
    step = SplatStep(scene.clone(), AdamState.zeros(scene))
    images, gradients, loss, v_image = {}, {}, torch.empty(0), torch.empty(0)
    for _ in range(steps):
        target, background = (torch.rand(*shape, generator=generator) for shape in ((HEIGHT, WIDTH, 3), (3,)))
        image = step.forward(camera, background, sh_degree=scene.sh_degree, antialias=antialias, with_geometry=geometry)
        loss, v_image = photometric_loss_and_grad(image, target)
        v_alpha, v_depth = (1e-4 * torch.randn(HEIGHT, WIDTH, generator=generator) for _ in range(2))
        v_normal = 1e-4 * torch.randn(HEIGHT, WIDTH, 3, generator=generator)
        step.backward(v_image, v_alpha, *((v_depth, v_normal) if geometry else (None, None)))
        images = {name: plane.clone() for name, plane in vars(step.images).items() if plane is not None}
        gradients = {f"grad.{name}": value.clone() for name, value in step.gradients().items()}
        step.update(RATES)
    state = {f"param.{name}": value for name, value in step.gaussians.parameters().items()}
    state |= {f"exp_avg.{name}": value for name, value in step.adam.exp_avg.items()}
    state |= {f"exp_avg_sq.{name}": value for name, value in step.adam.exp_avg_sq.items()}
    state |= {name: value.clone() for name, value in vars(step.statistics).items()}
    return Taken(images, loss.clone(), v_image.clone(), gradients, state)


def largest(values: Tensor) -> float:
    finite = values[values.isfinite()].abs()
    return float(finite.max()) if finite.numel() else 0.0


def assert_as_large(got: Tensor, wanted: Tensor, relative: float, name: str) -> None:
    """Differences stay below `relative` of each number or of a tenth of the largest; NaN lies where NaN lies."""
    assert torch.equal(got.isnan(), wanted.isnan()), name
    scale = largest(wanted)
    torch.testing.assert_close(
        got, wanted, rtol=relative, atol=relative * 0.1 * scale + 1e-12, equal_nan=True, msg=lambda m: f"{name}: {m}"
    )


def assert_same_step(got: Taken, wanted: Taken) -> None:
    """One step from the same state: values to 1e-5, gradients to 1e-4, Adam's step where the gradient has a sign."""
    for name, plane in wanted.images.items():
        if name != "median_depth":
            assert_as_large(got.images[name], plane, 1e-5, name)
            continue
        # The median is one splat's depth: where transmittance passes a half by a rounding it is its neighbour's.
        assert float((got.images[name] != plane).float().mean()) < 0.01 or torch.allclose(got.images[name], plane)
    assert_as_large(got.loss, wanted.loss, 1e-5, "loss")
    assert_as_large(got.v_image, wanted.v_image, 1e-4, "v_image")
    for name, gradient in wanted.gradients.items():
        assert_as_large(got.gradients[name], gradient, 1e-4, name)
    assert torch.equal(got.state["seen"], wanted.state["seen"])
    for name, value in wanted.state.items():
        if not name.startswith("param."):
            assert_as_large(got.state[name], value, 2e-4 if "sq" in name else 1e-4, name)
    for name, rate in zip(NAMES, RATES.by_group()):
        average = wanted.state[f"exp_avg.{name}"].abs()
        sure = average > 1e-3 * largest(average)
        difference = (got.state[f"param.{name}"].nan_to_num() - wanted.state[f"param.{name}"].nan_to_num()).abs()
        assert bool((difference[sure] < 0.02 * rate).all()), name
        assert bool((difference[average == 0] == 0).all()), name


def a_scene(count: int = 300) -> Gaussians:
    return random_gaussians(count)


def with_means(scene: Gaussians, rows: slice, value: float) -> Gaussians:
    means = scene.means.clone()
    means[rows] = value
    return replace(scene, means=means)


def with_scales(scene: Gaussians, rows: slice, value: float) -> Gaussians:
    log_scales = scene.log_scales.clone()
    log_scales[rows] = value
    return replace(scene, log_scales=log_scales)


def behind(scene: Gaussians, rows: slice) -> Gaussians:
    means = scene.means.clone()
    means[rows] = 2 * a_camera().center - means[rows]
    return replace(scene, means=means)


SCENES: dict[str, Callable[[], Gaussians]] = {
    "usual": a_scene,
    "degree 0": lambda: random_gaussians(200, sh_degree=0),
    "empty": lambda: a_scene(0),
    "one": lambda: a_scene(1),
    "a warp and one": lambda: a_scene(33),
    "crowded": lambda: random_gaussians(1500, log_scale=-2.0),
    "small": lambda: random_gaussians(1500, log_scale=-4.5),
    "NaN means": lambda: with_means(a_scene(), slice(3, None, 17), float("nan")),
    "infinite scales": lambda: with_scales(a_scene(), slice(3, None, 17), 200.0),
    "giants": lambda: with_scales(a_scene(), slice(5, None, 31), 2.0),
    "half behind": lambda: behind(a_scene(), slice(None, None, 2)),
    "all behind": lambda: behind(a_scene(50), slice(None)),
    "far away": lambda: with_means(a_scene(40), slice(None), 1e20),
}


@pytest.mark.parametrize("name", SCENES)
def test_a_step_equals_the_cpu_kernels(host_gpu, name: str) -> None:
    scene = SCENES[name]()
    wanted = take(scene)
    with host_gpu():
        got = take(scene)
    assert_same_step(got, wanted)


@pytest.mark.parametrize("antialias", [False, True])
def test_a_step_with_geometry_equals_the_cpu_kernels(host_gpu, antialias: bool) -> None:
    scene = a_scene()
    wanted = take(scene, geometry=True, antialias=antialias)
    with host_gpu():
        got = take(scene, geometry=True, antialias=antialias)
    assert {"depth", "normal", "median_depth"} <= set(got.images)
    assert_same_step(got, wanted)


@pytest.mark.parametrize("geometry", [False, True])
def test_the_order_of_threads_and_blocks_changes_no_bit(host_gpu, geometry: bool) -> None:
    scene, taken = a_scene(), []
    for settings in ({}, {"schedule": "reverse"}, {"schedule": "random", "seed": 1}, {"schedule": "random", "seed": 2}):
        with host_gpu(**settings):
            taken.append(take(scene, 2, geometry=geometry).tensors())
    for other in taken[1:]:
        for name, tensor in taken[0].items():
            assert torch.equal(tensor, other[name]), name


def test_ten_steps_stay_close(host_gpu) -> None:
    scene = a_scene()
    wanted = take(scene, 10)
    with host_gpu():
        got = take(scene, 10)
    torch.testing.assert_close(got.loss, wanted.loss, rtol=1e-4, atol=0)
    for name, before in scene.parameters().items():
        after, other = wanted.state[f"param.{name}"], got.state[f"param.{name}"]
        moved = float((after - before).square().mean().sqrt())
        apart = float((after - other).square().mean().sqrt())
        # Where a gradient is mere rounding its sign is chance, and Adam steps by the full rate all the same.
        assert apart < 0.02 * moved, (name, apart, moved)


def test_replacing_the_splats_makes_room_for_more(host_gpu) -> None:
    few, many = a_scene(20), a_scene(400)
    target = torch.rand(HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(5))
    camera = a_camera(width=WIDTH, height=HEIGHT)
    images = []
    for scenes in ([few, many], [many]):
        with host_gpu():
            step = SplatStep(scenes[0].clone(), AdamState.zeros(scenes[0]))
            for scene in scenes:
                step.replace(scene.clone(), AdamState.zeros(scene))
                image = step.forward(camera, torch.zeros(3), sh_degree=3)
                step.backward(photometric_loss_and_grad(image, target)[1])
                images.append(image.clone())
                step.update(RATES)
    assert torch.equal(images[1], images[2])


def test_splats_that_outgrow_the_room_are_left_out_and_then_drawn(host_gpu) -> None:
    scene, camera, black = random_gaussians(200, log_scale=-4.5), a_camera(width=WIDTH, height=HEIGHT), torch.zeros(3)
    v_image = torch.rand(HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(5))
    grown = replace(scene, log_scales=scene.log_scales + 3)
    wanted = SplatStep(grown, AdamState.zeros(grown)).forward(camera, black, sh_degree=3)
    with host_gpu():
        step = SplatStep(scene.clone(), AdamState.zeros(scene))
        step.forward(camera, black, sh_degree=3)
        step.gaussians.log_scales.copy_(grown.log_scales)
        short = step.forward(camera, black, sh_degree=3).clone()
        step.backward(v_image)  # nothing is written outside, and all that comes out is a number
        assert all(bool(value.isfinite().all()) for value in step.gradients().values())
        assert bool(short.isfinite().all()) and float(short.sum()) < 0.9 * float(wanted.sum())
        images = [step.forward(camera, black, sh_degree=3).clone() for _ in range(3)]
    assert_as_large(images[-1], wanted, 1e-5, "image")


@pytest.mark.parametrize("schedule", ["forward", "random"])
def test_the_autograd_ops_equal_the_cpu_kernels(host_gpu, schedule: str) -> None:
    def gradients() -> tuple[Tensor, dict[str, Tensor]]:
        leaves = {name: value.clone().requires_grad_() for name, value in a_scene().parameters().items()}
        camera = a_camera(width=WIDTH, height=HEIGHT)
        target = torch.rand(HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(5))
        drawn = render(Gaussians(**leaves), camera, background=torch.tensor([0.2, 0.5, 0.9]))
        photometric_loss(drawn.rgb, target).backward()
        return drawn.rgb.detach(), {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}

    wanted_image, wanted = gradients()
    with host_gpu(schedule=schedule):
        image, got = gradients()
    assert_as_large(image, wanted_image, 1e-5, "image")
    assert set(wanted) == set(NAMES)
    for name, gradient in wanted.items():
        assert_as_large(got[name], gradient, 1e-4, name)


@pytest.mark.slow
def test_a_short_training_gives_the_same_bits_under_any_schedule(host_gpu, tmp_path: Path) -> None:
    capture = opaque_solids(train=6, test=2, size=32, supersample=2).capture(tmp_path)
    config = Config(steps=16, max_splats=400, initial_splats=200, coarse_levels=1, checkpoint_seconds=1e9)
    on_cpu = train(capture, config)
    outcomes = []
    for schedule in ("forward", "reverse"):
        with host_gpu(schedule=schedule):
            outcomes.append(train(capture, config))
    first, second = outcomes
    assert len(first) > 200  # it grew
    for a, b in zip(first.parameters().values(), second.parameters().values()):
        assert torch.equal(a, b)

    def psnr(gaussians: Gaussians) -> float:
        scores = evaluate(lambda camera, back: picture(gaussians, camera, back, config), capture, exposure=False)
        return float(torch.tensor([score.psnr for score in scores]).mean())

    # Refinement draws by opacity, where roundings decide: the two trainings are alike, not equal.
    assert psnr(first) == pytest.approx(psnr(on_cpu), abs=0.7)
