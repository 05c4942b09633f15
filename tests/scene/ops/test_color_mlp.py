"""The colour network against its twin, against float64 finite differences, and the same bits for any thread count."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from scene.ops import native
from scene.ops.color_mlp import (
    ColorMlp,
    color_mlp,
    color_mlp_backward,
    color_mlp_forward,
    color_mlp_reference,
)

needs_kernels = pytest.mark.skipif(not native.has(torch.device("cpu")), reason="the CPU module is not compiled")
# (samples, rays, features, view, hidden); samples of one panel, several, and enough that pieces hold more than one.
CASES = [
    (0, 5, 12, 27, 128),
    (0, 0, 12, 27, 128),
    (1, 1, 12, 27, 128),
    (33, 9, 9, 27, 64),
    (1000, 40, 12, 27, 128),
    (1000, 1000, 3, 27, 64),
    (1000, 1, 9, 27, 128),
    (97, 300, 32, 3, 128),
    (5000, 300, 17, 1, 64),
]


def scene(
    samples: int, rays: int, features: int, view: int, hidden: int
) -> tuple[ColorMlp, Tensor, Tensor, Tensor, Tensor]:
    """Network, features, ascending rays (of which some have no sample), views, and a gradient by the colours."""
    g = torch.Generator().manual_seed(samples + 7 * features + hidden)
    mlp = ColorMlp.drawn(features, view, hidden, g)
    mlp = mlp._replace(w3=3 * mlp.w3, b3=torch.randn(3, generator=g))  # so that the sigmoid bends
    ids = torch.randint(0, max(rays, 1), (samples,), generator=g).sort().values.int()
    found = [torch.randn(*shape, generator=g) for shape in ((samples, features), (rays, view), (samples, 3))]
    return mlp, found[0], ids, found[1], found[2]


def leaves(mlp: ColorMlp, features: Tensor, dtype: torch.dtype) -> tuple[ColorMlp, Tensor]:
    return (
        ColorMlp(*(value.to(dtype).requires_grad_() for value in mlp)),
        features.to(dtype).requires_grad_(),
    )


@pytest.fixture
def any_threads() -> Iterator[None]:
    yield
    native.set_threads(native.len_affinity())


@needs_kernels
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_the_twin_in_double(case: tuple[int, int, int, int, int]) -> None:
    mlp, features, rays, view, v_rgb = scene(*case)
    assert native.backend() == "cpu"
    ours, x = leaves(mlp, features, torch.float32)
    rgb = color_mlp(ours, x, rays, view)
    got = torch.autograd.grad(rgb, [x, *ours], v_rgb)
    twin, y = leaves(mlp, features, torch.float64)
    wanted_rgb = color_mlp_reference(twin, y, rays, view.double())
    wanted = torch.autograd.grad(wanted_rgb, [y, *twin], v_rgb.double())
    # 128 products of about one, twice: 1e-6; a ReLU within rounding of its kink may turn, hence norms for gradients.
    torch.testing.assert_close(rgb.double(), wanted_rgb, rtol=0, atol=2e-6)
    for name, value, exact in zip(("features", *ColorMlp._fields), got, wanted, strict=True):
        assert value.shape == exact.shape, name
        assert float((value - exact).norm()) <= 2e-5 * float(exact.norm()), name


@needs_kernels
@pytest.mark.parametrize("case", CASES)
def test_the_pair_without_autograd_gives_the_same_bits(case: tuple[int, int, int, int, int]) -> None:
    mlp, features, rays, view, v_rgb = scene(*case)
    ours, x = leaves(mlp, features, torch.float32)
    rgb = color_mlp(ours, x, rays, view)
    wanted = torch.autograd.grad(rgb, [x, *ours], v_rgb)
    again = color_mlp_forward(mlp, features, rays, view)
    v_features, v_mlp = color_mlp_backward(mlp, features, rays, view, again, v_rgb)
    assert torch.equal(again, rgb)
    for value, same in zip((v_features, *v_mlp), wanted, strict=True):
        assert torch.equal(value, same)


@needs_kernels
@pytest.mark.parametrize("case", [(20_000, 900, 12, 27, 128), (3000, 60, 9, 27, 64)])
def test_the_number_of_threads_changes_no_bit(case: tuple[int, int, int, int, int], any_threads: None) -> None:
    mlp, features, rays, view, v_rgb = scene(*case)
    results = []
    for threads in (1, 2, 3):
        native.set_threads(threads)
        rgb = color_mlp_forward(mlp, features, rays, view)
        v_features, v_mlp = color_mlp_backward(mlp, features, rays, view, rgb, v_rgb)
        results.append([rgb, v_features, *v_mlp])
    for other in results[1:]:
        for value, same in zip(results[0], other, strict=True):
            assert torch.equal(value, same)


@needs_kernels
def test_gradients_are_slopes() -> None:
    """Central differences of the twin in float64, along random directions, are what the kernel's gradients say."""
    mlp, features, rays, view, v_rgb = scene(200, 20, 12, 27, 64)
    rgb = color_mlp_forward(mlp, features, rays, view)
    v_features, v_mlp = color_mlp_backward(mlp, features, rays, view, rgb, v_rgb)
    exact, at = ColorMlp(*(value.double() for value in mlp)), features.double()
    step = 1e-7  # small, so that few of 25,600 ReLUs pass their kink on the way
    for seed, name in enumerate(("features", *ColorMlp._fields)):
        gradient = v_features if name == "features" else getattr(v_mlp, name)
        along = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

        def loss(shift: float, name: str = name, along: Tensor = along) -> float:
            if name == "features":
                moved, there = exact, at + shift * along
            else:
                moved, there = exact._replace(**{name: getattr(exact, name) + shift * along}), at
            return float((color_mlp_reference(moved, there, rays, view.double()) * v_rgb).sum())

        slope = (loss(step) - loss(-step)) / (2 * step)
        assert slope == pytest.approx(float((gradient * along).sum()), rel=1e-4, abs=1e-4 * float(gradient.norm()))


