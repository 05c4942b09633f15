"""State of a Gaussian scene: shapes, activations, selection, start from points, spherical harmonics."""

from __future__ import annotations

import math
import sys

import pytest
import torch

from scene import sh
from scene.gaussians import INITIAL_OPACITY, Gaussians
from tests.scene.splats import random_gaussians, random_rotation


def test_shapes_that_do_not_match_are_refused_by_name() -> None:
    good = random_gaussians(4).parameters()
    for name, tensor in good.items():
        with pytest.raises(ValueError, match=name if name != "means" else "match means"):
            Gaussians(**{**good, name: tensor[:3]})
    with pytest.raises(ValueError, match="1, 4, 9 or 16"):
        Gaussians(**{**good, "sh_rest": torch.zeros(4, 5, 3)})
    with pytest.raises(ValueError, match=r"quats must be torch\.float32"):
        Gaussians(**{**good, "quats": good["quats"].double()})


def test_activations_and_counts() -> None:
    gaussians = random_gaussians(7, sh_degree=2)
    assert len(gaussians) == 7
    assert gaussians.sh_degree == 2
    assert torch.equal(gaussians.scales.log().round(decimals=4), gaussians.log_scales.round(decimals=4))
    assert bool(((gaussians.opacities > 0) & (gaussians.opacities < 1)).all())
    assert torch.equal(gaussians.sh_coeffs[:, 0], gaussians.sh_dc)
    assert torch.equal(gaussians.sh_coeffs[:, 1:], gaussians.sh_rest)


def test_select_and_concat_undo_each_other() -> None:
    gaussians = random_gaussians(9)
    odd = torch.arange(9) % 2 == 1
    joined = Gaussians.concat([gaussians.select(odd), gaussians.select(~odd)])
    order = torch.cat([odd.nonzero()[:, 0], (~odd).nonzero()[:, 0]]).argsort()
    for name, tensor in joined.select(order).parameters().items():
        assert torch.equal(tensor, gaussians.parameters()[name])


def test_concat_refuses_mixed_degrees_and_nothing() -> None:
    with pytest.raises(ValueError, match="degree"):
        Gaussians.concat([random_gaussians(2, sh_degree=1), random_gaussians(2, sh_degree=2)])
    with pytest.raises(ValueError, match="0 parts"):
        Gaussians.concat([])


def test_spacing_without_scipy_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    xyz = torch.randn(700, 3, generator=torch.Generator().manual_seed(3))
    rgb = torch.zeros(700, 3, dtype=torch.uint8)
    wanted = Gaussians.from_points(xyz, rgb)
    monkeypatch.setitem(sys.modules, "scipy.spatial", None)
    got = Gaussians.from_points(xyz, rgb)
    torch.testing.assert_close(got.log_scales, wanted.log_scales, rtol=1e-6, atol=1e-6)


def test_points_become_round_splats_as_large_as_their_spacing() -> None:
    grid = torch.stack(torch.meshgrid(*[torch.arange(4.0)] * 3, indexing="ij"), -1).reshape(-1, 3) * 0.5
    rgb = torch.full((64, 3), 51, dtype=torch.uint8)
    gaussians = Gaussians.from_points(grid, rgb)
    # On a grid of spacing 0.5 every point has at least three neighbours at exactly that distance.
    torch.testing.assert_close(gaussians.scales, torch.full((64, 3), 0.5))
    torch.testing.assert_close(gaussians.opacities, torch.full((64,), INITIAL_OPACITY))
    torch.testing.assert_close(sh.to_rgb(gaussians.sh_dc), torch.full((64, 3), 0.2))
    assert not gaussians.sh_rest.any()


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_few_points_still_make_splats(count: int) -> None:
    xyz = torch.arange(3.0 * count).reshape(count, 3)
    gaussians = Gaussians.from_points(xyz, torch.zeros(count, 3, dtype=torch.uint8), sh_degree=1)
    assert len(gaussians) == count
    assert bool(gaussians.log_scales.isfinite().all())


def test_points_in_one_place_keep_a_size() -> None:
    gaussians = Gaussians.from_points(torch.ones(5, 3), torch.zeros(5, 3, dtype=torch.uint8))
    torch.testing.assert_close(gaussians.scales, torch.full((5, 3), math.sqrt(1e-7)))


def test_points_of_the_wrong_type_are_refused() -> None:
    with pytest.raises(ValueError, match="uint8"):
        Gaussians.from_points(torch.zeros(2, 3), torch.zeros(2, 3))


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_harmonics_are_orthonormal(degree: int) -> None:
    # Independent of the constants' source: the mean over the sphere of b_i b_j is delta_ij / 4 pi. A product rule with
    # 16 Gauss-Legendre heights and 32 angles integrates polynomials of degree 6 exactly.
    z, weight = _gauss_legendre(16)
    angle = torch.arange(32, dtype=torch.float64) * (2 * math.pi / 32)
    radius = (1 - z * z).sqrt()
    directions = torch.stack(
        [radius[:, None] * angle.cos(), radius[:, None] * angle.sin(), z[:, None].expand(16, 32)], -1
    )
    values = sh.basis(directions, degree)
    gram = torch.einsum("i,ijk,ijl->kl", weight * (2 * math.pi / 32), values, values)
    torch.testing.assert_close(gram, torch.eye((degree + 1) ** 2, dtype=torch.float64), atol=1e-12, rtol=0)


def _gauss_legendre(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Nodes and weights on [-1, 1], from the Jacobi matrix (Golub and Welsch)."""
    k = torch.arange(1, count, dtype=torch.float64)
    off = k / (4 * k * k - 1).sqrt()
    nodes, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    return nodes, 2 * vectors[0] ** 2


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_turned_harmonics_look_the_same_along_turned_directions(degree: int) -> None:
    rotation = random_rotation(3)
    generator = torch.Generator().manual_seed(1)
    coeffs = torch.randn(6, (degree + 1) ** 2, 3, generator=generator, dtype=torch.float64)
    directions = torch.nn.functional.normalize(torch.randn(6, 3, generator=generator, dtype=torch.float64), dim=-1)
    turned = sh.evaluate(sh.rotate(coeffs, rotation), directions @ rotation.T)
    torch.testing.assert_close(turned, sh.evaluate(coeffs, directions), atol=1e-12, rtol=0)
