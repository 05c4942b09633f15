"""Zip archives: what a capture can use comes out, nothing else does."""

from __future__ import annotations

import contextlib
import io
import stat
import struct
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import data.archive
from data.captures import open_capture
from scene.errors import InputError, ResourceError
from tests.data.pictures import noise, save
from tests.data.test_transforms import check_spots, ngp_folder


def zipped(folder: Path, archive: Path, *, top: str = "", method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(archive, "w", method) as file:
        for path in sorted(folder.rglob("*")):
            file.write(path, top + path.relative_to(folder).as_posix())
    return archive


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for i in range(3):
        save(tmp_path / "photos" / f"{i}.jpg", noise(40, 30, seed=i))
    return tmp_path / "photos"


@pytest.mark.parametrize("top", ["", "holiday/", "a/b/c/"])
def test_photos_in_an_archive_are_a_capture(top: str, photos: Path, tmp_path: Path):
    archive = zipped(photos, tmp_path / "a.zip", top=top)
    with open_capture(archive) as capture:
        assert capture.kind == "photos" and [view.name for view in capture.views] == ["0.jpg", "1.jpg", "2.jpg"]
        assert capture.source == str(archive) and "Unpacked 3" in capture.decisions[0]
        place = capture._frames[0].path
        assert isinstance(place, Path) and place.exists()
    assert not place.exists()  # a temporary folder goes when the capture is closed


def test_data_sets_in_an_archive_keep_their_cameras(tmp_path: Path):
    ngp_folder(tmp_path / "set", distortion={})
    with open_capture(zipped(tmp_path / "set", tmp_path / "a.zip", top="fox/")) as capture:
        assert capture.kind == "instant-ngp"
        check_spots(capture)


def test_what_was_unpacked_into_a_workdir_is_used_again(photos: Path, tmp_path: Path, monkeypatch):
    archive, workdir = zipped(photos, tmp_path / "a.zip"), tmp_path / "work"
    open_capture(archive, workdir=workdir).close()
    monkeypatch.setattr(data.archive, "_extract", None)
    with open_capture(archive, workdir=workdir) as capture:
        assert capture.photo(0).rgb.shape == (30, 40, 3)
    assert [path.suffix for path in workdir.iterdir()] == [""]  # no half-unpacked folder


def test_a_broken_unpacking_leaves_nothing_behind(photos: Path, tmp_path: Path):
    archive = zipped(photos, tmp_path / "a.zip", method=zipfile.ZIP_STORED)
    content = bytearray(archive.read_bytes())
    content[200] ^= 255  # inside the first photo: its checksum fails
    archive.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.zip is not a usable"):
        open_capture(archive, workdir=tmp_path / "work")
    assert list((tmp_path / "work").iterdir()) == []


@pytest.mark.parametrize("name", ["../evil.jpg", "/evil.jpg", "a/../../evil.jpg", "C:/evil.jpg", "..\\evil.jpg"])
def test_entries_that_leave_the_folder_are_refused(name: str, photos: Path, tmp_path: Path):
    archive = zipped(photos, tmp_path / "a.zip")
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr(zipfile.ZipInfo(name), (photos / "0.jpg").read_bytes())
    with pytest.raises(InputError, match="leads out"):
        open_capture(archive, workdir=tmp_path / "deep/work")
    assert not list(tmp_path.rglob("evil.jpg")) and not Path("/evil.jpg").exists()


def test_links_and_other_files_stay_packed(photos: Path, tmp_path: Path):
    archive = zipped(photos, tmp_path / "a.zip")
    with zipfile.ZipFile(archive, "a") as file:
        link = zipfile.ZipInfo("link.jpg")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        file.writestr(link, "/etc/passwd")
        file.writestr("run.sh", "echo")
        file.writestr("model.pkl", b"")
    with open_capture(archive, workdir=tmp_path / "work") as capture:
        assert len(capture.views) == 3 and "link.jpg is a link" in " ".join(capture.decisions)
    assert sorted(path.name for path in (tmp_path / "work").rglob("*.*")) == ["0.jpg", "1.jpg", "2.jpg"]


def test_bombs_are_refused_by_their_ratio(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.png", b"\0" * 20_000_000)
    with pytest.raises(InputError, match="more than 100 times"):
        open_capture(tmp_path / "a.zip", workdir=tmp_path / "work")
    assert not (tmp_path / "work").exists()


def test_bombs_are_refused_by_their_count_and_total(photos: Path, tmp_path: Path, monkeypatch):
    archive = zipped(photos, tmp_path / "a.zip")
    monkeypatch.setattr(data.archive, "MAX_ENTRIES", 2)
    with pytest.raises(InputError, match="holds 3 files"):
        open_capture(archive)
    monkeypatch.setattr(data.archive, "MAX_ENTRIES", 100)
    monkeypatch.setattr(data.archive, "MAX_BYTES", 1000)
    with pytest.raises(InputError, match="unpacked"):
        open_capture(archive)


def test_declared_sizes_that_lie_do_not_help_a_bomb(tmp_path: Path):
    """The directory says 1000 bytes; the stream holds 50 MB."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.png", b"\0" * 50_000_000)
    content = bytearray(buffer.getvalue())
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        at = content.find(signature) + offset
        content[at : at + 4] = struct.pack("<I", 1000)
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(InputError):
        open_capture(tmp_path / "a.zip", workdir=tmp_path / "work")
    assert sum(path.stat().st_size for path in (tmp_path / "work").rglob("*") if path.is_file()) == 0


def test_a_full_disk_is_told_apart(photos: Path, tmp_path: Path, monkeypatch):
    archive = zipped(photos, tmp_path / "a.zip")
    monkeypatch.setattr(data.archive.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10})())
    with pytest.raises(ResourceError, match="make room"):
        open_capture(archive, workdir=tmp_path / "work")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04" + b"\0" * 50, b"not a zip" * 40])
def test_what_is_no_archive_is_named(content: bytes, tmp_path: Path):
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.zip"):
        open_capture(tmp_path / "a.zip")


def test_an_archive_without_photos_is_refused(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("readme.md", "hello")
    with pytest.raises(InputError, match="should hold photos"):
        open_capture(tmp_path / "a.zip")


def test_encrypted_entries_are_named(photos: Path, tmp_path: Path):
    archive = zipped(photos, tmp_path / "a.zip")
    content = bytearray(archive.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = content.find(signature) + offset
        content[at] |= 1
    archive.write_bytes(content)
    with open_capture(archive) as capture:
        assert len(capture.views) == 2 and "0.jpg is encrypted" in " ".join(capture.decisions)


@given(data=st.data())
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_archives_raise_nothing_but_our_errors(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject):
    folder = tmp_path_factory.mktemp("zip")
    save(folder / "in/a.jpg", noise(32, 24))
    content = bytearray(zipped(folder / "in", folder / "a.zip").read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (folder / "a.zip").write_bytes(content)
    with contextlib.suppress(InputError, ResourceError):
        open_capture(folder / "a.zip").close()
