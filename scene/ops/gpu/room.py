"""Workspaces that stay between calls."""

from __future__ import annotations

import torch
from torch import Tensor

POISON = 0x7FC00000  # no place in any array, and NaN as a float


class Room:
    """Named int32 workspaces, each of which grows to the largest size asked for and stays."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def take(self, name: str, size: int, like: Tensor) -> Tensor:
        """[size] int32 on the device of `like`; holds what was last written there, or nonsense after growth."""
        kept = self._kept.get(name)
        if kept is None or kept.shape[0] < size or kept.device != like.device:
            kept = self._kept[name] = torch.empty(size, dtype=torch.int32, device=like.device)
        return kept[:size]

    def poison(self) -> None:
        """Fills all with nonsense, for tests."""
        for tensor in self._kept.values():
            tensor.fill_(POISON)
