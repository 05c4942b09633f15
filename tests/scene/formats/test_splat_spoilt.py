"""Damaged, lying and foreign splat files: one InputError that names the file, soon and without much memory."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import struct
import time
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from scene.errors import InputError
from scene.formats import load_splats, save_splats
from scene.formats.glb_splats import EXTENSION, write_glb_splats
from scene.formats.sog import write_sog
from scene.formats.splat import write_splat
from scene.formats.spz import COORDINATE_EXTENSION, HEADER, MAGIC, write_spz
from tests.scene.formats.splat_errors import errors
from tests.scene.formats.test_meshes_and_splats import glb_parts
from tests.scene.splats import random_gaussians

COUNT = 20
WRITERS = {".splat": write_splat, ".spz": write_spz, ".sog": write_sog, ".glb": write_glb_splats}


@cache
def good(ending: str) -> bytes:
    """A sound file of 20 splats of degree 1."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"good{ending}"
        WRITERS[ending](path, random_gaussians(COUNT, sh_degree=1))
        return path.read_bytes()


def spz(change: Callable[[bytearray], Any]) -> bytes:
    """The good SPZ with its unpacked bytes changed."""
    body = bytearray(zlib.decompress(good(".spz"), wbits=31))
    change(body)
    packer = zlib.compressobj(wbits=31)
    return packer.compress(bytes(body)) + packer.flush()


def spz_4(extensions: bytes = b"", *, sizes: list[int] | None = None) -> bytes:
    """Version 4 of the good SPZ; sizes: what its table announces instead of the truth."""
    zstandard = pytest.importorskip("zstandard")
    body = zlib.decompress(good(".spz"), wbits=31)
    magic, _, count, degree, bits, _, _ = HEADER.unpack(body[: HEADER.size])
    rows = [9, 1, 3, 3, 4, 9]
    ends = np.cumsum([HEADER.size, *(count * row for row in rows)])
    parts = [body[a:b] for a, b in itertools.pairwise(ends)]
    packed = [zstandard.ZstdCompressor().compress(part) for part in parts]
    head = HEADER.pack(magic, 4, count, degree, bits, 2 if extensions else 0, 6)
    head += struct.pack("<I12x", 32 + len(extensions)) + extensions
    unpacked = sizes or [len(part) for part in parts]
    table = b"".join(struct.pack("<QQ", len(p), size) for p, size in zip(packed, unpacked, strict=True))
    return head + table + b"".join(packed)


def sog(change: Callable[[dict[str, Any], dict[str, bytes]], Any]) -> bytes:
    """The good SOG with its meta.json or its parts changed."""
    with zipfile.ZipFile(io.BytesIO(good(".sog"))) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    meta = json.loads(parts.pop("meta.json"))
    change(meta, parts)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("meta.json", json.dumps(meta))
        for name, data in parts.items():
            archive.writestr(name, data)
    return file.getvalue()


def webp(width: int, height: int, value: tuple[int, ...] = (0, 0, 0, 255)) -> bytes:
    file = io.BytesIO()
    Image.new("RGBA", (width, height), value).save(file, "WEBP", lossless=True, exact=True)
    return file.getvalue()


def glb(tmp: Path, change: Callable[[dict[str, Any]], Any]) -> bytes:
    """The good GLB with its document changed."""
    (tmp / "whole.glb").write_bytes(good(".glb"))
    document, binary = glb_parts(tmp / "whole.glb")
    change(document)
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    total = 28 + len(text) + len(binary)
    head = b"glTF" + struct.pack("<II", 2, total) + struct.pack("<I", len(text)) + b"JSON" + text
    return head + struct.pack("<I", len(binary)) + b"BIN\x00" + bytes(binary)


def primitive(document: dict[str, Any]) -> dict[str, Any]:
    return document["meshes"][0]["primitives"][0]


def put(at: int, form: str, value: float) -> Callable[[bytearray], None]:
    return lambda body: struct.pack_into(form, body, at, value)


def set_meta(*keys: str, value: Any) -> Callable[[dict[str, Any], dict[str, bytes]], None]:
    def change(meta: dict[str, Any], parts: dict[str, bytes]) -> None:
        for key in keys[:-1]:
            meta = meta[key]
        meta[keys[-1]] = value

    return change