def test_the_twin_passes_gradcheck() -> None:
    mlp, features, rays, view, _ = scene(7, 3, 4, 5, 6)
    exact, x = leaves(mlp, features, torch.float64)

    def colors(x: Tensor, *weights: Tensor) -> Tensor:
        return color_mlp(ColorMlp(*weights), x, rays, view.double())

    assert torch.autograd.gradcheck(colors, (x, *exact))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("hidden", [6, 64])
def test_closed_form_of_a_network_that_sums(dtype: torch.dtype, hidden: int) -> None:
    """With all weights one and positive inputs, a logit is hidden^2 times the sum of a sample's inputs."""
    ones = [torch.ones(shape, dtype=dtype) for shape in ((hidden, 6), (hidden,), (hidden, hidden), (hidden,))]
    third = torch.full((3, hidden), 1 / hidden**2, dtype=dtype)
    w1, b1, w2, b2 = ones
    mlp = ColorMlp(w1, b1, w2, b2, third, torch.tensor([0.0, -1.0, 1.0], dtype=dtype))
    features, view = torch.tensor([[0.25, 0.5, 0.0], [0.0, 0.1, 0.3]], dtype=dtype), torch.ones(4, 3, dtype=dtype) / 4
    rgb = color_mlp(mlp, features, torch.tensor([1, 3], dtype=torch.int32), view)
    first = features.sum(1) + 0.75 + 1
    logit = (hidden * first + 1) / hidden  # hidden outputs of (hidden * first + 1), averaged over hidden^2
    torch.testing.assert_close(rgb, torch.sigmoid(features + logit[:, None] + mlp.b3), rtol=1e-6, atol=0)


