"""Training of the embedded networks from seeds: CLIP-G and CLIP-S, then the multi-view rectified flow.

LGM-tiny is trained by the same `Trainer`, with the loss of `lgm_training.py`.

    z_t = (1 - t) x + t e,   t = sigmoid(N(0.2, 1.2)),   loss = mean | (network(z_t, t, given) - x) / max(t, 0.05) |^2

which is the error of the velocity e - x, while the network predicts x (see `networks.py`). The views of a set share t.
Captions, pictures and cameras are left out at random, so that the network also knows what is likely without them; a
fifth of the steps takes the views singly. Whether a step takes views singly or with a picture is drawn for the whole
batch: sets of one size need no masks.

A training can stop at any step and goes on bit for bit on the CPU, unless it has a time limit: then the learning rate
follows the clock.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from generation import clip, lgm, networks
from generation.adam_state import adam_tensors, restore_adam
from generation.captions import PAD
from generation.clip import Clip, ClipLayout, contrastive_loss
from generation.lgm import LgmLayout
from generation.networks import Given, Layout, update_average, velocity_of
from generation.object_render import sample_backgrounds
from generation.prior_data import SETS, VIEWS, PriorData, over_background, view_tokens
from generation.prior_weights import network_of
from scene.errors import InputError, Interrupted
from scene.runs import StepReport

TIME_MEAN, TIME_SPREAD = 0.2, 1.2  # of the logit of t
DROP_CAPTION, DROP_PICTURE, DROP_CAMERA, SINGLE_VIEWS = 0.1, 0.5, 0.05, 0.2
DROP_SINGLE_CAMERA = DROP_REFERENCE_CAMERA = SAY_VIEW = 0.5
WHITE = 0.5  # share of sets over white; the rest as `sample_backgrounds`
SHIFT = 2  # pixels that pictures are moved by for CLIP
LAST_RATE = 1e-5
REPORT_SECONDS = 1.0


@dataclass(frozen=True)
class Recipe:
    """Everything that a size of the networks is trained with.

    clip_steps, clip_batch: of either CLIP network, pictures.  steps, batch: of the prior, sets.  lgm_steps, lgm_batch:
    of LGM-tiny, objects.  rate: learning rate after `warm_up` steps; it falls as a cosine.  average: decay of the
    weights' moving average.
    """

    layout: Layout
    guide: ClipLayout
    scorer: ClipLayout
    lgm: LgmLayout
    objects: int
    held_out: int
    clip_steps: int
    clip_batch: int
    steps: int
    batch: int
    lgm_steps: int
    lgm_batch: int
    clip_rate: float = 1e-3
    rate: float = 6e-4
    lgm_rate: float = 4e-4
    warm_up: int = 200
    average: float = 0.9995


RECIPES: dict[str, Recipe] = {
    "cpu": Recipe(
        networks.CPU_LAYOUT,
        clip.CPU_GUIDE,
        clip.CPU_SCORER,
        lgm.CPU_LGM,
        objects=20_000,
        held_out=256,
        clip_steps=5_000,
        clip_batch=96,
        steps=14_000,
        batch=32,
        lgm_steps=5_000,
        lgm_batch=8,
        lgm_rate=1e-3,
    ),
    "gpu": Recipe(
        networks.GPU_LAYOUT,
        clip.GPU_GUIDE,
        clip.GPU_SCORER,
        lgm.GPU_LGM,
        objects=40_000,
        held_out=512,
        clip_steps=3_000,
        clip_batch=2048,
        steps=9_000,
        batch=256,
        lgm_steps=12_000,
        lgm_batch=64,
        warm_up=500,
    ),
}


@dataclass(frozen=True)
class Checkpoint:
    """What a training goes on from: tensors for safetensors, state for JSON."""

    tensors: Mapping[str, Tensor]
    state: Mapping[str, Any]


@dataclass(frozen=True)
class Hooks:
    """What a training tells and asks while it goes. save is called each `save_seconds` and when `stop` says so."""

    on_step: Callable[[StepReport], None] = lambda report: None
    save: Callable[[Checkpoint], None] = lambda checkpoint: None
    stop: Callable[[], bool] = lambda: False
    save_seconds: float = 60.0


@dataclass(frozen=True)
class Pace:
    """How long a training goes: `steps`, or `seconds` where that is shorter."""

    steps: int
    seconds: float | None = None

    def progress(self, step: int, seconds: float) -> float:
        """0 to 1 and beyond."""
        return max(step / self.steps, seconds / self.seconds if self.seconds else 0.0)


class Trainer:
    """A network with its optimiser (AdamW), moving average and random numbers; what a checkpoint holds."""

    def __init__(
        self, network: nn.Module, *, rate: float, warm_up: int, average: float | None, seed: int, bfloat16: bool
    ) -> None:
        """average: decay of the moving average of the weights, None for none.  bfloat16: products in it."""
        self.network, self.rate, self.warm_up, self.decay, self.bfloat16 = network, rate, warm_up, average, bfloat16
        self.average = copy.deepcopy(network).requires_grad_(False) if average is not None else None
        self.parameters = dict(network.named_parameters())
        self.device = next(iter(self.parameters.values())).device
        fused = self.device.type in ("cpu", "cuda")
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), rate, betas=(0.9, 0.99), weight_decay=0.01, fused=fused
        )
        self.choices = torch.Generator().manual_seed(seed)
        self.noise = torch.Generator(self.device).manual_seed(seed + 1)
        self.step, self.seconds, self.loss = 0, 0.0, 0.0

    def update(self, loss_of: Callable[[Trainer], Tensor], progress: float) -> None:
        """One step at `progress` of 0..1."""
        falling = 0.5 + 0.5 * math.cos(math.pi * min(1.0, progress))
        rate = (self.rate - LAST_RATE) * min(1.0, (self.step + 1) / self.warm_up) * falling + LAST_RATE
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            loss = loss_of(self)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
        self.optimizer.step()
        self.step += 1
        if self.average is not None and self.decay is not None:
            update_average(self.average, self.network, min(self.decay, self.step / (self.step + 9)))
        kept = min(0.98, 1 - 1 / self.step)
        self.loss = kept * self.loss + (1 - kept) * float(loss.detach())

    def checkpoint(self) -> Checkpoint:
        """Everything that the rest of the training depends on."""
        tensors = {f"network.{name}": tensor for name, tensor in self.network.state_dict().items()}
        if self.average is not None:
            tensors |= {f"average.{name}": tensor for name, tensor in self.average.state_dict().items()}
        tensors |= adam_tensors(self.optimizer, self.parameters)
        tensors |= {"choices": self.choices.get_state(), "noise": self.noise.get_state()}
        return Checkpoint(tensors, {"step": self.step, "seconds": self.seconds, "loss": self.loss})

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint. Raises InputError when it is one of another network."""
        tensors, state = checkpoint.tensors, checkpoint.state
        try:
            for prefix, module in (("network.", self.network), ("average.", self.average)):
                if module is not None:
                    named = {name: tensors[prefix + name] for name in module.state_dict()}
                    module.load_state_dict(named)
            self.step, self.seconds, self.loss = int(state["step"]), float(state["seconds"]), float(state["loss"])
            restore_adam(self.optimizer, self.parameters, tensors)
            self.choices.set_state(tensors["choices"])
            self.noise.set_state(tensors["noise"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                f"the checkpoint does not fit this training ({error!s:.80}); start again in a new --out"
            ) from error


def train(trainer: Trainer, loss_of: Callable[[Trainer], Tensor], pace: Pace, hooks: Hooks) -> None:
    """Steps until the pace is done. Raises Interrupted when hooks.stop() says so, after saving."""
    began, worked = time.monotonic(), trainer.seconds
    saved = reported = began
    while (progress := pace.progress(trainer.step, trainer.seconds)) < 1:
        trainer.update(loss_of, progress)
        now = time.monotonic()
        trainer.seconds = worked + now - began
        progress = pace.progress(trainer.step, trainer.seconds)
        if now - reported > REPORT_SECONDS or progress >= 1:
            reported = now
            left = trainer.seconds * (1 - progress) / progress if progress < 1 else 0.0
            steps = max(trainer.step, round(trainer.step / min(1.0, progress)))
            hooks.on_step(StepReport(trainer.step, steps, trainer.loss, None, 0, left))
        if hooks.stop():
            hooks.save(trainer.checkpoint())
            raise Interrupted("stopped as you asked")
        if now - saved > hooks.save_seconds:
            hooks.save(trainer.checkpoint())
            saved = time.monotonic()
    hooks.save(trainer.checkpoint())


def new_network(layout: Layout | ClipLayout | LgmLayout, seed: int) -> nn.Module:
    """Fresh weights of the network of a layout from a seed, without touching torch's own random numbers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return network_of(layout)


def clip_loss(data: PriorData, rows: Tensor, batch: int) -> Callable[[Trainer], Tensor]:
    """The contrastive loss over pictures of the objects `rows` only, from all views, over all backgrounds."""
    ids = data.ids

    def loss_of(trainer: Trainer) -> Tensor:
        network, g = trainer.network, trainer.choices
        assert isinstance(network, Clip)
        chosen = rows[torch.randint(len(rows), (batch,), generator=g)]
        which = torch.randint(SETS, (batch,), generator=g)
        view = torch.randint(VIEWS, (batch,), generator=g)
        behind = sample_backgrounds(g, batch)[:, 0]
        shift = torch.randint(-SHIFT, SHIFT + 1, (2,), generator=g).tolist()
        said = torch.rand(batch, 1, generator=g) < SAY_VIEW
        chosen, which, view, behind, said = (x.to(trainer.device) for x in (chosen, which, view, behind, said))
        rgba = data.rgba[chosen, which, view].roll(shift, (-2, -1))
        words = data.words[chosen, which]
        words = torch.where(said, view_tokens(words, data.view[chosen, which, view]), words)
        images, texts = network.image(over_background(rgba, behind)), network.text(words)
        with torch.autocast(trainer.device.type, enabled=False):
            return contrastive_loss(images.float(), texts.float(), ids[chosen], network.scale())

    return loss_of


@dataclass(frozen=True)
class Batch:
    """Clean frames [S, V, 3, h, w] in -1..1, their times [S, V], and what is told of them."""

    clean: Tensor
    t: Tensor
    given: Given


def prior_loss(data: PriorData, guide: Clip, batch: int) -> Callable[[Trainer], Tensor]:
    """The rectified-flow loss of `batch` sets."""

    def loss_of(trainer: Trainer) -> Tensor:
        drawn = draw_batch(data, guide, batch, trainer.choices)
        noise = torch.randn(drawn.clean.shape, generator=trainer.noise, device=trainer.device)
        return flow_loss(trainer.network, drawn, noise)

    return loss_of


def flow_loss(network: nn.Module, batch: Batch, noise: Tensor) -> Tensor:
    """mean | (network(z_t) - x) / max(t, 0.05) |^2, the error of the velocity."""
    t = batch.t[..., None, None, None]
    z_t = (1 - t) * batch.clean + t * noise
    clean = network(z_t, batch.t, batch.given).float()
    return (velocity_of(clean, z_t, batch.t) - velocity_of(batch.clean, z_t, batch.t)).square().mean()


def draw_batch(data: PriorData, guide: Clip, batch: int, generator: torch.Generator) -> Batch:
    """Sets of the data with captions, pictures and cameras left out at random; `generator` is the CPU's."""
    device = data.rgba.device

    def chance(probability: float, *shape: int) -> Tensor:
        return (torch.rand(shape or (1,), generator=generator) < probability).to(device)

    chosen = torch.randint(len(data), (batch,), generator=generator).to(device)
    which = torch.randint(SETS, (batch,), generator=generator).to(device)
    single, pictured = bool(chance(SINGLE_VIEWS)), not bool(chance(DROP_PICTURE))
    behind = draw_backgrounds(generator, batch).to(device)
    clean = over_background(data.rgba[chosen, which], behind)
    words = data.words[chosen, which]
    words = words.masked_fill(chance(DROP_CAPTION, batch, 1), PAD)
    given = Given(words, data.cameras[chosen, which], 1 - chance(DROP_CAMERA, batch, 1).float().expand(-1, VIEWS))
    t = torch.sigmoid(TIME_MEAN + TIME_SPREAD * torch.randn(batch, 1, generator=generator)).to(device).expand(-1, VIEWS)
    if pictured:
        given = _with_picture(given, data, guide, chosen, 1 - which, generator)
    if not single:
        return Batch(clean, t, given)
    count = batch * VIEWS
    t = torch.sigmoid(TIME_MEAN + TIME_SPREAD * torch.randn(count, 1, generator=generator)).to(device)
    words = words.repeat_interleave(VIEWS, 0)
    spoken = chance(SAY_VIEW, count, 1) & (words != PAD).any(1, keepdim=True)
    words = torch.where(spoken, view_tokens(words, data.view[chosen, which].flatten()), words)
    features = None if given.features is None else given.features.repeat_interleave(VIEWS, 0)
    known = 1 - chance(DROP_SINGLE_CAMERA, count, 1).float()
    return Batch(
        clean.flatten(0, 1)[:, None], t, Given(words, given.cameras.flatten(0, 1)[:, None], known, features=features)
    )


def _with_picture(
    given: Given, data: PriorData, guide: Clip, chosen: Tensor, which: Tensor, generator: torch.Generator
) -> Given:
    """Adds a view of the objects' other sets, over a background of its own, with or without its camera."""
    count, device = len(chosen), data.rgba.device
    view = torch.randint(VIEWS, (count,), generator=generator).to(device)
    behind = draw_backgrounds(generator, count)[:, 0].to(device)
    known = (torch.rand(count, generator=generator) >= DROP_REFERENCE_CAMERA).float().to(device)
    picture = over_background(data.rgba[chosen, which, view], behind)
    with torch.no_grad():
        features = guide.features(picture)
    camera = data.cameras[chosen, which, view]
    return replace(given, features=features, reference=picture, reference_camera=camera, reference_known=known)


def draw_backgrounds(generator: torch.Generator, count: int) -> Tensor:
    """[count, 1, 3, 1, 1]: white for half of the sets."""
    white = torch.rand(count, 1, 1, 1, 1, generator=generator) < WHITE
    return torch.where(white, 1.0, sample_backgrounds(generator, count))
