"""The compact form of a scene inside a page: unpacked here by a second reader, it is the scene within its steps."""

from __future__ import annotations

import zlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from scene import sh
from scene.formats.page_data import (
    MAX_FACES,
    Frame,
    Payload,
    contributions,
    frame_of,
    pack_integers,
    pack_mesh,
    pack_splats,
)
from scene.gaussians import Gaussians
from scene.mesh import Material, Mesh
from scene.ops.splat_project import quats_to_matrices
from tests.scene.splats import random_gaussians


def unpacked(content: bytes | bytearray, entry: dict[str, Any]) -> NDArray[np.int64]:
    """A block's integers [N, C], read plane by plane as the module's docstring describes them."""
    raw = zlib.decompress(content[entry["at"] : entry["at"] + entry["size"]])
    planes = np.frombuffer(raw, np.uint8).reshape(entry["components"], entry["bytes"], entry["count"])
    zigzag = np.zeros((entry["components"], entry["count"]), np.int64)
    for k in range(entry["bytes"]):
        zigzag |= planes[:, k].astype(np.int64) << (8 * k)
    values = (zigzag >> 1) ^ -(zigzag & 1)
    return (np.cumsum(values, axis=1) if entry["delta"] else values).T


@given(
    arrays.arrays(np.int64, st.tuples(st.integers(0, 9), st.integers(1, 4)), elements=st.integers(-(2**28), 2**28)),
    st.booleans(),
)
def test_integers_come_back(values: NDArray[np.int64], delta: bool) -> None:
    payload = Payload(bytearray(b"before"))
    entry = payload.add(pack_integers(values, 1.0, delta=delta))
    np.testing.assert_array_equal(unpacked(payload.content, entry), values)


def test_integers_too_large_for_the_viewer_are_refused() -> None:
    with pytest.raises(ValueError, match="larger step"):
        pack_integers(np.array([[2**31]]), 1.0)


def pack(scene: Gaussians, max_bytes: int = 1 << 30) -> tuple[dict[str, Any], bytes, Frame]:
    payload, frame = Payload(), frame_of(scene, None)
    header = pack_splats(scene, frame, max_bytes, payload)
    return header, bytes(payload.content), frame


def sorted_by_place(scene: Gaussians) -> Gaussians:
    return scene.select(torch.from_numpy(np.lexsort(scene.means.numpy().T)))


def decoded(header: dict[str, Any], content: bytes, frame: Frame) -> Gaussians:
    """The Gaussians that a viewer sees."""
    blocks = header["blocks"]

    def values(entry: dict[str, Any]) -> torch.Tensor:
        return torch.from_numpy(unpacked(content, entry) * entry["step"])

    packed = unpacked(content, blocks["quats"])
    small = packed[:, :3] / (511 * np.sqrt(2))
    largest = np.sqrt(np.maximum(0, 1 - np.square(small).sum(1)))
    quats = np.stack([np.insert(row, which, left) for row, which, left in zip(small, packed[:, 3], largest)])
    bands = [values(entry) for entry in blocks["harmonics"]]
    count = header["count"]
    return Gaussians(
        means=values(blocks["means"]) + torch.from_numpy(frame.centre),
        quats=torch.from_numpy(quats),
        log_scales=values(blocks["log_scales"]),
        opacity_logits=torch.logit(values(blocks["opacities"])[:, 0].clamp(1e-6, 1 - 1e-6)),
        sh_dc=sh.from_rgb(values(blocks["colors"])),
        sh_rest=torch.cat(bands, dim=1).reshape(count, -1, 3)
        if bands
        else torch.zeros(count, 0, 3, dtype=torch.float64),
    )


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_splats_keep_every_attribute_within_half_a_step(degree: int) -> None:
    scene = random_gaussians(500, sh_degree=degree, dtype=torch.float64)
    header, content, frame = pack(scene)
    assert (header["count"], header["total"], header["degree"]) == (500, 500, degree)
    # Positions are a permutation of each other: the packed ones stand along a curve.
    want, got = sorted_by_place(scene), sorted_by_place(decoded(header, content, frame))
    torch.testing.assert_close(got.means, want.means, rtol=0, atol=0.51 * frame.size * 2**-16)
    torch.testing.assert_close(got.log_scales, want.log_scales, rtol=0, atol=0.51 / 32)
    torch.testing.assert_close(got.opacities, want.opacities, rtol=0, atol=0.51 / 255)
    torch.testing.assert_close(got.sh_dc * sh.C0, want.sh_dc * sh.C0, rtol=0, atol=0.51 / 512)
    torch.testing.assert_close(got.sh_rest, want.sh_rest, rtol=0, atol=0.51 / 96)
    # 0.5 / (511 sqrt(2)) in each of three components turns by at most about 0.2 degrees.
    turned = quats_to_matrices(got.quats) - quats_to_matrices(want.quats)
    assert float(turned.abs().max()) < 4e-3