def test_samples_of_rays_that_do_not_follow_each_other_are_served_too() -> None:
    mlp, features, rays, view, v_rgb = scene(300, 20, 12, 27, 64)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(1))
    rgb = color_mlp_forward(mlp, features[order], rays[order], view)
    torch.testing.assert_close(rgb, color_mlp_forward(mlp, features, rays, view)[order], rtol=0, atol=1e-6)
    _, shuffled = color_mlp_backward(mlp, features[order], rays[order], view, rgb, v_rgb[order])
    _, plain = color_mlp_backward(mlp, features, rays, view, rgb[order.argsort()], v_rgb)
    for got, wanted in zip(shuffled, plain, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_nan_is_seen_and_stays_in_its_sample() -> None:
    mlp, features, rays, view, v_rgb = scene(200, 20, 12, 27, 128)
    clean = color_mlp_forward(mlp, features, rays, view)
    wanted, _ = color_mlp_backward(mlp, features, rays, view, clean, v_rgb)
    features[37, 4] = math.nan
    rgb = color_mlp_forward(mlp, features, rays, view)
    v_features, _ = color_mlp_backward(mlp, features, rays, view, rgb, v_rgb)
    others = torch.arange(200) != 37
    assert rgb[37].isnan().all()
    assert v_features[37].isnan().all()
    assert torch.equal(rgb[others], clean[others])
    torch.testing.assert_close(v_features[others], wanted[others], rtol=0, atol=1e-6)  # in which order is the block's


def test_a_network_whose_hidden_numbers_are_all_zero_adds_its_last_bias_to_the_first_features() -> None:
    mlp, features, rays, view, v_rgb = scene(50, 5, 12, 27, 128)
    for dead in (mlp._replace(b1=mlp.b1 - 1e3), mlp._replace(b2=mlp.b2 - 1e3)):
        rgb = color_mlp_forward(dead, features, rays, view)
        v_features, v_mlp = color_mlp_backward(dead, features, rays, view, rgb, v_rgb)
        flat = dead.b1 is not mlp.b1  # the second layer still has its bias
        second = torch.relu(dead.b2) if flat else torch.zeros(128)
        wanted = torch.sigmoid(features[:, :3] + dead.w3 @ second + dead.b3)
        torch.testing.assert_close(rgb, wanted, rtol=0, atol=1e-6)
        torch.testing.assert_close(v_mlp.b3, (v_rgb * rgb * (1 - rgb)).sum(0), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(v_features[:, :3], v_rgb * rgb * (1 - rgb), rtol=1e-5, atol=1e-6)
        assert not v_features[:, 3:].any()
        assert not v_mlp.w1.any()
        assert not v_mlp.w2.any()


def test_layers_are_drawn_as_torch_draws_them() -> None:
    mlp = ColorMlp.drawn(12, 27, 128, torch.Generator().manual_seed(0))
    assert [tuple(value.shape) for value in mlp] == [(128, 39), (128,), (128, 128), (128,), (3, 128), (3,)]
    assert sum(value.numel() for value in mlp) == 22_019  # of DVGO's fine network
    theirs = torch.nn.Linear(39, 128)
    assert float(mlp.w1.abs().max()) == pytest.approx(float(theirs.weight.detach().abs().max()), rel=1e-2)
    assert float(mlp.b1.abs().max()) <= 39**-0.5
    assert not mlp.b3.any()
    assert all(map(torch.equal, mlp, ColorMlp.drawn(12, 27, 128, torch.Generator().manual_seed(0))))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": torch.zeros(4)}, "features must be float"),
        ({"features": torch.zeros(4, 12).double()}, "weights and view must be torch.float64"),
        ({"features": torch.zeros(4, 11)}, "weights must be"),
        ({"rays": torch.zeros(4)}, "rays must be"),
        ({"rays": torch.zeros(5, dtype=torch.int32)}, "rays must be"),
        ({"view": torch.zeros(2, 26)}, "weights must be"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(change: dict[str, Tensor], message: str) -> None:
    mlp = ColorMlp.drawn(12, 27, 64, torch.Generator().manual_seed(0))
    fitting = {"features": torch.zeros(4, 12), "rays": torch.zeros(4, dtype=torch.int32), "view": torch.zeros(2, 27)}
    with pytest.raises(ValueError, match=message):
        color_mlp(mlp, **(fitting | change))


@needs_kernels
def test_a_ray_that_is_not_there_is_refused() -> None:
    mlp, features, _, view, _ = scene(4, 2, 12, 27, 64)
    for ray in (-1, 2):
        with pytest.raises(ValueError, match="rays must lie"):
            color_mlp_forward(mlp, features, torch.tensor([0, 0, 1, ray], dtype=torch.int32), view)
