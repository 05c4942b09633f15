"""Pictures that are none, that lie about their size, or that are no files: `maquette recon` names them and goes on."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import pytest

from tests.data.pictures import noise, save
from tests.hostile.doors import calls, refused
from tests.hostile.readers import encoded

HUGE = 100_000


def png(width: int, height: int, kind: int = 2) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")


def jpeg(width: int, height: int) -> bytes:
    file = bytearray(encoded(noise(16, 16), "JPEG"))
    at = file.index(b"\xff\xc0") + 5
    file[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(file)


def tiff(width: int, height: int) -> bytes:
    """One LZW strip of a picture that size; 100,000 squared fits TIFF's 32 bits."""
    tags = [(256, 4, width), (257, 4, height), (258, 3, 8), (259, 3, 5), (262, 3, 1), (273, 4, 8), (277, 3, 1)]
    tags += [(278, 4, height), (279, 4, 4)]
    body = b"II*\0" + struct.pack("<I", 12) + b"\x80\x0b\x60\x50" + struct.pack("<H", len(tags))
    return body + b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags) + b"\0" * 4


def webp(width: int, height: int) -> bytes:
    """A lossless WebP cannot say more than 16,384 a side."""
    bits = 0x2F | (min(width, 16384) - 1) << 8 | (min(height, 16384) - 1) << 22
    body = bits.to_bytes(5, "little") + b"\x88\x88\x08\x07"
    chunk = b"VP8L" + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


def bmp(width: int, height: int) -> bytes:
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + 12, 0, 0, 54) + head + b"\0" * 12


BAD = {
    "empty.jpg": b"",
    "cut.jpg": encoded(noise(400, 300), "JPEG")[:3000],
    "cut.png": encoded(noise(400, 300), "PNG")[:3000],
    "foreign.jpg": b"GIF89a" + b"\0" * 200,
    "text.png": b"this is no picture\n" * 20,
    "huge.png": png(HUGE, HUGE),
    "large.png": png(12_000, 12_000),  # within the cap, but its bytes cannot hold it
    "grey.png": png(12_900, 12_900, 0),
    "huge.jpg": jpeg(65_000, 65_000),
    "large.jpg": jpeg(12_000, 12_000),
    "huge.tif": tiff(HUGE, HUGE),
    "large.tif": tiff(12_000, 12_000),
    "huge.webp": webp(HUGE, HUGE),
    "huge.bmp": bmp(HUGE, HUGE),
    "large.webp": webp(12_000, 12_000),
    "large.bmp": bmp(12_000, 12_000),
}


def test_each_bad_picture_alone_is_named_with_its_fault_and_takes_little_memory(tmp_path: Path) -> None:
    jobs = []
    for name, content in BAD.items():
        folder = tmp_path / name.replace(".", "_")
        folder.mkdir()
        (folder / name).write_bytes(content)
        assert len(content) < 10_000
        jobs.append(["recon", folder, "--out", tmp_path / f"run-{name}"])
    for name, outcome in zip(BAD, calls(jobs, memory=256 << 20), strict=True):
        refused(outcome, name, "name the folder that holds them")
        reason = outcome.sentence
        if "huge" in name:
            assert "make it smaller" in reason, reason
        if "large" in name or "grey" in name:
            assert "cannot hold" in reason, reason


def test_pipes_folders_and_links_among_the_photos_are_named_and_nothing_waits(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    os.mkfifo(folder / "pipe.jpg")
    (folder / "folder.jpg").mkdir()
    (folder / "nowhere.jpg").symlink_to(folder / "missing.jpg")
    (folder / "loop.jpg").symlink_to(folder / "loop.jpg")
    save(tmp_path / "secret.jpg", noise(40, 30))
    (folder / "outside.jpg").symlink_to(tmp_path / "secret.jpg")
    (folder / "around").symlink_to(folder)
    (outcome,) = calls([["recon", folder, "--out", tmp_path / "run"]])
    refused(outcome, "pipe.jpg", "not a regular file", "nowhere.jpg", "loop.jpg")
    assert "outside.jpg" not in outcome.err and "secret" not in outcome.err


def test_sources_that_are_no_files_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    os.mkfifo(tmp_path / "pipe.zip")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing")
    names = ("pipe", "pipe.zip", "loop", "nowhere", "/dev/zero")
    outcomes = calls([["recon", tmp_path / name, "--out", tmp_path / f"run{i}"] for i, name in enumerate(names)])
    for name, outcome in zip(names, outcomes, strict=True):
        refused(outcome, name, "expected")


def test_a_name_that_is_not_utf8_does_no_harm(tmp_path: Path) -> None:
    """OpenCV ends the process over such a name; here it is never told one."""
    folder = tmp_path / "photos"
    folder.mkdir()
    try:
        (Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.jpg"))).write_bytes(encoded(noise(64, 48), "JPEG"))
    except OSError:
        pytest.skip("this file system has no such names")
    save(folder / "b.jpg", noise(64, 48, seed=1))
    (outcome,) = calls([["recon", folder, "--out", tmp_path / "run"]])
    refused(outcome, "at least 3 photos", "got 1", code=3)
    assert "is not UTF-8" in outcome.err and "rename it" in outcome.err
