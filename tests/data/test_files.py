"""Paths stay inside, names sort as people do, text has limits."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.files import listing, natural_key, photo_files, read_numbers, read_object
from scene.errors import InputError
from scene.untrusted import inside, read_text


@pytest.mark.parametrize("name", ["a.jpg", "./a.jpg", "sub/a.jpg", "sub\\a.jpg", "sub//a..b.jpg", "..a/b"])
def test_plain_names_lie_inside(name: str, tmp_path: Path):
    assert inside(tmp_path, name).is_relative_to(tmp_path)


@pytest.mark.parametrize(
    "name", ["", ".", "/a", "\\a", "..", "../a", "a/../../b", "a\\..\\b", "C:/a", "c:a", "a\0b", "//server/share"]
)
def test_names_that_lead_out_are_refused(name: str, tmp_path: Path):
    with pytest.raises(InputError, match="leads out"):
        inside(tmp_path, name)


@given(name=st.text(alphabet="ab./\\: \0C", max_size=12))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_name_leads_out(name: str, tmp_path: Path):
    try:
        path = inside(tmp_path / "root", name)
    except InputError:
        return
    assert path.resolve().is_relative_to((tmp_path / "root").resolve())


def test_links_are_followed_only_within(tmp_path: Path):
    (tmp_path / "in/deep").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    (tmp_path / "in/near").symlink_to(tmp_path / "in/deep")
    (tmp_path / "in/far").symlink_to(tmp_path / "out")
    assert inside(tmp_path / "in", "near/a.jpg")
    with pytest.raises(InputError, match="through a link"):
        inside(tmp_path / "in", "far/a.jpg")


def test_names_sort_as_people_do():
    names = ["b10", "b9", "a", "B1", "b09", "10", "9", "b"]
    assert sorted(names, key=natural_key) == ["9", "10", "a", "b", "B1", "b09", "b9", "b10"]


@given(names=st.lists(st.text(max_size=6), unique=True, max_size=8))
def test_any_names_sort_the_same_way_each_time(names: list[str]):
    backwards = names[::-1]
    assert sorted(names, key=natural_key) == sorted(backwards, key=natural_key)


def test_text_has_a_size_limit_and_an_encoding(tmp_path: Path):
    (tmp_path / "a.txt").write_text("\ufeffhello", encoding="utf-8")
    assert read_text(tmp_path / "a.txt") == "hello"
    with pytest.raises(InputError, match="at most 3"):
        read_text(tmp_path / "a.txt", most=3)
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="UTF-8"):
        read_text(tmp_path / "b.txt")
    with pytest.raises(InputError, match="cannot read"):
        read_text(tmp_path / "missing.txt")


def test_numbers_come_in_rows_of_a_stated_length(tmp_path: Path):
    (tmp_path / "a.txt").write_text("1 2\n\n3 4e0\n")
    assert read_numbers(tmp_path / "a.txt", row=2) == [[1, 2], [3, 4]]
    with pytest.raises(InputError, match="line 1: expected 3"):
        read_numbers(tmp_path / "a.txt", row=3)


def test_json_must_be_an_object(tmp_path: Path):
    (tmp_path / "a.json").write_text('{"a": 1}')
    assert read_object(tmp_path / "a.json") == {"a": 1}
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(InputError, match="a list"):
        read_object(tmp_path / "a.json")


def test_folders_deeper_than_any_capture_are_walked_without_recursion(tmp_path: Path):
    folder = tmp_path
    for i in range(60):
        folder = folder / f"{i % 10}"
    folder.mkdir(parents=True)
    (folder / "a.jpg").write_bytes(b"")
    assert len(photo_files(tmp_path)) == 1


def test_long_lists_are_shortened():
    assert listing(["a", "b"]) == "a, b"
    assert listing(["a", "b", "c"], limit=2) == "a, b and 1 more"
