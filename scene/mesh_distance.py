"""How far a mesh is from the truth: seeded surface samples and exact distances to the triangles of the other mesh.

Accuracy asks whether what was built is true, completeness whether what is true was built; Chamfer is their mean, as in
the DTU protocol (specs/recon.md 0.5), here without a cap on the distances.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scene.cameras import Camera
from scene.errors import InputError
from scene.mesh import Mesh
from scene.mesh_rays import RayCaster

SAMPLES = 200_000
VISIBILITY_TOLERANCE = 1e-3  # of the truth's diagonal; a sample lies on the very triangle that its ray must meet


@dataclass(frozen=True)
class Box:
    """An axis-aligned box: low [3] and high [3] corners."""

    low: tuple[float, float, float]
    high: tuple[float, float, float]

    def holds(self, points: NDArray[np.float64]) -> NDArray[np.bool_]:
        """[P] which points lie in it, its faces included."""
        return np.all((points >= np.array(self.low)) & (points <= np.array(self.high)), axis=1)


@dataclass(frozen=True)
class ChamferResult:
    """Mean distances in scene units, and what they are measured against.

    accuracy: mesh to truth.  completeness: truth to mesh.  fscore: harmonic mean of the shares of both sample sets
    within `threshold`.  diagonal: of the truth's bounding box (of the part inside the crop box).
    """

    accuracy: float
    completeness: float
    fscore: float
    threshold: float
    diagonal: float
    samples_mesh: int
    samples_truth: int

    @property
    def chamfer(self) -> float:
        """Mean of accuracy and completeness."""
        return 0.5 * (self.accuracy + self.completeness)

    @property
    def percent(self) -> float:
        """Chamfer in percent of the truth's diagonal."""
        return 100.0 * self.chamfer / self.diagonal


def sample_surface(mesh: Mesh, count: int, rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """`count` points, uniform by area, and the face of each: [count, 3], [count].

    Raises InputError when the mesh has no area.
    """
    cumulative = np.cumsum(mesh.face_areas)
    if not len(cumulative) or not cumulative[-1] > 0:
        raise InputError("the mesh has no surface to sample; it is empty or all its faces are degenerate")
    # One jittered point per equal share of the area: the same mean as independent points, less noise.
    shares = (np.arange(count) + rng.random(count)) / count
    faces = np.minimum(np.searchsorted(cumulative, shares * cumulative[-1], side="right"), len(mesh.faces) - 1)
    u, v = rng.random((2, count))
    u, v = np.where(u + v > 1, 1 - u, u), np.where(u + v > 1, 1 - v, v)
    a, b, c = (mesh.vertices[mesh.faces[faces, i]] for i in range(3))
    return a + u[:, None] * (b - a) + v[:, None] * (c - a), faces


def point_to_mesh(points: NDArray[np.float64], mesh: Mesh) -> NDArray[np.float64]:
    """[P] exact distance of each point to the nearest triangle."""
    return _caster(mesh).closest(points).depth.astype(np.float64)


def nearest_faces(points: NDArray[np.float64], mesh: Mesh) -> NDArray[np.int64]:
    """[P] the face of the mesh that each point is nearest to."""
    return _caster(mesh).closest(points).face


def visible(points: NDArray[np.float64], mesh: Mesh, cameras: Sequence[Camera], *, least: int = 1) -> NDArray[np.bool_]:
    """[P] which points on the surface of `mesh` at least `least` of the cameras see: in the image and not occluded."""
    caster = _caster(mesh)
    slack = VISIBILITY_TOLERANCE * mesh.diagonal()
    seen = np.zeros(len(points), dtype=np.int64)
    for camera in cameras:
        eye = camera.center.double().cpu().numpy()
        pixels, depths = _project(camera, points)
        inside = (depths > 0) & (pixels >= 0).all(axis=1) & (pixels < [camera.width, camera.height]).all(axis=1)
        away = points[inside] - eye
        distances = np.linalg.norm(away, axis=1)
        hits = caster.cast(np.broadcast_to(eye, away.shape), away / distances[:, None])
        before = (hits.face >= 0) & (hits.depth < distances - slack)
        seen[np.flatnonzero(inside)[~before]] += 1
    return seen >= least


def chamfer(
    mesh: Mesh,
    truth: Mesh,
    *,
    samples: int = SAMPLES,
    seed: int = 0,
    threshold: float | None = None,
    crop: Box | None = None,
    seen_by: Sequence[Camera] = (),
    least_views: int = 1,
) -> ChamferResult:
    """Compare a mesh with the truth, both in the same frame and units.

    threshold: of the F-score; 1 % of the truth's diagonal when not given.  crop: samples of both outside it do not
    count.  seen_by: truth that fewer than `least_views` of these cameras see does not count for completeness (the
    underside of what stands on a table); accuracy is always judged against the whole truth.
    Raises InputError when nothing is left to compare.
    """
    rng = np.random.default_rng(seed)
    on_mesh, _ = sample_surface(mesh, samples, rng)
    on_truth, _ = sample_surface(truth, samples, rng)
    diagonal = truth.diagonal()
    if crop is not None:
        on_mesh, on_truth = on_mesh[crop.holds(on_mesh)], on_truth[crop.holds(on_truth)]
    if crop is not None and len(on_truth):
        diagonal = float(np.linalg.norm(on_truth.max(axis=0) - on_truth.min(axis=0)))
    if len(seen_by):
        on_truth = on_truth[visible(on_truth, truth, seen_by, least=least_views)]
    if not len(on_mesh) or not len(on_truth):
        raise InputError("nothing to compare: no sample of the mesh or of the truth lies in the crop box and in view")
    limit = 0.01 * diagonal if threshold is None else threshold
    to_truth, to_mesh = point_to_mesh(on_mesh, truth), point_to_mesh(on_truth, mesh)
    precision, recall = float((to_truth < limit).mean()), float((to_mesh < limit).mean())
    return ChamferResult(
        accuracy=float(to_truth.mean()),
        completeness=float(to_mesh.mean()),
        fscore=2 * precision * recall / max(precision + recall, 1e-300),
        threshold=limit,
        diagonal=diagonal,
        samples_mesh=len(on_mesh),
        samples_truth=len(on_truth),
    )


def _caster(mesh: Mesh) -> RayCaster:
    if not len(mesh.faces):
        raise InputError("distances to an empty mesh were asked for")
    return RayCaster(mesh)


def _project(camera: Camera, points: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    K, c2w = camera.K.double().cpu().numpy(), camera.c2w.double().cpu().numpy()
    in_camera = (points - c2w[:3, 3]) @ c2w[:3, :3]
    depths = in_camera[:, 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        pixels = in_camera[:, :2] / depths[:, None] * np.diagonal(K)[:2] + K[:2, 2]
    return pixels, depths
