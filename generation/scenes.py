"""What is distilled: scenes that are drawn differentiably and changed by gradients of their pictures.

A target owns leaf tensors and draws all views of a step at once over a background that they share. Three are here:
a voxel grid (DVGO, `scene/voxel_grid.py`) and a hash grid (Instant-NGP, `scene/hash_field.py`), which start as soft
balls, and Gaussians (`scene/gaussians.py`), which start as points in a ball (DreamGaussian, 2309.16653). All become
meshes by the depth that they show.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from generation.adam_state import placed_like
from generation.views import ViewRange, orthogonal_cameras, sample_orthogonal
from scene.cameras import Camera
from scene.gaussians import Gaussians
from scene.hash_field import MAGIC3D, Blob, HashField, Occupancy, composited, render_hash, see
from scene.mesh import Mesh
from scene.mesh_extraction import MeshConfig, gaussians_to_mesh, surface_to_mesh
from scene.ops.grid_march import RaySpans, march
from scene.ops.hash_encoding import HashLevels
from scene.rasterize import render
from scene.ray_space import GridFrame, Space
from scene.volume_rendering import frame_of, render_grid
from scene.voxel_grid import VoxelGrid, new_grid

MESH_VOXELS, MESH_FACES = 128, 50_000
POINTS_AT_ONCE = 1 << 16
LEAST_SOFT = 1e-6  # optical depth of a step where there is nothing
SMALL_LEVELS = HashLevels(levels=8, log2_rows=14, growth=1.346)  # up to 128 cells


class Seen(NamedTuple):
    """rgb: [V, 3, H, W] in 0..1 over the background.  opacity: [V, 1, H, W] in 0..1. Both differentiable."""

    rgb: Tensor
    opacity: Tensor


class Target(Protocol):
    """A scene that is distilled."""

    def parameters(self) -> dict[str, Tensor]:
        """Leaf tensors by name; new ones after `refined`."""
        ...

    def rates(self, share: float) -> dict[str, float]:
        """Adam's step length of each, at a share of the run."""
        ...

    def render(self, cameras: Sequence[Camera], background: Tensor, generator: torch.Generator | None = None) -> Seen:
        """V views of one size over background [3]; a generator shifts samples where that avoids stripes."""
        ...

    def refined(self, voxels: int) -> bool:
        """Goes on at another resolution; True where that made new parameters."""
        ...

    def memory(self) -> dict[str, Tensor]:
        """Copies of what it goes on from beside its parameters."""
        return {}

    def recall(self, memory: Mapping[str, Tensor]) -> None:
        """Goes on from `memory`. Raises KeyError and ValueError where it is another target's."""

    def mesh(self, cameras: Sequence[Camera], config: MeshConfig | None = None) -> Mesh:
        """The coloured surface that the cameras see, in the scene's frame."""
        ...


@dataclass(frozen=True)
class GridConfig:
    """half: half the edge of the cube, which holds objects of radius 0.75.  voxels: along an edge.

    outside: raw density far from the ball of `ball` world units, in which it rises by `rise` towards the centre.
    step: between samples, in voxels.  interval: a step's optical depth per softplus of raw density.  rate: Adam's, of
    densities and colours; from the share `falls_from` of a run on it falls to `last_rate` of that.
    """

    half: float = 0.75
    voxels: int = 32
    step: float = 0.5
    interval: float = 0.5
    threshold: float = 1e-5
    outside: float = -3.0
    rise: float = 4.0
    ball: float = 0.5
    deepest: float = -2.0  # what the rise is cut to outside the ball
    rate: float = 0.1
    last_rate: float = 0.1
    falls_from: float = 0.5


