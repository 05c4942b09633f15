"""Photos on demand: the same bytes whatever the timing, bounded memory, errors in the thread that asks."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import data.store
from data.images import MemoryPicture, decode_image
from data.lens import Lens
from data.store import ImageStore, Shot
from scene.errors import InputError
from tests.data.pictures import noise, save

SIZE = (192, 128)


def shot(path: Path | MemoryPicture, *, raw: tuple[int, int] = SIZE, lens: Lens | None = None) -> Shot:
    pinhole = lens.undistorted() if lens is not None else None
    return Shot(path, 1, None, isinstance(path, MemoryPicture) and path.alpha is not None, SIZE, raw, lens, pinhole)


@pytest.fixture
def shots(tmp_path: Path) -> list[Shot]:
    lens = Lens("opencv", *SIZE, 150, 150, 96, 64, (-0.1, 0.02, 0.0, 0.0))
    shots = []
    for i in range(12):
        path = save(tmp_path / f"{i}.jpg", noise(*SIZE, seed=i), quality=95)
        shots.append(shot(path, lens=lens if i % 2 else None))
    return shots


def test_bytes_do_not_depend_on_cache_threads_or_order(shots: list[Shot]):
    def all_bytes(cache: int, threads: int, order: list[int], prefetch: bool) -> dict[tuple[int, int], bytes]:
        store = ImageStore(shots, cache, threads)
        result = {}
        for level in (2, 0, 1):
            if prefetch:
                store.prefetch(order, level)
            for i in order:
                result[i, level] = store.photo(i, level).rgb.numpy().tobytes()
        store.close()
        return result

    forwards = list(range(12))
    wanted = all_bytes(2**30, 1, forwards, prefetch=False)
    assert all_bytes(2**30, 4, forwards[::-1], prefetch=True) == wanted
    assert all_bytes(1, 3, [5, 2, 9, 0, 1, 11, 3, 4, 6, 7, 8, 10], prefetch=True) == wanted


def test_levels_are_area_averages_of_the_right_size(shots: list[Shot]):
    store = ImageStore(shots, 2**28)
    whole = store.photo(0, 0).rgb.numpy().astype(float)
    half = store.photo(0, 1).rgb.numpy()
    assert half.shape == (64, 96, 3) and store.photo(0, 3).rgb.shape == (16, 24, 3)
    wanted = whole.reshape(64, 2, 96, 2, 3).mean(axis=(1, 3))
    assert np.abs(half - wanted).max() <= 1  # rounding
    store.close()


def test_memory_in_cache_and_in_flight_stays_below_the_budget(shots: list[Shot]):
    one = SIZE[0] * SIZE[1] * 13  # what making one of these takes: in Pillow, as an array, as the result
    store = ImageStore(shots, 3 * one, threads=4)
    for _ in range(3):
        store.prefetch(range(12))
        for i in range(12):
            store.photo(i)
    assert 0 < store.peak_bytes <= 3 * one
    store.close()


def test_prefetch_stops_at_the_budget_and_goes_on_as_photos_are_taken(shots: list[Shot], monkeypatch):
    decoded: list[Path] = []

    def counting(path: Path, *rest: object):
        decoded.append(path)
        return decode_image(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(data.store, "decode_image", counting)
    small = SIZE[0] * SIZE[1] * 3
    store = ImageStore(shots, 4 * small + 13 * small // 3 + 100, threads=1)
    store.prefetch(range(12))
    settle(lambda: len(decoded))
    ahead = len(decoded)
    assert 2 <= ahead <= 6  # not all twelve
    for i in range(12):
        store.photo(i)
    assert len(decoded) == 12 and decoded == [one.path for one in shots]  # each once, in the order asked for
    store.close()


def settle(value) -> None:
    """Wait until a number stops changing."""
    last, since = value(), time.monotonic()
    while time.monotonic() - since < 0.3:
        time.sleep(0.01)
        if value() != last:
            last, since = value(), time.monotonic()


def test_photos_used_again_come_from_the_cache(shots: list[Shot], monkeypatch):
    store = ImageStore(shots, 2**28)
    first = store.photo(3)
    monkeypatch.setattr(data.store, "decode_image", None)
    assert store.photo(3) is first
    store.close()


def test_prefetched_errors_surface_in_the_caller_and_do_not_stop_the_others(shots: list[Shot]):
    path = shots[4].path
    assert isinstance(path, Path)
    path.write_bytes(path.read_bytes()[:500])
    store = ImageStore(shots, 2**28, threads=2)
    store.prefetch(range(12))
    for i in range(12):
        if i == 4:
            with pytest.raises(InputError, match=r"4\.jpg"):
                store.photo(i)
        else:
            assert store.photo(i).rgb.shape[2] == 3
    path.unlink()
    with pytest.raises(InputError, match=r"4\.jpg"):  # and again, freshly tried
        store.photo(4)
    store.close()


def test_many_callers_share_one_decoding(shots: list[Shot], monkeypatch):
    decoded = []

    def slow(path: Path, *rest: object):
        decoded.append(path)
        time.sleep(0.05)
        return decode_image(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(data.store, "decode_image", slow)
    store = ImageStore(shots, 2**28)
    got = []
    threads = [threading.Thread(target=lambda: got.append(store.photo(0))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(decoded) == 1 and all(photo is got[0] for photo in got)
    store.close()


def test_closing_ends_threads_and_refuses_photos(shots: list[Shot]):
    store = ImageStore(shots, 2**28, threads=2)
    store.prefetch(range(12))
    store.close()
    assert not any(thread.is_alive() for thread in store._workers)
    with pytest.raises(RuntimeError, match="closed"):
        store.photo(0)
    store.prefetch([1])  # and asks for nothing


def test_a_program_that_forgets_to_close_ends_cleanly(shots: list[Shot]):
    paths = [str(shot.path) for shot in shots]
    program = f"""
