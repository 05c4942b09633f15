"""Mesh formats: size, time, and how far independent readers are from what was written.

    python -m benchmarks.mesh_formats --json mesh_formats.json

A torus of 50,000 faces with a picture of 2048 x 2048 goes into every format. Readers: ours, trimesh, Open3D, Blender
(headless), usd-core; `-` where one does not know the format or is not installed. Figures:
    MB          all files of the format: mesh, material, picture
    write, read seconds, median of three; reading is ours
    corners     largest distance of a corner from where it was written, in the scene's frame; the torus is 3 units wide
    picture     mean difference (of 255) of the texture at the middles of the faces, as we read it back
    complaints  errors and warnings of the Khronos glTF validator, or of all validators of usd-core
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.common import HostLoad, record, table, write_json
from scene.formats import load_mesh, save_mesh
from scene.formats.materials import sample
from scene.formats.usd import pxr
from scene.mesh import Material, Mesh
from tests import peers

FORMATS = (".glb", ".obj", ".ply", ".stl", ".usdz", ".usda", ".usdc")
Y_UP = (".glb", ".obj", ".usdz", ".usda", ".usdc")
READERS = ("ours", "trimesh", "open3d", "blender", "usd-core")
BLENDER = Path(__file__).resolve().parents[1] / "tests" / "scene" / "formats" / "blender_reads.py"
ROUNDS = 3


def textured_torus(around: int = 250, across: int = 100, pixels: int = 2048) -> Mesh:
    """2 * around * across faces, closed, with one seam each way, and a picture that changes as slowly as photos do."""
    u, v = np.meshgrid(np.arange(around + 1), np.arange(across + 1), indexing="ij")
    a, b = 2 * np.pi * u[:-1, :-1] / around, 2 * np.pi * v[:-1, :-1] / across
    ring = 1 + 0.4 * np.cos(b)
    vertices = np.stack([ring * np.cos(a), ring * np.sin(a), 0.4 * np.sin(b)], axis=-1).reshape(-1, 3)
    corners = np.stack([(0, 0), (1, 0), (1, 1), (0, 0), (1, 1), (0, 1)])  # of each cell, two triangles
    at = np.stack([u[:-1, :-1], v[:-1, :-1]], axis=-1).reshape(-1, 1, 2) + corners
    faces = (at[..., 0] % around * across + at[..., 1] % across).reshape(-1, 3).astype(np.int32)
    uvs = (at / [around, across]).reshape(-1, 3, 2).astype(np.float32)
    y, x = np.mgrid[:pixels, :pixels] * (2 * np.pi / pixels)
    waves = [128 + 60 * np.sin(5 * x + i) * np.cos(7 * y) + 50 * np.sin(40 * x + 31 * y + i) for i in range(3)]
    grain = np.random.default_rng(0).normal(0, 3, (pixels, pixels, 3))  # what a camera adds
    picture = np.clip(np.stack(waves, axis=-1) + grain, 0, 255).astype(np.uint8)
    return Mesh(vertices, faces, None, uvs, Material(picture))


def corner_error(truth: NDArray, got: NDArray) -> float:
    """Largest distance between corners of triangles [F, 3, 3] in any order but of the same winding."""
    from scipy.spatial import KDTree

    if truth.shape != got.shape:
        return float("inf")
    nearest = KDTree(got.mean(axis=1)).query(truth.mean(axis=1))[1]
    turned = [np.linalg.norm(np.roll(got[nearest], turn, axis=1) - truth, axis=2).max(axis=1) for turn in range(3)]
    return float(np.min(turned, axis=0).max())


def triangles_of(reader: str, path: Path) -> NDArray | None:
    """What another reader finds in a file, in the file's own axes; None where it does not know the format."""
    usd = path.suffix.startswith(".usd")
    if reader == "trimesh" and not usd:
        import trimesh

        found: Any = trimesh.load(path, force="mesh", process=False)
        return np.asarray(found.triangles)
    if reader == "open3d" and not usd:
        mesh: Any = peers.open3d().io.read_triangle_mesh(path)
        return np.asarray(mesh.vertices)[np.asarray(mesh.triangles)]
    if reader == "usd-core" and usd:
        Usd, UsdGeom = pxr("Usd", "UsdGeom")
        stage = Usd.Stage.Open(str(path))
        shape = next(UsdGeom.Mesh(prim) for prim in stage.Traverse() if prim.IsA(UsdGeom.Mesh))
        points, index = shape.GetPointsAttr().Get(), shape.GetFaceVertexIndicesAttr().Get()
        return np.array(points)[np.array(index).reshape(-1, 3)]
    return None


