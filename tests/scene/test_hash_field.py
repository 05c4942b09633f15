"""The hash field: its formula, what rays see of it against closed forms and plain quadrature, and empty space."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from scene.cameras import Camera, look_at
from scene.hash_field import MAGIC3D, Blob, HashField, Occupancy, composited, render_hash, see
from scene.ops import native
from scene.ops.hash_encoding import HashLevels, hash_encode_reference
from scene.volume_rendering import render_field
from tests.pretended_card import CARD, pretended_card

needs_kernels = pytest.mark.skipif(not native.has(torch.device("cpu")), reason="the CPU module is the oracle")
LEVELS = HashLevels(levels=4, features=2, log2_rows=10, base=4, growth=1.6)
HALF, STEP = 0.75, 0.75 / 32
GREY = torch.tensor([0.2, 0.5, 0.9])
BALL = Blob(400.0, 0.45)


def a_field(blob: Blob = MAGIC3D, scale: float = 1e-4) -> HashField:
    """scale: of the rows of the table."""
    drawn = HashField.drawn(LEVELS, HALF, 16, blob, torch.Generator().manual_seed(0))
    return replace(drawn, table=drawn.table * (scale / 1e-4))


def everywhere(step: float = STEP, voxels: int = 24) -> Occupancy:
    return Occupancy(HALF, voxels, step, 1e-2)


def refreshed(field: HashField, times: int = 1, seed: int = 0) -> Occupancy:
    occupancy, generator = everywhere(), torch.Generator().manual_seed(seed)
    for _ in range(times):
        occupancy.refresh(field, generator)
    return occupancy


def a_camera(size: int = 24, eye: tuple[float, float, float] = (1.6, -2.1, 0.9)) -> Camera:
    K = torch.tensor([[1.3 * size, 0.0, size / 2], [0.0, 1.3 * size, size / 2], [0.0, 0.0, 1.0]])
    return Camera(K, look_at(torch.tensor(eye), torch.zeros(3), torch.tensor([0.0, 0.0, 1.0])), size, size)


def test_the_field_is_its_formula() -> None:
    field = a_field(scale=1.0)
    points = 1.4 * torch.rand(50, 3, generator=torch.Generator().manual_seed(1)) - 0.7
    features = hash_encode_reference(field.table, LEVELS, points / 1.5 + 0.5).double().numpy()
    y = np.maximum(features @ field.w1.double().numpy().T, 0) @ field.w2.double().numpy().T
    bias = 10 * (1 - np.linalg.norm(points.double().numpy(), axis=1) / 0.5)
    sigmas, rgb = field(points, points)
    np.testing.assert_allclose(sigmas, np.logaddexp(0, y[:, 0] + bias), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(rgb, 1 / (1 + np.exp(-y[:, 1:])), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(field.density(points), sigmas)


def test_it_starts_as_a_soft_grey_ball() -> None:
    sigmas, rgb = a_field()(torch.tensor([[0.0, 0.0, 0.0], [0.5, 0.0, 0.0], [0.0, 0.0, -0.75]]), torch.zeros(3, 3))
    torch.testing.assert_close(sigmas, functional.softplus(torch.tensor([10.0, 0.0, -5.0])), rtol=0, atol=1e-3)
    torch.testing.assert_close(rgb, torch.full((3, 3), 0.5), rtol=0, atol=1e-4)


def test_a_cube_of_constant_density_dims_light_by_the_way_through_it() -> None:
    """Beer and Lambert: a field without blob has density log 2, and light left is 2^-(chord of the cube)."""
    occupancy, camera = everywhere(), a_camera()
    origins, directions = (part.reshape(-1, 3) for part in camera.rays())
    unit = functional.normalize(directions, dim=-1)
    samples, _ = see(a_field(Blob(0.0, 1.0)), occupancy, occupancy.spans(origins, unit))
    bounds = (torch.tensor([[-HALF], [HALF]])[:, None] - origins) / unit
    chord = (bounds.amax(0).amin(-1) - bounds.amin(0).amax(-1)).clamp(min=0)
    assert float(chord.min()) == 0 and float(chord.max()) > 1.5
    torch.testing.assert_close(samples.last, 2.0**-chord, rtol=0, atol=0.7 * STEP + 1e-4)  # a sample more or less


def test_weights_and_what_is_left_sum_to_one_on_each_ray() -> None:
    field, occupancy, camera = a_field(BALL, 1.0), refreshed(a_field(BALL, 1.0)), a_camera()
    origins, directions = (part.reshape(-1, 3) for part in camera.rays())
    samples, rgb = see(field, occupancy, occupancy.spans(origins, functional.normalize(directions, dim=-1)))
    white = composited(samples, torch.ones_like(rgb), torch.ones(3))
    torch.testing.assert_close(white, torch.ones_like(white), rtol=0, atol=2e-6)


def test_a_picture_is_that_of_plain_quadrature() -> None:
    field, camera = a_field(scale=1.0), a_camera(16)
    seen = render_hash(field, everywhere(), camera, GREY)
    plain = render_field(field, camera, GREY, 1.4, 4.2, 512)
    torch.testing.assert_close(seen.alpha, plain.alpha, rtol=0, atol=0.01)
    torch.testing.assert_close(seen.rgb, plain.rgb, rtol=0, atol=0.01)
    solid = (seen.depth > 0) & (plain.depth > 0)
    assert float(solid.float().mean()) > 0.1
    torch.testing.assert_close(seen.depth[solid], plain.depth[solid], rtol=0, atol=STEP)


def test_a_hard_ball_lies_where_it_is() -> None:
    camera = a_camera(33, (0.0, -2.5, 0.0))
    depth = render_hash(a_field(BALL), refreshed(a_field(BALL)), camera, GREY).depth
    within = math.sqrt(2 * math.log(2) * BALL.radius / BALL.height)  # where half of the light is lost
    assert float(depth[16, 16]) == pytest.approx(2.5 - BALL.radius + within, abs=STEP) and float(depth[0, 0]) == 0


def test_occupied_is_what_is_dense_and_a_voxel_around_it() -> None:
    occupancy = refreshed(a_field(BALL))
    axis = torch.arange(24.0)
    places = occupancy.frame.world_from_grid(
        torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).view(-1, 3)
    )
    away, voxel = places.norm(dim=-1).view(24, 24, 24), occupancy.frame.voxel_size
    assert bool(occupancy.occupied[away < 0.45].all())
    assert not bool(occupancy.occupied[away > 0.45 + 3 * voxel].any())


def test_skipping_empty_space_changes_no_picture() -> None:
    field, camera = a_field(BALL), a_camera()
    whole, skipped = (render_hash(field, o, camera, GREY) for o in (everywhere(), refreshed(field)))
    torch.testing.assert_close(skipped.rgb, whole.rgb, rtol=0, atol=1e-4)
    origins, directions = (part.reshape(-1, 3) for part in camera.rays())
    counts = [
        len(o.samples(o.spans(origins, functional.normalize(directions, dim=-1))).rays)
        for o in (everywhere(), refreshed(field))
    ]
    assert counts[1] < 0.5 * counts[0]


def test_what_becomes_empty_is_forgotten_and_what_becomes_dense_found() -> None:
    occupancy, generator = everywhere(), torch.Generator().manual_seed(0)
    small, large = a_field(Blob(40.0, 0.2)), a_field(Blob(40.0, 0.6))
    shares = []
    for field, times in ((small, 1), (large, 1), (small, 40)):
        for _ in range(times):
            occupancy.refresh(field, generator)
        shares.append(float(occupancy.occupied.float().mean()))
    assert shares[0] < 0.1 and shares[1] > 0.3 and shares[2] == pytest.approx(shares[0], abs=0.01)


def test_a_field_of_thin_fog_keeps_its_densest_parts() -> None:
    occupancy = refreshed(a_field(Blob(-12.0, -0.5)))  # softplus(-12 - 24 |p|): next to nothing
    assert 0 < float(occupancy.occupied.float().mean()) < 1


@needs_kernels
def test_on_the_path_of_a_gpu_it_is_the_same(host_gpu: Callable[..., AbstractContextManager[None]]) -> None:
    """Occupied voxels, pictures and gradients, by kernels on the host shim."""

    def drawn() -> list[Tensor]:
        field, camera = a_field(scale=1.0), a_camera(8)
        leaves = [tensor.requires_grad_() for tensor in (field.table, field.w1, field.w2)]
        occupancy = refreshed(field)
        origins, directions = (part.reshape(-1, 3) for part in camera.rays())
        samples, rgb = see(field, occupancy, occupancy.spans(origins, functional.normalize(directions, dim=-1)))
        pixels = composited(samples, rgb, GREY)
        return [occupancy.occupied, pixels.detach(), *torch.autograd.grad(pixels.square().sum(), leaves)]

    wanted = drawn()
    with host_gpu():
        got = drawn()
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@needs_kernels
@pytest.mark.skipif(torch.cuda.is_available(), reason="a real card needs no other")
def test_all_that_it_uses_lies_on_the_card(host_gpu: Callable[..., AbstractContextManager[None]]) -> None:
    with pretended_card() as card, torch.no_grad():
        field, occupancy = a_field().to(CARD), Occupancy(HALF, 24, STEP, 1e-2, CARD)
        occupancy.refresh(field, torch.Generator().manual_seed(0))
        card.forget()
        seen = render_hash(field, occupancy, a_camera(8), GREY).rgb.cpu()
        assert card.launches["hash_encoding.encode2"] == 1 and len(card.waits) < 20
    torch.testing.assert_close(seen, render_hash(a_field(), refreshed(a_field()), a_camera(8), GREY).rgb)


def test_rays_that_miss_see_the_background() -> None:
    origins, away = torch.tensor([[0.0, -3.0, 0.0]]).expand(5, 3), torch.tensor([[0.0, -1.0, 0.0]]).expand(5, 3)
    field, occupancy = a_field(), everywhere()
    for rays in (5, 0):
        samples, rgb = see(field, occupancy, occupancy.spans(origins[:rays], away[:rays]))
        pixels = composited(samples, rgb, GREY)
        assert len(samples.rays) == 0 and torch.equal(pixels, GREY.expand(rays, 3))


def test_shifting_samples_moves_light_by_less_than_a_step() -> None:
    field, occupancy, camera = a_field(), everywhere(), a_camera(12)
    origins, directions = (part.reshape(-1, 3) for part in camera.rays())
    spans = occupancy.spans(origins, functional.normalize(directions, dim=-1))
    found: list[Tensor] = [see(field, occupancy, replace(spans, starts=spans.starts + s))[0].last for s in (0.0, 0.7)]
    torch.testing.assert_close(*found, rtol=0, atol=0.01)
