"""A posable human of 14 capsules and 20 angles, differentiable in its pose; height about 1, feet on z = 0 at rest.

Frame: front +x, up +z, its left +y. At rest it stands with hanging arms. Angles are radians, and mirrored limbs have
mirrored angles: the same numbers left and right are a symmetric pose.

    0-2   spine: bends forward, sideways to the left, turns to the left          3      head nods forward
    4-6   left shoulder: lifts forward, lifts sideways, turns in    7      left elbow        8-11   the right arm
    12-14 left hip: lifts forward, lifts sideways, turns in         15     left knee         16-19  the right leg
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

DOF = 20
CAPSULES: tuple[str, ...] = (
    *("pelvis", "torso", "chest", "head"),
    *("left upper arm", "left forearm", "right upper arm", "right forearm"),
    *("left thigh", "left shin", "left foot", "right thigh", "right shin", "right foot"),
)
JOINTS: tuple[str, ...] = (
    *("pelvis", "spine", "head", "left shoulder", "left elbow", "left wrist"),
    *("right shoulder", "right elbow", "right wrist"),
    *("left hip", "left knee", "left ankle", "right hip", "right knee", "right ankle"),
)
_ARM = ((-0.6, 3.0), (-0.1, 2.6), (-0.8, 0.8), (0.0, 2.4))
_LEG = ((-0.5, 2.0), (-0.1, 1.0), (-0.5, 0.5), (0.0, 2.3))
LIMITS: tuple[tuple[float, float], ...] = (
    (-0.3, 1.2),
    (-0.4, 0.4),
    (-0.6, 0.6),
    (-0.5, 0.6),
    *_ARM,
    *_ARM,
    *_LEG,
    *_LEG,
)

# The mirrored pose takes each of these angles, with these signs.
MIRRORED: tuple[int, ...] = (0, 1, 2, 3, *range(8, 12), *range(4, 8), *range(16, 20), *range(12, 16))
MIRROR_SIGNS: tuple[float, ...] = (1.0, -1.0, -1.0, *([1.0] * 17))


@dataclass(frozen=True)
class Figure:
    """Lengths of a human in units of its height; `girth` thickens all limbs."""

    torso: float = 0.29  # spine to shoulders
    shoulders: float = 0.115  # to each side
    hips: float = 0.062
    upper_arm: float = 0.165
    forearm: float = 0.155
    thigh: float = 0.225
    shin: float = 0.215
    girth: float = 1.0

    @property
    def standing(self) -> float:
        """Height of the pelvis above the ground when the legs are straight."""
        return self.thigh + self.shin + 0.075


@dataclass(frozen=True)
class PosedHuman:
    """world_from_capsule: [..., 14, 4, 4], z along each capsule.  size: [14, 3] as of a CAPSULE (`shapes.py`).

    joints: [..., 15, 3] in the world, in the order of JOINTS.  world_from_head: [..., 4, 4].
    """

    world_from_capsule: Tensor
    size: Tensor
    joints: Tensor
    world_from_head: Tensor


def rest_pose(**angles: float) -> Tensor:
    """[20] zeros, with some angles named as in `NAMES`, such as left_elbow=1.0."""
    pose = torch.zeros(DOF)
    for name, angle in angles.items():
        pose[NAMES.index(name)] = angle
    return pose


NAMES: tuple[str, ...] = (
    *("spine_bend", "spine_lean", "spine_turn", "nod"),
    *(f"{side}_{name}" for side in ("left", "right") for name in ("arm_lift", "arm_spread", "arm_turn", "elbow")),
    *(f"{side}_{name}" for side in ("left", "right") for name in ("leg_lift", "leg_spread", "leg_turn", "knee")),
)


def both(**angles: float) -> dict[str, float]:
    """The same angles for left and right: both(elbow=1.0) is left_elbow and right_elbow."""
    return {f"{side}_{name}": angle for name, angle in angles.items() for side in ("left", "right")}


def mirrored(pose: Tensor) -> Tensor:
    """The pose [..., 20] seen in a mirror: y becomes -y."""
    return pose[..., list(MIRRORED)] * pose.new_tensor(MIRROR_SIGNS)


def pose_human(pose: Tensor, root: Tensor | None = None, figure: Figure = Figure()) -> PosedHuman:
    """Capsules and joints of a pose.

    pose: [..., 20] radians.  root: [..., 4, 4] rigid world from the frame of the standing human; None leaves it there.
    Differentiable in both.
    """
    f, still = figure, pose.new_zeros(pose.shape[:-1])
    base = _frame(_rotation("z", still), (0.0, 0.0, f.standing))
    pelvis = base if root is None else root @ base
    bend, lean, turned, nod = pose[..., :4].unbind(-1)
    spine_turn = _rotation("y", bend) @ _rotation("x", -lean) @ _rotation("z", turned)
    spine = pelvis @ _frame(spine_turn, (0.0, 0.0, 0.03))
    head = spine @ _frame(_rotation("y", nod), (0.0, 0.0, f.torso + 0.04))
    limbs: dict[str, list[Tensor]] = {}
    for side, sign, at in (("left", 1.0, 4), ("right", -1.0, 8)):
        lift, spread, twist, elbow = pose[..., at : at + 4].unbind(-1)
        shoulder = spine @ _frame(_ball_joint(lift, spread, twist, sign), (0.0, sign * f.shoulders, f.torso - 0.035))
        forearm = shoulder @ _frame(_rotation("y", -elbow), (0.0, 0.0, -f.upper_arm))
        lift, spread, twist, knee = pose[..., at + 8 : at + 12].unbind(-1)
        hip = pelvis @ _frame(_ball_joint(lift, spread, twist, sign), (0.0, sign * f.hips, -0.02))
        shin = hip @ _frame(_rotation("y", knee), (0.0, 0.0, -f.thigh))
        limbs[side] = [shoulder, forearm, hip, shin]
    return _assembled(f, pelvis, spine, head, limbs)


def _assembled(f: Figure, pelvis: Tensor, spine: Tensor, head: Tensor, limbs: dict[str, list[Tensor]]) -> PosedHuman:
    """Capsules in the order of CAPSULES, joints in that of JOINTS."""
    g = f.girth
    across, up, down, ahead = (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.0, 0.0, -1.0), (1.0, 0.0, 0.0)
    rows = [
        (pelvis, (0.0, -0.045, 0.0), across, 0.09, 0.070 * g),
        (spine, (0.0, 0.0, 0.04), up, f.torso - 0.14, 0.080 * g),
        (spine, (0.0, -0.065, f.torso - 0.07), across, 0.13, 0.064 * g),
        (head, (0.0, 0.0, 0.045), up, 0.035, 0.072),
    ]
    for side in ("left", "right"):
        upper, lower = limbs[side][:2]
        rows += [
            (upper, (0.0, 0.0, 0.0), down, f.upper_arm, 0.037 * g),
            (lower, (0.0, 0.0, 0.0), down, f.forearm, 0.031 * g),
        ]
    for side in ("left", "right"):
        thigh, shin = limbs[side][2:]
        rows += [
            (thigh, (0.0, 0.0, 0.0), down, f.thigh, 0.052 * g),
            (shin, (0.0, 0.0, 0.0), down, f.shin, 0.041 * g),
            (shin, (0.0, 0.0, -f.shin - 0.02), ahead, 0.085, 0.036),
        ]
    frames = torch.stack(
        [frame @ _capsule_frame(start, along, length, pelvis) for frame, start, along, length, _ in rows], -3
    )
    size = pelvis.new_tensor([(radius, radius, length / 2) for *_, length, radius in rows])
    joints = [pelvis, spine, head]
    for side, below in (("left", 0), ("right", 0), ("left", 2), ("right", 2)):
        first, second = limbs[side][below : below + 2]
        end = (0.0, 0.0, -(f.forearm if below == 0 else f.shin))
        joints += [first, second, second @ _frame(_rotation("z", second.new_zeros(second.shape[:-2])), end)]
    return PosedHuman(frames, size, torch.stack([joint[..., :3, 3] for joint in joints], -2), head)


def _rotation(axis: str, angle: Tensor) -> Tensor:
    """[..., 3, 3] about x, y or z by angles [...]."""
    c, s, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    rows = {
        "x": (one, zero, zero, zero, c, -s, zero, s, c),
        "y": (c, zero, s, zero, one, zero, -s, zero, c),
        "z": (c, -s, zero, s, c, zero, zero, zero, one),
    }[axis]
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def _ball_joint(lift: Tensor, spread: Tensor, twist: Tensor, side: float) -> Tensor:
    """A hanging limb lifted forward, spread outward and turned inward; side 1 left, -1 right."""
    return _rotation("y", -lift) @ _rotation("x", side * spread) @ _rotation("z", -side * twist)


def _frame(rotation: Tensor, at: tuple[float, float, float]) -> Tensor:
    """[..., 4, 4] of a rotation and a constant offset."""
    offset = rotation.new_tensor(at)[:, None].expand(*rotation.shape[:-2], 3, 1)
    last = rotation.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(*rotation.shape[:-2], 1, 4)
    return torch.cat([torch.cat([rotation, offset], dim=-1), last], dim=-2)


def _capsule_frame(
    start: tuple[float, float, float], along: tuple[float, float, float], length: float, like: Tensor
) -> Tensor:
    """[4, 4] frame in the middle of a capsule whose z runs along an axis."""
    turned = {
        (0.0, 0.0, 1.0): [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
        (0.0, 0.0, -1.0): [[1, 0, 0], [0, -1, 0], [0, 0, -1]],
        (0.0, 1.0, 0.0): [[1, 0, 0], [0, 0, 1], [0, -1, 0]],
        (1.0, 0.0, 0.0): [[0, 0, 1], [0, 1, 0], [-1, 0, 0]],
    }[along]
    middle = tuple(a + 0.5 * length * b for a, b in zip(start, along))
    return _frame(like.new_tensor(turned), (middle[0], middle[1], middle[2]))


_STANDING = both(arm_spread=0.12, elbow=0.15, leg_spread=0.05)
POSES: dict[str, dict[str, float]] = {
    "standing": _STANDING,
    "waving": _STANDING | {"right_arm_spread": 2.3, "right_elbow": 0.7, "right_arm_lift": 0.2},
    "walking": {"left_arm_lift": -0.45, "right_arm_lift": 0.45, "left_leg_lift": 0.5, "right_leg_lift": -0.35}
    | both(arm_spread=0.12, elbow=0.4)
    | {"right_knee": 0.35, "left_knee": 0.1},
    "star": both(arm_spread=1.45, leg_spread=0.35),
    "sitting on": both(
        arm_lift=0.45, elbow=0.55, arm_spread=0.1, leg_lift=math.pi / 2, knee=math.pi / 2, leg_spread=0.12
    ),
    "standing on": both(arm_spread=0.9, elbow=0.2, leg_spread=0.08),
    "holding": both(arm_lift=0.75, elbow=0.85, arm_spread=0.06, arm_turn=0.12, leg_spread=0.08),
    "riding": both(arm_lift=0.85, elbow=0.35, arm_spread=0.05, leg_lift=0.95, leg_spread=0.62, knee=1.05),
    "leaning on": both(arm_lift=0.9, elbow=0.2, arm_spread=0.1, leg_spread=0.06) | {"spine_bend": 0.45, "nod": -0.2},
    "pushing": both(arm_lift=1.25, elbow=0.25, arm_spread=0.05)
    | {"spine_bend": 0.4, "nod": -0.25, "left_leg_lift": 0.55, "left_knee": 0.6, "right_leg_lift": -0.35},
}
