"""Growing, moving and pruning Gaussians during training: the two families of the field.

Both return an `Edit`: the new Gaussians, which old row each came from, and which rows are new enough that an
optimiser has to forget what it knew. So any optimiser follows by `edit.remap(moment)`, and no strategy knows of any.

- MCMC: "3D Gaussian Splatting as Markov Chain Monte Carlo" (Kheradmand et al., 2024): dead splats move to live ones,
  the count grows to a cap, and the picture hardly changes at the moment of the move (eq. 9).
- Absolute gradient: "3D Gaussian Splatting" (Kerbl et al., 2023, section 5) with the per-pixel absolute gradient of
  "AbsGS" (Ye et al., 2024) as the score.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from scene.gaussians import Gaussians
from scene.ops.splat_project import quats_to_matrices

MAX_COPIES = 51  # eq. 9 is tabulated up to this many splats in one place, as in the paper's code


@dataclass(frozen=True)
class Edit:
    """What a densification step did.

    gaussians: the new state, N' rows.  source: [N'] int64, the old row each came from.  fresh: [N'] bool, rows whose
    optimiser moments restart at zero.
    """

    gaussians: Gaussians
    source: Tensor
    fresh: Tensor

    def remap(self, moment: Tensor) -> Tensor:
        """An optimiser moment [N, ...] brought to the new rows.

        In place where there are as many rows as before: with a copy of all moments this would be a run's worst moment.
        """
        if len(self.source) == len(moment):
            moved, places = moment, torch.arange(len(moment), device=moment.device)
            rows = (self.source != places).nonzero()[:, 0]
            moved[rows] = moment[self.source[rows]]
        else:
            moved = moment[self.source]
        moved[self.fresh] = 0
        return moved


def share_opacity(opacities: Tensor, scales: Tensor, copies: Tensor) -> tuple[Tensor, Tensor]:
    """Opacity and scales of each of `copies` coincident splats that together look like one (MCMC, eq. 9).

    opacities: [M] in (0, 1).  scales: [M, 3].  copies: [M] int >= 1, the original included.  Returns the same shapes.
    """
    copies = copies.clamp(1, MAX_COPIES)
    old = opacities.double()
    new = 1 - (1 - old) ** (1 / copies.double())
    order = torch.arange(MAX_COPIES, dtype=torch.float64, device=old.device)
    # denominator = sum_{i=1..n} sum_{k<i} C(i-1, k) (-1)^k / sqrt(k+1) new^(k+1), where the sum over i of C(i-1, k)
    # is C(n, k+1)
    n = copies.double()[:, None]
    log_binomial = torch.lgamma(n + 1) - torch.lgamma(order + 2) - torch.lgamma((n - order).clamp_min(1))
    terms = torch.where(
        order < n,
        torch.exp(log_binomial + (order + 1) * new[:, None].clamp_min(1e-12).log()) / (order + 1).sqrt(),
        torch.zeros((), dtype=torch.float64, device=old.device),
    )
    signs = 1 - 2 * (order % 2)
    shrink = old / (terms * signs).sum(-1)
    return new.to(opacities.dtype), scales * shrink.to(scales.dtype)[:, None]


def mcmc_refine(
    gaussians: Gaussians,
    *,
    cap: int,
    growth: float,
    min_opacity: float,
    generator: torch.Generator,
    score: Tensor | None = None,
) -> Edit:
    """Moves dead splats onto live ones and grows the count by `growth` (1.05 = five per cent) up to `cap`.

    Live splats are drawn with probability proportional to opacity, or to `score` [N] >= 0 where given. Drawn ones and
    their copies share the original's light by `share_opacity`. With no live splat left nothing changes.
    """
    count = len(gaussians)
    opacities = gaussians.opacities
    dead = (opacities <= min_opacity) | ~torch.isfinite(gaussians.means).all(-1)
    dead_rows, live_rows = dead.nonzero()[:, 0], (~dead).nonzero()[:, 0]
    added = max(0, min(cap, int(growth * count)) - count)
    unchanged = torch.arange(count, device=opacities.device)
    if len(live_rows) == 0 or len(dead_rows) + added == 0:
        return Edit(gaussians, unchanged, torch.zeros_like(dead))
    weights = opacities if score is None else score
    chance = weights[live_rows].double().clamp_min(1e-12)
    drawn = live_rows[_draw(chance, len(dead_rows) + added, generator)]
    copies = 1 + torch.bincount(drawn, minlength=count)
    shared = copies > 1
    new_opacities, new_scales = share_opacity(opacities[shared], gaussians.scales[shared], copies[shared])
    opacity_logits, log_scales = gaussians.opacity_logits.clone(), gaussians.log_scales.clone()
    opacity_logits[shared] = torch.logit(new_opacities.clamp(min_opacity, 1 - 1e-6))
    log_scales[shared] = new_scales.log()

    source = unchanged.clone()
    source[dead_rows] = drawn[: len(dead_rows)]
    source = torch.cat([source, drawn[len(dead_rows) :]])
    changed = replace(gaussians, opacity_logits=opacity_logits, log_scales=log_scales)
    return Edit(changed.select(source), source, shared[source])


def _draw(chance: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """[count] int64: indices drawn with replacement, with probability proportional to `chance` [M] > 0, float64."""
    if chance.device == generator.device:
        return torch.multinomial(chance, count, replacement=True, generator=generator)
    return draw_by_shares(chance, torch.rand(count, generator=generator, dtype=torch.float64).to(chance.device))


def draw_by_shares(chance: Tensor, uniform: Tensor) -> Tensor:
    """[K] int64: for each of `uniform` [K] in [0, 1) the index whose share of the sum of `chance` [M] > 0 it falls in.

    The sums are of whole numbers, 2^31 to the largest chance: on a GPU a scan of floats differs from run to run.
    """
    shares = (chance.double() / chance.max() * 2**31).round().clamp_min(1).long()
    ends = shares.cumsum(0)
    place = (uniform.double() * ends[-1]).long().clamp_max(ends[-1] - 1)
    return torch.searchsorted(ends, place, right=True)


def _randn(shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
    """Normal deviates, drawn where the generator lives, with the dtype and on the device of `like`."""
    return torch.randn(shape, generator=generator, dtype=like.dtype, device=generator.device).to(like.device)


def add_position_noise(
    gaussians: Gaussians, *, strength: float, generator: torch.Generator, only: Tensor | None = None
) -> None:
    """MCMC's exploration (eq. 8), in place: means move by noise shaped like the splat, faint splats only.

    strength: the learning rate of the means times the noise factor (5e5 in the paper).  The sigmoid of the paper lets
    splats of opacity above 0.07 rest (factor below 2e-3), so those are not touched at all.  only: [N] bool, optional.
    """
    opacities = gaussians.opacities
    faint = opacities < 0.07
    if only is not None:
        faint &= only
    rows = faint.nonzero()[:, 0]
    if len(rows) == 0:
        return
    weight = torch.sigmoid(100 * (0.005 - opacities[rows]))
    noise = _randn((len(rows), 3), weight, generator) * (weight * strength)[:, None]
    rotation = quats_to_matrices(gaussians.quats[rows])
    variance = gaussians.scales[rows] ** 2
    shaped = torch.einsum("nij,nj,nkj,nk->ni", rotation, variance, rotation, noise)
    gaussians.means.index_add_(0, rows, shaped)


def gradient_refine(
    gaussians: Gaussians,
    score: Tensor,
    *,
    threshold: float,
    split_scale: float,
    max_scale: float,
    min_opacity: float,
    cap: int,
    generator: torch.Generator,
) -> Edit:
    """Clones small and splits large splats whose image gradient is high; prunes faint, huge and broken ones.

    score: [N] mean absolute image-space gradient (units of the normalised image, as in 3DGS).  Splats above
    `threshold` grow, the highest first where `cap` leaves room for some only.  split_scale: largest axis (scene units)
    from which on a splat is split in two, each 1/1.6 as large and drawn from its parent.  max_scale: prune above.
    """
    finite = torch.isfinite(gaussians.means).all(-1) & torch.isfinite(gaussians.log_scales).all(-1)
    largest = gaussians.scales.amax(-1)
    keep = finite & (gaussians.opacities > min_opacity) & (largest < max_scale)
    room = max(0, cap - int(keep.sum()))
    grow = keep & (score > threshold)
    if int(grow.sum()) > room:
        ranked = (
            torch.where(grow, score, torch.zeros_like(score)).topk(room).indices if room else score.new_zeros(0).long()
        )
        grow = torch.zeros_like(grow)
        grow[ranked] = True
    split = grow & (largest > split_scale)
    # A split parent stays in its row as the first child; both children are drawn anew.
    source = torch.cat([keep.nonzero()[:, 0], grow.nonzero()[:, 0]])
    kept = int(keep.sum())
    fresh = torch.cat([split[source[:kept]], torch.ones(len(source) - kept, dtype=torch.bool, device=score.device)])
    moved = gaussians.select(source)
    halved = split[source].nonzero()[:, 0]
    if len(halved):
        offsets = _randn((len(halved), 3), moved.means, generator) * moved.scales[halved]
        moved.means[halved] += (quats_to_matrices(moved.quats[halved]) @ offsets[..., None])[..., 0]
        moved.log_scales[halved] -= math.log(1.6)
    return Edit(moved, source, fresh)


def reset_opacities(gaussians: Gaussians, ceiling: float) -> None:
    """Lowers every opacity to at most `ceiling`, in place (3DGS, section 5.2): floaters then fail to come back."""
    gaussians.opacity_logits.clamp_(max=math.log(ceiling / (1 - ceiling)))
