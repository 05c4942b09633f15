"""COLMAP models: written by pycolmap, read here, compared; and files that lie."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.captures import open_capture
from data.colmap import find_colmap, read_model
from scene.errors import InputError
from tests.data.pictures import POINTS, blobs, centroid, colmap_pixels, in_camera, noise, poses, save
from tests.data.test_lens import PARAMETERS

NAMES = [f"photo {i}.png" for i in range(4)]  # a space, as phones write


def reconstruction(model: str = "OPENCV", width: int = 320, height: int = 240) -> pycolmap.Reconstruction:
    made = pycolmap.Reconstruction()
    camera = pycolmap.Camera(model=model, width=width, height=height, params=PARAMETERS[model], camera_id=7)
    made.add_camera_with_trivial_rig(camera)
    for i, (name, c2w) in enumerate(zip(NAMES, poses(len(NAMES)), strict=True), start=1):
        w2c = np.linalg.inv(c2w)
        image = pycolmap.Image(name=name, camera_id=7, image_id=i)
        pixels = colmap_pixels(camera, in_camera(c2w))
        image.points2D = pycolmap.Point2DList([pycolmap.Point2D(xy) for xy in pixels])
        made.add_image_with_trivial_frame(image, pycolmap.Rigid3d(w2c[:3, :4]))
    for k, point in enumerate(POINTS):
        track = pycolmap.Track()
        for i in range(1, len(NAMES) + 1 - (k % 2)):
            track.add_element(i, k)
        made.add_point3D(point, track, np.array([10 * k, 20, 30], dtype=np.uint8))  # red tells which
        made.points3D[max(made.points3D)].error = 0.25 * (k + 1)
    return made


def write(folder: Path, *, binary: bool, model: str = "OPENCV") -> pycolmap.Reconstruction:
    made = reconstruction(model)
    folder.mkdir(parents=True, exist_ok=True)
    (made.write_binary if binary else made.write_text)(folder)
    return made


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("model", PARAMETERS)
def test_models_written_by_colmap_are_read_alike(model: str, binary: bool, tmp_path: Path):
    write(tmp_path, binary=binary, model=model)
    got = read_model(tmp_path)
    assert [image.name for image in got.images] == NAMES and not got.bad
    camera = pycolmap.Camera(model=model, width=320, height=240, params=PARAMETERS[model], camera_id=7)
    for image, c2w in zip(got.images, poses(len(NAMES)), strict=True):
        np.testing.assert_allclose(image.c2w, c2w, atol=1e-9)
        points = in_camera(image.c2w)
        u, v = got.lenses[image.camera_id].project(points[:, 0] / points[:, 2], points[:, 1] / points[:, 2])
        np.testing.assert_allclose(np.stack([u, v], 1), colmap_pixels(camera, in_camera(c2w)), atol=1e-6)
    assert got.points is not None and got.points.errors is not None and got.points.tracks is not None
    order = np.argsort(got.points.rgb[:, 0].numpy())
    np.testing.assert_allclose(got.points.xyz.numpy()[order], POINTS, atol=1e-6)
    np.testing.assert_allclose(got.points.errors.numpy()[order], [0.25, 0.5, 0.75], atol=1e-6)
    assert got.points.tracks.numpy()[order].tolist() == [4, 3, 4]


@pytest.mark.parametrize("place", ["sparse/0", "sparse", ""])
@pytest.mark.parametrize("downscale", [1, 2])
def test_known_points_are_seen_where_the_cameras_say(place: str, downscale: int, tmp_path: Path):
    """Spots are drawn where COLMAP projects the points, through its lens; the loader undistorts and scales them."""
    write(tmp_path / place, binary=True)
    camera = pycolmap.Camera(model="OPENCV", width=320, height=240, params=PARAMETERS["OPENCV"], camera_id=7)
    for name, c2w in zip(NAMES, poses(len(NAMES)), strict=True):
        save(tmp_path / "images" / name, blobs(320, 240, colmap_pixels(camera, in_camera(c2w))))
    with open_capture(tmp_path, downscale=downscale) as capture:
        assert capture.kind == "colmap" and capture.points is not None and len(capture.points) == len(POINTS)
        seen = 0
        for i, view in enumerate(capture.views):
            assert view.camera is not None
            for level in (0, 1):
                picture = capture.photo(i, level).rgb.numpy()
                camera_at = view.camera.scaled(0.5**level)
                assert picture.shape == (camera_at.height, camera_at.width, 3)
                for (u, v), red in zip(camera_at.project(capture.points.xyz)[0].tolist(), capture.points.rgb[:, 0]):
                    found = centroid(picture, (u, v), 14 / downscale / 2**level, colour=int(red) // 10)
                    # px; a spot is stretched a little by the lens. Half a pixel of shift must fail.
                    np.testing.assert_allclose(found, (u, v), atol=0.2)
                    seen += 1
        assert seen == len(NAMES) * len(POINTS) * 2


def test_photos_made_smaller_scale_their_cameras(tmp_path: Path):
    write(tmp_path / "sparse/0", binary=True, model="PINHOLE")
    for name in NAMES:
        save(tmp_path / "images" / name, noise(160, 120))
    with open_capture(tmp_path) as capture:
        K = capture.views[0].camera.K  # type: ignore[union-attr]
        np.testing.assert_allclose([K[0, 0], K[1, 1], K[0, 2], K[1, 2]], np.array(PARAMETERS["PINHOLE"]) / 2)


def test_photos_of_another_shape_or_missing_are_named_and_the_rest_goes_on(tmp_path: Path):
    write(tmp_path / "sparse/0", binary=False)
    for name in NAMES[:3]:
        save(tmp_path / "images" / name, noise(320, 240))
    save(tmp_path / "images" / NAMES[0], noise(240, 320))
    with open_capture(tmp_path) as capture:
        assert [view.name for view in capture.views] == NAMES[1:3]
        words = " ".join(capture.decisions)
        assert NAMES[0] in words and NAMES[3] in words and "240 x 320" in words


def test_photos_in_another_folder_and_format_are_found(tmp_path: Path):
    write(tmp_path / "sparse/0", binary=True)
    for name in NAMES:
        save(tmp_path / "images_2" / (Path(name).stem + ".jpg"), noise(160, 120))
    with open_capture(tmp_path) as capture:
        assert len(capture.views) == len(NAMES)
    with open_capture(tmp_path / "sparse" / "0") as capture:  # naming the model itself will do
        assert len(capture.views) == len(NAMES)


def test_a_model_without_photos_says_where_it_looked(tmp_path: Path):
    write(tmp_path / "sparse/0", binary=True)
    with pytest.raises(InputError, match=r"names 4 photos such as 'photo 0\.png'.*images"):
        open_capture(tmp_path)


def test_names_that_leave_the_folder_are_refused(tmp_path: Path):
    write(tmp_path / "project/sparse/0", binary=False)
    for name in NAMES:
        save(tmp_path / "project/images" / name, noise(320, 240))
    save(tmp_path / "secret.png", noise(320, 240))
    text = tmp_path / "project/sparse/0/images.txt"
    text.write_text(text.read_text().replace(NAMES[0], "../../secret.png"))
    with open_capture(tmp_path / "project") as capture:
        assert len(capture.views) == 3 and "secret" in " ".join(capture.decisions)


def test_images_without_keypoints_have_empty_lines_in_text(tmp_path: Path):
    write(tmp_path, binary=False)
    text = tmp_path / "images.txt"
    lines = [line for line in text.read_text().splitlines() if not line.startswith("#")]
    text.write_text("# comment\n" + "\n".join(line if i % 2 == 0 else "" for i, line in enumerate(lines)) + "\n")
    assert [image.name for image in read_model(tmp_path).images] == NAMES


@pytest.mark.parametrize("file", ["cameras.bin", "images.bin", "points3D.bin"])
@pytest.mark.parametrize("count", [2**64 - 1, 2**40, 10_000])
def test_lying_counts_are_refused_without_allocating(file: str, count: int, tmp_path: Path):
    write(tmp_path, binary=True)
    path = tmp_path / file
    path.write_bytes(struct.pack("<Q", count) + path.read_bytes()[8:])
    with pytest.raises(InputError, match=file):
        read_model(tmp_path)


def test_lying_inner_counts_are_refused(tmp_path: Path):
    write(tmp_path, binary=True)
    images = bytearray((tmp_path / "images.bin").read_bytes())
    at = 8 + 64 + len(NAMES[0]) + 1  # the first picture's number of keypoints
    images[at : at + 8] = struct.pack("<Q", 2**50)
    (tmp_path / "images.bin").write_bytes(images)
    with pytest.raises(InputError, match="keypoints"):
        read_model(tmp_path)
    write(tmp_path, binary=True)
    points = bytearray((tmp_path / "points3D.bin").read_bytes())
    points[8 + 43 : 8 + 51] = struct.pack("<Q", 2**61)
    (tmp_path / "points3D.bin").write_bytes(points)
    with pytest.raises(InputError, match="observations"):
        read_model(tmp_path)


def test_poses_that_are_none_and_missing_cameras_are_left_out(tmp_path: Path):
    write(tmp_path, binary=False)
    lines = (tmp_path / "images.txt").read_text().splitlines()
    rows = [i for i, line in enumerate(lines) if line.endswith(".png")]
    words = lines[rows[0]].split()
    lines[rows[0]] = " ".join([words[0], "0", "0", "0", "0", *words[5:]])
    lines[rows[1]] = lines[rows[1]].replace(" 7 photo", " 9 photo")
    (tmp_path / "images.txt").write_text("\n".join(lines) + "\n")
    got = read_model(tmp_path)
    assert [image.name for image in got.images] == NAMES[2:] and len(got.bad) == 2


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_binaries_raise_nothing_but_input_errors(data: st.DataObject, tmp_path: Path):
    if not (tmp_path / "whole").exists():
        write(tmp_path / "whole", binary=True)
    folder = tmp_path / "damaged"
    folder.mkdir(exist_ok=True)
    for file in ("cameras.bin", "images.bin", "points3D.bin"):
        content = bytearray((tmp_path / "whole" / file).read_bytes())
        for _ in range(data.draw(st.integers(0, 4))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        (folder / file).write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        model = read_model(folder)
    except InputError:
        return
    assert all(np.isfinite(image.c2w).all() for image in model.images)


@given(st.text(alphabet="0123456789.- \n#PINHOLEnaninf", max_size=200))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_odd_text_raises_nothing_but_input_errors(tmp_path: Path, text: str):
    for file in ("cameras.txt", "images.txt", "points3D.txt"):
        (tmp_path / file).write_text(text)
    with pytest.raises(InputError):
        read_model(tmp_path)


def test_a_folder_without_a_model_has_none(tmp_path: Path):
    assert find_colmap(tmp_path) is None
