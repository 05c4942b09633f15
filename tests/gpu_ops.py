"""Every op once on a small scene, with what it computes by name: for parity between backends and for compute-sanitizer.

    compute-sanitizer --tool memcheck python -m tests.gpu_ops       # all of them on the GPU

Inputs are drawn on the CPU from fixed seeds and moved, so each device gets the same.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from scene.cameras import Camera
from scene.gaussians import Gaussians
from scene.ops.adam import adam_visible
from scene.ops.composite import composite
from scene.ops.grid_march import Density, Limits, RaySpans, hits, march
from scene.ops.hash_encoding import HashLevels, hash_encode
from scene.ops.masked_adam import adam_masked
from scene.ops.octree_render import Rays, leaf_weights, render_octree
from scene.ops.photometric_loss import photometric_loss, photometric_loss_and_grad
from scene.ops.position_noise import scatter_means
from scene.ops.sh_color import sh_color
from scene.ops.splat_bin import bin_splats
from scene.ops.splat_blend import blend
from scene.ops.splat_project import Projected, project
from scene.ops.splat_step import AdamState, Rates, SplatStep
from scene.ops.texture_bake import ObservedPhoto, Samples, Surface, gather
from scene.ops.texture_bake import blend as blend_texels
from scene.ops.total_variation import add_total_variation
from scene.ops.triangle_raster import cover, mesh_depth
from scene.ops.trilinear import trilinear
from scene.ops.tsdf import BLOCK, ObservedDepth, integrate
from scene.ops.volume_loss import composite_rays, volume_loss_and_grad
from tests.scene.density_grids import a_density, bent_rays, straight_rays
from tests.scene.octrees import random_octree, random_rays
from tests.scene.splats import a_camera, random_gaussians

Found = dict[str, Tensor]
RATES = Rates(means=1e-3, quats=1e-3, log_scales=5e-3, opacity_logits=5e-2, sh_dc=2.5e-3, sh_rest=1.25e-4)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    """Uniform numbers in 0..1."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def moved(gaussians: Gaussians, device: torch.device) -> Gaussians:
    """The same on the device."""
    return Gaussians(**{name: value.to(device) for name, value in gaussians.parameters().items()})


def projected_on(device: torch.device) -> tuple[Projected, dict[str, Tensor], Camera]:
    """Projected splats, the leaves they hang on, and the camera."""
    camera = a_camera().to(device=device)
    leaves = {name: v.to(device).requires_grad_() for name, v in random_gaussians(200).parameters().items()}
    leaves["viewmat"] = camera.viewmat.requires_grad_()
    options = {"K": camera.K, "width": camera.width, "height": camera.height}
    return project(**leaves, **options, antialias=True, with_normals=True), leaves, camera  # pyright: ignore[reportArgumentType]


def project_op(device: torch.device) -> Found:
    p, leaves, _ = projected_on(device)
    assert p.normals is not None
    outputs = {"means2d": p.means2d, "conics": p.conics, "opacities": p.opacities, "colors": p.colors}
    outputs |= {"depths": p.depths, "normals": p.normals}
    weighted = [(value * drawn(*value.shape, seed=k).to(device)).sum() for k, value in enumerate(outputs.values())]
    gradients = torch.autograd.grad(torch.stack(weighted).sum(), list(leaves.values()))
    found = {name: value.detach() for name, value in outputs.items()} | {"ids": p.ids, "extents": p.extents}
    return found | {f"v_{name}": value for name, value in zip(leaves, gradients, strict=True)}


def bin_op(device: torch.device) -> Found:
    p, _, camera = projected_on(device)
    order, *_ = bin_splats(p, camera.width, camera.height).lists()
    return {"depths in order": p.depths.detach()[order.to(device).long()]}


def blend_op(device: torch.device) -> Found:
    p, leaves, camera = projected_on(device)
    absolute = torch.zeros_like(p.means2d)
    bins = bin_splats(p, camera.width, camera.height)
    absgrad = absolute if bins.handle is not None else None
    background = torch.tensor([0.2, 0.5, 0.9], device=device)
    out = blend(p, bins, background, with_geometry=True, absgrad=absgrad)
    assert out.depth is not None and out.normal is not None and out.median_depth is not None
    images = {"rgb": out.rgb, "alpha": out.alpha, "depth": out.depth, "normal": out.normal}
    weighted = [(value * drawn(*value.shape, seed=k).to(device)).sum() for k, value in enumerate(images.values())]
    gradients = torch.autograd.grad(torch.stack(weighted).sum(), list(leaves.values()))
    found = {name: value.detach() for name, value in images.items()}
    return found | {f"v_{name}": value for name, value in zip(leaves, gradients, strict=True)}