class GridTarget(Target):
    """A voxel grid with one colour a voxel."""

    def __init__(self, config: GridConfig | None = None, device: torch.device | str = "cpu") -> None:
        """A soft grey ball."""
        self.config = c = config or GridConfig()
        axis = torch.linspace(-c.half, c.half, c.voxels, device=device)
        away = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")).norm(dim=0)
        density = c.outside + (c.rise * (1 - away / c.ball)).clamp(min=c.deepest)
        self.grid = filled_grid(density, torch.zeros(c.voxels**3, 3, device=device), c)
        self._own()

    def _own(self) -> None:
        self.grid.density.requires_grad_()
        self.grid.features.requires_grad_()

    def parameters(self) -> dict[str, Tensor]:
        return {"density": self.grid.density, "features": self.grid.features}

    def rates(self, share: float) -> dict[str, float]:
        c = self.config
        rate = c.rate * c.last_rate ** (max(0.0, share - c.falls_from) / (1 - c.falls_from))
        return {"density": rate, "features": rate}

    def render(self, cameras: Sequence[Camera], background: Tensor, generator: torch.Generator | None = None) -> Seen:
        grid = self.grid
        origins, unit = _rays(cameras, grid.density.device)
        spans = _shifted(grid.frame.spans(origins, unit, grid.step, grid.near), generator)
        samples = march(grid.packed_density(), spans, grid.limits())
        rgb = grid.colors(samples, unit)
        pixels = composited(samples, rgb, background.to(unit))
        return _pictures(pixels, samples.last, cameras)

    def refined(self, voxels: int) -> bool:
        """The same field on a finer or coarser grid; optical depths of steps stay."""
        old = self.voxel_grid()
        side = old.frame.size[0]
        if side == voxels:
            return False
        channels = torch.cat([old.density[None], old.features.T.reshape(3, side, side, side)])
        size = (voxels, voxels, voxels)
        fine = functional.interpolate(channels[None], size, mode="trilinear", align_corners=True)[0]
        self.grid = filled_grid(fine[0], fine[1:].flatten(1).T, self.config)
        self._own()
        return True

    def voxel_grid(self) -> VoxelGrid:
        """The grid as it stands, without gradients."""
        grid = self.grid
        return replace(grid, density=grid.density.detach(), features=grid.features.detach())

    def mesh(self, cameras: Sequence[Camera], config: MeshConfig | None = None) -> Mesh:
        still, black = self.voxel_grid(), torch.zeros(3)
        return surface_to_mesh(
            lambda camera: frame_of(render_grid(still, camera, black), camera),
            cameras,
            config or MeshConfig(voxels=MESH_VOXELS, faces=MESH_FACES),
        )


def raw_density(sigma: Tensor, config: GridConfig) -> Tensor:
    """What a grid holds for densities per world unit: softplus(raw) interval = sigma times the distance of samples."""
    distance = config.step * 2 * config.half / (config.voxels - 1)
    soft = (sigma * distance / config.interval).clamp(min=LEAST_SOFT)
    return soft + torch.log(-torch.expm1(-soft))


def filled_grid(density: Tensor, features: Tensor, config: GridConfig) -> VoxelGrid:
    """A grid in which something may grow everywhere. density: [X, X, X] raw.  features: [X^3, 3] before a sigmoid."""
    c, size, device = config, density.shape[0], density.device
    box = torch.tensor([[-c.half] * 3, [c.half] * 3], device=device)
    frame = GridFrame(Space("bounded", torch.eye(4, device=device)), box, (size, size, size))
    grid = new_grid(
        frame,
        torch.ones(frame.size, dtype=torch.bool, device=device),
        channels=3,
        head="rgb",
        mlp=None,
        shifts=torch.zeros(size, device=device),
        interval=c.interval,
        threshold=c.threshold,
    )
    return replace(grid, density=density.contiguous(), features=features.contiguous(), step=c.step)


@dataclass(frozen=True)
class HashConfig:
    """For one or two processor cores; on a GPU `levels=HashLevels()`, half 1, samples 512 and voxels 128 (threestudio).

    half: half the edge of the cube, which holds objects of radius 0.75.  hidden: width of the network's layer.
    samples: along an edge.  voxels: along an edge of the grid of what may be dense, looked over every `refresh` steps;
    a step's alpha below `least` there is nothing.  rate: Adam's, of the table; that of the network is `mlp_rate`; both
    fall from the share `falls_from` of a run on to `last_rate` of that.
    """

    half: float = 0.75
    levels: HashLevels = SMALL_LEVELS
    hidden: int = 64
    samples: int = 64
    voxels: int = 32
    refresh: int = 8
    least: float = 1e-2
    blob: Blob = MAGIC3D
    rate: float = 3e-2
    mlp_rate: float = 1e-2
    last_rate: float = 0.1
    falls_from: float = 0.5
    seed: int = 0


