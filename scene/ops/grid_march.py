"""Rays through a voxel grid of densities: the samples that their pixels see, packed, and how much of each.

DVGO (Sun et al., 2022), eq. 4 to 9, in one op: samples in free space are skipped, the raw density is interpolated and
then activated (`alpha = 1 - (1 + e^raw)^-interval`), samples of less alpha than a threshold are left out, light is
counted until less than `stop` is left, and only samples that add more than a threshold to their pixel are handed out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scene.ops import native
from scene.ops.trilinear import trilinear_reference


@dataclass(frozen=True)
class Curve:
    """Samples of rays through an unbounded scene, contracted into a cube of half side 1 + shell (L-infinity).

    distances: [S] along each ray, in units of the normalised scene whose inner cube is [-1, 1]^3.  scale, offset: three
    numbers each, grid coordinates = scale * contracted + offset.  spacing: a sample outside the inner cube is left out
    where the contracted ray moved less than this since the last one.
    """

    distances: Tensor
    scale: tuple[float, float, float]
    offset: tuple[float, float, float]
    shell: float
    spacing: float

    @cached_property
    def packed(self) -> tuple[Tensor, Tensor]:
        """As kernels take them: distances with room to read ahead, and scale and offset [2, 3]."""
        padded = torch.nn.functional.pad(self.distances, (0, PADDING))
        return padded, self.distances.new_tensor([self.scale, self.offset])


@dataclass(frozen=True)
class RaySpans:
    """Where the samples of R rays lie.

    Straight (curve is None): sample i at origins + (starts + i) * directions, in grid coordinates, i < counts.
    Bent: sample i at origins + curve.distances[i] * directions, in the normalised scene; starts are 0.
    origins, directions: [R, 3].  starts: [R].  counts: [R] int32.
    """

    origins: Tensor
    directions: Tensor
    starts: Tensor
    counts: Tensor
    curve: Curve | None = None


@dataclass(frozen=True)
class Density:
    """A grid of raw densities [X, Y, Z], the shift [Z] added to each of its planes, and the voxels that may be dense.

    occupied: [X, Y, ceil(Z / 8)] uint8 from `pack_bits`; a sample counts where the voxel nearest to it is set.
    """

    values: Tensor
    shifts: Tensor
    occupied: Tensor


@dataclass(frozen=True)
class Limits:
    """interval: length of a step in voxels of the final grid.  The others as in the module's docstring."""

    interval: float
    alpha: float
    weight: float
    stop: float = 1e-3


class Samples(NamedTuple):
    """What R rays see, in ray order: ray r has the samples offsets[r] to offsets[r + 1].

    points: [M, 3] grid coordinates.  weights: [M].  steps: [M] starts + i of the ray's sample.  rays: [M] int32.
    offsets: [R + 1] int32.  last: [R] light left behind the last sample.
    """

    points: Tensor
    weights: Tensor
    steps: Tensor
    rays: Tensor
    offsets: Tensor
    last: Tensor


def march(density: Density, spans: RaySpans, limits: Limits) -> Samples:
    """The samples that the rays see. Differentiable in density.values through weights and last.

    Raises ValueError when shapes, dtypes or devices do not fit.
    """
    _check(density, spans)
    if not native.has(density.values.device, density.values.dtype):
        return march_reference(density, spans, limits)
    found = Marched(density, spans, limits)
    if not (density.values.requires_grad and torch.is_grad_enabled()):
        return found.samples
    weights, last = _Weights.apply(density.values, found)
    return found.samples._replace(weights=weights, last=last)


class Marched:
    """The same without autograd, for training loops: samples, and the gradient by the density when asked."""

    def __init__(self, density: Density, spans: RaySpans, limits: Limits, *, reuse: Marched | None = None) -> None:
        """reuse: an earlier march whose workspace is taken over; its `backward` may not be called any more."""
        values, rays = density.values.detach(), len(spans.origins)
        like = spans.origins
        self._march = reuse._march if reuse is not None else _native(like)
        curve = _curve_arguments(spans, like)
        count = self._march.march(
            values,
            density.shifts,
            density.occupied,
            spans.origins.contiguous(),
            spans.directions.contiguous(),
            spans.starts,
            spans.counts,
            *curve,
            limits.interval,
            limits.alpha,
            limits.weight,
            limits.stop,
        )
        self.samples = Samples(
            like.new_empty(count, 3),
            like.new_empty(count),
            like.new_empty(count),
            torch.empty(count, dtype=torch.int32, device=like.device),
            torch.empty(rays + 1, dtype=torch.int32, device=like.device),
            like.new_empty(rays),
        )
        self._march.emit(*self.samples, spans.starts)

    def backward(self, v_weights: Tensor, v_last: Tensor, v_density: Tensor) -> None:
        """Adds the gradient by density.values to v_density [X, Y, Z], from those by weights and last."""
        self._march.backward(v_weights.contiguous(), v_last.contiguous(), v_density)


