"""Triangle meshes: what they are, what can be said about them, cleaning and decimation.

Arrays are numpy: meshes meet libraries that speak it (trimesh, fast-simplification) and are never optimised.
Faces turn counter-clockwise seen from outside, so that normals point outwards and the volume of a solid is positive.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scene.errors import InputError


@dataclass(frozen=True)
class MeshFacts:
    """What a report says of a mesh. Lengths in the mesh's units; volume is None where the mesh does not enclose one.

    watertight: every edge joins exactly two faces that agree on the orientation.
    manifold_edges: no edge joins more than two faces.  manifold_vertices: the faces around each vertex are one fan.
    """

    vertices: int
    faces: int
    components: int
    boundary_edges: int
    watertight: bool
    manifold_edges: bool
    manifold_vertices: bool
    area: float
    volume: float | None
    bounds: tuple[tuple[float, float, float], tuple[float, float, float]] | None

    @property
    def manifold(self) -> bool:
        """Whether both edges and vertices are manifold (a boundary is allowed)."""
        return self.manifold_edges and self.manifold_vertices


@dataclass(frozen=True, eq=False)
class Material:
    """Pictures that lie on a mesh by its uvs; row 0 of a picture is its top, where v = 1. Rough and not metallic.

    base_color: [H, W, 3] uint8 sRGB.  normal: [H, W, 3] uint8 or None, tangent space, n = 2 c / 255 - 1, green along
    growing v as in glTF.  occlusion: [H, W] uint8 or None, 255 where all of the sky is seen.
    """

    base_color: NDArray[np.uint8]
    normal: NDArray[np.uint8] | None = None
    occlusion: NDArray[np.uint8] | None = None

    def __post_init__(self) -> None:
        for name, picture, channels in (
            ("base_color", self.base_color, 3),
            ("normal", self.normal, 3),
            ("occlusion", self.occlusion, 0),
        ):
            if picture is None:
                continue
            wanted = (3,) if channels else ()
            if picture.dtype != np.uint8 or picture.ndim < 2 or picture.shape[2:] != wanted or 0 in picture.shape:
                shape = "[H, W, 3]" if channels else "[H, W]"
                raise ValueError(f"{name} must be uint8 {shape}, got {picture.dtype} {picture.shape}")


@dataclass(frozen=True)
class Mesh:
    """Triangles with optional vertex colours, or with a texture.

    vertices: [V, 3] float64.  faces: [F, 3] int32 indices into vertices.  colors: [V, 3] uint8 sRGB or None.
    uvs: [F, 3, 2] float32 or None, the place in the texture of each corner of each face: u to the right, v up, (0, 0)
    at the bottom left. A vertex on a seam has several, so the topology knows nothing of seams.  material: what the uvs
    point to, or None.
    Arrays of other types are converted; wrong shapes, NaN vertices or indices out of range raise ValueError.
    """

    vertices: NDArray[np.float64]
    faces: NDArray[np.int32]
    colors: NDArray[np.uint8] | None = None
    uvs: NDArray[np.float32] | None = None
    material: Material | None = None

    def __post_init__(self) -> None:
        vertices = np.ascontiguousarray(self.vertices, dtype=np.float64)
        faces = np.asarray(self.faces)
        if vertices.ndim != 2 or vertices.shape[1] != 3 or faces.ndim != 2 or faces.shape[1] != 3:
            raise ValueError(f"vertices and faces must be [V, 3] and [F, 3], got {vertices.shape} and {faces.shape}")
        if not np.isfinite(vertices).all():
            raise ValueError("vertices must be finite; remove NaN and infinite ones with their faces first")
        if len(faces) and (faces.min() < 0 or faces.max() >= len(vertices)):
            raise ValueError(f"faces point to vertices {faces.min()} to {faces.max()}, there are {len(vertices)}")
        object.__setattr__(self, "vertices", vertices)
        object.__setattr__(self, "faces", np.ascontiguousarray(faces, dtype=np.int32))
        if self.colors is not None:
            colors = np.ascontiguousarray(self.colors)
            if colors.dtype != np.uint8 or colors.shape != vertices.shape:
                raise ValueError(f"colors must be uint8 {vertices.shape}, got {colors.dtype} {colors.shape}")
            object.__setattr__(self, "colors", colors)
        if self.uvs is not None:
            uvs = np.ascontiguousarray(self.uvs, dtype=np.float32)
            if uvs.shape != (len(faces), 3, 2) or not np.isfinite(uvs).all():
                raise ValueError(f"uvs must be finite and [{len(faces)}, 3, 2], got {uvs.shape}")
            object.__setattr__(self, "uvs", uvs)
        elif self.material is not None:
            raise ValueError("a material needs uvs that say where it lies")

    @cached_property
    def face_normals(self) -> NDArray[np.float64]:
        """[F, 3] cross products of the edges: the direction is the normal, the length twice the area."""
        a, b, c = (self.vertices[self.faces[:, i]] for i in range(3))
        return np.cross(b - a, c - a)

    @cached_property
    def face_areas(self) -> NDArray[np.float64]:
        """[F] areas."""
        return 0.5 * np.linalg.norm(self.face_normals, axis=1)

    @cached_property
    def vertex_normals(self) -> NDArray[np.float64]:
        """[V, 3] unit normals, faces weighted by area; zero for a vertex without an area around it."""
        normals = np.zeros_like(self.vertices)
        for corner in range(3):
            for axis in range(3):
                column = np.bincount(self.faces[:, corner], self.face_normals[:, axis], len(self.vertices))
                normals[:, axis] += column
        return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-300)

    def face_shapes(self) -> NDArray[np.float64]:
        """[F] height of each face over its longest edge, by the length of that edge: 0 for a degenerate one.

        At most 0.87, blind to the unit.
        """
        edges = self.vertices[self.faces] - self.vertices[np.roll(self.faces, -1, axis=1)]
        longest = np.square(edges).sum(axis=2).max(axis=1, initial=0.0)
        return 2 * self.face_areas / np.maximum(longest, 1e-300)

    def bounds(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Lowest and highest corner of the vertices that faces use. Raises ValueError for an empty mesh."""
        if not len(self.faces):
            raise ValueError("an empty mesh has no bounds")
        used = self.vertices[np.unique(self.faces)]
        return used.min(axis=0), used.max(axis=0)

    def diagonal(self) -> float:
        """Length of the diagonal of the bounding box."""
        low, high = self.bounds()
        return float(np.linalg.norm(high - low))

    def transformed(self, matrix: NDArray[np.float64]) -> Mesh:
        """The mesh under a 4x4 transform (target from mesh); a mirroring one also turns the faces round."""
        matrix = np.asarray(matrix, dtype=np.float64)
        vertices = self.vertices @ matrix[:3, :3].T + matrix[:3, 3]
        if np.linalg.det(matrix[:3, :3]) > 0:
            return replace(self, vertices=vertices)
        uvs = None if self.uvs is None else self.uvs[:, ::-1]
        return replace(self, vertices=vertices, faces=self.faces[:, ::-1], uvs=uvs)

    def facts(self) -> MeshFacts:
        """Counts, closedness, manifoldness, area and volume."""
        edges = Edges.of(self.faces)
        per_edge = np.bincount(edges.ids, minlength=edges.count)
        # Two faces agree on the orientation when they run along their common edge in opposite directions.
        watertight = len(self.faces) > 0 and bool((per_edge == 2).all() and (edges.balance() == 0).all())
        bounds = None
        if len(self.faces):
            low, high = (corner.tolist() for corner in self.bounds())
            bounds = ((low[0], low[1], low[2]), (high[0], high[1], high[2]))
        return MeshFacts(
            vertices=len(self.vertices),
            faces=len(self.faces),
            components=int(face_components(self).max(initial=-1)) + 1,
            boundary_edges=int((per_edge == 1).sum()),
            watertight=watertight,
            manifold_edges=bool((per_edge <= 2).all()),
            manifold_vertices=_vertices_are_manifold(self.faces, edges, per_edge),
            area=float(self.face_areas.sum()),
            volume=self._signed_volume() if watertight else None,
            bounds=bounds,
        )

    def _signed_volume(self) -> float:
        # Tetrahedra to the centre of the vertices rather than to the origin, which may be far away.
        centred = self.vertices - self.vertices.mean(axis=0)
        a, b, c = (centred[self.faces[:, i]] for i in range(3))
        return float(np.einsum("ij,ij->", a, np.cross(b, c)) / 6.0)


