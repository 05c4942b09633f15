"""What strangers send to `maquette web`, over real HTTP: files, addresses, origins, other visitors' jobs.

A folder with a secret is watched by the kernel (inotify) all the while: nothing may open what lies in it.
"""

from __future__ import annotations

import ctypes
import io
import json
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from apps.web import sandbox
from tests.apps.web.server import Server, Visitor, running

OPENED = 0x20 | 0x1  # inotify: open, access


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("web")


@pytest.fixture(scope="module")
def server(place: Path) -> Iterator[Server]:
    with running(place / "jobs", "--minutes", "5") as server:
        yield server


@pytest.fixture(scope="module")
def secret(place: Path) -> Path:
    """A folder beside the jobs with photos that belong to nobody here."""
    folder = place / "secret"
    folder.mkdir()
    for i in range(4):
        Image.effect_noise((64, 64), 60).convert("RGB").save(folder / f"{i}.png")
    (folder / "password").write_text("of the server's owner")
    return folder


@pytest.fixture
def watched(secret: Path) -> Iterator[None]:
    """Fails when a file in the secret folder is opened meanwhile."""
    libc = ctypes.CDLL(None, use_errno=True)
    handle = libc.inotify_init1(os.O_NONBLOCK)
    assert handle >= 0 and libc.inotify_add_watch(handle, bytes(secret), OPENED) >= 0
    yield
    try:
        told = os.read(handle, 1 << 16)
    except BlockingIOError:
        told = b""
    finally:
        os.close(handle)
    assert told == b"", "a file outside the job's folder was opened"


