"""Mutated good files through every reader: nothing but errors for users, in 2 s and 256 MiB; and the judge itself."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scene.errors import InputError, ResourceError
from tests.hostile import fuzzing
from tests.hostile.doors import ROOT, environment
from tests.hostile.mutations import Form, mutated
from tests.hostile.readers import READERS, Reader

SEEDS: dict[str, Mapping[str, list[Form]]] = {}
EXECUTIONS = int(os.environ.get("MAQUETTE_FUZZ", "10000"))  # of each reader, or its share


@pytest.fixture(scope="module")
def verdicts() -> dict[str, dict[str, Any]]:
    """All readers fuzzed, on all cores, by a process that has one thread and so may fork."""
    command = [sys.executable, "-m", "tests.hostile.fuzzing", "--executions", str(EXECUTIONS), "--shares"]
    command += ["--jobs", str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment(), check=False)
    assert done.stdout, done.stderr[-2000:]
    return {verdict["reader"]: verdict for verdict in json.loads(done.stdout)}


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_bad_files_end_in_an_answer_for_users(reader: Reader, verdicts: dict[str, dict[str, Any]]) -> None:
    verdict = verdicts[reader.name]
    assert verdict["failures"] == []
    assert verdict["executions"] == max(1, round(reader.share * EXECUTIONS))
    assert reader.share == 1 or reader.why
    # Neither all refused at the door nor none: else what lies behind it was not reached.
    if verdict["executions"] > 1000 and reader.name != "exif":  # which never costs a photo
        assert 0.01 < verdict["accepted"] / verdict["executions"] < 0.95


@pytest.mark.parametrize("reader", [r for r in READERS if r.name != "usd"], ids=lambda reader: reader.name)
@given(random=st.randoms(use_true_random=False))
@settings(max_examples=20, deadline=None)
def test_what_hypothesis_makes_of_good_files_is_answered(reader: Reader, random: Random) -> None:
    with tempfile.TemporaryDirectory(dir=fuzzing.scratch()) as place:
        folder = Path(place)
        files = SEEDS.setdefault(reader.name, reader.seeds(folder))  # a run's times differ from one to the next
        for name, forms in files.items():
            (folder / name).write_bytes(forms[0].pack(forms[0].content))
        name = random.choice(sorted(files))
        (folder / name).write_bytes(mutated(files[name], random))
        with contextlib.suppress(InputError, ResourceError):
            reader.call(folder)


def judged(call: Callable[[bytes], object], count: int) -> fuzzing.Verdict:
    """The verdict on a reader that takes "good" and is `call` for anything else."""

    def read(folder: Path) -> None:
        content = (folder / "a").read_bytes()
        if content != b"good":
            call(content)

    bad = Form(b"bad", pack=lambda content: content + b"!")
    return fuzzing.fuzz(Reader("fake", lambda folder: {"a": [Form(b"good"), bad, bad]}, read), count)


def hold(size: int) -> None:
    np.empty(size, np.uint8)  # asked for, never touched


def swallow(content: bytes) -> None:
    try:
        hold(1 << 60)
    except MemoryError as error:
        raise InputError("out of memory, told as if it were the file's fault") from error


def refuse(content: bytes) -> None:
    raise InputError("a bad file")


def burn(seconds: float) -> None:
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


@pytest.mark.parametrize(
    ("call", "why", "count"),
    [
        (lambda content: {}["key"], "KeyError", 12),
        (lambda content: hold(300 << 20), "asked for", 12),
        (lambda content: os.kill(os.getpid(), signal.SIGSEGV), "SIGSEGV", 12),
        (lambda content: ctypes.string_at(0), "SIGSEGV", 12),
        (swallow, "MemoryError swallowed", 12),
        (lambda content: burn(0.7), "took", 2),
        (lambda content: burn(60), "SIGPROF", 1),
    ],
)
def test_the_judge_sees_each_kind_of_failure(
    call: Callable[[bytes], object], why: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuzzing, "MOST_SECONDS", 0.4)
    verdict = judged(call, count)
    assert verdict.failures and all(why in str(failure["why"]) for failure in verdict.failures), verdict
    assert verdict.executions == count


def test_memory_that_was_given_back_before_hides_nothing() -> None:
    seeds = {"a": [Form(b"good"), Form(b"bad"), Form(b"bad")]}
    # Reading the good file asks for as much and gives it back.
    verdict = fuzzing.fuzz(Reader("fake", lambda folder: seeds, lambda folder: hold(300 << 20)), 12)
    assert verdict.failures and all("asked for" in str(failure["why"]) for failure in verdict.failures), verdict


def test_the_judge_lets_answers_pass() -> None:
    for call in (refuse, lambda content: None, lambda content: hold(100 << 20)):
        verdict = judged(call, 12)
        assert verdict.failures == [] and verdict.executions == 12


def test_an_execution_is_made_again_from_its_number(tmp_path: Path) -> None:
    reader = next(reader for reader in READERS if reader.name == "glb_mesh")
    made = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        made.append(list(fuzzing.executions(reader, tmp_path / name, 40, 30)))
    assert made[0] == made[1] and len({content for *_, content in made[0]}) > 20
    (tmp_path / "three").mkdir()
    assert list(fuzzing.executions(reader, tmp_path / "three", 55, 1)) == made[0][15:16]
