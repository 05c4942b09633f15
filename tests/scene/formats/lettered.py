"""The lettered block: an L-shaped prism that no turn or mirror maps onto itself, with a letter on each of its faces.

Whoever reads it right has its corners, its handedness, its scale, and each letter upright and legible on its own face.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from scene.formats.materials import sample
from scene.mesh import Material, Mesh

CELL = 64  # px of the square of a letter
LETTERS = "ABCDEFGH"
# The profile in x and z, counter-clockwise seen from -y; it is pushed along y from 0.5 to 2.5.
PROFILE = [(1.0, 0.25), (4.0, 0.25), (4.0, 1.25), (2.0, 1.25), (2.0, 2.75), (1.0, 2.75)]
NEAR, FAR = 0.5, 2.5
COLORS = [(230, 60, 50), (60, 170, 70), (60, 90, 220), (230, 190, 40), (160, 60, 190), (40, 180, 190), (240, 130, 40)]
COLORS.append((120, 120, 120))


def letter_sheet() -> NDArray[np.uint8]:
    """[2 CELL, 4 CELL, 3] letters A to H, four to a row, each on a colour of its own."""
    sheet = Image.new("RGB", (4 * CELL, 2 * CELL))
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=48)
    for i, letter in enumerate(LETTERS):
        x, y = CELL * (i % 4), CELL * (i // 4)
        draw.rectangle((x, y, x + CELL, y + CELL), fill=COLORS[i])
        draw.text((x + CELL / 2, y + CELL / 2), letter, font=font, anchor="mm", fill=(255, 255, 255))
    return np.array(sheet)


def lettered_block() -> Mesh:
    """The block: 12 vertices, 20 triangles, closed, with the letters as its texture."""
    near = [(x, NEAR, z) for x, z in PROFILE]
    far = [(x, FAR, z) for x, z in PROFILE]
    # Faces as quads seen from outside, from the bottom left counter-clockwise; each L is two quads of one letter.
    quads: list[tuple[int, list[int]]] = [(0, [0, 1, 2, 3]), (0, [0, 3, 4, 5])]
    quads += [(1, [7, 6, 9, 8]), (1, [6, 11, 10, 9])]
    quads += [(2 + i, [i, 6 + i, 6 + (i + 1) % 6, (i + 1) % 6]) for i in range(6)]
    vertices = np.array(near + far)
    faces, uvs = [], []
    for letter, quad in quads:
        at = vertices[quad]
        for a, b, c in ((0, 1, 2), (0, 2, 3)):
            faces.append([quad[a], quad[b], quad[c]])
            uvs.append(_uvs(letter, at[[a, b, c]], _frame(letter, vertices, quads)))
    return Mesh(vertices, np.array(faces), None, np.array(uvs, np.float32), Material(letter_sheet()))


def _frame(letter: int, vertices: NDArray, quads: list[tuple[int, list[int]]]) -> tuple[NDArray, NDArray, NDArray]:
    """Origin and the two edges of the rectangle that a letter fills: to the right, and upwards, seen from outside."""
    points = np.concatenate([vertices[quad] for number, quad in quads if number == letter])
    low, high = points.min(axis=0), points.max(axis=0)
    first = vertices[next(quad for number, quad in quads if number == letter)]
    normal = np.cross(first[1] - first[0], first[2] - first[0])
    up = np.array([0.0, 0, 1]) if abs(normal[2]) < 1e-9 else np.array([0.0, 1, 0])
    right = np.cross(up, normal / np.linalg.norm(normal))
    size = high - low
    middle = (low + high) / 2
    right, up = right * abs(right @ size), up * abs(up @ size)
    return middle - (right + up) / 2, right, up


def _uvs(letter: int, points: NDArray, frame: tuple[NDArray, NDArray, NDArray]) -> NDArray:
    origin, right, up = frame
    a, b = (points - origin) @ right / (right @ right), (points - origin) @ up / (up @ up)
    column, row = letter % 4, letter // 4
    # A texel's width inside its cell, so that linear sampling never meets the neighbour.
    inner = 1 - 2 / CELL
    return np.stack([(column + 1 / CELL + a * inner) / 4, 1 - (row + 1 - 1 / CELL - b * inner) / 2], axis=-1)


def ordered(triangles: NDArray, *others: NDArray) -> list[NDArray]:
    """Triangles [F, 3, 3], each begun at its lowest corner, sorted; others [F, 3, ...] are moved along."""
    keys = np.round(triangles.astype(np.float64), 3)
    starts = [np.lexsort(key.T[::-1])[0] for key in keys]
    turn = (np.array(starts)[:, None] + np.arange(3)) % 3
    rows = np.arange(len(keys))[:, None]
    turned = keys[rows, turn]
    order = np.lexsort(turned.reshape(len(keys), -1).T[::-1])
    return [values[rows, turn][order] for values in (triangles, *others)]


def corner_error(triangles: NDArray) -> float:
    """Largest distance between the corners of triangles [20, 3, 3] and the block's own, winding included.

    Infinite where there are not as many triangles.
    """
    block = lettered_block()
    if triangles.shape != (20, 3, 3):
        return float("inf")
    truth, got = ordered(block.vertices[block.faces])[0], ordered(triangles)[0]
    return float(np.abs(truth - got).max())


def picture_error(triangles: NDArray, uvs: NDArray, picture: NDArray[np.uint8]) -> float:
    """Mean difference (0 to 255) between what lies at points spread over all faces and what should lie there.

    uvs: [20, 3, 2] of the corners, v up.  picture: [H, W, 3].  A mirrored or turned letter gives more than 10.
    """
    block = lettered_block()
    assert block.uvs is not None
    _, truth_uvs = ordered(block.vertices[block.faces], block.uvs)
    _, got_uvs = ordered(triangles, uvs)
    grid = [(i, j, 10 - i - j) for i in range(1, 10) for j in range(1, 10 - i)]
    weights = np.array(grid) / 10.0
    truth = sample(letter_sheet(), np.einsum("pk,fkc->fpc", weights, truth_uvs))
    got = sample(picture, np.einsum("pk,fkc->fpc", weights, got_uvs))
    return float(np.abs(truth - got).mean())
