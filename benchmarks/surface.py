"""Meshes of finished runs, judged: against the true surface where there is one, and against the splats they come from.

    python -m benchmarks.surface runs/sample runs/lego --json surface.json
    python -m benchmarks.surface runs/sample --faces 50000 --save meshes

Only training cameras are used, to make the mesh and to judge its depth. Figures:
    accuracy, completeness, chamfer   mean distances to the true surface in its box, % of the diagonal (sample only)
    normals     mean angle between mesh and true surface at the nearest point, degrees (sample only)
    truth       median |mesh depth - true depth|, % of the diagonal; `blind` is the share of true pixels without a mesh
    splats      median |mesh depth - depth at which half of the splats' light is gone|, % of the diagonal
    bends       mean angle over the edges between faces after decimation to 50k faces, degrees: how bumpy it looks
    parts, loops, border   connected parts, loops of boundary edges (holes and rims), boundary edges: of the fine mesh
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from apps.run_cameras import RunCameras, read_cameras
from apps.run_scene import scene_splats
from benchmarks.common import HostLoad, record, table, write_json
from data.sample import align_cameras, sample_photos, sample_truth
from scene.cameras import Camera
from scene.formats import load_mesh, save_mesh
from scene.gaussians import Gaussians
from scene.mesh import Mesh, decimate
from scene.mesh_distance import Box, chamfer, nearest_faces, sample_surface
from scene.mesh_extraction import MeshConfig, gaussians_to_mesh
from scene.mesh_rays import RayCaster
from scene.rasterize import render
from scene.runs import Run

COLUMNS = (
    *("accuracy", "completeness", "chamfer", "normals", "truth", "blind", "splats"),
    *("bends", "faces", "parts", "loops", "border", "seconds"),
)
LOOKS = 12  # training views whose depth is compared
SAME_BUDGET = 50_000  # faces at which bends are measured, so that meshes of any resolution compare


@dataclass(frozen=True)
class Truth:
    """The true surface in the frame of the run: mesh, and the box that is judged in the frame of the truth."""

    mesh: Mesh
    box: Box
    truth_from_run: NDArray[np.float64]  # [4, 4]
    cameras: dict[str, Camera]  # true ones by name


def sample_truth_of(seen: RunCameras) -> Truth | None:
    """The sample's truth where the run is of the sample's photos, else None."""
    if not set(seen.names) <= {photo.name for photo in sample_photos().iterdir()}:
        return None
    truth = sample_truth()
    alignment = align_cameras(dict(zip(seen.names, seen.cameras)), truth.cameras)
    matrix = np.eye(4)
    matrix[:3, :3] = alignment.similarity.scale * alignment.similarity.rotation.numpy()
    matrix[:3, 3] = alignment.similarity.translation.numpy()
    low, high = truth.box.tolist()
    return Truth(load_mesh(truth.mesh), Box(tuple(low), tuple(high)), matrix, truth.cameras)


def depth_of(mesh: Mesh, camera: Camera) -> NDArray[np.float32]:
    """[H, W] z-depth of the mesh, infinite where the ray meets nothing."""
    hits = RayCaster(mesh).view(camera)
    return np.where(hits.face >= 0, hits.depth, np.float32(np.inf)).reshape(camera.height, camera.width)


def against_truth(mesh: Mesh, seen: RunCameras, truth: Truth) -> dict[str, float]:
    """Distances, normals and depth of the mesh against the true surface."""
    moved = mesh.transformed(truth.truth_from_run)
    result = chamfer(moved, truth.mesh, crop=truth.box)
    share = 100 / result.diagonal
    errors, missing, wanted = [], 0, 0
    names = [name for name, held in zip(seen.names, seen.held_out) if not held]
    for name in names[:: max(1, len(names) // LOOKS)]:
        true, ours = (depth_of(surface, truth.cameras[name]) for surface in (truth.mesh, moved))
        both = np.isfinite(true) & np.isfinite(ours)
        errors.append(np.abs(true[both] - ours[both]))
        missing, wanted = missing + int((np.isfinite(true) & ~both).sum()), wanted + int(np.isfinite(true).sum())
    return {
        "accuracy": share * result.accuracy,
        "completeness": share * result.completeness,
        "chamfer": result.percent,
        "fscore": result.fscore,
        "normals": _normal_error(moved, truth),
        "truth": share * float(np.median(np.concatenate(errors))),
        "blind": 100 * missing / max(1, wanted),
    }


def _normal_error(mesh: Mesh, truth: Truth) -> float:
    """Mean angle in degrees between the normal of the mesh and that of the nearest true point, in the box."""
    points, faces = sample_surface(mesh, 100_000, np.random.default_rng(0))
    inside = truth.box.holds(points)
    points, faces = points[inside], faces[inside]
    true = truth.mesh.face_normals[nearest_faces(points, truth.mesh)]
    ours = mesh.face_normals[faces]
    ours = ours / np.linalg.norm(ours, axis=1, keepdims=True)
    true = true / np.linalg.norm(true, axis=1, keepdims=True)
    return float(np.degrees(np.arccos(np.clip((ours * true).sum(axis=1), -1, 1))).mean())


def against_splats(mesh: Mesh, gaussians: Gaussians, cameras: Sequence[Camera]) -> float:
    """Median distance between the depth of the mesh and that of the splats, % of the mesh's diagonal."""
    errors = []
    for camera in cameras[:: max(1, len(cameras) // LOOKS)]:
        with torch.no_grad():
            wanted = render(gaussians, camera, with_geometry=True).median_depth
        assert wanted is not None
        ours = depth_of(mesh, camera)
        both = np.isfinite(ours) & (wanted.numpy() > 0)
        errors.append(np.abs(ours[both] - wanted.numpy()[both]))
    return 100 * float(np.median(np.concatenate(errors))) / mesh.diagonal()


def bends(mesh: Mesh) -> float:
    """Mean angle between the normals of neighbouring faces in degrees, weighted by the length of their edge."""
    start, stop = mesh.faces.reshape(-1), np.roll(mesh.faces, -1, axis=1).reshape(-1)
    keys = np.minimum(start, stop).astype(np.int64) * len(mesh.vertices) + np.maximum(start, stop)
    order = np.argsort(keys, kind="stable")
    same = keys[order[1:]] == keys[order[:-1]]
    first, second = order[:-1][same], order[1:][same]
    normals = mesh.face_normals / np.maximum(2 * mesh.face_areas[:, None], 1e-300)
    cosine = (normals[first // 3] * normals[second // 3]).sum(axis=1)
    length = np.linalg.norm(mesh.vertices[start[first]] - mesh.vertices[stop[first]], axis=1)
    return float(np.average(np.degrees(np.arccos(np.clip(cosine, -1, 1))), weights=length))


def boundary_loops(mesh: Mesh) -> int:
    """How many separate sets of boundary edges there are: holes, and the rims of an open surface."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    start, stop = mesh.faces.reshape(-1), np.roll(mesh.faces, -1, axis=1).reshape(-1)
    keys = np.minimum(start, stop).astype(np.int64) * len(mesh.vertices) + np.maximum(start, stop)
    single, counts = np.unique(keys, return_counts=True)
    single = single[counts == 1]
    a, b = single // len(mesh.vertices), single % len(mesh.vertices)
    used, index = np.unique(np.concatenate([a, b]), return_inverse=True)
    ones = np.ones(len(a), dtype=np.int8)
    graph = coo_matrix((ones, (index[: len(a)], index[len(a) :])), shape=(len(used), len(used)))
    return int(connected_components(graph, directed=False)[0]) if len(used) else 0


def measure(mesh: Mesh, gaussians: Gaussians, seen: RunCameras, *, faces: int = 0) -> dict[str, Any]:
    """All figures of the fine mesh; distances are those of its decimation where `faces` is given."""
    facts = mesh.facts()
    judged = decimate(mesh, faces) if faces else mesh
    truth = sample_truth_of(seen)
    return {
        **({} if truth is None else against_truth(judged, seen, truth)),
        "splats": against_splats(judged, gaussians, seen.train),
        "bends": bends(decimate(mesh, SAME_BUDGET)),
        "faces": len(judged.faces),
        "parts": facts.components,
        "loops": boundary_loops(mesh),
        "border": facts.boundary_edges,
        "manifold": facts.manifold,
    }


def judge_run(folder: Path, *, faces: int, save: Path | None) -> dict[str, Any]:
    """One row: the mesh of a finished run and what it is worth."""
    run = Run.open(folder, writing=False)
    gaussians, seen = scene_splats(run), read_cameras(run)
    began = time.perf_counter()
    mesh = gaussians_to_mesh(gaussians, seen.train, MeshConfig(faces=0))
    seconds = time.perf_counter() - began
    if save is not None:
        save.mkdir(parents=True, exist_ok=True)
        save_mesh(save / f"{folder.name}.ply", mesh)
    return {"run": folder.name, **measure(mesh, gaussians, seen, faces=faces), "seconds": round(seconds, 1)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--faces", type=int, default=0, help="judge the mesh decimated to so many faces")
    parser.add_argument("--save", type=Path, help="folder for the fine meshes as .ply")
    parser.add_argument("--json", type=Path, help="where to write all figures")
    options = parser.parse_args(arguments)
    load, rows = HostLoad(), []
    for folder in options.runs:
        rows.append(judge_run(folder, faces=options.faces, save=options.save))
        print(table(["run", *COLUMNS], [[row.get(name) for name in ("run", *COLUMNS)] for row in rows[-1:]]))
    write_json(options.json, {"faces": options.faces, "runs": rows, "record": record(load)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