def loss_op(device: torch.device) -> Found:
    image, photo = (
        drawn(45, 38, 3).to(device).requires_grad_(),
        (drawn(45, 38, 3, seed=1) * 255).to(device, torch.uint8),
    )
    mask = (drawn(45, 38, seed=2) < 0.8).to(device)
    exposure = torch.tensor([[1.1, 0.9, 1.0], [0.02, -0.03, 0.01]], device=device, requires_grad=True)
    loss = photometric_loss(image, photo, mask, exposure=exposure)
    v_image, v_exposure = torch.autograd.grad(loss, [image, exposure])
    return {"loss": loss.detach(), "v_image": v_image, "v_exposure": v_exposure}


def adam_op(device: torch.device) -> Found:
    param, grad = drawn(300, 15, 3).to(device), drawn(300, 15, 3, seed=1).to(device) - 0.5
    first, second = torch.zeros_like(param), torch.zeros_like(param)
    ids = torch.arange(0, 300, 3, dtype=torch.int32, device=device)
    for step in (1, 2, 3):
        adam_visible(param, grad, ids, first, second, step=step, lr=1e-2)
    return {"param": param, "first": first, "second": second}


def composite_op(device: torch.device) -> Found:
    picture = (drawn(33, 21, 4) * 255).to(device, torch.uint8)
    return {"out": composite(picture[..., :3].contiguous(), picture[..., 3].contiguous(), drawn(3).to(device))}


def tsdf_op(device: torch.device) -> Found:
    camera = a_camera().to(device=device)
    blocks = torch.cartesian_prod(*[torch.arange(-1, 2)] * 3).to(device, torch.int32)
    field = torch.zeros(len(blocks), BLOCK, BLOCK, BLOCK, device=device)
    weights, images = torch.zeros_like(field), drawn(3, camera.height, camera.width).to(device)
    seen = ObservedDepth(camera, 2.5 + images[0], 0.5 + 0.5 * images[1], images[2])
    for _ in range(2):
        integrate(field, weights, blocks, seen, voxel_size=0.05, truncation=0.3)
    return {"field": field, "weights": weights}


def texture_op(device: torch.device) -> Found:
    camera = a_camera().to(device=device)
    normals = torch.nn.functional.normalize(drawn(500, 3) - 0.5, dim=1).to(device)
    empty = Samples.empty(500, 3)
    samples = Samples(empty.weights.to(device), empty.colors.to(device), empty.views.to(device))
    size = (camera.height, camera.width)
    for view in range(4):
        rgb = (drawn(*size, 3, seed=view) * 255).to(device, torch.uint8)
        worth = drawn(*size, seed=10 + view).to(device)
        photo = ObservedPhoto(camera, rgb, worth, torch.full(size, 2.6, device=device))
        gather(Surface(0.6 * normals, normals), photo, view, samples, tolerance=0.3, grazing=0.1)
    gains, offsets = 0.9 + 0.2 * drawn(4, 3).to(device), drawn(4, 3, seed=1).to(device)
    return {"weights": samples.weights, "blended": blend_texels(samples, gains, offsets, power=2.0, spread=40.0)}


def triangles_op(device: torch.device) -> Found:
    vertices, faces = 1.2 * (drawn(60, 3) - 0.5).to(device), torch.arange(60, device=device).view(20, 3)
    corners = 40 * drawn(12, 3, 2, seed=1).to(device)
    which, lost = cover(corners, 40, 40)
    return {"depth": mesh_depth(vertices, faces, a_camera().to(device=device)), "which": which, "lost": lost}


def noise_op(device: torch.device) -> Found:
    gaussians = moved(random_gaussians(200), device)
    gaussians.opacity_logits -= 5  # faint ones move
    scatter_means(gaussians, strength=0.5, seed=7, step=3)
    return {"means": gaussians.means}


def sh_color_op(device: torch.device) -> Found:
    features = (6 * drawn(700, 27) - 3).to(device).requires_grad_()
    rays = torch.randint(0, 40, (700,), generator=torch.Generator().manual_seed(1)).sort().values.int()
    directions = torch.nn.functional.normalize(drawn(40, 3, seed=2) - 0.5, dim=1).to(device)
    rgb = sh_color(features, rays.to(device), directions)
    (v_features,) = torch.autograd.grad((rgb * drawn(700, 3, seed=3).to(device)).sum(), features)
    return {"rgb": rgb.detach(), "v_features": v_features}


