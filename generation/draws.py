"""Choices by a torch.Generator, written as one says them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch

T = TypeVar("T")


class Draw:
    """Draws numbers one after the other; the same generator state, the same choices."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def number(self) -> float:
        """Uniform in [0, 1)."""
        return float(torch.rand((), generator=self.generator, dtype=torch.float64))

    def between(self, low: float, high: float) -> float:
        """Uniform in [low, high)."""
        return low + (high - low) * self.number()

    def chance(self, probability: float) -> bool:
        """True with `probability`."""
        return self.number() < probability

    def choice(self, options: Sequence[T]) -> T:
        """One of the options, all alike."""
        return options[min(int(self.number() * len(options)), len(options) - 1)]
