"""The runner of the GPU checks, without a GPU: what passes, fails, takes too long, or is not there."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from benchmarks import gpu_check
from benchmarks.gpu_check import Check

PASS, FAIL = [sys.executable, "-c", ""], [sys.executable, "-c", "raise SystemExit(3)"]


def a_check(seconds: float = 60.0) -> Check:
    return Check(time.monotonic() + seconds)


def test_a_step_that_fails_fails_the_check_unless_it_is_optional() -> None:
    check = a_check()
    assert check.run("fine", PASS)
    assert not check.run("optional", FAIL, required=False)
    assert not check.failed
    assert not check.run("needed", FAIL)
    assert check.failed
    outcomes = dict(check.outcomes)
    assert outcomes["fine"].startswith("passed") and "exit 3" in outcomes["needed"]


def test_steps_see_the_checkout_and_what_is_set_for_them() -> None:
    code = "import os, scene.ops; raise SystemExit(os.environ['MAQUETTE_X'] != 'y')"
    assert a_check().run("look", [sys.executable, "-P", "-c", code], extra={"MAQUETTE_X": "y"})


def test_a_step_that_takes_too_long_ends_with_all_that_it_started(tmp_path: Path) -> None:
    sign = tmp_path / "late"
    child = f"import time; time.sleep(3); open({str(sign)!r}, 'w').close()"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    check = a_check()
    assert not check.run("slow", [sys.executable, "-c", code], at_most=1.0)
    assert "time was over" in check.outcomes[0][1] and check.failed
    time.sleep(3)
    assert not sign.exists()


def test_no_step_begins_when_the_time_is_over() -> None:
    check = a_check(seconds=2.0)
    assert not check.run("too late", PASS)
    assert check.failed and "not run" in check.outcomes[0][1]


def test_a_machine_without_the_sanitizer_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check.shutil, "which", lambda name: None)
    monkeypatch.setattr(gpu_check, "_beside_cuda", lambda name: None)
    check = a_check()
    gpu_check.sanitize(check)
    assert [name for name, _ in check.outcomes] == list(gpu_check.SANITIZERS)
    assert all("not available" in outcome for _, outcome in check.outcomes) and not check.failed


def test_kernels_that_cannot_be_built_are_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAQUETTE_BACKEND", "reference")  # as on a machine where nothing is compiled
    monkeypatch.setattr(gpu_check, "missing_for_build", lambda: "no C++ compiler")
    check = a_check()
    with gpu_check.cpu_kernels(check):
        pass
    assert "no C++ compiler" in check.outcomes[0][1] and not check.failed


def test_files_with_gpu_tests_are_found_by_their_mark() -> None:
    assert "tests/test_gpu.py" in gpu_check.test_files()


@pytest.mark.skipif(gpu_check.gpu() is not None, reason="there is a GPU")
def test_without_a_gpu_there_is_nothing_to_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main([]) == 0
    assert capsys.readouterr().out.count("\n") == 1
