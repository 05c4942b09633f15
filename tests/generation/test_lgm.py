"""LGM-tiny: rays by two oracles, Gaussians where the rays say, gradients, what it refuses; its file of weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from generation.lgm import (
    FAINT,
    GAUSSIAN_CHANNELS,
    LEAST_OPACITY,
    REACH,
    SIDEWAYS,
    TOY_LGM,
    LgmNetwork,
    frames_of,
    gaussians_of,
    pluecker,
    reconstruct,
)
from generation.lgm_training import drawn
from generation.prior_training import new_network
from generation.prior_weights import LGM_FILE, About, load_lgm, load_prior_network, save_weights
from generation.views import orbit_camera, orthogonal_cameras
from scene import sh
from scene.cameras import Camera
from scene.errors import InputError
from scene.metrics import psnr
from tests.generation.prior_toys import lively, toy_cameras, toy_guide

ABOUT = About("lgm", TOY_LGM, 7, "abc123", {"psnr": 21.5})


def toy_lgm(seed: int = 0) -> LgmNetwork:
    """Lively and frozen."""
    network = new_network(TOY_LGM, seed)
    assert isinstance(network, LgmNetwork)
    return lively(network).eval().requires_grad_(False)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pictures(views: int = 4, size: int = 8, seed: int = 1) -> Tensor:
    return torch.rand(views, 3, size, size, generator=torch.Generator().manual_seed(seed))


def doubles(cameras: Sequence[Camera]) -> list[Camera]:
    return [camera.to(dtype=torch.float64) for camera in cameras]


def test_pluecker_coordinates_name_the_line_and_no_point_of_it() -> None:
    cameras = doubles(toy_cameras())
    moments, directions = pluecker(cameras).permute(0, 2, 3, 1).split(3, dim=-1)
    for camera, moment, direction in zip(cameras, moments, directions):
        origins, along = camera.rays()
        torch.testing.assert_close(direction.norm(dim=-1), torch.ones(8, 8, dtype=torch.float64))
        elsewhere = origins + 3.7 * along
        torch.testing.assert_close(torch.linalg.cross(elsewhere, direction), moment, atol=1e-12, rtol=1e-12)
        nearest = torch.linalg.cross(direction, moment)  # to the origin, of all points of the ray
        foot = origins - (origins * direction).sum(-1, keepdim=True) * direction
        torch.testing.assert_close(nearest, foot, atol=1e-12, rtol=1e-12)


def test_rays_of_two_cameras_meet_where_pluecker_coordinates_say() -> None:
    """d1 m2 + d2 m1 = 0 where two lines meet and only there: a fact of lines that knows nothing of cameras."""
    first, second = doubles(orthogonal_cameras(20, 15, 40, 2.5, 8, count=2))
    rays = pluecker([first, second]).permute(0, 2, 3, 1)
    point = first.rays()[0][2, 3] + 2.4 * first.rays()[1][2, 3]
    at = second.project(point[None])[0][0]
    aimed = replace(second, K=second.K + torch.tensor([[0, 0, 4.5 - at[0]], [0, 0, 4.5 - at[1]], [0, 0, 0]]))
    through = pluecker([aimed]).permute(0, 2, 3, 1)[0, 4, 4]  # the ray through the centre of pixel 4, 4

    def product(one: Tensor, other: Tensor) -> float:
        return float(one[3:] @ other[:3] + other[3:] @ one[:3])

    assert abs(product(rays[0, 2, 3], through)) < 1e-6  # orbit cameras are rotations to float32 only
    assert abs(product(rays[0, 2, 3], rays[1, 0, 0])) > 1e-2


def test_gaussians_start_on_their_pixels_rays_at_the_depth_of_the_origin() -> None:
    cameras, shown = doubles(toy_cameras()), pictures().double()
    made = gaussians_of(torch.zeros(4, GAUSSIAN_CHANNELS, 8, 8, dtype=torch.float64), shown, cameras)
    means = made.means.view(4, 8, 8, 3)
    for camera, own in zip(cameras, means):
        origins, along = camera.rays()
        torch.testing.assert_close(own, origins + 2.5 * along, atol=1e-6, rtol=0)  # the cameras are 2.5 away
    colors = sh.to_rgb(made.sh_dc).view(4, 8, 8, 3).permute(0, 3, 1, 2)
    torch.testing.assert_close(colors, shown.clamp(0.02, 0.98))
    assert made.sh_degree == 0


def test_gaussians_move_as_stated_by_the_cameras_own_projection() -> None:
    cameras, raw = doubles(toy_cameras()), noise(4, GAUSSIAN_CHANNELS, 8, 8).double()
    made = gaussians_of(raw, pictures(), cameras)
    for view, camera in enumerate(cameras):
        rows = slice(64 * view, 64 * (view + 1))
        at, depths = camera.project(made.means[rows])
        own = raw[view].flatten(1)
        y, x = torch.meshgrid(torch.arange(8) + 0.5, torch.arange(8) + 0.5, indexing="ij")
        moved = torch.stack([x, y]).flatten(1) + 8 * SIDEWAYS * own[:2].tanh()
        torch.testing.assert_close(at.T, moved, atol=1e-6, rtol=0)
        torch.testing.assert_close(depths, 2.5 + REACH * own[2].tanh(), atol=1e-6, rtol=0)
        pixel = depths / camera.K[0, 0]
        torch.testing.assert_close(made.scales[rows], (pixel * torch.nn.functional.softplus(own[4:7])).T)
        torch.testing.assert_close(made.opacities[rows], torch.sigmoid(own[3] - FAINT))


def test_opaque_gaussians_of_one_view_show_its_picture() -> None:
    """The rasteriser as the second oracle: places, sizes and colours together."""
    camera = orbit_camera(30, 10, 40, 2.5, 32)
    y, x = torch.meshgrid(torch.linspace(0, 1, 32), torch.linspace(0, 1, 32), indexing="ij")
    picture = torch.stack([0.2 + 0.6 * x, 0.2 + 0.6 * y, 0.8 - 0.6 * x * y])[None]
    raw = torch.zeros(1, GAUSSIAN_CHANNELS, 32, 32)
    raw[:, 3] = 8.0
    shown = drawn(gaussians_of(raw, picture, [camera]), [camera], torch.zeros(3))
    inside = slice(2, -2)  # at the border the picture fades into the background
    assert float(psnr(*(p[0].permute(1, 2, 0)[inside, inside] for p in (shown.rgb, picture)))) > 35
    torch.testing.assert_close(shown.depth[0, inside, inside], torch.zeros(28, 28), atol=0.02, rtol=0)


def test_turned_cameras_make_the_turned_scene() -> None:
    raw, shown = noise(4, GAUSSIAN_CHANNELS, 8, 8).double(), pictures()
    here, there = (orthogonal_cameras(a, 10, 40, 2.5, 8) for a in (0.0, 50.0))
    first, second = (gaussians_of(raw, shown, doubles(cameras)) for cameras in (here, there))
    turn = torch.tensor(50.0, dtype=torch.float64).deg2rad()
    c, s, zero = turn.cos(), turn.sin(), turn * 0
    matrix = torch.stack([torch.stack([c, -s, zero]), torch.stack([s, c, zero]), torch.stack([zero, zero, zero + 1])])
    torch.testing.assert_close(second.means, first.means @ matrix.T, atol=1e-6, rtol=0)


def test_gradients_of_what_is_drawn_are_those_of_finite_differences() -> None:
    cameras, shown = doubles(toy_cameras()), pictures().double()
    raw = (0.3 * noise(4, GAUSSIAN_CHANNELS, 8, 8)).double().requires_grad_()
    other = doubles([orbit_camera(70, 25, 45, 2.4, 8)])
    weights = [noise(1, *shape, seed=3).double() for shape in ((3, 8, 8), (8, 8), (8, 8))]

    def value(x: Tensor) -> Tensor:
        seen = drawn(gaussians_of(x, shown, cameras), other, torch.ones(3))
        return sum(((a * w).sum() for a, w in zip((seen.rgb, seen.alpha, seen.depth), weights)), torch.zeros(()))

    (gradient,) = torch.autograd.grad(value(raw), raw)
    with torch.no_grad():
        for channel in range(GAUSSIAN_CHANNELS):
            step = torch.zeros_like(raw)
            step[:, channel] = 1e-6 * noise(4, 8, 8, seed=channel).sign()
            slope = (value(raw + step) - value(raw - step)) / 2
            torch.testing.assert_close((gradient * step).sum(), slope, atol=2e-9, rtol=2e-3)  # splats meet cut-offs


def test_every_weight_takes_part() -> None:
    network = lively(LgmNetwork(TOY_LGM))
    cameras, shown = toy_cameras(), pictures()
    made = gaussians_of(network(frames_of(shown, cameras)[None])[0], shown, cameras)
    seen = drawn(made, cameras, torch.ones(3))
    (seen.rgb.square().sum() + seen.depth.sum()).backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_views_are_understood_together_and_in_any_order() -> None:
    network, frames = toy_lgm(), frames_of(pictures(), toy_cameras())[None]
    raw = network(frames)
    order = [2, 0, 3, 1]
    torch.testing.assert_close(network(frames[:, order]), raw[:, order], atol=2e-5, rtol=1e-4)
    other = frames.clone()
    other[:, 3, :3] *= -1
    assert float((network(other) - raw)[:, 0].abs().max()) > 1e-3
    with torch.no_grad():
        assert not LgmNetwork(TOY_LGM)(frames).any()  # every Gaussian begins on its ray


def test_faint_gaussians_are_left_out_and_pictures_may_have_any_size() -> None:
    network, cameras = toy_lgm(), orthogonal_cameras(0, 10, 40, 2.5, 24)
    large = pictures(size=24)
    made = reconstruct(network, large, cameras)
    assert 0 < len(made) <= 256
    assert float(made.opacities.min()) > LEAST_OPACITY
    small = torch.nn.functional.interpolate(large, (8, 8), mode="bilinear", antialias=True, align_corners=False)
    again = reconstruct(network, small, [camera.resized(8, 8) for camera in cameras])
    torch.testing.assert_close(made.means, again.means)


def test_what_is_no_set_of_posed_views_is_refused() -> None:
    network, shown, cameras = toy_lgm(), pictures(), toy_cameras()
    for wrong in (shown[:3], shown[:, :2], shown[0]):
        with pytest.raises(ValueError, match=r"pictures must be \[4, 3, H, W\]"):
            reconstruct(network, wrong, cameras)
    away = replace(cameras[0], c2w=cameras[0].c2w @ torch.diag(torch.tensor([-1.0, 1.0, -1.0, 1.0])))
    for camera in (orbit_camera(0, 0, 40, 0.8, 8), cameras[0].resized(8, 6), away):
        with pytest.raises(ValueError, match="cameras must be square and have the origin"):
            reconstruct(network, shown, [camera, *cameras[1:]])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / LGM_FILE
    save_weights(path, toy_lgm(), ABOUT)
    return path


def rewritten(file: Path, old: str, new: str) -> Path:
    """The same file with another text of the same length in its header."""
    assert len(old) == len(new)
    file.write_bytes(file.read_bytes().replace(old.encode(), new.encode(), 1))
    return file


def test_weights_come_back_with_what_they_are(file: Path) -> None:
    network, about = load_lgm(file)
    assert about == ABOUT
    for name, tensor in toy_lgm().state_dict().items():
        assert torch.equal(network.state_dict()[name], tensor.half().float())


def test_files_that_are_not_what_they_say_are_refused(file: Path) -> None:
    whole = file.read_bytes()
    quoted = json.dumps(json.dumps(asdict(TOY_LGM)))[1:-1]
    cases = [
        (quoted, quoted.replace("[16, 32]", "[16, 48]"), "should be"),
        (quoted, quoted.replace('head\\": 16', 'head\\": 00'), "not valid JSON|does not describe"),
        (quoted, quoted.replace('patch\\": 2', 'patch\\": 3'), "does not describe"),
        (quoted, quoted.replace("blocks", "blacks"), "does not describe"),
        (ABOUT.vocabulary, ABOUT.vocabulary[::-1], "another vocabulary"),
        ('"lgm"', '"lgn"', "no weights of Maquette's own"),
    ]
    for old, new, told in cases:
        file.write_bytes(whole)
        with pytest.raises(InputError, match=told) as caught:
            load_lgm(rewritten(file, old, new))
        assert "\n" not in str(caught.value)
    file.write_bytes(whole[:-10])
    with pytest.raises(InputError, match="damaged"):
        load_lgm(file)


def test_one_kind_of_weights_is_never_taken_for_another(file: Path) -> None:
    with pytest.raises(InputError, match="holds the weights of a lgm; expected those of a prior"):
        load_prior_network(file)
    save_weights(file, toy_guide(), replace(ABOUT, kind="clip_guide", layout=toy_guide().layout))
    with pytest.raises(InputError, match="clip_guide; expected those of a lgm"):
        load_lgm(file)
