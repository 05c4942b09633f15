"""Networks that tell which caption a picture shows, after CLIP (Radford et al., 2021, https://arxiv.org/abs/2103.00020).

Two are trained and kept apart. CLIP-G guides: its features are a condition of the prior. CLIP-S scores: another seed,
other widths, the other half of the objects, and no loss ever contains it; so what it says of a result is evidence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generation.networks import TextEncoder, group_norm

MAX_SCALE = 50.0  # of the learned factor before the softmax
START_SCALE = 14.0


@dataclass(frozen=True)
class ClipLayout:
    """The architecture. size: pixels of a side.  channels: of the picture's levels, each half as fine as the last.

    text: channels of the words.  joint: length of the vectors that both end in.
    """

    size: int = 32
    channels: tuple[int, ...] = (32, 64, 128)
    text: int = 96
    text_layers: int = 1
    joint: int = 128
    head: int = 32
    words: int = 512


CPU_GUIDE = ClipLayout()
CPU_SCORER = ClipLayout(channels=(24, 48, 96, 160), text=128)
GPU_GUIDE = ClipLayout(64, (48, 96, 160, 224), 160, 2, 256)
GPU_SCORER = ClipLayout(64, (40, 80, 160, 200), 128, 2, 256)


class Clip(nn.Module):
    """Pictures and captions to unit vectors; the more alike, the better they fit."""

    def __init__(self, layout: ClipLayout) -> None:
        super().__init__()
        self.layout = layout
        levels, before = [], 3
        for c in layout.channels:
            levels += [nn.Conv2d(before, c, 3, stride=2, padding=1), group_norm(c), nn.GELU()]
            levels += [nn.Conv2d(c, c, 3, padding=1), group_norm(c), nn.GELU()]
            before = c
        self.levels = nn.Sequential(*levels)
        self.image_out = nn.Linear(before, layout.joint)
        self.words = TextEncoder(layout.words, layout.text, layout.text_layers, layout.head)
        self.text_out = nn.Linear(layout.text, layout.joint)
        self.log_scale = nn.Parameter(torch.tensor(math.log(START_SCALE)))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def image(self, pictures: Tensor) -> Tensor:
        """[N, joint] unit vectors of pictures [N, 3, h, w] in -1..1; differentiable."""
        return F.normalize(self.image_out(self._map(pictures).mean((2, 3))), dim=-1)

    def text(self, words: Tensor) -> Tensor:
        """[N, joint] unit vectors of tokens [N, TOKENS]."""
        return F.normalize(self.text_out(self.words(words)[1]), dim=-1)

    def features(self, pictures: Tensor) -> Tensor:
        """[N, L + 1, C] of pictures: the last map, cell by cell, and its mean."""
        cells = self._map(pictures).flatten(2).transpose(1, 2)
        return torch.cat([cells, cells.mean(1, keepdim=True)], dim=1)

    def scale(self) -> Tensor:
        """The factor before the softmax."""
        return self.log_scale.exp().clamp(max=MAX_SCALE)

    def _map(self, pictures: Tensor) -> Tensor:
        return self.levels(pictures.contiguous(memory_format=torch.channels_last))


def contrastive_loss(images: Tensor, texts: Tensor, meanings: Tensor, scale: Tensor) -> Tensor:
    """InfoNCE both ways, where all pictures and captions of one meaning belong to each other.

    images, texts: [N, joint] unit.  meanings: [N] int64.  Each row's target is shared equally by those of its meaning:
    captions repeat in a batch, and a repeated one is no wrong answer.
    """
    same = (meanings[:, None] == meanings[None]).to(images.dtype)
    target = same / same.sum(1, keepdim=True)
    logits = images @ texts.T * scale
    return -((target * (logits.log_softmax(1) + logits.T.log_softmax(1))).sum(1)).mean()


@dataclass(frozen=True)
class Retrieval:
    """Shares of pictures whose own caption is found among others: exactly; and at least its kind of thing."""

    exact: float
    kind: float
    hits: Tensor  # [N] bool, exact
    kind_hits: Tensor  # [N] bool


def r_precision(
    images: Tensor,
    texts: Tensor,
    meanings: Sequence[object],
    kinds: Sequence[object],
    *,
    among: int = 100,
    seed: int = 0,
) -> Retrieval:
    """R-precision at 1: how often a picture's own caption fits it best of `among` captions.

    images, texts: [N, joint] of pictures (or means over the views of a set) and of their captions.  meanings, kinds: of
    the captions. The others are drawn from those of other meanings, each meaning once, fewer where there are fewer.
    """
    scores = images @ texts.T
    generator = torch.Generator().manual_seed(seed)
    hits, kind_hits = [], []
    for i, meaning in enumerate(meanings):
        others, seen = [], {meaning}
        for j in torch.randperm(len(meanings), generator=generator).tolist():
            if meanings[j] not in seen and len(others) < among - 1:
                seen.add(meanings[j])
                others.append(j)
        row = scores[i].tolist()
        best = max([*others, i], key=row.__getitem__)  # a tie is no hit
        hits.append(best == i)
        kind_hits.append(kinds[best] == kinds[i])
    exact, kind = torch.tensor(hits), torch.tensor(kind_hits)
    return Retrieval(float(exact.float().mean()), float(kind.float().mean()), exact, kind)
