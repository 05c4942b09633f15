"""Surfaces of known fields: closed, on their zero, facing outwards, and the same however the blocks are given."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from scene.marching_cubes import EDGES, marching_cubes, table
from scene.mesh import Mesh
from scene.ops.tsdf import BLOCK
from tests import peers


def blocks_of(span: int) -> Tensor:
    steps = torch.arange(-span, span, dtype=torch.int32)
    return torch.cartesian_prod(steps, steps, steps)


def places(blocks: Tensor) -> Tensor:
    """[B, 8, 8, 8, 3] places of the voxels by z, y, x, in voxels."""
    steps = torch.arange(BLOCK, dtype=torch.float64)
    z, y, x = torch.meshgrid(steps, steps, steps, indexing="ij")
    return BLOCK * blocks[:, None, None, None].double() + torch.stack([x, y, z], -1)


def meshed(field: Tensor, blocks: Tensor, *, weights: Tensor | None = None, voxel_size: float = 1.0) -> Mesh:
    known = torch.ones_like(field) if weights is None else weights
    return marching_cubes(field.float(), known.float(), blocks, voxel_size=voxel_size, least_weight=0.5)


def random_field(seed: int) -> tuple[Tensor, Tensor]:
    """Noise inside, positive at the border: every kind of cell, and a surface that must close."""
    blocks = blocks_of(1)
    generator = torch.Generator().manual_seed(seed)
    field = torch.randn(len(blocks), BLOCK, BLOCK, BLOCK, generator=generator)
    border = ((places(blocks) <= -BLOCK) | (places(blocks) >= BLOCK - 1)).any(-1)
    return torch.where(border, 1.0, field), blocks


def test_a_ball_has_its_radius_its_volume_and_faces_outwards() -> None:
    blocks = blocks_of(2)
    centre = torch.tensor([0.3, -0.2, 0.4], dtype=torch.float64)
    field = (places(blocks) - centre).norm(dim=-1) - 10
    mesh = meshed(field, blocks, voxel_size=0.1)
    facts = mesh.facts()
    assert facts.watertight and facts.manifold and facts.components == 1
    assert facts.volume == pytest.approx(4 / 3 * math.pi, rel=1e-2)  # chords lie inside: seen 6e-3
    off = np.linalg.norm(mesh.vertices - 0.1 * centre.numpy(), axis=1) - 1
    assert np.abs(off).max() < 0.1 / 80 + 1e-6  # a straight line between the ends of an edge


def test_a_slanted_plane_is_met_exactly() -> None:
    blocks = blocks_of(1)
    normal = torch.tensor([0.36, -0.48, 0.8], dtype=torch.float64)
    mesh = meshed(places(blocks) @ normal - 0.7, blocks)
    assert np.abs(mesh.vertices @ normal.numpy() - 0.7).max() < 1e-5  # float32 field
    assert (mesh.face_normals @ normal.numpy() > 0).all()


@pytest.mark.parametrize("seed", range(3))
def test_whatever_the_field_the_surface_closes_and_no_edge_has_more_than_two_faces(seed: int) -> None:
    mesh = meshed(*random_field(seed))
    edges = np.sort(np.concatenate([mesh.faces[:, [i, (i + 1) % 3]] for i in range(3)]), axis=1)
    _, counts = np.unique(edges, axis=0, return_counts=True)
    assert len(mesh.faces) > 5000
    assert set(counts.tolist()) == {2}
    directed = np.concatenate([mesh.faces[:, [i, (i + 1) % 3]] for i in range(3)])
    assert len(np.unique(directed, axis=0)) == len(directed)  # neighbours face the same way


def test_the_surface_parts_inside_from_outside() -> None:
    field, blocks = random_field(3)
    mesh = meshed(field, blocks)
    spots = places(blocks).reshape(-1, 3).numpy()[::37]
    inside = (field < 0).reshape(-1).numpy()[::37]
    a, b, c = (mesh.vertices[mesh.faces[:, i]] for i in range(3))
    for spot, is_inside in zip(spots, inside, strict=True):
        u, v, w = (corner - spot for corner in (a, b, c))
        lengths = [np.linalg.norm(side, axis=1) for side in (u, v, w)]
        spread = lengths[0] * lengths[1] * lengths[2]
        spread += (u * v).sum(1) * lengths[2] + (v * w).sum(1) * lengths[0] + (w * u).sum(1) * lengths[1]
        winding = np.arctan2((u * np.cross(v, w)).sum(1), spread).sum() / (2 * math.pi)  # Van Oosterom, Strackee 1983
        assert winding == pytest.approx(float(is_inside), abs=1e-4)


def test_cells_with_a_corner_that_is_not_known_stay_open() -> None:
    blocks = blocks_of(1)
    field = places(blocks)[..., 2] - 0.5
    weights = torch.ones_like(field)
    weights[(places(blocks) == torch.tensor([2.0, 3.0, 1.0])).all(-1)] = 0.25
    whole, holed = meshed(field, blocks), meshed(field, blocks, weights=weights)
    assert len(whole.faces) == 2 * 15 * 15
    assert len(holed.faces) == len(whole.faces) - 2 * 4
    middle = holed.vertices[holed.faces].mean(axis=1)
    assert not (np.abs(middle[:, :2] - [2, 3]) < 1).all(axis=1).any()


def test_a_missing_block_leaves_a_hole() -> None:
    blocks = blocks_of(1)
    field = places(blocks)[..., 2] - 0.5
    there = ~(blocks == torch.tensor([0, 0, 0])).all(1)
    mesh = meshed(field[there], blocks[there])
    middle = mesh.vertices[mesh.faces].mean(axis=1)
    assert ((middle[:, :2] > -1) & (middle[:, :2] < 7)).all(axis=1).sum() == 0
    assert len(mesh.faces) == 2 * (15 * 15 - 8 * 8)


def test_the_order_and_the_number_of_the_blocks_change_nothing_but_the_order_of_faces(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    field, blocks = random_field(5)
    whole = meshed(field, blocks)
    order = torch.randperm(len(blocks), generator=torch.Generator().manual_seed(0))
    assert np.array_equal(meshed(field[order], blocks[order]).faces, whole.faces)
    monkeypatch.setattr("scene.marching_cubes.CHUNK", 3)
    parts = meshed(field, blocks)
    assert np.array_equal(parts.vertices, whole.vertices) and np.array_equal(parts.faces, whole.faces)
    moved = meshed(field, blocks + 1000)
    assert np.array_equal(moved.faces, whole.faces)
    assert np.abs(moved.vertices - 8000 - whole.vertices).max() < 1e-9


def test_nothing_comes_of_nothing() -> None:
    blocks = blocks_of(1)
    field = torch.ones(len(blocks), BLOCK, BLOCK, BLOCK)
    for mesh in (meshed(field, blocks), meshed(-field, blocks), meshed(field[:0], blocks[:0])):
        assert mesh.vertices.shape == (0, 3) and mesh.faces.shape == (0, 3)


def test_every_case_of_the_table_crosses_the_edges_between_inside_and_outside_and_no_other() -> None:
    for case, triangles in enumerate(table()):
        crossed = {i for i, (a, b) in enumerate(EDGES) if (case >> a ^ case >> b) & 1}
        assert set(triangles[triangles >= 0].tolist()) == crossed
        assert ((triangles >= 0).all(1) | (triangles < 0).all(1)).all()


def test_open3d_finds_the_same_surface() -> None:
    o3d = peers.open3d()
    blocks = blocks_of(2)
    waves = torch.sin(places(blocks) / 3).prod(-1) + 0.15 * torch.cos(places(blocks)[..., 0])
    grid = o3d.t.geometry.VoxelBlockGrid(
        *(("tsdf", "weight"), (o3d.core.float32, o3d.core.float32), ((1,), (1,))),
        *(1.0, BLOCK, len(blocks), o3d.core.Device("CPU:0")),
    )
    slots, _ = grid.hashmap().activate(o3d.core.Tensor.from_numpy(blocks.numpy()))
    slots = slots.numpy().astype(np.int64)
    grid.attribute("tsdf").numpy()[slots] = waves.float().numpy()[..., None]
    grid.attribute("weight").numpy()[slots] = 1.0
    surface = grid.extract_triangle_mesh(0.5)
    theirs = surface.vertex.positions.numpy().astype(np.float64)
    ours = meshed(waves, blocks)
    assert len(ours.vertices) == len(theirs)
    order = [np.lexsort(np.round(points, 4).T) for points in (ours.vertices, theirs)]
    assert np.abs(ours.vertices[order[0]] - theirs[order[1]]).max() < 1e-4
    assert len(ours.faces) == pytest.approx(len(surface.triangle.indices.numpy()), rel=0.01)  # ambiguous cells differ
