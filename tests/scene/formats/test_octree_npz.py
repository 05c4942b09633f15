"""PlenOctrees' .npz: round trips, an independent reader that knows only the keys, and files that are damaged or lie."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from scene.errors import InputError
from scene.formats.octree_npz import load_octree, save_octree
from scene.octree import Octree
from tests.scene.octrees import random_octree

KEYS = "child data data_dim data_format depth_limit geom_resize_fact invradius3 n_free n_internal offset parent_depth"


def half_octree(levels: int, sh_degree: int = 2) -> Octree:
    """Leaves whose numbers are float16's, all dense."""
    octree = random_octree(levels, sh_degree)
    return Octree(octree.sigmas.abs().half().float() + 1, octree.sh_coeffs.half().float(), octree.index)


@pytest.mark.parametrize("levels", [1, 3, 7])
@pytest.mark.parametrize("sh_degree", [0, 2, 3])
def test_what_is_written_is_read(levels: int, sh_degree: int, tmp_path: Path) -> None:
    octree = half_octree(levels, sh_degree)
    octree = Octree(octree.sigmas.half().float(), octree.sh_coeffs, octree.index)
    save_octree(tmp_path / "scene.npz", octree)
    again = load_octree(tmp_path / "scene.npz")
    for name in ("sigmas", "sh_coeffs"):
        assert torch.equal(getattr(again, name), getattr(octree, name))
    for name in ("codes", "levels", "top", "nodes", "shape"):
        assert torch.equal(getattr(again.index, name), getattr(octree.index, name))
    torch.testing.assert_close(again.index.frame, octree.index.frame.float().double())


def test_a_reader_that_knows_only_the_keys_finds_every_leaf(tmp_path: Path) -> None:
    octree = half_octree(5)
    save_octree(tmp_path / "scene.npz", octree)
    file = np.load(tmp_path / "scene.npz", allow_pickle=False)
    assert sorted(file.files) == KEYS.split()
    child, parents, data = file["child"], file["parent_depth"], file["data"]
    assert child.dtype == np.int32 and parents.dtype == np.int32 and data.dtype == np.float16
    assert str(file["data_format"]) == "SH9" and int(file["n_internal"]) == len(child) and data.shape[-1] == 28
    points = octree.to_world(octree.corners + octree.sides[:, None] / 2)
    for row, point in enumerate(points.numpy().astype(np.float64)):
        place, node = file["offset"] + file["invradius3"] * point, 0
        cell = (0, 0, 0)
        for _ in range(int(file["depth_limit"]) + 2):
            place = place * 2
            cell = tuple(np.floor(place).astype(int))
            place = place - cell
            if child[(node, *cell)] == 0:
                break
            assert parents[node + child[(node, *cell)], 0] == 8 * node + 4 * cell[0] + 2 * cell[1] + cell[2]
            node += child[(node, *cell)]
            assert parents[node, 1] == parents[parents[node, 0] // 8, 1] + 1
        leaf = data[(node, *cell)]
        assert leaf[-1] == np.float16(octree.sigmas[row])
        assert (leaf[:-1].reshape(3, 9) == octree.sh_coeffs[row].T.numpy().astype(np.float16)).all()


def parts(path: Path) -> dict[str, np.ndarray]:
    save_octree(path, half_octree(4))
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def cycle(arrays: dict[str, np.ndarray]) -> None:
    child = arrays["child"].reshape(-1, 8)
    node = int(np.nonzero(np.any(child > 0, axis=1))[0][1])
    child[node, int((child[node] > 0).argmax())] = -node


def outside(arrays: dict[str, np.ndarray]) -> None:
    arrays["child"].reshape(-1)[0] = 1 << 20


def not_finite(arrays: dict[str, np.ndarray]) -> None:
    dense = arrays["data"].reshape(-1, 28)
    dense[dense[:, -1] > 0, 3] = np.nan


def other_width(arrays: dict[str, np.ndarray]) -> None:
    arrays["data"] = arrays["data"][..., :20]


def objects(arrays: dict[str, np.ndarray]) -> None:
    arrays["child"] = np.array([{"a": 1}], dtype=object)


def flat_frame(arrays: dict[str, np.ndarray]) -> None:
    arrays["invradius3"] = np.array([0.5, 0.0, 0.5], dtype=np.float32)


def no_child(arrays: dict[str, np.ndarray]) -> None:
    del arrays["child"]


@pytest.mark.parametrize("spoil", [cycle, outside, not_finite, other_width, objects, flat_frame, no_child])
def test_damaged_octrees_are_refused_by_name(spoil, tmp_path: Path) -> None:
    path = tmp_path / "scene.npz"
    arrays = parts(path)
    spoil(arrays)
    np.savez(path, **arrays)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match=r"scene\.npz"):
        load_octree(path)


def test_files_that_end_early_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "scene.npz"
    parts(path)
    content = path.read_bytes()
    for length in (0, 10, len(content) // 2, len(content) - 30):
        path.write_bytes(content[:length])
        with pytest.raises(InputError, match=r"scene\.npz"):
            load_octree(path)


@pytest.mark.parametrize("shape", [b"(1e999,)", b"(1e999, 2, 2, 2)", b"(-1, 2, 2, 2)", b"None", b"(1, 2"])
def test_an_array_whose_header_lies_is_refused(shape: bytes, tmp_path: Path) -> None:
    path = tmp_path / "scene.npz"
    parts(path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    content = entries["child.npy"]
    begin = content.index(b"(", content.index(b"shape"))
    end = content.index(b")", begin) + 1
    length = len(content) - content.index(b"\n") - 1
    head = content[:begin] + shape + content[end : content.index(b"\n") + 1]
    head = head[:8] + (len(head) - 10).to_bytes(2, "little") + head[10:]
    entries["child.npy"] = head + content[len(content) - length :]
    with zipfile.ZipFile(path, "w") as archive:
        for name, entry in entries.items():
            archive.writestr(name, entry)
    with pytest.raises(InputError, match=r"scene\.npz: child"):
        load_octree(path)
