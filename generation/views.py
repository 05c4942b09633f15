"""Cameras around an object, and the words for where they stand.

Frame: world +z up, right-handed, the object's front at +x. Azimuth goes from +x toward +y, elevation up from the ground
plane, both in degrees; so does fov, the vertical field of view. A camera at azimuth 0 sees the front, and sees +y to
its right. Cameras are `scene.cameras.Camera`, float32, square pictures.

A wide lens stands nearer: distance = u / tan(fov / 2) as in MVDream (https://arxiv.org/abs/2308.16512),
so that an object keeps its size in the picture while the field of view changes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from scene.cameras import Camera

ViewWord = Literal["front", "side", "back", "overhead"]
VIEW_WORDS: tuple[ViewWord, ...] = ("front", "side", "back", "overhead")
OVERHEAD = 60.0  # degrees of elevation from which a view is called overhead
RINGS = ((-35.0, 8), (0.0, 12), (25.0, 12), (60.0, 8))  # elevation in degrees, cameras around an object


@dataclass(frozen=True)
class ViewRange:
    """From where pictures of objects are taken; each range is drawn from uniformly, in degrees.

    reach: u in distance = u / tan(fov / 2), the half width of what is seen at the object's centre, in world units.
    """

    azimuth: tuple[float, float] = (-180.0, 180.0)
    elevation: tuple[float, float] = (-10.0, 35.0)
    fov: tuple[float, float] = (35.0, 50.0)
    reach: tuple[float, float] = (0.8, 1.0)


def orbit_camera(azimuth: float, elevation: float, fov: float, distance: float, size: int) -> Camera:
    """A camera at `distance` from the origin that looks at it, with +z upwards in its picture.

    azimuth, elevation, fov: degrees; elevation in [-90, 90], the poles included.  size: pixels of either side.
    """
    if not -90 <= elevation <= 90 or not 0 < fov < 180 or distance <= 0:
        raise ValueError(
            f"elevation must be in [-90, 90], fov in (0, 180) and distance > 0, got {elevation}, {fov}, {distance}"
        )
    a, e = math.radians(azimuth), math.radians(elevation)
    outward = (math.cos(e) * math.cos(a), math.cos(e) * math.sin(a), math.sin(e))
    right = (-math.sin(a), math.cos(a), 0.0)
    down = (math.sin(e) * math.cos(a), math.sin(e) * math.sin(a), -math.cos(e))
    rows = [[right[k], down[k], -outward[k], distance * outward[k]] for k in range(3)]
    focal = 0.5 * size / math.tan(math.radians(fov) / 2)
    K = torch.tensor([[focal, 0.0, size / 2], [0.0, focal, size / 2], [0.0, 0.0, 1.0]])
    return Camera(K, torch.tensor([*rows, [0.0, 0.0, 0.0, 1.0]]), size, size)


def orthogonal_cameras(
    azimuth: float, elevation: float, fov: float, distance: float, size: int, count: int = 4
) -> tuple[Camera, ...]:
    """`count` cameras around the object at equal steps of azimuth from `azimuth` on, all else equal."""
    return tuple(orbit_camera(azimuth + 360 * k / count, elevation, fov, distance, size) for k in range(count))


def distance_for(fov: float, reach: float) -> float:
    """Distance at which a lens of `fov` degrees sees `reach` world units to each side of the origin."""
    return reach / math.tan(math.radians(fov) / 2)


def cameras_around(fov: float, distance: float, size: int) -> list[Camera]:
    """Cameras that see an object from everywhere: RINGS around it, one from above and one from below."""
    places = [(e, 360 * i / n) for e, n in RINGS for i in range(n)]
    return [orbit_camera(a, e, fov, distance, size) for e, a in [*places, (89.0, 0.0), (-89.0, 0.0)]]


def azimuth_of(camera: Camera) -> float:
    """Azimuth of the camera's centre in degrees, in [-180, 180]; the camera is taken to look at the origin."""
    x, y, _ = camera.center.tolist()
    if math.hypot(x, y) > 1e-6:
        return math.degrees(math.atan2(y, x))
    right_x, right_y = camera.c2w[:2, 0].tolist()  # over a pole the picture's right side tells
    return math.degrees(math.atan2(-right_x, right_y))


def elevation_of(camera: Camera) -> float:
    """Elevation of the camera's centre in degrees, in [-90, 90]."""
    x, y, z = camera.center.tolist()
    return math.degrees(math.atan2(z, math.hypot(x, y)))


def view_words(azimuth: float, elevation: float, threshold: float = 45.0) -> ViewWord:
    """Which view a prompt names: overhead above 60 degrees; front, back within `threshold` of the axis; else side."""
    if elevation > OVERHEAD:
        return "overhead"
    turned = abs((azimuth + 180) % 360 - 180)
    if turned < threshold:
        return "front"
    return "back" if turned > 180 - threshold else "side"


def sample_cameras(
    generator: torch.Generator, count: int, size: int, ranges: ViewRange = ViewRange()
) -> tuple[Camera, ...]:
    """`count` cameras drawn each for itself."""
    draws = torch.rand(count, 4, generator=generator, dtype=torch.float64).tolist()
    return tuple(_drawn(numbers, size, ranges, 1)[0] for numbers in draws)


def sample_orthogonal(
    generator: torch.Generator, size: int, ranges: ViewRange = ViewRange(), *, count: int = 4, facing: float = 0.5
) -> tuple[Camera, ...]:
    """One set of `count` cameras at equal steps; with probability `facing` the first sees the front exactly."""
    numbers = torch.rand(5, generator=generator, dtype=torch.float64).tolist()
    cameras = _drawn(numbers, size, ranges, count)
    if numbers[4] >= facing:
        return cameras
    return _drawn(numbers, size, ViewRange((0.0, 0.0), ranges.elevation, ranges.fov, ranges.reach), count)


def _drawn(numbers: Sequence[float], size: int, ranges: ViewRange, count: int) -> tuple[Camera, ...]:
    """Cameras at equal steps where numbers in 0..1 choose azimuth, elevation, fov and reach."""
    limits = (ranges.azimuth, ranges.elevation, ranges.fov, ranges.reach)
    azimuth, elevation, fov, reach = (low + (high - low) * n for (low, high), n in zip(limits, numbers[:4]))
    return orthogonal_cameras(azimuth, elevation, fov, distance_for(fov, reach), size, count)
