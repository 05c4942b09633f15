"""Decoding: every orientation, every colour form, nothing too large, nothing damaged in silence."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.images import (
    MAX_PIXELS,
    decode_image,
    decode_mask,
    inspect_image,
    premultiplied,
    resize_area,
    resize_area_reference,
    straight,
)
from scene.errors import InputError
from tests.data.pictures import blobs, centroid, noise, save

# What each EXIF code asks for, from the standard's words, by numpy alone: rows and columns as stored -> as seen.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a[::-1].transpose(1, 0, 2),  # row 0 as seen is the left column as stored, bottom up
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: a[:, ::-1].transpose(1, 0, 2),
}


def with_orientation(code: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = code
    return exif


@pytest.mark.parametrize("code", UPRIGHT)
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_orientation_is_applied_once(code: int, suffix: str, tmp_path: Path):
    stored = noise(40, 24)
    path = save(
        tmp_path / f"a{suffix}", stored, exif=with_orientation(code), **({"quality": 98} if suffix == ".jpg" else {})
    )
    facts = inspect_image(path)
    wanted = UPRIGHT[code](stored)
    got, alpha = decode_image(path, facts.exif.orientation)
    assert facts.exif.orientation == code and alpha is None
    assert facts.oriented_size == (wanted.shape[1], wanted.shape[0])
    assert got.shape == wanted.shape and got.flags["C_CONTIGUOUS"]
    assert np.abs(got.astype(int) - wanted).mean() < (4 if suffix == ".jpg" else 0.1)


def test_heic_is_turned_once(tmp_path: Path):
    pillow_heif = pytest.importorskip("pillow_heif")
    stored = noise(64, 32)
    heif = pillow_heif.from_pillow(Image.fromarray(stored))
    path = tmp_path / "a.heic"
    heif.save(path, quality=95, exif=with_orientation(6).tobytes())
    facts = inspect_image(path)
    got, _ = decode_image(path, facts.exif.orientation)
    assert facts.oriented_size == (32, 64) and got.shape == (64, 32, 3)
    assert np.abs(got.astype(int) - UPRIGHT[6](stored)).mean() < 6


def test_grey_cmyk_palette_and_sixteen_bits_become_eight_bit_rgb(tmp_path: Path):
    grey = noise(32, 16, channels=1)
    rgb = noise(32, 16)
    deep = grey[..., 0].astype(np.uint16) * 257
    Image.fromarray(grey[..., 0]).save(tmp_path / "grey.png")
    Image.fromarray(deep).save(tmp_path / "deep.png")
    Image.fromarray(rgb).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=98)
    Image.fromarray(rgb).quantize(256).save(tmp_path / "palette.png")
    Image.fromarray(rgb).save(tmp_path / "plain.tif")
    for name, wanted, tolerance in (
        ("grey.png", np.repeat(grey, 3, axis=2), 0),
        ("deep.png", np.repeat(grey, 3, axis=2), 0),
        ("cmyk.jpg", rgb, 8),  # the conversion to ink and back is not exact
        ("palette.png", rgb, 20),
        ("plain.tif", rgb, 0),
    ):
        got, alpha = decode_image(tmp_path / name)
        assert got.dtype == np.uint8 and alpha is None, name
        assert np.abs(got.astype(int) - wanted).mean() <= tolerance, name


def test_sixteen_bit_colour_keeps_its_high_byte(tmp_path: Path):
    import cv2

    rgb = noise(20, 10)
    cv2.imwrite(str(tmp_path / "deep.png"), rgb[..., ::-1].astype(np.uint16) * 257)
    np.testing.assert_array_equal(decode_image(tmp_path / "deep.png")[0], rgb)


def test_alpha_is_straight_whatever_carries_it(tmp_path: Path):
    rgba = noise(16, 12, channels=4)
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    Image.fromarray(rgba[..., [0, 3]], mode="LA").save(tmp_path / "la.png")
    rgb, alpha = decode_image(tmp_path / "rgba.png")
    np.testing.assert_array_equal(rgb, rgba[..., :3])
    np.testing.assert_array_equal(alpha, rgba[..., 3])
    grey, alpha = decode_image(tmp_path / "la.png")
    np.testing.assert_array_equal(grey[..., 1], rgba[..., 0])
    np.testing.assert_array_equal(alpha, rgba[..., 3])
    assert inspect_image(tmp_path / "rgba.png").has_alpha and inspect_image(tmp_path / "la.png").has_alpha


def test_transparent_colour_does_not_bleed_when_made_smaller():
    rgb = np.zeros((8, 8, 3), dtype=np.uint8)
    rgb[:, :3] = (0, 255, 0)  # green where nothing is to be seen
    rgb[:, 3:] = (200, 0, 0)
    alpha = np.zeros((8, 8), dtype=np.uint8)
    alpha[:, 3:] = 255
    small, coverage = straight(resize_area(premultiplied(rgb, alpha), 4, 4))
    np.testing.assert_array_equal(small[:, 1:], np.broadcast_to((200, 0, 0), (4, 3, 3)))
    np.testing.assert_array_equal(coverage[0], [0, 128, 255, 255])


@pytest.mark.parametrize("at_least", [(100, 60), (50, 30), (26, 16), (25, 15), (3, 2), (190, 2), (3, 119)])
def test_reduced_decoding_keeps_size_and_grid(at_least: tuple[int, int], tmp_path: Path):
    spot = (61.3, 70.8)
    path = save(tmp_path / "a.jpg", blobs(200, 120, np.array([spot]), sigma=12), quality=97)
    got, _ = decode_image(path, 1, at_least)
    assert got.shape[1] >= at_least[0] and got.shape[0] >= at_least[1]
    scale = got.shape[1] / 200
    assert got.shape[0] == 120 * scale
    assert scale == 1 / 8 or scale < 2 * max(at_least[0] / 200, at_least[1] / 120)  # no larger than needed
    found = centroid(got, (spot[0] * scale, spot[1] * scale), 40 * scale)
    np.testing.assert_allclose(found / scale, spot, atol=0.1)  # px of the whole picture


def test_sizes_that_do_not_divide_are_decoded_whole(tmp_path: Path):
    path = save(tmp_path / "a.jpg", noise(201, 121))
    assert decode_image(path, 1, (10, 10))[0].shape == (121, 201, 3)


def png_that_claims(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(50_000, 50_000), (14_000, 13_000), (40_000, 10), (2**31 - 1, 2**31 - 1)])
def test_picture_bombs_are_refused_before_decoding(size: tuple[int, int], tmp_path: Path):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_that_claims(*size))
    assert size[0] * size[1] > MAX_PIXELS or max(size) > 32_000
    with pytest.raises(InputError, match=r"bomb\.png.*make it smaller"):
        inspect_image(path)
    with pytest.raises(InputError, match=r"bomb\.png"):
        decode_image(path)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_cut_off_files_are_named_when_opened(suffix: str, share: float, tmp_path: Path):
    whole = save(tmp_path / f"whole{suffix}", noise(300, 200))
    cut = tmp_path / f"cut{suffix}"
    cut.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * share)])
    inspect_image(whole)
    with pytest.raises(InputError, match="cut"):
        inspect_image(cut)


def test_data_after_a_jpeg_is_no_damage(tmp_path: Path):
    path = save(tmp_path / "film.jpg", noise(64, 48))
    path.write_bytes(path.read_bytes() + b"\0" * 200_000)  # phones append a film
    assert inspect_image(path).width == 64


@pytest.mark.parametrize("content", [b"", b"hello", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a" + b"\0" * 100])
def test_what_is_no_picture_is_named(content: bytes, tmp_path: Path):
    path = tmp_path / "strange.jpg"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"strange\.jpg"):
        inspect_image(path)


@pytest.mark.filterwarnings("ignore")  # Pillow remarks on the damage
def test_flipped_bytes_raise_nothing_but_input_errors(tmp_path: Path):
    rng = np.random.default_rng(0)
    for suffix in (".jpg", ".png", ".webp", ".tif"):
        whole = save(tmp_path / f"whole{suffix}", noise(48, 32), exif=with_orientation(6)).read_bytes()
        path = tmp_path / f"flipped{suffix}"
        for _ in range(60):
            damaged = bytearray(whole)
            for at in rng.integers(0, len(whole), size=rng.integers(1, 12)):
                damaged[at] = rng.integers(0, 256)
            path.write_bytes(bytes(damaged[: rng.integers(1, len(whole) + 1)]))
            try:
                facts = inspect_image(path)
                decode_image(path, facts.exif.orientation)
            except InputError as error:
                assert path.name in str(error)


def test_mask_is_fitted_to_its_photo(tmp_path: Path):
    mask = np.zeros((20, 40), dtype=np.uint8)
    mask[:, 20:] = 1  # 0 and 1, at half the photo's size
    Image.fromarray(mask).save(tmp_path / "m.png")
    got = decode_mask(tmp_path / "m.png", 80, 40, 1)
    assert got.shape == (40, 80) and got[:, :38].max() == 0 and got[:, 42:].min() == 255


def test_mask_drawn_on_the_sideways_photo_turns_with_it(tmp_path: Path):
    mask = np.zeros((20, 40), dtype=np.uint8)
    mask[:5] = 255  # the top as stored; orientation 6 puts it to the right
    Image.fromarray(mask).save(tmp_path / "m.png")
    got = decode_mask(tmp_path / "m.png", 20, 40, 6)
    assert got.shape == (40, 20) and got[:, 15:].min() == 255 and got[:, :15].max() == 0


@pytest.mark.parametrize(("width", "height"), [(8, 6), (10, 7), (3, 5), (16, 12), (21, 12), (31, 23)])
@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_resizing_without_opencv_gives_what_opencv_gives(width: int, height: int, kind: type) -> None:
    pixels = (np.random.default_rng(0).random((12, 16, 3)) * 255).astype(kind)
    for picture in (pixels, pixels[..., 0]):
        got, wanted = resize_area_reference(picture, width, height), resize_area(picture, width, height)
        assert got.dtype == wanted.dtype and got.shape == wanted.shape
        # Bytes round at halves either way; OpenCV interpolates them with 11 bits.
        np.testing.assert_allclose(got.astype(float), wanted.astype(float), atol=1 if kind is np.uint8 else 1e-3)
