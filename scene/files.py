"""Files that are whole or absent whatever happens to the process, and what a user reads when the disk refuses.

Imports no heavy library: the command line needs it before it knows what to do.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from scene.errors import InputError, MaquetteError, ResourceError
from scene.untrusted import load_json

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` when the block ends well, and leaves no trace when it does not.

    The content is on the disk before the name changes, and the name before this returns.
    """
    temporary = path.with_name(f".{path.name}.tmp")  # one writer per run (lock), so one name is enough
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)  # noqa: PTH105 - os.replace is what the crash tests count
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read_json(path: Path, default: Any) -> Any:
    """Content of a JSON file, `default` when it is absent. Raises InputError when it is too big or not JSON."""
    present = path.exists() or path.is_symlink()  # a link that leads nowhere is told, not taken for no file
    return load_json(path, finite=True, unique=True) if present else default


@contextlib.contextmanager
def write_errors(path: Path, doing: str) -> Iterator[None]:
    """Turn the system's word for a full or forbidden disk into ours."""
    try:
        yield
    except OSError as error:
        raise disk_error(error, path, doing) from error


def disk_error(error: OSError, path: Path, doing: str) -> MaquetteError:
    """The error a user sees when `doing` something with `path` failed: a full disk is resumable, the rest is not."""
    if error.errno in _NO_SPACE:
        return ResourceError(f"the disk is full: could not {doing} ({path}); free some space, then add --resume")
    return InputError(f"could not {doing} ({path}: {error.strerror or error}); check the folder and its permissions")
