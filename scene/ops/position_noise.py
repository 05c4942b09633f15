"""MCMC's exploration noise without a list of the splats that it moves: random numbers by counting.

`scene/densify.py` has the same step from a torch.Generator, which must know how many numbers to draw; on a GPU that
question would make the host wait. Here row i at step s under seed k always draws the same number.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scene.gaussians import Gaussians
from scene.ops import native
from scene.ops.gpu.position_noise import add_position_noise
from scene.ops.splat_project import quats_to_matrices

FAINT = 0.07  # opacity; the paper's sigmoid is below 2e-3 from here on
WORD = 0xFFFFFFFF


def scatter_means(gaussians: Gaussians, *, strength: float, seed: int, step: int) -> None:
    """Moves the means of faint splats in place by noise shaped like the splat.

    strength: the learning rate of the means times the noise factor.  seed: 0 to 2^63 - 1.  step: 0 to 2^32 - 1.
    Not differentiable.  Source: "3D Gaussian Splatting as Markov Chain Monte Carlo" (Kheradmand et al., 2024), eq. 8.
    Raises ValueError when seed or step is out of range.
    """
    if not (0 <= seed < 1 << 63 and 0 <= step <= WORD):
        raise ValueError(f"seed must lie in [0, 2^63) and step in [0, 2^32), got {seed} and {step}")
    means = gaussians.means
    if native.backend(means.device, means.dtype) == "cuda":
        shape = (gaussians.quats, gaussians.log_scales, gaussians.opacity_logits)
        add_position_noise(means, *shape, strength, seed, step)
        return
    scatter_means_reference(gaussians, strength=strength, seed=seed, step=step)


@torch.no_grad()
def scatter_means_reference(gaussians: Gaussians, *, strength: float, seed: int, step: int) -> None:
    """The same in plain torch."""
    opacities, means = gaussians.opacities, gaussians.means
    weight = torch.where(opacities < FAINT, torch.sigmoid(100 * (0.005 - opacities)) * strength, 0)
    noise = normal3(len(means), seed=seed, step=step, device=means.device).to(means) * weight[:, None]
    rotation = quats_to_matrices(gaussians.quats)
    along = torch.einsum("nki,nk->ni", rotation, noise) * gaussians.scales**2
    means += torch.einsum("nij,nj->ni", rotation, along)


def normal3(count: int, *, seed: int, step: int, device: torch.device) -> Tensor:
    """[count, 3] float32 normal deviates of rows 0 to count - 1, by Box and Muller (1958)."""
    words = philox(count, seed=seed, step=step, device=device)
    u = ((words >> 9).float() + 0.5) / 2**23  # midpoints of 2^23 parts of (0, 1), exact
    radius, angle = torch.sqrt(-2 * torch.log(u[:, [0, 2]])), 2 * math.pi * u[:, [1, 3]]
    pair = radius * torch.cos(angle)
    return torch.stack([pair[:, 0], radius[:, 0] * torch.sin(angle[:, 0]), pair[:, 1]], dim=1)


def philox(count: int, *, seed: int, step: int, device: torch.device) -> Tensor:
    """[count, 4] int64 of one 32-bit word each: Philox 4x32-10 (Salmon et al., 2011) of counter (row, step, 0, 0)."""
    x = torch.arange(count, device=device)
    y, z, w = torch.full_like(x, step), torch.zeros_like(x), torch.zeros_like(x)
    key0, key1 = seed & WORD, seed >> 32 & WORD
    for _ in range(10):
        (a_high, a_low), (b_high, b_low) = _product(x, 0xD2511F53), _product(z, 0xCD9E8D57)
        x, y, z, w = b_high ^ y ^ key0, b_low, a_high ^ w ^ key1, a_low
        key0, key1 = (key0 + 0x9E3779B9) & WORD, (key1 + 0xBB67AE85) & WORD
    return torch.stack([x, y, z, w], dim=1)


def _product(word: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """High and low word of a 32 by 32 bit product, by halves of the factor: int64 has no room for all 64 bits."""
    low, high = word * (factor & 0xFFFF), word * (factor >> 16)
    middle = (low >> 16) + high  # below 2^49
    return middle >> 16, (middle & 0xFFFF) << 16 | low & 0xFFFF
