"""From a matched COLMAP database to camera poses and points: incremental or global mapping, then refinement.

Both mappers run in a thread of this process; the incremental one reports every photo and can be ended at any photo,
keeping what it has. Same seed, one thread: same result bit for bit. With several threads sums differ in the last bits.
"""

from __future__ import annotations

import copy
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recon.pycolmap_module import load_pycolmap
from recon.sfm_watch import Watch
from scene.errors import Interrupted


@dataclass(frozen=True)
class MapperSettings:
    """What a reconstruction may start from and how photos may join it."""

    mapper: str = "incremental"  # or "global"
    min_triangulation: float = 8.0  # degrees between the rays of the first two photos
    max_forward: float = 0.95  # share of the first two photos' baseline along the view; forward walks need more
    min_first_inliers: int = 60  # matches of the first two photos
    min_inliers: int = 20  # points a photo must see in order to join
    hold_focal: bool = False  # keep the focal length the photos state
    threads: int = -1
    seed: int = 0


def map_photos(database: Path, settings: MapperSettings, total: int, deadline: float, watch: Watch) -> list[Any]:
    """All models (pycolmap.Reconstruction) that come out, largest first; empty when none does.

    deadline: watch.elapsed at which the work ends with what is there.  Raises Interrupted when the user stops.
    """
    pycolmap = load_pycolmap()

    pycolmap.logging.minloglevel = pycolmap.logging.FATAL.value
    token = pycolmap.CancellationToken()
    stage = watch.stage("Placing photos", total)
    registered = [0]

    def joined() -> None:
        registered[0] += 1

    def began() -> None:
        registered[0] = 2

    with tempfile.TemporaryDirectory(dir=database.parent) as output:
        if settings.mapper == "global":
            work = lambda: pycolmap.global_mapping(database, ".", output, _global_options(settings))  # noqa: E731
        else:
            options = _incremental_options(settings)
            work = lambda: pycolmap.incremental_mapping(  # noqa: E731
                database,
                ".",
                output,
                options,
                initial_image_pair_callback=began,
                next_image_callback=joined,
                cancellation_token=token,
            )
        models = _in_thread(work, token, stage, registered, deadline)
    return sorted(models.values(), key=lambda model: (-model.num_reg_images(), -model.num_points3D()))


def _in_thread(
    work: Callable[[], dict], token: Any, stage: Any, registered: list[int], deadline: float
) -> dict[int, Any]:
    """Run COLMAP in a thread so that this one can report, watch the clock and cancel."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(work())
        except Exception as error:  # carried over to the thread that asked, not swallowed
            outcome.append(error)

    thread = threading.Thread(target=run, name="colmap", daemon=True)
    thread.start()
    stopped: Interrupted | None = None
    while thread.is_alive():
        thread.join(timeout=0.2)
        try:
            stage.advance(min(registered[0], stage.total) - stage.done)
        except Interrupted as error:
            stopped = error
        if stopped or stage.watch.elapsed > deadline:
            token.cancel()
            thread.join(timeout=20)
            break
    if stopped:
        raise stopped
    if not outcome:
        return {}
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return outcome[0]


def _incremental_options(settings: MapperSettings) -> Any:
    """Fewer and shorter bundle adjustments than COLMAP's defaults: a third of the time, and refine_model ends them."""
    pycolmap = load_pycolmap()

    options = pycolmap.IncrementalPipelineOptions()
    options.num_threads = settings.threads
    options.random_seed = settings.seed
    options.extract_colors = False
    options.min_model_size = 3
    options.max_num_models = 6
    options.ba_local_max_refinements = 1
    options.ba_local_max_num_iterations = 15
    options.ba_global_frames_ratio = 1.3
    options.ba_global_points_ratio = 1.3
    options.ba_global_max_refinements = 2
    options.ba_global_max_num_iterations = 20
    options.ba_refine_focal_length = not settings.hold_focal
    options.mapper.abs_pose_refine_focal_length = not settings.hold_focal
    options.mapper.init_min_tri_angle = settings.min_triangulation
    options.mapper.init_max_forward_motion = settings.max_forward
    options.mapper.init_min_num_inliers = settings.min_first_inliers
    options.mapper.abs_pose_min_num_inliers = settings.min_inliers
    return options


def _global_options(settings: MapperSettings) -> Any:
    pycolmap = load_pycolmap()

    options = pycolmap.GlobalPipelineOptions()
    options.num_threads = settings.threads
    options.random_seed = settings.seed
    return options


def refine_model(model: Any, settings: MapperSettings, *, max_error: float = 3.0) -> Any:
    """The model with lens distortion (OpenCV: k1 k2 p1 p2) and, where many photos share a lens, its principal point.

    Phones stabilise by moving the lens or the sensor, so the true principal point lies off the centre by some per cent
    and a fixed one turns into wrong rotations.  Whatever comes out implausible is taken back.  Points beyond
    `max_error` px are dropped on the way.
    """
    pycolmap = load_pycolmap()

    refined = copy.deepcopy(model)
    photos: dict[int, int] = {}
    for image in refined.images.values():
        if image.has_pose:
            photos[image.camera_id] = photos.get(image.camera_id, 0) + 1
    config = pycolmap.BundleAdjustmentConfig()
    config.fix_gauge(pycolmap.BundleAdjustmentGauge.TWO_CAMS_FROM_WORLD)
    for image_id in refined.reg_image_ids():
        config.add_image(image_id)
    for camera_id, camera in refined.cameras.items():
        to_opencv(camera)
        if photos.get(camera_id, 0) < 5:
            config.set_constant_cam_intrinsics(camera_id)
    shared = min(photos.values(), default=0)
    for principal_point in (False, True) if shared >= 15 else (False,):
        options = pycolmap.BundleAdjustmentOptions()
        options.refine_principal_point = principal_point
        options.refine_focal_length = not settings.hold_focal
        options.print_summary = False
        options.ceres.loss_function_type = pycolmap.LossFunctionType.SOFT_L1
        options.ceres.solver_options.max_num_iterations = 30
        options.ceres.solver_options.function_tolerance = 1e-5
        options.ceres.solver_options.num_threads = settings.threads
        pycolmap.create_default_bundle_adjuster(options, config, refined).solve()
        pycolmap.ObservationManager(refined).filter_all_points3D(max_error, 1.5)
    refined.update_point_3d_errors()
    for camera_id, camera in refined.cameras.items():
        drift = camera.params[0] / model.cameras[camera_id].params[0]
        if not plausible(camera) or abs(drift - 1) > 0.1:
            return model
    return refined


def to_opencv(camera: Any) -> None:
    """Turn a SIMPLE_RADIAL or OPENCV camera into OPENCV, in place."""
    pycolmap = load_pycolmap()

    if camera.model == pycolmap.CameraModelId.OPENCV:
        return
    f, cx, cy, k = camera.params
    camera.model = pycolmap.CameraModelId.OPENCV
    camera.params = [f, f, cx, cy, k, 0.0, 0.0, 0.0]


def plausible(camera: Any) -> bool:
    """Whether intrinsics look like a real lens: 10 to 140 degrees, square pixels, centre in the middle fifth."""
    fx, fy, cx, cy, *distortion = camera.params
    size = max(camera.width, camera.height)
    return bool(
        np.isfinite(camera.params).all()
        and 0.18 * size < fx < 6 * size
        and abs(fx / fy - 1) < 0.02
        and abs(cx / camera.width - 0.5) < 0.1
        and abs(cy / camera.height - 0.5) < 0.1
        and max(abs(k) for k in distortion) < 1
    )
