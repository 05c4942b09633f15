"""Gaussians in glTF 2.0 by the ratified extension KHR_gaussian_splatting: points with splat attributes, +Y up.

POSITION; ROTATION xyzw of unit length; SCALE and OPACITY linear; SH_DEGREE_l_COEF_n as 3DGS orders and signs them.
COLOR_0 is what programs without the extension show: the colour without direction, in linear light, and the opacity.

Two readings go beyond the ratified text. Drafts of the extension stored the logarithm of the scale; a length is never
negative, so a file with one negative SCALE is taken for such a draft. Where the colour space is linear, the base
colours are turned to sRGB, in which our scenes are trained, and the higher coefficients to first order with them.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from scene import sh, untrusted
from scene.errors import InputError
from scene.formats import quantised
from scene.formats.gltf import GlbWriter, GltfFile, sound
from scene.gaussians import Gaussians

log = logging.getLogger(__name__)

EXTENSION = "KHR_gaussian_splatting"
POINTS = 0
MOST_PARTS = 1000  # primitives with splats, as often as nodes show them
SRGB, LINEAR = "srgb_rec709_display", "lin_rec709_display"
LOGIT_LIMIT = 1e-6  # opacities of exactly 0 and 1 have no finite logit


def write_glb_splats(path: Path, gaussians: Gaussians) -> None:
    """Write Gaussians that already stand +Y up. Raises InputError when there are none, or for more than 4 GiB."""
    if not len(gaussians):
        raise InputError(f"there are no splats, so {path.name} was not written")
    writer = GlbWriter()
    opacities = quantised.opacities(gaussians).astype(np.float32)
    colours = np.clip(0.5 + sh.C0 * gaussians.sh_dc.double().numpy(), 0, 1)
    fallback = np.column_stack([linear_from_srgb(colours), opacities]).astype(np.float32)
    attributes = {
        "POSITION": writer.array(gaussians.means.numpy(), bounds=True),
        "COLOR_0": writer.array(fallback),
        f"{EXTENSION}:ROTATION": writer.array(quantised.unit_quats(gaussians)[:, [1, 2, 3, 0]].astype(np.float32)),
        f"{EXTENSION}:SCALE": writer.array(np.exp(gaussians.log_scales.double().numpy()).astype(np.float32)),
        f"{EXTENSION}:OPACITY": writer.array(opacities),
    }
    coefficients = gaussians.sh_coeffs.numpy()
    for number, (degree, order) in enumerate(_coefficients(gaussians.sh_degree)):
        attributes[_coefficient_name(degree, order)] = writer.array(np.ascontiguousarray(coefficients[:, number]))
    settings = {"kernel": "ellipse", "colorSpace": SRGB, "projection": "perspective", "sortingMethod": "cameraDistance"}
    primitive = {"mode": POINTS, "attributes": attributes, "extensions": {EXTENSION: settings}}
    document = {
        "asset": {"version": "2.0", "generator": "Maquette"},
        "extensionsUsed": [EXTENSION],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [primitive]}],
    }
    writer.write(path, document, what="scene")


def _coefficients(degree: int) -> list[tuple[int, int]]:
    """Degree and number within it of each spherical harmonic up to `degree`, in the order of `scene/sh.py`."""
    return [(band, order) for band in range(degree + 1) for order in range(2 * band + 1)]


def _coefficient_name(degree: int, order: int) -> str:
    return f"{EXTENSION}:SH_DEGREE_{degree}_COEF_{order}"


def has_splats(document: dict[str, Any]) -> bool:
    """Whether a glTF document says that it uses the extension."""
    used = document.get("extensionsUsed")
    return isinstance(used, list) and EXTENSION in used


@dataclass
class _Part:
    """The splats of one primitive, as stored but for their place and colour space."""

    means: NDArray
    quats: NDArray  # wxyz
    scales: NDArray  # lengths, or their logarithms in drafts
    opacities: NDArray
    coeffs: NDArray  # [N, K, 3]
    world: NDArray[np.float64]


def read_glb_splats(path: Path) -> Gaussians:
    """All Gaussians of the default scene of a .glb or .gltf, in its axes; with the highest SH degree of its parts.

    Raises InputError for what is not a sound glTF file, holds no splats, or compresses them by another extension.
    """
    with sound(path):
        parts = _parts(GltfFile(path))
        if not parts:
            raise InputError(f"{path} holds no splats: none of its primitives uses {EXTENSION}")
        logs = any((part.scales < 0).any() for part in parts)
        if logs:
            log.warning("%s holds scales below zero: taken for a draft of %s, which stored logarithms", path, EXTENSION)
        coefficients = max(part.coeffs.shape[1] for part in parts)
        return Gaussians.concat([_gaussians(part, coefficients, str(path), scales_are_logs=logs) for part in parts])


def _parts(file: GltfFile) -> list[_Part]:
    parts: list[_Part] = []
    count = 0
    for number, world in file.instances():
        for primitive in file.item("meshes", number)["primitives"]:
            settings = primitive.get("extensions", {}).get(EXTENSION)
            if settings is None:
                continue
            if primitive.get("mode", 4) != POINTS:
                raise ValueError(f"a primitive with {EXTENSION} is of mode {primitive.get('mode', 4)}, expected points")
            if len(parts) == MOST_PARTS:
                raise ValueError(f"it shows more than {MOST_PARTS} sets of splats; join them")
            parts.append(_read_primitive(file, primitive["attributes"], settings, world))
            count += len(parts[-1].means)
            # Nodes may show one mesh many times, and primitives share their data.
            if count > min(untrusted.MAX_SPLATS, max(quantised.FREE_SPLATS, file.stored_bytes)):
                raise ValueError(f"it shows more than {count - 1:,} splats with {file.stored_bytes:,} bytes of data")
    return parts


def _read_primitive(
    file: GltfFile, attributes: dict[str, Any], settings: dict[str, Any], world: NDArray[np.float64]
) -> _Part:
    compressed = [name for name in settings.get("extensions", {}) if "compression" in name]
    if compressed:
        raise ValueError(f"its splats are compressed with {compressed[0]}; export them without compression")
    for key, known in (("kernel", ("ellipse",)), ("colorSpace", (SRGB, LINEAR))):
        if settings.get(key) not in known:
            log.warning("%s: the %s %r is not known and taken for %s", file.path, key, settings.get(key), known[0])
    means = file.accessor(attributes["POSITION"], "VEC3")
    part = _Part(
        means=means,
        quats=file.accessor(attributes[f"{EXTENSION}:ROTATION"], "VEC4")[:, [3, 0, 1, 2]],
        scales=file.accessor(attributes[f"{EXTENSION}:SCALE"], "VEC3"),
        opacities=file.accessor(attributes[f"{EXTENSION}:OPACITY"], "SCALAR")[:, 0],
        coeffs=_read_coefficients(file, attributes, linear=settings.get("colorSpace") == LINEAR),
        world=world,
    )
    if any(len(values) != len(means) for values in (part.quats, part.scales, part.opacities, part.coeffs)):
        raise ValueError(f"its splat attributes have other lengths than the {len(means):,} positions")
    if not ((part.opacities >= 0) & (part.opacities <= 1)).all():
        raise ValueError("it holds opacities outside 0 to 1")
    return part


def _read_coefficients(file: GltfFile, attributes: dict[str, Any], *, linear: bool) -> NDArray:
    """[N, K, 3] in sRGB. Without spherical harmonics COLOR_0 gives the colour."""
    present = {name for name in attributes if name.startswith(f"{EXTENSION}:SH_DEGREE_")}
    if not present:
        if "COLOR_0" not in attributes:
            raise ValueError(f"a primitive with {EXTENSION} has neither spherical harmonics nor COLOR_0")
        return quantised.dc_from_rgb(srgb_from_linear(file.accessor(attributes["COLOR_0"])[:, :3]))[:, None]
    for degree in range(sh.MAX_DEGREE + 1):
        names = [_coefficient_name(*pair) for pair in _coefficients(degree)]
        if present == set(names):
            coeffs = np.stack([file.accessor(attributes[name], "VEC3") for name in names], axis=1)
            return _srgb_coefficients(coeffs) if linear else coeffs
    raise ValueError(f"its spherical harmonics are not whole degrees from 0 to {sh.MAX_DEGREE}: {len(present)} of them")


def _srgb_coefficients(coeffs: NDArray) -> NDArray:
    """Coefficients of sRGB colours from those of linear ones: degree 0 exactly, the others to first order."""
    linear = np.clip(0.5 + sh.C0 * coeffs[:, :1], 0, None)
    slope = np.where(linear <= 0.0031308, 12.92, 1.055 / 2.4 * np.maximum(linear, 0.0031308) ** (1 / 2.4 - 1))
    return np.concatenate([quantised.dc_from_rgb(srgb_from_linear(linear)), coeffs[:, 1:] * slope], axis=1)


def _gaussians(part: _Part, coefficients: int, name: str, *, scales_are_logs: bool) -> Gaussians:
    """The Gaussians of a part where its node puts them."""
    axes = part.world[:3, :3]
    size = abs(np.linalg.det(axes)) ** (1 / 3)
    if not (np.isfinite(size) and size > 0 and np.allclose(axes @ axes.T, size**2 * np.eye(3), atol=1e-4 * size**2)):
        raise ValueError("a node stretches its splats unevenly; apply the transforms in the program that wrote it")
    log_scales = part.scales if scales_are_logs else np.log(np.maximum(part.scales, quantised.LEAST_SCALE))
    missing = coefficients - part.coeffs.shape[1]
    opacities = np.clip(part.opacities, LOGIT_LIMIT, 1 - LOGIT_LIMIT)
    gaussians = quantised.gaussians_from(
        name,
        means=part.means * size,
        quats=part.quats,
        log_scales=log_scales + math.log(size),
        opacity_logits=np.log(opacities / (1 - opacities)),
        sh_dc=part.coeffs[:, 0],
        sh_rest=np.pad(part.coeffs[:, 1:], ((0, 0), (0, missing), (0, 0))),
    )
    if not np.allclose(axes, np.eye(3)):
        u, _, v = np.linalg.svd(axes)  # the nearest orthogonal matrix
        gaussians = gaussians.turned(torch.from_numpy(u @ v))
    gaussians.means = gaussians.means + torch.from_numpy(part.world[:3, 3]).to(gaussians.means)
    return quantised.checked(gaussians, name)


def linear_from_srgb(colours: NDArray) -> NDArray:
    """sRGB from 0 to 1 to linear light (IEC 61966-2-1)."""
    return np.where(colours <= 0.04045, colours / 12.92, ((np.maximum(colours, 0) + 0.055) / 1.055) ** 2.4)


def srgb_from_linear(colours: NDArray) -> NDArray:
    """Inverse of `linear_from_srgb`."""
    return np.where(colours <= 0.0031308, 12.92 * colours, 1.055 * np.maximum(colours, 0) ** (1 / 2.4) - 0.055)
