"""Repairs the topology of a mesh: what modelling programs, slicers and physics take for granted of a surface.

Marching cubes leave corners that touch in a point, and edge collapses leave edges of four faces where thin parts met;
nothing here moves the surface by more than a hundredth of an edge. Non-manifold places are cut apart rather than
emptied, as in Gueziec et al., Cutting and Stitching (2001), so that what was closed stays closed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from scene.mesh import Edges, Mesh, clean, connected_parts, decimate, select_faces
from scene.mesh_holes import fill_holes
from scene.mesh_outward import outward
from scene.mesh_slivers import without_slivers

FACES_ON_AN_EDGE = 16  # more are no surface, and their pairs would be too many to compare
APART = 0.01  # of the way to the faces around it, how far a vertex that was split moves; readers that merge equal
# places would else join again what was cut
PASSES = 4
HOLE_EDGES = 160  # what no camera saw well is mostly smaller; see scene/mesh_holes.py for what stays open

Indices = NDArray[np.int64]


def repair(mesh: Mesh, *, hole_edges: int = HOLE_EDGES) -> tuple[Mesh, tuple[str, ...]]:
    """The mesh with manifold edges and vertices, consistently oriented outwards, and what was done, in sentences.

    Degenerate and repeated faces go; edges of more than two faces and vertices of several fans are cut apart, as are
    surfaces with one side only; faces turned against their part are turned round, and closed parts outwards; holes of
    at most `hole_edges` edges are filled where the surface goes on across them. Open parts keep the side that most of
    their area had. A sound mesh comes back as it is, and so does the result of a repair. Colours stay.
    Raises ValueError for a mesh with uvs: repair comes before texture.
    """
    if mesh.uvs is not None:
        raise ValueError("repair works on a mesh without uvs; repair it first, then lay it out")
    done: list[str] = []
    for _ in range(PASSES):
        if is_sound(mesh):
            break
        mesh = _pass(mesh, done)
    else:
        mesh = _without_faults(mesh, done)
    mesh, filled = fill_holes(mesh, hole_edges)
    if filled:
        done.append(f"{_count(filled, 'hole')} of at most {hole_edges} edges filled")
    mesh, turned = outward(mesh)
    if turned:
        done.append(f"{_count(turned, 'closed part')} turned outwards")
    return mesh, tuple(done)


def decimate_and_repair(mesh: Mesh, faces: int, *, min_share: float = 0.0) -> tuple[Mesh, tuple[str, ...]]:
    """At most `faces` triangles and a sound mesh, and what was repaired.

    Cutting and filling add some faces, so the decimation aims as much below the budget. min_share: parts of a smaller
    area than this share of the largest part's are dropped; collapses and cuts leave crumbs.
    """
    target, sound, done = faces, mesh, ()
    for _ in range(PASSES):
        sound, done = repair(decimate(mesh, target))
        sound = clean(sound, min_share=min_share)
        excess = len(sound.faces) - faces
        if excess <= 0 or target == 4:
            break
        target = max(4, target - excess - excess // 4 - 1)
    return sound, done


def is_sound(mesh: Mesh) -> bool:
    """Whether edges and vertices are manifold, faces agree on the orientation, and none is degenerate or repeated."""
    tidy = clean(mesh)
    return (
        len(tidy.faces) == len(mesh.faces)
        and len(tidy.vertices) == len(mesh.vertices)
        and bool((np.abs(Edges.of(mesh.faces).balance()) < 2).all())
        and mesh.facts().manifold
    )


def _pass(mesh: Mesh, done: list[str]) -> Mesh:
    """One round: slivers, repeated faces, orientation, cuts."""
    before = len(mesh.faces)
    mesh = clean(without_slivers(mesh), least_shape=1e-10)
    if before > len(mesh.faces):
        done.append(f"{_count(before - len(mesh.faces), 'degenerate or repeated face')} removed")
    if not len(mesh.faces):
        return mesh
    links = _Links.of(mesh)
    flip, kept = _orientation(links, mesh.face_areas)
    if flip.any():
        done.append(f"{_count(int(flip.sum()), 'face')} turned round to agree with the rest of their part")
    faces = np.where(flip[:, None], mesh.faces[:, ::-1], mesh.faces)
    links = links.select(kept).turned(flip)
    return _cut(replace(mesh, faces=faces), links, done)


@dataclass(frozen=True)
class _Links:
    """Where the surface goes on from face to face: pairs of directed edges `first`, `second` (3 face + corner)."""

    first: Indices  # [L]
    second: Indices  # [L]
    agree: NDArray[np.bool_]  # [L] the two run against each other, as they do on an oriented surface

    @staticmethod
    def of(mesh: Mesh) -> _Links:
        """The two faces of each edge; of more, pairs that agree on the orientation, the flattest first."""
        edges = Edges.of(mesh.faces)
        per_edge = np.bincount(edges.ids, minlength=edges.count)
        first, second = edges.pairs()
        simple = per_edge[edges.ids[first]] == 2
        pairs = [np.stack([first[simple], second[simple]])]
        crowded = np.flatnonzero((per_edge[edges.ids] > 2) & (per_edge[edges.ids] <= FACES_ON_AN_EDGE))
        crowded = crowded[np.argsort(edges.ids[crowded], kind="stable")]
        if len(crowded):
            away = _away_from_edge(mesh, crowded)
            outwards = mesh.face_normals[crowded // 3]
            outwards = outwards / np.linalg.norm(outwards, axis=1, keepdims=True)
            starts = np.flatnonzero(np.diff(edges.ids[crowded], prepend=-1))
            for group in np.split(np.arange(len(crowded)), starts[1:]):
                # Of two solids that touch, each keeps its own faces: what lies before a face is another's.
                bend = away[group] @ away[group].T + 0.5 * (away[group] @ outwards[group].T > 1e-9)
                pairs += _flattest_pairs(crowded[group], bend, edges.ascending[crowded[group]])
        first, second = np.concatenate(pairs, axis=1)
        return _Links(first, second, edges.ascending[first] != edges.ascending[second])

    def select(self, keep: NDArray[np.bool_]) -> _Links:
        return _Links(self.first[keep], self.second[keep], self.agree[keep])

    def turned(self, flip: NDArray[np.bool_]) -> _Links:
        """The links after faces were reversed: corners c, b, a, so that the first two edges change places."""
        place = np.array([1, 0, 2])
        turn = [np.where(flip[h // 3], h - h % 3 + place[h % 3], h) for h in (self.first, self.second)]
        return _Links(turn[0], turn[1], self.agree ^ flip[self.first // 3] ^ flip[self.second // 3])


def _away_from_edge(mesh: Mesh, directed: Indices) -> NDArray[np.float64]:
    """[P, 3] unit direction in each face that leads away from its edge."""
    flat, face, corner = mesh.faces, directed // 3, directed % 3
    a, b, c = (mesh.vertices[flat[face, (corner + i) % 3]] for i in range(3))
    along = (b - a) / np.linalg.norm(b - a, axis=1, keepdims=True)
    away = (c - a) - ((c - a) * along).sum(1, keepdims=True) * along
    return away / np.maximum(np.linalg.norm(away, axis=1, keepdims=True), 1e-300)


def _flattest_pairs(
    directed: Indices, bend: NDArray[np.float64], ascending: NDArray[np.bool_]
) -> list[NDArray[np.int64]]:
    """[2, 1] each: pairs of opposite directed edges, matched from the least bend [P, P] on."""
    up, down = np.flatnonzero(ascending), np.flatnonzero(~ascending)
    free = np.ones(len(directed), dtype=bool)
    pairs = []
    for flat in np.argsort(bend[np.ix_(up, down)], axis=None, kind="stable"):
        i, j = up[flat // len(down)], down[flat % len(down)]
        if free[i] and free[j]:
            pairs.append(np.array([[directed[i]], [directed[j]]]))
            free[[i, j]] = False
    return pairs


def _orientation(links: _Links, areas: NDArray[np.float64]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which faces to turn, and which links stay: those across which a one-sided surface must be cut do not.

    Every face stands twice in the graph, as it is and turned. A part is orientable when the two are not connected.
    """
    f, g = links.first // 3, links.second // 3
    count = len(areas)
    sides = _sides(f, g, links.agree, count)
    one_sided = sides[f] == sides[f + count]
    if one_sided.any():
        in_tree = ~one_sided | _spanning(f, g, np.where(links.agree, 1.0, 2.0), count)
        sides = _sides(f[in_tree], g[in_tree], links.agree[in_tree], count)
    as_is, turned = sides[:count], sides[count:]
    lower = np.minimum(as_is, turned)  # names the part
    size = int(sides.max()) + 1
    gain = np.bincount(lower, np.where(as_is == lower, areas, -areas), size)
    flip = (as_is == lower) != (gain >= 0)[lower]
    return flip, links.agree ^ flip[f] ^ flip[g]


