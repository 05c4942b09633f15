"""How good photos are for reconstruction, in words a photographer understands: before and after camera estimation."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np

from data.captures import Capture
from recon.sfm_model import SfmResult

Level = Literal["good", "warn", "bad"]

_FEWEST_SHARED = 30  # points two neighbouring photos must share for their relative pose to be sure


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    level: Level
    topic: str  # blur, exposure, light, registered, overlap, baseline, accuracy
    sentence: str  # what is so, and what to do where that is not good
    value: float  # the number behind it


@dataclass(frozen=True)
class CaptureCheck:
    """All findings, in the order they were looked for."""

    findings: tuple[Finding, ...]

    @property
    def worst(self) -> Level:
        """The worst level of all."""
        levels = {finding.level for finding in self.findings}
        return "bad" if "bad" in levels else "warn" if "warn" in levels else "good"


@dataclass(frozen=True)
class _Look:
    """What one photo looks like by itself."""

    sharpness: float  # variance of the Laplacian over the variance of the picture
    fineness: float  # energy of its finest details over that of details four times as large
    blown: float  # share of pixels that are white
    black: float  # share of pixels that are black
    brightness: float  # mean of linear light, 0 to 1


def check_photos(capture: Capture, *, threads: int = 2, at_most: int = 200) -> CaptureCheck:
    """Blur and exposure of the photos as they came; an even selection of `at_most` of them."""
    total = len(capture.views)
    chosen = sorted({i * total // min(total, at_most) for i in range(min(total, at_most))})
    with ThreadPoolExecutor(threads, thread_name_prefix="check") as pool:
        looks = list(pool.map(lambda i: _look(capture.raw_photo(i)), chosen))
    names = [capture.views[i].name for i in chosen]
    return CaptureCheck((_blur(looks, names), _exposure(looks, names), _light(looks)))


def check_cameras(result: SfmResult) -> CaptureCheck:
    """Registered share, overlap, baseline and accuracy of estimated cameras."""
    return CaptureCheck((_registered(result), _overlap(result), _baseline(result), _accuracy(result)))


def _look(rgb: np.ndarray) -> _Look:
    import cv2

    height, width = rgb.shape[:2]
    rgb = rgb[_middle(height, 1024), _middle(width, 1024)]  # fine detail needs full resolution, not the whole picture
    grey = cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_RGB2GRAY).astype(np.float32)
    grey = cv2.GaussianBlur(grey, (0, 0), 0.7)  # sensor noise is no sharpness
    coarse = cv2.resize(grey, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
    fine = float(cv2.Laplacian(grey, cv2.CV_32F).var())
    return _Look(
        sharpness=fine / max(float(grey.var()), 1.0),
        fineness=fine / max(float(cv2.Laplacian(coarse, cv2.CV_32F).var()), 1e-3),
        blown=float((rgb.min(axis=2) >= 250).mean()),
        black=float((rgb.max(axis=2) <= 5).mean()),
        brightness=float(((rgb.astype(np.float32) / 255) ** 2.2).mean()),
    )


def _middle(length: int, most: int) -> slice:
    start = max(0, (length - most) // 2)
    return slice(start, start + most)


def _blur(looks: Sequence[_Look], names: Sequence[str]) -> Finding:
    sharpness = np.array([look.sharpness for look in looks])
    fineness = np.array([look.fineness for look in looks])
    typical = float(np.median(fineness))
    if typical < 0.011:  # as after a blur of 2 px or more; sharp photos have 0.025 to 0.14 whatever they show
        return Finding(
            "bad",
            "blur",
            "All photos are blurred: details smaller than four pixels are missing. Hold still or use a faster shutter "
            "(1/200 s), clean the lens, and check that it focuses; or pass a larger --downscale.",
            typical,
        )
    # Both must fall: a photo of a plain wall has little detail of any size, a blurred one lacks the fine ones.
    blurred = (sharpness < 0.4 * np.median(sharpness)) & (fineness < 0.4 * typical)
    share = float(blurred.mean())
    if not blurred.any():
        return Finding("good", "blur", "All photos are equally sharp.", 0.0)
    which = _named([name for name, is_blurred in zip(names, blurred) if is_blurred])
    level = "bad" if share > 0.3 else "warn"
    return Finding(
        level, "blur", f"Blurred compared with the others: {which}. Take them again or leave them out.", share
    )


def _exposure(looks: Sequence[_Look], names: Sequence[str]) -> Finding:
    clipped = np.array([max(look.blown, look.black) for look in looks])
    poor = clipped > 0.25
    share = float(poor.mean())
    if not poor.any():
        return Finding("good", "exposure", "Hardly any pixel is white or black without detail.", float(clipped.max()))
    which = _named([name for name, is_poor in zip(names, poor) if is_poor])
    sentence = f"More than a quarter of the picture is plain white or black: {which}. Avoid shooting against the light."
    return Finding("bad" if share > 0.5 else "warn", "exposure", sentence, share)


def _light(looks: Sequence[_Look]) -> Finding:
    stops = np.log2(np.maximum([look.brightness for look in looks], 1e-4))
    low, high = np.quantile(stops, [0.05, 0.95])
    spread = float(high - low)
    if spread < 1.5:
        return Finding("good", "light", f"Brightness is even, within {spread:.1f} stops.", spread)
    sentence = (
        f"Brightness differs by {spread:.1f} stops between photos; lock the exposure, and take all of them in the same "
        "light. Training compensates for part of it."
    )
    return Finding("warn", "light", sentence, spread)


def _registered(result: SfmResult) -> Finding:
    share = result.registered / max(result.total, 1)
    if not result.unplaced:
        return Finding("good", "registered", f"All {result.total} photos found their place.", share)
    sentence = (
        f"{result.registered} of {result.total} photos found their place; not {_named(result.unplaced)}. "
        "Take more photos between those and their neighbours."
    )
    return Finding("bad" if share < 0.7 else "warn", "registered", sentence, share)


def _overlap(result: SfmResult) -> Finding:
    shared = result.shared.numpy().copy()
    np.fill_diagonal(shared, 0)
    names = [view.name for view in result.capture.views]
    groups = _groups(shared >= _FEWEST_SHARED)
    typical = float(np.median(np.sort(shared, axis=1)[:, -2:])) if len(names) > 1 else 0.0
    if len(groups) > 1:
        small = min(groups, key=len)
        rest = [i for i in range(len(names)) if i not in small]
        block = shared[np.ix_(small, rest)]
        row, column = np.unravel_index(int(block.argmax()), block.shape)
        a, b = sorted((names[small[row]], names[rest[column]]))
        sentence = (
            f"{_named([names[i] for i in small])} hardly connect{'s' if len(small) == 1 else ''} to the others: the "
            f"best link, {a} and {b}, shares {int(block.max())} points. Take two or three photos between these two."
        )
        return Finding("warn", "overlap", sentence, float(block.max()))
    weak = [name for name, row in zip(names, shared) if np.sort(row)[-2:].min() < _FEWEST_SHARED]
    if weak:
        sentence = f"{_named(weak)} overlap with one other photo only. Take about a third more photos there."
        return Finding("warn", "overlap", sentence, typical)
    return Finding("good", "overlap", f"Every photo overlaps well with others ({typical:.0f} shared points).", typical)


def _groups(linked: np.ndarray) -> list[list[int]]:
    """Connected groups of photos; linked: [V, V] bool."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    count, labels = connected_components(csr_array(linked), directed=False)
    return [np.flatnonzero(labels == k).tolist() for k in range(count)]


def _baseline(result: SfmResult) -> Finding:
    angle = result.triangulation_deg
    if angle >= 6:
        return Finding("good", "baseline", f"Points are seen from {angle:.0f} degrees apart: depth is sure.", angle)
    sentence = (
        f"Points are seen from only {angle:.1f} degrees apart, so depth is unsure. Step sideways between photos, "
        "by about a tenth of the distance to the subject, instead of turning on the spot or walking straight ahead."
    )
    return Finding("bad" if angle < 2 else "warn", "baseline", sentence, angle)


def _accuracy(result: SfmResult) -> Finding:
    error = result.mean_reprojection_px
    if error < 1.0:
        return Finding("good", "accuracy", f"Cameras agree with the photos to {error:.2f} pixels.", error)
    sentence = (
        f"Cameras agree with the photos to {error:.1f} pixels only; below 1 is usual. Things that move, zoom changes, "
        "rolling shutter and strong wide-angle lenses do that."
    )
    return Finding("bad" if error > 2 else "warn", "accuracy", sentence, error)


def _named(names: Sequence[str], most: int = 5) -> str:
    """A list of names in words, shortened."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
