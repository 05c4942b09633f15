"""glTF meshes: textures, seams, several materials, what other tools write, cameras, and files that lie."""

from __future__ import annotations

import base64
import json
import math
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from scene.cameras import Camera
from scene.errors import InputError
from scene.formats import load_mesh, save_mesh
from scene.formats.glb import split_corners
from scene.formats.materials import sample
from scene.formats.welding import weld_seams
from scene.mesh import Material, Mesh
from tests.scene.formats.lettered import letter_sheet, lettered_block

Y_UP = (0.0, 1.0, 0.0)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth(height: int, width: int) -> np.ndarray:
    """Colours that change slowly, as photos do: JPEG keeps them."""
    y, x = np.mgrid[:height, :width]
    waves = [128 + 100 * np.sin(x / 40 + i) * np.cos(y / 55 - i) for i in range(3)]
    return np.stack(waves, axis=-1).astype(np.uint8)


def parts(path: Path) -> tuple[dict[str, Any], bytes]:
    data = path.read_bytes()
    length = struct.unpack("<I", data[12:16])[0]
    return json.loads(data[20 : 20 + length]), data[28 + length :]


def write_gltf(path: Path, document: dict[str, Any], binary: bytes) -> None:
    document["buffers"] = [{"byteLength": len(binary), "uri": f"{path.stem} data.bin".replace(" ", "%20")}]
    path.with_name(f"{path.stem} data.bin").write_bytes(binary)
    path.write_text(json.dumps(document))


def quads(*colors: str, uvs: np.ndarray | None = None) -> tuple[dict[str, Any], bytes]:
    """A document of unit squares in a row along x, each of its own material; `colors`: hex, or names of pictures."""
    positions = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], "<f4")
    at = np.array([[0, 1], [1, 1], [1, 0], [0, 0]], "<f4") if uvs is None else uvs.astype("<f4")
    blobs = [np.array([0, 1, 2, 0, 2, 3], "<u2").tobytes(), at.tobytes()]
    blobs += [(positions + np.array([i, 0, 0], "f4")).astype("<f4").tobytes() for i in range(len(colors))]
    views, offset = [], 0
    for blob in blobs:
        views.append({"buffer": 0, "byteOffset": offset, "byteLength": len(blob)})
        offset += len(blob)
    accessors: list[dict[str, Any]] = [
        {"bufferView": 0, "componentType": 5123, "count": 6, "type": "SCALAR"},
        {"bufferView": 1, "componentType": 5126, "count": 4, "type": "VEC2"},
    ]
    accessors += [{"bufferView": 2 + i, "componentType": 5126, "count": 4, "type": "VEC3"} for i in range(len(colors))]
    primitives = [
        {"attributes": {"POSITION": 2 + i, "TEXCOORD_0": 1}, "indices": 0, "material": i} for i in range(len(colors))
    ]
    document: dict[str, Any] = {
        "asset": {"version": "2.0"},
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": primitives}],
        "materials": [],
        "accessors": accessors,
        "bufferViews": views,
        "images": [],
        "textures": [],
    }
    for color in colors:
        if color.startswith("#"):
            factor = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
            document["materials"].append({"pbrMetallicRoughness": {"baseColorFactor": [*factor, 1.0]}})
        else:
            document["images"].append({"uri": color})
            document["textures"].append({"source": len(document["images"]) - 1})
            texture = {"index": len(document["textures"]) - 1}
            document["materials"].append({"pbrMetallicRoughness": {"baseColorTexture": texture}})
    return document, b"".join(blobs)


def color_at(mesh: Mesh, x: float, y: float) -> np.ndarray:
    """[3] what the texture shows at a place of a mesh that lies in the plane z = 0."""
    assert mesh.uvs is not None and mesh.material is not None
    for face, uvs in zip(mesh.faces, mesh.uvs, strict=True):
        a, b, c = mesh.vertices[face][:, :2]
        weights = np.linalg.solve(np.array([[*a, 1], [*b, 1], [*c, 1]]).T, [x, y, 1])
        if (weights >= -1e-9).all():
            return sample(mesh.material.base_color, weights @ uvs)
    raise AssertionError("no face there")


