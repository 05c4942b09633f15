"""USD (.usdz, .usda, .usdc), by usd-core (extra `usd`): textured meshes in and out, and stages for other things.

Our stages stand +Y up with metersPerUnit 1. Reading goes through a process of its own, `usd_child.py`, with limits.
"""

from __future__ import annotations

import importlib
import json
import math
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scene.cameras import Camera
from scene.errors import InputError
from scene.files import replacing, write_errors
from scene.formats.glb import joined
from scene.formats.materials import Surface, dressed, linear_to_srgb, srgb_to_linear
from scene.formats.pictures import MAX_PICTURE_BYTES, PicturesBeside, encode_base_color, encode_png, picture_path, rgb
from scene.formats.polygons import fans
from scene.formats.welding import weld_seams
from scene.mesh import Mesh
from scene.untrusted import (
    MAX_FILE_BYTES,
    MAX_TEXTURE_PIXELS,
    check_size,
    decode_picture,
    open_archive,
    open_regular,
    read_entry,
)

ENDINGS = (".usdz", ".usda", ".usdc", ".usd")
CHILD = Path(__file__).with_name("usd_child.py")
LEAST_SECONDS, BYTES_PER_SECOND = 3.0, 2 << 20  # processor time of the reading process, which starts in half a second
PATIENCE = 5.0  # times that on the clock: the machine may be busy
LEAST_MEMORY, MEMORY_PER_BYTE = 2 << 30, 16  # address space; usd-core alone maps one GiB
APERTURE = 36.0  # tenths of a unit, as the width of 35 mm film; only its ratio to the focal length counts


def pxr(*names: str) -> list[Any]:
    """Modules of usd-core by name, whose contents no type checker sees.

    Raises InputError telling how to install it when it is absent.
    """
    try:
        return [importlib.import_module(f"pxr.{name}") for name in names]
    except ImportError as error:
        raise InputError("USD files need the usd-core library: pip install 'maquette[usd]'") from error


def write_stage(path: Path, fill: Callable[[Any], None], pictures: Mapping[str, bytes] | None = None) -> None:
    """Write a stage that `fill` defines below its default prim /maquette; atomic.

    pictures: by asset path; they go into a .usdz, and beside files of other kinds.
    """
    Sdf, Tf, Usd, UsdGeom = pxr("Sdf", "Tf", "Usd", "UsdGeom")

    pictures = pictures or {}
    with tempfile.TemporaryDirectory(prefix="maquette_usd_") as name:
        folder = Path(name)
        layer = folder / ("scene.usda" if path.suffix.lower() == ".usda" else "scene.usdc")
        stage = Usd.Stage.CreateNew(str(layer))
        root = UsdGeom.Xform.Define(stage, "/maquette")
        Usd.ModelAPI(root.GetPrim()).SetKind("component")
        stage.SetDefaultPrim(root.GetPrim())
        UsdGeom.SetStageUpAxis(stage, UsdGeom.Tokens.y)
        UsdGeom.SetStageMetersPerUnit(stage, 1.0)
        stage.GetRootLayer().documentation = "Maquette"
        fill(stage)
        stage.GetRootLayer().Save()
        done = layer
        with write_errors(path, "write the USD file"):
            if path.suffix.lower() == ".usdz":
                done = folder / "package.usdz"
                try:
                    with Sdf.ZipFileWriter.CreateNew(str(done)) as package:
                        package.AddFile(str(layer), layer.name)
                        for asset, data in pictures.items():
                            (folder / asset).write_bytes(data)
                            package.AddFile(str(folder / asset), asset)
                except Tf.ErrorException as error:
                    raise InputError(f"could not write {path}: {error}") from error
            else:
                for asset, data in pictures.items():
                    with replacing(path.with_name(asset)) as file:
                        file.write(data)
            with replacing(path) as file:
                file.write(done.read_bytes())


