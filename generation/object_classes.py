"""The classes of procedural objects: how each is built of primitives, and how large it is beside others.

Every function takes a `Builder` and adds the primitives of one thing, front +x, up +z, with the builder's draws for
what the caption leaves open; at most 24 of them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

from generation.object_builder import Builder, turn

RUBBER = (0.09, 0.09, 0.10)
STEEL = (0.60, 0.62, 0.66)
GLASS = (0.55, 0.76, 0.90)
LIGHT = (0.98, 0.93, 0.65)
REAR_LIGHT = (0.80, 0.08, 0.08)
WOOD = (0.42, 0.25, 0.12)
COAL = (0.07, 0.07, 0.08)
CARROT = (0.95, 0.47, 0.08)
CREAM = (0.95, 0.92, 0.82)
PINK = (0.95, 0.45, 0.60)

# Largest extent beside a person of height 1; things are made somewhat alike, as in a box of toys.
EXTENTS: dict[str, float] = {
    "chair": 0.62,
    "stool": 0.40,
    "table": 0.78,
    "mug": 0.26,
    "lamp": 0.62,
    "car": 1.10,
    "truck": 1.40,
    "house": 1.30,
    "tree": 1.35,
    "cactus": 0.75,
    "snowman": 0.95,
    "rocket": 1.20,
    "bottle": 0.42,
    "robot": 0.90,
    "person": 1.0,
    "sword": 0.75,
    "box": 0.46,
    "ball": 0.40,
    "horse": 1.05,
    "board": 0.72,
}


def chair(b: Builder) -> None:
    """Seat, back and legs; the back stands at -x."""
    w, seat, back = 0.25 * b.wide, 0.45 * b.tall, 0.50 * b.tall
    b.box("seat", (0, 0, seat), (w, w, 0.035))
    square = b.draw.chance(0.5)
    for x in (-1, 1):
        for y in (-1, 1):
            foot, top = (x * (w - 0.03), y * (w - 0.03), 0.0), (x * (w - 0.03), y * (w - 0.03), seat)
            if square:
                b.box("legs", (foot[0], foot[1], seat / 2), (0.03, 0.03, seat / 2))
            else:
                b.tube("legs", foot, top, 0.03)
    style = b.draw.choice(("slab", "slats", "rails"))
    x = -w + 0.03
    if style == "slab":
        b.box("back", (x, 0, seat + back / 2), (0.03, w, back / 2))
    else:
        for y in (-1, 1):
            b.box("back", (x, y * (w - 0.03), seat + back / 2), (0.03, 0.03, back / 2))
        if style == "slats":
            b.box("back", (x, 0, seat + back - 0.04), (0.03, w - 0.03, 0.045))
            for y in (-0.5, 0, 0.5):
                b.box("back", (x, y * w, seat + back / 2), (0.018, 0.03, back / 2))
        else:
            for height in (0.92, 0.6):
                b.box("back", (x, 0, seat + height * back), (0.025, w - 0.03, 0.06))


def stool(b: Builder) -> None:
    """A seat on three or four legs, no back."""
    r, seat = 0.23 * b.wide, 0.5 * b.tall
    b.tube("seat", (0, 0, seat - 0.04), (0, 0, seat + 0.04), r)
    legs = b.draw.choice((3, 4))
    feet = []
    for k in range(legs):
        angle = 2 * math.pi * (k + 0.5) / legs
        c, s = math.cos(angle), math.sin(angle)
        b.rod("legs", (0.7 * r * c, 0.7 * r * s, seat - 0.04), (1.05 * r * c, 1.05 * r * s, 0.03), 0.032)
        feet.append((0.92 * r * c, 0.92 * r * s, 0.35 * seat))
    for start, end in zip(feet, [*feet[1:], feet[0]]):
        b.rod("legs", start, end, 0.018)


def table(b: Builder) -> None:
    """A top on four legs, or a round one on one foot."""
    length, depth, h = 0.55 * b.wide, b.draw.between(0.32, 0.42), 0.5 * b.tall
    if b.draw.chance(0.25):  # a round one on one foot
        r = 0.45 * b.wide
        b.tube("top", (0, 0, h - 0.05), (0, 0, h), r)
        b.tube("legs", (0, 0, 0), (0, 0, h - 0.05), 0.05)
        b.cone("legs", (0, 0, 0), (0, 0, 0.07), (0.26, 0.06))
        return
    b.box("top", (0, 0, h - 0.03), (depth, length, 0.035))
    thick = b.draw.between(0.032, 0.045)
    for x in (-1, 1):
        for y in (-1, 1):
            b.box("legs", (x * (depth - 0.05), y * (length - 0.05), (h - 0.06) / 2), (thick, thick, (h - 0.06) / 2))
    if b.draw.chance(0.5):
        b.box("legs", (0, 0, h - 0.10), (depth - 0.06, length - 0.06, 0.035))


def mug(b: Builder) -> None:
    """A cup with a drink and a handle."""
    r, h = 0.27 * b.wide, 0.62 * b.tall
    b.cone("body", (0, 0, 0), (0, 0, h), (r * b.draw.between(0.85, 1.0), r))
    b.tube("drink", (0, 0, h - 0.02), (0, 0, h + 0.006), 0.84 * r, (0.20, 0.11, 0.06))
    reach, rise = b.draw.between(0.19, 0.23), 0.33 * h
    around = [math.pi * (k / 6 - 0.5) for k in range(7)]
    bow = [(0.0, 0.94 * r + reach * math.cos(a), 0.5 * h + rise * math.sin(a)) for a in around]
    for start, end in itertools.pairwise(bow):
        b.rod("handle", start, end, 0.045)


def lamp(b: Builder) -> None:
    """A foot, a stem and a shade."""
    h, r = 0.85 * b.tall, 0.30 * b.wide
    base = b.draw.between(0.17, 0.22) * b.wide
    b.tube("base", (0, 0, 0), (0, 0, 0.05), base)
    if b.draw.chance(0.5):
        b.ball("base", (0, 0, 0.22 * b.tall), (0.11 * b.wide, 0.11 * b.wide, 0.17 * b.tall))
    b.tube("base", (0, 0, 0.04), (0, 0, h - 0.15), 0.03)
    b.cone("shade", (0, 0, h - 0.34 * b.tall), (0, 0, h), (r, r * b.draw.between(0.45, 0.75)))


def wheels(b: Builder, places: list[tuple[float, float]], radius: float, half_width: float) -> None:
    """Pairs of wheels at (x, y) with hubs, standing on z = 0."""
    for x, y in places:
        for side in (-1, 1):
            out = side * (y + half_width)
            b.tube("wheels", (x, side * (y - half_width), radius), (x, out, radius), radius, RUBBER)
            b.tube("hubs", (x, side * y, radius), (x, out + side * 0.008, radius), 0.45 * radius, STEEL)


def car(b: Builder) -> None:
    """Body, cabin and four wheels."""
    length, w = 0.52, 0.23 * b.wide
    low, high = 0.10, 0.10 + 0.20 * b.tall
    top, half = high + 0.19 * b.tall, b.draw.between(0.24, 0.30)
    b.box("body", (0, 0, (low + high) / 2), (length, w, (high - low) / 2))
    b.box("body", (length, 0, (low + high) / 2 - 0.02), (0.03, 0.92 * w, (high - low) / 2 - 0.035))
    x = -0.10
    b.box("cabin", (x, 0, (high + top) / 2), (half, 0.88 * w, (top - high) / 2))
    glass = (high + top) / 2 - 0.005
    b.box("windows", (x, 0, glass), (half - 0.045, 0.88 * w + 0.006, 0.3 * (top - high)), GLASS)
    b.box("windows", (x, 0, glass), (half + 0.006, 0.76 * w, 0.32 * (top - high)), GLASS)
    b.box("cabin", (x, 0, glass), (0.022, 0.88 * w + 0.010, 0.32 * (top - high)))
    for y in (-1, 1):
        b.ball("lights", (length + 0.02, y * 0.68 * w, 0.66 * high + 0.33 * low), (0.03, 0.045, 0.04), LIGHT)
        b.box("rear lights", (-length, y * 0.72 * w, 0.7 * high + 0.3 * low), (0.01, 0.04, 0.025), REAR_LIGHT)
    wheels(b, [(0.31, w - 0.03), (-0.32, w - 0.03)], min(0.125, 0.45 * high), 0.045)


def truck(b: Builder) -> None:
    """A cab before a load, on wheels."""
    w, bed, top = 0.22 * b.wide, 0.17, 0.17 + 0.47 * b.tall
    back = b.draw.between(0.42, 0.52)
    b.box("chassis", (0, 0, bed - 0.025), (0.66, 0.75 * w, 0.04), RUBBER)
    b.box("trailer", (0.19 - back, 0, (bed + top) / 2), (back, 1.05 * w, (top - bed) / 2))
    roof = bed + 0.36 * b.tall
    b.box("cabin", (0.47, 0, (bed - 0.03 + roof) / 2), (0.20, 0.95 * w, (roof - bed + 0.03) / 2))
    glass = bed + 0.24 * b.tall
    b.box("windows", (0.50, 0, glass), (0.10, 0.95 * w + 0.006, 0.07 * b.tall), GLASS)
    b.box("windows", (0.655, 0, glass), (0.022, 0.8 * w, 0.08 * b.tall), GLASS)
    for y in (-1, 1):
        b.ball("lights", (0.67, y * 0.7 * w, bed + 0.05), (0.025, 0.04, 0.035), LIGHT)
    wheels(b, [(0.45, w - 0.03), (-0.20, w - 0.03), (-0.50, w - 0.03)], 0.12, 0.045)


def house(b: Builder) -> None:
    """Walls under a gable roof, with a door at the front."""
    x, y, h = b.draw.between(0.34, 0.44) * b.wide, b.draw.between(0.32, 0.38) * b.wide, 0.55 * b.tall
    h = max(h, y + 0.02)  # the gable's lower half is hidden in the walls
    b.box("walls", (0, 0, h / 2), (x, y, h / 2))
    b.box("walls", (0, 0, h), (x, y / math.sqrt(2), y / math.sqrt(2)), rotation=turn("x", 45))
    slope = math.sqrt(2) * y
    for side in (-1, 1):
        out = 0.5 * slope + 0.05
        middle = (0.0, side * (0.5 * y + 0.04 / math.sqrt(2)), h + 0.5 * y - 0.04 / math.sqrt(2) + 0.03)
        b.box("roof", middle, (x + 0.06, out, 0.03), rotation=turn("x", -45 * side))
    door = min(0.32, 0.55 * h)
    b.box("door", (x, 0, door / 2), (0.015, 0.085, door / 2), WOOD)
    for side in (-0.6, 0.6):
        b.box(
            "windows", (0, side * x, 0.58 * h), (x + 0.008, 0.075, 0.075) if x < y else (x + 0.008, 0.07, 0.07), GLASS
        )
        b.box("windows", (side * x, 0, 0.55 * h), (0.085, y + 0.008, 0.085), GLASS)
    b.box("chimney", (-0.5 * x, 0.45 * y, h + 0.72 * y), (0.06, 0.06, 0.22), (0.60, 0.25, 0.18))


def tree(b: Builder) -> None:
    """A conifer, or a crown on a trunk."""
    h, r = 0.40 * b.tall, 0.34 * b.wide
    if b.draw.chance(0.4):  # a conifer
        b.cone("trunk", (0, 0, 0), (0, 0, h), (0.085, 0.06))
        low = 0.6 * h
        for k, share in enumerate((1.0, 0.78, 0.55)):
            top = low + 0.50 * b.tall * (1 - 0.08 * k)
            b.cone("leaves", (0, 0, low), (0, 0, top), (share * r * 1.05, 0.015))
            low += 0.25 * b.tall
        return
    b.cone("trunk", (0, 0, 0), (0, 0, 1.3 * h), (0.085, 0.055))
    middle = h + 0.34 * b.tall
    b.ball("leaves", (0, 0, middle), (r, r, 0.32 * b.tall))
    for k in range(5):
        angle = 2 * math.pi * (k + b.draw.between(-0.2, 0.2)) / 5
        rise = b.draw.between(-0.10, 0.14) * b.tall
        out, own = 0.62 * r, r * b.draw.between(0.52, 0.66)
        b.ball("leaves", (out * math.cos(angle), out * math.sin(angle), middle + rise), (own, own, 0.62 * own + 0.07))
    b.ball("leaves", (0, 0, middle + 0.24 * b.tall), (0.55 * r, 0.55 * r, 0.16 * b.tall))


def cactus(b: Builder) -> None:
    """A column with arms in a pot."""
    h, r = 0.95 * b.tall, 0.115 * b.wide
    b.cone("pot", (0, 0, 0), (0, 0, 0.22), (0.15 * b.wide, 0.20 * b.wide))
    b.tube("pot", (0, 0, 0.19), (0, 0, 0.25), 0.225 * b.wide)
    b.tube("soil", (0, 0, 0.2), (0, 0, 0.256), 0.19 * b.wide, (0.25, 0.16, 0.10))
    b.rod("stem", (0, 0, 0.25), (0, 0, h - r), r)
    for side, low in ((1, b.draw.between(0.42, 0.50)), (-1, b.draw.between(0.52, 0.62))):
        at, out = low * h, side * (0.13 + r)
        b.rod("stem", (0, 0, at), (0, out, at), 0.62 * r)
        b.rod("stem", (0, out, at), (0, out, at + b.draw.between(0.18, 0.26) * b.tall), 0.62 * r)
    if b.draw.chance(0.5):
        b.ball("flower", (0, 0, h), (0.06, 0.06, 0.035), PINK)


def snowman(b: Builder) -> None:
    """Three balls with hat, scarf, eyes, buttons and a nose at the front."""
    w, t = b.wide, b.tall
    base, chest, head = 0.31 * w, 0.225 * w, 0.165 * w
    z0, z1, z2 = 0.29 * t, 0.68 * t, 0.98 * t
    b.ball("body", (0, 0, z0), (base, base, 0.30 * t))
    b.ball("body", (0, 0, z1), (chest, chest, 0.22 * t))
    b.ball("body", (0, 0, z2), (head, head, 0.165 * t))
    brim = z2 + 0.115 * t
    b.tube("hat", (0, 0, brim), (0, 0, brim + 0.03), 1.25 * head)
    b.tube("hat", (0, 0, brim), (0, 0, brim + 0.20), 0.80 * head)
    b.cone("nose", (0.9 * head, 0, z2), (0.9 * head + 0.13, 0, z2 - 0.01), (0.042, 0.006), CARROT)
    for y in (-1, 1):
        b.ball(
            "eyes",
            (0.87 * head, 0.40 * head, z2 + 0.05 * t) if y > 0 else (0.87 * head, -0.40 * head, z2 + 0.05 * t),
            0.024,
            COAL,
        )
        b.rod("arms", (0, y * 0.85 * chest, z1 + 0.04), (0.03, y * (chest + 0.22), z1 + 0.16), 0.018, WOOD)
    for k in (-1, 0, 1):
        b.ball("buttons", (chest * math.cos(0.45 * k) - 0.005, 0, z1 + 0.21 * t * math.sin(0.45 * k)), 0.022, COAL)
    neck = 0.5 * (z1 + z2) + 0.015 * t
    b.ring("scarf", (0, 0, neck), 0.80 * head, 0.035, (0.80, 0.12, 0.12))
    b.rod(
        "scarf", (0.80 * head, 0.45 * head, neck), (0.28 * w * 0.78, 0.5 * head, neck - 0.20), 0.032, (0.80, 0.12, 0.12)
    )


def rocket(b: Builder) -> None:
    """A tube with tip, nozzle, fins and a round window at the front."""
    r, h = 0.17 * b.wide, 0.72 * b.tall
    b.tube("body", (0, 0, 0.12), (0, 0, 0.12 + h), r)
    b.cone("tip", (0, 0, 0.12 + h), (0, 0, 0.12 + h + 0.30 * b.tall), (r, 0.01))
    b.cone("nozzle", (0, 0, 0.02), (0, 0, 0.13), (0.85 * r, 0.55 * r), (0.25, 0.26, 0.28))
    b.tube("stripe", (0, 0, 0.12 + 0.80 * h), (0, 0, 0.12 + 0.86 * h), 1.02 * r, STEEL)
    count = b.draw.choice((3, 4))
    for k in range(count):
        angle = 360 * k / count + 180 / count
        c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        out = r + 0.06
        b.box("fins", (out * c, out * s, 0.20), (0.10, 0.022, 0.11), rotation=turn("z", angle))
        b.box("fins", ((r + 0.12) * c, (r + 0.12) * s, 0.09), (0.05, 0.022, 0.09), rotation=turn("z", angle))
    window = 0.12 + 0.62 * h
    b.tube("frame", (0.8 * r, 0, window), (r + 0.02, 0, window), 0.095, STEEL)
    b.tube("window", (0.8 * r, 0, window), (r + 0.028, 0, window), 0.068, GLASS)


def bottle(b: Builder) -> None:
    """A body with neck, cap and label."""
    r, h = 0.20 * b.wide, 0.55 * b.tall
    neck = b.draw.between(0.06, 0.075)
    b.tube("body", (0, 0, 0), (0, 0, h), r)
    b.cone("body", (0, 0, h), (0, 0, h + 0.20 * b.tall), (r, neck))
    b.tube("body", (0, 0, h + 0.19 * b.tall), (0, 0, h + 0.38 * b.tall), neck)
    b.tube("cap", (0, 0, h + 0.34 * b.tall), (0, 0, h + 0.45 * b.tall), 1.35 * neck)
    b.tube("label", (0, 0, 0.22 * h), (0, 0, 0.75 * h), 1.015 * r, CREAM)


def robot(b: Builder) -> None:
    """Boxes for body and head, with a panel, eyes and a mouth at the front."""
    w, t = 0.20 * b.wide, b.tall
    hip, top = 0.38 * t, 0.82 * t
    b.box("body", (0, 0, (hip + top) / 2), (0.14, w, (top - hip) / 2))
    b.box("panel", (0.14, 0, hip + 0.62 * (top - hip)), (0.008, 0.55 * w, 0.10 * t), (0.20, 0.22, 0.26))
    for y, rgb in ((-0.3, REAR_LIGHT), (0.0, LIGHT), (0.3, (0.2, 0.8, 0.3))):
        b.ball("buttons", (0.148, y * w, hip + 0.62 * (top - hip)), 0.022, rgb)
    b.tube("neck", (0, 0, top), (0, 0, top + 0.05), 0.05, STEEL)
    head = top + 0.05 + 0.13 * t
    b.box("head", (0, 0, head), (0.13, 0.16 * b.wide, 0.13 * t))
    for y in (-1, 1):
        b.tube("eyes", (0.12, y * 0.075 * b.wide, head + 0.03), (0.145, y * 0.075 * b.wide, head + 0.03), 0.042, LIGHT)
        b.rod("arms", (0, y * (w + 0.055), top - 0.07), (0.02, y * (w + 0.075), hip + 0.10), 0.05)
        b.ball("arms", (0.02, y * (w + 0.075), hip + 0.02), 0.065)
        b.tube("legs", (0, y * 0.55 * w, 0.05), (0, y * 0.55 * w, hip), 0.06)
        b.box("legs", (0.04, y * 0.55 * w, 0.04), (0.12, 0.08, 0.04))
    b.box("mouth", (0.13, 0, head - 0.07 * t), (0.008, 0.08 * b.wide, 0.014), (0.20, 0.22, 0.26))
    b.tube("antenna", (0, 0, head + 0.13 * t), (0, 0, head + 0.13 * t + 0.09), 0.014, STEEL)
    b.ball("antenna", (0, 0, head + 0.13 * t + 0.10), 0.032, REAR_LIGHT)


def sword(b: Builder) -> None:
    """A blade that stands on its hilt."""
    w, h = 0.055 * b.wide, 0.72 * b.tall
    thick = 0.020
    b.box("blade", (0, 0, 0.28 + h / 2), (thick, w, h / 2))
    b.ball("blade", (0, 0, 0.28 + h), (thick, w, 0.17))
    b.box("blade", (0, 0, 0.28 + 0.45 * h), (thick + 0.012, 0.3 * w, 0.45 * h))
    b.box("hilt", (0, 0, 0.27), (0.038, 0.20, 0.032))
    for y in (-1, 1):
        b.ball("hilt", (0, 0.20 * y, 0.27), 0.045)
    b.tube("hilt", (0, 0, 0.05), (0, 0, 0.27), 0.034)
    b.ball("hilt", (0, 0, 0.04), 0.055)


def box(b: Builder) -> None:
    """Four sides and a lid."""
    x, y, h = 0.30 * b.wide, b.draw.between(0.28, 0.34) * b.wide, b.draw.between(0.48, 0.58) * b.tall
    b.box("sides", (0, 0, h / 2), (x, y, h / 2))
    b.box("lid", (0, 0, h), (x + 0.02, y + 0.02, 0.05))


def ball(b: Builder) -> None:
    """A ball with a band."""
    r, t = 0.35 * b.wide, 0.35 * b.tall
    b.ball("surface", (0, 0, 0), (r, r, t))
    b.tube("band", (0, 0, -0.16 * t), (0, 0, 0.16 * t), 1.005 * r)


def horse(b: Builder) -> None:
    """A body on four legs with neck, head and mane."""
    t, w = b.tall, b.wide
    back = 0.52 * t
    b.rod("body", (-0.24, 0, back), (0.22, 0, back), 0.155 * w)
    b.rod("body", (0.27, 0, back + 0.06), (0.42, 0, back + 0.36), 0.085 * w)
    b.rod("body", (0.43, 0, back + 0.38), (0.60, 0, back + 0.28), 0.072 * w)
    for y in (-1, 1):
        b.cone("body", (0.40, y * 0.045, back + 0.42), (0.39, y * 0.06, back + 0.52), (0.03, 0.006))
        b.ball("eyes", (0.47, y * 0.062 * w, back + 0.39), 0.018, COAL)
        for x in (-0.26, 0.24):
            b.rod("legs", (x, y * 0.09 * w, back - 0.08), (x + 0.01, y * 0.09 * w, 0.05), 0.046)
            b.tube("hooves", (x + 0.015, y * 0.09 * w, 0), (x + 0.015, y * 0.09 * w, 0.06), 0.055, COAL)
    b.rod("mane", (0.20, 0, back + 0.16), (0.36, 0, back + 0.44), 0.045)
    b.rod("mane", (-0.38, 0, back + 0.06), (-0.47, 0, back - 0.26), 0.042)


def board(b: Builder) -> None:
    """A skateboard: a deck on two pairs of wheels."""
    w, h = 0.145 * b.wide, 0.11 * b.tall
    b.box("deck", (0, 0, h), (0.40, w, 0.022))
    for x in (-1, 1):
        b.tube("deck", (x * 0.40, 0, h - 0.022), (x * 0.40, 0, h + 0.022), w)
        b.box("trucks", (x * 0.28, 0, 0.65 * h), (0.03, 0.8 * w, 0.03), STEEL)
        for y in (-1, 1):
            b.tube("wheels", (x * 0.28, y * (w - 0.05), 0.055), (x * 0.28, y * (w + 0.005), 0.055), 0.055)


_BUILT = (
    *(chair, stool, table, mug, lamp, car, truck, house, tree, cactus),
    *(snowman, rocket, bottle, robot, sword, box, ball, horse, board),
)
BUILDERS: dict[str, Callable[[Builder], None]] = {build.__name__: build for build in _BUILT}  # all but the person
