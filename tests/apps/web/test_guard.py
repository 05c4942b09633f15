"""The wall in front of the page, without gradio behind it: bodies, logins, visitors, and what a post may name."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any

import pytest

from apps.web import guard as guards
from apps.web.guard import Guard, visitor_of
from apps.web.payload import NotFound, check_payload
from scene.errors import InputError

SECRET = "s" * 43


class Behind:
    """An application that reads what comes and answers as it is told."""

    def __init__(self, fault: Exception | None = None) -> None:
        self.fault, self.body, self.visitor = fault, b"", None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.visitor = scope["visitor"]
        more = True
        while more:
            message = await receive()
            self.body += message.get("body", b"")
            more = message.get("more_body", False)
        if self.fault is not None:
            raise self.fault
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"fine"})


def ask(
    behind: Behind, path: str = "/", *, method: str = "GET", parts: tuple[bytes, ...] = (b"",), **options: Any
) -> tuple[int, dict[bytes, bytes], bytes]:
    """(status, headers, body) that a guard answers; options: of Guard, and `headers`."""
    headers = {b"host": b"localhost:7860", **options.pop("headers", {})}
    checked = options.pop("check", lambda path, body: None)
    full = options.pop("full", False)
    facts = {"upload_bytes": 100, "hosts": frozenset(["localhost"]), "users": None, "check": checked, **options}
    guard = Guard(behind, room=lambda: not full, **facts)
    waiting = [{"type": "http.request", "body": part, "more_body": i + 1 < len(parts)} for i, part in enumerate(parts)]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return waiting.pop(0)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "raw_path": path.encode(), "headers": [*headers.items()]}
    asyncio.run(guard(scope, receive, send))
    return sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"]


def test_a_body_of_more_than_was_announced_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guards, "ROOM", 0)
    monkeypatch.setattr(guards, "MAX_JSON_BYTES", 50)
    upload, me = "/gradio_api/upload", {b"x-maquette-visitor": SECRET.encode()}
    assert ask(Behind(), upload, method="POST", headers={**me, b"content-length": b"101"})[0] == 413
    assert ask(Behind(), upload, method="POST", headers={**me, b"content-length": b"-1"})[0] == 413
    behind, lies = Behind(), {**me, b"content-length": b"5"}
    assert ask(behind, upload, method="POST", parts=(b"x" * 60, b"x" * 60), headers=lies)[0] == 413
    assert len(behind.body) <= 60
    assert ask(Behind(), upload, method="POST", parts=(b"x" * 60, b"x" * 40), headers=me)[0] == 200
    assert ask(Behind(), upload, method="POST", parts=(b"x",), headers=me, full=True)[0] == 507
    assert ask(Behind(), upload, method="POST", parts=(b"x",))[0] == 403
    assert ask(Behind(), "/gradio_api/queue/join", method="POST", parts=(b"x" * 51,))[0] == 413


def test_a_fault_behind_is_told_in_one_line_without_its_words() -> None:
    status, _, body = ask(Behind(RuntimeError("of /private/folder")))
    assert status == 500 and b"private" not in body and body.count(b"\n") == 1


def test_a_login_is_asked_of_everyone() -> None:
    users = {"anna": "correct horse"}

    def login(words: str) -> int:
        headers = {b"authorization": b"Basic " + base64.b64encode(words.encode())}
        return ask(Behind(), users=users, headers=headers)[0]

    status, headers, _ = ask(Behind(), users=users)
    assert status == 401 and headers[b"www-authenticate"].startswith(b"Basic")
    assert login("anna:correct horse") == 200
    assert {login("anna:wrong"), login("ben:correct horse"), login("ben:"), login("anna"), login("")} == {401}
    assert ask(Behind(), users=users, headers={b"authorization": b"Basic \xff"})[0] == 401


def test_a_visitor_is_known_by_cookie_or_header_and_else_gets_a_cookie_with_the_page() -> None:
    behind = Behind()
    _, headers, _ = ask(behind, headers={b"cookie": f"a=b; maquette_visitor={SECRET}".encode()})
    assert behind.visitor == SECRET and b"set-cookie" not in headers
    assert visitor_of({b"x-maquette-visitor": SECRET.encode()}) == SECRET
    for wrong in (b"short", b"s" * 200, b"../" * 20, "é".encode() * 20):
        assert visitor_of({b"x-maquette-visitor": wrong}) == ""
        assert visitor_of({b"cookie": b"maquette_visitor=" + wrong}) == ""
    behind = Behind()
    first, second = (ask(behind)[1][b"set-cookie"] for _ in range(2))
    assert behind.visitor == "" and first != second
    assert b"set-cookie" not in ask(Behind(), "/maquette/jobs")[1]


def test_a_server_answers_to_its_own_names_only() -> None:
    names = frozenset(["localhost", "::1"])
    for host, status in ((b"localhost:1", 200), (b"[::1]:7860", 200), (b"evil.example", 421), (b"", 421)):
        assert ask(Behind(), hosts=names, headers={b"host": host})[0] == status
    assert ask(Behind(), hosts=frozenset(), headers={b"host": b"3d.example.org"})[0] == 200


def test_what_reaches_gradio_was_looked_at_and_arrives_whole() -> None:
    seen: list[tuple[str, bytes]] = []
    behind = Behind()
    parts = (b'{"data":', b" []}")
    status, _, _ = ask(
        behind, "/gradio_api/queue/join", method="POST", parts=parts, check=lambda path, body: seen.append((path, body))
    )
    assert status == 200 and behind.body == b'{"data": []}' and seen == [("/gradio_api/queue/join", behind.body)]

    def refuse(path: str, body: bytes) -> None:
        raise InputError("not this")

    behind = Behind()
    status, _, body = ask(behind, "/gradio_api/queue/join", method="POST", parts=parts, check=refuse)
    assert (status, body, behind.body) == (400, b"not this\n", b"")


def payload(body: bytes, uploads: Path, path: str = "/gradio_api/call/jobs") -> None:
    check_payload(path, body, uploads, {"jobs"}, {3})


def test_only_uploaded_files_are_named(tmp_path: Path) -> None:
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    (uploads / "out").symlink_to(tmp_path)
    payload(f'{{"data": [[{{"path": "{uploads}/ab/photo.jpg", "url": null}}]]}}'.encode(), uploads)
    payload(b'{"data": ["/etc/passwd", {"words": "/etc"}]}', uploads)  # words are no files
    for named in (
        "/etc/passwd",
        f"{uploads}/../secret",
        f"{uploads}/out/secret",
        "photo.jpg",
        "http://a/b",
        "",
        "\\u0000",
    ):
        with pytest.raises(InputError, match="file"):
            payload(f'{{"data": [{{"a": [{{"path": "{named}"}}]}}]}}'.encode(), uploads)
    with pytest.raises(InputError, match="never fetched"):
        payload(f'{{"data": [{{"path": "{uploads}/a", "url": "http://169.254.169.254/"}}]}}'.encode(), uploads)


@pytest.mark.parametrize(
    ("path", "body", "error"),
    [
        ("/gradio_api/call/jobs", b"{", InputError),
        ("/gradio_api/call/jobs", b"[]", InputError),
        ("/gradio_api/call/jobs", b"[" * 100_000, InputError),
        ("/gradio_api/call/jobs", b'{"data": ' + b"[" * 40 + b"]" * 40 + b"}", InputError),
        ("/gradio_api/call/jobs", b'{"data": [' + b"1," * 30_000 + b"1]}", InputError),
        ("/gradio_api/call/secret", b"{}", NotFound),
        ("/gradio_api/call/v2/secret/", b"{}", NotFound),
        ("/gradio_api/queue/join", b'{"fn_index": 4}', NotFound),
        ("/gradio_api/queue/join", b'{"fn_index": true}', NotFound),
        ("/gradio_api/queue/join", b"{}", NotFound),
    ],
)
def test_what_no_page_sends_is_refused(path: str, body: bytes, error: type[InputError], tmp_path: Path) -> None:
    with pytest.raises(error):
        payload(body, tmp_path, path)


def test_what_the_page_sends_passes(tmp_path: Path) -> None:
    payload(b'{"fn_index": 3, "data": [null, 1.5, "x"]}', tmp_path, "/gradio_api/queue/join")
    payload(b"", tmp_path, "/gradio_api/reset")