def step_op(device: torch.device) -> Found:
    gaussians, camera = moved(random_gaussians(200), device), a_camera().to(device=device)
    photo = (drawn(camera.height, camera.width, 3) * 255).to(device, torch.uint8)
    step, background = SplatStep(gaussians, AdamState.zeros(gaussians)), torch.zeros(3, device=device)
    found = {}
    for number in range(3):
        image = step.forward(camera, background, sh_degree=3)
        loss, v_image = photometric_loss_and_grad(image, photo)
        found[f"loss {number}"] = torch.as_tensor(loss).detach().clone()
        step.backward(v_image)
        if number == 0:
            found |= {f"v_{name}": value.clone() for name, value in step.gradients().items()}
        step.update(RATES)
    found |= step.gaussians.parameters()
    return found | {"score": step.statistics.score, "seen": step.statistics.seen, "radius": step.statistics.radius}


def volume_loss_op(device: torch.device) -> Found:
    counts = torch.arange(60) * 7 % 70
    ends, rays = torch.cat([torch.zeros(1), counts.cumsum(0)]).int(), torch.repeat_interleave(torch.arange(60), counts)
    total = len(rays)
    places = (rays + drawn(total).double()).sort().values - rays
    packed = {
        "rgb": drawn(total, 3, seed=1),
        "weights": drawn(total, seed=2) / 70,
        "rays": rays.int(),
        "offsets": ends,
        "last": drawn(60, seed=3),
        "background": drawn(3, seed=4),
    }
    packed = {name: value.to(device) for name, value in packed.items()}
    found = volume_loss_and_grad(
        **packed,
        target=drawn(60, 3, seed=5).to(device),
        s=places.float().to(device),
        interval=0.01,
        per_point=0.1,
        entropy=0.01,
        distortion=0.1,
    )
    return found._asdict() | {"pixels": composite_rays(**packed)}


def total_variation_op(device: torch.device) -> Found:
    values, grad = 4 * drawn(9, 8, 70).to(device), (drawn(9, 8, 70, seed=1) - 0.5).clamp_min(0).to(device)
    add_total_variation(grad, values, weight=0.5, touched_only=True)
    cells = (drawn(9 * 8 * 70, seed=2) < 0.5).nonzero()[:, 0]
    rows = torch.full((9 * 8 * 70,), -1, dtype=torch.int32).index_put((cells,), torch.arange(len(cells)).int())
    table, table_grad = 4 * drawn(len(cells), 12, seed=3).to(device), torch.zeros(len(cells), 12, device=device)
    sparse = {"rows": rows.view(9, 8, 70).to(device), "cells": cells.int().to(device)}
    add_total_variation(table_grad, table, weight=0.5, touched_only=False, **sparse)
    return {"grad": grad, "table_grad": table_grad}


def masked_adam_op(device: torch.device) -> Found:
    param, rates = drawn(300, 15, 3).to(device), (drawn(300, 15, seed=1) - 0.3).clamp_min(0).to(device)
    first, second = torch.zeros_like(param), torch.zeros_like(param)
    for step in (1, 2, 3):
        grad = (drawn(300, 15, 3, seed=step) - 0.6).clamp_min(0).to(device)
        adam_masked(param, grad, first, second, step=step, lr=1e-2, rates=rates)
    return {"param": param, "first": first, "second": second}


def march_op(device: torch.device) -> Found:
    shape, found = (20, 17, 23), {}
    at = a_density(shape, dtype=torch.float32)
    values = at.values.to(device).requires_grad_()
    density = Density(values, at.shifts.to(device), at.occupied.to(device))
    for name, rays in (("straight", straight_rays), ("bent", bent_rays)):
        spans = rays(shape, 60, seed=7, dtype=torch.float32)  # no sample within 1e-4 of where a voxel or a limit ends
        moved_to = {n: getattr(spans, n).to(device) for n in ("origins", "directions", "starts", "counts")}
        curve = spans.curve and replace(spans.curve, distances=spans.curve.distances.to(device))
        spans = RaySpans(**moved_to, curve=curve)
        seen = march(density, spans, Limits(0.5, 1e-4, 1e-4))
        weights = torch.zeros(60, 512, device=device)
        weights[seen.rays.long(), (seen.steps - spans.starts[seen.rays.long()]).round().long()] = seen.weights
        loss = (weights * drawn(60, 512).to(device)).sum() + (seen.last * drawn(60, seed=1).to(device)).sum()
        found |= {f"weights {name}": weights.detach(), f"last {name}": seen.last.detach()}
        found[f"v_density {name}"] = torch.autograd.grad(loss, values)[0]
        found[f"hits {name}"] = hits(density.occupied, shape[2], spans)
    return found


