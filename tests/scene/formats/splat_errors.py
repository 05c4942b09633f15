"""How far one set of Gaussians is from another, attribute by attribute, in the units in which formats round them.

Used by the tests of the splat formats and by `benchmarks/formats.py`.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from scene.gaussians import Gaussians
from scene.ops.splat_project import quats_to_matrices

ATTRIBUTES = ("means", "log_scales", "angles", "opacities", "sh_dc", "sh_rest")


def errors(source: Gaussians, other: Gaussians) -> dict[str, NDArray[np.float64]]:
    """[N] largest error of each splat: positions in scene units, logs of scales, angles in radians between rotations,
    opacities in 0 to 1, spherical harmonics as stored. Attributes that are not in `other` (higher degrees) are absent.
    """
    a, b = (Gaussians(**{k: t.double() for k, t in g.parameters().items()}) for g in (source, other))
    if len(a) != len(b):
        raise AssertionError(f"{len(b)} splats came back of {len(a)}")
    found = {
        "means": (a.means - b.means).abs().amax(dim=1),
        "log_scales": (a.log_scales - b.log_scales).abs().amax(dim=1),
        "angles": rotation_angles(a.quats, b.quats),
        "opacities": (a.opacities - b.opacities).abs(),
        "sh_dc": (a.sh_dc - b.sh_dc).abs().amax(dim=1),
    }
    if a.sh_degree and a.sh_degree == b.sh_degree:
        found["sh_rest"] = (a.sh_rest - b.sh_rest).abs().flatten(1).amax(dim=1)
    return {name: values.numpy() for name, values in found.items()}


def rotation_angles(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """[N] angle between rotations, from the half chord of unit quaternions: exact also where it is tiny."""
    a, b = (torch.nn.functional.normalize(q, dim=1) for q in (first, second))
    half_chord = torch.minimum((a - b).norm(dim=1), (a + b).norm(dim=1)) / 2
    return 4 * half_chord.clamp(max=1).arcsin()


def covariances(gaussians: Gaussians) -> torch.Tensor:
    """[N, 3, 3] float64: the ellipsoids themselves, whatever names their axes have."""
    axes = quats_to_matrices(gaussians.quats.double()) * gaussians.scales.double()[:, None]
    return axes @ axes.transpose(1, 2)


def matched(source: Gaussians, other: Gaussians) -> Gaussians:
    """`other` in the order of `source`: writers may sort. By position, then by what else is alike among neighbours."""
    from scipy.spatial import KDTree

    def features(g: Gaussians) -> NDArray[np.float64]:
        rest = torch.cat([g.sh_dc, g.log_scales, 4 * g.opacities[:, None]], dim=1).double().numpy()
        return np.column_stack([1e3 * _log_means(g), 0.5 * rest])

    _, index = KDTree(features(other)).query(features(source))
    if len(np.unique(index)) < 0.999 * len(source):
        raise AssertionError(f"only {len(np.unique(index))} of {len(source)} splats were found again")
    return other.select(torch.from_numpy(index))


def _log_means(gaussians: Gaussians) -> NDArray[np.float64]:
    means = gaussians.means.double().numpy()
    return np.sign(means) * np.log1p(np.abs(means))


def extreme_gaussians(count: int, degree: int, *, seed: int = 0) -> Gaussians:
    """Tiny and huge scales, opacities near 0 and 1, quaternions of all signs and lengths, a tenth far out."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    far = (torch.rand(count, 1, generator=generator) < 0.1).double()
    quats = normal(count, 4) * 10 ** normal(count, 1)
    special = torch.cat([torch.eye(4), -torch.eye(4), torch.full((1, 4), 0.5), torch.tensor([[1.0, 1, 0, 0]])]).double()
    quats[: len(special)] = special[:count]
    logits = 4 * normal(count)
    logits[: min(4, count)] = torch.tensor([-30.0, 30.0, -8.0, 8.0])[:count]
    values = {
        "means": normal(count, 3) * (1 + 300 * far),
        "quats": quats,
        "log_scales": (2 * normal(count, 3) - 4).clamp(-9.9, 5.9),
        "opacity_logits": logits,
        "sh_dc": (normal(count, 3)).clamp(-1.77, 1.77),
        "sh_rest": (0.25 * normal(count, (degree + 1) ** 2 - 1, 3)).clamp(-0.99, 0.99),
    }
    return Gaussians(**{name: tensor.float() for name, tensor in values.items()})
