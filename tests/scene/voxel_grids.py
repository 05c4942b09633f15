"""Spaces of all kinds, and voxel grids that hold a field with a known answer."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from recon.grid_recipes import shift_of
from scene.cameras import Camera, look_at
from scene.ops.color_mlp import ColorMlp
from scene.ray_space import SHELL, GridFrame, Space
from scene.voxel_grid import Head, VoxelGrid, new_grid
from tests.scene.density_grids import drawn

KINDS = ("bounded", "forward", "unbounded")
CHANNELS: dict[Head, int] = {"rgb": 3, "sh": 27, "mlp": 12}
CLEAR, SOLID = -300.0, 300.0  # raw densities of a voxel that no ray notices and of one that stops any
ALPHA_INIT = 1e-2  # of a raw density of 0 over a voxel


def a_pose(dtype: torch.dtype = torch.float64) -> Tensor:
    """c2w [4, 4] of a camera that stands and looks askew."""
    eye, target = torch.tensor([0.7, -1.1, 0.4]), torch.tensor([-0.6, 2.0, 0.9])
    return look_at(eye.double(), target.double(), torch.tensor([0.1, 0.2, 1.0]).double()).to(dtype)


def a_space(kind: str, dtype: torch.dtype = torch.float64) -> Space:
    """A space of that kind that is neither at the origin nor along the axes, where the kind allows it."""
    if kind == "bounded":
        return Space("bounded", torch.eye(4, dtype=dtype))
    if kind == "forward":
        return Space("forward", Camera(torch.eye(3), a_pose(), 1, 1).viewmat.to(dtype), lens=(1.3, 1.7), near=0.8)
    frame = torch.eye(4, dtype=dtype)
    frame[:3, :3] /= 2.5
    frame[:3, 3] = torch.tensor([0.2, -0.1, 0.3])
    return Space("unbounded", frame)


def a_frame(kind: str, size: tuple[int, int, int] = (21, 17, 25), dtype: torch.dtype = torch.float32) -> GridFrame:
    """A box in `a_space`: of unlike edges, or all of the space that there is."""
    boxes = {
        "bounded": [[-1.0, -0.8, -1.2], [1.1, 0.9, 1.3]],
        "forward": [[-1.2, -1.1, -1.0], [1.1, 1.2, 1.0]],
        "unbounded": [[-1 - SHELL] * 3, [1 + SHELL] * 3],
    }
    return GridFrame(a_space(kind, dtype), torch.tensor(boxes[kind], dtype=dtype), size)


def rays_for(kind: str, count: int, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Origins and unit directions [R, 3] in the world, as a capture of that kind of scene has them."""
    if kind == "bounded":  # from around the box to places in and beside it
        origins = 4 * torch.nn.functional.normalize(drawn(count, 3, seed=seed) - 0.5, dim=-1)
        towards = 3 * (drawn(count, 3, seed=seed + 1) - 0.5) - origins
    elif kind == "forward":  # from about the reference camera, ahead of it
        pose = a_pose()
        origins = pose[:3, 3] + 0.2 * (drawn(count, 3, seed=seed) - 0.5)
        slopes = torch.cat([drawn(count, 2, seed=seed + 1) - 0.5, torch.ones(count, 1).double()], dim=1)
        towards = slopes @ pose[:3, :3].T
    else:  # from within the inner cube, to all sides
        origins = 3 * (drawn(count, 3, seed=seed) - 0.5)
        towards = drawn(count, 3, seed=seed + 1) - 0.5
    return origins.to(dtype), torch.nn.functional.normalize(towards, dim=-1).to(dtype)


def places(size: tuple[int, int, int], dtype: torch.dtype = torch.float32) -> Tensor:
    """[X Y Z, 3] grid coordinates of all voxel centres."""
    return torch.cartesian_prod(*(torch.arange(n, dtype=dtype) for n in size))


def grid_of(
    frame: GridFrame,
    raw: Callable[[Tensor], Tensor],
    *,
    features: Callable[[Tensor], Tensor] | None = None,
    head: Head = "rgb",
    occupied: Tensor | None = None,
    step: float = 0.5,
    threshold: float = 0.0,
) -> VoxelGrid:
    """The field of raw densities raw(points [P, 3] in the world) [P], and of features(points) [P, C] or drawn ones."""
    generator = torch.Generator().manual_seed(3)
    channels = CHANNELS[head]
    mlp = ColorMlp.drawn(channels, 27, 64, generator) if head == "mlp" else None
    grid = new_grid(
        frame,
        torch.ones(frame.size, dtype=torch.bool) if occupied is None else occupied,
        channels=channels,
        head=head,
        mlp=mlp,
        shifts=torch.full((frame.size[2],), shift_of(ALPHA_INIT)),
        interval=step,
        threshold=threshold,
    )
    points = frame.world_from_grid(places(frame.size))
    grid.density.copy_(raw(points).view(frame.size))
    live = (grid.rows >= 0).flatten()
    drawn_ones = torch.randn(len(grid), channels, generator=generator)
    grid.features.copy_(drawn_ones if features is None else features(points[live]))
    return VoxelGrid(**{**vars(grid), "step": step})


def solid_where(depth: Tensor, voxel: float) -> Tensor:
    """Raw densities of what is opaque where depth > 0 and clear where it is not, a voxel's length being `voxel`.

    The surface is steep, and linear over some voxels so that interpolation does not move it.
    """
    return (60 * depth / voxel - shift_of(ALPHA_INIT)).clamp(CLEAR, SOLID)


def ball(centre: tuple[float, float, float], radius: float, frame: GridFrame) -> Callable[[Tensor], Tensor]:
    """Raw densities of an opaque ball."""
    return lambda points: solid_where(radius - (points - points.new_tensor(centre)).norm(dim=-1), frame.voxel_size)


def looking_at(
    eye: tuple[float, float, float], target: tuple[float, float, float] = (0, 0, 0), *, size: int = 40, fov: float = 0.7
) -> Camera:
    """A square camera, a little off its picture's middle."""
    focal = 0.5 * size / math.tan(0.5 * fov)
    K = torch.tensor([[focal, 0, size / 2 + 0.7], [0, 1.1 * focal, size / 2 - 0.4], [0, 0, 1]])
    up = torch.tensor([0.1, 0.2, 1.0])
    return Camera(K, look_at(torch.tensor(eye).float(), torch.tensor(target).float(), up), size, size)
