"""A KITTI odometry drive: calib.txt, poses.txt and a folder of frames (image_l, image_0 ... image_3).

poses.txt holds camera-to-world of the left grey camera (OpenCV axes, metres); calib.txt its projection and those of the
cameras beside it, P = K [I | b]. Pixels are counted from the centre of the first one; half a pixel is added.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from data.files import MAX_TABLE_BYTES, natural_key, photo_files, read_numbers
from data.frames import Source, posed_frame, rigid
from data.images import inspect_image
from data.lens import Lens
from data.photos import left_out, sorted_frames
from scene.errors import InputError
from scene.untrusted import text_lines

# Folder of frames -> line of calib.txt that belongs to it.
_CAMERAS = {
    name: number
    for number, names in (
        (2, ("image_2", "image_02")),
        (0, ("image_l", "image_left", "image_0", "image_00")),
        (3, ("image_3", "image_03")),
        (1, ("image_r", "image_right", "image_1", "image_01")),
    )
    for name in names
}
_HALF_PIXEL = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])


def find_kitti(folder: Path) -> bool:
    """Whether the folder is laid out as a KITTI odometry drive."""
    return (folder / "calib.txt").is_file() and (folder / "poses.txt").is_file() and _frames_folder(folder) is not None


def read_kitti(folder: Path) -> Source:
    """The capture of one drive, one camera of it. Raises InputError when files do not go together."""
    place = _frames_folder(folder)
    if place is None:
        raise InputError(f"{folder} needs a folder of frames: one of {', '.join(_CAMERAS)}")
    projections = read_calibration(folder / "calib.txt")
    number = _CAMERAS[place.name]
    if number >= len(projections):
        raise InputError(f"calib.txt has {len(projections)} cameras, but {place.name} needs number {number}")
    K, c0_from_c = split_projection(projections[number])
    poses = read_numbers(folder / "poses.txt", row=12)
    frames, bad = [], []
    for name, row in _paired(place, poses):
        try:
            facts = inspect_image(place / name)
            lens = Lens.from_K(K, facts.width, facts.height)
            c2w = rigid(np.reshape(row, (3, 4)), name) @ c0_from_c
        except InputError as error:
            bad.append(str(error))
            continue
        group = f"kitti {place.name} {facts.width}x{facts.height}"
        frames.append(posed_frame(f"{place.name}/{name}", place / name, facts, lens, c2w, group=group))
    if not frames:
        raise InputError(f"no frame in {place} is usable: {'; '.join(bad[:5])}")
    sentence = (
        f"A KITTI drive: {len(frames)} frames of {place.name} with cameras from calib.txt and poses.txt, in metres; "
        "none is estimated."
    )
    return Source(
        "kitti",
        sorted_frames(frames),
        ordered=True,
        up=(0.0, -1.0, 0.0),  # the first camera looks level
        metric=True,
        decisions=(sentence, *left_out(bad)),
    )


def read_calibration(path: Path) -> list[np.ndarray]:
    """Projections [3, 4] in order, from lines of 12 numbers with or without a name ('P0:') before them."""
    projections = []
    for line in text_lines(path, MAX_TABLE_BYTES):
        words = line.split()
        if words and re.fullmatch(r"[A-Za-z_]+\d*:", words[0]):
            if not re.fullmatch(r"P\d:", words[0]):
                continue  # Tr: the laser scanner
            words = words[1:]
        if len(words) != 12:
            continue
        try:
            projections.append(np.array([float(word) for word in words]).reshape(3, 4))
        except ValueError as error:
            raise InputError(f"{path.name}: expected lines of 12 numbers: {error}") from error
    if not projections:
        raise InputError(f"{path.name} should have lines of 12 numbers, one 3x4 projection each; got none")
    return projections


def split_projection(projection: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """K [3, 3] with pixel centres at +0.5, and the pose [4, 4] of this camera in that of camera 0."""
    K = projection[:, :3]
    if not np.isfinite(projection).all() or abs(np.linalg.det(K)) < 1e-9:
        raise InputError("calib.txt: a projection holds no camera matrix")
    c0_from_c = np.eye(4)
    c0_from_c[:3, 3] = -np.linalg.solve(K, projection[:, 3])
    return _HALF_PIXEL @ K, c0_from_c


def _frames_folder(folder: Path) -> Path | None:
    for name in _CAMERAS:
        if (folder / name).is_dir():
            return folder / name
    return None


def _paired(place: Path, poses: list[list[float]]) -> list[tuple[str, list[float]]]:
    """Frames with their poses: in order when there are as many, else by the number in the frame's name."""
    names = sorted((name for name in photo_files(place) if "/" not in name), key=natural_key)
    if len(names) == len(poses):
        return list(zip(names, poses, strict=True))
    numbered = [(name, int(Path(name).stem)) for name in names if Path(name).stem.isdecimal()]
    pairs = [(name, poses[number]) for name, number in numbered if number < len(poses)]
    if not pairs:
        raise InputError(
            f"poses.txt has {len(poses)} poses, but {place.name} has {len(names)} frames whose names do not tell which"
        )
    return pairs