class HashTarget(Target):
    """A hash grid with a small network. Steps are counted by drawings that are given a generator."""

    def __init__(self, config: HashConfig | None = None, device: torch.device | str = "cpu") -> None:
        """A soft grey ball."""
        self.config = c = config or HashConfig()
        generator = torch.Generator().manual_seed(c.seed)
        self.field = HashField.drawn(c.levels, c.half, c.hidden, c.blob, generator).to(device)
        self.occupancy = Occupancy(c.half, c.voxels, 2 * c.half / c.samples, c.least, device)
        self._steps = 0
        for tensor in self.parameters().values():
            tensor.requires_grad_()

    def parameters(self) -> dict[str, Tensor]:
        return {"table": self.field.table, "w1": self.field.w1, "w2": self.field.w2}

    def rates(self, share: float) -> dict[str, float]:
        c = self.config
        fall = c.last_rate ** (max(0.0, share - c.falls_from) / (1 - c.falls_from))
        return {"table": c.rate * fall, "w1": c.mlp_rate * fall, "w2": c.mlp_rate * fall}

    def render(self, cameras: Sequence[Camera], background: Tensor, generator: torch.Generator | None = None) -> Seen:
        if generator is not None:
            if self._steps % self.config.refresh == 0:
                self.occupancy.refresh(self.field, generator)
            self._steps += 1
        origins, unit = _rays(cameras, self.field.table.device)
        spans = _shifted(self.occupancy.spans(origins, unit), generator)
        samples, rgb = see(self.field, self.occupancy, spans)
        return _pictures(composited(samples, rgb, background.to(unit)), samples.last, cameras)

    def refined(self, voxels: int) -> bool:
        """Its resolutions stay."""
        return False

    @torch.no_grad()
    def voxel_grid(self, voxels: int) -> VoxelGrid:
        """The field at the corners of a grid, for everything that shows grids. voxels: along an edge."""
        c, still = GridConfig(half=self.config.half, voxels=voxels), self.occupancy
        device = self.field.table.device
        axis = torch.linspace(-c.half, c.half, voxels, device=device)
        points = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).view(-1, 3)
        found = [self.field(some, some) for some in points.split(POINTS_AT_ONCE)]
        sigma, rgb = (torch.cat([each[i] for each in found]) for i in (0, 1))
        raw = raw_density(sigma, c)
        x, y, z = ((points - still.frame.box[0]) * still.frame.voxels_per_unit).round().long().unbind(-1)
        raw = torch.where(still.occupied[x, y, z], raw, math.log(LEAST_SOFT))
        return filled_grid(raw.view(voxels, voxels, voxels), rgb.logit(1e-4), c)

    def memory(self) -> dict[str, Tensor]:
        seen = self.occupancy
        steps = torch.tensor(self._steps)
        return {"peaks": seen.peaks.clone(), "occupied": seen.occupied.to(torch.uint8), "steps": steps}

    def recall(self, memory: Mapping[str, Tensor]) -> None:
        seen = self.occupancy
        seen.peaks = placed_like(memory["peaks"], seen.peaks)
        seen.occupied = placed_like(memory["occupied"], seen.occupied)
        self._steps = int(memory["steps"])

    def mesh(self, cameras: Sequence[Camera], config: MeshConfig | None = None) -> Mesh:
        black = torch.zeros(3)
        return surface_to_mesh(
            lambda camera: frame_of(render_hash(self.field, self.occupancy, camera, black), camera),
            cameras,
            config or MeshConfig(voxels=MESH_VOXELS, faces=MESH_FACES),
        )


@dataclass(frozen=True)
class SplatConfig:
    """DreamGaussian's, section 3.2 and its configs.

    count: of Gaussians to start with, even in a ball of `ball` world units.  rates: Adam's; that of means falls to
    `means_last` over the first `means_over` of the run.
    """

    count: int = 5000
    ball: float = 0.5
    opacity: float = 0.1
    means: float = 1e-3
    means_last: float = 2e-5
    means_over: float = 0.6
    quats: float = 5e-3
    log_scales: float = 5e-3
    opacity_logits: float = 0.05
    sh_dc: float = 0.01
    seed: int = 0


