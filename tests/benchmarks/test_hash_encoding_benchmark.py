"""The benchmark of the hash encoding runs at toy size and writes what it found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import hash_encoding
from scene.ops import native

pytestmark = pytest.mark.skipif(not native.has(torch.device("cpu")), reason="the CPU module is what is timed")


def test_it_times_a_few_places(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = tmp_path / "hash.json"
    line = ["--tables", "small", "--places", "500", "--rounds", "1", "--threads", "1", "--json", str(where)]
    assert hash_encoding.main(line) == 0
    (found,) = json.loads(where.read_text())["tables"]
    assert max(found["apart"]) < hash_encoding.LIMIT and min(found["over_plain_torch"].values()) > 0
    assert "times plain torch" in capsys.readouterr().out
