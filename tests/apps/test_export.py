"""`maquette export`: runs and files of any kind into every format, and what cannot be asked."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from apps import cli
from apps.export import kind_for
from scene.cameras import Camera
from scene.conversions import cameras_around
from scene.formats import kind_of, load_mesh, load_splats, save_mesh, save_splats
from scene.gaussians import Gaussians
from scene.mesh import Material, Mesh
from tests.apps.test_pipeline import FAST
from tests.apps.tiny import write_tiny

SPLATS = (".ply", ".splat", ".spz", ".sog")
MESHES = (".glb", ".obj", ".stl")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run, from photos of a ball."""
    folder = tmp_path_factory.mktemp("export")
    ball = write_tiny(folder / "ball")
    assert cli.run(["recon", str(ball), "--out", str(folder / "run"), *FAST]) == 0
    return folder / "run"


@pytest.fixture
def wedge(tmp_path: Path) -> Path:
    """A textured triangle prism as .glb: open, and different along each axis."""
    vertices = np.array([[0, 0, 0], [2, 0, 0], [0, 1, 0], [0, 0, 3], [2, 0, 3], [0, 1, 3]], float)
    faces = np.array([[0, 2, 1], [3, 4, 5], [0, 1, 4], [0, 4, 3]])
    uvs = np.random.default_rng(0).random((4, 3, 2)).astype(np.float32)
    picture = np.random.default_rng(1).integers(0, 255, (16, 16, 3), np.uint8)
    path = tmp_path / "wedge.glb"
    save_mesh(path, Mesh(vertices, faces, uvs=uvs, material=Material(picture)))
    return path


@pytest.fixture
def cloud(tmp_path: Path) -> Path:
    """A hundred splats of degree 1 around a place away from the origin, as .spz."""
    generator = torch.Generator().manual_seed(0)
    splats = Gaussians.from_points(
        torch.randn(100, 3, generator=generator) + torch.tensor([1.0, 2.0, 3.0]),
        torch.randint(0, 255, (100, 3), generator=generator, dtype=torch.uint8),
        sh_degree=1,
    )
    path = tmp_path / "cloud.spz"
    save_splats(path, splats)
    return path


def export(source: Path, *words: str | Path) -> int:
    return cli.run(["export", str(source), "--to", *map(str, words)])


def test_a_run_goes_into_every_format(run: Path, tmp_path: Path) -> None:
    splats, meshes = [tmp_path / f"a{e}" for e in SPLATS], [tmp_path / f"a{e}" for e in (*MESHES, "_mesh.ply", ".usdz")]
    pages = [tmp_path / "deep" / "a.html", tmp_path / "a_splats.glb"]
    assert export(run, *splats, *meshes, *pages) == 0
    assert load_splats(tmp_path / "a.ply").parameters().keys()
    count = len(load_splats(run / "scene.ply"))
    assert {len(load_splats(path)) for path in [*splats, pages[1]]} == {count}
    assert {len(load_mesh(path).faces) for path in meshes} == {len(load_mesh(run / "mesh.glb").faces)}
    assert pages[0].read_text().lstrip().startswith("<!doctype html>")
    assert [kind_of(path) for path in (*splats, *meshes)] == ["splats"] * len(splats) + ["mesh"] * len(meshes)


def test_a_run_makes_its_mesh_anew_in_another_size(run: Path, tmp_path: Path) -> None:
    small = tmp_path / "small.glb"
    assert export(run, small, "--faces", "500", "--cameras") == 0
    mesh = load_mesh(small)
    assert 100 < len(mesh.faces) <= 500
    assert mesh.material is not None
    data = small.read_bytes()
    document = json.loads(data[20 : 20 + int.from_bytes(data[12:16], "little")])
    assert len(document["cameras"]) == 19
    assert {check["name"] for check in document["asset"]["extras"]["checks"]} >= {"manifold", "uv overlap", "distance"}


def test_a_run_whose_photos_are_gone_takes_the_texture_from_its_splats(run: Path, tmp_path: Path) -> None:
    photos = Path(json.loads((run / "config.json").read_text())["source"])
    away = photos.rename(photos.with_name("moved"))
    try:
        assert export(run, tmp_path / "a.glb", "--faces", "500") == 0
    finally:
        away.rename(photos)
    material = load_mesh(tmp_path / "a.glb").material
    assert material is not None and material.base_color.std() > 10


