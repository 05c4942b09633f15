"""What one visitor and all visitors together may use, and how a refusal reads."""

from __future__ import annotations

from dataclasses import dataclass

from scene.errors import InputError


@dataclass(frozen=True)
class Limits:
    """Quotas of the web door. Bytes, seconds and counts; `pixels` is of all photos of a job together."""

    files: int = 400
    upload_bytes: int = 2 << 30
    pixels: int = 4_000_000_000
    active: int = 2
    """jobs of a visitor that wait or run"""
    kept: int = 12
    """jobs of a visitor in all"""
    queue: int = 40
    """jobs that wait, of all visitors"""
    minutes: float = 60.0
    """longest --max-minutes of a job"""
    job_bytes: int = 8 << 30
    """disk that a job may take"""
    free_bytes: int = 2 << 30
    """disk that stays free"""
    keep_seconds: float = 24 * 3600.0
    """a job is removed this long after it has ended"""
    draft_seconds: float = 3600.0
    """photos that nobody asked anything of are removed after this"""
    memory_bytes: int = 12 << 30
    """address space of a child that only reads or converts"""
    check_seconds: float = 120.0
    export_seconds: float = 300.0


class Busy(InputError):
    """There is no room now; the same request may pass later."""


def size_words(count: int) -> str:
    """Bytes for people: 3.2 MB."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
