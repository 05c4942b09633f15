"""Point clouds in PLY: written by others, read here; headers that lie."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.ply import read_point_ply
from scene.errors import InputError

XYZ = np.array([[0.5, -1.25, 3.0], [7.0, 8.0, 9.0], [0.0, 0.25, -0.125]])
_AXES = "".join(f"property float {axis}\n" for axis in "xyz")
RGB = np.array([[255, 0, 1], [2, 128, 3], [4, 5, 250]], dtype=np.uint8)


@pytest.mark.parametrize("encoding", ["ascii", "binary"])
def test_files_written_by_trimesh_are_read_alike(encoding: str, tmp_path: Path):
    import trimesh

    cloud = trimesh.PointCloud(XYZ, colors=RGB)
    cloud.export(tmp_path / "a.ply", encoding=encoding)
    got = read_point_ply(tmp_path / "a.ply")
    np.testing.assert_allclose(got.xyz.numpy(), XYZ)
    np.testing.assert_array_equal(got.rgb.numpy(), RGB)


def test_big_endian_doubles_and_unknown_columns_are_read(tmp_path: Path):
    row = np.dtype([("w", ">i4"), ("x", ">f8"), ("y", ">f8"), ("z", ">f8")])
    table = np.zeros(3, dtype=row)
    table["x"], table["y"], table["z"] = XYZ.T
    header = "ply\nformat binary_big_endian 1.0\ncomment made here\nelement vertex 3\nproperty int w\n"
    header += "".join(f"property double {axis}\n" for axis in "xyz") + "end_header\n"
    (tmp_path / "a.ply").write_bytes(header.encode() + table.tobytes())
    got = read_point_ply(tmp_path / "a.ply")
    np.testing.assert_allclose(got.xyz.numpy(), XYZ)
    assert got.rgb.unique().tolist() == [128]  # grey where no colour is known


def test_points_that_are_not_finite_are_dropped(tmp_path: Path):
    header = f"ply\nformat ascii 1.0\nelement vertex 2\n{_AXES}end_header\n"
    (tmp_path / "a.ply").write_text(header + "nan 0 0\n1 2 3\n")
    assert read_point_ply(tmp_path / "a.ply").xyz.tolist() == [[1, 2, 3]]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ply\n",
        f"ply\nformat ascii 1.0\nelement vertex 999999999999\n{_AXES}end_header\n1 2 3\n",
        f"ply\nformat binary_little_endian 1.0\nelement vertex 99999999\n{_AXES}end_header\n1234",
        "ply\nformat ascii 1.0\nelement vertex -5\nproperty float x\nend_header\n",
        "ply\nformat ascii 1.0\nelement vertex 1\nproperty list uchar int x\nend_header\n",
        "ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nproperty float x\nend_header\n",
        "ply\nformat strange 1.0\nelement vertex 1\nproperty float x\nend_header\n",
        "ply\nformat ascii 1.0\nelement face 1\nproperty float x\nend_header\n",
        f"ply\nformat ascii 1.0\nelement vertex 1\n{_AXES}end_header\na b c\n",
        "ply\n" + "comment x\n" * 100_000,
    ],
)
def test_damaged_files_are_named(text: str, tmp_path: Path):
    (tmp_path / "a.ply").write_text(text)
    with pytest.raises(InputError, match=r"a\.ply"):
        read_point_ply(tmp_path / "a.ply")


@given(data=st.data())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_flipped_bytes_raise_nothing_but_input_errors(data: st.DataObject, tmp_path: Path):
    header = "ply\nformat binary_little_endian 1.0\nelement vertex 3\n"
    header += "".join(f"property float {axis}\n" for axis in "xyz") + "end_header\n"
    content = bytearray(header.encode() + XYZ.astype("<f4").tobytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "a.ply").write_bytes(content)
    with contextlib.suppress(InputError):
        assert read_point_ply(tmp_path / "a.ply").xyz.isfinite().all()
