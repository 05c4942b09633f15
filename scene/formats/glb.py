"""Triangle meshes as glTF 2.0: one textured or coloured mesh out as .glb; any triangles in, from .glb and .gltf.

Units and axes are glTF's own here (+Y up, colours linear, v down); `scene/formats` turns the scene to them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scene.cameras import Camera
from scene.formats.gltf import ELEMENT_ARRAY_BUFFER, GlbWriter, GltfFile, natural, sound
from scene.formats.materials import Surface, dressed, linear_to_srgb, srgb_to_linear
from scene.formats.pictures import encode_base_color, encode_png, rgb
from scene.formats.welding import weld_seams
from scene.mesh import Material, Mesh, select_faces
from scene.tangents import tangent_frames
from scene.untrusted import MAX_TEXTURE_PIXELS, decode_picture

MAX_REPEATED_CORNERS = 1 << 22  # a few nodes may repeat one mesh without end; about 200 MB
LINEAR, LINEAR_MIPMAP_LINEAR, REPEAT = 9729, 9987, 10497


def write_glb(
    path: Path,
    mesh: Mesh,
    *,
    double_sided: bool,
    cameras: Mapping[str, tuple[Camera, NDArray[np.float64]]] | None = None,
    label: Mapping[str, Any] | None = None,
) -> None:
    """Write a mesh that already stands +Y up; rough, not metallic. Atomic.

    A material lies in it as pictures, its vertices split where a corner's uv differs, with the smooth normals of the
    unsplit mesh, so that seams do not show; without a material, vertex colours go as linear floats. A normal map
    comes with the tangents it was made for (`scene/tangents.py`).
    cameras: by name, each with its pose [4, 4] in the file's axes; a principal point off the centre goes to `extras`.
    label: what `asset.extras` says of the mesh.
    """
    out = GlbWriter()
    vertex_of, faces = np.arange(len(mesh.vertices)), mesh.faces
    uvs = tangents = None
    if mesh.uvs is not None:
        frames = tangent_frames(mesh) if mesh.material is not None and mesh.material.normal is not None else None
        corners, faces = split_corners(mesh, None if frames is None else frames.signs)
        vertex_of = mesh.faces.reshape(-1)[corners]
        uvs = mesh.uvs.reshape(-1, 2)[corners] * [1, -1] + [0, 1]
        if frames is not None:
            tangents = np.concatenate([frames.tangents.reshape(-1, 3), np.repeat(frames.signs, 3)[:, None]], axis=1)
            tangents = tangents[corners].astype("<f4")
            tangents[~np.any(tangents[:, :3], axis=1), 0] = 1  # as with normals: zero is not valid
    normals = mesh.vertex_normals[vertex_of].astype("<f4")
    # A zero normal is not valid glTF; any unit vector does for a vertex without an area.
    normals[~np.any(normals, axis=1)] = (0, 1, 0)
    attributes = {"POSITION": out.array(mesh.vertices[vertex_of].astype("<f4"), bounds=True)}
    attributes["NORMAL"] = out.array(normals)
    if tangents is not None:
        attributes["TANGENT"] = out.array(tangents)
    if uvs is not None:
        attributes["TEXCOORD_0"] = out.array(uvs.astype("<f4"))
    if mesh.colors is not None and mesh.material is None:  # with a texture they would darken it
        attributes["COLOR_0"] = out.array(srgb_to_linear(mesh.colors[vertex_of]).astype("<f4"))
    indices = out.array(faces.reshape(-1).astype("<u4"), ELEMENT_ARRAY_BUFFER)
    surface, pictures = _material(out, mesh.material)
    if double_sided:
        surface["doubleSided"] = True
    asset: dict[str, Any] = {"version": "2.0", "generator": "Maquette"}
    document: dict[str, Any] = {
        "asset": asset | {"extras": dict(label)} if label else asset,
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"name": "mesh", "mesh": 0}],
        "meshes": [{"primitives": [{"attributes": attributes, "indices": indices, "material": 0, "mode": 4}]}],
        "materials": [surface],
        **pictures,
    }
    if cameras:
        _add_cameras(document, cameras, mesh.diagonal())
    out.write(path, document)


def split_corners(mesh: Mesh, signs: NDArray[np.float64] | None = None) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """For formats with one uv per vertex: the corner (of 3F) that each new vertex is taken from, and faces [F, 3].

    signs: [F] of the faces' tangent frames; vertices are split where they differ, too.
    """
    assert mesh.uvs is not None
    uvs = (mesh.uvs.reshape(-1, 2) + np.float32(0)).astype("<f4")  # -0.0 is 0.0
    columns = [mesh.faces.reshape(-1), *uvs.view("<i4").T]
    if signs is not None:
        columns.append(np.repeat(signs, 3).astype(np.int32))
    order = np.lexsort(columns[::-1])
    keys = np.stack(columns, axis=1)[order]
    new = np.concatenate([[True], np.any(keys[1:] != keys[:-1], axis=1)])
    number = np.empty(len(keys), np.int32)
    number[order] = np.cumsum(new) - 1
    return order[new], number.reshape(-1, 3)


def _material(out: GlbWriter, material: Material | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """The glTF material, and the document's images, textures and samplers that it refers to."""
    rough: dict[str, Any] = {"metallicFactor": 0.0, "roughnessFactor": 1.0}
    surface: dict[str, Any] = {"pbrMetallicRoughness": rough}
    if material is None:
        return surface, {}
    images: list[dict[str, Any]] = []

    def texture(name: str, data: bytes, media_type: str) -> dict[str, Any]:
        images.append({"name": name, "bufferView": out.view(data), "mimeType": media_type})
        return {"index": len(images) - 1}

    rough["baseColorTexture"] = texture("base_color", *encode_base_color(material.base_color))
    if material.normal is not None:
        surface["normalTexture"] = texture("normal", encode_png(material.normal), "image/png")
    if material.occlusion is not None:
        surface["occlusionTexture"] = texture("occlusion", encode_png(material.occlusion), "image/png")
    sampler = {"magFilter": LINEAR, "minFilter": LINEAR_MIPMAP_LINEAR, "wrapS": REPEAT, "wrapT": REPEAT}
    textures = [{"sampler": 0, "source": i} for i in range(len(images))]
    return surface, {"images": images, "textures": textures, "samplers": [sampler]}


