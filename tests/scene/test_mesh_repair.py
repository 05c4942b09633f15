"""Repair: whatever comes in, manifold and consistently oriented meshes come out, and sound ones are left alone."""

from __future__ import annotations

import time

import numpy as np
import pytest
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st

from scene.mesh import Mesh, decimate, select_faces
from scene.mesh_outward import inward_parts
from scene.mesh_repair import HOLE_EDGES, _without_faults, decimate_and_repair, is_sound, repair


def solid(shape: trimesh.Trimesh, at: tuple[float, float, float] = (0, 0, 0)) -> Mesh:
    return Mesh(np.asarray(shape.vertices) + at, np.asarray(shape.faces, np.int32))


def ball(radius: float = 1.0, at: tuple[float, float, float] = (0, 0, 0), subdivisions: int = 3) -> Mesh:
    return solid(trimesh.creation.icosphere(subdivisions, radius=radius), at)


def together(*meshes: Mesh) -> Mesh:
    starts = np.cumsum([0] + [len(m.vertices) for m in meshes[:-1]])
    return Mesh(
        np.concatenate([m.vertices for m in meshes]),
        np.concatenate([m.faces + start for m, start in zip(meshes, starts, strict=True)]).astype(np.int32),
    )


def welded(mesh: Mesh) -> Mesh:
    """Vertices in the same place made one, as readers do."""
    vertices, index = np.unique(mesh.vertices, axis=0, return_inverse=True)
    return Mesh(vertices, index.reshape(-1)[mesh.faces].astype(np.int32))


def turned(mesh: Mesh, which: np.ndarray) -> Mesh:
    return Mesh(mesh.vertices, np.where(which[:, None], mesh.faces[:, ::-1], mesh.faces))


def assert_sound(mesh: Mesh) -> None:
    """By two independent libraries, besides our own facts."""
    import networkx

    assert is_sound(mesh)
    if not len(mesh.faces):
        return
    around: dict[int, networkx.Graph] = {}
    for face in mesh.faces.tolist():
        for i in range(3):
            link = around.setdefault(face[i], networkx.Graph())
            assert not link.has_edge(face[i - 2], face[i - 1])
            link.add_edge(face[i - 2], face[i - 1])
    for link in around.values():  # the faces around a vertex are one fan: a path or a ring
        assert networkx.is_connected(link) and max(degree for _, degree in link.degree) <= 2
    assert trimesh.Trimesh(mesh.vertices, mesh.faces, process=False).is_winding_consistent


@given(
    st.lists(st.tuples(*[st.integers(0, 7)] * 3), min_size=1, max_size=40),
    st.sampled_from(["grid", "random", "flat", "thin"]),
    st.integers(0, 5),
    st.sampled_from([1.0, 1e-26, 1e30]),
)
@settings(max_examples=300, deadline=None)
def test_any_heap_of_triangles_becomes_sound_once_and_for_all(faces, kind, seed, unit):
    rng = np.random.default_rng(seed)
    vertices = rng.random((8, 3)) if kind == "random" else rng.integers(0, 3, (8, 3)).astype(float)
    vertices[:, 2] *= {"flat": 0.0, "thin": 1e-7}.get(kind, 1.0)
    vertices *= unit
    colors = rng.integers(0, 256, (8, 3)).astype(np.uint8)
    fixed, _ = repair(Mesh(vertices, np.array(faces, np.int32), colors))
    assert_sound(fixed)
    assert fixed.colors is not None and not inward_parts(fixed).any()
    again, done = repair(fixed)
    assert again is fixed and done == ()
    assert len(fixed.faces) <= 12 * len(faces)


def test_what_is_sound_stays_as_it_is():
    for mesh in (ball(), together(ball(), ball(0.2, (3, 0, 0))), solid(trimesh.creation.torus(1.0, 0.3))):
        fixed, done = repair(mesh)
        assert fixed is mesh and not done


