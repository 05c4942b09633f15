"""Splat files written and read by us: errors within what each format's rounding allows, axes, and which kind a file is.

What other programs make of them is in `test_splat_peers.py`, damaged ones are in `test_splat_spoilt.py`.
"""

from __future__ import annotations

import json
import math
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import sph_harm_y

from scene import sh
from scene.errors import InputError
from scene.formats import kind_of, load_splats, quantised, save_mesh, save_splats
from scene.formats.codebook import levels, nearest_level, palette
from scene.formats.glb_splats import EXTENSION, linear_from_srgb
from scene.formats.spz import fraction_bits, write_spz
from scene.gaussians import Gaussians
from tests.scene.formats.splat_errors import covariances, errors, extreme_gaussians, matched
from tests.scene.formats.test_meshes_and_splats import glb_parts, lettered_box
from tests.scene.splats import random_gaussians, random_rotation

XYZ_BYTES = 0.25
"""Largest turn by quaternions of three bytes: e = sqrt(3) / 255 off in xyz makes w = sqrt(1 - |xyz|^2) sqrt(2 e) off at
most, where it is 0."""
PACKED = (".splat", ".spz", ".sog", ".glb")
UPS = ((0.0, 0.0, 1.0), (0.0, -1.0, 0.0), (0.3, -0.5, 0.8))


def bounds(path: Path, source: Gaussians) -> dict[str, float | np.ndarray]:
    """The largest error that the rounding of each format can make.

    A quaternion whose stored parts are each off by e turns by at most twice the distance it moves: with four parts
    stored that is 2 * 2 e; with the smallest three the fourth follows and doubles it at most, 4 sqrt(3) e.
    """
    float_mean = 2e-6 * np.abs(source.means.numpy()).max(axis=1) + 1e-6  # float32 and the turn
    exact = {"means": float_mean, "log_scales": 1e-5, "angles": 2e-6, "opacities": 2e-6, "sh_dc": 1e-5, "sh_rest": 1e-5}
    byte = 0.5 / 255
    if path.suffix == ".splat":
        return exact | {"angles": 4.1 * 0.5 / 128, "opacities": byte, "sh_dc": byte / sh.C0}
    if path.suffix == ".spz":
        return {
            "means": float_mean + 0.5 / 2 ** fraction_bits(source),
            "log_scales": 0.5 / 16,
            "angles": 4 * math.sqrt(3) * 0.5 / 511 / math.sqrt(2),
            "opacities": byte,
            "sh_dc": byte / 0.15,
            "sh_rest": 0.5 / 128,
        }
    if path.suffix == ".sog":
        meta = json.loads(zipfile.ZipFile(path).read("meta.json"))
        step = np.max(np.subtract(meta["means"]["maxs"], meta["means"]["mins"])) / 65535

        def worst(
            part: str,
        ) -> float:  # half the widest gap between levels; those at the ends are means of their values
            return float(np.diff(meta[part]["codebook"]).max()) if part in meta else 0.0

        return {
            "means": float_mean + 0.6 * step * (1 + np.abs(source.means.numpy()).max(axis=1)),
            "log_scales": worst("scales"),
            "angles": 4 * math.sqrt(3) * byte * math.sqrt(2),
            "opacities": byte,
            "sh_dc": worst("sh0"),
            "sh_rest": worst("shN"),
        }
    return exact


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize("ending", [".ply", *PACKED])
def test_errors_stay_within_what_the_format_rounds(tmp_path: Path, ending: str, degree: int):
    source = extreme_gaussians(1000, degree, seed=degree)  # a palette of SOG holds all of them
    if ending in (".spz", ".sog"):  # their coefficients are rounded after the turn, which lengthens some
        source.sh_rest *= 0.5
    path = tmp_path / f"scene{ending}"
    save_splats(path, source)
    found = errors(source, matched(source, load_splats(path)))
    assert ("sh_rest" in found) == (degree > 0 and ending != ".splat")
    turned = math.sqrt(7) if ending in (".spz", ".sog") else 1  # errors of a band of degree 3 turn into each other
    for name, limit in bounds(path, source).items():
        if name in found:
            assert (found[name] <= np.multiply(limit, turned if name == "sh_rest" else 1) + 1e-6).all(), (name, limit)


