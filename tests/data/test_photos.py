"""Photo folders: which files count, which camera took them, which mask is theirs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.captures import open_capture
from data.images import inspect_image
from scene.errors import InputError
from tests.data.pictures import noise, save


def exif(orientation: int = 1, camera: str = "", focal_35mm: int = 0) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    if camera:
        tags[0x0110] = camera
    if focal_35mm:
        tags.get_ifd(0x8769)[0xA405] = focal_35mm
    return tags


def test_photos_are_found_below_the_folder_in_natural_order(tmp_path: Path):
    for name in ("IMG_10.jpg", "IMG_9.JPG", "left/IMG_1.png", "left/deep/IMG_2.png"):
        save(tmp_path / name, noise(40, 30))
    for name in (".hidden.jpg", "__MACOSX/IMG_1.jpg", ".thumbs/IMG_1.jpg", "depth/IMG_1.png", "IMG_9.depth.png"):
        save(tmp_path / name, noise(40, 30))
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "IMG_11.CR2").write_bytes(b"raw")
    with open_capture(tmp_path) as capture:
        assert [view.name for view in capture.views] == [
            "IMG_9.JPG",
            "IMG_10.jpg",
            "left/deep/IMG_2.png",
            "left/IMG_1.png",
        ]
        assert capture.kind == "photos" and not capture.ordered and capture.up is None
        words = " ".join(capture.decisions)
        assert "IMG_11.CR2" in words and "depth maps" in words


def test_bad_photos_are_named_and_the_rest_goes_on(tmp_path: Path):
    for i in range(3):
        save(tmp_path / f"{i}.jpg", noise(40, 30, seed=i))
    (tmp_path / "3.jpg").write_bytes((tmp_path / "0.jpg").read_bytes()[:300])
    (tmp_path / "4.jpg").write_bytes(b"")
    with open_capture(tmp_path) as capture:
        assert len(capture.views) == 3
        assert any("Left out 2" in decision and "3.jpg" in decision for decision in capture.decisions)


@pytest.mark.parametrize("content", [{}, {"a.txt": b"x"}, {"a.jpg": b"not a picture"}])
def test_a_folder_without_photos_says_what_was_expected(content: dict[str, bytes], tmp_path: Path):
    for name, text in content.items():
        (tmp_path / name).write_bytes(text)
    with pytest.raises(InputError, match=r"should hold photos.*name the folder"):
        open_capture(tmp_path)


def test_one_group_for_each_camera_size_and_orientation(tmp_path: Path):
    for i, (size, tags) in enumerate(
        [
            ((40, 30), exif(camera="A")),
            ((40, 30), exif(camera="A")),
            ((40, 30), exif(camera="B")),  # another phone
            ((40, 30), exif(6, camera="A")),  # held upright: sizes and principal point turn
            ((40, 30), exif(3, camera="A")),  # upside down: the principal point turns
            ((44, 33), exif(camera="A")),
        ]
    ):
        save(tmp_path / f"{i}.jpg", noise(*size), exif=tags)
    with open_capture(tmp_path) as capture:
        groups = [view.camera_group for view in capture.views]
        assert groups[0] == groups[1] and len(set(groups)) == 5
        assert (capture.views[3].width, capture.views[3].height) == (30, 40)


def test_focal_length_follows_downscale_and_orientation(tmp_path: Path):
    save(tmp_path / "a.jpg", noise(120, 80), exif=exif(focal_35mm=36))
    save(tmp_path / "b.jpg", noise(120, 80), exif=exif(6, focal_35mm=36))
    with open_capture(tmp_path, downscale=2) as capture:
        # 36 mm on a 36 x 24 mm frame: the focal length is the longer side.
        assert [view.focal_px for view in capture.views] == pytest.approx([60, 60])
        assert (capture.views[1].width, capture.views[1].height) == (40, 60)
        assert capture.photo(1).rgb.shape == (60, 40, 3) and capture.raw_photo(1).shape == (60, 40, 3)
        assert capture.raw_size(1) == (40, 60)


@pytest.mark.parametrize("name", ["masks/a.png", "masks/a.jpg.png", "masks/sub/a.png", "mask/a.PNG", "masks/A.jpg"])
def test_masks_match_with_and_without_double_suffix(name: str, tmp_path: Path):
    mask = np.zeros((30, 40), np.uint8)
    mask[:, 20:] = 255
    photo = "sub/a.jpg" if "sub" in name else "a.jpg"
    save(tmp_path / photo, noise(40, 30))
    save(tmp_path / name, mask)
    with open_capture(tmp_path) as capture:
        assert [view.name for view in capture.views] == [photo] and capture.views[0].has_alpha
        alpha = capture.photo(0).alpha
        assert alpha is not None and alpha[:, :19].max() < 20 and alpha[:, 21:].min() > 235


def test_masks_beside_an_images_folder_are_found(tmp_path: Path):
    save(tmp_path / "images/a.jpg", noise(40, 30))
    save(tmp_path / "masks/a.png", np.full((30, 40), 200, np.uint8))
    for source in (tmp_path, tmp_path / "images"):
        with open_capture(source) as capture:
            assert len(capture.views) == 1 and capture.views[0].has_alpha


def test_alpha_that_hides_nothing_is_ignored(tmp_path: Path):
    opaque = np.dstack([noise(40, 30), np.full((30, 40), 255, np.uint8)])
    for i in range(3):
        save(tmp_path / f"{i}.png", opaque)
    with open_capture(tmp_path) as capture:
        assert not capture.views[0].has_alpha and capture.photo(0).alpha is None
        assert "hides nothing" in " ".join(capture.decisions)
    opaque[0, 0, 3] = 0
    save(tmp_path / "0.png", opaque)
    with open_capture(tmp_path) as capture:
        assert capture.views[0].has_alpha and capture.photo(0).alpha is not None


def test_links_out_of_the_folder_are_not_followed(tmp_path: Path):
    save(tmp_path / "outside/secret.jpg", noise(40, 30))
    save(tmp_path / "in/a.jpg", noise(40, 30))
    (tmp_path / "in/b.jpg").symlink_to(tmp_path / "outside/secret.jpg")
    (tmp_path / "in/c").symlink_to(tmp_path / "outside")
    (tmp_path / "in/loop").symlink_to(tmp_path / "in")
    with open_capture(tmp_path / "in") as capture:
        assert [view.name for view in capture.views] == ["a.jpg"]


def test_heic_photos_open(tmp_path: Path):
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.from_pillow(Image.fromarray(noise(64, 32))).save(tmp_path / "a.HEIC", exif=exif(6).tobytes())
    facts = inspect_image(tmp_path / "a.HEIC")
    with open_capture(tmp_path) as capture:
        assert (capture.views[0].width, capture.views[0].height) == (32, 64) == facts.oriented_size
        assert capture.photo(0).rgb.shape == (64, 32, 3)


def test_heic_named_jpg_opens(tmp_path: Path):
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.from_pillow(Image.fromarray(noise(64, 32))).save(tmp_path / "a.heic")
    (tmp_path / "a.heic").rename(tmp_path / "a.jpg")
    with open_capture(tmp_path) as capture:
        assert capture.photo(0).rgb.shape == (32, 64, 3)


def test_heic_beside_its_jpeg_is_left_out(tmp_path: Path):
    pillow_heif = pytest.importorskip("pillow_heif")
    for name in ("a", "b"):
        pillow_heif.from_pillow(Image.fromarray(noise(64, 32))).save(tmp_path / f"{name}.HEIC")
    save(tmp_path / "a.JPG", noise(64, 32))
    with open_capture(tmp_path) as capture:
        assert [view.name for view in capture.views] == ["a.JPG", "b.HEIC"]
        assert "there as JPEG" in " ".join(capture.decisions)


def test_raw_files_alone_are_told_what_to_do(tmp_path: Path):
    (tmp_path / "a.NEF").write_bytes(b"raw")
    with pytest.raises(InputError, match=r"a\.NEF.*export them as JPEG"):
        open_capture(tmp_path)


def test_smaller_copies_of_the_images_are_left_out(tmp_path: Path):
    for name, size in (("images/a.jpg", (64, 48)), ("images_2/a.jpg", (32, 24)), ("images_8/a.jpg", (8, 6))):
        save(tmp_path / name, noise(*size))
    with open_capture(tmp_path) as capture:
        assert [view.name for view in capture.views] == ["images/a.jpg"]


def test_real_photo_sets_open(real_data: Path):
    with open_capture(real_data / "photos" / "sceaux", downscale=4) as sceaux:
        assert len(sceaux.views) == 11 and len({view.camera_group for view in sceaux.views}) == 1
        assert sceaux.views[0].focal_px == pytest.approx(2905.88 / 4, rel=0.02)  # measured, in its K.txt
    with open_capture(real_data / "photos" / "lund") as lund:
        assert len(lund.views) == 29 and all(view.gps for view in lund.views)
