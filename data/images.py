"""Picture files into arrays: what is in one (header only), and decoding with orientation, masks and resizing.

Alpha is straight throughout (colour not multiplied by it); averages are taken over premultiplied colour, so that what
is transparent does not bleed into what is not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data.exif import Exif, read_exif
from scene.errors import InputError
from scene.untrusted import MAX_PIXELS, MAX_SIDE, open_picture, open_regular, size_of

Pixels = NDArray[np.uint8]

_FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "PPM", "HEIF", "AVIF")  # what a file holds decides, not its suffix

_TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class ImageFacts:
    """What a picture's header says. Sizes are as stored, before the orientation is applied."""

    width: int
    height: int
    has_alpha: bool
    exif: Exif

    @property
    def oriented_size(self) -> tuple[int, int]:
        """Width and height after the EXIF orientation."""
        return (self.height, self.width) if self.exif.orientation >= 5 else (self.width, self.height)


@dataclass(frozen=True, eq=False)
class MemoryPicture:
    """A picture that never was a file, such as a rendered one."""

    rgb: Pixels  # [H, W, 3]
    alpha: Pixels | None = None  # [H, W], straight


def inspect_image(path: Path) -> ImageFacts:
    """Size, alpha and EXIF without decoding the picture. Raises InputError with the reason it cannot be used."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        shown = str(path).encode(errors="backslashreplace").decode()
        raise InputError(f"{shown} has a name that is not UTF-8, which no report could show; rename it") from error
    with _open(path) as image:
        exif = read_exif(_exif_tags(image), *image.size)
        alpha = image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info
        facts = ImageFacts(image.width, image.height, alpha, exif)
    if _looks_cut_off(path):
        decode_image(path)
    return facts


def decode_image(
    path: Path | MemoryPicture, orientation: int = 1, at_least: tuple[int, int] | None = None
) -> tuple[Pixels, Pixels | None]:
    """Colours [H, W, 3] and straight alpha [H, W] (None where the file has none), turned by the EXIF `orientation`.

    at_least: a width and height (after turning) that will do. A JPEG is then decoded at 1/2, 1/4 or 1/8 of its size
    (much faster) as long as that is at least this large and its pixel grid stays exact.
    Raises InputError naming the file and the reason.
    """
    if isinstance(path, MemoryPicture):
        return path.rgb, path.alpha
    with _open(path) as image:
        if at_least is not None and image.format in ("JPEG", "MPO"):
            _draft(image, *(reversed(at_least) if orientation >= 5 else at_least))
        picture = _eight_bits(image)
        if orientation in _TURN:
            picture = picture.transpose(_TURN[orientation])
        pixels = np.asarray(picture)
    if pixels.shape[-1] == 4:
        return np.ascontiguousarray(pixels[..., :3]), np.ascontiguousarray(pixels[..., 3])
    return pixels, None


def decode_mask(path: Path, width: int, height: int, orientation: int) -> Pixels:
    """A mask file as alpha [height, width]: white is kept, black is ignored. Its size may differ from the photo's.

    A mask drawn on the photo as stored (sideways) is turned like the photo: its shape tells.
    """
    facts = inspect_image(path)
    sideways = (facts.oriented_size[0] > facts.oriented_size[1]) != (width > height)
    turn = orientation if sideways and orientation >= 5 else facts.exif.orientation
    rgb, alpha = decode_image(path, turn)
    mask = rgb[..., 0] if alpha is None or rgb.any() else alpha
    if mask.max() == 1:
        mask = mask * np.uint8(255)  # written as 0 and 1
    return resize_area(mask, width, height)


def resize_area(pixels: NDArray, width: int, height: int) -> NDArray:
    """[H, W] or [H, W, C] averaged over the area of each new pixel."""
    if pixels.shape[1] == width and pixels.shape[0] == height:
        return pixels
    try:
        import cv2
    except ImportError:  # training on a bare machine goes on, some ten times slower at this
        return resize_area_reference(pixels, width, height)
    smaller = width <= pixels.shape[1] and height <= pixels.shape[0]
    return np.asarray(
        cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)
    )


def resize_area_reference(pixels: NDArray, width: int, height: int) -> NDArray:
    """The same in plain numpy, rows and columns apart; the oracle and the fallback."""
    smaller = width <= pixels.shape[1] and height <= pixels.shape[0]
    shares = _area_shares if smaller else _linear_shares
    rows, columns = shares(pixels.shape[0], height), shares(pixels.shape[1], width)
    resized = np.tensordot(rows, pixels.astype(np.float32), axes=(1, 0))  # [height, W, ...]
    resized = np.moveaxis(np.tensordot(columns, resized, axes=(1, 1)), 0, 1)
    if pixels.dtype == np.uint8:
        resized = np.clip(np.rint(resized), 0, 255)
    return np.ascontiguousarray(resized.astype(pixels.dtype))


def _area_shares(before: int, after: int) -> NDArray[np.float32]:
    """[after, before] share of each old pixel in a new one: how much of the new one's length it covers."""
    edges = np.arange(after + 1) * (before / after)
    old = np.arange(before)
    overlap = np.minimum(edges[1:, None], old + 1) - np.maximum(edges[:-1, None], old)
    return (np.maximum(overlap, 0) * (after / before)).astype(np.float32)


