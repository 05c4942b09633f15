"""The posable human: rest pose, angles by hand, mirrors, gradients."""

from __future__ import annotations

import math

import pytest
import torch

from generation.human import (
    CAPSULES,
    DOF,
    JOINTS,
    LIMITS,
    NAMES,
    POSES,
    Figure,
    both,
    mirrored,
    pose_human,
    rest_pose,
)

REST = pose_human(rest_pose().double())
MIRROR = torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)


def joint(pose: torch.Tensor, name: str) -> torch.Tensor:
    return pose_human(pose.double()).joints[JOINTS.index(name)]


def random_pose(seed: int) -> torch.Tensor:
    low, high = torch.tensor(LIMITS, dtype=torch.float64).unbind(1)
    return low + (high - low) * torch.rand(DOF, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_fourteen_capsules_stand_on_the_ground_and_are_one_high() -> None:
    assert len(CAPSULES) == 14 and len(NAMES) == len(LIMITS) == DOF == 20
    ends = (
        REST.world_from_capsule[:, :3, 3]
        + torch.stack([-1.0 * REST.size[:, 2:], REST.size[:, 2:]]) * (REST.world_from_capsule[:, :3, 2])
    )
    low = (ends[..., 2] - REST.size[:, 0]).min()
    high = (ends[..., 2] + REST.size[:, 0]).max()
    assert float(low) == pytest.approx(0.0, abs=0.02) and float(high) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize(
    ("angles", "name", "wanted"),
    [
        (both(arm_lift=math.pi / 2), "left wrist", (1.0, 0.0, 0.0)),
        (both(arm_spread=math.pi / 2), "left wrist", (0.0, 1.0, 0.0)),
        (both(arm_spread=math.pi / 2), "right wrist", (0.0, -1.0, 0.0)),
        (both(leg_lift=math.pi / 2), "right ankle", (1.0, 0.0, 0.0)),
    ],
)
def test_limbs_go_where_their_angles_say(angles: dict, name: str, wanted: tuple[float, float, float]) -> None:
    base = joint(rest_pose(**angles), name.replace("wrist", "shoulder").replace("ankle", "hip"))
    length = 0.32 if "wrist" in name else 0.44
    moved = (joint(rest_pose(**angles), name) - base) / length
    torch.testing.assert_close(moved, torch.tensor(wanted, dtype=torch.float64), atol=1e-6, rtol=0)


def test_elbows_bend_forward_and_knees_back() -> None:
    figure, pose = Figure(), rest_pose(left_elbow=math.pi / 2, right_knee=math.pi / 2)
    forearm = joint(pose, "left wrist") - joint(pose, "left elbow")
    shin = joint(pose, "right ankle") - joint(pose, "right knee")
    torch.testing.assert_close(forearm, torch.tensor([figure.forearm, 0, 0]).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(shin, torch.tensor([-figure.shin, 0, 0]).double(), atol=1e-6, rtol=0)
    assert float(joint(rest_pose(spine_bend=0.5), "head")[0]) > 0.1
    assert float(joint(rest_pose(spine_lean=0.3), "head")[1]) > 0.05  # to its left


def test_bones_keep_their_lengths_in_every_pose() -> None:
    bones = (("shoulder", "elbow"), ("elbow", "wrist"), ("hip", "knee"), ("knee", "ankle"))
    pairs = [(f"{side} {a}", f"{side} {b}") for side in ("left", "right") for a, b in bones]
    for seed in range(5):
        joints = pose_human(random_pose(seed)).joints
        for a, b in pairs:
            now, still = (j[JOINTS.index(a)] - j[JOINTS.index(b)] for j in (joints, REST.joints))
            assert float(now.norm()) == pytest.approx(float(still.norm()), abs=1e-9)


def test_a_mirrored_pose_is_seen_in_a_mirror() -> None:
    pose = random_pose(3)
    plain, other = pose_human(pose), pose_human(mirrored(pose))
    sides = {"left": "right", "right": "left"}
    swapped = [JOINTS.index(" ".join(sides.get(word, word) for word in name.split())) for name in JOINTS]
    torch.testing.assert_close(other.joints, (plain.joints * MIRROR)[swapped], atol=1e-9, rtol=0)
    torch.testing.assert_close(mirrored(mirrored(pose)), pose)


def test_gradients_are_those_of_finite_differences_and_batches_are_poses_side_by_side() -> None:
    pose = random_pose(1).requires_grad_()

    def place(angles: torch.Tensor) -> torch.Tensor:
        human = pose_human(angles)
        return torch.cat([human.joints.flatten(), human.world_from_capsule[..., :3, 3].flatten()])

    assert torch.autograd.gradcheck(place, (pose,), atol=1e-6, fast_mode=True)
    poses = torch.stack([random_pose(seed) for seed in range(3)])
    batch = pose_human(poses.detach())
    for index in range(3):
        torch.testing.assert_close(batch.world_from_capsule[index], pose_human(poses[index]).world_from_capsule)


def test_a_root_carries_the_whole_figure_along() -> None:
    root = torch.eye(4, dtype=torch.float64)
    root[:3, :3] = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    root[:3, 3] = torch.tensor([1.0, 2.0, 3.0])
    pose = random_pose(6)
    wanted = pose_human(pose).joints @ root[:3, :3].T + root[:3, 3]
    torch.testing.assert_close(pose_human(pose, root).joints, wanted)


def test_named_poses_are_within_the_limits_of_the_joints() -> None:
    for name, angles in POSES.items():
        for number, (low, high) in zip(rest_pose(**angles).tolist(), LIMITS, strict=True):
            assert low <= number <= high, name
