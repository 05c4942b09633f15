"""LGM-tiny: Gaussians from four posed pictures of an object in one pass of a network.

LGM: Large Multi-View Gaussian Model (Tang et al., ECCV 2024, https://arxiv.org/abs/2402.05054), section 3.2. Every
pixel of every view comes with its ray (9 channels), a U-Net whose attention runs over the pixels of all views jointly
gives 14 numbers for it, and these are one Gaussian: place 3, opacity 1, scale 3, rotation 4, colour 3.

Departures, each so that little training suffices: a Gaussian starts on its pixel's ray, at the depth of the origin, and
as large as the pixel, and the network moves it from there (LGM gives places in the world); its colour starts as the
pixel's; cameras stay in the world, where the front is at +x, instead of being turned to the first view's. The U-Net is
the prior's (`networks.py`) without time, camera and words.

Shapes: S sets, V views, h w pixels of the network's size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generation.networks import Levels, Stage, group_norm, resized, silent, through_levels, u_net_levels
from scene import sh
from scene.cameras import Camera
from scene.gaussians import Gaussians

FRAME_CHANNELS, GAUSSIAN_CHANNELS = 9, 14
REACH = 0.9  # world units before and behind the origin that a Gaussian may lie; objects have a radius of 0.75
SIDEWAYS = 0.125  # of the picture's side that it may leave its pixel by
LEAST_OPACITY = 0.02  # fainter ones are dropped
FAINT = 2.0  # taken from the logit of opacity; all 4096 half opaque at first would cover the whole picture
DARKEST = 0.02  # of the colour that a Gaussian starts with; a logit has no 0 and no 1


@dataclass(frozen=True)
class LgmLayout:
    """The architecture, as it is kept with the weights; the names as in `networks.Layout`."""

    size: int = 32
    patch: int = 2
    channels: tuple[int, ...] = (64, 128)
    attention: tuple[bool, ...] = (False, True)
    blocks: int = 1
    head: int = 32
    views: int = 4


CPU_LGM = LgmLayout()
GPU_LGM = LgmLayout(64, 2, (48, 96, 160), (False, True, True))
TOY_LGM = LgmLayout(8, 2, (16, 32), (False, True), 1, 16)


class LgmNetwork(nn.Module):
    """What each pixel's Gaussian is, before activations, from the pictures and their rays."""

    def __init__(self, layout: LgmLayout) -> None:
        super().__init__()
        self.layout = layout
        channels, patch = layout.channels, layout.patch
        self.conv_in = nn.Conv2d(FRAME_CHANNELS * patch**2, channels[0], 3, padding=1)
        parts = u_net_levels(channels, layout.attention, layout.blocks, layout.head, context=False)
        self.down, self.up, self.coarser, self.finer = parts.down, parts.up, parts.coarser, parts.finer
        self.middle = parts.middle
        self.norm_out = group_norm(channels[0])
        self.conv_out = silent(nn.Conv2d(channels[0], GAUSSIAN_CHANNELS * patch**2, 3, padding=1))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, frames: Tensor) -> Tensor:
        """[S, V, 14, h, w] of frames [S, V, 9, h, w] by `frames_of`."""
        sets, views = frames.shape[:2]

        def apply(stage: nn.Module, h: Tensor) -> Tensor:
            assert isinstance(stage, Stage)
            h = stage.block(h)
            return h if stage.attention is None else stage.attention(h, None, views)

        x = F.pixel_unshuffle(frames.flatten(0, 1), self.layout.patch).contiguous(memory_format=torch.channels_last)
        parts = Levels(self.down, self.up, self.coarser, self.finer, self.middle)
        h = through_levels(self.conv_in(x), parts, apply)
        with torch.autocast(h.device.type, enabled=False):  # places and sizes are not rounded to 8 bits
            out = self.conv_out(F.silu(self.norm_out(h.float())))
        return F.pixel_shuffle(out, self.layout.patch).unflatten(0, (sets, views))


def pluecker(cameras: Sequence[Camera]) -> Tensor:
    """[V, 6, h, w] Pluecker coordinates of the rays through all pixel centres: moment o x d, then unit direction d.

    The moment is the same for every point o of the ray, so they name the ray and nothing else. Source: LGM, eq. 1.
    """
    rays = [camera.rays() for camera in cameras]
    origins, directions = (torch.stack(each) for each in zip(*rays))
    d = F.normalize(directions, dim=-1)
    return torch.cat([torch.linalg.cross(origins, d), d], dim=-1).permute(0, 3, 1, 2)


