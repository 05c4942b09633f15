"""How good the trained networks are, on combinations of colours that none of them was trained on.

The scorer is proven first, on true pictures of held-out objects; what it then says of samples of the prior counts for
as much as that. A sample is also judged without any network: by how well its views agree on one silhouette hull, and by
the grain that is left where nothing should be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from generation.clip import Clip, r_precision
from generation.networks import camera_of_numbers
from generation.prior_data import VIEWS, PriorData, over_background
from generation.priors import Condition
from generation.trained_prior import TrainedPrior
from scene.cameras import Camera

SETS_AT_ONCE = 32
HULL_CELLS, HULL_HALF = 64, 0.8  # of the cube about the origin that is carved
DIFFERENT = 0.25  # mean over 3 x 3 pixels, colours of -1..1, from which a pixel is not background
CORNER = 4  # pixels


@torch.no_grad()
def retrieval_scores(network: Clip, pictures: Tensor, data: PriorData, prefix: str) -> dict[str, float]:
    """R-precision at 1 of 100 captions, exactly and by kind of thing; of sets of views, and of their first views.

    pictures: [N, V, 3, h, w] in -1..1 of the objects of `data`. A set's score is the mean of its views'.
    """
    flat = torch.cat([network.image(each) for each in pictures.flatten(0, 1).split(512)])
    images = flat.unflatten(0, pictures.shape[:2])
    texts = network.text(data.words[: len(pictures), 0])
    meanings, kinds = data.meanings[: len(pictures)], data.kinds[: len(pictures)]
    sets = r_precision(images.mean(1), texts, meanings, kinds)
    views = r_precision(images[:, 0], texts, meanings, kinds)
    return {
        f"{prefix}_exact": sets.exact,
        f"{prefix}_kind": sets.kind,
        f"{prefix}_view_exact": views.exact,
        f"{prefix}_view_kind": views.kind,
    }


def true_pictures(data: PriorData) -> Tensor:
    """[N, V, 3, h, w] in -1..1 over white."""
    return over_background(data.rgba[:, 0], torch.ones(3, 1, 1, device=data.rgba.device))


def sampled_pictures(
    prior: TrainedPrior,
    data: PriorData,
    count: int,
    *,
    guidance: float,
    seed: int,
    steps: int = 25,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Tensor:
    """[count, V, 3, h, w] in -1..1: sets that the prior makes of the captions, at the cameras of `data`."""
    generator = torch.Generator(prior.device).manual_seed(seed)
    made = []
    for start in range(0, count, SETS_AT_ONCE):
        progress(start, count)
        rows = range(start, min(count, start + SETS_AT_ONCE))
        texts = tuple(data.texts[i] for i in rows for _ in range(VIEWS))
        cameras = tuple(camera for i in rows for camera in cameras_of(data, i))
        made.append(prior.sample(Condition(texts, cameras), generator, guidance=guidance, steps=steps))
    progress(count, count)
    return torch.cat(made).clamp(-1, 1).unflatten(0, (count, VIEWS))


def cameras_of(data: PriorData, row: int) -> tuple[Camera, ...]:
    """The cameras of an object's first set."""
    return tuple(camera_of_numbers(numbers, data.rgba.shape[-1]) for numbers in data.cameras[row, 0])


def background_of(pictures: Tensor) -> Tensor:
    """[3] the median colour along the borders of a set of pictures [V, 3, h, w]."""
    border = [pictures[..., 0, :], pictures[..., -1, :], pictures[..., :, 0], pictures[..., :, -1]]
    return torch.cat(border, dim=-1).transpose(0, 1).flatten(1).median(dim=1).values


def grain(pictures: Tensor) -> float:
    """Rms difference from the background in the corners of sets [N, V, 3, h, w], colours of -1..1."""
    found = []
    for views in pictures:
        apart = (views - background_of(views).view(3, 1, 1)).square()
        corners = [apart[..., y, x] for y in _ends() for x in _ends()]
        found.append(torch.stack([corner.mean() for corner in corners]).mean())
    return float(torch.stack(found).mean().sqrt())


def _ends() -> tuple[slice, slice]:
    return slice(None, CORNER), slice(-CORNER, None)


def hull_iou(pictures: Tensor, cameras: Sequence[Camera]) -> float:
    """How well views [V, 3, h, w] agree on a shape: their silhouettes carve a hull, whose silhouettes are compared.

    Mean over the views of the intersection over union: 1 for views of one thing, but for the grid; 0 of nothing.
    """
    apart = (pictures.cpu() - background_of(pictures.cpu()).view(3, 1, 1)).abs().amax(1, keepdim=True)
    masks = F.avg_pool2d(apart, 3, 1, 1)[:, 0] > DIFFERENT
    axis = (torch.arange(HULL_CELLS) + 0.5) / HULL_CELLS * 2 * HULL_HALF - HULL_HALF
    points = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    inside, pixels = torch.ones(len(points), dtype=torch.bool), []
    for mask, camera in zip(masks, cameras):
        at = camera.project(points)[0].floor().long()
        seen = (at >= 0).all(1) & (at[:, 0] < camera.width) & (at[:, 1] < camera.height)
        at = at[:, 1].clamp(0, camera.height - 1) * camera.width + at[:, 0].clamp(0, camera.width - 1)
        inside &= seen & mask.flatten()[at]
        pixels.append(at)
    overlaps = []
    for mask, at in zip(masks, pixels):
        hull = torch.zeros(mask.numel(), dtype=torch.bool)
        hull[at[inside]] = True
        union = int((hull | mask.flatten()).sum())
        overlaps.append(int((hull & mask.flatten()).sum()) / union if union else 0.0)
    return sum(overlaps) / len(overlaps)


def consistency(pictures: Tensor, data: PriorData) -> float:
    """Mean `hull_iou` of sets [N, V, 3, h, w] at the cameras of `data`."""
    overlaps = [hull_iou(views, cameras_of(data, i)) for i, views in enumerate(pictures)]
    return sum(overlaps) / len(overlaps)


def contact_sheet(pictures: Tensor, columns: int = 6) -> Tensor:
    """[H, W, 3] uint8 of sets [N, V, 3, h, w] in -1..1: the views of a set side by side, `columns` sets in a row."""
    sets, views, _, h, w = pictures.shape
    rows = -(-sets // columns)
    sheet = pictures.new_ones(rows * columns, views, 3, h, w)
    sheet[:sets] = pictures
    strips = sheet.unflatten(0, (rows, columns)).permute(0, 4, 1, 2, 5, 3).reshape(rows * h, columns * views * w, 3)
    return ((strips + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu()