def nan_splat() -> bytes:
    data = bytearray(good(".splat"))
    struct.pack_into("<f", data, 32, float("nan"))
    return bytes(data)


SPOILT: dict[str, Callable[[Path], bytes]] = {
    "empty.splat": lambda tmp: b"",
    "cut.splat": lambda tmp: good(".splat")[:-1],
    "nan.splat": lambda tmp: nan_splat(),
    "negative scale.splat": lambda tmp: good(".splat")[:12] + struct.pack("<f", -1) + good(".splat")[16:],
    "no rotation.splat": lambda tmp: good(".splat")[:28] + bytes([128] * 4) + good(".splat")[32:],
    "empty.spz": lambda tmp: b"",
    "text.spz": lambda tmp: b"solid hello\n" * 20,
    "cut.spz": lambda tmp: good(".spz")[:-9],
    "head only.spz": lambda tmp: good(".spz")[:15],
    "no magic.spz": lambda tmp: spz(put(0, "<I", 7)),
    "version 0.spz": lambda tmp: spz(put(4, "<I", 0)),
    "version 9.spz": lambda tmp: spz(put(4, "<I", 9)),
    "version 4 as 3.spz": lambda tmp: spz(put(4, "<I", 4)),
    "more splats.spz": lambda tmp: spz(put(8, "<I", COUNT + 1)),
    "fewer splats.spz": lambda tmp: spz(put(8, "<I", COUNT - 1)),
    "4e9 splats.spz": lambda tmp: spz(put(8, "<I", 0xFFFFFFFF)),
    "a bomb.spz": lambda tmp: spz(lambda body: (put(8, "<I", 60_000_000)(body), body.extend(bytes(50_000_000)))),
    "degree 7.spz": lambda tmp: spz(put(12, "<B", 7)),
    "200 bits.spz": lambda tmp: spz(put(13, "<B", 200)),
    "infinite half.spz": lambda tmp: spz(lambda body: (put(4, "<I", 1)(body), put(16, "<H", 0x7C00)(body))),
    "cut streams.spz": lambda tmp: spz_4()[:-5],
    "short table.spz": lambda tmp: spz_4()[:40],
    "head of 4.spz": lambda tmp: spz_4()[:20],
    "wrong sizes.spz": lambda tmp: spz_4(sizes=[1 << 62, 20, 60, 60, 80, 180]),
    "broken stream.spz": lambda tmp: spz_4()[:130] + b"\xff" * 60 + spz_4()[190:],
    "unknown axes.spz": lambda tmp: spz_4(struct.pack("<III", COORDINATE_EXTENSION, 4, 99)),
    "version 3 as 4.spz": lambda tmp: struct.pack("<II", MAGIC, 3) + spz_4()[8:],
    "empty.sog": lambda tmp: b"",
    "no zip.sog": lambda tmp: b"PK\x03\x04" + b"hello" * 99,
    "cut.sog": lambda tmp: good(".sog")[:-30],
    "no meta.sog": lambda tmp: good(".sog").replace(b"meta.json", b"beta.json"),
    "version 3.sog": lambda tmp: sog(set_meta("version", value=3)),
    "no count.sog": lambda tmp: sog(lambda meta, parts: meta.pop("count")),
    "count true.sog": lambda tmp: sog(set_meta("count", value=True)),
    "count -1.sog": lambda tmp: sog(set_meta("count", value=-1)),
    "a billion.sog": lambda tmp: sog(set_meta("count", value=10**9)),
    "more than pixels.sog": lambda tmp: sog(set_meta("count", value=5000)),
    "short codebook.sog": lambda tmp: sog(set_meta("scales", "codebook", value=[0.0] * 255)),
    "codebook of lists.sog": lambda tmp: sog(set_meta("sh0", "codebook", value=[[0.0]] * 256)),
    "nan codebook.sog": lambda tmp: sog(set_meta("sh0", "codebook", value=[float("nan")] * 256)),
    "far.sog": lambda tmp: sog(set_meta("means", "maxs", value=[900.0] * 3)),
    "no picture.sog": lambda tmp: sog(lambda meta, parts: parts.pop("quats.webp")),
    "path.sog": lambda tmp: sog(set_meta("quats", "files", value=["../../etc/passwd"])),
    "no names.sog": lambda tmp: sog(set_meta("quats", "files", value=[7])),
    "no files.sog": lambda tmp: sog(set_meta("quats", "files", value=[])),
    "half a picture.sog": lambda tmp: sog(lambda meta, parts: parts.update({"quats.webp": parts["quats.webp"][:40]})),
    "text picture.sog": lambda tmp: sog(lambda meta, parts: parts.update({"quats.webp": b"hello"})),
    "a large picture.sog": lambda tmp: sog(lambda meta, parts: parts.update({"sh0.webp": webp(3000, 3000)})),
    "wrong largest.sog": lambda tmp: sog(lambda meta, parts: parts.update({"quats.webp": webp(8, 8, (9, 9, 9, 100))})),
    "labels beyond.sog": lambda tmp: sog(
        lambda meta, parts: parts.update({"shN_labels.webp": webp(8, 8, (255, 255, 0, 255))})
    ),
    "odd palette.sog": lambda tmp: sog(lambda meta, parts: parts.update({"shN_centroids.webp": webp(100, 1)})),
    "bomb of zeros.sog": lambda tmp: sog(lambda meta, parts: parts.update({"means_l.webp": bytes(40_000_000)})),
    "meta of lists.sog": lambda tmp: sog(set_meta("means", value=[[[]]])),
    "empty.glb": lambda tmp: b"",
    "cut.glb": lambda tmp: good(".glb")[:-100],
    "no splats.glb": lambda tmp: glb(tmp, lambda d: primitive(d).pop("extensions")),
    "triangles.glb": lambda tmp: glb(tmp, lambda d: primitive(d).update(mode=4)),
    "no scale.glb": lambda tmp: glb(tmp, lambda d: primitive(d)["attributes"].pop(f"{EXTENSION}:SCALE")),
    "half a degree.glb": lambda tmp: glb(
        tmp, lambda d: primitive(d)["attributes"].pop(f"{EXTENSION}:SH_DEGREE_1_COEF_1")
    ),
    "other lengths.glb": lambda tmp: glb(tmp, lambda d: d["accessors"][4].update(count=COUNT - 1)),
    "beyond.glb": lambda tmp: glb(tmp, lambda d: d["accessors"][2].update(count=1 << 40)),
    "opacity 2.glb": lambda tmp: glb(tmp, lambda d: d["accessors"][4].update(bufferView=0)),
    "packed.glb": lambda tmp: glb(
        tmp, lambda d: primitive(d)["extensions"][EXTENSION].update(extensions={f"{EXTENSION}_compression_spz": {}})
    ),
    "stretched.glb": lambda tmp: glb(tmp, lambda d: d["nodes"][0].update(scale=[1, 2, 3])),
    "flat.glb": lambda tmp: glb(tmp, lambda d: d["nodes"][0].update(scale=[0, 0, 0])),
    "2000 instances.glb": lambda tmp: glb(
        tmp, lambda d: (d.update(nodes=[{"mesh": 0}] * 2_000), d["scenes"][0].update(nodes=list(range(2_000))))
    ),
    "a circle.glb": lambda tmp: glb(tmp, lambda d: d["nodes"][0].update(children=[0])),
    "outside.gltf": lambda tmp: json.dumps(
        {
            "asset": {"version": "2.0"},
            "nodes": [{"mesh": 0}],
            "buffers": [{"uri": "../x.bin", "byteLength": 9}],
            "meshes": [{"primitives": [{"mode": 0, "attributes": {"POSITION": 0}, "extensions": {EXTENSION: {}}}]}],
            "bufferViews": [{"buffer": 0, "byteLength": 9}],
            "accessors": [{"bufferView": 0, "componentType": 5126, "count": 1, "type": "VEC3"}],
        }
    ).encode(),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_spoilt_file_is_refused_soon_and_without_memory(tmp_path: Path, name: str):
    path = tmp_path / name
    path.write_bytes(SPOILT[name](tmp_path))
    tracemalloc.start()
    began = time.monotonic()
    with pytest.raises(InputError) as caught:
        load_splats(path)
    assert time.monotonic() - began < 5  # some tenths of a second without the tracing of memory
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("ending", WRITERS)
def test_any_cut_or_flipped_byte_gives_splats_or_an_input_error(tmp_path: Path, ending: str):
    rng = np.random.default_rng(0)
    path = tmp_path / f"bad{ending}"
    for _ in range(250):
        data = bytearray(good(ending))
        reach = len(data) if rng.random() < 0.5 else min(len(data), 3000)
        for at in rng.integers(0, reach, rng.integers(1, 5)):
            data[at] = rng.integers(0, 256)
        path.write_bytes(data[: rng.integers(1, len(data) + 1)] if rng.random() < 0.3 else data)
        with contextlib.suppress(InputError):
            splats = load_splats(path)
            assert all(torch.isfinite(tensor).all() for tensor in splats.parameters().values())


COMPRESSED = """ply
format binary_little_endian 1.0
element chunk 1
{chunk}element vertex 2
property uint packed_position
property uint packed_rotation
property uint packed_scale
property uint packed_color
{sh}end_header
"""
CHUNK = "".join(
    f"property float {end}_{axis}\n"
    for end in ("min", "max")
    for axis in ("x", "y", "z", "scale_x", "scale_y", "scale_z")
)


def compressed(chunk: str = CHUNK, sh: str = "", *, ranges: float = 1.0, body: bytes = bytes(32)) -> bytes:
    floats = chunk.count("property")
    return COMPRESSED.format(chunk=chunk, sh=sh).encode() + struct.pack(f"<{floats}f", *[ranges] * floats) + body


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (compressed(CHUNK.replace("max_z", "most_z")), "lacks max_z"),
        (compressed(body=bytes(31)), "cut short"),
        (compressed().replace(b"vertex 2", b"vertex 0"), "1 chunks for 0 splats"),
        (compressed().replace(b"uint packed_scale", b"float packed_scale"), "type uint"),
        (compressed(ranges=float("nan")), "not finite"),
        (compressed(CHUNK + "property float min_r\n"), "lacks"),
        (
            compressed(sh="element sh 1\n" + "".join(f"property uchar f_rest_{i}\n" for i in range(9)), body=bytes(41)),
            "rows of `sh`",
        ),
        (compressed(sh="element sh 2\nproperty uchar f_rest_0\n", body=bytes(34)), "1 f_rest columns"),
    ],
)
def test_a_spoilt_compressed_ply_is_refused(tmp_path: Path, data: bytes, reason: str):
    (tmp_path / "bad.ply").write_bytes(data)
    with pytest.raises(InputError, match=reason):
        load_splats(tmp_path / "bad.ply")


