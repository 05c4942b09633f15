"""Cameras from photos alone: structure from motion with COLMAP's mapper inside this process.

Features (OpenCV's SIFT) -> pairs worth matching -> matches that fit a two-view geometry -> incremental or global
mapping -> refinement of lens and poses -> a frame with up +Z.  Each stage lies in its own file `sfm_*.py`; here they
are put in order, tried again with other settings where the outcome is poor, and explained.

Reproducible: with equal photos, settings and seed, features, pairs and matches are equal bit for bit, and the mapper
too with threads=1; with more threads poses differ in the last digits, because COLMAP's sums do.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data.captures import Capture
from recon.sfm_features import FeatureSettings, choose_pairs, near_places, overlap_scores, similar_photos
from recon.sfm_mapping import MapperSettings, map_photos, refine_model
from recon.sfm_matching import (
    extract_features,
    is_database,
    match_pairs,
    open_database,
    register_photos,
    turned_on_the_spot,
)
from recon.sfm_model import SfmResult, load_result, save_model
from recon.sfm_watch import Watch
from scene.errors import CamerasError, InputError
from scene.files import read_json

_SMALL, _LARGE = 14, 150  # photos: up to the first all pairs are matched; above the second pairs are retrieved
_STEP = "walk around the subject, or step sideways by a tenth of its distance between photos"
_FEW = 20  # photos: every single one counts


@dataclass(frozen=True)
class SfmConfig:
    """How cameras are estimated. The defaults choose by number and order of the photos and say what they chose."""

    preset: Literal["auto", "small", "large", "ordered"] = "auto"
    matcher: Literal["auto", "exhaustive", "sequential", "retrieval"] = "auto"
    mapper: Literal["auto", "incremental", "global"] = "auto"
    max_image_size: int = 1600  # px, longer side of the pictures searched for features
    features: int = 3000  # per photo
    neighbours: int = 8  # other photos each is matched with, where not all are
    max_seconds: float = 900.0  # time box: what is placed by then is kept
    min_share: float = 0.4  # fewer photos placed than this share of all is an error
    threads: int = 0  # 0: one for each core
    seed: int = 0


@dataclass(frozen=True)
class _Attempt:
    """One way to try; the later ones are for photos that the first could not connect."""

    words: str
    features: FeatureSettings
    neighbours: int  # as many as there are photos: all pairs
    ratio: float
    mapper: MapperSettings
    database: str


def estimate_cameras(
    capture: Capture,
    config: SfmConfig,
    folder: Path,
    *,
    progress: Callable[[int, int, str], None] = lambda done, total, what: None,
    stop: Callable[[], bool] = lambda: False,
) -> SfmResult:
    """Camera poses, lenses and points of a capture that came without them.

    The COLMAP model goes to `folder` in the frame of the result; a finished one for the same photos and settings is
    taken from there, and so are the features and matches of an interrupted run.  progress: (done, total, sentence).
    Raises CamerasError, with advice and the partial model kept in `folder`, when too few photos can be placed or all
    were taken from one spot; Interrupted when `stop` says so.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mark = _fingerprint(capture, config)
    if (finished := load_result(capture, folder, mark)) is not None:
        return _checked(finished)
    total = len(capture.views)
    if total < 3:
        raise CamerasError(
            f"expected at least 3 photos of the same thing, got {total}; take 20 to 60 while walking around it, "
            "each overlapping the one before by two thirds"
        )
    watch = Watch(progress, stop, config.max_seconds)
    config, decisions = _plan(capture, config)
    if _stale(folder, mark):
        for path in folder.glob("*.db*"):
            path.unlink()
        (folder / "photos.json").write_text(json.dumps(mark))
    models, best, hold_focal = [], None, False
    for number, attempt in enumerate(_attempts(config, total)):
        placed = best.num_reg_images() if best else 0
        if number and (_enough(placed, total, number) or watch.left < 0.4 * config.max_seconds):
            break
        if number:
            decisions.append(f"Only {placed} of {total} photos could be placed, so it was tried again {attempt.words}.")
        found, held, notes = _run(capture, config, attempt, folder, watch)
        decisions += notes
        if found and (best is None or _rank(found[0]) > _rank(best)):
            models, best, hold_focal = found, found[0], held
    decisions += _about(models, total)
    if best is None:
        raise CamerasError(_advice(0, total))
    watch.progress(total, total, "Refining lenses and poses")
    best = refine_model(best, MapperSettings(threads=_threads(config), hold_focal=hold_focal))
    enough = best.num_reg_images() >= max(3, math.ceil(config.min_share * total))
    save_model(best, capture, folder, mark, decisions, watch.elapsed, finished=enough)
    result = load_result(capture, folder, mark)
    if result is None:
        raise CamerasError(_advice(best.num_reg_images(), total))
    return _checked(result)


