"""Fixtures with a known answer, checked against closed forms, finite differences and brute force."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.synthetic import (
    OpaqueScene,
    SoftScene,
    dome_cameras,
    half_pixel_twin,
    opaque_solids,
    sh_basis,
    soft_solids,
)
from data.synthetic_photos import arc_cameras, room, write_photos
from data.synthetic_solids import Box, Ellipsoid, Torus, checker, first_hit, noise
from scene.cameras import Camera, look_at


def vector(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def turn(seed: int = 0) -> torch.Tensor:
    q, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
    return q * torch.sign(torch.linalg.det(q))


def lines(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Lines from outside through the middle region, directions of any length."""
    generator = torch.Generator().manual_seed(seed)
    origins = 3 * torch.nn.functional.normalize(torch.randn(count, 3, generator=generator, dtype=torch.float64), dim=-1)
    targets = 0.6 * torch.randn(count, 3, generator=generator, dtype=torch.float64)
    lengths = 0.2 + 3 * torch.rand(count, 1, generator=generator, dtype=torch.float64)
    return origins, (targets - origins) * lengths


SOLIDS = {
    "ball": Ellipsoid(vector(0.1, -0.2, 0.05), vector(0.7, 0.7, 0.7)),
    "box": Box(vector(0.1, 0.0, -0.1), vector(0.5, 0.3, 0.4), turn(1)),
    "torus": Torus(vector(0.05, 0.1, 0.0), 0.6, 0.22, turn(2)),
}


@pytest.mark.parametrize("name", SOLIDS)
def test_hits_are_the_first_zero_of_the_distance_along_the_ray(name: str) -> None:
    """Oracle: sphere tracing of the distance, which knows nothing of quadratics, slabs or quartics."""
    solid = SOLIDS[name]
    origins, directions = lines(1500)
    t = first_hit(solid, origins, directions)
    unit = torch.nn.functional.normalize(directions, dim=-1)
    walked = torch.zeros_like(t)
    for _ in range(400):
        walked = walked + solid.distance(origins + walked[:, None] * unit).clamp(min=0)
    reached = (solid.distance(origins + walked[:, None] * unit).abs() < 1e-6) & (walked < 6)
    assert bool((reached == t.isfinite()).double().mean() > 0.997)  # only rays that graze may differ
    both = reached & t.isfinite()
    assert 0.3 < float(both.double().mean()) < 0.95
    arrived = t * directions.norm(dim=-1)
    assert float((arrived - walked)[both].abs().quantile(0.99)) < 1e-4
    assert float(solid.distance(origins[both] + t[both, None] * directions[both]).abs().max()) < 1e-9


@pytest.mark.parametrize("name", SOLIDS)
def test_normals_are_the_gradient_of_the_distance(name: str) -> None:
    solid = SOLIDS[name]
    origins, directions = lines(300, seed=3)
    t = first_hit(solid, origins, directions)
    hit = t.isfinite()
    points = (origins + t[:, None] * directions)[hit]
    step = 1e-6 * torch.eye(3, dtype=torch.float64)
    gradient = torch.stack([solid.distance(points + s) - solid.distance(points - s) for s in step], -1) / 2e-6
    close = (solid.normals(points) - gradient).norm(dim=-1) < 1e-5
    assert float(close.double().mean()) > 0.99  # not on the edges of the box
    assert bool(((solid.normals(points) * directions[hit]).sum(-1)[close] < 1e-6).all())


def test_a_hit_from_inside_is_the_way_out() -> None:
    for solid in SOLIDS.values():
        inside = (
            vector(0.05, 0.1, 0.0) + 0.6 * SOLIDS["torus"].rotation[:, 0] if isinstance(solid, Torus) else solid.center
        )
        t = first_hit(solid, inside[None], vector(0.3, 0.5, 2.0)[None])
        assert float(t) > 0
        assert abs(float(solid.distance(inside[None] + t[:, None] * vector(0.3, 0.5, 2.0)))) < 1e-9


def test_an_ellipsoid_is_a_stretched_ball() -> None:
    solid = Ellipsoid(vector(0.1, 0.2, 0.0), vector(0.7, 0.3, 0.5), turn(4))
    origins, directions = lines(500, seed=5)
    entry, leave = solid.interval(origins, directions)
    for t in (entry, leave):
        local = (origins + t[:, None] * directions - solid.center) @ solid.rotation / solid.radii
        assert float((local.norm(dim=-1) - 1)[t.isfinite()].abs().max()) < 1e-9
    assert bool((leave >= entry)[entry.isfinite()].all())
    with pytest.raises(ValueError, match="no closed form"):
        solid.distance(origins)


