"""USD meshes and splats: round trips, what other tools write, validators, and files that must not reach elsewhere."""

from __future__ import annotations

import struct
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from scene import sh
from scene.errors import InputError
from scene.formats import kind_of, load_mesh, load_splats, save_mesh, save_splats
from scene.formats import usd as usd_module
from scene.mesh import Material, Mesh
from tests.scene.formats.lettered import letter_sheet, lettered_block, picture_error
from tests.scene.formats.test_lettered_block import usd_complaints
from tests.scene.formats.test_meshes_and_splats import random_splats

pytest.importorskip("pxr", reason="usd-core is not installed: pip install 'maquette[usd]'")

Y_UP = (0.0, 1.0, 0.0)
MATERIAL = """
    def Material "m" {
        token outputs:surface.connect = </top/m/s.outputs:surface>
        def Shader "s" {
            uniform token info:id = "UsdPreviewSurface"
            color3f inputs:diffuseColor.connect = </top/m/t.outputs:rgb>
            token outputs:surface
        }
        def Shader "t" {
            uniform token info:id = "UsdUVTexture"
            asset inputs:file = @PICTURE@
            float2 inputs:st.connect = </top/m/r.outputs:result>
            float3 outputs:rgb
        }
        def Shader "r" {
            uniform token info:id = "UsdPrimvarReader_float2"
            string inputs:varname = "map1"
            float2 outputs:result
        }
    }
"""


def quad(body: str = "", *, head: str = 'upAxis = "Y"', mesh: str = "", points: str = "") -> str:
    """A .usda of a unit square, with more in its layer, below its root and in its mesh."""
    points = points or "(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0)"
    return f"""#usda 1.0
(
    defaultPrim = "top"
    {head}
)
def Xform "top" {{
    {body}
    def Mesh "square" (prepend apiSchemas = ["MaterialBindingAPI"]) {{
        int[] faceVertexCounts = [4]
        int[] faceVertexIndices = [0, 1, 2, 3]
        point3f[] points = [{points}]
        {mesh}
    }}
}}
"""


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


# Meshes


@pytest.mark.parametrize("ending", [".usdz", ".usda", ".usdc"])
def test_maps_and_colours_come_back(tmp_path: Path, ending: str):
    block = lettered_block()
    random = np.random.default_rng(0)
    normal = random.integers(0, 256, (16, 8, 3), dtype=np.uint8)
    maps = Material(letter_sheet(), normal, normal[..., 0].copy())
    textured = Mesh(block.vertices, block.faces, None, block.uvs, maps)
    colored = Mesh(block.vertices, block.faces, random.integers(0, 256, (12, 3), dtype=np.uint8))
    save_mesh(tmp_path / f"textured{ending}", textured, label={"green": True})
    save_mesh(tmp_path / f"colored{ending}", colored)
    back = load_mesh(tmp_path / f"textured{ending}").material
    assert back is not None and back.normal is not None and back.occlusion is not None
    assert (back.base_color == letter_sheet()).all() and (back.normal == normal).all()
    assert (back.occlusion == normal[..., 0]).all()
    colors = load_mesh(tmp_path / f"colored{ending}").colors
    assert colors is not None and (colors == colored.colors).all()
    assert usd_complaints(tmp_path / f"textured{ending}") == usd_complaints(tmp_path / f"colored{ending}") == []


def test_a_usdz_is_one_file_of_stored_parts_at_multiples_of_64_bytes(tmp_path: Path):
    save_mesh(tmp_path / "block.usdz", lettered_block())
    assert [path.name for path in tmp_path.iterdir()] == ["block.usdz"]
    data = (tmp_path / "block.usdz").read_bytes()
    with zipfile.ZipFile(tmp_path / "block.usdz") as archive:
        assert archive.namelist() == ["scene.usdc", "block_base_color.png"]
        for entry in archive.infolist():
            name, extra = struct.unpack("<HH", data[entry.header_offset + 26 : entry.header_offset + 30])
            assert entry.compress_type == 0 and (entry.header_offset + 30 + name + extra) % 64 == 0


