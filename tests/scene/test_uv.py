"""Charts do not overlap, keep their distance, cover every face, and come whatever xatlas does."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_cdt

from scene.mesh import Mesh
from scene.uv import XATLAS_FACES, Unwrapped, charts_by_xatlas, unwrap
from scene.uv_charts import flat_areas
from tests.scene.solid_meshes import bumpy, icosphere, square

SIZE = 256


def owners(laid: Unwrapped, size: int = SIZE) -> tuple[NDArray[np.int64], int]:
    """[S, S] chart at each texel's centre or -1, and how many texels lie within two faces: every face is asked."""
    owner, twice = np.full((size, size), -1), np.zeros((size, size), dtype=int)
    for uv, chart in zip(laid.uvs.astype(np.float64) * size, laid.charts, strict=True):
        low, high = np.floor(uv.min(0)).astype(int), np.ceil(uv.max(0)).astype(int)
        x, y = np.meshgrid(np.arange(low[0], high[0]) + 0.5, np.arange(low[1], high[1]) + 0.5)
        inside = np.ones(x.shape, dtype=bool)
        for i in range(3):
            a, b = uv[i], uv[(i + 1) % 3]
            inside &= (b[0] - a[0]) * (y - a[1]) - (b[1] - a[1]) * (x - a[0]) > 1e-6
        rows, columns = y[inside].astype(int), x[inside].astype(int)
        twice[rows, columns] += 1
        owner[rows, columns] = chart
    return owner, int((twice > 1).sum())


def messy(seed: int = 0) -> Mesh:
    """A ball of noise: folds, spikes, another sheet through it, faces without area, an edge of three faces."""
    rng = np.random.default_rng(seed)
    ball = icosphere(3)
    vertices = ball.vertices * (1 + 0.25 * rng.standard_normal((len(ball.vertices), 1)))
    sheet = square(4)
    odd = np.array([[0, 0, 5], [7, 8, 7], [ball.faces[0, 0], ball.faces[0, 1], 100]])
    return Mesh(
        np.concatenate([vertices, sheet.vertices]),
        np.concatenate([ball.faces, sheet.faces + len(vertices), odd]),
    )


MESHES = {"ball": icosphere(2), "bumpy": bumpy(icosphere(3), 0.06), "sheet": square(6), "messy": messy()}


@pytest.mark.parametrize("name", MESHES)
@pytest.mark.parametrize("seconds", [0.0, 20.0])
def test_faces_lie_apart_upright_and_inside(name: str, seconds: float) -> None:
    mesh = MESHES[name]
    laid = unwrap(mesh, size=SIZE if name != "messy" else 1024, padding=1, seconds=seconds)
    size = SIZE if name != "messy" else 1024
    assert laid.uvs.shape == (len(mesh.faces), 3, 2)
    assert np.isfinite(laid.uvs).all()
    assert laid.uvs.min() >= 0
    assert laid.uvs.max() <= 1
    owner, twice = owners(laid, size)
    assert twice <= 0.002 * (owner >= 0).sum()
    areas = flat_areas(laid.uvs.astype(np.float64))
    assert areas.min() >= -1e-9
    # Most of the surface is neither crushed nor blown up against the rest.
    density = areas[mesh.face_areas > 0] / mesh.face_areas[mesh.face_areas > 0]
    usual = np.median(density)
    crushed = mesh.face_areas[mesh.face_areas > 0][density < 0.2 * usual].sum()
    assert crushed < (0.3 if name == "messy" else 0.01) * mesh.face_areas.sum()


@pytest.mark.parametrize("padding", [4, 8])
def test_charts_keep_twice_the_padding_apart_and_the_padding_from_the_edge(padding: int) -> None:
    laid = unwrap(icosphere(2), size=SIZE, padding=padding)
    owner, _ = owners(laid)
    charts = [c for c in np.unique(owner) if c >= 0]
    assert len(charts) == int(laid.charts.max()) + 1
    for chart in charts:
        rows, columns = np.nonzero(owner == chart)
        assert min(rows.min(), columns.min()) >= padding - 1
        assert max(rows.max(), columns.max()) <= SIZE - padding
        others = (owner >= 0) & (owner != chart)
        apart: Any = distance_transform_cdt(~others, "chessboard")
        assert apart[rows, columns].min() >= 2 * padding - 1


def test_a_chart_is_one_piece_and_its_corners_agree() -> None:
    mesh = icosphere(2)
    laid = unwrap(mesh, size=SIZE, seconds=0)
    places: dict[tuple[int, int], NDArray[np.float32]] = {}
    for chart, face, uvs in zip(laid.charts, mesh.faces, laid.uvs, strict=True):
        for vertex, uv in zip(face, uvs, strict=True):
            assert np.array_equal(places.setdefault((int(chart), int(vertex)), uv), uv)