def _checked(result: SfmResult) -> SfmResult:
    """Raises CamerasError when the cameras stand on one spot: such a model has no depth, whatever its errors say."""
    if result.triangulation_deg < 1.0:
        raise CamerasError(
            "expected photos from different places, but points are seen from only "
            f"{result.triangulation_deg:.1f} degrees apart; {_STEP}"
        )
    return result


def _plan(capture: Capture, config: SfmConfig) -> tuple[SfmConfig, list[str]]:
    """The configuration without "auto", and sentences that say why."""
    total = len(capture.views)
    preset = config.preset
    if preset == "auto":
        preset = "ordered" if capture.ordered else "large" if total > _LARGE else "small"
    matcher = config.matcher
    if matcher == "auto":
        matcher = {"ordered": "sequential", "large": "retrieval"}.get(preset, "retrieval")
        matcher = "exhaustive" if total <= _SMALL else matcher
    mapper = config.mapper
    if mapper == "auto":
        mapper = "incremental"
    words = {
        "exhaustive": "all pairs of them are matched",
        "sequential": "each is matched with those before and after it, and with look-alikes to close loops",
        "retrieval": f"each is matched with the {config.neighbours} that look most alike",
    }[matcher]
    order = "in order" if capture.ordered else "in no known order"
    groups = len({view.camera_group for view in capture.views})
    known = sum(view.focal_px is not None for view in capture.views)
    lens = "one lens" if groups == 1 else f"{groups} lenses"
    focal = "EXIF" if known == total else "a guess" if not known else f"EXIF for {known}, a guess for the others"
    return replace(config, preset=preset, matcher=matcher, mapper=mapper), [
        f"{total} photos {order}: {words}; {mapper} mapping.",
        f"The photos share {lens}; the focal length starts from {focal} and is estimated.",
    ]


def _threads(config: SfmConfig) -> int:
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return config.threads or available


def _attempts(config: SfmConfig, total: int) -> list[_Attempt]:
    """The ways to try, in order of cost."""
    few = 2 if total <= _FEW else 1  # few photos are quickly matched and lean on every feature
    features = FeatureSettings(few * config.features, config.max_image_size)
    mapper = MapperSettings(mapper=config.mapper, threads=_threads(config), seed=config.seed)
    loose = replace(
        mapper,
        mapper="incremental",
        min_triangulation=3.0,
        max_forward=0.99,
        min_first_inliers=30,
        min_inliers=12,
    )
    neighbours = total if config.matcher == "exhaustive" else config.neighbours
    more = total if total <= 60 else 3 * config.neighbours
    rich = replace(features, count=2 * features.count, max_size=2 * features.max_size, contrast=0.005)
    pairs = "all pairs matched" if more == total else f"{more} neighbours each"
    return [
        _Attempt("", features, neighbours, 0.8, mapper, "matches.db"),
        _Attempt(f"with {pairs} and smaller baselines allowed", features, more, 0.8, loose, "matches.db"),
        _Attempt(f"with up to {rich.count} features in a photo", rich, more, 0.85, loose, "matches-rich.db"),
    ]


def _run(
    capture: Capture, config: SfmConfig, attempt: _Attempt, folder: Path, watch: Watch
) -> tuple[list[Any], bool, list[str]]:
    """The models of one attempt, largest first, whether focal lengths were held, and what has to be said about it."""
    path = folder / attempt.database
    with open_database(path) as database:
        register_photos(database, capture, "SIMPLE_RADIAL")
        descriptors = extract_features(database, capture, attempt.features, _threads(config), watch)
    watch.progress(0, 1, "Choosing pairs of photos that may overlap")
    pairs = _pairs(capture, config, attempt, descriptors)
    deadline = watch.elapsed + 0.5 * max(watch.left, 0)
    matched = match_pairs(
        path, descriptors, pairs, ratio=attempt.ratio, seed=config.seed, deadline=deadline, watch=watch
    )
    notes = []
    if matched.done < matched.wanted:
        notes.append(
            f"The time box of {config.max_seconds:.0f} s left time to match {matched.done} of {matched.wanted} pairs, "
            "those most alike first."
        )
    if not matched.inliers:
        return [], False, notes
    if turned_on_the_spot(path):
        raise CamerasError(f"expected photos from different places, but these were taken from one spot; {_STEP}")
    kept = False
    models = map_photos(path, attempt.mapper, len(capture.views), config.max_seconds, watch)
    if models and not attempt.mapper.hold_focal and (told := _contradiction(models[0], capture)):
        held = map_photos(path, replace(attempt.mapper, hold_focal=True), len(capture.views), config.max_seconds, watch)
        if held and held[0].num_reg_images() >= 0.9 * models[0].num_reg_images():
            models, kept = held, True
            notes.append(told)
    if watch.left < 0:
        notes.append(f"Placing photos ended with the time box of {config.max_seconds:.0f} s.")
    return models, kept, notes