def test_the_wall_of_a_cavity_stays_turned_inwards_and_a_ball_beside_it_does_not():
    cavity = turned(ball(0.5), np.ones(1280, bool))
    core = ball(0.2)
    hollow = together(ball(), cavity, core)
    assert repair(hollow)[0] is hollow
    beside = together(ball(), turned(ball(0.5, (3, 0, 0)), np.ones(1280, bool)))
    fixed, done = repair(beside)
    assert done == ("1 closed part turned outwards",)
    assert fixed.facts().volume == pytest.approx(4 / 3 * np.pi * (1 + 0.125), rel=0.02)


def test_faces_turned_against_their_part_are_turned_back():
    rng = np.random.default_rng(0)
    mesh = ball()
    fixed, done = repair(turned(mesh, rng.random(len(mesh.faces)) < 0.3))
    assert np.array_equal(np.sort(fixed.faces, axis=1), np.sort(mesh.faces, axis=1)) and "turned round" in done[0]
    facts = fixed.facts()
    assert facts.watertight and facts.volume == pytest.approx(mesh.facts().volume)


def test_an_open_part_keeps_the_side_that_most_of_its_area_had():
    sheet = solid(trimesh.creation.icosphere(3))
    sheet = select_faces(sheet, sheet.vertices[sheet.faces].mean(axis=1)[:, 2] > 0)
    few = np.arange(len(sheet.faces)) % 5 == 0
    for inside_out in (np.zeros(len(few), bool), np.ones(len(few), bool)):
        fixed, _ = repair(turned(sheet, few ^ inside_out))
        outwards = (fixed.face_normals * fixed.vertices[fixed.faces[:, 0]]).sum(axis=1) > 0
        assert outwards.all() if not inside_out.any() else not outwards.any()


@pytest.mark.parametrize("shift", [(1, 1, 0), (1, 1, 1)], ids=["edge", "point"])
def test_cubes_that_touch_are_parted_and_stay_closed(shift):
    cube = solid(trimesh.creation.box((1, 1, 1)))
    both = welded(together(cube, Mesh(cube.vertices + shift, cube.faces)))
    assert not both.facts().manifold
    fixed, _ = repair(both)
    assert_sound(fixed)
    facts = fixed.facts()
    assert facts.watertight and facts.components == 2 and facts.volume == pytest.approx(2, rel=0.03)
    # A reader that merges equal places does not bring the fault back.
    assert welded(fixed).facts().manifold


def test_a_closed_surface_that_touches_itself_along_an_edge_stays_closed():
    """Two floors on two diagonal pillars that touch along an edge: at both of its ends the surface is in one piece."""
    cells = np.zeros((2, 2, 3), bool)
    cells[..., 0] = cells[..., 2] = cells[0, 0, 1] = cells[1, 1, 1] = True
    mesh = welded(_blocks(cells))
    assert not mesh.facts().manifold_edges
    fixed, done = repair(mesh)
    assert_sound(fixed)
    facts = fixed.facts()
    assert facts.watertight and facts.components == 1 and facts.volume == pytest.approx(10, rel=0.02)
    assert any("parted at the middle" in sentence for sentence in done)


def _blocks(cells: np.ndarray) -> Mesh:
    """The outer faces of filled cells, two triangles each."""
    squares = []
    cube = solid(trimesh.creation.box((1, 1, 1)))
    for x, y, z in np.argwhere(cells):
        for face in cube.faces:
            corners = cube.vertices[face]
            normal = np.round(np.cross(corners[1] - corners[0], corners[2] - corners[0])).astype(int)
            beyond = np.array([x, y, z]) + normal
            if (beyond < 0).any() or (beyond >= cells.shape).any() or not cells[tuple(beyond)]:
                squares.append(corners + np.array([x, y, z]))
    corners = np.concatenate(squares)
    return Mesh(corners, np.arange(len(corners), dtype=np.int32).reshape(-1, 3))


