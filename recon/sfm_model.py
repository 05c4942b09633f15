"""The finished model: filtered, coloured, put into its frame, written as COLMAP files and read back as a capture."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.captures import Capture
from data.colmap import ColmapImage, read_model, read_tracks
from data.frames import PointCloud
from recon.pycolmap_module import load_pycolmap
from recon.sfm_frame import choose_frame
from recon.sfm_mapping import to_opencv
from scene.errors import InputError
from scene.files import read_json


@dataclass(frozen=True)
class SfmResult:
    """Estimated cameras. `capture` holds the registered views only, with cameras, points and up +Z."""

    capture: Capture
    registered: int
    total: int
    seconds: float  # of estimation, also when it was taken from an earlier run
    mean_reprojection_px: float
    decisions: tuple[str, ...]
    unplaced: tuple[str, ...]  # names of the photos left out
    shared: Tensor  # [V, V] int32, points seen by both views of `capture`
    triangulation_deg: float  # median over points of the widest angle between two of their rays


def save_model(
    model: Any,
    capture: Capture,
    folder: Path,
    mark: dict[str, Any],
    decisions: Sequence[str],
    seconds: float,
    *,
    finished: bool,
) -> None:
    """Write `model` to `folder` in its final frame; `result.json` comes last and only when it is `finished`."""
    pycolmap = load_pycolmap()

    (folder / "result.json").unlink(missing_ok=True)
    for camera in model.cameras.values():
        to_opencv(camera)
    _drop_poor_points(model)
    index_of = {image_id: image_id - 1 for image_id in model.reg_image_ids()}
    _color_points(model, capture, index_of)
    poses = np.stack([_c2w(model.images[i]) for i in sorted(index_of)])
    xyz = np.array([point.xyz for point in model.points3D.values()]).reshape(-1, 3)
    frame = choose_frame(poses, xyz, [capture.views[index_of[i]].gps for i in sorted(index_of)])
    change = frame.similarity
    model.transform(pycolmap.Sim3d(change.scale, pycolmap.Rotation3d(change.R), change.t))
    for image_id, index in index_of.items():
        model.images[image_id].name = capture.views[index].name
    for image_id in [i for i in model.images if i not in index_of]:
        model.images[image_id].name = capture.views[image_id - 1].name
    with tempfile.TemporaryDirectory(dir=folder) as work:
        model.write_binary(work)
        for path in Path(work).iterdir():
            path.replace(folder / path.name)
    if not finished:
        return
    facts = {
        "made_for": mark,
        "total": len(capture.views),
        "seconds": round(seconds, 2),
        "mean_reprojection_px": model.compute_mean_reprojection_error(),
        "metric": frame.metric,
        "decisions": [*decisions, frame.decision],
    }
    temporary = folder / "result.json.new"
    temporary.write_text(json.dumps(facts, indent=1))
    temporary.replace(folder / "result.json")


def load_result(capture: Capture, folder: Path, mark: dict[str, Any]) -> SfmResult | None:
    """The finished model in `folder`, or None when there is none for these photos and settings.

    Read without COLMAP, whose reader loops for ever on a name without an end. Raises InputError for a damaged model.
    """
    facts = _facts(folder / "result.json")
    if facts is None or facts["made_for"] != mark:
        return None
    images, cameras = {}, {}
    model = read_model(folder)
    known = {view.name for view in capture.views}
    for image in model.images:
        if image.name not in known:
            raise InputError(f"{folder / 'images.bin'} names {image.name!r}, which is no photo of this run")
        lens = model.lenses[image.camera_id]
        images[image.name] = image
        cameras[image.name] = (lens.K, lens.coefficients, image.c2w)
    cloud, tracks = read_tracks(folder / "points3D.bin")
    decisions = tuple(facts["decisions"])
    placed = capture.with_cameras(cameras, cloud, (0.0, 0.0, 1.0), facts["metric"], decisions)
    shared, angle = _covisibility([images[view.name] for view in placed.views], cloud, tracks)
    return SfmResult(
        capture=placed,
        registered=len(cameras),
        total=facts["total"],
        seconds=facts["seconds"],
        mean_reprojection_px=facts["mean_reprojection_px"],
        decisions=decisions,
        unplaced=tuple(view.name for view in capture.views if view.name not in cameras),
        shared=shared,
        triangulation_deg=angle,
    )


def _facts(path: Path) -> dict[str, Any] | None:
    """What `save_model` wrote about a model; None when it is not there or is not that, for then it is made again."""
    kinds = {"made_for": dict, "total": int, "seconds": float, "mean_reprojection_px": float, "metric": bool}
    try:
        facts = read_json(path, None)
    except InputError:
        return None
    if not isinstance(facts, dict) or not isinstance(facts.get("decisions"), list):
        return None
    return facts if all(isinstance(facts.get(key), kind) for key, kind in kinds.items()) else None


def _covisibility(
    images: Sequence[ColmapImage], cloud: PointCloud, tracks: Sequence[np.ndarray]
) -> tuple[Tensor, float]:
    """Points shared by each two views [V, V], and the median over points of the widest angle between their rays."""
    rows = {image.image_id: row for row, image in enumerate(images)}
    seen = torch.zeros(len(tracks), len(images))
    for column, track in enumerate(tracks):
        seen[column, [rows[number] for number in track.tolist() if number in rows]] = 1
    centers = np.stack([image.c2w[:3, 3] for image in images])
    xyz = cloud.xyz.double().numpy()
    angles = []
    for column in range(0, len(tracks), max(1, len(tracks) // 2000)):
        rays = centers[seen[column].numpy() > 0] - xyz[column]
        if len(rays) == 0:
            continue
        rays /= np.linalg.norm(rays, axis=1, keepdims=True)
        angles.append(np.degrees(np.arccos(np.clip((rays @ rays.T).min(), -1, 1))))
    return (seen.T @ seen).int(), float(np.median(angles)) if angles else 0.0


def _c2w(image: Any) -> np.ndarray:
    pose = np.eye(4)
    pose[:3] = image.cam_from_world().inverse().matrix()
    return pose


def _drop_poor_points(model: Any) -> None:
    """Drop points that few photos or wrong matches made: they would become floaters.

    Seen by two photos only (kept where points are rare), an error above 2 px, or farther off than 20 times the distance
    within which nine tenths lie.
    """
    model.update_point_3d_errors()
    points = dict(model.points3D.items())
    if not points:
        return
    ids = np.array(sorted(points))
    xyz = np.array([points[i].xyz for i in ids])
    tracks = np.array([points[i].track.length() for i in ids])
    errors = np.array([points[i].error for i in ids])
    distance = np.linalg.norm(xyz - np.median(xyz, axis=0), axis=1)
    bad = (errors > 2.0) | (distance > 20 * np.quantile(distance, 0.9))
    if ((tracks >= 3) & ~bad).sum() >= 500:
        bad |= tracks < 3
    for i in ids[bad]:
        model.delete_point3D(int(i))
    model.update_point_3d_errors()


def _color_points(model: Any, capture: Capture, index_of: dict[int, int]) -> None:
    """Give each point the mean colour of the pixels it was found at."""
    sums: dict[int, np.ndarray] = {i: np.zeros(4) for i in model.points3D}
    for image_id, index in index_of.items():
        seen = [(p.point3D_id, *p.xy) for p in model.images[image_id].points2D if p.has_point3D()]
        if not seen:
            continue
        photo = capture.raw_photo(index)
        height, width = photo.shape[:2]
        places = np.array([entry[1:] for entry in seen])
        columns = np.clip(places[:, 0].astype(int), 0, width - 1)
        rows = np.clip(places[:, 1].astype(int), 0, height - 1)
        for entry, color in zip(seen, photo[rows, columns]):
            sums[entry[0]] += (*color, 1)
    for i, total in sums.items():
        model.points3D[i].color = np.round(total[:3] / max(total[3], 1)).astype(np.uint8)
