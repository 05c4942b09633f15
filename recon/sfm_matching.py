"""Photos to a COLMAP database: features, matches and two-view geometries, resumable at any point.

What is in the database is done: features are written photo by photo and pairs in small groups, each in a transaction,
so a killed run goes on where it was.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.captures import Capture
from recon.pycolmap_module import load_pycolmap
from recon.sfm_features import Features, FeatureSettings, find_features, match_descriptors
from recon.sfm_watch import Watch

_GROUP = 24  # pairs matched, then verified together: large enough to feed all cores, about two seconds of work


@dataclass(frozen=True)
class Matched:
    """What matching brought. Pairs are indices of views, smaller first."""

    wanted: int
    done: int  # fewer than wanted when the time box closed
    inliers: dict[tuple[int, int], int]  # matches that fit a two-view geometry, of the pairs that have one


def database_name(index: int) -> str:
    """What view `index` is called inside the database: COLMAP's pair lists cannot hold a name with a space."""
    return f"{index:06d}"


@contextmanager
def open_database(path: Path) -> Iterator[Any]:
    """The COLMAP database at `path`, closed afterwards."""
    pycolmap = load_pycolmap()

    pycolmap.logging.minloglevel = pycolmap.logging.ERROR.value  # its log is no use to users; failures raise
    database = pycolmap.Database.open(path)
    try:
        yield database
    finally:
        database.close()


def is_database(path: Path) -> bool:
    """Whether a file left by an interrupted run is still a database; COLMAP ends the process over one that is not."""
    try:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            return connection.execute("PRAGMA quick_check(1)").fetchone() == ("ok",)
    except sqlite3.DatabaseError:
        return False


def register_photos(database: Any, capture: Capture, model: str) -> None:
    """Write views as COLMAP images (id = index + 1), one camera for each `camera_group`. Does nothing when there.

    A focal length from EXIF is marked as trusted; else 1.2 times the longer side, COLMAP's own guess.
    """
    pycolmap = load_pycolmap()

    if database.num_images() == len(capture.views):
        return
    groups: dict[str, list[int]] = {}
    for index, view in enumerate(capture.views):
        groups.setdefault(view.camera_group, []).append(index)
    with pycolmap.DatabaseTransaction(database):
        for camera_id, members in enumerate(groups.values(), start=1):
            width, height = capture.raw_size(members[0])
            known = [focal for i in members if (focal := capture.views[i].focal_px) is not None]
            focal = float(np.median(known)) if known else 1.2 * max(width, height)
            camera = pycolmap.Camera.create_from_model_name(camera_id, model, focal, width, height)
            camera.has_prior_focal_length = bool(known)
            database.write_camera(camera, use_camera_id=True)
            rig = pycolmap.Rig(rig_id=camera_id)
            rig.add_ref_sensor(camera.sensor_id)
            database.write_rig(rig, use_rig_id=True)
            for i in members:
                image = pycolmap.Image(name=database_name(i), camera_id=camera_id, image_id=i + 1)
                database.write_image(image, use_image_id=True)
                frame = pycolmap.Frame(frame_id=i + 1, rig_id=camera_id)
                frame.add_data_id(image.data_id)
                database.write_frame(frame, use_frame_id=True)


def extract_features(
    database: Any, capture: Capture, settings: FeatureSettings, threads: int, watch: Watch
) -> list[np.ndarray]:
    """Features of all views into the database, those already there left alone. Returns the descriptors per view."""
    pycolmap = load_pycolmap()

    missing = [i for i in range(len(capture.views)) if not database.exists_descriptors(i + 1)]
    stage = watch.stage("Finding features in photos", len(capture.views))
    stage.advance(len(capture.views) - len(missing))

    def find(index: int) -> Features:
        return find_features(capture.raw_photo(index), settings, capture.raw_mask(index))

    with ThreadPoolExecutor(threads, thread_name_prefix="sift") as pool:
        try:
            for index, features in zip(missing, pool.map(find, missing)):
                with pycolmap.DatabaseTransaction(database):
                    database.write_keypoints(index + 1, features.keypoints)
                    kind = pycolmap.FeatureExtractorType.SIFT
                    database.write_descriptors(index + 1, pycolmap.FeatureDescriptors(kind, features.descriptors))
                stage.advance()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [np.array(database.read_descriptors(i + 1).data) for i in range(len(capture.views))]


