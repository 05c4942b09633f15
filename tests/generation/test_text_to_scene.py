"""Words to a scene, end to end: with the exact prior it is known where a distillation has to arrive."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from generation.bank_prior import BankConfig, BankPrior
from generation.distillation import BANK_GUIDANCE, Config, Stage, Step
from generation.guidance import PRESETS
from generation.guidance_schedules import Times
from generation.object_render import render_objects
from generation.scenes import GridConfig, GridTarget, HashConfig, HashTarget, Rings, SplatConfig, SplatTarget, Target
from generation.shapes import ObjectModel
from generation.text_to_scene import distil_scene
from generation.views import orbit_camera
from scene.depth_fusion import DepthFrame, back_project
from scene.mesh_distance import point_to_mesh, sample_surface
from scene.mesh_extraction import MeshConfig
from scene.ops import native
from scene.ops.hash_encoding import HashLevels

needs_kernels = pytest.mark.skipif(not native.has(torch.device("cpu")), reason="the CPU module is not compiled")
RING = Rings(3, (15.0,))
SMALL = BankConfig(members=3, mixed=3, size=16, samples=1)
TINY = Config(steps=4, views=RING, stages=(Stage(0.0, 16, 12),))


def around(size: int, elevation: float = 15.0, count: int = 12):
    return [orbit_camera(360 * i / count, elevation, 40.0, 2.7, size) for i in range(count)]


def likeness(prior: BankPrior, prompt: str, target: Target, size: int) -> Tensor:
    with torch.no_grad():
        return prior.likeness(prompt, target.render(around(size), torch.ones(3)).rgb, around(size))


def visible_points(model: ObjectModel) -> Tensor:
    """Points on the object's outside, of every pixel of 36 views."""
    cameras = [c for e in (-25.0, 15.0, 50.0) for c in around(48, e)]
    depth = render_objects([model], [cameras]).depth[0, :, 0]
    blank = torch.zeros(48, 48, 3, dtype=torch.uint8)
    return torch.cat([back_project(DepthFrame(c, d, blank), (d > 0).nonzero()) for c, d in zip(cameras, depth)])


@needs_kernels
@pytest.mark.parametrize(
    "prompt", ["a person with red shirt and blue trousers", "a house with white walls and red roof"]
)
def test_words_become_one_of_the_objects_that_they_fit(prompt: str) -> None:
    prior, target = BankPrior([prompt], BankConfig(members=8)), GridTarget()
    assert distil_scene(prompt, prior, target, Config(views=RING, steps=120)) == 120
    found = likeness(prior, prompt, target, 32)
    k = int(found.argmax())
    assert float(found[k]) >= 28 and float(found[k]) > float(found.mean()) + 3, found
    model = prior.members(prompt)[k]
    mesh = target.mesh([c for e in (-25.0, 15.0, 50.0) for c in around(48, e, 8)], MeshConfig(voxels=48, faces=20_000))
    on_mesh, _ = sample_surface(mesh, 4000, np.random.default_rng(0))
    accuracy = model.distance(torch.from_numpy(on_mesh).float()).abs().mean()
    completeness = point_to_mesh(visible_points(model).double().numpy(), mesh).mean()
    assert 0.5 * (float(accuracy) + float(completeness)) <= 1.2 * 1.5 / 31  # voxels


def test_the_same_seed_makes_the_same_scene() -> None:
    def made(seed: int) -> Tensor:
        target = GridTarget(GridConfig(voxels=12))
        distil_scene("a yellow mug", BankPrior(["a yellow mug"], SMALL), target, replace(TINY, seed=seed))
        return target.grid.density.detach()

    first = made(0)
    assert torch.equal(made(0), first) and not torch.equal(made(1), first)


def test_every_method_changes_all_kinds_of_scenes() -> None:
    prior = BankPrior(["a yellow mug", "a green car"], SMALL)
    hashed = HashConfig(levels=HashLevels(levels=3, log2_rows=8, base=4, growth=1.6), hidden=8, samples=16, voxels=8)
    for method, preset in PRESETS.items():
        guidance = replace(preset, scale=2.0, times=Times("linear", 0.3, 0.9))
        for target in (GridTarget(GridConfig(voxels=12)), HashTarget(hashed), SplatTarget(SplatConfig(count=200))):
            before = {name: tensor.detach().clone() for name, tensor in target.parameters().items()}
            config = replace(TINY, steps=2, guidance=guidance, negative="a green car")
            distil_scene("a yellow mug", prior, target, config)
            for name, tensor in target.parameters().items():
                assert bool(tensor.isfinite().all()) and not torch.equal(tensor.detach(), before[name]), method


def test_stages_refine_the_scene_and_steps_are_reported() -> None:
    seen: list[Step] = []
    target = GridTarget(GridConfig(voxels=8))
    prior = BankPrior(["a yellow mug"], SMALL)
    config = replace(TINY, stages=(Stage(0.0, 12, 8), Stage(0.5, 20, 16)), sets=2)
    assert distil_scene("a yellow mug", prior, target, config, on_step=seen.append) == 4
    assert [tuple(step.seen.shape) for step in seen] == [(8, 3, 12, 12)] * 2 + [(8, 3, 20, 20)] * 2
    assert [step.step for step in seen] == [0, 1, 2, 3]
    assert [step.t for step in seen] == pytest.approx([0.98, 0.74, 0.5, 0.26])
    assert target.grid.frame.size == (16, 16, 16)
    assert all(step.wanted is not None and step.wanted.shape == (8, 3, 16, 16) for step in seen)


def test_a_run_stops_when_it_is_told_to() -> None:
    seen: list[Step] = []
    prior, target = BankPrior(["a yellow mug"], SMALL), GridTarget(GridConfig(voxels=12))
    taken = distil_scene("a yellow mug", prior, target, TINY, on_step=seen.append, stop=lambda: len(seen) == 2)
    assert taken == 2 == len(seen)
    assert BANK_GUIDANCE.scale == 1
