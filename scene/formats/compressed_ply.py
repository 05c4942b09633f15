"""Compressed PLY of PlayCanvas and SuperSplat (read): 16 bytes a splat and one for each higher SH coefficient.

Each `chunk` holds the ranges of 256 splats; a `vertex` holds four words of 32 bits, from the top: position and scale
11, 10, 11 bits in the chunk's range; rotation 2 bits for the largest component (wxyz), then 10 for each other; colour
4 x 8 bits. `sh` holds the f_rest values in their PLY order in -4 to 4.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scene.errors import InputError
from scene.formats import quantised
from scene.formats.ply import Table
from scene.gaussians import Gaussians

CHUNK = 256
PACKED = ("packed_position", "packed_rotation", "packed_scale", "packed_color")
SH_REST = {0: 0, 9: 3, 24: 8, 45: 15}  # values per splat -> coefficients


def is_compressed(tables: dict[str, Table]) -> bool:
    """Whether a PLY file's tables are those of a compressed splat file."""
    return "vertex" in tables and "packed_position" in tables["vertex"].columns


def unpack_ply(tables: dict[str, Table], path: Path) -> Gaussians:
    """Gaussians of the tables `chunk`, `vertex` and `sh` of a compressed PLY, in the frame of the source.

    Raises InputError when a column is missing, the numbers of rows do not fit, or ranges are not finite.
    """
    vertex, chunk = tables["vertex"], tables.get("chunk", Table(0, {}, {}))
    ranges = [f"{end}_{axis}" for end in ("min", "max") for axis in ("x", "y", "z", "scale_x", "scale_y", "scale_z")]
    missing = [name for name in PACKED if name not in vertex.columns]
    missing += [f"{name} of chunk" for name in ranges if name not in chunk.columns]
    if missing:
        raise InputError(f"{path} is not a sound compressed splat file: it lacks {', '.join(missing[:4])}")
    if chunk.rows != -(-vertex.rows // CHUNK):
        raise InputError(
            f"{path} has {chunk.rows} chunks for {vertex.rows} splats, expected one for each {CHUNK}; it is damaged"
        )
    if any(vertex.columns[name].dtype.kind != "u" for name in PACKED):
        raise InputError(f"{path} is not a sound compressed splat file: its packed columns must be of type uint")
    words = {name: vertex.columns[name].astype(np.uint32) for name in PACKED}
    rgba = np.stack([words["packed_color"] >> shift & 255 for shift in (24, 16, 8, 0)], axis=1)
    colours = rgba[:, :3] / 255
    if "min_r" in chunk.columns:
        colours = _spread(colours, chunk, vertex.rows, ("r", "g", "b"), path)
    return quantised.gaussians_from(
        str(path),
        means=_spread(_units(words["packed_position"]), chunk, vertex.rows, ("x", "y", "z"), path),
        quats=_quats(words["packed_rotation"]),
        log_scales=_spread(_units(words["packed_scale"]), chunk, vertex.rows, ("scale_x", "scale_y", "scale_z"), path),
        opacity_logits=quantised.logits_from_bytes(rgba[:, 3].astype(np.uint8)),
        sh_dc=quantised.dc_from_rgb(colours),
        sh_rest=_sh_rest(tables.get("sh"), vertex.rows, path),
    )


def _units(word: NDArray[np.uint32]) -> NDArray[np.float64]:
    """[N, 3] in 0 to 1 of words of 11, 10 and 11 bits."""
    return np.stack([(word >> 21) / 2047, (word >> 11 & 1023) / 1023, (word & 2047) / 2047], axis=1)


def _spread(units: NDArray, chunk: Table, rows: int, axes: tuple[str, str, str], path: Path) -> NDArray[np.float64]:
    """Values in 0 to 1 taken to the range of their chunk."""
    missing = [f"{end}_{axis}" for end in ("min", "max") for axis in axes if f"{end}_{axis}" not in chunk.columns]
    if missing:
        raise InputError(f"{path} is not a sound compressed splat file: it lacks {', '.join(missing)} of chunk")
    of = np.arange(rows) // CHUNK
    low, high = (
        np.stack([chunk.columns[f"{end}_{axis}"].astype(np.float64) for axis in axes], axis=1) for end in ("min", "max")
    )
    return low[of] + units * (high - low)[of]


def _quats(word: NDArray[np.uint32]) -> NDArray[np.float32]:
    three = np.stack([word >> shift & 1023 for shift in (20, 10, 0)], axis=1)
    return quantised.from_smallest_three(word >> 30, (three / 1023 - 0.5) * np.sqrt(2))


def _sh_rest(table: Table | None, rows: int, path: Path) -> NDArray[np.float32]:
    """[N, K, 3]; the bytes 0 and 255 are the ends of the range, the others stand for the middle of their step."""
    names = [name for name in table.columns if re.fullmatch(r"f_rest_\d+", name)] if table else []
    if len(names) not in SH_REST or (table is not None and table.rows != rows):
        raise InputError(
            f"{path} has {len(names)} f_rest columns and {table.rows if table else 0} rows of `sh` for {rows} splats; "
            f"expected {sorted(SH_REST)} columns and as many rows"
        )
    if table is None or not names:
        return np.zeros((rows, 0, 3), np.float32)
    if any(f"f_rest_{i}" not in table.columns for i in range(len(names))):
        raise InputError(f"{path} numbers its f_rest columns with gaps; it is damaged")
    if any(table.columns[name].dtype != np.uint8 for name in names):
        raise InputError(f"{path} has f_rest columns that are not of type uchar; it is damaged")
    values = (np.arange(256) + 0.5) / 256
    values[[0, 255]] = 0, 1
    lookup = (8 * (values - 0.5)).astype(np.float32)
    bytes_ = np.stack([table.columns[f"f_rest_{i}"] for i in range(len(names))], axis=1)
    return lookup[bytes_].reshape(rows, 3, SH_REST[len(names)]).transpose(0, 2, 1)
