"""What lies around vase and books: a ring stack, fruit, alphabet blocks."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

from data.assets.still_life import textures as paint
from data.assets.still_life.shapes import Array, Shape, revolve, rounded_box, smooth_profile, tube
from data.assets.still_life.textures import Colour, Item, Rng, revolved_points


def toy(rng: Rng) -> list[Item]:
    """Painted wooden rings of falling size with a ball on top, each turned and shifted a little."""
    items, z = [], 0.001
    tones: list[Colour] = [(58, 94, 140), (94, 132, 82), (212, 164, 62), (206, 118, 58), (178, 62, 52)]
    for k, tone in enumerate(tones):
        radius, half = 0.060 - 0.0068 * k, 0.0145 - 0.0009 * k
        a = np.linspace(0, 2 * math.pi, 33) + math.pi
        profile = np.column_stack(
            [
                radius - 0.021 + (0.021 * np.sign(np.cos(a)) * np.abs(np.cos(a)) ** 0.7),
                half + half * np.sign(-np.sin(a)) * np.abs(np.sin(a)) ** 0.7,
            ]
        )
        items.append(_painted_wood(f"ring{k}", revolve(profile, 80), revolved_points(profile, 420, 1000), tone, rng, k))
        at = (-0.168 + 0.002 * rng.standard_normal(), -0.022 + 0.002 * rng.standard_normal(), z)
        items[-1] = Item(items[-1].name, items[-1].shape.placed(at, turn=rng.uniform(0, 6)), items[-1].texture)
        z += 2 * half
    a = np.linspace(0, math.pi, 40)
    profile = np.column_stack([0.0195 * np.sin(a), 0.018 + 0.0195 * np.cos(a)])
    ball = _painted_wood("ball", revolve(profile, 64), revolved_points(profile, 300, 600), (196, 150, 104), rng, 9)
    return [*items, Item("ball", ball.shape.placed((-0.168, -0.022, z), turn=1.0), ball.texture)]


def _painted_wood(name: str, shape: Shape, points: Array, tone: Colour, rng: Rng, seed: int) -> Item:
    height, width = points.shape[:2]
    ring = (
        points[..., 0] * 210
        + 1.4 * paint.solid_noise(points * 25, seed)
        + 0.8 * paint.solid_noise(points * np.array([30, 400, 400]), seed + 50)
    )
    grain = ring - np.floor(ring)
    colour = np.asarray(tone) * (1.08 - 0.24 * grain**2 + 0.10 * paint.solid_noise(points * 60, seed + 20))[..., None]
    layer = Image.new("RGBA", (width, height))
    draw = ImageDraw.Draw(layer)
    other: list[Colour] = [(224, 208, 170), (62, 70, 92), (196, 88, 66), (226, 182, 90), (92, 128, 122)]
    for x, y, s in paint.scattered(width, height, rng, sorted(rng.uniform(9, 32, 34), reverse=True), 1.15):
        shade = other[int(rng.integers(5))]
        for shift in (-width, 0, width):
            if s > 20:
                paint.flower(draw, x + shift, y, 1.2 * s, int(5 + s) % 5 + 5, s, shade, tone)
            else:
                draw.ellipse((x + shift - 0.7 * s, y - 0.7 * s, x + shift + 0.7 * s, y + 0.7 * s), fill=(*shade, 255))
    colour = paint.over(colour, layer)
    worn = paint.solid_noise(points * 130, seed + 30, 3)
    colour = paint.mixed(colour, (186, 150, 108), np.clip((worn - 0.42) * 6, 0, 0.85))
    return Item(name, shape, paint.finished(colour))


def fruit(rng: Rng) -> list[Item]:
    pear = [
        (0.0, 0.0985),
        (0.008, 0.0975),
        (0.0165, 0.089),
        (0.0205, 0.074),
        (0.0275, 0.056),
        (0.0365, 0.035),
        (0.0345, 0.014),
        (0.02, 0.002),
        (0.007, 0.002),
        (0.0, 0.005),
    ]
    apple = [
        (0.0, 0.0585),
        (0.006, 0.061),
        (0.017, 0.069),
        (0.031, 0.0635),
        (0.0385, 0.045),
        (0.0355, 0.022),
        (0.0235, 0.003),
        (0.012, 0.0005),
        (0.0, 0.006),
    ]
    orange = [
        (0.0, 0.0715),
        (0.008, 0.0712),
        (0.024, 0.064),
        (0.0355, 0.044),
        (0.034, 0.022),
        (0.02, 0.004),
        (0.0, 0.0005),
    ]
    items = [
        _fruit("pear", pear, (0.0, -0.128, 0.0005), 0.9, rng, ((176, 166, 74), (146, 112, 56), (184, 110, 64)), 41),
        _fruit("apple", apple, (0.078, -0.152, 0.0005), 2.1, rng, ((206, 168, 84), (158, 42, 40), (122, 34, 38)), 42),
        _fruit(
            "orange", orange, (-0.088, -0.158, 0.0005), 0.3, rng, ((220, 132, 46), (204, 110, 38), (226, 156, 64)), 43
        ),
    ]
    bark = paint.finished(np.asarray((96, 70, 46)) * (1 + 0.16 * paint.flat_noise(96, 96, rng, 8))[..., None])
    for name, base, lean in (
        ("pear stem", (0.0, -0.128, 0.094), 0.010),
        ("apple stem", (0.078, -0.152, 0.055), -0.006),
    ):
        t = np.linspace(0, 1, 10)
        path = np.column_stack([base[0] + lean * t**2, base[1] + 0.4 * lean * t, base[2] + 0.026 * t])
        items.append(Item(name, tube(path, 0.0021 + 0.0009 * (2 * t - 1) ** 2, 10), bark))
    return items


def _fruit(
    name: str,
    outline: list[tuple[float, float]],
    at: tuple[float, float, float],
    turn: float,
    rng: Rng,
    tones: tuple[Colour, Colour, Colour],
    seed: int,
) -> Item:
    profile = smooth_profile(outline, 64)
    points = revolved_points(profile, 512, 900)
    angle = np.arctan2(points[..., 1], points[..., 0])
    polar = np.stack([np.cos(angle) * 9, np.sin(angle) * 9, points[..., 2] * 12], axis=-1)
    streaks = paint.solid_noise(polar, seed, 4, 0.7)  # long from top to bottom, as on the skin of an apple
    cheek = 0.5 + 1.5 * points[..., 0] / 0.075 + 0.9 * streaks + 0.5 * paint.solid_noise(points * 40, seed + 5)
    colour = paint.mixed(tones[0], tones[1], cheek)
    colour = paint.mixed(colour, tones[2], np.clip(paint.solid_noise(points * 90, seed + 9) * 2 - 0.5, 0, 0.7))
    pale, deep = paint.shade(tones[0], 1.25, lift=20, top=230), paint.shade(tones[1], 0.6)
    colour = paint.speckled(colour, rng, 1500, (0.9, 3.8), [pale, deep, (112, 82, 52)], 0.8)
    hollow = np.clip(1 - points[..., 0] ** 2 / 0.009**2 - points[..., 1] ** 2 / 0.009**2, 0, 1)
    colour = paint.mixed(colour, (104, 88, 52), 0.7 * hollow)

    def lopsided(vertices: Array) -> Array:
        swell = 1 + 0.045 * paint.solid_noise(vertices * 22, seed + 60, 2)
        return vertices * np.column_stack([swell, swell, np.ones(len(vertices))])

    return Item(name, revolve(profile, 80, lopsided).placed(at, turn=turn), paint.finished(colour), gloss=True)


def blocks(rng: Rng) -> list[Item]:
    """Alphabet blocks: every side has its own letter, colour and grain."""
    places = [
        ((0.158, -0.098, 0.0235), 0.35, "MAQUET"),
        ((0.098, -0.074, 0.0235), 1.05, "SPLATR"),
        ((0.148, -0.092, 0.0686), 0.92, "3DGXYZ"),
    ]
    tones: list[Colour] = [(178, 60, 50), (46, 86, 140), (70, 112, 66), (200, 140, 44), (112, 64, 112), (40, 110, 116)]
    items = []
    for number, (at, turn, letters) in enumerate(places):
        cell = 360
        picture = np.zeros((2 * cell, 3 * cell, 3))
        layer = Image.new("RGBA", (3 * cell, 2 * cell))
        draw = ImageDraw.Draw(layer)
        for side, letter in enumerate(letters):
            row, column = divmod(side, 3)
            grain = paint.wood(cell, cell, rng, (222, 186, 138), (166, 116, 72), rng.uniform(4, 8))
            picture[row * cell : (row + 1) * cell, column * cell : (column + 1) * cell] = np.rot90(
                grain, int(rng.integers(4))
            )
            tone, x, y = tones[(side + 2 * number) % 6], column * cell, row * cell
            draw.rectangle((x + 26, y + 26, x + cell - 26, y + cell - 26), outline=(*tone, 235), width=16)
            paint.lettering(layer, letter, (x + cell / 2, y + cell / 2), 250, tone)
        colour = paint.speckled(
            paint.over(picture, layer), rng, 420, (0.8, 4), [(150, 108, 70), (96, 66, 44), (226, 200, 160)], 0.7
        )
        size = 0.047 - 0.0009 * number
        items.append(
            Item(
                f"block{number}", rounded_box((size, size, size), 0.0035).placed(at, turn=turn), paint.finished(colour)
            )
        )
    return items
