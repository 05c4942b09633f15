"""Splat files between us and independent programs, both ways: PlayCanvas' splat-transform, Niantic's and Adobe's spz,
gsply, plyfile, and Khronos' validator; and files that others wrote and published.

Where both sides read one file, they must agree to float32; where one writes and the other reads, to the format's step.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from scene.formats import load_splats, save_splats
from scene.formats.glb_splats import EXTENSION
from scene.formats.splat import importance_order
from scene.gaussians import Gaussians
from tests import peers
from tests.scene.formats.splat_errors import covariances, errors, extreme_gaussians, matched
from tests.scene.splats import random_gaussians

Y_UP = (0.0, 1.0, 0.0)
Y_DOWN = (0.0, -1.0, 0.0)
SAME = {
    "means": 1e-6,
    "log_scales": 2e-6,
    "angles": 5e-7,
    "opacities": 1.01 * 0.25 / 255,
    "sh_dc": 1e-6,
    "sh_rest": 1e-6,
}
"""Two readers of one file. Opacities of the bytes 0 and 255 are the programs' own choice within half a step."""

ADOBE_PACK = """
const spz = (await import("@adobe/spz")).default, fs = await import("node:fs");
const module = await spz();
const [source, target, version, from] = process.argv.slice(1);
const cloud = module.loadSpzFromBuffer(new Uint8Array(fs.readFileSync(source)), {to: module.CoordinateSystem.RUB});
const options = {version: Number(version), from: module.CoordinateSystem[from], sh1Bits: 8, shRestBits: 8};
fs.writeFileSync(target, module.saveSpzToBuffer(cloud, options));
"""
ADOBE_UNPACK = """
const spz = (await import("@adobe/spz")).default, fs = await import("node:fs");
const module = await spz();
const cloud = module.loadSpzFromBuffer(new Uint8Array(fs.readFileSync(process.argv[1])),
                                       {to: module.CoordinateSystem.RUB});
const parts = ["positions", "rotations", "scales", "alphas", "colors", "sh"].map(
  name => Array.from(cloud[name], value => Math.max(-1e6, Math.min(1e6, value))));  // JSON has no infinity
console.log(JSON.stringify([cloud.numPoints, cloud.shDegree, ...parts]));
"""


def check(source: Gaussians, other: Gaussians, limits: dict[str, float]) -> None:
    for name, values in errors(source, other).items():
        assert values.max() <= limits[name], (name, values.max())


def tame_gaussians(count: int, degree: int) -> Gaussians:
    """Without splats far out: formats that share a range among splats keep all of these."""
    source = random_gaussians(count, sh_degree=degree)
    source.sh_rest = (0.8 * source.sh_rest).clamp(-0.98, 0.98)
    return source


def from_columns(*columns: object) -> Gaussians:
    return Gaussians(*[torch.from_numpy(np.array(column, np.float32)) for column in columns])


@pytest.mark.parametrize("degree", [0, 3])
@pytest.mark.parametrize("ending", [".ply", ".splat", ".spz", ".sog"])
def test_splat_transform_reads_what_we_read_of_our_files(tmp_path: Path, ending: str, degree: int):
    """In the file's own frame: its tool keeps numbers as they are in all of these."""
    save_splats(tmp_path / f"a{ending}", extreme_gaussians(1500, degree), up=Y_UP)
    peers.splat_transform("-q", "-w", tmp_path / f"a{ending}", tmp_path / "peer.ply")
    ours = load_splats(tmp_path / f"a{ending}", up=Y_DOWN if ending in (".splat", ".sog") else Y_UP)
    # It maps the bytes of a .splat's quaternion to -1..1 by 255, antimatter15's viewer by 128: half a step apart.
    limits = SAME | {"angles": 4.1 * 0.5 / 128} if ending == ".splat" else SAME
    check(ours, load_splats(tmp_path / "peer.ply"), limits)


