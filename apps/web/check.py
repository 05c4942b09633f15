"""The capture check, in a child of its own: what was uploaded, and how good it is for a reconstruction."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.cli import as_user_error
from data.archive import unpack
from data.captures import Capture, open_capture
from recon.capture_check import check_photos
from scene.errors import InputError
from scene.files import replacing

FOUND, SHEET = "check.json", "check.jpg"
FEWEST = 3  # photos without cameras
SHOWN, TILE = 12, 168  # photos on the sheet, and their height in pixels


def main(folder: Path, arguments: Sequence[str]) -> int:
    """Check arguments[0], a source of at most arguments[1] pixels; leaves check.json and check.jpg in `folder`."""
    unpacked = folder / "tmp" / "check"
    source = Path(arguments[0])
    try:
        refuse_runs(source, unpacked)
        with open_capture(source, workdir=unpacked) as capture:
            found = checked(capture, int(arguments[1]))
            with replacing(folder / SHEET) as file:
                file.write(contact_sheet(capture))
        with replacing(folder / FOUND) as file:
            file.write(json.dumps(found).encode())
    except Exception as error:
        known = as_user_error(error)
        sys.stderr.write(f"maquette: {known or f'these files could not be read ({type(error).__name__})'}\n")
        return known.exit_code if known else 1
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)
    return 0


def refuse_runs(source: Path, workdir: Path) -> None:
    """Raise InputError for an archive that holds a run: its config.json names a source anywhere on this machine."""
    if source.suffix.lower() == ".zip":
        root, _ = unpack(source, workdir)
        if any(root.rglob("config.json")):
            raise InputError("this archive holds a config.json, as runs do; send the photos themselves")


def checked(capture: Capture, most_pixels: int) -> dict[str, Any]:
    """What there is and what was found. Raises InputError when it is more than a job may hold."""
    if len(capture.views) < FEWEST and any(view.camera is None for view in capture.views):
        raise InputError(
            f"{len(capture.views)} photos came; it takes {FEWEST} at least, and 20 to 60 from all sides do well"
        )
    sizes = [(view.width, view.height) for view in capture.views]
    pixels = sum(width * height for width, height in sizes)
    if pixels > most_pixels:
        raise InputError(
            f"the {len(sizes)} photos have {pixels / 1e6:,.0f} million pixels together, and at most "
            f"{most_pixels / 1e6:,.0f} million are taken; send fewer or smaller ones"
        )
    return {
        "kind": capture.kind,
        "views": len(sizes),
        "width": max(width for width, _ in sizes),
        "height": max(height for _, height in sizes),
        "pixels": pixels,
        "cameras": all(view.camera is not None for view in capture.views),
        "decisions": list(capture.decisions),
        "findings": [dataclasses.asdict(finding) for finding in check_photos(capture).findings],
    }


def contact_sheet(capture: Capture) -> bytes:
    """A JPEG of an even selection of the photos, side by side."""
    import cv2
    from PIL import Image

    count = min(SHOWN, len(capture.views))
    tiles = []
    for i in range(count):
        photo = capture.raw_photo(i * len(capture.views) // count)
        width = max(1, min(3 * TILE, round(TILE * photo.shape[1] / photo.shape[0])))
        tiles.append(cv2.resize(np.ascontiguousarray(photo), (width, TILE), interpolation=cv2.INTER_AREA))
    columns = math.ceil(count / 2) if count > 4 else count
    rows = [np.concatenate(tiles[i : i + columns], axis=1) for i in range(0, count, columns)]
    widest = max(row.shape[1] for row in rows)
    sheet: NDArray[np.uint8] = np.concatenate([_padded(row, widest) for row in rows])
    buffer = io.BytesIO()
    Image.fromarray(sheet).save(buffer, "JPEG", quality=84)
    return buffer.getvalue()


def _padded(row: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    return np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255)
