"""A mesh as splats looks as the mesh does, and splats without cameras are seen from all sides."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from scene.conversions import cameras_around, mesh_to_gaussians
from scene.errors import InputError
from scene.mesh import Material, Mesh
from scene.ops.splat_project import quats_to_matrices
from scene.rasterize import render


def globe(rings: int = 24) -> Mesh:
    """A unit sphere, red above and blue below."""
    import trimesh

    ball = trimesh.creation.uv_sphere(radius=1.0, count=[rings, 2 * rings])
    vertices = np.asarray(ball.vertices)
    colors = np.where(vertices[:, 2:] > 0, [[255, 0, 0]], [[0, 0, 255]]).astype(np.uint8)
    return Mesh(vertices, np.asarray(ball.faces), colors)


def test_a_mesh_as_splats_lies_on_it_and_is_flat_along_its_normals() -> None:
    splats = mesh_to_gaussians(globe(), 5_000)
    assert torch.allclose(splats.means.norm(dim=1), torch.ones(5_000), atol=0.01)
    thin = quats_to_matrices(splats.quats)[:, :, 2]
    outwards = torch.nn.functional.normalize(splats.means, dim=1)
    assert float((thin * outwards).sum(1).min()) > 0.98
    assert torch.all(splats.log_scales[:, 2] < splats.log_scales[:, 0] - 2)


def test_splats_are_even_over_the_area() -> None:
    square = np.array([[0, 0, 0], [3, 0, 0], [3, 1, 0], [0, 1, 0]], float)
    splats = mesh_to_gaussians(Mesh(square, np.array([[0, 1, 2], [0, 2, 3]])), 9_000)
    counts = torch.histc(splats.means[:, 0], bins=3, min=0, max=3)
    assert torch.all((counts - 3_000).abs() < 150)  # stratified: far within the 45 of three sigma of free draws


def test_it_looks_as_the_mesh_does() -> None:
    splats = mesh_to_gaussians(globe(), 20_000)
    for camera in cameras_around(splats, 8, size=64):
        seen = render(splats, camera)
        _, directions = camera.rays()
        origin = camera.center
        directions = torch.nn.functional.normalize(directions, dim=-1)
        along = -(directions * origin).sum(-1)
        missed = origin.square().sum() - along.square()
        hit = missed < 0.9  # well inside the outline
        points = origin + (along - (1 - missed).clamp_min(0).sqrt())[..., None] * directions
        clear = hit & (points[..., 2].abs() > 0.15)
        wanted = torch.where(points[..., 2:] > 0, torch.tensor([1.0, 0, 0]), torch.tensor([0, 0, 1.0]))
        assert float((seen.rgb - wanted).abs().mean(-1)[clear].mean()) < 0.03
        assert float(seen.alpha[hit].min()) > 0.9
        assert float(seen.alpha[missed > 1.3].max()) < 0.01


def test_a_texture_gives_its_colours() -> None:
    picture = np.zeros((2, 2, 3), np.uint8)
    picture[0, 1] = (0, 255, 0)  # top right
    square = Mesh(
        np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], float),
        np.array([[0, 1, 2], [0, 2, 3]]),
        uvs=np.array([[[0, 0], [1, 0], [1, 1]], [[0, 0], [1, 1], [0, 1]]], np.float32),
        material=Material(picture),
    )
    splats = mesh_to_gaussians(square, 4_000)
    green = (splats.sh_dc[:, 1] > 0).numpy()
    corner = ((splats.means[:, 0] > 0.5) & (splats.means[:, 1] > 0.5)).numpy()
    assert (green == corner).mean() > 0.999


def test_cameras_see_all_of_the_scene_from_outside() -> None:
    splats = mesh_to_gaussians(globe(), 2_000)
    cameras = cameras_around(splats, 20)
    for camera in cameras:
        pixels, z = camera.project(splats.means)
        assert bool((z > 0).all()) and bool(((pixels > 0) & (pixels < 512)).all())
    directions = torch.stack([torch.nn.functional.normalize(camera.center, dim=0) for camera in cameras])
    nearest = (directions @ directions.T - 2 * torch.eye(20)).amax(1)
    assert float(nearest.min()) > math.cos(math.radians(60))  # spread over the whole sphere ...
    assert float(directions.mean(0).norm()) < 0.1  # ... on all sides alike


def test_what_has_no_area_is_refused() -> None:
    with pytest.raises(InputError, match="no area"):
        mesh_to_gaussians(Mesh(np.zeros((3, 3)), np.array([[0, 1, 2]])))
