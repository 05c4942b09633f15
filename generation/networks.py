"""The networks of the embedded prior: a U-Net that denoises several views of one object together, and its text encoder.

A set has V frames; attention runs over the pixels of all of them jointly, as in MVDream (https://arxiv.org/abs/2308.16512),
so that the views agree. A set of one frame is an ordinary picture: the same weights also are a prior of single views. A
picture of the object can be given as one more frame, clean and at t = 0, as in ImageDream
(https://arxiv.org/abs/2312.02201), and by the features of a CLIP network.

The network predicts the clean picture, not the velocity: a small one cannot copy the noise of its input to its output,
and what it cannot copy stays as grain (measured: 0.25 against 0.014 rms in empty corners, colours of -1..1).

Shapes: S sets, V frames, C channels, L tokens of context.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generation.captions import PAD, TOKENS
from scene.cameras import Camera

CAMERA_NUMBERS = 16
LEAST_TIME = 0.05  # velocities are (z_t - x) / t; below this the division would blow up what the network gets wrong


@dataclass(frozen=True)
class Layout:
    """The architecture, as it is kept with the weights.

    size: pixels of a side.  patch: pixels of a side that become channels first.  channels: by level, each half as fine
    as the one before.  attention: the levels that have it.  blocks: residual blocks of a level.  head: channels of an
    attention head.  context: channels of text and image tokens.  image: channels of the CLIP features of a picture.
    """

    size: int = 32
    patch: int = 4
    channels: tuple[int, ...] = (64, 128)
    attention: tuple[bool, ...] = (True, True)
    blocks: int = 1
    head: int = 32
    context: int = 96
    text_layers: int = 1
    words: int = 512
    views: int = 4
    image: int = 128


CPU_LAYOUT = Layout()
GPU_LAYOUT = Layout(64, 2, (64, 128, 192), (False, True, True), 2, 32, 192, 3, 512, 4, 224)
TOY_LAYOUT = Layout(8, 4, (16, 32), (True, True), 1, 16, 16, 1, 512, 4, 16)


@dataclass(frozen=True)
class Given:
    """What the network is told of S sets of V frames; without what is None it does as well as it can.

    words: [S, TOKENS] int64, all PAD for no caption.  cameras: [S, V, 16] by `camera_numbers`.  cameras_known: [S, V]
    1 or 0.  features: [S, L, image] of a picture, by `clip.Clip.features`.  reference: [S, 3, h, w] the picture itself
    in -1..1, only for V > 1; its camera as reference_camera [S, 16] and reference_known [S].
    """

    words: Tensor
    cameras: Tensor
    cameras_known: Tensor
    features: Tensor | None = None
    reference: Tensor | None = None
    reference_camera: Tensor | None = None
    reference_known: Tensor | None = None


def camera_numbers(camera: Camera) -> Tensor:
    """[16] of a camera: c2w with its centre at distance 1 (MVDream), and the lens where c2w has only 0 0 0 1.

    Departure: that last row holds the tangent of half the field of view and the half width that is seen at the
    origin, without which the size of an object in the picture could not be told.
    """
    c2w = camera.c2w.float().cpu()
    distance = c2w[:3, 3].norm().clamp(min=1e-6)
    tangent = 0.5 * camera.height / float(camera.K[1, 1])
    lens = c2w.new_tensor([tangent, tangent * float(distance) - 1.0, 0.0, 1.0])
    rows = torch.cat([c2w[:3, :3], c2w[:3, 3:] / distance], dim=1)
    return torch.cat([rows.flatten(), lens])


def camera_of_numbers(numbers: Tensor, size: int) -> Camera:
    """The camera of `camera_numbers`, as square picture of `size` pixels."""
    rows, (tangent, reach) = numbers[:12].view(3, 4).cpu(), numbers[12:14].tolist()
    c2w = torch.eye(4)
    c2w[:3] = rows
    c2w[:3, 3] *= (reach + 1.0) / tangent
    focal = 0.5 * size / tangent
    return Camera(torch.tensor([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1.0]]), c2w, size, size)


def resized(images: Tensor, size: int) -> Tensor:
    """Pictures [N, 3, H, W] at size x size, smoothed where they shrink; differentiable."""
    if images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images, size=(size, size), mode="bilinear", antialias=True, align_corners=False)


def attend(q: Tensor, k: Tensor, v: Tensor, head: int) -> Tensor:
    """softmax(q k^T / sqrt(head)) v by heads of `head` channels. q: [B, T, C]; k, v: [B, L, C]. Returns [B, T, C].

    Written out for bfloat16 on CPUs: for 256 tokens that takes half the time of torch's fused kernel, forward and back.
    """
    q, k, v = (x.unflatten(-1, (-1, head)).transpose(1, 2) for x in (q, k, v))
    if q.is_cuda or q.dtype != torch.bfloat16:
        out = F.scaled_dot_product_attention(q, k, v)
    else:
        out = ((q * head**-0.5) @ k.transpose(-1, -2)).softmax(-1) @ v
    return out.transpose(1, 2).flatten(2)


def group_norm(channels: int) -> nn.GroupNorm:
    """Normalisation over groups of at least 16 channels: torch's bfloat16 kernel takes 8 times as long for 8."""
    groups = max(1, channels // 16)
    while channels % groups:
        groups -= 1
    return nn.GroupNorm(groups, channels)


def silent(layer: nn.Linear | nn.Conv2d) -> nn.Module:
    """A layer that gives zeros at first, so that its block begins as the identity."""
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


class TextEncoder(nn.Module):
    """Tokens [S, TOKENS] to [S, TOKENS, C] and their mean over words [S, C]; a pre-norm transformer."""

    def __init__(self, words: int, channels: int, layers: int, head: int) -> None:
        super().__init__()
        self.word = nn.Embedding(words, channels)
        nn.init.normal_(self.word.weight, std=0.5)
        self.position = nn.Parameter(torch.randn(TOKENS, channels) * 0.02)
        self.layers = nn.ModuleList(TextLayer(channels, head) for _ in range(layers))

    def forward(self, words: Tensor) -> tuple[Tensor, Tensor]:
        x = self.word(words) + self.position
        for layer in self.layers:
            x = layer(x)
        said = (words != PAD).to(x.dtype)[..., None]
        return x, (x * said).sum(1) / said.sum(1).clamp(min=1)


class TextLayer(nn.Module):
    """Self-attention and a feed-forward network, each after a layer norm and added to its input."""

    def __init__(self, channels: int, head: int) -> None:
        super().__init__()
        self.head = head
        self.norm_1, self.norm_2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.mlp = nn.Sequential(nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm_1(x)).chunk(3, -1)
        x = x + self.out(attend(q, k, v, self.head))
        return x + self.mlp(self.norm_2(x))


class ResBlock(nn.Module):
    """Two convolutions; what is known of the frame scales and shifts between them (FiLM), where anything is."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = group_norm(channels_in), group_norm(channels)
        self.conv_1 = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.conv_2 = silent(nn.Conv2d(channels, channels, 3, padding=1))
        self.skip = nn.Conv2d(channels_in, channels, 1) if channels_in != channels else nn.Identity()
        self.channels = channels

    def forward(self, x: Tensor, film: Tensor | None = None) -> Tensor:
        """x: [S V, C, h, w].  film: [S V, 2 C] scales and shifts."""
        h = self.norm_2(self.conv_1(F.silu(self.norm_1(x))))
        if film is not None:
            scale, shift = film[:, :, None, None].chunk(2, 1)
            h = torch.addcmul(shift, h, 1 + scale)
        return self.skip(x) + self.conv_2(F.silu(h))


class ViewAttention(nn.Module):
    """Attention over all pixels of all frames of a set, then from them to the context, then a feed-forward network.

    context: whether there is one to attend to.
    """

    def __init__(self, channels: int, head: int, context: bool = True) -> None:
        super().__init__()
        self.channels, self.head = channels, head
        self.norm_1 = nn.LayerNorm(channels)
        if context:
            self.norm_2 = nn.LayerNorm(channels)
        self.norm_3 = nn.LayerNorm(channels)
        self.qkv, self.out_1 = nn.Linear(channels, 3 * channels), silent(nn.Linear(channels, channels))
        if context:
            self.q, self.out_2 = nn.Linear(channels, channels), silent(nn.Linear(channels, channels))
        self.mlp_in, self.mlp_out = nn.Linear(channels, 2 * channels), silent(nn.Linear(2 * channels, channels))

    def forward(self, x: Tensor, context: Tensor | None, frames: int) -> Tensor:
        """x: [S V, C, h, w].  context: [S, L, 2 C] keys and values."""
        n, c, height, width = x.shape
        tokens = x.permute(0, 2, 3, 1).reshape(n // frames, frames * height * width, c)  # no copy in channels_last
        q, k, v = self.qkv(self.norm_1(tokens)).chunk(3, -1)
        tokens = tokens + self.out_1(attend(q, k, v, self.head))
        if context is not None:
            k, v = context.chunk(2, -1)
            tokens = tokens + self.out_2(attend(self.q(self.norm_2(tokens)), k, v, self.head))
        tokens = tokens + self.mlp_out(F.gelu(self.mlp_in(self.norm_3(tokens)), approximate="tanh"))
        return tokens.reshape(n, height, width, c).permute(0, 3, 1, 2)


class Stage(nn.Module):
    """A residual block, with attention after it where the level has it."""

    def __init__(self, channels_in: int, channels: int, attention: bool, head: int, context: bool = True) -> None:
        super().__init__()
        self.block = ResBlock(channels_in, channels)
        self.attention = ViewAttention(channels, head, context) if attention else None


@dataclass(frozen=True)
class Levels:
    """The parts of a U-Net between its first and its last convolution, in the order in which they are applied."""

    down: nn.ModuleList
    up: nn.ModuleList
    coarser: nn.ModuleList
    finer: nn.ModuleList
    middle: nn.ModuleList


def u_net_levels(
    channels: Sequence[int], attention: Sequence[bool], blocks: int, head: int, *, context: bool = True
) -> Levels:
    """Fresh stages: `blocks` of each level on the way down, one more on the way up, two in the middle.

    channels, attention: by level, the finest first.  context: whether attention also looks at one.
    """
    down, up, coarser, finer = (nn.ModuleList() for _ in range(4))
    kept, current = [channels[0]], channels[0]
    for level, c in enumerate(channels):
        for _ in range(blocks):
            down.append(Stage(current, c, attention[level], head, context))
            current = c
            kept.append(c)
        if level + 1 < len(channels):
            coarser.append(nn.Conv2d(c, c, 3, stride=2, padding=1))
            kept.append(c)
    middle = nn.ModuleList([Stage(current, current, True, head, context), Stage(current, current, False, 1)])
    for level, c in reversed(list(enumerate(channels))):
        for _ in range(blocks + 1):
            up.append(Stage(current + kept.pop(), c, attention[level], head, context))
            current = c
        if level > 0:
            finer.append(nn.Conv2d(c, c, 3, padding=1))
    return Levels(down, up, coarser, finer, middle)


def through_levels(h: Tensor, parts: Levels, apply: Callable[[nn.Module, Tensor], Tensor]) -> Tensor:
    """From the first convolution to the last: down, middle, and up with the maps that were kept.

    h: [S V, channels of the finest level, h, w].  apply: a stage on its input.
    """
    levels = len(parts.coarser) + 1
    blocks = len(parts.down) // levels
    kept, down, up = [h], iter(parts.down), iter(parts.up)
    for level in range(levels):
        for _ in range(blocks):
            h = apply(next(down), h)
            kept.append(h)
        if level + 1 < levels:
            h = parts.coarser[level](h)
            kept.append(h)
    for stage in parts.middle:
        h = apply(stage, h)
    for level in range(levels):
        for _ in range(blocks + 1):
            h = apply(next(up), torch.cat([h, kept.pop()], 1))
        if level + 1 < levels:
            h = parts.finer[level](F.interpolate(h, scale_factor=2.0, mode="nearest"))
    return h


class MultiViewUNet(nn.Module):
    """x of z_t: the clean frames, from noisy ones at times t and what is given of them."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.layout = layout
        channels, e = layout.channels, 4 * layout.channels[0]
        self.text = TextEncoder(layout.words, layout.context, layout.text_layers, layout.head)
        self.image = nn.Linear(layout.image, layout.context)
        self.time = nn.Sequential(nn.Linear(channels[0], e), nn.SiLU(), nn.Linear(e, e))
        self.camera = nn.Sequential(nn.Linear(CAMERA_NUMBERS, e), nn.SiLU(), nn.Linear(e, e))
        self.said = nn.Linear(layout.context, e)
        patch_channels = 3 * layout.patch**2
        self.conv_in = nn.Conv2d(patch_channels, channels[0], 3, padding=1)
        parts = u_net_levels(channels, layout.attention, layout.blocks, layout.head)
        self.down, self.up, self.coarser, self.finer = parts.down, parts.up, parts.coarser, parts.finer
        self.middle = parts.middle
        self.norm_out = group_norm(channels[0])
        self.conv_out = silent(nn.Conv2d(channels[0], patch_channels, 3, padding=1))
        stages = [stage for stage in self.modules() if isinstance(stage, Stage)]
        # One product each for the FiLM of all blocks and for the keys and values of all attentions.
        self.film = nn.Linear(e, sum(2 * stage.block.channels for stage in stages))
        self.keys = nn.Linear(layout.context, sum(2 * s.attention.channels for s in stages if s.attention is not None))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, z_t: Tensor, t: Tensor, given: Given) -> Tensor:
        """Clean frames [S, V, 3, h, w] in -1..1 of z_t [S, V, 3, h, w] at times t [S, V]."""
        sets, views = z_t.shape[:2]
        z_t, t, given = _with_reference(z_t, t, given)
        frames = z_t.shape[1]
        tokens, pooled = self.text(given.words)
        if given.features is not None:
            tokens = torch.cat([tokens, self.image(given.features)], dim=1)
        e = self.time(_sinusoids(t.flatten(), self.layout.channels[0]))
        e = e + self.camera(given.cameras.flatten(0, 1)) * given.cameras_known.flatten()[:, None]
        e = e + self.said(pooled).repeat_interleave(frames, 0)
        x = F.pixel_unshuffle(z_t.flatten(0, 1), self.layout.patch).contiguous(memory_format=torch.channels_last)
        parts = Levels(self.down, self.up, self.coarser, self.finer, self.middle)
        h = through_levels(self.conv_in(x), parts, _Conditions(self, e, tokens, frames).apply)
        with torch.autocast(h.device.type, enabled=False):  # what is divided by t afterwards is not rounded to 8 bits
            out = self.conv_out(F.silu(self.norm_out(h.float())))
        return F.pixel_shuffle(out, self.layout.patch).unflatten(0, (sets, frames))[:, :views]


