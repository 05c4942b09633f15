"""A person and a thing in contact: sitting on it, standing on it, holding, riding, leaning on, pushing it.

Both come standing on z = 0 around the z axis, front +x. The person moves to where the contact is, and takes a pose that
reaches it; a thing that is held comes to the hands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from generation.human import JOINTS, NAMES, POSES, pose_human, rest_pose
from generation.object_builder import turn
from generation.shapes import ObjectModel, union

HELD = 0.17  # radius of what is held, beside a person of height 1
PRESSED = 0.012  # how deep what touches goes in, so that no gap shows

MakePerson = Callable[[Mapping[str, float]], ObjectModel]


def interaction(verb: str, make_person: MakePerson, thing: ObjectModel) -> ObjectModel:
    """The person, made in a pose for the verb (`human.POSES`), and the thing."""
    is_board = thing.parts[0].startswith("board")
    if verb == "standing on" or (verb == "riding" and is_board):
        human = make_person(POSES["standing on"])
        return _on_top(human if verb == "standing on" else human.turned(torch.tensor(turn("z", 90))), thing)
    if verb == "sitting on":
        return _seated(make_person(POSES[verb]), thing)
    if verb == "riding":
        return _on_seat(make_person(POSES[verb]), thing, -0.05, thing.support(-0.05, 0.0))
    if verb == "holding":
        return _held(make_person(POSES[verb]), thing)
    if verb == "leaning on" and is_board:  # stood on end, as surfers do
        thing = thing.turned(torch.tensor(turn("y", -90)))
        thing = thing.moved(1.0, (0.0, 0.0, -float(thing.bounds()[0][2])))
    top = float(thing.bounds()[1][2])
    near_top = 0.7 * top if thing.parts[0].startswith("ball") else top - 0.03
    wanted = top + 0.01 if verb == "leaning on" else near_top
    return _reached(make_person(_reaching(POSES[verb], wanted)), thing)


def _hips(human: ObjectModel) -> Tensor:
    """Centre [3] of the pelvis, the first primitive of a person."""
    return human.world_from_primitive[0, :3, 3]


def _hands(human: ObjectModel) -> Tensor:
    """Centres [2, 3] of the hands, the last primitives of a person."""
    return human.world_from_primitive[-2:, :3, 3]


def _on_top(human: ObjectModel, thing: ObjectModel) -> ObjectModel:
    feet = float(human.bounds()[0][2])
    return union([human.moved(1.0, (0.0, 0.0, thing.support(0.0, 0.0) - feet - PRESSED)), thing])


def _on_seat(human: ObjectModel, thing: ObjectModel, x: float, height: float) -> ObjectModel:
    """The pelvis on a seat of that height, above (x, 0)."""
    hips = _hips(human)
    under = float(human.select(torch.tensor([0])).bounds()[0][2])
    return union([human.moved(1.0, (x - float(hips[0]), -float(hips[1]), height - under - PRESSED)), thing])


def _seated(human: ObjectModel, thing: ObjectModel) -> ObjectModel:
    """As far forward as lets the shins hang before the edge; on what is round, a little behind its top."""
    has_seat = any(name.endswith("seat") for name in thing.parts)
    seat = thing.select(thing.is_part("seat")) if has_seat else thing
    low, high = seat.bounds()
    middle, radius = 0.5 * float(low[0] + high[0]), 0.5 * float(high[0] - low[0])
    x = middle - 0.25 * radius if thing.parts[0].startswith("ball") else max(middle, float(high[0]) - 0.17)
    return _on_seat(human, thing, x, seat.support(x, 0.0))


def _held(human: ObjectModel, thing: ObjectModel) -> ObjectModel:
    """The thing shrunk to what two hands can carry, between them and before the chest; what is long, crosswise."""
    hands = _hands(human).mean(0)
    small = thing.moved(min(1.0, HELD / thing.reach()), (0.0, 0.0, 0.0))
    low, high = small.bounds()
    if float(high[0] - low[0]) > 1.5 * float(high[1] - low[1]):
        small = small.turned(torch.tensor(turn("z", 90)))
    low, high = small.bounds()
    offset = hands - 0.5 * (low + high)
    offset[0] = hands[0] - low[0] - 0.3 * (high[0] - low[0])
    return union([human, small.moved(1.0, offset)])


def _reaching(angles: Mapping[str, float], height: float) -> dict[str, float]:
    """The pose with the bend of the back and the lift of the arms that bring the hands nearest to `height`."""
    bends, lifts = torch.meshgrid(torch.linspace(0.0, 1.1, 12), torch.linspace(0.3, 2.2, 20), indexing="ij")
    poses = rest_pose(**angles).repeat(bends.numel(), 1)
    names = ("spine_bend", "left_arm_lift", "right_arm_lift")
    for name, values in zip(names, (bends, lifts, lifts), strict=True):
        poses[:, NAMES.index(name)] = values.flatten()
    hands = pose_human(poses).joints[:, JOINTS.index("left wrist")]
    missed = (hands[:, 2] - height).abs() - 0.3 * hands[:, 0]  # far from the feet, so that it looks like work
    best = poses[missed.argmin()]
    return {**angles, **{name: float(best[NAMES.index(name)]) for name in names}}


def _reached(human: ObjectModel, thing: ObjectModel) -> ObjectModel:
    """Behind the thing, as near as the hands come without going in: at its near side, or on its top.

    What is too narrow for two hands is touched with one.
    """
    low, high = thing.bounds()
    hands = _hands(human)
    if float(hands[:, 1].abs().min()) > float(high[1]):
        human = human.moved(1.0, (0.0, -float(hands[0, 1]), 0.0))
        hands = _hands(human)
    if float(hands[:, 2].min()) > float(high[2]) - 0.01:
        near = float(low[0] - hands[:, 0].max()) + min(0.05, 0.5 * float(high[0] - low[0]))
        return union([human.moved(1.0, (near, 0.0, 0.0)), thing])
    steps = torch.linspace(float(low[0]) - 0.1, float(high[0]), 400) - hands[:, 0].max()
    along = torch.stack([steps, *torch.zeros(2, len(steps))], dim=1)
    touching = thing.distance((hands + along[:, None]).reshape(-1, 3)).view(-1, 2).amin(1) < 0.02
    return union([human.moved(1.0, (float(steps[int(touching.int().argmax())]), 0.0, 0.0)), thing])