def test_the_watch_itself_sees_an_opened_file(secret: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    handle = libc.inotify_init1(os.O_NONBLOCK)
    libc.inotify_add_watch(handle, bytes(secret), OPENED)
    (secret / "password").read_text()
    assert len(os.read(handle, 1 << 16)) > 0
    os.close(handle)


def png(width: int, height: int) -> bytes:
    """The smallest PNG that claims this size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")


def packed(files: dict[str, bytes], kinds: dict[str, int] | None = None) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = (kinds or {}).get(name, stat.S_IFREG | 0o644) << 16
            archive.writestr(entry, content)
    return buffer.getvalue()


def noise(size: int = 48) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((size, size), 60).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def a_run(source: Path) -> dict[str, bytes]:
    """What a run folder holds, made of photos elsewhere on this machine."""
    config = {"format": 1, "method": "gaussians", "source": str(source), "options": {}}
    return {"config.json": json.dumps(config).encode(), "events.jsonl": b"", "a.png": noise()}


def transforms(name: str) -> bytes:
    pose = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 2], [0, 0, 0, 1]]
    frames = [{"file_path": f"{name}/{i}.png", "transform_matrix": pose} for i in range(4)]
    return json.dumps({"camera_angle_x": 0.7, "frames": frames}).encode()


def hostile(secret: Path) -> dict[str, dict[str, bytes]]:
    """Uploads that must not become a job, by what they are."""
    playlist = f"#EXTM3U\n#EXTINF:1,\nfile://{secret}/0.png\n#EXT-X-ENDLIST\n".encode()
    concat = f"ffconcat version 1.0\nfile {secret}/0.png\n".encode()
    page = b"<html><script>alert(1)</script></html>"
    fifos = {f"{i}.jpg": stat.S_IFIFO | 0o644 for i in range(4)}
    links = {f"{i}.png": stat.S_IFLNK | 0o777 for i in range(4)}
    return {
        "zip slip": {"a.zip": packed({"../../../evil.jpg": noise(), "/tmp/evil.jpg": noise()})},
        "zip bomb": {"a.zip": packed({"a.png": b"\0" * (64 << 20)})},
        "named pipes": {"a.zip": packed(dict.fromkeys(fifos, b""), fifos)},
        "links": {"a.zip": packed({name: f"{secret}/{name}".encode() for name in links}, links)},
        "400 megapixels": {"a.png": png(20_000, 20_000), "b.png": png(20_000, 20_000)},
        "a page as photos": {"a.jpg": page, "b.jpg": page},
        "a playlist as video": {"a.mp4": playlist},
        "a list of files as video": {"a.mov": concat},
        "a run of another folder": {"a.zip": packed(a_run(secret))},
        "cameras of photos elsewhere": {
            "a.zip": packed({"transforms.json": transforms(str(secret)), "a.png": noise()})
        },
        "cameras of photos above": {
            "a.zip": packed({"transforms.json": transforms("../../../../secret"), "a.png": noise()})
        },
        "nothing": {"a.zip": packed({})},
        "no archive": {"a.zip": b"PK\x03\x04 but not really"},
        "a program": {"a.exe": b"MZ"},
        "a single photo": {"a.png": noise()},
    }


def test_hostile_uploads_are_refused_in_one_line(server: Server, secret: Path, watched: None) -> None:
    owner, uploads = Visitor(server), hostile(secret)
    good = owner.check(owner.upload({f"{i}.png": noise() for i in range(3)}))
    assert good["views"] == 3  # what is no attack passes the same way
    assert owner.call("delete", good["job"])["state"] == "deleted"
    with ThreadPoolExecutor(3) as visitors:
        answers = dict(zip(uploads, visitors.map(lambda files: sent(Visitor(server), files), uploads.values())))
    for what, (answer, jobs) in answers.items():
        assert set(answer) == {"error"}, (what, answer)
        said = answer["error"]
        assert 10 < len(said) <= 400 and "\n" not in said and "Traceback" not in said, (what, said)
        assert str(server.folder) not in said and "gradio" not in said, (what, said)
        assert jobs == [], what
    places = (Path("/tmp"), *server.folder.parents)
    assert not list(server.folder.rglob("evil.jpg")) and not any((place / "evil.jpg").exists() for place in places)
    assert {path.name for path in server.folder.iterdir()} == {".lock", ".uploads"}  # nothing refused is kept


def sent(visitor: Visitor, files: dict[str, bytes]) -> tuple[Any, Any]:
    """What the check answers, and the visitor's jobs after it."""
    return visitor.check(visitor.upload(files)), visitor.get("/maquette/jobs").json


ADDRESSES = (
    "/gradio_api/file=/etc/passwd",
    "/gradio_api/file=../../../../etc/passwd",
    "/gradio_api/file=http://127.0.0.1:1/",
    "/gradio_api/file/etc/passwd",
    "/file=/etc/passwd",
    "/gradio_api/proxy=http://127.0.0.1:1/",
    "/gradio_api/proxy=https://huggingface.co/",
    "/gradio_api/stream/x/y/1/playlist.m3u8",
    "/gradio_api/component_server",
    "/gradio_api/custom_component/x/client/component/..%2f..%2fetc/passwd",
    "/gradio_api/deep_link?session_hash=x",
    "/gradio_api/dev/reload",
    "/monitoring",
    "/docs",
    "/openapi.json",
    "/static/../../../../etc/passwd",
    "/static/%2e%2e/%2e%2e/etc/passwd",
    "/assets/..%2f..%2f..%2fetc%2fpasswd",
    "//etc/passwd",
    "/maquette/static/..%2f..%2fcli.py",
    "/maquette/static/../job.html",
    "/maquette/page/../../command.py",
    "/maquette/job/..%2f..%2fetc/file/passwd",
    "/maquette/job/x/file/job.json",
    "/" + "a" * 5000,
)


@pytest.mark.parametrize("address", ADDRESSES)
def test_no_address_leads_to_a_file(address: str, server: Server, watched: None) -> None:
    visitor = Visitor(server)
    for headers in ({}, visitor.headers):
        answer = server.ask(address, headers=headers)
        assert 400 <= answer.status < 500, answer.status
        assert b"root:" not in answer.body and b"Traceback" not in answer.body


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "SECRET/0.png", "../secret/0.png", "http://127.0.0.1:1/a.png", "", "/"]
)
def test_a_path_that_was_not_uploaded_is_refused(path: str, server: Server, secret: Path, watched: None) -> None:
    visitor = Visitor(server)
    given = path.replace("SECRET", str(secret))
    for value in (
        [{"path": given, "meta": {"_type": "gradio.FileData"}}],
        [{"url": given, "path": given}],
        [given],
        given,
    ):
        answer = visitor.call("check_photos", value)
        assert set(answer) == {"error"}
        assert "Traceback" not in str(answer["error"])
    assert visitor.get("/maquette/jobs").json == []


def test_other_sites_are_refused(server: Server) -> None:
    mine = f"http://127.0.0.1:{server.port}"
    body, kind = b'{"data": []}', {"Content-Type": "application/json"}
    for headers in (
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ):
        assert server.ask("/gradio_api/call/jobs", "POST", body, {**kind, **headers}).status == 403
        assert server.ask("/gradio_api/upload", "POST", b"", headers).status == 403
    assert server.ask("/gradio_api/call/jobs", "POST", body, {**kind, "Origin": mine}).status == 200
    assert server.ask("/", headers={"Host": "evil.example"}).status == 421  # a name that was made to lead here
    assert server.ask("/", headers={"Host": f"localhost:{server.port}"}).status == 200
    assert server.ask("/", "PUT").status == 405
    seen = server.ask("/", headers={"Origin": mine}).headers
    assert "*" not in seen.get("access-control-allow-origin", "")


