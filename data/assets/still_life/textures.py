"""Procedural textures of the still life: solid noise, wood, linen, and prints that never repeat.

All return sRGB images [H, W, 3], uint8. Nothing is tiled: photos of the scene must be told apart by feature matching.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from data.assets.still_life.shapes import Array, Shape, resampled

Pixels = NDArray[np.uint8]
Colour = tuple[int, int, int]
Rng = np.random.Generator


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


def solid_noise(points: Array, seed: int, octaves: int = 4, gain: float = 0.5) -> Array:
    """Fractal value noise in [-1, 1] at points [..., 3]; the first octave has cells of size 1."""
    total, weight = np.zeros(points.shape[:-1]), 1.0
    for octave in range(octaves):
        total += weight * (2 * _lattice_noise(points * 2.0**octave + 17.3 * octave, seed + octave) - 1)
        weight *= gain
    return total * (1 - gain) / (1 - gain**octaves)


def _lattice_noise(points: Array, seed: int) -> Array:
    base = np.floor(points)
    f = points - base
    f = f * f * (3 - 2 * f)
    cell = base.astype(np.int64).astype(np.uint32)
    total = np.zeros(points.shape[:-1])
    for corner in range(8):
        bits = np.array([corner & 1, corner >> 1 & 1, corner >> 2], dtype=np.uint32)
        at = cell + bits
        h = at[..., 0] * np.uint32(73856093) ^ at[..., 1] * np.uint32(19349663) ^ at[..., 2] * np.uint32(83492791)
        h ^= np.uint32(seed * 2654435761 % 2**32)
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):  # the finaliser of MurmurHash3
            h = (h ^ (h >> np.uint32(shift))) * np.uint32(factor)
        h ^= h >> np.uint32(16)
        share = np.prod(np.where(bits.astype(bool), f, 1 - f), axis=-1)
        total += share * (h / 2.0**32)
    return total


def flat_noise(height: int, width: int, rng: Rng, cells: float, octaves: int = 4, gain: float = 0.5) -> Array:
    """Fractal noise of unit variance, [H, W]; the first octave has `cells` cells over the height."""
    total = np.zeros((height, width))
    for octave in range(octaves):
        rows = max(2, round(cells * 2**octave))
        grid = rng.standard_normal((rows, max(2, round(rows * width / height)))).astype(np.float32)
        total += gain**octave * np.asarray(Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC))
    return total / total.std()


def mixed(a: Array | Colour, b: Array | Colour, share: NDArray[np.floating]) -> Array:
    """Colours a and b blended by share [H, W] in 0..1."""
    s = np.clip(share, 0, 1)[..., None]
    return np.asarray(a, dtype=float) * (1 - s) + np.asarray(b, dtype=float) * s


def shade(tone: Colour, factor: float, lift: int = 0, top: int = 255) -> Colour:
    """A lighter or darker tone."""
    red, green, blue = (min(top, int(factor * value) + lift) for value in tone)
    return red, green, blue


def finished(colour: Array) -> Pixels:
    """Float colours in 0..255 as bytes. Kept off pure black and white, which no real paint reaches."""
    return np.clip(np.round(colour), 12, 236).astype(np.uint8)


def speckled(
    colour: Array, rng: Rng, count: int, radius: tuple[float, float], paint: list[Colour], strength: float
) -> Array:
    """Small irregular spots of paint, wrapping horizontally."""
    height, width = colour.shape[:2]
    layer = Image.new("RGBA", (width, height))
    draw = ImageDraw.Draw(layer)
    for _ in range(count):
        r = radius[0] * (radius[1] / radius[0]) ** (rng.random() ** 2.0)
        x, y = rng.random() * width, rng.random() * height
        tone = (*paint[rng.integers(len(paint))], int(255 * strength * rng.uniform(0.5, 1)))
        turn = rng.uniform(0, 6.3)
        for shift in (-width, 0, width):
            _blob(draw, x + shift, y, r, turn, tone)
    return over(colour, layer)


def _blob(draw: ImageDraw.ImageDraw, x: float, y: float, r: float, turn: float, tone: tuple[int, ...]) -> None:
    angles = turn + np.arange(9) * 2 * math.pi / 9
    wobble = r * (1 + 0.25 * np.sin(3 * angles + turn) + 0.15 * np.cos(2 * angles))
    draw.polygon([(x + w * math.cos(a), y + w * math.sin(a)) for a, w in zip(angles, wobble)], fill=tone)


def over(colour: Array, layer: Image.Image) -> Array:
    """The painted layer over the colours; a layer twice as large is averaged down, which smooths its edges."""
    size = (colour.shape[1], colour.shape[0])
    if layer.size != size:
        layer = layer.resize(size, Image.Resampling.BOX)
    paint = np.asarray(layer, dtype=float)
    return mixed(colour, paint[..., :3], paint[..., 3] / 255)


def leaf(
    draw: ImageDraw.ImageDraw, x: float, y: float, length: float, turn: float, tone: Colour, vein: Colour, slim: float
) -> None:
    """A pointed leaf with a vein, its stalk at (x, y)."""
    t = np.linspace(0, 1, 14)
    half = slim * length * np.sin(np.pi * t**0.8) ** 1.1
    along = np.concatenate([t, t[::-1]]) * length
    aside = np.concatenate([half, -half[::-1]]) + 0.12 * length * np.sin(np.pi * along / length)
    c, s = math.cos(turn), math.sin(turn)
    draw.polygon([(x + a * c - b * s, y + a * s + b * c) for a, b in zip(along, aside)], fill=(*tone, 255))
    spine = [(x + a * c - b * s, y + a * s + b * c) for a, b in zip(t * length, 0.12 * length * np.sin(np.pi * t))]
    draw.line(spine, fill=(*vein, 255), width=max(1, round(length * 0.03)))
    for k in (4, 6, 8, 10):
        for sign in (-1, 1):
            a, b = t[k - 1] * length, 0.12 * length * math.sin(math.pi * t[k - 1])
            a2, b2 = t[k] * length, 0.12 * length * math.sin(math.pi * t[k]) + sign * half[k] * 0.75
            ends = [(x + a * c - b * s, y + a * s + b * c), (x + a2 * c - b2 * s, y + a2 * s + b2 * c)]
            draw.line(ends, fill=(*vein, 255), width=max(1, round(length * 0.018)))


def flower(
    draw: ImageDraw.ImageDraw, x: float, y: float, r: float, petals: int, turn: float, tone: Colour, heart: Colour
) -> None:
    """A flower seen from the front."""
    dark = shade(tone, 0.72)
    for k in range(petals):
        a = turn + 2 * math.pi * k / petals
        t = np.linspace(0, 1, 12)
        half = r * 2.0 / petals * np.sin(np.pi * t**1.4) ** 0.8
        along = np.concatenate([t, t[::-1]]) * r
        aside = np.concatenate([half, -half[::-1]])
        outline = [
            (x + p * math.cos(a) - q * math.sin(a), y + p * math.sin(a) + q * math.cos(a)) for p, q in zip(along, aside)
        ]
        draw.polygon(outline, fill=(*tone, 255))
        ends = [(x + f * r * math.cos(a), y + f * r * math.sin(a)) for f in (0.25, 0.75)]
        draw.line(ends, fill=(*dark, 255), width=max(1, round(0.05 * r)))
    core = 0.26 * r
    draw.ellipse((x - core, y - core, x + core, y + core), fill=(*heart, 255))


def scattered(width: int, height: int, rng: Rng, sizes: list[float], gap: float) -> list[tuple[float, float, float]]:
    """(x, y, size) of discs that keep their distance, large ones first; x wraps around."""
    placed: list[tuple[float, float, float]] = []
    for size in sizes:
        for _ in range(60):
            x, y = rng.random() * width, rng.random() * height
            near = ((min(abs(x - a), width - abs(x - a)), y - b, s) for a, b, s in placed)
            if all(dx * dx + dy * dy > (gap * (size + s)) ** 2 for dx, dy, s in near):
                placed.append((x, y, size))
                break
    return placed


def botanical(
    width: int,
    height: int,
    rng: Rng,
    sizes: list[float],
    tones: list[Colour],
    hearts: list[Colour],
    greens: list[Colour],
) -> Image.Image:
    """A layer of flowers, sprigs and berries in random sizes and turns; wraps horizontally. No two are alike."""
    layer = Image.new("RGBA", (width, height))
    draw = ImageDraw.Draw(layer)
    for x, y, size in scattered(width, height, rng, sizes, gap=0.92):
        kind, turn, state = rng.random(), rng.uniform(0, 2 * math.pi), int(rng.integers(2**31))
        for shift in (-width, 0, width):
            if -2 * size < x + shift < width + 2 * size:
                local = np.random.default_rng(state)  # the same picture on both sides of the seam
                _sprig_or_flower(draw, x + shift, y, size, kind, turn, local, (tones, hearts, greens))
    return layer


def _sprig_or_flower(
    draw: ImageDraw.ImageDraw,
    x: float,
    y: float,
    size: float,
    kind: float,
    turn: float,
    rng: Rng,
    palette: tuple[list[Colour], list[Colour], list[Colour]],
) -> None:
    tones, hearts, greens = palette
    green, tone = greens[rng.integers(len(greens))], tones[rng.integers(len(tones))]
    pale = shade(green, 1.3, lift=15)
    if kind < 0.42:
        for k in range(int(rng.integers(2, 5))):
            leaf(
                draw,
                x,
                y,
                size * rng.uniform(0.85, 1.1),
                turn + k * rng.uniform(1.2, 2.2),
                green,
                pale,
                rng.uniform(0.14, 0.24),
            )
        flower(draw, x, y, 0.72 * size, int(rng.integers(5, 10)), turn, tone, hearts[rng.integers(len(hearts))])
    elif kind < 0.8:
        c, s = math.cos(turn), math.sin(turn)
        start, end = (x - size * c, y - size * s), (x + size * c, y + size * s)
        draw.line([start, end], fill=(*green, 255), width=max(1, round(0.05 * size)))
        count = int(rng.integers(4, 8))
        for k in range(count):
            f = 2 * k / count - 1
            at = (x + f * size * c, y + f * size * s)
            side = 1 if k % 2 else -1
            leaf(
                draw,
                *at,
                size * rng.uniform(0.45, 0.75),
                turn + side * rng.uniform(0.5, 1.0),
                green,
                pale,
                rng.uniform(0.16, 0.28),
            )
    else:
        for _ in range(int(rng.integers(3, 8))):
            a, d, r = rng.uniform(0, 6.3), size * rng.uniform(0.1, 0.7), size * rng.uniform(0.14, 0.26)
            px, py = x + d * math.cos(a), y + d * math.sin(a)
            draw.line([(x, y), (px, py)], fill=(*green, 255), width=max(1, round(0.04 * size)))
            draw.ellipse((px - r, py - r, px + r, py + r), fill=(*tone, 255))
            draw.ellipse((px - 0.5 * r, py - 0.6 * r, px - 0.1 * r, py - 0.2 * r), fill=(*pale, 255))


def lettering(layer: Image.Image, text: str, at: tuple[float, float], size: float, tone: Colour) -> None:
    """Text centred at a point of the layer, in the typeface that Pillow carries."""
    font = ImageFont.load_default(size)
    ImageDraw.Draw(layer).text(at, text, fill=(*tone, 255), font=font, anchor="mm")


def wood(height: int, width: int, rng: Rng, light: Colour, dark: Colour, rings: float = 9.0) -> Array:
    """Grain along the width: warped year rings, fibres and a few knots."""
    v, u = np.meshgrid(np.linspace(0, 1, height), np.linspace(0, width / height, width), indexing="ij")
    warp = 0.22 * np.asarray(
        Image.fromarray(flat_noise(height, max(2, width // 6), rng, 2).astype(np.float32)).resize((width, height))
    )
    for _ in range(max(1, int(width / height / 1.5))):
        ku, kv, size = rng.random() * width / height, rng.random(), rng.uniform(0.05, 0.12)
        warp += 0.5 * np.exp(-(((u - ku) / (2.2 * size)) ** 2 + ((v - kv) / size) ** 2))
    ring = rings * (v + warp)
    year = ring - np.floor(ring)
    fibre = np.asarray(
        Image.fromarray(flat_noise(height, max(2, width // 16), rng, height / 3, 1).astype(np.float32)).resize(
            (width, height)
        )
    )
    tone = 0.55 * year**2 + 0.13 * fibre + 0.12 * flat_noise(height, width, rng, 2) + 0.2
    return mixed(light, dark, tone)


def boards(height: int, width: int, rng: Rng, count: int, light: Colour, dark: Colour) -> Pixels:
    """A plank floor or table top: every board has its own tone and grain, with ends at random places."""
    picture = np.zeros((height, width, 3))
    edges = np.linspace(0, height, count + 1).astype(int)
    for top, bottom in itertools.pairwise(edges):
        left = -int(rng.random() * 0.5 * width)
        while left < width:
            right = left + int(width * rng.uniform(0.45, 0.75))
            tint = rng.uniform(0.8, 1.12) * np.array([1, rng.uniform(0.97, 1.03), rng.uniform(0.92, 1.06)])
            board = wood(bottom - top, right - left, rng, light, dark, rings=rng.uniform(3, 7)) * tint
            board[:2] *= 0.45
            board[:, :2] *= 0.45
            a, b = max(left, 0), min(right, width)
            picture[top:bottom, a:b] = board[:, a - left : b - left]
            left = right
    return finished(picture)


def linen(height: int, width: int, rng: Rng, colour: Colour) -> Array:
    """Woven cloth: warp and weft threads of uneven thickness, faint stains."""
    across = flat_noise(height, width, rng, height / 5, 1)
    threads = rng.standard_normal((height, 1)) * 0.6 + rng.standard_normal((1, width)) * 0.6
    slow = flat_noise(height, width, rng, 3)
    shade = 1 + 0.022 * across + 0.018 * threads + 0.025 * slow
    return np.asarray(colour) * shade[..., None]
