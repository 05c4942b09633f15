"""A folder of photos: sizes, orientation and EXIF of each, masks beside them, photos of one camera grouped."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from data.files import PHOTO_SUFFIXES, RAW_SUFFIXES, listing, natural_key, photo_files
from data.frames import Frame, Source
from data.images import inspect_image
from scene.errors import InputError
from scene.untrusted import inside

_COMPANION = re.compile(r"[._-](depth|disparity|normals?|mask)\.[a-z]+$", re.IGNORECASE)  # of a photo of that name
_NOT_PHOTOS = ("masks", "mask", "depth", "depths", "normals", "renders", "thumbnails")


def read_photos(folder: Path) -> Source:
    """Every usable photo in a folder and below. Raises InputError when there is none."""
    files = photo_files(folder, skip=_not_photos(folder))
    photos = [name for name in files if not _COMPANION.search(name)]
    names = _without_twins(photos)
    frames, decisions = inspect_photos(folder, names)
    if len(photos) < len(files):
        decisions.append(f"Left out {len(files) - len(photos)} files that their names call depth maps or masks.")
    if len(names) < len(photos):
        decisions.append(f"Left out {len(photos) - len(names)} HEIC files that are there as JPEG as well.")
    raw_files = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in RAW_SUFFIXES)
    if raw_files:
        decisions.append(
            f"Left out {len(raw_files)} raw files ({listing(raw_files, 3)}): export them as JPEG to use them."
        )
    if not frames:
        raise InputError(
            f"{folder} should hold photos ({', '.join(sorted(PHOTO_SUFFIXES)[:6])} ...), "
            f"but {f'none of its {len(names)} can be read' if names else 'there is none'}; name the folder that holds "
            f"them. {' '.join(decisions)}".rstrip()
        )
    groups = {frame.camera_group for frame in frames}
    with_focal = sum(frame.focal_px is not None for frame in frames)
    decisions.insert(
        0,
        f"A folder of {len(frames)} photos; {with_focal} state their focal length; "
        + ("all share one camera." if len(groups) == 1 else f"{len(groups)} different cameras, sizes or orientations."),
    )
    masked = sum(frame.mask is not None for frame in frames)
    if masked:
        decisions.append(f"Masks were found for {masked} of {len(frames)} photos; what is black in them is ignored.")
    return Source("photos", tuple(frames), decisions=tuple(decisions))


def _without_twins(names: Sequence[str]) -> list[str]:
    """Without the HEIC of a photo that was exported as JPEG beside it: two of one view mislead matching."""
    jpegs = {name.rsplit(".", 1)[0].lower() for name in names if name.lower().endswith((".jpg", ".jpeg"))}
    return [
        name
        for name in names
        if not (name.lower().endswith((".heic", ".heif", ".hif")) and name.rsplit(".", 1)[0].lower() in jpegs)
    ]


def _not_photos(folder: Path) -> list[str]:
    """Folders to leave out; images_2, images_4 ... are smaller copies of what is in images."""
    copies = [path.name for path in folder.glob("images_*")] if (folder / "images").is_dir() else []
    return [*_NOT_PHOTOS, *copies]


def inspect_photos(folder: Path, names: Sequence[str]) -> tuple[list[Frame], list[str]]:
    """Frames of the photos that can be read, and a sentence about those that cannot."""
    masks = MaskFinder(folder)
    frames, bad = [], []
    for name in names:
        try:
            path = inside(folder, name)
            facts = inspect_image(path)
        except InputError as error:
            bad.append(str(error))
            continue
        width, height = facts.oriented_size
        mask = masks.find(name)
        frames.append(
            Frame(
                name=name,
                path=path,
                width=width,
                height=height,
                orientation=facts.exif.orientation,
                mask=mask,
                has_alpha=facts.has_alpha or mask is not None,
                camera_group=" ".join(
                    filter(None, (facts.exif.camera, f"{width}x{height}", _turned(facts.exif.orientation)))
                ),
                focal_px=facts.exif.focal_px,
                gps=facts.exif.gps,
                time=facts.exif.time,
            )
        )
    decisions = left_out(bad)
    return frames, decisions


def left_out(reasons: Sequence[str]) -> list[str]:
    """One sentence naming what was left out and why, or nothing."""
    if not reasons:
        return []
    more = f" and {len(reasons) - 5} more" if len(reasons) > 5 else ""
    return [f"Left out {len(reasons)}: {'; '.join(reasons[:5])}{more}."]


class MaskFinder:
    """Finds the mask of a photo in a `masks` folder inside the photos' folder or beside it.

    The mask of sub/a.jpg is masks/sub/a.png or masks/sub/a.jpg.png (any picture format), or the same without sub.
    """

    def __init__(self, folder: Path) -> None:
        self._by_name: dict[str, Path] = {}
        for name in ("masks", "mask"):
            # Beside the photos only when they lie in a folder of their own: `masks` next to a user's whole
            # picture folder belongs to something else.
            beside = (folder.parent / name,) if folder.name.lower().startswith("images") else ()
            for place in (folder / name, *beside):
                if place.is_dir() and not place.is_symlink():
                    for file in photo_files(place):
                        self._by_name.setdefault(file.lower(), place / file)

    def find(self, photo: str) -> Path | None:
        if not self._by_name:
            return None
        short = photo.split("/", 1)[-1]
        for stem in _candidates((photo, short, Path(photo).name)):
            for suffix in sorted(PHOTO_SUFFIXES):
                mask = self._by_name.get(stem.lower() + suffix)
                if mask is not None:
                    return mask
        return None


def _candidates(names: Iterable[str]) -> list[str]:
    return [stem for name in dict.fromkeys(names) for stem in (name, name[: len(name) - len(Path(name).suffix)])]


def _turned(orientation: int) -> str:
    # The sensor's own principal point and distortion turn with the picture: another orientation, other intrinsics.
    return "" if orientation == 1 else f"turned {orientation}"


def sorted_frames(frames: Iterable[Frame]) -> tuple[Frame, ...]:
    """In natural order of their names."""
    return tuple(sorted(frames, key=lambda frame: natural_key(frame.name)))
