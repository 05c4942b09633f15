"""Good files made bad: what the fuzzing does to the bytes, the text or the structure of a file."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any, Literal

NUMBERS = (
    0,
    1,
    2,
    3,
    127,
    128,
    255,
    256,
    32767,
    65535,
    2**24,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**53,
    2**63 - 1,
    2**64 - 1,
)
WORDS = tuple(
    word.encode()
    for word in (
        *(
            "nan",
            "inf",
            "-inf",
            "1e999",
            "-1",
            "0",
            "",
            "4294967295",
            "99999999999999999999",
            "0x10",
            "1.5",
            "-0",
            "1e-320",
        ),
        *("../../etc/passwd", "/etc/passwd", "\0", "\n", "\r", "\t", " ", '"', "{", "[", "//", "é", "a" * 300),
    )
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 3, 255, 65536, 2**31, 2**40, 2**63, 1e308, -1e-308, 0.5, float("nan"), float("inf")),
    *("", "a", "../x", "/etc/passwd", "\0", "é" * 50, "data:,", "http://127.0.0.1/x", [], {}, [[]], [0], [1e308] * 4),
    *([0] * 16, {"a": 1}, [None] * 3, "A" * 2000),
)
Kind = Literal["bytes", "text", "json"]


@dataclass(frozen=True)
class Form:
    """One way to look at a good file: `content` is what is changed, `pack` makes the file of it again.

    Changing what lies inside a compressed or checked shell reaches the code behind it, which bytes flipped outside
    hardly ever do.
    """

    content: bytes
    kind: Kind = "bytes"
    pack: Callable[[bytes], bytes] = bytes


def mutated(forms: list[Form], random: Random) -> bytes:
    """A bad file from one of `forms`; the same for the same state of `random`."""
    form = random.choice(forms)
    content = form.content
    if form.kind == "json" and random.random() < 0.8:
        content = _json(content, random)
    else:
        for _ in range(random.choice((1, 1, 1, 2, 3, 6))):
            change = random.choice(_TEXT if form.kind == "text" and random.random() < 0.7 else _BYTES)
            content = change(content, random)
    if random.random() < 0.05:
        content = _splice(content, random.choice(forms).content, random)
    return form.pack(content)


def _at(content: bytes, random: Random) -> int:
    """Somewhere in it; half of the time near the beginning, where headers are."""
    return random.randrange(min(len(content), 96) if random.random() < 0.5 else len(content)) if content else 0


def _flip(content: bytes, random: Random) -> bytes:
    changed = bytearray(content)
    for _ in range(random.choice((1, 1, 2, 4, 16)) if changed else 0):
        changed[_at(content, random)] ^= 1 << random.randrange(8)
    return bytes(changed)


def _byte(content: bytes, random: Random) -> bytes:
    changed = bytearray(content)
    if changed:
        changed[_at(content, random)] = random.choice((0, 1, 0x7F, 0x80, 0xFF, random.randrange(256)))
    return bytes(changed)


def _number(content: bytes, random: Random) -> bytes:
    """A length or count field, in either byte order."""
    width, at = random.choice((1, 2, 4, 4, 8)), _at(content, random)
    value = random.choice(NUMBERS) + random.choice((-1, 0, 0, 1))
    return (
        content[:at]
        + (value % (1 << 8 * width)).to_bytes(width, random.choice(("little", "big")))
        + content[at + width :]
    )


def _float(content: bytes, random: Random) -> bytes:
    value = random.choice((float("nan"), float("inf"), -float("inf"), 1e38, -1e30, 1e-40, 0.0))
    layout, at = random.choice(("<f", "<d", ">f")), _at(content, random) & ~3
    return content[:at] + struct.pack(layout, value) + content[at + struct.calcsize(layout) :]


def _cut(content: bytes, random: Random) -> bytes:
    return content[: _at(content, random)]


def _remove(content: bytes, random: Random) -> bytes:
    at = _at(content, random)
    return content[:at] + content[at + random.choice((1, 2, 4, 16, 64, 512)) :]


def _repeat(content: bytes, random: Random) -> bytes:
    at, length = _at(content, random), random.choice((1, 4, 16, 64))
    return content[:at] + content[at : at + length] * random.choice((2, 3, 40)) + content[at + length :]


def _append(content: bytes, random: Random) -> bytes:
    return content + random.choice(
        (b"\0", b"\n", b"\xff" * 40, content[:200], bytes(random.randrange(256) for _ in range(30)))
    )


def _insert(content: bytes, random: Random) -> bytes:
    at = _at(content, random)
    return content[:at] + random.choice(WORDS) + content[at:]


def _splice(content: bytes, other: bytes, random: Random) -> bytes:
    return content[: _at(content, random)] + other[_at(other, random) :]


def _word(content: bytes, random: Random) -> bytes:
    """A word or number of a text replaced by another word or an awkward one."""
    words = list(re.finditer(rb"[^\s,/:]+", content))
    if not words:
        return _insert(content, random)
    word = random.choice(words[:40] if random.random() < 0.5 else words)
    by = random.choice((*WORDS, random.choice(words).group()))
    return content[: word.start()] + by + content[word.end() :]


def _lines(content: bytes, random: Random) -> bytes:
    """A line left out, doubled, moved or joined to the next."""
    lines = content.split(b"\n")
    at = random.randrange(len(lines))
    which = random.randrange(4)
    if which == 0:
        del lines[at]
    elif which == 1:
        lines.insert(at, lines[at])
    elif which == 2:
        lines.insert(random.randrange(len(lines)), lines.pop(at))
    else:
        lines[at : at + 2] = [b" ".join(lines[at : at + 2])]
    return b"\n".join(lines)


def _json(content: bytes, random: Random) -> bytes:
    """One to three values of a JSON text replaced, left out, doubled, wrapped; or a key that stands twice."""
    value = json.loads(content)
    for _ in range(random.choice((1, 1, 2, 3))):
        value = _replaced(value, random)
    text = json.dumps(value)
    if random.random() < 0.05:
        text = text.replace("}", ', "twin": 1, "twin": 2}', 1)
    if random.random() < 0.03:
        text = "[" * random.choice((60, 100_000)) + text
    return text.encode("utf-8", "replace")


def _replaced(value: Any, random: Random) -> Any:
    """A copy with one value somewhere in it changed."""
    inner = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    if not inner or random.random() < 0.12:
        if isinstance(value, list) and value and random.random() < 0.5:
            return random.choice((value[:-1], value + value, value * 50, [value], value[::-1]))
        if isinstance(value, int | float) and not isinstance(value, bool) and random.random() < 0.5:
            return random.choice((value + 1, value - 1, -value, value * 1000, str(value)))
        return random.choice(VALUES)
    key, old = random.choice(inner)
    changed = dict(value) if isinstance(value, dict) else list(value)
    if isinstance(changed, dict) and random.random() < 0.1:
        del changed[key]
    else:
        changed[key] = _replaced(old, random)
    return changed


_BYTES = (_flip, _flip, _byte, _number, _number, _number, _float, _cut, _remove, _repeat, _append, _insert)
_TEXT = (_word, _word, _word, _lines, _insert, _cut)
