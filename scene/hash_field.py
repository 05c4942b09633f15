"""A radiance field in a multiresolution hash grid (Instant-NGP; Müller et al. 2022, 2201.05989), for distillation.

    y = W2 relu(W1 e(p)),   sigma = softplus(y_0 + b(p)),   rgb = sigmoid(y_1..3),   b(p) = height (1 - |p| / radius)

with e the encoding and b the bias of Magic3D (Lin et al. 2023, 2211.10440), a soft ball to start from. Departures:
colours do not depend on the direction; layers have no biases, as in threestudio; one network gives density and colour.
Space that is empty is skipped by a grid of the densities met of late (Instant-NGP, appendix E.2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from scene.cameras import Camera
from scene.ops.grid_march import Density, Limits, RaySpans, Samples, march, pack_bits
from scene.ops.hash_encoding import HashLevels, hash_encode
from scene.ray_space import GridFrame, Space
from scene.volume_rendering import Rendered, depth_of
from scene.voxel_grid import dilate

FIRST_ROWS = 1e-4  # rows start even between minus and plus this (section 4)
DECAY = 0.8  # of densities met, from one refreshing to the next
RAYS_AT_ONCE = 1 << 12
THIN = -7.0  # raw density with which occupied space is marched: no ray loses its light, none of its samples is clear


@dataclass(frozen=True)
class Blob:
    """The bias of densities, at |p| = 0 and where it crosses zero. World units."""

    height: float
    radius: float


MAGIC3D = Blob(10.0, 0.5)


@dataclass(frozen=True)
class HashField:
    """The field of the cube [-half, half]^3.

    table: [levels.rows, F].  w1: [H, L F].  w2: [4, H].
    """

    levels: HashLevels
    half: float
    table: Tensor
    w1: Tensor
    w2: Tensor
    blob: Blob

    @staticmethod
    def drawn(levels: HashLevels, half: float, hidden: int, blob: Blob, generator: torch.Generator) -> HashField:
        """A soft grey ball: rows near zero, weights as torch.nn.Linear draws them. On the generator's device."""

        def uniform(*shape: int, most: float) -> Tensor:
            return most * (2 * torch.rand(*shape, generator=generator, device=generator.device) - 1)

        return HashField(
            levels,
            half,
            uniform(levels.rows, levels.features, most=FIRST_ROWS),
            uniform(hidden, levels.width, most=levels.width**-0.5),
            uniform(4, hidden, most=hidden**-0.5),
            blob,
        )

    def to(self, device: torch.device | str) -> HashField:
        """The same on another device."""
        return replace(self, **{name: getattr(self, name).to(device) for name in ("table", "w1", "w2")})

    def __call__(self, points: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """Densities [P] per world unit and colours [P, 3] in 0..1 of world points [P, 3], the same from all directions.

        Differentiable in table, w1 and w2, and in points.
        """
        raw = functional.linear(self._hidden(points), self.w2)
        return functional.softplus(raw[:, 0] + self._bias(points)), raw[:, 1:].sigmoid()

    def density(self, points: Tensor) -> Tensor:
        """[P] the densities alone."""
        return functional.softplus(self._hidden(points) @ self.w2[0] + self._bias(points))

    def _hidden(self, points: Tensor) -> Tensor:
        features = hash_encode(self.table, self.levels, points / (2 * self.half) + 0.5)
        return functional.relu(functional.linear(features, self.w1), inplace=True)

    def _bias(self, points: Tensor) -> Tensor:
        return self.blob.height * (1 - points.norm(dim=-1) / self.blob.radius)


class Occupancy:
    """Where a field may be dense: the densities met near the voxels of a grid over its cube. All of it at first."""

    def __init__(self, half: float, voxels: int, step: float, least: float, device: torch.device | str = "cpu") -> None:
        """voxels: along an edge.  step: distance of samples in world units.  least: alpha of a step that counts."""
        box = torch.tensor([[-half] * 3, [half] * 3], device=device)
        self.frame = GridFrame(Space("bounded", torch.eye(4, device=device)), box, (voxels, voxels, voxels))
        self.step, self.least = step, least
        self.peaks = torch.zeros(self.frame.size, device=device)
        self.occupied = torch.ones(self.frame.size, dtype=torch.bool, device=device)

    @torch.no_grad()
    def refresh(self, field: HashField, generator: torch.Generator) -> None:
        """Looks at a drawn place near each voxel; what was met before counts less each time."""
        size = self.frame.size
        moved = torch.rand(*size, 3, generator=generator, device=generator.device).to(self.peaks) - 0.5
        axes = [torch.arange(n, device=self.peaks.device) for n in size]
        places = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1) + moved
        met = field.density(self.world(places.view(-1, 3))).view(size)
        self.peaks = torch.maximum(DECAY * self.peaks, met)
        depths = self.peaks * self.step
        least = depths.mean().clamp(max=-math.log1p(-self.least))  # a field of thin fog keeps its densest parts
        self.occupied = dilate(depths >= least)

    def world(self, places: Tensor) -> Tensor:
        """Grid coordinates [P, 3] in the world."""
        return places / self.frame.voxels_per_unit + self.frame.box[0]

    def spans(self, origins: Tensor, unit: Tensor) -> RaySpans:
        """Samples along world rays [R, 3] with unit directions."""
        return self.frame.spans(origins, unit, self.step / self.frame.voxel_size)

    def samples(self, spans: RaySpans) -> Samples:
        """Those in occupied voxels. Their weights mean nothing yet."""
        thin = Density(
            torch.full(self.frame.size, THIN, device=self.peaks.device),
            torch.zeros(self.frame.size[2], device=self.peaks.device),
            pack_bits(self.occupied),
        )
        return march(thin, spans, Limits(interval=1.0, alpha=0.0, weight=0.0, stop=0.0))


