"""The gate: a good mesh is green, and each fault is found by the check that is there for it, and by no other."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import trimesh

from scene.errors import InputError
from scene.mesh import Material, Mesh, select_faces
from scene.mesh_gate import label_mesh
from scene.uv_measures import coverage, measure_uvs, uv_islands

SIZE = 256


def crate(cuts: int = 8, gap: float = 20 / SIZE) -> Mesh:
    """A closed cube with a chart for each side, in three columns and two rows with `gap` between them."""
    box = trimesh.creation.box((2, 2, 2))
    for _ in range(cuts.bit_length() - 1):
        box = box.subdivide()
    vertices, faces = np.asarray(box.vertices), np.asarray(box.faces, np.int32)
    normals = np.round(np.asarray(box.face_normals)).astype(int)
    axis = np.abs(normals).argmax(axis=1)
    positive = normals[np.arange(len(faces)), axis] > 0
    flat = [np.array(sorted({0, 1, 2} - {i})) for i in range(3)]
    uvs = np.zeros((len(faces), 3, 2), np.float32)
    side = 1 / 3 - gap
    for f, face in enumerate(faces):
        place = (vertices[face][:, flat[axis[f]]] + 1) / 2  # 0 to 1 over the side
        corner = np.array([axis[f] / 3 + gap / 2, positive[f] / 2 + gap / 2])
        uvs[f] = corner + side * place
    # Half of the sides are mirrored in the texture: that is allowed, and must not count as less than covered.
    return Mesh(vertices, faces, uvs=uvs, material=Material(np.zeros((SIZE, SIZE, 3), np.uint8)))


def broken(mesh: Mesh, *, reference: Mesh | None = None, budget: int | None = None) -> list[str]:
    return [check.name for check in label_mesh(mesh, reference=reference, budget=budget).faults]


def test_a_good_mesh_is_green_in_everything_that_can_be_asked():
    label = label_mesh(crate(), reference=crate(), budget=768)
    assert label.green and not label.faults
    assert [check.name for check in label.checks] == [
        "finite", "manifold", "watertight", "normals", "faces", "uv inside", "uv overlap", "uv padding", "texels",
        "stretch", "distance", "distance 95%",
    ]  # fmt: skip
    assert label["watertight"].value is True and label["watertight"].ok is None
    assert label["texels"].value == pytest.approx((SIZE / 3 - 20) / 2, rel=1e-5)
    assert label["stretch"].value == pytest.approx(1, rel=1e-4) and label["uv overlap"].value == 0
    assert label["distance"].value == pytest.approx(0, abs=1e-6)
    assert json.loads(json.dumps(label.as_json(), allow_nan=False))["green"] is True
    assert len(label.text().splitlines()) == 13


def test_an_empty_mesh_is_an_error():
    with pytest.raises(InputError, match="empty"):
        label_mesh(Mesh(np.zeros((0, 3)), np.zeros((0, 3), np.int32)))


def test_an_open_mesh_is_said_to_be_open_and_stays_green():
    mesh = crate()
    label = label_mesh(select_faces(mesh, np.arange(1, len(mesh.faces))))
    assert label.green and label["watertight"].value is False and "open: 3 edges" in label["watertight"].sentence


def test_coordinates_beyond_single_precision_are_found():
    vertices = crate().vertices.copy()
    vertices[0] = 1e39
    assert broken(replace(crate(), vertices=vertices)) == ["finite"]


def test_a_face_without_area_is_found():
    mesh = crate()
    assert mesh.uvs is not None
    more = replace(mesh, faces=np.concatenate([mesh.faces, [[0, 1, 1]]]), uvs=np.concatenate([mesh.uvs, mesh.uvs[:1]]))
    assert "finite" in broken(more)


def test_three_faces_on_an_edge_and_surfaces_touching_in_a_point_are_found():
    mesh = crate()
    a, b = mesh.faces[0, :2]
    fin = Mesh(
        np.concatenate([mesh.vertices, mesh.vertices[[a]] * 1.5]),
        np.concatenate([mesh.faces, [[a, b, len(mesh.vertices)]]]).astype(np.int32),
    )
    assert "manifold" in broken(fin) and set(broken(fin)) <= {"manifold", "normals"}
    spike = mesh.vertices[a] * (1 + np.eye(3))
    horn = np.concatenate([mesh.faces, _tetrahedron(int(a), len(mesh.vertices))]).astype(np.int32)
    assert broken(Mesh(np.concatenate([mesh.vertices, spike]), horn)) == ["manifold"]


def _tetrahedron(tip: int, first: int) -> np.ndarray:
    return np.array([[tip, first, first + 1], [tip, first + 1, first + 2], [tip, first + 2, first],
                     [first, first + 2, first + 1]])  # fmt: skip


def test_normals_that_point_inwards_are_found():
    mesh = crate()
    assert mesh.uvs is not None
    inside_out = replace(mesh, faces=mesh.faces[:, ::-1], uvs=mesh.uvs[:, ::-1])
    assert broken(inside_out) == ["normals"] and broken(inside_out, reference=mesh) == ["normals"]
    one = mesh.faces.copy()
    one[5] = one[5, ::-1]
    uvs = mesh.uvs.copy()
    uvs[5] = uvs[5, ::-1]
    label = label_mesh(replace(mesh, faces=one, uvs=uvs))
    assert [check.name for check in label.faults] == ["normals"] and "3 edges" in label["normals"].sentence


def test_an_open_surface_turned_against_its_reference_is_found():
    dome = trimesh.creation.icosphere(3)
    whole = Mesh(np.asarray(dome.vertices), np.asarray(dome.faces, np.int32))
    half = select_faces(whole, whole.vertices[whole.faces].mean(axis=1)[:, 2] > 0)
    inside_out = replace(half, faces=half.faces[:, ::-1])
    assert label_mesh(half)["normals"].ok is True
    assert label_mesh(inside_out)["normals"].ok is None  # a bowl is right too: it is said, not judged
    assert broken(half, reference=half) == [] and broken(inside_out, reference=half) == ["normals"]


def test_too_many_faces_are_found():
    assert broken(crate(), budget=700) == ["faces"]


def test_uvs_outside_the_texture_are_found():
    mesh = crate()
    assert mesh.uvs is not None
    assert broken(replace(mesh, uvs=mesh.uvs + np.float32(0.05))) == ["uv inside"]


def test_overlapping_uvs_are_found():
    mesh = crate()
    assert mesh.uvs is not None
    islands = uv_islands(mesh)
    moved = mesh.uvs.copy()
    moved[islands == 0] += moved[islands == 1].mean((0, 1)) - moved[islands == 0].mean((0, 1))
    faults = label_mesh(replace(mesh, uvs=moved)).faults
    assert [check.name for check in faults] == ["uv overlap"] and faults[0].value == pytest.approx(0.2, abs=0.01)


def test_islands_too_close_are_found():
    assert broken(crate(gap=6 / SIZE)) == ["uv padding"]
    assert measure_uvs(crate(gap=6 / SIZE), SIZE, SIZE).padding == pytest.approx(3, abs=0.6)
    assert measure_uvs(crate(gap=20 / SIZE), SIZE, SIZE).padding == pytest.approx(10, abs=0.6)


def test_a_stretched_texture_is_found():
    mesh = crate()
    assert mesh.uvs is not None
    shrunk = mesh.uvs.copy()
    one = uv_islands(mesh) == 2
    shrunk[one] = shrunk[one].mean((0, 1)) + (shrunk[one] - shrunk[one].mean((0, 1))) / 10
    assert broken(replace(mesh, uvs=shrunk)) == ["stretch"]


def test_a_mesh_far_from_what_it_stands_for_is_found_whichever_of_them_has_more():
    mesh = crate()
    moved = replace(mesh, vertices=mesh.vertices + np.array([0.2, 0, 0]))
    assert broken(moved, reference=mesh) == ["distance", "distance 95%"]
    without_side = select_faces(mesh, mesh.face_normals[:, 0] < 1e-9)
    assert "distance" in broken(without_side, reference=mesh) and "distance" in broken(mesh, reference=without_side)


def test_texels_are_counted_as_by_looking_at_each():
    rng = np.random.default_rng(0)
    triangles = rng.random((60, 3, 2)) * 40 - 4
    count = coverage(triangles, 32, 30)
    x, y = np.meshgrid(np.arange(32) + 0.5, np.arange(30) + 0.5)
    expected = np.zeros((30, 32), int)
    for a, b, c in triangles:
        sides = [(q - p)[0] * (y - p[1]) - (q - p)[1] * (x - p[0]) for p, q in ((a, b), (b, c), (c, a))]
        expected += np.all([s > 0 for s in sides], axis=0) | np.all([s < 0 for s in sides], axis=0)
    assert (count == expected).all()


def test_neighbours_neither_overlap_nor_leave_a_gap():
    from scipy.spatial import Delaunay

    rng = np.random.default_rng(1)
    inner = rng.random((400, 2))
    inner[:200] = np.round(inner[:200] * 64) / 64 + 0.5 / 64  # on texel centres, where ties are decided
    points = np.concatenate([[[0, 0], [1, 0], [0, 1], [1, 1]], inner[(inner > 0).all(1) & (inner < 1).all(1)]])
    triangles = points[Delaunay(points).simplices] * 64
    flipped = np.where(rng.random(len(triangles))[:, None, None] < 0.5, triangles[:, ::-1], triangles)
    assert (coverage(flipped, 64, 64) == 1).all()


def test_measuring_a_large_texture_takes_seconds():
    import time

    mesh = crate(cuts=64)  # 49,152 faces
    began = time.process_time()
    measured = measure_uvs(mesh, 2048, 2048)
    assert time.process_time() - began < 4  # 0.7 s on an idle core
    assert measured.islands == 6 and measured.overlap == 0
