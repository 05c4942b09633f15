"""Collects the primitives of one thing in plain numbers and hands them over as an `ObjectModel`.

A thing is built in its own frame: front +x, up +z, its left +y. Its size is free: `objects.py` scales it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from generation.draws import Draw
from generation.shapes import Kind, Material, ObjectModel

Vector = tuple[float, float, float]
Rotation = tuple[Vector, Vector, Vector]  # rows
UPRIGHT: Rotation = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


@dataclass
class Builder:
    """Primitives so far, and what the caption wants: `tall` and `wide` stretch the thing, colors are by part.

    Parts without a color in `colors` have the one that the class gives them; the material is that of colored parts.
    """

    noun: str
    draw: Draw
    colors: Mapping[str, Vector]
    material: Material = Material.MATTE
    tall: float = 1.0
    wide: float = 1.0
    names: list[str] = field(default_factory=list)
    rows: list[list[float]] = field(default_factory=list)

    def add(
        self,
        kind: Kind,
        part: str,
        at: Vector,
        size: Vector,
        rgb: Vector | None = None,
        rotation: Rotation = UPRIGHT,
    ) -> None:
        """One primitive; rgb is its color where nobody names the part's."""
        own = self.colors.get(part, rgb)
        assert own is not None, f"{self.noun} {part} has no color"
        material = self.material if part in self.colors else Material.MATTE
        if part not in self.names:
            self.names.append(part)
        world = [number for row, place in zip(rotation, at) for number in (*row, place)]
        self.rows.append([float(kind), float(material), float(self.names.index(part)), *own, *size, *world])

    def box(self, part: str, at: Vector, half: Vector, rgb: Vector | None = None, rotation: Rotation = UPRIGHT) -> None:
        """A box by its centre and half edges."""
        self.add(Kind.BOX, part, at, half, rgb, rotation)

    def ball(self, part: str, at: Vector, half: float | Vector, rgb: Vector | None = None) -> None:
        """A ball, or an ellipsoid along the axes."""
        self.add(Kind.ELLIPSOID, part, at, half if isinstance(half, tuple) else (half, half, half), rgb)

    def rod(self, part: str, start: Vector, end: Vector, radius: float, rgb: Vector | None = None) -> None:
        """A capsule between the centres of its ends."""
        self._between(Kind.CAPSULE, part, start, end, (radius, radius), rgb)

    def tube(self, part: str, start: Vector, end: Vector, radius: float, rgb: Vector | None = None) -> None:
        """A cylinder between the centres of its ends."""
        self._between(Kind.CYLINDER, part, start, end, (radius, radius), rgb)

    def cone(
        self, part: str, start: Vector, end: Vector, radii: tuple[float, float], rgb: Vector | None = None
    ) -> None:
        """A frustum between the centres of its ends; radii at start and end."""
        self._between(Kind.CONE, part, start, end, radii, rgb)

    def ring(
        self, part: str, at: Vector, radius: float, thickness: float, rgb: Vector | None = None, pieces: int = 8
    ) -> None:
        """A torus around +z of capsules."""
        around = [
            (
                at[0] + radius * math.cos(2 * math.pi * k / pieces),
                at[1] + radius * math.sin(2 * math.pi * k / pieces),
                at[2],
            )
            for k in range(pieces + 1)
        ]
        for start, end in itertools.pairwise(around):
            self.rod(part, start, end, thickness, rgb)

    def _between(
        self, kind: Kind, part: str, start: Vector, end: Vector, radii: tuple[float, float], rgb: Vector | None
    ) -> None:
        middle = tuple(0.5 * (a + b) for a, b in zip(start, end))
        along = [b - a for a, b in zip(start, end)]
        length = math.sqrt(sum(number * number for number in along))
        axis = [number / length for number in along]
        self.add(kind, part, (middle[0], middle[1], middle[2]), (*radii, length / 2), rgb, _to_axis(axis))

    def model(self) -> ObjectModel:
        """What was built, upright on nothing in particular."""
        table = torch.tensor(self.rows)
        world = torch.eye(4).repeat(len(table), 1, 1)
        world[:, :3] = table[:, 9:].view(-1, 3, 4)
        numbers = table[:, :3].long()
        return ObjectModel(
            kind=numbers[:, 0],
            world_from_primitive=world,
            size=table[:, 6:9].contiguous(),
            rgb=table[:, 3:6].contiguous(),
            material=numbers[:, 1],
            part=numbers[:, 2],
            instance=torch.zeros(len(table), dtype=torch.int64),
            parts=tuple(f"{self.noun} {name}" for name in self.names),
        )


def _to_axis(axis: Sequence[float]) -> Rotation:
    """The shortest turn that takes +z to a unit axis."""
    x, y, z = axis
    if z > 1 - 1e-9:
        return UPRIGHT
    if z < 1e-9 - 1:
        return ((1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, -1.0))
    k = 1 / (1 + z)
    return ((1 - x * x * k, -x * y * k, x), (-x * y * k, 1 - y * y * k, y), (-x, -y, z))


def turn(axis: str, degrees: float) -> Rotation:
    """A turn about x, y or z."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    if axis == "x":
        return ((1.0, 0.0, 0.0), (0.0, c, -s), (0.0, s, c))
    if axis == "y":
        return ((c, 0.0, s), (0.0, 1.0, 0.0), (-s, 0.0, c))
    return ((c, -s, 0.0), (s, c, 0.0), (0.0, 0.0, 1.0))