def write_usd_mesh(
    path: Path,
    mesh: Mesh,
    *,
    double_sided: bool,
    cameras: Mapping[str, tuple[Camera, NDArray[np.float64]]] | None = None,
    label: Mapping[str, Any] | None = None,
) -> None:
    """Write a mesh that already stands +Y up, with a UsdPreviewSurface of its texture or of its vertex colours.

    uvs are the primvar `st` of each corner, vertex colours `displayColor` in linear light.  cameras: by name, with the
    pose [4, 4] in the file's axes.  label: goes into the root layer's customLayerData as JSON.
    """
    material = mesh.material
    assets: dict[str, str] = {}
    pictures: dict[str, bytes] = {}
    if material is not None:
        data, media_type = encode_base_color(material.base_color)
        encoded = [("base_color", data, ".jpg" if media_type == "image/jpeg" else ".png")]
        for name, picture in (("normal", material.normal), ("occlusion", material.occlusion)):
            if picture is not None:
                encoded.append((name, encode_png(picture), ".png"))
        for name, data, suffix in encoded:
            assets[name] = picture_path(path, name, suffix).name
            pictures[assets[name]] = data

    def fill(stage: Any) -> None:
        if label:
            stage.GetRootLayer().customLayerData = {"maquette": json.dumps(dict(label))}
        prim = _define_mesh(stage, mesh, double_sided)
        if assets or mesh.colors is not None:
            _define_material(stage, prim, assets)
        for name, (camera, pose) in (cameras or {}).items():
            _define_camera(stage, name, camera, pose, mesh.diagonal())

    write_stage(path, fill, pictures)


def _define_mesh(stage: Any, mesh: Mesh, double_sided: bool) -> Any:
    Sdf, UsdGeom, Vt = pxr("Sdf", "UsdGeom", "Vt")

    shape = UsdGeom.Mesh.Define(stage, "/maquette/mesh")
    points = mesh.vertices.astype(np.float32)
    shape.CreatePointsAttr(Vt.Vec3fArray.FromNumpy(points))
    shape.CreateFaceVertexCountsAttr(Vt.IntArray.FromNumpy(np.full(len(mesh.faces), 3, np.int32)))
    shape.CreateFaceVertexIndicesAttr(Vt.IntArray.FromNumpy(mesh.faces.reshape(-1)))
    shape.CreateSubdivisionSchemeAttr("none")
    shape.CreateOrientationAttr("rightHanded")
    shape.CreateDoubleSidedAttr(double_sided)
    shape.CreateExtentAttr(Vt.Vec3fArray.FromNumpy(np.stack([points.min(axis=0), points.max(axis=0)])))
    shape.CreateNormalsAttr(Vt.Vec3fArray.FromNumpy(mesh.vertex_normals.astype(np.float32)))
    shape.SetNormalsInterpolation("vertex")
    primvars = UsdGeom.PrimvarsAPI(shape)
    if mesh.uvs is not None:
        places, index = np.unique(mesh.uvs.reshape(-1, 2), axis=0, return_inverse=True)
        uvs = primvars.CreatePrimvar("st", Sdf.ValueTypeNames.TexCoord2fArray, "faceVarying")
        uvs.Set(Vt.Vec2fArray.FromNumpy(places))
        uvs.SetIndices(Vt.IntArray.FromNumpy(index.reshape(-1).astype(np.int32)))
    if mesh.colors is not None and mesh.material is None:
        colors = shape.CreateDisplayColorPrimvar("vertex")
        colors.Set(Vt.Vec3fArray.FromNumpy(srgb_to_linear(mesh.colors)))
    return shape.GetPrim()


def _define_material(stage: Any, prim: Any, assets: Mapping[str, str]) -> None:
    """A rough UsdPreviewSurface with these pictures, or else in the colours of the vertices, bound to the mesh."""
    Gf, Sdf, UsdShade = pxr("Gf", "Sdf", "UsdShade")

    material = UsdShade.Material.Define(stage, "/maquette/material")
    surface = UsdShade.Shader.Define(stage, "/maquette/material/surface")
    surface.CreateIdAttr("UsdPreviewSurface")
    surface.CreateInput("roughness", Sdf.ValueTypeNames.Float).Set(1.0)
    surface.CreateInput("metallic", Sdf.ValueTypeNames.Float).Set(0.0)
    material.CreateSurfaceOutput().ConnectToSource(surface.ConnectableAPI(), "surface")
    kinds = Sdf.ValueTypeNames
    reader = UsdShade.Shader.Define(stage, "/maquette/material/reader")
    varname = reader.CreateInput("varname", kinds.String)
    reader.CreateIdAttr("UsdPrimvarReader_float2" if assets else "UsdPrimvarReader_float3")
    varname.Set("st" if assets else "displayColor")
    found = reader.CreateOutput("result", kinds.Float2 if assets else kinds.Float3)
    if not assets:
        surface.CreateInput("diffuseColor", kinds.Color3f).ConnectToSource(found)
    slots = {
        "base_color": ("diffuseColor", kinds.Color3f, "rgb", kinds.Float3, "sRGB"),
        "normal": ("normal", kinds.Normal3f, "rgb", kinds.Float3, "raw"),
        "occlusion": ("occlusion", kinds.Float, "r", kinds.Float, "raw"),
    }
    for name, asset in assets.items():
        slot, kind, channels, output, space = slots[name]
        texture = UsdShade.Shader.Define(stage, f"/maquette/material/{name}")
        texture.CreateIdAttr("UsdUVTexture")
        texture.CreateInput("file", kinds.Asset).Set(f"./{asset}")
        texture.CreateInput("st", kinds.Float2).ConnectToSource(found)
        texture.CreateInput("wrapS", kinds.Token).Set("repeat")
        texture.CreateInput("wrapT", kinds.Token).Set("repeat")
        texture.CreateInput("sourceColorSpace", kinds.Token).Set(space)
        if name == "normal":  # bytes 0 to 1 stand for -1 to 1
            texture.CreateInput("scale", kinds.Float4).Set(Gf.Vec4f(2, 2, 2, 1))
            texture.CreateInput("bias", kinds.Float4).Set(Gf.Vec4f(-1, -1, -1, 0))
        surface.CreateInput(slot, kind).ConnectToSource(texture.CreateOutput(channels, output))
    UsdShade.MaterialBindingAPI.Apply(prim).Bind(material)