# What we write


def test_a_texture_comes_back_with_its_maps_and_closed_seams(tmp_path: Path):
    block = lettered_block()
    maps = Material(letter_sheet(), noise(64, 32), noise(16, 16)[..., 0])
    save_mesh(tmp_path / "block.glb", Mesh(block.vertices, block.faces, None, block.uvs, maps))
    back = load_mesh(tmp_path / "block.glb")
    assert back.facts().watertight and len(back.vertices) == 12
    assert back.material is not None and back.material.normal is not None and back.material.occlusion is not None
    assert (back.material.base_color == maps.base_color).all()
    assert maps.normal is not None and (back.material.normal == maps.normal).all()
    assert maps.occlusion is not None and (back.material.occlusion == maps.occlusion).all()
    assert back.uvs is not None and block.uvs is not None and np.abs(back.uvs - block.uvs).max() < 1e-6


def test_large_textures_are_jpeg_and_small_ones_exact(tmp_path: Path):
    block = lettered_block()
    large = Mesh(block.vertices, block.faces, None, block.uvs, Material(smooth(1024, 1024)))
    save_mesh(tmp_path / "large.glb", large)
    save_mesh(tmp_path / "small.glb", block)
    assert parts(tmp_path / "large.glb")[0]["images"][0]["mimeType"] == "image/jpeg"
    assert parts(tmp_path / "small.glb")[0]["images"][0]["mimeType"] == "image/png"
    back = load_mesh(tmp_path / "large.glb").material
    assert back is not None
    assert np.abs(back.base_color.astype(int) - smooth(1024, 1024)).mean() < 1


def test_normals_are_smooth_across_the_seams_of_a_texture(tmp_path: Path):
    block = lettered_block()
    save_mesh(tmp_path / "block.glb", block)
    document, binary = parts(tmp_path / "block.glb")
    attributes = document["meshes"][0]["primitives"][0]["attributes"]

    def rows(name: str) -> np.ndarray:
        accessor = document["accessors"][attributes[name]]
        view = document["bufferViews"][accessor["bufferView"]]
        return np.frombuffer(binary, "<f4", 3 * accessor["count"], view["byteOffset"]).reshape(-1, 3)

    positions, normals = rows("POSITION"), rows("NORMAL")
    assert len(positions) > 12
    for place in np.unique(positions, axis=0):
        same = normals[(positions == place).all(axis=1)]
        assert (same == same[0]).all()
    assert np.abs(np.linalg.norm(normals, axis=1) - 1).max() < 1e-6


def test_corners_are_split_no_more_than_their_uvs_ask():
    block = lettered_block()
    corners, faces = split_corners(block)
    vertex_of = block.faces.reshape(-1)[corners]
    assert block.uvs is not None
    assert (vertex_of[faces] == block.faces).all()
    assert (block.uvs.reshape(-1, 2)[corners][faces] == block.uvs).all()
    wanted = {(v, *uv) for v, uv in zip(block.faces.reshape(-1), block.uvs.reshape(-1, 2).tolist(), strict=True)}
    assert len(vertex_of) == len(wanted)


