"""The whole of `maquette web` as its owner and programs meet it: killed and started again, called again and again."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.web import memory
from scene.runs import last_event_time, read_events
from tests.apps.tiny import write_tiny
from tests.apps.web.server import ROOT, Server, Visitor, running

LONG = {"preset": "high", "minutes": 5, "options": {"steps": 100_000}}
BAR = 32.0  # KiB of the server's memory that a job may leave behind


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("web") / "jobs") as server:
        yield server


def test_a_job_outlives_a_kill_of_the_server(tmp_path: Path) -> None:
    with running(tmp_path / "jobs") as server:
        anna = Visitor(server)
        job = anna.named("generate", prompt="a red chair", **LONG)["job"]
        log = server.folder / job / "run" / "events.jsonl"
        worked_until(anna, job, log, 5.0)
        server.process.kill()
        server.process.wait()
        before = last_event_time(log)
        with running(tmp_path / "jobs") as again:  # before the other one's end, which kills what is left of workers
            anna = Visitor(again, anna.secret)
            assert [each["job"] for each in anna.get("/maquette/jobs").json] == [job]
            assert anna.status(job)["state"] == "running"
            worked_until(anna, job, log, before + 2.0)  # it worked on: nothing was lost
            assert [event["message"] for event in read_events(log) if "Going on" in event["message"]] == []
            assert anna.post(f"/maquette/job/{job}/cancel").status == 200
            assert anna.until(job, ["stopped"], 10)["resumable"]
            assert anna.post(f"/maquette/job/{job}/resume").status == 200
            worked_until(anna, job, log, last_event_time(log) + 0.5)
            anna.post(f"/maquette/job/{job}/cancel")
            anna.until(job, ["stopped"], 10)


def worked_until(visitor: Visitor, job: str, log: Path, t: float) -> None:
    """Wait until the run has worked for `t` seconds."""
    end = time.monotonic() + 120
    while not log.is_file() or last_event_time(log) < t:
        now = visitor.status(job)
        assert time.monotonic() < end and now["state"] in ("queued", "running"), now
        time.sleep(0.1)


@pytest.mark.slow
def test_jobs_that_programs_start_and_delete_leave_little_memory_behind(server: Server) -> None:
    crowd = [Visitor(server) for _ in range(10)]

    def rounds(count: int) -> None:
        for visitor in crowd * (count // len(crowd)):
            job = visitor.named("generate", prompt="a red chair", preset="draft")["job"]
            visitor.post(f"/maquette/job/{job}/cancel")
            visitor.until(job, ["stopped"], 10)
            assert visitor.post(f"/maquette/job/{job}/delete").status == 200

    rounds(100)  # gradio's sessions and other caches are full then
    before = memory(server)
    rounds(50)
    assert (memory(server) - before) / 1024 / 50 <= BAR


@pytest.mark.slow
def test_the_program_in_the_readme_runs_as_written(server: Server, tmp_path: Path) -> None:
    pytest.importorskip("gradio_client")
    archive = shutil.make_archive(str(tmp_path / "tiny"), "zip", write_tiny(tmp_path / "tiny"))
    program = re.search(r"```python\n(import secrets.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert program is not None
    code, count = re.subn(r'handle_file\("a.jpg"\).*?\]', f"handle_file({archive!r})]", program[1])
    assert count == 1 and "http://localhost:7860" in code and "minutes=5" in code
    code = code.replace("http://localhost:7860", f"http://127.0.0.1:{server.port}").replace("minutes=5", "minutes=1")
    names: dict[str, Any] = {}
    exec(code, names)  # our own words
    done = Visitor(server, names["me"]["X-Maquette-Visitor"])
    assert done.status(names["job"])["state"] == "done"
    assert done.get(f"/maquette/job/{names['job']}/file/mesh.usdz").body[:2] == b"PK"