@pytest.mark.parametrize("ending", [".ply", *PACKED])
def test_one_splat_comes_back(tmp_path: Path, ending: str):
    source = random_gaussians(1)
    save_splats(tmp_path / f"one{ending}", source)
    back = load_splats(tmp_path / f"one{ending}")
    assert torch.allclose(back.means, source.means, atol=1e-3) and torch.allclose(back.scales, source.scales, rtol=0.04)


def test_opaque_and_clear_splats_stay_so_and_have_finite_logits(tmp_path: Path):
    source = random_gaussians(3)
    source.opacity_logits[:] = torch.tensor([float("inf"), float("-inf"), 0.0])
    for ending in (".ply", *PACKED):
        save_splats(tmp_path / f"a{ending}", source)
        back = matched(source, load_splats(tmp_path / f"a{ending}"))
        assert torch.isfinite(back.opacity_logits).all()
        assert (back.opacities - source.opacities).abs().max() <= 0.5 / 255 + 1e-6, ending


def test_a_second_trip_changes_nothing_that_the_first_one_rounded(tmp_path: Path):
    """Values on the grid of the format stay there: no drift when files are handed on."""
    for ending in (".splat", ".spz"):
        save_splats(tmp_path / f"a{ending}", random_gaussians(200), up=(0, 1, 0))
        first = load_splats(tmp_path / f"a{ending}", up=(0, 1, 0))
        save_splats(tmp_path / f"b{ending}", first, up=(0, 1, 0))
        again = load_splats(tmp_path / f"b{ending}", up=(0, 1, 0))
        for name, values in errors(first, matched(first, again)).items():
            assert values.max() < (4.1 * 0.5 / 128 if name == "angles" else 1e-5), (ending, name)


# Axes


def real_harmonics(directions: np.ndarray, degree: int) -> np.ndarray:
    """[N, (degree + 1)^2] from the complex ones of scipy, which have the Condon-Shortley phase."""
    theta, phi = np.arccos(directions[:, 2]), np.arctan2(directions[:, 1], directions[:, 0])
    columns = []
    for band in range(degree + 1):
        for order in range(-band, band + 1):
            value = sph_harm_y(band, abs(order), theta, phi)
            columns.append(value.real if order == 0 else math.sqrt(2) * (value.imag if order < 0 else value.real))
    return np.stack(columns, axis=1)