def test_another_tool_s_stage_is_read_in_its_units_axes_and_transforms(tmp_path: Path):
    transform = "matrix4d xformOp:transform = ((0,1,0,0),(-1,0,0,0),(0,0,1,0),(5,6,7,1))"
    transform += '\n        uniform token[] xformOpOrder = ["xformOp:transform"]'
    text = quad(head='upAxis = "Z"\n    metersPerUnit = 0.01', mesh=transform)
    mesh = load_mesh(write(tmp_path / "cm.usda", text), up=(0, 0, 1))
    # In the file: a quarter turn about z, then moved; then centimetres to metres. Z is up on both sides.
    expected = np.array([[5, 6, 7], [5, 7, 7], [4, 7, 7], [4, 6, 7]]) / 100
    assert np.abs(mesh.vertices - expected).max() < 1e-8
    assert mesh.face_normals[:, 2].min() > 0


def test_left_handed_faces_are_turned_round_with_their_uvs(tmp_path: Path):
    uvs = 'texCoord2f[] primvars:st = [(0,0),(1,0),(1,1),(0,1)] (interpolation = "faceVarying")'
    text = quad(mesh=f'uniform token orientation = "leftHanded"\n{uvs}')
    mesh = load_mesh(write(tmp_path / "left.usda", text), up=Y_UP)
    assert (mesh.face_normals[:, 2] < 0).all() and mesh.uvs is not None
    assert np.abs(mesh.uvs - mesh.vertices[mesh.faces][..., :2]).max() < 1e-6


@pytest.mark.parametrize(
    ("interpolation", "values"),
    [
        ("faceVarying", "(0,0),(1,0),(1,1),(0,1)"),
        ("vertex", "(0,0),(1,0),(1,1),(0,1)"),
        ("varying", "(0,0),(1,0),(1,1),(0,1)"),
    ],
)
def test_uvs_of_any_name_and_interpolation_follow_the_material(tmp_path: Path, interpolation: str, values: str):
    picture = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    mesh_lines = f'texCoord2f[] primvars:map1 = [{values}] (interpolation = "{interpolation}")'
    mesh_lines += "\n        rel material:binding = </top/m>"
    text = quad(MATERIAL.replace("PICTURE", "@./a.png@"), mesh=mesh_lines).replace("@@", "@")
    mesh = load_mesh(write(tmp_path / "a.usda", text), up=Y_UP)
    assert mesh.material is not None and (mesh.material.base_color == picture).all()
    assert mesh.uvs is not None and np.abs(mesh.uvs - mesh.vertices[mesh.faces][..., :2]).max() < 1e-6


def test_subsets_of_faces_keep_their_own_colours(tmp_path: Path):
    Gf, Sdf, Usd, UsdGeom, UsdShade, Vt = usd_module.pxr("Gf", "Sdf", "Usd", "UsdGeom", "UsdShade", "Vt")

    stage = Usd.Stage.CreateNew(str(tmp_path / "two.usda"))
    UsdGeom.SetStageUpAxis(stage, "Y")
    mesh = UsdGeom.Mesh.Define(stage, "/mesh")
    mesh.CreatePointsAttr([(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0)])
    mesh.CreateFaceVertexCountsAttr([3, 3])
    mesh.CreateFaceVertexIndicesAttr([0, 1, 2, 0, 2, 3])
    for i, color in enumerate([(1, 0, 0), (0, 0, 1)]):
        material = UsdShade.Material.Define(stage, f"/m{i}")
        shader = UsdShade.Shader.Define(stage, f"/m{i}/s")
        shader.CreateIdAttr("UsdPreviewSurface")
        shader.CreateInput("diffuseColor", Sdf.ValueTypeNames.Color3f).Set(Gf.Vec3f(*color))
        material.CreateSurfaceOutput().ConnectToSource(shader.ConnectableAPI(), "surface")
        subset = UsdGeom.Subset.CreateGeomSubset(mesh, f"s{i}", "face", Vt.IntArray([i]), "materialBind")
        UsdShade.MaterialBindingAPI.Apply(subset.GetPrim()).Bind(material)
    stage.GetRootLayer().Save()
    back = load_mesh(tmp_path / "two.usda", up=Y_UP)
    assert back.material is not None and back.uvs is not None
    height, width = back.material.base_color.shape[:2]
    for face, color in ((0, [255, 0, 0]), (1, [0, 0, 255])):
        u, v = back.uvs[face].mean(axis=0)
        assert back.material.base_color[int((1 - v) * height), int(u * width)].tolist() == color


