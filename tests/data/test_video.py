"""Films into photos: sharp frames, evenly spread over the motion, upright."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from data.captures import open_capture
from data.video import Glance, choose, glance_over, read_video
from scene.errors import InputError
from tests.data.pictures import noise

WIDTH, HEIGHT = 160, 96


def film(path: Path, frames: list[np.ndarray], rate: int = 30) -> Path:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = frames[0].shape[1], frames[0].shape[0], "yuv420p"
        stream.bit_rate = 8_000_000
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
    return path


def pan(shifts: list[int], blurred: tuple[int, ...] = ()) -> list[np.ndarray]:
    """Frames of a picture that moves left by `shifts` px in all; those in `blurred` are out of focus."""
    import cv2

    wide = noise(WIDTH + max(shifts) + 1, HEIGHT, seed=4, grain=4 if blurred else 8)
    frames = [wide[:, shift : shift + WIDTH] for shift in shifts]
    return [cv2.GaussianBlur(frame, (0, 0), 4) if i in blurred else frame for i, frame in enumerate(frames)]


def test_a_film_is_a_capture_of_sharp_frames(tmp_path: Path):
    blurred = tuple(i for i in range(60) if i % 3)  # two of three frames are shaken
    path = film(tmp_path / "walk.mp4", pan([4 * i for i in range(60)], blurred))
    with open_capture(path) as capture:
        assert capture.kind == "video" and capture.ordered and 10 <= len(capture.views) <= 60
        numbers = [int(Path(view.name).stem.split("_")[1]) for view in capture.views]
        assert numbers == sorted(numbers)
        assert sum(n % 3 == 0 for n in numbers) > 0.8 * len(numbers)
        assert capture.photo(0).rgb.shape == (HEIGHT, WIDTH, 3)
        times = [view.time for view in capture.views]
        assert times == pytest.approx([n / 30 for n in numbers], abs=0.02)
        assert len({view.camera_group for view in capture.views}) == 1
        assert "60 frames" in " ".join(capture.decisions)


def test_frames_are_those_of_the_film(tmp_path: Path):
    frames = pan([6 * i for i in range(30)])
    found = read_video(film(tmp_path / "a.mp4", frames), tmp_path / "work", target=5)
    assert len(found.frames) == 5
    with open_capture(tmp_path / "a.mp4", workdir=tmp_path / "all") as capture:
        for i, view in enumerate(capture.views):
            number = int(Path(view.name).stem.split("_")[1])
            assert np.abs(capture.photo(i).rgb.numpy().astype(int) - frames[number]).mean() < 8  # two compressions


def test_a_pause_gives_few_frames_and_motion_many():
    still, moving = (
        [Glance(i, i / 30, 1.0, 0.0) for i in range(200)],
        [Glance(200 + i, 7 + i / 30, 1.0, 0.01) for i in range(100)],
    )
    chosen = choose([*still, *moving], 50)
    assert sum(i < 200 for i in chosen) <= 1
    steps = np.diff([i for i in chosen if i >= 200])
    assert len(chosen) > 30 and steps.max() <= 2 * steps.min() + 2


def test_the_sharpest_of_each_stretch_is_chosen():
    rng = np.random.default_rng(0)
    glances = [Glance(i, i / 30, float(rng.random()), 0.01) for i in range(300)]
    chosen = choose(glances, 30)
    assert len(chosen) == 30
    assert np.mean([glances[i].sharpness for i in chosen]) > 0.85  # the mean of the best of ten is 0.91


def test_a_cut_does_not_swallow_the_other_stretches():
    motion = [0.01] * 100
    motion[50] = 30.0
    chosen = choose([Glance(i, i / 30, 1.0, shift) for i, shift in enumerate(motion)], 20)
    assert sum(i < 50 for i in chosen) >= 7 and sum(i > 50 for i in chosen) >= 7


def test_nothing_to_choose_from_is_nothing():
    assert choose([], 10) == []
    assert len(choose([Glance(0, 0, 1, 0)] * 5, 10)) == 1


def test_motion_is_measured_as_a_share_of_the_width(tmp_path: Path):
    path = film(tmp_path / "a.mp4", pan([8 * i for i in range(10)]))
    motion = [glance.motion for glance in glance_over(path)]
    assert motion[0] == 0
    assert np.median(motion[1:]) == pytest.approx(8 / WIDTH, rel=0.3)


def test_slow_motion_is_looked_at_thirty_times_a_second(tmp_path: Path):
    path = film(tmp_path / "a.mp4", pan([2 * i for i in range(60)]), rate=120)
    glances = list(glance_over(path))
    assert [glance.index for glance in glances] == list(range(0, 60, 4))
    assert np.median([glance.motion for glance in glances[1:]]) == pytest.approx(8 / WIDTH, rel=0.3)
    with open_capture(path) as capture:
        assert all(int(Path(view.name).stem.split("_")[1]) % 4 == 0 for view in capture.views)


def test_frames_written_before_are_used_again(tmp_path: Path, monkeypatch):
    import data.video

    path = film(tmp_path / "a.mp4", pan([6 * i for i in range(30)]))
    first = read_video(path, tmp_path / "work")
    monkeypatch.setattr(data.video, "_write_frames", None)
    assert read_video(path, tmp_path / "work").frames == first.frames


def test_a_film_in_an_archive_or_alone_in_a_folder_opens(tmp_path: Path):
    (tmp_path / "in").mkdir()
    path = film(tmp_path / "in" / "a.mp4", pan([6 * i for i in range(30)]))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.write(path, "a.mp4")
    for source in (tmp_path / "in", tmp_path / "a.zip"):
        with open_capture(source) as capture:
            assert capture.kind == "video" and len(capture.views) > 5


def test_a_film_without_motion_or_frames_is_refused(tmp_path: Path):
    still = film(tmp_path / "still.mp4", pan([0] * 30))
    with pytest.raises(InputError, match="no motion"):
        open_capture(still)
    for content in (b"", b"no film at all" * 50, still.read_bytes()[:300]):
        (tmp_path / "bad.mp4").write_bytes(content)
        with pytest.raises(InputError, match=r"bad\.mp4"):
            open_capture(tmp_path / "bad.mp4")


def test_a_cut_off_film_gives_what_came_before(tmp_path: Path):
    path = film(tmp_path / "a.mkv", pan([6 * i for i in range(60)]))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with open_capture(path) as capture:
        assert 5 <= len(capture.views) < 40


def test_playlists_do_not_reach_other_files(tmp_path: Path):
    """A film may name other files or addresses as its parts: none is opened."""
    film(tmp_path / "secret.mp4", pan([6 * i for i in range(20)]))
    (tmp_path / "a.mp4").write_text(f"ffconcat version 1.0\nfile {tmp_path}/secret.mp4\n")
    (tmp_path / "b.mp4").write_text(f"#EXTM3U\n#EXTINF:1,\nfile://{tmp_path}/secret.mp4\n#EXT-X-ENDLIST\n")
    for name in ("a.mp4", "b.mp4"):
        with pytest.raises(InputError):
            open_capture(tmp_path / name)


def test_an_upright_phone_film_is_turned(tmp_path: Path):
    import av

    frames = pan([6 * i for i in range(20)])
    path = tmp_path / "a.mov"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=30)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.bit_rate = 8_000_000
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
    content = bytearray(path.read_bytes())
    at = content.find(b"tkhd") + 4 + 40  # the 3x3 display matrix of the track header, 16.16 and 2.30 fixed point
    identity = bytes.fromhex("00010000 00000000 00000000 00000000 00010000 00000000 00000000 00000000 40000000")
    quarter = bytes.fromhex("00000000 00010000 00000000 ffff0000 00000000 00000000 00000000 00000000 40000000")
    assert content[at : at + 36] == identity
    content[at : at + 36] = quarter  # a quarter turn to the right, as phones held upright write
    path.write_bytes(content)
    with open_capture(path) as capture:
        number = int(Path(capture.views[0].name).stem.split("_")[1])
        assert (capture.views[0].width, capture.views[0].height) == (HEIGHT, WIDTH)
        wanted = np.rot90(frames[number], -1)  # clockwise
        assert np.abs(capture.photo(0).rgb.numpy().astype(int) - wanted).mean() < 8
