"""From the scene's axes, whose up is +Z unless said otherwise, to those of file formats."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

UP = (0.0, 0.0, 1.0)
FILE_UP = {
    **dict.fromkeys((".glb", ".gltf", ".spz", ".usdz", ".usd", ".usda", ".usdc", ".obj"), (0.0, 1.0, 0.0)),
    **dict.fromkeys((".splat", ".sog"), (0.0, -1.0, 0.0)),
}
"""What is up in a file's own coordinates, by ending; formats not named here keep the axes of whoever wrote them.

glTF, SPZ and USD fix it; OBJ does not, but every tool that opens one takes +Y for up; .splat and .sog are shown as
COLMAP leaves scenes, with -Y up.
"""


def y_up_from_scene(up: tuple[float, float, float] = UP) -> NDArray[np.float64]:
    """[4, 4] the rotation that takes the scene's up to +Y; for up = +Z it takes +Y to -Z and keeps +X.

    Raises ValueError when `up` has no length.
    """
    y = np.asarray(up, dtype=np.float64)
    if not np.isfinite(y).all() or np.linalg.norm(y) < 1e-12:
        raise ValueError(f"up must be a direction, got {up}")
    y = y / np.linalg.norm(y)
    x = np.array([1.0, 0.0, 0.0]) if abs(y[0]) < 0.9 else np.array([0.0, 0.0, -1.0])
    x = x - (x @ y) * y
    x /= np.linalg.norm(x)
    matrix = np.eye(4)
    matrix[:3, :3] = [x, y, np.cross(x, y)]
    return matrix


def file_from_scene(ending: str, up: tuple[float, float, float] = UP) -> NDArray[np.float64]:
    """[4, 4] rotation from the scene's axes to those of files with this ending; no turn where the format names none.

    Raises ValueError when `up` has no length.
    """
    if ending not in FILE_UP:
        return np.eye(4)
    return y_up_from_scene(FILE_UP[ending]).T @ y_up_from_scene(up)