@pytest.mark.parametrize("ending", [*MESHES, "_mesh.ply"])
def test_a_mesh_file_goes_into_every_mesh_format(wedge: Path, tmp_path: Path, ending: str) -> None:
    target = tmp_path / f"out{ending}"
    assert export(wedge, target) == 0
    before, after = load_mesh(wedge), load_mesh(target)
    corners = [np.sort(mesh.vertices[mesh.faces].reshape(-1, 3).round(4), axis=0) for mesh in (before, after)]
    assert np.allclose(*corners, atol=1e-4)


@pytest.mark.parametrize("ending", SPLATS)
def test_a_splat_file_goes_into_every_splat_format(cloud: Path, tmp_path: Path, ending: str) -> None:
    target = tmp_path / f"out{ending}"
    assert export(cloud, target) == 0
    before, after = load_splats(cloud), load_splats(target)
    nearest = torch.cdist(before.means, after.means).amin(1)  # formats may sort
    assert float(nearest.max()) < 0.01


def test_a_mesh_becomes_splats_and_splats_become_a_mesh(wedge: Path, tmp_path: Path) -> None:
    assert export(wedge, tmp_path / "wedge.ply", "--what", "splats") == 0
    splats = load_splats(tmp_path / "wedge.ply")
    assert len(splats) > 10_000
    assert export(tmp_path / "wedge.ply", tmp_path / "back.glb", "--faces", "1000", "--up", "z") == 0
    low, high = load_mesh(tmp_path / "back.glb").bounds()
    assert np.allclose(low, (0, 0, 0), atol=0.15) and np.allclose(high, (2, 1, 3), atol=0.15)


def test_what_is_up_is_kept_and_may_be_told(cloud: Path, wedge: Path, tmp_path: Path) -> None:
    # SPZ and glTF stand +Y up, .splat -Y up: from one to another nothing but the convention changes.
    assert export(cloud, tmp_path / "a.splat", tmp_path / "a.ply") == 0
    scene = load_splats(cloud)
    assert torch.allclose(load_splats(tmp_path / "a.splat").means.mean(0), scene.means.mean(0), atol=0.01)
    assert export(wedge, tmp_path / "b.glb", "--up", "x") == 0  # says that the file's +X is up
    before, after = load_mesh(wedge, up=(0, 1, 0)), load_mesh(tmp_path / "b.glb", up=(0, 1, 0))
    assert np.isclose(np.ptp(after.vertices[:, 1]), np.ptp(before.vertices[:, 0]), atol=1e-4)


@pytest.mark.parametrize(
    ("name", "what", "kind"),
    [
        ("a.ply", "auto", "splats"),
        ("a_mesh.ply", "auto", "mesh"),
        ("a.glb", "auto", "mesh"),
        ("Splats.GLB", "auto", "splats"),
        ("a.glb", "splats", "splats"),
        ("a.ply", "mesh", "mesh"),
        ("a.usdz", "auto", "mesh"),
        ("mesh.spz", "auto", "splats"),
        ("a.obj", "splats", "mesh"),
        ("a.html", "auto", "page"),
    ],
)
def test_the_name_says_what_a_file_holds(name: str, what: str, kind: str) -> None:
    assert kind_for(Path(name), what) == kind


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["good.ply", "a.xyz"], ".xyz is not written"),
        (["a"], "no ending"),
        (["wedge.glb"], "the source itself"),
        (["a.glb", "--faces", "3"], "--faces must lie between"),
        (["a.glb", "--faces", "1000"], "the source is a mesh"),
        (["a.glb", "--up", "w"], "--up must be one of"),
    ],
)
def test_what_cannot_be_done_is_2_and_writes_nothing(
    wedge: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    monkeypatch.chdir(wedge.parent)
    before = wedge.read_bytes()
    assert export(Path("wedge.glb"), *words) == 2
    assert says in capsys.readouterr().err
    assert sorted(path.name for path in wedge.parent.iterdir()) == ["wedge.glb"]
    assert wedge.read_bytes() == before


def test_a_source_that_is_none_is_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(tmp_path / "none.ply", tmp_path / "a.glb") == 2
    assert "there is no run or file" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert export(tmp_path / "empty", tmp_path / "a.glb") == 2
    (tmp_path / "text.ply").write_text("hello")
    assert export(tmp_path / "text.ply", tmp_path / "a.glb") == 2


def test_cameras_for_splats_without_any_are_ordinary_cameras(cloud: Path) -> None:
    cameras = cameras_around(load_splats(cloud), 4)
    assert all(isinstance(camera, Camera) and torch.isfinite(camera.c2w).all() for camera in cameras)
