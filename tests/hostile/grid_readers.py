"""Voxel grids and octrees as targets of the fuzzing: what is read is looked at too, for kernels trust its numbers."""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.hostile.mutations import Form
from tests.scene.density_grids import drawn
from tests.scene.octrees import random_octree
from tests.scene.voxel_grids import KINDS, a_frame, grid_of, looking_at

SIZE = (7, 6, 9)


def voxel_grid_seeds(folder: Path) -> dict[str, list[Form]]:
    """Grids of all spaces and heads; as bytes, by their description, and by the numbers of each array."""
    from scene.voxel_grid import save_voxel_grid

    forms = []
    for kind, head in zip(KINDS, ("rgb", "sh", "mlp"), strict=True):
        occupied = drawn(*SIZE, seed=1) < 0.1
        grid = grid_of(a_frame(kind, SIZE), lambda p: 5 * drawn(len(p), seed=2).float(), head=head, occupied=occupied)  # type: ignore[arg-type]
        save_voxel_grid(folder / "scene.safetensors", grid)
        forms += safetensors_forms((folder / "scene.safetensors").read_bytes())
    return {"scene.safetensors": forms}


def safetensors_forms(file: bytes) -> list[Form]:
    """A checkpoint with other bytes, another state, or other numbers in an array; checksums fit the last two."""
    (length,) = struct.unpack("<Q", file[:8])
    header, data = json.loads(file[8 : 8 + length]), file[8 + length :]
    arrays = {name: data[slice(*entry["data_offsets"])] for name, entry in header.items() if name != "__metadata__"}
    state = header["__metadata__"]["state"].encode()
    forms = [Form(file)] + 4 * [Form(state, "json", lambda text: packed(header, arrays, text))]
    return forms + [Form(content, pack=replacing(header, arrays, name)) for name, content in arrays.items()]


def replacing(header: dict[str, Any], arrays: dict[str, bytes], name: str) -> Callable[[bytes], bytes]:
    """Packs the file with other content of one array, which may be longer or shorter by whole rows."""

    def pack(content: bytes) -> bytes:
        entry = header[name]
        row = len(arrays[name]) // entry["shape"][0]
        count = len(content) // row
        changed = {**header, name: {**entry, "shape": [count, *entry["shape"][1:]]}}
        return packed(changed, {**arrays, name: content[: count * row]}, header["__metadata__"]["state"].encode())

    return pack


def packed(header: dict[str, Any], arrays: dict[str, bytes], state: bytes) -> bytes:
    """The file of these arrays, with checksums that fit."""
    checks = json.dumps({name: zlib.crc32(content) for name, content in arrays.items()})
    meta = {**header["__metadata__"], "crc32": checks, "state": state.decode("utf-8", "replace")}
    entries, offset = {}, 0
    for name, content in arrays.items():
        entries[name] = {**header[name], "data_offsets": [offset, offset + len(content)]}
        offset += len(content)
    text = json.dumps({"__metadata__": meta, **entries}).encode()
    return struct.pack("<Q", len(text)) + text + b"".join(arrays.values())


def read_voxel_grid(folder: Path) -> None:
    from scene.volume_rendering import render_grid
    from scene.voxel_grid import load_voxel_grid

    grid = load_voxel_grid(folder / "scene.safetensors")
    render_grid(grid, looking_at((1.9, -2.6, 1.4), size=4), torch.ones(3))


def octree_seeds(folder: Path) -> dict[str, list[Form]]:
    """Octrees as bytes, and by the header and the numbers of each of their arrays."""
    from scene.formats.octree_npz import save_octree

    forms = []
    for degree in (0, 1):
        save_octree(folder / "scene.npz", random_octree(3, degree, seed=degree))
        with zipfile.ZipFile(folder / "scene.npz") as archive:
            entries = {name: archive.read(name) for name in archive.namelist()}
        forms.append(Form((folder / "scene.npz").read_bytes()))
        forms += [Form(content, pack=with_entry(entries, name)) for name, content in entries.items()]
        for name in ("child.npy", "parent_depth.npy"):  # what the tree is walked by
            begin = 10 + int.from_bytes(entries[name][8:10], "little")
            head, whole = entries[name][:begin], with_entry(entries, name)
            numbers = Form(entries[name][begin:], pack=lambda body, head=head, whole=whole: whole(head + body))
            forms += 3 * [numbers]
    return {"scene.npz": forms}


def with_entry(entries: dict[str, bytes], name: str) -> Callable[[bytes], bytes]:
    """Packs the archive with other content of one entry."""

    def pack(content: bytes) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as made:
            for entry, old in entries.items():
                made.writestr(entry, content if entry == name else old)
        return buffer.getvalue()

    return pack


def read_octree(folder: Path) -> None:
    from recon import dot

    octree = dot.load_scene(folder / "scene.npz")
    dot.picture(octree, looking_at((1.9, -2.6, 1.4), size=4), torch.ones(3), dot.Config())
