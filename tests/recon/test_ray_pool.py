"""The pool of rays: each id is one pixel of one photo, its ray the camera's own, its colour what the photo shows."""

from __future__ import annotations

import torch
from torch import Tensor

from data.captures import Capture
from recon.ray_pool import RayPool
from tests.recon.grid_captures import painted

CPU = torch.device("cpu")
SIZES = [(8, 5), (5, 8), (8, 5), (7, 7), (11, 3)]
GREY = torch.full((3,), 0.4)


def of_cameras(capture: Capture, level: int = 0) -> tuple[Tensor, Tensor]:
    """Origins and unit directions of all pixels, photo after photo, from the cameras themselves."""
    origins, directions = [], []
    for index in capture.train:
        camera, photo = capture.views[index].camera, capture.photo(index, level)
        assert camera is not None
        o, d = camera.resized(photo.rgb.shape[1], photo.rgb.shape[0]).rays()
        origins.append(o.reshape(-1, 3))
        directions.append(torch.nn.functional.normalize(d.reshape(-1, 3), dim=-1))
    return torch.cat(origins), torch.cat(directions)


def test_ids_are_pixels_photo_after_photo_and_row_after_row() -> None:
    capture = painted(SIZES)
    pool = RayPool(capture, CPU)
    assert len(pool) == sum(width * height for width, height in SIZES) and not pool.has_alpha
    ids = torch.randperm(len(pool), generator=torch.Generator().manual_seed(0))
    shown = torch.cat([capture.photo(i).rgb.reshape(-1, 3) for i in capture.train]).float() / 255
    assert torch.equal(pool.colors(ids, GREY), shown[ids])


def test_rays_are_those_of_the_cameras_through_pixel_centres() -> None:
    capture = painted(SIZES)
    pool = RayPool(capture, CPU)
    ids = torch.randperm(len(pool), generator=torch.Generator().manual_seed(1))
    origins, directions = pool.rays(ids)
    wanted = of_cameras(capture)
    assert torch.equal(origins, wanted[0][ids])
    torch.testing.assert_close(directions, wanted[1][ids], rtol=0, atol=3e-7)  # float32, in another order
    torch.testing.assert_close(directions.norm(dim=-1), torch.ones(len(ids)), rtol=0, atol=3e-7)


def test_transparent_pixels_show_the_background_and_photos_without_alpha_hide_it() -> None:
    capture = painted(SIZES, cut_out=(0, 1, 3))
    pool = RayPool(capture, CPU)
    rgb, alpha = [], []
    for photo in map(capture.photo, capture.train):
        rgb.append(photo.rgb.reshape(-1, 3).float() / 255)
        alpha.append(torch.ones(len(rgb[-1])) if photo.alpha is None else photo.alpha.flatten().float() / 255)
    tones, shares = torch.cat(rgb), torch.cat(alpha)[:, None]
    assert pool.has_alpha and float(shares.min()) < 0.1
    found = pool.colors(torch.arange(len(pool)), GREY)
    torch.testing.assert_close(found, tones * shares + (1 - shares) * GREY, rtol=0, atol=1e-6)


def test_only_wanted_rays_are_drawn_and_all_of_them() -> None:
    capture = painted(SIZES)
    pool = RayPool(capture, CPU)
    whole, generator = len(pool), torch.Generator().manual_seed(3)
    pool.keep(lambda origins, directions: directions[:, 2] > 0.05)
    wanted = (of_cameras(capture)[1][:, 2] > 0.05).nonzero()[:, 0]
    assert 0 < len(pool) == len(wanted) < whole
    ids = pool.draw(6000, generator)
    assert ids.dtype == torch.int64 and torch.equal(ids.unique(), wanted)  # 40 draws of each at the mean
    pool.keep(lambda origins, directions: directions[:, 2] > 9)  # none: so all are drawn again
    assert len(pool) == whole
    assert len(pool.draw(8000, generator).unique()) > 0.99 * whole


def test_draws_are_those_of_the_generator() -> None:
    pool = RayPool(painted(SIZES), CPU)
    first, second = (pool.draw(50, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, second) and int(first.min()) >= 0 and int(first.max()) < len(pool)


def test_photos_with_too_many_pixels_are_halved_until_they_fit() -> None:
    capture = painted([(16, 12), (12, 16), (20, 8)])
    most = 16 * 12 + 12 * 16 + 20 * 8
    for limit, level in ((most, 0), (most - 1, 1), (most // 4, 1), (most // 5, 2)):
        pool = RayPool(capture, CPU, max_pixels=limit)
        assert pool.level == level and len(pool) == sum(
            capture.photo(i, level).rgb[..., 0].numel() for i in capture.train
        )
        ids = torch.arange(len(pool))
        origins, directions = pool.rays(ids)
        wanted = of_cameras(capture, level)
        torch.testing.assert_close(directions, wanted[1], rtol=0, atol=3e-7)
        shown = torch.cat([capture.photo(i, level).rgb.reshape(-1, 3) for i in capture.train]).float() / 255
        assert torch.equal(origins, wanted[0]) and torch.equal(pool.colors(ids, GREY), shown)
