"""Low-rank adapters beside the layers of a prior's network, with which it learns the renders: VSD's second model.

LoRA (Hu et al., 2106.09685), eq. 3: h = W x + B A x with A of few rows. A is random and B zero at first, so that the
adapted network begins as the prior's own; W never changes, and both share one network. ProlificDreamer (Wang et al.,
2305.16213): e_src is that network, told of the camera by an embedding of the pose beside that of the time, and learns
by eq. 10 (`distill.source_loss`). The rate is threestudio's; the rank and the spread of A are diffusers' defaults.

Departures: the pose's embedding ends in zeros at first (theirs is random), no weight decay, adapters in float32 also
beside networks of half precision. Networks that take cameras keep their own way.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from generation.adam_state import adam_tensors, placed_like, restore_adam, under
from generation.distill import source_loss
from generation.networks import CAMERA_NUMBERS, camera_numbers
from generation.priors import Adaptable, Condition
from scene.errors import InputError

BETAS, EPS = (0.9, 0.99), 1e-15
HALF_SCALE = 2.0**14  # of the loss under float16, whose smallest number is 6e-8
ATTENTION = re.compile(
    r"(^|\.)(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out"  # of diffusers' Attention
    r"|attention\.(qkv|q|out_1|out_2)|keys)$"  # of networks.MultiViewUNet
)
Layer = nn.Linear | nn.Conv2d


@dataclass(frozen=True)
class LoraConfig:
    """rank: rows of A.  layers: the projections of attention, or all linear layers and convolutions.

    rate: Adam's, for tens of thousands of iterations.  steps: of learning in each.  camera_drop: share of these without
    a camera.
    """

    rank: int = 4
    layers: Literal["attention", "all"] = "attention"
    rate: float = 1e-4
    steps: int = 1
    camera_drop: float = 0.1

    def __post_init__(self) -> None:
        if self.rank < 1 or self.steps < 1 or not (0 < self.rate < 1 and 0 <= self.camera_drop <= 1):
            raise InputError(f"a LoRA needs rank and steps of 1 or more, a rate below 1, a share to drop; got {self}")


def adapted_layers(network: nn.Module, which: Literal["attention", "all"]) -> dict[str, Layer]:
    """The layers that adapters go beside, by name. Raises InputError where there are none."""
    found = {
        name: layer
        for name, layer in network.named_modules()
        if (isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1))
        and (which == "all" or ATTENTION.search(name))
    }
    if not found:
        what = "projections of attention" if which == "attention" else "linear layers or convolutions"
        raise InputError(
            f"VSD puts adapters beside {what}, and {type(network).__name__} has none; use another guidance"
        )
    return found


class Adapters:
    """B A of some layers, added to their outputs within `with adapters.beside():` and nowhere else."""

    def __init__(self, layers: Mapping[str, Layer], rank: int, generator: torch.Generator) -> None:
        """A from N(0, 1 / rank^2), B zero; of float32 at least, on the layers' devices."""
        self.layers = layers
        self.down: dict[str, nn.Parameter] = {}
        self.up: dict[str, nn.Parameter] = {}
        for name, layer in layers.items():
            outer, inner, *kernel = layer.weight.shape
            down, up = torch.randn(rank, inner, *kernel, generator=generator) / rank, torch.zeros(outer, rank)
            like = _single_at_least(layer.weight)
            self.down[name] = nn.Parameter(down.to(like))
            self.up[name] = nn.Parameter(up.view(outer, rank, *(1 for _ in kernel)).to(like))

    def change(self, name: str, x: Tensor) -> Tensor:
        """B A x of a layer."""
        layer, down, up, x = self.layers[name], self.down[name], self.up[name], x.to(self.up[name])
        if isinstance(layer, nn.Linear):
            return functional.linear(functional.linear(x, down), up)
        return functional.conv2d(functional.conv2d(x, down, None, layer.stride, layer.padding, layer.dilation), up)

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Within it the network is the adapted one."""

        def add(name: str, layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
            return output + self.change(name, inputs[0]).to(output.dtype)

        hooks = [layer.register_forward_hook(partial(add, name)) for name, layer in self.layers.items()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


class PoseEmbedding:
    """Two linear layers of a camera's numbers, added to the embedding of the time; all zeros for no camera."""

    def __init__(self, place: nn.Module, width: int, generator: torch.Generator) -> None:
        """place: the module whose outputs [M, width] are added to."""
        self.place = place
        like = _single_at_least(next(place.parameters()))
        inner = torch.randn(width, CAMERA_NUMBERS, generator=generator) / CAMERA_NUMBERS**0.5
        made = {
            "in": inner,
            "bias_in": torch.zeros(width),
            "out": torch.zeros(width, width),
            "bias": torch.zeros(width),
        }
        self.parameters = {name: nn.Parameter(tensor.to(like)) for name, tensor in made.items()}

    @contextmanager
    def told(self, conditions: Sequence[Condition], count: int) -> Iterator[None]:
        """Within it the network is told of the conditions' cameras, `count` for each."""
        numbers = [
            torch.zeros(count, CAMERA_NUMBERS)
            if condition.cameras is None
            else torch.stack([camera_numbers(camera) for camera in condition.cameras])
            for condition in conditions
        ]
        p = self.parameters
        hidden = functional.silu(functional.linear(torch.cat(numbers).to(p["in"]), p["in"], p["bias_in"]))
        pose = functional.linear(hidden, p["out"], p["bias"])

        def add(place: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
            return output + pose.to(output.dtype)

        hook = self.place.register_forward_hook(add)
        try:
            yield
        finally:
            hook.remove()


class LoraModel:
    """The prior with adapters that learn the renders: the `Predictor` of VSD, and a `second_model.SecondModel`."""

    def __init__(self, prior: Adaptable, config: LoraConfig, generator: torch.Generator) -> None:
        """generator: of the first numbers. Raises InputError where the network has no layers for adapters."""
        self.prior, self.config = prior, config
        place = prior.adaptable()
        self.adapters = Adapters(adapted_layers(place.network, config.layers), config.rank, generator)
        self.pose = None if place.pose is None else PoseEmbedding(place.pose, place.pose_width, generator)
        self.camera_drop = 0.0 if place.needs_cameras else config.camera_drop
        self.parameters: dict[str, nn.Parameter] = {}
        for kind, tensors in (("down", self.adapters.down), ("up", self.adapters.up)):
            self.parameters |= {f"{name}.{kind}": tensor for name, tensor in tensors.items()}
        if self.pose is not None:
            self.parameters |= {f"pose.{name}": tensor for name, tensor in self.pose.parameters.items()}
        self.optimizer = torch.optim.Adam(self.parameters.values(), config.rate, betas=BETAS, eps=EPS)
        half = next(place.network.parameters()).dtype == torch.float16
        self._scale = HALF_SCALE if half else 1.0

    def predict(self, z_t: Tensor, t: Tensor, conditions: Sequence[Condition]) -> Tensor:
        """As the prior, by the adapted network; differentiable in `parameters`."""
        with self.adapters.beside():
            if self.pose is None:
                return self.prior.predict(z_t, t, conditions)
            with self.pose.told(conditions, len(z_t)):
                return self.prior.predict(z_t, t, conditions)

    def predictor(self, images: Tensor) -> LoraModel:
        """Itself, whatever the pictures."""
        return self

    def learn(self, z: Tensor, condition: Condition, generator: torch.Generator) -> float:
        """`config.steps` steps on renders z [N, C, h, w] under what they were told; the last loss."""
        value = 0.0
        for _ in range(self.config.steps):
            loss = source_loss(self, self.prior, z, condition, generator, self.camera_drop)
            self.optimizer.zero_grad()
            (loss * self._scale).backward()
            gradients = [p.grad.div_(self._scale) for p in self.parameters.values() if p.grad is not None]
            if all(bool(gradient.isfinite().all()) for gradient in gradients):  # float16 may overflow at some t
                self.optimizer.step()
            value = float(loss.detach())
        return value

    def tensors(self) -> dict[str, Tensor]:
        """Adapters and Adam's state."""
        found = {f"lora.{name}": parameter.detach().clone() for name, parameter in self.parameters.items()}
        return found | {f"adam.{key}": value for key, value in adam_tensors(self.optimizer, self.parameters).items()}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """See `second_model.SecondModel`."""
        for name, parameter in self.parameters.items():
            parameter.copy_(placed_like(tensors[f"lora.{name}"], parameter))
        restore_adam(self.optimizer, self.parameters, under("adam.", tensors))


def _single_at_least(weight: Tensor) -> Tensor:
    """An empty tensor on the weight's device, of its type or of float32."""
    return weight.new_empty((), dtype=torch.promote_types(weight.dtype, torch.float32))
