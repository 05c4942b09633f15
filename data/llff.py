"""LLFF: poses_bounds.npy beside a folder of forward-facing photos.

Each of its rows holds a 3x5 matrix and near and far. The matrix is camera-to-world for the axes (down, right, back)
with a fifth column of height, width, focal length; rows go with the photos in the order of their names.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.colmap import fit_lens, read_lenses, read_points
from data.files import MAX_TABLE_BYTES, natural_key, photo_files
from data.frames import Source, posed_frame, rigid
from data.images import inspect_image
from data.lens import Lens
from data.photos import MaskFinder, left_out, sorted_frames
from scene.errors import InputError
from scene.untrusted import read_npy


def read_llff(folder: Path) -> Source:
    """The capture of an LLFF folder. Raises InputError when poses and photos do not go together."""
    table = read_poses_bounds(folder / "poses_bounds.npy")
    place, names = _photos(folder, len(table))
    masks = MaskFinder(place)
    model = folder / "sparse" / "0"
    lenses = read_lenses(model)
    frames, bad = [], []
    for name, row in zip(names, table, strict=True):
        try:
            facts = inspect_image(place / name)
            c2w, declared = parse_row(row, name)
            lens, orientation = fit_lens(_distorting(declared, lenses), facts, name)
        except InputError as error:
            bad.append(str(error))
            continue
        group = f"llff {lens.width}x{lens.height} {lens.fx:.4f}"
        frames.append(
            posed_frame(
                name, place / name, facts, lens, c2w, group=group, mask=masks.find(name), orientation=orientation
            )
        )
    if not frames:
        raise InputError(f"no photo in {place} fits poses_bounds.npy: {'; '.join(bad[:5])}")
    points = read_points(model)
    decisions = [f"poses_bounds.npy: LLFF cameras of {len(frames)} photos in {place.name}/; none is estimated."]
    if points is not None:
        decisions.append(f"{len(points)} points from the COLMAP model that its cameras come from.")
    if any(frame.lens is not None and frame.lens.distorts for frame in frames):
        decisions.append("The distortion of its lens is that of the COLMAP model; poses_bounds.npy cannot hold it.")
    return Source("llff", sorted_frames(frames), points=points, decisions=(*decisions, *left_out(bad)))


def read_poses_bounds(path: Path) -> np.ndarray:
    """[N, 17] float64. Raises InputError when the file is damaged, too short for its header, or holds objects."""
    table = read_npy(path, MAX_TABLE_BYTES)
    if table.ndim != 2 or table.shape[1] != 17 or table.dtype.kind != "f":
        raise InputError(f"{path} should be an array of N x 17 numbers, got {table.dtype} of shape {table.shape}")
    with np.errstate(over="ignore"):
        return table.astype(np.float64)


def parse_row(row: np.ndarray, name: str) -> tuple[np.ndarray, Lens]:
    """c2w [4, 4] in OpenCV axes and the lens of one row."""
    matrix = row[:15].reshape(3, 5)
    height, width, focal = matrix[:, 4]
    if not np.isfinite(matrix).all() or not (1 <= width < 1e6 and 1 <= height < 1e6):
        raise InputError(f"{name}: its row of poses_bounds.npy holds no camera")
    down, right, back, centre = matrix[:, :4].T
    c2w = rigid(np.stack([right, down, -back, centre], axis=1), name)
    width, height = round(float(width)), round(float(height))
    return c2w, Lens("pinhole", width, height, float(focal), float(focal), width / 2, height / 2)


def _distorting(lens: Lens, lenses: Sequence[Lens]) -> Lens:
    """The lens of the COLMAP model the poses come from, where it is plainly the same one."""
    if len(lenses) == 1 and (lenses[0].width, lenses[0].height) == (lens.width, lens.height):
        return lenses[0] if abs(lenses[0].fx - lens.fx) < 1e-3 * lens.fx else lens
    return lens


def _photos(folder: Path, count: int) -> tuple[Path, list[str]]:
    """The folder of the largest photos whose number is that of the poses."""
    places = [folder / "images", *sorted(folder.glob("images_*"), key=lambda path: natural_key(path.name)), folder]
    seen = []
    for place in places:
        if place.is_dir():
            # In the order of LLFF's own loader: plain, not natural.
            names = sorted(name for name in photo_files(place) if "/" not in name)
            if len(names) == count:
                return place, names
            seen.append(f"{place.name}/ {len(names)}")
    raise InputError(
        f"poses_bounds.npy has {count} poses, so {folder} needs a folder images/ or images_N/ of {count} photos; "
        f"found {', '.join(seen)}"
    )
