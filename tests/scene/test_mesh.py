"""Meshes: facts, cleaning, decimation."""

from __future__ import annotations

import numpy as np
import pytest
import trimesh

from scene.errors import InputError
from scene.mesh import Mesh, clean, decimate, face_components, select_faces, transfer_colors


def sphere(radius: float = 1.0, center: tuple[float, float, float] = (0, 0, 0), subdivisions: int = 4) -> Mesh:
    ball = trimesh.creation.icosphere(subdivisions, radius=radius)
    return Mesh(np.asarray(ball.vertices) + center, np.asarray(ball.faces, np.int32))


def together(*meshes: Mesh) -> Mesh:
    starts = np.cumsum([0] + [len(m.vertices) for m in meshes[:-1]])
    return Mesh(
        np.concatenate([m.vertices for m in meshes]),
        np.concatenate([m.faces + start for m, start in zip(meshes, starts, strict=True)]).astype(np.int32),
    )


def test_a_closed_sphere_has_the_facts_of_one():
    facts = sphere(2.0, center=(100, -50, 7)).facts()
    assert facts.watertight and facts.manifold and facts.components == 1 and facts.boundary_edges == 0
    # An inscribed polyhedron is a little smaller; 5120 faces miss 0.2 %.
    assert facts.volume == pytest.approx(4 / 3 * np.pi * 8, rel=3e-3)
    assert facts.area == pytest.approx(4 * np.pi * 4, rel=3e-3)
    assert facts.bounds is not None
    assert np.allclose(facts.bounds[0], [98, -52, 5], atol=0.01)


def test_the_volume_of_a_sphere_turned_inside_out_is_negative():
    ball = sphere()
    volume = Mesh(ball.vertices, ball.faces[:, ::-1]).facts().volume
    assert volume is not None and volume < -4


def test_facts_agree_with_trimesh():
    rng = np.random.default_rng(3)
    for mesh in (sphere(), select_faces(sphere(), rng.random(5120) < 0.9), together(sphere(), sphere(0.3, (3, 0, 0)))):
        other = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
        facts = mesh.facts()
        assert facts.watertight == (other.is_watertight and other.is_winding_consistent)
        assert facts.area == pytest.approx(other.area)
        if facts.watertight:
            assert facts.volume == pytest.approx(other.volume)


def test_one_missing_face_opens_a_mesh():
    ball = sphere(subdivisions=2)
    facts = select_faces(ball, np.arange(1, len(ball.faces))).facts()
    assert not facts.watertight and facts.volume is None
    assert facts.boundary_edges == 3 and facts.manifold


def test_one_turned_face_is_not_watertight():
    ball = sphere(subdivisions=2)
    faces = ball.faces.copy()
    faces[7] = faces[7, ::-1]
    facts = Mesh(ball.vertices, faces).facts()
    assert not facts.watertight and facts.manifold_edges


def test_three_faces_on_an_edge_are_not_manifold():
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1]], float)
    facts = Mesh(vertices, np.array([[0, 1, 2], [1, 0, 3], [0, 1, 4]], np.int32)).facts()
    assert not facts.manifold_edges and not facts.watertight


def test_cones_that_share_a_tip_are_not_manifold_there():
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [-1, 0, 0], [0, -1, 0]], float)
    facts = Mesh(vertices, np.array([[0, 1, 2], [0, 3, 4]], np.int32)).facts()
    assert facts.manifold_edges and not facts.manifold_vertices and facts.components == 1


def test_an_empty_mesh_has_facts_but_no_bounds():
    empty = Mesh(np.zeros((0, 3)), np.zeros((0, 3), np.int32))
    facts = empty.facts()
    assert facts.faces == 0 and facts.components == 0 and not facts.watertight and facts.bounds is None
    assert not len(clean(empty, min_share=0.5).faces)
    with pytest.raises(ValueError, match="empty"):
        empty.bounds()


@pytest.mark.parametrize(
    ("vertices", "faces", "colors"),
    [
        (np.zeros((3, 2)), np.zeros((1, 3), np.int32), None),
        (np.zeros((3, 3)), np.array([[0, 1, 3]]), None),
        (np.zeros((3, 3)), np.array([[0, 1, 2**40]]), None),
        (np.zeros((3, 3)), np.array([[0, 1, -1]]), None),
        (np.full((3, 3), np.nan), np.array([[0, 1, 2]]), None),
        (np.zeros((3, 3)), np.array([[0, 1, 2]]), np.zeros((3, 3), np.float32)),
        (np.zeros((3, 3)), np.array([[0, 1, 2]]), np.zeros((2, 3), np.uint8)),
    ],
)
def test_impossible_meshes_are_refused(vertices, faces, colors):
    with pytest.raises(ValueError, match=r"vertices|faces|colors"):
        Mesh(vertices, faces, colors)


def test_cleaning_drops_a_floater_and_keeps_both_large_parts():
    mesh = together(sphere(1.0), sphere(0.8, (3, 0, 0)), sphere(0.05, (0, 3, 0), subdivisions=1))
    tidy = clean(mesh, min_share=0.01)
    assert face_components(tidy).max() + 1 == 2
    assert tidy.facts().watertight and len(tidy.vertices) == 2 * 2562


def test_cleaning_drops_degenerate_repeated_and_unused():
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [9, 9, 9], [2, 0, 0]], float)
    faces = np.array([[0, 1, 2], [1, 2, 0], [2, 1, 0], [0, 0, 1], [0, 1, 4]], np.int32)  # the last has no area
    tidy = clean(Mesh(vertices, faces))
    assert tidy.faces.tolist() == [[0, 1, 2]] and len(tidy.vertices) == 3


def test_cleaning_is_blind_to_the_unit():
    tiny = sphere(1e-7)
    assert len(clean(tiny).faces) == len(tiny.faces)


def test_decimation_keeps_shape_closedness_and_colours():
    ball = sphere(2.0, center=(1e4, 0, 0), subdivisions=6)  # far out: float32 would show
    place = (ball.vertices - [1e4, 0, 0]) / 2
    colored = Mesh(ball.vertices, ball.faces, np.round(127.5 * (place + 1)).astype(np.uint8))
    few = decimate(colored, 4000)
    assert len(few.faces) <= 4000
    facts = few.facts()
    assert facts.watertight and facts.volume == pytest.approx(4 / 3 * np.pi * 8, rel=5e-3)
    radius = np.linalg.norm(few.vertices - [1e4, 0, 0], axis=1)
    assert np.abs(radius - 2).max() < 0.01
    assert few.colors is not None
    expected = 127.5 * ((few.vertices - [1e4, 0, 0]) / 2 + 1)
    assert np.abs(few.colors - expected).max() < 6  # of 255: colours come from vertices an edge away


def test_decimation_leaves_a_mesh_within_its_budget_alone():
    ball = sphere(subdivisions=2)
    assert decimate(ball, 320) is ball
    with pytest.raises(ValueError, match="4 faces"):
        decimate(ball, 3)


def test_a_mirrored_mesh_keeps_its_faces_outwards():
    volume = sphere().transformed(np.diag([-1.0, 2.0, 1.0, 1.0])).facts().volume
    assert volume == pytest.approx(2 * 4 / 3 * np.pi, rel=3e-3)


def test_colours_cannot_be_taken_from_a_mesh_without():
    with pytest.raises(InputError, match="none"):
        transfer_colors(sphere(), np.zeros((1, 3)))
