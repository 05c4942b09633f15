"""The prior that needs no weights: for each caption a bank of procedural objects that it fits, and their exact score.

The pictures of a bank are rendered at the cameras that are asked for, so several views are consistent by construction;
the mathematics is in `picture_bank.py`. Without words the bank holds the objects of all captions that the prior was
made for, and others beside them. What is behind an object is a hidden variable: a scene may be shown over any of the
backgrounds, and each object counts over each of them.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from generation.captions import Caption, parse, sample_caption
from generation.object_render import render_objects
from generation.objects import make_object
from generation.picture_bank import bank_noise
from generation.priors import Condition, Process, process_levels
from generation.shapes import ObjectModel
from generation.views import orthogonal_cameras
from scene.cameras import Camera
from scene.errors import InputError

Color = tuple[float, float, float]
WHITE, BLACK = (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)  # of which one alone would leave things of its colour without shape


@dataclass(frozen=True)
class BankConfig:
    """members: objects of each caption.  mixed: others, of any caption, in the bank without words.

    size: pixels.  views: denoised together.  kernel: standard deviation of each picture's Gaussian, colours in -1..1.
    temperature: divides the logarithms of the posterior.  samples: rays along a pixel's side.  backgrounds: in 0..1.
    image_weight: of a condition's picture, in nats per mean squared difference of colours of 0..1.
    """

    members: int = 16
    mixed: int = 48
    size: int = 32
    views: int = 4
    kernel: float = 0.1
    temperature: float = 1.0
    samples: int = 2
    backgrounds: tuple[Color, ...] = (WHITE, BLACK)
    image_weight: float = 1000.0
    image_views: int = 12  # azimuths that a picture without a camera is compared with
    image_elevation: float = 15.0
    image_fov: float = 40.0
    image_distance: float = 2.7
    kept: int = 4096  # views of banks that are remembered; what is rendered once is rendered no more
    process: Process = "ddpm"
    seed: int = 0


class BankPrior:
    """A `Prior` over procedural objects."""

    name = "bank"
    space: Literal["pixel", "latent"] = "pixel"
    guidance = 1.0

    def __init__(
        self, captions: Sequence[str], config: BankConfig | None = None, device: torch.device | str = "cpu"
    ) -> None:
        """captions: all that will be asked for, negative ones too; views' words do not count.

        Raises InputError for words that captions do not know.
        """
        self.config = config or BankConfig()
        self.process: Process = self.config.process
        self.views, self.shape = self.config.views, (3, self.config.size, self.config.size)
        self.device = torch.device(device)
        self.banks = {key: self._drawn(key) for key in dict.fromkeys(_key(text) for text in captions)}
        self._mixed: tuple[ObjectModel, ...] | None = None
        self._seen: OrderedDict[tuple[Caption | None, bytes], Tensor] = OrderedDict()

    def levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Of the process."""
        return process_levels(t, self.process)

    def encode(self, images: Tensor) -> Tensor:
        """Colours in -1..1, as large as the prior's pictures."""
        if images.shape[-2:] != self.shape[1:]:
            images = functional.interpolate(images, size=self.shape[1:], mode="bilinear", antialias=True)
        return 2 * images - 1

    def decode(self, z: Tensor) -> Tensor:
        """Colours in 0..1."""
        return 0.5 * (z + 1)

    def members(self, text: str) -> tuple[ObjectModel, ...]:
        """The objects of a caption. Raises InputError for one that the prior was not made for."""
        return self.banks[self._known(text)]

    def predict(self, z_t: Tensor, t: Tensor, conditions: Sequence[Condition]) -> Tensor:
        """Exact noise; all views of a set under the text of its first."""
        a, s = (level[:: self.views] for level in self.levels(t))
        sets = z_t.unflatten(0, (-1, self.views))
        found = torch.empty(len(conditions), *sets.shape, dtype=z_t.dtype, device=z_t.device)
        for condition, out in zip(conditions, found, strict=True):
            if condition.cameras is None:
                raise InputError("the bank prior has to know the cameras of its pictures, got none")
            for i in range(len(sets)):
                here = slice(i * self.views, (i + 1) * self.views)
                bank = self._pictures(condition.texts[here.start], condition.cameras[here]).to(z_t)
                out[i] = bank_noise(
                    sets[i : i + 1],
                    a[i : i + 1],
                    s[i : i + 1],
                    bank,
                    self.config.kernel,
                    log_prior=self._image_prior(condition, condition.texts[here.start]),
                    temperature=self.config.temperature,
                )[0]
        return found.flatten(1, 2)

    def rgba(self, key: Caption | None, cameras: Sequence[Camera]) -> Tensor:
        """[K, V, 4, h, w] straight colours and alpha of a caption's objects, or of the mixed ones (None)."""
        views = [camera.resized(self.config.size, self.config.size) for camera in cameras]
        names = [(key, _bytes(camera)) for camera in views]
        missing = [i for i, name in enumerate(names) if name not in self._seen]
        objects = self._mixed_objects() if key is None else self.banks[key]
        fresh: dict[tuple[Caption | None, bytes], Tensor] = {}
        if missing:
            each = [[views[i] for i in missing]] * len(objects)
            pictures = render_objects(objects, each, samples=self.config.samples)
            drawn = torch.cat([pictures.rgb, pictures.alpha], dim=2)
            fresh = {names[i]: drawn[:, at].clone() for at, i in enumerate(missing)}
        found = torch.stack([fresh[name] if name in fresh else self._seen[name] for name in names], dim=1)
        for name in names:
            self._seen[name] = fresh[name] if name in fresh else self._seen[name]
            self._seen.move_to_end(name)
        while len(self._seen) > self.config.kept:
            self._seen.popitem(last=False)
        return found

    def likeness(self, text: str, images: Tensor, cameras: Sequence[Camera]) -> Tensor:
        """[K] PSNR in dB of pictures [V, 3, H, W] in 0..1, over the first background, to each object of a caption."""
        wanted = self.decode(self._pictures(text, cameras))[:: len(self.config.backgrounds)]
        seen = self.decode(self.encode(images.to(wanted)))
        return -10 * (wanted - seen).square().flatten(1).mean(1).log10()

    def _pictures(self, text: str | None, cameras: Sequence[Camera]) -> Tensor:
        """[K M, V, 3, h, w] in -1..1: each object over each of M backgrounds."""
        if text is None:
            rgba = torch.cat([self.rgba(key, cameras) for key in (*self.banks, None)])
        else:
            rgba = self.rgba(self._known(text), cameras)
        rgb, alpha = rgba[:, None, :, :3], rgba[:, None, :, 3:]
        behind = rgb.new_tensor(self.config.backgrounds)[:, None, :, None, None]
        return 2 * (rgb * alpha + (1 - alpha) * behind).flatten(0, 1) - 1

    def _image_prior(self, condition: Condition, text: str | None) -> Tensor | None:
        """[K M] how well each object fits the condition's picture, over the first background."""
        if condition.image is None or text is None:
            return None
        config, camera = self.config, condition.image_camera
        cameras = (camera,) if camera is not None else self._around()
        rgba = self.rgba(self._known(text), cameras)
        behind = rgba.new_tensor(config.backgrounds[0]).view(3, 1, 1)
        shown = rgba[:, :, :3] * rgba[:, :, 3:] + (1 - rgba[:, :, 3:]) * behind
        picture = self.decode(self.encode(condition.image[None].to(shown)))
        error = (shown - picture).square().flatten(2).mean(2).amin(1)
        return (-config.image_weight * error).repeat_interleave(len(config.backgrounds))

    def _around(self) -> tuple[Camera, ...]:
        c = self.config
        return orthogonal_cameras(0.0, c.image_elevation, c.image_fov, c.image_distance, c.size, c.image_views)

    def _known(self, text: str) -> Caption:
        key = _key(text)
        if key not in self.banks:
            known = "; ".join(caption.text() for caption in self.banks)
            raise InputError(f"this bank prior was made for other captions ({known}), not for {text!r}")
        return key

    def _drawn(self, key: Caption) -> tuple[ObjectModel, ...]:
        generator = _generator(f"{self.config.seed}|{key.text()}")
        return tuple(make_object(key, generator).to(self.device) for _ in range(self.config.members))

    def _mixed_objects(self) -> tuple[ObjectModel, ...]:
        if self._mixed is None:
            generator = _generator(f"{self.config.seed}|mixed")
            captions = [sample_caption(generator) for _ in range(self.config.mixed)]
            self._mixed = tuple(make_object(caption, generator).to(self.device) for caption in captions)
        return self._mixed


def _key(text: str) -> Caption:
    """What of a caption says which objects it fits."""
    return replace(parse(text).seen_from(None), prefix=None)


def _generator(name: str) -> torch.Generator:
    """The same for the same name, whatever was drawn before."""
    digest = hashlib.sha256(name.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


def _bytes(camera: Camera) -> bytes:
    numbers = torch.cat([camera.K.flatten(), camera.c2w.flatten()]).detach().cpu().double()
    return numbers.numpy().tobytes()
