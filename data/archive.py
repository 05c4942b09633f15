"""A .zip unpacked with care: limits on count, size and ratio, no path out of the folder, no links."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import shutil
import stat
import zipfile
from pathlib import Path

from data.files import PHOTO_SUFFIXES, VIDEO_SUFFIXES, listing
from scene.errors import InputError, ResourceError
from scene.untrusted import ARCHIVE_FAULTS, MAX_ENTRIES, PACKED_BY, inside, open_archive

MAX_BYTES = 64 * 2**30  # unpacked, in all
MAX_RATIO = 100  # unpacked over packed, of one file; text reaches 20, photos 1.2
_RATIO_APPLIES_FROM = 2**20  # bytes; a small file cannot do harm, and an empty picture packs very well
_KEPT = PHOTO_SUFFIXES | VIDEO_SUFFIXES | {".json", ".txt", ".bin", ".npy", ".ply"}
_CHUNK = 2**20


def unpack(archive: Path, workdir: Path) -> tuple[Path, list[str]]:
    """Unpack what a capture can use of `archive` below `workdir`; the folder, and sentences on what was left out.

    What was unpacked before is used again. Raises InputError when the archive is damaged or breaks a limit, and
    ResourceError when the disk is too small for it.
    """
    facts = archive.stat()
    mark = hashlib.sha256(f"{archive.resolve()} {facts.st_size} {facts.st_mtime_ns}".encode()).hexdigest()[:12]
    folder = workdir / f"unpacked-{mark}"
    unfinished = workdir / f"unpacked-{mark}.part"
    try:
        with open_archive(archive, MAX_ENTRIES) as file:
            entries, decisions = _checked(file, archive)
            if not folder.is_dir():
                workdir.mkdir(parents=True, exist_ok=True)
                shutil.rmtree(unfinished, ignore_errors=True)
                unfinished.mkdir()
                try:
                    _extract(file, entries, unfinished, archive.name)
                except BaseException:
                    shutil.rmtree(unfinished, ignore_errors=True)
                    raise
                unfinished.rename(folder)
    except ARCHIVE_FAULTS as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise ResourceError(f"the disk became full while {archive} was unpacked; make room") from error
        raise InputError(f"{archive} is not a usable .zip ({error}); pack it again") from error
    return _below_single_folders(folder), decisions


def _checked(file: zipfile.ZipFile, archive: Path) -> tuple[list[zipfile.ZipInfo], list[str]]:
    """The entries worth unpacking. Declared sizes only; `_extract` counts what really comes."""
    entries, name = file.infolist(), archive.name
    kept, refused = {}, []
    for entry in entries:
        suffix = Path(entry.filename).suffix.lower()  # an empty name and a folder have none
        if suffix not in _KEPT or "__MACOSX" in entry.filename:
            continue
        if entry.file_size > max(_RATIO_APPLIES_FROM, MAX_RATIO * entry.compress_size):
            raise InputError(
                f"{name} is refused: {entry.filename[:80]!r} would grow from {entry.compress_size} to "
                f"{entry.file_size} bytes, more than {MAX_RATIO} times; pack the photos themselves"
            )
        if stat.S_ISLNK(entry.external_attr >> 16):
            refused.append(f"{entry.filename[:80]} is a link")
        elif entry.flag_bits & 1:
            refused.append(f"{entry.filename[:80]} is encrypted")
        elif entry.compress_type not in PACKED_BY:
            refused.append(f"{entry.filename[:80]} is packed by method {entry.compress_type}")
        else:
            kept.setdefault(entry.filename, entry)
    total = sum(entry.file_size for entry in kept.values())
    if total > max(_RATIO_APPLIES_FROM, MAX_RATIO * archive.stat().st_size):  # entries that share their bytes
        raise InputError(f"{name} is refused: it would grow more than {MAX_RATIO} times; pack the photos themselves")
    if total > MAX_BYTES:
        raise InputError(f"{name} would take {total} bytes unpacked; at most {MAX_BYTES >> 30} GiB are unpacked")
    if not kept:
        why = f" ({listing(refused)})" if refused else ""
        raise InputError(f"{name} should hold photos, a video or a data set, but has none that can be used{why}")
    decisions = [f"Unpacked {len(kept)} of the {len(entries)} entries of {name}."]
    return list(kept.values()), decisions + ([f"Refused in it: {listing(refused)}."] if refused else [])


def _extract(file: zipfile.ZipFile, entries: list[zipfile.ZipInfo], folder: Path, name: str) -> None:
    needed = sum(entry.file_size for entry in entries)
    free = shutil.disk_usage(folder).free
    if needed > 0.95 * free:
        raise ResourceError(f"{name} needs {needed >> 20} MiB unpacked, but {free >> 20} MiB are free; make room")
    for entry in entries:
        try:
            target = inside(folder, entry.filename)
        except InputError as error:
            raise InputError(f"{name} is refused: {error}") from error
        target.parent.mkdir(parents=True, exist_ok=True)
        left = entry.file_size
        with file.open(entry) as packed, target.open("wb") as out:
            while chunk := packed.read(_CHUNK):
                left -= len(chunk)
                if left < 0:
                    raise InputError(f"{name} is refused: {entry.filename[:80]!r} is larger than it declares")
                out.write(chunk)


def _below_single_folders(folder: Path) -> Path:
    """Down through folders that hold one folder and nothing else, as archives of a folder do."""
    for _ in range(8):
        with contextlib.suppress(ValueError):
            (only,) = folder.iterdir()
            if only.is_dir():
                folder = only
                continue
        break
    return folder
