"""A person and a thing in contact: sitting on it, standing on it, holding, riding, leaning on, pushing it.

Both come standing on z = 0 around the z axis, front +x; the person moves to where the contact is, and a thing that is
held comes to the hands.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from generation.draws import Draw
from generation.object_builder import turn
from generation.shapes import ObjectModel, union

HELD = 0.17  # radius of what is held, beside a person of height 1


def interaction(verb: str, make_person: Callable[[str], ObjectModel], thing: ObjectModel, draw: Draw) -> ObjectModel:
    """The person, made in the pose of the verb, and the thing."""
    if verb == "riding" and thing.parts[0].startswith("board"):
        return _on_board(make_person("standing on"), thing)
    human = make_person(verb)
    place = {
        "sitting on": _seated,
        "standing on": _on_top,
        "holding": _held,
        "riding": _astride,
        "leaning on": _reached,
        "pushing": _reached,
    }[verb]
    return place(human, thing)


def _part_bounds(model: ObjectModel, part: str) -> tuple[Tensor, Tensor]:
    return model.select(model.is_part(part)).bounds()


def _hips(human: ObjectModel) -> Tensor:
    """Centre [3] of the pelvis, the first primitive."""
    return human.world_from_primitive[0, :3, 3]


def _lowest_seat(human: ObjectModel) -> float:
    """Height of the underside of the pelvis."""
    return float(human.select(torch.tensor([0])).bounds()[0][2])


def _seated(human: ObjectModel, thing: ObjectModel) -> ObjectModel:
    """Pelvis above the seat, as far forward as lets the shins hang before it."""
    seat = thing.select(thing.is_part("seat")) if any("seat" in name for name in thing.parts) else thing
    low, high = seat.bounds()
    radius = 0.5 * float(high[0] - low[0])
    x = max(0.5 * float(low[0] + high[0]), float(high[0]) - 0.17)
    if thing.parts[0].startswith("ball"):
        x = 0.5 * float(low[0] + high[0]) - 0.25 * radius
    height = thing.support(x, 0.0) if seat is thing else float(high[2])
    hips = _hips(human)
    offset = (x - float(hips[0]), -float(hips[1]), height - _lowest_seat(human) - 0.012)
    return union([human.moved(1.0, offset), thing])


def _on_top(human: ObjectModel, thing: ObjectModel) -> ObjectModel:
    feet = human.bounds()[0][2]
    return union([human.moved(1.0, (0.0, 0.0, thing.support(0.0, 0.0) - float(feet))), thing])


def _on_board(human: ObjectModel, thing: ObjectModel) -> ObjectModel:
    """Sideways, as on a skateboard."""
    return _on_top(human.turned(torch.tensor(turn("z", 90))), thing)


def _held(human: ObjectModel, thing: ObjectModel) -> ObjectModel:
    """The thing shrunk to what two hands can carry, between them and before the chest."""
    hands = _hand_centre(human)
    small = thing.moved(min(1.0, HELD / thing.reach()), (0.0, 0.0, 0.0))
    low, high = small.bounds()
    middle = 0.5 * (low + high)
    offset = hands - middle
    offset[0] = hands[0] - low[0] - 0.3 * (high[0] - low[0])
    return union([human, small.moved(1.0, offset)])


def _hand_centre(human: ObjectModel) -> Tensor:
    """[3] middle of the two hands: the last primitives of a person."""
    return human.world_from_primitive[-2:, :3, 3].mean(0)


def _astride(human: ObjectModel, thing: ObjectModel) -> ObjectModel:
    x = -0.05
    hips = _hips(human)
    offset = (x - float(hips[0]), -float(hips[1]), thing.support(x, 0.0) - _lowest_seat(human) - 0.015)
    return union([human.moved(1.0, offset), thing])


def _reached(human: ObjectModel, thing: ObjectModel) -> ObjectModel:
    """Behind the thing, the hands on its near side or, where that is lower, on its top edge."""
    hands = _hand_centre(human)
    low, high = thing.bounds()
    top = float(high[2])
    reach = float(human.world_from_primitive[-2:, 0, 3].max())
    over = math.copysign(0.06, float(hands[2]) - top) if float(hands[2]) > top else -0.03
    offset = (float(low[0]) + over - reach, 0.0, 0.0)
    return union([human.moved(1.0, offset), thing])