def hits(occupied: Tensor, depth: int, spans: RaySpans) -> Tensor:
    """Whether each ray meets a set voxel of occupied ([X, Y, ceil(Z / 8)] uint8, Z = depth): [R] bool."""
    like = spans.origins
    if not native.has(like.device, like.dtype):
        inside, points = _places(spans)
        return (inside & _occupied_at(unpack_bits(occupied, depth), points)).any(-1)
    found = torch.empty(len(like), dtype=torch.bool, device=like.device)
    arguments = (like.contiguous(), spans.directions.contiguous(), spans.starts, spans.counts)
    kernels = native.kernels(like.device)
    call = kernels.grid_hits if like.dtype == torch.float32 else kernels.grid_hits64
    call(occupied, depth, *arguments, *_curve_arguments(spans, like), found)
    return found


def pack_bits(voxels: Tensor) -> Tensor:
    """[X, Y, Z] bool to [X, Y, ceil(Z / 8)] uint8, the lowest bit first."""
    padded = torch.nn.functional.pad(voxels, (0, -voxels.shape[2] % 8))
    powers = 1 << torch.arange(8, device=voxels.device, dtype=torch.uint8)
    return (padded.view(*padded.shape[:2], -1, 8) * powers).sum(-1, dtype=torch.uint8)


def unpack_bits(packed: Tensor, depth: int) -> Tensor:
    """The inverse of `pack_bits`, for Z = depth."""
    bits = packed[..., None] >> torch.arange(8, device=packed.device, dtype=torch.uint8) & 1
    return bits.flatten(2)[..., :depth].bool()


def raw_to_alpha(raw: Tensor, interval: float) -> Tensor:
    """1 - (1 + e^raw)^-interval (DVGO, eq. 5), exact where it is small. Differentiable."""
    return -torch.expm1(-torch.nn.functional.softplus(raw, threshold=100) * interval)


def march_reference(density: Density, spans: RaySpans, limits: Limits) -> Samples:
    """The same in plain torch: every sample of every ray, dense; the oracle and the fallback."""
    inside, points = _places(spans)
    rays, most = inside.shape
    inside &= _occupied_at(unpack_bits(density.occupied, density.values.shape[2]), points)
    raw = _raw_at(density, points.reshape(-1, 3)).view(rays, most)
    alpha = torch.where(inside, raw_to_alpha(raw, limits.interval), 0.0)
    alpha = torch.where(alpha > limits.alpha, alpha, 0.0)
    after = (1 - alpha).cumprod(-1)
    before = torch.cat([torch.ones_like(after[:, :1]), after[:, :-1]], dim=-1)
    alpha = torch.where(before >= limits.stop, alpha, 0.0)  # what comes after the light is used up
    after = (1 - alpha).cumprod(-1)
    before = torch.cat([torch.ones_like(after[:, :1]), after[:, :-1]], dim=-1)
    weight = before * alpha
    ray, sample = (weight > limits.weight).nonzero().unbind(-1)
    counts = torch.bincount(ray, minlength=rays)
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)]).to(torch.int32)
    steps = spans.starts[ray] + sample
    last = after[:, -1] if most else torch.ones_like(spans.starts)
    return Samples(points[ray, sample], weight[ray, sample], steps, ray.to(torch.int32), offsets, last)


def _raw_at(density: Density, points: Tensor) -> Tensor:
    shape = density.values.shape
    voxels = (density.values + density.shifts).reshape(-1, 1)
    rows = torch.arange(len(voxels), dtype=torch.int32, device=points.device).view(shape)
    return trilinear_reference(voxels, rows, points)[:, 0]