def test_tangents_run_along_growing_u_and_their_sign_tells_mirrored_faces(tmp_path: Path):
    square = np.array([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [2, 0, 0], [2, 1, 0]])
    faces = np.array([[0, 1, 2], [0, 2, 3], [1, 4, 5], [1, 5, 2]], np.int32)
    at = square[faces][..., :2]
    uvs = np.where(at[..., :1] > 1, at * [-1, 1] + [2, 0], at)  # the right half is the mirrored left one
    flat = np.full((4, 4, 3), (128, 128, 255), np.uint8)
    mesh = Mesh(square, faces, None, uvs, Material(noise(4, 4), flat))
    save_mesh(tmp_path / "a.glb", mesh, up=Y_UP)
    document, binary = parts(tmp_path / "a.glb")
    attributes = document["meshes"][0]["primitives"][0]["attributes"]

    def rows(name: str, width: int) -> np.ndarray:
        accessor = document["accessors"][attributes[name]]
        view = document["bufferViews"][accessor["bufferView"]]
        return np.frombuffer(binary, "<f4", width * accessor["count"], view["byteOffset"]).reshape(-1, width)

    positions, normals, tangents = rows("POSITION", 3), rows("NORMAL", 3), rows("TANGENT", 4)
    assert len(positions) == 8  # the two vertices in the middle are there for both halves
    mirrored = tangents[:, 3] < 0
    assert mirrored.sum() == 4 and (positions[mirrored, 0] >= 1).all() and (positions[~mirrored, 0] <= 1).all()
    assert np.abs(tangents[:, :3] - np.where(mirrored, -1, 1)[:, None] * [1.0, 0, 0]).max() < 1e-6
    bitangents = np.cross(normals, tangents[:, :3]) * tangents[:, 3:]
    assert np.abs(bitangents - [0, 1, 0]).max() < 1e-6  # along growing v, which is up in the picture


def test_a_label_and_cameras_lie_in_the_file(tmp_path: Path):
    K = torch.tensor([[400.0, 0, 300], [0, 410, 250], [0, 0, 1]])
    cameras = {"a": Camera(K, torch.eye(4), 640, 480), "b": Camera(K, torch.eye(4), 640, 480)}
    label = {"green": True, "checks": [{"name": "watertight", "ok": True}]}
    save_mesh(tmp_path / "block.glb", lettered_block(), cameras=cameras, label=label, up=Y_UP)
    document, _ = parts(tmp_path / "block.glb")
    assert document["asset"]["extras"] == label
    group = document["nodes"][document["scenes"][0]["nodes"][1]]
    assert group["name"] == "cameras" and [document["nodes"][i]["name"] for i in group["children"]] == ["a", "b"]
    node = document["nodes"][group["children"][0]]
    assert node["matrix"] == np.diag([1.0, -1, -1, 1]).reshape(-1).tolist()
    assert node["extras"] == {"width": 640, "height": 480, "fx": 400, "fy": 410, "cx": 300, "cy": 250}
    lens = document["cameras"][node["camera"]]["perspective"]
    assert lens["yfov"] == pytest.approx(2 * math.atan(240 / 410))
    assert lens["aspectRatio"] == pytest.approx(640 / 480 * 410 / 400)
    assert load_mesh(tmp_path / "block.glb", up=Y_UP).facts().watertight
    save_mesh(tmp_path / "unknown.glb", lettered_block(), label={"a": float("nan"), "b": np.float32(0.5)})
    assert parts(tmp_path / "unknown.glb")[0]["asset"]["extras"] == {"a": None, "b": 0.5}
    save_mesh(tmp_path / "numbered.glb", lettered_block(), cameras=list(cameras.values()))
    assert [c["name"] for c in parts(tmp_path / "numbered.glb")[0]["cameras"]] == ["camera_0000", "camera_0001"]


def test_vertex_colours_do_not_darken_a_texture(tmp_path: Path):
    block = lettered_block()
    dark = Mesh(block.vertices, block.faces, np.zeros((12, 3), np.uint8), block.uvs, block.material)
    save_mesh(tmp_path / "block.glb", dark)
    assert "COLOR_0" not in parts(tmp_path / "block.glb")[0]["meshes"][0]["primitives"][0]["attributes"]


# Seams


def soup(mesh: Mesh) -> Mesh:
    """The same triangles, none sharing a vertex."""
    return Mesh(mesh.vertices[mesh.faces].reshape(-1, 3), np.arange(3 * len(mesh.faces), dtype=np.int32).reshape(-1, 3))