def _pairs(
    capture: Capture, config: SfmConfig, attempt: _Attempt, descriptors: Sequence[np.ndarray]
) -> list[tuple[int, int]]:
    """Pairs of views to match, most promising first."""
    total = len(capture.views)
    candidates = None
    if total > _LARGE:
        candidates = similar_photos(descriptors, 4 * attempt.neighbours, seed=config.seed)
        places = np.array([view.gps or (np.nan,) * 3 for view in capture.views])
        if np.isfinite(places).all(1).mean() > 0.8:
            from recon.sfm_frame import enu

            candidates |= near_places(enu(places), 2 * attempt.neighbours)
    scores = overlap_scores(descriptors, candidates)
    if attempt.neighbours >= total:
        return choose_pairs(scores, total, weakest=0)
    if config.matcher == "sequential":
        return choose_pairs(scores, max(2, attempt.neighbours // 2), steps=(1, 2, 3, 4, 6, 9))
    return choose_pairs(scores, attempt.neighbours)


def _contradiction(model: Any, capture: Capture) -> str:
    """A sentence when the estimated focal length is far from the one EXIF states, else nothing."""
    for image_id in model.reg_image_ids():
        image = model.images[image_id]
        estimated, stated = model.cameras[image.camera_id].params[0], capture.views[image_id - 1].focal_px
        if stated is not None and abs(math.log(estimated / stated)) > 0.15:
            return (
                f"The estimated focal length ({estimated:.0f} px) contradicted EXIF's ({stated:.0f} px), as happens "
                "when the photos were taken walking straight ahead: EXIF's is kept."
            )
    return ""


def _enough(placed: int, total: int, tries: int) -> bool:
    """Whether another try is not worth its time: the third is dear, and for those that fared badly so far."""
    if total <= _FEW:
        return placed == total
    return placed >= math.ceil((0.95 if tries == 1 else 0.7) * total)


def _rank(model: Any) -> tuple[int, int]:
    return model.num_reg_images(), model.num_points3D()


def _about(models: Sequence[Any], total: int) -> list[str]:
    if not models:
        return []
    sizes = [model.num_reg_images() for model in models]
    said = [f"{sizes[0]} of {total} photos were placed."]
    if len(sizes) > 1:
        others = ", ".join(str(size) for size in sizes[1:])
        said.append(
            f"The photos fall into groups that do not connect; the largest is used, left aside: {others} photos."
        )
    return said


def _advice(placed: int, total: int) -> str:
    return (
        f"cameras of only {placed} of {total} photos could be estimated; photos connect when they show the same "
        "things from places a step apart: take more of them, each overlapping the one before by two thirds, move "
        "sideways instead of turning on the spot, and avoid blur, mirrors and blank walls"
    )


def _fingerprint(capture: Capture, config: SfmConfig) -> dict[str, Any]:
    """What the outcome depends on; a model made for anything else is not reused."""
    settings = {key: value for key, value in asdict(config).items() if key not in ("max_seconds", "threads")}
    views = [
        [view.name, *capture.raw_size(i), view.camera_group, view.focal_px, view.gps]
        for i, view in enumerate(capture.views)
    ]
    return {"settings": settings, "views": hashlib.sha256(json.dumps(views).encode()).hexdigest()}


def _stale(folder: Path, mark: dict[str, Any]) -> bool:
    """Whether what lies in `folder` was made for other photos or settings."""
    try:
        return read_json(folder / "photos.json", None) != mark or not all(is_database(p) for p in folder.glob("*.db"))
    except InputError:
        return True
