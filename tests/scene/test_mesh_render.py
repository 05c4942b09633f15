"""Pictures of meshes: depth and normals of a ball, colours at the right place."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from data.synthetic import opaque_solids
from scene.cameras import Camera
from scene.mesh import Material, Mesh
from scene.mesh_render import render_mesh, sample_picture
from tests.scene.solid_meshes import camera_at, icosphere, square


def checked_square() -> Mesh:
    """A square whose texture is red, green / blue, white: left to right, top to bottom."""
    mesh = square(1)
    uvs = mesh.vertices[mesh.faces][..., :2] * [1, -1] + 0.5  # y runs down, v up
    picture = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], dtype=np.uint8)
    return replace(mesh, uvs=uvs, material=Material(picture.repeat(8, 0).repeat(8, 1)))


def test_depth_and_normals_of_a_ball_are_those_of_the_truth() -> None:
    truth = opaque_solids(train=1, test=1, size=64, shape="sphere").train[0]
    shown = render_mesh(icosphere(5), truth.camera, shading="normals", supersample=1)
    both = truth.mask & (shown.faces >= 0)
    assert int((truth.mask ^ (shown.faces >= 0)).sum()) < 0.02 * int(truth.mask.sum())
    assert truth.normal is not None
    assert float((shown.depth - truth.depth)[both].abs().max()) < 0.02
    assert float((2 * shown.rgb - 1 - truth.normal)[both].abs().max()) < 0.05
    assert not shown.depth[shown.faces < 0].any()


def test_a_texture_lies_upright() -> None:
    shown = render_mesh(checked_square(), camera_at(0, 0, -1.0), supersample=1).rgb
    for row, column, color in ((16, 16, [1, 0, 0]), (16, 48, [0, 1, 0]), (48, 16, [0, 0, 1]), (48, 48, [1, 1, 1])):
        assert torch.allclose(shown[row, column], torch.tensor(color, dtype=torch.float32), atol=1e-5)


def test_alpha_is_the_share_of_the_pixel_and_the_background_fills_the_rest() -> None:
    half = camera_at(0.5 / 64, 0, -1.0)  # edges of the square run through the middle of pixels
    shown = render_mesh(checked_square(), half, background=torch.tensor([0.2, 0.4, 0.6]), supersample=4)
    assert set(shown.alpha.unique().tolist()) <= {0.0, 0.5, 1.0}
    mixed = shown.rgb[16][shown.alpha[16] == 0.5]
    assert len(mixed) == 1
    assert torch.allclose(shown.rgb[shown.alpha == 0], torch.tensor([0.2, 0.4, 0.6]))


def test_vertex_colours_are_shown_where_there_is_no_texture() -> None:
    mesh = square(1)
    colors = np.array([[0, 0, 0], [255, 0, 0], [0, 0, 0], [255, 0, 0]], dtype=np.uint8)
    shown = render_mesh(replace(mesh, colors=colors), camera_at(0, 0, -1.0), supersample=1).rgb[32]
    assert float((shown[1:-1, 0] - (torch.arange(1, 63) + 0.5) / 64).abs().max()) < 1e-3


def test_moving_mesh_and_camera_together_changes_nothing() -> None:
    mesh, camera = checked_square(), camera_at(0.03, 0.02, -1.1)
    shift = torch.tensor([4e4, -2e4, 1e4], dtype=torch.float64)
    c2w = camera.c2w.clone()
    c2w[:3, 3] += shift
    here = render_mesh(mesh, camera, supersample=1)
    there = render_mesh(replace(mesh, vertices=mesh.vertices + shift.numpy()), replace(camera, c2w=c2w), supersample=1)
    assert float((here.rgb - there.rgb).abs().max()) < 1e-3
    assert torch.equal(here.faces, there.faces)


def test_an_empty_mesh_shows_the_background() -> None:
    shown = render_mesh(Mesh(np.zeros((0, 3)), np.zeros((0, 3), np.int32)), camera_at(0, 0, 0), background=0.25)
    assert (shown.rgb == 0.25).all()
    assert (shown.faces == -1).all()


def test_a_camera_that_is_nowhere_is_refused() -> None:
    camera = camera_at(0, 0, -1)
    c2w = camera.c2w.clone()
    c2w[0, 3] = torch.nan
    with pytest.raises(ValueError, match="finite"):
        render_mesh(square(1), Camera(camera.K, c2w, 64, 64))


def test_a_picture_is_sampled_at_texel_centres() -> None:
    picture = np.arange(12, dtype=np.float64).reshape(2, 2, 3)
    assert np.allclose(sample_picture(picture, np.array([[0.25, 0.75]])), picture[0, 0])
    assert np.allclose(sample_picture(picture, np.array([[0.5, 0.5]])), picture.mean(axis=(0, 1)))
    assert np.allclose(sample_picture(picture, np.array([[-3.0, 9.0]])), picture[0, 0])