def light(gaussians: Gaussians, directions: np.ndarray) -> np.ndarray:
    """[N, D, 3] colours of the splats along directions."""
    basis = real_harmonics(directions, gaussians.sh_degree)
    return np.einsum("dk,nkc->ndc", basis, gaussians.sh_coeffs.double().numpy())


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_turned_splats_show_along_r_d_what_they_showed_along_d(degree: int, mirrored: bool):
    before = random_gaussians(50, sh_degree=degree)
    matrix = random_rotation(degree) * (-1 if mirrored else 1)
    after = before.turned(matrix)
    directions = np.random.default_rng(0).standard_normal((40, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    assert np.abs(light(before, directions) - light(after, directions @ matrix.numpy().T)).max() < 1e-5
    expected = matrix @ covariances(before) @ matrix.T
    assert (covariances(after) - expected).abs().max() < 1e-5 * expected.abs().max()
    assert torch.allclose(after.means.double(), before.means.double() @ matrix.T, atol=1e-5)


@pytest.mark.parametrize("up", UPS)
@pytest.mark.parametrize("ending", [".glb", ".spz", ".sog", ".splat"])
def test_files_stand_as_their_format_says_and_come_back(tmp_path: Path, ending: str, up: tuple[float, float, float]):
    source = random_gaussians(300)
    source.sh_rest *= 0.3
    path = tmp_path / f"a{ending}"
    save_splats(path, source, up=up)
    sign = -1.0 if ending in (".sog", ".splat") else 1.0
    raw = load_splats(path, up=(0.0, sign, 0.0))  # in the axes of the file
    heights = source.means.double() @ (torch.tensor(up).double() / math.hypot(*up))
    assert ((sign * raw.means[:, 1].double()).sort().values - heights.sort().values).abs().max() < 1e-3
    back = matched(source, load_splats(path, up=up))
    assert (back.means - source.means).abs().max() < 1e-3


def test_a_gltf_of_splats_has_turned_light(tmp_path: Path):
    """+Z of the scene is +Y of the file: the file's own numbers, read without our reader of splats."""
    source = random_gaussians(40)
    save_splats(tmp_path / "a.glb", source)
    document, binary = glb_parts(tmp_path / "a.glb")
    attributes = document["meshes"][0]["primitives"][0]["attributes"]

    def values(name: str) -> np.ndarray:
        view = document["bufferViews"][document["accessors"][attributes[name]]["bufferView"]]
        return np.frombuffer(binary, "<f4", view["byteLength"] // 4, view["byteOffset"]).reshape(40, -1)

    x, y, z = source.means.numpy().T
    assert np.abs(values("POSITION") - np.stack([x, z, -y], axis=1)).max() < 1e-6
    names = [f"{EXTENSION}:SH_DEGREE_{d}_COEF_{n}" for d in range(4) for n in range(2 * d + 1)]
    coeffs = np.stack([values(name) for name in names], axis=1)
    directions = np.random.default_rng(1).standard_normal((30, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    seen = np.einsum("dk,nkc->ndc", real_harmonics(directions[:, [0, 2, 1]] * [1, 1, -1], 3), coeffs)
    assert np.abs(seen - light(source, directions)).max() < 1e-5
    quats = values(f"{EXTENSION}:ROTATION")
    assert np.abs(np.linalg.norm(quats, axis=1) - 1).max() < 1e-6
    assert np.allclose(values(f"{EXTENSION}:SCALE"), source.scales.numpy(), rtol=1e-6)
    assert np.allclose(values(f"{EXTENSION}:OPACITY")[:, 0], source.opacities.numpy(), atol=1e-6)
    colours = np.clip(0.5 + sh.C0 * source.sh_dc.numpy(), 0, 1)
    assert np.allclose(values("COLOR_0")[:, :3], linear_from_srgb(colours), atol=1e-6)  # not premultiplied
    assert np.allclose(values("COLOR_0")[:, 3], source.opacities.numpy(), atol=1e-6)


def test_nodes_move_turn_scale_and_mirror_the_splats_of_a_gltf(tmp_path: Path):
    """One mesh shown twice: as it lies, and by a node that mirrors it (negative scale), doubles and turns it."""
    source = random_gaussians(30)
    save_splats(tmp_path / "a.glb", source, up=(0, 1, 0))
    document, binary = glb_parts(tmp_path / "a.glb")
    half = math.sqrt(0.5)
    document["nodes"] += [{"mesh": 0, "translation": [1, 2, 3], "rotation": [0, 0, half, half], "scale": [-2, 2, 2]}]
    document["scenes"][0]["nodes"] = [0, 1]
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<I", len(text)) + b"JSON" + text + struct.pack("<I", len(binary)) + b"BIN\x00" + bytes(binary)
    (tmp_path / "b.glb").write_bytes(b"glTF" + struct.pack("<II", 2, 12 + len(chunks)) + chunks)
    both = load_splats(tmp_path / "b.glb", up=(0, 1, 0))
    assert len(both) == 60 and torch.allclose(both.means[:30], source.means)
    world = (
        2
        * torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]).double()
        @ torch.diag(torch.tensor([-1.0, 1, 1])).double()
    )
    second = both.select(torch.arange(30, 60))
    assert torch.allclose(second.means.double(), source.means.double() @ world.T + torch.tensor([1.0, 2, 3]), atol=1e-5)
    expected = world @ covariances(source) @ world.T
    assert (covariances(second) - expected).abs().max() < 1e-5 * expected.abs().max()
    directions = np.random.default_rng(0).standard_normal((20, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    assert np.abs(light(source, directions) - light(second, directions @ world.numpy().T / 2)).max() < 1e-5


# Parts of the formats


def test_levels_bound_the_worst_error_and_beat_even_steps_on_the_mean():
    values = np.concatenate([np.random.default_rng(0).standard_normal(100_000), [-40.0, 25.0, 60.0]])
    table = levels(values)
    error = np.abs(table[nearest_level(values, table)] - values)
    even = np.linspace(-40, 60, 256, dtype=np.float32)
    even_error = np.abs(even[nearest_level(values, even)] - values)
    assert error.max() <= 100 / 128
    assert (error**2).mean() < 0.1 * (even_error**2).mean()


def test_few_different_values_are_levels_themselves():
    values = np.array([3.0, -1.0, 3.0, 0.25], np.float32)
    table = levels(values)
    assert (table[nearest_level(values, table)] == values).all() and len(table) == 256


def test_a_palette_finds_the_vectors_that_repeat():
    generator = torch.Generator().manual_seed(1)
    true = torch.randn(100, 45, generator=generator)
    vectors = true[torch.randint(100, (6000,), generator=generator)] + 0.01 * torch.randn(6000, 45, generator=generator)
    entries, labels = palette(vectors, 1024)
    assert len(entries) <= 1024 and labels.max() < len(entries)
    assert (entries[labels] - vectors).square().mean().sqrt() < 0.012
    assert all(torch.equal(a, b) for a, b in zip(palette(vectors, 1024), (entries, labels), strict=True))


def test_the_smallest_three_parts_make_the_quaternion():
    quats = quantised.unit_quats(extreme_gaussians(500, 0))
    largest, three = quantised.smallest_three(quats)
    back = quantised.from_smallest_three(largest, three)
    assert np.minimum(np.abs(back - quats).max(axis=1), np.abs(back + quats).max(axis=1)).max() < 1e-6


def test_neighbours_in_morton_order_are_near():
    means = np.random.default_rng(0).random((4096, 3)).astype(np.float32)
    order = quantised.morton_order(means)
    assert sorted(order) == list(range(4096))
    steps = np.linalg.norm(np.diff(means[order], axis=0), axis=1)
    assert np.median(steps) < 0.08  # 1/16 is the spacing; in random order it is 0.66


# SPZ


def test_far_scenes_take_bits_from_the_fraction_and_too_far_ones_are_refused(tmp_path: Path):
    source = random_gaussians(10)
    source.means[0, 0] = 3e6
    save_splats(tmp_path / "far.spz", source, up=(0, 1, 0))
    back = load_splats(tmp_path / "far.spz", up=(0, 1, 0))
    assert fraction_bits(source) == 1 and (back.means - source.means).abs().max() <= 0.26
    source.means[0, 0] = 1e7
    with pytest.raises(InputError, match="8,388,607"):
        save_splats(tmp_path / "too_far.spz", source)


def test_older_spz_versions_are_read(tmp_path: Path):
    """Version 1 has half floats, both have xyz quaternions of a byte each; built here by the format's text."""
    source = random_gaussians(50, sh_degree=1)
    quats = quantised.unit_quats(source)
    quats *= np.where(quats[:, :1] < 0, -1, 1)
    rest = [
        quantised.to_bytes(255 * quantised.opacities(source)),
        quantised.to_bytes(255 * (0.15 * source.sh_dc.numpy() + 0.5)),
        quantised.to_bytes(16 * (source.log_scales.numpy() + 10)),
        quantised.to_bytes(127.5 * quats[:, 1:] + 127.5),
        quantised.to_bytes(128 * source.sh_rest.numpy() + 128),
    ]
    fixed = np.round(source.means.numpy() * 4096).astype("<i4").view(np.uint8).reshape(50, 3, 4)[:, :, :3]
    for version, positions in ((1, source.means.numpy().astype("<f2")), (2, np.ascontiguousarray(fixed))):
        head = struct.pack("<IIIBBBB", 0x5053474E, version, 50, 1, 12, 0, 0)
        packer = zlib.compressobj(wbits=31)
        data = packer.compress(head + positions.tobytes() + b"".join(part.tobytes() for part in rest)) + packer.flush()
        (tmp_path / "old.spz").write_bytes(data)
        found = errors(source, load_splats(tmp_path / "old.spz", up=(0, 1, 0)))
        assert found["means"].max() < 0.002 and found["sh_rest"].max() <= 0.5 / 128
        assert found["angles"].max() < XYZ_BYTES


def test_degree_4_is_cut_to_3(tmp_path: Path):
    write_spz(tmp_path / "3.spz", random_gaussians(20))
    body = bytearray(zlib.decompress((tmp_path / "3.spz").read_bytes(), wbits=31))
    body[12] = 4
    rest = np.frombuffer(bytes(body[-20 * 45 :]), np.uint8).reshape(20, 45)
    body[-20 * 45 :] = np.concatenate([rest, np.full((20, 27), 200, np.uint8)], axis=1).tobytes()
    packer = zlib.compressobj(wbits=31)
    (tmp_path / "4.spz").write_bytes(packer.compress(bytes(body)) + packer.flush())
    three, four = (load_splats(tmp_path / f"{degree}.spz", up=(0, 1, 0)) for degree in (3, 4))
    assert all(torch.equal(a, four.parameters()[name]) for name, a in three.parameters().items())


# SOG


def test_a_folder_and_version_1_of_sog_are_read(tmp_path: Path):
    """A loose folder is the unpacked file; version 1 has ranges where version 2 has codebooks."""
    source = random_gaussians(300, sh_degree=2)
    save_splats(tmp_path / "a.sog", source)
    folder = tmp_path / "loose"
    with zipfile.ZipFile(tmp_path / "a.sog") as archive:
        archive.extractall(folder)
    zipped = load_splats(tmp_path / "a.sog")
    for loose in (folder, folder / "meta.json"):
        assert torch.equal(load_splats(loose).sh_rest, zipped.sh_rest) and kind_of(loose) == "splats"
    meta = json.loads((folder / "meta.json").read_text())
    old = {
        "means": meta["means"] | {"shape": [300, 3], "dtype": "float32"},
        "scales": {"mins": [-5.0, -4.0, -3.0], "maxs": [0.0, 1.0, 2.0], "files": meta["scales"]["files"]},
        "quats": meta["quats"] | {"encoding": "quaternion_packed"},
        "sh0": {"mins": [-1.0, -1.0, -1.0, -6.0], "maxs": [1.0, 1.0, 1.0, 6.0], "files": meta["sh0"]["files"]},
        "shN": {"mins": -0.5, "maxs": 0.5, "files": meta["shN"]["files"]},
    }
    (folder / "meta.json").write_text(json.dumps(old))
    back = load_splats(folder, up=(0, -1, 0))
    assert torch.allclose(back.means, load_splats(tmp_path / "a.sog", up=(0, -1, 0)).means)
    low, high = back.log_scales.amin(dim=0), back.log_scales.amax(dim=0)
    assert (low >= torch.tensor([-5.0, -4, -3])).all() and (high <= torch.tensor([0.0, 1, 2])).all()
    assert back.opacity_logits.abs().max() <= 6 and back.sh_rest.abs().max() <= 0.5 and back.sh_rest.std() > 0.05


# Kinds


def test_the_kind_of_a_file_follows_from_its_content(tmp_path: Path):
    for ending in (".ply", *PACKED):
        save_splats(tmp_path / f"splats{ending}", random_gaussians(5))
        assert kind_of(tmp_path / f"splats{ending}") == "splats"
    for ending in (".ply", ".glb", ".obj", ".stl"):
        save_mesh(tmp_path / f"mesh{ending}", lettered_box())
        assert kind_of(tmp_path / f"mesh{ending}") == "mesh"
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(InputError, match="neither a splat file"):
        kind_of(tmp_path / "a.txt")


def test_a_wrong_ending_does_not_matter_where_the_content_says_what_it_is(tmp_path: Path):
    source = random_gaussians(5)
    for ending in (".ply", ".spz", ".sog", ".glb"):
        save_splats(tmp_path / f"a{ending}", source)
        (tmp_path / f"a{ending}").rename(tmp_path / "a.dat")
        assert (matched(source, load_splats(tmp_path / "a.dat")).means - source.means).abs().max() < 1e-3
        assert kind_of(tmp_path / "a.dat") == "splats"


@pytest.mark.parametrize("ending", [".obj", ".xyz", ""])
def test_unknown_endings_are_refused_with_those_that_are_known(tmp_path: Path, ending: str):
    with pytest.raises(InputError, match=r"\.ply, \.splat, \.spz, \.sog, \.glb"):
        save_splats(tmp_path / f"a{ending}", random_gaussians(2))


@pytest.mark.parametrize("ending", PACKED)
def test_values_that_are_not_finite_are_not_written(tmp_path: Path, ending: str):
    for name in ("means", "quats", "sh_dc"):
        bad = random_gaussians(4)
        bad.parameters()[name][1, 0] = float("nan")
        with pytest.raises(InputError, match=name):
            save_splats(tmp_path / f"a{ending}", bad)
        assert not list(tmp_path.iterdir())
