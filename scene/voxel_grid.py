"""A radiance field in a voxel grid (DVGO; Sun et al., 2022): raw densities, features, and what makes colours of them.

Densities are dense; features are stored for the voxels that a sample can reach ("live": within a voxel of an occupied
one), row by row, which is all that the official dense grid ever reads or updates.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from scene import sh
from scene.checkpoints import read_checkpoint, write_checkpoint
from scene.errors import InputError
from scene.ops.color_mlp import ColorMlp, color_mlp
from scene.ops.grid_march import Density, Limits, Samples, pack_bits, raw_to_alpha, unpack_bits
from scene.ops.sh_color import sh_color
from scene.ops.trilinear import trilinear
from scene.ray_space import BEYOND, GridFrame, Space

Head = Literal["rgb", "sh", "mlp"]
OCTAVES = 4  # of the view direction's embedding
STOP = 1e-3  # light at which a ray ends
MAX_VOXELS, MAX_SIDE = 1 << 29, 1 << 14  # of files
MAX_CHANNELS = 48
MAX_SAMPLES = 100_000  # along a box's diagonal


@dataclass(frozen=True)
class VoxelGrid:
    """A radiance field.

    frame: the box and how the world maps into it.  density: [X, Y, Z] raw.  shifts: [Z] b, added to the raw densities
    of each plane.  occupied: [X, Y, Z] bool, voxels that samples may lie nearest to.  rows: [X, Y, Z] int32, a voxel's
    row in `features` [F, C], or -1.  mlp: the colour network of the head "mlp".  step: distance of samples in voxels.
    interval: the step in voxels of the final grid, DVGO's dimensionless delta.  threshold: least alpha and weight.
    """

    frame: GridFrame
    density: Tensor
    shifts: Tensor
    occupied: Tensor
    rows: Tensor
    features: Tensor
    head: Head
    mlp: ColorMlp | None
    interval: float
    threshold: float
    step: float = 0.5
    near: float = 0.0

    def __len__(self) -> int:
        """Number of live voxels."""
        return len(self.features)

    def to(self, *, device: torch.device | str) -> VoxelGrid:
        """The same on another device."""
        moved = {name: getattr(self, name).to(device) for name in ("density", "shifts", "occupied", "rows", "features")}
        mlp = None if self.mlp is None else self.mlp.to(device)
        return replace(self, frame=self.frame.to(device), mlp=mlp, **moved)

    @property
    def parameters(self) -> int:
        """How many numbers hold the scene: density and features of live voxels, and the network."""
        network = 0 if self.mlp is None else sum(tensor.numel() for tensor in self.mlp)
        return len(self.features) * (1 + self.features.shape[1]) + network

    def packed_density(self) -> Density:
        """What `march` takes."""
        return Density(self.density, self.shifts, pack_bits(self.occupied))

    def limits(self) -> Limits:
        """What `march` takes."""
        return Limits(self.interval, self.threshold, self.threshold, STOP)

    def alpha(self) -> Tensor:
        """[X, Y, Z] alpha of a step at each voxel centre."""
        return raw_to_alpha(self.density + self.shifts, self.interval)

    def colors(self, samples: Samples, directions: Tensor) -> Tensor:
        """Colours [M, 3] in 0..1 of samples of rays with unit directions [R, 3]."""
        features = trilinear(self.features, self.rows, samples.points)
        if self.head == "rgb":
            return features.sigmoid()
        if self.head == "sh":
            return sh_color(features, samples.rays, directions)
        assert self.mlp is not None
        return color_mlp(self.mlp, features, samples.rays, embed(directions))


def embed(directions: Tensor) -> Tensor:
    """[R, 27]: unit directions, then sine and cosine of each component times 1, 2, 4, 8 (NeRF, eq. 4, without pi)."""
    scaled = (directions[..., None] * 2.0 ** torch.arange(OCTAVES, device=directions.device)).flatten(-2)
    return torch.cat([directions, scaled.sin(), scaled.cos()], dim=-1)


def new_grid(
    frame: GridFrame,
    occupied: Tensor,
    *,
    channels: int,
    head: Head,
    mlp: ColorMlp | None,
    shifts: Tensor,
    interval: float,
    threshold: float,
    near: float = 0.0,
) -> VoxelGrid:
    """A grid of zeros with these occupied voxels."""
    rows = live_rows(occupied)
    count = max(1, int(rows.max()) + 1)
    return VoxelGrid(
        frame,
        torch.zeros(frame.size, device=occupied.device),
        shifts,
        occupied,
        rows,
        torch.zeros(count, channels, device=occupied.device),
        head,
        mlp,
        interval,
        threshold,
        near=near,
    )


def live_rows(occupied: Tensor) -> Tensor:
    """[X, Y, Z] int32: numbers of the voxels that a sample near an occupied voxel is interpolated from, else -1."""
    live = dilate(occupied)
    numbers = live.flatten().cumsum(0, dtype=torch.int32).view(live.shape) - 1
    return torch.where(live, numbers, -1)


def dilate(voxels: Tensor) -> Tensor:
    """Each set voxel and its 26 neighbours."""
    return _most_of_27(voxels.float()) > 0


def dense_alpha(grid: VoxelGrid) -> Tensor:
    """[X, Y, Z] largest alpha of each voxel and its 26 neighbours."""
    return _most_of_27(grid.alpha())


def _most_of_27(values: Tensor) -> Tensor:
    for axis in range(3):  # three passes of 3 instead of one of 27
        pads = [0] * 6
        pads[4 - 2 * axis] = pads[5 - 2 * axis] = 1
        padded, n = functional.pad(values, pads, value=-torch.inf), values.shape[axis]
        values = padded.narrow(axis, 0, n).maximum(padded.narrow(axis, 1, n)).maximum(padded.narrow(axis, 2, n))
    return values


def resampled(grid: VoxelGrid, size: tuple[int, int, int], *, interval: float, shift_by: float = 0.0) -> VoxelGrid:
    """The same field on a grid of another size over the same box: densities and features interpolated.

    interval: of the new grid.  shift_by: added to b (DVGO subtracts 1 at each doubling).
    """
    frame = replace(grid.frame, size=size)
    shifts = functional.interpolate(grid.shifts[None, None], size[2], mode="linear", align_corners=True)[0, 0]
    density = functional.interpolate(grid.density[None, None], size, mode="trilinear", align_corners=True)[0, 0]
    occupied = functional.interpolate(grid.occupied[None, None].float(), size, mode="trilinear", align_corners=True)
    shape = replace(
        grid,
        frame=frame,
        density=density.contiguous(),
        shifts=shifts + shift_by,
        occupied=occupied[0, 0] > 0,
        interval=interval,
    )
    return with_occupied(shape, shape.occupied & (dense_alpha(shape) > grid.threshold), features_of=grid)


def with_occupied(grid: VoxelGrid, occupied: Tensor, *, features_of: VoxelGrid) -> VoxelGrid:
    """The grid with other occupied voxels; the features of its live voxels are those of `features_of` there."""
    rows = live_rows(occupied)
    places = (rows >= 0).nonzero()
    sizes = [torch.tensor(g.frame.size, device=rows.device, dtype=torch.float32) for g in (features_of, grid)]
    points = places.float() * ((sizes[0] - 1) / (sizes[1] - 1))
    if len(places) == 0:
        features = grid.features.new_zeros(1, features_of.features.shape[1])
    else:
        features = trilinear(features_of.features.detach(), features_of.rows, points)
    return replace(grid, occupied=occupied, rows=rows, features=features)


# Files: scene.safetensors.


def save_voxel_grid(path: Path, grid: VoxelGrid) -> None:
    """Write a grid as safetensors: rows of live voxels, a bit per occupied one. Raises ResourceError when full."""
    cells = (grid.rows.flatten() >= 0).nonzero()[:, 0].to(torch.int32)
    tensors = {
        "box": grid.frame.box,
        "frame_from_world": grid.frame.space.frame_from_world,
        "cells": cells,
        "density": grid.density.flatten()[cells.long()],
        "features": grid.features,
        "shifts": grid.shifts,
        "occupied": pack_bits(grid.occupied),
    }
    if grid.mlp is not None:
        tensors |= {f"mlp.{i}": tensor for i, tensor in enumerate(grid.mlp)}
    space = grid.frame.space
    state = {
        "kind": "voxel_grid",
        "size": list(grid.frame.size),
        "space": space.kind,
        "lens": list(space.lens),
        "space_near": space.near,
        "head": grid.head,
        "first_colors": True,  # the first three features are added to what the network says
        **{name: getattr(grid, name) for name in ("interval", "threshold", "step", "near")},
    }
    write_checkpoint(path, {name: t.detach().cpu().contiguous() for name, t in tensors.items()}, state, 1)


def load_voxel_grid(path: Path) -> VoxelGrid:
    """Read what `save_voxel_grid` wrote. Raises InputError for a file that does not hold a sound grid."""
    tensors, state, _ = read_checkpoint(path)
    try:
        return _checked_grid(tensors, state)
    except (KeyError, TypeError, ValueError, RuntimeError, OverflowError, IndexError) as error:
        raise InputError(f"{path} does not hold a voxel grid ({error})") from error


def _checked_grid(tensors: dict[str, Tensor], state: dict[str, Any]) -> VoxelGrid:
    """The grid of a file that strangers may have written. Raises what Python does where it is not sound."""
    if state["kind"] != "voxel_grid":
        raise ValueError("it is of another kind")
    for name, value in tensors.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise ValueError(f"{name} has numbers that are not finite")
    frame = _checked_frame(tensors, state)
    (x, y, z), cells, features = frame.size, tensors["cells"].long(), tensors["features"].float()
    density, occupied, count = tensors["density"].float(), tensors["occupied"], len(cells)
    if tuple(occupied.shape) != (x, y, -(-z // 8)) or occupied.dtype != torch.uint8:  # before memory is taken for them
        raise ValueError("occupied voxels that do not fit the grid")
    if features.dim() != 2 or len(features) != max(1, count) or tuple(density.shape) != (count,):
        raise ValueError("arrays that do not fit each other")
    if tuple(tensors["shifts"].shape) != (z,):
        raise ValueError("shifts of another depth")
    if count and (int(cells[0]) < 0 or int(cells[-1]) >= x * y * z or bool((cells.diff() <= 0).any())):
        raise ValueError("voxels outside the grid")
    head, channels = state["head"], features.shape[1]
    widths = {"rgb": [3], "sh": [3 * sh.coefficients(d) for d in range(4)], "mlp": range(3, MAX_CHANNELS + 1)}
    if head not in widths or channels not in widths[head]:
        raise ValueError(f"{channels} channels for the head {head}")
    mlp = ColorMlp(*(tensors[f"mlp.{i}"].float() for i in range(6))) if head == "mlp" else None
    if mlp is not None:
        _check_mlp(mlp, channels)
        if state.get("first_colors") is not True:
            raise ValueError("its colours are of a version before 29 November 2026; train it anew")
    interval, threshold, near = (float(state[name]) for name in ("interval", "threshold", "near"))
    if not (0 < interval <= 1e4 and 0 <= threshold < 1 and 0 <= near <= BEYOND):
        raise ValueError(f"an interval of {interval:g}, a threshold of {threshold:g} and a nearest place at {near:g}")
    values, rows = torch.zeros(x * y * z), torch.full((x * y * z,), -1, dtype=torch.int32)
    values[cells] = density
    rows[cells] = torch.arange(count, dtype=torch.int32)
    return VoxelGrid(
        frame,
        values.view(x, y, z),
        tensors["shifts"].float(),
        unpack_bits(occupied, z),
        rows.view(x, y, z),
        features,
        head,
        mlp,
        interval,
        threshold,
        float(state["step"]),
        near,
    )


def _checked_frame(tensors: dict[str, Tensor], state: dict[str, Any]) -> GridFrame:
    x, y, z = (int(n) for n in state["size"])
    if not (min(x, y, z) >= 2 and max(x, y, z) <= MAX_SIDE and x * y * z <= MAX_VOXELS):
        raise ValueError(f"a grid of {x} x {y} x {z} voxels")
    lens, near, step = [float(n) for n in state["lens"]], float(state["space_near"]), float(state["step"])
    if len(lens) != 2 or not all(0 < n <= BEYOND for n in lens):
        raise ValueError(f"a lens of {lens}")
    matrix, kind = tensors["frame_from_world"].float().view(4, 4), state["space"]
    turn = matrix[:3, :3].double()
    scale = float(turn.square().sum() / 3) ** 0.5
    similar = turn @ turn.T / max(scale, 1e-30) ** 2 - torch.eye(3)
    if not (1e-12 < scale < 1e12 and float(similar.abs().max()) < 1e-3) or matrix[3].tolist() != [0, 0, 0, 1]:
        raise ValueError("a space that bends what is straight")
    if kind not in ("bounded", "forward", "unbounded") or (kind == "bounded" and not torch.equal(matrix, torch.eye(4))):
        raise ValueError("a space of another kind")
    if kind == "forward" and not 0 < near <= BEYOND:
        raise ValueError(f"a nearest plane at {near:g}")
    frame = GridFrame(Space(kind, matrix, (lens[0], lens[1]), near), tensors["box"].float().view(2, 3), (x, y, z))
    edges = frame.box[1] - frame.box[0]
    if not (float(edges.min()) > 0 and 0 < float(edges.double().norm()) < torch.inf and 0.05 <= step <= 8):
        raise ValueError("a box or steps without length")
    if not float(edges.double().norm()) <= MAX_SAMPLES * step * frame.voxel_size:
        raise ValueError("a box that is much too flat for its voxels")
    return frame


def _check_mlp(mlp: ColorMlp, channels: int) -> None:
    hidden = mlp[0].shape[0]
    wanted = [(hidden, channels + 3 + 6 * OCTAVES), (hidden,), (hidden, hidden), (hidden,), (3, hidden), (3,)]
    if hidden < 1 or [tuple(tensor.shape) for tensor in mlp] != wanted:
        raise ValueError("a colour network of another shape")
