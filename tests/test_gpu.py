"""What runs on an NVIDIA GPU agrees with the CPU kernels and the plain-torch reference, at any size (`make gpu-check`).

Each test of one op is also run on the host shim, so that the tests themselves are known to work without a card.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import scenes
from benchmarks.gpu import OurStep, on_device
from data.captures import Capture, open_capture
from recon.gaussians import Config, train
from scene.cameras import Camera
from scene.gaussians import Gaussians
from scene.metrics import psnr
from scene.ops import native
from scene.ops.photometric_loss import photometric_loss_and_grad
from scene.ops.splat_step import AdamState, SplatStep
from scene.rasterize import render
from tests.apps.tiny import write_tiny
from tests.gpu_ops import OPS, RATES, drawn, moved
from tests.scene.splats import a_camera, random_gaussians

cuda = pytest.mark.cuda
CPU, GPU = torch.device("cpu"), torch.device("cuda")

# Relative Euclidean distances. Sums of float32 in another order; fast divisions; and after Adam, whose first steps are
# as long for a gradient of 1e-9 as for one of 1, the signs of gradients that are zero but for rounding.
VALUE, GRADIENT, UPDATED = 1e-5, 1e-4, 2e-3
LOOSER = {"texture": 2e-3, "step": UPDATED}  # texture: bytes are rounded from floats


@pytest.fixture
def kernels_of_the_gpu() -> None:
    """A card whose kernels cannot run must fail these tests, not pass them on the reference."""
    from scene.ops.gpu import runtime

    assert native.backend(GPU) == "cuda", runtime.usable()[1]


def distance(got: Tensor, wanted: Tensor) -> float:
    """Relative Euclidean distance; infinite where shapes differ or one has NaN where the other has none."""
    if got.shape != wanted.shape:
        return math.inf
    got, wanted = got.detach().cpu().double(), wanted.detach().cpu().double()
    found = float((got - wanted).norm() / wanted.norm().clamp_min(1e-12))
    return math.inf if math.isnan(found) else found


def assert_same(op: str, got: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        if value.is_floating_point():
            limit = GRADIENT if name.startswith("v_") else LOOSER.get(op, VALUE)
            assert distance(got[name], value) <= limit, f"{op}.{name}: {distance(got[name], value):.1e}"
        else:
            same = (got[name].cpu() == value).float().mean() if got[name].shape == value.shape else torch.zeros(())
            assert float(same) > 0.995, f"{op}.{name}: {float(same):.4f} agree"  # the rest lies on an edge


@pytest.mark.parametrize("oracle", ["cpu", "reference"])
@pytest.mark.parametrize("op", OPS)
def test_ops_on_the_shim_agree(
    op: str, oracle: str, host_gpu: Callable[..., AbstractContextManager[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with host_gpu():
        got = OPS[op](CPU)
    assert_same(op, got, _oracle(op, oracle, monkeypatch))


@cuda
@pytest.mark.parametrize("oracle", ["cpu", "reference"])
@pytest.mark.parametrize("op", OPS)
def test_ops_on_the_gpu_agree(op: str, oracle: str, kernels_of_the_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    got = OPS[op](GPU)
    assert_same(op, got, _oracle(op, oracle, monkeypatch))


def _oracle(op: str, name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    if name == "cpu" and not native.has(CPU):
        pytest.skip("the CPU module is not compiled")
    with monkeypatch.context() as patch:
        if name == "reference":
            patch.setenv("MAQUETTE_BACKEND", "reference")
        return OPS[op](CPU)


def one_step(step: SplatStep, camera: Camera, photo: Tensor, background: Tensor, v_image: Tensor) -> Tensor:
    """An ordinary training step; nothing in it may wait for the device."""
    image = step.forward(camera, background, sh_degree=3)
    photometric_loss_and_grad(image, photo, v_image=v_image)
    step.backward(v_image)
    step.update(RATES)
    return image


@contextmanager
def training(gaussians: Gaussians, camera: Camera, device: torch.device = GPU) -> Iterator[Callable[[], Tensor]]:
    """A function that takes one step of a training on the device."""
    gaussians = moved(gaussians, device)  # the camera stays on the CPU, or every step would wait to read it
    photo = (drawn(camera.height, camera.width, 3) * 255).to(device, torch.uint8)
    step, background = SplatStep(gaussians, AdamState.zeros(gaussians)), torch.zeros(3, device=device)
    v_image = torch.empty(camera.height, camera.width, 3, device=device)
    yield lambda: one_step(step, camera, photo, background, v_image)
    for name, value in step.gaussians.parameters().items():
        assert bool(torch.isfinite(value).all()), name


EXTREME: dict[str, Callable[[Gaussians], Gaussians]] = {
    "empty": lambda g: g.select(torch.zeros(len(g), dtype=torch.bool)),
    "one": lambda g: g.select(torch.arange(len(g)) == 3),
    "all behind the camera": lambda g: _with(g, means=g.means + torch.tensor([0.0, -100.0, 0.0])),
    "enormous": lambda g: _with(g, log_scales=g.log_scales + 8),
    "tiny": lambda g: _with(g, log_scales=g.log_scales - 20),
    "needles": lambda g: _with(g, log_scales=g.log_scales + torch.tensor([6.0, -8.0, -8.0])),
    "transparent": lambda g: _with(g, opacity_logits=g.opacity_logits - 30),
    "opaque": lambda g: _with(g, opacity_logits=g.opacity_logits + 30),
    "at one point": lambda g: _with(g, means=torch.zeros_like(g.means)),
    "at the camera": lambda g: _with(g, means=a_camera().center + 0.01 * g.means),
}


def _with(gaussians: Gaussians, **changed: Tensor) -> Gaussians:
    return Gaussians(**(gaussians.parameters() | changed))


def check_extreme(name: str, device: torch.device, wanted: dict[str, Tensor]) -> None:
    scene, camera = EXTREME[name](random_gaussians(300)), a_camera()
    got = vars(render(moved(scene, device), camera.to(device=device), with_geometry=True))
    for part in ("rgb", "alpha"):
        apart = (got[part].cpu() - wanted[part]).abs().flatten()
        # A splat at the edge of being drawn (1/255) may fall either way, or the last one before light runs out.
        assert float(apart.sort().values[int(0.999 * (len(apart) - 1))]) < 1e-4, part
        assert float(apart.max()) < 0.02, part
    with training(scene, camera, device) as step:
        for _ in range(3):
            assert bool(torch.isfinite(step()).all())


def on_the_cpu(name: str) -> dict[str, Tensor]:
    return vars(render(EXTREME[name](random_gaussians(300)), a_camera(), with_geometry=True))


@cuda
@pytest.mark.parametrize("name", EXTREME)
def test_extreme_scenes_look_as_on_the_cpu(name: str, kernels_of_the_gpu: None) -> None:
    check_extreme(name, GPU, on_the_cpu(name))


@pytest.mark.parametrize("name", EXTREME)
def test_extreme_scenes_on_the_shim(name: str, host_gpu: Callable[..., AbstractContextManager[None]]) -> None:
    wanted = on_the_cpu(name)
    with host_gpu():
        check_extreme(name, CPU, wanted)


@cuda
def test_ten_million_splats(kernels_of_the_gpu: None) -> None:
    if torch.cuda.mem_get_info()[0] < 24 << 30:
        pytest.skip("needs 24 GB of free GPU memory")
    scene = on_device(scenes.synthetic(10_000_000, 1280, 720, sigma_px=0.7), GPU)
    ours = OurStep(scene)
    for _ in range(2):
        ours.run()
    image = ours.step.images.rgb
    assert bool(torch.isfinite(image).all()) and float(image.mean()) > 0.05
    assert all(bool(torch.isfinite(value).all()) for value in ours.step.gaussians.parameters().values())


@cuda
def test_a_picture_of_8_megapixels(kernels_of_the_gpu: None) -> None:
    scene = scenes.synthetic(20_000, 3840, 2160, sigma_px=12.0)
    got = render(moved(scene.gaussians, GPU), scene.camera.to(device=GPU)).rgb.cpu()
    apart = (got - render(scene.gaussians, scene.camera).rgb).abs().amax(-1).flatten()
    assert float((apart > 1e-4).float().mean()) < 1e-4
    with training(scene.gaussians, scene.camera) as step:
        assert tuple(step().shape) == (2160, 3840, 3)


def alone(seed: int, device: torch.device = GPU) -> Tensor:
    """The last image of a few steps of a training."""
    with training(random_gaussians(2000, seed=seed), a_camera(width=320, height=240), device) as step:
        for _ in range(4):
            step()
        return step().clone()


@cuda
def test_two_streams_do_not_disturb_each_other(kernels_of_the_gpu: None) -> None:
    wanted = [alone(seed) for seed in (1, 2)]
    torch.cuda.synchronize()
    camera = a_camera(width=320, height=240)
    streams = [torch.cuda.Stream() for _ in wanted]
    with (
        training(random_gaussians(2000, seed=1), camera) as one,
        training(random_gaussians(2000, seed=2), camera) as two,
    ):
        torch.cuda.synchronize()
        images = [torch.empty(0)] * 2
        for _ in range(5):
            for k, (stream, step) in enumerate(zip(streams, (one, two), strict=True)):
                with torch.cuda.stream(stream):
                    images[k] = step()
        torch.cuda.synchronize()
        assert all(torch.equal(got, image) for got, image in zip(images, wanted, strict=True))


@cuda
def test_other_cards_than_the_first(kernels_of_the_gpu: None) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    other = torch.device("cuda", 1)
    assert native.backend(other) == "cuda"
    got, wanted = alone(1, other), alone(1)
    assert got.device == other and torch.cuda.current_device() == 0
    assert distance(got, wanted) < VALUE


@cuda
def test_steps_never_wait_for_the_gpu(kernels_of_the_gpu: None) -> None:
    with training(random_gaussians(2000), a_camera(width=320, height=240)) as step:
        for _ in range(5):
            step()  # buffers find their size
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(50):
                step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()


@cuda
def test_memory_does_not_grow(kernels_of_the_gpu: None) -> None:
    with training(random_gaussians(5000), a_camera(width=320, height=240)) as step:
        for _ in range(20):
            step()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        for _ in range(200):
            step()
        torch.cuda.synchronize()
        assert torch.cuda.memory_allocated() <= before + (1 << 20)


@cuda
def test_the_same_training_twice_is_equal_to_the_bit(kernels_of_the_gpu: None) -> None:
    assert torch.equal(alone(4), alone(4))


@cuda
def test_float64_falls_back_to_the_reference(kernels_of_the_gpu: None) -> None:
    assert native.backend(GPU, torch.float64) == "reference"
    scene, camera = random_gaussians(40, dtype=torch.float64), a_camera(dtype=torch.float64)
    got = render(moved(scene, GPU), camera.to(device=GPU)).rgb
    assert got.dtype == torch.float64
    assert distance(got, render(scene, camera).rgb) < 1e-9


@cuda
def test_training_on_the_gpu_is_as_good_as_on_the_cpu(tmp_path: Path, kernels_of_the_gpu: None) -> None:
    with open_capture(write_tiny(tmp_path / "tiny")) as capture:
        config = Config(steps=400, max_splats=800, initial_splats=500, checkpoint_seconds=math.inf)
        quality = {device: _held_out(train(capture, config, device=device), capture) for device in (CPU, GPU)}
    assert quality[GPU] > 20
    assert quality[GPU] > quality[CPU] - 0.7  # dB; other random numbers, and a tiny scene


def _held_out(gaussians: Gaussians, capture: Capture) -> float:
    scores = []
    for index in capture.test:
        photo, camera = capture.photo(index), capture.views[index].camera
        assert photo.alpha is not None and camera is not None
        share = photo.alpha[..., None].float() / 255
        truth = photo.rgb.float() / 255 * share + (1 - share)
        white = torch.ones(3, device=gaussians.means.device)
        scores.append(float(psnr(render(gaussians, camera, background=white).rgb.clamp(0, 1).cpu(), truth)))
    return sum(scores) / len(scores)