from pathlib import Path
from data.store import ImageStore, Shot
shots = [Shot(Path(p), 1, None, False, {SIZE}, {SIZE}, None, None) for p in {paths}]
store = ImageStore(shots, 2**28)
store.prefetch(range(len(shots)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 and not done.stderr


def test_closing_while_another_thread_waits_does_not_hang(shots: list[Shot], monkeypatch):
    def slow(path: Path, *rest: object):
        time.sleep(0.2)
        return decode_image(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(data.store, "decode_image", slow)
    store = ImageStore(shots, 2**28, threads=1)
    store.prefetch([0])
    time.sleep(0.05)
    failures: list[BaseException] = []

    def ask() -> None:
        try:
            store.photo(0)
        except RuntimeError as error:
            failures.append(error)

    waiting = threading.Thread(target=ask)
    waiting.start()
    time.sleep(0.02)
    store.close()
    waiting.join(timeout=5)
    assert not waiting.is_alive() and len(failures) == 1


@pytest.mark.parametrize("raw", [SIZE, (96, 64)])
def test_delivered_alpha_is_straight(raw: tuple[int, int]):
    rgb = np.full((SIZE[1], SIZE[0], 3), (200, 100, 50), np.uint8)
    alpha = np.repeat(np.arange(8, 8 + SIZE[0], dtype=np.uint8)[None], SIZE[1], axis=0)
    store = ImageStore([shot(MemoryPicture(rgb, alpha), raw=raw)], 2**28)
    photo = store.photo(0)
    assert photo.alpha is not None and 8 <= photo.alpha.min() < 12
    assert np.abs(photo.rgb.numpy().astype(int) - (200, 100, 50)).max() <= 1  # the colour, not colour times alpha
    store.close()


def test_mask_file_and_alpha_channel_meet(tmp_path: Path):
    rgba = np.dstack([noise(*SIZE), np.full((SIZE[1], SIZE[0]), 255, np.uint8)])
    rgba[:40, :, 3] = 0
    mask = np.full((SIZE[1], SIZE[0]), 255, np.uint8)
    mask[:, :50] = 0
    path, mask_path = save(tmp_path / "a.png", rgba), save(tmp_path / "m.png", mask)
    store = ImageStore([Shot(path, 1, mask_path, True, SIZE, SIZE, None, None)], 2**28)
    alpha = store.photo(0).alpha
    assert alpha is not None and alpha[40:, 50:].min() == 255 and alpha[:40].max() == 0 and alpha[:, :50].max() == 0
    raw_mask = store.raw_mask(0)
    assert raw_mask is not None
    np.testing.assert_array_equal(raw_mask, alpha.numpy())
    store.close()


def test_pictures_in_memory_are_delivered_like_files():
    rgb = noise(*SIZE)
    store = ImageStore([shot(MemoryPicture(rgb), raw=(96, 64))], 2**28)
    wanted = rgb.astype(float).reshape(64, 2, 96, 2, 3).mean(axis=(1, 3))
    assert np.abs(store.photo(0).rgb.numpy() - wanted).max() <= 1
    store.close()


def test_changing_a_delivered_photo_does_not_change_a_picture_in_memory():
    rgb = noise(*SIZE)
    kept = rgb.copy()
    store = ImageStore([shot(MemoryPicture(rgb))], 2**28)
    store.photo(0).rgb.zero_()
    np.testing.assert_array_equal(rgb, kept)
    store.close()