def _places(spans: RaySpans) -> tuple[Tensor, Tensor]:
    """Which samples there are [R, S] and where [R, S, 3]; a bent ray's crowded ones are not."""
    most = int(spans.counts.max()) if len(spans.counts) else 0
    index = torch.arange(most, device=spans.origins.device)
    there = index < spans.counts[:, None]
    curve = spans.curve
    if curve is None:
        t = spans.starts[:, None] + index
        return there, spans.origins[:, None] + t[..., None] * spans.directions[:, None]
    t = curve.distances[:most]
    bent = contract(spans.origins[:, None] + t[:, None] * spans.directions[:, None], curve.shell)
    moved = torch.cat([bent[:, :1], bent.diff(dim=1)], dim=1).norm(dim=-1)
    inner = bent.abs().amax(-1) <= 1
    since = torch.zeros_like(spans.starts)
    for i in range(most):
        since = since + moved[:, i]
        taken = inner[:, i] | (since > curve.spacing)
        since = torch.where(taken, 0.0, since)
        there[:, i] &= taken
    return there, bent * bent.new_tensor(curve.scale) + bent.new_tensor(curve.offset)


def contract(points: Tensor, shell: float) -> Tensor:
    """x inside the unit cube, else x/|x| ((1 + shell) - shell/|x|) by the L-infinity norm (DVGOv2; mip-NeRF 360)."""
    norm = points.abs().amax(-1, keepdim=True)
    outside = norm.clamp(min=1)
    return torch.where(norm > 1, points / outside * ((1 + shell) - shell / outside), points)


def _occupied_at(voxels: Tensor, points: Tensor) -> Tensor:
    """Whether the voxel nearest to each place [..., 3] is set; False outside."""
    size = torch.tensor(voxels.shape, device=points.device)
    nearest = (points + 0.5).floor().long()
    inside = ((nearest >= 0) & (nearest < size)).all(-1)
    x, y, z = nearest.clamp(min=0).minimum(size - 1).unbind(-1)
    return inside & voxels[x, y, z]


def _native(like: Tensor) -> Any:
    kernels = native.kernels(like.device)
    return kernels.GridMarch() if like.dtype == torch.float32 else kernels.GridMarch64()


PADDING = 16  # distances behind the last sample that a kernel may read, a vector's width


def _curve_arguments(spans: RaySpans, like: Tensor) -> tuple[Tensor | None, Tensor | None, float, float]:
    curve = spans.curve
    if curve is None:
        return None, None, 0.0, 0.0
    distances, affine = curve.packed
    return distances.to(like), affine.to(like), curve.shell, curve.spacing


class _Weights(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values: Tensor, found: Marched) -> tuple[Tensor, Tensor]:
        ctx.found, ctx.shape = found, values.shape
        return found.samples.weights.clone(), found.samples.last.clone()

    @staticmethod
    def backward(ctx, *grads: Tensor):
        v_density = torch.zeros(ctx.shape, dtype=grads[0].dtype, device=grads[0].device)
        ctx.found.backward(grads[0], grads[1], v_density)
        return v_density, None


def _check(density: Density, spans: RaySpans) -> None:
    values, rays = density.values, len(spans.origins)
    if values.dim() != 3 or not values.is_contiguous() or 0 in values.shape:
        raise ValueError(f"density must be contiguous [X, Y, Z] without an empty side, got {tuple(values.shape)}")
    x, y, z = values.shape
    if tuple(density.shifts.shape) != (z,) or density.shifts.dtype != values.dtype:
        raise ValueError(f"shifts must be [{z}] {values.dtype}, got {tuple(density.shifts.shape)}")
    if tuple(density.occupied.shape) != (x, y, -(-z // 8)) or density.occupied.dtype != torch.uint8:
        raise ValueError(
            f"occupied must be [{x}, {y}, {-(-z // 8)}] uint8 (pack_bits), got {tuple(density.occupied.shape)} "
            f"{density.occupied.dtype}"
        )
    shapes = {"origins": (rays, 3), "directions": (rays, 3), "starts": (rays,), "counts": (rays,)}
    for name, shape in shapes.items():
        value = getattr(spans, name)
        wanted = torch.int32 if name == "counts" else values.dtype
        if tuple(value.shape) != shape or value.dtype != wanted or value.device != values.device:
            raise ValueError(
                f"{name} must be {shape} {wanted} on {values.device}, got {tuple(value.shape)} {value.dtype} on "
                f"{value.device}"
            )
    curve = spans.curve
    if curve is not None and rays and int(spans.counts.max()) > len(curve.distances):
        raise ValueError(f"counts must not exceed the curve's {len(curve.distances)} distances")