def test_answers_carry_their_walls(server: Server) -> None:
    page = server.ask("/").headers
    assert page["x-content-type-options"] == "nosniff" and page["x-frame-options"] == "SAMEORIGIN"
    assert "frame-ancestors 'self'" in page["content-security-policy"]
    cookie = page["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=Lax" in cookie and len(cookie.split("=")[1].split(";")[0]) == 43
    assert "set-cookie" not in server.ask("/", headers={"Cookie": cookie.split(";")[0]}).headers
    assert "set-cookie" not in server.ask("/maquette/jobs").headers  # another site may make a browser ask for this
    assert "script-src 'self';" in server.ask("/maquette/page/job").headers["content-security-policy"]


def test_what_is_wrong_shows_no_traceback(server: Server) -> None:
    visitor = Visitor(server)
    for path, body in (
        ("/gradio_api/call/status", b'{"data": [{}]}'),
        ("/gradio_api/call/reconstruct", b'{"data": ["x", 1, 2, "y", [], {}, null, 7]}'),
        ("/gradio_api/call/nothing", b'{"data": []}'),
        ("/gradio_api/call/jobs", b"{"),
        ("/gradio_api/queue/join", b'{"fn_index": 9999, "data": []}'),
        ("/gradio_api/queue/join", b'{"data": []}'),
        ("/gradio_api/run/predict", b'{"fn_index": true, "data": []}'),
        ("/gradio_api/call/v2/generate", b'{"path": {"path": 7}}'),
        ("/gradio_api/call/jobs", b"[" * 5000),
        ("/maquette/job/x/explode", b""),
    ):
        headers = {**visitor.headers, "Content-Type": "application/json"}
        answer = server.ask(path, "POST", body, headers)
        told = answer.body
        if answer.status == 200 and b"event_id" in told and "/call/" in path:
            told = visitor.get(f"{path}/{answer.json['event_id']}").body
        assert answer.status < 500 and b"Traceback" not in told and b"site-packages" not in told


def test_visitors_cannot_reach_each_others_jobs(server: Server) -> None:
    anna, ben = Visitor(server), Visitor(server)
    draft = anna.check(anna.upload({f"{i}.png": noise() for i in range(3)}))
    assert draft["views"] == 3 and len(draft["findings"]) >= 3
    key = draft["job"]
    assert anna.get(f"/maquette/job/{key}").json["state"] == "draft"
    assert anna.get(f"/maquette/job/{key}/file/sheet").status == 200
    for path in (f"/maquette/job/{key}", f"/maquette/job/{key}/file/sheet"):
        assert ben.get(path).status == 404 and server.ask(path).status == 404
    for action in ("cancel", "resume", "delete", "export?file=mesh.glb"):
        assert ben.post(f"/maquette/job/{key}/{action}").status == 404
    for endpoint in ("status", "cancel", "resume", "delete", "reconstruct"):
        assert "no such job" in ben.named(endpoint, job=key)["error"]
    assert ben.get("/maquette/jobs").json == [] and ben.call("jobs") == []
    assert "no such job" not in str(anna.call("cancel", key))
    assert anna.call("delete", key)["state"] == "deleted"
    assert anna.get(f"/maquette/job/{key}").status == 404 and not (server.folder / key).exists()


def test_options_are_checked_before_anything_runs(server: Server) -> None:
    visitor = Visitor(server)
    key = visitor.check(visitor.upload({f"{i}.png": noise() for i in range(3)}))["job"]
    good = ["auto", "draft", 1.0, 1.0, "web", 0]
    for place, value, words in (
        (0, "--help", "no method"),
        (1, "fast", "preset must be one of"),
        (2, 1e9, "minutes must lie between"),
        (2, "nan", "minutes must be a number"),
        (3, 0, "downscale must lie between"),
        (4, "huge", "mesh must be one of"),
        (5, -1, "seed must be 0 or more"),
    ):
        wrong = [*good[:place], value, *good[place + 1 :]]
        assert words in visitor.call("reconstruct", key, *wrong, None)["error"]
    for options, words in (
        ({"out": "/tmp/evil"}, "no option 'out'"),
        ({"steps": "--resume"}, "should be a whole number"),
        ({"steps": 1e400}, "steps"),
        ({"densify": "rm -rf"}, "should be one of"),
    ):
        assert words in visitor.call("reconstruct", key, *good, options)["error"]
    for prompt, words in (("", "the prompt is empty"), ("x" * 3000, "at most"), ("a\0b", "U+0000")):
        assert words in visitor.named("generate", prompt=prompt)["error"]
    assert "no prior" in visitor.named("generate", prompt="a chair", prior="/etc")["error"]
    assert "allow this page's cookie" in Visitor(server, "short").named("generate", prompt="a chair")["error"]
    assert visitor.get("/maquette/jobs").json == []


@pytest.mark.skipif(not sandbox.version(), reason="needs a kernel with Landlock (Linux 5.13)")
def test_the_secret_is_readable_for_those_outside(secret: Path) -> None:
    """Else the watch above would prove nothing."""
    assert len(list(secret.glob("*.png"))) == 4 and Image.open(secret / "0.png").size == (64, 64)