class _Conditions:
    """Hands each stage its share of the products that were made for all of them at once, in the stages' order."""

    def __init__(self, network: MultiViewUNet, e: Tensor, tokens: Tensor, frames: int) -> None:
        self.film, self.keys, self.frames = network.film(F.silu(e)), network.keys(tokens), frames
        self.film_at = self.keys_at = 0

    def apply(self, stage: nn.Module, h: Tensor) -> Tensor:
        """The stage's output for h [S V, C, h, w]."""
        assert isinstance(stage, Stage)
        width = 2 * stage.block.channels
        h = stage.block(h, self.film[:, self.film_at : self.film_at + width])
        self.film_at += width
        if stage.attention is None:
            return h
        keys = self.keys[..., self.keys_at : self.keys_at + width]
        self.keys_at += width
        return stage.attention(h, keys, self.frames)


def _with_reference(z_t: Tensor, t: Tensor, given: Given) -> tuple[Tensor, Tensor, Given]:
    """The sets with the picture that is given of their object as one more frame, clean at t = 0."""
    if given.reference is None:
        return z_t, t, given
    assert given.reference_camera is not None and given.reference_known is not None
    if z_t.shape[1] == 1:
        raise ValueError("a set of one frame takes a picture by its features only; leave reference out")
    cameras = torch.cat([given.cameras, given.reference_camera[:, None]], 1)
    known = torch.cat([given.cameras_known, given.reference_known[:, None]], 1)
    frames = torch.cat([z_t, given.reference[:, None].to(z_t)], 1)
    return frames, F.pad(t, (0, 1)), replace(given, cameras=cameras, cameras_known=known)


def _sinusoids(t: Tensor, channels: int) -> Tensor:
    """[N, channels] of times [N] in 0..1: cosines and sines of 1000 t at geometric frequencies (DDPM)."""
    half = channels // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half, device=t.device) / half)
    angles = 1000 * t[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def velocity_of(clean: Tensor, z_t: Tensor, t: Tensor) -> Tensor:
    """v = (z_t - x) / max(t, LEAST_TIME) of a predicted clean picture x; t has the first dimensions of both."""
    return (z_t - clean) / t.clamp(min=LEAST_TIME).view(*t.shape, *(1,) * (z_t.dim() - t.dim()))


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Exponential moving average of weights: average <- decay average + (1 - decay) network."""
    mine, new = (list(module.state_dict().values()) for module in (average, network))
    torch._foreach_lerp_(mine, new, 1 - decay)