def test_splat_transform_finds_our_scene_turned_to_the_axes_of_the_format(tmp_path: Path):
    source = tame_gaussians(200, 0)
    x, y, z = source.means.T
    for ending, expected in ((".spz", [x, z, -y]), (".sog", [x, -z, y]), (".splat", [x, -z, y])):
        save_splats(tmp_path / f"a{ending}", source)
        peers.splat_transform("-q", "-w", tmp_path / f"a{ending}", tmp_path / "peer.ply")
        found = load_splats(tmp_path / "peer.ply").means
        gaps = (found[:, None] - torch.stack(expected, dim=1)).abs().amax(dim=2).amin(dim=0)
        assert gaps.max() < 1e-3, ending


BYTE = 0.5 / 255
WRITTEN = {
    # Truncates where we round, so twice the steps; clusters its palette, so its harmonics are only near.
    "a.sog": {
        "means": 2e-3,
        "log_scales": 0.2,
        "angles": 8 * math.sqrt(3) * BYTE * math.sqrt(2),
        "opacities": 2 * BYTE,
        "sh_dc": 0.1,
        "sh_rest": 0.8,
    },
    "a.spz": {
        "means": 0.5 / 4096 + 1e-6,
        "log_scales": 0.5 / 16 + 1e-6,
        "opacities": BYTE + 1e-6,
        "sh_dc": BYTE / 0.15,
        "angles": 4 * math.sqrt(3) * 0.5 / 511 / math.sqrt(2),
        "sh_rest": 0.5 / 8 + 0.5 / 128,
    },
    "a.glb": dict.fromkeys(SAME, 2e-6),
    "a.compressed.ply": {
        "means": 0.01,
        "log_scales": 0.01,
        "angles": 4 * math.sqrt(3) * 0.5 / 1023 * math.sqrt(2),
        "opacities": BYTE + 1e-6,
        "sh_dc": 0.05,
        "sh_rest": 0.5 * 8 / 255,
    },
}


@pytest.mark.parametrize(("name", "degree"), [(n, d) for n in WRITTEN for d in ((0, 3) if n == "a.sog" else range(4))])
def test_we_read_what_splat_transform_writes(tmp_path: Path, name: str, degree: int):
    source = tame_gaussians(300 if name == "a.sog" else 1000, degree)
    save_splats(tmp_path / "source.ply", source)
    options = ["-g", "cpu"] if name == "a.sog" else []
    peers.splat_transform("-q", "-w", *options, tmp_path / "source.ply", tmp_path / name)
    if name == "a.glb":  # it takes a PLY to lie on its back and turns it by half a turn around z
        ours = load_splats(tmp_path / name, up=Y_UP).turned(torch.diag(torch.tensor([-1.0, -1.0, 1.0])))
    else:
        ours = load_splats(tmp_path / name, up=Y_DOWN if name == "a.sog" else Y_UP)
    check(source, matched(source, ours), WRITTEN[name])
    if name != "a.glb":  # which it does not read
        peers.splat_transform("-q", "-w", tmp_path / name, tmp_path / "peer.ply")
        check(load_splats(tmp_path / "peer.ply"), ours, SAME)


def test_spz_of_versions_3_and_4_hold_the_same(tmp_path: Path):
    save_splats(tmp_path / "source.ply", tame_gaussians(300, 2))
    for version in ("3", "4"):
        target = tmp_path / f"{version}.spz"
        peers.splat_transform("-q", "-w", "--spz-version", version, tmp_path / "source.ply", target)
    three, four = (load_splats(tmp_path / f"{version}.spz", up=Y_UP).parameters() for version in "34")
    assert all(torch.equal(three[name], four[name]) for name in three)


@pytest.mark.parametrize("degree", [0, 1, 3])
def test_adobes_spz_reads_what_we_write(tmp_path: Path, degree: int):
    import json

    save_splats(tmp_path / "a.spz", tame_gaussians(300, degree), up=Y_UP)
    count, found, *parts = json.loads(
        peers.run_node("@adobe/spz", ADOBE_UNPACK, tmp_path / "a.spz", module=True).splitlines()[-1]
    )
    assert (count, found) == (300, degree)
    means, quats, log_scales, logits, dc, rest = (np.array(part) for part in parts)
    theirs = from_columns(
        *(means.reshape(-1, 3), quats.reshape(-1, 4)[:, [3, 0, 1, 2]], log_scales.reshape(-1, 3)),
        *(np.clip(logits, -30, 30), dc.reshape(-1, 3), rest.reshape(count, -1, 3)),
    )
    check(load_splats(tmp_path / "a.spz", up=Y_UP), theirs, SAME)


