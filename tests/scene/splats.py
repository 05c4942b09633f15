"""Small random scenes of Gaussians and a camera in front of them, for the tests of the rasteriser."""

from __future__ import annotations

import torch
from torch import Tensor

from scene.cameras import Camera, look_at
from scene.gaussians import Gaussians


def random_gaussians(
    count: int, *, seed: int = 0, sh_degree: int = 3, dtype: torch.dtype = torch.float32, log_scale: float = -2.5
) -> Gaussians:
    """Gaussians of all shapes and opacities in a unit ball or so around the origin, colourful from everywhere."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return Gaussians(
        means=0.7 * normal(count, 3),
        quats=normal(count, 4),
        log_scales=0.5 * normal(count, 3) + log_scale,
        opacity_logits=normal(count),
        sh_dc=0.5 * normal(count, 3),
        sh_rest=0.2 * normal(count, (sh_degree + 1) ** 2 - 1, 3),
    )


def a_camera(*, dtype: torch.dtype = torch.float32, width: int = 40, height: int = 36) -> Camera:
    """A camera that looks at the origin from three units away; neither square nor centred."""
    eye = torch.tensor([0.4, -3.0, 1.0], dtype=torch.float64)
    c2w = look_at(eye, torch.zeros(3, dtype=torch.float64), torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64))
    K = torch.tensor([[38.0, 0.0, 0.47 * width], [0.0, 40.0, 0.52 * height], [0.0, 0.0, 1.0]], dtype=torch.float64)
    return Camera(K.to(dtype), c2w.to(dtype), width, height)


def random_rotation(seed: int) -> Tensor:
    """[3, 3] float64 rotation."""
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    return q * torch.linalg.det(q)


def matrices_to_quats(rotations: Tensor) -> Tensor:
    """Unit quaternions [..., 4] of rotation matrices, by the eigenvector that Bar-Itzhack's matrix has for 1."""
    m = rotations
    xx, yy, zz = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    xy, xz, yz = m[..., 0, 1] + m[..., 1, 0], m[..., 0, 2] + m[..., 2, 0], m[..., 1, 2] + m[..., 2, 1]
    wx, wy, wz = m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]
    rows = [
        torch.stack([xx + yy + zz, wx, wy, wz], -1),
        torch.stack([wx, xx - yy - zz, xy, xz], -1),
        torch.stack([wy, xy, yy - xx - zz, yz], -1),
        torch.stack([wz, xz, yz, zz - xx - yy], -1),
    ]
    return torch.linalg.eigh(torch.stack(rows, -2)).eigenvectors[..., -1]


def turned(gaussians: Gaussians, rotation: Tensor, shift: Tensor) -> Gaussians:
    """The same scene elsewhere: x -> rotation x + shift."""
    from scene import sh
    from scene.ops.splat_project import quats_to_matrices

    like = gaussians.means
    axes = rotation @ quats_to_matrices(gaussians.quats.double())
    coeffs = sh.rotate(gaussians.sh_coeffs.double(), rotation).to(like)
    return Gaussians(
        means=(gaussians.means.double() @ rotation.T + shift).to(like),
        quats=matrices_to_quats(axes).to(like),
        log_scales=gaussians.log_scales,
        opacity_logits=gaussians.opacity_logits,
        sh_dc=coeffs[:, 0],
        sh_rest=coeffs[:, 1:],
    )
