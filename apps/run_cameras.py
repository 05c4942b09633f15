"""RUN/cameras.json: what films, meshes and reports know of a run's cameras without its photos and COLMAP.

{"up": [3] | null, "ordered", "metric", "background": [3] 0..1 behind the scene,
 "views": [{"name", "split": "train" | "test", "width", "height", "K", "c2w"}], OpenCV frames, as everywhere
 "points": [[x, y, z, r, g, b], ...], a sample of the sparse cloud for the camera map}
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from data.captures import Capture
from scene import edits
from scene.cameras import Camera
from scene.edits import Edits
from scene.errors import InputError
from scene.files import read_json
from scene.runs import Run

MAP_POINTS = 2500


@dataclass(frozen=True)
class RunCameras:
    """The cameras of a run: names, cameras and which of them were held out; the map's points [P, 6] xyz and rgb."""

    names: tuple[str, ...]
    cameras: tuple[Camera, ...]
    held_out: tuple[bool, ...]
    up: Tensor | None
    ordered: bool
    metric: bool
    background: Tensor
    points: Tensor

    @property
    def train(self) -> list[Camera]:
        """The cameras that trained, in order."""
        return [camera for camera, held in zip(self.cameras, self.held_out) if not held]

    def edited(self, edits: Edits) -> RunCameras:
        """The cameras that see in the edited scene what these see in the scene as it was trained."""
        return replace(
            self,
            cameras=tuple(edits.of_camera(camera) for camera in self.cameras),
            up=edits.of_up(self.up),
            metric=edits.metric(self.metric),
            points=edits.of_points(self.points),
        )


def write_cameras(run: Run, capture: Capture) -> None:
    """Keep a capture's cameras in the run."""
    test = set(capture.test)
    views = []
    for i, view in enumerate(capture.views):
        if view.camera is not None:
            pose = {"K": view.camera.K.tolist(), "c2w": view.camera.c2w.tolist()}
            size = {"width": view.camera.width, "height": view.camera.height}
            views.append({"name": view.name, "split": "test" if i in test else "train", **size, **pose})
    up = None if capture.up is None else capture.up.tolist()
    # Cut-out objects are judged and shown on white, as their field does; photos have nothing behind them.
    background = [1.0] * 3 if any(view.has_alpha for view in capture.views) else [0.0] * 3
    facts = {"up": up, "ordered": capture.ordered, "metric": capture.metric, "background": background}
    run.write_json("cameras.json", {**facts, "views": views, "points": _sample(capture)})


def _sample(capture: Capture) -> list[list[float]]:
    """An even sample of the sparse points for the map, rounded to a thousandth of the scene's size."""
    if capture.points is None or len(capture.points.xyz) == 0:
        return []
    xyz, rgb = capture.points.xyz, capture.points.rgb
    step = max(1, math.ceil(len(xyz) / MAP_POINTS))
    size = float((xyz - xyz.median(0).values).norm(dim=-1).median()) or 1.0
    digits = max(0, 3 - math.floor(math.log10(size)))
    rows = torch.cat([xyz[::step].double(), rgb[::step].double()], dim=-1)
    return [[*(round(value, digits) for value in row[:3]), *map(int, row[3:])] for row in rows.tolist()]


def read_cameras(run: Run) -> RunCameras:
    """Cameras of a run. Raises InputError when cameras.json is absent or not sound."""
    path = run.folder / "cameras.json"
    content = read_json(path, None)
    if content is None:
        raise InputError(f"{run.folder} has no cameras yet; let `maquette recon` go on with --resume first")
    try:
        views = content["views"]
        cameras = tuple(_camera(view) for view in views)
        up = content["up"]
        return RunCameras(
            tuple(str(view["name"]) for view in views),
            cameras,
            tuple(view["split"] == "test" for view in views),
            None if up is None else _floats(up, (3,)),
            bool(content["ordered"]),
            bool(content["metric"]),
            _floats(content["background"], (3,)),
            _floats(content["points"], (len(content["points"]), 6)) if content["points"] else torch.zeros(0, 6),
        )
    except (KeyError, TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise InputError(f"{path} does not hold the cameras of a run ({error})") from error


def edited_cameras(run: Run) -> RunCameras:
    """The cameras of a run in the frame of its edited scene. Raises InputError as `read_cameras` does."""
    return read_cameras(run).edited(edits.load(run.folder))


def _camera(view: dict[str, Any]) -> Camera:
    width, height = view["width"], view["height"]
    if type(width) is not int or type(height) is not int or max(width, height) > 65536:
        raise ValueError(f"image size {width!r} x {height!r}")
    return Camera(_floats(view["K"], (3, 3)), _floats(view["c2w"], (4, 4)), width, height)


def _floats(values: Any, shape: tuple[int, ...]) -> Tensor:
    numbers = torch.tensor(values, dtype=torch.float32)
    if tuple(numbers.shape) != shape or not bool(torch.isfinite(numbers).all()):
        raise ValueError(f"expected {' x '.join(map(str, shape))} finite numbers, got {tuple(numbers.shape)}")
    return numbers
