"""transforms.json in its three dialects, each checked by its own definition of a projection."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from data.captures import Capture, open_capture
from scene.errors import InputError
from tests.data.pictures import POINTS, blobs, centroid, noise, poses, save

WIDTH, HEIGHT = 240, 180
ANGLE = 0.9  # camera_angle_x


def to_opengl(c2w: np.ndarray) -> np.ndarray:
    """Camera axes x right, y up, z back."""
    return c2w @ np.diag([1.0, -1.0, -1.0, 1.0])


def seen_by_blender(c2w_gl: np.ndarray, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """Pixels [P, 2] of POINTS by NeRF's own formula: the camera looks along its -z, y is up."""
    focal = 0.5 * width / math.tan(0.5 * ANGLE)
    x, y, z = ((POINTS - c2w_gl[:3, 3]) @ c2w_gl[:3, :3]).T
    return np.stack([width / 2 + focal * x / -z, height / 2 - focal * y / -z], axis=1)


def check_spots(capture: Capture, level: int = 0, tolerance: float = 0.1) -> None:
    """Every spot in every photo lies where the view's camera projects its point."""
    import torch

    for i, view in enumerate(capture.views):
        assert view.camera is not None
        camera = view.camera.scaled(0.5**level)
        picture = capture.photo(i, level).rgb.numpy()
        pixels, depths = camera.project(torch.tensor(POINTS, dtype=torch.float32))
        assert picture.shape == (camera.height, camera.width, 3) and (depths > 0).all()
        for colour, (u, v) in enumerate(pixels.tolist()):
            found = centroid(picture, (u, v), 14, colour)
            np.testing.assert_allclose(found, (u, v), atol=tolerance)  # px; half a pixel of shift must fail


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def blender_folder(folder: Path, splits: tuple[str, ...] = ("train", "test", "val"), count: int = 5) -> Path:
    for split in splits:
        frames = []
        for i, c2w in enumerate(poses(count)):
            c2w_gl = to_opengl(c2w)
            rgb = blobs(WIDTH, HEIGHT, seen_by_blender(c2w_gl))
            alpha = np.full((HEIGHT, WIDTH), 255, np.uint8)
            alpha[:10] = 0
            save(folder / split / f"r_{i}.png", np.dstack([rgb, alpha]))
            frames.append({"file_path": f"./{split}/r_{i}", "rotation": 0.1, "transform_matrix": c2w_gl.tolist()})
        write_json(folder / f"transforms_{split}.json", {"camera_angle_x": ANGLE, "frames": frames})
    return folder