def frames_of(pictures: Tensor, cameras: Sequence[Camera]) -> Tensor:
    """[V, 9, h, w] what the network sees of pictures [V, 3, h, w] in 0..1: colours of -1..1 and rays."""
    return torch.cat([2 * pictures - 1, pluecker(cameras).to(pictures)], dim=1)


def gaussians_of(raw: Tensor, pictures: Tensor, cameras: Sequence[Camera]) -> Gaussians:
    """One Gaussian for each pixel, in the order view, row, column; differentiable in raw.

    raw: [V, 14, h, w] of the network.  pictures: [V, 3, h, w] in 0..1 that the colours start from.  A pixel's Gaussian
    lies at the z-depth that the origin has plus REACH tanh(raw 2), over the point of the picture that is SIDEWAYS
    tanh(raw 0, 1) pictures from the pixel's centre. Its opacity is sigmoid(raw 3 - FAINT); its axes are softplus(raw
    4..6) times as long as a pixel is wide at that depth, and turned in the world by raw 7..10 + (1, 0, 0, 0).
    """
    shift, depth, opacity, scale, rotation, color = raw.split([2, 1, 1, 3, 4, 3], dim=1)
    K, c2w = (torch.stack([getattr(camera, name) for camera in cameras]).to(raw) for name in ("K", "c2w"))
    height, width = raw.shape[-2:]
    focal, middle = K.diagonal(dim1=1, dim2=2)[:, :2, None, None], K[:, :2, 2, None, None]
    centre, forward = c2w[:, :3, 3], c2w[:, :3, 2]
    v, u = torch.meshgrid(torch.arange(height).to(raw), torch.arange(width).to(raw), indexing="ij")
    at = torch.stack([u, v]) + 0.5 + width * SIDEWAYS * shift.tanh()
    z = -(centre * forward).sum(1).view(-1, 1, 1, 1) + REACH * depth.tanh()
    in_camera = torch.cat([(at - middle) / focal * z, z], dim=1)  # [V, 3, h, w]
    means = torch.einsum("vij,vjhw->vihw", c2w[:, :3, :3], in_camera) + centre[:, :, None, None]
    log_scales = (z / focal[:, :1]).log() + F.softplus(scale).log()
    start = torch.logit(pictures.to(raw), DARKEST)
    upright = raw.new_tensor([1.0, 0.0, 0.0, 0.0]).view(4, 1, 1)

    def listed(values: Tensor) -> Tensor:
        return values.permute(0, 2, 3, 1).flatten(0, 2)

    return Gaussians(
        means=listed(means),
        quats=listed(rotation + upright),
        log_scales=listed(log_scales),
        opacity_logits=listed(opacity)[:, 0] - FAINT,
        sh_dc=sh.from_rgb(listed(torch.sigmoid(color + start))),
        sh_rest=raw.new_zeros(means.shape[0] * height * width, 0, 3),
    )


@torch.no_grad()
def reconstruct(network: LgmNetwork, pictures: Tensor, cameras: Sequence[Camera]) -> Gaussians:
    """The Gaussians that a trained network makes of posed pictures; those fainter than LEAST_OPACITY are left out.

    pictures: [V, 3, H, W] in 0..1 over a plain background, of one object about the origin, brought to the network's
    size.  cameras: V, square; trained with four at equal steps of azimuth.  On the network's device.
    Raises ValueError for other shapes, and for cameras that are too near or look away from the origin.
    """
    size, views = network.layout.size, network.layout.views
    device = next(network.parameters()).device
    if pictures.dim() != 4 or pictures.shape[:2] != (views, 3) or len(cameras) != views:
        raise ValueError(
            f"pictures must be [{views}, 3, H, W] with {views} cameras, got {tuple(pictures.shape)} and {len(cameras)}"
        )
    for camera in cameras:
        depth = -float(camera.center @ camera.forward)
        if camera.width != camera.height or depth <= REACH:
            raise ValueError(
                f"cameras must be square and have the origin more than {REACH} before them, got {camera.width} x "
                f"{camera.height} at {depth:.3g}"
            )
    small = resized(pictures.to(device), size)
    fitted = [camera.resized(size, size).to(device=device, dtype=small.dtype) for camera in cameras]
    raw = network(frames_of(small, fitted)[None])[0]
    made = gaussians_of(raw, small, fitted)
    return made.select(made.opacities > LEAST_OPACITY)
