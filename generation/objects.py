"""Captioned objects in the frame of all of generation: +z up, front +x, within radius 0.75 about the origin.

`make_object` builds what a caption says and draws what it leaves open; the same generator state, the same object. What
an object is and can be asked (inside, distance, bounds) stands in `shapes.py`; how it looks, in `object_render.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from generation import caption_words as words
from generation.captions import Caption, Phrase, held_out_triples
from generation.draws import Draw
from generation.interactions import interaction
from generation.object_builder import Builder, Vector
from generation.object_classes import BUILDERS, EXTENTS, STEEL
from generation.persons import person
from generation.shapes import Kind, Material, ObjectModel, union

__all__ = ["RADIUS", "Kind", "Material", "ObjectModel", "make_object", "resolve_colors"]

RADIUS = 0.75
JITTER = 0.06  # of a colour's brightness; a third of it of each channel
GAP = 0.07  # between things in a row, beside a person of height 1

# Radius in shares of RADIUS, and size beside other things.
_SIZES: dict[str | None, tuple[tuple[float, float], float]] = {
    "tiny": ((0.40, 0.46), 0.5),
    "small": ((0.60, 0.66), 0.7),
    None: ((0.82, 0.88), 1.0),
    "large": ((0.92, 0.95), 1.35),
    "huge": ((0.985, 1.0), 1.7),
}
_PROPORTIONS: dict[str | None, tuple[float, float]] = {  # tall, wide
    None: (1.0, 1.0),
    "tall": (1.4, 0.9),
    "short": (0.68, 1.08),
    "wide": (0.95, 1.4),
    "thin": (1.1, 0.66),
}


def make_object(caption: Caption, generator: torch.Generator) -> ObjectModel:
    """An object that the caption describes, with everything else drawn."""
    draw = Draw(generator)
    if caption.relation in words.INTERACTIONS and caption.other is not None:
        thing = _thing(caption.other, draw)
        model = interaction(caption.relation, lambda angles: _thing(caption.phrase, draw, angles), thing)
    elif caption.other is not None:
        first, second = (_row(phrase, draw) for phrase in caption.phrases())
        model = _beside(first, second) if caption.relation == "next to" else _stacked(first, second)
    else:
        model = _row(caption.phrase, draw)
    share = _SIZES[None if caption.other else caption.phrase.size][0] if caption.other is None else (0.97, 1.0)
    return _fitted(model, RADIUS * draw.between(*share))


def resolve_colors(phrase: Phrase, draw: Draw) -> dict[str, str]:
    """Names of colours by part: as the phrase says, else drawn; a drawn pair is never a held-out one."""
    first, second = words.PARTS[phrase.noun][:2]
    said = phrase.colors()
    names = tuple(words.COLORS)
    natural = [p for p in words.NATURAL[phrase.noun] if all(want in (None, got) for want, got in zip(said, p))]
    while True:
        pair = (said[0] or draw.choice(names), said[1] or draw.choice(names))
        if natural and draw.chance(0.6):
            pair = draw.choice(natural)
        if None not in said or (phrase.noun, *pair) not in held_out_triples():
            break
    colors = {first: pair[0], second: pair[1]}
    for part, followed in words.FOLLOWS.get(phrase.noun, {}).items():
        colors[part] = colors[followed]
    return colors | dict(phrase.parts)


def _thing(phrase: Phrase, draw: Draw, angles: Mapping[str, float] | None = None) -> ObjectModel:
    """One thing of natural size beside others, standing on z = 0 around the z axis; of a person, its pose."""
    colors = {part: _jittered(words.COLORS[name], draw) for part, name in resolve_colors(phrase, draw).items()}
    if phrase.color is None and not phrase.parts and phrase.material in ("wooden", "metallic"):
        plain = words.COLORS["brown"] if phrase.material == "wooden" else STEEL
        colors = {part: _jittered(plain, draw) for part in colors}
    material = Material[phrase.material.upper()] if phrase.material else Material.MATTE
    tall, wide = (value * draw.between(0.95, 1.05) for value in _PROPORTIONS[phrase.proportion])
    builder = Builder(phrase.noun, draw, colors, material, tall, wide)
    if phrase.noun == "person":
        model = person(builder, angles)
        scale = EXTENTS["person"]
    else:
        BUILDERS[phrase.noun](builder)
        model = builder.model()
        low, high = model.bounds()
        scale = EXTENTS[phrase.noun] / float((high - low).max())
    scale *= _SIZES[phrase.size][1]
    return _grounded(model.moved(scale, (0.0, 0.0, 0.0)))


def _jittered(rgb: Vector, draw: Draw) -> Vector:
    bright = draw.between(1 - JITTER, 1 + JITTER)
    red, green, blue = (min(1.0, c * bright * draw.between(1 - JITTER / 3, 1 + JITTER / 3)) for c in rgb)
    return red, green, blue


def _grounded(model: ObjectModel) -> ObjectModel:
    """Moved so that it stands on z = 0, its box centred on the z axis."""
    low, high = model.bounds()
    middle = 0.5 * (low + high)
    return model.moved(1.0, torch.stack([-middle[0], -middle[1], -low[2]]))


def _row(phrase: Phrase, draw: Draw) -> ObjectModel:
    """As many things as the phrase says, side by side along y, all alike in colour."""
    one = _thing(phrase, draw)
    if phrase.count == 1:
        return one
    low, high = one.bounds()
    step = float(high[1] - low[1]) + GAP
    places = [(k - 0.5 * (phrase.count - 1)) * step for k in range(phrase.count)]
    return union([one.moved(1.0, (0.0, y, 0.0)) for y in places])


def _beside(first: ObjectModel, second: ObjectModel) -> ObjectModel:
    """Both on the ground, the first at -y: to the left for who sees the front."""
    edge = float(first.bounds()[1][1] - second.bounds()[0][1]) + GAP
    return union([first, second.moved(1.0, (0.0, edge, 0.0))])


def _stacked(upper: ObjectModel, lower: ObjectModel) -> ObjectModel:
    """The first on what the second offers under its middle: the seat of a chair, the top of a table."""
    return union([upper.moved(1.0, (0.0, 0.0, lower.support(0.0, 0.0))), lower])


def _fitted(model: ObjectModel, radius: float) -> ObjectModel:
    """Its box centred on the origin, scaled to reach `radius`."""
    low, high = model.bounds()
    centred = model.moved(1.0, -0.5 * (low + high))
    return centred.moved(radius / centred.reach(), (0.0, 0.0, 0.0))
