"""Cropping cuts meshes at the sides of the box, and colours and uvs stay where they were on the surface."""

from __future__ import annotations

import numpy as np
import pytest
import trimesh

from scene.mesh import Material, Mesh
from scene.mesh_crop import crop_mesh

LOW, HIGH = (-0.4, -0.3, 0.1), (0.7, 2.0, 0.55)


def ball() -> Mesh:
    """A sphere whose colours and uvs are linear in its places, so that they are known anywhere on it."""
    shape = trimesh.creation.icosphere(4)
    vertices, faces = np.asarray(shape.vertices), np.asarray(shape.faces, np.int32)
    colors = np.round(127.5 * (vertices + 1)).astype(np.uint8)
    uvs = (0.5 + 0.4 * vertices[faces][..., :2]).astype(np.float32)
    return Mesh(vertices, faces, colors, uvs, Material(np.zeros((4, 4, 3), np.uint8)))


def cut_polygon(corners: list[np.ndarray]) -> list[np.ndarray]:
    """A polygon's part in the box, side by side of the box (Sutherland and Hodgman, 1974)."""
    for axis in range(3):
        for sign, bound in ((1.0, LOW[axis]), (-1.0, HIGH[axis])):
            heights = [sign * (corner[axis] - bound) for corner in corners]
            kept = []
            for i, (corner, height) in enumerate(zip(corners, heights, strict=True)):
                before = heights[i - 1]
                if (height >= 0) != (before >= 0):
                    kept.append(corner + height / (height - before) * (corners[i - 1] - corner))
                if height >= 0:
                    kept.append(corner)
            corners = kept
    return corners


def test_all_that_lies_in_the_box_is_left_and_nothing_else():
    mesh = ball()
    cropped = crop_mesh(mesh, LOW, HIGH)
    assert (cropped.vertices >= np.array(LOW) - 1e-12).all() and (cropped.vertices <= np.array(HIGH) + 1e-12).all()
    pieces = [cut_polygon(list(corners)) for corners in mesh.vertices[mesh.faces]]
    area = sum(np.linalg.norm(np.cross(p[i] - p[0], p[i + 1] - p[0])) / 2 for p in pieces for i in range(1, len(p) - 1))
    assert cropped.face_areas.sum() == pytest.approx(area, rel=1e-6)


def test_the_cut_is_a_clean_border():
    facts = crop_mesh(ball(), LOW, HIGH).facts()
    assert facts.manifold and not facts.watertight
    half = crop_mesh(ball(), (-9, -9, 0.123), (9, 9, 9))
    border = np.abs(half.vertices[:, 2] - 0.123) < 1e-12
    assert half.facts().boundary_edges == border.sum() and half.facts().components == 1
    assert (half.face_normals * half.vertices[half.faces[:, 0]]).sum(axis=1).min() > -1e-6


def test_colours_and_uvs_stay_in_place():
    cropped = crop_mesh(ball(), LOW, HIGH)
    assert cropped.uvs is not None and cropped.colors is not None and cropped.material is not None
    assert np.abs(cropped.uvs - (0.5 + 0.4 * cropped.vertices[cropped.faces][..., :2])).max() < 1e-6
    # Of 255: half for each rounding, at the vertices and at each of up to three cuts.
    assert np.abs(cropped.colors - 127.5 * (cropped.vertices + 1)).max() <= 2.0


def test_a_box_around_it_leaves_a_mesh_alone_and_one_beside_it_nothing():
    mesh = ball()
    assert crop_mesh(mesh, (-2, -2, -2), (2, 2, 2)) is mesh
    assert not len(crop_mesh(mesh, (2, 2, 2), (3, 3, 3)).faces)
    plain = Mesh(mesh.vertices, mesh.faces)
    assert crop_mesh(plain, LOW, HIGH).uvs is None


def test_a_side_through_vertices_adds_no_faces():
    box = trimesh.creation.box((2, 2, 2)).subdivide()
    mesh = Mesh(np.asarray(box.vertices), np.asarray(box.faces, np.int32))
    half = crop_mesh(mesh, (-2, -2, 0), (2, 2, 2))
    assert half.face_areas.sum() == pytest.approx(4 + 4 * 2) and half.facts().manifold
    assert (half.face_areas > 1e-9).all() and len(half.faces) == len(mesh.faces) // 2
    assert len(crop_mesh(mesh, (-1, -1, -1), (1, 1, 1)).faces) == len(mesh.faces)  # sides that lie in the box's
