"""Depth images of a textured ball on a textured floor, spoiled and refined by their pictures."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from scene.cameras import Camera, look_at
from scene.depth_fusion import DepthFrame
from scene.depth_refinement import refine_depths

NOISE = 0.01
WAVES = torch.tensor([[31.0, -11, 9], [7, 27, -17], [19, 5, 33]], dtype=torch.float64)  # some 6 px long on the ball


def cameras(count: int = 8) -> list[Camera]:
    """A ring of views, 12 degrees apart, 3 from the origin."""
    K = torch.tensor([[220.0, 0, 80], [0, 220.0, 60], [0, 0, 1]], dtype=torch.float64)
    up = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    angles = [math.radians(12 * i) for i in range(count)]
    eyes = [torch.tensor([2.4 * math.cos(a), 2.4 * math.sin(a), 1.8], dtype=torch.float64) for a in angles]
    return [Camera(K, look_at(eye, torch.zeros(3, dtype=torch.float64), up), 160, 120) for eye in eyes]


def true_depth(camera: Camera) -> Tensor:
    """Exact z-depth of a ball of radius 0.5 on a floor at z = -0.5."""
    origins, rays = camera.rays()
    floor = (-0.5 - origins[..., 2]) / rays[..., 2]
    a, b, c = (rays * rays).sum(-1), (origins * rays).sum(-1), (origins * origins).sum(-1) - 0.25
    inside = b * b - a * c
    ball = torch.where(inside > 0, (-b - inside.clamp(min=0).sqrt()) / a, torch.inf)
    return torch.minimum(floor, ball)


def frame_of(camera: Camera, *, textured: bool = True) -> DepthFrame:
    depth = true_depth(camera)
    origins, rays = camera.rays()
    points = origins + depth[..., None] * rays
    waves = torch.sin(2 * points @ WAVES).sum(-1) if textured else torch.zeros_like(depth)
    grey = 128 + 35 * waves
    rgb = grey.clamp(0, 255).round().to(torch.uint8)[..., None].expand(-1, -1, 3).contiguous()
    return DepthFrame(camera, depth.float(), rgb)


def spoiled(frame: DepthFrame, seed: int) -> DepthFrame:
    """With an error that changes over some 8 pixels, as where neighbouring pixels end in different splats."""
    generator = torch.Generator().manual_seed(seed)
    coarse = NOISE * torch.randn(1, 1, 15, 20, generator=generator)
    error = torch.nn.functional.interpolate(coarse, frame.depth.shape, mode="bicubic", align_corners=False)[0, 0]
    return replace(frame, depth=frame.depth + error)


def errors(frames: list[DepthFrame]) -> Tensor:
    return torch.cat([(f.depth - true_depth(f.camera)).abs()[f.depth > 0] for f in frames])


def test_pictures_take_most_of_the_error_out_of_depths():
    frames = [spoiled(frame_of(camera), i) for i, camera in enumerate(cameras())]
    refined = refine_depths(frames, noise=NOISE)
    assert float(errors(refined).median()) < 0.4 * float(errors(frames).median())
    # A pixel is 0.014 wide at the ball: what is left is a fifth of one.
    assert float(errors(refined).median()) < 0.003
    kept = torch.stack([f.depth > 0 for f in refined]).double().mean()
    assert float(kept) > 0.8


def test_true_depths_stay_and_edges_do_not_move():
    refined = refine_depths([frame_of(camera) for camera in cameras()], noise=1e-3)
    # A pixel is 0.014 wide at the ball: a tenth of one, and less than one where a patch lies over an edge.
    assert float(errors(refined).quantile(0.5)) < 1.4e-3 and float(errors(refined).quantile(0.95)) < 0.01


def test_pictures_without_detail_change_nothing_but_noise():
    frames = [frame_of(camera, textured=False) for camera in cameras()]
    refined = refine_depths(frames, noise=1e-3)
    assert float(errors(refined).quantile(0.95)) < 2e-3


def test_a_pixel_that_no_other_view_confirms_loses_its_depth():
    frames = [frame_of(camera) for camera in cameras()]
    lie = frames[3].depth.clone()
    lie[40:60, 60:80] *= 0.8
    refined = refine_depths([*frames[:3], replace(frames[3], depth=lie), *frames[4:]], noise=1e-3)
    assert not bool((refined[3].depth[45:55, 65:75] > 0).any())
    assert float((refined[3].depth[80:110, 40:120] > 0).double().mean()) > 0.95


def test_views_without_neighbours_and_empty_ones_come_back():
    one = frame_of(cameras(1)[0])
    alone = refine_depths([one], noise=1e-3)[0]
    assert bool((alone.depth > 0).all())
    assert float(errors([alone]).quantile(0.95)) < 2e-3
    empty = replace(one, depth=torch.zeros_like(one.depth))
    assert not bool(refine_depths([empty, one], noise=1e-3)[0].depth.any())


def test_progress_counts_to_the_end_and_stop_gives_the_frames_back():
    frames = [frame_of(camera) for camera in cameras(3)]
    calls: list[tuple[int, int]] = []
    refine_depths(frames, noise=1e-3, progress=lambda done, total, message: calls.append((done, total)))
    assert calls == [(i, 6) for i in range(1, 7)]
    assert refine_depths(frames, noise=1e-3, stop=lambda: True) == frames


def test_the_outcome_does_not_depend_on_the_order_of_views():
    frames = [spoiled(frame_of(camera), i) for i, camera in enumerate(cameras(5))]
    order = [3, 0, 4, 1, 2]
    one, two = refine_depths(frames, noise=NOISE), refine_depths([frames[i] for i in order], noise=NOISE)
    for place, i in enumerate(order):
        # Ties between equally good neighbours may fall the other way; sums are in another order.
        assert np.median(np.abs(two[place].depth.numpy() - one[i].depth.numpy())) == pytest.approx(0, abs=1e-4)
