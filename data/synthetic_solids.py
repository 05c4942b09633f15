"""Solids whose rays can be solved exactly, and solid textures; float64 inside, vectorised over rays."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

Texture = Callable[[Tensor], Tensor]  # points [P, 3] to colours [P, 3] in 0..1


def _eye() -> Tensor:
    return torch.eye(3, dtype=torch.float64)


@dataclass(frozen=True)
class Ellipsoid:
    """Axis lengths `radii` [3] along the columns of `rotation` [3, 3]; a ball where they are equal."""

    center: Tensor
    radii: Tensor
    rotation: Tensor = field(default_factory=_eye)

    def interval(self, origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """Entry and exit [R] of the lines origin + t direction [R, 3]; both infinite where they miss."""
        o = (origins - self.center) @ self.rotation / self.radii
        d = directions @ self.rotation / self.radii
        dd, od = (d * d).sum(-1), (o * d).sum(-1)
        closest = o - (od / dd)[:, None] * d  # kept apart from the root: far origins would cancel
        room = 1 - (closest * closest).sum(-1)
        half = (room.clamp(min=0) / dd).sqrt()
        return _hits(-od / dd - half, -od / dd + half, room > 0)

    def normals(self, points: Tensor) -> Tensor:
        """Outward unit normals [P, 3] at points of the surface."""
        local = (points - self.center) @ self.rotation / self.radii.square()
        return torch.nn.functional.normalize(local @ self.rotation.T, dim=-1)

    def distance(self, points: Tensor) -> Tensor:
        """Signed distance [P], negative inside; exact for balls only, so others are refused."""
        if not bool((self.radii == self.radii[0]).all()):
            raise ValueError("the distance to an ellipsoid has no closed form here; use a ball, a box or a torus")
        return (points - self.center).norm(dim=-1) - self.radii[0]


@dataclass(frozen=True)
class Box:
    """Half edge lengths `half` [3] along the columns of `rotation` [3, 3]."""

    center: Tensor
    half: Tensor
    rotation: Tensor = field(default_factory=_eye)

    def interval(self, origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """Entry and exit [R] of the lines origin + t direction [R, 3]; both infinite where they miss."""
        o, d = (origins - self.center) @ self.rotation, directions @ self.rotation
        d = torch.where(d.abs() < 1e-300, torch.full_like(d, 1e-300), d)
        a, b = (-self.half - o) / d, (self.half - o) / d
        near, far = torch.minimum(a, b).amax(-1), torch.maximum(a, b).amin(-1)
        return _hits(near, far, near < far)

    def normals(self, points: Tensor) -> Tensor:
        """Outward unit normals [P, 3] at points of the surface: those of the nearest side."""
        local = (points - self.center) @ self.rotation
        side = (local.abs() - self.half).argmax(-1, keepdim=True)
        normal = torch.zeros_like(local).scatter(-1, side, local.gather(-1, side).sign())
        return normal @ self.rotation.T

    def distance(self, points: Tensor) -> Tensor:
        """Signed distance [P], negative inside."""
        q = ((points - self.center) @ self.rotation).abs() - self.half
        return q.clamp(min=0).norm(dim=-1) + q.amax(-1).clamp(max=0)


@dataclass(frozen=True)
class Torus:
    """A tube of radius `minor` around a circle of radius `major`, whose axis is the last column of `rotation`."""

    center: Tensor
    major: float
    minor: float
    rotation: Tensor = field(default_factory=_eye)

    def first_hit(self, origins: Tensor, directions: Tensor) -> Tensor:
        """Smallest t > 0 [R] where the lines meet the surface; infinite where they miss."""
        length = directions.norm(dim=-1)
        o = (origins - self.center) @ self.rotation
        d = directions @ self.rotation / length[:, None]
        start = -(o * d).sum(-1)  # from the point nearest to the centre the quartic has no cubic term
        o = o + start[:, None] * d
        first = torch.full_like(start, torch.inf)
        near = (o.norm(dim=-1) < self.major + self.minor).nonzero()[:, 0]
        if len(near):
            first[near] = self._nearest_root(o[near], d[near], start[near])
        return first / length

    def _nearest_root(self, o: Tensor, d: Tensor, start: Tensor) -> Tensor:
        """Of (t^2 + e)^2 = 4 major^2 |xy of o + t d|^2, by the eigenvalues of its companion matrix and Newton steps."""
        e = (o * o).sum(-1) + self.major**2 - self.minor**2
        four = 4 * self.major**2
        c2 = 2 * e - four * (d[:, :2] ** 2).sum(-1)
        c1 = -2 * four * (o[:, :2] * d[:, :2]).sum(-1)
        c0 = e * e - four * (o[:, :2] ** 2).sum(-1)
        companion = o.new_zeros(len(o), 4, 4)
        companion[:, 1, 0] = companion[:, 2, 1] = companion[:, 3, 2] = 1
        companion[:, :3, 3] = -torch.stack([c0, c1, c2], dim=-1)
        roots = torch.linalg.eigvals(companion)
        real = roots.imag.abs() < 1e-6 * (self.major + self.minor)
        t, c2, c1, c0 = roots.real, c2[:, None], c1[:, None], c0[:, None]
        for _ in range(2):
            slope = 4 * t**3 + 2 * c2 * t + c1
            step = (t**4 + c2 * t**2 + c1 * t + c0) / slope
            t = torch.where(slope.abs() > 1e-9, t - step, t)
        t = t + start[:, None]
        return torch.where(real & (t > 0), t, torch.inf).amin(-1)

    def normals(self, points: Tensor) -> Tensor:
        """Outward unit normals [P, 3] at points of the surface."""
        local = (points - self.center) @ self.rotation
        ring = torch.nn.functional.normalize(local[:, :2], dim=-1) * self.major
        away = torch.cat([local[:, :2] - ring, local[:, 2:]], dim=-1)
        return torch.nn.functional.normalize(away, dim=-1) @ self.rotation.T

    def distance(self, points: Tensor) -> Tensor:
        """Signed distance [P], negative inside."""
        local = (points - self.center) @ self.rotation
        return torch.hypot(local[:, :2].norm(dim=-1) - self.major, local[:, 2]) - self.minor


Solid = Ellipsoid | Box | Torus


def first_hit(solid: Solid, origins: Tensor, directions: Tensor) -> Tensor:
    """Smallest t > 0 [R] where origin + t direction meets the surface, from outside or inside; infinite: missed."""
    if isinstance(solid, Torus):
        return solid.first_hit(origins, directions)
    entry, leave = solid.interval(origins, directions)
    t = torch.where(entry > 0, entry, leave)
    return torch.where(t > 0, t, torch.inf)


def _hits(near: Tensor, far: Tensor, hit: Tensor) -> tuple[Tensor, Tensor]:
    return torch.where(hit, near, torch.inf), torch.where(hit, far, torch.inf)


def checker(cell: float, dark: float = 0.35) -> Texture:
    """Cubes of two tones whose hue drifts through space, so that no two cells look alike."""

    def texture(points: Tensor) -> Tensor:
        # Off the origin by an odd share: faces at round coordinates would lie exactly between two cells.
        odd = ((points + 0.137 * cell) / cell).floor().sum(-1).remainder(2)
        phase = points.new_tensor([0.0, 2.1, 4.2]) + (points @ points.new_tensor([2.3, 1.7, 2.9]))[:, None]
        return (0.6 + 0.3 * phase.sin()) * torch.where(odd > 0, 1.0, dark)[:, None]

    return texture


def noise(points: Tensor, seed: int, octaves: int = 1) -> Tensor:
    """Three fractal noises in 0..1, [P, 3], at points [P, 3]; the first octave has cells of size 1.

    Repeats after 64 cells of an octave, which the slower octaves hide.
    """
    table = _noise_table(seed)
    total, weight, whole = points.new_zeros(len(points), 3), 1.0, 0.0
    for octave in range(octaves):
        at = (points * 2.0**octave + 17.3 * octave).remainder(_CELLS)
        f = at - at.floor()
        at = at.floor() + f * f * (3 - 2 * f)  # the slope is continuous across cells
        grid = (2 * at / _CELLS - 1).float()[None, None, None]
        values = torch.nn.functional.grid_sample(table, grid, align_corners=True)  # [1, 3, 1, 1, P]
        total = total + weight * values[0, :, 0, 0].T.to(points)
        whole += weight
        weight *= 0.6
    return total / whole


_CELLS = 64


@functools.lru_cache(maxsize=8)
def _noise_table(seed: int) -> Tensor:
    """[1, 3, 65, 65, 65] uniform in 0..1, its last layers those at the start again."""
    table = torch.rand(1, 3, _CELLS, _CELLS, _CELLS, generator=torch.Generator().manual_seed(seed))
    for axis in (2, 3, 4):
        table = torch.cat([table, table.narrow(axis, 0, 1)], dim=axis)
    return table
