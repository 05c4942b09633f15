""".splat: 32 bytes a splat, as antimatter15's viewer reads them. No view-dependent colour.

Little-endian: position 3 x float32, scale 3 x float32 (linear), colour and opacity 4 x uint8, quaternion wxyz 4 x uint8
around 128.  Its viewers stand such scenes with -Y up; `scene/formats` turns them.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
from torch import Tensor

from scene import sh, untrusted
from scene.errors import InputError
from scene.files import replacing, write_errors
from scene.formats import quantised
from scene.gaussians import Gaussians

log = logging.getLogger(__name__)

RECORD = np.dtype([("mean", "<f4", 3), ("scale", "<f4", 3), ("rgba", "u1", 4), ("quat", "u1", 4)])


def write_splat(path: Path, gaussians: Gaussians) -> None:
    """Write the splats with the largest and most opaque first: viewers show what has arrived so far."""
    g = gaussians.select(importance_order(gaussians))
    records = np.empty(len(g), RECORD)
    records["mean"] = g.means.numpy()
    records["scale"] = np.exp(g.log_scales.double().numpy())
    colours = 0.5 + sh.C0 * g.sh_dc.double().numpy()
    records["rgba"] = quantised.to_bytes(255 * np.column_stack([colours, quantised.opacities(g)]))
    quats = quantised.unit_quats(g)
    # Bytes reach from -1 to 127/128. With the largest component negative (-q turns as q does) none is cut off.
    largest = np.take_along_axis(quats, np.abs(quats).argmax(axis=1)[:, None], axis=1)
    records["quat"] = quantised.to_bytes(128 - 128 * quats * np.where(largest < 0, -1, 1))
    if g.sh_degree:
        log.warning("%s: a .splat file holds no view-dependent colour; .spz, .sog, .glb and .ply do", path.name)
    with write_errors(path, "write the splats"), replacing(path) as file:
        file.write(records.data)


def importance_order(gaussians: Gaussians) -> Tensor:
    """[N] indices by volume times opacity, the most first."""
    volumes = gaussians.log_scales.double().sum(dim=1)
    return (volumes + gaussians.opacity_logits.double().sigmoid().log()).argsort(descending=True, stable=True)


def read_splat(path: Path) -> Gaussians:
    """Read a .splat file. Raises InputError for a size that is no multiple of 32 and for values that cannot be."""
    data = untrusted.read_bytes(path)
    if not data or len(data) % RECORD.itemsize:
        raise InputError(
            f"{path} has {len(data):,} bytes; a .splat file has 32 for each splat, so it is empty, cut short or another"
        )
    records = np.frombuffer(data, RECORD)
    if not (records["scale"] >= 0).all():
        raise InputError(f"{path} holds scales below zero or not a number; it is damaged or not a .splat file")
    colours = records["rgba"][:, :3] / 255
    return quantised.gaussians_from(
        str(path),
        means=records["mean"],
        quats=records["quat"] / 128.0 - 1,
        log_scales=np.log(np.maximum(records["scale"].astype(np.float64), quantised.LEAST_SCALE)),
        opacity_logits=quantised.logits_from_bytes(records["rgba"][:, 3]),
        sh_dc=quantised.dc_from_rgb(colours),
    )
