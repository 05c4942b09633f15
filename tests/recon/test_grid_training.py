"""Training of voxel grids: the same bits from a seed, resumed or not, whatever the threads; a budget that is kept."""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from data.captures import Capture
from recon import grid_stages, grid_training
from recon.grid_recipes import RECIPES, shift_of
from recon.grid_stages import CLEAR_ALPHA, START_ALPHA, Trainer, fresh, to_fine
from recon.grid_state import restored
from recon.grid_training import Checkpoint, GridOptions, train_grid
from recon.ray_pool import RayPool
from scene.checkpoints import read_checkpoint, write_checkpoint
from scene.errors import InputError, Interrupted
from scene.grid_step import GridStep
from scene.ops import native
from scene.ops.grid_march import hits, pack_bits
from scene.ops.trilinear import trilinear
from scene.runs import StepReport
from scene.voxel_grid import VoxelGrid
from tests.recon.grid_captures import cut_out, one_thread, opaque_capture, painted, room_fixture, wall_fixture
from tests.scene.voxel_grids import places

CPU = torch.device("cpu")
TINY = GridOptions(
    steps=60,
    rays=128,
    voxels=14**3,
    coarse_voxels=12**3,
    coarse_share=0.3,
    channels=6,
    head="mlp",
    width=64,
    scene="auto",
    checkpoint_seconds=1e9,
    seed=0,
)
SMALL = {"bounded": TINY, "forward": replace(TINY, voxels=128 * 10**2), "unbounded": replace(TINY, voxels=20**3)}


@pytest.fixture(autouse=True, scope="module")
def quietly() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def captures(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Capture]:
    """One of each kind of scene, of 16 pixels."""
    return {
        "bounded": cut_out(tmp_path_factory.mktemp("solids"), train=6, test=1, size=16),
        "forward": opaque_capture(wall_fixture(size=16, columns=3, rows=2), points=200),
        "unbounded": opaque_capture(room_fixture(size=16, count=9), points=200),
    }


@pytest.fixture(scope="module")
def capture(captures: Mapping[str, Capture]) -> Capture:
    return captures["bounded"]


@pytest.fixture(scope="module")
def whole(captures: Mapping[str, Capture]) -> Callable[[str], VoxelGrid]:
    """The unbroken run of each kind."""
    return functools.cache(lambda kind: train_grid(captures[kind], SMALL[kind]))


def tensors_of(grid: VoxelGrid) -> list[Tensor]:
    return [grid.density, grid.shifts, grid.occupied, grid.rows, grid.features, *(grid.mlp or ())]


def equal(first: VoxelGrid, second: VoxelGrid) -> bool:
    pairs = zip(tensors_of(first), tensors_of(second), strict=True)
    return first.frame.size == second.frame.size and all(torch.equal(a, b) for a, b in pairs)


def stopped_at(step: int, capture: Capture, options: GridOptions) -> Checkpoint:
    """What a training that is stopped after so many steps saves."""
    saved: list[Checkpoint] = []

    def keep(checkpoint: Checkpoint) -> None:
        saved.append(Checkpoint({name: t.clone() for name, t in checkpoint.tensors.items()}, dict(checkpoint.state)))

    asked = iter(range(1, 10**6))
    with pytest.raises(Interrupted, match=f"after {step} steps"):
        train_grid(capture, options, save=keep, stop=lambda: next(asked) == step)
    assert len(saved) == 1 and saved[0].state["step"] == step
    return saved[0]


@pytest.mark.parametrize("kind", SMALL)
def test_same_seed_same_bits_whatever_the_threads(captures: Mapping[str, Capture], kind: str) -> None:
    if native.backend() == "reference":
        pytest.skip("the compiled kernels are not here; the reference promises no bits")
    capture, options = captures[kind], replace(SMALL[kind], steps=40)
    try:
        native.set_threads(1)
        alone = train_grid(capture, options)
        native.set_threads(3)
        together = train_grid(capture, options)
    finally:
        native.set_threads(1)
    assert alone.frame.space.kind == kind and equal(alone, together)
    assert not equal(alone, train_grid(capture, replace(options, seed=1)))