@pytest.mark.parametrize("downscale", [1, 2])
def test_blender_points_are_seen_where_the_camera_says(downscale: int, tmp_path: Path):
    with open_capture(blender_folder(tmp_path), downscale=downscale) as capture:
        assert capture.kind == "blender" and capture.views[0].has_alpha
        assert capture.up is not None and capture.up.tolist() == [0, 0, 1]
        check_spots(capture)
        check_spots(capture, level=1)
        alpha = capture.photo(0).alpha
        assert alpha is not None and alpha[: 10 // downscale].max() == 0 and alpha[10 // downscale :].min() == 255


@pytest.mark.parametrize(
    ("splits", "held"), [(("train", "test", "val"), "test"), (("train", "val"), "val"), (("train",), None)]
)
def test_blender_split_is_kept(splits: tuple[str, ...], held: str | None, tmp_path: Path):
    folder = blender_folder(tmp_path, splits)
    for source in (folder, folder / "transforms_train.json"):
        with open_capture(source, holdout=4) as capture:
            test = {capture.views[i].name.split("/")[0] for i in capture.test}
            train = {capture.views[i].name.split("/")[0] for i in capture.train}
            assert train == {"train"} and test == ({held} if held else {"train"})
            assert len(capture.test) == (5 if held else 2)  # without a split every 4th of 5 is held out


NGP = {"fl_x": 250.0, "fl_y": 246.0, "cx": 125.5, "cy": 84.25, "w": WIDTH, "h": HEIGHT}
DISTORTION = {"k1": -0.09, "k2": 0.03, "p1": 0.002, "p2": -0.001}


def seen_through_opencv(c2w: np.ndarray, intrinsics: dict[str, float], distortion: dict[str, float]) -> np.ndarray:
    """Pixels [P, 2] by OpenCV's projectPoints, principal point from the corner as these files have it."""
    import cv2

    w2c = np.linalg.inv(c2w)
    K = np.array([[intrinsics["fl_x"], 0, intrinsics["cx"]], [0, intrinsics["fl_y"], intrinsics["cy"]], [0, 0, 1]])
    coefficients = np.array([distortion.get(key, 0.0) for key in ("k1", "k2", "p1", "p2")])
    pixels, _ = cv2.projectPoints(POINTS, cv2.Rodrigues(w2c[:3, :3])[0], w2c[:3, 3], K, coefficients)
    return pixels[:, 0]


def ngp_folder(folder: Path, *, distortion: dict[str, float], extra: dict[str, Any] | None = None) -> Path:
    frames = []
    for i, c2w in enumerate(poses(4)):
        save(folder / f"images/{i}.png", blobs(WIDTH, HEIGHT, seen_through_opencv(c2w, NGP, distortion)))
        frames.append({"file_path": f"images/{i}.png", "transform_matrix": to_opengl(c2w).tolist()})
    content = {**NGP, **distortion, "aabb_scale": 4, "frames": frames, **(extra or {})}
    return write_json(folder / "transforms.json", content)


@pytest.mark.parametrize("distortion", [{}, DISTORTION])
@pytest.mark.parametrize("downscale", [1, 2])
def test_instant_ngp_points_are_seen_where_the_camera_says(distortion: dict, downscale: int, tmp_path: Path):
    file = ngp_folder(tmp_path, distortion=distortion)
    for source in (tmp_path, file):
        with open_capture(source, downscale=downscale) as capture:
            assert capture.kind == "instant-ngp"
            check_spots(capture, tolerance=0.2 if distortion else 0.1)  # a lens stretches spots a little


def test_intrinsics_for_another_size_follow_the_photos(tmp_path: Path):
    file = ngp_folder(tmp_path, distortion={})
    content = json.loads(file.read_text())
    for key in ("fl_x", "fl_y", "cx", "cy", "w", "h"):
        content[key] *= 4  # the file is of the photos before they were made smaller
    write_json(file, content)
    with open_capture(tmp_path) as capture:
        assert (capture.views[0].width, capture.views[0].height) == (WIDTH, HEIGHT)
        check_spots(capture)


def test_angle_stands_in_for_a_missing_focal_length(tmp_path: Path):
    frames = []
    for i, c2w in enumerate(poses(2)):
        save(tmp_path / f"{i}.png", blobs(WIDTH, HEIGHT, seen_by_blender(to_opengl(c2w))))
        frames.append({"file_path": f"{i}.png", "transform_matrix": to_opengl(c2w).tolist()})
    write_json(tmp_path / "transforms.json", {"camera_angle_x": ANGLE, "w": WIDTH, "h": HEIGHT, "frames": frames})
    with open_capture(tmp_path) as capture:
        check_spots(capture)


def nerfstudio_folder(folder: Path, **top: Any) -> Path:
    """Two cameras with intrinsics of their own in each frame."""
    frames = []
    for i, c2w in enumerate(poses(6)):
        own = {**NGP, "fl_x": 250.0 + 20 * (i % 2), "fl_y": 246.0 + 20 * (i % 2)}
        distortion = DISTORTION if i % 2 else {"k1": 0.05, "k2": 0.0, "p1": 0.0, "p2": 0.0}
        save(folder / f"images/frame_{i:05d}.png", blobs(WIDTH, HEIGHT, seen_through_opencv(c2w, own, distortion)))
        frames.append(
            {"file_path": f"images/frame_{i:05d}.png", "transform_matrix": to_opengl(c2w).tolist(), **own, **distortion}
        )
    applied = [[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0]]
    return write_json(
        folder / "transforms.json", {"camera_model": "OPENCV", "applied_transform": applied, "frames": frames, **top}
    )


def test_nerfstudio_frames_have_their_own_intrinsics_and_distortion(tmp_path: Path):
    nerfstudio_folder(tmp_path)
    with open_capture(tmp_path) as capture:
        assert capture.kind == "nerfstudio"
        assert len({view.camera_group for view in capture.views}) == 2
        check_spots(capture, tolerance=0.2)


def test_nerfstudio_split_is_kept(tmp_path: Path):
    names = [f"images/frame_{i:05d}.png" for i in range(6)]
    nerfstudio_folder(tmp_path, train_filenames=names[:4], val_filenames=names[4:], test_filenames=names[4:])
    with open_capture(tmp_path) as capture:
        assert [capture.views[i].name for i in capture.test] == names[4:]


def test_nerfstudio_points_come_from_its_ply(tmp_path: Path):
    nerfstudio_folder(tmp_path, ply_file_path="sparse_pc.ply")
    rows = "\n".join(f"{x} {y} {z} {10 * i} 2 3" for i, (x, y, z) in enumerate(POINTS.tolist()))
    header = "\n".join(f"property float {a}" for a in "xyz") + "\n"
    header += "\n".join(f"property uint8 {a}" for a in ("red", "green", "blue"))
    (tmp_path / "sparse_pc.ply").write_text(f"ply\nformat ascii 1.0\nelement vertex 3\n{header}\nend_header\n{rows}\n")
    with open_capture(tmp_path) as capture:
        assert capture.points is not None
        np.testing.assert_allclose(capture.points.xyz.numpy(), POINTS, atol=1e-6)
        assert capture.points.rgb[:, 0].tolist() == [0, 10, 20]


def test_nerfstudio_points_of_its_colmap_model_are_moved_with_its_cameras(tmp_path: Path):
    from tests.data.test_colmap import write

    nerfstudio_folder(tmp_path)
    write(tmp_path / "colmap/sparse/0", binary=True)
    with open_capture(tmp_path) as capture:
        assert capture.kind == "nerfstudio" and capture.points is not None
        order = capture.points.rgb[:, 0].argsort()
        moved = np.stack([POINTS[:, 0], POINTS[:, 2], -POINTS[:, 1]], axis=1)
        np.testing.assert_allclose(capture.points.xyz[order].numpy(), moved, atol=1e-6)


def test_fisheye_pictures_are_undistorted(tmp_path: Path):
    import cv2

    frames = []
    k = np.array([-0.02, 0.01, -0.003, 0.001])
    K = np.array([[150.0, 0, 121.0], [0, 149.0, 92.0], [0, 0, 1]])
    for i, c2w in enumerate(poses(3)):
        w2c = np.linalg.inv(c2w)
        rotation = cv2.Rodrigues(w2c[:3, :3])[0]
        pixels, _ = cv2.fisheye.projectPoints(POINTS[:, None], rotation, w2c[:3, 3], K, k)
        save(tmp_path / f"{i}.png", blobs(WIDTH, HEIGHT, pixels[:, 0]))
        frames.append({"file_path": f"{i}.png", "transform_matrix": to_opengl(c2w).tolist()})
    intrinsics = {"fl_x": 150.0, "fl_y": 149.0, "cx": 121.0, "cy": 92.0, "w": WIDTH, "h": HEIGHT}
    coefficients = {f"k{i + 1}": float(value) for i, value in enumerate(k)}
    write_json(
        tmp_path / "transforms.json",
        {"camera_model": "OPENCV_FISHEYE", **intrinsics, **coefficients, "frames": frames},
    )
    with open_capture(tmp_path) as capture:
        check_spots(capture, tolerance=0.2)


def test_masks_come_from_mask_path_and_from_a_masks_folder(tmp_path: Path):
    file = ngp_folder(tmp_path, distortion={})
    black_top = np.full((HEIGHT, WIDTH), 255, np.uint8)
    black_top[: HEIGHT // 2] = 0
    save(tmp_path / "special/m.png", black_top)
    save(tmp_path / "masks/1.png.png", black_top)
    save(tmp_path / "masks/2.png", black_top)
    content = json.loads(file.read_text())
    content["frames"][0]["mask_path"] = "special/m.png"
    write_json(file, content)
    with open_capture(tmp_path) as capture:
        assert [view.has_alpha for view in capture.views] == [True, True, True, False]
        for i in range(3):
            alpha = capture.photo(i).alpha
            assert alpha is not None and alpha[: HEIGHT // 2].max() == 0 and alpha[HEIGHT // 2 :].min() == 255


def test_sideways_file_is_turned_only_when_its_camera_is_upright(tmp_path: Path):
    """Cameras belong to one grid of pixels: the declared size tells whether to the stored or the turned one."""
    exif = Image.Exif()
    exif[0x0112] = 6
    pose = to_opengl(poses(1)[0]).tolist()
    for name, size in (("stored", (64, 48)), ("turned", (48, 64))):
        save(tmp_path / name / "a.jpg", noise(64, 48), exif=exif)
        content = {
            "fl_x": 60.0,
            "w": size[0],
            "h": size[1],
            "frames": [{"file_path": "a.jpg", "transform_matrix": pose}],
        }
        write_json(tmp_path / name / "transforms.json", content)
        with open_capture(tmp_path / name) as capture:
            view = capture.views[0]
            assert (view.width, view.height) == size and capture.photo(0).rgb.shape[:2] == size[::-1]


def one_frame(folder: Path, change: dict[str, Any], top: dict[str, Any] | None = None) -> Path:
    save(folder / "a.png", noise(WIDTH, HEIGHT))
    frame = {"file_path": "a.png", "transform_matrix": to_opengl(poses(1)[0]).tolist(), **change}
    return write_json(folder / "transforms.json", {**NGP, **(top or {}), "frames": [frame]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"file_path": "/etc/passwd"}, "leads out"),
        ({"file_path": "../a.png"}, "leads out"),
        ({"file_path": "C:\\a.png"}, "leads out"),
        ({"file_path": "images\\..\\..\\a.png"}, "leads out"),
        ({"file_path": 7}, "file_path"),
        ({"file_path": "b.png"}, "missing"),
        ({"transform_matrix": None}, "4x4"),
        ({"transform_matrix": [[1, 0], [0, 1]]}, "4x4"),
        ({"transform_matrix": [[math.nan] * 4] * 4}, "finite"),
        ({"transform_matrix": [[0] * 4] * 3}, "rotation"),
        ({"transform_matrix": np.diag([1.0, 1, -1, 1]).tolist()}, "mirrored"),
        ({"transform_matrix": "identity"}, "4x4"),
        ({"fl_x": -5}, "positive"),
        ({"fl_x": "wide"}, "finite number"),
        ({"fl_x": 1e400}, "finite"),
        ({"w": 100, "h": 900}, "its camera is for"),
        ({"camera_model": "EQUIRECTANGULAR"}, "not supported"),
        ({"mask_path": "../m.png"}, "leads out"),
        ({"mask_path": "m.png"}, "missing"),
    ],
)
def test_bad_frames_are_named_with_the_reason(change: dict[str, Any], message: str, tmp_path: Path):
    one_frame(tmp_path, change)
    with pytest.raises(InputError, match=message):
        open_capture(tmp_path)


def test_one_bad_frame_does_not_spoil_the_others(tmp_path: Path):
    file = ngp_folder(tmp_path, distortion={})
    content = json.loads(file.read_text())
    content["frames"][1]["file_path"] = "../elsewhere.png"
    write_json(file, content)
    with open_capture(tmp_path) as capture:
        assert len(capture.views) == 3 and "elsewhere" in " ".join(capture.decisions)


def test_link_that_leaves_the_folder_is_refused(tmp_path: Path):
    save(tmp_path / "outside/a.png", noise(WIDTH, HEIGHT))
    one_frame(tmp_path / "in", {"file_path": "link.png"})
    (tmp_path / "in/link.png").symlink_to(tmp_path / "outside/a.png")
    with pytest.raises(InputError, match="through a link"):
        open_capture(tmp_path / "in")


def test_scaled_rotation_is_made_rigid(tmp_path: Path):
    c2w = to_opengl(poses(1)[0])
    scaled = c2w.copy()
    scaled[:3, :3] *= 0.25
    one_frame(tmp_path, {"transform_matrix": scaled.tolist()})
    with open_capture(tmp_path) as capture:
        got = capture.views[0].camera.c2w.double().numpy()  # type: ignore[union-attr]
        np.testing.assert_allclose(to_opengl(got), c2w, atol=1e-6)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"frames": 3}', '{"frames": []}', "[" * 100_000, '{"a":' * 100_000, "\xff\xfe", "1" * 6000]
)
def test_damaged_json_is_named(text: str, tmp_path: Path):
    save(tmp_path / "a.png", noise(32, 32))
    (tmp_path / "transforms.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"transforms\.json"):
        open_capture(tmp_path)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
_KEYS = (
    "fl_x",
    "cx",
    "w",
    "h",
    "k1",
    "camera_model",
    "file_path",
    "transform_matrix",
    "mask_path",
    "camera_angle_x",
    "is_fisheye",
)


@given(
    top=st.dictionaries(
        st.sampled_from((*_KEYS, "applied_transform", "ply_file_path", "test_filenames")), _JSON, max_size=3
    ),
    frame=st.dictionaries(st.sampled_from(_KEYS), _JSON, max_size=2),
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_odd_values_raise_nothing_but_input_errors(top: dict, frame: dict, tmp_path: Path):
    one_frame(tmp_path, frame, top)
    try:
        with open_capture(tmp_path) as capture:
            assert capture.views[0].camera is not None
    except InputError:
        pass


def test_real_captures_open(real_data: Path):
    with open_capture(real_data / "photos" / "fox", downscale=4) as fox:
        assert fox.kind == "instant-ngp" and len(fox.views) == 50 and len(fox.test) == 7
        assert fox.photo(0).rgb.shape[:2] == (fox.views[0].height, fox.views[0].width)
    with open_capture(real_data / "blender" / "lego", downscale=8) as lego:
        assert lego.kind == "blender" and (len(lego.train), len(lego.test)) == (100, 25)
        alpha = lego.photo(0).alpha
        assert alpha is not None and alpha.min() == 0 and alpha.max() == 255
