"""Lenses against COLMAP's own camera models, and undistortion against an analytic picture."""

from __future__ import annotations

import math

import numpy as np
import pycolmap
import pytest

from data.colmap import _MODELS, _add_lens
from data.images import resize_area
from data.lens import Lens, undistortion_map
from data.store import Shot, _MapCache, make_photo
from scene.errors import InputError
from tests.data.pictures import colmap_pixels, save

# Parameters as phones, action cameras and COLMAP's own tests have them, for a 320 x 240 picture.
PARAMETERS = {
    "SIMPLE_PINHOLE": [280, 163, 118],
    "PINHOLE": [280, 275, 163, 118],
    "SIMPLE_RADIAL": [280, 163, 118, -0.08],
    "RADIAL": [280, 163, 118, 0.12, -0.05],
    "OPENCV": [280, 275, 163, 118, -0.12, 0.04, 0.002, -0.003],
    "OPENCV_FISHEYE": [180, 182, 163, 118, -0.02, 0.01, -0.004, 0.001],
    "FULL_OPENCV": [280, 275, 163, 118, 0.1, -0.03, 0.001, -0.002, 0.01, 0.05, -0.01, 0.002],
    "FOV": [220, 222, 163, 118, 0.8],
    "SIMPLE_RADIAL_FISHEYE": [190, 163, 118, -0.03],
    "RADIAL_FISHEYE": [190, 163, 118, -0.03, 0.01],
    "THIN_PRISM_FISHEYE": [190, 192, 163, 118, -0.03, 0.01, 0.001, -0.002, 0.003, -0.001, 0.002, 0.001],
    "SIMPLE_FISHEYE": [190, 163, 118],
    "FISHEYE": [190, 192, 163, 118],
}
DISTORTED = [name for name in PARAMETERS if name not in ("SIMPLE_PINHOLE", "PINHOLE")]


def lens_of(name: str) -> Lens:
    number = next(number for number, row in _MODELS.items() if row[0] == name)
    lenses: dict[int, Lens] = {}
    _add_lens(lenses, 1, number, 320, 240, tuple(float(p) for p in PARAMETERS[name]), [])
    return lenses[1]


def colmap_camera(name: str) -> pycolmap.Camera:
    return pycolmap.Camera(model=name, width=320, height=240, params=PARAMETERS[name], camera_id=1)


