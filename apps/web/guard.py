"""The wall in front of the page: who may talk to it, how much may come, and which addresses there are at all.

Plain ASGI, around gradio and our own routes alike. Only addresses that the page needs are let through: gradio's ways to
files, proxies and components are not among them, so `file=` reads nothing, whatever it names.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hmac
import logging
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping
from http.cookies import CookieError, SimpleCookie
from typing import Any

from apps.web.limits import size_words
from apps.web.payload import NotFound
from scene.errors import InputError

log = logging.getLogger(__name__)

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

VISITOR = "maquette_visitor"
HEADER = "x-maquette-visitor"
_SECRET = re.compile(r"[A-Za-z0-9_-]{32,128}")
COOKIE_SECONDS = 30 * 24 * 3600
MAX_JSON_BYTES = 1 << 20  # of a request that is no upload
ROOM = 1 << 20  # of an upload's own words beside its files
MAX_PATH = 2048

_OPEN = re.compile(
    r"/(?:|config/?|theme\.css|favicon\.ico|robots\.txt|manifest\.json|(?:assets|static|svelte)/[\w./@+~-]*"
    r"|maquette/[\w./-]*"
    r"|gradio_api/(?:info/?|openapi\.json|app_id/?|startup-events|theme\.css|heartbeat/\w+|reset/?|cancel|upload"
    r"|upload_progress|queue/(?:join|data)|(?:run|api|call|call/v2)/\w+/?(?:/\w+)?))"
)
_UPLOAD = "/gradio_api/upload"

HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"x-frame-options": b"SAMEORIGIN",
    b"cross-origin-resource-policy": b"same-origin",
    b"permissions-policy": b"camera=(), microphone=(), geolocation=()",
    b"content-security-policy": (
        b"default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
        b"img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; "
        b"media-src 'self' blob:; frame-src 'self'; frame-ancestors 'self'; base-uri 'self'; form-action 'self'; "
        b"object-src 'none'"
    ),
}
"""On every answer that does not bring its own."""


class Guard:
    """An ASGI application around another one."""

    def __init__(
        self,
        app: Any,
        *,
        upload_bytes: int,
        hosts: frozenset[str],
        users: Mapping[str, str] | None,
        check: Callable[[str, bytes], None],
        room: Callable[[], bool],
    ) -> None:
        """hosts: names by which this server may be asked, empty for any.  users: password by name, None for no login.

        check: raises InputError for a body that must not reach gradio, by its path.  room: whether the disk has some.
        """
        self.app, self.upload_bytes, self.hosts, self.users = app, upload_bytes, hosts, users
        self.check, self.room = check, room

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # no websockets here
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            await _answer(send, *refusal)
            return
        scope["visitor"] = visitor = visitor_of(headers)
        # A cookie comes with the page alone: an answer to anything else may be asked for by another site.
        fresh = "" if visitor or scope["path"] != "/" else secrets.token_urlsafe(32)
        most = self.upload_bytes + ROOM if scope["path"] == _UPLOAD else MAX_JSON_BYTES
        receive = _bounded(receive, most)
        if scope["method"] == "POST" and scope["path"].startswith("/gradio_api/") and scope["path"] != _UPLOAD:
            try:
                body = await _whole(receive)
                self.check(scope["path"], body)
            except TooMuch:
                await _answer(send, 413, f"at most {size_words(most)} are taken at once", {})
                return
            except InputError as error:
                await _answer(send, 404 if isinstance(error, NotFound) else 400, str(error), {})
                return
            receive = _replayed(body, receive)
        await self._pass(scope, receive, send, fresh)

    def _refusal(self, scope: Scope, headers: dict[bytes, bytes]) -> tuple[int, str, dict[bytes, bytes]] | None:
        """(status, words, headers) when this request is not let through."""
        host = headers.get(b"host", b"").decode("latin-1").lower()
        if self.hosts and _name_of(host) not in self.hosts:  # a page elsewhere whose name was made to lead here
            return 421, "this server does not go by that name", {}
        origin = headers.get(b"origin", b"").decode("latin-1").lower()
        if origin and origin.partition("://")[2] != host:
            return 403, "requests from other sites are refused", {}
        site = headers.get(b"sec-fetch-site", b"none")
        if scope["method"] not in ("GET", "HEAD") and site not in (b"none", b"same-origin"):
            return 403, "requests from other sites are refused", {}
        if scope["method"] not in ("GET", "HEAD", "POST"):
            return 405, "only GET and POST are answered", {}
        if self.users is not None and not _knows(self.users, headers.get(b"authorization", b"")):
            return 401, "a name and a password are needed", {b"www-authenticate": b'Basic realm="Maquette"'}
        raw = scope.get("raw_path") or scope["path"].encode()
        path = scope["path"]
        if len(raw) > MAX_PATH or b"%" in raw or ".." in path or "//" in path or not _OPEN.fullmatch(path):
            return 404, "there is nothing here", {}
        most = self.upload_bytes + ROOM if path == _UPLOAD else MAX_JSON_BYTES
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > most:
            return 413, f"at most {size_words(most)} are taken at once", {}
        if path == _UPLOAD and not visitor_of(headers):
            return 403, "open the page first, or send the header X-Maquette-Visitor", {}
        if path == _UPLOAD and not self.room():
            return 507, "the disk of this server is full; try again later", {}
        return None

    async def _pass(self, scope: Scope, receive: Receive, send: Send, new_visitor: str) -> None:
        started = False

        async def sending(message: dict[str, Any]) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                given = [(name.lower(), value) for name, value in message.get("headers", [])]
                names = {name for name, _ in given}
                given += [(name, value) for name, value in HEADERS.items() if name not in names]
                if new_visitor:
                    given.append((b"set-cookie", self._cookie(new_visitor)))
                message = {**message, "headers": [pair for pair in given if pair[0] != b"server"]}
            await send(message)

        try:
            await self.app(scope, receive, sending)
        except TooMuch:
            if not started:
                await _answer(send, 413, "that is more than is taken at once", {})
        except Exception:
            log.exception("a request failed by a fault of ours: %s %s", scope["method"], scope["path"])
            if not started:
                await _answer(send, 500, "this failed by a fault of ours; the server's owner finds it in the log", {})

    @staticmethod
    def _cookie(visitor: str) -> bytes:
        return f"{VISITOR}={visitor}; Path=/; Max-Age={COOKIE_SECONDS}; HttpOnly; SameSite=Lax".encode()


class TooMuch(Exception):
    """More came than was announced or is taken."""


def visitor_of(headers: Mapping[bytes, bytes]) -> str:
    """The secret by which a visitor is known, from the page's cookie or a program's header; "" without a sound one."""
    sent = headers.get(HEADER.encode(), b"").decode("latin-1")
    if not sent:
        with contextlib.suppress(CookieError):
            morsel = SimpleCookie(headers.get(b"cookie", b"").decode("latin-1")).get(VISITOR)
            sent = morsel.value if morsel is not None else ""
    return sent if _SECRET.fullmatch(sent) else ""


def _name_of(host: str) -> str:
    """A Host header without its port."""
    return host.partition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0]


def _knows(users: Mapping[str, str], authorization: bytes) -> bool:
    """Whether a Basic login is one of ours; takes as long for a wrong name as for a wrong password."""
    kind, _, coded = authorization.partition(b" ")
    try:
        name, _, password = base64.b64decode(coded, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return False
    wanted = users.get(name, "")
    same = hmac.compare_digest(password.encode(), wanted.encode())
    return kind.lower() == b"basic" and same and bool(wanted)


def _bounded(receive: Receive, most: int) -> Receive:
    """`receive` that gives no more than `most` bytes of a body, whatever its length was said to be."""
    came = 0

    async def receiving() -> dict[str, Any]:
        nonlocal came
        message = await receive()
        came += len(message.get("body", b""))
        if came > most:
            raise TooMuch
        return message

    return receiving


async def _whole(receive: Receive) -> bytes:
    """A body in one piece."""
    parts, more = [], True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            break
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(parts)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """`receive` that gives this body first."""
    given = False

    async def receiving() -> dict[str, Any]:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receiving


async def _answer(send: Send, status: int, words: str, more: Mapping[bytes, bytes]) -> None:
    body = (words + "\n").encode()
    headers = [*HEADERS.items(), *more.items(), (b"content-type", b"text/plain; charset=utf-8")]
    headers.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
