"""A video into photos: sharp frames, evenly spread over the camera's motion.

Two passes. The first looks at every frame small and grey: how sharp it is, and how far the picture moved since the
last one. The second decodes the chosen frames and keeps them as JPEG.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.frames import Frame, Source
from scene.errors import InputError
from scene.untrusted import MAX_PIXELS, MAX_SIDE, load_json, open_regular

logger = logging.getLogger(__name__)

TARGET_FRAMES = 120  # enough to walk around an object; more only costs time
_MIN_MOTION = 0.02  # of the picture's width between two chosen frames; less adds no baseline
_MIN_SHARPNESS = 0.6  # of the sharpest of the two chosen frames before and after
_MAX_SCANNED = 200_000  # frames
_BETWEEN_LOOKS = 0.03  # seconds; all frames of an ordinary film are looked at
_SMALL = 192  # px, longer side in the first pass
_QUALITY = 96


@dataclass(frozen=True)
class Glance:
    """What the first pass keeps of one frame it looked at."""

    index: int  # of the frame in the film
    time: float  # seconds from the start
    sharpness: float  # deviation of the Laplacian, relative to the picture's brightness
    motion: float  # shift since the glance before, as a fraction of the width


def read_video(path: Path, workdir: Path, target: int = TARGET_FRAMES) -> Source:
    """Up to `target` frames of a video as photos below `workdir`, those of an earlier call used again.

    Raises InputError when the file is no video or too little of it can be decoded.
    """
    facts = path.stat()
    mark = hashlib.sha256(f"{path.resolve()} {facts.st_size} {facts.st_mtime_ns} {target}".encode()).hexdigest()[:12]
    folder = workdir / f"frames-{mark}"
    index = folder / "frames.json"
    if not index.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        logger.info("Looking for sharp frames in %s", path.name)
        glances = list(glance_over(path))
        chosen = [glances[i] for i in choose(glances, target)]
        if len(chosen) < 2:
            raise InputError(
                f"{path.name} shows {len(glances)} frames and no motion; walk around the subject and film it"
            )
        written = _write_frames(path, {glance.index: glance.time for glance in chosen}, folder)
        # Written last and at once: a folder without its index is made again.
        unfinished = index.with_suffix(".part")
        unfinished.write_text(json.dumps({"scanned": len(glances), "frames": written}), encoding="utf-8")
        unfinished.replace(index)
    listed = load_json(index)
    frames = tuple(
        Frame(
            name=entry["name"],
            path=folder / entry["name"],
            width=entry["width"],
            height=entry["height"],
            camera_group=f"{path.name} {entry['width']}x{entry['height']}",
            time=entry["time"],
        )
        for entry in listed["frames"]
    )
    sentence = (
        f"A video of {listed['scanned']} frames: {len(frames)} were chosen, spread evenly over the camera's motion, "
        "the sharpest of each stretch."
    )
    return Source("video", frames, ordered=True, decisions=(sentence,))


def choose(glances: Sequence[Glance], target: int) -> list[int]:
    """Indices of the sharpest frame of each of `target` stretches of equal motion (fewer when little moves).

    One that is far less sharp than its neighbours among them is dropped: shaken, it would blur what they show.
    """
    if not glances:
        return []
    motion = np.array([glance.motion for glance in glances])
    # A cut or a flash looks like a huge motion and would claim many stretches for itself.
    moving = motion[motion > 0]
    limit = 10 * float(np.median(moving)) + 1e-9 if moving.size else 0.0
    way = np.cumsum(np.minimum(motion, limit))
    way = way - way[0]
    stretches = min(target, len(glances), max(1, int(way[-1] / _MIN_MOTION)))
    sharpness = np.array([glance.sharpness for glance in glances])
    belongs = np.minimum((way / max(way[-1], 1e-12) * stretches).astype(int), stretches - 1)
    chosen = [
        int(members[np.argmax(sharpness[members])])
        for stretch in range(stretches)
        if (members := np.flatnonzero(belongs == stretch)).size
    ]
    around = [max(sharpness[chosen[max(0, k - 2) : k + 3]]) for k in range(len(chosen))]
    return [index for index, best in zip(chosen, around, strict=True) if sharpness[index] >= _MIN_SHARPNESS * best]


def glance_over(path: Path) -> Iterator[Glance]:
    """The first pass. A damaged end of the file ends it; what came before is used."""
    import cv2

    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
    before: np.ndarray | None = None
    looked_at = -1.0
    for index, frame, _ in _frames(path):
        time = float(frame.time or 0.0)
        if 0 < time - looked_at < _BETWEEN_LOOKS:
            continue  # slow motion: neighbours are nearly the same
        looked_at = time
        scale = _SMALL / max(frame.width, frame.height)
        size = (max(16, round(frame.width * scale)), max(16, round(frame.height * scale)))
        grey = frame.reformat(width=size[0], height=size[1], format="gray").to_ndarray()
        # The picture at four times this size, so that blur of a few pixels shows.
        fine = frame.reformat(width=min(frame.width, 4 * size[0]), height=min(frame.height, 4 * size[1]), format="gray")
        fine_grey = fine.to_ndarray()
        # Over the brightness, which changes with the exposure; contrast would not do, for blur lowers that as well.
        sharpness = float(cv2.Laplacian(fine_grey, cv2.CV_32F).std()) / (float(fine_grey.mean()) + 1.0)
        motion = 0.0
        if before is not None and before.shape == grey.shape:
            field = flow.calc(before, grey, None)  # type: ignore[call-overload]
            motion = float(np.median(np.hypot(field[..., 0], field[..., 1]))) / size[0]
        before = grey
        yield Glance(index, time, sharpness, motion)


def _write_frames(path: Path, wanted: Mapping[int, float], folder: Path) -> list[dict[str, Any]]:
    from PIL import Image

    written = []
    for index, frame, turns in _frames(path):
        if index not in wanted:
            continue
        pixels = np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turns))
        name = f"frame_{index:06d}.jpg"
        Image.fromarray(pixels).save(folder / name, quality=_QUALITY, subsampling=0)
        height, width = pixels.shape[:2]
        written.append({"name": name, "width": width, "height": height, "time": wanted[index]})
        if len(written) == len(wanted):
            break
    return written


def _frames(path: Path) -> Iterator[tuple[int, Any, int]]:
    """Number and decoded frame, and how many quarter turns to the left set it upright."""
    import av
    import av.error

    try:
        # An opened file and no protocol: FFmpeg would wait on a pipe, and follow a playlist to files and the network.
        with open_regular(path) as file, av.open(file, mode="r", options={"protocol_whitelist": "none"}) as container:
            if not container.streams.video:
                raise InputError(f"{path.name} has no video stream; expected a film of the scene")
            stream = container.streams.video[0]
            size = stream.codec_context.width, stream.codec_context.height
            if size[0] * size[1] > MAX_PIXELS // 4 or max(size) > MAX_SIDE:
                raise InputError(f"{path.name} is {size[0]} x {size[1]}; make it smaller")
            stream.thread_type = "AUTO"
            stream.codec_context.options = {"max_pixels": str(MAX_PIXELS // 4)}  # also of frames larger than announced
            count = 0
            try:
                for frame in container.decode(stream):
                    yield count, frame, round((getattr(frame, "rotation", 0) or 0) / 90) % 4
                    count += 1
                    if count >= _MAX_SCANNED:
                        return
            except av.error.FFmpegError as error:
                if count == 0:
                    raise InputError(f"{path.name} cannot be decoded: {error}") from error
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise InputError(f"{path.name} is no video that can be read: {error}") from error
