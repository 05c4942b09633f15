"""Real spherical harmonics to degree 3, in the order, signs and constants of 3DGS and PlenOctrees.

Symbols: `sh_coeffs` [..., (d+1)^2, 3] are stored per channel; the colour seen along a unit direction is
max(0, 0.5 + sum_k basis_k(direction) sh_coeffs_k). The native kernels hold the same constants in `cuda/math/sh.h`.
"""

from __future__ import annotations

import torch
from torch import Tensor

C0 = 0.28209479177387814
C1 = 0.4886025119029199
C2 = (1.0925484305920792, -1.0925484305920792, 0.31539156525252005, -1.0925484305920792, 0.5462742152960396)
C3 = (
    -0.5900435899266435,
    2.890611442640554,
    -0.4570457994644658,
    0.3731763325901154,
    -0.4570457994644658,
    1.445305721320277,
    -0.5900435899266435,
)

MAX_DEGREE = 3


def coefficients(degree: int) -> int:
    """Number of basis functions up to `degree`.  Raises ValueError outside 0 to 3."""
    if not 0 <= degree <= MAX_DEGREE:
        raise ValueError(f"spherical harmonics go from degree 0 to {MAX_DEGREE}, got {degree}")
    return (degree + 1) ** 2


def basis(directions: Tensor, degree: int) -> Tensor:
    """Basis functions of unit directions.

    directions: [..., 3], unit.  Returns [..., (degree + 1)^2].  Differentiable.  Source: specs/recon.md, 0.3.
    """
    coefficients(degree)
    x, y, z = directions.unbind(-1)
    values = [torch.full_like(x, C0)]
    if degree >= 1:
        values += [-C1 * y, C1 * z, -C1 * x]
    if degree >= 2:
        xx, yy, zz = x * x, y * y, z * z
        values += [
            C2[0] * x * y,
            C2[1] * y * z,
            C2[2] * (2 * zz - xx - yy),
            C2[3] * x * z,
            C2[4] * (xx - yy),
        ]
        if degree >= 3:
            values += [
                C3[0] * y * (3 * xx - yy),
                C3[1] * x * y * z,
                C3[2] * y * (4 * zz - xx - yy),
                C3[3] * z * (2 * zz - 3 * xx - 3 * yy),
                C3[4] * x * (4 * zz - xx - yy),
                C3[5] * z * (xx - yy),
                C3[6] * x * (xx - 3 * yy),
            ]
    return torch.stack(values, dim=-1)


def evaluate(sh_coeffs: Tensor, directions: Tensor) -> Tensor:
    """Colours seen along unit directions, before the shift by 0.5 and the clamp.

    sh_coeffs: [..., K, 3] with K = 1, 4, 9 or 16; directions: [..., 3], unit.  Returns [..., 3].
    """
    return (basis(directions, degree_of(sh_coeffs.shape[-2])).unsqueeze(-1) * sh_coeffs).sum(-2)


def degree_of(count: int) -> int:
    """Degree that has `count` basis functions.  Raises ValueError when there is none."""
    degrees = {1: 0, 4: 1, 9: 2, 16: 3}
    if count not in degrees:
        raise ValueError(f"spherical harmonics have 1, 4, 9 or 16 coefficients, got {count}")
    return degrees[count]


def from_rgb(rgb: Tensor) -> Tensor:
    """Degree-0 coefficients of a colour in [0, 1] that is the same from everywhere."""
    return (rgb - 0.5) / C0


def to_rgb(sh_dc: Tensor) -> Tensor:
    """Colour of degree-0 coefficients; inverse of `from_rgb`."""
    return sh_dc * C0 + 0.5


def rotate(sh_coeffs: Tensor, rotation: Tensor) -> Tensor:
    """Coefficients of the same light after the scene was turned: evaluate(rotated, R d) = evaluate(sh_coeffs, d).

    sh_coeffs: [..., K, 3]; rotation: [3, 3], target from source.  Returns [..., K, 3].
    Each degree turns within itself, so its matrix follows exactly from values along as many spread directions as
    it has coefficients or more, by least squares in float64.
    """
    degree = degree_of(sh_coeffs.shape[-2])
    directions = spread_directions(64).to(rotation.device)
    turned = directions @ rotation.double().T
    before, after = basis(directions, degree), basis(turned, degree)
    parts = []
    for band in range(degree + 1):
        inside = slice(band * band, (band + 1) ** 2)
        matrix = torch.linalg.lstsq(after[:, inside], before[:, inside]).solution  # [2l+1, 2l+1]
        parts.append(torch.einsum("ij,...jc->...ic", matrix.to(sh_coeffs.dtype), sh_coeffs[..., inside, :]))
    return torch.cat(parts, dim=-2)


def spread_directions(count: int) -> Tensor:
    """[count, 3] float64 unit directions on a Fibonacci spiral: evenly spread, no two alike."""
    steps = torch.arange(count, dtype=torch.float64) + 0.5
    z = 1 - 2 * steps / count
    angle = steps * 2.399963229728653  # golden angle
    radius = (1 - z * z).sqrt()
    return torch.stack([radius * angle.cos(), radius * angle.sin(), z], dim=-1)
