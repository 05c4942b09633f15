"""Diffusion priors from model folders in the layout of diffusers: Stable Diffusion and its kin, by folder or hub id.

    stable-diffusion     1.x, 2.x    latents, ddpm, predicts noise or v (2.1 at 768 px) as its scheduler says
    deepfloyd-if         stage I     pixels at 64 px, ddpm, predicts noise and its variance, which is dropped
    stable-diffusion-3   3, 3.5      latents, flow, predicts velocity e - x
    mvdream              4 views     as stable-diffusion, with cameras (`mvdream.py`)

Times: for ddpm, t in (0, 1) means the nearest of the scheduler's T training steps, round(T t), and the levels are that
step's, sqrt(abar) and sqrt(1 - abar), so that what is noised is what the network is asked about. For flow, t is the
share of noise s itself, and the network is told T t; what a scheduler calls its "shift" only says where samplers spend
their steps, and is left to who draws t (`guidance_schedules.Times.flow_shift`).

Departures from the pipelines of diffusers: an encoded picture is the mean of what the VAE says, not a draw from it
(same seed, same bytes), and the VAE runs in float32, whose backward pass overflows in float16.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from generation import mvdream
from generation.diffusers_files import ModelFolder, find_model
from generation.diffusers_parts import VIEWS, Parts, Words, load_parts
from generation.priors import Condition, Place, Process, noise_of_clean, noise_of_velocity
from scene.cameras import Camera
from scene.errors import InputError

log = logging.getLogger(__name__)

GUIDANCE = {"stable-diffusion": 7.5, "deepfloyd-if": 7.0, "stable-diffusion-3": 7.0, "mvdream": 7.5}  # for sampling
MAX_TEXT = 2000  # characters; no encoder here reads more than 256 tokens
_CACHED_TEXTS = 512


def load_prior(
    name: str,
    *,
    allow_download: bool = False,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> DiffusersPrior:
    """The prior in a local folder, or of a hub id "owner/name[@revision]" in the local cache.

    allow_download: fetch a hub id that is not there.  dtype: of the network and the text encoders; float16 on a GPU and
    float32 on a CPU where it is None.  Raises InputError, in one line, for whatever cannot or must not be loaded.
    """
    device = torch.device(device)
    dtype = dtype or (torch.float32 if device.type == "cpu" else torch.float16)
    try:
        import diffusers  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"the prior '{name}' needs diffusers and transformers ({error}); run pip install 'maquette[generate]'"
        ) from error
    folder = find_model(name, allow_download=allow_download, half=dtype != torch.float32)
    log.info("prior %s: %s, revision %s, licence %s", name, folder.kind, folder.revision, folder.licence)
    return DiffusersPrior(folder, load_parts(folder, device, dtype), device, dtype)


class DiffusersPrior:
    """A `Prior` over a pipeline's modules. Cameras are for mvdream; the others leave them to the words."""

    def __init__(self, folder: ModelFolder, parts: Parts, device: torch.device, dtype: torch.dtype) -> None:
        """parts: frozen, on the device, the network in dtype and the VAE in float32."""
        self.name = folder.name
        self.folder = folder
        self.parts = parts
        self.device = device
        self.dtype = dtype
        self.space: Literal["pixel", "latent"] = "pixel" if parts.vae is None else "latent"
        self.process: Process = "flow" if parts.alphas is None else "ddpm"
        self.views = VIEWS if folder.kind == "mvdream" else 1
        self.guidance = GUIDANCE[folder.kind]
        config: Any = parts.network.config
        self.shape = (int(config.in_channels), int(config.sample_size), int(config.sample_size))
        vae_config: Any = parts.vae.config if parts.vae is not None else None
        self._factor = 1 if vae_config is None else 2 ** (len(vae_config.block_out_channels) - 1)
        self._scale = 1.0 if vae_config is None else float(vae_config.scaling_factor)
        self._shift = 0.0 if vae_config is None else float(vae_config.shift_factor or 0.0)
        self._cached: dict[str, Words] = {}

    def describe(self) -> dict[str, str | int | float]:
        """For a report: what the model is, where it is from and under which licence, and how it is asked."""
        numbers = sum(p.numel() for p in self.parts.network.parameters())
        return {
            "model": self.name,
            "kind": self.folder.kind,
            "revision": self.folder.revision,
            "licence": self.folder.licence,
            "weights_bytes": self.folder.size,
            "network_parameters": numbers,
            "precision": str(self.dtype).removeprefix("torch."),
            "device": str(self.device),
            "picture_size": self.shape[1] * self._factor,
            "space": self.space,
            "process": self.process,
            "prediction": self.parts.prediction,
            "training_steps": self.parts.steps,
            "views": self.views,
        }

    def steps(self, t: Tensor) -> Tensor:
        """What the network is told of times t [N]: int64 training steps (ddpm), or T t (flow)."""
        if self.process == "flow":
            return t.float() * self.parts.steps
        return (t.double() * self.parts.steps).round().long().clamp(0, self.parts.steps - 1)

    def levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """a and s [N]: of the nearest training step (ddpm), or 1 - t and t (flow)."""
        if self.parts.alphas is None:
            return 1 - t, t
        alpha = self.parts.alphas.to(t.device)[self.steps(t)]
        return alpha.sqrt().to(t), (1 - alpha).sqrt().to(t)

    def encode(self, images: Tensor) -> Tensor:
        """z [N, C, h, w], float32, of pictures [N, 3, H, W] in 0..1, resized to the model's size; differentiable."""
        size = self.shape[1] * self._factor
        images = images.to(self.device, torch.float32)
        if images.shape[-2:] != (size, size):
            images = functional.interpolate(images, (size, size), mode="bilinear", antialias=True)
        pixels = 2 * images - 1
        if self.parts.vae is None:
            return pixels
        vae: Any = self.parts.vae
        return (vae.encode(pixels).latent_dist.mean - self._shift) * self._scale

    def decode(self, z: Tensor) -> Tensor:
        """Pictures [N, 3, H, W] of z; what a decoder makes darker than black or brighter than white stays so."""
        if self.parts.vae is None:
            return 0.5 * (z + 1)
        vae: Any = self.parts.vae
        return 0.5 * (vae.decode(z.float() / self._scale + self._shift).sample + 1)

    def predict(self, z_t: Tensor, t: Tensor, conditions: Sequence[Condition]) -> Tensor:
        """Noise [len(conditions), N, C, h, w]; see `Prior`. None among the texts is the empty text."""
        n, k = len(z_t), len(conditions)
        if tuple(z_t.shape[1:]) != self.shape or n % self.views:
            raise ValueError(f"z_t must be [{self.views} B, {', '.join(map(str, self.shape))}], got {tuple(z_t.shape)}")
        words = [self.words(text) for condition in conditions for text in _texts(condition, n)]
        cameras = torch.cat([self._cameras(condition, n) for condition in conditions]) if self.views > 1 else None
        out = self._network(z_t.repeat(k, 1, 1, 1), self.steps(t).repeat(k), words, cameras)
        out = out.view(k, *z_t.shape).to(z_t.dtype)
        a, s = self.levels(t)
        if self.parts.prediction == "epsilon":
            return out
        if self.parts.prediction == "sample":
            return noise_of_clean(z_t, out, a, s)
        return noise_of_velocity(z_t, out, a, s, self.process)

    def adaptable(self) -> Place:
        """The network; U-Nets of single views may be told cameras beside the time, as ProlificDreamer does it."""
        network: Any = self.parts.network
        if self.views > 1 or self.process == "flow":
            return Place(network, needs_cameras=self.views > 1)
        return Place(network, network.time_embedding, int(network.time_embedding.linear_2.out_features))

    def words(self, text: str | None) -> Words:
        """A text through the text encoders; each is encoded once."""
        text = text or ""
        if len(text) > MAX_TEXT:
            raise InputError(f"a prompt has at most {MAX_TEXT} characters for '{self.name}', got {len(text):,}; cut it")
        if "\0" in text:
            raise InputError("the prompt holds a NUL character; write it as plain text")
        if text not in self._cached:
            while len(self._cached) >= _CACHED_TEXTS:
                del self._cached[next(iter(self._cached))]
            with torch.no_grad():
                self._cached[text] = self.parts.words(text)
        return self._cached[text]

    def _network(self, z: Tensor, steps: Tensor, words: Sequence[Words], cameras: Tensor | None) -> Tensor:
        """Raw output [M, C, h, w] of one call."""
        network: Any = self.parts.network
        z, context = z.to(self.dtype), torch.stack([each.context for each in words])
        if self.process == "ddpm":
            return network(z, steps, encoder_hidden_states=context, class_labels=cameras).sample[:, : self.shape[0]]
        pooled = torch.stack([each.pooled for each in words if each.pooled is not None])
        return network(z, timestep=steps, encoder_hidden_states=context, pooled_projections=pooled).sample

    def _cameras(self, condition: Condition, n: int) -> Tensor:
        """[N, 16] numbers of the cameras."""
        cameras: tuple[Camera, ...] = condition.cameras or ()
        if len(cameras) != n:
            raise InputError(
                f"'{self.name}' draws {self.views} views of an object by their cameras; expected {n} cameras, got "
                f"{len(cameras)}"
            )
        return mvdream.camera_numbers(cameras).to(self.device, self.dtype)


def _texts(condition: Condition, n: int) -> tuple[str | None, ...]:
    if condition.image is not None:
        raise InputError("this prior takes words, not pictures; leave out --image or choose another --prior")
    if len(condition.texts) != n:
        raise ValueError(f"a condition must have a text for each of the {n} pictures, got {len(condition.texts)}")
    return condition.texts
