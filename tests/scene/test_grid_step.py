"""A training step without autograd: its gradients are those of plain torch, what it does not touch keeps its bits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from benchmarks.dvgo import batches, copied, object_grid
from benchmarks.dvgo_reference import TorchGrid
from recon.grid_recipes import RATES
from scene.grid_step import VARIATION_EVERY, GridStep, LearningRates, Weights
from scene.ops.color_mlp import ColorMlp, color_mlp_reference
from scene.ops.grid_march import Density, RaySpans, march_reference
from scene.ops.sh_color import sh_color_reference
from scene.ops.total_variation import total_variation_reference
from scene.ops.trilinear import trilinear_reference
from scene.ops.volume_loss import volume_loss_reference
from scene.voxel_grid import VoxelGrid, embed
from tests.scene.density_grids import drawn
from tests.scene.voxel_grids import CHANNELS, KINDS, a_frame, grid_of, rays_for

WHITE = torch.ones(3)
LOSSES = Weights(per_point=0.05, entropy=0.02, distortion=0.3)
SIZE = (13, 11, 15)


def apart(mine: Tensor, theirs: Tensor) -> float:
    """Norm of the difference over the norm: not the largest element, for a neuron that is zero up to rounding is on
    in one and off in the other."""
    return float((mine - theirs).norm() / theirs.norm())


def a_grid(head: str = "mlp", kind: str = "bounded", occupied: float = 0.6) -> VoxelGrid:
    """Drawn densities from clear to dense, drawn features."""
    where = drawn(*SIZE, seed=21) < occupied
    frame = a_frame(kind, SIZE)
    return grid_of(frame, lambda p: 8 * drawn(len(p), seed=22).float() - 3, head=head, occupied=where)  # type: ignore[arg-type]


def a_batch(grid: VoxelGrid, count: int = 150, seed: int = 0) -> tuple[RaySpans, Tensor, Tensor]:
    """Spans, directions and colours to reach."""
    origins, directions = rays_for(grid.frame.space.kind, count, seed=seed, dtype=torch.float32)
    spans = grid.frame.spans(origins, directions, grid.step)
    return spans, directions, drawn(count, 3, seed=seed + 5).float()


def by_autograd(
    grid: VoxelGrid, spans: RaySpans, directions: Tensor, target: Tensor, weights: Weights
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of the twins of all ops."""
    density, features = (value.clone().requires_grad_() for value in (grid.density, grid.features))
    mlp = None if grid.mlp is None else ColorMlp(*(value.clone().requires_grad_() for value in grid.mlp))
    packed = Density(density, grid.shifts, grid.packed_density().occupied)
    samples = march_reference(packed, spans, grid.limits())
    found = trilinear_reference(features, grid.rows, samples.points)
    if mlp is not None:
        rgb = color_mlp_reference(mlp, found, samples.rays, embed(directions))
    else:
        rgb = found.sigmoid() if grid.head == "rgb" else sh_color_reference(found, samples.rays, directions)
    shares, interval = grid.frame.ray_shares(spans, samples, grid.step)
    loss, _ = volume_loss_reference(
        rgb,
        samples.weights,
        samples.rays,
        samples.last,
        target,
        WHITE,
        s=shares,
        interval=interval,
        per_point=weights.per_point,
        entropy=weights.entropy,
        distortion=weights.distortion,
    )
    leaves = {"density": density, "features": features}
    if mlp is not None:
        leaves |= {f"mlp.{i}": value for i, value in enumerate(mlp)}
    grads = torch.autograd.grad(loss, list(leaves.values()))
    return loss.detach(), dict(zip(leaves, grads, strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head", ["rgb", "sh", "mlp"])
def test_gradients_are_those_of_the_twins_under_autograd(kind: str, head: str) -> None:
    grid = a_grid(head, kind)
    spans, directions, target = a_batch(grid)
    wanted, grads = by_autograd(grid, spans, directions, target, LOSSES)
    step = GridStep(grid)
    loss, mlp_grads = step.gradients(spans, directions, target, WHITE, LOSSES)
    assert float(loss.loss) == pytest.approx(float(wanted), rel=1e-5)
    mine = {"density": step.density_grad, "features": step.features_grad}
    mine |= {f"mlp.{i}": value for i, value in enumerate(mlp_grads)}
    assert mine.keys() == grads.keys() and len(grid.features[0]) == CHANNELS[grid.head]
    for name, grad in grads.items():
        # float32 sums in another order; a sample at a threshold may count in one and not in the other
        assert apart(mine[name], grad) < 1e-3, name


def test_gradients_are_those_of_the_dense_grids_of_dvgo() -> None:
    """By grid_sample on dense grids and sums of logarithms (benchmarks/dvgo_reference.py)."""
    grid = object_grid(24**3, width=64)
    (batch,) = batches(grid, 300, 1)
    weights = Weights(per_point=0.01, entropy=0.001)
    theirs = TorchGrid(grid, RATES)
    loss, _ = theirs.loss(batch.spans, batch.directions, batch.target, WHITE, weights)
    loss.backward()
    step = GridStep(copied(grid))
    mine, mlp_grads = step.gradients(batch.spans, batch.directions, batch.target, WHITE, weights)
    assert theirs.density.grad is not None and theirs.features.grad is not None
    assert float(mine.loss) == pytest.approx(float(loss.detach()), rel=1e-4)
    live = grid.rows >= 0
    assert apart(step.density_grad, theirs.density.grad[0, 0]) < 1e-3
    assert apart(step.features_grad, theirs.features.grad[0].permute(1, 2, 3, 0)[live]) < 2e-3
    for a, b in zip(mlp_grads, theirs.mlp, strict=True):
        assert b.grad is not None and apart(a, b.grad) < 2e-3


def test_a_few_steps_go_where_plain_torch_goes() -> None:
    grid = object_grid(16**3, width=64)
    made = batches(grid, 200, 4)
    step, theirs = GridStep(copied(grid)), TorchGrid(grid, RATES)
    weights = Weights(per_point=0.01, entropy=0.001)
    for batch in made:
        mine = step.take(batch.spans, batch.directions, batch.target, WHITE, weights, RATES)
        wanted, _ = theirs.take(batch.spans, batch.directions, batch.target, WHITE, weights)
        assert float(mine.loss) == pytest.approx(float(wanted), rel=5e-3)
    moved = step.grid.density - grid.density
    touched = moved != 0  # torch's Adam also moves voxels that a step does not see
    assert float(touched.float().mean()) > 0.02
    assert apart(moved[touched], (theirs.density.detach()[0, 0] - grid.density)[touched]) < 0.3


def test_steps_on_one_batch_lower_its_loss() -> None:
    grid = a_grid("mlp")
    spans, directions, _ = a_batch(grid)
    step = GridStep(grid)
    rates = LearningRates(density=0.1, features=0.1, mlp=1e-3)
    target = (directions + 1) / 2
    losses = [float(step.take(spans, directions, target, WHITE, Weights(), rates).mse) for _ in range(40)]
    assert losses[-1] < 0.5 * losses[0] and step.step == 40


def test_the_first_step_of_each_number_is_its_rate_downhill() -> None:
    """Adam's first step is lr times the gradient's sign, and here times the voxel's own rate."""
    grid, rates = a_grid("rgb"), drawn(*SIZE, seed=31).float()
    rates[rates < 0.3] = 0
    batch = a_batch(grid)
    before = grid.density.clone(), grid.features.clone()
    step = GridStep(grid, rates)
    step.gradients(*batch, WHITE, LOSSES)
    grads = step.density_grad.clone(), step.features_grad.clone()
    step.density_grad.zero_()
    step.features_grad.zero_()
    step.take(*batch, WHITE, LOSSES, LearningRates(0.2, 0.5, 0.0))
    of_features = rates[grid.rows >= 0][:, None].expand_as(grads[1])
    for now, was, grad, rate in (
        (step.grid.density, before[0], grads[0], 0.2 * rates),
        (step.grid.features, before[1], grads[1], 0.5 * of_features),
    ):
        strong = grad.abs() > 1e-6  # where eps of 1e-8 is nothing
        assert int(strong.sum()) > 500
        torch.testing.assert_close((now - was)[strong], (-rate * grad.sign())[strong], rtol=0.02, atol=1e-6)
        still = (grad == 0) | (rate == 0)
        assert bool(still.any()) and torch.equal(now[still], was[still])
    assert not bool(step.density_grad.any()) and not bool(step.features_grad.any())


def test_voxels_that_no_ray_meets_keep_value_and_moments() -> None:
    grid = a_grid("mlp")
    step, rates = GridStep(grid), LearningRates(0.1, 0.1, 1e-3)
    for seed in range(3):
        step.take(*a_batch(grid, seed=seed), WHITE, LOSSES, rates)
    spans, directions, target = a_batch(grid, 4, seed=9)
    before = {name: value.clone() for name, value in step.parameters().items()}
    moments = {name: tuple(m.clone() for m in pair) for name, pair in step.moments.items()}
    step.gradients(spans, directions, target, WHITE, LOSSES)
    met = {"density": step.density_grad != 0, "features": step.features_grad != 0}
    step.density_grad.zero_()
    step.features_grad.zero_()
    step.take(spans, directions, target, WHITE, LOSSES, rates)
    for name, touched in met.items():
        assert 0 < int(touched.sum()) < 0.5 * touched.numel()
        assert torch.equal(step.parameters()[name][~touched], before[name][~touched])
        assert bool((step.parameters()[name] != before[name])[touched].any())
        for now, was in zip(step.moments[name], moments[name], strict=True):
            assert torch.equal(now[~touched], was[~touched])


@pytest.mark.parametrize("only", [True, False])
def test_total_variation_pulls_by_the_size_of_the_grid(only: bool) -> None:
    """DVGO's code: weight times the longest side over 128, after all other gradients; here at every fourth step."""
    grid = a_grid("rgb")
    batch = a_batch(grid, 10)
    plain, pulled, between = GridStep(grid), GridStep(grid), GridStep(grid)
    plain.gradients(*batch, WHITE, LOSSES)
    pulling = replace(LOSSES, tv_density=0.3, tv_features=0.2, tv_touched_only=only)
    pulled.gradients(*batch, WHITE, pulling)
    between.step = VARIATION_EVERY - 1
    between.gradients(*batch, WHITE, pulling)
    assert torch.equal(between.density_grad, plain.density_grad)
    wanted = plain.density_grad.clone(), plain.features_grad.clone()
    scale = VARIATION_EVERY * max(SIZE) / 128
    total_variation_reference(wanted[0], grid.density, weight=0.3 * scale, touched_only=only)
    cells = (grid.rows.flatten() >= 0).nonzero()[:, 0].to(torch.int32)
    total_variation_reference(
        wanted[1], grid.features, weight=0.2 * scale, rows=grid.rows, cells=cells, touched_only=only
    )
    for mine, theirs, before in (
        (pulled.density_grad, wanted[0], plain.density_grad),
        (pulled.features_grad, wanted[1], plain.features_grad),
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-8)
        assert not torch.equal(mine, before)
        assert bool((mine[before == 0] == 0).all()) == only


@pytest.mark.parametrize("head", ["rgb", "mlp"])
def test_narrowing_keeps_values_and_moments_of_survivors(head: str) -> None:
    grid = a_grid(head)
    step = GridStep(grid, drawn(*SIZE, seed=33).float() if head == "rgb" else None)
    rates = LearningRates(0.1, 0.1, 1e-3)
    for seed in range(3):
        step.take(*a_batch(grid, seed=seed), WHITE, LOSSES, rates)
    old, moments = step.grid, {name: tuple(m.clone() for m in pair) for name, pair in step.moments.items()}
    step.narrowed(drawn(*SIZE, seed=40) < 0.02)
    new = step.grid
    assert 0 < len(new) < 0.8 * len(old)
    assert torch.equal(new.occupied, old.occupied & (drawn(*SIZE, seed=40) < 0.02))
    survivors = old.rows[new.rows >= 0].long()
    assert torch.equal(new.features, old.features[survivors]) and torch.equal(new.density, old.density)
    for now, was in zip(step.moments["features"], moments["features"], strict=True):
        assert torch.equal(now, was[survivors]) and bool(now.any())
    for name in step.moments.keys() - {"features"}:
        assert all(torch.equal(a, b) for a, b in zip(step.moments[name], moments[name], strict=True))
    step.take(*a_batch(grid, seed=7), WHITE, LOSSES, rates)  # and goes on from there
    assert step.step == 4 and not torch.equal(step.grid.features, old.features[survivors])


def test_narrowing_to_nothing_is_left_undone() -> None:
    grid = a_grid("rgb")
    step = GridStep(grid)
    step.narrowed(torch.zeros(SIZE, dtype=torch.bool))
    assert step.grid is grid


def test_rays_that_meet_nothing_change_nothing() -> None:
    grid = a_grid("mlp", occupied=0.0)
    step, before = GridStep(grid), grid.density.clone()
    loss = step.take(*a_batch(grid), WHITE, LOSSES, LearningRates(0.1, 0.1, 1e-3))
    target = a_batch(grid)[2]
    assert float(loss.mse) == pytest.approx(float((1 - target).square().mean()), rel=1e-5)
    assert torch.equal(step.grid.density, before) and not bool(step.grid.features.isnan().any())