def test_what_is_hidden_is_not_read(tmp_path: Path):
    text = quad().replace(
        'def Mesh "square"', 'def Mesh "hidden" {\n token visibility = "invisible"\n}\n    def Mesh "square"'
    )
    assert len(load_mesh(write(tmp_path / "a.usda", text)).faces) == 2
    with pytest.raises(InputError, match="no meshes"):
        load_mesh(write(tmp_path / "b.usda", quad(mesh='token visibility = "invisible"')))


# Splats


@pytest.mark.parametrize(("ending", "degree"), [(".usdz", 0), (".usda", 1), (".usdc", 3)])
def test_splats_come_back_within_float_rounding(tmp_path: Path, ending: str, degree: int):
    splats = random_splats(50, degree)
    save_splats(tmp_path / f"scene{ending}", splats)
    assert kind_of(tmp_path / f"scene{ending}") == "splats"
    back = load_splats(tmp_path / f"scene{ending}")
    for name in ("means", "log_scales", "opacity_logits", "sh_dc", "sh_rest"):
        assert torch.allclose(getattr(back, name), getattr(splats, name), atol=1e-5), name
    alike = (back.quats * splats.quats).sum(1).abs()  # a quaternion and its negative turn alike
    assert torch.allclose(alike, torch.ones(50), atol=1e-6)


def test_usd_core_finds_linear_scales_and_opacities_in_the_prim_of_the_schema(tmp_path: Path):
    Usd, UsdVol = usd_module.pxr("Usd", "UsdVol")

    splats = random_splats(5, 2)
    save_splats(tmp_path / "scene.usdz", splats, up=Y_UP)
    stage = Usd.Stage.Open(str(tmp_path / "scene.usdz"))
    (prim,) = [prim for prim in stage.Traverse() if prim.IsA(UsdVol.ParticleField3DGaussianSplat)]
    field = UsdVol.ParticleField3DGaussianSplat(prim)
    assert np.array_equal(field.GetPositionsAttr().Get(), splats.means.numpy())
    assert np.allclose(field.GetScalesAttr().Get(), splats.log_scales.exp(), rtol=1e-6)
    assert np.allclose(field.GetOpacitiesAttr().Get(), splats.opacity_logits.sigmoid(), atol=1e-6)
    for got, wanted in zip(field.GetOrientationsAttr().Get(), splats.quats.tolist(), strict=True):
        assert (got.GetReal(), *got.GetImaginary()) == pytest.approx(wanted, abs=1e-6)
    assert field.GetRadianceSphericalHarmonicsDegreeAttr().Get() == 2
    coefficients = np.array(field.GetRadianceSphericalHarmonicsCoefficientsAttr().Get()).reshape(5, 9, 3)
    assert np.array_equal(coefficients, splats.sh_coeffs.numpy())
    low, high = np.array(field.GetExtentAttr().Get())
    assert (low < splats.means.numpy()).all() and (high > splats.means.numpy()).all()
    assert usd_complaints(tmp_path / "scene.usdz") == []


def test_splats_turn_with_the_stage_and_their_colours_too(tmp_path: Path):
    splats = random_splats(20, 3)
    save_splats(tmp_path / "scene.usda", splats, up=Y_UP)
    text = (tmp_path / "scene.usda").read_text().replace('upAxis = "Y"', 'upAxis = "Z"')
    back = load_splats(write(tmp_path / "z.usda", text), up=Y_UP)
    turn = torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])  # z of the file is up: y of the scene
    assert torch.allclose(back.means, splats.means @ turn.T, atol=1e-5)
    directions = torch.nn.functional.normalize(torch.randn(20, 3), dim=1)
    before = sh.evaluate(splats.sh_coeffs, directions)
    assert torch.allclose(sh.evaluate(back.sh_coeffs, directions @ turn.T), before, atol=1e-5)


SPLAT = """#usda 1.0
def ParticleField3DGaussianSplat "s" {
    point3f[] positions = [(0, 0, 0), (1, 1, 1)]
    BODY
}
"""


