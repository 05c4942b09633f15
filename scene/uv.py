"""A place in the texture for every corner of every face: charts without overlap, packed with room around them.

Two ways to cut charts: xatlas, in a process of its own and within a time limit, for it may take minutes or crash; and
projection along the axes (`scene/uv_charts.py`), which always works. Both are packed by `scene/uv_pack.py`, and what
gives the surface more texels is taken. On reconstructed meshes, which are bumpy, that is the projection, by far.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from scene.mesh import Mesh
from scene.ops.triangle_raster import cover
from scene.uv_charts import Charts, cut, flat_areas
from scene.uv_pack import pack

CHECK_SIZE = 2048  # texels along the side of the grid on which overlaps are looked for
XATLAS_FACES = 25_000  # larger meshes are not given to xatlas: 20,000 faces took it 2 s, 50,000 20 s, 80,000 246 s
FEW = 1e-3  # share of the faces that may lie over others or mirrored in xatlas's charts

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Unwrapped:
    """uvs: [F, 3, 2] float32 in 0 to 1, without overlap.  charts: [F] chart of each face.  method: who packed them.

    gap: texels between two charts at the size asked for, at least.  scale: texels per unit of length there.
    """

    uvs: NDArray[np.float32]
    charts: NDArray[np.int64]
    method: Literal["xatlas", "box"]
    gap: int
    scale: float


def unwrap(mesh: Mesh, *, size: int, padding: int = 8, seconds: float = 60.0) -> Unwrapped:
    """Charts of the mesh in a square texture of `size` texels, each with `padding` texels of its own around it.

    seconds: for xatlas; 0 packs by boxes at once. Faces without area get a place, but no texels.
    Raises ValueError for an empty mesh, or when there are too many charts for such a padding.
    """
    if not len(mesh.faces):
        raise ValueError("an empty mesh cannot be unwrapped")
    charts = cut(mesh, overlapping)
    method: Literal["xatlas", "box"] = "box"
    layout = pack(charts, size=size, gap=2 * padding)
    if seconds > 0 and len(mesh.faces) <= XATLAS_FACES:
        other = charts_by_xatlas(mesh, seconds=seconds)
        if other is not None:
            with contextlib.suppress(ValueError):  # more charts than fit: ours did
                outlines = pack(other, size=size, gap=2 * padding)
                if _density(outlines.uvs, mesh) > _density(layout.uvs, mesh):
                    charts, layout, method = other, outlines, "xatlas"
    return Unwrapped(layout.uvs.astype(np.float32), charts.ids, method, 2 * padding, layout.scale)


def overlapping(charts: Charts) -> NDArray[np.bool_]:
    """[F] faces that lie over an earlier face of their chart."""
    layout = pack(charts, size=CHECK_SIZE, gap=1, turn=False)
    return cover(torch.from_numpy(layout.uvs * CHECK_SIZE), CHECK_SIZE, CHECK_SIZE)[1].numpy()


def charts_by_xatlas(
    mesh: Mesh, *, seconds: float, worker: tuple[str, ...] = ("-m", "scene.uv_worker")
) -> Charts | None:
    """xatlas's charts, or None when it is missing, crashes, is not done in time or folds the mesh.

    worker: what Python is asked to run, for tests.
    """
    low, high = mesh.bounds()
    scale = max(float((high - low).max()), 1e-300)
    # Found again from any folder, also where the package is not installed.
    search = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    with tempfile.TemporaryDirectory(prefix="maquette_uv_") as name:
        folder = Path(name)
        np.save(folder / "vertices.npy", ((mesh.vertices - low) / scale).astype(np.float32), allow_pickle=False)
        np.save(folder / "faces.npy", mesh.faces.astype(np.uint32), allow_pickle=False)
        try:
            done = subprocess.run(
                [sys.executable, *worker, str(folder)],
                env={**os.environ, "PYTHONPATH": search},
                capture_output=True,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            log.info("xatlas took more than %g s and was stopped", seconds)
            return None
        if done.returncode != 0 or not (folder / "charts.npy").is_file():
            log.info("xatlas failed (exit %d)", done.returncode)
            return None
        uvs = np.load(folder / "places.npy", allow_pickle=False).astype(np.float64) * scale
        ids = np.load(folder / "charts.npy", allow_pickle=False)
    if uvs.shape != (len(mesh.faces), 3, 2) or ids.shape != (len(mesh.faces),) or not np.isfinite(uvs).all():
        return None
    charts = Charts(uvs, ids)
    wrong = overlapping(charts) | (flat_areas(uvs) < 0)
    return None if wrong.mean() > FEW else charts


def _density(uvs: NDArray[np.float64], mesh: Mesh) -> float:
    """Mean over the surface of the logarithm of texels per area: a stretched chart gains less than it costs.

    Faces without area have no share in it; -inf where all charts are dots.
    """
    solid = mesh.face_areas > 0
    areas = mesh.face_areas[solid]
    share = flat_areas(uvs)[solid] / areas
    most = share.max(initial=0.0)
    return float((areas * np.log(np.maximum(share, 1e-12 * most))).sum()) if most > 0 else -np.inf