def test_a_random_solid_of_blocks_stays_closed_with_its_volume():
    rng = np.random.default_rng(5)
    cells = rng.random((6, 6, 6)) < 0.45
    mesh = welded(_blocks(cells))
    assert not mesh.facts().manifold_edges and not mesh.facts().manifold_vertices
    fixed, _ = repair(mesh)
    assert_sound(fixed)
    facts = fixed.facts()
    assert facts.watertight and facts.volume == pytest.approx(cells.sum(), rel=0.02)


def test_a_third_sheet_on_an_edge_is_cut_off_and_the_flat_one_goes_on():
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0.5, 1, 0], [0.5, -1, 0], [0.5, 0.1, 1]], float)
    fixed, _ = repair(Mesh(vertices, np.array([[0, 1, 2], [1, 0, 3], [0, 1, 4]], np.int32)))
    assert_sound(fixed)
    facts = fixed.facts()
    assert facts.components == 2 and facts.faces == 3
    assert any((np.sort(face) == [0, 1, 2]).all() for face in fixed.faces)


def test_a_moebius_band_is_cut_open():
    n = 24
    angle = np.linspace(0, 2 * np.pi, n, endpoint=False)
    rows = [
        np.stack([(1 + w * np.cos(angle / 2)) * np.cos(angle), (1 + w * np.cos(angle / 2)) * np.sin(angle),
                  w * np.sin(angle / 2)], axis=1)
        for w in (-0.3, 0.3)
    ]  # fmt: skip
    faces = []
    for i in range(n):
        j, a, b = (i + 1) % n, 0, n
        c, d = (b, a) if j == 0 else (a, b)
        faces += [[a + i, c + j, b + i], [b + i, c + j, d + j]]
    fixed, _ = repair(Mesh(np.concatenate(rows), np.array(faces, np.int32)))
    assert_sound(fixed)
    assert len(fixed.faces) == 2 * n and fixed.facts().components == 1


@pytest.mark.parametrize("missing", [1, 2, 6])
def test_pinholes_are_filled_with_the_surface_that_was_there(missing):
    mesh = ball(subdivisions=4)
    around = np.linalg.norm(mesh.vertices[mesh.faces].mean(axis=1) - [0.6, 0.64, 0.48], axis=1)
    holed = select_faces(mesh, np.argsort(around)[missing:])
    fixed, done = repair(holed)
    assert done == (f"1 hole of at most {HOLE_EDGES} edges filled",)
    facts = fixed.facts()
    assert facts.watertight and facts.volume == pytest.approx(mesh.facts().volume, rel=1e-3)
    assert_sound(fixed)


def test_filling_never_folds_back():
    single = Mesh(np.eye(3), np.array([[0, 1, 2]], np.int32))
    sheet = Mesh(
        np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], float), np.array([[0, 1, 2], [0, 2, 3]], np.int32)
    )
    for mesh in (single, sheet):
        assert repair(mesh) == (mesh, ())
    pipe = solid(trimesh.creation.cylinder(0.2, 8.0, sections=10))
    pipe = select_faces(pipe, np.abs(pipe.face_normals[:, 2]) < 1e-9)  # two mouths of ten edges: at 90 degrees, closed
    assert repair(pipe)[0].facts().watertight


def test_a_large_hole_is_closed_where_its_lid_is_small_beside_the_part():
    mesh = ball(subdivisions=4)
    height = mesh.vertices[mesh.faces].mean(axis=1)[:, 2]
    hole = select_faces(mesh, height < 0.9)
    assert 20 < hole.facts().boundary_edges < HOLE_EDGES
    closed, _ = repair(hole)
    assert_sound(closed)
    assert closed.facts().watertight
    assert closed.facts().volume == pytest.approx(mesh.facts().volume, rel=0.01)  # a flat lid over a cap of 1 %
    mouth = select_faces(mesh, height < 0.5)  # a bowl
    assert repair(mouth) == (mouth, ())


