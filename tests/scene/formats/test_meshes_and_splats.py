"""Mesh and splat files: round trips, independent readers, axes and colours, and files that lie."""

from __future__ import annotations

import contextlib
import json
import struct
import time
import tracemalloc
from pathlib import Path

import numpy as np
import plyfile
import pytest
import torch
import trimesh

from scene.errors import InputError
from scene.formats import load_mesh, load_splats, save_mesh, save_splats
from scene.formats.materials import linear_to_srgb, srgb_to_linear
from scene.formats.splat_ply import splat_properties
from scene.gaussians import Gaussians
from scene.mesh import Mesh, select_faces
from tests import peers


def random_splats(n: int, degree: int, seed: int = 0) -> Gaussians:
    g = torch.Generator().manual_seed(seed)
    quats = torch.nn.functional.normalize(torch.randn(n, 4, generator=g), dim=1)
    rest = (degree + 1) ** 2 - 1
    return Gaussians(
        means=torch.randn(n, 3, generator=g),
        quats=quats,
        log_scales=torch.randn(n, 3, generator=g) - 3,
        opacity_logits=torch.randn(n, generator=g),
        sh_dc=torch.randn(n, 3, generator=g),
        sh_rest=torch.randn(n, rest, 3, generator=g),
    )


def lettered_box() -> Mesh:
    """A box that no turn or mirror maps onto itself: sides 1, 2, 3, off the origin, every corner in its own colour."""
    box = trimesh.creation.box((1, 2, 3))
    colors = np.random.default_rng(0).integers(0, 256, (8, 3), dtype=np.uint8)
    return Mesh(np.add(box.vertices, [4, 5, 6]), np.asarray(box.faces, np.int32), colors)


def corners(mesh: Mesh) -> np.ndarray:
    """[F, 3, 3] of all faces, each begun at its lowest corner, in a fixed order: what a renumbering leaves alone."""
    faces = np.round(mesh.vertices[mesh.faces], 5)
    lowest = [np.lexsort(face.T[::-1])[0] for face in faces]
    turned = np.stack([np.roll(face, -start, axis=0) for face, start in zip(faces, lowest, strict=True)])
    return turned[np.lexsort(turned.reshape(-1, 9).T[::-1])]


# Gaussians


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize("n", [0, 1, 137])
def test_splats_come_back_to_the_bit(tmp_path: Path, degree: int, n: int):
    splats = random_splats(n, degree)
    save_splats(tmp_path / "scene.ply", splats)
    back = load_splats(tmp_path / "scene.ply")
    for name, tensor in splats.parameters().items():
        if name == "quats":
            assert torch.allclose(back.quats, tensor, atol=1e-6)
        else:
            assert torch.equal(getattr(back, name), tensor), name