def _sides(f: Indices, g: Indices, agree: NDArray[np.bool_], count: int) -> NDArray[np.int32]:
    """[2 F] the connected part of each face as it is and turned."""
    other = np.where(agree, g, g + count)
    turned = np.where(agree, g + count, g)
    return connected_parts(2 * count, np.concatenate([f, f + count]), np.concatenate([other, turned]))


def _spanning(f: Indices, g: Indices, weights: NDArray[np.float64], count: int) -> NDArray[np.bool_]:
    """[L] which links lie on a minimum spanning forest."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import minimum_spanning_tree

    tree = minimum_spanning_tree(coo_matrix((weights, (np.minimum(f, g), np.maximum(f, g))), (count, count))).tocoo()
    keys = np.minimum(f, g) * count + np.maximum(f, g)
    return np.isin(keys, tree.row.astype(np.int64) * count + tree.col)


def _cut(mesh: Mesh, links: _Links, done: list[str]) -> Mesh:
    """The mesh in which faces hang together by the links alone."""
    follow = np.arange(3 * len(mesh.faces)).reshape(-1, 3)[:, [1, 2, 0]].reshape(-1)
    first, second = links.first, links.second
    # At either end of a link the corners of its two faces meet; corners that hang together are one fan.
    fans = connected_parts(
        len(follow), np.concatenate([first, follow[first]]), np.concatenate([follow[second], second])
    )
    faces, source, split = _vertex_per_fan(mesh.faces, fans, len(mesh.vertices))
    colors = None if mesh.colors is None else mesh.colors[source]
    mesh = Mesh(mesh.vertices[source], faces, colors)
    partner = np.full(len(follow), -1, dtype=np.int64)
    partner[first], partner[second] = second, first
    mesh, halved = _halve_shared_edges(mesh, partner)
    copies = len(source) - len(np.unique(source))
    if copies:
        done.append(f"{_count(copies, 'vertex')} added to part surfaces that touched in a point or an edge")
    if halved:
        done.append(f"{_count(halved, 'edge')} of several surfaces parted at the middle")
    moved = np.zeros(len(mesh.vertices), dtype=bool)
    moved[: len(source)] = split
    moved[len(source) :] = True
    return _moved_apart(mesh, moved)


def _vertex_per_fan(
    faces: NDArray[np.int32], fans: NDArray[np.int32], count: int
) -> tuple[NDArray[np.int32], Indices, NDArray[np.bool_]]:
    """Faces over one vertex per fan, the old vertex of each new one, and whether that one had several fans.

    The first fan of a vertex keeps its number, so that a sound part of the mesh stays as it is.
    """
    corner_vertex = faces.reshape(-1)
    fan, first_corner = np.unique(fans, return_index=True)
    vertex = corner_vertex[first_corner].astype(np.int64)
    order = np.lexsort((first_corner, vertex))
    leads = np.zeros(len(fan), dtype=bool)
    leads[order] = np.diff(vertex[order], prepend=-1) != 0
    extra = np.flatnonzero(~leads)
    number = np.where(leads, vertex, 0)
    number[extra] = count + np.arange(len(extra))
    source = np.concatenate([np.arange(count), vertex[extra]])
    several = np.bincount(vertex, minlength=count) > 1
    return number[np.searchsorted(fan, fans)].reshape(-1, 3).astype(np.int32), source, several[source]


def _halve_shared_edges(mesh: Mesh, partner: Indices) -> tuple[Mesh, int]:
    """Parts surfaces that share both ends of an edge, and so still the edge: all but one get a middle of their own."""
    edges = Edges.of(mesh.faces)
    directed = np.arange(len(partner))
    surface = np.where(partner >= 0, np.minimum(directed, partner), directed)  # names the one or two faces of a sheet
    lowest = np.full(edges.count, len(partner), dtype=np.int64)
    np.minimum.at(lowest, edges.ids, surface)
    shared = surface != lowest[edges.ids]
    if not shared.any():
        return mesh, 0
    owners, middle = np.unique(surface[shared], return_inverse=True)
    ends = np.stack([mesh.faces.reshape(-1)[owners], np.roll(mesh.faces, -1, axis=1).reshape(-1)[owners]], axis=1)
    vertices = np.concatenate([mesh.vertices, mesh.vertices[ends].mean(axis=1)])
    colors = mesh.colors
    if colors is not None:
        between = np.round(colors[ends].mean(axis=1)).astype(np.uint8)
        colors = np.concatenate([colors, between])
    middles = np.full(len(partner), -1, dtype=np.int64)
    middles[shared] = len(mesh.vertices) + middle.reshape(-1)
    return Mesh(vertices, _subdivided(mesh.faces.astype(np.int64), middles.reshape(-1, 3)), colors), len(
        np.unique(edges.ids[shared])
    )


def _subdivided(faces: Indices, middles: Indices) -> NDArray[np.int32]:
    """Faces with the middles [F, 3] of some of their edges (-1 for none) as vertices; untouched faces come first."""
    count = (middles >= 0).sum(axis=1)
    pieces = [faces[count == 0]]
    # Turned so that the first edge has a middle, and the last one none as long as there is one without.
    first = np.where(count == 2, (np.argmin(middles >= 0, axis=1) + 1) % 3, np.argmax(middles >= 0, axis=1))
    turn = (first[:, None] + np.arange(3)) % 3
    faces, middles = np.take_along_axis(faces, turn, axis=1), np.take_along_axis(middles, turn, axis=1)
    patterns = {
        1: ((0, 3, 2), (3, 1, 2)),
        2: ((3, 1, 4), (0, 3, 4), (0, 4, 2)),
        3: ((0, 3, 5), (3, 1, 4), (5, 4, 2), (3, 4, 5)),
    }
    for number, pattern in patterns.items():
        of_face = np.concatenate([faces, middles], axis=1)[count == number]
        pieces += [of_face[:, list(corners)] for corners in pattern]
    return np.concatenate(pieces).astype(np.int32)


def _moved_apart(mesh: Mesh, moved: NDArray[np.bool_]) -> Mesh:
    """Vertices drawn a little towards the faces around them, except where that would turn a face."""
    if not moved.any():
        return mesh
    centres = mesh.vertices[mesh.faces].mean(axis=1)
    total, number = np.zeros_like(mesh.vertices), np.bincount(mesh.faces.reshape(-1), minlength=len(mesh.vertices))
    for axis in range(3):
        total[:, axis] = np.bincount(mesh.faces.reshape(-1), np.repeat(centres[:, axis], 3), len(mesh.vertices))
    goal = total / np.maximum(number, 1)[:, None]
    moved = moved & (number > 0)
    for _ in range(PASSES):
        vertices = np.where(moved[:, None], mesh.vertices + APART * (goal - mesh.vertices), mesh.vertices)
        shifted = replace(mesh, vertices=vertices)
        agreement = (shifted.face_normals * mesh.face_normals).sum(axis=1)
        bad = agreement < 0.5 * np.square(mesh.face_normals).sum(axis=1)
        if not moved[mesh.faces[bad]].any():
            return shifted
        moved[mesh.faces[bad]] = False
    return mesh


def _without_faults(mesh: Mesh, done: list[str]) -> Mesh:
    """Without the faces at places that the passes could not mend; only numbers at the limit of floats come here."""
    before = len(mesh.faces)
    while not is_sound(mesh):  # each round removes a face
        mesh = clean(mesh)
        edges = Edges.of(mesh.faces)
        per_edge = np.bincount(edges.ids, minlength=edges.count)
        bad_edge = (per_edge > 2) | (np.abs(edges.balance()) > 1)
        bad = np.any(bad_edge[edges.ids].reshape(-1, 3), axis=1)
        if not bad.any():
            several = np.zeros(len(mesh.vertices), dtype=bool)
            several[_split_vertices(mesh)] = True
            bad = np.any(several[mesh.faces], axis=1)
        mesh = select_faces(mesh, ~bad)
    done.append(f"{_count(before - len(mesh.faces), 'face')} removed where nothing else helped")
    return mesh


def _split_vertices(mesh: Mesh) -> Indices:
    """Vertices with several fans of faces."""
    links = _Links.of(mesh)
    follow = np.arange(3 * len(mesh.faces)).reshape(-1, 3)[:, [1, 2, 0]].reshape(-1)
    fans = connected_parts(
        len(follow),
        np.concatenate([links.first, follow[links.first]]),
        np.concatenate([follow[links.second], links.second]),
    )
    _, source, several = _vertex_per_fan(mesh.faces, fans, len(mesh.vertices))
    return np.unique(source[several])


def _count(number: int, what: str) -> str:
    plural = {"vertex": "vertices"}.get(what, f"{what}s")
    return f"{number:,} {what if number == 1 else plural}"
