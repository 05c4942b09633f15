"""EXIF: focal lengths against measured ones, places, times, and nonsense that must not raise."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, TiffImagePlugin

from data.exif import read_exif
from data.images import inspect_image

Rational = TiffImagePlugin.IFDRational


def tags(main: dict[int, Any] | None = None, photo: dict[int, Any] | None = None, gps: dict[int, Any] | None = None):
    """Tags that went through a file, as PIL reads them back."""
    exif = Image.Exif()
    exif.update(main or {})
    exif.get_ifd(0x8769).update(photo or {})
    exif.get_ifd(0x8825).update(gps or {})
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG", exif=exif)
    return Image.open(io.BytesIO(file.getvalue())).getexif()


def test_35mm_equivalent_compares_diagonals():
    focal = read_exif(tags(photo={0xA405: 35}), 2832, 2128).focal_px
    assert focal == pytest.approx(2905.88, rel=0.02)  # calibrated value of this camera (openMVG's Sceaux castle)


def test_35mm_equivalent_of_a_full_frame_picture_is_exact():
    assert read_exif(tags(photo={0xA405: 50}), 6000, 4000).focal_px == pytest.approx(50 / 36 * 6000, rel=1e-9)


@pytest.mark.parametrize(("unit", "per_unit"), [(2, 3556.0), (3, 1400.0)])
def test_sensor_pitch_gives_the_focal_length_in_pixels(unit: int, per_unit: float):
    photo = {
        0x920A: Rational(280, 10),
        0xA20E: Rational(int(per_unit * 100), 100),
        0xA210: unit,
        0xA002: 4000,
        0xA003: 3000,
    }
    assert read_exif(tags(photo=photo), 4000, 3000).focal_px == pytest.approx(28 * 140, rel=1e-6)  # 140 pixels per mm
    assert read_exif(tags(photo=photo), 2000, 1500).focal_px == pytest.approx(28 * 70, rel=1e-6)  # made smaller since
    assert read_exif(tags(photo=photo), 1500, 2000).focal_px == pytest.approx(28 * 70, rel=1e-6)  # and turned


def test_cropped_picture_has_no_focal_length():
    photo = {0xA405: 28, 0xA002: 4000, 0xA003: 3000}
    assert read_exif(tags(photo=photo), 4000, 3000).focal_px is not None
    assert read_exif(tags(photo=photo), 3000, 3000).focal_px is None


def test_absurd_focal_lengths_are_not_believed():
    assert read_exif(tags(photo={0xA405: 60000}), 4000, 3000).focal_px is None
    assert read_exif(tags(photo={0xA405: 0}), 4000, 3000).focal_px is None
    assert read_exif(tags(photo={0x920A: Rational(0, 0)}), 4000, 3000).focal_px is None


def test_place_has_signs_and_altitude():
    gps = {1: "S", 2: (33.0, 51.0, 30.0), 3: "W", 4: (151.0, 12.0, 36.0), 5: b"\x01", 6: 12.5}
    assert read_exif(tags(gps=gps), 8, 8).gps == pytest.approx(
        (-(33 + 51 / 60 + 30 / 3600), -(151 + 12 / 60 + 0.01), -12.5)
    )
    assert read_exif(tags(gps={2: (0.0, 0.0, 0.0), 4: (0.0, 0.0, 0.0)}), 8, 8).gps is None
    assert read_exif(tags(gps={2: (95.0, 0.0, 0.0), 4: (0.0, 0.0, 0.0)}), 8, 8).gps is None


def test_time_has_zone_and_fractions():
    photo = {0x9003: "2024:05:06 07:08:09", 0x9291: "25", 0x9011: "+02:00"}
    expected = datetime(2024, 5, 6, 5, 8, 9, 250_000, tzinfo=UTC).timestamp()
    assert read_exif(tags(photo=photo), 8, 8).time == pytest.approx(expected, abs=1e-6)
    assert read_exif(tags(photo={0x9003: "0000:00:00 00:00:00"}), 8, 8).time is None


def test_cameras_differ_by_lens_and_zoom():
    base = {0x010F: "Maker", 0x0110: "M1"}
    names = {
        read_exif(tags(main, {0x920A: focal}), 8, 8).camera
        for main in (base, {**base, 0x0110: "M2"})
        for focal in (Rational(24, 1), Rational(70, 1))
    }
    assert len(names) == 4


@given(st.dictionaries(st.sampled_from([1, 2, 3, 4, 5, 6]), st.one_of(st.text(), st.floats(), st.tuples(st.floats()))))
@settings(max_examples=50, deadline=None)
def test_odd_values_never_raise(values: dict[int, Any]):
    class Tags(dict):
        def get_ifd(self, _: int) -> dict[int, Any]:
            odd = list(values.values()) or [None]
            return {
                **values,
                0x9003: odd[0],
                0x920A: odd[-1],
                0xA405: odd[0],
                0xA20E: odd[-1],
                0xA210: odd[0],
                0xA002: odd[0],
            }

    read_exif(Tags({0x0112: next(iter(values.values()), None), 0x010F: values.get(1)}), 8, 8)


def test_real_photos_say_where_and_with_what(real_data: Path):
    lund = inspect_image(real_data / "photos" / "lund" / "01.jpg").exif
    assert lund.gps is not None and lund.gps[:2] == pytest.approx((55.698, 13.195), abs=0.01)
    sceaux = inspect_image(real_data / "photos" / "sceaux" / "100_7100.JPG").exif
    assert sceaux.focal_px == pytest.approx(2905.88, rel=0.02) and "Z612" in sceaux.camera and sceaux.time is not None
