"""What each pixel of a photo is worth to a texture, and how bright the photos are against each other.

A pixel near a step in depth may show what lies before or behind it, because neither cameras nor mesh are exact; so may
one near the border of a cut-out. Such pixels are the last to be asked.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scene.ops.texture_bake import Samples

EDGE_BAND = 0.006  # of the longer side of the photo: how near to a step in depth pixels are not trusted
FEATHER = 0.012  # of the longer side: from there on they count more and more, so that no view ends abruptly
BORDER_FEATHER = 0.05  # of the shorter side, from the border of the photo inwards
MISTRUSTED = 1e-3  # what a pixel inside the band counts where no other photo sees the place
SOLID = 250  # alpha from which a pixel of a cut-out shows nothing but the object
PAIRS = 40_000  # texels from which gains are found
UNSATURATED = (8, 247)  # colours between which a gain is a gain
OUTLIER = 25.0  # difference of two photos, 0 to 255, beyond which they do not show the same thing
KEEP_GAIN = 0.03  # share of a photo's pairs with which its gain is held at 1, and its offset at 0


def worth_of_pixels(rgb: Tensor, alpha: Tensor | None, depth: Tensor, *, jump: float) -> Tensor:
    """[H, W] float32 >= 0, what the pixels of a photo are worth; 0 where the mesh is not or the cut-out ends.

    rgb: [H, W, 3] uint8.  alpha: [H, W] uint8 or None.  depth: [H, W] z of the mesh, 0 for none.  jump: step in depth
    between neighbouring pixels, in scene units, that hides something.
    """
    import cv2

    z = depth.numpy()
    there = z > 0
    hidden = there & ~_steps(z, jump)
    if alpha is not None:
        hidden &= alpha.numpy() >= SOLID
    if not hidden.any():
        return torch.zeros_like(depth)
    away = cv2.distanceTransform(hidden.astype(np.uint8), cv2.DIST_L2, 5)
    longer, shorter = max(z.shape), min(z.shape)
    band, feather = max(1.5, EDGE_BAND * longer), max(1.0, FEATHER * longer)
    trusted = np.clip((away - band) / feather, MISTRUSTED, 1)
    rows, columns = np.arange(z.shape[0]) + 0.5, np.arange(z.shape[1]) + 0.5
    to_border = np.minimum.outer(np.minimum(rows, z.shape[0] - rows), np.minimum(columns, z.shape[1] - columns))
    trusted *= np.clip(to_border / (BORDER_FEATHER * shorter), 0.02, 1)
    # Within a pixel of a step, colours are mixed of both sides.
    worth = np.where(away > 1.0, trusted, 0) * _sharpness(rgb, hidden)
    return torch.from_numpy(worth.astype(np.float32))


def _steps(z: NDArray[np.float32], jump: float) -> NDArray[np.bool_]:
    """[H, W] pixels beside a step. Inverse depth is linear over the image of a plane, so its second difference shows
    steps and nothing else.
    """
    inverse = np.where(z > 0, 1 / np.where(z > 0, z, 1), 0)
    padded = np.pad(inverse, 1, mode="edge")
    bend = np.maximum(
        np.abs(padded[1:-1, 2:] + padded[1:-1, :-2] - 2 * inverse),
        np.abs(padded[2:, 1:-1] + padded[:-2, 1:-1] - 2 * inverse),
    )
    return bend * z * z > jump


def _sharpness(rgb: Tensor, where: NDArray[np.bool_]) -> float:
    """How much of the contrast of a photo is between neighbouring pixels; a blurred photo has little."""
    import cv2

    grey = cv2.cvtColor(rgb.numpy(), cv2.COLOR_RGB2GRAY).astype(np.float32)
    contrast = float(grey[where].std())
    if contrast < 1.0:
        return 0.1
    return float(np.abs(cv2.Laplacian(grey, cv2.CV_32F)[where]).mean()) / contrast


def compensation(samples: Samples, views: int) -> tuple[Tensor, Tensor]:
    """[V, 3] gains and offsets (0 to 255) that make the photos agree where they see the same texels.

    A sample's colour c becomes gain c + offset. Least squares over pairs of samples of a texel, without those that are
    saturated or too different; held near 1 and 0, so that the mean brightness stays and photos alone keep theirs.
    """
    gains, offsets = torch.ones(views, 3), torch.zeros(views, 3)
    enough = (samples.weights[:, 1:2] > 0).nonzero()[:, 0] if samples.weights.shape[1] > 1 else torch.zeros(0)
    if not len(enough):
        return gains, offsets
    chosen = enough[:: max(1, len(enough) // PAIRS)].long()
    colors = samples.colors[chosen].double().numpy()
    ids, weights = samples.views[chosen].long().numpy(), samples.weights[chosen].numpy()
    for channel in range(3):
        solved = np.concatenate([np.ones(views), np.zeros(views)])
        for _ in range(3):  # what is too different is judged anew by the gains so far
            solved = _solve(colors[..., channel], ids, weights, solved)
        gains[:, channel] = torch.from_numpy(solved[:views])
        offsets[:, channel] = torch.from_numpy(solved[views:]) * 255
    return gains, offsets


def _solve(
    colors: NDArray[np.float64], ids: NDArray[np.int64], weights: NDArray[np.float32], before: NDArray[np.float64]
) -> NDArray[np.float64]:
    """[2V] gains, then offsets (of 255), of one channel, from samples [T, N] and the gains of the round before."""
    views = len(before) // 2
    low, high = UNSATURATED
    left, right, a, b = [], [], [], []
    for i in range(colors.shape[1]):
        for j in range(i + 1, colors.shape[1]):
            x, y = colors[:, i], colors[:, j]
            used = (weights[:, j] > 0) & (np.minimum(x, y) >= low) & (np.maximum(x, y) <= high)
            vx, vy = ids[used, i], ids[used, j]
            x, y = x[used] / 255, y[used] / 255
            apart = before[vx] * x + before[views + vx] - before[vy] * y - before[views + vy]
            alike = np.abs(apart) < OUTLIER / 255
            for values, of in ((left, vx), (right, vy), (a, x), (b, y)):
                values.append(of[alike])
    vx, vy, x, y = (np.concatenate(part) for part in (left, right, a, b))
    # Each pair says: g_x x + o_x - g_y y - o_y = 0. Columns of the normal equations, by pairs of unknowns.
    terms: list[tuple[Any, Any]] = [(vx, x), (views + vx, 1.0), (vy, -y), (views + vy, -1.0)]
    normal = np.zeros(4 * views * views)
    for p, c in terms:
        for q, d in terms:
            normal += np.bincount(p * 2 * views + q, np.broadcast_to(c * d, p.shape), 4 * views * views)
    normal = normal.reshape(2 * views, 2 * views)
    seen = np.bincount(vx, minlength=views) + np.bincount(vy, minlength=views)
    held = KEEP_GAIN * np.maximum(seen, seen.mean() + 1)
    diagonal = np.concatenate([0.25 * held, held])  # a colour is about a half, so a gain weighs a quarter of an offset
    wanted = np.concatenate([0.25 * held, np.zeros(views)])
    # All photos black would agree best of all: the mean gain is kept at 1 and the mean offset at 0.
    mean = np.zeros((2, 2 * views))
    mean[0, :views] = mean[1, views:] = len(x) / views
    normal += np.diag(diagonal) + mean.T @ mean / max(len(x), 1)
    wanted += mean.T @ np.array([len(x), 0.0]) / max(len(x), 1)
    return np.linalg.solve(normal, wanted).astype(np.float64)