def _add_cameras(
    document: dict[str, Any], cameras: Mapping[str, tuple[Camera, NDArray[np.float64]]], size: float
) -> None:
    """One node "cameras" with a child for each; a glTF camera looks along -Z with +Y up, ours along +Z with +Y down."""
    nodes, lenses = document["nodes"], []
    first = len(nodes) + 1
    for name, (camera, pose) in cameras.items():
        fx, fy, cx, cy = (float(camera.K[i, j]) for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
        lens = {
            "yfov": 2 * math.atan(0.5 * camera.height / fy),
            "aspectRatio": (camera.width / fx) / (camera.height / fy),
            "znear": 1e-3 * size,
        }
        lenses.append({"type": "perspective", "name": name, "perspective": lens})
        intrinsics = {"width": camera.width, "height": camera.height, "fx": fx, "fy": fy, "cx": cx, "cy": cy}
        matrix = (pose @ np.diag([1.0, -1.0, -1.0, 1.0])).T.reshape(-1).tolist()
        nodes.append({"name": name, "camera": len(lenses) - 1, "matrix": matrix, "extras": intrinsics})
    nodes.insert(first - 1, {"name": "cameras", "children": list(range(first, first + len(lenses)))})
    document["scenes"][0]["nodes"].append(first - 1)
    document["cameras"] = lenses


def read_glb(path: Path) -> Mesh:
    """All triangles of the default scene in one mesh, in glTF's axes, split vertices joined again (`weld_seams`).

    Textures, factors and transforms of uvs end in one material; of metal, roughness, light and transparency nothing is
    kept. Vertex colours are kept where every part has them and none has a texture; wrapping other than by repeating
    counts only inside 0 to 1.
    Raises InputError for what is not a sound glTF 2.0 file, and for what is not read: compressed geometry, data at web
    addresses or outside the file's folder.
    """
    with sound(path):
        return _MeshReader(GltfFile(path)).mesh()


class _MeshReader:
    def __init__(self, file: GltfFile) -> None:
        self.file = file
        self.corners = 0
        self.pixels = MAX_TEXTURE_PIXELS
        self.pictures: dict[int, NDArray[np.uint8]] = {}
        self.surfaces: dict[int, Surface] = {-1: Surface()}

    def mesh(self) -> Mesh:
        shapes: dict[int, tuple[Mesh, NDArray[np.int64]] | None] = {}
        parts: list[tuple[Mesh, NDArray[np.int64]]] = []
        for number, world in self.file.instances():
            if number not in shapes:
                shapes[number] = self._shape(number)
            shape = shapes[number]
            if shape is not None:
                self.corners += 3 * len(shape[0].faces) + len(shape[0].vertices)
                # Without repeats every corner takes a byte of the file at least.
                if self.corners > max(MAX_REPEATED_CORNERS, self.file.stored_bytes):
                    raise ValueError(f"its nodes repeat meshes to more than {self.corners} corners")
                parts.append((shape[0].transformed(world), shape[1]))
        if not parts:
            raise ValueError("no triangles in it")
        whole = joined([mesh for mesh, _ in parts])
        known = sorted(self.surfaces)
        of_face = np.searchsorted(known, np.concatenate([material for _, material in parts]))
        return dressed(whole, of_face, [self.surfaces[i] for i in known])

    def _shape(self, number: int) -> tuple[Mesh, NDArray[np.int64]] | None:
        """One mesh of the file, seams joined, and the material of each face."""
        parts, materials = [], []
        for primitive in self.file.item("meshes", number)["primitives"]:
            part = self._primitive(primitive)
            if part is not None and len(part.faces):
                parts.append(part)
                materials.append(np.full(len(part.faces), primitive.get("material", -1), np.int64))
        if not parts:
            return None
        return weld_seams(joined(parts)), np.concatenate(materials)

    def _primitive(self, primitive: dict[str, Any]) -> Mesh | None:
        mode = primitive.get("mode", 4)
        if mode not in (4, 5, 6):
            return None  # points and lines
        if "KHR_draco_mesh_compression" in primitive.get("extensions", {}):
            raise ValueError("it is compressed with Draco; export it without compression")
        attributes = primitive["attributes"]
        vertices = self.file.accessor(attributes["POSITION"], "VEC3")
        indices = np.arange(len(vertices))
        if "indices" in primitive:
            indices = self.file.accessor(primitive["indices"], "SCALAR")[:, 0].astype(np.int64)
        faces = _triangles(indices, mode)
        if len(faces) and (faces.min() < 0 or faces.max() >= len(vertices)):
            raise ValueError(f"faces point to vertex {faces.max()}, there are {len(vertices)}")
        colors = uvs = None
        if "COLOR_0" in attributes:
            colors = linear_to_srgb(self.file.accessor(attributes["COLOR_0"])[:, :3])
        material = primitive.get("material")
        chosen = self._surface(natural(material)) if material is not None else 0
        if f"TEXCOORD_{chosen}" in attributes:
            at = self.file.accessor(attributes[f"TEXCOORD_{chosen}"], "VEC2")[faces]
            at = np.nan_to_num(self._transformed(at, material), posinf=0, neginf=0)
            uvs = (at * [1, -1] + [0, 1]).astype(np.float32)
        # Buffers are often shared: only the vertices of this part.
        return select_faces(Mesh(vertices, faces.astype(np.int32), colors, uvs), np.arange(len(faces)))

    def _base_texture(self, material: int | None) -> dict[str, Any] | None:
        if material is None:
            return None
        found = self.file.item("materials", material)
        glossy = found.get("extensions", {}).get("KHR_materials_pbrSpecularGlossiness", {})
        return found.get("pbrMetallicRoughness", {}).get("baseColorTexture") or glossy.get("diffuseTexture")

    def _transformed(self, uvs: NDArray[np.float64], material: int | None) -> NDArray[np.float64]:
        """KHR_texture_transform of the base colour: scaled, then turned, then moved; v still points down."""
        move = (self._base_texture(material) or {}).get("extensions", {}).get("KHR_texture_transform")
        if not move:
            return uvs
        angle = float(move.get("rotation", 0))
        turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
        scaled = uvs * np.array(move.get("scale", (1, 1)), np.float64)
        return scaled @ turn.T + np.array(move.get("offset", (0, 0)), np.float64)

    def _surface(self, index: int) -> int:
        """Reads the material `index` once; returns which TEXCOORD its base colour (or else normal map) goes by."""
        material = self.file.item("materials", index)
        base = self._base_texture(index)
        lead = base or material.get("normalTexture") or material.get("occlusionTexture") or {}
        move = lead.get("extensions", {}).get("KHR_texture_transform", {})
        chosen = natural(move.get("texCoord", lead.get("texCoord", 0)))
        if index not in self.surfaces:
            rough = material.get("pbrMetallicRoughness", {})
            glossy = material.get("extensions", {}).get("KHR_materials_pbrSpecularGlossiness", {})
            r, g, b = (float(v) for v in rough.get("baseColorFactor", glossy.get("diffuseFactor", (1, 1, 1, 1)))[:3])
            others = []
            for name in ("normalTexture", "occlusionTexture"):
                info = material.get(name, {})
                same = info.get("texCoord", 0) == lead.get("texCoord", 0)
                same = same and info.get("extensions", {}).get("KHR_texture_transform", {}) == move
                others.append(self._picture(info) if same else None)  # it lies differently: one set of uvs is kept
            normal, occlusion = others
            occlusion = None if occlusion is None else np.ascontiguousarray(occlusion[..., 0])
            self.surfaces[index] = Surface((r, g, b), self._picture(base), normal, occlusion)
        return chosen

    def _picture(self, info: dict[str, Any] | None) -> NDArray[np.uint8] | None:
        """[H, W, 3] of a texture; a picture that several materials share is decoded once."""
        found = self.file.image(info["index"]) if info else None
        if found is None:
            return None
        source, data = found
        if source not in self.pictures:
            name = f"{self.file.path}: picture {source}"
            picture = rgb(decode_picture(data, name, most_pixels=self.pixels))
            self.pixels -= picture.shape[0] * picture.shape[1]
            self.pictures[source] = picture
        return self.pictures[source]


def _triangles(indices: NDArray[np.int64], mode: int) -> NDArray[np.int64]:
    if mode == 4:
        return indices[: len(indices) // 3 * 3].reshape(-1, 3)
    if mode == 5:  # a strip turns every other triangle
        faces = np.stack([indices[:-2], indices[1:-1], indices[2:]], axis=1)
        faces[1::2] = faces[1::2, ::-1]
        return faces
    return np.stack([np.full(max(0, len(indices) - 2), indices[:1]), indices[1:-1], indices[2:]], axis=1)


def joined(parts: list[Mesh]) -> Mesh:
    """Parts in one mesh without material: colours where all have them, uvs where one has them (elsewhere 0)."""
    starts = np.cumsum([0] + [len(p.vertices) for p in parts[:-1]])
    colors = [p.colors for p in parts if p.colors is not None]
    uvs = None
    if any(p.uvs is not None for p in parts):
        uvs = np.concatenate([np.zeros((len(p.faces), 3, 2), np.float32) if p.uvs is None else p.uvs for p in parts])
    return Mesh(
        np.concatenate([p.vertices for p in parts]),
        np.concatenate([p.faces + start for p, start in zip(parts, starts, strict=True)]),
        np.concatenate(colors) if len(colors) == len(parts) else None,
        uvs,
    )
