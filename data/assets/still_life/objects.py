"""The scene: table, cloth, vase, mug, books and room; each function makes the shapes and paints the texture of one."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

from data.assets.still_life import textures as paint
from data.assets.still_life.shapes import (
    Array,
    Shape,
    joined,
    revolve,
    rounded_box,
    sheet,
    smooth_profile,
    tube,
)
from data.assets.still_life.small_things import blocks, fruit, toy
from data.assets.still_life.textures import Colour, Item, Rng, revolved_points

CLOTH_SIZE = (1.16, 0.92)  # metres
CLOTH_TURN = math.radians(17)


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
        paint.over(picture, layer), rng, 500, (1, 5), [paint.shade(cover, 0.7), (120, 104, 84)], 0.5
    )
    return Item(name, rounded_box(size, 0.003).placed(at, turn=turn), paint.finished(colour))


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
