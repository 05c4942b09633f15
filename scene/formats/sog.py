"""SOG of PlayCanvas: a zip (or a folder) of meta.json and lossless WebP pictures with one pixel for each splat.

means_l, means_u: low and high bytes of 16 bits in sign(x) ln(1 + |x|), in the range that meta.json gives.  quats: the
three smallest components (wxyz) in RGB, A = 252 + number of the largest.  scales, sh0: numbers in codebooks of 256
values (logs of scales; degree-0 coefficients, A = opacity).  shN: a palette of higher coefficients and a label of
16 bits for each splat. Version 2 is written, 1 and 2 are read. Viewers stand such scenes with -Y up.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from scene import untrusted
from scene.errors import InputError
from scene.files import replacing, write_errors
from scene.formats import codebook, quantised
from scene.gaussians import Gaussians

META = "meta.json"
MOST_FILES = 64
LARGEST_AT = 252  # alpha of the quaternion picture where w is the component left out
PALETTE_ROW = 64  # entries in a row of the palette picture
MOST_PALETTE = 1 << 16
COEFFICIENTS = (0, 3, 8, 15)
WEBP_EFFORT = 4
FREE_PIXELS = 1 << 20
PIXELS_PER_BYTE = 64  # of a picture; lossless pictures of real scenes take a byte and more for a pixel


def write_sog(path: Path, gaussians: Gaussians) -> None:
    """Write version 2 in Morton order. Raises InputError when there are no splats."""
    if not len(gaussians):
        raise InputError(f"there are no splats, so {path.name} was not written")
    g = gaussians.select(torch.from_numpy(quantised.morton_order(gaussians.means.numpy())))
    pictures: dict[str, NDArray[np.uint8]] = {}
    meta: dict[str, Any] = {"version": 2, "asset": {"generator": "Maquette"}, "count": len(g)}

    def codes(name: str, values: NDArray, *alpha: NDArray) -> list[float]:
        table = codebook.levels(values)
        pictures[name] = _picture(np.column_stack([codebook.nearest_level(values, table), *alpha]))
        return table.tolist()

    means = _log_means(g.means.double().numpy())
    low, high = means.min(axis=0), means.max(axis=0)
    steps = np.round((means - low) / np.where(high > low, high - low, 1) * 65535).astype(np.uint16)
    pictures["means_l.webp"], pictures["means_u.webp"] = _picture(steps & 255), _picture(steps >> 8)
    meta["means"] = {"mins": low.tolist(), "maxs": high.tolist(), "files": ["means_l.webp", "means_u.webp"]}
    meta["scales"] = {"codebook": codes("scales.webp", g.log_scales.numpy()), "files": ["scales.webp"]}
    largest, three = quantised.smallest_three(quantised.unit_quats(g))
    quats = quantised.to_bytes(255 * (three / math.sqrt(2) + 0.5))
    pictures["quats.webp"] = _picture(np.column_stack([quats, LARGEST_AT + largest]))
    meta["quats"] = {"files": ["quats.webp"]}
    alpha = quantised.to_bytes(255 * quantised.opacities(g))
    meta["sh0"] = {"codebook": codes("sh0.webp", g.sh_dc.numpy(), alpha), "files": ["sh0.webp"]}
    if g.sh_degree:
        entries, labels = codebook.palette(g.sh_rest.reshape(len(g), -1), palette_size(len(g)))
        values = _palette_rows(entries.reshape(len(entries), -1, 3).numpy())
        table = codebook.levels(entries.numpy())
        pictures["shN_centroids.webp"] = codebook.nearest_level(values, table)
        pictures["shN_labels.webp"] = _picture(np.stack([labels & 255, labels >> 8, 0 * labels], axis=1))
        files = ["shN_centroids.webp", "shN_labels.webp"]
        meta["shN"] = {"count": len(entries), "bands": g.sh_degree, "codebook": table.tolist(), "files": files}
    with write_errors(path, "write the splats"), replacing(path) as file, zipfile.ZipFile(file, "w") as archive:
        archive.writestr(META, json.dumps(meta, separators=(",", ":"), allow_nan=False))
        for name, picture in pictures.items():
            archive.writestr(name, _webp(picture))


def palette_size(count: int) -> int:
    """Entries for `count` splats: one for four of them, at least 1024 and at most what 16 bits can name."""
    return min(MOST_PALETTE, max(1024, count // 4))


def _log_means(means: NDArray[np.float64]) -> NDArray[np.float64]:
    """Even steps of these are fine near the middle of the scene and coarse far away."""
    return np.sign(means) * np.log1p(np.abs(means))


def _picture(rows: NDArray) -> NDArray[np.uint8]:
    """[H, W, C] of one row [N, C] for each splat; sides are multiples of 4, the last splat fills what is left."""
    width = 4 * math.ceil(math.sqrt(len(rows)) / 4)
    height = 4 * math.ceil(len(rows) / width / 4)
    padded = np.pad(rows.astype(np.uint8), ((0, width * height - len(rows)), (0, 0)), mode="edge")
    return padded.reshape(height, width, rows.shape[1])


def _palette_rows(entries: NDArray) -> NDArray:
    """[H, 64 K, 3] palette picture of entries [P, K, 3]."""
    height = math.ceil(len(entries) / PALETTE_ROW)
    padded = np.pad(entries, ((0, height * PALETTE_ROW - len(entries)), (0, 0), (0, 0)), mode="edge")
    return padded.reshape(height, PALETTE_ROW * entries.shape[1], 3)


def _webp(picture: NDArray[np.uint8]) -> bytes:
    """Lossless WebP. `exact` keeps the colours of pixels whose alpha is 0, which are data here."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture).save(file, "WEBP", lossless=True, exact=True, method=WEBP_EFFORT, quality=50)
    return file.getvalue()


