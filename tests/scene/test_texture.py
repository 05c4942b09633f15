"""Textures baked from exact photos give their colours back; gains are undone; nothing bleeds; gaps are filled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, label

from data.synthetic import Fixture, opaque_solids
from scene.errors import InputError
from scene.mesh import Mesh
from scene.mesh_render import render_mesh
from scene.ops import native
from scene.texture import PhotoView, TextureConfig, Textured, reprojection_psnr, texture_mesh
from scene.texture_fill import spread
from scene.texture_photos import worth_of_pixels
from scene.texture_texels import texel_faces
from tests.scene.solid_meshes import bumpy, camera_at, icosphere, painted, photo_of, photos, square

CONFIG = TextureConfig(size=256, padding=3, uv_seconds=0)


@cache
def sphere() -> Fixture:
    return opaque_solids(train=14, test=3, size=96, shape="sphere")


@cache
def sphere_mesh() -> Mesh:
    return icosphere(4)


@cache
def textured_sphere() -> Textured:
    return texture_mesh(sphere_mesh(), [photo_of(shown) for shown in sphere().train], CONFIG)


def stripes(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """A smooth pattern of three colours."""
    return 0.5 + 0.3 * np.sin(points[:, :1] * [9.0, 5.0, 2.0] + points[:, 1:] * [3.0, -7.0, 8.0])


def over_the_square(
    color: Callable[[NDArray[np.float64]], NDArray[np.float64]] = stripes,
    shifts: Sequence[tuple[float, float]] = ((-0.25, 0.0), (0.25, 0.1), (0.0, -0.2), (0.1, 0.2)),
) -> list[PhotoView]:
    """Photos of the painted unit square at z = 0 from a unit before it."""
    cameras = [camera_at(x, y, -1.0, size=72) for x, y in shifts]
    return photos([(camera, painted(camera, color, 0.0)) for camera in cameras])


def colors_at(textured: Textured, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """[P, 3] what the textured square shows at (x, y), 0..1."""
    camera = camera_at(0, 0, -1.0, size=128, focal=120.0)
    shown = render_mesh(textured.mesh, camera, supersample=1)
    columns, rows = (points * 120 + 64).astype(int).T
    return shown.rgb[rows, columns].numpy()


def grid(reach: float = 0.4, count: int = 21) -> NDArray[np.float64]:
    """Pixel centres of the camera of `colors_at`."""
    steps = (np.floor(np.linspace(-reach, reach, count) * 120) + 0.5) / 120
    x, y = np.meshgrid(steps, steps)
    return np.stack([x.reshape(-1), y.reshape(-1)], axis=1)


def test_a_sphere_shows_its_own_colours_at_views_it_was_not_baked_from() -> None:
    views = [photo_of(shown) for shown in sphere().test]
    scores = reprojection_psnr(textured_sphere().mesh, views)
    # Hard edges of a chessboard of 96-pixel photos: a pixel of blur at each costs most of what is missing to 60.
    assert min(scores) > 24
    grey = reprojection_psnr(replace(sphere_mesh(), colors=None), views)
    assert min(scores) > max(grey) + 8


def test_facts_of_the_sphere() -> None:
    facts = textured_sphere().facts
    assert facts.size == 256
    assert facts.uv_method == "box"
    assert facts.padding == 3
    assert facts.coverage > 0.85  # the dome of cameras does not see it from below
    assert facts.seam_error < 0.05  # seams cross the hard edges of a chessboard
    assert 0.2 < facts.utilization < 1
    assert len(facts.gains) == len(sphere().train)
    assert np.allclose(facts.gains, 1, atol=0.05)
    assert {"uv", "photos", "blend"} <= set(facts.seconds)


def test_smooth_colours_of_a_plane_come_back_within_two_levels() -> None:
    textured = texture_mesh(square(6), over_the_square(), CONFIG)
    error = np.abs(colors_at(textured, grid()) - stripes(grid()))
    assert error.mean() < 1.5 / 255  # photos, samples and texture each round to a level
    assert error.max() < 8 / 255


def test_known_gains_of_the_photos_are_undone() -> None:
    gains = [0.85, 1.15, 1.0, 0.95]
    pictures = over_the_square()
    changed = []
    for view, gain in zip(pictures, gains, strict=True):
        rgb = (view.load()[0].float() * gain).round().clamp(0, 255).to(torch.uint8)
        changed.append(PhotoView(view.camera, lambda rgb=rgb: (rgb, None)))
    textured = texture_mesh(square(6), changed, CONFIG)
    found = np.array(textured.facts.gains)
    together = found * np.array(gains)[:, None]
    assert np.allclose(together, together.mean(), rtol=0.03)
    assert found.mean() == pytest.approx(1, abs=0.02)
    # Up to one brightness of all, which no photo tells.
    shown, wanted = colors_at(textured, grid()), stripes(grid())
    scale = (shown * wanted).sum() / (wanted**2).sum()
    assert scale == pytest.approx(1, abs=0.05)
    assert np.abs(shown / scale - wanted).mean() < 2.5 / 255


def test_what_hangs_before_the_surface_does_not_bleed_onto_it() -> None:
    board = square(2, z=-0.35, side=0.16)
    both = Mesh(
        np.concatenate([square(8).vertices, board.vertices]),
        np.concatenate([square(8).faces, board.faces + 81]),
    )
    views = []
    for view in over_the_square(shifts=((-0.5, 0.0), (0.5, 0.0), (0.0, -0.5), (0.0, 0.5), (0.3, 0.3))):
        # The board is red, and in the photos a pixel larger than in the mesh.
        seen = render_mesh(board, view.camera, supersample=1).alpha[None]
        hidden = torch.nn.functional.max_pool2d(seen, 3, 1, 1)[0] > 0
        rgb = torch.where(hidden[..., None], torch.tensor([255, 0, 0], dtype=torch.uint8), view.load()[0])
        views.append(PhotoView(view.camera, lambda rgb=rgb: (rgb, None)))
    textured = texture_mesh(both, views, CONFIG)
    behind = [camera_at(x, y, -0.3, size=96, focal=40.0) for x, y in ((0.0, 0.0), (0.2, -0.1))]
    for camera in behind:  # cameras between the board and the surface
        shown = render_mesh(textured.mesh, camera, supersample=1)
        wanted = painted(camera, stripes, 0.0).float() / 255
        there = (shown.faces >= 0) & (shown.faces < 128)
        error = (shown.rgb - wanted).abs().amax(-1)[there]
        assert float(there.float().mean()) > 0.5
        # Red is off by 0.5 and more. Smooth fillings of what the board hides from all are off by less.
        assert float(error.max()) < 0.3
        assert float(error.mean()) < 0.02


def test_the_background_of_a_cut_out_stays_out() -> None:
    views = []
    for shown in sphere().train:
        rgb, alpha = photo_of(shown).load()
        assert alpha is not None
        green = torch.where(alpha[..., None] < 255, torch.tensor([0, 255, 0], dtype=torch.uint8), rgb)
        views.append(PhotoView(shown.camera, lambda green=green, alpha=alpha: (green, alpha)))
    picture = texture_mesh(sphere_mesh(), views, CONFIG).mesh.material
    assert picture is not None
    tones = picture.base_color.reshape(-1, 3).astype(int)
    usual = textured_sphere().mesh.material
    assert usual is not None
    wanted = usual.base_color.reshape(-1, 3).astype(int)
    assert np.abs(tones - wanted).mean() < 1
    assert (tones - wanted)[:, 1].max() < 25


def test_one_photo_of_something_else_is_outvoted() -> None:
    views = over_the_square(shifts=((-0.2, 0), (0.2, 0), (0, 0.2), (0, -0.2), (0, 0)))
    odd = PhotoView(views[-1].camera, lambda: (torch.full((72, 72, 3), 250, dtype=torch.uint8), None))
    textured = texture_mesh(square(6), [*views[:-1], odd], CONFIG)
    assert np.abs(colors_at(textured, grid(0.3)) - stripes(grid(0.3))).max() < 0.1


def test_what_no_photo_sees_takes_the_colours_around_it() -> None:
    def grey(points: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.full((len(points), 3), 0.6)

    views = over_the_square(grey, shifts=((-0.9, 0.0), (-0.8, 0.1)))
    textured = texture_mesh(square(8), views, CONFIG)
    assert 0.1 < textured.facts.coverage < 0.6
    assert np.abs(colors_at(textured, grid()) - 0.6).max() < 2 / 255
    nothing = texture_mesh(square(2), photos([(camera_at(0, 0, 5), torch.zeros(64, 64, 3, dtype=torch.uint8))]), CONFIG)
    assert nothing.facts.coverage == 0


def test_islands_are_continued_by_their_nearest_texels() -> None:
    textured = textured_sphere().mesh
    assert textured.uvs is not None
    assert textured.material is not None
    faces = texel_faces(textured.uvs, 256)
    covered, picture = faces >= 0, textured.material.base_color
    inside = np.argwhere(covered)
    rng = np.random.default_rng(0)
    for row, column in rng.permutation(np.argwhere(~covered))[:300]:
        away = np.hypot(*(inside - [row, column]).T)
        near = inside[away <= 1.05 * away.min() + 1]  # the library's distances are not exact
        assert (picture[near[:, 0], near[:, 1]] == picture[row, column]).all(axis=1).any()


def test_padding_reaches_eight_texels_around_every_island() -> None:
    textured = texture_mesh(icosphere(2), over_the_square(), TextureConfig(size=512, padding=8, uv_seconds=0))
    uvs = textured.mesh.uvs
    assert uvs is not None
    faces = texel_faces(uvs, 512)
    labelled: Any = label(faces >= 0)
    islands, count = labelled
    assert count >= 6
    for island in range(1, count + 1):
        others = (islands > 0) & (islands != island)
        apart: Any = distance_transform_edt(~others)
        assert apart[islands == island].min() >= 15  # the nearer half of it is its own


def test_spread_of_nothing_and_of_everything() -> None:
    picture = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    assert np.array_equal(spread(picture, np.zeros((4, 4), bool)), picture)
    assert np.array_equal(spread(picture, np.ones((4, 4), bool)), picture)
    one = np.zeros((4, 4), bool)
    one[1, 2] = True
    assert (spread(picture, one) == picture[1, 2]).all()


def test_the_picture_stands_upright() -> None:
    def left_red_top_green(points: NDArray[np.float64]) -> NDArray[np.float64]:
        sides = np.stack([points[:, 0] < 0, points[:, 1] < 0, np.zeros(len(points))], axis=1)
        return 0.1 + 0.8 * sides.astype(np.float64)

    textured = texture_mesh(square(2), over_the_square(left_red_top_green), CONFIG)
    corners = np.array([[-0.3, -0.3], [0.3, -0.3], [-0.3, 0.3], [0.3, 0.3]])
    assert np.abs(colors_at(textured, corners) - left_red_top_green(corners)).max() < 0.03


def test_a_normal_map_brings_the_bumps_back() -> None:
    coarse, fine = icosphere(2), bumpy(icosphere(5))
    view = sphere().test[0]
    config = replace(CONFIG, size=512)
    mapped = texture_mesh(coarse, [photo_of(view)], config, fine=fine).mesh
    wanted = render_mesh(fine, view.camera, shading="normals")
    with_map = render_mesh(mapped, view.camera, shading="normals")
    without = render_mesh(coarse, view.camera, shading="normals")
    both = (wanted.alpha == 1) & (without.alpha == 1)
    error = [float((shown.rgb - wanted.rgb)[both].abs().mean()) for shown in (with_map, without)]
    assert error[0] < 0.3 * error[1]


def test_a_normal_map_of_the_same_shape_is_flat_and_shows_no_seams() -> None:
    mesh = icosphere(3)
    mapped = texture_mesh(mesh, [photo_of(sphere().test[0])], CONFIG, fine=mesh).mesh
    assert mapped.material is not None
    assert mapped.material.normal is not None
    assert np.abs(mapped.material.normal.astype(int) - [128, 128, 255]).max() <= 3
    view = sphere().test[1].camera
    shown, wanted = (render_mesh(each, view, shading="normals").rgb for each in (mapped, mesh))
    assert float((shown - wanted).abs().max()) < 0.03


def test_occlusion_darkens_what_sees_little_sky() -> None:
    wall = square(4)
    upright = Mesh(wall.vertices[:, [2, 1, 0]] + [0.0, 0.0, -0.5], wall.faces)
    corner = Mesh(np.concatenate([wall.vertices, upright.vertices]), np.concatenate([wall.faces, upright.faces + 25]))
    made = texture_mesh(corner, over_the_square(), replace(CONFIG, occlusion=True)).mesh
    assert made.material is not None
    assert made.material.occlusion is not None
    assert made.uvs is not None
    faces = texel_faces(made.uvs, 256)
    middle = corner.vertices[corner.faces].mean(axis=1)[:, 0]
    near, far = (
        made.material.occlusion[(faces >= 0) & (faces < 32) & where].mean()
        for where in (np.abs(middle[faces]) < 0.1, np.abs(middle[faces]) > 0.35)
    )
    assert near < far - 40
    assert far > 200


def test_threads_do_not_change_a_texel() -> None:
    pictures = []
    for count in (1, 3):
        native.set_threads(count)
        made = texture_mesh(square(6), over_the_square(), CONFIG).mesh.material
        assert made is not None
        pictures.append(made.base_color)
    native.set_threads(native.len_affinity())
    assert np.array_equal(*pictures)


def test_photos_are_loaded_once_and_only_where_they_see_the_mesh() -> None:
    loads: list[int] = []

    def watched(number: int, view: PhotoView) -> PhotoView:
        return PhotoView(view.camera, lambda: (loads.append(number), view.load())[1])

    views = [watched(i, view) for i, view in enumerate(over_the_square(shifts=((0, 0), (0.1, 0), (50, 0))))]
    steps: list[tuple[int, int]] = []
    texture_mesh(square(2), views, CONFIG, progress=lambda done, total, _: steps.append((done, total)))
    assert loads == [0, 1]
    assert [done for done, _ in steps] == list(range(1, len(steps) + 1))
    assert {total for _, total in steps} == {len(steps)}


def test_stopping_ends_the_taking_of_photos() -> None:
    textured = texture_mesh(square(2), over_the_square(), CONFIG, stop=lambda: True)
    assert textured.facts.coverage == 0


def test_pixels_near_steps_and_borders_are_worth_little() -> None:
    depth = torch.full((80, 120), 2.0)
    depth[30:50, 40:80] = 1.0
    worth = worth_of_pixels(torch.randint(0, 255, (80, 120, 3), dtype=torch.uint8), None, depth, jump=0.1)
    best = float(worth.max())
    assert float(worth[30:50, 40].max()) == 0
    assert float(worth[29, 45:75].max()) == 0
    assert float(worth[40, 60]) == pytest.approx(best, rel=0.2)
    assert float(worth[:, 0].max()) < 0.15 * best
    alpha = torch.full((80, 120), 255, dtype=torch.uint8)
    alpha[:, 100:] = 0
    assert not worth_of_pixels(torch.zeros(80, 120, 3, dtype=torch.uint8), alpha, depth, jump=0.1)[:, 99:].any()


def test_a_blurred_photo_counts_less() -> None:
    noise = torch.randint(0, 255, (64, 64, 3), dtype=torch.uint8)
    soft = torch.nn.functional.avg_pool2d(noise.permute(2, 0, 1).float()[None], 5, 1, 2)[0].permute(1, 2, 0)
    depth = torch.full((64, 64), 2.0)
    sharp, blurred = (
        float(worth_of_pixels(p.to(torch.uint8).contiguous(), None, depth, jump=1.0).max()) for p in (noise, soft)
    )
    assert blurred < 0.6 * sharp


def test_a_mesh_of_many_parts_gets_a_texture_that_has_room_for_them() -> None:
    """400 triangles apart, of which few fit into the 256 texels that a small photo would be enough for."""
    places = np.stack(np.meshgrid(np.linspace(-0.4, 0.4, 20), np.linspace(-0.4, 0.4, 20)), -1).reshape(-1, 1, 2)
    flat = places + np.array([[0.0, 0.0], [0.01, 0.0], [0.0, 0.01]])
    corners = np.concatenate([flat, np.zeros((400, 3, 1))], axis=2)
    mesh = Mesh(corners.reshape(-1, 3), np.arange(1200, dtype=np.int32).reshape(-1, 3))
    views = over_the_square()
    made = texture_mesh(mesh, views, TextureConfig(uv_seconds=0))
    assert made.facts.size > 256 and made.facts.charts == 400
    with pytest.raises(InputError, match="larger texture"):
        texture_mesh(mesh, views, TextureConfig(uv_seconds=0, size=256))


def test_no_mesh_or_no_photo_is_an_error() -> None:
    empty = Mesh(np.zeros((0, 3)), np.zeros((0, 3), np.int32))
    with pytest.raises(InputError, match="0 faces"):
        texture_mesh(empty, over_the_square(), CONFIG)
    with pytest.raises(InputError, match="0 photos"):
        texture_mesh(square(2), [], CONFIG)