def match_pairs(
    path: Path,
    descriptors: Sequence[np.ndarray],
    pairs: Sequence[tuple[int, int]],
    *,
    ratio: float,
    seed: int,
    deadline: float,
    watch: Watch,
) -> Matched:
    """Match and verify `pairs` in order, best first, until done or `deadline` (watch.elapsed); those there are kept."""
    pycolmap = load_pycolmap()

    with open_database(path) as database:
        ids, _ = database.read_two_view_geometries()
        known = {tuple(k - 1 for k in pycolmap.pair_id_to_image_pair(i)) for i in ids}
        todo = [pair for pair in pairs if pair not in known]
        done = len(pairs) - len(todo)
        stage = watch.stage("Matching pairs of photos", len(pairs))
        stage.advance(done)
        options = pycolmap.TwoViewGeometryOptions()
        options.ransac.random_seed = seed
        options.ransac.max_num_trials = 2000  # a pair that needs more is no use to the mapper
        for start in range(0, len(todo), _GROUP):
            if watch.elapsed > deadline:
                break
            group = todo[start : start + _GROUP]
            _match_group(database, descriptors, group, ratio)
            _verify_group(path, group, options)
            done += len(group)
            stage.advance(len(group))
        ids, geometries = database.read_two_view_geometries()
    inliers = {
        (first - 1, second - 1): len(geometry.inlier_matches)
        for (first, second), geometry in zip(map(pycolmap.pair_id_to_image_pair, ids), geometries)
        if len(geometry.inlier_matches)
    }
    return Matched(wanted=len(pairs), done=done, inliers=inliers)


def turned_on_the_spot(path: Path) -> bool:
    """Whether the photos were taken from one place: then no depth follows from them, however well they match.

    Such photos are linked by homographies H, and for one focal length all K^-1 H K are rotations.  That must be asked:
    with an unknown focal length a mapper explains a turn just as exactly by a walk past a flat wall.
    """
    pycolmap = load_pycolmap()

    flat = pycolmap.TwoViewGeometryConfiguration.PLANAR_OR_PANORAMIC
    kinds = (flat, pycolmap.TwoViewGeometryConfiguration.PLANAR, pycolmap.TwoViewGeometryConfiguration.PANORAMIC)
    with open_database(path) as database:
        cameras = {camera.camera_id: camera for camera in database.read_all_cameras()}
        camera_of = {image.image_id: cameras[image.camera_id] for image in database.read_all_images()}
        ids, geometries = database.read_two_view_geometries()
    strong = [(i, g) for i, g in zip(ids, geometries) if len(g.inlier_matches) >= 30]
    plane = [(i, g) for i, g in strong if g.config in kinds and g.H is not None]
    if not strong or len(plane) < 0.8 * len(strong):
        return False
    deviations = []
    for factor in np.geomspace(0.4, 4, 60):  # focal lengths in widths: 100 to 14 degrees
        deviation = []
        for pair, geometry in plane:
            first, second = (_intrinsics(camera_of[k], factor) for k in pycolmap.pair_id_to_image_pair(pair))
            M = np.linalg.inv(second) @ geometry.H @ first
            M = M / np.cbrt(np.linalg.det(M))
            deviation.append(np.abs(M.T @ M - np.eye(3)).max())
        deviations.append(float(np.quantile(deviation, 0.8)))
    return min(deviations) < 0.02  # as from steps below about 1 % of the distance


def _intrinsics(camera: Any, factor: float) -> np.ndarray:
    focal = factor * max(camera.width, camera.height)
    return np.array([[focal, 0, camera.width / 2], [0, focal, camera.height / 2], [0, 0, 1]])


def _match_group(
    database: Any, descriptors: Sequence[np.ndarray], group: Sequence[tuple[int, int]], ratio: float
) -> None:
    pycolmap = load_pycolmap()

    floats = {i: torch.from_numpy(descriptors[i]).float() for i in {k for pair in group for k in pair}}
    with pycolmap.DatabaseTransaction(database):
        for i, j in group:
            if not database.exists_matches(i + 1, j + 1):
                matches = match_descriptors(floats[i], floats[j], ratio=ratio).numpy().astype(np.uint32)
                database.write_matches(i + 1, j + 1, matches)


def _verify_group(path: Path, group: Sequence[tuple[int, int]], options: Any) -> None:
    pycolmap = load_pycolmap()

    handle, listing = tempfile.mkstemp(suffix=".txt", dir=path.parent)
    try:
        with os.fdopen(handle, "w") as file:
            file.writelines(f"{database_name(i)} {database_name(j)}\n" for i, j in group)
        pycolmap.verify_matches(path, listing, options)
    finally:
        Path(listing).unlink()