def read_sog(path: Path) -> Gaussians:
    """Read a .sog, or the meta.json of a folder whose pictures lie beside it.

    Raises InputError when a part is missing, of another version, too small for the splats announced, or damaged.
    """
    with _parts(path) as (size, fetch):
        meta = untrusted.parse_json(fetch(META), f"{path}: {META}")
        try:
            return _Reader(path, meta, size, fetch).gaussians()
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise InputError(f"{path}: its {META} is not sound ({type(error).__name__}: {error})") from error


@contextlib.contextmanager
def _parts(path: Path) -> Iterator[tuple[int, Callable[[str], bytes]]]:
    """Bytes of the whole, and the function that gives the bytes of a part by its name."""
    if path.suffix.lower() == ".json":
        names = {META: path}

        def fetch(name: str) -> bytes:
            return untrusted.read_bytes(names.get(name) or untrusted.inside(path.parent, name))

        yield untrusted.MAX_FILE_BYTES // quantised.SPLATS_PER_BYTE, fetch
        return
    with untrusted.open_archive(path, MOST_FILES) as archive:
        size = path.stat().st_size
        # Pictures are packed already: what unpacks to far more than the file is a bomb.
        yield size, lambda name: untrusted.read_entry(archive, name, (1 << 20) + 4 * size, str(path))


