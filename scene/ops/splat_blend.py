"""Front-to-back blending of projected splats into an image, and its gradient.

At pixel centre x, over the splats in depth order:
    alpha_i = min(0.999, o_i exp(-0.5 d^T conic_i d)), d = mean_i - x; skipped below 1/255
    w_i = T_i alpha_i, T_{i+1} = T_i (1 - alpha_i), T_0 = 1; splats met with T_i < 1e-4 are not blended
    rgb = sum w_i c_i + T_end background, alpha = 1 - T_end, depth = sum w_i z_i, normal = sum w_i n_i
    median_depth = z_i of the splat at which T falls below 0.5, or 0
Backward, with g_i = v_rgb . c_i + v_depth z_i + v_normal . n_i and R_i what lies behind splat i (sum_{j>i} w_j g_j plus
the background's share): dL/dalpha_i = T_i g_i - R_i / (1 - alpha_i); zero where alpha_i was clamped at 0.999.
Sources: 3D Gaussian Splatting (2023), eq. 2 and 3; shared specification of the constants.

For callers that need no autograd (scene/ops/splat_step.py), the compiled object can be used directly. On the CPU it
owns its workspaces and grows them; calls after the first of a kind allocate nothing and release the GIL. On a GPU
torch's allocator keeps them and no call waits for the card. All arrays are contiguous float32 on one device, V = rows
of means2d; arguments marked ? may be None. Every element of every output that is given is written. `bins` must come
from the same splats and device; one SplatBlend serves one forward and its backwards:

    state = native.kernels(device).SplatBlend()
    state.forward(bins, means2d [V,2], conics [V,3], opacities [V], colors [V,3], depths [V]?, normals [V,3]?,
                  background [3]?, rgb [H,W,3], alpha [H,W], depth [H,W]?, normal [H,W,3]?, median_depth [H,W]?)
                  # geometry: give depths, normals, depth, normal, median_depth, all or none
    state.backward(bins, rgb, alpha, depth?, normal?,                   # what forward wrote, unchanged
                   v_rgb [H,W,3], v_alpha [H,W]?, v_depth [H,W]?, v_normal [H,W,3]?,         # upstream gradients
                   v_means2d [V,2], v_conics [V,3], v_opacities [V], v_colors [V,3], v_depths [V]?, v_normals [V,3]?,
                   abs_means2d [V,2]?)                                                       # absgrad, when wanted
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from scene.ops import native
from scene.ops.splat_bin import MIN_ALPHA, TILE, Bins, check_splats, tile_grid

if TYPE_CHECKING:
    from scene.ops.splat_project import Projected

MAX_ALPHA = 0.999  # keeps 1 / (1 - alpha) finite in the gradient
MIN_TRANSMITTANCE = 1e-4  # less light than this changes no 8-bit pixel


@dataclass(frozen=True)
class Blended:
    """Images of one view; the geometry is None unless it was asked for."""

    rgb: Tensor  # [H, W, 3] over the background
    alpha: Tensor  # [H, W] 1 - final transmittance
    depth: Tensor | None  # [H, W] sum of w z, not divided by alpha
    normal: Tensor | None  # [H, W, 3] sum of w n
    median_depth: Tensor | None  # [H, W] z where the transmittance falls below 0.5, else 0


def blend(
    projected: Projected,
    bins: Bins,
    background: Tensor | None = None,
    *,
    with_geometry: bool = False,
    absgrad: Tensor | None = None,
) -> Blended:
    """Blends splats front to back at every pixel of the bins' image; equations in the module's docstring.

    projected: float32 or float64, the one `bins` was made from.  background: [3], black when None.
    with_geometry needs projected.normals.  absgrad: [V, 2], overwritten in backward with sum over pixels of
    |d L / d mean2d| per component, the densification criterion of AbsGS (2024).
    Differentiable in means2d, conics, opacities, colors, depths, normals and background, once; median_depth is not
    differentiable. Gradients do not depend on the number or the order of threads, to the bit.
    Raises ValueError when bins and splats do not belong together or normals are missing.
    """
    check_splats(projected, bins.width, bins.height)
    count = projected.means2d.shape[0]
    if bins.count != count:
        raise ValueError(f"bins were made from {bins.count} splats, got {count}; call bin_splats on these splats")
    if with_geometry and projected.normals is None:
        raise ValueError("with_geometry needs normals; call project(..., with_normals=True)")
    if absgrad is not None and tuple(absgrad.shape) != (count, 2):
        raise ValueError(f"absgrad must be [{count}, 2], got {tuple(absgrad.shape)}")
    if bins.handle is None:
        return blend_reference(projected, bins, background, with_geometry=with_geometry, absgrad=absgrad)
    splats = (projected.means2d, projected.conics, projected.opacities, projected.colors)
    geometry = (projected.depths, projected.normals) if with_geometry else (None, None)
    if background is not None:
        background = background.to(projected.means2d)
    inputs = [None if tensor is None else tensor.contiguous() for tensor in (*splats, *geometry, background)]
    return Blended(*_Blend.apply(*inputs, bins, absgrad))


def blend_reference(
    projected: Projected,
    bins: Bins,
    background: Tensor | None = None,
    *,
    with_geometry: bool = False,
    absgrad: Tensor | None = None,
) -> Blended:
    """The same in plain torch, a tile at a time: the oracle and the fallback."""
    _, offsets, splats, _ = bins.lists()
    columns, rows = tile_grid(bins.width, bins.height)
    if absgrad is not None:
        absgrad.zero_()
    strips = []
    for row in range(rows):
        tiles = []
        for column in range(columns):
            tile = row * columns + column
            listed = splats[int(offsets[tile]) : int(offsets[tile + 1])]
            tiles.append(_blend_tile(projected, listed, column * TILE, row * TILE, with_geometry, absgrad))
        strips.append(torch.cat(tiles, dim=1))
    image = torch.cat(strips, dim=0)[: bins.height, : bins.width]
    transmittance = image[..., 3]
    rgb = image[..., :3]
    if background is not None:
        rgb = rgb + transmittance[..., None] * background.to(rgb)
    if not with_geometry:
        return Blended(rgb, 1 - transmittance, None, None, None)
    return Blended(rgb, 1 - transmittance, image[..., 4], image[..., 5:8], image[..., 8].detach())


def _blend_tile(
    projected: Projected, listed: Tensor, left: int, top: int, with_geometry: bool, absgrad: Tensor | None
) -> Tensor:
    """[16, 16, 4 or 9]: sums of w c, final T and, where asked, sums of w z and w n, and the median depth."""
    like = projected.means2d
    xy = torch.arange(TILE, device=like.device, dtype=like.dtype) + 0.5
    y, x = torch.meshgrid(xy + top, xy + left, indexing="ij")
    mean, conic, opacity = projected.means2d[listed], projected.conics[listed], projected.opacities[listed]
    dx, dy = mean[:, 0] - x[..., None], mean[:, 1] - y[..., None]  # [16, 16, n]
    if absgrad is not None and dx.requires_grad:
        _sum_absolute_gradient(dx, absgrad[:, 0], listed)
        _sum_absolute_gradient(dy, absgrad[:, 1], listed)
    power = 0.5 * (conic[:, 0] * dx**2 + conic[:, 2] * dy**2) + conic[:, 1] * dx * dy
    alpha = (opacity * torch.exp(-power)).clamp(max=MAX_ALPHA)
    alpha = torch.where(alpha >= MIN_ALPHA, alpha, torch.zeros_like(alpha))
    before = torch.cat([torch.ones_like(alpha[..., :1]), (1 - alpha).cumprod(-1)], dim=-1)[..., :-1]
    alpha = torch.where(before >= MIN_TRANSMITTANCE, alpha, torch.zeros_like(alpha))
    after = (1 - alpha).cumprod(-1)
    weights = alpha * before
    final = after[..., -1:] if len(listed) else torch.ones_like(x[..., None])
    rgb = weights @ projected.colors[listed]
    if not with_geometry:
        return torch.cat([rgb, final], dim=-1)
    assert projected.normals is not None
    z = projected.depths[listed]
    crosses = (before >= 0.5) & (after < 0.5)
    geometry = [weights @ z[:, None], weights @ projected.normals[listed], (crosses * z).sum(-1, keepdim=True)]
    return torch.cat([rgb, final, *geometry], dim=-1)


def _sum_absolute_gradient(offsets: Tensor, total: Tensor, listed: Tensor) -> None:
    """Adds the gradient of offsets [16, 16, n], absolute at every pixel, to total[listed] when backward comes by."""

    def add(v_offsets: Tensor) -> None:
        total.index_add_(0, listed, v_offsets.abs().sum((0, 1)))

    offsets.register_hook(add)


class _Lease:
    """A native state for as long as a graph needs it; then its workspaces serve the next call of the same kind."""

    _idle: ClassVar[dict[tuple[torch.device, torch.dtype, str], list[Any]]] = {}

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.idle = self._idle.setdefault((device, dtype, native.backend(device, dtype)), [])
        self.state = self.idle.pop() if self.idle else self._make(device, dtype)

    @staticmethod
    def _make(device: torch.device, dtype: torch.dtype) -> Any:
        kernels = native.kernels(device)
        return kernels.SplatBlend() if dtype == torch.float32 else kernels.SplatBlendDouble()

    def __del__(self) -> None:
        if len(self.idle) < 4:  # more graphs alive at once than that are rare: let their memory go
            self.idle.append(self.state)


class _Blend(torch.autograd.Function):
    @staticmethod
    def forward(ctx, means2d, conics, opacities, colors, depths, normals, background, bins, absgrad):
        image = [bins.height, bins.width]
        rgb, alpha = means2d.new_empty([*image, 3]), means2d.new_empty(image)
        depth = normal = median = None
        if depths is not None:
            depth, normal, median = torch.empty_like(alpha), torch.empty_like(rgb), torch.empty_like(alpha)
            ctx.mark_non_differentiable(median)
        inputs = (means2d, conics, opacities, colors, depths, normals, background)
        ctx.lease = _Lease(means2d.device, means2d.dtype)
        detached = [None if tensor is None else tensor.detach() for tensor in inputs]
        ctx.lease.state.forward(bins.handle, *detached, rgb, alpha, depth, normal, median)
        ctx.bins, ctx.absgrad = bins, absgrad
        ctx.save_for_backward(*inputs, rgb, alpha, depth, normal)
        ctx.set_materialize_grads(False)
        return rgb, alpha, depth, normal, median

    @staticmethod
    @once_differentiable
    def backward(ctx, v_rgb, v_alpha, v_depth, v_normal, _v_median):  # pyright: ignore[reportIncompatibleMethodOverride]
        *inputs, rgb, alpha, depth, normal = ctx.saved_tensors
        upstream = [None if v is None else v.contiguous() for v in (v_rgb, v_alpha, v_depth, v_normal)]
        if upstream[0] is None:
            upstream[0] = torch.zeros_like(rgb)
        gradients = [None if tensor is None else torch.empty_like(tensor) for tensor in inputs[:6]]
        images = [None if tensor is None else tensor.detach() for tensor in (rgb, alpha, depth, normal)]
        ctx.lease.state.backward(ctx.bins.handle, *images, *upstream, *gradients, ctx.absgrad)
        v_background = None
        if ctx.needs_input_grad[6]:
            v_background = (upstream[0] * (1 - alpha)[..., None]).sum((0, 1))
        return *gradients, v_background, None, None
