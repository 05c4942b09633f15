"""Lenses: the projections of the field's camera models, and the pinhole that replaces one after undistortion.

Pixel centres are at +0.5 throughout, as in `scene/cameras.py`. Coefficients keep the order of OpenCV and COLMAP:
opencv k1 k2 p1 p2 [k3 k4 k5 k6], fisheye k1 k2 k3 k4, fov omega, thin_prism_fisheye k1 k2 p1 p2 k3 k4 sx1 sy1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from scene.errors import InputError

Floats = NDArray[np.float64]

COEFFICIENTS = {"pinhole": 0, "opencv": 8, "fisheye": 4, "fov": 1, "thin_prism_fisheye": 8}

# A rectilinear picture of more than 120 degrees is mostly stretched border; what lies outside is cropped.
_MAX_TANGENT = math.tan(math.radians(60))


@dataclass(frozen=True)
class Lens:
    """Intrinsics of one picture size: px, principal point from the corner of the picture, no skew."""

    model: str
    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    coefficients: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.model not in COEFFICIENTS:
            raise InputError(f"camera model must be one of {', '.join(COEFFICIENTS)}; got {self.model!r}")
        if len(self.coefficients) > COEFFICIENTS[self.model]:
            raise InputError(f"camera model {self.model} takes {COEFFICIENTS[self.model]} coefficients at most")
        numbers = (self.fx, self.fy, self.cx, self.cy, *self.coefficients)
        if not all(math.isfinite(number) for number in numbers):
            raise InputError(f"camera intrinsics must be finite numbers, got {numbers}")
        if self.fx <= 0 or self.fy <= 0 or self.width < 1 or self.height < 1:
            raise InputError(
                f"focal length and picture size must be positive, got fx {self.fx}, fy {self.fy}, "
                f"{self.width} x {self.height}"
            )

    @classmethod
    def from_K(
        cls, K: Floats, width: int, height: int, model: str = "pinhole", coefficients: Sequence[float] = ()
    ) -> Lens:
        """From a camera matrix [3, 3]. Raises InputError when it has skew or is none."""
        if K.shape != (3, 3) or not abs(K[0, 1]) <= 1e-3 * abs(K[0, 0]) or np.abs(K[2] - (0, 0, 1)).max() > 1e-6:
            raise InputError(f"expected a camera matrix [3, 3] without skew, got {K.tolist()}")
        numbers = (float(number) for number in (K[0, 0], K[1, 1], K[0, 2], K[1, 2]))
        return cls(model, width, height, *numbers, coefficients=tuple(float(number) for number in coefficients))

    @property
    def distorts(self) -> bool:
        """Whether the picture differs from a pinhole's."""
        return self.model not in ("pinhole", "opencv") or any(self.coefficients)

    @property
    def K(self) -> Floats:
        """[3, 3] px."""
        return np.array([[self.fx, 0, self.cx], [0, self.fy, self.cy], [0, 0, 1]], dtype=np.float64)

    def resized(self, width: int, height: int) -> Lens:
        """The same lens over a picture of another size; each axis follows its true ratio."""
        sx, sy = width / self.width, height / self.height
        return replace(
            self, width=width, height=height, fx=self.fx * sx, fy=self.fy * sy, cx=self.cx * sx, cy=self.cy * sy
        )

    def project(self, x: Floats, y: Floats) -> tuple[Floats, Floats]:
        """Pinhole coordinates (x/z, y/z) to the pixels where this lens puts them; any shape."""
        x, y = distort(self.model, self.coefficients, x, y)
        return x * self.fx + self.cx, y * self.fy + self.cy

    def undistorted(self) -> Lens:
        """The pinhole whose whole picture this lens saw: no pixel of it is empty.

        The focal length stays (so the centre keeps its resolution) unless the valid rectangle then has more pixels
        than the picture came with, as after barrel distortion: it shrinks to that many. The rectangle is cropped
        around the principal point, which therefore moves with the crop and need not be the centre.
        """
        return _undistorted(self) if self.distorts else replace(self, model="pinhole", coefficients=())


