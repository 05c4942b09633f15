"""What the packed splat formats share: bytes to values, quaternions by their three smallest parts, Morton order.

Values are numpy arrays here, named and shaped as in `scene/gaussians.py`.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from scene import sh, untrusted
from scene.errors import InputError
from scene.gaussians import Gaussians

MOST_LOGIT = 30.0  # sigmoid is 1 from 17 on in float32
LEAST_SCALE = 1e-20  # of a format with linear scales: zero has no logarithm
SPLATS_PER_BYTE = 4  # of a packed file; real scenes take 8 bytes and more for a splat
FREE_SPLATS = 1 << 16


def check_count(count: int, file_bytes: int, name: str) -> None:
    """Raise InputError for more splats than a packed file of this size can hold: a few bytes may claim any number."""
    if count > untrusted.MAX_SPLATS or count > max(FREE_SPLATS, SPLATS_PER_BYTE * file_bytes):
        raise InputError(
            f"{name} announces {count:,} splats in {file_bytes:,} bytes; that cannot be, get the file again"
        )


def gaussians_from(
    name: str,
    *,
    means: NDArray,
    quats: NDArray,
    log_scales: NDArray,
    opacity_logits: NDArray,
    sh_dc: NDArray,
    sh_rest: NDArray | None = None,
) -> Gaussians:
    """Gaussians of arrays that a file held. Raises InputError for values that are not finite and lengthless quats."""
    arrays = {
        "means": means,
        "quats": quats,
        "log_scales": log_scales,
        "opacity_logits": opacity_logits,
        "sh_dc": sh_dc,
        "sh_rest": np.zeros((len(means), 0, 3), np.float32) if sh_rest is None else sh_rest,
    }
    gaussians = Gaussians(
        **{key: torch.from_numpy(np.require(array, np.float32, ["C", "W"])) for key, array in arrays.items()}
    )
    return checked(gaussians, name)


def checked(gaussians: Gaussians, name: str) -> Gaussians:
    """The same, wholly opaque and wholly clear splats with finite logits: some programs write them as +-infinity.

    Raises InputError when another value is not finite or a quaternion has no length.
    """
    if gaussians.opacity_logits.isinf().any():
        gaussians = replace(gaussians, opacity_logits=gaussians.opacity_logits.clamp(-MOST_LOGIT, MOST_LOGIT))
    for attribute, tensor in gaussians.parameters().items():
        if not torch.isfinite(tensor).all():
            raise InputError(
                f"{name} holds values of {attribute} that are not finite; the program that wrote it went wrong"
            )
    if (gaussians.quats.norm(dim=1) == 0).any():
        raise InputError(f"{name} holds rotations of length zero; the program that wrote it went wrong")
    return gaussians


def to_bytes(values: NDArray) -> NDArray[np.uint8]:
    """The nearest bytes; what lies outside 0 to 255 is clipped."""
    return np.clip(np.round(values), 0, 255).astype(np.uint8)


def logits_from_bytes(opacities: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Opacity logits of opacities in 1/255.

    Byte 0 stands for 0 to 0.5 and byte 255 for 254.5 to 255: the middles of these halves are taken, which are finite.
    """
    share = np.clip(np.arange(256), 0.25, 254.75) / 255
    return np.log(share / (1 - share)).astype(np.float32)[opacities]


def opacities(gaussians: Gaussians) -> NDArray[np.float64]:
    """[N] in 0 to 1, where the logistic function has not been rounded to float32 yet."""
    return torch.sigmoid(gaussians.opacity_logits.double()).numpy()


def unit_quats(gaussians: Gaussians) -> NDArray[np.float64]:
    """[N, 4] wxyz of length 1. Raises InputError when one has no length."""
    quats = gaussians.quats.double()
    lengths = quats.norm(dim=1, keepdim=True)
    if len(quats) and not float(lengths.min()) > 0:
        raise InputError("a splat has a rotation of length zero or not a number; such a scene is not written")
    return (quats / lengths).numpy()


def smallest_three(quats: NDArray) -> tuple[NDArray[np.intp], NDArray]:
    """Index [N] of the largest part of unit quats [N, 4], and the others [N, 3] with signs that make it positive."""
    largest = np.abs(quats).argmax(axis=1)
    rows = np.arange(len(quats))
    signs = np.where(quats[rows, largest] < 0, -1.0, 1.0)
    return largest, quats[rows[:, None], _OTHERS[largest]] * signs[:, None]


def from_smallest_three(largest: NDArray, three: NDArray) -> NDArray[np.float32]:
    """[N, 4] unit quats, inverse of `smallest_three`; three that are too long (damaged files) are taken as they are."""
    quats = np.empty((len(three), 4), np.float32)
    rows = np.arange(len(three))
    quats[rows[:, None], _OTHERS[largest]] = three
    quats[rows, largest] = np.sqrt(np.maximum(0, 1 - (three.astype(np.float64) ** 2).sum(axis=1)))
    return quats


def dc_from_rgb(rgb: NDArray) -> NDArray:
    """Degree-0 coefficients of colours in 0 to 1."""
    return (rgb - 0.5) / sh.C0


def morton_order(means: NDArray) -> NDArray[np.intp]:
    """[N] an order in which neighbours in the row are neighbours in space (Z-order curve of 21 bits an axis)."""
    low = means.min(axis=0).astype(np.float64)
    extent = np.maximum(means.max(axis=0) - low, 1e-30)
    cells = ((means - low) / extent * ((1 << 21) - 1)).astype(np.uint64)
    code = np.zeros(len(means), np.uint64)
    for axis in range(3):
        code |= _spread_bits(cells[:, axis]) << np.uint64(axis)
    return np.argsort(code, kind="stable")


def _spread_bits(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """21 bits with two zeros put before each."""
    for shift, mask in (
        (32, 0x1F00000000FFFF),
        (16, 0x1F0000FF0000FF),
        (8, 0x100F00F00F00F00F),
        (4, 0x10C30C30C30C30C3),
        (2, 0x1249249249249249),
    ):
        x = (x | x << np.uint64(shift)) & np.uint64(mask)
    return x


_OTHERS = np.array([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])
