"""What a distillation opens with: views that the prior draws by itself, which the scene follows before it is distilled.

A small prior often misses what the words say, and distillation then settles between several misses. So it draws
several sets first, the network that guides (CLIP-G) chooses, as DALL-E had its samples ranked by CLIP
(https://arxiv.org/abs/2102.12092, section 2.6), and a few steps fit the scene to the chosen views, as Instant3D
(https://arxiv.org/abs/2311.06214) does to its four. Distillation begins where these steps end, at the time t of its
schedule there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional

from generation.clip import Clip
from generation.distill import Distilled
from generation.distill_kernel import surrogate_loss
from generation.prior_evaluation import background_of
from generation.priors import Condition, Prior
from generation.trained_prior import tokens_of
from generation.views import distance_for, orthogonal_cameras
from scene.cameras import Camera

ELEVATION, FOV, REACH = 12.5, 42.5, 0.9  # of the views: the middle of what priors are asked for; the first is the front
SETS_AT_ONCE = 8


@dataclass(frozen=True)
class Opening:
    """How a scene opens.

    guesses: sets of views that are drawn, of which one is chosen.  share: of the run's steps that follow it.  steps: of
    the sampler.
    """

    guesses: int = 8
    share: float = 0.25
    steps: int = 25


@runtime_checkable
class Sampler(Prior, Protocol):
    """A prior that draws pictures by itself, and may have a network that tells how well they fit the words."""

    guide: Clip | None

    def sample(
        self, condition: Condition, generator: torch.Generator, *, guidance: float | None = None, steps: int = 25
    ) -> Tensor:
        """Pictures [N, 3, h, w] in -1..1 of N texts, views of a set one after the other."""
        ...


class Opened(NamedTuple):
    """The chosen views [V, 3, h, w] in 0..1 by `opening_cameras`, and the colour [3] behind the object in them."""

    pictures: Tensor
    background: Tensor


def opening_draws(seed: int) -> torch.Generator:
    """The random numbers of the views that a scene of this seed opens with."""
    return torch.Generator().manual_seed(seed + 2)


def opening_cameras(size: int, count: int) -> tuple[Camera, ...]:
    """`count` cameras around the object from its front on, of size x size pixels."""
    return orthogonal_cameras(0.0, ELEVATION, FOV, distance_for(FOV, REACH), size, count)


@torch.no_grad()
def opened(
    prior: Sampler, prompt: str, opening: Opening, generator: torch.Generator, *, image: Tensor | None = None
) -> Opened:
    """Draws the sets and chooses: by the guide, where there is one; else the first.

    image: [3, H, W] in 0..1, a picture of what is wanted.  Raises InputError for what the prior does not know.
    """
    sets = drawn_sets(prior, prompt, opening, generator, image=image)
    best = sets[0] if prior.guide is None else sets[int(likeness(prior.guide, sets, prompt).argmax())]
    return Opened(prior.decode(best), prior.decode(background_of(best)))


@torch.no_grad()
def drawn_sets(
    prior: Sampler, prompt: str, opening: Opening, generator: torch.Generator, *, image: Tensor | None = None
) -> Tensor:
    """[K, V, 3, h, w] in -1..1 that the prior draws of a prompt by `opening_cameras`; one set without a guide."""
    guesses = opening.guesses if prior.guide is not None else 1
    cameras, drawn = opening_cameras(prior.shape[1], prior.views), []
    while guesses > 0:
        count = min(guesses, SETS_AT_ONCE)
        guesses -= count
        condition = Condition((prompt,) * (prior.views * count), cameras * count, image)
        drawn.append(prior.sample(condition, generator, steps=opening.steps).clamp(-1, 1))
    return torch.cat(drawn).unflatten(0, (-1, prior.views))


def likeness(guide: Clip, sets: Tensor, prompt: str) -> Tensor:
    """[K] cosines of the words and the mean of the views of sets [K, V, 3, h, w] in -1..1."""
    views = guide.image(sets.flatten(0, 1)).unflatten(0, sets.shape[:2]).mean(1)
    words = guide.text(torch.tensor([tokens_of(prompt)], device=sets.device))
    return functional.normalize(views, dim=-1) @ words[0]


def follow(prior: Prior, images: Tensor, wanted: Tensor) -> Distilled:
    """The loss of pictures [V, 3, H, W] in 0..1 that are to become `wanted`: the x0 form with the views for x0."""
    z = prior.encode(images)
    clean = prior.encode(wanted.to(z))
    still = z.detach()
    gradient = still - clean
    return Distilled(surrogate_loss(z, gradient), gradient, still.new_zeros(len(z)), clean, still)
