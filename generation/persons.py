"""Clothed persons: the posable human with clothes, hair, hands and a face."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from generation.human import CAPSULES, LIMITS, POSES, Figure, pose_human, rest_pose
from generation.object_builder import Builder, Vector
from generation.shapes import Kind, ObjectModel

_SKINS: tuple[Vector, ...] = ((0.96, 0.80, 0.68), (0.87, 0.66, 0.50), (0.66, 0.45, 0.31), (0.42, 0.27, 0.18))
_HAIRS: tuple[Vector, ...] = ((0.12, 0.09, 0.08), (0.35, 0.20, 0.10), (0.78, 0.60, 0.28), (0.55, 0.25, 0.10))
_SHOES: tuple[Vector, ...] = ((0.12, 0.12, 0.13), (0.35, 0.22, 0.13), (0.90, 0.90, 0.88))
_CLOTHES = {
    "torso": "shirt",
    "chest": "shirt",
    "upper arm": "shirt",
    "head": "skin",
    "forearm": "skin",
    "foot": "shoes",
}
_IDLE = ("standing", "standing", "waving", "walking", "star")


def draw_figure(builder: Builder) -> Figure:
    """A build: proportions vary a little, and girth with the caption's proportion."""
    legs, arms = builder.draw.between(0.95, 1.05), builder.draw.between(0.95, 1.05)
    return Figure(
        shoulders=0.115 * (0.6 + 0.4 * builder.wide),
        upper_arm=0.165 * arms,
        forearm=0.155 * arms,
        thigh=0.225 * legs * (0.4 + 0.6 * builder.tall),
        shin=0.215 * legs * (0.4 + 0.6 * builder.tall),
        girth=builder.wide * builder.draw.between(0.95, 1.05),
    )


def draw_pose(builder: Builder, angles: Mapping[str, float] | None) -> Tensor:
    """[20] a pose by its angles' names, or an idle one, slightly varied within the limits of the joints."""
    pose = rest_pose(**(POSES[builder.draw.choice(_IDLE)] if angles is None else angles))
    loose = 0.06 if angles is None else 0.015  # radians; in contact with something, not to lose it
    moved = pose + torch.tensor([builder.draw.between(-loose, loose) for _ in range(len(pose))])
    low, high = torch.tensor(LIMITS).unbind(1)
    return torch.minimum(torch.maximum(moved, low), high)


def person(builder: Builder, angles: Mapping[str, float] | None = None) -> ObjectModel:
    """A person in the pose of these angles (`human.rest_pose`), None for an idle one; front +x."""
    return dressed(builder, draw_pose(builder, angles), draw_figure(builder))


def dressed(builder: Builder, pose: Tensor, figure: Figure) -> ObjectModel:
    """The human in `pose` [20] with clothes on its capsules and what makes it a person."""
    skin, hair, shoes = (builder.draw.choice(options) for options in (_SKINS, _HAIRS, _SHOES))
    natural = {"skin": skin, "hair": hair, "shoes": shoes}
    human = pose_human(pose, figure=figure)
    for name, world, size in zip(CAPSULES, human.world_from_capsule, human.size):
        part = _CLOTHES.get(name.removeprefix("left ").removeprefix("right "), "trousers")
        _add(builder, Kind.CAPSULE, part, world, tuple(size.tolist()), natural.get(part))
    head = human.world_from_head
    for part, kind, at, size in (
        ("skin", Kind.CYLINDER, (0.0, 0.0, -0.02), (0.032, 0.032, 0.05)),
        ("hair", Kind.ELLIPSOID, (-0.016, 0.0, 0.085), (0.072, 0.078, 0.074)),
    ):
        _add(builder, kind, part, head @ _shift(at), size, natural[part])
    for y in (-0.027, 0.027):
        _add(
            builder, Kind.ELLIPSOID, "eyes", head @ _shift((0.066, y, 0.068)), (0.011, 0.011, 0.013), (0.08, 0.08, 0.1)
        )
    for joint, capsule in ((5, 5), (8, 7)):
        hand = human.world_from_capsule[capsule].clone()
        hand[:3, 3] = human.joints[joint] + 0.03 * hand[:3, 2]
        _add(builder, Kind.ELLIPSOID, "skin", hand, (0.030, 0.036, 0.045), skin)
    return builder.model()


def _shift(at: Vector) -> Tensor:
    frame = torch.eye(4)
    frame[:3, 3] = torch.tensor(at)
    return frame


def _add(builder: Builder, kind: Kind, part: str, world: Tensor, size: Vector, rgb: Vector | None) -> None:
    rows = world.tolist()
    rotation = tuple((row[0], row[1], row[2]) for row in rows[:3])
    builder.add(kind, part, (rows[0][3], rows[1][3], rows[2][3]), size, rgb, (rotation[0], rotation[1], rotation[2]))