def _linear_shares(before: int, after: int) -> NDArray[np.float32]:
    """[after, before] share of each old pixel when interpolated linearly between pixel centres."""
    centres = np.clip((np.arange(after) + 0.5) * (before / after) - 0.5, 0, before - 1)
    return np.maximum(1 - np.abs(centres[:, None] - np.arange(before)), 0).astype(np.float32)


def premultiplied(rgb: Pixels, alpha: Pixels) -> NDArray[np.float32]:
    """[H, W, 4] float32 in 0..255: colour times alpha, and alpha."""
    out = np.empty((*alpha.shape, 4), dtype=np.float32)
    np.multiply(rgb, alpha[..., None].astype(np.float32) / 255, out=out[..., :3])
    out[..., 3] = alpha
    return out


def straight(rgba: NDArray[np.float32]) -> tuple[Pixels, Pixels]:
    """Undo `premultiplied`: colours [H, W, 3] (0 where nothing is seen) and alpha [H, W], rounded."""
    alpha = rgba[..., 3:]
    colours = rgba[..., :3] * (255 / np.maximum(alpha, 1e-3))
    colours[alpha[..., 0] < 0.5] = 0  # rounds to alpha 0
    return (
        np.clip(np.rint(colours), 0, 255).astype(np.uint8),
        np.clip(np.rint(alpha[..., 0]), 0, 255).astype(np.uint8),
    )


@contextmanager
def _open(path: Path) -> Iterator[Image.Image]:
    """A photo whose header was read; Pillow gets an open file and never a name."""
    with open_regular(path) as file:
        heif = file.read(12)[4:8] == b"ftyp"  # by content: phones hand out HEIC files named .jpg
        file.seek(0)
        formats = _readable_formats(heif)
        with open_picture(file, path, formats=formats, most_pixels=MAX_PIXELS, most_side=MAX_SIDE) as image:
            yield image


@lru_cache(maxsize=2)
def _readable_formats(heif: bool) -> tuple[str, ...]:
    Image.init()
    if heif:
        import pillow_heif

        pillow_heif.register_heif_opener()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _exif_tags(image: Image.Image) -> Image.Exif:
    if image.format != "PNG":
        return image.getexif()
    tags = Image.Exif()  # asked for a PNG's EXIF, Pillow decodes the whole picture to look for it behind the pixels
    block = image.info.get("exif")
    if isinstance(block, bytes):
        with suppress(Exception):  # whatever its TIFF parser meets in damaged tags
            tags.load(block)
    return tags


def _draft(image: Image.Image, width: int, height: int) -> None:
    for divisor in (8, 4, 2):
        # Only where the size divides: otherwise the reduced picture's last pixel reaches over the edge of the photo.
        if (
            math.gcd(image.width, image.height) % divisor == 0
            and image.width // divisor >= width
            and image.height // divisor >= height
        ):
            image.draft(None, (image.width // divisor, image.height // divisor))  # type: ignore[arg-type]
            return


def _eight_bits(image: Image.Image) -> Image.Image:
    """Any picture as 8-bit RGB or RGBA."""
    if image.mode in ("RGB", "RGBA"):
        image.load()
        return image
    if image.mode.startswith("I"):  # one channel of 16 bits (some decoders give 32)
        values = np.clip(np.asarray(image), 0, 65535).astype(np.uint32)
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")  # rounded
    if image.mode == "F":
        raise InputError("floating-point pictures are not photos; save it as 8 or 16 bits")
    alpha = image.mode in ("LA", "PA", "La", "RGBa") or "transparency" in image.info
    return image.convert("RGBA" if alpha else "RGB")


def _looks_cut_off(path: Path) -> bool:
    """Whether a JPEG or PNG lacks its end mark where it is expected; only then is a trial decode worth its time.

    Phones append films and depth maps to JPEGs, so a missing mark near the end proves nothing by itself.
    """
    suffix = path.suffix.lower()
    mark = {".jpg": b"\xff\xd9", ".jpeg": b"\xff\xd9", ".png": b"IEND"}.get(suffix)
    if mark is None:
        return False
    with open_regular(path) as file:
        file.seek(max(0, size_of(file) - 65536))
        return mark not in file.read()
