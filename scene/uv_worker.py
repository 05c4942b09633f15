"""xatlas in a process of its own: `python -m scene.uv_worker FOLDER`. Called by scene/uv.py, which may kill it.

FOLDER holds vertices.npy [V, 3] float32, faces.npy [F, 3] uint32 and request.json {"size", "gap"}; when all went well
it then also holds uvs.npy [F, 3, 2] float32 in texels, charts.npy [F] int64 and, written last, answer.json {"scale"}.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

CHART_COST = (
    8.0  # xatlas's max_cost; its default of 2 grows no larger charts on bumpy meshes and takes half again as long
)
PACKINGS = 4  # at scales closer and closer to the largest that fits
FILLED = 0.7  # share of the square that charts fill, as a first guess


def main(folder: Path) -> None:
    """Unwrap what the folder holds."""
    vertices = np.load(folder / "vertices.npy", allow_pickle=False)
    faces = np.load(folder / "faces.npy", allow_pickle=False)
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    flat = parameterize(vertices, faces)
    charts = connected(flat[1])
    placed, scale = packed(*flat, size=int(request["size"]), gap=int(request["gap"]))
    np.save(folder / "uvs.npy", placed, allow_pickle=False)
    np.save(folder / "charts.npy", charts, allow_pickle=False)
    (folder / "answer.json").write_text(json.dumps({"scale": scale}), encoding="utf-8")


def parameterize(
    vertices: NDArray[np.float32], faces: NDArray[np.uint32]
) -> tuple[NDArray[np.float32], NDArray[np.uint32]]:
    """Flat places [W, 2] in lengths of the mesh, and faces [F, 3] that point to them: charts share none."""
    import xatlas

    atlas = xatlas.Atlas()
    atlas.add_mesh(vertices, faces)
    options, packing = xatlas.ChartOptions(), xatlas.PackOptions()
    options.max_cost = CHART_COST
    packing.resolution = 256  # only the charts are wanted: the packing of this round is thrown away
    atlas.generate(options, packing)
    _, indices, uvs = atlas.get_mesh(0)
    return uvs * np.array([atlas.width, atlas.height], np.float32) / atlas.texels_per_unit, indices


def connected(faces: NDArray[np.uint32]) -> NDArray[np.int64]:
    """[F] number of the connected part of each face."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    count = int(faces.max(initial=0)) + 1
    ends = np.concatenate([faces[:, 0], faces[:, 0]]), np.concatenate([faces[:, 1], faces[:, 2]])
    graph = coo_matrix((np.ones(len(ends[0]), np.int8), ends), shape=(count, count))
    parts = connected_components(graph, directed=False)[1][faces[:, 0]]
    return np.unique(parts, return_inverse=True)[1].reshape(-1).astype(np.int64)


def packed(
    places: NDArray[np.float32], faces: NDArray[np.uint32], *, size: int, gap: int
) -> tuple[NDArray[np.float32], float]:
    """[F, 3, 2] places in a square of `size` texels, at the largest scale (texels per length) that was found to fit."""
    corners = places[faces].astype(np.float64)
    first, second = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    area = 0.5 * np.abs(first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0]).sum()
    scale = size * (FILLED / max(float(area), 1e-30)) ** 0.5
    best: tuple[NDArray[np.float32], float] | None = None
    for round_ in range(3 * PACKINGS):
        placed, reached = _pack(places, faces, scale, gap)
        if reached <= size:
            best = placed, scale
        if best is not None and (round_ >= PACKINGS - 1 or reached > 0.985 * size):
            return best
        # Gaps do not shrink with the scale, so what does not fit must shrink a little more.
        scale *= size / reached * (0.97 if reached > size else 0.995)
    raise RuntimeError(f"{len(np.unique(connected(faces)))} charts do not fit into {size} texels with gaps of {gap}")


def _pack(
    places: NDArray[np.float32], faces: NDArray[np.uint32], scale: float, gap: int
) -> tuple[NDArray[np.float32], int]:
    """Corners in texels, and how large a square they need."""
    import xatlas

    atlas = xatlas.Atlas()
    atlas.add_uv_mesh(places, faces)
    options: Any = xatlas.PackOptions()
    options.texels_per_unit = scale
    options.padding = gap
    options.bilinear = True
    atlas.generate(xatlas.ChartOptions(), options)
    _, indices, uvs = atlas.get_mesh(0)
    if atlas.atlas_count != 1 or len(indices) != len(faces):
        raise RuntimeError(
            f"xatlas gave {atlas.atlas_count} atlases of {len(indices)} faces, wanted one of {len(faces)}"
        )
    # Half the gap to the edge of the picture too.
    placed = uvs[indices] * np.array([atlas.width, atlas.height], np.float32) + np.float32(0.5 * gap)
    return placed.astype(np.float32), max(atlas.width, atlas.height) + gap


if __name__ == "__main__":
    main(Path(sys.argv[1]))