@pytest.mark.parametrize("version", ["2", "3", "4"])
@pytest.mark.parametrize("axes", ["RUB", "RDF", "LUF"])
def test_we_read_what_adobes_spz_writes_from_any_axes(tmp_path: Path, version: str, axes: str):
    """The library turns the numbers from `axes` to RUB, our reader hands them out in RUB: only the flips remain.

    It flips rotations about both sides, which names the axes of an ellipsoid anew: compared are the ellipsoids.
    """
    save_splats(tmp_path / "a.spz", tame_gaussians(300, 3), up=Y_UP)
    source = load_splats(tmp_path / "a.spz", up=Y_UP)
    peers.run_node("@adobe/spz", ADOBE_PACK, tmp_path / "a.spz", tmp_path / "b.spz", version, axes, module=True)
    signs = torch.tensor([1.0 if letter in "RUB" else -1.0 for letter in axes])
    expected, found = source.turned(torch.diag(signs)), load_splats(tmp_path / "b.spz", up=Y_UP)
    check(expected, found, SAME | {"angles": 3.15})
    size = expected.scales.double().amax(dim=1)[:, None, None] ** 2
    assert ((covariances(expected) - covariances(found)) / size).abs().max() < (0.25 if version == "2" else 1e-5)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_gsply_reads_what_we_read(tmp_path: Path, degree: int):
    gsply = pytest.importorskip("gsply")
    save_splats(tmp_path / "a.ply", tame_gaussians(300, degree))
    save_splats(tmp_path / "a.spz", tame_gaussians(300, degree), up=Y_UP)
    data = gsply.plyread(str(tmp_path / "a.ply"))
    none = np.zeros((300, 0, 3), np.float32)
    gsply.plywrite(
        str(tmp_path / "b.ply"),
        *(data.means, data.scales, data.quats, data.opacities, data.sh0, data.shN if degree else None),
        compressed=True,
    )
    packed = next(tmp_path.glob("b*.ply"))
    for path, read in (
        (tmp_path / "a.ply", gsply.plyread),
        (tmp_path / "a.spz", gsply.read_spz),
        (packed, gsply.plyread),
    ):
        data = read(str(path))
        columns = (data.means, data.quats, data.scales, data.opacities, data.sh0, data.shN if degree else none)
        check(load_splats(path, up=Y_UP), from_columns(*columns), SAME)


def test_plyfile_finds_the_properties_of_3dgs(tmp_path: Path):
    plyfile = pytest.importorskip("plyfile")
    source = tame_gaussians(50, 3)
    save_splats(tmp_path / "a.ply", source)
    vertex = plyfile.PlyData.read(str(tmp_path / "a.ply"))["vertex"]
    assert np.array_equal(np.stack([vertex[axis] for axis in "xyz"], axis=1), source.means.numpy())
    rest = np.stack([vertex[f"f_rest_{i}"] for i in range(45)], axis=1).reshape(50, 3, 15).transpose(0, 2, 1)
    assert np.array_equal(rest, source.sh_rest.numpy())


def test_the_validator_finds_no_fault_but_that_it_does_not_know_the_extension(tmp_path: Path):
    """It takes the colon in the extension's attribute names for an error; under private names all is sound."""
    save_splats(tmp_path / "a.glb", extreme_gaussians(100, 3))
    faults = [m for m in peers.gltf_report(tmp_path / "a.glb")["issues"]["messages"] if m["severity"] < 2]
    assert {m["code"] for m in faults} == {"MESH_PRIMITIVE_INVALID_ATTRIBUTE"}
    assert all(f"/attributes/{EXTENSION}:" in m["pointer"] for m in faults)
    data = (tmp_path / "a.glb").read_bytes()
    for name in (
        "ROTATION",
        "SCALE",
        "OPACITY",
        *(f"SH_DEGREE_{d}_COEF_{n}" for d in range(4) for n in range(2 * d + 1)),
    ):
        long = f'"{EXTENSION}:{name}"'
        data = data.replace(long.encode(), f'"_{name}"'.ljust(len(long)).encode())
    (tmp_path / "private.glb").write_bytes(data)
    issues = peers.gltf_report(tmp_path / "private.glb")["issues"]
    assert issues["numErrors"] == issues["numWarnings"] == 0


