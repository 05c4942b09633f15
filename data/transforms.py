"""transforms.json in its three dialects: Blender (split files), instant-ngp and nerfstudio.

All three hold camera-to-world matrices of OpenGL cameras and share their keys; intrinsics may stand at the top or with
each frame. Pixel centres: all three sample at +0.5 with cx, cy measured from the picture's corner, as here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.colmap import read_points
from data.files import PHOTO_SUFFIXES, read_object
from data.frames import GL_FROM_CV, Frame, PointCloud, Source, posed_frame, rigid
from data.images import ImageFacts, inspect_image
from data.lens import Lens
from data.photos import MaskFinder, left_out, sorted_frames
from data.ply import read_point_ply
from scene.errors import InputError
from scene.untrusted import MAX_PHOTOS, inside

SPLITS = ("train", "val", "test")
_FISHEYE = ("OPENCV_FISHEYE", "FISHEYE", "EQUIDISTANT")
_PINHOLE_LIKE = ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "FULL_OPENCV", "PERSPECTIVE")


def find_transforms(path: Path) -> list[Path]:
    """The transforms files that a folder or one JSON file stands for: the split files together, or transforms.json."""
    folder = path.parent if path.is_file() else path
    splits = [folder / f"transforms_{split}.json" for split in SPLITS]
    if path.is_file() and path not in splits:
        return [path]
    if not path.is_file() and (folder / "transforms.json").is_file():
        return [folder / "transforms.json"]
    return [file for file in splits if file.is_file()]


def read_transforms(files: Sequence[Path]) -> Source:
    """The capture of one transforms.json, or of transforms_train/val/test.json together.

    Raises InputError when no frame is usable; single bad frames are left out and named in the decisions.
    """
    folder = files[0].parent
    contents = {file.stem.removeprefix("transforms_"): read_object(file) for file in files}
    split = _chosen_splits(contents)
    frames: dict[str, Frame] = {}
    test: set[str] = set()
    bad: list[str] = []
    masks = MaskFinder(folder)
    for part in split:
        for entry in _entries(contents[part], files[0].name):
            try:
                frame = _frame(folder, contents[part], entry, masks)
            except InputError as error:
                name = str(entry.get("file_path", ""))[:200] if isinstance(entry, dict) else ""
                bad.append(str(error) if name in str(error) else f"{name}: {error}")
                continue
            frames[frame.name] = frame
            if len(split) > 1 and part != "train":
                test.add(frame.name)
    if not frames:
        raise InputError(
            f"{files[0]} should list frames with a file_path and a transform_matrix; none of them is usable: "
            f"{'; '.join(bad[:5]) or 'it lists none'}. To estimate cameras from the photos alone, name their folder."
        )
    first = contents[split[0]]
    kind = _dialect(first)
    decisions = [_sentence(kind, files, len(frames)), *left_out(bad)]
    if len(split) > 1:
        held = "test" if "test" in split else "val"
        decisions.append(f"The given split is kept: {len(frames) - len(test)} to train, {len(test)} ({held}) held out.")
    elif kind == "nerfstudio":
        test = _listed_test(first, frames)
    points, found = _points(folder, first)
    return Source(
        kind,
        sorted_frames(frames.values()),
        points=points,
        test=frozenset(test) if test else None,
        up=(0.0, 0.0, 1.0),
        decisions=(*decisions, *found),
    )


def _chosen_splits(contents: Mapping[str, dict[str, Any]]) -> list[str]:
    if "train" not in contents:
        return list(contents)[:1]
    held_out = "test" if "test" in contents else "val"
    return [part for part in ("train", held_out) if part in contents]


def _entries(content: Mapping[str, Any], file: str) -> list[Any]:
    entries = content.get("frames")
    if not isinstance(entries, list) or len(entries) > MAX_PHOTOS:
        raise InputError(f"{file} should have a list 'frames' of at most {MAX_PHOTOS} pictures")
    return entries


def _frame(folder: Path, content: Mapping[str, Any], entry: Any, masks: MaskFinder) -> Frame:
    if not isinstance(entry, dict) or not isinstance(entry.get("file_path"), str):
        raise InputError(f"a frame without a file_path ({str(entry)[:60]})")
    name = entry["file_path"]
    path = _picture(folder, name)
    relative = path.relative_to(folder).as_posix()
    c2w = rigid(entry.get("transform_matrix"), name) @ GL_FROM_CV
    facts = inspect_image(path)
    values = {**{key: value for key, value in content.items() if key != "frames"}, **entry}
    lens, orientation = _lens(values, facts, name)
    mask_name = entry.get("mask_path")
    mask = inside(folder, mask_name) if isinstance(mask_name, str) and mask_name else masks.find(relative)
    if mask is not None and not mask.is_file():
        raise InputError(f"{name}: its mask {mask_name} is missing")
    group = f"{lens.model} {lens.width}x{lens.height} {lens.fx:.4f} {lens.cx:.4f} {lens.cy:.4f}"
    return posed_frame(relative, path, facts, lens, c2w, group=group, mask=mask, orientation=orientation)


def _picture(folder: Path, name: str) -> Path:
    path = inside(folder, name)
    if path.suffix.lower() in PHOTO_SUFFIXES and path.is_file():
        return path
    for suffix in (".png", ".jpg", ".jpeg", ".webp", ".JPG", ".PNG"):  # Blender's files leave the suffix out
        candidate = path.with_name(path.name + suffix)
        if candidate.is_file():
            return inside(folder, name + suffix)
    raise InputError(f"{name} is missing")


def _lens(values: Mapping[str, Any], facts: ImageFacts, name: str) -> tuple[Lens, int]:
    """Intrinsics over the decoded picture, and the EXIF orientation to apply."""
    declared = _number(values, "w"), _number(values, "h")
    width, height, orientation = facts.width, facts.height, 1
    if declared[0] and declared[1]:
        shape = declared[0] / declared[1]
        turned = facts.oriented_size
        if abs(shape * height / width - 1) > 0.02 and abs(shape * turned[1] / turned[0] - 1) <= 0.02:
            # The file was oriented before its cameras were estimated.
            (width, height), orientation = turned, facts.exif.orientation
        if abs(shape * height / width - 1) > 0.02:
            raise InputError(
                f"{name} is {facts.width} x {facts.height}, but its camera is for {declared[0]:.0f} x {declared[1]:.0f}"
            )
    w, h = declared[0] or width, declared[1] or height
    fx, fy = _number(values, "fl_x"), _number(values, "fl_y")
    if not fx and (angle := _number(values, "camera_angle_x")):
        fx = 0.5 * w / math.tan(0.5 * min(angle, 3.1))
    if not fy and (angle := _number(values, "camera_angle_y")):
        fy = 0.5 * h / math.tan(0.5 * min(angle, 3.1))
    fx, fy = fx or fy, fy or fx
    if not fx or not fy:
        raise InputError(f"{name}: expected fl_x or camera_angle_x, got neither")
    cx, cy = _number(values, "cx"), _number(values, "cy")
    model, coefficients = _distortion(values, name)
    lens = Lens(
        model, round(w), round(h), fx, fy, w / 2 if cx is None else cx, h / 2 if cy is None else cy, coefficients
    )
    return lens.resized(width, height), orientation


def _distortion(values: Mapping[str, Any], name: str) -> tuple[str, tuple[float, ...]]:
    k = [_number(values, key) or 0.0 for key in ("k1", "k2", "k3", "k4")]
    p1, p2 = _number(values, "p1") or 0.0, _number(values, "p2") or 0.0
    model = str(values.get("camera_model", "")).upper()
    if values.get("is_fisheye") or model in _FISHEYE:
        return "fisheye", tuple(k)
    if model and model not in _PINHOLE_LIKE:
        raise InputError(
            f"{name}: camera_model {model[:40]} is not supported; expected OPENCV, PINHOLE or OPENCV_FISHEYE"
        )
    if k[3]:
        raise InputError(f"{name}: k4 belongs to a fisheye, but camera_model is {model or 'not given'}")
    return ("opencv", (k[0], k[1], p1, p2, k[2])) if any((*k, p1, p2)) else ("pinhole", ())


def _number(values: Mapping[str, Any], key: str) -> float | None:
    value = values.get(key)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or abs(value) > 1e9:
        raise InputError(f"{key} should be a finite number, got {str(value)[:40]}")
    return float(value)


def _dialect(content: Mapping[str, Any]) -> str:
    entry = content["frames"][0]
    if any(key in content for key in ("camera_model", "applied_transform", "ply_file_path", "orientation_override")):
        return "nerfstudio"
    if isinstance(entry, dict) and "fl_x" in entry:
        return "nerfstudio"
    return "instant-ngp" if any(key in content for key in ("fl_x", "k1", "aabb_scale", "w")) else "blender"


def _sentence(kind: str, files: Sequence[Path], count: int) -> str:
    label = {"blender": "Blender (NeRF-synthetic)", "instant-ngp": "instant-ngp", "nerfstudio": "nerfstudio"}[kind]
    return f"{' and '.join(file.name for file in files)}: {label} cameras of {count} pictures; none is estimated."


def _listed_test(content: Mapping[str, Any], frames: Mapping[str, Frame]) -> set[str]:
    listed = content.get("test_filenames") or content.get("val_filenames")
    if not isinstance(listed, list):
        return set()
    return {name.removeprefix("./") for name in listed if isinstance(name, str)} & set(frames)


def _points(folder: Path, content: Mapping[str, Any]) -> tuple[PointCloud | None, list[str]]:
    """nerfstudio's points: its PLY, already in the frame of its cameras, or else those of the COLMAP model it was made
    from, which `applied_transform` takes there."""
    name, applied = content.get("ply_file_path"), content.get("applied_transform")
    try:
        if isinstance(name, str):
            points = read_point_ply(inside(folder, name))
            return points, [f"{len(points)} points from {name}."]
        if applied is None or (points := read_points(folder / "colmap" / "sparse" / "0")) is None:
            return None, []
        move = np.asarray(applied, dtype=np.float64)
        if move.shape not in ((3, 4), (4, 4)) or not np.isfinite(move).all():
            raise InputError("applied_transform should be a 3x4 matrix of finite numbers")
    except (InputError, TypeError, ValueError) as error:
        return None, [f"Its points were left out: {error}."]
    xyz = points.xyz.double() @ torch.from_numpy(move[:3, :3]).T + torch.from_numpy(move[:3, 3])
    return replace(points, xyz=xyz.float()), [f"{len(points)} points from its COLMAP model."]
