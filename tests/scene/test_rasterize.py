"""The drawn image: one splat by hand, invariances, gradients to the camera, emptiness."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from scene.cameras import Camera
from scene.gaussians import Gaussians
from scene.ops import native
from scene.rasterize import RasterSettings, Render, render
from tests.scene.splats import a_camera, random_gaussians, random_rotation, turned

IMAGES = ("rgb", "alpha", "depth", "normal", "median_depth")


def test_one_round_splat_is_a_gaussian_blob_over_the_background() -> None:
    f, z, s, o = 30.0, 3.0, 0.25, 0.8
    camera = Camera(torch.tensor([[f, 0, 12.5], [0, f, 9.5], [0, 0, 1]]), torch.eye(4), 25, 20)
    one = Gaussians(
        means=torch.tensor([[0.0, 0.0, z]]),
        quats=torch.tensor([[1.0, 0, 0, 0]]),
        log_scales=torch.full((1, 3), math.log(s)),
        opacity_logits=torch.logit(torch.tensor([o])),
        sh_dc=torch.tensor([[1.0, 0.0, -1.0]]),
        sh_rest=torch.zeros(1, 0, 3),
    )
    background = torch.tensor([0.1, 0.6, 0.3])
    out = render(one, camera, background=background, with_geometry=True)
    v, u = torch.meshgrid(torch.arange(20) + 0.5, torch.arange(25) + 0.5, indexing="ij")
    squared = (u - 12.5) ** 2 + (v - 9.5) ** 2
    alpha = o * torch.exp(-0.5 * squared / ((f * s / z) ** 2 + 0.3))
    alpha = torch.where(alpha < 1 / 255, 0, alpha)
    color = 0.5 + 0.28209479177387814 * one.sh_dc
    torch.testing.assert_close(out.alpha, alpha, atol=1e-6, rtol=0)
    torch.testing.assert_close(
        out.rgb, alpha[..., None] * color + (1 - alpha[..., None]) * background, atol=1e-6, rtol=0
    )
    assert out.depth is not None and out.median_depth is not None
    torch.testing.assert_close(out.depth, torch.where(alpha > 0, z, 0.0), atol=1e-4, rtol=0)
    torch.testing.assert_close(out.median_depth, torch.where(alpha > 0.5, z, 0.0), atol=1e-6, rtol=0)


def test_antialiasing_keeps_the_light_of_a_tiny_splat() -> None:
    # A splat of 0.2 px: the filter makes it 0.58 px wide, the compensation returns the share of light that it had.
    camera = Camera(torch.tensor([[20.0, 0, 10.5], [0, 20.0, 10.5], [0, 0, 1]]), torch.eye(4), 21, 21)
    tiny = replace(
        random_gaussians(1, sh_degree=0),
        means=torch.tensor([[0.0, 0.0, 1.0]]),
        log_scales=torch.full((1, 3), math.log(0.01)),
        opacity_logits=torch.logit(torch.tensor([0.9])),
    )
    plain = render(tiny, camera).alpha
    kept = render(tiny, camera, settings=RasterSettings(antialias=True)).alpha
    center = float(kept[10, 10] / plain[10, 10])
    assert center == pytest.approx(0.2**2 / (0.2**2 + 0.3), rel=1e-4)


def test_turning_scene_and_camera_together_changes_nothing() -> None:
    scene, camera = random_gaussians(60, dtype=torch.float64), a_camera(dtype=torch.float64)
    rotation, shift = random_rotation(2), torch.tensor([0.3, -5.0, 2.0], dtype=torch.float64)
    c2w = camera.c2w.clone()
    c2w[:3, :3], c2w[:3, 3] = rotation @ camera.c2w[:3, :3], rotation @ camera.c2w[:3, 3] + shift
    before = render(scene, camera, with_geometry=True)
    after = render(turned(scene, rotation, shift), replace(camera, c2w=c2w), with_geometry=True)
    for name in IMAGES:
        wanted = getattr(before, name)
        wanted = wanted @ rotation.T if name == "normal" else wanted
        torch.testing.assert_close(getattr(after, name), wanted, atol=1e-6, rtol=1e-6)


def test_permuting_the_gaussians_changes_nothing() -> None:
    scene, camera = random_gaussians(200), a_camera()
    order = torch.randperm(200, generator=torch.Generator().manual_seed(1))
    before, after = (render(g, camera, with_geometry=True) for g in (scene, scene.select(order)))
    exact = native.has(scene.means.device)  # torch's matrix product rounds a row by its place; the kernels do not
    for name in IMAGES:
        tolerance = 0.0 if exact else 2e-6
        torch.testing.assert_close(getattr(after, name), getattr(before, name), atol=tolerance, rtol=tolerance)


def test_gradients_by_scene_and_camera_equal_finite_differences() -> None:
    scene, camera = random_gaussians(4, seed=6, sh_degree=1, dtype=torch.float64), a_camera(dtype=torch.float64)
    scene = replace(scene, sh_dc=scene.sh_dc + 1.5)
    generator = torch.Generator().manual_seed(0)
    v = {name: torch.randn(36, 40, generator=generator, dtype=torch.float64) for name in ("alpha", "depth")}
    v |= {name: torch.randn(36, 40, 3, generator=generator, dtype=torch.float64) for name in ("rgb", "normal")}
    # Away from the cut at 1/255, where the true image jumps by 1/255 as a splat's edge crosses a pixel: those jumps
    # are not in the gradient. Weighing by the alpha squared leaves them below the tolerance.
    weight = render(scene, camera).alpha.detach() ** 2

    def loss(out: Render) -> Tensor:
        flat = (out.alpha * v["alpha"] * weight).sum() + (out.rgb * v["rgb"] * weight[..., None]).sum()
        assert out.depth is not None and out.normal is not None
        return flat + (out.depth * v["depth"] * weight).sum() + (out.normal * v["normal"] * weight[..., None]).sum()

    leaves = {name: value.clone().requires_grad_() for name, value in scene.parameters().items()}
    c2w = camera.c2w.clone().requires_grad_()
    value = loss(render(Gaussians(**leaves), replace(camera, c2w=c2w), with_geometry=True))
    gradients = torch.autograd.grad(value, [*leaves.values(), c2w])
    # Moves of the camera stay rigid: its rotation is only ever perturbed within the rotations.
    for seed in range(4):
        moves = [torch.randn(g.shape, generator=generator, dtype=torch.float64) for g in gradients[:-1]]
        twist = torch.randn(3, generator=generator, dtype=torch.float64)
        skew = torch.linalg.cross(torch.eye(3, dtype=torch.float64), twist.expand(3, 3))
        c2w_move = torch.zeros(4, 4, dtype=torch.float64)
        c2w_move[:3, :3] = skew @ camera.c2w[:3, :3]
        c2w_move[:3, 3] = torch.randn(3, generator=generator, dtype=torch.float64)
        if seed >= 2:  # the camera alone
            moves = [torch.zeros_like(move) for move in moves]
        along = sum(float((g * m).sum()) for g, m in zip(gradients, [*moves, c2w_move]))
        numeric = _difference(scene, camera, moves, skew, c2w_move[:3, 3], loss)
        assert along == pytest.approx(numeric, rel=2e-3, abs=1e-3 * float(gradients[-1].abs().max()))


def _difference(scene, camera, moves, skew, shift, loss) -> float:
    """Central difference of the loss along a move of scene and camera."""
    h, values = 1e-6, []
    for sign in (1, -1):
        parameters = {name: value + sign * h * move for (name, value), move in zip(scene.parameters().items(), moves)}
        c2w = camera.c2w.clone()
        c2w[:3, :3] = torch.linalg.matrix_exp(sign * h * skew) @ camera.c2w[:3, :3]
        c2w[:3, 3] += sign * h * shift
        values.append(float(loss(render(Gaussians(**parameters), replace(camera, c2w=c2w), with_geometry=True))))
    return (values[0] - values[1]) / (2 * h)


def test_an_empty_scene_is_background() -> None:
    background = torch.tensor([0.2, 0.4, 0.6])
    out = render(random_gaussians(0), a_camera(), background=background, with_geometry=True)
    assert torch.equal(out.rgb, background.expand(36, 40, 3))
    assert not any(getattr(out, name).any() for name in ("alpha", "depth", "normal", "median_depth"))
    assert render(random_gaussians(0), a_camera()).depth is None


def test_depth_where_nothing_is_seen_is_zero_and_has_no_gradient() -> None:
    scene = replace(random_gaussians(1, log_scale=-4.0), means=torch.zeros(1, 3))
    leaves = Gaussians(**{name: value.clone().requires_grad_() for name, value in scene.parameters().items()})
    out = render(leaves, a_camera(), with_geometry=True)
    assert out.depth is not None
    assert not out.depth[out.alpha == 0].any()
    assert bool((out.alpha == 0).any()) and bool((out.alpha > 0).any())
    out.depth.sum().backward()
    for leaf in leaves.parameters().values():
        assert leaf.grad is None or bool(leaf.grad.isfinite().all())


def test_fewer_harmonics_draw_the_scene_without_the_rest() -> None:
    scene = random_gaussians(30)
    bare = replace(scene, sh_rest=scene.sh_rest[:, :3])
    settings = RasterSettings(sh_degree=1)
    assert torch.equal(render(scene, a_camera(), settings=settings).rgb, render(bare, a_camera()).rgb)