def scene_axes(triangles: NDArray, ending: str) -> NDArray:
    """From the axes of a file to the scene's, which stands +Z up."""
    return triangles @ np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]) if ending in Y_UP else triangles


def complaints(path: Path) -> int | None:
    """Errors and warnings of the validator of a format that has one."""
    if path.suffix == ".glb":
        issues = peers.gltf_report(path)["issues"]
        return issues["numErrors"] + issues["numWarnings"]
    if path.suffix.startswith(".usd"):
        Usd, UsdValidation = pxr("Usd", "UsdValidation")
        context = UsdValidation.ValidationContext(UsdValidation.ValidationRegistry().GetOrLoadAllValidators())
        return len(context.Validate(Usd.Stage.Open(str(path))))
    return None


def unless_missing(act: Callable[[], Any]) -> Any:
    """What `act` returns, or None where the peer it needs is not installed."""
    try:
        return act()
    except pytest.skip.Exception:
        return None


def seconds(act: Callable[[], Any]) -> float:
    """Median time of a few calls."""
    taken = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        act()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def judge(mesh: Mesh, folder: Path, ending: str) -> dict[str, Any]:
    """Write, read and compare one format; Blender comes later, once for all."""
    (folder / ending).mkdir()
    path = folder / ending / f"torus{ending}"
    truth = mesh.vertices[mesh.faces]
    row: dict[str, Any] = {"format": ending, "write": seconds(lambda: save_mesh(path, mesh))}
    row["MB"] = sum(file.stat().st_size for file in path.parent.iterdir()) / 1e6
    row["read"] = seconds(lambda: load_mesh(path))
    back = load_mesh(path)
    row["ours"] = corner_error(truth, back.vertices[back.faces])
    row["watertight"] = back.facts().watertight
    for reader in READERS[1:]:
        found = unless_missing(partial(triangles_of, reader, path))
        row[reader] = None if found is None else corner_error(truth, scene_axes(found, ending))
    row["picture"] = None
    if back.material is not None and back.uvs is not None and mesh.material is not None and mesh.uvs is not None:
        wanted = sample(mesh.material.base_color, mesh.uvs.mean(axis=1))
        row["picture"] = float(np.abs(sample(back.material.base_color, back.uvs.mean(axis=1)) - wanted).mean())
    row["complaints"] = unless_missing(lambda: complaints(path))
    return row


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what the command line asks for; fails where a reader is further than 1e-4 away or a validator complains."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where to write all figures")
    parser.add_argument("--small", action="store_true", help="a few hundred faces, to see that all works")
    options = parser.parse_args(arguments)
    load = HostLoad()
    mesh = textured_torus(20, 10, 256) if options.small else textured_torus()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [judge(mesh, folder, ending) for ending in FORMATS]
        files = [folder / ending / f"torus{ending}" for ending in FORMATS if not ending.startswith(".usd")]
        seen = unless_missing(lambda: peers.run_blender(BLENDER, "--no-pictures", *files)) or {}
        for row in rows:
            found = seen.get(f"torus{row['format']}")
            if found is not None:  # Blender stands +Z up, as the scene does
                row["blender"] = corner_error(mesh.vertices[mesh.faces], np.array(found["triangles"]))
    columns = ("format", "MB", "write", "read", *READERS, "picture", "watertight", "complaints")
    print(table(columns, [[row[column] for column in columns] for row in rows]))
    write_json(options.json, {"faces": len(mesh.faces), "formats": rows, "record": record(load)})
    far = any((row[reader] or 0) > 1e-4 for row in rows for reader in READERS)
    return int(far or any(row["complaints"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
