"""Gaussians as a grid: light through one by hand, what adds up, colours, places outside; and a closed surface."""

from __future__ import annotations

import math

import pytest
import torch

from generation.grid_surface import grid_to_mesh
from generation.scenes import GridConfig
from generation.splat_grid import fields_of_gaussians, grid_of_gaussians
from generation.views import orbit_camera
from scene import sh
from scene.gaussians import Gaussians
from scene.rasterize import render
from scene.volume_rendering import render_grid

CONFIG = GridConfig(voxels=64)


def gaussians(
    means: list[list[float]], scales: list[float], alpha: float, rgb: list[float], turn: float = 0.0
) -> Gaussians:
    count = len(means)
    quat = torch.tensor([math.cos(turn / 2), 0.0, 0.0, math.sin(turn / 2)])
    return Gaussians(
        means=torch.tensor(means),
        quats=quat.repeat(count, 1),
        log_scales=torch.tensor(scales).log().repeat(count, 1),
        opacity_logits=torch.full((count,), alpha).logit(),
        sh_dc=sh.from_rgb(torch.tensor(rgb)).repeat(count, 1),
        sh_rest=torch.zeros(count, 0, 3),
    )


@pytest.mark.parametrize("turn", [0.0, 0.7])
def test_the_density_integrates_to_the_optical_depth_of_its_opacity(turn: float) -> None:
    sigma, _ = fields_of_gaussians(gaussians([[0.0, 0.0, 0.0]], [0.12, 0.08, 0.06], 0.7, [1.0, 0.0, 0.0], turn), CONFIG)
    voxel = 2 * CONFIG.half / (CONFIG.voxels - 1)
    through = sigma.sum(2) * voxel  # along z, its shortest axis
    middle = through[31:33, 31:33].mean()
    assert float(middle) == pytest.approx(-math.log(0.3), rel=0.02)
    mass = float(sigma.sum()) * voxel**3
    peak = -math.log(0.3) / (math.sqrt(2 * math.pi) * 0.06)
    assert mass == pytest.approx(peak * (2 * math.pi) ** 1.5 * 0.12 * 0.08 * 0.06, rel=0.02)


def test_the_grid_looks_like_the_gaussians() -> None:
    """Faint ones: opaque ones reach farther as a fog, 1 - exp(-depth f) instead of alpha f."""
    scene = gaussians([[0.2, 0.0, 0.1], [-0.2, 0.1, 0.0], [0.0, -0.2, -0.2]], [0.1, 0.1, 0.1], 0.3, [0.8, 0.3, 0.1])
    grid, white = grid_of_gaussians(scene, CONFIG), torch.ones(3)
    for azimuth in (0.0, 120.0):
        camera = orbit_camera(azimuth, 20.0, 40.0, 2.7, 48)
        wanted, found = render(scene, camera, background=white).rgb, render_grid(grid, camera, white).rgb
        apart, there = (float((wanted - other).abs().mean()) for other in (found, white))
        assert apart < 0.25 * there, (apart, there)


def test_densities_add_up_and_colours_are_weighted_by_them() -> None:
    one = gaussians([[0.0, 0.0, 0.0]], [0.1, 0.1, 0.1], 0.5, [1.0, 0.0, 0.0])
    other = gaussians([[0.0, 0.0, 0.0]], [0.1, 0.1, 0.1], 0.5, [0.0, 0.0, 1.0])
    both = Gaussians(**{name: torch.cat([value, other.parameters()[name]]) for name, value in one.parameters().items()})
    sigma, _ = fields_of_gaussians(one, CONFIG)
    doubled, color = fields_of_gaussians(both, CONFIG)
    torch.testing.assert_close(doubled, 2 * sigma)
    middle = color[32, 32, 32] / doubled[32, 32, 32]
    torch.testing.assert_close(middle, torch.tensor([0.5, 0.0, 0.5]), atol=1e-5, rtol=0)


def test_what_lies_outside_is_left_out_and_what_reaches_in_is_not() -> None:
    far = gaussians([[2.0, 0.0, 0.0]], [0.1, 0.1, 0.1], 0.9, [1.0, 1.0, 1.0])
    assert not fields_of_gaussians(far, CONFIG)[0].any()
    rim = gaussians([[0.8, 0.0, 0.0]], [0.1, 0.1, 0.1], 0.9, [1.0, 1.0, 1.0])
    sigma = fields_of_gaussians(rim, CONFIG)[0]
    assert bool(sigma[-1].any()) and not sigma[:30].any()


def test_a_shell_of_discs_gives_a_closed_solid_of_its_size() -> None:
    generator = torch.Generator().manual_seed(0)
    out = torch.nn.functional.normalize(torch.randn(1500, 3, generator=generator), dim=-1)
    ball = gaussians((0.4 * out).tolist(), [0.04, 0.04, 0.04], 0.9, [0.2, 0.6, 0.2])
    facts = grid_to_mesh(grid_of_gaussians(ball, CONFIG)).facts()
    assert facts.watertight and facts.components == 1
    assert facts.volume is not None
    assert 0.9 < facts.volume / (4 / 3 * math.pi * 0.46**3) < 1.2  # solid inside, and a deviation larger
