"""Colours from spherical harmonics against their twin, in closed form and by finite differences."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from scene import sh
from scene.ops import native
from scene.ops.sh_color import sh_color, sh_color_backward, sh_color_forward, sh_color_reference

needs_kernels = pytest.mark.skipif(not native.has(torch.device("cpu")), reason="the CPU module is not compiled")
DEGREES = [0, 1, 2, 3]
SIZES = [(0, 0), (0, 3), (1, 1), (33, 9), (64, 7), (5000, 400)]  # samples and rays; of some rays there is no sample


def scene(samples: int, rays: int, degree: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features, ascending rays, directions, and a gradient by the colours."""
    g = torch.Generator().manual_seed(10 * samples + degree)
    ids = torch.randint(0, max(rays, 1), (samples,), generator=g).sort().values.int()
    shapes = ((samples, 3 * sh.coefficients(degree)), (rays, 3), (samples, 3))
    features, directions, v_rgb = (torch.randn(shape, generator=g, dtype=torch.float64) for shape in shapes)
    return features.to(dtype), ids, torch.nn.functional.normalize(directions, dim=1).to(dtype), v_rgb.to(dtype)


@pytest.fixture
def any_threads() -> Iterator[None]:
    yield
    native.set_threads(native.len_affinity())


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("degree", DEGREES)
@pytest.mark.parametrize("size", SIZES)
def test_twin_agrees(size: tuple[int, int], degree: int, dtype: torch.dtype) -> None:
    features, rays, directions, v_rgb = scene(*size, degree, dtype)
    ours, theirs = (features.clone().requires_grad_() for _ in range(2))
    rgb = sh_color(ours, rays, directions)
    wanted = sh_color_reference(theirs, rays, directions)
    tolerance = 2e-6 if dtype == torch.float32 else 1e-14  # sums of 16 products of about one
    torch.testing.assert_close(rgb, wanted, rtol=0, atol=tolerance)
    (got,) = torch.autograd.grad(rgb, ours, v_rgb)
    torch.testing.assert_close(got, torch.autograd.grad(wanted, theirs, v_rgb)[0], rtol=0, atol=2 * tolerance)
    assert torch.equal(sh_color_forward(features, rays, directions), rgb)
    assert torch.equal(sh_color_backward(features, rays, directions, v_rgb), got)


@pytest.mark.parametrize("degree", DEGREES)
def test_gradients_are_slopes(degree: int) -> None:
    features, rays, directions, _ = scene(12, 5, degree, torch.float64)
    assert torch.autograd.gradcheck(lambda x: sh_color(x, rays, directions), features.requires_grad_())


def test_a_channel_that_knows_one_direction_shines_along_it() -> None:
    """The basis at d as coefficients: by Unsoeld's theorem the logit along d is K / 4 pi, and less elsewhere."""
    _, _, directions, _ = scene(1, 60, 3, torch.float64)
    features = torch.zeros(60, 3, 16, dtype=torch.float64)
    features[:, 1] = sh.basis(directions[:1], 3)
    rgb = sh_color(features.view(60, 48), torch.arange(60, dtype=torch.int32), directions)
    assert float(rgb[0, 1]) == pytest.approx(1 / (1 + math.exp(-16 / (4 * math.pi))), rel=1e-9)
    assert bool((rgb[1:, 1] < rgb[0, 1]).all())
    assert bool((rgb[:, [0, 2]] == 0.5).all())


def test_huge_coefficients_saturate_and_nan_stays_in_its_channel() -> None:
    features = torch.zeros(3, 12)
    features[0, 0], features[1, 4], features[2, 8] = 1e30, -1e30, math.nan
    rays, directions = torch.zeros(3, dtype=torch.int32), torch.tensor([[0.0, 0.0, 1.0]])
    rgb = sh_color(features, rays, directions)
    assert rgb[0].tolist() == [1.0, 0.5, 0.5]
    assert float(rgb[1, 1]) < 1e-30
    assert rgb[2].isnan().tolist() == [False, False, True]
    v_features = sh_color_backward(features, rays, directions, torch.ones(3, 3))
    assert bool(v_features[:2].isfinite().all())
    assert v_features.isnan().sum() == v_features[2, 8:].isnan().sum() > 0


@needs_kernels
def test_the_number_of_threads_changes_no_bit(any_threads: None) -> None:
    features, rays, directions, v_rgb = scene(9000, 300, 2, torch.float32)
    results = []
    for threads in (1, 2, 3):
        native.set_threads(threads)
        results.append((sh_color(features, rays, directions), sh_color_backward(features, rays, directions, v_rgb)))
    for rgb, v_features in results[1:]:
        assert torch.equal(rgb, results[0][0])
        assert torch.equal(v_features, results[0][1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": torch.zeros(4, 13)}, "features must be float"),
        ({"features": torch.zeros(4, 12, dtype=torch.int32)}, "features must be float"),
        ({"rays": torch.zeros(4)}, "rays must be"),
        ({"rays": torch.zeros(5, dtype=torch.int32)}, "rays must be"),
        ({"directions": torch.zeros(2, 4)}, "directions must be"),
        ({"directions": torch.zeros(2, 3).double()}, "directions must be"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(change: dict[str, Tensor], message: str) -> None:
    fitting = {
        "features": torch.zeros(4, 12),
        "rays": torch.zeros(4, dtype=torch.int32),
        "directions": torch.zeros(2, 3),
    }
    with pytest.raises(ValueError, match=message):
        sh_color(**(fitting | change))


@needs_kernels
def test_a_ray_that_is_not_there_is_refused() -> None:
    for ray in (-1, 2):
        with pytest.raises(ValueError, match="rays must lie"):
            sh_color(torch.zeros(2, 3), torch.tensor([0, ray], dtype=torch.int32), torch.zeros(2, 3))
