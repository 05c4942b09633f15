"""Octrees in the .npz layout of PlenOctrees (svox: Yu et al., 2021), which its viewers and tools read.

child [M, 2, 2, 2] int32 says how many nodes on a child node stands, 0 for a leaf; parent_depth [M, 2] int32 names the
cell that a node hangs in (8 node + 4 x + 2 y + z) and the node's depth; data [M, 2, 2, 2, 3K + 1] float16 holds, per
channel, K colour coefficients, then sigma. Empty leaves are rows of zeros. Files are not trusted.
"""

from __future__ import annotations

import ast
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scene.errors import InputError
from scene.files import replacing
from scene.octree import Octree
from scene.ops.octree_index import FINEST, span
from scene.untrusted import MAX_DEFLATE_RATIO, MAX_FILE_BYTES, MAX_NPY_HEADER, open_archive, read_entry

MAX_NODES = 1 << 22  # each holds eight leaves
BASES = {1: 0, 4: 1, 9: 2, 16: 3}
_SMALL = 1 << 16  # bytes of an entry that holds one or a few numbers
_HALF_MAX = 65504.0


def save_octree(path: Path, octree: Octree) -> None:
    """Writes an octree whole or not at all; numbers become float16, densities below 0 become 0.

    Raises ResourceError or OSError when the disk is full.
    """
    child, parent_depth, places = _nodes(octree)
    width = 3 * octree.sh_coeffs.shape[1] + 1
    data = torch.zeros(8 * len(child), width, dtype=torch.float16)
    rows = torch.cat([octree.sh_coeffs.mT.flatten(1), octree.sigmas.clamp_min(0)[:, None]], dim=1)
    data[places] = rows.detach().cpu().clamp(-_HALF_MAX, _HALF_MAX).half()
    arrays: dict[str, Any] = {
        "data_dim": width,
        "child": child.view(-1, 2, 2, 2).int().numpy(),
        "parent_depth": parent_depth.int().numpy(),
        "n_internal": len(child),
        "n_free": 0,
        "invradius3": octree.index.invradius.float().numpy(),
        "offset": octree.index.offset.float().numpy(),
        "depth_limit": max(int(parent_depth[:, 1].max()), 1),
        "geom_resize_fact": 1.5,
        "data": data.view(-1, 2, 2, 2, width).numpy(),
        "data_format": f"SH{octree.sh_coeffs.shape[1]}",
    }
    with replacing(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, value in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, np.asanyarray(value), allow_pickle=False)


def load_octree(path: Path) -> Octree:
    """Reads what `save_octree` or svox wrote. Raises InputError when the file is damaged or no such octree."""
    with open_archive(path, most_entries=64) as archive:
        most = min(MAX_FILE_BYTES, MAX_DEFLATE_RATIO * path.stat().st_size)
        child = _array(archive, "child", path, min(most, 64 * MAX_NODES), "i", 4).reshape(-1, 8).astype(np.int64)
        parents = _array(archive, "parent_depth", path, min(most, 16 * MAX_NODES), "i", 2)
        data = _array(archive, "data", path, most, "f", 5)
        offset = _array(archive, "offset", path, _SMALL, "f", 1)
        names = set(archive.namelist())
        scale = "invradius3" if "invradius3.npy" in names else "invradius"
        invradius = np.broadcast_to(_array(archive, scale, path, _SMALL, "f", None), (3,))
    nodes, width = len(child), data.shape[-1]
    basis = (width - 1) // 3
    if data.shape[:4] != (nodes, 2, 2, 2) or len(parents) < nodes or width != 3 * basis + 1 or basis not in BASES:
        raise InputError(f"{path}: data of shape {data.shape} does not belong to {nodes} nodes with SH colours")
    if offset.shape != (3,) or not (
        np.isfinite(offset).all() and np.isfinite(invradius).all() and (invradius > 0).all()
    ):
        raise InputError(f"{path}: offset and invradius3 must be three finite numbers each, the latter above 0")
    codes, levels = _leaves(torch.from_numpy(child), path)
    cells = torch.from_numpy(data.reshape(8 * nodes, width).copy())
    held = (levels > 0) & (cells[:, -1] > 0)
    rows = held.nonzero().squeeze(1)
    rows = rows[codes[rows].argsort()]
    leaves = cells[rows].float()
    if not bool(torch.isfinite(leaves).all()):
        raise InputError(f"{path}: its leaves hold numbers that are not finite; save the octree again")
    sh_coeffs = leaves[:, :-1].view(-1, 3, basis).mT.contiguous()
    frame = (torch.from_numpy(np.array(value, dtype=np.float64)) for value in (offset, invradius))
    return Octree.of(codes[rows], levels[rows], leaves[:, -1].contiguous(), sh_coeffs, *frame)


