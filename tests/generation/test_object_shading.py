"""Colours of surfaces under the key light."""

from __future__ import annotations

import torch

from generation.object_shading import DAYLIGHT, Light, shade
from generation.shapes import Material

UP = torch.tensor([[0.0, 0.0, 1.0]])
RED = torch.tensor([[0.8, 0.1, 0.1]])


def lit(material: Material, normal: torch.Tensor, toward: torch.Tensor, light: Light = DAYLIGHT) -> torch.Tensor:
    where = torch.tensor([[0.01, 0.02, 0.03]])
    return shade(RED, torch.tensor([int(material)]), where, torch.ones(1, 3), normal, toward, light)[1]


def test_a_matte_surface_has_its_colour_facing_the_light_and_the_ambient_share_away_from_it() -> None:
    light = Light((0.0, 0.0, 2.0), ambient=0.6)
    torch.testing.assert_close(lit(Material.MATTE, UP, UP, light), RED)
    torch.testing.assert_close(lit(Material.MATTE, -UP, UP, light), 0.6 * RED)
    assert DAYLIGHT.ambient >= 0.55  # else white in shade is as grey as a grey background


def test_a_shiny_surface_has_a_highlight_where_it_mirrors_the_light_only() -> None:
    light, side = Light((0.0, 0.0, 1.0)), torch.tensor([[1.0, 0.0, 0.0]])
    assert float((lit(Material.SHINY, UP, UP, light) - RED).min()) > 0.1
    torch.testing.assert_close(
        lit(Material.SHINY, UP, side, light), lit(Material.MATTE, UP, side, light), atol=1e-3, rtol=0
    )


def test_patterns_have_two_tones_about_the_colour() -> None:
    generator = torch.Generator().manual_seed(0)
    where = torch.rand(4000, 3, generator=generator) - 0.5
    size, normals = torch.tensor([[0.5, 0.2, 0.3]]).expand(4000, 3), UP.expand(4000, 3)
    for material, tones in ((Material.WOODEN, 0.15), (Material.STRIPED, 0.09)):
        kinds = torch.full((4000,), int(material))
        albedo, _ = shade(RED.expand(4000, 3), kinds, where, size, normals, normals, DAYLIGHT)
        assert float(albedo[:, 0].max() - albedo[:, 0].min()) > tones
        pale = albedo[:, 1] > 0.3
        if material == Material.STRIPED:
            assert 0.4 < float(pale.float().mean()) < 0.6
    assert float(albedo.min()) >= 0 and float(albedo.max()) <= 1
