"""xatlas in a process of its own: `python -m scene.uv_worker FOLDER`. Called by scene/uv.py, which may kill it.

FOLDER holds vertices.npy [V, 3] float32 and faces.npy [F, 3] uint32. When all went well it then also holds places.npy
[F, 3, 2] float32, the flat place of each corner in lengths of the mesh, and, written last, charts.npy [F] int64.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

CHART_COST = 8.0  # xatlas's max_cost; its default of 2 makes more charts of bumpy meshes and takes half as long again


def main(folder: Path) -> None:
    """Cut and flatten what the folder holds."""
    vertices = np.load(folder / "vertices.npy", allow_pickle=False)
    faces = np.load(folder / "faces.npy", allow_pickle=False)
    places, charts = flattened(vertices, faces)
    np.save(folder / "places.npy", places, allow_pickle=False)
    np.save(folder / "charts.tmp.npy", charts, allow_pickle=False)
    (folder / "charts.tmp.npy").rename(folder / "charts.npy")


def flattened(
    vertices: NDArray[np.float32], faces: NDArray[np.uint32]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """[F, 3, 2] flat place of each corner in lengths of the mesh, not mirrored, and [F] the chart of each face."""
    import xatlas
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    atlas = xatlas.Atlas()
    atlas.add_mesh(vertices, faces)
    options, packing = xatlas.ChartOptions(), xatlas.PackOptions()
    options.max_cost = CHART_COST
    packing.resolution = 256  # its packing is thrown away, so it may be coarse
    atlas.generate(options, packing)
    _, indices, uvs = atlas.get_mesh(0)
    if len(indices) != len(faces):
        raise RuntimeError(f"xatlas gave {len(indices)} faces for {len(faces)}")
    ends = np.concatenate([indices[:, 0], indices[:, 0]]), np.concatenate([indices[:, 1], indices[:, 2]])
    graph = coo_matrix((np.ones(len(ends[0]), np.int8), ends), shape=(len(uvs), len(uvs)))
    parts = connected_components(graph, directed=False)[1][indices[:, 0]]
    charts = np.unique(parts, return_inverse=True)[1].reshape(-1).astype(np.int64)
    places = (uvs * np.array([atlas.width, atlas.height]) / atlas.texels_per_unit)[indices]
    first, second = places[:, 1] - places[:, 0], places[:, 2] - places[:, 0]
    areas = np.bincount(charts, first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0])
    places[..., 0] *= np.where(areas < 0, -1, 1)[charts][:, None]
    return places.astype(np.float32), charts


if __name__ == "__main__":
    main(Path(sys.argv[1]))