def test_values_that_are_let_out_have_the_defaults_of_the_schema(tmp_path: Path):
    splats = load_splats(write(tmp_path / "a.usda", SPLAT.replace("BODY", "float3[] scales = [(2, 2, 2)]")), up=Y_UP)
    assert len(splats) == 2 and splats.sh_degree == 3
    assert torch.allclose(splats.scales, torch.ones(2, 3))  # too few: the set is discarded
    assert splats.opacities.min() > 0.99 and not splats.sh_coeffs.any()
    half = SPLAT.replace("BODY", "half3[] scalesh = [(2, 2, 2), (4, 4, 4)]\n half[] opacitiesh = [0.5, 0.25]")
    splats = load_splats(write(tmp_path / "b.usda", half), up=Y_UP)
    assert torch.allclose(splats.scales[:, 0], torch.tensor([2.0, 4.0]))
    assert torch.allclose(splats.opacities, torch.tensor([0.5, 0.25]), atol=1e-6)


@pytest.mark.parametrize(
    "body",
    [
        "float3[] scales = [(nan, 1, 1), (1, 1, 1)]",
        "float3[] scales = [(-1, 1, 1), (1, 1, 1)]",
        "float[] opacities = [inf, 1]",
        "quatf[] orientations = [(0, 0, 0, 0), (1, 0, 0, 0)]",
        "uniform int radiance:sphericalHarmonicsDegree = 9",
        "uniform int radiance:sphericalHarmonicsDegree = -1",
        'float3 xformOp:scale = (1, 2, 3)\nuniform token[] xformOpOrder = ["xformOp:scale"]',
        'float3 xformOp:scale = (0, 0, 0)\nuniform token[] xformOpOrder = ["xformOp:scale"]',
    ],
)
def test_splats_that_cannot_be_drawn_are_refused(tmp_path: Path, body: str):
    with pytest.raises(InputError, match=r"bad\.usda"):
        load_splats(write(tmp_path / "bad.usda", SPLAT.replace("BODY", body)))


# Files that lie

SECRET = quad()
REACHING = {
    "a sublayer": quad(head="subLayers = [@../secret.usda@]"),
    "a reference": quad('def "a" (references = @../secret.usda@) {}'),
    "a reference inside the folder": quad('def "a" (references = @beside.usda@) {}'),
    "a payload": quad('def "a" (payload = @../secret.usda@) {}'),
    "a reference to the web": quad('def "a" (references = @https://example.org/a.usd@) {}'),
    "a reference in a variant": quad(
        'def "a" (\nvariants = {\nstring v = "x"\n}\nprepend variantSets = "v"\n) {\n'
        'variantSet "v" = {\n"x" (references = @../secret.usda@) {\n}\n}\n}'
    ),
    "value clips": quad(
        'def "a" (\nclips = {\ndictionary default = {\nasset[] assetPaths = [@../secret.usda@]\n}\n}\n) {}'
    ),
}


@pytest.mark.parametrize("how", REACHING)
def test_a_stage_that_reaches_for_other_files_is_refused(tmp_path: Path, how: str):
    folder = tmp_path / "model"
    folder.mkdir()
    write(tmp_path / "secret.usda", SECRET)
    write(folder / "beside.usda", SECRET)
    with pytest.raises(InputError, match=r"bad\.usda.*(other files|flatten)"):
        load_mesh(write(folder / "bad.usda", REACHING[how]))


def test_a_package_may_compose_its_own_layers_and_no_others(tmp_path: Path):
    pxr: Any = usd_module.pxr("Sdf")[0]
    for name, target in (("good", "part.usda"), ("bad", "../secret.usda")):
        write(tmp_path / "root.usda", f'#usda 1.0\n(defaultPrim = "a")\ndef "a" (references = @./{target}@) {{}}\n')
        write(tmp_path / "part.usda", quad())
        with pxr.ZipFileWriter.CreateNew(str(tmp_path / f"{name}.usdz")) as package:
            package.AddFile(str(tmp_path / "root.usda"), "root.usda")
            package.AddFile(str(tmp_path / "part.usda"), "part.usda")
    assert len(load_mesh(tmp_path / "good.usdz").faces) == 2
    with pytest.raises(InputError, match=r"bad\.usdz.*other files"):
        load_mesh(tmp_path / "bad.usdz")


