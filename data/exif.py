"""What a photo's EXIF says: orientation, focal length in pixels, place, time and which camera took it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

_EXIF, _GPS = 0x8769, 0x8825
_MAKE, _MODEL, _ORIENTATION, _DATE = 0x010F, 0x0110, 0x0112, 0x0132
_DATE_ORIGINAL, _SUBSECONDS, _OFFSET = 0x9003, 0x9291, 0x9011
_FOCAL_MM, _FOCAL_35MM = 0x920A, 0xA405
_PLANE_X, _PLANE_UNIT = 0xA20E, 0xA210
_PIXELS_X, _PIXELS_Y, _LENS_MODEL = 0xA002, 0xA003, 0xA434

_FILM_DIAGONAL_MM = math.hypot(36, 24)
_UNIT_MM = {2: 25.4, 3: 10.0, 4: 1.0, 5: 0.001}  # inch, cm, mm, um


@dataclass(frozen=True)
class Exif:
    """Facts of one photo; None where EXIF does not say or says nonsense."""

    orientation: int = 1  # 1 to 8
    focal_px: float | None = None  # of the picture as stored
    gps: tuple[float, float, float] | None = None  # degrees north, degrees east, metres (0 when not given)
    time: float | None = None  # seconds since 1970; taken as UTC when no offset is given
    camera: str = ""  # make, model, lens and focal length: equal for photos that share intrinsics


def read_exif(tags: Any, width: int, height: int) -> Exif:
    """The facts in PIL's EXIF tags of a picture stored as width x height. Never raises: EXIF is untrusted."""
    try:
        main, photo, place = dict(tags), dict(tags.get_ifd(_EXIF)), dict(tags.get_ifd(_GPS))
    except Exception:  # PIL raises whatever its TIFF parser meets in damaged tags
        return Exif()
    orientation = main.get(_ORIENTATION, 1)
    return Exif(
        orientation=orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1,
        focal_px=_focal_px(photo, width, height),
        gps=_position(place),
        time=_time(photo.get(_DATE_ORIGINAL, main.get(_DATE)), photo.get(_SUBSECONDS), photo.get(_OFFSET)),
        camera=_camera(main, photo),
    )


def _focal_px(photo: Mapping[int, Any], width: int, height: int) -> float | None:
    """Focal length in pixels, by the sensor's pixel pitch where given, else by the 35 mm equivalent.

    None when the picture was cropped after it was taken (its shape differs from EXIF's), for then neither holds.
    """
    stored = sorted((width, height))
    taken = sorted(filter(None, (_number(photo.get(_PIXELS_X)), _number(photo.get(_PIXELS_Y)))))
    if len(taken) == 2 and abs(taken[0] / taken[1] - stored[0] / stored[1]) > 0.01:
        return None
    focal_mm, focal_35mm = _number(photo.get(_FOCAL_MM)), _number(photo.get(_FOCAL_35MM))
    pitch, unit = _number(photo.get(_PLANE_X)), _UNIT_MM.get(photo.get(_PLANE_UNIT, 2), 25.4)
    candidates = []
    if focal_mm and pitch and len(taken) == 2:
        # Pixels per unit on the sensor, of the picture as taken; this one may have been made smaller since.
        candidates.append(focal_mm * pitch / unit * stored[1] / taken[1])
    if focal_35mm:
        # CIPA DCG-001: the 35 mm equivalent compares diagonals, not widths.
        candidates.append(focal_35mm / _FILM_DIAGONAL_MM * math.hypot(width, height))
    for focal in candidates:
        if 0.2 < focal / stored[1] < 20:  # 136 to 3 degrees across; outside, a wrong tag is likelier
            return focal
    return None


def _position(place: Mapping[int, Any]) -> tuple[float, float, float] | None:
    latitude, longitude = _degrees(place.get(2)), _degrees(place.get(4))
    if latitude is None or longitude is None or latitude > 90 or longitude > 180:
        return None
    if latitude == 0 and longitude == 0:
        return None  # what cameras without a fix write
    altitude = _number(place.get(6)) or 0.0
    below_sea = place.get(5) in (1, b"\x01")
    south, west = str(place.get(1, "N")).upper().startswith("S"), str(place.get(3, "E")).upper().startswith("W")
    return (-latitude if south else latitude, -longitude if west else longitude, -altitude if below_sea else altitude)


def _degrees(value: Any) -> float | None:
    if not isinstance(value, tuple) or len(value) != 3:
        return None
    numbers = [_number(part, zero=True) for part in value]
    if None in numbers:
        return None
    degrees, minutes, seconds = (float(number or 0) for number in numbers)
    return degrees + minutes / 60 + seconds / 3600


def _time(date: Any, subseconds: Any, offset: Any) -> float | None:
    if not isinstance(date, str):
        return None
    zone = offset.strip("\0 ") if isinstance(offset, str) else ""
    zone = zone if re.fullmatch(r"[+-]\d\d:\d\d", zone) else ""
    try:
        stamp = datetime.strptime(date.strip("\0 ") + zone, "%Y:%m:%d %H:%M:%S" + ("%z" if zone else ""))
    except ValueError:
        return None
    stamp = stamp if stamp.tzinfo else stamp.replace(tzinfo=UTC)
    digits = subseconds.strip("\0 ") if isinstance(subseconds, str) else ""
    return stamp.timestamp() + (float(f"0.{digits}") if re.fullmatch(r"[0-9]{1,9}", digits) else 0.0)


def _camera(main: Mapping[int, Any], photo: Mapping[int, Any]) -> str:
    words = [str(value).strip("\0 ") for value in (main.get(_MAKE), main.get(_MODEL), photo.get(_LENS_MODEL)) if value]
    focal = _number(photo.get(_FOCAL_MM))
    return " ".join([*words, f"{focal:.2f} mm"] if focal else words)[:200]


def _number(value: Any, zero: bool = False) -> float | None:
    """A positive finite number, or None; `zero` lets 0 pass."""
    try:
        number = float(value)
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        return None
    return number if math.isfinite(number) and (number > 0 or (zero and number == 0)) else None