def test_a_hole_of_too_many_edges_stays_open():
    mesh = ball(subdivisions=6)
    holed = select_faces(mesh, mesh.vertices[mesh.faces].mean(axis=1)[:, 2] < 0.9)
    assert holed.facts().boundary_edges > HOLE_EDGES
    assert repair(holed) == (holed, ())


def test_degenerate_faces_leave_without_a_gap():
    """A needle and a cap inside a closed mesh: collapsed and flipped, so that it is closed with fewer faces."""
    cube = trimesh.creation.box((1, 1, 1))
    cap = _with_vertex_on_edge(solid(cube), share=0.5)
    needle = _with_vertex_on_edge(solid(cube), share=1e-7)
    for mesh in (cap, needle):
        assert mesh.facts().watertight and (mesh.face_shapes() < 1e-6).any()
        fixed, _ = repair(mesh)
        assert_sound(fixed)
        assert fixed.facts().watertight and fixed.facts().volume == pytest.approx(1, rel=1e-5)
        assert (fixed.face_shapes() > 1e-6).all()


def _with_vertex_on_edge(mesh: Mesh, share: float) -> Mesh:
    """The first face split at a point on its first edge, the face beyond left as it is: a face without height."""
    a, b, c = (int(i) for i in mesh.faces[0])
    new = len(mesh.vertices)
    vertices = np.concatenate([mesh.vertices, [(1 - share) * mesh.vertices[a] + share * mesh.vertices[b]]])
    faces = [[a, new, c], [new, b, c], [a, b, new], *mesh.faces[1:].tolist()]
    return Mesh(vertices, np.array(faces, np.int32))


def test_the_last_resort_removes_faces_at_faults_and_no_others():
    torus = solid(trimesh.creation.torus(1.0, 0.3))
    a, b = torus.faces[0, :2]
    fin = Mesh(
        np.concatenate([torus.vertices, [[0, 0, 3.0]]]),
        np.concatenate([torus.faces, [[a, b, len(torus.vertices)]]]).astype(np.int32),
    )
    done: list[str] = []
    fixed = _without_faults(fin, done)
    assert_sound(fixed)
    assert len(torus.faces) - 6 < len(fixed.faces) < len(torus.faces) and "nothing else helped" in done[0]


def test_a_mesh_with_uvs_is_refused():
    mesh = ball(subdivisions=0)
    with pytest.raises(ValueError, match="uvs"):
        repair(Mesh(mesh.vertices, mesh.faces, uvs=np.zeros((20, 3, 2), np.float32)))


def test_decimated_meshes_are_sound_and_within_their_budget():
    shapes = [ball(1, (x, y, 0), subdivisions=4) for x in (0, 1.99) for y in (0, 1.99)]
    joined = welded(Mesh(np.round(together(*shapes).vertices, 2), together(*shapes).faces))
    for faces in (3000, 500):
        few, _ = decimate_and_repair(joined, faces)
        assert_sound(few)
        assert 0.8 * faces < len(few.faces) <= faces


def test_a_decimation_keeps_its_budget_where_the_library_stops_early():
    rng = np.random.default_rng(1)
    many = together(*[ball(0.1, tuple(rng.random(3) * 9), subdivisions=1) for _ in range(200)])
    assert len(decimate(many, 3000).faces) <= 3000


def test_a_large_mesh_is_repaired_in_seconds():
    mesh = ball(subdivisions=7)  # 327,680 faces
    rng = np.random.default_rng(2)
    broken = turned(mesh, rng.random(len(mesh.faces)) < 0.001)
    broken = select_faces(broken, rng.random(len(mesh.faces)) > 0.0005)
    began = time.process_time()
    fixed, _ = repair(broken)
    assert time.process_time() - began < 12  # 3 s on an idle core
    assert fixed.facts().watertight