def test_every_colmap_model_is_covered_here():
    assert {row[0] for row in _MODELS.values()} == set(PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_projection_equals_colmaps(name: str):
    rng = np.random.default_rng(1)
    points = np.c_[rng.uniform(-0.5, 0.5, (200, 2)), np.ones(200)]
    points[0, :2] = 0  # on the axis, where fisheye formulas divide by zero
    u, v = lens_of(name).project(points[:, 0], points[:, 1])
    expected = colmap_pixels(colmap_camera(name), points)
    np.testing.assert_allclose(np.stack([u, v], axis=1), expected, atol=1e-7)  # px; both are float64


@pytest.mark.parametrize("name", DISTORTED)
def test_undistorted_picture_lies_wholly_inside_the_distorted_one(name: str):
    lens = lens_of(name)
    pinhole = lens.undistorted()
    map_x, map_y = undistortion_map(lens, pinhole)
    assert map_x.shape == (pinhole.height, pinhole.width)
    # Pixel centres sampled within the outermost half pixel need its own colour only.
    assert map_x.min() >= -0.5 and map_x.max() <= lens.width - 0.5
    assert map_y.min() >= -0.5 and map_y.max() <= lens.height - 0.5
    assert pinhole.width * pinhole.height <= 1.01 * lens.width * lens.height
    assert pinhole.width * pinhole.height > 0.6 * lens.width * lens.height  # it does not throw the picture away
    assert math.isclose(pinhole.fx / pinhole.fy, lens.fx / lens.fy, rel_tol=1e-9)


def pattern(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A smooth picture on the plane z = 1, 0..255."""
    return 128 + 50 * np.sin(11 * x + 1) + 40 * np.cos(13 * y) + 20 * np.sin(9 * (x + y))


@pytest.mark.parametrize("name", DISTORTED)
@pytest.mark.parametrize("downscale", [1, 2])
def test_undistorting_a_rendered_pattern_gives_the_pinhole_picture(name: str, downscale: int, tmp_path):
    """Rendered through COLMAP's inverse model, which shares nothing with ours."""
    lens = lens_of(name)
    v, u = np.mgrid[:240, :320] + 0.5
    rays = colmap_camera(name).cam_from_img(np.stack([u.ravel(), v.ravel()], axis=1))
    assert rays is not None
    distorted = pattern(rays[:, 0], rays[:, 1]).reshape(240, 320)
    grey = np.rint(np.clip(distorted, 0, 255)).astype(np.uint8)
    path = save(tmp_path / "a.png", np.repeat(grey[..., None], 3, axis=2))
    small = lens.resized(320 // downscale, 240 // downscale)
    pinhole = small.undistorted()
    shot = Shot(path, 1, None, False, (320, 240), (small.width, small.height), small, pinhole)
    got = make_photo(shot, 0, _MapCache()).rgb.numpy()[..., 1].astype(float)
    fine = pinhole.resized(pinhole.width * 4, pinhole.height * 4)  # the true area average
    x = (np.arange(fine.width) + 0.5 - fine.cx) / fine.fx
    y = (np.arange(fine.height) + 0.5 - fine.cy) / fine.fy
    wanted = resize_area(pattern(*np.meshgrid(x, y)), pinhole.width, pinhole.height)
    assert got.shape == wanted.shape
    error = np.abs(got - wanted)[2:-2, 2:-2]
    # Grey levels: rounding twice and linear interpolation; half a pixel of shift would give 2 to 4 on average.
    assert error.mean() < 0.7 and error.max() < 5


def test_principal_point_moves_with_the_crop_and_still_is_the_lens_axis():
    lens = Lens("opencv", 640, 480, 500, 505, 200, 300, (0.2, 0.0, 0.0, 0.0))  # far off centre, pincushion
    pinhole = lens.undistorted()
    map_x, map_y = undistortion_map(lens, pinhole)
    # Where the map is sampled at the pinhole's principal point it must give the lens' own.
    column, row = pinhole.cx - 0.5, pinhole.cy - 0.5
    left, top = int(column), int(row)
    at_column = map_x[top, left] + (column - left) * (map_x[top, left + 1] - map_x[top, left])
    at_row = map_y[top, left] + (row - top) * (map_y[top + 1, left] - map_y[top, left])
    assert (at_column, at_row) == pytest.approx((199.5, 299.5), abs=1e-3)
    assert (pinhole.fx, pinhole.fy) == (500, 505)  # pincushion crops; the resolution stays


def test_folding_polynomial_is_cut_where_it_folds():
    lens = Lens("opencv", 640, 480, 300, 300, 320, 240, (-0.5, 0.0, 0.0, 0.0))  # turns back at radius 0.82
    pinhole = lens.undistorted()
    corner = math.hypot(max(pinhole.cx, pinhole.width - pinhole.cx), max(pinhole.cy, pinhole.height - pinhole.cy))
    assert corner / pinhole.fx < 0.83


def test_very_wide_fisheye_is_cropped_to_a_finite_picture():
    lens = Lens("fisheye", 800, 800, 250, 250, 400, 400, (0.0,))  # 183 degrees across
    pinhole = lens.undistorted()
    assert pinhole.width * pinhole.height <= 800 * 800
    assert math.atan(pinhole.width / 2 / pinhole.fx) <= math.radians(60.1)


def test_without_distortion_nothing_is_cropped():
    lens = Lens("opencv", 101, 77, 90, 91, 45.3, 40.1, (0.0, 0.0, 0.0, 0.0))
    assert not lens.distorts
    assert lens.undistorted() == Lens("pinhole", 101, 77, 90, 91, 45.3, 40.1)


@pytest.mark.parametrize(
    "change",
    [{"fx": 0.0}, {"fy": -1.0}, {"cx": math.nan}, {"width": 0}, {"model": "panorama"}, {"coefficients": (math.inf,)}],
)
def test_impossible_intrinsics_are_refused(change: dict):
    values = {"model": "opencv", "width": 10, "height": 10, "fx": 5.0, "fy": 5.0, "cx": 5.0, "cy": 5.0, **change}
    with pytest.raises(InputError):
        Lens(**values)


def test_hopeless_distortion_is_refused_with_its_numbers():
    with pytest.raises(InputError, match="-1000000000000"):
        Lens("opencv", 100, 100, 50, 50, 500, 50, (-1e12,)).undistorted()


@pytest.mark.parametrize("focal", [1e-235, 1e-30, 1e235])
def test_focal_lengths_of_another_magnitude_are_refused(focal: float) -> None:
    lens = Lens("fisheye", 320, 240, focal, 200.0, 160.0, 120.0, (0.0, 0.0, 0.0, 0.0))
    with pytest.raises(InputError, match="no valid picture"):
        lens.undistorted()
