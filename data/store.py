"""Pictures on demand: decoded, undistorted and scaled by background threads, within a fixed amount of memory.

What a picture's bytes are depends on its file, lens and level alone, never on timing or on what else is in the cache.
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data.images import MemoryPicture, Pixels, decode_image, decode_mask, premultiplied, resize_area, straight
from data.lens import Lens, undistortion_map
from scene.cameras import scaled_size

_Key = tuple[int, int]  # view, level

_WITH_THREADS: weakref.WeakSet[ImageStore] = weakref.WeakSet()


@atexit.register
def _end_threads() -> None:
    """Python ends daemon threads in the middle of a C++ decoder, which then aborts; so they end before."""
    for store in list(_WITH_THREADS):
        store.close()


@dataclass(frozen=True)
class Photo:
    """One picture. The caller lays it over a background with its straight alpha; None means opaque."""

    rgb: Tensor  # [H, W, 3] uint8
    alpha: Tensor | None  # [H, W] uint8

    @property
    def nbytes(self) -> int:
        return self.rgb.nbytes + (0 if self.alpha is None else self.alpha.nbytes)


@dataclass(frozen=True)
class Shot:
    """How one picture is made from its file. Sizes are (width, height) at level 0."""

    path: Path | MemoryPicture
    orientation: int
    mask: Path | None
    has_alpha: bool  # False: an alpha channel in the file is ignored
    stored: tuple[int, int]  # after orientation
    raw: tuple[int, int]  # after downscale
    lens: Lens | None  # over `raw`, where it distorts
    pinhole: Lens | None  # what `lens` is turned into; its size is delivered


@dataclass
class _Entry:
    photo: Photo | None
    error: BaseException | None
    fresh: bool  # decoded ahead and not asked for yet


class ImageStore:
    """Photos by (view, level), an LRU cache of them, and threads that decode ahead.

    Cached pictures plus the working memory of those being decoded stay below `cache_bytes`, except that one picture
    is always let through. Threads start with the first prefetch and end with `close`.
    """

    def __init__(self, shots: Sequence[Shot], cache_bytes: int, threads: int | None = None) -> None:
        self._shots = tuple(shots)
        self._budget = cache_bytes
        self._threads = threads or min(4, os.cpu_count() or 1)
        self._changed = threading.Condition()
        self._ready: OrderedDict[_Key, _Entry] = OrderedDict()  # least recently used first
        self._busy: dict[_Key, int] = {}  # bytes set aside
        self._wishes: deque[_Key] = deque()
        self._workers: list[threading.Thread] = []
        self._maps = _MapCache()
        self._closed = False
        self.peak_bytes = 0  # most that was ever accounted for, for tests and reports

    def photo(self, index: int, level: int = 0) -> Photo:
        """The picture of view `index` at 0.5**level of its size. Raises what its decoding raised, in this thread."""
        key = (index, level)
        with self._changed:
            while True:
                if self._closed:
                    raise RuntimeError("this capture was closed; open it again to read photos")
                entry = self._ready.get(key)
                if entry is not None:
                    return self._take(key, entry)
                if key not in self._busy:
                    break
                self._changed.wait()
            self._make_room(self._cost(key), spare_fresh=False)
            self._begin(key)
        entry = self._decode(key, fresh=False)
        with self._changed:
            self._finish(key, entry)
        if entry.error is not None:
            raise entry.error
        assert entry.photo is not None
        return entry.photo

    def raw(self, index: int) -> Pixels:
        """Colours [H, W, 3] of view `index`, oriented and downscaled but not undistorted; not cached."""
        shot = self._shots[index]
        rgb, _ = decode_image(shot.path, shot.orientation, (2 * shot.raw[0], 2 * shot.raw[1]))
        return np.ascontiguousarray(resize_area(rgb, *shot.raw))

    def raw_mask(self, index: int) -> Pixels | None:
        """Alpha [H, W] that goes with `raw`, or None."""
        shot = self._shots[index]
        if not shot.has_alpha:
            return None
        alpha = _alpha(shot, decode_image(shot.path, shot.orientation)[1], shot.raw)
        return None if alpha is None else np.ascontiguousarray(resize_area(alpha, *shot.raw))

    def prefetch(self, indices: Iterable[int], level: int = 0) -> None:
        """Decode these next, in this order; earlier wishes not yet begun are forgotten."""
        with self._changed:
            if self._closed:
                return
            self._wishes = deque(dict.fromkeys((index, level) for index in indices))
            wanted = set(self._wishes)
            for key, entry in self._ready.items():
                entry.fresh = entry.fresh and key in wanted  # no longer wanted: may be evicted
            _WITH_THREADS.add(self)
            while len(self._workers) < self._threads:
                worker = threading.Thread(target=self._work, name="maquette-photos", daemon=True)
                self._workers.append(worker)
                worker.start()
            self._changed.notify_all()

    def clear(self) -> None:
        """Forget all pictures and wishes; the store stays usable."""
        with self._changed:
            self._wishes.clear()
            self._ready.clear()
            self._maps.clear()
            self._changed.notify_all()

    def close(self) -> None:
        """End the threads and forget all pictures."""
        with self._changed:
            self._closed = True
            self._wishes.clear()
            self._ready.clear()
            self._changed.notify_all()
        for worker in self._workers:
            worker.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._closed and not self._next_fits():
                    self._changed.wait()
                if self._closed:
                    return
                key = self._wishes.popleft()
                if key in self._ready or key in self._busy:
                    continue
                self._make_room(self._cost(key), spare_fresh=True)
                self._begin(key)
            entry = self._decode(key, fresh=True)
            with self._changed:
                self._finish(key, entry)

    def _next_fits(self) -> bool:
        if not self._wishes:
            return False
        key = self._wishes[0]
        if key in self._ready or key in self._busy:
            return True  # nothing to do for it: taken off the list by the worker
        held = sum(self._busy.values()) + sum(_size(entry) for entry in self._ready.values() if entry.fresh)
        return held == 0 or held + self._cost(key) <= self._budget

    def _take(self, key: _Key, entry: _Entry) -> Photo:
        self._ready.move_to_end(key)
        if entry.fresh:
            entry.fresh = False
            self._changed.notify_all()
        if entry.error is not None:
            del self._ready[key]  # tried again when asked again
            raise entry.error
        assert entry.photo is not None
        return entry.photo

    def _begin(self, key: _Key) -> None:
        self._busy[key] = self._cost(key)
        self.peak_bytes = max(self.peak_bytes, self._held())

    def _finish(self, key: _Key, entry: _Entry) -> None:
        del self._busy[key]
        if not self._closed and (entry.error is None or entry.fresh):
            self._make_room(_size(entry), spare_fresh=entry.fresh)
            self._ready[key] = entry
        self._changed.notify_all()

    def _held(self) -> int:
        return sum(self._busy.values()) + sum(_size(entry) for entry in self._ready.values())

    def _make_room(self, needed: int, *, spare_fresh: bool) -> None:
        """Evict the least recently used until `needed` bytes fit; what was decoded ahead goes last, or never."""
        excess = self._held() + needed - self._budget
        for fresh in (False,) if spare_fresh else (False, True):
            for key in [key for key, entry in self._ready.items() if entry.fresh == fresh]:
                if excess <= 0:
                    return
                excess -= _size(self._ready.pop(key))

    def _cost(self, key: _Key) -> int:
        """Upper estimate of the memory that making a picture takes, result included."""
        index, level = key
        shot = self._shots[index]
        pixels = shot.stored[0] * shot.stored[1]
        if isinstance(shot.path, Path) and shot.path.suffix.lower() in (".jpg", ".jpeg"):
            pixels = min(
                pixels, 16 * shot.raw[0] * shot.raw[1] // 4**level
            )  # reduced to 2 to 4 times the size asked for
        # Bytes a pixel: 4 in Pillow, 6 while it becomes an array, 3 as the result; premultiplied copies are float32.
        return pixels * (13 + (32 if shot.has_alpha else 0))

    def _decode(self, key: _Key, *, fresh: bool) -> _Entry:
        index, level = key
        try:
            return _Entry(make_photo(self._shots[index], level, self._maps), None, fresh)
        except BaseException as error:  # carried to the thread that asks for the picture
            return _Entry(None, error, fresh)


def make_photo(shot: Shot, level: int, maps: _MapCache) -> Photo:
    """Decode, undistort and scale one picture; the work of the threads."""
    raw_size = scaled_size(*shot.raw, 0.5**level)
    size = raw_size if shot.pinhole is None else scaled_size(shot.pinhole.width, shot.pinhole.height, 0.5**level)
    # Twice the size at least: the average over areas, not the JPEG's own reduction, decides what a pixel is.
    double = (2 * raw_size[0], 2 * raw_size[1])
    rgb, alpha = decode_image(shot.path, shot.orientation, double)
    alpha = _alpha(shot, alpha, (rgb.shape[1], rgb.shape[0]))
    picture = rgb if alpha is None else premultiplied(rgb, alpha)
    if shot.lens is not None and shot.pinhole is not None:
        if picture.shape[1] > double[0] or picture.shape[0] > double[1]:
            picture = resize_area(picture, min(double[0], picture.shape[1]), min(double[1], picture.shape[0]))
        import cv2

        # Where no averaging follows to hide it, linear interpolation would soften fine texture.
        kind = cv2.INTER_LINEAR if picture.shape[1] >= 1.5 * raw_size[0] else cv2.INTER_CUBIC
        picture = _undistort(picture, shot.lens, shot.pinhole, kind, maps)
    picture = resize_area(picture, *size)
    if alpha is None:
        # An array still as decoded is read-only or another's.
        return Photo(torch.from_numpy(np.array(picture) if picture is rgb else picture), None)
    colours, alpha = straight(picture)
    return Photo(torch.from_numpy(colours), torch.from_numpy(alpha))


def _alpha(shot: Shot, alpha: Pixels | None, size: tuple[int, int]) -> Pixels | None:
    if not shot.has_alpha:
        return None
    if shot.mask is None:
        return alpha
    mask = decode_mask(shot.mask, *size, shot.orientation)
    return mask if alpha is None else np.minimum(mask, resize_area(alpha, *size))


def _undistort(picture: np.ndarray, lens: Lens, pinhole: Lens, kind: int, maps: _MapCache) -> np.ndarray:
    """Undistorted at the resolution the picture has; `kind` is cv2's interpolation."""
    import cv2

    height, width = picture.shape[:2]
    out = (
        max(1, round(pinhole.width * width / lens.width)),
        max(1, round(pinhole.height * height / lens.height)),
    )
    map_x, map_y = maps.get(lens.resized(width, height), pinhole.resized(*out))
    return cv2.remap(picture, map_x, map_y, kind, borderMode=cv2.BORDER_REPLICATE)


class _MapCache:
    """Undistortion maps of the last few lenses: photos of one camera share theirs."""

    def __init__(self, max_bytes: int = 128 * 2**20) -> None:
        self._max_bytes = max_bytes
        self._maps: OrderedDict[tuple[Lens, Lens], tuple[np.ndarray, np.ndarray]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, lens: Lens, pinhole: Lens) -> tuple[np.ndarray, np.ndarray]:
        import cv2

        key = (lens, pinhole)
        with self._lock:  # held while computing: threads that need the same map wait instead of making it again
            if key in self._maps:
                self._maps.move_to_end(key)
                return self._maps[key]
            # Fixed point with 5 fractional bits: three fifths of the memory, and what cv2.remap uses inside anyway.
            maps = cv2.convertMaps(*undistortion_map(lens, pinhole), cv2.CV_16SC2)
            self._maps[key] = maps
            while len(self._maps) > 1 and sum(a.nbytes + b.nbytes for a, b in self._maps.values()) > self._max_bytes:
                self._maps.popitem(last=False)
            return maps

    def clear(self) -> None:
        with self._lock:
            self._maps.clear()


def _size(entry: _Entry) -> int:
    return 0 if entry.photo is None else entry.photo.nbytes
