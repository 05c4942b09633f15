"""What a reconstruction method is to the doors: a module with these functions, and the words people have for its parts.

`METHODS` in `apps/options.py` names the modules. Nothing here knows how any of them works.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from apps.generate_options import GENERATORS
from apps.options import METHODS
from data.captures import Capture
from scene.cameras import Camera
from scene.depth_fusion import DepthFrame
from scene.errors import InputError
from scene.mesh_extraction import on_cpu
from scene.runs import StepReport

Progress = Callable[[int, int, str], None]
FrameOf = Callable[[Camera], DepthFrame]
"""Colour and depth of the surface that a camera sees."""


class Checkpoint(Protocol):
    """What training needs to go on: tensors, and a JSON-able state with at least "step", "steps" and "seconds"."""

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Everything large."""
        ...

    @property
    def state(self) -> Mapping[str, Any]:
        """Everything else."""
        ...


class Method(Protocol):
    """The module of a method. A scene is whatever its `train` returns; it has `to(device=...)`."""

    PRESETS: Mapping[str, Mapping[str, Any]]  # changes to Config() by the preset's name
    SCENE_FILE: str  # name in the run folder

    def Config(self) -> Any:
        """The method's options: a frozen dataclass whose fields are the flags."""
        ...

    def Checkpoint(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> Checkpoint:
        """A checkpoint as it was read."""
        ...

    def train(
        self,
        capture: Capture,
        config: Any,
        *,
        device: torch.device | str,
        max_seconds: float | None,
        on_step: Callable[[StepReport], None],
        save: Callable[[Checkpoint], None],
        decide: Callable[[str], None],
        resume: Checkpoint | None,
        stop: Callable[[], bool],
    ) -> Any:
        """A scene on `device`; the errors are those of `recon.gaussians.train`."""
        ...

    def check(self, config: Any, device: torch.device) -> None:
        """Raises InputError when this cannot be trained on `device`."""
        ...

    def explain(self, config: Any, device: torch.device) -> str:
        """One line: what computes on `device`, its first word being the backend."""
        ...

    def learns_exposure(self, capture: Capture, config: Any) -> bool:
        """Whether each photo gets its own exposure, in training and when it is judged."""
        ...

    def save_scene(self, path: Path, scene: Any) -> None:
        """Write SCENE_FILE, whole or not at all."""
        ...

    def load_scene(self, path: Path) -> Any:
        """Read SCENE_FILE onto the CPU. Raises InputError: the file is not trusted."""
        ...

    def picture(self, scene: Any, camera: Camera, background: Tensor, config: Any) -> Tensor:
        """[H, W, 3] on the scene's device, without gradients."""
        ...

    def surface_frame(self, scene: Any, camera: Camera, config: Any) -> DepthFrame:
        """Colour and depth of the surface."""
        ...

    def live(self, checkpoint: Checkpoint, config: Any) -> FrameOf:
        """Colour and depth of the scene that a checkpoint holds so far. Raises InputError: the file is not trusted.

        The Gaussians' module has none: their checkpoints hold splats.
        """
        ...

    def counts(self, scene: Any) -> tuple[int, int]:
        """Primitives and parameters."""
        ...


@dataclass(frozen=True)
class Words:
    """How reports speak of a method: its name, its scene, what the scene is made of and its file.

    pieces: what a line of progress counts.  counted: what the report's card counts.  curve, psnr: titles of the
    plots of what the events of its training tell.  smaller: options with which it needs less memory.
    """

    name: str
    scene: str
    pieces: str
    counted: str
    file: str
    curve: str
    psnr: str
    smaller: str


WORDS: dict[str, Words] = {
    "gaussians": Words(
        "3D Gaussian Splatting",
        "splats",
        "splats",
        "Gaussians",
        "the Gaussians, in the 3DGS format that viewers read",
        "Number of Gaussians",
        "PSNR on some held-out photos, dB",
        "fewer --max-splats",
    ),
    "dvgo": Words(
        "DVGO",
        "voxel grid",
        "voxels",
        "voxels",
        "the voxel grid with its colour network",
        "Number of voxels",
        "PSNR on the rays of the steps, dB",
        "fewer --voxels, --samples or --rays",
    ),
    "dot": Words(
        "DOT",
        "octree",
        "cells",
        "octree leaves",
        "the octree, in the layout of PlenOctrees",
        "Voxels of the grid, then leaves of the octree",
        "PSNR on the rays of the steps, dB",
        "fewer --voxels or --rays, or a lower --level",
    ),
    "sds": Words(
        "Score distillation",
        "voxel grid",
        "voxels",
        "voxels",
        "the voxel grid, with one colour a voxel",
        "Voxels of the grid",
        "PSNR, dB",
        "fewer --voxels or --pixels",
    ),
    "lgm": Words(
        "LGM",
        "splats",
        "splats",
        "Gaussians",
        "the Gaussians, in the 3DGS format that viewers read",
        "Number of Gaussians",
        "PSNR, dB",
        "fewer --pixels",
    ),
}
SPLAT_METHODS = ("gaussians", "lgm")
"""Methods whose scene is splats; of other scenes some are made."""
UNKNOWN = Words(
    "unknown method", "scene", "parts", "parts", "the scene", "Number of parts", "PSNR, dB", "--preset draft"
)


def method_of(name: Any) -> Method:
    """The module of a method. Raises InputError when there is none of this name."""
    known = METHODS | GENERATORS
    if not isinstance(name, str) or name not in known:
        raise InputError(f"there is no method {str(name)[:40]!r} in this version; there are {', '.join(known)}")
    return cast(Method, importlib.import_module(known[name]))


def words_of(name: Any) -> Words:
    """The words for a method; plain ones where it is not known."""
    return WORDS.get(name, UNKNOWN) if isinstance(name, str) else UNKNOWN


@dataclass(frozen=True)
class Trained:
    """A trained scene together with the method and the options that made it."""

    method: str
    module: Method
    config: Any
    scene: Any

    def to(self, device: torch.device | str) -> Trained:
        """The same on another device."""
        return Trained(self.method, self.module, self.config, self.scene.to(device=device))

    def picture(self, camera: Camera, background: Tensor) -> Tensor:
        """[H, W, 3] what a camera sees over `background` [3], on the scene's device."""
        return self.module.picture(self.scene, camera, background, self.config)

    def surface(self, camera: Camera) -> DepthFrame:
        """Colour and depth of the surface that a camera sees."""
        return self.module.surface_frame(self.scene, camera, self.config)


def drawn_once(frame_of: FrameOf) -> FrameOf:
    """`frame_of` that keeps what it drew, for stages that look through the same cameras: 11 bytes a pixel."""
    kept: dict[tuple[object, ...], DepthFrame] = {}

    def frame(camera: Camera) -> DepthFrame:
        numbers = (*camera.K.flatten().tolist(), *camera.c2w.flatten().tolist())
        key = (camera.width, camera.height, *numbers)
        if key not in kept:
            kept[key] = on_cpu(frame_of(camera))
        return kept[key]

    return frame
