"""Pictures of materials: encoded for a file, written beside a mesh, and found beside one that a stranger wrote."""

from __future__ import annotations

import io
import logging
import re
from pathlib import Path, PureWindowsPath

import numpy as np
from numpy.typing import NDArray

from scene.errors import InputError
from scene.files import replacing, write_errors
from scene.untrusted import MAX_TEXTURE_PIXELS, decode_picture, inside, read_bytes

log = logging.getLogger(__name__)

PNG_PIXELS = 512 * 512  # up to here a base colour is kept to the bit, above JPEG is eight times smaller
JPEG_QUALITY = 92
MAX_PICTURE_BYTES = 512 << 20


def encode_base_color(picture: NDArray[np.uint8]) -> tuple[bytes, str]:
    """Bytes and media type: PNG when small, else JPEG without colour subsampling, whose bleeding shows at seams."""
    from PIL import Image

    if picture.shape[0] * picture.shape[1] <= PNG_PIXELS:
        return encode_png(picture), "image/png"
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return out.getvalue(), "image/jpeg"


def encode_png(picture: NDArray[np.uint8]) -> bytes:
    """[H, W] or [H, W, 3] as PNG, to the bit."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(picture).save(out, "PNG", compress_level=4)  # half the time of the default for 3 % more bytes
    return out.getvalue()


def rgb(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[H, W, 3] of a decoded picture [H, W, C]; grey is repeated, transparency is dropped."""
    return np.ascontiguousarray(picture[..., :3] if picture.shape[2] >= 3 else np.repeat(picture[..., :1], 3, axis=2))


def picture_path(mesh: Path, part: str, suffix: str = ".png") -> Path:
    """Where a picture of a mesh file lies: beside it, under a name that every reader's idea of a word survives."""
    stem = re.sub(r"[^A-Za-z0-9._-]", "_", mesh.stem).lstrip("-.")
    return mesh.with_name(f"{stem or 'mesh'}_{part}{suffix}")


def write_picture(path: Path, data: bytes) -> None:
    """Write encoded bytes, atomically."""
    with write_errors(path, "write the texture"), replacing(path) as file:
        file.write(data)


class PicturesBeside:
    """The pictures in a mesh file's folder, by the names that the file gives them; each is decoded once.

    Files from other machines name them by their old places: only the last part of such a name is looked for, in the
    folder. What is missing, damaged or too large is left out with a warning, for the mesh is worth having without.
    """

    def __init__(self, mesh: Path) -> None:
        self._mesh = mesh
        self._known: dict[Path, NDArray[np.uint8] | None] = {}
        self._pixels = MAX_TEXTURE_PIXELS

    def get(self, name: str) -> NDArray[np.uint8] | None:
        """[H, W, 3] or None."""
        path = self._find(name)
        if path is None:
            log.warning("%s: the picture %r is not beside it, so it has no texture", self._mesh.name, name[:200])
            return None
        if path not in self._known:
            try:
                data = read_bytes(path, MAX_PICTURE_BYTES)
                picture = rgb(decode_picture(data, str(path), most_pixels=self._pixels))
                self._pixels -= picture.shape[0] * picture.shape[1]
                self._known[path] = picture
            except InputError as error:
                log.warning("%s: left without a texture: %s", self._mesh.name, error)
                self._known[path] = None
        return self._known[path]

    def _find(self, name: str) -> Path | None:
        for candidate in (name, PureWindowsPath(name).name):  # parts at both kinds of slashes
            try:
                path = inside(self._mesh.parent, candidate)
                if candidate and path.is_file():
                    return path
            except (InputError, OSError, ValueError):
                continue
        return None
