"""What a distilled scene is worth, from its pictures: its nearest reference, its fronts, and what a scorer says of it.

References are procedural objects that the same words make (`objects.py`). A scene with a front on more than one side
(the Janus problem, DreamFusion, section 5) shows a second view that looks more like the reference's front than like
what belongs there.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from generation.captions import PLAIN, parse, sample_caption
from generation.clip import Clip
from generation.networks import resized
from generation.object_render import composited, render_objects
from generation.objects import make_object
from generation.shapes import ObjectModel
from generation.trained_prior import tokens_of
from generation.views import orthogonal_cameras
from scene.cameras import Camera

SIDES = 4  # views: front, left, back, right
ELEVATION, FOV, DISTANCE = 15.0, 40.0, 2.7  # of the views that scenes are judged by
ONE_FRONT = 1e-3  # mean squared difference of colours of 0..1 between an object's front and each other side
AMONG = 100  # captions that a scorer chooses from


def judged_cameras(size: int) -> tuple[Camera, ...]:
    """The views that scenes are judged by: front, left, back, right."""
    return orthogonal_cameras(0.0, ELEVATION, FOV, DISTANCE, size, SIDES)


def reference_objects(prompt: str, count: int, seed: int = 0) -> tuple[ObjectModel, ...]:
    """Objects of a prompt. Raises InputError where the grammar does not know its words."""
    caption, generator = parse(prompt), torch.Generator().manual_seed(seed)
    return tuple(make_object(caption, generator) for _ in range(count))


def reference_pictures(objects: tuple[ObjectModel, ...], size: int) -> Tensor:
    """[K, 4, 3, h, w] of objects over white, by `judged_cameras`."""
    cameras = [judged_cameras(size)] * len(objects)
    return composited(render_objects(objects, cameras), torch.ones(3))


@dataclass(frozen=True)
class Sides:
    """The nearest reference and its likeness in dB; which of its sides each of the 4 views looks like most.

    fronts: in how many views the front is seen; None where the object has not one front but several, or none.
    """

    nearest: int
    psnr: float
    looks_like: tuple[int, ...]
    fronts: int | None

    @property
    def janus(self) -> bool:
        """Whether a front is seen from a side that is none."""
        return self.fronts is not None and self.fronts > 1


def judged_sides(pictures: Tensor, references: Tensor) -> Sides:
    """pictures: [4, 3, h, w] of a scene by `judged_cameras`, over white.  references: [K, 4, 3, h, w]."""
    errors = (pictures[None] - references).square().flatten(1).mean(1)
    nearest = int(errors.argmin())
    own = references[nearest]
    table = (pictures[:, None] - own[None]).square().flatten(2).mean(2)  # [view, side]
    likes = tuple(int(side) for side in table.argmin(1))
    apart = (own[1:] - own[:1]).square().flatten(1).mean(1)
    fronts = sum(side == 0 for side in likes) if float(apart.min()) > ONE_FRONT else None
    return Sides(nearest, float(-10 * errors[nearest].clamp(min=1e-10).log10()), likes, fronts)


@dataclass(frozen=True)
class Score:
    """Where the prompt comes among captions for pictures of a scene, 1 the best; the caption that fits best."""

    rank: int
    among: int
    similarity: float  # cosine
    best: str


@torch.no_grad()
def scored(scorer: Clip, pictures: Tensor, prompt: str, *, among: int = AMONG, seed: int = 0) -> Score:
    """How a held-out scorer orders captions by views [V, 3, H, W] in 0..1 over white; a tie counts against the prompt.

    The others are captions as training draws them, none of them of the prompt's meaning. Raises InputError for a prompt
    with words that the scorer does not know.
    """
    generator, meant = torch.Generator().manual_seed(seed), parse(prompt)
    others: dict[str, str] = {}
    while len(others) < among - 1:
        caption = sample_caption(generator, mix=PLAIN)
        if caption.phrases() != meant.phrases():
            others.setdefault(caption.text(), caption.text())
    captions = [prompt, *others]
    views = scorer.image(2 * resized(pictures, scorer.layout.size) - 1).mean(0)
    texts = scorer.text(torch.tensor([tokens_of(text) for text in captions]))
    similar = torch.nn.functional.normalize(texts, dim=-1) @ views / views.norm()
    rank = 1 + int((similar[1:] >= similar[0]).sum())
    return Score(rank, among, float(similar[0]), captions[int(similar.argmax())] if rank > 1 else prompt)
