"""Meshes from elsewhere, in the folder of real data: read as trimesh reads them, and through our formats and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh

from scene.formats import load_mesh, save_mesh
from scene.formats.materials import sample
from scene.mesh import Material, Mesh

Y_UP = (0.0, 1.0, 0.0)
NAMES = (
    *("armadillo.obj", "fandisk.obj", "spot.obj", "stanford-bunny.obj", "suzanne.obj", "teapot.obj"),
    "banana/textured_simple_reoriented.obj",
)


@pytest.mark.parametrize("name", NAMES)
def test_a_real_mesh_is_read_as_trimesh_reads_it(real_data: Path, name: str):
    path = real_data / "meshes" / name
    if not path.is_file():
        pytest.skip(f"{name} is not among the real data")
    mesh = load_mesh(path, up=Y_UP)
    other = trimesh.load(path, force="mesh", process=False)
    assert isinstance(other, trimesh.Trimesh)
    triangles = np.asarray(other.triangles)
    assert mesh.faces.shape == other.faces.shape
    # Quads may be cut along their other diagonal: what does not depend on it is compared.
    assert mesh.face_areas.sum() == pytest.approx(other.area, rel=1e-3)
    assert np.allclose(mesh.bounds(), [triangles.min(axis=(0, 1)), triangles.max(axis=(0, 1))], atol=1e-9)
    merged: Any = trimesh.load(path, force="mesh", process=True, merge_tex=True)
    assert mesh.facts().watertight == merged.is_watertight


def test_the_banana_keeps_its_skin_through_every_format(real_data: Path, tmp_path: Path):
    path = real_data / "meshes" / "banana" / "textured_simple_reoriented.obj"
    if not path.is_file():
        pytest.skip("the banana is not among the real data")
    mesh = load_mesh(path, up=Y_UP)
    assert mesh.material is not None and mesh.uvs is not None
    small = mesh.material.base_color[::8, ::8].copy()
    truth = sample(small, mesh.uvs.mean(axis=1))
    mesh = Mesh(mesh.vertices, mesh.faces, None, mesh.uvs, Material(small))
    for ending in (".glb", ".obj", ".ply", ".usdz"):
        save_mesh(tmp_path / f"banana{ending}", mesh, up=Y_UP)
        back = load_mesh(tmp_path / f"banana{ending}", up=Y_UP)
        assert back.material is not None and back.uvs is not None
        assert len(back.vertices) == len(mesh.vertices), ending  # the seams are closed again
        assert back.facts().watertight == mesh.facts().watertight
        assert np.abs(back.vertices[back.faces] - mesh.vertices[mesh.faces]).max() < 1e-7
        error = np.abs(sample(back.material.base_color, back.uvs.mean(axis=1)) - truth)
        assert error.mean() < 0.1, ending
    other: Any = trimesh.load(tmp_path / "banana.glb", force="mesh", process=False)
    uvs = np.asarray(other.visual.uv)[other.faces].mean(axis=1)
    picture = np.asarray(other.visual.material.baseColorTexture.convert("RGB"))
    assert np.abs(sample(picture, uvs) - truth).mean() < 0.1