def test_a_soup_of_triangles_is_welded_into_the_closed_surface_it_is():
    welded = weld_seams(soup(lettered_block()))
    assert len(welded.vertices) == 12 and welded.facts().watertight


def test_sheets_that_touch_stay_apart():
    block = lettered_block()
    again = Mesh(
        np.concatenate([block.vertices, block.vertices]), np.concatenate([block.faces, block.faces + 12])
    )  # two closed sheets in the same place
    assert len(weld_seams(again).vertices) == 24
    leaf = np.array([[0, 1, 2], [3, 5, 4]])  # a triangle and its back side
    triangle = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]])
    assert len(weld_seams(Mesh(np.tile(triangle, (2, 1)), leaf)).vertices) == 6
    # Two tetrahedra that meet in an edge: four faces there.
    one = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0.5], [0, 1, -0.5]])
    faces = np.array([[0, 1, 2], [0, 3, 1], [1, 3, 2], [0, 2, 3]])
    both = Mesh(np.concatenate([one, one * [1, -1, 1]]), np.concatenate([faces, faces[:, ::-1] + 4]))
    welded = weld_seams(both)
    assert len(welded.vertices) == 8 and welded.facts().manifold and welded.facts().components == 2


def test_a_sharp_border_of_colours_is_kept_rather_than_welded():
    pieces = soup(lettered_block())
    colors = np.repeat(np.arange(20, dtype=np.uint8), 3)[:, None].repeat(3, axis=1)
    kept = weld_seams(Mesh(pieces.vertices, pieces.faces, colors))
    assert len(kept.vertices) == 60 and kept.colors is not None and (kept.colors == colors).all()


def test_zero_and_minus_zero_are_one_place():
    welded = weld_seams(
        Mesh(
            np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [-0.0, 0, 0], [0, 1, 0], [-1, 0, 0]]),
            np.array([[0, 1, 2], [3, 4, 5]]),
        )
    )
    assert len(welded.vertices) == 4


# What others write


def test_a_gltf_with_its_data_beside_it_is_read(tmp_path: Path):
    save_mesh(tmp_path / "block.glb", lettered_block())
    document, binary = parts(tmp_path / "block.glb")
    write_gltf(tmp_path / "block.gltf", document, binary)
    one, other = load_mesh(tmp_path / "block.glb"), load_mesh(tmp_path / "block.gltf")
    assert (one.vertices == other.vertices).all() and (one.faces == other.faces).all()
    assert one.material is not None and other.material is not None
    assert (one.material.base_color == other.material.base_color).all()
    document["buffers"][0]["uri"] = "data:application/octet-stream;base64," + base64.b64encode(binary).decode()
    (tmp_path / "inside.gltf").write_text(json.dumps(document))
    assert (load_mesh(tmp_path / "inside.gltf").vertices == one.vertices).all()


def test_several_materials_become_one_texture_in_which_each_face_keeps_its_look(tmp_path: Path):
    Image.fromarray(noise(20, 30)).save(tmp_path / "a.png")
    Image.fromarray(noise(64, 64, seed=1)).save(tmp_path / "b c.png")
    document, binary = quads("a.png", "#ff0000", "b%20c.png", "#0000ff")
    write_gltf(tmp_path / "four.gltf", document, binary)
    mesh = load_mesh(tmp_path / "four.gltf", up=Y_UP)
    assert len(mesh.vertices) == 10  # joined along the borders of the materials
    assert mesh.uvs is not None and mesh.uvs.min() >= 0 and mesh.uvs.max() <= 1
    for place in np.random.default_rng(3).uniform(0.02, 0.98, (50, 2)):
        for picture, x in ((noise(20, 30), 0), (noise(64, 64, seed=1), 2)):
            assert np.abs(color_at(mesh, x + place[0], place[1]) - sample(picture, place)).max() < 0.1
        assert color_at(mesh, 1 + place[0], place[1]).tolist() == [255, 0, 0]
        assert color_at(mesh, 3 + place[0], place[1]).tolist() == [0, 0, 255]


