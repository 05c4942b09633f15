"""LLFF, Middlebury and KITTI folders: their axes and half pixels, each by its own definition of a projection."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.captures import Capture, open_capture
from scene.errors import InputError
from tests.data.pictures import POINTS, blobs, centroid, noise, poses, save
from tests.data.test_transforms import check_spots

WIDTH, HEIGHT = 240, 180


def llff_folder(folder: Path, shrink: int = 1) -> Path:
    """Poses as LLFF's own loader takes them apart: axes (down, right, back), then height, width, focal length."""
    rows = []
    for i, c2w in enumerate(poses(5)):
        right, down, forward, centre = c2w[:3].T
        x, y, z = (POINTS - centre) @ right, (POINTS - centre) @ down, (POINTS - centre) @ forward
        pixels = np.stack([260.0 * x / z + WIDTH / 2, 260.0 * y / z + HEIGHT / 2], axis=1)
        save(folder / "images" / f"image{i:03d}.png", blobs(WIDTH, HEIGHT, pixels))
        hwf = shrink * np.array([HEIGHT, WIDTH, 260.0])
        rows.append(np.r_[np.stack([down, right, -forward, centre, hwf], axis=1).ravel(), 1.0, 9.0])
    np.save(folder / "poses_bounds.npy", np.array(rows))
    return folder


@pytest.mark.parametrize("shrink", [1, 4])
def test_llff_points_are_seen_where_the_camera_says(shrink: int, tmp_path: Path):
    folder = llff_folder(tmp_path, shrink)  # at 4, the photos were made smaller after the poses were written
    for source in (folder, folder / "poses_bounds.npy"):
        with open_capture(source) as capture:
            assert capture.kind == "llff"
            check_spots(capture)


def test_llff_takes_the_folder_whose_photos_match_in_number(tmp_path: Path):
    llff_folder(tmp_path)
    (tmp_path / "images").rename(tmp_path / "images_8")
    save(tmp_path / "images" / "one.png", noise(16, 16))
    with open_capture(tmp_path) as capture:
        assert len(capture.views) == 5
    save(tmp_path / "images_8" / "more.png", noise(16, 16))
    with pytest.raises(InputError, match=r"5 poses.*images_8/ 6"):
        open_capture(tmp_path)


def pickled() -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return file.getvalue()


def lying_header() -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (10**12, 17)})
    return file.getvalue() + b"\0" * 800


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"nonsense" * 100, pickled(), lying_header()])
def test_damaged_poses_bounds_are_named(content: bytes, tmp_path: Path):
    llff_folder(tmp_path)
    (tmp_path / "poses_bounds.npy").write_bytes(content)
    with pytest.raises(InputError, match=r"poses_bounds\.npy"):
        open_capture(tmp_path)


@pytest.mark.filterwarnings("ignore:overflow")  # the test's own, at huge values
@given(at=st.integers(0, 2**32), value=st.floats())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_odd_poses_raise_nothing_but_input_errors(at: int, value: float, tmp_path: Path):
    if not (tmp_path / "images").is_dir():
        llff_folder(tmp_path)
    rows = np.load(tmp_path / "poses_bounds.npy", allow_pickle=False)
    before = rows.copy()
    rows.ravel()[at % rows.size] = value
    np.save(tmp_path / "poses_bounds.npy", rows)
    try:
        with open_capture(tmp_path) as capture:
            assert all(view.camera is not None for view in capture.views)
    except InputError:
        pass
    finally:
        np.save(tmp_path / "poses_bounds.npy", before)


# Its calibration counts pixels from the centre of the first one.
K_FROM_CENTRE = np.array([[255.0, 0, 118.0], [0, 251.0, 93.0], [0, 0, 1]])


def spots_by_projection(projection: np.ndarray) -> np.ndarray:
    """A picture with the spots of P = K [R | t]; index i there lies at i + 0.5 from the picture's corner."""
    homogeneous = np.c_[POINTS, np.ones(3)] @ projection.T
    return blobs(WIDTH, HEIGHT, homogeneous[:, :2] / homogeneous[:, 2:] + 0.5)


def middlebury_folder(folder: Path, name: str = "dino") -> Path:
    lines = ["4"]
    for i, c2w in enumerate(poses(4)):
        w2c = np.linalg.inv(c2w)[:3]
        save(folder / f"{name}{i:04d}.png", spots_by_projection(K_FROM_CENTRE @ w2c))
        numbers = np.r_[K_FROM_CENTRE.ravel(), w2c[:, :3].ravel(), w2c[:, 3]]
        lines.append(f"{name}{i:04d}.png " + " ".join(f"{number:.12f}" for number in numbers))
    (folder / f"{name}_par.txt").write_text("\n".join(lines) + "\n")
    return folder


def test_middlebury_points_are_seen_where_the_camera_says(tmp_path: Path):
    folder = middlebury_folder(tmp_path)
    for source in (folder, folder / "dino_par.txt"):
        with open_capture(source) as capture:
            assert capture.kind == "middlebury"
            check_spots(capture)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("../x.png 1 2 3", "21 finite numbers"),
        ("../x.png " + "1 0 0 0 1 0 0 0 1 " * 2 + "0 0 1", "leads out"),
        ("gone.png " + "1 0 0 0 1 0 0 0 1 " * 2 + "0 0 1", "missing"),
        ("dino0000.png " + "nan " * 21, "finite"),
        ("dino0000.png " + "x " * 21, "convert"),
        ("dino0000.png " + "0 " * 21, "camera matrix"),
        ("dino0000.png 9 5 1 0 9 1 0 0 1 1 0 0 0 1 0 0 0 1 0 0 1", "skew"),
    ],
)
def test_bad_middlebury_lines_are_named(line: str, reason: str, tmp_path: Path):
    folder = middlebury_folder(tmp_path)
    text = (folder / "dino_par.txt").read_text().splitlines()
    (folder / "dino_par.txt").write_text("\n".join([text[0], line, *text[2:]]))
    with open_capture(folder) as capture:
        assert len(capture.views) == 3 and reason in " ".join(capture.decisions)