@pytest.mark.parametrize("picture", ["../secret.png", "/etc/hostname", "https://example.org/a.png", "none.png"])
def test_pictures_elsewhere_are_not_read(tmp_path: Path, picture: str):
    folder = tmp_path / "model"
    folder.mkdir()
    Image.fromarray(letter_sheet()).save(tmp_path / "secret.png")
    mesh_lines = 'texCoord2f[] primvars:map1 = [(0,0),(1,0),(1,1),(0,1)] (interpolation = "vertex")'
    text = quad(MATERIAL.replace("@PICTURE@", f"@{picture}@"), mesh=mesh_lines + "\n rel material:binding = </top/m>")
    assert load_mesh(write(folder / "a.usda", text)).material is None


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.usda", b""),
        ("b.usda", b"#usda 1.0\ndef Mesh {"),
        ("not utf8.usda", quad().encode().replace(b"points", b"p\xffints")),
        ("c.usdc", b"PXR-USDC" + bytes(80)),
        ("d.usdz", b"PK\x03\x04" + bytes(60)),
        ("e.usda", quad().replace("[0, 1, 2, 3]", "[0, 1, 2, 4]").encode()),
        ("f.usda", quad().replace("[0, 1, 2, 3]", "[0, 1, 2, -1]").encode()),
        ("g.usda", quad().replace("[4]", "[5]").encode()),
        ("h.usda", quad().replace("[4]", "[2147483647]").encode()),
        ("i.usda", quad().replace("[4]", "[-4]").encode()),
        ("j.usda", quad(points="(nan, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0)").encode()),
        ("k.usda", b'#usda 1.0\ndef Xform "empty" {}'),
        ("l.usda", b"#usda 1.0\n" + b'def "a" {\n' * 2000),
    ],
)
def test_damaged_usd_is_refused_in_one_line(tmp_path: Path, name: str, content: bytes):
    (tmp_path / name).write_bytes(content)
    began = time.monotonic()
    with pytest.raises(InputError, match=name) as caught:
        load_mesh(tmp_path / name)
    assert "\n" not in str(caught.value) and time.monotonic() - began < 10


def test_a_compressed_package_is_refused(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "bad.usdz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.usda", quad())
    with pytest.raises(InputError, match=r"bad\.usdz"):
        load_mesh(tmp_path / "bad.usdz")


def test_a_crash_of_the_library_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for lines, message, patience in (
        ("import os; os.kill(os.getpid(), 11)", "broke down", 100),
        ("bytearray(1 << 40)", "broke down", 100),
        ("import time; time.sleep(60)", "too long", 5),
        ("import resource\nresource.setrlimit(resource.RLIMIT_CPU, (1, 2))\nwhile True: pass", "more than", 100),
    ):
        monkeypatch.setattr(usd_module, "PATIENCE", patience)  # of the clock: the machine may be busy
        monkeypatch.setattr(usd_module, "CHILD", write(tmp_path / "child.py", lines))
        monkeypatch.setattr(usd_module, "LEAST_SECONDS", 0.5)
        with pytest.raises(InputError, match=message):
            load_mesh(write(tmp_path / "a.usda", quad()))


def test_without_usd_core_the_error_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def absent(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(usd_module.importlib, "import_module", absent)
    for act in (lambda p: save_mesh(p, lettered_block()), lambda p: save_splats(p, random_splats(3, 0))):
        with pytest.raises(InputError, match=r"maquette\[usd\]"):
            act(tmp_path / "a.usdz")
    (tmp_path / "a.usda").write_text(quad())
    with pytest.raises(InputError, match=r"maquette\[usd\]"):
        load_mesh(tmp_path / "a.usda")


def test_the_letters_survive_a_chain_of_formats(tmp_path: Path):
    """From one format to the next, each read where the last was written: uvs and pictures end where they began."""
    mesh = lettered_block()
    for ending in (".usdz", ".glb", ".obj", ".ply", ".usda"):
        save_mesh(tmp_path / f"block{ending}", mesh, up=(0.3, -0.5, 0.7))
        mesh = load_mesh(tmp_path / f"block{ending}", up=(0.3, -0.5, 0.7))
    assert mesh.uvs is not None and mesh.material is not None
    assert picture_error(mesh.vertices[mesh.faces], mesh.uvs, mesh.material.base_color) < 0.1