def test_a_repeated_picture_is_repeated_in_the_atlas(tmp_path: Path):
    Image.fromarray(noise(16, 16)).save(tmp_path / "a.png")
    document, binary = quads("a.png", "#00ff00", uvs=np.array([[-3, 2], [-1, 2], [-1, -1], [-3, -1]]))
    write_gltf(tmp_path / "tiles.gltf", document, binary)
    mesh = load_mesh(tmp_path / "tiles.gltf", up=Y_UP)
    assert mesh.uvs is not None and mesh.uvs.min() >= 0 and mesh.uvs.max() <= 1
    for place in np.random.default_rng(3).uniform(0.02, 0.98, (50, 2)):
        at = place * [2, 3] % 1
        if (
            (at > 0.05) & (at < 0.95)
        ).all():  # at a tile's border the plain sampler clamps, a repeated picture does not
            assert np.abs(color_at(mesh, *place) - sample(noise(16, 16), at)).max() < 0.1


def test_a_transform_of_the_uvs_is_applied(tmp_path: Path):
    Image.fromarray(noise(16, 16)).save(tmp_path / "a.png")
    document, binary = quads("a.png")
    move = {"offset": [0.25, 0.5], "rotation": math.pi / 2, "scale": [0.5, 0.25]}
    texture = document["materials"][0]["pbrMetallicRoughness"]["baseColorTexture"]
    texture["extensions"] = {"KHR_texture_transform": move}
    write_gltf(tmp_path / "moved.gltf", document, binary)
    mesh = load_mesh(tmp_path / "moved.gltf", up=Y_UP)
    # The extension's own words: Translation * Rotation * Scale on (u, v), v down.
    c, s = 0.0, 1.0
    matrix = np.array([[1, 0, 0.25], [0, 1, 0.5], [0, 0, 1]]) @ np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])
    matrix = matrix @ np.diag([0.5, 0.25, 1])
    assert mesh.uvs is not None
    for face, uvs in zip(mesh.faces, mesh.uvs, strict=True):
        for (x, y, _), uv in zip(mesh.vertices[face], uvs, strict=True):
            u, v, _ = matrix @ [x, 1 - y, 1]
            assert uv == pytest.approx([u, 1 - v], abs=1e-6)


def test_a_factor_tints_the_picture_in_linear_light(tmp_path: Path):
    Image.fromarray(noise(16, 16)).save(tmp_path / "a.png")
    document, binary = quads("a.png")
    document["materials"][0]["pbrMetallicRoughness"]["baseColorFactor"] = [0.5, 1, 0, 1]
    write_gltf(tmp_path / "tinted.gltf", document, binary)
    material = load_mesh(tmp_path / "tinted.gltf").material
    assert material is not None
    srgb = noise(16, 16) / 255.0
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4) * [0.5, 1, 0]
    expected = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    assert np.abs(material.base_color - 255 * expected).max() < 0.51


def test_sparse_accessors_replace_single_vertices(tmp_path: Path):
    document, binary = quads("#ffffff")
    extra = np.array([2], "<u2").tobytes() + b"\0\0" + np.array([[5, 6, 7]], "<f4").tobytes()
    document["bufferViews"] += [
        {"buffer": 0, "byteOffset": len(binary), "byteLength": 2},
        {"buffer": 0, "byteOffset": len(binary) + 4, "byteLength": 12},
    ]
    views = len(document["bufferViews"])
    document["accessors"][2]["sparse"] = {
        "count": 1,
        "indices": {"bufferView": views - 2, "componentType": 5123},
        "values": {"bufferView": views - 1},
    }
    write_gltf(tmp_path / "sparse.gltf", document, binary + extra)
    mesh = load_mesh(tmp_path / "sparse.gltf", up=Y_UP)
    assert sorted(mesh.vertices.tolist()) == [[0, 0, 0], [0, 1, 0], [1, 0, 0], [5, 6, 7]]


