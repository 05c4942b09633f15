"""The benchmark of mesh formats measures what it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.mesh_formats import corner_error, judge, textured_torus


def test_the_torus_is_closed_and_its_size_is_as_asked():
    torus = textured_torus(20, 10, 32)
    facts = torus.facts()
    assert facts.watertight and facts.faces == 400 and facts.volume is not None and facts.volume > 0


def test_the_corner_error_knows_winding_and_size_but_no_order():
    torus = textured_torus(20, 10, 32)
    truth = torus.vertices[torus.faces]
    shuffled = np.roll(truth, 1, axis=1)[np.random.default_rng(0).permutation(len(truth))]
    assert corner_error(truth, shuffled) == 0
    assert corner_error(truth, shuffled[:, ::-1]) > 0.01
    assert 0.9e-3 < corner_error(truth, shuffled + np.array([0, 0, 1e-3])) < 1.1e-3
    assert corner_error(truth, shuffled[1:]) == float("inf")


def test_a_format_is_judged(tmp_path: Path):
    row = judge(textured_torus(20, 10, 32), tmp_path, ".obj")
    assert row["ours"] < 1e-6 and row["trimesh"] < 1e-6 and row["picture"] == 0 and row["watertight"]
