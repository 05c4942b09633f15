"""The gate that every exported mesh passes: what is right with it, what is not, and what is just so.

A check that fails names the fault and what to do. That a mesh is open is no fault, for a table top has no inside; it is
said, because a slicer or a physics engine needs to know.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scene.errors import InputError
from scene.mesh import Edges, Mesh, face_components
from scene.mesh_distance import nearest_faces, point_to_mesh, sample_surface
from scene.mesh_outward import closed_volumes, inward_parts, winding_numbers
from scene.uv_measures import UvMeasures, measure_uvs

MOST_OUTSIDE = 1e-5  # of the texture; float32 leaves no more
MOST_OVERLAP = 0.005  # of the covered texels
LEAST_PADDING = 8  # texels around each island, so that mip levels do not bleed before the fourth
MOST_STRETCH = 6.0  # texels per unit where they are densest (95 %) by where they are sparsest (5 %)
MOST_DISTANCE = 0.005  # of the reference's diagonal, mean both ways
MOST_FAR = 0.02  # of the reference's diagonal, 95 % of the samples of both ways are nearer
LEAST_OUTWARD = 0.9  # share of the surface that faces as the reference does
SAMPLES = 20_000
WINDING_SAMPLES = 96
SURE = 0.05  # winding number by which a surface has an inside at all
TEXTURE_SIZE = 1024  # texels that uvs without a texture are measured in


@dataclass(frozen=True)
class Check:
    """One thing looked at. ok: None where the value is only stated.  limit: what the value is held against."""

    name: str
    ok: bool | None
    value: float | int | bool | None
    limit: float | int | bool | None
    sentence: str


@dataclass(frozen=True)
class MeshLabel:
    """All checks of a mesh, in a fixed order."""

    checks: tuple[Check, ...]

    @property
    def green(self) -> bool:
        """Whether no check failed."""
        return all(check.ok is not False for check in self.checks)

    @property
    def faults(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if check.ok is False)

    def __getitem__(self, name: str) -> Check:
        """A check by its name. Raises KeyError when the mesh had nothing to check there."""
        for check in self.checks:
            if check.name == name:
                return check
        raise KeyError(name)

    def as_json(self) -> dict[str, Any]:
        """The label for a JSON file: {"green", "checks": [{"name", "ok", "value", "limit", "sentence"}]}."""
        keys = ("name", "ok", "value", "limit", "sentence")
        return {"green": self.green, "checks": [{key: getattr(check, key) for key in keys} for check in self.checks]}

    def text(self) -> str:
        """A line for each check, and one for all."""
        marks = {True: "ok   ", False: "FAULT", None: "     "}
        lines = [f"{marks[check.ok]} {check.name:12} {check.sentence}" for check in self.checks]
        number = len(self.faults)
        lines.append("green: nothing is wrong with it" if self.green else f"not green: {number} of the checks failed")
        return "\n".join(lines)


def label_mesh(mesh: Mesh, *, reference: Mesh | None = None, budget: int | None = None) -> MeshLabel:
    """What is right and wrong with a mesh that is to be handed over.

    reference: what it stands for, usually the fine mesh that it was decimated from, in the same frame.  budget: the
    most faces that were asked for.  Raises InputError for an empty mesh: there is nothing to hand over.
    """
    if not len(mesh.faces):
        raise InputError("the mesh is empty; nothing was reconstructed that could be handed over")
    checks = [_finite(mesh), _manifold(mesh), _watertight(mesh)]
    if checks[0].ok:
        checks.append(_outward(mesh, reference))
    checks.append(_faces(mesh, budget))
    if mesh.uvs is not None:
        checks += _uv_checks(mesh)
    if reference is not None and checks[0].ok:
        checks += _distances(mesh, reference)
    return MeshLabel(tuple(checks))


def _finite(mesh: Mesh) -> Check:
    """Coordinates as files hold them, in single precision, and areas that can be computed from them."""
    with np.errstate(over="ignore", invalid="ignore"):
        bad = int((~np.isfinite(mesh.vertices.astype(np.float32))).any(axis=1).sum())
        flat = int((~(mesh.face_shapes() > 1e-12)).sum())
    if bad:
        sentence = f"{bad:,} vertices are too far out for the single precision of files; scale the scene down"
        return Check("finite", False, bad, 0, sentence)
    if flat:
        return Check("finite", False, flat, 0, f"{flat:,} faces have no area and so no normal; repair the mesh")
    return Check("finite", True, 0, 0, "all coordinates are finite and all faces have an area")


def _manifold(mesh: Mesh) -> Check:
    edges = Edges.of(mesh.faces)
    per_edge = np.bincount(edges.ids, minlength=edges.count)
    crowded = int((per_edge > 2).sum())
    if crowded:
        sentence = f"{crowded:,} edges join more than two faces; repair the mesh"
        return Check("manifold", False, crowded, 0, sentence)
    if not mesh.facts().manifold_vertices:
        return Check("manifold", False, 1, 0, "surfaces touch in single vertices; repair the mesh")
    return Check("manifold", True, 0, 0, "every edge joins at most two faces, and around every vertex is one fan")


def _watertight(mesh: Mesh) -> Check:
    facts = mesh.facts()
    if facts.watertight:
        sentence = f"closed: it encloses a volume of {facts.volume:.4g} cubic units"
    else:
        sentence = (
            f"open: {facts.boundary_edges:,} edges border on nothing; right for a scene that goes on beyond what was "
            "photographed, to be closed before it is printed"
        )
    return Check("watertight", None, facts.watertight, None, sentence)


def _outward(mesh: Mesh, reference: Mesh | None) -> Check:
    against = int((np.abs(Edges.of(mesh.faces).balance()) > 1).sum())
    if against:
        sentence = f"faces on either side of {against:,} edges face opposite ways; repair the mesh"
        return Check("normals", False, against, 0, sentence)
    wrong = int(inward_parts(mesh).sum())
    if wrong:
        return Check("normals", False, wrong, 0, f"{wrong:,} closed parts are turned inside out; repair the mesh")
    if reference is not None:
        share = _share_as_reference(mesh, reference)
        sentence = f"{share:.1%} of the surface faces the way that the reference does"
        return Check("normals", share >= LEAST_OUTWARD, round(share, 5), LEAST_OUTWARD, sentence)
    parts = face_components(mesh)
    is_open = ~closed_volumes(mesh, parts)[1]
    if not is_open.any():
        return Check("normals", True, 1.0, LEAST_OUTWARD, "all normals point out of what the mesh encloses")
    inside = _inside_of_open_parts(mesh, is_open[parts])
    if abs(inside) < SURE:
        return Check("normals", None, None, None, "normals agree; the open surface is too flat to have an outside")
    side = "out of what the open surface bends around" if inside > 0 else "into what the open surface bends around"
    # A room seen from within and a bowl seen from above bend around their viewers, and are right.
    return Check("normals", True if inside > 0 else None, round(inside, 5), 0.0, f"normals agree and point {side}")


def _share_as_reference(mesh: Mesh, reference: Mesh) -> float:
    """Share of the surface whose normal has the side of the reference's nearest normal."""
    points, faces = sample_surface(mesh, SAMPLES, np.random.default_rng(0))
    normals = reference.face_normals[nearest_faces(points, reference)]
    return float(((mesh.face_normals[faces] * normals).sum(axis=1) > 0).mean())