def see(field: HashField, occupancy: Occupancy, spans: RaySpans) -> tuple[Samples, Tensor]:
    """The samples that rays meet, and their colours [M, 3]. Differentiable in the field: colours, weights and last."""
    samples = occupancy.samples(spans)
    points = occupancy.world(samples.points)
    sigmas, rgb = field(points, points)
    taus = sigmas * occupancy.step
    before, last = _light(taus, samples.rays, samples.offsets)
    return samples._replace(weights=before * -torch.expm1(-taus), last=last), rgb  # NeRF (2020), eq. 3


@torch.no_grad()
def render_hash(field: HashField, occupancy: Occupancy, camera: Camera, background: Tensor) -> Rendered:
    """The field seen by a camera, on the field's device. background: [3]."""
    device, pixels, alphas, depths = field.table.device, [], [], []
    origins, directions = (part.reshape(-1, 3) for part in camera.to(device=device, dtype=torch.float32).rays())
    for o, d in zip(origins.split(RAYS_AT_ONCE), directions.split(RAYS_AT_ONCE)):
        spans = occupancy.spans(o, functional.normalize(d, dim=-1))
        samples, rgb = see(field, occupancy, spans)
        pixels.append(composited(samples, rgb, background.to(device)))
        alphas.append(1 - samples.last)
        depths.append(depth_of(occupancy.frame, spans, samples, camera))
    shape = (camera.height, camera.width)
    return Rendered(torch.cat(pixels).view(*shape, 3), torch.cat(alphas).view(shape), torch.cat(depths).view(shape))


def composited(samples: Samples, rgb: Tensor, background: Tensor) -> Tensor:
    """[R, 3] pixels over a background [3]. Differentiable."""
    behind = samples.last[:, None] * background
    return behind.index_add(0, samples.rays.long(), samples.weights[:, None] * rgb)


def _light(taus: Tensor, rays: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Of packed optical depths [M]: the light T_i before each [M], and what is left behind each ray's last [R]."""
    total = functional.pad(taus.double().cumsum(0), (1, 0))  # over all rays: float32 would lose the thin ones
    bounds = total.index_select(0, offsets)
    before = (bounds.index_select(0, rays) - total[:-1]).exp()
    return before.to(taus), (bounds[:-1] - bounds[1:]).exp().to(taus)
