"""What keeps a distilled field solid and clean where a prior does not: losses on its renders, weights and normals.

Each is a mean, to be multiplied by the weight of its method. N pictures; R rays with the weights of their samples.
"""

from __future__ import annotations

import torch
from torch import Tensor

FLOOR = 1e-3  # of an opacity's logarithm


def sparsity(opacity: Tensor) -> Tensor:
    """Mean sqrt(opacity^2 + 0.01), which empties what is not needed (DreamFusion's code; threestudio)."""
    return (opacity.square() + 0.01).sqrt().mean()


def opaqueness(opacity: Tensor) -> Tensor:
    """Entropy of opacities in 0..1: rays are to hit or to miss (threestudio's "opaque")."""
    o = opacity.clamp(FLOOR, 1 - FLOOR)
    return -(o * o.log() + (1 - o) * (1 - o).log()).mean()


def orientation(weights: Tensor, normals: Tensor, directions: Tensor) -> Tensor:
    """Mean of w relu(n . d)^2 over samples: what is seen faces the camera (Ref-NeRF, eq. 11).

    weights: [M], taken as fixed.  normals: [M, 3] outward.  directions: [M, 3] unit, away from the camera.
    """
    return (weights.detach() * (normals * directions).sum(-1).clamp(min=0).square()).mean()


def depth_variance(weights: Tensor, depths: Tensor) -> Tensor:
    """Mean over rays of sum_i w_i (z_i - z)^2 / sum_i w_i, one thin surface on each ray (HiFA). [R, S] both."""
    total = weights.sum(-1).clamp(min=1e-6)
    mean = (weights * depths).sum(-1) / total
    return ((weights * (depths - mean[:, None]).square()).sum(-1) / total).mean()


def emptiness(weights: Tensor, scale: float = 10.0) -> Tensor:
    """Mean log(1 + scale w): few samples hold a ray's light (Score Jacobian Chaining)."""
    return torch.log1p(scale * weights).mean()


def distortion(weights: Tensor, places: Tensor, interval: float) -> Tensor:
    """Mean over rays of sum_ij w_i w_j |s_i - s_j| + sum_i w_i^2 interval / 3 (mip-NeRF 360, eq. 15).

    weights, places: [R, S], places ascending in 0..1.  interval: a sample's length.
    """
    before, moment = weights.cumsum(-1) - weights, (weights * places).cumsum(-1) - weights * places
    apart = 2 * (weights * (places * before - moment)).sum(-1)
    return (apart + weights.square().sum(-1) * interval / 3).mean()


def total_variation(values: Tensor) -> Tensor:
    """Mean squared difference of neighbours along the last two axes of pictures [N, C, H, W]."""
    return values.diff(dim=-1).square().mean() + values.diff(dim=-2).square().mean()


def normal_smoothness(normals: Tensor, nearby: Tensor) -> Tensor:
    """Mean |n(x) - n(x + 0.01 noise)| over samples [M, 3] (Magic3D; threestudio's normal smoothness in 3D)."""
    return (normals - nearby).abs().mean()
