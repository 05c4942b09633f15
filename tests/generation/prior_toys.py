"""Networks and data small enough to train in seconds: flat pictures of 8 pixels, one colour for each caption."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from generation.captions import tokenize
from generation.clip import Clip, ClipLayout
from generation.networks import CAMERA_NUMBERS, TOY_LAYOUT, Given, Layout, MultiViewUNet, camera_numbers
from generation.prior_data import SETS, VIEWS, PriorData
from generation.prior_training import new_network
from generation.views import orthogonal_cameras
from scene.cameras import Camera

N = TypeVar("N", bound=nn.Module)

TOY_GUIDE = ClipLayout(size=8, channels=(8, 16), text=16, joint=16, head=16)
TOYS = (
    ("a red chair", (255, 0, 0)), ("a green car", (0, 255, 0)), ("a blue house", (0, 0, 255)),
    ("a yellow mug", (255, 255, 0)), ("a pink lamp", (255, 0, 255)), ("a black tree", (0, 0, 0)),
    ("an orange table", (255, 128, 0)), ("a purple robot", (128, 0, 128)),
)  # fmt: skip


def lively(network: N, seed: int = 0, size: float = 0.2) -> N:
    """The network with random numbers where it starts with zeros, so that everything reaches its output."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * size)
    return network


def toy_network(layout: Layout = TOY_LAYOUT, seed: int = 0) -> MultiViewUNet:
    """Lively and frozen."""
    network = new_network(layout, seed)
    assert isinstance(network, MultiViewUNet)
    return lively(network).eval().requires_grad_(False)


def toy_guide(seed: int = 0) -> Clip:
    network = new_network(TOY_GUIDE, seed)
    assert isinstance(network, Clip)
    return network.eval().requires_grad_(False)


def toy_cameras(sets: int = 1, size: int = 8) -> tuple[Camera, ...]:
    return tuple(camera for k in range(sets) for camera in orthogonal_cameras(30.0 * k, 10.0 * k, 40.0, 2.5, size))


def toy_given(sets: int, views: int, seed: int = 1) -> Given:
    g = torch.Generator().manual_seed(seed)
    words = torch.randint(2, 100, (sets, 24), generator=g)
    return Given(words, torch.randn(sets, views, CAMERA_NUMBERS, generator=g), torch.ones(sets, views))


def toy_data() -> PriorData:
    """Eight objects: discs of one colour, a view darker than the one before."""
    y, x = torch.meshgrid(torch.arange(8.0) - 3.5, torch.arange(8.0) - 3.5, indexing="ij")
    alpha = ((x * x + y * y) < 10).float() * 255
    rgba = torch.zeros(len(TOYS), SETS, VIEWS, 4, 8, 8)
    for i, (_, color) in enumerate(TOYS):
        for view in range(VIEWS):
            shade = 1 - 0.15 * view
            rgba[i, :, view, :3] = torch.tensor([c * shade for c in color])[:, None, None]
            rgba[i, :, view, 3] = alpha
    cameras = torch.stack([camera_numbers(camera) for camera in toy_cameras()]).expand(len(TOYS), SETS, VIEWS, -1)
    texts = tuple(text for text, _ in TOYS)
    words = torch.tensor([tokenize(text) for text in texts])[:, None].expand(-1, SETS, -1)
    view = torch.tensor([0, 1, 2, 1]).expand(len(TOYS), SETS, VIEWS)
    kinds = tuple(text.split()[-1] for text in texts)
    depth = 2.5 * (rgba[..., 3, :, :] > 0).half()
    return PriorData(rgba.to(torch.uint8), depth, cameras.contiguous(), view, words.contiguous(), texts, texts, kinds)
