"""Which splats touch which part of the image: depth order, 16x16-pixel tiles, 4x4-pixel blocks.

A splat touches a pixel centre where alpha = opacity exp(-0.5 d^T conic d) >= 1/255. `bin_splats` lists, for each tile
and in depth order, the splats that touch it, each with a 16-bit mask of the tile's blocks (bit 4 * row + column).

For callers that need no autograd (scene/ops/splat_step.py), the object that the kernels bring can be used directly. It
owns its buffers and grows them; calls after the first of a kind allocate nothing, release the GIL, and give the same
lists for any number of threads. All arrays are contiguous float32 on the device of the kernels and are only read:

    bins = native.kernels(device).SplatBins()
    bins.build(means2d, conics, opacities, depths, extents, width, height)
    bins.pairs                                                                         # (tile, splat) pairs, int
    order, tile_offsets, splats, block_masks = bins.lists()                            # copies, for tests

On a GPU the build does not wait for the device and may be short of room: scene/ops/gpu/splat_bin.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from scene.ops import native

if TYPE_CHECKING:
    from scene.ops.splat_project import Projected

TILE = 16  # px, side of a tile
BLOCK = 4  # px, side of a block: 16 pixels, one AVX-512 register
MIN_ALPHA = 1 / 255  # below, an 8-bit screen shows nothing: the splat is skipped at this pixel


@dataclass(frozen=True)
class Bins:
    """What `blend` needs to visit only the splats that matter. Indices are rows of the Projected it was made from."""

    width: int
    height: int
    count: int  # splats listed in the Projected
    handle: Any | None  # SplatBins of the kernels, which holds the lists; None on the reference backend
    tensors: tuple[Tensor, Tensor, Tensor, Tensor] | None  # the lists on the reference backend

    def lists(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """order [V] front to back; tile_offsets [tiles + 1], row-major tiles; splats [P]; block_masks [P]; int64."""
        if self.handle is None:
            assert self.tensors is not None
            return self.tensors
        order, offsets, splats, masks = (torch.as_tensor(part) for part in self.handle.lists())
        return order, offsets, splats, masks


def tile_grid(width: int, height: int) -> tuple[int, int]:
    """Columns and rows of tiles that cover the image."""
    return -(-width // TILE), -(-height // TILE)


def bin_splats(projected: Projected, width: int, height: int) -> Bins:
    """Depth-ordered list of splats for each tile, with the mask of the blocks each splat touches.

    projected: means2d [V, 2] px, conics [V, 3], opacities [V], depths [V] > 0, extents [V, 2] px (half width and height
    of the box outside which alpha < 1/255).  float32 or float64, not differentiable.
    Order: z rounded to float32, ties by row, so that every backend agrees. Lists hold at least every splat that
    touches a pixel of the tile; the compiled version may list a block that the ellipse enters between pixel centres.
    Raises ValueError when the shapes differ or the image is empty.
    """
    check_splats(projected, width, height)
    fields = (projected.means2d, projected.conics, projected.opacities, projected.depths, projected.extents)
    if not native.has(projected.means2d.device, projected.means2d.dtype):
        return bin_splats_reference(projected, width, height)
    handle = native.kernels(projected.means2d.device).SplatBins()
    handle.build(*(field.detach().to(torch.float32).contiguous() for field in fields), width, height)
    return Bins(width, height, projected.means2d.shape[0], handle, None)


def check_splats(projected: Projected, width: int, height: int) -> None:
    """Raises ValueError unless all fields have one row per splat and the image has a size."""
    if width < 1 or height < 1:
        raise ValueError(f"image size must be positive, got {width} x {height}")
    count = projected.means2d.shape[0]
    wanted = {"means2d": (count, 2), "conics": (count, 3), "opacities": (count,), "colors": (count, 3)}
    wanted |= {"depths": (count,), "extents": (count, 2)} | ({"normals": (count, 3)} if _has_normals(projected) else {})
    for name, shape in wanted.items():
        if tuple(getattr(projected, name).shape) != shape:
            raise ValueError(f"{name} must be {list(shape)}, got {tuple(getattr(projected, name).shape)}")


def _has_normals(projected: Projected) -> bool:
    return projected.normals is not None


def bin_splats_reference(projected: Projected, width: int, height: int) -> Bins:
    """The same in plain torch: every pixel of every tile that the splat's box overlaps is tested."""
    columns, rows = tile_grid(width, height)
    order = torch.sort(projected.depths.detach().float(), stable=True).indices
    means2d, conics, opacities, extents = (
        field.detach()[order] for field in (projected.means2d, projected.conics, projected.opacities, projected.extents)
    )
    tile_x, tile_y = torch.arange(columns, device=order.device), torch.arange(rows, device=order.device)
    in_column = _overlaps(means2d[:, 0], extents[:, 0], tile_x)  # [V, columns]
    in_row = _overlaps(means2d[:, 1], extents[:, 1], tile_y)  # [V, rows]
    # Rows of `pairs`: tile y, tile x, place in the depth order; nonzero lists them sorted by tile, then by depth.
    pairs = (in_row.T[:, None, :] & in_column.T[None, :, :]).nonzero()
    masks = torch.cat(
        [
            block_masks(part, means2d, conics, opacities, width, height)
            for part in pairs.split(4096)  # 4096 pairs x 256 pixels: a few megabytes
        ]
        or [pairs.new_zeros(0)]
    )
    pairs, masks = pairs[masks != 0], masks[masks != 0]
    tiles = pairs[:, 0] * columns + pairs[:, 1]
    offsets = torch.zeros(columns * rows + 1, dtype=torch.int64, device=order.device)
    offsets[1:] = torch.bincount(tiles, minlength=columns * rows).cumsum(0)
    return Bins(width, height, order.shape[0], None, (order, offsets, order[pairs[:, 2]], masks))


def _overlaps(centre: Tensor, half: Tensor, tiles: Tensor) -> Tensor:
    """[V, tiles] whether [centre - half, centre + half] meets the tile's span; a NaN never does."""
    return (centre[:, None] + half[:, None] >= tiles * TILE) & (centre[:, None] - half[:, None] <= (tiles + 1) * TILE)


def block_masks(pairs: Tensor, means2d: Tensor, conics: Tensor, opacities: Tensor, width: int, height: int) -> Tensor:
    """[P] int64, bit 4 * row + column set where a pixel centre of that block has alpha >= 1/255."""
    within = torch.arange(TILE, device=pairs.device)
    y = (pairs[:, 0, None] * TILE + within)[:, :, None]  # [P, 16, 1] pixel rows
    x = (pairs[:, 1, None] * TILE + within)[:, None, :]  # [P, 1, 16] pixel columns
    mean, conic, opacity = means2d[pairs[:, 2]], conics[pairs[:, 2]], opacities[pairs[:, 2]]
    dx, dy = mean[:, 0, None, None] - x - 0.5, mean[:, 1, None, None] - y - 0.5
    power = -0.5 * (conic[:, 0, None, None] * dx**2 + conic[:, 2, None, None] * dy**2)
    alpha = opacity[:, None, None] * torch.exp(power - conic[:, 1, None, None] * dx * dy)
    touched = (alpha >= MIN_ALPHA) & torch.isfinite(alpha) & (x < width) & (y < height)
    blocks = touched.view(-1, 4, BLOCK, 4, BLOCK).any(4).any(2).reshape(-1, 16)
    return (blocks.long() << torch.arange(16, device=pairs.device)).sum(1)
