"""The trained prior: what `maquette train-prior` made, as distillation asks for it.

Rectified flow: z_t = (1 - t) x + t e. The network gives x, from which e = z_t + (1 - t) (z_t - x) / max(t, 0.05).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from generation.captions import PAD, TOKENS, UNKNOWN, parse, tokenize
from generation.clip import Clip
from generation.networks import CAMERA_NUMBERS, Given, MultiViewUNet, camera_numbers, resized, velocity_of
from generation.prior_weights import GUIDE_FILE, PRIOR_FILE, About, load_clip, load_prior_network
from generation.priors import Condition, Place, Process, noise_of_velocity, process_levels
from scene.errors import InputError

_VIEW = re.compile(r"\s*,\s*(front|side|back|overhead) view\s*$")


def has_fast_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 at more than the speed of float32."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


class TrainedPrior:
    """A `Prior` over pictures of procedural objects: of `views` views at a time, or of single ones (views = 1).

    Several views of a set share one caption; what it says of the view is left out, for the cameras say it. Single views
    take it, with or without cameras.
    """

    name = "trained"
    space: Literal["pixel", "latent"] = "pixel"
    process: Process = "flow"
    guidance = 2.0

    def __init__(
        self, network: MultiViewUNet, guide: Clip | None = None, *, views: int | None = None, bfloat16: bool = False
    ) -> None:
        """guide: turns a condition's picture into features; without it pictures are refused."""
        self.network, self.guide, self.bfloat16 = network.eval().requires_grad_(False), guide, bfloat16
        layout = network.layout
        self.views = layout.views if views is None else views
        self.shape: tuple[int, int, int] = (3, layout.size, layout.size)
        self.device = next(network.parameters()).device

    @classmethod
    def load(cls, path: Path, *, device: torch.device | str = "cpu", views: int | None = None) -> TrainedPrior:
        """From a folder that `maquette train-prior` wrote, or its prior.safetensors. Raises InputError."""
        file = path / PRIOR_FILE if path.is_dir() else path
        network, about = load_prior_network(file)
        guide = load_clip(file.with_name(GUIDE_FILE), "clip_guide")[0] if file.with_name(GUIDE_FILE).exists() else None
        wanted = (network.layout.size, network.layout.image)
        if guide is not None and (guide.layout.size, guide.layout.channels[-1]) != wanted:
            raise InputError(
                f"{file.with_name(GUIDE_FILE)} does not belong to {file}; they must come from one training"
            )
        on = torch.device(device)
        made = cls(network.to(on), guide.to(on) if guide else None, views=views, bfloat16=on.type == "cuda")
        made.about, made.folder = about, file.parent
        return made

    about: About | None = None
    folder: Path | None = None  # of the file

    def levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """a = 1 - t, s = t."""
        return process_levels(t, self.process)

    def encode(self, images: Tensor) -> Tensor:
        """Colours in -1..1 at the prior's size."""
        return 2 * resized(images, self.shape[1]) - 1

    def decode(self, z: Tensor) -> Tensor:
        """Colours in 0..1."""
        return 0.5 * (z + 1)

    def predict(self, z_t: Tensor, t: Tensor, conditions: Sequence[Condition]) -> Tensor:
        """Noise [K, N, 3, h, w] under each of K conditions; see `Prior.predict`."""
        a, s = self.levels(t)
        velocities = (velocity_of(x, z_t, t) for x in self.clean(z_t, t, conditions))
        return torch.stack([noise_of_velocity(z_t, v, a, s, self.process) for v in velocities])

    def clean(self, z_t: Tensor, t: Tensor, conditions: Sequence[Condition]) -> Tensor:
        """The network's clean pictures [K, N, 3, h, w] of z_t [N, 3, h, w] at t [N]; the arguments as of `predict`."""
        if len(z_t) % self.views or tuple(z_t.shape[1:]) != self.shape or t.shape != z_t.shape[:1]:
            raise ValueError(
                f"z_t must be [multiple of {self.views}, {', '.join(map(str, self.shape))}] with t [N], got "
                f"{tuple(z_t.shape)} and {tuple(t.shape)}"
            )
        sets = z_t.unflatten(0, (-1, self.views))
        times = t.unflatten(0, (-1, self.views))
        found: dict[int, Tensor] = {}
        for pictured in (False, True):  # a set with a picture has one frame more
            chosen = [i for i, condition in enumerate(conditions) if (condition.image is not None) == pictured]
            if chosen:
                given = _joined([self._given(conditions[i], len(z_t)) for i in chosen])
                k = len(chosen)
                with torch.autocast(z_t.device.type, torch.bfloat16, enabled=self.bfloat16):
                    x = self.network(sets.repeat(k, 1, 1, 1, 1), times.repeat(k, 1), given).float()
                found.update(zip(chosen, x.flatten(0, 1).unflatten(0, (k, -1))))
        return torch.stack([found[i] for i in range(len(conditions))])

    def adaptable(self) -> Place:
        """The network, which takes cameras."""
        return Place(self.network)

    @torch.no_grad()
    def sample(
        self, condition: Condition, generator: torch.Generator, *, guidance: float | None = None, steps: int = 25
    ) -> Tensor:
        """Pictures [N, 3, h, w] in -1..1, by Euler steps from t = 1 to 0 with guidance while 0.1 < t < 0.9."""
        scale = self.guidance if guidance is None else guidance
        count = len(condition.texts)
        z = torch.randn(count, *self.shape, generator=generator, device=generator.device).to(self.device)
        if self.views > 1 and count % self.views:
            raise ValueError(f"the number of texts must be a multiple of {self.views}, got {count}")
        unsaid = replace(condition, texts=(None,) * count, image=None)
        times = torch.linspace(1, 0, steps + 1).tolist()
        for now, after in itertools.pairwise(times):
            t = z.new_full((count,), now)
            guided = scale != 1 and 0.1 < now < 0.9
            x = self.clean(z, t, [condition, unsaid] if guided else [condition])
            clean = x[1] + scale * (x[0] - x[1]) if guided else x[0]
            z = z + (after - now) * velocity_of(clean, z, t)
        return z

    def _given(self, condition: Condition, count: int) -> Given:
        """What the network is told for `count` pictures under one condition."""
        if len(condition.texts) != count or (condition.cameras is not None and len(condition.cameras) != count):
            raise ValueError(f"a condition needs {count} texts and cameras, got {len(condition.texts)} texts")
        sets = count // self.views
        words = torch.tensor([self._words(condition.texts[i : i + self.views]) for i in range(0, count, self.views)])
        if condition.cameras is None:
            cameras, known = torch.zeros(count, CAMERA_NUMBERS), torch.zeros(count)
        else:
            cameras, known = torch.stack([camera_numbers(camera) for camera in condition.cameras]), torch.ones(count)
        given = Given(
            words.to(self.device),
            cameras.to(self.device).unflatten(0, (sets, -1)),
            known.to(self.device).unflatten(0, (sets, -1)),
        )
        return given if condition.image is None else self._pictured(given, condition, sets)

    def _pictured(self, given: Given, condition: Condition, sets: int) -> Given:
        """Adds a condition's picture: by its features, and for sets of several views as one more frame."""
        image, camera = condition.image, condition.image_camera
        if self.guide is None:
            raise InputError(f"this prior has no {GUIDE_FILE} beside it, without which it takes no picture")
        if image is None or image.dim() != 3 or image.shape[0] != 3:
            raise InputError(
                f"a picture must be [3, H, W] in 0..1, got {None if image is None else tuple(image.shape)}"
            )
        picture = 2 * resized(image.to(self.device)[None], self.shape[1]) - 1
        features = self.guide.features(picture).expand(sets, -1, -1)
        if self.views == 1:
            return replace(given, features=features)
        numbers = torch.zeros(CAMERA_NUMBERS) if camera is None else camera_numbers(camera)
        return replace(
            given,
            features=features,
            reference=picture.expand(sets, -1, -1, -1),
            reference_camera=numbers.to(self.device).expand(sets, -1),
            reference_known=torch.full((sets,), float(camera is not None), device=self.device),
        )

    def _words(self, texts: Sequence[str | None]) -> list[int]:
        """Tokens of the one caption that the views of a set share; of a single view, with the view's words."""
        if self.views == 1:
            return list(tokens_of(texts[0]))
        plain = {None if text is None else _VIEW.sub("", text) for text in texts}
        if len(plain) > 1:
            raise InputError(f"the views of a set must share one caption, got {' and '.join(sorted(map(repr, plain)))}")
        return list(tokens_of(plain.pop()))


@lru_cache(maxsize=4096)
def tokens_of(text: str | None) -> tuple[int, ...]:
    """Tokens of a caption, all PAD for none. Raises InputError for words that the prior was not trained on."""
    if text is None:
        return (PAD,) * TOKENS
    tokens = tokenize(text, TOKENS + 1)
    if UNKNOWN in tokens:
        parse(_VIEW.sub("", text))  # says which words, and what it knows
        raise InputError(f"the trained prior does not know all words of {text[:80]!r}")
    if tokens[-1] != PAD:
        raise InputError(f"a caption may have {TOKENS} words, got more in {text[:80]!r}; shorten it")
    return tuple(tokens[:TOKENS])


def _joined(each: Sequence[Given]) -> Given:
    """Several conditions' sets one after the other; all have a picture, or none."""
    names = [field.name for field in fields(Given) if getattr(each[0], field.name) is not None]
    return Given(**{name: torch.cat([getattr(given, name) for given in each]) for name in names})