@pytest.mark.parametrize(
    ("kind", "stop_at"), [("bounded", at) for at in (1, 9, 18, 24, 47)] + [("forward", 7), ("unbounded", 7)]
)
def test_a_resumed_run_equals_the_unbroken_one_bit_for_bit(
    captures: Mapping[str, Capture], whole: Callable[[str], VoxelGrid], kind: str, stop_at: int
) -> None:
    """From the coarse and from the fine stage, before and after doublings."""
    capture, options = captures[kind], SMALL[kind]
    checkpoint = stopped_at(stop_at, capture, options)
    assert checkpoint.state["stage"] == ("coarse" if kind == "bounded" and stop_at <= 18 else "fine")
    assert checkpoint.state["size"] != list(whole(kind).frame.size) or stop_at == 47
    assert equal(train_grid(capture, options, resume=checkpoint), whole(kind))


def test_a_run_that_was_stopped_twice_equals_the_unbroken_one(
    capture: Capture, whole: Callable[[str], VoxelGrid]
) -> None:
    checkpoint = stopped_at(11, capture, TINY)
    saved: list[Checkpoint] = []
    asked = iter(range(12, 10**6))
    with pytest.raises(Interrupted):
        train_grid(capture, TINY, resume=checkpoint, save=saved.append, stop=lambda: next(asked) == 30)
    assert saved[-1].state["step"] == 30 and saved[-1].state["stage"] == "fine"
    assert equal(train_grid(capture, TINY, resume=saved[-1]), whole("bounded"))


@pytest.mark.parametrize("head", ["rgb", "sh"])
def test_other_heads_train_and_resume(capture: Capture, head: str) -> None:
    """The grids under an octree: colours, or spherical harmonics."""
    channels = {"rgb": 3, "sh": 27}[head]
    options = replace(TINY, steps=30, head=head, channels=channels)  # type: ignore[arg-type]
    unbroken = train_grid(capture, options)
    assert unbroken.head == head and unbroken.mlp is None and unbroken.features.shape[1] == channels
    assert equal(train_grid(capture, options, resume=stopped_at(20, capture, options)), unbroken)


def test_a_checkpoint_survives_its_file(
    capture: Capture, sound: Checkpoint, whole: Callable[[str], VoxelGrid], tmp_path: Path
) -> None:
    write_checkpoint(tmp_path / "latest.safetensors", sound.tensors, sound.state, 1)
    tensors, state, _ = read_checkpoint(tmp_path / "latest.safetensors")
    assert equal(train_grid(capture, TINY, resume=Checkpoint(tensors, state)), whole("bounded"))


SPOILS: dict[str, Callable[[dict[str, Any], dict[str, Any]], object]] = {
    "no density": lambda t, s: t.pop("density"),
    "a density of another grid": lambda t, s: t.update(density=t["density"][:, 1:].contiguous()),
    "a flat density": lambda t, s: t.update(density=t["density"].flatten()),
    "features for too few voxels": lambda t, s: t.update(features=t["features"][1:]),
    "features of other options": lambda t, s: t.update(
        {name: t[name][:, 1:].contiguous() for name in ("features", "features.exp_avg", "features.exp_avg_sq")}
    ),
    "occupied voxels of another grid": lambda t, s: t.update(occupied=t["occupied"][1:]),
    "entry voxels of another grid": lambda t, s: t.update(entry=t["entry"][1:]),
    "shifts of another depth": lambda t, s: t.update(shifts=t["shifts"][1:]),
    "no moments": lambda t, s: t.pop("density.exp_avg"),
    "moments of another shape": lambda t, s: t.update({"density.exp_avg_sq": t["density.exp_avg_sq"][1:]}),
    "no network": lambda t, s: t.pop("mlp.0"),
    "a network of another width": lambda t, s: t.update({"mlp.0": t["mlp.0"][1:].contiguous()}),
    "no generator": lambda t, s: t.pop("generator"),
    "a generator of another kind": lambda t, s: t.update(generator=t["generator"][:9]),
    "an unknown stage": lambda t, s: s.update(stage="middle"),
    "an unknown space": lambda t, s: s.update(space="curved"),
    "a size of two sides": lambda t, s: s.update(size=[3, 4]),
    "a box of one corner": lambda t, s: t.update(box=t["box"][:1]),
    "no rays": lambda t, s: s.update(rays=0),
    "more rays than asked for": lambda t, s: s.update(rays=10**9),
    "doublings that never were": lambda t, s: s.update(doubled=-3),
    "a step before the first": lambda t, s: s.update(step=-1),
    "steps in words": lambda t, s: s.update(adam_step="many"),
}


