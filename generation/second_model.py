"""VSD's second model, which knows the renders where the prior knows pictures (ProlificDreamer, 2305.16213, eq. 9).

Of a prior with a network it is that network with adapters that learn (`lora.py`). A prior with exact scores has no
network; a Gaussian around each render stands in, whose score is exact as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from generation.distill import Surrounding
from generation.distill_kernel import Predictor
from generation.lora import LoraConfig, LoraModel
from generation.priors import Adaptable, Condition, Prior


@dataclass(frozen=True)
class SecondConfig:
    """lora: of priors with a network.  variance: of the Gaussian around each render, for priors without one."""

    lora: LoraConfig = field(default_factory=LoraConfig)
    variance: float = 0.01


class SecondModel(Protocol):
    """What predicts the noise of a step's renders, and learns them after the step."""

    def predictor(self, images: Tensor) -> Predictor:
        """For `distill.distil` of pictures [N, 3, H, W]."""
        ...

    def learn(self, z: Tensor, condition: Condition, generator: torch.Generator) -> float | None:
        """One iteration's learning from renders z [N, C, h, w]: the loss, or None where nothing is to be learned."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Copies of what a checkpoint needs, by name."""
        ...

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from `tensors`. Raises KeyError and ValueError where they are another model's."""
        ...


@dataclass(frozen=True)
class StandIn:
    """The Gaussian around each render (`distill.Surrounding`)."""

    prior: Prior
    variance: float

    def predictor(self, images: Tensor) -> Predictor:
        return Surrounding(self.prior, self.prior.encode(images).detach(), self.variance)

    def learn(self, z: Tensor, condition: Condition, generator: torch.Generator) -> None:
        return None

    def tensors(self) -> dict[str, Tensor]:
        return {}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        pass


def second_model(prior: Prior, config: SecondConfig, seed: int) -> SecondModel:
    """The one that fits the prior. Raises InputError where its network has no layers for adapters."""
    if isinstance(prior, Adaptable):
        return LoraModel(prior, config.lora, torch.Generator().manual_seed(seed))
    return StandIn(prior, config.variance)


def sentence_of(prior: Prior, config: SecondConfig) -> str:
    """What `second_model` makes, for a report."""
    if isinstance(prior, Adaptable):
        beside = "attention" if config.lora.layers == "attention" else "layers"
        return (
            f"VSD's second model: adapters of rank {config.lora.rank} beside the {beside} of the prior's network; they "
            f"learn the scene's pictures at the rate {config.lora.rate:g}."
        )
    return (
        f"VSD's second model: a Gaussian of variance {config.variance:g} around each picture, for the prior "
        f"{prior.name} is exact and has no network that could learn."
    )
