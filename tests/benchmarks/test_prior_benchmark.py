"""The benchmark of the embedded networks runs on a few captions and writes what it found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import prior


def test_it_judges_a_few_captions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where, sheet = tmp_path / "prior.json", tmp_path / "prior.png"
    line = ["--captions", "2", "--true", "6", "--guesses", "2", "--json", str(where), "--sheet", str(sheet)]
    assert prior.main(line) == 0
    found = json.loads(where.read_text())
    assert found["true"]["true_kind"] == 1.0 and found["record"]["guesses"] == 2
    assert found["samples"]["hull"] > 0.8 and found["chosen"]["chosen_kind"] == 1.0
    assert sheet.stat().st_size > 1000 and "chosen" in capsys.readouterr().out
