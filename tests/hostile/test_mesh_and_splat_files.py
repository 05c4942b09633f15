"""Meshes and splats that lie about what they hold, refer to themselves or point elsewhere."""

from __future__ import annotations

import gzip
import io
import json
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.hostile.doors import calls, refused
from tests.hostile.readers import mesh_files, splat_file

PLY = (
    "ply\nformat {order} 1.0\nelement vertex {rows}\n{axes}element face {faces}\n"
    "property list uchar int vertex_indices\nend_header\n"
)
AXES = "".join(f"property float {axis}\n" for axis in "xyz")
TRIANGLE = "0 0 0\n1 0 0\n0 1 0\n"


def exported(path: Path) -> list[str | Path]:
    """The request to write a file's scene in another format."""
    return ["export", path, "--to", path.with_name(f"{path.stem}_out.stl")]


def ply(rows: object = 3, faces: object = 1, order: str = "ascii", body: str = TRIANGLE + "3 0 1 2\n") -> bytes:
    return PLY.format(order=order, rows=rows, faces=faces, axes=AXES).encode() + body.encode("latin-1")


def glb(file: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """The same file with another JSON part."""
    (length,) = struct.unpack_from("<I", file, 12)
    document = json.loads(file[20 : 20 + length])
    change(document)
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    body = struct.pack("<I", len(text)) + b"JSON" + text + file[20 + length :]
    return b"glTF" + struct.pack("<II", 2, 12 + len(body)) + body


def meshes(folder: Path) -> dict[str, tuple[bytes, str]]:
    file = mesh_files(folder, ".glb")[0]

    def node(document: dict[str, Any]) -> None:
        document["nodes"].append({"children": [0]})
        document["nodes"][0]["children"] = [len(document["nodes"]) - 1]

    def accessor(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
        return lambda document: document["accessors"][0].update({key: value})

    def outside(uri: str) -> Callable[[dict[str, Any]], None]:
        return lambda document: document["buffers"][0].update({"uri": uri})

    def meshes_of_nodes(document: dict[str, Any]) -> None:
        document["nodes"] = [{"mesh": 0}] * 19_000
        document["scenes"][0]["nodes"] = list(range(19_000)) * 100

    stl = mesh_files(folder, ".stl")[0]
    return {
        "count.ply": (ply(rows=99_999_999), "cut short or its header lies"),
        "rows.ply": (ply(rows="9" * 30), "not understood"),
        "negative.ply": (ply(rows=-1), "not understood"),
        "index.ply": (ply(body=TRIANGLE + "3 0 1 7\n"), "vertex"),
        "minus.ply": (ply(body=TRIANGLE + "3 0 1 -2\n"), "vertex"),
        "list.ply": (ply(body=TRIANGLE + "200 0 1 2\n"), "do not match the header"),
        "text.ply": (ply(body="a b c\n" * 9), "text"),
        "nan.ply": (ply(body="nan 0 0\n1 0 0\n0 1 0\n3 0 1 2\n"), "nan.ply"),
        "binary.ply": (ply(order="binary_little_endian"), "binary.ply"),
        "headless.ply": (b"ply\n" + b"comment x\n" * 99_999, "end_header"),
        "points.ply": (ply(faces=0, body=TRIANGLE), "no faces"),
        "empty.ply": (b"", "not a PLY"),
        "index.obj": (b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 9\n", "index.obj"),
        "zero.obj": (b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 0 1 2\n", "zero.obj"),
        "minus.obj": (b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf -1 -2 -9\n", "minus.obj"),
        "words.obj": (b"v a b c\n", "words.obj"),
        "short.obj": (b"v 0 0\nf 1 1 1\n", "short.obj"),
        "digits.obj": (b"v 0 0 0\nf " + b"9" * 5000 + b" 1 1\n", "digits.obj"),
        "zeros.obj": (b"\0" * 100_000, "zeros.obj"),
        "magic.glb": (b"glTX" + file[4:], "glb"),
        "cut.glb": (file[: len(file) // 2], "glb"),
        "length.glb": (file[:8] + b"\xff\xff\xff\xff" + file[12:], "glb"),
        "chunk.glb": (file[:12] + b"\xff\xff\xff\x7f" + file[16:], "glb"),
        "cycle.glb": (glb(file, node), "glb"),
        "count.glb": (glb(file, accessor("count", 2**40 - 1)), "glb"),
        "float.glb": (glb(file, accessor("count", 1e9)), "glb"),
        "offset.glb": (glb(file, accessor("byteOffset", 2**33)), "glb"),
        "type.glb": (glb(file, accessor("componentType", 7)), "glb"),
        "view.glb": (glb(file, accessor("bufferView", -1)), "glb"),
        "web.glb": (glb(file, outside("http://127.0.0.1:9/a.bin")), "glb"),
        "passwd.glb": (glb(file, outside("/etc/passwd")), "glb"),
        "climbs.glb": (glb(file, outside("../../secret.bin")), "glb"),
        "many.glb": (glb(file, meshes_of_nodes), "glb"),
        "deep.glb": (glb(file, lambda d: d.update(extras=json.loads("[" * 900 + "]" * 900))), ""),
        "nothing.glb": (glb(file, lambda d: d.update(meshes=[])), "glb"),
        "count.stl": (stl[:80] + struct.pack("<I", 2**31) + stl[84:], "count.stl"),
        "empty.stl": (b"", "empty.stl"),
        "cut.stl": (stl[:100], "cut.stl"),
        "nan.stl": (stl[:96] + struct.pack("<f", float("nan")) + stl[100:], "nan.stl"),
        "words.stl": (b"solid x\nfacet\nvertex a b c\nvertex 1 1 1\nvertex 2 1 1\n", "words.stl"),
        "foreign.xyz": (b"1 2 3", "foreign.xyz"),
    }


def test_meshes_that_lie_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(b"secret" * 99)
    folder = tmp_path / "a/b"
    folder.mkdir(parents=True)
    bad = meshes(tmp_path)
    for name, (content, _) in bad.items():
        (folder / name).write_bytes(content)
    os.mkfifo(folder / "pipe.glb")
    (folder / "loop.obj").symlink_to(folder / "loop.obj")
    (folder / "folder.stl").mkdir()
    bad |= {
        "pipe.glb": (b"", "not a regular file"),
        "loop.obj": (b"", "loop"),
        "folder.stl": (b"", "not a run folder"),
    }
    for (name, (_, reason)), outcome in zip(bad.items(), calls([exported(folder / name) for name in bad]), strict=True):
        if name == "deep.glb" and outcome.code == 0:
            continue  # what it nests in, no reader asks for
        refused(outcome, name, reason)
        assert "secret" not in outcome.sentence.replace("secret.bin", "")


def splats(folder: Path) -> dict[str, tuple[bytes, str]]:
    table, packed, glb_file = (splat_file(folder, ending) for ending in (".ply", ".spz", ".glb"))
    raw = splat_file(folder, ".splat", 0)
    inner = gzip.decompress(packed)
    with zipfile.ZipFile(io.BytesIO(splat_file(folder, ".sog"))) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}

    def sog(**changed: Any) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as made:
            for name, content in entries.items():
                if name == "meta.json":
                    content = json.dumps({**json.loads(content), **changed}).encode()
                made.writestr(name, content)
        return buffer.getvalue()

    first = next(name for name in entries if name.endswith(".webp"))
    smaller = {name: content for name, content in entries.items() if name != first}
    lacking = io.BytesIO()
    with zipfile.ZipFile(lacking, "w") as made:
        for name, content in smaller.items():
            made.writestr(name, content)
    return {
        "count.ply": (table.replace(b"vertex 5", b"vertex 500000000"), "count.ply"),
        "cut.ply": (table[:-7], "cut short"),
        "nan.ply": (table[:-8] + struct.pack("<f", float("nan")) + table[-4:], "not finite"),
        "odd.splat": (raw[:-3], "odd.splat"),
        "empty.splat": (b"", "empty.splat"),
        "magic.spz": (gzip.compress(b"XXXX" + inner[4:]), "magic.spz"),
        "version.spz": (gzip.compress(inner[:4] + struct.pack("<I", 99) + inner[8:]), "version.spz"),
        "count.spz": (gzip.compress(inner[:8] + struct.pack("<I", 2**31) + inner[12:]), "count.spz"),
        "bomb.spz": (gzip.compress(inner + b"\0" * 50_000_000), "bomb.spz"),
        "large.spz": (
            gzip.compress(inner[:8] + struct.pack("<I", 9_000_000) + inner[12:] + b"\0" * 99_000_000),
            "large.spz",
        ),
        "cut.spz": (packed[:-20], "cut.spz"),
        "text.spz": (b"\x1f\x8b" + b"not packed", "text.spz"),
        "count.sog": (sog(count=10**9), "count.sog"),
        "minus.sog": (sog(count=-1), "minus.sog"),
        "names.sog": (sog(means={"mins": [0] * 3, "maxs": [1] * 3, "files": ["../../x", "/etc/passwd"]}), "names.sog"),
        "nan.sog": (sog(means={"mins": [float("nan")] * 3, "maxs": [1] * 3, "files": ["a", "b"]}), "nan.sog"),
        "lacking.sog": (lacking.getvalue(), "lacking.sog"),
        "count.glb": (glb(glb_file, lambda d: d["accessors"][0].update(count=2**39)), "count.glb"),
        "pickle.ply": (b"\x80\x04\x95" + b"\0" * 50, "pickle.ply"),
    }


def test_splats_that_lie_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    bad = splats(tmp_path)
    for name, (content, _) in bad.items():
        (tmp_path / "bad" / name).write_bytes(content)
    outcomes = calls([exported(tmp_path / "bad" / name) for name in bad])
    for (name, (_, reason)), outcome in zip(bad.items(), outcomes, strict=True):
        refused(outcome, name, reason)


def usd(text: str) -> bytes:
    return b'#usda 1.0\n(\n    defaultPrim = "a"\n    upAxis = "Y"\n)\n' + text.encode()


MESH = (
    'def Mesh "a"\n{{\n    int[] faceVertexCounts = [{counts}]\n    int[] faceVertexIndices = [{indices}]\n'
    "    point3f[] points = [(0, 0, 0), (1, 0, 0), (0, 1, 0)]\n}}\n"
)
USD = {
    "empty.usda": b"",
    "text.usda": b"hello",
    "index.usda": usd(MESH.format(counts="3", indices="0, 1, 9")),
    "minus.usda": usd(MESH.format(counts="3", indices="0, 1, -1")),
    "counts.usda": usd(MESH.format(counts="2000000000", indices="0, 1, 2")),
    "outside.usda": usd('def Mesh "a" (\n    references = @/etc/passwd@\n)\n{\n}\n'),
    "climbs.usda": usd('def Mesh "a" (\n    payload = @../../secret.usda@\n)\n{\n}\n'),
    "itself.usda": usd('def Mesh "a" (\n    references = @./itself.usda@\n)\n{\n}\n'),
    "cut.usdc": b"PXR-USDC" + b"\0" * 80,
    "foreign.usdz": b"PK\x03\x04 no archive",
}


def test_usd_files_that_lie_are_refused_by_name(tmp_path: Path) -> None:
    pytest.importorskip("pxr", reason="needs usd-core (pip install maquette[usd])")
    for name, content in USD.items():
        (tmp_path / name).write_bytes(content)
    for name, outcome in zip(USD, calls([exported(tmp_path / name) for name in USD]), strict=True):
        refused(outcome, name)
