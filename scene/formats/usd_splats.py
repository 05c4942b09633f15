"""Gaussians as USD's ParticleField3DGaussianSplat: linear scales and opacities, harmonics as 3DGS has them.

The schema (usd-core, usdVol) gives each particle (degree + 1)^2 coefficients in a row, constant term first, in the
particles' own frame; like 3DGS it adds them to a mid grey of 0.5.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from scene import sh
from scene.errors import InputError
from scene.formats.usd import file_world, pxr, read_stage, write_stage
from scene.gaussians import Gaussians

REACH = 3.0  # standard deviations that a splat's extent covers
FAINTEST, DENSEST = 1e-6, 1 - 1e-6  # opacities of 0 and 1 have no finite logit


def write_usd_splats(path: Path, gaussians: Gaussians) -> None:
    """Write Gaussians that already stand +Y up as .usdz, .usda or .usdc; float32 throughout, atomic."""
    g = gaussians.detach().to(device="cpu", dtype=torch.float32)

    def fill(stage: Any) -> None:
        UsdVol, Vt = pxr("UsdVol", "Vt")

        field = UsdVol.ParticleField3DGaussianSplat.Define(stage, "/maquette/splats")
        means, scales = g.means.numpy(), g.scales.numpy()
        quats = torch.nn.functional.normalize(g.quats, dim=1).numpy()
        field.CreatePositionsAttr(Vt.Vec3fArray.FromNumpy(means))
        field.CreateOrientationsAttr(Vt.QuatfArray.FromNumpy(quats[:, [1, 2, 3, 0]].copy()))  # pxr keeps w last
        field.CreateScalesAttr(Vt.Vec3fArray.FromNumpy(scales))
        field.CreateOpacitiesAttr(Vt.FloatArray.FromNumpy(g.opacities.numpy()))
        field.CreateRadianceSphericalHarmonicsDegreeAttr(g.sh_degree)
        coefficients = g.sh_coeffs.reshape(-1, 3).contiguous().numpy()
        field.CreateRadianceSphericalHarmonicsCoefficientsAttr(Vt.Vec3fArray.FromNumpy(coefficients))
        if len(g):
            reach = REACH * scales.max(axis=1, keepdims=True)
            corners = np.stack([(means - reach).min(axis=0), (means + reach).max(axis=0)])
            field.CreateExtentAttr(Vt.Vec3fArray.FromNumpy(corners.astype(np.float32)))

    write_stage(path, fill)


def read_usd_splats(path: Path) -> Gaussians:
    """All Gaussian splats of a USD file in one set, in metres, +Y up; what the schema lets out has its default.

    Raises InputError for a file without any, a damaged one, and one that scales splats differently along its axes.
    """
    answer, arrays = read_stage(path)
    world = file_world(answer)
    parts = []
    for found in answer["splats"]:
        try:
            part = _particles(found, arrays)
        except ValueError as error:
            raise InputError(f"{path} is not a sound splat file: {error}") from error
        parts.append(_placed(part, world @ arrays[f"{found['key']}.world"], path))
    if not parts:
        raise InputError(f"{path} has no Gaussian splats (ParticleField3DGaussianSplat)")
    degree = min(part.sh_degree for part in parts)
    for part in parts:
        part.sh_rest = part.sh_rest[:, : sh.coefficients(degree) - 1]
    return parts[0] if len(parts) == 1 else Gaussians.concat(parts)


def has_usd_splats(path: Path) -> bool:
    """Whether a USD file holds Gaussian splats. Raises InputError when it cannot be read."""
    return bool(read_stage(path)[0]["splats"])


def _particles(found: Mapping[str, Any], arrays: Mapping[str, NDArray]) -> Gaussians:
    """One prim's particles in its own frame. Raises ValueError for values that cannot be drawn."""
    positions = arrays[f"{found['key']}.positions"]
    n, degree = len(positions), found["degree"]
    size = sh.coefficients(degree)

    def rows(name: str, default: tuple[float, ...]) -> NDArray[np.float32]:
        """One row for each particle: more are cut off, fewer count as none, as the schema says."""
        values = arrays[f"{found['key']}.{name}"] if name in found["have"] else np.zeros((0,), np.float32)
        values = values.reshape(-1, len(default))
        return values[:n] if len(values) >= n else np.tile(np.array(default, np.float32), (n, 1))

    orientations = rows("orientations", (0, 0, 0, 1))[:, [3, 0, 1, 2]]
    scales, opacities = rows("scales", (1, 1, 1)), rows("opacities", (1,))[:, 0]
    coefficients = rows("harmonics", (0,) * (3 * size)).reshape(n, size, 3)
    for name, values in (("positions", positions), ("scales", scales), ("opacities", opacities)):
        if not np.isfinite(values).all():
            raise ValueError(f"its {name} are not all finite")
    if not (np.isfinite(orientations).all() and np.linalg.norm(orientations, axis=1).all()):
        raise ValueError("it has rotations that are not finite or of length zero")
    if not np.isfinite(coefficients).all() or (scales < 0).any():
        raise ValueError("it has colours that are not finite or negative scales")
    tiny = float(np.finfo(np.float32).tiny)
    coeffs = torch.from_numpy(coefficients.astype(np.float32))
    return Gaussians(
        means=torch.from_numpy(positions.astype(np.float32)),
        quats=torch.from_numpy(np.ascontiguousarray(orientations, np.float32)),
        log_scales=torch.from_numpy(scales.astype(np.float32)).clamp_min(tiny).log(),
        opacity_logits=torch.from_numpy(opacities.astype(np.float64)).clamp(FAINTEST, DENSEST).logit().float(),
        sh_dc=coeffs[:, 0].contiguous(),
        sh_rest=coeffs[:, 1:].contiguous(),
    )


def _placed(part: Gaussians, matrix: NDArray[np.float64], path: Path) -> Gaussians:
    """Particles under an affine transform that keeps shapes: turned, mirrored, scaled, moved."""
    if np.array_equal(matrix, np.eye(4)):
        return part
    scale = abs(float(np.linalg.det(matrix[:3, :3]))) ** (1 / 3)
    turn = matrix[:3, :3] / max(scale, 1e-300)
    if not np.isfinite(matrix).all() or not np.allclose(turn @ turn.T, np.eye(3), atol=1e-5):
        raise InputError(f"{path} stretches its splats unevenly, which Gaussians of this kind cannot follow")
    u, _, vt = np.linalg.svd(turn)
    part = part.turned(torch.from_numpy(u @ vt))
    part.means = part.means * scale + torch.from_numpy(matrix[:3, 3]).float()
    part.log_scales = part.log_scales + math.log(scale)
    return part