def sphere_scene(**options: float) -> OpaqueScene:
    ball = Ellipsoid(vector(0, 0, 0), vector(0.7, 0.7, 0.7))
    return OpaqueScene((ball,), lambda points: torch.full_like(points, 0.5), vector(0, 0, 1), **options)


def test_depth_of_a_sphere_has_its_closed_form() -> None:
    """On the optical axis distance minus radius; the outline is the circle f r / sqrt(d^2 - r^2)."""
    camera = dome_cameras(5, 65)[2]
    shown = sphere_scene().show(camera)
    assert float(shown.depth[32, 32]) == pytest.approx(4.0 - 0.7, abs=1e-12)
    focal = float(camera.K[0, 0])
    centre = torch.arange(65, dtype=torch.float64) + 0.5 - 32.5
    radius = torch.hypot(centre[:, None], centre[None, :])
    outline = focal * 0.7 / math.sqrt(4.0**2 - 0.7**2)
    assert bool((shown.mask == (radius < outline)).all())
    d = 4.0 * focal / torch.hypot(radius, torch.tensor(focal, dtype=torch.float64))  # closest approach along unit rays
    along = d - (0.7**2 - 4.0**2 + d * d).clamp(min=0).sqrt()
    z = along * focal / torch.hypot(radius, torch.tensor(focal, dtype=torch.float64))
    torch.testing.assert_close(shown.depth[shown.mask], z[shown.mask], rtol=1e-12, atol=1e-12)
    assert float(shown.depth[~shown.mask].abs().max()) == 0.0


@pytest.mark.parametrize("shape", ["sphere", "torus", "box", "all"])
def test_normals_agree_with_finite_differences_of_the_depth(shape: str) -> None:
    shown = opaque_solids(1, 0, 96, shape=shape, supersample=1).train[0]
    assert shown.normal is not None
    origins, directions = shown.camera.rays()
    points = origins + shown.depth[..., None] * directions
    right = points[1:-1, 2:] - points[1:-1, :-2]
    down = points[2:, 1:-1] - points[:-2, 1:-1]
    estimate = torch.nn.functional.normalize(torch.linalg.cross(down, right), dim=-1)
    normal = shown.normal[1:-1, 1:-1]
    whole = torch.nn.functional.avg_pool2d(shown.mask.double()[None], 3, 1)[0] > 0.999
    cosine = (estimate * normal).sum(-1)[whole]
    assert float(cosine.quantile(0.2)) > 0.97 and float(cosine.median()) > 0.995
    assert bool(((normal * directions[1:-1, 1:-1]).sum(-1)[whole] < 0).all())  # all face the camera
    torch.testing.assert_close(normal[whole].norm(dim=-1), torch.ones_like(cosine))


def test_shading_is_lambert_and_the_highlight_only_adds() -> None:
    camera = Camera(dome_cameras(1, 33)[0].K, look_at(vector(0, -3, 3), vector(0, 0, 0), vector(0, 0, 1)), 33, 33)
    matte = sphere_scene(ambient=0.4).show(camera)
    assert matte.normal is not None
    expected = 0.5 * (0.4 + 0.6 * matte.normal[..., 2].clamp(min=0))
    torch.testing.assert_close(matte.color[..., 1][matte.mask], expected[matte.mask])
    added = sphere_scene(ambient=0.4, specular=0.3).show(camera).color - matte.color
    assert float(added.min()) >= 0.0 and 0.2 < float(added.max()) <= 0.3 + 1e-12


def test_supersampling_averages_colour_and_leaves_geometry_alone() -> None:
    one, four = (opaque_solids(1, 0, 48, supersample=s).train[0] for s in (1, 4))
    assert torch.equal(one.depth, four.depth) and torch.equal(one.mask, four.mask)
    assert set(one.alpha.unique().tolist()) == {0.0, 1.0}
    fractions = four.alpha * 16
    assert float((fractions - fractions.round()).abs().max()) < 1e-9 and len(fractions.unique()) > 4
    assert float(four.alpha.mean()) == pytest.approx(float(one.alpha.mean()), rel=0.02)
    assert bool((four.color <= four.alpha[..., None] + 1e-12).all())


