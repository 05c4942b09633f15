"""Pictures of procedural objects: exact ray hits, the nearest wins; all objects of a batch together, kind by kind.

A primitive meets only the pixels under its own box, so pairs (pixel, primitive) are listed first, then each kind is
intersected in one call. Nothing is sampled and nothing marched: picture, depth and normals are those of the primitives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from generation.object_shading import DAYLIGHT, Light, shade
from generation.ray_hits import first_hit
from generation.shapes import Kind, ObjectModel, local_extents, local_normals
from scene.cameras import Camera

PAIRS_AT_ONCE = 1 << 20  # on the CPU; with 1 << 17 a 32-pixel set took twice as long, most of it the cost of calls
BACKGROUNDS = (0.5, 0.3, 0.2)  # shares of random, white and grey in training


@dataclass(frozen=True)
class ObjectPictures:
    """What B objects look like from V cameras each; zeros (part and primitive: -1) where a ray meets nothing.

    rgb, albedo: [B, V, 3, H, W] in 0..1, straight: not multiplied by alpha.  alpha: [B, V, 1, H, W] 0 or 1, shares of
    a pixel with several samples.  depth: [B, V, 1, H, W] z in the camera.  normal: [B, V, 3, H, W] outward, in the
    world, unit.  part, primitive: [B, V, 1, H, W] int64, indices into `ObjectModel.parts` and into its rows.
    """

    rgb: Tensor
    alpha: Tensor
    depth: Tensor
    normal: Tensor
    albedo: Tensor
    part: Tensor
    primitive: Tensor


def composited(pictures: ObjectPictures, background: Tensor) -> Tensor:
    """[B, V, 3, H, W] over `background`: [3], or anything that broadcasts to the pictures, such as [B, 1, 3, 1, 1]."""
    behind = background.view(3, 1, 1) if background.dim() == 1 else background
    return pictures.rgb * pictures.alpha + (1 - pictures.alpha) * behind


def sample_backgrounds(generator: torch.Generator, count: int) -> Tensor:
    """[count, 1, 3, 1, 1] colours, one for each object: half random, the rest white and some grey 0.5."""
    kinds = torch.rand(count, 1, generator=generator)
    colors = torch.rand(count, 3, generator=generator)
    plain = torch.where(kinds < BACKGROUNDS[0] + BACKGROUNDS[1], 1.0, 0.5).expand(count, 3)
    return torch.where(kinds < BACKGROUNDS[0], colors, plain).view(count, 1, 3, 1, 1)


@torch.no_grad()
def render_objects(
    objects: Sequence[ObjectModel],
    cameras: Sequence[Sequence[Camera]],
    *,
    light: Light = DAYLIGHT,
    samples: int = 1,
) -> ObjectPictures:
    """Pictures of every object from its own cameras.

    objects: B.  cameras: B sequences of V cameras, all of one image size.  samples: rays along either side of a pixel;
    with more than one, colours and alpha are means over the pixel, depth and normal those over what is hit, part and
    primitive those of the nearest sample.  Raises ValueError where counts or sizes differ.
    """
    views = {len(each) for each in cameras}
    sizes = {(camera.width, camera.height) for each in cameras for camera in each}
    if len(objects) != len(cameras) or len(views) != 1 or len(sizes) != 1:
        raise ValueError(
            f"every object needs the same number of cameras of one size, got {len(objects)} objects and "
            f"{len(cameras)} sets of {sorted(views)} cameras of sizes {sorted(sizes)}"
        )
    (width, height), count = sizes.pop(), views.pop()
    per_block = max(1, PAIRS_AT_ONCE // (4 * count * width * height * samples**2))
    if objects[0].size.is_cuda:
        per_block *= 256
    blocks = []
    for start in range(0, len(objects), per_block):
        block = slice(start, start + per_block)
        fine = [
            [c.resized(width * samples, height * samples) if samples > 1 else c for c in each]
            for each in cameras[block]
        ]
        blocks.append(_pooled(_render(objects[block], fine, light), samples))
    return ObjectPictures(*(torch.cat([getattr(block, f.name) for block in blocks]) for f in fields(ObjectPictures)))


@dataclass(frozen=True)
class _Batch:
    """All primitives of a block [N] and all cameras [B, V], on one device."""

    kind: Tensor
    world: Tensor  # [N, 4, 4]
    size: Tensor
    owner: Tensor  # [N] which object
    K: Tensor  # [B, V, 3, 3]
    c2w: Tensor  # [B, V, 4, 4]
    width: int
    height: int


def _render(objects: Sequence[ObjectModel], cameras: Sequence[Sequence[Camera]], light: Light) -> ObjectPictures:
    """One sample a pixel, all at once."""
    like, first = objects[0].size, cameras[0][0]
    counts = torch.tensor([len(model) for model in objects], device=like.device)
    batch = _Batch(
        torch.cat([model.kind for model in objects]),
        torch.cat([model.world_from_primitive for model in objects]),
        torch.cat([model.size for model in objects]),
        torch.arange(len(objects), device=like.device).repeat_interleave(counts),
        torch.stack([camera.K for each in cameras for camera in each]).to(like).view(len(objects), -1, 3, 3),
        torch.stack([camera.c2w for each in cameras for camera in each]).to(like).view(len(objects), -1, 4, 4),
        first.width,
        first.height,
    )
    depth, winner = _nearest(batch)
    return _surfaces(batch, objects, depth, winner, counts, light)


def _nearest(batch: _Batch) -> tuple[Tensor, Tensor]:
    """Depth [B V H W] of the first hit, infinity without, and the primitive [B V H W] that is hit, -1 without."""
    shape = batch.K.shape[0] * batch.K.shape[1] * batch.height * batch.width
    depth = batch.size.new_full((shape,), torch.inf)
    hits = []
    for kind in Kind:
        rows = (batch.kind == kind).nonzero()[:, 0]
        if len(rows) == 0:
            continue
        primitive, view, pixel_x, pixel_y = _pairs(batch, rows)
        o, d = _local_rays(batch, primitive, view, pixel_x, pixel_y)
        t = first_hit(kind, o, d, batch.size[primitive])
        met = t.isfinite().nonzero()[:, 0]
        at = (((batch.owner[primitive] * batch.K.shape[1] + view) * batch.height + pixel_y) * batch.width + pixel_x)[
            met
        ]
        depth.scatter_reduce_(0, at, t[met], "amin")
        hits.append((at, t[met], primitive[met]))
    winner = torch.full((shape,), len(batch.kind), device=depth.device)
    for at, t, primitive in hits:  # of equally near ones the first, whatever the order of work
        won = t == depth[at]
        winner.scatter_reduce_(0, at[won], primitive[won], "amin")
    return depth, torch.where(winner == len(batch.kind), -1, winner)


def _pairs(batch: _Batch, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Primitive, view and pixel of every ray that passes the box around one of `rows`: four [P]."""
    signs = batch.size.new_tensor([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
    local = signs * local_extents(batch.kind[rows], batch.size[rows])[:, None]
    world = batch.world[rows]
    corners = local @ world[:, :3, :3].transpose(1, 2) + world[:, None, :3, 3]  # [rows, 8, 3]
    K, c2w = batch.K[batch.owner[rows]], batch.c2w[batch.owner[rows]]  # [rows, V, ...]
    seen = (corners[:, None] - c2w[:, :, None, :3, 3]) @ c2w[:, :, :3, :3]  # [rows, V, 8, 3]
    z = seen[..., 2]
    ahead = (z > 1e-3).all(-1)  # a box that reaches behind the camera may cover the whole picture
    u = seen[..., 0] / z * K[:, :, None, 0, 0] + K[:, :, None, 0, 2]
    v = seen[..., 1] / z * K[:, :, None, 1, 1] + K[:, :, None, 1, 2]
    limits = []
    for at, length in (
        (u, batch.width),
        (v, batch.height),
    ):  # pixel i is sampled at i + 0.5; a little slack for rounding
        low = torch.where(ahead, (at.amin(-1) - 0.51).ceil(), 0.0).clamp(0, length)
        high = torch.where(ahead, (at.amax(-1) - 0.49).floor() + 1, length).clamp(0, length)
        limits += [low.long().flatten(), (high - low).clamp(min=0).long().flatten()]
    x0, wide, y0, tall = limits
    wide = torch.where((z > 1e-3).any(-1).flatten(), wide, 0)
    box = torch.arange(len(x0), device=x0.device).repeat_interleave(wide * tall)
    start = (wide * tall).cumsum(0) - wide * tall
    within = torch.arange(len(box), device=box.device) - start[box]
    across = wide[box]
    down = within.div(across.clamp(min=1), rounding_mode="floor")
    views = batch.K.shape[1]
    return rows[box // views], box % views, x0[box] + within - down * across, y0[box] + down


def _local_rays(batch: _Batch, primitive: Tensor, view: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Origins and directions [P, 3] in the primitives' frames; a direction's z in the camera is 1, so t is depth."""
    views = batch.K.shape[1]
    inverse = batch.world[:, None, :3, :3].transpose(-1, -2)  # [N, 1, 3, 3]
    c2w, K = batch.c2w[batch.owner], batch.K[batch.owner]
    turn = inverse @ c2w[..., :3, :3]  # [N, V, 3, 3] primitive from camera
    origin = (inverse @ (c2w[..., :3, 3] - batch.world[:, None, :3, 3])[..., None])[..., 0]  # [N, V, 3]
    focal = K[..., [0, 1], [0, 1]]
    step = turn[..., :2] / focal[..., None, :]  # directions are linear in the pixel
    base = turn[..., 2] + (step * (0.5 - K[..., None, :2, 2])).sum(-1)
    table = torch.cat([origin, base, step.transpose(-1, -2).flatten(2)], dim=-1).flatten(0, 1)  # [N V, 12]
    o, base, along_x, along_y = table[primitive * views + view].split(3, dim=1)
    return o, base + x[:, None] * along_x + y[:, None] * along_y


def _surfaces(
    batch: _Batch, objects: Sequence[ObjectModel], depth: Tensor, winner: Tensor, counts: Tensor, light: Light
) -> ObjectPictures:
    """Colours and normals of the pixels that show something."""
    views, pixels = batch.K.shape[1], batch.height * batch.width
    lit = (winner >= 0).nonzero()[:, 0]
    primitive, view = winner[lit], lit // pixels % views
    y, x = lit % pixels // batch.width, lit % batch.width
    o, d = _local_rays(batch, primitive, view, x, y)
    p = o + depth[lit, None] * d
    n = torch.zeros_like(p)
    kinds = batch.kind[primitive]
    for kind in Kind:
        rows = (kinds == kind).nonzero()[:, 0]
        if len(rows):
            n[rows] = local_normals(kind, p[rows], batch.size[primitive[rows]])
    rotation = batch.world[primitive, :3, :3]
    normal, toward = (F.normalize((rotation @ vectors[..., None])[..., 0], dim=-1) for vectors in (n, -d))
    material = torch.cat([model.material for model in objects])[primitive]
    rgb = torch.cat([model.rgb for model in objects])[primitive]
    albedo, color = shade(rgb, material, p, batch.size[primitive], normal, toward, light)
    part = torch.cat([model.part for model in objects])[primitive]
    first = counts.cumsum(0) - counts

    def image(values: Tensor, empty: float = 0.0) -> Tensor:
        values = values[:, None] if values.dim() == 1 else values
        flat = torch.full((len(winner), values.shape[1]), empty, dtype=values.dtype, device=values.device)
        flat[lit] = values
        return flat.view(len(objects), views, batch.height, batch.width, -1).permute(0, 1, 4, 2, 3).contiguous()

    ones = torch.ones_like(depth[lit])
    own_row = primitive - first[batch.owner[primitive]]
    return ObjectPictures(
        image(color), image(ones), image(depth[lit]), image(normal), image(albedo), image(part, -1), image(own_row, -1)
    )


def _pooled(fine: ObjectPictures, samples: int) -> ObjectPictures:
    """Means over the samples of each pixel."""
    if samples == 1:
        return fine

    def mean(values: Tensor) -> Tensor:
        return F.avg_pool2d(values.flatten(0, 1), samples).unflatten(0, values.shape[:2])

    def over_hits(values: Tensor) -> Tensor:
        return mean(values * fine.alpha) / alpha.clamp(min=1e-6)

    alpha = mean(fine.alpha)
    distance = torch.where(fine.alpha > 0, fine.depth, torch.inf).flatten(0, 1)
    shape = (*alpha.shape[:2], 1, *alpha.shape[-2:])
    nearest = F.max_pool2d(-distance, samples, return_indices=True)[1]

    def of_nearest(values: Tensor) -> Tensor:
        return values.flatten(0, 1).flatten(1).gather(1, nearest.flatten(1)).view(shape)

    return ObjectPictures(
        over_hits(fine.rgb),
        alpha,
        over_hits(fine.depth),
        F.normalize(over_hits(fine.normal), dim=2),
        over_hits(fine.albedo),
        of_nearest(fine.part),
        of_nearest(fine.primitive),
    )