def test_a_flat_sheet_stays_one_chart_in_its_own_shape() -> None:
    mesh = square(5, side=2.0)
    laid = unwrap(mesh, size=SIZE, seconds=0)
    assert int(laid.charts.max()) == 0
    edges = np.linalg.norm(mesh.vertices[mesh.faces] - np.roll(mesh.vertices[mesh.faces], 1, axis=1), axis=2)
    flat = np.linalg.norm(laid.uvs - np.roll(laid.uvs, 1, axis=1), axis=2)
    assert np.allclose(flat * SIZE, edges * laid.scale, rtol=1e-3)


def test_where_the_mesh_lies_and_how_large_it_is_changes_nothing() -> None:
    mesh = bumpy(icosphere(2))
    large, far = Mesh(1024 * mesh.vertices, mesh.faces), Mesh(mesh.vertices + np.array([5e3, -3e3, 1e3]), mesh.faces)
    here, larger, there = (unwrap(each, size=SIZE, seconds=0) for each in (mesh, large, far))
    assert np.allclose(here.uvs, larger.uvs, atol=1e-6)
    assert here.scale == pytest.approx(1024 * larger.scale, rel=1e-6)
    assert here.scale == pytest.approx(there.scale, rel=0.05)  # faces between two directions go either way by rounding


def test_a_worker_that_hangs_is_ended_in_time(tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    script = tmp_path / "hangs.py"
    script.write_text(f"import pathlib, time\nwhile True: pathlib.Path({str(alive)!r}).touch(); time.sleep(0.05)\n")
    began = time.monotonic()
    assert charts_by_xatlas(icosphere(1), seconds=1.0, worker=(str(script),)) is None
    assert time.monotonic() - began < 3
    alive.unlink()
    time.sleep(0.3)
    assert not alive.exists()


@pytest.mark.parametrize(
    "crash",
    [
        "import os; os.abort()",
        "raise MemoryError",
        "pass",
        "import sys, pathlib; pathlib.Path(sys.argv[1], 'x').touch()",
    ],
)
def test_a_worker_that_crashes_or_says_nothing_is_survived(tmp_path: Path, crash: str) -> None:
    script = tmp_path / "crashes.py"
    script.write_text(crash)
    assert charts_by_xatlas(icosphere(1), seconds=20.0, worker=(str(script),)) is None


def test_a_worker_that_lies_is_not_believed(tmp_path: Path) -> None:
    script = tmp_path / "lies.py"
    script.write_text(
        "import sys, pathlib, numpy as np\nf = pathlib.Path(sys.argv[1]); n = len(np.load(f / 'faces.npy'))\n"
        "np.save(f / 'places.npy', np.tile(np.float32([[0, 0], [1, 0], [0, 1]]), (n, 1, 1)))\n"
        "np.save(f / 'charts.npy', np.zeros(n, np.int64))\n"
    )
    assert charts_by_xatlas(icosphere(1), seconds=20.0, worker=(str(script),)) is None


def test_xatlas_itself_gives_charts_of_a_ball() -> None:
    pytest.importorskip("xatlas")
    mesh = icosphere(2)
    charts = charts_by_xatlas(mesh, seconds=30.0)
    assert charts is not None
    assert charts.ids.shape == (len(mesh.faces),)
    assert flat_areas(charts.uvs).sum() == pytest.approx(mesh.face_areas.sum(), rel=0.25)


@pytest.mark.filterwarnings("error")
def test_a_mesh_without_area_gets_places() -> None:
    line = Mesh(np.array([[0.0, 0, 0], [1, 0, 0], [2, 0, 0]]), np.array([[0, 1, 2]]))
    assert np.isfinite(unwrap(line, size=64, padding=2).uvs).all()


def test_large_meshes_are_not_given_to_xatlas(monkeypatch: pytest.MonkeyPatch) -> None:
    from scene import uv

    monkeypatch.setattr(uv, "XATLAS_FACES", 10)
    monkeypatch.setattr(uv, "charts_by_xatlas", lambda *_, **__: pytest.fail("xatlas was asked"))
    assert XATLAS_FACES > 10
    assert unwrap(icosphere(1), size=SIZE).method == "box"


def test_what_cannot_be_unwrapped_is_told() -> None:
    with pytest.raises(ValueError, match="empty"):
        unwrap(Mesh(np.zeros((0, 3)), np.zeros((0, 3), np.int32)), size=SIZE)
    with pytest.raises(ValueError, match="do not fit"):
        unwrap(icosphere(2), size=16, padding=8, seconds=0)
