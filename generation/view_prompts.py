"""Prompts that name the view: a word appended, or Perp-Neg, which mixes views and turns away from the wrong ones.

View words: DreamFusion (2209.14988), section 3.2. Perp-Neg: Armandpour et al. (2304.04968), with threestudio's numbers.
Departure: Perp-Neg mixes the noises of two views' prompts where the original mixes their embeddings, because a prior
here takes words; at azimuth 0, 90 and 180 both are the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from generation.distill_kernel import Prompts
from generation.priors import Condition
from generation.views import OVERHEAD, VIEW_WORDS, azimuth_of, elevation_of, view_words
from scene.cameras import Camera


@dataclass(frozen=True)
class Decay:
    """f(r) = scale exp(-rate r) + shift."""

    scale: float
    rate: float
    shift: float

    def __call__(self, r: float) -> float:
        """f(r)."""
        return self.scale * math.exp(-self.rate * r) + self.shift


@dataclass(frozen=True)
class PerpNeg:
    """How strongly a view's wrong neighbours are turned away from: seen between front and side, between side and back.

    front_side: of the front by how much front the view is; side_front: of the side by how much side it is; side_back:
    of the side by how much side it is; front_back: of the front, there.
    """

    front_side: Decay = Decay(4.0, 0.5, -2.426)
    side_front: Decay = Decay(4.0, 0.5, -2.426)
    side_back: Decay = Decay(1.0, 0.5, -0.606)
    front_back: Decay = Decay(1.0, 0.5, 0.967)


@dataclass(frozen=True)
class ViewRule:
    """How a prompt names views.

    threshold: degrees of the front and the back view to each side; 45 (SDS) or 30 (VSD, MVDream).
    perp_neg: mixing instead of words, or None.  words: False leaves the prompt as it is.
    """

    threshold: float = 45.0
    words: bool = True
    perp_neg: PerpNeg | None = None


def with_view(prompt: str, view: str) -> str:
    """ "a car", "side" -> "a car, side view"."""
    return f"{prompt}, {view} view"


def perp_neg_weights(azimuth: float, elevation: float, rule: PerpNeg) -> tuple[dict[str, float], dict[str, float]]:
    """Shares of the views that the positive prompt is mixed of, and the weights (<= 0) of those turned away from."""
    if elevation > OVERHEAD:
        return {"overhead": 1.0}, {}
    turned = abs((azimuth + 180) % 360 - 180)
    if turned < 90:
        r = 1 - turned / 90
        away = {"front": -rule.front_side(r), "side": -rule.side_front(1 - r)}
        return {"front": r, "side": 1 - r}, away
    r = 2 - turned / 90
    return {"side": r, "back": 1 - r}, {"side": -rule.side_back(r), "front": -rule.front_back(r)}


def prompts_for(
    prompt: str,
    cameras: Sequence[Camera],
    rule: ViewRule,
    *,
    negative: str | None = None,
    image: Tensor | None = None,
    image_camera: Camera | None = None,
) -> Prompts:
    """What N pictures of `prompt`, seen by N cameras, are to show. image: [3, H, W] in 0..1, as of `Condition`."""
    views, count = tuple(cameras), len(cameras)
    seen = [(azimuth_of(camera), elevation_of(camera)) for camera in views]
    null = Condition((None,) * count, views)
    against = None if negative is None else Condition((negative,) * count, views)
    source = Condition((prompt,) * count, views, image, image_camera)
    if rule.perp_neg is None or not rule.words:
        texts = [with_view(prompt, view_words(*at, rule.threshold)) if rule.words else prompt for at in seen]
        return Prompts((Condition(tuple(texts), views, image, image_camera),), null, against, source)
    tables = [perp_neg_weights(*at, rule.perp_neg) for at in seen]
    used = [word for word in VIEW_WORDS if any(word in mix or word in away for mix, away in tables)]
    conditions = tuple(Condition((with_view(prompt, word),) * count, views, image, image_camera) for word in used)
    mix, repel = (torch.tensor([[part[i].get(w, 0.0) for part in tables] for w in used]) for i in (0, 1))
    return Prompts(conditions, null, against, source, mix, repel)