def _nodes(octree: Octree) -> tuple[Tensor, Tensor, Tensor]:
    """child [M, 8], parent_depth [M, 2], and in which cell of the M x 8 each leaf stands; int64, nodes by depth."""
    codes, levels = octree.index.codes.cpu(), octree.index.levels.cpu().long()
    if len(levels) and int(levels.min()) == 0:
        raise ValueError("an octree of one leaf without a node cannot be written; split it first")
    deepest = int(levels.max()) if len(levels) else 1
    keys = [torch.zeros(1, dtype=torch.int64)]
    keys += [torch.unique_consecutive(codes[levels > depth] >> 3 * (FINEST - depth)) for depth in range(1, deepest)]
    first = [sum(map(len, keys[:depth])) for depth in range(deepest + 1)]
    child = torch.zeros(first[-1], 8, dtype=torch.int64)
    parent_depth = torch.zeros(first[-1], 2, dtype=torch.int64)
    for depth in range(1, deepest):
        parents = torch.searchsorted(keys[depth - 1], keys[depth] >> 3) + first[depth - 1]
        nodes = torch.arange(first[depth], first[depth + 1])
        child[parents, keys[depth] & 7] = nodes - parents
        parent_depth[nodes, 0] = 8 * parents + (keys[depth] & 7)
        parent_depth[nodes, 1] = depth
    places = torch.zeros_like(codes)
    for level in range(1, deepest + 1):
        here = levels == level
        key = codes[here] >> 3 * (FINEST - level)
        places[here] = 8 * (torch.searchsorted(keys[level - 1], key >> 3) + first[level - 1]) + (key & 7)
    return child, parent_depth, places


def _leaves(child: Tensor, path: Path) -> tuple[Tensor, Tensor]:
    """Codes and levels [8 M] of the cells; level 0 for those that are no leaves or hang on no node.

    Nodes are followed from the root, so that cycles and nodes with two parents are found. Raises InputError for them.
    """
    count = len(child)
    if not 0 < count <= MAX_NODES:
        raise InputError(f"{path} has {count:,} nodes; expected 1 to {MAX_NODES:,}")
    codes, levels = torch.zeros(8 * count, dtype=torch.int64), torch.zeros(8 * count, dtype=torch.int32)
    reached = torch.zeros(count, dtype=torch.bool)
    nodes, corners = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    for level in range(1, FINEST + 1):
        if bool(reached[nodes].any()) or len(nodes.unique()) < len(nodes):
            raise InputError(f"{path}: a node hangs in two places, so this is no tree; save it again")
        reached[nodes] = True
        side = int(span(torch.tensor(level)))
        inside = corners[:, None] + torch.arange(8) * side
        steps = child[nodes]
        leaf = steps == 0
        cells = nodes[:, None] * 8 + torch.arange(8)
        codes[cells[leaf]], levels[cells[leaf]] = inside[leaf], level
        nodes, corners = (nodes[:, None] + steps)[~leaf], inside[~leaf]
        if len(nodes) == 0:
            return codes, levels
        if int(nodes.min()) < 0 or int(nodes.max()) >= count:
            raise InputError(f"{path}: a child stands outside its {count:,} nodes; the file is damaged")
    raise InputError(f"{path} is deeper than {FINEST} levels, which no such octree is")


def _array(archive: zipfile.ZipFile, name: str, path: Path, most: int, kind: str, dims: int | None) -> NDArray:
    """An array of whole numbers (kind i) or floats (f) from an .npz. Raises InputError when it is another thing."""
    content = read_entry(archive, f"{name}.npy", most, path)
    wide = content[6:8] != b"\x01\x00"
    begin = 12 if wide else 10
    length = int.from_bytes(content[8:begin], "little")
    if content[:6] != b"\x93NUMPY" or length > MAX_NPY_HEADER:
        raise InputError(f"{path}: {name} is no numpy array")
    try:
        header = ast.literal_eval(content[begin : begin + length].decode("latin-1").strip())
        dtype, shape = np.dtype(str(header["descr"])), tuple(int(n) for n in header["shape"])
        by_columns = bool(header["fortran_order"])
    except (ValueError, OverflowError, SyntaxError, TypeError, KeyError, RecursionError, MemoryError) as error:
        raise InputError(f"{path}: {name} has a header that cannot be read ({error})") from error
    size = math.prod(shape) * dtype.itemsize if min(shape, default=0) >= 0 else -1
    if dtype.kind not in kind + ("u" if kind == "i" else "") or dtype.itemsize > 8 or by_columns:
        raise InputError(f"{path}: {name} must be a plain array of numbers, got {dtype}")
    if (dims is not None and len(shape) != dims) or len(shape) > 5 or size != len(content) - begin - length:
        raise InputError(f"{path}: {name} of shape {shape} does not fit its {len(content):,} bytes")
    return np.frombuffer(content, dtype, offset=begin + length).reshape(shape)