@dataclass(frozen=True)
class Edges:
    """The three directed edges of each face, matched up: the edge 3 f + i leads from corner i of face f to the next."""

    ids: NDArray[np.int64]  # [3F] undirected edge of each directed one, face-major
    ascending: NDArray[np.bool_]  # [3F] whether it runs from the lower to the higher index
    count: int

    @staticmethod
    def of(faces: NDArray[np.int32]) -> Edges:
        """The edges of faces [F, 3]."""
        start = faces.reshape(-1).astype(np.int64)
        stop = np.roll(faces, -1, axis=1).reshape(-1).astype(np.int64)
        keys = np.minimum(start, stop) * (int(faces.max(initial=0)) + 1) + np.maximum(start, stop)
        unique, ids = np.unique(keys, return_inverse=True)
        return Edges(ids.reshape(-1), start < stop, len(unique))

    def balance(self) -> NDArray[np.intp]:
        """[count] how many more faces run along each edge one way than the other; 0 inside an oriented surface."""
        return 2 * np.bincount(self.ids[self.ascending], minlength=self.count) - np.bincount(self.ids)

    def pairs(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Directed edges that lie on a common undirected one, as neighbours in a chain: [P], [P] indices into ids."""
        order = np.argsort(self.ids, kind="stable")
        same = self.ids[order[1:]] == self.ids[order[:-1]]
        return order[:-1][same], order[1:][same]


def connected_parts(count: int, a: NDArray[np.integer], b: NDArray[np.integer]) -> NDArray[np.int32]:
    """Component number [count] of the nodes of a graph with edges a-b."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    graph = coo_matrix((np.ones(len(a), dtype=np.int8), (a, b)), shape=(count, count))
    return connected_components(graph, directed=False)[1]


def _vertices_are_manifold(faces: NDArray[np.int32], edges: Edges, per_edge: NDArray[np.int64]) -> bool:
    """Whether the corners that meet in each vertex hang together through the edges they share."""
    if not len(faces):
        return True
    first, second = edges.pairs()
    inner = per_edge[edges.ids[first]] == 2
    first, second = first[inner], second[inner]
    flat = faces.reshape(-1)
    follow = np.arange(len(flat)).reshape(-1, 3)[:, [1, 2, 0]].reshape(-1)  # corner at the far end of each edge
    same_start = flat[first] == flat[second]
    a = np.concatenate([first, follow[first]])
    b = np.concatenate(
        [np.where(same_start, second, follow[second]), np.where(same_start, follow[second], second)],
    )
    fans = connected_parts(len(flat), a, b)
    # One fan per vertex: as many distinct fans as distinct vertices.
    return len(np.unique(fans)) == len(np.unique(flat))


def face_components(mesh: Mesh) -> NDArray[np.int32]:
    """[F] number of the connected part of each face; faces that share a vertex hang together."""
    if not len(mesh.faces):
        return np.zeros(0, dtype=np.int32)
    first = mesh.faces[:, 0]
    parts = connected_parts(len(mesh.vertices), np.concatenate([first, first]), mesh.faces[:, 1:].T.reshape(-1))
    return np.unique(parts[first], return_inverse=True)[1].reshape(-1).astype(np.int32)


def select_faces(mesh: Mesh, keep: NDArray[np.bool_] | NDArray[np.integer]) -> Mesh:
    """The mesh with these faces only (mask or indices) and the vertices they use."""
    faces = mesh.faces[keep]
    used = np.zeros(len(mesh.vertices), dtype=bool)
    used[faces] = True
    renumbered = (np.cumsum(used) - 1).astype(np.int32)
    colors = None if mesh.colors is None else mesh.colors[used]
    uvs = None if mesh.uvs is None else mesh.uvs[keep]
    return Mesh(mesh.vertices[used], renumbered[faces], colors, uvs, mesh.material)


def clean(mesh: Mesh, *, min_share: float = 0.0, min_faces: int = 1, least_shape: float = 1e-12) -> Mesh:
    """Without degenerate and repeated faces, small parts and unused vertices.

    min_share: parts with a smaller area than this share of the largest part's go; 0 keeps all.
    min_faces: parts of fewer faces go.  least_shape: faces whose height is a smaller share of their length go.
    Of faces with the same three vertices one stays, whatever their orientation.
    """
    corners = np.sort(mesh.faces, axis=1)
    distinct = (corners[:, 0] != corners[:, 1]) & (corners[:, 1] != corners[:, 2])
    # Relative to its longest edge: absolute limits would eat the detail of a mesh in kilometres.
    keep = distinct & (mesh.face_shapes() > least_shape)
    candidates = np.flatnonzero(keep)
    candidates = candidates[np.sort(np.unique(corners[candidates], axis=0, return_index=True)[1])]
    mesh = select_faces(mesh, candidates)
    if (min_share <= 0 and min_faces <= 1) or not len(mesh.faces):
        return mesh
    parts = face_components(mesh)
    areas = np.bincount(parts, mesh.face_areas)
    stays = (areas >= min_share * areas.max()) & (np.bincount(parts) >= min_faces)
    return select_faces(mesh, stays[parts])


def decimate(mesh: Mesh, faces: int) -> Mesh:
    """At most `faces` triangles, by quadric edge collapses (fast-simplification); colours come along, uvs do not.

    A mesh within the budget comes back as it is. More are left only where every part is down to its last few faces.
    Collapses leave some edges of four faces where thin parts meet; `scene/mesh_repair.py` decimates and mends them.
    Raises ValueError for a budget below 4.
    """
    import fast_simplification

    if faces < 4:
        raise ValueError(f"a budget of at least 4 faces is needed, got {faces}")
    if len(mesh.faces) <= faces:
        return mesh
    # The library works in float32: centred and scaled, nothing is lost for a mesh far from the origin.
    low, high = mesh.bounds()
    centre, scale = (low + high) / 2, max(float((high - low).max()), 1e-300)
    points: Any = ((mesh.vertices - centre) / scale).astype(np.float32)
    target = faces
    simple = mesh
    for _ in range(8):
        simplified: Any = fast_simplification.simplify(points, mesh.faces, target_count=target, agg=5.0)
        simple = clean(Mesh(simplified[0].astype(np.float64) * scale + centre, simplified[1]))
        if len(simple.faces) <= faces or target == 4:
            break
        # It stops above its target where a further collapse would turn a face round.
        target = max(4, target - 2 * (len(simple.faces) - faces))
    return simple if mesh.colors is None else replace(simple, colors=transfer_colors(mesh, simple.vertices))


def transfer_colors(mesh: Mesh, points: NDArray[np.float64], *, neighbours: int = 4) -> NDArray[np.uint8]:
    """[P, 3] colours of a coloured mesh at points near it: nearest vertices, weighted by inverse squared distance."""
    from scipy.spatial import KDTree

    if mesh.colors is None or not len(mesh.vertices):
        raise InputError("colours were asked of a mesh that has none")
    near = min(neighbours, len(mesh.vertices))
    ranks: Any = list(range(1, near + 1))  # as a list, so that one neighbour has an axis too
    distances, index = KDTree(mesh.vertices).query(points, k=ranks)
    weights = 1.0 / np.maximum(np.square(distances), 1e-24)
    weights /= weights.sum(axis=1, keepdims=True)
    colors = np.einsum("pk,pkc->pc", weights, mesh.colors[index].astype(np.float64))
    return np.round(colors).astype(np.uint8)