def test_soft_solids_equal_brute_force_marching() -> None:
    """Oracle: 40000 small steps through densities and colours; no entry, exit or sorting."""
    fixture = soft_solids(1, 0, 12, seed=3)
    scene, shown = fixture.scene, fixture.train[0]
    assert isinstance(scene, SoftScene)
    origins, directions = (part.reshape(-1, 3) for part in shown.camera.rays())
    edges = torch.linspace(2.5, 5.5, 40001, dtype=torch.float64)
    step, middle = edges[1] - edges[0], 0.5 * (edges[1:] + edges[:-1])
    basis = sh_basis(torch.nn.functional.normalize(directions, dim=-1))
    for ray in range(5, 144, 13):
        points = origins[ray] + middle[:, None] * directions[ray]
        inside = []
        for solid in scene.solids:
            local = (points - solid.center) @ solid.rotation
            if isinstance(solid, Box):
                inside.append((local.abs() < solid.half).all(-1))
            else:
                inside.append((local / solid.radii).square().sum(-1) < 1)
        density = scene.sigma * torch.stack(inside).double()
        tones = (basis[ray] @ scene.sh + 0.5).clamp(min=0)
        tau = density.sum(0) * directions[ray].norm() * step
        weight = torch.exp(-(tau.cumsum(0) - tau)) * (1 - torch.exp(-tau))
        share = density / density.sum(0).clamp(min=1e-9)
        color = torch.einsum("i,si,sc->c", weight, share, tones)
        row, column = divmod(ray, 12)
        assert float(shown.alpha[row, column]) == pytest.approx(float(weight.sum()), abs=2e-3)
        torch.testing.assert_close(shown.color[row, column], color, rtol=0, atol=2e-3)
        if float(weight.sum()) > 0.1:
            assert float(shown.depth[row, column]) == pytest.approx(
                float((weight * middle).sum() / weight.sum()), abs=1e-3
            )


def test_a_soft_ball_absorbs_what_its_chord_says() -> None:
    ball = Ellipsoid(vector(0, 0, 0), vector(0.5, 0.5, 0.5))
    camera = dome_cameras(3, 33)[1]
    shown = SoftScene((ball,), 3.0, torch.zeros(1, 9, 3, dtype=torch.float64)).show(camera)
    assert float(shown.alpha[16, 16]) == pytest.approx(1 - math.exp(-3.0 * 1.0), abs=1e-12)
    torch.testing.assert_close(shown.color, 0.5 * shown.alpha[..., None].expand(-1, -1, 3))
    twice = SoftScene((ball, ball), 1.5, torch.zeros(2, 9, 3, dtype=torch.float64)).show(camera)
    torch.testing.assert_close(twice.alpha, shown.alpha)  # densities add where solids overlap
    torch.testing.assert_close(twice.depth, shown.depth)


def test_spherical_harmonics_are_orthonormal() -> None:
    """Oracle: Gauss-Legendre times uniform angles integrates products of degree 4 exactly."""
    nodes, weights = np.polynomial.legendre.leggauss(8)
    angle = torch.arange(16, dtype=torch.float64) * 2 * math.pi / 16
    z = torch.from_numpy(nodes)[:, None].expand(-1, 16)
    flat = (1 - z * z).sqrt()
    directions = torch.stack([flat * angle.cos(), flat * angle.sin(), z], -1).reshape(-1, 3)
    basis = sh_basis(directions)
    area = (torch.from_numpy(weights)[:, None] * 2 * math.pi / 16).expand(-1, 16).reshape(-1, 1)
    torch.testing.assert_close(basis.T @ (area * basis), torch.eye(9, dtype=torch.float64), rtol=0, atol=1e-12)


def test_the_half_pixel_twin_is_the_picture_moved_by_half_a_pixel() -> None:
    """At twice the size the same half pixel is one whole pixel, so the twin's samples are found in a finer image."""
    scene, camera = opaque_solids(0, 0, 32).scene, dome_cameras(3, 32)[0]
    shown, twin = scene.show(camera), half_pixel_twin(scene, camera)
    assert twin.camera is camera
    assert not torch.equal(shown.color, twin.color)
    K = camera.K.clone()
    K[:2] *= 2
    K[:2, 2] += 0.5
    fine = scene.show(
        replace(camera, K=K, width=64, height=64)
    ).color  # at every half pixel: even ones at whole numbers
    torch.testing.assert_close(fine[1::2, 1::2], shown.color)
    torch.testing.assert_close(fine[0::2, 0::2], twin.color)


def test_turning_scene_and_camera_together_changes_nothing() -> None:
    spin = turn(7)
    solids = (SOLIDS["box"], SOLIDS["torus"])
    turned = tuple(replace(solid, center=spin @ solid.center, rotation=spin @ solid.rotation) for solid in solids)
    camera = dome_cameras(4, 40)[1]
    c2w = camera.c2w.clone()
    c2w[:3] = spin @ camera.c2w[:3]
    light = vector(0.6, 0.0, 0.8)
    here = OpaqueScene(solids, checker(0.2), light).show(camera)
    there = OpaqueScene(turned, lambda points: checker(0.2)(points @ spin), spin @ light).show(replace(camera, c2w=c2w))
    torch.testing.assert_close(there.depth, here.depth)
    assert here.normal is not None and there.normal is not None
    torch.testing.assert_close(there.normal, here.normal @ spin.T)
    assert float((there.color - here.color).abs().amax(-1).gt(1e-9).double().mean()) < 0.005  # edges of the checker