@pytest.fixture(scope="module")
def sound(capture: Capture) -> Checkpoint:
    return stopped_at(25, capture, TINY)


@pytest.mark.parametrize("spoil", SPOILS)
def test_a_damaged_checkpoint_is_refused(capture: Capture, sound: Checkpoint, spoil: str) -> None:
    tensors, state = dict(sound.tensors), dict(sound.state)
    SPOILS[spoil](tensors, state)
    with pytest.raises(InputError, match="checkpoint"):
        train_grid(capture, TINY, resume=Checkpoint(tensors, state))


@pytest.mark.parametrize(
    "other", [{"steps": 61}, {"channels": 9}, {"head": "sh", "channels": 27}, {"width": 128}], ids=str
)
def test_a_checkpoint_of_other_options_is_refused(capture: Capture, sound: Checkpoint, other: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="checkpoint"):
        train_grid(capture, replace(TINY, **other), resume=sound)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time that goes on by 0.01 s whenever it is looked at: about once a step."""
    ticks = itertools.count()
    monkeypatch.setattr(grid_training.time, "monotonic", lambda: 0.01 * next(ticks))


def test_a_time_budget_is_kept(capture: Capture) -> None:
    began = time.monotonic()
    train_grid(capture, replace(TINY, steps=10**6), max_seconds=3.0)
    assert 2.9 < time.monotonic() - began < 5.0  # a step takes milliseconds, on a busy machine more


@pytest.mark.usefixtures("clock")
def test_the_schedule_ends_with_the_time_budget(capture: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    take = GridStep.take

    def watched(self: GridStep, *arguments: Any, **named: Any) -> Any:
        rates.append(arguments[5].density)
        return take(self, *arguments, **named)

    monkeypatch.setattr(GridStep, "take", watched)
    monkeypatch.setattr(grid_training, "LEAST_AT_A_SIZE", 10)
    reports: list[StepReport] = []
    grid = train_grid(capture, replace(TINY, steps=10**6), max_seconds=2.0, on_step=reports.append)
    assert 100 < len(rates) < 210
    assert grid.head == "mlp" and math.prod(grid.frame.size) > 0.6 * TINY.voxels, "stages and sizes come by the clock"
    assert rates[-1] == pytest.approx(0.1 * 0.1, rel=0.1), "rates fall tenfold by the clock"
    assert reports[-1].steps == pytest.approx(reports[-1].step, rel=0.05)
    assert reports[-1].eta_s == pytest.approx(0, abs=0.1) and len(reports) >= 3


@pytest.mark.usefixtures("clock")
def test_checkpoints_come_by_the_clock(capture: Capture) -> None:
    seconds: list[float] = []
    options = replace(TINY, steps=10**6, checkpoint_seconds=0.2)
    train_grid(capture, options, max_seconds=1.5, save=lambda saved: seconds.append(float(saved.state["seconds"])))
    assert len(seconds) >= 6
    assert max(b - a for a, b in itertools.pairwise(seconds)) < 0.25


def test_reports_tell_the_stage_the_error_and_what_is_left(capture: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count(0.0, 0.6)  # a report at each step
    monkeypatch.setattr(grid_training.time, "monotonic", lambda: next(ticks))
    reports: list[StepReport] = []
    train_grid(capture, TINY, on_step=reports.append)
    assert {report.message for report in reports} == {"coarse", ""}
    assert [report.step for report in reports] == [*range(1, TINY.steps + 1), TINY.steps]
    for report in reports:
        assert report.psnr == pytest.approx(-10 * math.log10(report.loss), rel=1e-4) and report.splats > 0


def test_cut_out_photos_are_trained_coarse_to_fine_in_the_box_of_what_was_found(
    capture: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    said, voxels = list[str](), list[int]()
    trainer = fresh(capture, TINY, CPU, said.append)
    assert len(said) == 1 and "silhouettes" in said[0] and trainer.stage == "coarse"
    one_step = grid_training._one_step

    def watched(trainer: Trainer, p: float) -> None:
        voxels.append(math.prod(trainer.step.grid.frame.size))
        one_step(trainer, p)

    monkeypatch.setattr(grid_training, "_one_step", watched)
    grid = train_grid(capture, TINY, decide=said.append)
    assert said[1:] == said[:1]  # and nothing else
    outer, inner = trainer.scene.box, grid.frame.box
    assert bool((inner[0] >= outer[0] - 0.2).all()) and bool((inner[1] <= outer[1] + 0.2).all())
    sizes = [n for n, _ in itertools.groupby(voxels)]
    assert len(sizes) == 4  # coarse, a quarter of the final grid, and two doublings of that
    assert all(1.3 < b / a < 3 for a, b in itertools.pairwise(sizes[1:]))  # sides are whole numbers
    assert 0.6 * TINY.voxels < sizes[-1] <= TINY.voxels


@pytest.mark.parametrize("kind", ["bounded", "unbounded"])
def test_b_falls_with_each_doubling_where_the_recipe_says_so(whole: Callable[[str], VoxelGrid], kind: str) -> None:
    """DVGO's code: by 1, where steps become shorter; the interval ends at the step's own length."""
    recipe, grid = RECIPES[kind], whole(kind)
    wanted = shift_of(recipe.alpha_init) + len(recipe.doublings) * recipe.shift_by
    torch.testing.assert_close(grid.shifts, torch.full_like(grid.shifts, wanted), rtol=0, atol=1e-5)
    assert RECIPES["bounded"].shift_by == -1 and grid.interval == pytest.approx(recipe.step)


def test_the_kind_of_scene_that_was_asked_for_is_taken(captures: Mapping[str, Capture]) -> None:
    said: list[str] = []
    trainer = fresh(captures["forward"], replace(TINY, scene="unbounded"), CPU, said.append)
    assert trainer.scene.kind == "unbounded" and said == []


def test_a_coarse_grid_that_finds_nothing_is_told_and_the_fine_one_looks_everywhere() -> None:
    said: list[str] = []
    capture = painted([(16, 16)] * 4, cut_out=(0, 1, 2, 3))
    options = replace(TINY, steps=20)
    with_nothing = replace(options, coarse_share=0.0)  # not a step of the coarse stage
    grid = train_grid(capture, with_nothing, decide=said.append)
    assert any("nothing solid" in sentence for sentence in said) and len(grid) > 0


def test_too_many_pixels_are_halved_and_told(capture: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        grid_stages, "RayPool", lambda capture, device: RayPool(capture, device, max_pixels=6 * 16 * 16 // 2)
    )
    said: list[str] = []
    assert fresh(capture, TINY, CPU, said.append).pool.level == 1
    assert "1/2 of their size" in said[-1]


def test_photos_without_cameras_are_refused(capture: Capture) -> None:
    blind = replace(capture, views=tuple(replace(view, camera=None) for view in capture.views))
    with pytest.raises(InputError, match="cameras"):
        train_grid(blind, TINY)


def test_every_plane_of_a_new_forward_grid_has_the_same_weight(captures: Mapping[str, Capture]) -> None:
    """DVGOv2: plane i of Z starts with an alpha of 1 / (Z - i)."""
    grid = fresh(captures["forward"], SMALL["forward"], CPU, lambda sentence: None).step.grid
    alpha = grid.alpha()[0, 0].double()
    weights = alpha * torch.cat([torch.ones(1), (1 - alpha).cumprod(0)[:-1]])
    # float32 shifts; the last plane's alpha of 1 is as near to it as they can say
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / len(weights)), rtol=1e-3, atol=0)


def test_the_fine_grid_starts_where_the_coarse_one_is_solid(capture: Capture) -> None:
    options = replace(TINY, steps=400, coarse_share=0.2, rays=256)
    trainer = restored(capture, options, CPU, stopped_at(79, capture, options))
    coarse = trainer.step.grid
    to_fine(trainer, 0.2, lambda sentence: None)
    fine = trainer.step.grid
    points = fine.frame.world_from_grid(places(fine.frame.size))
    x, y, z = (coarse.frame.grid_from_world(points) + 0.5).floor().long().clamp(min=0).unbind(-1)
    last = torch.tensor(coarse.frame.size) - 1
    of_coarse = coarse.alpha()[x.clamp(max=last[0]), y.clamp(max=last[1]), z.clamp(max=last[2])]
    alpha, solid = fine.alpha().flatten(), of_coarse > 0.5
    clear = 1 - (1 - CLEAR_ALPHA) ** fine.interval
    assert 0.01 < float(solid.float().mean()) < 0.9
    assert float(alpha[solid].median()) > 0.4 and float(alpha.max()) < START_ALPHA + 0.001
    assert float(alpha.min()) == pytest.approx(clear, rel=1e-3)
    assert fine.mlp is not None and not fine.mlp.w3.any() and not fine.mlp.b3.any()  # the network changes nothing yet
    live = fine.rows.flatten() >= 0
    wanted = trilinear(coarse.features, coarse.rows, coarse.frame.grid_from_world(points[live]))
    torch.testing.assert_close(fine.features[:, :3], wanted)
    assert float(wanted.abs().max()) > 0.5 and not fine.features[:, 3:].any()
    pool, whole = trainer.pool, 6 * 16 * 16
    assert len(pool) < whole and int(trainer.entry.sum()) < trainer.entry.numel()
    origins, directions = pool.rays(pool.draw(500, trainer.generator))
    spans = fine.frame.spans(origins, directions, fine.step, fine.near)
    assert bool(hits(pack_bits(trainer.entry), fine.frame.size[2], spans).all()), "rays that meet nothing are not drawn"


def test_rays_of_a_step_follow_what_they_cost_and_a_resumed_run_knows(
    capture: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grid_training, "LEAST_RAYS", 50)
    options = replace(TINY, rays=400, samples=2000)
    taken: list[tuple[int, int]] = []
    one_step = grid_training._one_step

    def watched(trainer: Trainer, p: float) -> None:
        rays = trainer.rays
        one_step(trainer, p)
        taken.append((rays, trainer.step.samples))

    with monkeypatch.context() as patch:
        patch.setattr(grid_training, "_one_step", watched)
        unbroken = train_grid(capture, options)
    assert taken[0][0] == 400 and 50 <= min(rays for rays, _ in taken) < 300
    costs = [samples for rays, samples in taken[1:] if 50 < rays < 400]
    assert len(costs) > 20 and sum(costs) / len(costs) == pytest.approx(2000, rel=0.25)  # the next rays are others
    assert equal(train_grid(capture, options, resume=stopped_at(35, capture, options)), unbroken)