@pytest.mark.parametrize(
    ("mode", "expected"),
    [(4, [[0, 1, 2]]), (5, [[0, 1, 2], [1, 3, 2]]), (6, [[0, 1, 2], [0, 2, 3]])],
    ids=["triangles", "strip", "fan"],
)
def test_triangles_strips_and_fans_keep_their_sides(tmp_path: Path, mode: int, expected: list[list[int]]):
    order = [0, 1, 3, 2] if mode == 5 else [0, 1, 2, 3]  # a strip goes across
    document, binary = quads("#ffffff")
    primitive = document["meshes"][0]["primitives"][0]
    primitive["mode"], document["accessors"][0]["count"] = mode, 4
    binary = np.array([*order, 0, 0], "<u2").tobytes() + binary[12:]
    write_gltf(tmp_path / "a.gltf", document, binary)
    mesh = load_mesh(tmp_path / "a.gltf", up=Y_UP)
    assert len(mesh.faces) == len(expected) and (mesh.face_normals[:, 2] > 0).all()
    assert mesh.face_areas.sum() == pytest.approx(0.5 * len(expected))


def test_quantised_positions_are_scaled_by_their_type(tmp_path: Path):
    document, binary = quads("#ffffff")
    quantised = np.array([[-32768, -32767, 0, 0], [32767, 0, 0, 0], [0, 32767, 16384, 0], [0, 0, 32767, 0]], "<i2")
    document["extensionsRequired"] = ["KHR_mesh_quantization"]
    document["accessors"][2] |= {"componentType": 5122, "normalized": True}
    document["bufferViews"].append(
        {"buffer": 0, "byteOffset": len(binary), "byteLength": quantised.nbytes, "byteStride": 8}
    )
    document["accessors"][2]["bufferView"] = len(document["bufferViews"]) - 1
    write_gltf(tmp_path / "a.gltf", document, binary + quantised.tobytes())
    mesh = load_mesh(tmp_path / "a.gltf", up=Y_UP)
    expected = np.maximum(quantised[:, :3] / 32767.0, -1)
    assert np.abs(mesh.vertices - expected).max() < 1e-12


# Files that lie


