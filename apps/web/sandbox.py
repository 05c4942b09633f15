"""Shuts a worker into its job's folder with Linux's Landlock: what strangers uploaded can then open nothing else.

The readers refuse paths that lead out of a source by themselves; this is the wall behind them, for the bug nobody knows
of yet. TCP is closed as well. Where the kernel has no Landlock (before 5.13, other systems) the readers stand alone.
"""

from __future__ import annotations

import ctypes
import os
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

_CREATE, _ADD, _RESTRICT = 444, 445, 446  # system calls, the same on every architecture
_NO_NEW_PRIVILEGES = 38
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
TRUNCATE = 1 << 14
_READ = EXECUTE | READ_FILE | READ_DIR
_BY_VERSION = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1}  # rights of files that a kernel knows
_OF_A_FILE = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE  # the others are of folders
_TCP = 0b11  # bind and connect, from version 4 on

_SYSTEM = (
    "/usr",
    "/lib",
    "/lib64",
    "/lib32",
    "/bin",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/fonts",
    "/proc",
    "/sys",
)
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random", "/dev/shm")
_OURS = ("apps", "scene", "recon", "generation", "data", "cuda")


class _Rules(ctypes.Structure):
    _fields_ = (("fs", ctypes.c_uint64), ("net", ctypes.c_uint64))


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("rights", ctypes.c_uint64), ("folder", ctypes.c_int32))


def version() -> int:
    """Of the kernel's Landlock; 0 where there is none."""
    if not sys.platform.startswith("linux"):
        return 0
    return max(0, ctypes.CDLL(None, use_errno=True).syscall(_CREATE, None, 0, 1))


def confine(writes: Iterable[Path], reads: Iterable[Path] = ()) -> bool:
    """From now on this thread and what it starts may write below `writes` and read only there, below `reads` and what
    Python and the system need. Whether the kernel can do that. Call it before threads are started.
    """
    known = version()
    if not known:
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    every = _BY_VERSION[min(known, 3)]
    rules = _Rules(every, _TCP if known >= 4 else 0)
    handle = libc.syscall(_CREATE, ctypes.byref(rules), 16 if known >= 4 else 8, 0)
    _check(handle)
    try:
        for path in (*_SYSTEM, *_python(), *reads):
            _allow(libc, handle, Path(path), _READ)
        for path in (*_DEVICES, *Path("/dev").glob("nvidia*"), *writes):
            _allow(libc, handle, Path(path), every)
        _check(libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0))
        _check(libc.syscall(_RESTRICT, handle, 0))
    finally:
        os.close(handle)
    return True


def _python() -> list[Path]:
    """Where this interpreter and its packages are; of a source checkout our packages alone."""
    root = Path(__file__).resolve().parents[2]
    folders = {Path(sys.prefix), Path(sys.base_prefix), *map(Path, sysconfig.get_paths().values())}
    folders |= {Path(entry) for entry in sys.path if entry.endswith(("site-packages", "dist-packages"))}
    return sorted({*folders, *(root / name for name in _OURS)})


def _allow(libc: ctypes.CDLL, handle: int, path: Path, rights: int) -> None:
    """Allow it for what lies below a path; one that does not exist needs no rule."""
    try:
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        beneath = _Beneath(rights if path.is_dir() else rights & _OF_A_FILE, opened)
        _check(libc.syscall(_ADD, handle, 1, ctypes.byref(beneath), 0))
    finally:
        os.close(opened)


def _check(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"Landlock: {os.strerror(number)}")
