"""What programs post to gradio's endpoints, read before gradio does: only files that were uploaded, only what exists.

Gradio looks at paths itself, but not in an application that it is mounted in (6.31: `_check_allowed` asks
`has_launched`), and it fetches addresses. A wall of our own costs a page of code and does not change with its versions.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from scene.errors import InputError
from scene.untrusted import real

_ENDPOINT = re.compile(r"/gradio_api/(?:run|api|call|call/v2)/(\w+)/?")
MOST_VALUES = 20_000
DEEPEST = 30


class NotFound(InputError):
    """There is no such endpoint."""


def check_payload(
    path: str, body: bytes, uploads: Path, endpoints: Collection[str], functions: Collection[int]
) -> None:
    """Raise InputError for a body that is no JSON object, names a file that was not uploaded, or an unknown function.

    endpoints: names that may be called.  functions: gradio's numbers for what the page itself calls.
    """
    try:
        value = json.loads(body or b"{}")
    except (ValueError, RecursionError) as error:
        raise InputError("a JSON object was expected") from error
    if not isinstance(value, dict):
        raise InputError("a JSON object was expected")
    called = _ENDPOINT.fullmatch(path)
    if called is not None and called.group(1) not in endpoints and called.group(1) != "predict":
        raise NotFound("there is no such endpoint; /gradio_api/info lists them")
    number = value.get("fn_index")
    if number is not None and (type(number) is not int or number not in functions):
        raise NotFound("there is no such function")
    if (path == "/gradio_api/queue/join" or (called is not None and called.group(1) == "predict")) and number is None:
        raise NotFound("no function is named")
    _Walk(uploads).through(value, 0)


class _Walk:
    """Through a value with limits on its size, looking at what names a file."""

    def __init__(self, uploads: Path) -> None:
        self.root, self.seen = real(uploads), 0

    def through(self, value: Any, depth: int) -> None:
        self.seen += 1
        if self.seen > MOST_VALUES or depth > DEEPEST:
            raise InputError("this holds more values than any request of the page")
        if isinstance(value, dict):
            for key in ("path", "url"):
                if value.get(key) is not None and "path" in value:
                    self.file(value[key], is_address=key == "url")
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        for each in inner:
            self.through(each, depth + 1)

    def file(self, name: Any, *, is_address: bool) -> None:
        """A file's path must lie in the folder of uploads; its address is the page's own for it and never followed."""
        if not isinstance(name, str) or "\0" in name or len(name) > 4096:
            raise InputError("a file was named by something that is no path")
        if is_address:
            if "/gradio_api/file=" not in name:
                raise InputError("files are uploaded, never fetched from an address")
        elif not name.startswith("/") or not real(Path(name)).is_relative_to(self.root):
            raise InputError("a file was named that was not uploaded; upload it first")