class _Reader:
    def __init__(self, path: Path, meta: Any, size: int, fetch: Callable[[str], bytes]) -> None:
        self.path, self.meta, self.fetch = path, meta, fetch
        version = meta.get("version", 1)
        if version not in (1, 2):
            raise InputError(f"{path} is SOG version {version!r}; versions 1 and 2 are read")
        self.version = version
        count = meta["count"] if version == 2 else meta["means"]["shape"][0]
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise InputError(f"{path} announces {count!r} splats; expected a number above 0")
        quantised.check_count(count, size, str(path))
        self.count = count

    def gaussians(self) -> Gaussians:
        alpha = self._rows("sh0", 4)[:, 3]
        opacity_logits = quantised.logits_from_bytes(alpha)
        if self.version == 1:
            low, high = (_numbers(self.meta["sh0"][key], 4)[3] for key in ("mins", "maxs"))
            opacity_logits = low + alpha / 255.0 * (high - low)
        return quantised.gaussians_from(
            str(self.path),
            means=self._means(),
            quats=self._quats(),
            log_scales=self._looked_up("scales"),
            opacity_logits=opacity_logits,
            sh_dc=self._looked_up("sh0"),
            sh_rest=self._sh_rest() if self.meta.get("shN") else None,
        )

    def _image(self, part: str, number: int = 0) -> NDArray[np.uint8]:
        """[H, W, 4]; without an alpha channel it is 255."""
        name = self.meta[part]["files"][number]
        if not isinstance(name, str):
            raise ValueError(f"{name!r} is no name of a file")
        data = self.fetch(name)
        most = max(FREE_PIXELS, PIXELS_PER_BYTE * len(data))
        pixels = untrusted.decode_picture(data, f"{self.path}: {name}", formats=("WEBP", "PNG"), most_pixels=most)
        if pixels.shape[2] == 1:
            pixels = np.repeat(pixels, 3, axis=2)
        return pixels if pixels.shape[2] == 4 else np.pad(pixels, ((0, 0), (0, 0), (0, 1)), constant_values=255)

    def _rows(self, part: str, channels: int, number: int = 0) -> NDArray[np.uint8]:
        """[N, channels] bytes of the splats."""
        pixels = self._image(part, number).reshape(-1, 4)
        if len(pixels) < self.count:
            raise InputError(f"{self.path}: the picture of {part} has {len(pixels):,} pixels for {self.count:,} splats")
        return pixels[: self.count, :channels]

    def _means(self) -> NDArray[np.float64]:
        low, high = (_numbers(self.meta["means"][key], 3) for key in ("mins", "maxs"))
        steps = self._rows("means", 3).astype(np.float64) + 256.0 * self._rows("means", 3, 1)
        logs = low + steps / 65535 * (high - low)
        if np.abs(logs).max() > 60:
            raise InputError(f"{self.path}: its positions reach beyond e^60; its {META} is damaged")
        return np.sign(logs) * np.expm1(np.abs(logs))

    def _quats(self) -> NDArray[np.float32]:
        rows = self._rows("quats", 4)
        if rows[:, 3].min() < LARGEST_AT:
            raise InputError(
                f"{self.path}: its quaternion picture has alpha below {LARGEST_AT}; it was not kept exactly"
            )
        return quantised.from_smallest_three(rows[:, 3] - LARGEST_AT, (rows[:, :3] / 255.0 - 0.5) * math.sqrt(2))

    def _levels(self, part: str) -> NDArray[np.float64]:
        """[256, 3] value of each byte of each channel."""
        entry = self.meta[part]
        if self.version == 2:
            table = _numbers(entry["codebook"], codebook.LEVELS)
            return np.repeat(table[:, None], 3, axis=1)
        low, high = (np.broadcast_to(np.asarray(entry[key], np.float64).reshape(-1)[:3], 3) for key in ("mins", "maxs"))
        return low + np.arange(256)[:, None] / 255 * (high - low)

    def _looked_up(self, part: str) -> NDArray[np.float64]:
        return self._levels(part)[self._rows(part, 3), np.arange(3)]

    def _sh_rest(self) -> NDArray[np.float32]:
        picture = self._image("shN")[:, :, :3]
        bands, rest = divmod(picture.shape[1], PALETTE_ROW)
        if rest or bands not in COEFFICIENTS[1:]:
            raise InputError(f"{self.path}: its SH palette is {picture.shape[1]} pixels wide; expected 64 x 3, 8 or 15")
        entries = picture.reshape(-1, bands, 3)
        labels = self._rows("shN", 2, 1).astype(np.int64) @ [1, 256]
        if labels.max() >= len(entries):
            raise InputError(f"{self.path}: a splat names SH entry {labels.max():,} of {len(entries):,}; it is damaged")
        return self._levels("shN").astype(np.float32)[entries[labels], np.arange(3)]


def _numbers(values: Any, count: int) -> NDArray[np.float64]:
    """[count] finite numbers of a JSON list."""
    numbers = np.asarray(values, np.float64)
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        raise ValueError(f"expected {count} finite numbers, got {str(values)[:60]}")
    return numbers
