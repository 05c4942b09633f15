"""`maquette render`: a film of a run's scene along a camera path, as H.264 in an .mp4 or as numbered PNG files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from apps.console import Watcher
from apps.options import Render, parse
from apps.run_cameras import RunCameras, edited_cameras
from apps.run_scene import Drawing, edited_drawing
from apps.signals import StopSignal
from scene import camera_paths
from scene.cameras import Camera
from scene.errors import InputError
from scene.files import replacing
from scene.runs import Run

Picture = NDArray[np.uint8]

MAX_WIDTH = 1280
DEFAULT_FRAMES = 180
PATHS = ("orbit", "spiral", "train")


def main(arguments: Sequence[str]) -> None:
    """The `maquette render` command."""
    request = parse(Render, "render", arguments)
    with Run.open(request.run, writing=False) as run, StopSignal() as stop, Watcher() as watcher:
        seen = edited_cameras(run)
        path = path_cameras(seen, request.path, request.frames, request.width)
        draw, note = edited_drawing(run)
        if note:
            watcher.say(note)

        def progress(done: int, total: int) -> None:
            stop.check()
            watcher.progress("Filming", done, total)

        write_film(request.out, pictures_along(draw, path, seen.background, progress), fps=request.fps)
        watcher.say(f"{len(path)} frames of {path[0].width} x {path[0].height}: {request.out}")


def up_of(seen: RunCameras) -> tuple[float, float, float]:
    """The scene's up direction; +Z where the source has none."""
    if seen.up is None:
        return (0.0, 0.0, 1.0)
    x, y, z = seen.up.tolist()
    return (x, y, z)


def path_cameras(
    seen: RunCameras, path: str = "auto", frames: int | None = None, width: int | None = None
) -> list[Camera]:
    """The cameras of a film: `path` is orbit, spiral, train, auto or a file; sizes are even, as H.264 wants them."""
    count = DEFAULT_FRAMES if frames is None else frames
    cameras = seen.train or list(seen.cameras)
    if path == "orbit":
        chosen = camera_paths.orbit(cameras, count, up=seen.up)
    elif path == "spiral":
        chosen = camera_paths.spiral(cameras, count, up=seen.up)
    elif path == "train":
        chosen = camera_paths.along(cameras, count, ordered=seen.ordered)
    elif path == "auto":
        chosen = camera_paths.automatic(cameras, count, up=seen.up, ordered=seen.ordered)
    elif path.endswith(".json"):
        chosen = camera_paths.from_file(Path(path), typical=cameras[0] if cameras else None)
        chosen = chosen if frames is None else camera_paths.along(chosen, frames)
    else:
        raise InputError(f"--path must be {', '.join(PATHS)} or a .json file, got {path!r}")
    wanted = width or min(chosen[0].width, MAX_WIDTH)
    height = wanted * chosen[0].height / chosen[0].width
    return [camera.resized(_even(wanted), _even(height)) for camera in chosen]


def pictures_along(
    draw: Drawing, path: Sequence[Camera], background: Tensor, progress: Callable[[int, int], None]
) -> Iterator[Picture]:
    """Draws a scene along a path, one [H, W, 3] uint8 picture after the other."""
    for i, camera in enumerate(path):
        progress(i, len(path))
        yield (draw(camera, background).clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    progress(len(path), len(path))


def write_film(out: Path, pictures: Iterable[Picture], *, fps: int) -> None:
    """Write pictures as an H.264 .mp4, or as PNG files in a folder when `out` has no suffix.

    The film takes its name when it is complete. Raises InputError for another suffix or a folder that holds PNG files.
    """
    if out.suffix.lower() == ".mp4":
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as file:
            _encode(file, pictures, fps)
    elif out.suffix == "":
        from PIL import Image

        if any(out.glob("*.png")):
            raise InputError(f"{out} already holds pictures; name a new folder with --out")
        out.mkdir(parents=True, exist_ok=True)
        for i, picture in enumerate(pictures):
            Image.fromarray(picture).save(out / f"{i:05}.png")
    else:
        raise InputError(f"--out must be an .mp4 file or a folder for PNG files, got {out}")


def _encode(file: BinaryIO, pictures: Iterable[Picture], fps: int) -> None:
    import av

    with av.open(file, "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "18", "preset": "medium"})
        stream.pix_fmt = "yuv420p"  # what every browser and player shows
        for i, picture in enumerate(pictures):
            if i == 0:
                stream.height, stream.width = picture.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def _even(length: float) -> int:
    return max(2, 2 * round(length / 2))
