"""The benchmark of procedural objects runs at toy size and writes what it found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import objects


def test_it_times_a_few_objects(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = tmp_path / "objects.json"
    line = ["--sizes", "16", "--objects", "4", "--rounds", "1", "--threads", "1", "--json", str(where)]
    assert objects.main(line) == 0
    (found,) = json.loads(where.read_text())["sets"]
    assert found["objects_per_second"] > 0 and found["miss"] < objects.LIMIT
    assert set(found["timings"]) == {"captions", "objects", "cameras", "pictures"}
    assert "objects/s" in capsys.readouterr().out
