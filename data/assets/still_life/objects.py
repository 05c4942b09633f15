"""The things on the table: each function makes the shapes and paints the texture of one of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from data.assets.still_life import textures as paint
from data.assets.still_life.shapes import (
    Array,
    Shape,
    joined,
    resampled,
    revolve,
    rounded_box,
    sheet,
    smooth_profile,
    tube,
)
from data.assets.still_life.textures import Colour, Pixels, Rng

CLOTH_SIZE = (1.16, 0.92)  # metres
CLOTH_TURN = math.radians(17)


@dataclass(frozen=True)
class Item:
    """A shape with its texture; gloss is the share of light a rough coat reflects (0: matte)."""

    name: str
    shape: Shape
    texture: Pixels
    gloss: bool = False


def revolved_points(profile: Array, height: int, width: int) -> Array:
    """[H, W, 3] points of the surface under each texel, for solid noise that has no seam."""
    rows = resampled(profile, height)
    angle = (np.arange(width) + 0.5) * 2 * math.pi / width
    r, z = rows[:, :1], rows[:, 1:]
    return np.stack([r * np.cos(angle), r * np.sin(angle), z + 0 * angle], axis=-1)


def table(rng: Rng) -> Item:
    picture = paint.boards(1500, 1800, rng, 11, (178, 132, 88), (104, 68, 40))
    return Item("table", sheet((2.4, 2.0), (120, 100)).placed((0, 0, -0.003)), picture)


def cloth_height(xy: Array) -> Array:
    """Folds that fade out where things stand on the cloth, metres."""
    outside = np.clip((np.linalg.norm(xy / np.array([1.15, 1.0]), axis=1) - 0.27) / 0.2, 0, 1)
    point = np.column_stack([xy * np.array([3.0, 4.2]), np.zeros(len(xy))])
    folds = 0.5 + 0.5 * np.sin(9 * xy[:, 0] + 14 * xy[:, 1] + 4.0 * paint.solid_noise(point, 5, 2))
    return 0.001 + 0.011 * outside**2 * (3 - 2 * outside) * folds


def cloth(rng: Rng) -> Item:
    width, height = 2320, 1840  # 0.5 mm a texel
    colour = paint.linen(height, width, rng, (205, 194, 172))
    sizes = sorted(rng.uniform(30, 105, 170), reverse=True) + [22.0] * 60 + [13.0] * 90
    tones: list[Colour] = [(176, 66, 52), (52, 84, 134), (206, 146, 56), (128, 74, 112), (190, 110, 96), (64, 118, 132)]
    hearts: list[Colour] = [(214, 170, 72), (96, 56, 40), (222, 206, 160)]
    greens: list[Colour] = [(74, 98, 62), (104, 118, 68), (58, 88, 84), (124, 108, 62)]
    layer = paint.botanical(2 * width, 2 * height, rng, [2 * s for s in sizes], tones, hearts, greens)
    printed = paint.over(colour, layer)
    border, line = ImageDraw.Draw(blank := Image.new("RGBA", (width, height))), 0
    for inset, thick, tone in ((26, 26, (52, 84, 134)), (64, 7, (176, 66, 52)), (78, 4, (52, 84, 134))):
        line = inset + thick // 2
        border.rectangle((line, line, width - line, height - line), outline=(*tone, 235), width=thick)
    printed = paint.over(printed, blank)
    wear = 1 + 0.02 * paint.flat_noise(height, width, rng, 60, 3)
    return Item(
        "cloth",
        sheet(CLOTH_SIZE, (116, 92), cloth_height).placed((0, 0, 0), turn=CLOTH_TURN),
        paint.finished(printed * wear[..., None]),
    )


def vase(rng: Rng) -> Item:
    outer = [
        (0.031, 0.268),
        (0.0335, 0.272),
        (0.036, 0.268),
        (0.030, 0.245),
        (0.0275, 0.222),
        (0.034, 0.198),
        (0.058, 0.166),
    ]
    outer += [
        (0.0725, 0.128),
        (0.071, 0.09),
        (0.056, 0.05),
        (0.041, 0.02),
        (0.040, 0.006),
        (0.0385, 0.0005),
        (0.02, 0.001),
    ]
    inner = [(0.022, 0.14), (0.029, 0.18), (0.0235, 0.222), (0.0265, 0.248), (0.031, 0.268)]
    profile = np.concatenate([smooth_profile(inner, 24)[:-1], smooth_profile(outer, 78)])
    height, width = 1024, 1200
    points = revolved_points(profile, height, width)
    clay = paint.mixed((224, 218, 204), (196, 192, 184), 0.5 + 0.7 * paint.solid_noise(points * 30, 11))
    blues: list[Colour] = [(38, 62, 128), (58, 92, 158), (28, 48, 98), (84, 120, 176)]
    sizes = sorted(rng.uniform(40, 92, 60), reverse=True) + [22.0] * 50 + [12.0] * 70
    layer = paint.botanical(
        2 * width, 2 * height, rng, [2 * s for s in sizes], blues, [(206, 160, 84), (188, 92, 62)], blues
    )
    colour = paint.over(clay, layer)
    bands = ImageDraw.Draw(blank := Image.new("RGBA", (width, height)))
    for centre, thick in ((0.245, 14), (0.275, 5), (0.40, 6), (0.425, 16), (0.80, 18), (0.83, 5), (0.905, 8)):
        for x in range(0, width, 6):  # a brush that presses more and less, and trembles
            wave = thick * (0.85 + 0.25 * math.sin(x * 0.047 + thick) + 0.1 * rng.random())
            y = centre * height + 3 * math.sin(2 * math.pi * 3 * x / width + thick)
            bands.rectangle((x, y - wave / 2, x + 6, y + wave / 2), fill=(*blues[int(rng.integers(4))], 225))
    colour = paint.speckled(paint.over(colour, blank), rng, 900, (0.8, 3.2), [(92, 74, 60), (60, 66, 84)], 0.6)
    return Item(
        "vase", revolve(profile, 96).placed((-0.035, 0.105, 0.002), turn=0.7), paint.finished(colour), gloss=True
    )


def mug(rng: Rng) -> Item:
    inner = [(0.0, 0.008), (0.02, 0.0082), (0.034, 0.012), (0.0372, 0.03), (0.0378, 0.07), (0.0385, 0.0905)]
    outer = [
        (0.0385, 0.0905),
        (0.0402, 0.093),
        (0.0418, 0.0905),
        (0.0415, 0.07),
        (0.0412, 0.025),
        (0.039, 0.006),
        (0.034, 0.0005),
        (0.0, 0.001),
    ]
    profile = np.concatenate([smooth_profile(inner, 24)[:-1], smooth_profile(outer, 40)])
    height, width = 900, 1200
    points = revolved_points(profile, height, width)
    glaze = paint.mixed((206, 196, 172), (176, 160, 132), 0.5 + 0.8 * paint.solid_noise(points * 45, 23))
    v = np.linspace(0, 1, height)[:, None] + 0.012 * paint.solid_noise(points * 60, 24)
    glaze = paint.mixed(glaze, (62, 112, 116), (v > 0.70) * 1.0)
    glaze = paint.mixed(glaze, (46, 88, 96), ((v > 0.685) & (v < 0.70)) * 1.0)
    glaze = paint.mixed(glaze, (116, 74, 48), ((v > 0.395) & (v < 0.418)) * 1.0)
    colour = paint.speckled(glaze, rng, 1900, (0.8, 4.6), [(84, 58, 40), (58, 44, 36), (128, 92, 60)], 0.85)
    layer = Image.new("RGBA", (width, height))
    paint.lettering(layer, "MAQUETTE", (300, 455), 92, (92, 40, 34))
    paint.lettering(layer, "a small model made", (300, 526), 42, (62, 50, 44))
    paint.lettering(layer, "before the real thing", (300, 570), 42, (62, 50, 44))
    paint.lettering(layer, "No 36", (900, 462), 78, (40, 72, 104))
    paint.lettering(layer, "stoneware & speckle", (900, 532), 42, (62, 50, 44))
    draw = ImageDraw.Draw(layer)
    for k, x in enumerate((610, 1195, 10)):
        paint.flower(draw, x, 500, 62 - 4 * k, 7 + k, 0.4 * k, (172, 78, 56), (212, 170, 80))
    path = np.array(
        [(0.039 + 0.031 * math.sin(a), 0, 0.047 - 0.029 * math.cos(a)) for a in np.linspace(0.05, math.pi - 0.05, 26)]
    )
    handle = tube(path, np.full(26, 0.0056))
    handle_uv = np.column_stack(
        [0.45 + 0.1 * handle.uv[:, 0], 0.73 + 0.2 * handle.uv[:, 1]]
    )  # dipped in the lower glaze
    shape = joined([revolve(profile, 80), Shape(handle.vertices, handle_uv, handle.faces)])
    return Item(
        "mug", shape.placed((0.150, 0.052, 0.0655), turn=2.5), paint.finished(paint.over(colour, layer)), gloss=True
    )


def book(
    rng: Rng,
    name: str,
    size: tuple[float, float, float],
    tones: tuple[Colour, Colour, Colour],
    title: tuple[str, str, str],
    at: tuple[float, float, float],
    turn: float,
) -> Item:
    """Cloth-bound; the atlas cells are +x -x +y over -y +z -z. The spine is -x, the other three sides show pages."""
    cell = 620
    cover, ink, pages = tones
    picture = np.zeros((2 * cell, 3 * cell, 3))
    grain = paint.linen(cell, cell, rng, cover)
    for side in range(6):
        row, column = divmod(side, 3)
        if side in (0, 2, 3):
            leaves = (
                np.asarray(pages)
                * (1 + 0.07 * rng.standard_normal((cell, 1)) + 0.025 * paint.flat_noise(cell, cell, rng, 40, 2))[
                    ..., None
                ]
            )
            leaves[: cell // 10] = leaves[-cell // 10 :] = grain[: cell // 10]
            patch = leaves
        else:
            patch = grain * (1 + 0.05 * paint.flat_noise(cell, cell, rng, 5))[..., None]
        picture[row * cell : (row + 1) * cell, column * cell : (column + 1) * cell] = patch
    layer = Image.new("RGBA", (3 * cell, 2 * cell))
    front = Image.new("RGBA", (cell, cell))
    draw = ImageDraw.Draw(front)
    draw.rectangle((34, 34, cell - 34, cell - 34), outline=(*ink, 255), width=7)
    draw.rectangle((48, 48, cell - 48, cell - 48), outline=(*ink, 255), width=2)
    for k, text in enumerate(title):
        paint.lettering(front, text, (cell / 2, (104, 176, cell - 92)[k]), (66, 56, 36)[k], ink)
    for x, y, s in paint.scattered(380, 230, rng, [70, 52, 44, 36, 30, 26, 22, 18, 18, 16, 14, 14, 12, 12], 0.95):
        paint.flower(draw, x + 120, y + 250, 0.9 * s, int(rng.integers(5, 11)), rng.uniform(0, 6), ink, cover)
    layer.paste(front.rotate(-90), (cell, cell))  # the title reads from the long side
    spine = Image.new("RGBA", (cell, cell))
    paint.lettering(spine, title[0], (cell / 2, cell / 2), 110, ink)
    spine = spine.resize((cell, 3 * cell)).crop((0, cell, cell, 2 * cell))
    layer.paste(spine, (cell, 0))
    colour = paint.speckled(
        paint.over(picture, layer), rng, 500, (1, 5), [tuple(int(0.7 * c) for c in cover), (120, 104, 84)], 0.5
    )
    return Item(name, rounded_box(size, 0.003).placed(at, turn=turn), paint.finished(colour))


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
    pale, deep = tuple(min(230, int(1.25 * c) + 20) for c in tones[0]), tuple(int(0.6 * c) for c in tones[1])
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


def room(rng: Rng) -> list[Item]:
    """Plank floor and a hand-painted canvas all around, far enough to stay quiet."""
    floor = paint.boards(1200, 1200, rng, 16, (142, 112, 84), (92, 66, 46))
    a = np.linspace(0, 2 * math.pi, 129)
    wall = np.stack([np.stack([2.6 * np.cos(a), 2.6 * np.sin(a), np.full(129, z)], -1) for z in (-0.75, 1.7)])
    v, u = np.meshgrid([1.0, 0.0], np.linspace(0, 1, 129), indexing="ij")
    angle = np.linspace(0, 2 * math.pi, 2400)
    z = np.linspace(1.7, -0.75, 360)[:, None] + 0 * angle
    points = np.stack([2.6 * np.cos(angle) + 0 * z, 2.6 * np.sin(angle) + 0 * z, z], -1)
    clouds = paint.solid_noise(points * 1.6, 71, 5, 0.55)
    canvas = paint.mixed((138, 132, 116), (98, 104, 98), 0.5 + 1.3 * clouds)
    canvas = paint.mixed(canvas, (150, 124, 98), np.clip(1.6 * paint.solid_noise(points * 1.1, 83, 4), 0, 0.6))
    backdrop = Shape(
        wall.reshape(-1, 3),
        np.stack([u, v], -1).reshape(-1, 2),
        np.concatenate([[[i, i + 129, i + 1], [i + 1, i + 129, i + 130]] for i in range(128)]),
    )
    return [
        Item("floor", sheet((5.4, 5.4), (1, 1)).placed((0, 0, -0.75)), floor),
        Item("backdrop", backdrop, paint.finished(canvas)),
    ]


def everything(seed: int = 36) -> list[Item]:
    """All items of the scene, painted with one seed."""
    rng = np.random.default_rng(seed)
    red = ((136, 48, 44), (222, 186, 116), (206, 192, 158))
    green = ((52, 84, 78), (214, 190, 132), (198, 186, 156))
    books = [
        book(
            rng,
            "lower book",
            (0.215, 0.152, 0.036),
            green,
            ("STILL LIVES", "light & form", "second edition"),
            (0.138, 0.058, 0.0195),
            0.30,
        ),
        book(
            rng,
            "upper book",
            (0.176, 0.124, 0.027),
            red,
            ("THE ATLAS", "of small things", "volume VII"),
            (0.140, 0.064, 0.0515),
            0.02,
        ),
    ]
    return [table(rng), cloth(rng), vase(rng), *books, mug(rng), *toy(rng), *fruit(rng), *blocks(rng), *room(rng)]
