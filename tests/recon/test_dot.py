"""DOT on FX-A: training raises what was baked, the octree shrinks without loss, and a stopped run goes on."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data.captures import Capture
from data.synthetic import Fixture, soft_solids
from recon import dot
from recon.dot_state import Trainer
from recon.evaluation import evaluate
from recon.photo_cache import PhotoCache
from scene.errors import InputError, Interrupted
from scene.octree import Octree
from scene.octree_baking import bake
from scene.octree_step import OctreeStep
from scene.ops import native, octree_render
from scene.ops.octree_render import LEAST_SIGMA, VIEWED, Rays
from scene.runs import StepReport
from tests.scene.octrees import soft_field

needs_kernels = pytest.mark.skipif(not native.has(torch.device("cpu")), reason="the CPU module is not compiled")
TINY = dot.Config(grid_steps=40, rays=512, voxels=20**3, level=4, epochs=5, checkpoint_seconds=0.0)


@pytest.fixture(scope="module")
def fixture() -> Fixture:
    return soft_solids(train=24, test=4, size=80)


@pytest.fixture(scope="module")
def capture(fixture: Fixture, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Capture]:
    with fixture.capture(tmp_path_factory.mktemp("soft")) as found:
        yield found


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Capture]:
    with soft_solids(train=6, test=2, size=32).capture(tmp_path_factory.mktemp("small")) as found:
        yield found


def score(octree: Octree, capture: Capture, config: dot.Config) -> float:
    scores = evaluate(lambda camera, back: dot.picture(octree, camera, back, config), capture, exposure=False)
    found = [one.psnr for one in scores]
    return sum(found) / len(found)


def trained(octree: Octree, capture: Capture, config: dot.Config) -> Octree:
    """The second half of `dot.train`, from a given octree."""
    photos = PhotoCache(capture, torch.device("cpu"))
    queue, generator = torch.empty(0, dtype=torch.int64), torch.Generator().manual_seed(0)
    trainer = Trainer(capture, config, photos, OctreeStep(octree), generator, queue, len(octree))
    return dot.train_octree(trainer)


def leaves_met(octree: Octree, capture: Capture) -> int:
    """How many leaves all rays of a frame go through: what its time follows, on a busy machine too."""
    camera = capture.views[capture.test[0]].camera
    assert camera is not None
    return len(octree_render._walk(octree.sigmas, octree.index, Rays(camera=camera), VIEWED, LEAST_SIGMA).rows)


@needs_kernels
def test_training_gains_a_decibel_and_dot_loses_leaves_but_no_quality(fixture: Fixture, capture: Capture) -> None:
    """T7 at small size."""
    cameras = [shown.camera.to(dtype=torch.float32) for shown in fixture.train]
    baked = bake(soft_field(fixture), torch.full((3,), -1.05), torch.full((3,), 1.05), 6, cameras)
    # FX-A is fog all through: a distortion loss would thin it, and it has no surface for finer leaves.
    config = dot.Config(variant="pot", level=6, epochs=20, distortion=0.003, split=0.003)
    static = trained(baked, capture, config)
    dynamic = trained(baked, capture, replace(config, variant="dot"))
    before, fixed, changed = (score(octree, capture, config) for octree in (baked, static, dynamic))
    assert fixed >= before + 1
    assert len(dynamic) <= 0.6 * len(static)
    assert changed >= fixed - 0.1
    assert leaves_met(dynamic, capture) <= 0.85 * leaves_met(static, capture)


@needs_kernels
def test_from_photos_to_an_octree_file(small: Capture, tmp_path: Path) -> None:
    reports: list[StepReport] = []
    octree = dot.train(small, TINY, on_step=reports.append)
    leaves, numbers = dot.counts(octree)
    assert leaves > 50 and numbers == 28 * leaves
    assert reports[-1].step == reports[-1].steps == 40 + 5 * 6 and reports[-1].splats == leaves
    dot.save_scene(tmp_path / dot.SCENE_FILE, octree)
    again = dot.load_scene(tmp_path / dot.SCENE_FILE)
    assert score(again, small, TINY) == pytest.approx(score(octree, small, TINY), abs=0.05)
    camera = small.views[0].camera
    assert camera is not None
    frame = dot.surface_frame(octree, camera, TINY)
    assert frame.alpha is not None and frame.depth.shape == (32, 32)
    assert bool(((frame.depth > 0) == (frame.alpha > 0.5)).float().mean() > 0.98)


@needs_kernels
@pytest.mark.parametrize("after", [20, 55])  # in the grid, in the octree
def test_a_resumed_run_equals_the_unbroken_one_to_the_bit(after: int, small: Capture) -> None:
    unbroken = dot.train(small, TINY)
    saved: list[dot.Checkpoint] = []
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked == after

    with pytest.raises(Interrupted):
        dot.train(small, TINY, save=lambda one: saved.append(copied(one)), stop=stop)
    assert saved[-1].state["stage"] == ("grid" if after < 40 else "octree")
    camera = small.views[0].camera
    assert camera is not None
    shown = dot.live(saved[-1], TINY)(camera)  # either can be looked at
    assert shown.alpha is not None and 1e-4 < float(shown.alpha.max()) <= 1  # of a grid after 20 steps, thin fog
    resumed = dot.train(small, TINY, resume=saved[-1])
    for name in ("sigmas", "sh_coeffs"):
        assert torch.equal(getattr(resumed, name), getattr(unbroken, name)), name
    assert torch.equal(resumed.index.codes, unbroken.index.codes)


def copied(checkpoint: dot.Checkpoint) -> dot.Checkpoint:
    return dot.Checkpoint({name: value.clone() for name, value in checkpoint.tensors.items()}, dict(checkpoint.state))


@needs_kernels
def test_a_time_limit_ends_a_run(small: Capture) -> None:
    began = time.monotonic()
    octree = dot.train(small, replace(TINY, epochs=100_000), max_seconds=6)
    assert len(octree) > 0 and time.monotonic() - began < 60


def test_a_checkpoint_of_another_length_is_refused(small: Capture) -> None:
    checkpoint = dot.Checkpoint({}, {"stage": "octree", "steps": 1, "step": 0, "seconds": 0.0})
    with pytest.raises(InputError, match="steps"):
        dot.train(small, TINY, resume=checkpoint)


@pytest.mark.parametrize("change", [{"epochs": -1}, {"level": 99}, {"sh_degree": 4}, {"prune": math.nan}])
def test_options_out_of_range_are_refused(change: dict) -> None:
    with pytest.raises(InputError, match="must lie between"):
        dot.Config(**change)
