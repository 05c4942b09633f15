"""A place in the texture for every corner of every face: charts without overlap, packed with room around them.

Charts come from `scene/uv_charts.py`. xatlas packs them in a process of its own, within a time limit: it is the better
packer, but on some meshes it takes minutes or crashes. Then `scene/uv_pack.py` packs them by their boxes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from scene.mesh import Mesh
from scene.ops.triangle_raster import cover
from scene.uv_charts import Charts, cut
from scene.uv_pack import pack

CHECK_SIZE = 2048  # texels along the side of the grid on which overlaps are looked for


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
    Raises ValueError for an empty mesh, or when the charts cannot fit with such a padding.
    """
    if not len(mesh.faces):
        raise ValueError("an empty mesh cannot be unwrapped")
    charts = cut(mesh, overlapping)
    layout = pack(charts, size=size, gap=2 * padding)
    return Unwrapped(layout.uvs.astype(np.float32), charts.ids, "box", 2 * padding, layout.scale)


def overlapping(charts: Charts) -> NDArray[np.bool_]:
    """[F] faces that lie over an earlier face of their chart."""
    layout = pack(charts, size=CHECK_SIZE, gap=1, turn=False)
    return cover(torch.from_numpy(layout.uvs * CHECK_SIZE), CHECK_SIZE, CHECK_SIZE)[1].numpy()