def _inside_of_open_parts(mesh: Mesh, of_open: NDArray[np.bool_]) -> float:
    """Mean winding number of the places just before and behind the open surface: > 0 where it bends around its inside.

    Behind a closed surface it is 1, before it 0; of a surface turned inside out 0 and -1; about a plane it is +-1/2.
    """
    rng = np.random.default_rng(0)
    candidates = np.flatnonzero(of_open)
    cumulative = np.cumsum(mesh.face_areas[candidates])
    if not cumulative[-1] > 0:
        return 0.0
    shares = (np.arange(WINDING_SAMPLES) + rng.random(WINDING_SAMPLES)) / WINDING_SAMPLES
    faces = candidates[np.minimum(np.searchsorted(cumulative, shares * cumulative[-1]), len(candidates) - 1)]
    # On the face itself the two sides' +-1/2 cancel: its own solid angle is left out.
    return float(winding_numbers(mesh, mesh.vertices[mesh.faces[faces]].mean(axis=1), without=faces).mean())


def _faces(mesh: Mesh, budget: int | None) -> Check:
    count, parts = len(mesh.faces), int(face_components(mesh).max()) + 1
    sentence = f"{count:,} faces in {parts:,} {'part' if parts == 1 else 'parts'}"
    if budget is None:
        return Check("faces", None, count, None, sentence)
    return Check("faces", count <= budget, count, budget, f"{sentence}, of {budget:,} at most")