# Files that others published


@pytest.mark.parametrize("name", ["angel", "massa"])
def test_published_sog_files_are_read_as_splat_transform_reads_them(tmp_path: Path, real_data: Path, name: str):
    path = real_data / "splats" / f"{name}.sog"
    peers.splat_transform("-q", "-w", path, tmp_path / "peer.ply")
    check(load_splats(tmp_path / "peer.ply"), load_splats(path, up=Y_DOWN), SAME)


@pytest.mark.parametrize("ending", [".glb", ".gltf"])
def test_the_conformance_matrix_of_the_gltf_extension_is_read(real_data: Path, ending: str):
    """Fifteen splats in all component types, of a draft with logarithms of scales: their values are known."""
    path = real_data / "splats" / "khr_gaussian_splatting" / f"khr_conformance_matrix{ending}"
    splats = load_splats(path, up=Y_UP)
    assert len(splats) == 15 and splats.sh_degree == 3
    assert torch.equal(splats.means, torch.tensor([[1.0, 2, 3]]).expand(15, 3))
    assert torch.equal(splats.quats[:, 1:], torch.tensor([[1.0, 0, 0]]).expand(15, 3))  # byte, short and float
    logs = (
        [[0, 0.5, -0.5]] * 3 + [[0.2, -0.1, 0.7], [1, -2, 3], [1, 0, -1], [2, -3, 4], [1, 0, -1]] + [[0, 0.5, -0.5]] * 7
    )
    assert torch.allclose(splats.log_scales, torch.tensor(logs).float())
    opacities = [0.25] * 8 + [0.75, 64 / 255, 16384 / 65535] + [0.25] * 4
    assert torch.allclose(splats.opacities, torch.tensor(opacities), atol=1e-6)
    assert torch.allclose(splats.sh_dc[3], torch.tensor([0.1, 0.2, 0.3]))  # the one in sRGB
    assert not splats.sh_rest[:12].any()
    ratio = splats.sh_rest[14] / (torch.arange(1, 16)[:, None] + torch.tensor([0.1, 0.2, 0.3]))
    assert torch.allclose(ratio, ratio[:1].expand_as(ratio))  # linear light: each channel by its slope towards sRGB
    linear = 0.5 + 0.28209479 * torch.tensor([0.1, 0.2, 0.3]).double()
    assert torch.allclose(ratio[0].double(), 1.055 / 2.4 * linear ** (1 / 2.4 - 1), rtol=1e-5)
    assert torch.allclose(0.5 + 0.28209479 * splats.sh_dc[14].double(), 1.055 * linear ** (1 / 2.4) - 0.055)


def test_an_unknown_kernel_falls_back_to_ellipses_and_the_colours_of_points(real_data: Path, caplog):
    path = real_data / "splats" / "khr_gaussian_splatting" / "khr_extensible_fallback.gltf"
    splats = load_splats(path, up=Y_UP)
    assert len(splats) == 1 and splats.sh_degree == 0 and "customShape" in caplog.text
    linear = torch.tensor([0.28209, 0.56419, 0.84628]).double()
    assert torch.allclose(0.5 + 0.28209479 * splats.sh_dc[0].double(), 1.055 * linear ** (1 / 2.4) - 0.055, atol=1e-4)


def test_large_splats_come_first_in_a_splat_file(tmp_path: Path):
    source = tame_gaussians(100, 0)
    save_splats(tmp_path / "a.splat", source, up=Y_DOWN)
    assert torch.allclose(load_splats(tmp_path / "a.splat", up=Y_DOWN).means, source.means[importance_order(source)])
