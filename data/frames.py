"""What every reader hands over: pictures on disk with what is known of their cameras, before any is decoded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.images import ImageFacts, MemoryPicture
from data.lens import Lens
from scene.errors import InputError

# Camera axes of OpenGL and Blender (x right, y up, z back) from OpenCV's (x right, y down, z forward), and back.
GL_FROM_CV = np.diag([1.0, -1.0, -1.0, 1.0])


@dataclass(frozen=True)
class PointCloud:
    """Points of the scene in the frame of its cameras, as structure from motion leaves them."""

    xyz: Tensor  # [P, 3] float32
    rgb: Tensor  # [P, 3] uint8
    errors: Tensor | None = None  # [P] float32, mean reprojection error in px
    tracks: Tensor | None = None  # [P] int32, number of views that saw the point

    def __post_init__(self) -> None:
        count = self.xyz.shape[0]
        if tuple(self.xyz.shape) != (count, 3) or tuple(self.rgb.shape) != (count, 3):
            raise ValueError(f"xyz and rgb must be [P, 3], got {tuple(self.xyz.shape)} and {tuple(self.rgb.shape)}")

    def __len__(self) -> int:
        return self.xyz.shape[0]


@dataclass(frozen=True)
class Frame:
    """One picture file. Sizes and intrinsics are those of the decoded picture: turned by `orientation`, full size."""

    name: str  # unique in its source, relative, with /
    path: Path | MemoryPicture
    width: int
    height: int
    orientation: int = 1  # EXIF code still to be applied after decoding; 1 = as stored
    mask: Path | None = None
    has_alpha: bool = False
    lens: Lens | None = None
    c2w: NDArray[np.float64] | None = None  # [4, 4]
    camera_group: str = ""
    focal_px: float | None = None
    gps: tuple[float, float, float] | None = None
    time: float | None = None


def posed_frame(
    name: str,
    path: Path,
    facts: ImageFacts,
    lens: Lens,
    c2w: NDArray[np.float64],
    *,
    group: str,
    mask: Path | None = None,
    orientation: int = 1,
) -> Frame:
    """A frame whose camera its source states; `lens` is over the decoded picture."""
    return Frame(
        name=name,
        path=path,
        width=lens.width,
        height=lens.height,
        orientation=orientation,
        mask=mask,
        has_alpha=facts.has_alpha or mask is not None,
        lens=lens,
        c2w=c2w,
        camera_group=group,
        gps=facts.exif.gps,
        time=facts.exif.time,
    )


@dataclass(frozen=True)
class Source:
    """What a reader found in one source."""

    kind: str
    frames: tuple[Frame, ...]
    points: PointCloud | None = None
    test: frozenset[str] | None = None  # names of the given test split; None: the source is not split
    ordered: bool = False
    up: tuple[float, float, float] | None = None
    metric: bool = False
    decisions: tuple[str, ...] = ()
    close: Callable[[], None] = field(default=lambda: None)  # removes what was unpacked for this source


def rigid(matrix: object, what: str) -> NDArray[np.float64]:
    """[4, 4] rigid transform from nested numbers [3, 4] or [4, 4]; a uniform scale in its rotation is taken out.

    Raises InputError when the numbers are not finite or the 3x3 part is no (scaled) rotation.
    """
    try:
        given = np.asarray(matrix, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{what}: the pose should be a 4x4 matrix of numbers") from error
    if given.shape not in ((3, 4), (4, 4)) or not np.isfinite(given).all():
        raise InputError(f"{what}: the pose should be a 4x4 matrix of finite numbers, got shape {given.shape}")
    if given.shape == (4, 4) and not np.allclose(given[3], (0, 0, 0, 1), atol=1e-6):
        raise InputError(f"{what}: the pose's last row should be 0 0 0 1, got {given[3].tolist()}")
    u, singular, vt = np.linalg.svd(given[:3, :3])
    if singular[2] <= 0 or singular[0] > 1.01 * singular[2] or np.linalg.det(u @ vt) < 0:
        raise InputError(
            f"{what}: the pose holds no rotation (axis scales {np.round(singular, 4).tolist()} or mirrored)"
        )
    pose = np.eye(4)
    pose[:3, :3] = u @ vt
    pose[:3, 3] = given[:3, 3]
    return pose


def tensor_up(up: tuple[float, float, float] | None) -> Tensor | None:
    """[3] unit float32, or None."""
    return None if up is None else torch.nn.functional.normalize(torch.tensor(up, dtype=torch.float32), dim=0)
