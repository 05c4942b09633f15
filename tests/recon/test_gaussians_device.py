"""Training on a device: the GPU's path on the host shim, photos kept on the device, and memory that runs out."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import pytest
import torch

from data.captures import Capture, Photo
from data.synthetic import opaque_solids
from recon.gaussians import Checkpoint, Config, train
from recon.photo_cache import PhotoCache
from scene import densify
from scene.densify import draw_by_shares
from scene.errors import Interrupted, ResourceError
from scene.ops.gpu import kernels as gpu_kernels
from scene.ops.gpu import splat_bin
from scene.ops.splat_step import SplatStep, Statistics
from scene.runs import StepReport

TINY = Config(steps=20, max_splats=300, initial_splats=200, coarse_levels=0, sh_degree=1, checkpoint_seconds=1e9)


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Capture:
    """Sphere, torus and box: 6 views of 24 pixels, 1 held out."""
    return opaque_solids(train=6, test=1, size=24, supersample=2).capture(tmp_path_factory.mktemp("solids"))


def copied(checkpoint: Checkpoint) -> Checkpoint:
    return Checkpoint({name: value.clone() for name, value in checkpoint.tensors.items()}, checkpoint.state)


@pytest.mark.parametrize("densify", ["mcmc", "absgrad"])
def test_the_gpu_path_learns_what_the_cpu_learns(
    capture: Capture, host_gpu: Callable[..., AbstractContextManager[None]], densify: str
) -> None:
    # No noise: the CPU draws it from a generator and the GPU by counting, so the two would be different runs.
    config = replace(TINY, steps=14, densify=densify, exposure="on", noise=0.0)  # type: ignore[arg-type]
    losses: list[list[StepReport]] = [[], []]
    on_cpu = train(capture, config, on_step=losses[0].append)
    with host_gpu():
        on_gpu = train(capture, config, on_step=losses[1].append)
    assert len(on_gpu) == len(on_cpu)
    assert losses[1][-1].loss == pytest.approx(losses[0][-1].loss, rel=1e-3)
    assert losses[1][-1].psnr == pytest.approx(losses[0][-1].psnr, abs=0.02)


@pytest.mark.cuda
@pytest.mark.parametrize("densify", ["mcmc", "absgrad"])
def test_a_card_learns_what_the_cpu_learns(capture: Capture, densify: str) -> None:
    config = replace(TINY, steps=200, densify=densify, exposure="on")  # type: ignore[arg-type]
    on_cpu, on_card = [], []
    train(capture, config, on_step=on_cpu.append)
    trained = train(capture, config, on_step=on_card.append, device="cuda")
    assert trained.means.device.type == "cuda"
    assert on_card[-1].loss == pytest.approx(on_cpu[-1].loss, rel=0.2)  # other noise and other draws: another run
    assert on_card[-1].psnr == pytest.approx(on_cpu[-1].psnr, abs=1.0)


@pytest.mark.cuda
def test_a_run_goes_on_between_card_and_cpu(capture: Capture) -> None:
    saved: list[Checkpoint] = []
    asked = iter(range(1, 100))
    config = replace(TINY, steps=40, exposure="on")
    with pytest.raises(Interrupted):
        train(capture, config, device="cuda", save=saved.append, stop=lambda: next(asked) == 20)
    assert {value.device.type for value in saved[-1].tensors.values()} == {"cpu"}
    for device in ("cpu", "cuda"):
        assert len(train(capture, config, device=device, resume=copied(saved[-1]))) > 0


def test_a_resumed_run_on_the_gpu_path_equals_the_unbroken_one_bit_for_bit(
    capture: Capture, host_gpu: Callable[..., AbstractContextManager[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A resumed run has other room for pairs than the unbroken one; with enough of it neither drops any.
    monkeypatch.setattr(splat_bin, "SPARE", 8)
    saved: list[Checkpoint] = []
    asked = iter(range(1, 100))
    with host_gpu():
        whole = train(capture, replace(TINY, steps=8))
        with pytest.raises(Interrupted, match="stopped after 5 steps"):
            train(
                capture,
                replace(TINY, steps=8),
                save=lambda checkpoint: saved.append(copied(checkpoint)),
                stop=lambda: next(asked) == 5,
            )
        resumed = train(capture, replace(TINY, steps=8), resume=saved[-1])
    for one, other in zip(whole.parameters().values(), resumed.parameters().values()):
        assert torch.equal(one, other)


class _SmallMemory:
    """A device with room for so many splats: every forward of more fails as torch does when it cannot allocate."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, room: int, error: Exception) -> None:
        forward = SplatStep.forward

        def limited(step: SplatStep, *args: object, **named: object) -> torch.Tensor:
            if len(step.gaussians) > room:
                raise error
            return forward(step, *args, **named)  # type: ignore[arg-type]

        monkeypatch.setattr(SplatStep, "forward", limited)


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("CUDA_ERROR_OUT_OF_MEMORY: no room"),
    MemoryError(),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_out_of_memory_lowers_the_cap_and_goes_on(
    capture: Capture, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    _SmallMemory(monkeypatch, 250, error)
    saved: list[Checkpoint] = []
    said: list[str] = []
    config = replace(TINY, steps=200)
    trained = train(capture, config, save=lambda checkpoint: saved.append(copied(checkpoint)), decide=said.append)
    assert 0 < len(trained) <= 250
    assert len(said) == 1
    assert "Memory ran out" in said[0]
    assert saved[0].state["cap"] == config.max_splats  # before anything is thrown away
    assert len(saved[0].tensors["gaussians.means"]) > 250
    assert saved[-1].state["step"] == config.steps
    assert int(saved[-1].state["cap"]) < 250
    # What a run that was killed after the fall would do: it keeps the lower cap.
    again = train(capture, config, resume=Checkpoint(saved[-1].tensors, {**saved[-1].state, "step": 195}))
    assert len(again) <= 250


def test_too_little_memory_for_any_scene_saves_and_says_so(capture: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[Checkpoint] = []
    train(capture, replace(TINY, steps=20), save=lambda checkpoint: saved.append(copied(checkpoint)))
    _SmallMemory(monkeypatch, 30, torch.OutOfMemoryError("CUDA out of memory"))
    half = Checkpoint(saved[-1].tensors, {**saved[-1].state, "step": 10})
    with pytest.raises(ResourceError, match=r"out of memory.*--resume") as raised:
        train(capture, replace(TINY, steps=20), resume=half, save=lambda checkpoint: saved.append(copied(checkpoint)))
    assert raised.value.exit_code == 4
    monkeypatch.undo()
    assert len(train(capture, replace(TINY, steps=20), resume=saved[-1])) > 0  # on a machine with more memory


def test_an_error_that_is_not_of_memory_is_not_swallowed(capture: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    _SmallMemory(monkeypatch, 0, RuntimeError("a fault of ours"))
    with pytest.raises(RuntimeError, match="a fault of ours"):
        train(capture, TINY)


class _Counted:
    """A capture that counts how often each photo is fetched."""

    def __init__(self) -> None:
        self.fetched: list[tuple[int, int]] = []
        self.ahead: list[int] = []

    def photo(self, index: int, level: int = 0) -> Photo:
        self.fetched.append((index, level))
        return Photo(torch.zeros(10, 10, 3, dtype=torch.uint8), torch.zeros(10, 10, dtype=torch.uint8))

    def prefetch(self, indices: list[int], level: int = 0) -> None:
        self.ahead = list(indices)


def test_photos_cross_once_while_there_is_room_and_each_time_beyond_it() -> None:
    source = _Counted()
    cache = PhotoCache(source, torch.device("meta"), room=1000)  # type: ignore[arg-type]  # two photos of 400 bytes
    for index in (0, 1, 2, 0, 1, 2):
        assert cache.photo(index, 1).rgb.device.type == "meta"
    assert source.fetched == [(0, 1), (1, 1), (2, 1), (2, 1)]
    cache.prefetch([0, 1, 2, 3], 1)
    assert source.ahead == [2, 3]
    cache.photo(0, 0)  # a finer level: the coarse ones are let go
    cache.photo(1, 0)
    cache.photo(0, 0)
    assert source.fetched[4:] == [(0, 0), (1, 0)]
    cache.drop()
    cache.photo(0, 0)
    cache.photo(0, 0)
    assert source.fetched[6:] == [(0, 0), (0, 0)]


def test_drawing_by_shares_follows_the_chances() -> None:
    """How splats are drawn on a GPU, where torch.multinomial cannot use the CPU's generator."""
    chance = torch.tensor([1.0, 0.0, 3.0, 1e-30, 4.0], dtype=torch.float64).clamp_min(1e-12)
    drawn = draw_by_shares(chance, torch.rand(80_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    counts = torch.bincount(drawn, minlength=5).double() / len(drawn)
    torch.testing.assert_close(counts, chance / 8, atol=0.01, rtol=0)  # five standard deviations are 0.009
    ends = draw_by_shares(chance, torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64))
    assert ends.tolist() == [0, 4]


def _once(function: Callable[..., object], at: int, error: Exception) -> Callable[..., object]:
    """The same function, which fails at its `at`-th call, half of its work done or none."""
    calls = iter(range(1, 1 << 30))

    def failing(*args: object, **named: object) -> object:
        if next(calls) == at:
            raise error
        return function(*args, **named)

    return failing


NO_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
PLACES = {  # whose call, which of them fails, in a run of how many steps
    "project": (gpu_kernels, "project_splats_dense", 2, 4, NO_MEMORY),
    "bins": (gpu_kernels.SplatBins, "build", 2, 4, NO_MEMORY),
    "blend": (gpu_kernels.SplatBlend, "forward", 2, 4, NO_MEMORY),
    "loss": (gpu_kernels, "photometric_loss", 2, 4, NO_MEMORY),
    "backward": (gpu_kernels.SplatBlend, "backward", 2, 4, NO_MEMORY),
    "launch of the update": (gpu_kernels, "update_splats", 2, 4, ResourceError("the GPU's memory is full")),
    "densify": (densify, "share_opacity", 1, 20, NO_MEMORY),
    "moments": (densify.Edit, "remap", 5, 20, NO_MEMORY),
    "statistics": (Statistics, "zeros", 2, 20, NO_MEMORY),
}


@pytest.mark.parametrize("place", PLACES)
def test_memory_that_runs_out_anywhere_in_a_step_costs_splats_and_nothing_else(
    capture: Capture,
    host_gpu: Callable[..., AbstractContextManager[None]],
    monkeypatch: pytest.MonkeyPatch,
    place: str,
) -> None:
    owner, name, at, steps, error = PLACES[place]
    monkeypatch.setattr(owner, name, _once(getattr(owner, name), at, error))
    saved: list[Checkpoint] = []
    said: list[str] = []
    config = replace(TINY, steps=steps, exposure="on", max_splats=150, initial_splats=100)
    with host_gpu() if steps < 20 else nullcontext():  # densification is the same on all backends
        trained = train(capture, config, save=lambda checkpoint: saved.append(copied(checkpoint)), decide=said.append)
    assert len(said) == 1 and "training goes on with at most" in said[0]
    count = len(saved[0].tensors["gaussians.means"])
    assert 0 < len(trained) <= 0.75 * count
    assert all(bool(value.isfinite().all()) for value in trained.parameters().values())
    assert len(train(capture, config, resume=saved[0])) > 0  # what was saved on the way down is whole


def test_photos_give_way_before_splats_do(monkeypatch: pytest.MonkeyPatch) -> None:
    source = _Counted()
    cache = PhotoCache(source, torch.device("meta"), room=1000)  # type: ignore[arg-type]
    cache.photo(0, 0)
    monkeypatch.setattr(cache, "_sent", _once(cache._sent, 2, NO_MEMORY))  # on the way to the device: alpha
    assert cache.photo(1, 0).rgb.device.type == "meta"
    cache.photo(0, 0)
    assert source.fetched == [(0, 0), (1, 0), (0, 0)]  # no longer kept
    monkeypatch.setattr(cache, "_sent", _once(cache._sent, 1, RuntimeError("a fault of ours")))
    with pytest.raises(RuntimeError, match="a fault of ours"):
        cache.photo(2, 0)