def _set(*path: Any, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        at: Any = document
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = to

    return change


LIES: dict[str, Callable[[dict[str, Any]], None]] = {
    "a buffer outside the folder": _set("buffers", 0, "uri", to="../secret.bin"),
    "a buffer by an absolute path": _set("buffers", 0, "uri", to="/etc/hostname"),
    "a buffer through escapes": _set("buffers", 0, "uri", to="%2e%2e/secret.bin"),
    "a buffer on the web": _set("buffers", 0, "uri", to="https://example.org/a.bin"),
    "a buffer that is not there": _set("buffers", 0, "uri", to="none.bin"),
    "a buffer that is a folder": _set("buffers", 0, "uri", to="folder"),
    "base64 that is none": _set("buffers", 0, "uri", to="data:;base64,!!!!"),
    "a picture outside the folder": _set("images", 0, "uri", to="../secret.png"),
    "a picture on the web": _set("images", 0, "uri", to="http://example.org/a.png"),
    "a picture that is none": _set("images", 0, "uri", to="data:image/png;base64,AAAA"),
    "a texture that is not there": _set("materials", 0, "pbrMetallicRoughness", "baseColorTexture", "index", to=7),
    "a material that is not there": _set("meshes", 0, "primitives", 0, "material", to=9),
    "a material by -1": _set("meshes", 0, "primitives", 0, "material", to=-1),
    "uvs of three numbers": _set("accessors", 1, "type", to="VEC3"),
    "too few uvs": _set("accessors", 1, "count", to=3),
    "a sparse index beyond": _set(
        "accessors",
        2,
        "sparse",
        to={
            "count": 1,
            "indices": {"bufferView": 0, "componentType": 5123, "byteOffset": 2},
            "values": {"bufferView": 2},
        },
    ),
    "a sparse count beyond": _set(
        "accessors",
        2,
        "sparse",
        to={"count": 1 << 30, "indices": {"bufferView": 0, "componentType": 5123}, "values": {"bufferView": 2}},
    ),
    "Draco": _set("extensionsRequired", to=["KHR_draco_mesh_compression"]),
    "meshopt": _set("bufferViews", 0, "extensions", to={"EXT_meshopt_compression": {}}),
    "a version to come": _set("asset", "version", to="3.0"),
    "a transform of text": _set(
        "materials",
        0,
        "pbrMetallicRoughness",
        "baseColorTexture",
        "extensions",
        to={"KHR_texture_transform": {"scale": "xy"}},
    ),
}


@pytest.mark.parametrize("how", LIES)
def test_a_gltf_that_lies_is_refused_in_one_line_that_names_it(tmp_path: Path, how: str):
    folder = tmp_path / "model"
    (folder / "folder").mkdir(parents=True)
    Image.fromarray(noise(8, 8)).save(folder / "a.png")
    Image.fromarray(noise(8, 8)).save(tmp_path / "secret.png")
    document, binary = quads("a.png")
    (tmp_path / "secret.bin").write_bytes(binary)
    write_gltf(folder / "bad.gltf", document, binary)
    if how == "a sparse index beyond":
        binary = binary[:2] + b"\x09\x00" + binary[4:]
        (folder / "bad data.bin").write_bytes(binary)
    LIES[how](document)
    (folder / "bad.gltf").write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"bad\.gltf") as caught:
        load_mesh(folder / "bad.gltf")
    assert "\n" not in str(caught.value)


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path):
    folder = tmp_path / "model"
    folder.mkdir()
    document, binary = quads("#ffffff")
    write_gltf(folder / "bad.gltf", document, binary)
    (folder / "bad data.bin").rename(tmp_path / "secret.bin")
    (folder / "bad data.bin").symlink_to(tmp_path / "secret.bin")
    with pytest.raises(InputError, match="link"):
        load_mesh(folder / "bad.gltf")


def test_nodes_may_repeat_a_mesh_only_so_often(tmp_path: Path):
    faces = np.stack(np.meshgrid(np.arange(40), np.arange(40)), -1).reshape(-1, 2)
    vertices = np.column_stack([np.repeat(faces, 3, axis=0), np.zeros(3 * len(faces))]).astype(np.float64)
    vertices[1::3, 0] += 1
    vertices[2::3, 1] += 1
    save_mesh(tmp_path / "a.glb", Mesh(vertices, np.arange(len(vertices), dtype=np.int32).reshape(-1, 3)))
    document, binary = parts(tmp_path / "a.glb")
    document["nodes"] = [{"mesh": 0}] * 19_000
    document["scenes"] = [{"nodes": list(range(19_000))}]
    write_gltf(tmp_path / "bomb.gltf", document, binary)
    with pytest.raises(InputError, match="repeat"):
        load_mesh(tmp_path / "bomb.gltf")


def test_pictures_that_unpack_to_too_much_are_refused(tmp_path: Path):
    Image.new("L", (8, 8)).save(tmp_path / "bomb.png")
    good = (tmp_path / "bomb.png").read_bytes()
    header = b"IHDR" + struct.pack(">II", 30_000, 30_000) + good[24:29]
    (tmp_path / "bomb.png").write_bytes(good[:12] + header + struct.pack(">I", zlib.crc32(header)) + good[33:])
    document, binary = quads("bomb.png")
    write_gltf(tmp_path / "bad.gltf", document, binary)
    with pytest.raises(InputError, match=r"bad\.gltf.*pixels"):
        load_mesh(tmp_path / "bad.gltf")
