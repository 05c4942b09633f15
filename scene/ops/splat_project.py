"""Projects Gaussians to image-plane ellipses with colour, depth and normal: the first stage of the rasteriser.

3D Gaussian Splatting (Kerbl et al. 2023), eq. 5 and 6; the antialiased opacity is Mip-Splatting's (Yu et al. 2024,
eq. 9).
Symbols: Sigma -> R diag(s^2) R^T, J -> `jacobian`, W -> rotation of `viewmat`, Sigma' -> `cov2d`.
Departures: extents follow the opacity instead of 3 sigma; determinants are sums of squares, so that needle-like splats
keep their shape in float32.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from scene import sh
from scene.ops import native

BLUR = 0.3  # px^2; a splat thinner than a pixel would flicker as the camera moves
ALPHA_MIN = 1 / 255  # less is not drawn
FRUSTUM_MARGIN = 0.3  # of tan(fov/2), beyond the image; the linearised projection is held there (3DGS: 1.3 tan(fov/2))
LEAST_SQUARED_QUAT = 1e-24  # shorter quaternions name no direction
LEAST_COMPENSATION = 2.5e-5  # Mip-Splatting's floor of det / det', under the root


@dataclass
class Projected:
    """The V splats that can touch the image, in ascending order of their index.

    ids: [V] int32.  means2d: [V, 2] px.  conics: [V, 3] xx, xy, yy of the inverse 2D covariance.  opacities: [V].
    colors: [V, 3] >= 0.  depths: [V] camera z.  normals: [V, 3] or None, world, unit, towards the camera.
    extents: [V, 2] px, half width and height of the box outside which alpha < 1/255.
    All but ids and extents are differentiable.
    """

    ids: Tensor
    means2d: Tensor
    conics: Tensor
    opacities: Tensor
    colors: Tensor
    depths: Tensor
    normals: Tensor | None
    extents: Tensor

    def __len__(self) -> int:
        return self.ids.shape[0]

    def arrays(self) -> tuple[Any, ...]:
        """All fields, in the order in which they are declared and the kernels take them."""
        return tuple(vars(self).values())


def project(
    means: Tensor,
    quats: Tensor,
    log_scales: Tensor,
    opacity_logits: Tensor,
    sh_dc: Tensor,
    sh_rest: Tensor,
    viewmat: Tensor,
    K: Tensor,
    width: int,
    height: int,
    *,
    sh_degree: int | None = None,
    antialias: bool = False,
    near: float = 0.01,
    with_normals: bool = False,
) -> Projected:
    """Image-plane ellipses, colours and depths of the Gaussians that can touch the image.

    means .. sh_rest: as in `scene.gaussians.Gaussians`, float32 or float64.  viewmat: [4, 4] rigid, camera from world.
    K: [3, 3] px, zero skew.  sh_degree: highest degree used, at most (and by default) the stored one.
    near: camera z at or below which nothing is drawn, scene units.  antialias: opacity is lowered by what BLUR adds.
    Left out: behind `near`, off the image, alpha < 1/255 everywhere, any parameter not finite, quaternion of length 0.
    Differentiable in the Gaussians and in viewmat.  Raises ValueError when shapes, dtypes or the degree do not match.
    """
    degree = _check(means, quats, log_scales, opacity_logits, sh_dc, sh_rest, viewmat, K, sh_degree)
    splats = (means, quats, log_scales, opacity_logits, sh_dc, sh_rest)
    if not native.has(means.device, means.dtype):
        return project_reference(
            *splats,
            viewmat,
            K,
            width,
            height,
            sh_degree=degree,
            antialias=antialias,
            near=near,
            with_normals=with_normals,
        )
    lens = Lens.of(K, width, height, near, degree, antialias)
    contiguous = (tensor.contiguous() for tensor in (*splats, viewmat))
    ids, means2d, conics, opacities, colors, depths, extents, normals = _Project.apply(lens, with_normals, *contiguous)
    return Projected(ids, means2d, conics, opacities, colors, depths, normals if with_normals else None, extents)


class Lens(NamedTuple):
    """All that a projection needs besides tensors, in the order in which the kernels take it."""

    fx: float
    fy: float
    cx: float
    cy: float
    width: int
    height: int
    near: float
    degree: int
    antialias: bool

    @staticmethod
    def of(K: Tensor, width: int, height: int, near: float, degree: int, antialias: bool) -> Lens:
        (fx, _, cx), (_, fy, cy), _ = K.tolist()  # waits for the card where K lies there
        return Lens(fx, fy, cx, cy, width, height, float(near), degree, antialias)


def allocate(like: Tensor, count: int, *, with_normals: bool) -> Projected:
    """Room for `count` splats, which the kernel fills from the front."""
    empty = like.new_empty
    return Projected(
        ids=empty(count, dtype=torch.int32),
        means2d=empty(count, 2),
        conics=empty(count, 3),
        opacities=empty(count),
        colors=empty(count, 3),
        depths=empty(count),
        normals=empty(count, 3) if with_normals else None,
        extents=empty(count, 2),
    )


class _Project(torch.autograd.Function):
    """The compiled projection of `lens` and (means, quats, log_scales, opacity_logits, sh_dc, sh_rest, viewmat)."""

    @staticmethod
    def forward(ctx: Any, lens: Lens, with_normals: bool, *inputs: Tensor) -> tuple[Tensor, ...]:
        out = allocate(inputs[0], len(inputs[0]), with_normals=with_normals)
        kernels = native.kernels(inputs[0].device)
        visible = kernels.project_splats(*(tensor.detach() for tensor in inputs), *lens, *out.arrays())
        ids, means2d, conics, opacities, colors, depths, extents = (
            tensor[:visible]
            for tensor in (out.ids, out.means2d, out.conics, out.opacities, out.colors, out.depths, out.extents)
        )
        normals = means2d.new_empty(0, 3) if out.normals is None else out.normals[:visible]
        ctx.lens, ctx.with_normals = lens, with_normals
        ctx.save_for_backward(ids, colors, *inputs)
        ctx.mark_non_differentiable(ids, extents)
        return ids, means2d, conics, opacities, colors, depths, extents, normals

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *v: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        ids, colors, *inputs = ctx.saved_tensors
        _, v_means2d, v_conics, v_opacities, v_colors, v_depths, _, v_normals = (g.contiguous() for g in v)
        v_inputs = [torch.zeros_like(tensor) for tensor in inputs]
        native.kernels(inputs[0].device).project_splats_backward(
            *(tensor.detach() for tensor in inputs),
            *ctx.lens,
            ids,
            colors.detach(),
            v_means2d,
            v_conics,
            v_opacities,
            v_colors,
            v_depths,
            v_normals if ctx.with_normals else None,
            *v_inputs,
        )
        return None, None, *v_inputs


def project_reference(
    means: Tensor,
    quats: Tensor,
    log_scales: Tensor,
    opacity_logits: Tensor,
    sh_dc: Tensor,
    sh_rest: Tensor,
    viewmat: Tensor,
    K: Tensor,
    width: int,
    height: int,
    *,
    sh_degree: int,
    antialias: bool = False,
    near: float = 0.01,
    with_normals: bool = False,
) -> Projected:
    """The same in plain torch: the oracle and the fallback. Kept obvious, never tuned."""
    coeffs = torch.cat([sh_dc[:, None], sh_rest[:, : sh.coefficients(sh_degree) - 1]], dim=1)
    splats = (means, quats, log_scales, opacity_logits, coeffs)
    lens = Lens.of(K, width, height, near, sh_degree, antialias)
    # What is not drawn is left out before any arithmetic that autograd sees, so that not even its gradient is NaN.
    with torch.no_grad():
        finite = torch.stack([part.flatten(1).isfinite().all(1) for part in (means, quats, log_scales, coeffs)]).all(0)
        in_front = means @ viewmat[2, :3] + viewmat[2, 3] > near
        a_rotation = quats.square().sum(1) > LEAST_SQUARED_QUAT
        ids = torch.nonzero(finite & opacity_logits.isfinite() & in_front & a_rotation).squeeze(1)
        out = _footprints(tuple(part[ids] for part in splats), viewmat, lens)
        size = means.new_tensor([width, height])
        # Touches the image: its box covers the centre of a pixel.
        touches = ((out.means2d + out.extents >= 0.5) & (out.means2d - out.extents <= size - 0.5)).all(1)
        numbers = torch.cat([out.means2d, out.conics, out.extents, out.colors, out.opacities[:, None]], dim=1)
        ids = ids[touches & (out.opacities >= ALPHA_MIN) & numbers.isfinite().all(1)]
    out = _footprints(tuple(part[ids] for part in splats), viewmat, lens)
    return replace(out, ids=ids.to(torch.int32), normals=out.normals if with_normals else None)


def _footprints(splats: tuple[Tensor, ...], viewmat: Tensor, lens: Lens) -> Projected:
    """The projection of all that is given; ids are left to the caller."""
    means, quats, log_scales, opacity_logits, coeffs = splats
    fx, fy, cx, cy, width, height = lens[:6]
    rotation, translation = viewmat[:3, :3], viewmat[:3, 3]
    center = -(rotation.T @ translation)
    x, y, z = (means @ rotation.T + translation).unbind(-1)

    # Covariance: half = J W R diag(s), cov2d = half half^T + BLUR I. J is taken at the tangent held near the image.
    margin_x, margin_y = FRUSTUM_MARGIN * 0.5 * width / fx, FRUSTUM_MARGIN * 0.5 * height / fy
    tan_x = (x / z).clamp(-cx / fx - margin_x, (width - cx) / fx + margin_x)
    tan_y = (y / z).clamp(-cy / fy - margin_y, (height - cy) / fy + margin_y)
    zero = torch.zeros_like(z)
    jacobian = torch.stack(
        [torch.stack([fx / z, zero, -fx * tan_x / z], dim=-1), torch.stack([zero, fy / z, -fy * tan_y / z], dim=-1)],
        dim=-2,
    )  # [V, 2, 3]
    axes = quats_to_matrices(quats)  # [V, 3, 3], columns are the splat's axes in the world
    half = jacobian @ rotation @ axes * log_scales.exp()[:, None, :]  # [V, 2, 3]
    plain = half @ half.transpose(1, 2)
    cov_xx, cov_xy, cov_yy = plain[:, 0, 0] + BLUR, plain[:, 0, 1], plain[:, 1, 1] + BLUR
    det_plain = torch.linalg.cross(half[:, 0], half[:, 1]).square().sum(-1)  # Cauchy-Binet: never negative
    det = det_plain + BLUR * (plain[:, 0, 0] + plain[:, 1, 1]) + BLUR * BLUR

    opacities = torch.sigmoid(opacity_logits)
    if lens.antialias:
        opacities = opacities * (det_plain / det).clamp_min(LEAST_COMPENSATION).sqrt()
    reach = (2 * (opacities.detach() / ALPHA_MIN).clamp_min(1).log()).sqrt()
    directions = torch.nn.functional.normalize(means - center, dim=-1)
    return Projected(
        ids=torch.empty(0, dtype=torch.int32, device=means.device),
        means2d=torch.stack([fx * x / z + cx, fy * y / z + cy], dim=-1),
        conics=torch.stack([cov_yy / det, -cov_xy / det, cov_xx / det], dim=-1),
        opacities=opacities,
        colors=(sh.evaluate(coeffs, directions) + 0.5).clamp_min(0),
        depths=z,
        normals=_normals(axes, log_scales, means - center),
        extents=reach[:, None] * torch.stack([cov_xx, cov_yy], dim=-1).detach().sqrt(),
    )


def quats_to_matrices(quats: Tensor) -> Tensor:
    """Rotation matrices [..., 3, 3] of quaternions [..., 4], wxyz, any length but zero."""
    w, x, y, z = torch.nn.functional.normalize(quats, dim=-1).unbind(-1)
    rows = [
        torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)], dim=-1),
        torch.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)], dim=-1),
        torch.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], dim=-1),
    ]
    return torch.stack(rows, dim=-2)


def _normals(axes: Tensor, log_scales: Tensor, from_camera: Tensor) -> Tensor:
    """The shortest axis of each splat, turned to the camera."""
    shortest = log_scales.argmin(dim=1)
    normals = axes.gather(2, shortest[:, None, None].expand(-1, 3, 1)).squeeze(2)
    away = (normals * from_camera).sum(-1, keepdim=True) > 0
    return torch.where(away, -normals, normals)


def _check(
    means: Tensor,
    quats: Tensor,
    log_scales: Tensor,
    opacity_logits: Tensor,
    sh_dc: Tensor,
    sh_rest: Tensor,
    viewmat: Tensor,
    K: Tensor,
    sh_degree: int | None,
) -> int:
    """The SH degree to use, after the shapes were found to match."""
    n = means.shape[0]
    tensors = {
        "means": (means, (n, 3)),
        "quats": (quats, (n, 4)),
        "log_scales": (log_scales, (n, 3)),
        "opacity_logits": (opacity_logits, (n,)),
        "sh_dc": (sh_dc, (n, 3)),
        "sh_rest": (sh_rest, (n, sh_rest.shape[1], 3)),
        "viewmat": (viewmat, (4, 4)),
        "K": (K, (3, 3)),
    }
    for name, (tensor, shape) in tensors.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must be {list(shape)}, got {list(tensor.shape)}")
        if tensor.dtype != means.dtype or tensor.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"{name} must be float32 or float64 and as means ({means.dtype}), got {tensor.dtype}")
    stored = sh.degree_of(sh_rest.shape[1] + 1)
    degree = stored if sh_degree is None else sh_degree
    if not 0 <= degree <= stored:
        raise ValueError(f"sh_degree must be 0 to {stored}, the degree stored, got {degree}")
    return degree
