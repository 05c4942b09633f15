"""The plane sweep around a known depth: its twin, plain correlation of shifted pictures, what it cannot see."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from scene.cameras import Camera, look_at
from scene.ops import native
from scene.ops.depth_sweep import NOISE, Neighbour, _projection, sweep, sweep_reference


def camera(x: float = 0.0, y: float = 0.0, width: int = 40, height: int = 30) -> Camera:
    K = torch.tensor([[50.0, 0, width / 2], [0, 50.0, height / 2], [0, 0, 1]], dtype=torch.float64)
    eye, up = torch.tensor([x, y, -3.0], dtype=torch.float64), torch.tensor([0, -1.0, 0], dtype=torch.float64)
    return Camera(K, look_at(eye, torch.zeros(3, dtype=torch.float64), up), width, height)


def noise(view: Camera, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(view.height, view.width, generator=generator, dtype=torch.float64)


def scattered() -> tuple[Tensor, Tensor, Camera, list[Neighbour], Tensor]:
    """Noise pictures of several sizes, a rough depth with a hole, neighbours of which one looks past the scene."""
    views = [camera(0.4), camera(-0.5, 0.1, width=36), camera(0.0, 0.6, height=50), camera(9.0)]
    depth = 3 + 0.2 * noise(camera(), 1)
    depth[10:14, 20:26] = 0
    sources = [Neighbour(noise(view, 2 + i), view, noise(camera(), 7 + i).round()) for i, view in enumerate(views)]
    return noise(camera(), 0), depth, camera(), sources, torch.linspace(0.95, 1.05, 5, dtype=torch.float64)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-4)])
@pytest.mark.parametrize("radius", [1, 3])
def test_kernel_and_twin_agree(dtype: torch.dtype, tolerance: float, radius: int) -> None:
    grey, depth, view, sources, scales = scattered()
    projections = torch.stack([_projection(view, n.camera) for n in sources]).to(dtype)
    pictures, sees = [n.grey.to(dtype) for n in sources], torch.stack([n.sees for n in sources]).to(dtype)
    grey, depth, scales = grey.to(dtype), depth.to(dtype), scales.to(dtype)
    ours = sweep(grey, depth, view, sources, scales, radius=radius)
    twin = sweep_reference(grey, depth, pictures, projections, sees, scales, radius=radius)
    assert ours.dtype == dtype
    assert (ours != 0).double().mean() > 0.4  # the comparison is of something
    assert float((ours - twin).abs().max()) < tolerance


def test_it_is_the_correlation_of_the_windows() -> None:
    # Cameras side by side: at depth z a pixel lies f * b / z to the side, here whole pixels: nothing is interpolated.
    K, baseline = camera().K, 0.24
    poses = [torch.eye(4, dtype=torch.float64) for _ in range(3)]
    poses[1][0, 3], poses[2][0, 3] = baseline, -baseline
    views = [Camera(K, pose, 40, 30) for pose in poses]
    grey, left, right = (noise(view, i) for i, view in enumerate(views))
    depth = torch.full((30, 40), 4.0, dtype=torch.float64)
    shift = round(50 * baseline / 4.0)
    weights = torch.ones(30, 40), torch.full((30, 40), 3.0)
    neighbours = [Neighbour(left, views[1], weights[0]), Neighbour(right, views[2], weights[1])]
    alike = sweep(grey, depth, views[0], neighbours, torch.ones(1), radius=2)[0]
    for row, column in ((10, 12), (20, 25), (5, 9)):
        values = []
        window = grey[row - 2 : row + 3, column - 2 : column + 3].numpy()
        for picture, by in ((left, -shift), (right, shift)):
            other = picture[row - 2 : row + 3, column + by - 2 : column + by + 3].numpy()
            cov = ((window - window.mean()) * (other - other.mean())).mean()
            values.append(cov / np.sqrt((window.var() + NOISE) * (other.var() + NOISE)))
        assert abs(float(alike[row, column]) - np.average(values, weights=(1, 3))) < 1e-9


def test_the_true_depth_is_the_most_alike() -> None:
    picture = camera(width=80, height=60)
    truth = 3.0  # a wall, whose pattern every camera sees without interpolation error that matters

    def shows(view: Camera) -> Tensor:
        origins, directions = view.rays()
        hit = origins + directions * ((truth - 3 - origins[..., 2:]) / directions[..., 2:])
        return 0.5 + 0.2 * (torch.sin(17 * hit[..., 0]) + torch.sin(13 * hit[..., 1] + 5 * hit[..., 0]))

    depth = torch.full((60, 80), truth, dtype=torch.float64)
    scales = torch.linspace(0.9, 1.1, 21)
    views = [camera(x, y, 80, 60) for x, y in ((0.5, 0.0), (-0.5, 0.0), (0.0, 0.5))]
    neighbours = [Neighbour(shows(view), view, torch.ones(60, 80)) for view in views]
    alike = sweep(shows(picture), depth, picture, neighbours, scales)
    inside = alike[:, 12:-12, 12:-12]
    assert bool((inside.argmax(0) == 10).all())
    assert float(inside[10].min()) > 0.99


def test_what_is_not_seen_is_unknown() -> None:
    grey, depth, view, sources, scales = scattered()
    alike = sweep(grey, depth, view, sources, scales, radius=1)
    assert bool((alike[:, 9:15, 19:27] == 0).all())  # around the hole
    assert bool((alike[:, 0] == 0).all()) and bool((alike[:, :, -1] == 0).all())  # windows beyond the picture
    behind = replace(view, c2w=view.c2w @ torch.diag(torch.tensor([-1.0, 1, -1, 1], dtype=torch.float64)))
    assert bool((sweep(grey, depth, view, [Neighbour(grey, behind, torch.ones(30, 40))], scales) == 0).all())
    assert bool((sweep(grey, depth, view, [], scales) == 0).all())


def test_a_neighbour_that_does_not_see_a_pixel_has_no_say() -> None:
    grey, depth, view, sources, scales = scattered()
    half = torch.zeros(30, 40)
    half[:, :20] = 1
    both = sweep(grey, depth, view, [replace(sources[0], sees=half), replace(sources[1], sees=1 - half)], scales)
    first, second = (sweep(grey, depth, view, [replace(n, sees=torch.ones(30, 40))], scales) for n in sources[:2])
    assert torch.allclose(both, torch.where(half > 0, first, second))


def test_broken_depths_and_pictures_stay_where_they_are() -> None:
    grey, depth, view, sources, scales = scattered()
    whole = sweep(grey, depth, view, sources, scales, radius=1)
    for value in (torch.nan, torch.inf, -1.0, 1e30):
        broken = depth.clone()
        broken[5, 5] = value
        alike = sweep(grey, broken, view, sources, scales, radius=1)
        assert bool(torch.isfinite(alike).all())
        far = torch.ones(30, 40, dtype=torch.bool)
        far[4:7, 4:7] = False
        assert torch.equal(alike[:, far], whole[:, far])


def test_the_same_bits_for_any_number_of_threads() -> None:
    if not native.has(torch.device("cpu")):
        pytest.skip("there are no compiled kernels here")
    before, results = native.cpu().threads(), []
    try:
        for threads in (1, 2, 3):
            native.set_threads(threads)
            grey, depth, view, sources, scales = scattered()
            results.append(sweep(grey.float(), depth, view, sources, scales))
    finally:
        native.set_threads(before)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_wrong_sizes_are_refused() -> None:
    grey, depth, view, sources, scales = scattered()
    with pytest.raises(ValueError, match="camera's size"):
        sweep(grey[1:], depth, view, sources, scales)
    with pytest.raises(ValueError, match="neighbour's picture"):
        sweep(grey, depth, view, [replace(sources[0], grey=sources[0].grey[1:])], scales)
