"""OBJ with MTL and PLY with texture: what lies beside them, what other tools write, and names that lead elsewhere."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scene.errors import InputError
from scene.formats import load_mesh, save_mesh
from scene.formats.materials import sample
from scene.mesh import Material, Mesh
from tests.scene.formats.lettered import letter_sheet, lettered_block, picture_error

Y_UP = (0.0, 1.0, 0.0)
SQUARE = "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nvt 0 0\nvt 1 0\nvt 1 1\nvt 0 1\n"


def noise(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)


def center_color(mesh: Mesh, face: int) -> list[int]:
    """What the texture shows in the middle of a face."""
    assert mesh.uvs is not None and mesh.material is not None
    return sample(mesh.material.base_color, mesh.uvs[face].mean(axis=0)).round().astype(int).tolist()


def test_an_obj_stands_beside_its_material_and_pictures_under_plain_names(tmp_path: Path):
    normal = np.full((8, 8, 3), 128, np.uint8)
    block = lettered_block()
    textured = Mesh(block.vertices, block.faces, None, block.uvs, Material(letter_sheet(), normal))
    save_mesh(tmp_path / "my büst #1.obj", textured)
    names = {path.name for path in tmp_path.iterdir()}
    stem = "my_b_st__1"
    assert names == {"my büst #1.obj", f"{stem}_material.mtl", f"{stem}_base_color.png", f"{stem}_normal.png"}
    back = load_mesh(tmp_path / "my büst #1.obj")
    assert back.material is not None and back.material.normal is not None and back.uvs is not None
    assert (back.material.base_color == letter_sheet()).all() and (back.material.normal == normal).all()
    assert (back.uvs == block.uvs).all() and (back.faces == block.faces).all()


def test_the_mesh_comes_last_so_that_it_never_stands_without_its_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: object) -> bytes:
        raise InputError("the disk is full")

    for ending, module in ((".obj", "scene.formats.obj"), (".ply", "scene.formats.mesh_ply")):
        monkeypatch.setattr(f"{module}.encode_png", full)
        with pytest.raises(InputError):
            save_mesh(tmp_path / f"block{ending}", lettered_block())
    assert not list(tmp_path.iterdir())


def test_materials_of_an_obj_share_one_texture(tmp_path: Path):
    Image.fromarray(noise()).save(tmp_path / "wood grain.png")
    (tmp_path / "two.mtl").write_text(
        "newmtl wood\nKd 0.6 0.6 0.6\nmap_Kd -s 1 1 1 -clamp on wood grain.png\nnewmtl red paint\nKd 1 0 0\nillum 2\n"
    )
    (tmp_path / "two.obj").write_text(
        "mtllib two.mtl\n" + SQUARE + "usemtl wood\nf 1/1 2/2 3/3 4/4\nv 2 0 0\nv 2 1 0\nusemtl red paint\nf 2 5 6 3\n"
    )
    mesh = load_mesh(tmp_path / "two.obj", up=Y_UP)
    assert len(mesh.faces) == 4
    assert center_color(mesh, 0) == sample(noise(), np.array([2 / 3, 1 / 3])).round().astype(int).tolist()
    assert center_color(mesh, 2) == center_color(mesh, 3) == [255, 0, 0]


def test_a_single_plain_colour_becomes_vertex_colours(tmp_path: Path):
    (tmp_path / "red.mtl").write_text("newmtl a\nKd 0.8 0.1 0\n")
    (tmp_path / "red.obj").write_text("mtllib red.mtl\nusemtl a\n" + SQUARE + "f 1 2 3 4\n")
    mesh = load_mesh(tmp_path / "red.obj", up=Y_UP)
    assert mesh.material is None and mesh.colors is not None
    assert (mesh.colors == [204, 26, 0]).all()  # half of 25.5 rounds to even; Kd is what the screen shows


def test_numbers_count_back_from_the_last_row_so_far(tmp_path: Path):
    (tmp_path / "back.obj").write_text(SQUARE + "f -4/-4 -3/-3 -2/-2\nv 9 9 9\nvt 0.5 0.5\nf -5/-5 -3/-3 -2/-2\n")
    mesh = load_mesh(tmp_path / "back.obj", up=Y_UP)
    assert mesh.faces.tolist() == [[0, 1, 2], [0, 2, 3]] and mesh.uvs is not None
    assert mesh.uvs.tolist() == [[[0, 0], [1, 0], [1, 1]], [[0, 0], [1, 1], [0, 1]]]


def test_lines_go_on_behind_a_backslash(tmp_path: Path):
    (tmp_path / "long.obj").write_text(SQUARE + "f 1 2 \\\n 3 4\n")
    assert len(load_mesh(tmp_path / "long.obj").faces) == 2


@pytest.mark.parametrize(
    "name", ["../secret.png", "/etc/hostname", "C:\\Users\\me\\secret.png", "..\\secret.png", "link.png"]
)
def test_pictures_elsewhere_are_left_out_and_said(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture):
    folder = tmp_path / "model"
    folder.mkdir()
    Image.fromarray(noise()).save(tmp_path / "secret.png")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "a.mtl").write_text(f"newmtl a\nmap_Kd {name}\n")
    (folder / "a.obj").write_text("mtllib a.mtl\nusemtl a\n" + SQUARE + "f 1/1 2/2 3/3 4/4\n")
    (folder / "a.ply").write_text(
        f"ply\nformat ascii 1.0\ncomment TextureFile {name}\nelement vertex 3\nproperty float x\nproperty float y\n"
        "property float z\nelement face 1\nproperty list uchar int vertex_indices\n"
        "property list uchar float texcoord\nend_header\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2 6 0 0 1 0 0 1\n"
    )
    for file in ("a.obj", "a.ply"):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            mesh = load_mesh(folder / file)
        assert mesh.material is None and mesh.uvs is not None
        assert "not beside it" in caplog.text


def test_a_picture_named_by_its_place_on_another_machine_is_found_beside_the_mesh(tmp_path: Path):
    Image.fromarray(noise()).save(tmp_path / "wood.png")
    (tmp_path / "a.mtl").write_text("newmtl a\nmap_Kd C:\\Users\\me\\wood.png\n")
    (tmp_path / "a.obj").write_text("mtllib a.mtl\nusemtl a\n" + SQUARE + "f 1/1 2/2 3/3 4/4\n")
    material = load_mesh(tmp_path / "a.obj").material
    assert material is not None and (material.base_color == noise()).all()


def test_a_damaged_picture_costs_the_texture_and_not_the_mesh(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    save_mesh(tmp_path / "block.obj", lettered_block())
    (tmp_path / "block_base_color.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    mesh = load_mesh(tmp_path / "block.obj")
    assert mesh.material is None and mesh.facts().watertight and "without a texture" in caplog.text


def test_a_library_elsewhere_is_not_read(tmp_path: Path):
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "a.mtl").write_text("newmtl a\nKd 1 0 0\n")
    (folder / "a.obj").write_text("mtllib ../a.mtl\nusemtl a\n" + SQUARE + "f 1 2 3\n")
    assert load_mesh(folder / "a.obj").colors is None


@pytest.mark.parametrize(
    "lines",
    ["f 1/9 2/9 3/9", "f 1/x 2/1 3/1", "f 1/-9 2/1 3/1", "vt a b\nf 1/5 2/1 3/1", "f 1 2 -9", "f", "f 1 2 0", "usemtl"],
)
def test_an_obj_with_wrong_numbers_is_refused(tmp_path: Path, lines: str):
    (tmp_path / "bad.obj").write_text(SQUARE + lines + "\n")
    with pytest.raises(InputError, match=r"bad\.obj"):
        load_mesh(tmp_path / "bad.obj")


# PLY


def test_a_ply_carries_the_texture_by_corner_and_its_colours_by_vertex(tmp_path: Path):
    block = lettered_block()
    save_mesh(tmp_path / "block.ply", block)
    head = (tmp_path / "block.ply").read_bytes().split(b"end_header")[0].decode()
    assert "comment TextureFile block_base_color.png\n" in head
    assert "property list uchar float texcoord\n" in head and "property uchar red\n" in head
    back = load_mesh(tmp_path / "block.ply")
    assert back.uvs is not None and (back.uvs == block.uvs).all()
    assert back.material is not None and (back.material.base_color == letter_sheet()).all()


def test_a_ply_with_uvs_by_vertex_is_closed_at_its_seams(tmp_path: Path):
    block = lettered_block()
    assert block.uvs is not None
    Image.fromarray(letter_sheet()).save(tmp_path / "letters.png")
    rows = np.concatenate([block.vertices[block.faces], block.uvs], axis=2).reshape(-1, 5)
    lines = ["ply", "format ascii 1.0", "comment TextureFile letters.png", f"element vertex {len(rows)}"]
    lines += [f"property float {name}" for name in ("x", "y", "z", "s", "t")]
    lines += [f"element face {len(block.faces)}", "property list uchar int vertex_indices", "end_header"]
    lines += [" ".join(f"{value:.9g}" for value in row) for row in rows]
    lines += [f"3 {3 * i} {3 * i + 1} {3 * i + 2}" for i in range(len(block.faces))]
    (tmp_path / "block.ply").write_text("\n".join(lines) + "\n")
    mesh = load_mesh(tmp_path / "block.ply")
    assert len(mesh.vertices) == 12 and mesh.facts().watertight
    assert mesh.uvs is not None and mesh.material is not None
    assert picture_error(mesh.vertices[mesh.faces], mesh.uvs, mesh.material.base_color) < 0.01


def test_each_face_of_a_ply_names_its_picture(tmp_path: Path):
    for i in range(2):
        Image.fromarray(np.full((8, 8, 3), 50 + 100 * i, np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "two.ply").write_text(
        "ply\nformat ascii 1.0\ncomment TextureFile 0.png\ncomment TextureFile 1.png\nelement vertex 4\n"
        "property float x\nproperty float y\nproperty float z\nelement face 2\n"
        "property list uchar int vertex_indices\nproperty list uchar float texcoord\nproperty int texnumber\n"
        "end_header\n0 0 0\n1 0 0\n1 1 0\n0 1 0\n3 0 1 2 6 0 0 1 0 1 1 1\n3 0 2 3 6 0 0 1 1 0 1 0\n"
    )
    mesh = load_mesh(tmp_path / "two.ply")
    assert center_color(mesh, 0) == [150] * 3 and center_color(mesh, 1) == [50] * 3


@pytest.mark.parametrize(
    "row", ["3 0 1 2 5 0 0 1 0 0", "3 0 1 2 8 0 0 1 0 0 1 0 0", "3 0 1 2 200 0 0 1 0 0 1", "3 0 1 9 6 0 0 1 0 0 1"]
)
def test_texcoord_lists_of_a_wrong_length_are_refused(tmp_path: Path, row: str):
    (tmp_path / "bad.ply").write_text(
        "ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\nproperty float y\nproperty float z\n"
        "element face 1\nproperty list uchar int vertex_indices\nproperty list uchar float texcoord\nend_header\n"
        f"0 0 0\n1 0 0\n0 1 0\n{row}\n"
    )
    with pytest.raises(InputError, match=r"bad\.ply"):
        load_mesh(tmp_path / "bad.ply")