def test_capture_gives_back_images_cameras_and_points(tmp_path: Path) -> None:
    fixture = opaque_solids(4, 2, 40)
    with fixture.capture(tmp_path, points=200) as capture:
        assert [capture.views[i].name.split("/")[0] for i in capture.train] == ["train"] * 4
        assert len(capture.test) == 2
        for shown, index in zip(fixture.train, capture.train):
            photo, camera = capture.photo(index), capture.views[index].camera
            assert camera is not None and photo.alpha is not None
            torch.testing.assert_close(camera.c2w.double(), shown.camera.c2w, rtol=0, atol=1e-6)
            torch.testing.assert_close(camera.K.double(), shown.camera.K, rtol=1e-6, atol=1e-6)
            alpha = photo.alpha.double() / 255
            image = photo.rgb.double() / 255 * alpha[..., None] + (1 - alpha)[..., None]
            assert float((image - shown.over(1.0)).abs().max()) < 2.5 / 255
        assert capture.points is not None and len(capture.points) == 200
        assert isinstance(fixture.scene, OpaqueScene)
        assert float(fixture.scene.distance(capture.points.xyz.double()).abs().max()) < 1e-5


def test_the_same_seed_gives_the_same_scene_and_another_does_not() -> None:
    a, b, c = (soft_solids(1, 0, 16, seed=seed).train[0].color for seed in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)
    with pytest.raises(ValueError, match="sphere, torus, box, all"):
        opaque_solids(1, 0, 16, shape="teapot")


def test_train_and_test_cameras_differ_and_see_the_scene() -> None:
    fixture = opaque_solids(6, 6, 24, supersample=1)
    centers = torch.stack([shown.camera.center for shown in (*fixture.train, *fixture.test)])
    apart = torch.cdist(centers, centers) + 9 * torch.eye(12, dtype=torch.float64)
    assert float(apart.min()) > 0.3
    assert all(0.05 < float(shown.alpha.mean()) < 0.6 for shown in (*fixture.train, *fixture.test))


def test_noise_is_smooth_bounded_and_repeatable() -> None:
    line = torch.linspace(-5, 5, 20001, dtype=torch.float64)[:, None] * vector(1.0, 0.7, -0.3)
    values = noise(line, 4, 3)
    assert torch.equal(values, noise(line, 4, 3)) and not torch.equal(values, noise(line, 5, 3))
    assert float(values.min()) >= 0 and float(values.max()) <= 1 and float(values.std(0).min()) > 0.08
    assert float(values.diff(dim=0).abs().max()) < 0.01
    torch.testing.assert_close(noise(vector(3.0, -2.0, 64.0)[None], 1), noise(vector(3.0, 62.0, 0.0)[None], 1))


def test_photos_fill_the_frame_and_show_what_their_cameras_say(tmp_path: Path) -> None:
    answers = write_photos(tmp_path, 2, (96, 72))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(answers)
    for name, shown in answers.items():
        with Image.open(tmp_path / name) as image:
            assert image.getexif().get_ifd(0x8769)[0xA405] == 31
            pixels = torch.from_numpy(np.asarray(image, dtype=np.float64)) / 255
        assert bool(shown.mask.all())  # nothing to mistake for a far background
        assert float((pixels - shown.color).abs().mean()) < 0.04  # what JPEG costs so fine a texture
        detail = pixels.mean(-1).diff(dim=1).abs().mean()
        assert float(detail) > 0.02


def test_neighbouring_photos_share_most_of_what_they_see() -> None:
    """Points of one photo, carried by exact depth into the next, mostly meet the surface that it shows there."""
    scene = room(2)
    a, b = (scene.show(camera) for camera in arc_cameras(12, (64, 48))[5:7])
    assert float((a.camera.center - b.camera.center).norm()) > 0.1
    origins, directions = a.camera.rays()
    pixel, z = b.camera.project((origins + a.depth[..., None] * directions).reshape(-1, 3))
    fits = (z > 0) & (pixel >= 0).all(1) & (pixel < torch.tensor([64.0, 48.0])).all(1)
    column, row = pixel[fits].floor().long().unbind(-1)
    free = (b.depth[row, column] - z[fits]).abs() < 0.05 * z[fits]
    assert float(fits.double().mean()) > 0.7
    assert float(free.double().mean()) > 0.8