def _uv_checks(mesh: Mesh) -> list[Check]:
    size = TEXTURE_SIZE, TEXTURE_SIZE
    if mesh.material is not None:
        size = mesh.material.base_color.shape[1], mesh.material.base_color.shape[0]
    measured = measure_uvs(mesh, *size)
    return [
        _uv_inside(measured),
        Check(
            "uv overlap",
            measured.overlap <= MOST_OVERLAP,
            round(measured.overlap, 7),
            MOST_OVERLAP,
            f"{measured.overlap:.3%} of the used texels belong to several faces; {measured.covered:.0%} of "
            f"{size[0]} x {size[1]} texels are used",
        ),
        _uv_padding(measured),
        *_density(measured),
    ]


def _uv_inside(measured: UvMeasures) -> Check:
    inside = measured.outside <= MOST_OUTSIDE
    sentence = "all uvs lie in the texture" if inside else f"uvs lie up to {measured.outside:.3g} outside [0, 1]"
    return Check("uv inside", inside, round(measured.outside, 9), MOST_OUTSIDE, sentence)


def _uv_padding(measured: UvMeasures) -> Check:
    if measured.islands == 1 or not np.isfinite(measured.padding):
        return Check("uv padding", True, None, LEAST_PADDING, "one island, which nothing can bleed into")
    # Of centres of texels: a gap of whole texels may look up to one narrower on either side.
    ok = measured.padding >= LEAST_PADDING - 1
    sentence = f"{measured.islands:,} islands with at least {measured.padding:.1f} texels of padding each"
    return Check("uv padding", ok, round(measured.padding, 2), LEAST_PADDING, sentence)


def _density(measured: UvMeasures) -> list[Check]:
    low, middle, high = measured.density
    sentence = f"{middle:.4g} texels per unit of length ({low:.4g} at 5 %, {high:.4g} at 95 % of the surface)"
    stated = Check("texels", None, round(middle, 4), None, sentence)
    if not low > 0:
        return [
            stated,
            Check("stretch", False, None, MOST_STRETCH, "a part of the surface has no place in the texture"),
        ]
    stretch = high / low
    sentence = f"the texture is {stretch:.2f} times as dense where it is densest as where it is sparsest"
    return [stated, Check("stretch", stretch <= MOST_STRETCH, round(stretch, 4), MOST_STRETCH, sentence)]


def _distances(mesh: Mesh, reference: Mesh) -> list[Check]:
    """How far the mesh and what it stands for lie apart, by samples of both."""
    rng = np.random.default_rng(0)
    diagonal = reference.diagonal()
    there = point_to_mesh(sample_surface(mesh, SAMPLES, rng)[0], reference)
    back = point_to_mesh(sample_surface(reference, SAMPLES, rng)[0], mesh)
    distances = np.concatenate([there, back]) / diagonal
    mean, half, far = float(distances.mean()), *np.quantile(distances, (0.5, 0.95)).tolist()
    return [
        Check(
            "distance",
            mean <= MOST_DISTANCE,
            round(mean, 7),
            MOST_DISTANCE,
            f"{mean:.3%} of the diagonal from what it stands for on average, {half:.3%} in the median "
            f"(there {there.mean() / diagonal:.3%}, back {back.mean() / diagonal:.3%})",
        ),
        Check("distance 95%", far <= MOST_FAR, round(far, 7), MOST_FAR, f"95 % lie within {far:.3%} of the diagonal"),
    ]