def test_a_scene_far_from_the_origin_loses_nothing() -> None:
    near = random_gaussians(200, sh_degree=0, dtype=torch.float64)
    far = replace(near, means=near.means + torch.tensor([5e5, -4e6, 300.0]))
    header, content, frame = pack(far)
    error = sorted_by_place(decoded(header, content, frame)).means - sorted_by_place(far).means
    assert float(error.abs().max()) < frame.size * 2**-16


def test_splats_with_numbers_that_are_none_are_left_out() -> None:
    scene = random_gaussians(20, sh_degree=1)
    scene.means[3, 1] = torch.nan
    scene.sh_rest[4, 0, 0] = torch.inf
    scene.quats[5] = 0
    scene.opacity_logits[6] = torch.nan
    scene.opacity_logits[7] = torch.inf  # wholly opaque, and sound
    header, content, frame = pack(scene)
    assert (header["count"], header["total"]) == (16, 20)
    assert all(bool(tensor.isfinite().all()) for tensor in decoded(header, content, frame).parameters().values())


def test_a_small_budget_takes_fine_highlights_first_then_the_splats_that_count_least() -> None:
    scene = random_gaussians(3000)
    whole, content, _ = pack(scene)
    finest = sum(entry["size"] for entry in whole["blocks"]["harmonics"][1:])
    coarser, _, _ = pack(scene, len(content) - finest // 2)
    assert (coarser["count"], coarser["degree"]) == (3000, 2)
    header, content, frame = pack(scene, 20_000)
    assert len(content) <= 20_000
    assert header["degree"] == 1
    assert 500 < header["count"] < 3000
    kept = contributions(scene)
    shown = decoded(header, content, frame)
    least = np.sort(kept)[-header["count"]]
    # Within what a step of size (3 % each way, squared) and opacity can change.
    assert float(contributions(shown).min()) > 0.85 * least - 0.01 * kept.max()


def test_an_empty_budget_still_shows_something() -> None:
    assert pack(random_gaussians(50), 1)[0]["count"] == 1


def a_quad() -> Mesh:
    """Two triangles with a seam: the vertices of their common edge lie in different places of the texture."""
    vertices = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0.5], [0, 1, 0]], dtype=float)
    uvs = np.array([[[0, 0], [0.4, 0], [0.4, 0.4]], [[0.5, 0.5], [1, 1], [0.5, 1]]], dtype=np.float32)
    picture = np.random.default_rng(0).integers(0, 255, (300, 200, 3), dtype=np.uint8)
    return Mesh(vertices, np.array([[0, 1, 2], [0, 2, 3]]), uvs=uvs, material=Material(picture, normal=picture))


def test_a_mesh_keeps_places_uvs_and_directions() -> None:
    mesh, payload = a_quad(), Payload()
    assert mesh.uvs is not None
    frame = frame_of(None, mesh)
    header = pack_mesh(mesh, frame, 1 << 30, payload)
    values = {k: unpacked(payload.content, e) * e["step"] for k, e in header["blocks"].items()}
    faces = values["faces"].reshape(-1, 3).astype(int)
    assert len(values["positions"]) == 6  # the two vertices on the seam stand twice
    np.testing.assert_allclose(values["positions"][faces] + frame.centre, mesh.vertices[mesh.faces], atol=2e-5)
    np.testing.assert_allclose(values["uvs"][faces], mesh.uvs, atol=1e-5)
    flat = np.concatenate([values["normals"], 1 - np.abs(values["normals"]).sum(1, keepdims=True)], axis=1)
    normals = flat / np.linalg.norm(flat, axis=1, keepdims=True)  # all of this mesh look up: nothing is folded
    np.testing.assert_allclose(normals[faces], mesh.vertex_normals[mesh.faces], atol=4e-3)
    assert set(header["pictures"]) == {"base_color", "normal"}


def test_a_texture_shrinks_where_the_page_is_small() -> None:
    picture = np.random.default_rng(0).integers(0, 255, (3000, 3000, 3), dtype=np.uint8)
    header = pack_mesh(replace(a_quad(), material=Material(picture)), Frame(np.zeros(3), 1.0), 3_000_000, Payload())
    assert header["pictures"]["base_color"]["width"] == 1024


def test_a_huge_mesh_is_decimated() -> None:
    side = 460
    x, y = (axis.reshape(-1) for axis in np.meshgrid(np.arange(side), np.arange(side)))
    corner = (y[:, None] * side + x[:, None])[(x < side - 1) & (y < side - 1)]
    faces = np.concatenate([corner + np.array(a) for a in ((0, 1, side), (1, side + 1, side))])
    mesh = Mesh(np.stack([x, y, np.sin(0.1 * x) * 5], axis=1).astype(np.float64), faces)
    header = pack_mesh(mesh, frame_of(None, mesh), 1 << 30, Payload())
    assert header["total"] == len(faces) > MAX_FACES
    assert header["faces"] <= 1.01 * MAX_FACES