def trilinear_op(device: torch.device) -> Found:
    shape = (6, 5, 9)
    rows = torch.arange(270, dtype=torch.int32).view(shape)
    rows = torch.where(rows % 3 > 0, rows, -1).to(device)
    points = (drawn(300, 3) * (torch.tensor(shape) + 1) - 1).to(device)
    found = {}
    for channels in (3, 12):
        table = drawn(270, channels, seed=1).to(device).requires_grad_()
        out = trilinear(table, rows, points)
        found[f"rows of {channels}"] = out.detach()
        v_out = drawn(300, channels, seed=2).to(device)
        found[f"v_table of {channels}"] = torch.autograd.grad(out, table, v_out)[0]
    return found


def hash_encoding_op(device: torch.device) -> Found:
    points, found = (1.2 * drawn(300, 3) - 0.1).to(device).requires_grad_(), {}
    for features in (1, 2, 4, 8):
        levels = HashLevels(levels=4, features=features, log2_rows=8, base=4, growth=1.7)
        table = (drawn(levels.rows, features, seed=1) - 0.5).to(device).requires_grad_()
        out = hash_encode(table, levels, points)
        v_out = (drawn(300, levels.width, seed=2) - 0.5).to(device)
        found[f"features of {features}"] = out.detach()
        for name, value in zip(("v_table", "v_points"), torch.autograd.grad(out, (table, points), v_out)):
            found[f"{name} of {features}"] = value
    return found


def octree_op(device: torch.device) -> Found:
    found: Found = {}
    listed = random_rays(300)
    assert listed.origins is not None and listed.directions is not None
    lists = Rays(listed.origins.to(device), listed.directions.to(device))
    for sh_degree, rays in enumerate((lists, Rays(camera=a_camera()), lists, Rays(camera=a_camera()))):
        octree = random_octree(5, sh_degree).to(device=device)
        leaves = (octree.sigmas.requires_grad_(), octree.sh_coeffs.requires_grad_())
        seen = render_octree(*leaves, octree.index, rays, with_depth=True)
        assert seen.depth is not None
        loss = (seen.rgb * drawn(len(rays), 3).to(device)).sum() + (seen.last * drawn(len(rays)).to(device)).sum()
        v_sigmas, v_sh = torch.autograd.grad(loss, leaves)
        sums, maxima = torch.zeros(2, len(octree), device=device)
        leaf_weights(leaves[0], octree.index, rays, sums, maxima)
        one = {"rgb": seen.rgb.detach(), "last": seen.last.detach(), "depth": seen.depth, "sums": sums}
        one |= {"maxima": maxima, "v_sigmas": v_sigmas, "v_sh": v_sh}
        found |= {f"{name} {sh_degree}": value for name, value in one.items()}
    return found


OPS: dict[str, Callable[[torch.device], Found]] = {
    "project": project_op,
    "bin": bin_op,
    "blend": blend_op,
    "loss": loss_op,
    "adam": adam_op,
    "composite": composite_op,
    "tsdf": tsdf_op,
    "texture": texture_op,
    "triangles": triangles_op,
    "noise": noise_op,
    "volume_loss": volume_loss_op,
    "total_variation": total_variation_op,
    "masked_adam": masked_adam_op,
    "sh_color": sh_color_op,
    "step": step_op,
    "march": march_op,
    "trilinear": trilinear_op,
    "hash_encoding": hash_encoding_op,
    "octree": octree_op,
}


def main() -> int:
    """All ops on the GPU; non-zero when one gives what is no number."""
    device = torch.device("cuda")
    wrong = [
        f"{op}.{name}"
        for op, run in OPS.items()
        for name, value in run(device).items()
        if value.is_floating_point() and not bool(torch.isfinite(value).all())
    ]
    sys.stdout.write(f"ran {len(OPS)} ops; not finite: {', '.join(wrong) or 'none'}\n")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
