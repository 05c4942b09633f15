"""Reads a USD file in a process of its own: usd-core is a large C++ library, and a damaged file may crash or stall it.

Run as a script by `usd.py`: FILE OUT.npz SECONDS BYTES on the command line, the last two its limits of processor time
and memory. Arrays go to OUT, their description as JSON to the last line of the standard output; a refusal is
{"error": sentence}. Imports nothing of ours, so that it starts quickly and holds nothing worth stealing.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_PRIMS = 100_000
MAX_LAYERS = 256
FREE_POINTS, POINTS_PER_BYTE = 1 << 22, 4  # points and corners over all prims; a few instances repeat many
LAYERS = (".usd", ".usda", ".usdc")
SPLATS = "ParticleField3DGaussianSplat"


class Refused(Exception):
    """The file is sound USD but of a kind that is not read."""


def main() -> None:
    """Read the file named first on the command line, write arrays to the second."""
    path, out, seconds, memory = sys.argv[1:5]
    _limit(int(seconds), int(memory))
    arrays: dict[str, NDArray] = {}
    try:
        answer = _read(path, arrays)
    except Refused as error:
        answer = {"error": str(error)}
    except Exception as error:  # pxr's Tf.ErrorException and Boost.Python's errors have no narrower base
        answer = {"error": f"usd-core cannot read it ({_reason(error)})"}
    if "error" not in answer:
        np.savez(out, **arrays)  # type: ignore[arg-type]
    sys.stdout.write("\n" + json.dumps(answer))


def _reason(error: Exception) -> str:
    """What a user may read of "Error in 'function' at line 48 in file usd.cpp : 'the reason'"."""
    try:
        text = str(error)
    except UnicodeDecodeError:  # usd-core quotes the file
        return "it has text that is not UTF-8"
    return " ".join(text.rpartition(" : '")[2].strip().strip("'").split())[:300]


def _limit(seconds: int, memory: int) -> None:
    """Limits of this process, where the system has any."""
    try:
        import resource
    except ImportError:
        return
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))  # the first ends by a signal that says why
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def pxr(*names: str) -> list[Any]:
    """Modules of usd-core by name, whose contents no type checker sees."""
    return [importlib.import_module(f"pxr.{name}") for name in names]


def _read(path: str, arrays: dict[str, NDArray]) -> dict[str, Any]:
    Sdf, Usd, UsdGeom = pxr("Sdf", "Usd", "UsdGeom")

    _check_layers(path)
    layer = Sdf.Layer.FindOrOpen(path)
    if layer is None:
        raise Refused("usd-core cannot read it")
    stage = Usd.Stage.Open(layer)
    reader = _Reader(arrays, max(FREE_POINTS, POINTS_PER_BYTE * Path(path).stat().st_size))
    for count, prim in enumerate(Usd.PrimRange(stage.GetPseudoRoot(), Usd.TraverseInstanceProxies())):
        if count > MAX_PRIMS:
            raise Refused(f"it has more than {MAX_PRIMS:,} prims")
        if prim.HasMetadata("clips"):
            raise Refused(f"{prim.GetPath()} has value clips, whose data lie in other files; flatten it")
        reader.add(prim)
    return {
        "up": str(UsdGeom.GetStageUpAxis(stage)),
        # usd-core takes silence for centimetres; those who say nothing mean nothing.
        "metres": float(UsdGeom.GetStageMetersPerUnit(stage)) if UsdGeom.StageHasAuthoredMetersPerUnit(stage) else 1.0,
        "meshes": reader.meshes,
        "splats": reader.splats,
        "surfaces": reader.surfaces,
    }


def _check_layers(path: str) -> None:
    """Raise Refused where a layer composes files that are not inside the package; a single layer composes none."""
    (Sdf,) = pxr("Sdf")

    names: list[str | None] = [None]
    if path.lower().endswith(".usdz"):
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.lower().endswith(LAYERS)]
            if any(entry.compress_type or entry.flag_bits & 1 for entry in archive.infolist()):
                raise Refused("it has compressed or encrypted parts, which USDZ forbids")
        if not names or len(names) > MAX_LAYERS:
            raise Refused(f"it has {len(names)} layers; expected 1 to {MAX_LAYERS}")
    for name in names:
        layer = Sdf.Layer.FindOrOpen(path if name is None else f"{path}[{name}]")
        if layer is None:
            raise Refused("usd-core cannot read it")
        for found in layer.GetCompositionAssetDependencies():
            if name is None or not _inside(found):
                raise Refused(f"it is composed of other files ({found[:80]!r}); flatten it (usdcat --flatten) first")


def _inside(asset: str) -> bool:
    """Whether an asset path stays in its package."""
    return not (asset[:1] in "/\\" or re.match(r"[A-Za-z][\w+.-]*:", asset) or ".." in re.split(r"[/\\]", asset))


class _Reader:
    def __init__(self, arrays: dict[str, NDArray], most_points: int) -> None:
        (UsdGeom,) = pxr("UsdGeom")

        self.arrays = arrays
        self.meshes: list[dict[str, Any]] = []
        self.splats: list[dict[str, Any]] = []
        self.surfaces: list[dict[str, Any]] = [{}]
        self._points_left = most_points
        self._known: dict[str, int] = {"": 0}
        self._transforms = UsdGeom.XformCache()

    def add(self, prim: Any) -> None:
        (UsdGeom,) = pxr("UsdGeom")

        splats = prim.GetTypeName() == SPLATS
        if not splats and not prim.IsA(UsdGeom.Mesh):
            return
        seen = UsdGeom.Imageable(prim)
        if seen.ComputeVisibility() == "invisible" or seen.ComputePurpose() in ("proxy", "guide"):
            return
        world = np.array(self._transforms.GetLocalToWorldTransform(prim), np.float64).T
        if splats:
            self._add_splats(prim, world)
        else:
            self._add_mesh(prim, world)

    def _keep(self, name: str, value: Any, kind: str, width: int = 1) -> bool:
        """Keep an attribute's array under a name; False when it has none."""
        if value is None:
            return False
        array = np.asarray(value, dtype=kind)
        self.arrays[name] = array.reshape(-1, width) if width > 1 else array.reshape(-1)
        return True

    def _count(self, points: int) -> None:
        self._points_left -= points
        if self._points_left < 0:
            raise Refused("its instances repeat more points than a file of its size should hold")

    def _add_splats(self, prim: Any, world: NDArray[np.float64]) -> None:
        key = f"splats{len(self.splats)}"
        have = []
        for name, width in (("positions", 3), ("orientations", 4), ("scales", 3), ("opacities", 1)):
            value = _value(prim, name)
            if value is None:
                value = _value(prim, name + "h")  # the half-precision twin
            if self._keep(f"{key}.{name}", value, "f4", width):
                have.append(name)
        if "positions" not in have:
            return
        self._count(len(self.arrays[f"{key}.positions"]))
        coefficients = _value(prim, "radiance:sphericalHarmonicsCoefficients")
        if coefficients is None:
            coefficients = _value(prim, "radiance:sphericalHarmonicsCoefficientsh")
        if self._keep(f"{key}.harmonics", coefficients, "f4", 3):
            have.append("harmonics")
        self._keep(f"{key}.world", world, "f8", 4)
        degree = _value(prim, "radiance:sphericalHarmonicsDegree")
        self.splats.append({"key": key, "have": have, "degree": 3 if degree is None else int(degree)})

    def _add_mesh(self, prim: Any, world: NDArray[np.float64]) -> None:
        (UsdGeom,) = pxr("UsdGeom")

        mesh, key = UsdGeom.Mesh(prim), f"mesh{len(self.meshes)}"
        if not self._keep(f"{key}.points", _value(prim, "points"), "f8", 3):
            return
        self._keep(f"{key}.counts", _value(prim, "faceVertexCounts") or (), "i8")
        self._keep(f"{key}.corners", _value(prim, "faceVertexIndices") or (), "i8")
        self._count(len(self.arrays[f"{key}.points"]) + len(self.arrays[f"{key}.corners"]))
        self._keep(f"{key}.world", world, "f8", 4)
        found: dict[str, Any] = {"key": key, "left_handed": mesh.GetOrientationAttr().Get() == "leftHanded"}
        materials, uv_set = self._materials(prim, len(self.arrays[f"{key}.counts"]))
        self.arrays[f"{key}.materials"] = materials
        for name, primvar, width in (("uvs", uv_set, 2), ("colors", "displayColor", 3)):
            at = UsdGeom.PrimvarsAPI(prim).FindPrimvarWithInheritance(primvar)
            value = at.ComputeFlattened(_time(at.GetAttr())) if at and at.HasValue() else None
            if value is not None and self._keep(f"{key}.{name}", value, "f4", width):
                found[name] = str(at.GetInterpolation())
        self.meshes.append(found)

    def _materials(self, prim: Any, faces: int) -> tuple[NDArray[np.int64], str]:
        """Number of the surface of each polygon, and the name of the uv set they go by."""
        UsdGeom, UsdShade = pxr("UsdGeom", "UsdShade")

        number, uv_set = self._surface(UsdShade.MaterialBindingAPI(prim).ComputeBoundMaterial()[0])
        materials = np.full(faces, number, np.int64)
        for subset in UsdGeom.Subset.GetAllGeomSubsets(UsdGeom.Imageable(prim)):
            if subset.GetElementTypeAttr().Get() == "face":
                part = np.asarray(_value(subset.GetPrim(), "indices") or (), np.int64)
                own, own_set = self._surface(UsdShade.MaterialBindingAPI(subset.GetPrim()).ComputeBoundMaterial()[0])
                materials[part[(part >= 0) & (part < faces)]] = own
                uv_set = own_set or uv_set
        return materials, uv_set or "st"

    def _surface(self, material: Any) -> tuple[int, str]:
        """Number of a material among `surfaces`, and the name of its uv set ("" for none)."""
        (UsdShade,) = pxr("UsdShade")

        key = str(material.GetPath()) if material else ""
        if key not in self._known:
            surface: dict[str, Any] = {}
            shader = material.ComputeSurfaceSource()[0]
            if shader and shader.GetIdAttr().Get() == "UsdPreviewSurface":
                for slot, name in (("diffuseColor", "base_color"), ("normal", "normal"), ("occlusion", "occlusion")):
                    given = shader.GetInput(slot)
                    if not given:
                        continue
                    sources = given.GetConnectedSources()[0]
                    if sources:
                        surface |= _texture(UsdShade.Shader(sources[0].source.GetPrim()), name)
                    elif slot == "diffuseColor" and given.Get() is not None:
                        surface["factor"] = [float(v) for v in given.Get()]
            self._known[key] = len(self.surfaces)
            self.surfaces.append(surface)
        number = self._known[key]
        return number, self.surfaces[number].get("uv_set", "")


def _texture(shader: Any, name: str) -> dict[str, Any]:
    """Where the picture of a UsdUVTexture lies, as the file names it and as it was found, and its uv set."""
    if not shader or shader.GetIdAttr().Get() != "UsdUVTexture" or not shader.GetInput("file"):
        return {}
    asset = shader.GetInput("file").Get()
    if asset is None:
        return {}
    found: dict[str, Any] = {name: [str(asset.path), str(asset.resolvedPath)]}
    reader = shader.GetInput("st")
    sources = reader.GetConnectedSources()[0] if reader else ()
    if sources:
        named = sources[0].source.GetInput("varname")
        if named and named.Get():
            found["uv_set"] = str(named.Get())
    return found


def _time(attribute: Any) -> Any:
    """The default value's time, or else that of the first sample."""
    (Usd,) = pxr("Usd")

    if attribute.Get() is None and attribute.GetNumTimeSamples():
        return attribute.GetTimeSamples()[0]
    return Usd.TimeCode.Default()


def _value(prim: Any, name: str) -> Any:
    attribute = prim.GetAttribute(name)
    return attribute.Get(_time(attribute)) if attribute else None


if __name__ == "__main__":
    main()
