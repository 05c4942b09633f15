"""What a distilled scene is worth, from its pictures: its nearest reference, its fronts, and what a scorer says of it.

References are procedural objects that the same words make (`objects.py`). A scene with a front on more than one side
(the Janus problem, DreamFusion, section 5) is found by a part that is at the front alone, such as the nose of a
snowman: where the true object shows it from one side and not from another, each view looks like one of the two.
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
ONE_FRONT = 1e-3  # mean squared difference of colours of 0..1 between a front and each other side
FRONT_OBJECTS, FRONT_SEED = 32, 0  # of a prompt, with which its scene is compared
FRONT_PARTS = frozenset(
    ("chair back", "car cabin", "truck cabin", "house door", "snowman nose", "robot eyes", "rocket window")
)
"""Parts that the front shows otherwise than any other side does. Without one, sides may differ by their light alone."""
AMONG = 100  # captions that a scorer chooses from


def judged_cameras(size: int, turned: float = 0.0) -> tuple[Camera, ...]:
    """The views that scenes are judged by: front, left, back, right; all of them `turned` degrees on."""
    return orthogonal_cameras(turned, ELEVATION, FOV, DISTANCE, size, SIDES)


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
    """The nearest reference and its likeness in dB; which of its sides each of the 4 views looks like most."""

    nearest: int
    psnr: float
    looks_like: tuple[int, ...]


def judged_sides(pictures: Tensor, references: Tensor) -> Sides:
    """pictures: [4, 3, h, w] of a scene by `judged_cameras`, over white.  references: [K, 4, 3, h, w]."""
    errors = (pictures[None] - references).square().flatten(1).mean(1)
    nearest = int(errors.argmin())
    table = (pictures[:, None] - references[nearest][None]).square().flatten(2).mean(2)  # [view, side]
    likes = tuple(int(side) for side in table.argmin(1))
    return Sides(nearest, float(-10 * errors[nearest].clamp(min=1e-10).log10()), likes)


@dataclass(frozen=True)
class Truth:
    """True objects of a prompt, which no prior has a part in: pictures [K, 4, 3, h, w] and where a front part is seen.

    parts: [K, 4, h, w] bool.  part: which it is, or empty.
    """

    pictures: Tensor
    parts: Tensor
    part: str


def true_objects(prompt: str, size: int) -> Truth:
    """FRONT_OBJECTS of a prompt. Raises InputError where the grammar does not know its words."""
    objects = reference_objects(prompt, FRONT_OBJECTS, FRONT_SEED)
    seen = render_objects(objects, [judged_cameras(size)] * len(objects))
    parts = torch.zeros_like(seen.part[:, :, 0], dtype=torch.bool)
    for model, found, at in zip(objects, parts, seen.part[:, :, 0]):
        for index, name in enumerate(model.parts):
            found |= (at == index) & (name in FRONT_PARTS)
    names = {name for model in objects for name in model.parts if name in FRONT_PARTS}
    return Truth(composited(seen, torch.ones(3)), parts, " and ".join(sorted(names)))


def views_of_the_front(pictures: Tensor, truth: Truth) -> tuple[bool, ...] | None:
    """Which of the 4 views [4, 3, h, w] by `judged_cameras`, over white, show the front; of one front, the first alone.

    None where the nearest true object has no part to tell its front by.
    """
    nearest = int((pictures[None] - truth.pictures).square().flatten(1).mean(1).argmin())
    own, parts = truth.pictures[nearest], truth.parts[nearest]
    weights = (parts[:1] ^ parts).float()  # [side, h, w]

    def apart(a: Tensor, b: Tensor, side: int) -> float:
        return float(((a - b).square().mean(0) * weights[side]).sum() / weights[side].sum().clamp(min=1))

    if any(apart(own[0], own[side], side) <= ONE_FRONT for side in range(1, SIDES)):
        return None
    others = [range(1, SIDES), *((side,) for side in range(1, SIDES))]  # what a view may show instead
    return tuple(
        all(apart(picture, own[0], side) < apart(picture, own[side], side) for side in sides)
        for picture, sides in zip(pictures, others)
    )


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

    The others are captions as training draws them that are wrong: the prompt does not imply them, as it would "a chair"
    where it says "a red chair". Raises InputError for a prompt with words that the scorer does not know.
    """
    generator, meant = torch.Generator().manual_seed(seed), parse(prompt)
    others: dict[str, str] = {}
    while len(others) < among - 1:
        caption = sample_caption(generator, mix=PLAIN)
        if not meant.implies(caption):
            others.setdefault(caption.text(), caption.text())
    captions = [prompt, *others]
    views = scorer.image(2 * resized(pictures, scorer.layout.size) - 1).mean(0)
    texts = scorer.text(torch.tensor([tokens_of(text) for text in captions]))
    similar = torch.nn.functional.normalize(texts, dim=-1) @ views / views.norm()
    rank = 1 + int((similar[1:] >= similar[0]).sum())
    return Score(rank, among, float(similar[0]), captions[int(similar.argmax())] if rank > 1 else prompt)