def _define_camera(stage: Any, name: str, camera: Camera, pose: NDArray[np.float64], size: float) -> None:
    """A USD camera looks along -Z with +Y up, ours along +Z with +Y down; aperture offsets hold the principal point."""
    Gf, Tf, UsdGeom = pxr("Gf", "Tf", "UsdGeom")

    fx, fy, cx, cy = (float(camera.K[i, j]) for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
    lens = UsdGeom.Camera.Define(stage, f"/maquette/cameras/{Tf.MakeValidIdentifier(name)}")
    focal = APERTURE * fx / camera.width
    lens.CreateFocalLengthAttr(focal)
    lens.CreateHorizontalApertureAttr(APERTURE)
    lens.CreateVerticalApertureAttr(focal * camera.height / fy)
    lens.CreateHorizontalApertureOffsetAttr(focal * (camera.width / 2 - cx) / fx)
    lens.CreateVerticalApertureOffsetAttr(-focal * (camera.height / 2 - cy) / fy)
    lens.CreateClippingRangeAttr(Gf.Vec2f(1e-3 * size, 1e3 * size))
    matrix = (pose @ np.diag([1.0, -1.0, -1.0, 1.0])).T
    UsdGeom.Xformable(lens).AddTransformOp().Set(Gf.Matrix4d(*matrix.reshape(-1).tolist()))


def read_stage(path: Path) -> tuple[dict[str, Any], dict[str, NDArray]]:
    """What `usd_child.py` finds in a file: its description and its arrays.

    Raises InputError when the file is damaged, is composed of other files, or takes too much time or memory.
    """
    pxr("Usd")
    with open_regular(path) as file:
        size = check_size(file, MAX_FILE_BYTES, path)
    seconds = LEAST_SECONDS + size / BYTES_PER_SECOND
    with tempfile.TemporaryDirectory(prefix="maquette_usd_") as folder:
        out = Path(folder) / "arrays.npz"
        limits = [str(math.ceil(seconds)), str(LEAST_MEMORY + MEMORY_PER_BYTE * size)]
        # -P: nothing beside the script can pass for a library.
        command = [sys.executable, "-P", str(CHILD), str(path.absolute()), str(out), *limits]
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                timeout=PATIENCE * seconds,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise InputError(f"{path} took usd-core too long; export it again, flattened") from error
        if done.returncode == -getattr(signal, "SIGXCPU", 0):
            raise InputError(f"{path} took usd-core more than {seconds:.0f} s; export it again, flattened")
        try:
            answer = json.loads(done.stdout.rpartition(b"\n")[2])
        except ValueError:
            answer = {"error": f"usd-core broke down on it (code {done.returncode}); export it again"}
        if "error" in answer:
            raise InputError(f"{path} is not a USD file that can be read: {answer['error']}")
        with np.load(out, allow_pickle=False) as arrays:
            return answer, {name: arrays[name] for name in arrays.files}


def file_world(answer: Mapping[str, Any]) -> NDArray[np.float64]:
    """[4, 4] from the stage's units and axes to metres that stand +Y up."""
    metres = float(answer["metres"])
    matrix = np.eye(4)
    matrix[:3, :3] *= metres if np.isfinite(metres) and metres > 0 else 1.0
    if answer["up"] == "Z":
        matrix[:3, :3] = matrix[:3, :3] @ [[1, 0, 0], [0, 0, 1], [0, -1, 0]]
    return matrix


def read_usd_mesh(path: Path) -> Mesh:
    """All visible meshes of a USD file in one, in metres, +Y up; subdivision surfaces as cages, split seams joined.

    Raises InputError as `read_stage` does, ValueError for geometry that does not fit together.
    """
    answer, arrays = read_stage(path)
    world = file_world(answer)
    parts, materials = [], []
    for found in answer["meshes"]:
        part, material = _mesh(found, arrays)
        if len(part.faces):
            parts.append(part.transformed(world @ arrays[f"{found['key']}.world"]))
            materials.append(material)
    if not parts:
        raise InputError(f"{path} has no meshes")
    pictures = _Pictures(path)
    surfaces = [
        Surface(
            tuple(np.clip(np.nan_to_num(s.get("factor", (1.0, 1.0, 1.0))), 0, 1).tolist()),
            pictures.get(s.get("base_color")),
            pictures.get(s.get("normal")),
            None if (occlusion := pictures.get(s.get("occlusion"))) is None else occlusion[..., 0].copy(),
        )
        for s in answer["surfaces"]
    ]
    return dressed(joined(parts), np.concatenate(materials), surfaces)


def _mesh(found: Mapping[str, Any], arrays: Mapping[str, NDArray]) -> tuple[Mesh, NDArray[np.int64]]:
    """One mesh in its own axes, without material, and the surface of each triangle."""
    key = found["key"]
    points, counts, corners = (arrays[f"{key}.{name}"] for name in ("points", "counts", "corners"))
    if (counts < 0).any() or counts.sum() != len(corners):
        raise ValueError(f"faces of {counts.sum()} corners with {len(corners)} indices")
    triangles = fans(counts, np.arange(len(corners)), len(corners))
    faces = fans(counts, corners, len(points))
    polygon = np.repeat(np.arange(len(counts)), np.maximum(counts - 2, 0))
    uvs = colors = None
    if "uvs" in found:
        at = _by_corner(arrays[f"{key}.uvs"], found["uvs"], counts, corners, len(points))
        uvs = None if at is None else np.nan_to_num(at, posinf=0, neginf=0)[triangles]
    if "colors" in found:
        at = _by_corner(arrays[f"{key}.colors"], found["colors"], counts, corners, len(points))
        if at is not None:
            light = np.ones((len(points), 3), np.float32)
            light[corners] = at
            colors = linear_to_srgb(light)
    if found["left_handed"]:
        faces, uvs = faces[:, ::-1], None if uvs is None else uvs[:, ::-1]
    return weld_seams(Mesh(points, faces, colors, uvs)), arrays[f"{key}.materials"][polygon]


def _by_corner(
    values: NDArray, interpolation: str, counts: NDArray[np.int64], corners: NDArray[np.int64], points: int
) -> NDArray | None:
    """A primvar's value at each corner of each polygon; None where their number does not fit."""
    if interpolation in ("vertex", "varying") and len(values) == points:
        return values[corners]
    if interpolation == "faceVarying" and len(values) == len(corners):
        return values
    if interpolation == "uniform" and len(values) == len(counts):
        return np.repeat(values, counts, axis=0)
    if interpolation == "constant" and len(values) >= 1:
        return np.repeat(values[:1], len(corners), axis=0)
    return None


class _Pictures:
    """Pictures by the paths that a stage gives them: inside a .usdz, else beside the file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._beside = PicturesBeside(path)
        self._known: dict[str, NDArray[np.uint8]] = {}
        self._pixels = MAX_TEXTURE_PIXELS

    def get(self, asset: list[str] | None) -> NDArray[np.uint8] | None:
        """[H, W, 3] or None; asset: as authored, and as usd-core resolved it."""
        if asset is None:
            return None
        authored, resolved = asset
        if self._path.suffix.lower() != ".usdz":
            return self._beside.get(authored)
        entry = resolved.rpartition("[")[2].removesuffix("]") or authored.removeprefix("./")
        if entry not in self._known:
            with open_archive(self._path) as archive:
                data = read_entry(archive, entry, MAX_PICTURE_BYTES, str(self._path))
            picture = rgb(decode_picture(data, f"{self._path}: {entry}", most_pixels=self._pixels))
            self._pixels -= picture.shape[0] * picture.shape[1]
            self._known[entry] = picture
        return self._known[entry]
