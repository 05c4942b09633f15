"""Where an octree gets coarser and where finer (DOT, Bai et al., 2023): by the light that rays take from each leaf.

S of a leaf is the sum of its weights over the rays of all training views. What no ray uses goes, what rays use most is
split. The authors' threshold is an absolute sum; a caller's may be a share of the mean, for any number of rays.
Departures: the authors merge eight siblings into their mean when six of them are below the threshold. That thins a
surface that runs through the other two, and leaves a fog where there was nothing; measured on FX-A it cost 0.8 dB. Here
leaves below it are dropped and their siblings stay, which needs no recursion to find all. Siblings that are nearly the
same are merged instead, whatever S.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scene.octree import Edit, Octree, Siblings, keep, merge, siblings, split
from scene.sh import C0


def drop(octree: Octree, used: Tensor) -> Edit:
    """Leaves that rays do not use, or that have no density, become empty. used: [L] bool."""
    return keep(octree, used & (octree.sigmas > 0))


def join(octree: Octree, difference: float) -> Edit:
    """Merges eight siblings whose colours and opacities differ by at most `difference` each (0..1) from their mean."""
    groups = siblings(octree)
    whole = groups.counts == 8
    groups = Siblings(groups.first[whole], groups.counts[whole])
    rows = groups.first[:, None] + torch.arange(8, device=groups.first.device)
    sides = octree.sides[rows] / float(octree.index.invradius.max())
    opacity = -torch.expm1(-octree.sigmas[rows].clamp_min(0) * sides)
    coefficients = octree.sh_coeffs[rows].flatten(2) * C0
    means = coefficients.mean(1, keepdim=True)
    apart = (coefficients - means).abs().amax((1, 2)) / 4  # a sigmoid's slope is at most a quarter
    uneven = (opacity - opacity.mean(1, keepdim=True)).abs().amax(1)
    alike = (apart <= difference) & (uneven <= difference)
    return merge(octree, Siblings(groups.first[alike], groups.counts[alike]))


def grow(octree: Octree, weights: Tensor, share: float, most: int, limit: int) -> Edit:
    """Splits that share of the leaves whose weights are largest, up to `most` leaves in all and to level `limit`.

    weights: [L]; leaves of none stay.
    """
    chosen = torch.zeros(len(octree), dtype=torch.bool, device=weights.device)
    count = max(0, min(int(share * len(octree)), (most - len(octree)) // 7))
    able = torch.where(octree.index.levels < limit, weights, -1.0)
    best = able.topk(count).indices
    chosen[best[able[best] > 0]] = True
    return split(octree, chosen)
