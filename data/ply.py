"""Point clouds from PLY files, as nerfstudio writes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from data.frames import PointCloud
from scene.errors import InputError
from scene.formats.ply import read_ply

_COLOURS = ("red", "green", "blue")


def read_point_ply(path: Path) -> PointCloud:
    """The vertices of a PLY file; grey where it has no red, green, blue. Points that are not finite are dropped.

    Colours are 0 to 255, or 0 to 1 where they are floats that stay below. Raises InputError when it is no such file or
    is shorter than its header says.
    """
    vertex = read_ply(path, ("vertex",)).get("vertex")
    if vertex is None or not set("xyz") <= set(vertex.columns):
        raise InputError(f"{path} should be a PLY file with an element 'vertex' that has x, y and z")
    with np.errstate(over="ignore", invalid="ignore"):
        xyz = np.stack([vertex.columns[axis] for axis in "xyz"], axis=1).astype(np.float32)
    good = np.isfinite(xyz).all(axis=1)
    rgb = np.full((vertex.rows, 3), 128, dtype=np.uint8)
    if set(_COLOURS) <= set(vertex.columns):
        columns = [vertex.columns[name] for name in _COLOURS]
        values = np.nan_to_num(np.stack(columns, axis=1).astype(np.float64))
        if all(column.dtype.kind == "f" for column in columns) and values.max(initial=0) <= 1:
            values = values * 255
        rgb = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return PointCloud(torch.from_numpy(xyz[good]), torch.from_numpy(rgb[good]))
