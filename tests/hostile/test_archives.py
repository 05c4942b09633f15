"""Archives that lie, climb out of their folder or grow without end."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path

from tests.data.pictures import noise
from tests.hostile.doors import calls, refused
from tests.hostile.readers import encoded

PHOTO = encoded(noise(24, 16), "JPEG")


def packed(*entries: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        for name, content in entries:
            file.writestr(zipfile.ZipInfo(name), content, method)
    return buffer.getvalue()


def overlapping(count: int) -> bytes:
    """`count` entries that all have the bytes of the first: 100 kB that unpack to 100 MB and more."""
    file = packed(("a.png", b"\1" * 10_000_000 + bytes(range(256)) * 400), method=zipfile.ZIP_STORED)
    end = file.rindex(b"PK\x05\x06")
    start = file.rindex(b"PK\x01\x02", 0, end)
    record = file[start:end]
    records = b"".join(record.replace(b"a.png", f"{i:05}"[:1].encode() + b".png") for i in range(count))
    tail = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, count, count, len(records), start, 0)
    return file[:start] + records + tail


def many_entries(count: int) -> bytes:
    """A directory that announces `count` files, each without bytes of its own."""
    file = packed(("a.jpg", PHOTO))
    end = file.rindex(b"PK\x05\x06")
    start = file.rindex(b"PK\x01\x02", 0, end)
    records = file[start:end] * count
    stated = min(count, 0xFFFF)
    return file[:start] + records + struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, stated, stated, len(records), start, 0)


BAD = {
    "empty.zip": (b"", "not a usable .zip"),
    "text.zip": (b"no archive " * 90, "not a usable .zip"),
    "cut.zip": (packed(("a.jpg", PHOTO))[:-40], "not a usable .zip"),
    "slip.zip": (packed(("a.jpg", PHOTO), ("../../slipped.jpg", PHOTO)), "leads out"),
    "absolute.zip": (packed(("/slipped.jpg", PHOTO)), "leads out"),
    "backslash.zip": (packed(("..\\slipped.jpg", PHOTO)), "leads out"),
    "drive.zip": (packed(("C:/slipped.jpg", PHOTO)), "leads out"),
    "bomb.zip": (packed(("a.png", b"\0" * 50_000_000)), "more than 100 times"),
    "lzma.zip": (packed(("a.jpg", PHOTO), method=zipfile.ZIP_LZMA), "packed by method 14"),
    "nothing.zip": (packed(("readme.md", b"hello")), "should hold photos"),
    "entries.zip": (many_entries(1_300_000), "files; at most 100000 are unpacked"),
}


def test_bad_archives_are_named_and_leave_nothing_behind(tmp_path: Path) -> None:
    jobs = []
    for name, (content, _) in BAD.items():
        (tmp_path / name).write_bytes(content)
        jobs.append(["recon", tmp_path / name, "--out", tmp_path / f"run-{name}"])
    for (name, (_, reason)), outcome in zip(BAD.items(), calls(jobs, memory=256 << 20), strict=True):
        refused(outcome, name, reason)
        unpacked = tmp_path / f"run-{name}" / "capture"
        assert not list(unpacked.rglob("*.jpg")) and not list(unpacked.rglob("*.png"))
    assert not list(tmp_path.rglob("slipped.jpg")) and not Path("/slipped.jpg").exists()


def test_entries_that_share_their_bytes_are_refused_by_the_ratio_of_the_whole(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(overlapping(300))
    (outcome,) = calls([["recon", tmp_path / "a.zip", "--out", tmp_path / "run"]], memory=256 << 20)
    refused(outcome, "a.zip")


def test_an_archive_in_an_archive_is_not_unpacked_further(tmp_path: Path) -> None:
    inner = packed(("a.jpg", PHOTO))
    (tmp_path / "a.zip").write_bytes(packed(("inner.zip", inner)))
    (outcome,) = calls([["recon", tmp_path / "a.zip", "--out", tmp_path / "run"]])
    refused(outcome, "should hold photos")