def kitti_folder(folder: Path, *, images: str = "image_l", named: bool = False) -> Path:
    offset = np.array([0.0, -0.5, 0.06, 0.54])  # metres from the left grey camera, of P0 to P3
    projections = [K_FROM_CENTRE @ np.c_[np.eye(3), [-b, 0.01 * k, 0]] for k, b in enumerate(offset)]
    number = {"image_l": 0, "image_0": 0, "image_r": 1, "image_2": 2, "image_3": 3}[images]
    rows = []
    for i, c2w in enumerate(poses(6)):
        w2c = np.linalg.inv(c2w)
        save(folder / images / f"{i:06d}.png", spots_by_projection(projections[number] @ w2c))
        rows.append(" ".join(f"{value:.12e}" for value in c2w[:3].ravel()))
    lines = [" ".join(f"{value:.12e}" for value in projection.ravel()) for projection in projections]
    lines = [f"P{k}: {line}" for k, line in enumerate(lines)] + ["Tr: " + "0 " * 12] if named else lines
    (folder / "calib.txt").write_text("\n".join(lines))
    (folder / "poses.txt").write_text("\n".join(rows) + "\n")
    return folder


@pytest.mark.parametrize(
    ("images", "named"), [("image_l", False), ("image_2", True), ("image_3", True), ("image_r", False)]
)
def test_kitti_points_are_seen_where_the_camera_says(images: str, named: bool, tmp_path: Path):
    with open_capture(kitti_folder(tmp_path, images=images, named=named)) as capture:
        assert capture.kind == "kitti" and capture.ordered and capture.metric
        assert capture.up is not None and capture.up.tolist() == [0, -1, 0]
        check_spots(capture)


def test_kitti_frames_find_their_poses_by_number(tmp_path: Path):
    folder = kitti_folder(tmp_path)
    for i in (0, 1, 4):
        (folder / "image_l" / f"{i:06d}.png").unlink()
    with open_capture(folder) as capture:
        assert len(capture.views) == 3
        check_spots(capture)


@pytest.mark.parametrize("file", ["calib.txt", "poses.txt"])
@pytest.mark.parametrize("content", ["", "1 2 3", "x y z", "nan " * 12, "0 " * 12])
def test_damaged_kitti_files_are_refused(file: str, content: str, tmp_path: Path):
    folder = kitti_folder(tmp_path)
    (folder / file).write_text(content)
    with pytest.raises(InputError):
        open_capture(folder)


def colour_error(capture: Capture, shift: tuple[float, float] = (0.0, 0.0)) -> float:
    """Mean difference between the sparse points' colours and the photos where they project, moved by `shift` px."""
    assert capture.points is not None and capture.points.tracks is not None and capture.points.errors is not None
    good = (capture.points.tracks > 4) & (capture.points.errors < 1)
    total = []
    for i, view in enumerate(capture.views):
        assert view.camera is not None
        pixels, depths = view.camera.project(capture.points.xyz[good])
        pixels = pixels + torch.tensor(shift)
        inside = (
            (depths > 0) & (pixels >= 1).all(1) & (pixels[:, 0] < view.width - 1) & (pixels[:, 1] < view.height - 1)
        )
        u, v = pixels[inside].long().T
        total.append((capture.photo(i).rgb[v, u].float() - capture.points.rgb[good][inside].float()).abs().mean())
    return float(np.mean(total))


def test_real_fern_shows_its_points_in_their_colours(real_data: Path):
    with open_capture(real_data / "llff" / "fern") as capture:
        assert capture.kind == "llff" and len(capture.views) == 20
        at_points = colour_error(capture)
        # The colours fit best where the points project: no axis is turned, no half pixel lost.
        assert at_points < 30  # grey levels; turned axes give over 50
        assert all(colour_error(capture, shift) > at_points + 1 for shift in ((0.7, 0), (-0.7, 0), (0, 0.7), (0, -0.7)))


def test_real_middlebury_and_kitti_open(real_data: Path):
    with open_capture(real_data / "objects" / "templeSparseRing") as temple:
        assert temple.kind == "middlebury" and len(temple.views) == 16
        # The box its README states must fill the pictures and stay inside most of them.
        low, high = torch.tensor([-0.073568, 0.021728, -0.012445]), torch.tensor([0.028855, 0.181892, 0.062736])
        for view in temple.views:
            assert view.camera is not None
            pixels, depths = view.camera.project(((low + high) / 2)[None])
            assert depths[0] > 0 and 200 < pixels[0, 0] < 440 and 150 < pixels[0, 1] < 330
    with open_capture(real_data / "driving" / "KITTI_sequence_1") as drive:
        assert drive.kind == "kitti" and len(drive.views) == 51
        steps = [
            float((b.camera.center - a.camera.center).norm())
            for a, b in zip(drive.views, drive.views[1:])
            if a.camera and b.camera
        ]
        assert 0.3 < float(np.median(steps)) < 3  # metres between frames at 10 Hz
        forward = drive.views[0].camera.forward if drive.views[0].camera else None
        assert forward is not None and forward[2] > 0.99


def test_centroids_find_spots():
    picture = blobs(60, 40, np.array([[20.3, 11.7]]))
    np.testing.assert_allclose(centroid(picture, (20, 12), 12), (20.3, 11.7), atol=0.02)
