"""Errors that reach a user, each with the exit code of the contract (section 3).

A message says what was expected, what came and what to do next; it is printed without a traceback unless `--debug`.
"""

import difflib
from collections.abc import Iterable


class MaquetteError(Exception):
    """Base of the errors whose message is written for users."""

    exit_code = 1


class InputError(MaquetteError):
    """The request or its input is wrong."""

    exit_code = 2


class CamerasError(MaquetteError):
    """Cameras could not be estimated well enough; what was registered is kept."""

    exit_code = 3


class ResourceError(MaquetteError):
    """Out of memory or disk; the run can be resumed."""

    exit_code = 4


class OutOfMemory(ResourceError):
    """Memory is full, here or on a device: what works on something may know how to make it smaller."""


class Interrupted(MaquetteError):
    """Stopped by the user; the run can be resumed."""

    exit_code = 130


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, here or on a device. torch says so by its own class, or by a plain RuntimeError."""
    if isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__:
        return True
    text = str(error).lower()
    phrases = ("out of memory", "out_of_memory", "can't allocate memory", "not enough memory")
    return isinstance(error, RuntimeError) and any(phrase in text for phrase in phrases)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown word: which of the known ones it may be a slip of, or nothing."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean '{near[0]}'?" if near else ""