def distort(model: str, coefficients: tuple[float, ...], x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Pinhole coordinates to the distorted plane of `model` (z = 1); any shape."""
    c = (*coefficients, *(0.0,) * (COEFFICIENTS[model] - len(coefficients)))
    if model == "pinhole":
        return x, y
    if model == "opencv":
        k1, k2, p1, p2, k3, k4, k5, k6 = c
        r2 = x * x + y * y
        radial = (1 + r2 * (k1 + r2 * (k2 + r2 * k3))) / (1 + r2 * (k4 + r2 * (k5 + r2 * k6)))
        return (
            x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x),
            y * radial + 2 * p2 * x * y + p1 * (r2 + 2 * y * y),
        )
    r = np.sqrt(x * x + y * y)
    safe = np.maximum(r, 1e-12)
    if model == "fov":
        omega = c[0]
        if abs(omega) < 1e-9:
            return x, y
        scale = np.where(
            r > 1e-9, np.arctan(safe * 2 * np.tan(omega / 2)) / (safe * omega), 2 * np.tan(omega / 2) / omega
        )
        return x * scale, y * scale
    theta = np.arctan(r)
    t2 = theta * theta
    scale = np.where(r > 1e-9, theta / safe, 1.0)
    if model == "fisheye":
        scale = scale * (1 + t2 * (c[0] + t2 * (c[1] + t2 * (c[2] + t2 * c[3]))))
        return x * scale, y * scale
    k1, k2, p1, p2, k3, k4, sx1, sy1 = c  # thin prism fisheye
    u, v = x * scale, y * scale
    radial = t2 * (k1 + t2 * (k2 + t2 * (k3 + t2 * k4)))
    return (
        u + u * radial + 2 * p1 * u * v + p2 * (t2 + 2 * u * u) + sx1 * t2,
        v + v * radial + 2 * p2 * u * v + p1 * (t2 + 2 * v * v) + sy1 * t2,
    )


def undistortion_map(lens: Lens, pinhole: Lens) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Where each pixel of `pinhole` lies in the picture of `lens`: cv2.remap's maps [H, W], float32.

    cv2 counts pixels from their centres, hence the half pixel taken off.
    """
    map_x = np.empty((pinhole.height, pinhole.width), dtype=np.float32)
    map_y = np.empty_like(map_x)
    x = (np.arange(pinhole.width) + 0.5 - pinhole.cx) / pinhole.fx
    rows = max(
        1, 2**18 // pinhole.width
    )  # in blocks: the float64 intermediates of a whole picture would be 10x its size
    for top in range(0, pinhole.height, rows):
        y = (np.arange(top, min(top + rows, pinhole.height)) + 0.5 - pinhole.cy) / pinhole.fy
        u, v = lens.project(*np.broadcast_arrays(x[None, :], y[:, None]))
        map_x[top : top + len(y)] = u - 0.5
        map_y[top : top + len(y)] = v - 0.5
    return map_x, map_y


@lru_cache(maxsize=4096)
def _undistorted(lens: Lens) -> Lens:
    left, top, right, bottom = _valid_rectangle(lens)  # pinhole coordinates
    area = (right - left) * lens.fx * (bottom - top) * lens.fy
    zoom = min(1.0, math.sqrt(lens.width * lens.height / area))
    fx, fy = lens.fx * zoom, lens.fy * zoom
    width, height = max(1, math.floor((right - left) * fx)), max(1, math.floor((bottom - top) * fy))
    # Whole pixels are cut from both sides alike, so the picture stays in the middle of what is valid.
    cx = -left * fx - ((right - left) * fx - width) / 2
    cy = -top * fy - ((bottom - top) * fy - height) / 2
    return Lens("pinhole", width, height, fx, fy, cx, cy)


def _valid_rectangle(lens: Lens) -> tuple[float, float, float, float]:
    """Left, top, right, bottom (pinhole coordinates) of a large rectangle that this lens saw entirely.

    Works with the forward model only, so that it holds for every model and for coefficients whose polynomial folds
    back: along each direction the valid part ends where the picture does or where the distorted radius stops growing.
    """
    angles = np.linspace(-np.pi, np.pi, 1440, endpoint=False)
    ux, uy = np.cos(angles), np.sin(angles)
    reach = _reach(lens, ux, uy)
    invalid = InputError(
        f"the distortion {lens.coefficients} of camera model {lens.model} leaves no valid picture; "
        "check the intrinsics of this source"
    )
    if float(reach.min()) <= 0:
        raise invalid
    corners = np.arctan2(
        np.array([-lens.cy, -lens.cy, lens.height - lens.cy, lens.height - lens.cy]) / lens.fy,
        np.array([-lens.cx, lens.width - lens.cx, lens.width - lens.cx, -lens.cx]) / lens.fx,
    )
    a, b, c, d = corners  # angles of the corners: top-left, top-right, bottom-right, bottom-left
    x, y = ux * reach, uy * reach
    on_top, on_right, on_bottom = (
        (angles >= a) & (angles <= b),
        (angles >= b) & (angles <= c),
        (angles >= c) & (angles <= d),
    )
    on_left = ~(on_top | on_right | on_bottom)
    if not all(side.any() for side in (on_top, on_right, on_bottom, on_left)):  # focal lengths of another magnitude
        raise invalid
    sides = np.array([x[on_left].max(), y[on_top].max(), x[on_right].min(), y[on_bottom].min()])

    def fits(scale: float) -> bool:
        left, top, right, bottom = sides * scale
        s = np.linspace(0, 1, 256)
        px = np.concatenate([left + (right - left) * s, left + (right - left) * s, 0 * s + left, 0 * s + right])
        py = np.concatenate([0 * s + top, 0 * s + bottom, top + (bottom - top) * s, top + (bottom - top) * s])
        limit = np.interp(np.arctan2(py, px), angles, reach, period=2 * np.pi)
        return bool((np.hypot(px, py) <= limit * (1 + 1e-6)).all())

    low, high = 0.0, 1.0
    if not fits(1.0):
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        sides = sides * low
    left, top, right, bottom = (float(side) for side in sides)
    return left, top, right, bottom


def _reach(lens: Lens, ux: Floats, uy: Floats) -> Floats:
    """How far each direction [A] of the pinhole plane can be followed inside the picture, [A]."""
    steps = np.linspace(0, _MAX_TANGENT, 512)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        u, v = lens.project(ux[:, None] * steps, uy[:, None] * steps)
        inside = (u >= 0) & (u <= lens.width) & (v >= 0) & (v <= lens.height)
        distorted = np.hypot((u - lens.cx) / lens.fx, (v - lens.cy) / lens.fy)
        grows = np.diff(distorted, axis=1, prepend=-1.0) > 0
        valid = np.logical_and.accumulate(inside & grows, axis=1)
        last = valid.sum(axis=1) - 1
        low = steps[np.maximum(last, 0)] * (last >= 0)
        high = steps[np.minimum(last + 1, len(steps) - 1)]
        for _ in range(24):  # the picture's edge to a fraction of a pixel, between two steps
            middle = (low + high) / 2
            u, v = lens.project(ux * middle, uy * middle)
            ok = (u >= 0) & (u <= lens.width) & (v >= 0) & (v <= lens.height)
            low, high = np.where(ok, middle, low), np.where(ok, high, middle)
    return low