class SplatTarget(Target):
    """Gaussians whose colours do not depend on the direction."""

    def __init__(
        self,
        config: SplatConfig | None = None,
        device: torch.device | str = "cpu",
        *,
        gaussians: Gaussians | None = None,
    ) -> None:
        """Copies of `gaussians`; without them grey ones, even in a ball."""
        self.config = config or SplatConfig()
        begun = ball_of_gaussians(self.config) if gaussians is None else gaussians.detach()
        self.gaussians = begun.to(device=device).clone()
        for tensor in self.parameters().values():
            tensor.requires_grad_()

    def parameters(self) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in self.gaussians.parameters().items() if name != "sh_rest"}

    def rates(self, share: float) -> dict[str, float]:
        c = self.config
        fall = min(1.0, share / c.means_over)
        return {
            "means": c.means ** (1 - fall) * c.means_last**fall,
            "quats": c.quats,
            "log_scales": c.log_scales,
            "opacity_logits": c.opacity_logits,
            "sh_dc": c.sh_dc,
        }

    def render(self, cameras: Sequence[Camera], background: Tensor, generator: torch.Generator | None = None) -> Seen:
        behind = background.to(self.gaussians.means)
        drawn = [render(self.gaussians, camera, background=behind) for camera in cameras]
        rgb = torch.stack([picture.rgb for picture in drawn]).permute(0, 3, 1, 2)
        return Seen(rgb, torch.stack([picture.alpha for picture in drawn])[:, None])

    def refined(self, voxels: int) -> bool:
        """Gaussians have no resolution."""
        return False

    def mesh(self, cameras: Sequence[Camera], config: MeshConfig | None = None) -> Mesh:
        config = config or MeshConfig(voxels=MESH_VOXELS, faces=MESH_FACES)
        return gaussians_to_mesh(self.gaussians.detach(), cameras, config)


def ball_of_gaussians(config: SplatConfig) -> Gaussians:
    """Grey ones, even in a ball."""
    generator = torch.Generator().manual_seed(config.seed)
    away = functional.normalize(torch.randn(config.count, 3, generator=generator), dim=-1)
    xyz = config.ball * away * torch.rand(config.count, 1, generator=generator) ** (1 / 3)
    rgb = torch.full((config.count, 3), 128, dtype=torch.uint8)
    return Gaussians.from_points(xyz, rgb, sh_degree=0, opacity=config.opacity)


@dataclass(frozen=True)
class Rings:
    """Sets of views at equal steps around an object from finitely many places, so that a prior can remember pictures.

    turns: azimuths of a set's first view within one step.  elevations, fov: degrees.  distance: world units.
    """

    turns: int = 3
    elevations: tuple[float, ...] = (0.0, 15.0, 30.0)
    fov: float = 40.0
    distance: float = 2.7


def view_sets(rings: Rings, size: int, count: int) -> list[tuple[Camera, ...]]:
    """All sets of `count` views, elevation by elevation."""
    step = 360 / count / rings.turns
    return [
        orthogonal_cameras(turn * step, elevation, rings.fov, rings.distance, size, count)
        for elevation in rings.elevations
        for turn in range(rings.turns)
    ]


def draw_views(views: Rings | ViewRange, size: int, count: int, generator: torch.Generator) -> tuple[Camera, ...]:
    """One set of `count` views: of the rings', or from anywhere in a range."""
    if isinstance(views, ViewRange):
        return sample_orthogonal(generator, size, views, count=count)
    sets = view_sets(views, size, count)
    return sets[int(torch.randint(len(sets), (), generator=generator))]


def _rays(cameras: Sequence[Camera], device: torch.device) -> tuple[Tensor, Tensor]:
    """Origins and unit directions [R, 3] of all pixels of all views."""
    rays = [camera.to(device=device, dtype=torch.float32).rays() for camera in cameras]
    origins, directions = (torch.cat([ray[i].reshape(-1, 3) for ray in rays]) for i in (0, 1))
    return origins, functional.normalize(directions, dim=-1)


def _pictures(pixels: Tensor, last: Tensor, cameras: Sequence[Camera]) -> Seen:
    """Views from colours [R, 3] of all pixels and the light [R] left behind them."""
    shape = (len(cameras), cameras[0].height, cameras[0].width)
    return Seen(pixels.view(*shape, 3).permute(0, 3, 1, 2), (1 - last).view(*shape)[:, None])


def _shifted(spans: RaySpans, generator: torch.Generator | None) -> RaySpans:
    """All samples moved by the same part of a step, which is drawn."""
    if generator is None:
        return spans
    return replace(spans, starts=spans.starts + float(torch.rand((), generator=generator)))