def test_the_splat_file_is_laid_out_as_3dgs_writes_it(tmp_path: Path):
    splats = random_splats(5, 3)
    splats.quats *= 7  # written with unit length
    save_splats(tmp_path / "scene.ply", splats)
    head, body = (tmp_path / "scene.ply").read_bytes().split(b"end_header\n", 1)
    lines = head.decode().splitlines()
    assert lines[:3] == ["ply", "format binary_little_endian 1.0", "element vertex 5"]
    names = ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"] + [f"f_rest_{i}" for i in range(45)]
    names += ["opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]
    assert lines[3:] == [f"property float {name}" for name in names]
    rows = np.frombuffer(body, "<f4").reshape(5, 62)
    assert len(body) == 5 * 62 * 4
    assert (rows[:, :3] == splats.means.numpy()).all() and not rows[:, 3:6].any()
    rest = splats.sh_rest.numpy()  # [N, 15, 3]
    assert (rows[:, 9:24] == rest[:, :, 0]).all()  # 15 red, then green, then blue
    assert (rows[:, 24:39] == rest[:, :, 1]).all() and (rows[:, 39:54] == rest[:, :, 2]).all()
    assert (rows[:, 54] == splats.opacity_logits.numpy()).all()
    assert (rows[:, 55:58] == splats.log_scales.numpy()).all()
    assert np.allclose(np.linalg.norm(rows[:, 58:], axis=1), 1, atol=1e-6)


def test_an_independent_reader_finds_the_splats(tmp_path: Path):
    splats = random_splats(20, 1)
    save_splats(tmp_path / "scene.ply", splats)
    rows = plyfile.PlyData.read(tmp_path / "scene.ply")["vertex"]
    assert np.array_equal(np.stack([rows[axis] for axis in "xyz"], axis=1), splats.means.numpy())
    assert np.array_equal(rows["opacity"], splats.opacity_logits.numpy())


@pytest.mark.parametrize("order", ["ascii", "binary_big_endian", "binary_little_endian"])
def test_splats_are_read_in_any_order_of_properties_and_bytes(tmp_path: Path, order: str):
    splats = random_splats(11, 2)
    save_splats(tmp_path / "scene.ply", splats)
    _, body = (tmp_path / "scene.ply").read_bytes().split(b"end_header\n", 1)
    names = splat_properties(24)
    rows = np.frombuffer(body, "<f4").reshape(11, len(names))
    shuffled = np.random.default_rng(1).permutation(len(names))
    header = f"ply\r\nformat {order} 1.0\ncomment by another tool\nobj_info x\nelement vertex 11\n"
    header += "".join(f"property float32 {names[i]}\n" for i in shuffled) + "property uchar extra\nend_header\n"
    if order == "ascii":
        text = "\n".join(" ".join(f"{v:.9g}" for v in row[shuffled]) + " 7" for row in rows)
        data = header.encode() + text.encode()
    else:
        sign = ">" if "big" in order else "<"
        data = header.encode() + b"".join(row[shuffled].astype(sign + "f4").tobytes() + b"\x07" for row in rows)
    (tmp_path / "other.ply").write_bytes(data)
    back = load_splats(tmp_path / "other.ply")
    assert torch.equal(back.means, splats.means) and torch.equal(back.sh_rest, splats.sh_rest)


def splat_file(tmp_path: Path) -> tuple[bytes, bytes]:
    save_splats(tmp_path / "good.ply", random_splats(10, 0))
    head, body = (tmp_path / "good.ply").read_bytes().split(b"end_header\n", 1)
    return head + b"end_header\n", body


def spoilt(head: bytes, body: bytes) -> dict[str, bytes]:
    """Splat files that are wrong in one way each."""
    nan = bytearray(body)
    nan[:4] = struct.pack("<f", float("nan"))
    still = np.frombuffer(body, "<f4").copy().reshape(10, -1)
    still[3, -4:] = 0
    return {
        "empty": b"",
        "another kind of file": b"\x89PNG\r\n\x1a\n" + body,
        "cut short": head + body[:-1],
        "a lying count": head.replace(b"vertex 10", b"vertex 11") + body,
        "a huge count": head.replace(b"vertex 10", b"vertex 4000000000") + body,
        "an endless count": head.replace(b"vertex 10", b"vertex " + b"9" * 4000) + body,
        "a negative count": head.replace(b"vertex 10", b"vertex -5") + body,
        "no end of the header": head.replace(b"end_header", b"end_heaven") + body,
        "an endless header": head.replace(b"end_header\n", b"comment x\n" * 100_000) + body,
        "no format": head.replace(b"format binary_little_endian 1.0\n", b"") + body,
        "an unknown format": head.replace(b"little", b"middle") + body,
        "an unknown type": head.replace(b"float opacity", b"quad opacity") + body,
        "a property before any element": head.replace(b"element vertex 10\n", b"") + body,
        "a repeated property": head.replace(b"property float ny", b"property float nx") + body,
        "a missing property": head.replace(b"scale_1", b"skale_1") + body,
        "an odd number of harmonics": head.replace(b"float nx", b"float f_rest_0") + body,
        "lists for numbers": head.replace(b"float opacity", b"list uchar float opacity") + body,
        "rows without columns": b"ply\nformat binary_little_endian 1.0\nelement vertex 100000000\nend_header\n",
        "a million columns": b"ply\nformat ascii 1.0\nelement vertex 1\n"
        + b"".join(b"property uchar a%d\n" % i for i in range(3000))
        + b"end_header\n"
        + b"0 " * 3000,
        "text among numbers": head.replace(b"binary_little_endian", b"ascii") + b"one two three " * 999,
        "values that are not finite": head + bytes(nan),
        "rotations of no length": head + still.tobytes(),
        "an earlier element that lies": head.replace(
            b"element vertex", b"element x 900000\nproperty int y\nelement vertex"
        )
        + body,
    }


@pytest.mark.parametrize("how", spoilt(b"", bytes(680)))
def test_a_spoilt_splat_file_is_refused_quickly_and_without_memory(tmp_path: Path, how: str):
    path = tmp_path / "bad.ply"
    path.write_bytes(spoilt(*splat_file(tmp_path))[how])
    tracemalloc.start()
    began = time.monotonic()
    with pytest.raises(InputError, match=r"bad\.ply"):
        load_splats(path)
    assert time.monotonic() - began < 1
    assert tracemalloc.get_traced_memory()[1] < 32 << 20
    tracemalloc.stop()


def test_any_cut_or_flipped_byte_gives_splats_or_an_input_error(tmp_path: Path):
    head, body = splat_file(tmp_path)
    data = head + body
    rng = np.random.default_rng(0)
    for _ in range(300):
        bad = bytearray(data)
        for at in rng.integers(0, len(head) + 40, rng.integers(1, 4)):
            bad[at] = rng.integers(0, 256)
        (tmp_path / "bad.ply").write_bytes(bad[: rng.integers(1, len(bad) + 1)] if rng.random() < 0.3 else bad)
        with contextlib.suppress(InputError):
            load_splats(tmp_path / "bad.ply")


def test_a_missing_file_is_an_input_error(tmp_path: Path):
    for load, name in ((load_splats, "no.ply"), (load_mesh, "no.ply"), (load_mesh, "no.glb"), (load_mesh, "no.obj")):
        with pytest.raises(InputError, match="cannot read"):
            load(tmp_path / name)


# Meshes

Y_UP = (".glb", ".obj")


@pytest.mark.parametrize("ending", [".glb", ".ply", ".obj", ".stl"])
def test_meshes_come_back_in_the_scene_frame(tmp_path: Path, ending: str):
    mesh = lettered_box()
    save_mesh(tmp_path / f"box{ending}", mesh)
    back = load_mesh(tmp_path / f"box{ending}")
    assert np.abs(corners(back) - corners(mesh)).max() < 1e-5
    facts = back.facts()
    assert facts.watertight and facts.volume == pytest.approx(6, rel=1e-6)
    if ending != ".stl":
        assert back.colors is not None and mesh.colors is not None
        assert (back.colors == mesh.colors).all()


@pytest.mark.parametrize("ending", [".glb", ".ply", ".obj", ".stl"])
def test_trimesh_reads_what_we_write(tmp_path: Path, ending: str):
    mesh = lettered_box()
    save_mesh(tmp_path / f"box{ending}", mesh)
    other = trimesh.load(tmp_path / f"box{ending}", force="mesh", process=ending == ".stl")
    assert isinstance(other, trimesh.Trimesh)
    assert other.is_watertight and other.volume == pytest.approx(6, rel=1e-6)
    # glTF and OBJ stand +Y up: what was (x, y, z) is (x, z, -y).
    expected = mesh.vertices[:, [0, 2, 1]] * [1, 1, -1] if ending in Y_UP else mesh.vertices
    assert np.abs(np.sort(other.vertices, axis=0) - np.sort(expected, axis=0)).max() < 1e-5


@pytest.mark.parametrize("ending", [".glb", ".ply", ".obj", ".stl"])
def test_open3d_reads_what_we_write(tmp_path: Path, ending: str):
    save_mesh(tmp_path / f"box{ending}", lettered_box())
    other = peers.open3d().io.read_triangle_mesh(tmp_path / f"box{ending}")
    assert len(other.triangles) == 12
    low, high = other.get_min_bound(), other.get_max_bound()
    assert np.allclose(low, [3.5, 4.5, -6] if ending in Y_UP else [3.5, 4, 4.5], atol=1e-5)
    assert np.allclose(high, [4.5, 7.5, -4] if ending in Y_UP else [4.5, 6, 7.5], atol=1e-5)


def test_colours_are_linear_in_glb_and_bytes_in_ply(tmp_path: Path):
    mesh = lettered_box()
    assert mesh.colors is not None
    save_mesh(tmp_path / "box.glb", mesh)
    save_mesh(tmp_path / "box.ply", mesh)
    document, binary = glb_parts(tmp_path / "box.glb")
    accessor = document["accessors"][document["meshes"][0]["primitives"][0]["attributes"]["COLOR_0"]]
    view = document["bufferViews"][accessor["bufferView"]]
    linear = np.frombuffer(binary, "<f4", 24, view["byteOffset"]).reshape(8, 3)
    srgb = mesh.colors / 255.0
    expected = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    assert np.abs(linear - expected).max() < 1e-6
    rows = plyfile.PlyData.read(tmp_path / "box.ply")["vertex"]
    assert np.array_equal(np.stack([rows[name] for name in ("red", "green", "blue")], axis=1), mesh.colors)


def test_srgb_survives_the_way_to_linear_and_back():
    every = np.arange(256, dtype=np.uint8)
    assert (linear_to_srgb(srgb_to_linear(every)) == every).all()


def glb_parts(path: Path) -> tuple[dict, bytes]:
    data = path.read_bytes()
    assert data[:4] == b"glTF" and struct.unpack("<II", data[4:12]) == (2, len(data))
    length = struct.unpack("<I", data[12:16])[0]
    assert length % 4 == 0 and data[16:20] == b"JSON" and data[24 + length : 28 + length] == b"BIN\x00"
    return json.loads(data[20 : 20 + length]), data[28 + length :]


def glb_of(document: dict, binary: bytes) -> bytes:
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    body = struct.pack("<I", len(text)) + b"JSON" + text + struct.pack("<I", len(binary)) + b"BIN\x00" + binary
    return b"glTF" + struct.pack("<II", 2, 12 + len(body)) + body


def test_the_glb_material_is_rough_and_two_sided_only_when_open(tmp_path: Path):
    box = lettered_box()
    save_mesh(tmp_path / "closed.glb", box)
    save_mesh(tmp_path / "open.glb", select_faces(box, np.arange(1, 12)))
    closed, opened = (glb_parts(tmp_path / name)[0]["materials"][0] for name in ("closed.glb", "open.glb"))
    assert closed["pbrMetallicRoughness"] == {"metallicFactor": 0.0, "roughnessFactor": 1.0}
    assert "doubleSided" not in closed and opened["doubleSided"] is True


@pytest.mark.parametrize("up", [(0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 0, -2), (0.3, -0.5, 0.7)])
def test_the_scene_s_up_stands_upright_in_glb(tmp_path: Path, up: tuple[float, float, float]):
    mesh = lettered_box()
    save_mesh(tmp_path / "box.glb", mesh, up=up)
    assert np.abs(corners(load_mesh(tmp_path / "box.glb", up=up)) - corners(mesh)).max() < 1e-5
    other = trimesh.load(tmp_path / "box.glb", force="mesh", process=False)
    assert isinstance(other, trimesh.Trimesh)
    height = mesh.vertices @ np.array(up) / np.linalg.norm(up)
    assert np.abs(other.vertices[:, 1] - height).max() < 1e-5
    assert other.volume == pytest.approx(6, rel=1e-5)  # turned, not mirrored


def test_a_glb_by_another_tool_is_read_with_its_nodes(tmp_path: Path):
    scene = trimesh.Scene()
    turn = np.array(trimesh.transformations.rotation_matrix(0.7, (1, 2, 3), (4, 5, 6)), float)
    ball = trimesh.creation.icosphere(2)
    scene.add_geometry(ball, transform=turn)
    scene.add_geometry(trimesh.creation.box((1, 2, 3)), transform=np.diag([2, 1, -1, 1.0]))
    scene.export(tmp_path / "scene.glb")
    other = trimesh.load(tmp_path / "scene.glb", force="mesh", process=False)
    assert isinstance(other, trimesh.Trimesh)
    back = load_mesh(tmp_path / "scene.glb", up=(0, 1, 0))
    assert back.facts().components == 2
    assert np.allclose(np.sort(back.vertices, axis=0), np.sort(other.vertices, axis=0), atol=1e-5)
    assert back.facts().volume == pytest.approx(ball.volume + 12, rel=1e-5)  # the mirrored box too is outside out


def spoilt_glbs(data: bytes, document: dict, binary: bytes) -> dict[str, bytes]:
    """Binary glTF files that are wrong in one way each."""

    def changed(*path: str | int, to: object) -> bytes:
        copy = json.loads(json.dumps(document))
        at = copy
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = to
        return glb_of(copy, binary)

    loop = json.loads(json.dumps(document))
    loop["nodes"] = [{"children": [0], "mesh": 0}]
    bomb = json.loads(json.dumps(document))
    bomb["nodes"] = [{"children": [i + 1] * 10, "mesh": 0} for i in range(30)] + [{}]
    return {
        "empty": b"",
        "cut short": data[:-1],
        "a lying length": data[:8] + struct.pack("<I", 1 << 31) + data[12:],
        "a huge JSON part": data[:12] + struct.pack("<I", 0xFFFFFFF0) + data[16:],
        "an old version": data[:4] + struct.pack("<I", 1) + data[8:],
        "no JSON": glb_of({}, b"").replace(b"{}", b"[}"),
        "a list for a document": glb_of({}, b"").replace(b"{}", b"[]"),
        "too many rows": changed("accessors", 0, "count", to=1 << 30),
        "a negative offset": changed("bufferViews", 0, "byteOffset", to=-4),
        "a stride of zero": changed("bufferViews", 0, "byteStride", to=0),
        "half an index": changed("accessors", 0, "bufferView", to=0.5),
        "the last accessor by -1": changed("meshes", 0, "primitives", 0, "indices", to=-1),
        "an accessor that is not there": changed("meshes", 0, "primitives", 0, "indices", to=99),
        "colours for indices": changed("meshes", 0, "primitives", 0, "indices", to=2),
        "indices beyond the vertices": changed("accessors", 0, "count", to=3),
        "a sparse accessor": changed("accessors", 0, "sparse", to={}),
        "data elsewhere": changed("buffers", 0, "uri", to="../../etc/passwd"),
        "nodes in a circle": glb_of(loop, binary),
        "a bomb of nodes": glb_of(bomb, binary),
        "a node of nothing": changed("nodes", 0, to=None),
        "a matrix of text": changed("nodes", 0, "matrix", to=["x"] * 16),
        "no triangles": changed("nodes", 0, to={}),
    }


EXAMPLE = {"accessors": [{}], "bufferViews": [{}], "meshes": [{"primitives": [{}]}], "nodes": [{}], "buffers": [{}]}


@pytest.mark.parametrize("how", spoilt_glbs(bytes(20), EXAMPLE, b""))
def test_a_spoilt_glb_is_refused_quickly_and_without_memory(tmp_path: Path, how: str):
    save_mesh(tmp_path / "good.glb", lettered_box())
    path = tmp_path / "bad.glb"
    path.write_bytes(spoilt_glbs((tmp_path / "good.glb").read_bytes(), *glb_parts(tmp_path / "good.glb"))[how])
    tracemalloc.start()
    began = time.monotonic()
    with pytest.raises(InputError, match=r"bad\.glb"):
        load_mesh(path)
    assert time.monotonic() - began < 3
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.stl", bytes(80) + struct.pack("<I", 4_000_000_000) + bytes(50)),
        ("b.stl", b"short"),
        ("c.stl", bytes(80) + struct.pack("<I", 1) + struct.pack("<12f", *[float("nan")] * 12) + bytes(2)),
        ("d.obj", b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 4\n"),
        ("e.obj", b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 0 1 2\n"),
        ("f.obj", b"v 0 0 zero\nv 1 0 0\nv 0 1 0\nf 1 2 3\n"),
        ("g.obj", b"v 0 0\nf 1 1 1\n"),
        ("h.obj", b"\xff\xfe\x00\x00"),
        ("i.obj", b"v 0 0 0\nv 1 0 0\nv 0 1 0\n"),
        ("j.obj", b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 99999999999999999999999\n"),
        ("k.ply", b"ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nend_header\n1\n"),
        (
            "l.ply",
            b"ply\nformat binary_little_endian 1.0\nelement face 1\nproperty list uint int vertex_indices\nend_header\n"
            + struct.pack("<I", 0xFFFFFFFF),
        ),
        ("m.off", b"OFF"),
    ],
)
def test_spoilt_meshes_are_refused(tmp_path: Path, name: str, content: bytes):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=name.split(".")[1]):
        load_mesh(tmp_path / name)


def test_polygons_negative_indices_and_texture_numbers_of_obj(tmp_path: Path):
    (tmp_path / "house.obj").write_text(
        "# quad and pentagon\nmtllib none.mtl\nv 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nvt 0 0\nvn 0 0 1\n"
        "f 1/1/1 2/1/1 3/1/1 4/1/1\nv 0.5 2 0\nf -5//1 -4//1 -3//1 -1//1 -2//1\n"
    )
    mesh = load_mesh(tmp_path / "house.obj", up=(0, 1, 0))
    assert len(mesh.faces) == 5
    assert mesh.face_areas.sum() == pytest.approx(1 + 1 + 0.5)
    assert (mesh.face_normals[:, 2] > 0).all()


@pytest.mark.parametrize("order", ["ascii", "binary_big_endian", "binary_little_endian"])
def test_a_ply_with_mixed_polygons_is_read(tmp_path: Path, order: str):
    vertices = [(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0), (2, 0, 0)]
    polygons = [(0, 1, 2, 3), (1, 4, 2)]
    header = f"ply\nformat {order} 1.0\nelement vertex 5\nproperty double x\nproperty double y\nproperty double z\n"
    header += "element face 2\nproperty uchar flag\nproperty list uchar uint vertex_index\nend_header\n"
    if order == "ascii":
        text = "\n".join(" ".join(map(str, v)) for v in vertices) + "\n"
        text += "\n".join(f"1 {len(p)} " + " ".join(map(str, p)) for p in polygons)
        data = header.encode() + text.encode()
    else:
        sign = ">" if "big" in order else "<"
        data = header.encode() + b"".join(struct.pack(sign + "3d", *v) for v in vertices)
        data += b"".join(struct.pack(f"{sign}BB{len(p)}I", 1, len(p), *p) for p in polygons)
    (tmp_path / "mixed.ply").write_bytes(data)
    mesh = load_mesh(tmp_path / "mixed.ply")
    assert mesh.faces.tolist() == [[0, 1, 2], [0, 2, 3], [1, 4, 2]]
    assert mesh.face_areas.sum() == pytest.approx(1.5)


def test_text_stl_is_read(tmp_path: Path):
    trimesh.creation.box((1, 2, 3)).export(tmp_path / "box.stl", file_type="stl_ascii")
    assert load_mesh(tmp_path / "box.stl").facts().volume == pytest.approx(6)


def test_nothing_is_written_for_an_empty_mesh_or_an_unknown_ending(tmp_path: Path):
    empty = Mesh(np.zeros((0, 3)), np.zeros((0, 3), np.int32))
    with pytest.raises(InputError, match="empty"):
        save_mesh(tmp_path / "mesh.glb", empty)
    with pytest.raises(InputError, match=r"\.xyz"):
        save_mesh(tmp_path / "mesh.xyz", lettered_box())
    with pytest.raises(InputError, match="could not"):
        save_mesh(tmp_path / "no folder" / "mesh.glb", lettered_box())
    assert not list(tmp_path.iterdir())
