"""Edits of a finished run: kept as a list in RUN/edits.json and replayed, in order, on whatever is handed over.

The trained files stay as they are, so an edit can be undone and never adds up rounding. Each edit speaks of the frame
that the edits before it have left. The list is a file like any other: it is not trusted.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scene.cameras import Camera
from scene.errors import InputError
from scene.files import replacing, write_errors
from scene.gaussians import Gaussians
from scene.mesh import Mesh
from scene.mesh_crop import crop_mesh
from scene.untrusted import MAX_SPLATS, parse_json, read_bytes

NAME = "edits.json"
FORMAT = 1
MOST_EDITS = 1000
MOST_SCALE = 1e9

Vector = tuple[float, float, float]


@dataclass(frozen=True)
class RemoveFloaters:
    """Without these splats. splats: how many there were when they were chosen.  ids: ascending."""

    splats: int
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Crop:
    """Only what lies in the box; meshes are cut at its sides."""

    low: Vector
    high: Vector


@dataclass(frozen=True)
class Up:
    """Turned about the origin, the shortest way, so that this direction becomes +Z."""

    direction: Vector


@dataclass(frozen=True)
class Scale:
    """So many times as large; from then on lengths are metres."""

    factor: float


@dataclass(frozen=True)
class Measure:
    """Scaled so that the distance from a to b is this many metres."""

    a: Vector
    b: Vector
    length: float


Edit = RemoveFloaters | Crop | Up | Scale | Measure
OPS: dict[str, type[Edit]] = {
    "remove_floaters": RemoveFloaters,
    "crop": Crop,
    "up": Up,
    "scale": Scale,
    "measure": Measure,
}
_NAMES = {kind: name for name, kind in OPS.items()}


@dataclass(frozen=True)
class Edits:
    """A list of edits and what it makes of splats, meshes, cameras and points."""

    items: tuple[Edit, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.items)

    def then(self, edit: Edit) -> Edits:
        """These edits and one more. Raises InputError when it is not sound."""
        if len(self.items) >= MOST_EDITS:
            raise InputError(f"a run keeps {MOST_EDITS} edits at most; undo some")
        return _checked_total(Edits((*self.items, _checked(edit))))

    def of_gaussians(self, gaussians: Gaussians) -> Gaussians:
        """The edited splats. Raises InputError when the list was made for others, or leaves none."""
        for edit in self.items:
            match edit:
                case RemoveFloaters():
                    gaussians = _without(gaussians, edit)
                case Crop():
                    gaussians = gaussians.select(_inside(gaussians.means, edit))
                    if not len(gaussians):
                        raise InputError("the edits crop the whole scene away; undo the last, or crop a larger box")
                case Up():
                    gaussians = gaussians.turned(_rotation(edit))
                case Scale() | Measure():
                    factor = _factor(edit)
                    gaussians = replace(
                        gaussians, means=gaussians.means * factor, log_scales=gaussians.log_scales + math.log(factor)
                    )
        return gaussians

    def of_mesh(self, mesh: Mesh) -> Mesh:
        """The edited mesh. Raises InputError when nothing of it is left."""
        for edit in self.items:
            match edit:
                case RemoveFloaters():
                    pass  # a mesh is made of surfaces that several views agree on
                case Crop():
                    mesh = crop_mesh(mesh, edit.low, edit.high)
                    if not len(mesh.faces):
                        raise InputError("the edits crop the whole mesh away; undo the last, or crop a larger box")
                case Up() | Scale() | Measure():
                    mesh = mesh.transformed(_similarity(edit).numpy())
        return mesh

    def of_camera(self, camera: Camera) -> Camera:
        """The camera that sees in the edited scene what this one sees in the scene as it was trained."""
        c2w = camera.c2w.double()
        for edit in self.items:
            if isinstance(edit, Up):
                c2w = _similarity(edit).to(c2w) @ c2w
            elif isinstance(edit, Scale | Measure):
                c2w = torch.cat([torch.cat([c2w[:3, :3], _factor(edit) * c2w[:3, 3:]], dim=1), c2w[3:]])
        return replace(camera, c2w=c2w.to(camera.c2w))

    def camera_before(self, camera: Camera) -> Camera:
        """The camera that sees in the scene as it was trained what this one sees in the edited scene."""
        c2w = camera.c2w.double()
        for edit in reversed(self.items):
            if isinstance(edit, Up):
                c2w = _similarity(edit).T.to(c2w) @ c2w
            elif isinstance(edit, Scale | Measure):
                c2w = torch.cat([torch.cat([c2w[:3, :3], c2w[:3, 3:] / _factor(edit)], dim=1), c2w[3:]])
        return replace(camera, c2w=c2w.to(camera.c2w))

    def of_points(self, points: Tensor) -> Tensor:
        """[Q, 3 + K] those of the points [P, 3 + K] that are left, moved; what follows the coordinates comes along."""
        for edit in self.items:
            if isinstance(edit, Crop):
                points = points[_inside(points[:, :3], edit)]
            elif isinstance(edit, Up | Scale | Measure):
                xyz = points[:, :3].double() @ _similarity(edit)[:3, :3].T
                points = torch.cat([xyz.to(points), points[:, 3:]], dim=1)
        return points

    def of_up(self, up: Tensor | None) -> Tensor | None:
        """[3] the up direction after the edits; +Z from the last `up` edit on."""
        known = any(isinstance(edit, Up) for edit in self.items)
        return torch.tensor([0.0, 0.0, 1.0]) if known else up

    def metric(self, before: bool) -> bool:
        """Whether lengths are metres after the edits."""
        return before or any(isinstance(edit, Scale | Measure) for edit in self.items)

    def sentences(self) -> tuple[str, ...]:
        """Each edit, for people."""
        return tuple(describe(edit) for edit in self.items)


def load(folder: Path) -> Edits:
    """The edits of a run folder; none when it has no edits.json. Raises InputError when that is not sound."""
    path = Path(folder) / NAME
    if not path.exists() and not path.is_symlink():
        return Edits()
    content = parse_json(read_bytes(path), str(path))
    try:
        if not isinstance(content, dict) or set(content) != {"format", "edits"} or content["format"] != FORMAT:
            raise InputError(f'expected {{"format": {FORMAT}, "edits": [...]}}')
        if not isinstance(content["edits"], list) or len(content["edits"]) > MOST_EDITS:
            raise InputError(f"expected a list of at most {MOST_EDITS} edits")
        return _checked_total(Edits(tuple(_from_json(entry) for entry in content["edits"])))
    except InputError as error:
        raise InputError(
            f"{path} does not hold the edits of a run: {error}; mend it, or delete it to undo all"
        ) from None


def save(folder: Path, edits: Edits) -> None:
    """Write the edits of a run folder, atomically. Raises ResourceError when the disk is full."""
    path = Path(folder) / NAME
    entries = [{"op": _NAMES[type(edit)], **dataclasses.asdict(edit)} for edit in edits.items]
    lines = ",\n".join(json.dumps(entry, allow_nan=False) for entry in entries)  # one for each edit, for people
    with write_errors(path, "keep the edits"), replacing(path) as file:
        file.write(f'{{"format": {FORMAT}, "edits": [\n{lines}\n]}}\n'.encode())


def describe(edit: Edit) -> str:
    """One edit as a sentence."""
    match edit:
        case RemoveFloaters():
            return f"{len(edit.ids):,} of {edit.splats:,} splats removed as floaters"
        case Crop():
            return f"cropped to the box from {_text(edit.low)} to {_text(edit.high)}"
        case Up():
            return f"turned so that {_text(edit.direction)} is +Z"
        case Scale():
            return f"scaled by {edit.factor:g}; lengths are metres"
        case Measure():
            return (
                f"scaled by {_factor(edit):g}, so that {_text(edit.a)} and {_text(edit.b)} are {edit.length:g} m apart"
            )


def _text(vector: Vector) -> str:
    return "(" + ", ".join(f"{value:g}" for value in vector) + ")"


def _from_json(entry: Any) -> Edit:
    """An edit of the file. Raises InputError when it is none."""
    name = entry.get("op") if isinstance(entry, dict) else None
    if not isinstance(name, str) or name not in OPS:
        raise InputError(f"{str(name)[:40]!r} is no edit; there are {', '.join(OPS)}")
    kind = OPS[name]
    names = [field.name for field in dataclasses.fields(kind)]
    if set(entry) != {"op", *names}:
        raise InputError(f"the edit {name!r} has {', '.join(names)}, got {', '.join(map(str, list(entry)[:8]))[:80]}")
    values: list[Any] = [tuple(entry[key]) if isinstance(entry[key], list) else entry[key] for key in names]
    return _checked(kind(*values))


def _checked(edit: Edit) -> Edit:
    """The edit with plain floats. Raises InputError when its values make no sense."""
    match edit:
        case RemoveFloaters(splats, ids):
            if type(splats) is not int or not 0 <= splats <= MAX_SPLATS or not isinstance(ids, tuple):
                raise InputError("remove_floaters needs a number of splats and a list of ids")
            ascending = all(type(i) is int for i in ids) and all(a < b for a, b in zip((-1, *ids), (*ids, splats)))
            if not ascending:
                raise InputError("remove_floaters needs ids that ascend and lie below the number of splats")
            return edit
        case Crop(low, high):
            low, high = _vector(low, "low"), _vector(high, "high")
            if not all(a < b for a, b in zip(low, high, strict=True)):
                raise InputError(f"a crop box needs a lower and a higher corner, got {_text(low)} and {_text(high)}")
            return Crop(low, high)
        case Up(direction):
            direction = _vector(direction, "direction")
            if not 1e-6 < math.hypot(*direction) < 1e6:
                raise InputError(f"up needs a direction with a length, got {_text(direction)}")
            return Up(direction)
        case Scale(factor):
            return Scale(_positive(factor, "a scale"))
        case Measure(a, b, length):
            measured = Measure(_vector(a, "a"), _vector(b, "b"), _positive(length, "a length"))
            if not math.dist(measured.a, measured.b) > 0:
                raise InputError("a measure needs two points that differ")
            _positive(_factor(measured), "the scale that a measure leads to")
            return measured


def _checked_total(edits: Edits) -> Edits:
    """The edits, unless they scale beyond measure together: single precision would not hold the scene."""
    logs = [math.log(_factor(edit)) for edit in edits.items if isinstance(edit, Scale | Measure)]
    if abs(sum(logs)) > math.log(MOST_SCALE):
        raise InputError(f"scales must lie between {1 / MOST_SCALE:g} and {MOST_SCALE:g} in all")
    return edits


def _vector(values: Any, name: str) -> Vector:
    if not isinstance(values, tuple | list) or len(values) != 3 or not all(map(_is_number, values)):
        raise InputError(f"{name} must be three finite numbers, got {str(values)[:60]}")
    x, y, z = map(float, values)
    return (x, y, z)


def _positive(value: Any, name: str) -> float:
    if not _is_number(value) or not 1 / MOST_SCALE <= value <= MOST_SCALE:
        raise InputError(f"{name} must lie between {1 / MOST_SCALE:g} and {MOST_SCALE:g}, got {str(value)[:40]}")
    return float(value)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e12  # NaN is not less than anything


def _without(gaussians: Gaussians, edit: RemoveFloaters) -> Gaussians:
    if len(gaussians) != edit.splats:
        raise InputError(
            f"floaters were removed from a scene of {edit.splats:,} splats, this one has {len(gaussians):,}: it was "
            "trained anew since; undo that edit and remove them again"
        )
    keep = torch.ones(len(gaussians), dtype=torch.bool)
    keep[list(edit.ids)] = False
    return gaussians.select(keep)


def _inside(points: Tensor, edit: Crop) -> Tensor:
    return ((points >= points.new_tensor(edit.low)) & (points <= points.new_tensor(edit.high))).all(dim=1)


def _factor(edit: Scale | Measure) -> float:
    return edit.factor if isinstance(edit, Scale) else edit.length / math.dist(edit.a, edit.b)


def _similarity(edit: Up | Scale | Measure) -> Tensor:
    """[4, 4] float64, after from before."""
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] = _rotation(edit) if isinstance(edit, Up) else _factor(edit) * matrix[:3, :3]
    return matrix


def _rotation(edit: Up) -> Tensor:
    """[3, 3] float64: the smallest rotation that brings the direction to +Z (Rodrigues' formula)."""
    x, y, z = np.asarray(edit.direction) / math.hypot(*edit.direction)
    if z < -1 + 1e-12:
        return torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))  # half a turn about +X
    cross = np.array([[0.0, 0.0, -x], [0.0, 0.0, -y], [x, y, 0.0]])
    return torch.from_numpy(np.eye(3) + cross + cross @ cross / (1 + z))
