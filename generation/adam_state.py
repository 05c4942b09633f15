"""What Adam remembers of each parameter, as plain tensors for checkpoints."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def adam_tensors(optimizer: torch.optim.Adam, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies by "MOMENT.NAME"; none of parameters that no loss has reached yet."""
    return {
        f"{kind}.{name}": torch.as_tensor(value).clone()
        for name, parameter in parameters.items()
        for kind, value in optimizer.state.get(parameter, {}).items()
    }


def restore_adam(optimizer: torch.optim.Adam, parameters: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """The state of `adam_tensors`. Raises KeyError and ValueError where it is one of other parameters."""
    for name, parameter in parameters.items():
        if f"step.{name}" in tensors:
            step, *moments = (tensors[f"{kind}.{name}"] for kind in MOMENTS)
            placed = (placed_like(moment, parameter) for moment in moments)
            on = parameter.device if optimizer.defaults["fused"] else "cpu"  # where torch wants the count of steps
            optimizer.state[parameter] = dict(zip(MOMENTS, (step.to(on, copy=True), *placed), strict=True))


def placed_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A copy in the parameter's memory layout, type and device. Raises ValueError for another shape."""
    if tensor.shape != parameter.shape:
        raise ValueError(f"{tuple(tensor.shape)} where {tuple(parameter.shape)} was expected")
    return torch.empty_like(parameter, requires_grad=False).copy_(tensor)


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names start with a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
