"""A real `maquette web` for tests: a process of its own, spoken to over HTTP and nothing else."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from apps.view import free_port
from apps.web import worker

ROOT = Path(__file__).parents[3]


@dataclass
class Answer:
    """What the server answered."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Server:
    """A running server, its process and the folder of its jobs."""

    port: int
    folder: Path
    process: subprocess.Popen[bytes]

    def ask(
        self, path: str, method: str = "GET", body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> Answer:
        """One request, its path sent as it stands."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()


@dataclass
class Visitor:
    """A program that visits a server, known by its header."""

    server: Server
    secret: str = field(default_factory=lambda: secrets.token_urlsafe(32))

    @property
    def headers(self) -> dict[str, str]:
        return {"X-Maquette-Visitor": self.secret}

    def get(self, path: str) -> Answer:
        return self.server.ask(path, headers=self.headers)

    def post(self, path: str, value: Any = None) -> Answer:
        body = None if value is None else json.dumps(value).encode()
        return self.server.ask(path, "POST", body or b"", {**self.headers, "Content-Type": "application/json"})

    def upload(self, files: dict[str, bytes]) -> list[str]:
        """Upload files; gradio's names for them."""
        edge = secrets.token_hex(12)
        parts = [
            f'--{edge}\r\nContent-Disposition: form-data; name="files"; filename="{quote(name)}"\r\n\r\n'.encode()
            + content
            + b"\r\n"
            for name, content in files.items()
        ]
        body = b"".join(parts) + f"--{edge}--\r\n".encode()
        kind = {"Content-Type": f"multipart/form-data; boundary={edge}"}
        answer = self.server.ask("/gradio_api/upload", "POST", body, {**self.headers, **kind})
        assert answer.status == 200, answer.body
        return answer.json

    def call(self, endpoint: str, *values: Any) -> Any:
        """What a public endpoint answers."""
        return self._told(endpoint, self.post(f"/gradio_api/call/{endpoint}", {"data": list(values)}))

    def named(self, endpoint: str, **values: Any) -> Any:
        """The same with values by their names; those that are left out have their defaults."""
        return self._told(endpoint, self.post(f"/gradio_api/call/v2/{endpoint}", values))

    def _told(self, endpoint: str, begun: Answer) -> Any:
        if begun.status != 200:
            return {"error": begun.body.decode().strip()}
        told = self.get(f"/gradio_api/call/{endpoint}/{begun.json['event_id']}").body.decode()
        event, data = told.rpartition("event: ")[2].split("\n")[0], told.rpartition("data: ")[2].strip()
        return {"error": data} if event == "error" else json.loads(data)[0]

    def check(self, paths: Sequence[str]) -> Any:
        """The capture check of uploaded files."""
        return self.call("check_photos", [{"path": path, "meta": {"_type": "gradio.FileData"}} for path in paths])

    def status(self, job: str) -> dict[str, Any]:
        return self.get(f"/maquette/job/{job}").json

    def until(self, job: str, states: Sequence[str], seconds: float) -> dict[str, Any]:
        """The job's state once it is one of these."""
        end = time.monotonic() + seconds
        while (now := self.status(job))["state"] not in states:
            assert time.monotonic() < end, now
            time.sleep(0.1)
        return now


@contextmanager
def running(folder: Path, *flags: str) -> Iterator[Server]:
    """A server with its jobs in `folder`; skips the test where gradio is missing."""
    pytest.importorskip("gradio", reason="needs gradio: pip install 'maquette[web]'")
    port = free_port("127.0.0.1", 17860)
    command = [
        sys.executable,
        "-m",
        "apps.cli",
        "web",
        "--folder",
        str(folder),
        "--port",
        str(port),
        "--no-open",
        *flags,
    ]
    with (folder.parent / "server.log").open("ab") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
    server = Server(port, folder, process)
    try:
        end = time.monotonic() + 600  # seconds; on a machine that is busy with other work
        while True:
            assert process.poll() is None and time.monotonic() < end, (folder.parent / "server.log").read_text()
            try:
                if server.ask("/maquette/jobs").status in (200, 401):
                    break
            except OSError:
                time.sleep(0.1)
        yield server
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
        for path in folder.glob("*/job.json"):  # a test that failed or killed its server leaves no worker behind
            if worker.held(path.parent):
                os.killpg(json.loads(path.read_text())["pid"], signal.SIGKILL)