def test_a_compressed_ply_of_nothing_unusual_is_read(tmp_path: Path):
    """What the spoilt ones above differ from: all of them would be refused if this one were."""
    (tmp_path / "good.ply").write_bytes(compressed())
    splats = load_splats(tmp_path / "good.ply")
    assert torch.equal(splats.means, torch.ones(2, 3)) and torch.equal(splats.log_scales, torch.ones(2, 3))


def test_the_axes_that_an_spz_names_are_turned_to_its_standard(tmp_path: Path):
    """RDF (COLMAP's) to RUB flips y and z; a mirror image (LUB) is turned too, unknown extensions are passed over."""
    (tmp_path / "rub.spz").write_bytes(spz_4())
    source = load_splats(tmp_path / "rub.spz", up=(0, 1, 0))
    other = struct.pack("<II4x", 0x12340001, 4)
    for code, signs in ((6, [1.0, -1, -1]), (3, [-1.0, 1, 1]), (4, [1.0, 1, 1]), (0, [1.0, 1, 1])):
        named = struct.pack("<III", COORDINATE_EXTENSION, 4, code)
        (tmp_path / "named.spz").write_bytes(spz_4(other + named))
        expected = source.turned(torch.diag(torch.tensor(signs)))
        found = errors(expected, load_splats(tmp_path / "named.spz", up=(0, 1, 0)))
        assert all(values.max() < 1e-5 for values in found.values())


def test_a_truncated_or_missing_file_never_waits(tmp_path: Path):
    import os

    os.mkfifo(tmp_path / "pipe.splat")
    for name in ("pipe.splat", "none.sog"):
        with pytest.raises(InputError):
            load_splats(tmp_path / name)


def test_nothing_is_left_of_a_file_that_could_not_be_written(tmp_path: Path):
    for ending in (".sog", ".glb"):
        with pytest.raises(InputError, match="no splats"):
            save_splats(tmp_path / f"a{ending}", random_gaussians(3).select(torch.zeros(3, dtype=torch.bool)))
    assert not list(tmp_path.iterdir())
