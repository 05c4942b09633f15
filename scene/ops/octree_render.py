"""Rays through an octree of cubes with constant density and colour: pictures, gradients, weights and training steps.

PlenOctrees (Yu et al., 2021) and DOT (Bai et al., 2023). Leaf i of the index has sigmas[i] and sh_coeffs[i]: it shows
sigmoid(sum_k Y_k(direction) sh_coeffs[i, k]), K = 1, 4, 9 or 16, and has the density max(0, sigma) per world unit.
Departure: the pieces of a ray in its leaves are exact; the authors add 1e-5 to each step instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scene import sh
from scene.cameras import Camera
from scene.ops import native
from scene.ops.octree_index import FINEST, OctreeIndex, decode, locate_codes
from scene.ops.octree_index import encode as encode

VIEWED = 1e-2  # a viewer ends a ray when less light is left, and raises its colour to what it stands for
LEAST_SIGMA = 1e-2  # per unit of the world; a viewer passes through thinner leaves


@dataclass(frozen=True)
class Rays:
    """Rays of a list: origins and directions [R, 3] of any length, along which t counts; or of a camera's pixels.

    A camera's rays go through pixel centres and have z = 1, so that t is z-depth.
    """

    origins: Tensor | None = None
    directions: Tensor | None = None
    camera: Camera | None = None

    def __len__(self) -> int:
        if self.camera is not None:
            return self.camera.width * self.camera.height
        return 0 if self.origins is None else len(self.origins)

    def expanded(self) -> tuple[Tensor, Tensor]:
        """Origins and directions [R, 3]."""
        if self.camera is not None:
            origins, directions = self.camera.rays()
            return origins.reshape(-1, 3), directions.reshape(-1, 3)
        assert self.origins is not None and self.directions is not None
        return self.origins, self.directions

    def arguments(self, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None, Tensor | None, int, int]:
        """As the kernels take them."""
        if self.camera is not None:
            K, c2w = self.camera.K.detach().cpu().double(), self.camera.c2w.detach().cpu().double()
            numbers = torch.cat([K[[0, 1, 0, 1], [0, 1, 2, 2]], c2w[:3].reshape(-1)])
            return None, None, numbers, self.camera.width, self.camera.height
        assert self.origins is not None and self.directions is not None
        return self.origins.to(dtype).contiguous(), self.directions.to(dtype).contiguous(), None, 0, 0


@dataclass(frozen=True)
class Seen:
    """What rays see. rgb: [R, 3], over the background where one was given.  last: [R] light left at the end.

    depth: [R] mean t, 0 where nothing is met.  median: [R] t at which half the light is left, 0 where more remains.
    Both are None unless asked for and have no gradient.
    """

    rgb: Tensor
    last: Tensor
    depth: Tensor | None = None
    median: Tensor | None = None


def render_octree(
    sigmas: Tensor,
    sh_coeffs: Tensor,
    index: OctreeIndex,
    rays: Rays,
    *,
    stop: float = 0.0,
    least: float = 0.0,
    whole: bool = False,
    with_depth: bool = False,
    background: Tensor | None = None,
) -> Seen:
    """What rays see of the leaves.

    sigmas: [L] float32 or float64.  sh_coeffs: [L, K, 3].  stop: a ray ends when less light is left.  least: leaves of
    at most this density are passed through.  whole: rays ended early show their colour divided by what they have
    gathered, and no background (the viewer's rule).  background: [3] colour behind the leaves.  Differentiable in both
    unless `whole`.  Source: specs/recon.md, 2d and 0.2.  Raises ValueError when shapes do not fit.
    """
    _check(sigmas, sh_coeffs, index, rays)
    if native.has(sigmas.device, sigmas.dtype):
        leaves = (sigmas.contiguous(), sh_coeffs.contiguous())
        behind = None if background is None else background.to(sigmas).contiguous()
        return Seen(*_Render.apply(*leaves, index, rays, stop, least, whole, with_depth, behind))
    return render_octree_reference(
        sigmas,
        sh_coeffs,
        index,
        rays,
        stop=stop,
        least=least,
        whole=whole,
        with_depth=with_depth,
        background=background,
    )


class _Render(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, sigmas: Tensor, sh_coeffs: Tensor, index: OctreeIndex, rays: Rays, *options: Any
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        stop, least, whole, deep, background = options
        ctx.save_for_backward(sigmas, sh_coeffs)
        ctx.others = index, rays, stop, least, whole, background
        count = len(rays)
        rgb, last = sigmas.new_empty(count, 3), sigmas.new_empty(count)
        depth, median = (sigmas.new_empty(count), sigmas.new_empty(count)) if deep else (None, None)
        if deep:
            ctx.mark_non_differentiable(depth, median)
        arguments = scene_arguments(sigmas, sh_coeffs, index, rays, stop, least)
        native.kernels(sigmas.device).octree_render(*arguments, whole, background, rgb, last, depth, median)
        return rgb, last, depth, median

    @staticmethod
    def backward(ctx: Any, *v: Tensor) -> tuple[Tensor | None, ...]:
        sigmas, sh_coeffs = ctx.saved_tensors
        index, rays, stop, least, whole, background = ctx.others
        if whole:
            raise ValueError("a picture drawn with whole=True has no gradient; it is for viewing")
        v_sigmas, v_sh = torch.empty_like(sigmas), torch.empty_like(sh_coeffs)
        arguments = scene_arguments(sigmas, sh_coeffs, index, rays, stop, least)
        v_last = v[1] if background is None else v[1] + v[0] @ background
        native.kernels(sigmas.device).octree_backward(
            *arguments, v[0].contiguous(), v_last.contiguous(), v_sigmas, v_sh.view(len(v_sh), 3 * v_sh.shape[1])
        )
        return v_sigmas, v_sh, *[None] * 7


def leaf_weights(
    sigmas: Tensor, index: OctreeIndex, rays: Rays, sums: Tensor, maxima: Tensor, *, stop: float = 0, least: float = 0
) -> None:
    """Adds to sums [L] what each leaf's weights over all rays come to, and raises maxima [L] to their largest.

    The sums of all leaves add up to the number of rays less the light left.  Not differentiable.
    Raises ValueError when shapes do not fit.
    """
    sigmas = sigmas.detach().contiguous()
    colorless = sigmas.new_zeros(1, 1, 3).expand(len(sigmas), 1, 3)
    _check(sigmas, colorless, index, rays)
    for name, value in {"sums": sums, "maxima": maxima}.items():
        if value.shape != sigmas.shape or value.dtype != sigmas.dtype or not value.is_contiguous():
            raise ValueError(f"{name} must be [{len(sigmas)}] {sigmas.dtype}, got {tuple(value.shape)} {value.dtype}")
    if native.has(sigmas.device, sigmas.dtype):
        arguments = scene_arguments(sigmas, colorless.contiguous(), index, rays, stop, least)
        native.kernels(sigmas.device).octree_weights(*arguments, sums, maxima)
        return
    hits = _walk(sigmas, index, rays, stop, least)
    sums.index_add_(0, hits.rows, hits.weights)
    maxima.scatter_reduce_(0, hits.rows, hits.weights, "amax")


def scene_arguments(
    sigmas: Tensor, sh_coeffs: Tensor, index: OctreeIndex, rays: Rays, stop: float, least: float
) -> tuple[Any, ...]:
    """What every octree kernel takes first."""
    table = (index.top.view(-1), index.nodes.view(-1, 64), index.boxes, index.shape, index.frame)
    leaves = (sigmas, sh_coeffs.view(len(sh_coeffs), 3 * sh_coeffs.shape[1]))
    return (*table, *leaves, *rays.arguments(sigmas.dtype), stop, least)


def render_octree_reference(
    sigmas: Tensor,
    sh_coeffs: Tensor,
    index: OctreeIndex,
    rays: Rays,
    *,
    stop: float = 0.0,
    least: float = 0.0,
    whole: bool = False,
    with_depth: bool = False,
    background: Tensor | None = None,
) -> Seen:
    """The same in plain torch: all rays walk in step, each look-up a search among the leaves' codes."""
    hits = _walk(sigmas, index, rays, stop, least)
    count = len(rays)
    _, directions = rays.expanded()
    directions = torch.nn.functional.normalize(directions.to(sigmas), dim=-1)
    values = sh.basis(directions, sh.degree_of(sh_coeffs.shape[1]))[hits.rays]
    colors = torch.sigmoid((values[:, :, None] * sh_coeffs[hits.rows]).sum(1))
    rgb = sigmas.new_zeros(count, 3).index_add(0, hits.rays, hits.weights[:, None] * colors)
    last = hits.last
    if whole:
        ended = last < stop
        gain = torch.where(ended, 1 / (1 - last), 1)
        rgb, last = rgb * gain[:, None], torch.where(ended, 0, last)
    if background is not None:
        rgb = rgb + last[:, None] * background.to(rgb)
    if not with_depth:
        return Seen(rgb, last)
    weights, after = hits.weights.detach(), hits.after.detach()
    middle = sigmas.new_zeros(count).index_add(0, hits.rays, weights * (hits.t + 0.5 * hits.dt))
    total = sigmas.new_zeros(count).index_add(0, hits.rays, weights)
    before = after + weights
    half = (before >= 0.5) & (after < 0.5)
    share = torch.log(before / 0.5) / torch.log(before / after.clamp_min(torch.finfo(sigmas.dtype).tiny))
    median = sigmas.new_zeros(count)
    median[hits.rays[half]] = (hits.t + share.clamp(0, 1) * hits.dt)[half]
    return Seen(rgb, last, torch.where(total > 0, middle / total.clamp_min(1e-30), 0), median)


def distortion_reference(sigmas: Tensor, index: OctreeIndex, rays: Rays, stop: float = 0.0) -> Tensor:
    """Sum over rays of how far each one's light lies apart along t, in plain torch; differentiable in sigmas.

    sum_ij w_i w_j |m_i - m_j| + 1/3 sum_i w_i^2 dt_i with the middles m of the pieces (mip-NeRF 360, Barron et al.,
    2022, eq. 15). Pairs within a ray are formed outright.
    """
    hits = _walk(sigmas, index, rays, stop, 0.0)
    total = (hits.weights.square() * hits.dt).sum() / 3
    middles = hits.t + 0.5 * hits.dt
    for ray in hits.rays.unique():
        w, m = (value[hits.rays == ray] for value in (hits.weights, middles))
        total = total + (w[:, None] * w * (m[:, None] - m).abs()).sum()
    return total


@dataclass(frozen=True)
class _Hits:
    """Leaves that rays met: one entry per ray and leaf, [H] each but last [R]."""

    rays: Tensor
    rows: Tensor
    weights: Tensor
    after: Tensor
    t: Tensor
    dt: Tensor
    last: Tensor


def _walk(sigmas: Tensor, index: OctreeIndex, rays: Rays, stop: float, least: float) -> _Hits:
    """Every ray from cell to cell of the finest level that leaves have, and across whole leaves."""
    origins, directions = (part.to(sigmas) for part in rays.expanded())
    offset, scale = index.offset.to(sigmas), index.invradius.to(sigmas)
    level = int(index.levels.max()) if len(index.levels) else 0
    cells = 1 << level
    o, d = (offset + scale * origins) * cells, scale * directions * cells
    d = torch.where(d < 0, d.clamp_max(-1e-12), d.clamp_min(1e-12))
    enter = torch.minimum(-o / d, (cells - o) / d).amax(1).clamp_min(0)
    leave = torch.maximum(-o / d, (cells - o) / d).amin(1)
    ids = (enter < leave).nonzero().squeeze(1)
    t = enter[ids]
    at = (o[ids] + t[:, None] * d[ids]).floor().long().clamp(0, cells - 1)
    light, last = sigmas.new_ones(len(ids)), sigmas.new_ones(len(rays))
    lengths = directions.norm(dim=1)
    found: list[tuple[Tensor, ...]] = []
    while len(ids):
        rows = locate_codes(index, encode(at << FINEST - level))
        held = rows.clamp_min(0)
        side = torch.where(rows >= 0, 1 << level - (index.levels[held].long() if len(index.levels) else 0), 1)
        low = torch.where((rows >= 0)[:, None], decode(index.codes[held]) >> FINEST - level, at)
        high = low + side[:, None]
        forward = d[ids] > 0
        out = (torch.where(forward, high, low) - o[ids]) / d[ids]
        after = torch.maximum(t, out.amin(1))
        sigma = sigmas[held]
        met = (rows >= 0) & (sigma > least) & (after > t)
        passed = torch.where(met, torch.exp(-sigma * ((after - t) * lengths[ids])), 1)
        weight, light = light * (1 - passed), light * passed
        found.append(tuple(value[met] for value in (ids, held, weight, light, t, after - t)))
        beside = torch.minimum(torch.maximum((o[ids] + after[:, None] * d[ids]).floor().long(), low), high - 1)
        at = torch.where(out <= after[:, None], torch.where(forward, high, low - 1), beside)
        last = last.index_copy(0, ids, light)
        keep = ((at >= 0) & (at < cells)).all(1) & ~(met & (light < stop))
        ids, t, at, light = ids[keep], after[keep], at[keep], light[keep]
    if not found:
        nothing = sigmas.new_zeros(0)
        return _Hits(ids, ids, nothing, nothing, nothing, nothing, last)
    ray, row, weight, after, start, length = (torch.cat(column) for column in zip(*found, strict=True))
    return _Hits(ray, row, weight, after, start, length, last)


def _check(sigmas: Tensor, sh_coeffs: Tensor, index: OctreeIndex, rays: Rays) -> None:
    count = len(index.codes)
    if tuple(sigmas.shape) != (count,) or not sigmas.is_floating_point():
        raise ValueError(f"sigmas must be float [{count}], one for each leaf of the index, got {tuple(sigmas.shape)}")
    if sh_coeffs.dim() != 3 or len(sh_coeffs) != count or sh_coeffs.shape[2] != 3 or sh_coeffs.dtype != sigmas.dtype:
        raise ValueError(f"sh_coeffs must be [{count}, K, 3] {sigmas.dtype}, got {tuple(sh_coeffs.shape)}")
    sh.degree_of(sh_coeffs.shape[1])
    if rays.camera is None:
        o, d = rays.origins, rays.directions
        if o is None or d is None or o.dim() != 2 or o.shape[1] != 3 or o.shape != d.shape:
            raise ValueError("rays need a camera, or origins and directions of shape [R, 3]")
