"""Middlebury multi-view stereo: NAME_par.txt, one line for each picture: name, K, R, t with P = K [R | t].

Its calibration counts pixels from the centre of the first one; half a pixel is added to the principal point.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np

from data.files import MAX_TABLE_BYTES
from data.frames import Frame, Source, posed_frame, rigid
from data.images import inspect_image
from data.lens import Lens
from data.photos import MaskFinder, left_out, sorted_frames
from scene.errors import InputError
from scene.untrusted import MAX_PHOTOS, inside, text_lines

_HALF_PIXEL = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])


def find_middlebury(folder: Path) -> Path | None:
    """The camera file of a Middlebury folder."""
    return next(iter(sorted(folder.glob("*_par.txt"))), None)


def read_middlebury(par_file: Path) -> Source:
    """The capture of a Middlebury folder. Raises InputError when no line is usable."""
    folder = par_file.parent
    masks = MaskFinder(folder)
    frames: dict[str, Frame] = {}
    bad = []
    for line in itertools.islice(
        text_lines(par_file, MAX_TABLE_BYTES), 1, None
    ):  # the first line is the number of the others
        words = line.split()
        if not words:
            continue
        try:
            frame = _frame(folder, words, masks)
            frames[frame.name] = frame
        except InputError as error:
            bad.append(str(error))
        if len(frames) > MAX_PHOTOS:
            raise InputError(f"{par_file.name} lists more than {MAX_PHOTOS} pictures")
    if not frames:
        raise InputError(
            f"{par_file} should have lines of a picture's name and 21 numbers (K, R, t) after a line with their count; "
            f"none is usable: {'; '.join(bad[:5])}"
        )
    sentence = f"{par_file.name}: Middlebury cameras of {len(frames)} pictures; none is estimated."
    return Source("middlebury", sorted_frames(frames.values()), decisions=(sentence, *left_out(bad)))


def _frame(folder: Path, words: list[str], masks: MaskFinder) -> Frame:
    name = words[0]
    K, c2w = parse_par(words)
    path = inside(folder, name)
    if not path.is_file():
        raise InputError(f"{name} is missing")
    facts = inspect_image(path)
    lens = Lens.from_K(K, facts.width, facts.height)
    group = f"middlebury {lens.width}x{lens.height} {lens.fx:.4f} {lens.cx:.4f} {lens.cy:.4f}"
    return posed_frame(name, path, facts, lens, c2w, group=group, mask=masks.find(name))


def parse_par(words: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """K [3, 3] with pixel centres at +0.5 and c2w [4, 4] of one line split into words."""
    try:
        numbers = np.array([float(word) for word in words[1:]])
    except ValueError as error:
        raise InputError(f"{words[0]}: {error}") from error
    if numbers.size != 21 or not np.isfinite(numbers).all():
        raise InputError(f"{words[0]}: expected 21 finite numbers, got {numbers.size}")
    K, rotation, translation = numbers[:9].reshape(3, 3), numbers[9:18].reshape(3, 3), numbers[18:]
    if K[2, 2] == 0:
        raise InputError(f"{words[0]}: its K is no camera matrix")
    c2w = np.eye(4)
    c2w[:3, :3] = rotation.T
    c2w[:3, 3] = -rotation.T @ translation
    return _HALF_PIXEL @ K / K[2, 2], rigid(c2w, words[0])
