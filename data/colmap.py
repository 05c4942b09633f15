"""COLMAP models, binary and text, read without COLMAP: cameras, images and points3D.

COLMAP stores camera-from-world poses and measures pixels from the picture's corner (centres at +0.5), as here.
Every count in a binary file is checked against the bytes that are left before anything is allocated for it.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from data.files import natural_key, photo_files
from data.frames import PointCloud, Source, posed_frame
from data.images import ImageFacts, inspect_image
from data.lens import Lens
from data.photos import MaskFinder, left_out, sorted_frames
from scene.errors import InputError
from scene.untrusted import MAX_PHOTOS, inside, map_bytes, real, text_lines

# COLMAP's number -> name, parameters in all, whether fx and fy are one number, our model.
_MODELS = {
    0: ("SIMPLE_PINHOLE", 3, True, "pinhole"),
    1: ("PINHOLE", 4, False, "pinhole"),
    2: ("SIMPLE_RADIAL", 4, True, "opencv"),
    3: ("RADIAL", 5, True, "opencv"),
    4: ("OPENCV", 8, False, "opencv"),
    5: ("OPENCV_FISHEYE", 8, False, "fisheye"),
    6: ("FULL_OPENCV", 12, False, "opencv"),
    7: ("FOV", 5, False, "fov"),
    8: ("SIMPLE_RADIAL_FISHEYE", 4, True, "fisheye"),
    9: ("RADIAL_FISHEYE", 5, True, "fisheye"),
    10: ("THIN_PRISM_FISHEYE", 12, False, "thin_prism_fisheye"),
    14: ("SIMPLE_FISHEYE", 3, True, "fisheye"),
    15: ("FISHEYE", 4, False, "fisheye"),
}
_MODEL_NUMBERS = {name: number for number, (name, *_) in _MODELS.items()}


@dataclass(frozen=True)
class ColmapImage:
    """One registered picture."""

    image_id: int
    name: str
    camera_id: int
    c2w: NDArray[np.float64]  # [4, 4]


@dataclass(frozen=True)
class ColmapModel:
    """A model as its files state it. Bad entries are left out and named in `bad`."""

    lenses: Mapping[int, Lens]
    images: tuple[ColmapImage, ...]
    points: PointCloud | None
    bad: tuple[str, ...] = ()


def find_colmap(folder: Path) -> Path | None:
    """The folder of a model inside `folder`: where cameras and images lie side by side."""
    for place in ("", "sparse/0", "sparse", "colmap/sparse/0", "colmap/sparse", "dense/sparse", "sfm", "0"):
        candidate = folder / place
        for suffix in (".bin", ".txt"):
            if (candidate / f"cameras{suffix}").is_file() and (candidate / f"images{suffix}").is_file():
                return candidate
    return None


def read_colmap(folder: Path, model_folder: Path) -> Source:
    """The capture of a COLMAP project: its model, and the photos it names in or beside it, below `folder`."""
    model = read_model(model_folder)
    images_folder, names, decisions = _find_photos(folder, model_folder, [image.name for image in model.images])
    masks = MaskFinder(images_folder)
    frames, bad = [], list(model.bad)
    for image in model.images:
        if image.name not in names:
            bad.append(f"{image.name}: no such photo")
            continue
        try:
            path = inside(images_folder, names[image.name])
            facts = inspect_image(path)
            lens, orientation = fit_lens(model.lenses[image.camera_id], facts, image.name)
        except InputError as error:
            bad.append(str(error))
            continue
        group, mask = f"colmap camera {image.camera_id} {lens.width}x{lens.height}", masks.find(image.name)
        frames.append(
            posed_frame(image.name, path, facts, lens, image.c2w, group=group, mask=mask, orientation=orientation)
        )
    if not frames:
        raise InputError(f"the COLMAP model in {model_folder} has no usable picture: {'; '.join(bad[:5])}")
    count = "no points" if model.points is None else f"{len(model.points)} points"
    kinds = sorted({lens.model for lens in model.lenses.values()})
    sentence = f"A COLMAP model ({model_folder.name}): {len(frames)} pictures, {count}, lenses: {', '.join(kinds)}."
    return Source(
        "colmap", sorted_frames(frames), points=model.points, decisions=(sentence, *decisions, *left_out(bad))
    )


def read_model(folder: Path) -> ColmapModel:
    """Cameras, images and points of the model in `folder`, binary where it has both forms.

    Raises InputError when a file is damaged or its counts cannot be true.
    """
    binary = (folder / "cameras.bin").is_file() and (folder / "images.bin").is_file()
    bad: list[str] = []
    if binary:
        lenses = _cameras_bin(folder / "cameras.bin", bad)
        images = list(_images_bin(folder / "images.bin"))
    else:
        lenses = _cameras_txt(folder / "cameras.txt", bad)
        images = list(_images_txt(folder / "images.txt"))
    kept = _checked(images, lenses, bad)
    if not kept:
        raise InputError(f"the COLMAP model in {folder} has no usable picture: {'; '.join(bad[:5]) or 'it is empty'}")
    return ColmapModel(lenses, tuple(kept), read_points(folder), tuple(bad))


def read_lenses(folder: Path) -> list[Lens]:
    """The lenses of cameras.bin or .txt in `folder`; none when there is neither."""
    if (folder / "cameras.bin").is_file():
        return list(_cameras_bin(folder / "cameras.bin", []).values())
    return list(_cameras_txt(folder / "cameras.txt", []).values()) if (folder / "cameras.txt").is_file() else []


def read_points(folder: Path) -> PointCloud | None:
    """points3D.bin or .txt in `folder`; None when there is neither or it is empty."""
    if (folder / "points3D.bin").is_file():
        return _points_bin(folder / "points3D.bin")
    if (folder / "points3D.txt").is_file():
        return _points_txt(folder / "points3D.txt")
    return None


def fit_lens(lens: Lens, facts: ImageFacts, name: str) -> tuple[Lens, int]:
    """The lens over the photo as it is on disk (which may have been made smaller), and the orientation to apply.

    Raises InputError when the shapes do not agree, for then the camera belongs to another picture.
    """
    shape = lens.width / lens.height
    for (width, height), orientation in (
        ((facts.width, facts.height), 1),
        (facts.oriented_size, facts.exif.orientation),
    ):
        # Rounding of a small picture's size changes its shape by up to a pixel each way.
        if abs(width - height * shape) <= max(2.0, 0.01 * width):
            return lens.resized(width, height), orientation
    raise InputError(f"{name} is {facts.width} x {facts.height}, but its camera is for {lens.width} x {lens.height}")


class _Reader:
    """A binary file read in order; every read says what it was for when the file ends early."""

    def __init__(self, path: Path) -> None:
        self._data = map_bytes(path)
        self.name = path.name
        self.at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self.at

    def take(self, layout: struct.Struct) -> tuple:
        if layout.size > self.left:
            raise InputError(f"{self.name} ends early, at byte {len(self._data)}; copy it again")
        values = layout.unpack_from(self._data, self.at)
        self.at += layout.size
        return values

    def count(self, item_bytes: int, what: str) -> int:
        """A 64-bit count of items of at least `item_bytes` each, refused when they cannot fit in what is left."""
        (count,) = self.take(_UINT64)
        least = count * item_bytes
        if least > self.left:
            raise InputError(
                f"{self.name} claims {count} {what}, which take at least {least} bytes, but {self.left} are left"
            )
        return count

    def skip(self, count: int) -> None:
        self.at += count

    def pairs(self, count: int) -> NDArray[np.int64]:
        """Pairs of 32-bit numbers [count, 2]; that so many bytes are left was checked before."""
        start = self.at
        self.skip(8 * count)
        return np.frombuffer(self._data, "<u4", 2 * count, start).astype(np.int64).reshape(count, 2)

    def text(self, max_bytes: int = 4096) -> str:
        window = bytes(self._data[self.at : self.at + max_bytes])
        end = window.find(b"\0")
        if end < 0:
            raise InputError(f"{self.name} holds a name without an end at byte {self.at}; copy the file again")
        self.at += end + 1
        return window[:end].decode("utf-8", errors="replace")


_UINT64 = struct.Struct("<Q")
_CAMERA = struct.Struct("<iiQQ")
_IMAGE = struct.Struct("<i7di")
_POINT = struct.Struct("<Q3d3BdQ")


def _cameras_bin(path: Path, bad: list[str]) -> dict[int, Lens]:
    reader = _Reader(path)
    lenses = {}
    for _ in range(reader.count(_CAMERA.size + 24, "cameras")):
        camera_id, model, width, height = reader.take(_CAMERA)
        if model not in _MODELS:
            # The number of its parameters is unknown, so nothing after it can be read either.
            raise InputError(f"{path.name}: camera model {model} is not known; convert the model to OPENCV with COLMAP")
        parameters = reader.take(struct.Struct(f"<{_MODELS[model][1]}d"))
        _add_lens(lenses, camera_id, model, width, height, parameters, bad)
    return lenses


def _cameras_txt(path: Path, bad: list[str]) -> dict[int, Lens]:
    lenses: dict[int, Lens] = {}
    for words in _lines(path):
        try:
            model = _MODEL_NUMBERS[words[1]]
            parameters = tuple(float(word) for word in words[4:])
            _add_lens(lenses, int(words[0]), model, int(words[2]), int(words[3]), parameters, bad)
        except (ValueError, IndexError, KeyError) as error:
            raise InputError(
                f"{path.name}: expected CAMERA_ID MODEL WIDTH HEIGHT PARAMS, got {' '.join(words)[:80]!r}"
            ) from error
    return lenses


def _add_lens(
    lenses: dict[int, Lens], camera_id: int, model: int, width: int, height: int, p: tuple[float, ...], bad: list[str]
) -> None:
    name, count, one_focal, ours = _MODELS[model]
    if len(p) != count:
        raise InputError(f"camera {camera_id}: {name} takes {count} parameters, got {len(p)}")
    fx, fy, cx, cy, *k = (p[0], *p) if one_focal else p
    try:
        lenses[camera_id] = Lens(ours, width, height, fx, fy, cx, cy, tuple(k))
    except InputError as error:
        bad.append(f"camera {camera_id}: {error}")


def _images_bin(path: Path) -> Iterator[ColmapImage]:
    reader = _Reader(path)
    for _ in range(reader.count(_IMAGE.size + 9, "images")):
        image_id, qw, qx, qy, qz, tx, ty, tz, camera_id = reader.take(_IMAGE)
        name = reader.text()
        reader.skip(24 * reader.count(24, f"keypoints of {name}"))  # not needed here
        yield ColmapImage(image_id, name, camera_id, _c2w((qw, qx, qy, qz), (tx, ty, tz)))


def _images_txt(path: Path) -> Iterator[ColmapImage]:
    lines = (line for line in text_lines(path) if not line.startswith("#"))
    for line in itertools.islice(lines, 0, None, 2):  # every other line lists keypoints and may be empty
        words = line.split(maxsplit=9)
        if not words:
            continue
        try:
            numbers = [float(word) for word in words[1:8]]
            yield ColmapImage(int(words[0]), words[9].strip(), int(words[8]), _c2w(numbers[:4], numbers[4:]))
        except (ValueError, IndexError) as error:
            raise InputError(
                f"{path.name}: expected IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME, got {line[:80]!r}"
            ) from error


def _c2w(
    quaternion: tuple[float, ...] | list[float], translation: tuple[float, ...] | list[float]
) -> NDArray[np.float64]:
    """From COLMAP's camera-from-world rotation (wxyz) and translation; NaN when they are no pose."""
    pose = np.full((4, 4), np.nan)
    q = np.asarray(quaternion, dtype=np.float64)
    with np.errstate(all="ignore"):
        w, x, y, z = q / np.linalg.norm(q)
        rotation = np.array(
            [
                [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
                [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
                [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
            ]
        )
        pose[:3, :3] = rotation.T
        pose[:3, 3] = -rotation.T @ np.asarray(translation, dtype=np.float64)
    pose[3] = (0, 0, 0, 1)
    return pose


def _checked(images: list[ColmapImage], lenses: Mapping[int, Lens], bad: list[str]) -> list[ColmapImage]:
    if len(images) > MAX_PHOTOS:
        raise InputError(f"the model lists {len(images)} pictures; at most {MAX_PHOTOS} are read")
    kept: dict[str, ColmapImage] = {}
    for image in images:
        if image.camera_id not in lenses:
            bad.append(f"{image.name}: its camera {image.camera_id} is missing")
        elif not np.isfinite(image.c2w).all():
            bad.append(f"{image.name}: its pose is not finite")
        elif image.name in kept:
            bad.append(f"{image.name}: listed twice")
        else:
            kept[image.name] = image
    return list(kept.values())


def _points_bin(path: Path) -> PointCloud | None:
    reader = _Reader(path)
    count = reader.count(_POINT.size, "points")
    xyz, rgb = np.empty((count, 3)), np.empty((count, 3), dtype=np.uint8)
    errors, tracks = np.empty(count, dtype=np.float32), np.empty(count, dtype=np.int32)
    for i in range(count):
        _, x, y, z, r, g, b, error, length = _take_point(reader, i)
        reader.skip(8 * length)
        xyz[i], rgb[i], errors[i], tracks[i] = (x, y, z), (r, g, b), error, length
    return _cloud(xyz, rgb, errors, tracks)


def _take_point(reader: _Reader, number: int) -> tuple:
    """A point of points3D.bin, its track still to be read."""
    values = reader.take(_POINT)
    if values[-1] * 8 > reader.left:
        raise InputError(
            f"{reader.name}: point {number} claims {values[-1]} observations, but {reader.left} bytes are left"
        )
    return values


def read_tracks(path: Path) -> tuple[PointCloud, list[NDArray[np.int64]]]:
    """The points of a points3D.bin in the order of their numbers, and which images (by their numbers) saw each.

    Raises InputError when the file is damaged or holds a point that is not finite.
    """
    reader = _Reader(path)
    points = {}
    for i in range(reader.count(_POINT.size, "points")):
        number, *place, r, g, b, error, length = _take_point(reader, i)
        points[number] = (place, (r, g, b), error, np.unique(reader.pairs(length)[:, 0]))
    ordered = [points[number] for number in sorted(points)]
    tracks = [seen_by for *_, seen_by in ordered]
    xyz = np.array([place for place, *_ in ordered], dtype=np.float64).reshape(-1, 3)
    if not np.isfinite(xyz.astype(np.float32)).all():
        raise InputError(f"{path} holds points that are not finite")
    cloud = PointCloud(
        torch.from_numpy(xyz.astype(np.float32)),
        torch.tensor([rgb for _, rgb, *_ in ordered], dtype=torch.uint8).reshape(-1, 3),
        torch.tensor([error for _, _, error, _ in ordered], dtype=torch.float32),
        torch.tensor([len(seen_by) for seen_by in tracks], dtype=torch.int32),
    )
    return cloud, tracks


def _points_txt(path: Path) -> PointCloud | None:
    xyz, rgb, errors, tracks = [], [], [], []
    for words in _lines(path):
        try:
            xyz.append([float(word) for word in words[1:4]])
            rgb.append([min(max(int(word), 0), 255) for word in words[4:7]])
            errors.append(float(words[7]))
            if len(xyz[-1]) != 3 or len(rgb[-1]) != 3:
                raise ValueError("too few numbers")
        except (ValueError, IndexError) as error:
            raise InputError(f"{path.name}: expected POINT3D_ID X Y Z R G B ERROR ..., got {words[:9]}") from error
        tracks.append((len(words) - 8) // 2)
    colours = np.array(rgb, dtype=np.uint8).reshape(-1, 3)
    return _cloud(np.array(xyz).reshape(-1, 3), colours, np.array(errors), np.array(tracks, dtype=np.int32))


def _cloud(xyz: np.ndarray, rgb: np.ndarray, errors: np.ndarray, tracks: np.ndarray) -> PointCloud | None:
    with np.errstate(over="ignore"):
        xyz = xyz.astype(np.float32)
    good = np.isfinite(xyz).all(axis=1)
    if not good.any():
        return None
    return PointCloud(
        torch.from_numpy(xyz[good]),
        torch.from_numpy(rgb[good]),
        torch.from_numpy(errors[good].astype(np.float32)),
        torch.from_numpy(tracks[good]),
    )


def _lines(path: Path) -> Iterator[list[str]]:
    for line in text_lines(path):
        words = line.split()
        if words and not words[0].startswith("#"):
            yield words


def _find_photos(folder: Path, model_folder: Path, wanted: list[str]) -> tuple[Path, dict[str, str], list[str]]:
    """Where the model's photos are: the place, the file of each name there, and a sentence when that was not plain."""
    projects = [folder]
    if model_folder == folder:  # the model itself was named: its project is around it
        projects += [folder.parent] if folder.parent.name != "sparse" else [folder.parent.parent]
    places = [folder]
    for project in reversed(projects):
        numbered = sorted(project.glob("images_*"), key=lambda path: natural_key(path.name))
        places = [project / "images", project / "input", project / "dense" / "images", *numbered, *places]
    around = real(projects[-1])
    places = [place for place in dict.fromkeys(places) if place.is_dir() and real(place).is_relative_to(around)]
    found = [(place, {name: name for name in wanted if _is_photo(place, name)}) for place in places]
    if found and (best := max(found, key=lambda item: len(item[1])))[1]:
        return *best, []
    for place in places:  # another format or sub-folder: a file of the same stem will do
        by_stem = {Path(name).stem: name for name in photo_files(place)} if place != folder else {}
        names = {name: by_stem[Path(name).stem] for name in wanted if Path(name).stem in by_stem}
        if names:
            return place, names, [f"Photos were taken from {place.name}/ by their names without suffix."]
    looked = ", ".join(str(place) for place in places)
    raise InputError(
        f"the COLMAP model in {model_folder} names {len(wanted)} photos such as {wanted[0]!r}, but they are not in "
        f"{looked or folder}; put them into {folder / 'images'}"
    )


def _is_photo(place: Path, name: str) -> bool:
    try:
        return inside(place, name).is_file()
    except InputError:
        return False
