"""Kernels against their plain-torch twins on a small scene of each kind: the self-test of `maquette doctor`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from scene.cameras import Camera, look_at

Pass = Callable[[], tuple[Tensor, Tensor]]
"""Draws a picture and returns it with the gradient of something by the scene."""

LIMIT = 1e-2  # a pixel at a cut-off may flip between float orders, so a single value may differ by 1/255


@dataclass(frozen=True)
class Compared:
    """Largest difference of the pictures, relative one of the gradients, and how many times as fast the kernels are."""

    picture: float
    gradient: float
    speed: float

    @property
    def sound(self) -> bool:
        """Whether both computed the same; NaN is not the same."""
        return self.picture < LIMIT and self.gradient < LIMIT


def compare(make: Callable[[], Pass]) -> Compared:
    """One pass with the kernels and one with the twins."""
    one_pass = make()
    one_pass()  # what is set up once is not timed
    began = time.perf_counter()
    picture, gradient = one_pass()
    fast = time.perf_counter() - began
    with reference():
        one_pass = make()
        began = time.perf_counter()
        wanted, wanted_gradient = one_pass()
        slow = time.perf_counter() - began
    apart = (gradient - wanted_gradient).norm() / wanted_gradient.norm()
    return Compared(float((picture - wanted).abs().max()), float(apart), slow / max(fast, 1e-9))


@contextmanager
def reference() -> Iterator[None]:
    """Within it the plain-torch twins compute everything."""
    before = os.environ.get("MAQUETTE_BACKEND")
    os.environ["MAQUETTE_BACKEND"] = "reference"
    try:
        yield
    finally:
        os.environ.pop("MAQUETTE_BACKEND")
        if before is not None:
            os.environ["MAQUETTE_BACKEND"] = before


def splats() -> Pass:
    """Projection, tiles and blending."""
    from scene.gaussians import Gaussians
    from scene.rasterize import render

    generator = torch.Generator().manual_seed(0)
    xyz = torch.randn(400, 3, generator=generator)
    rgb = torch.randint(0, 255, (400, 3), generator=generator).to(torch.uint8)
    camera = _camera(80, 60)
    weights = torch.randn(60, 80, 3, generator=generator)

    def one_pass() -> tuple[Tensor, Tensor]:
        scene = Gaussians.from_points(xyz, rgb, sh_degree=1)
        scene.means.requires_grad_(True)
        shown = render(scene, camera).rgb
        (shown * weights).sum().backward()
        assert scene.means.grad is not None
        return shown.detach(), scene.means.grad

    return one_pass


def voxel_grid() -> Pass:
    """Marching, interpolation, the colour network, compositing and the losses of a training step."""
    from scene.grid_step import GridStep, Weights
    from scene.ops.color_mlp import ColorMlp
    from scene.ray_space import GridFrame, Space
    from scene.volume_rendering import render_grid
    from scene.voxel_grid import new_grid

    size, generator = (20, 18, 16), torch.Generator().manual_seed(1)
    box = torch.tensor([[-1.0, -1, -1], [1, 1, 1]])
    frame = GridFrame(Space("bounded", torch.eye(4)), box, size)
    occupied = torch.rand(size, generator=generator) < 0.5
    mlp, shifts = ColorMlp.drawn(6, 27, 64, generator), torch.full((size[2],), -2.0)
    options = {"channels": 6, "head": "mlp", "mlp": mlp, "shifts": shifts, "interval": 0.5, "threshold": 1e-4}
    grid = new_grid(frame, occupied, **options)  # pyright: ignore[reportArgumentType]
    grid.density.copy_(torch.randn(size, generator=generator))
    grid.features.copy_(torch.randn(grid.features.shape, generator=generator))
    camera, white = _camera(32, 24), torch.ones(3)
    origins, directions = (part.reshape(-1, 3) for part in camera.rays())
    directions = torch.nn.functional.normalize(directions, dim=-1)
    target = torch.rand(len(origins), 3, generator=generator)

    def one_pass() -> tuple[Tensor, Tensor]:
        step = GridStep(grid)
        weights = Weights(per_point=0.1, entropy=0.01, distortion=0.1, tv_density=1e-3, tv_features=1e-3)
        step.gradients(frame.spans(origins, directions, grid.step, grid.near), directions, target, white, weights)
        return render_grid(grid, camera, white).rgb, torch.cat(
            [step.density_grad.flatten(), step.features_grad.flatten()]
        )

    return one_pass


def octree() -> Pass:
    """The walk from leaf to leaf and back."""
    from scene.octree import Octree
    from scene.ops.octree_index import FINEST
    from scene.ops.octree_render import Rays, render_octree

    level, generator = 3, torch.Generator().manual_seed(2)
    codes = torch.arange(8**level) << 3 * (FINEST - level)
    codes = codes[torch.rand(len(codes), generator=generator) < 0.6]
    levels = torch.full_like(codes, level, dtype=torch.int32)
    sigmas = 4 * torch.rand(len(codes), generator=generator)
    sh_coeffs = torch.randn(len(codes), 4, 3, generator=generator)
    tree = Octree.of(codes, levels, sigmas, sh_coeffs, torch.full((3,), 0.5), torch.full((3,), 0.5))
    rays = Rays(camera=_camera(48, 36))
    weights = torch.randn(len(rays), 3, generator=generator)

    def one_pass() -> tuple[Tensor, Tensor]:
        densities, colours = (part.clone().requires_grad_(True) for part in (tree.sigmas, tree.sh_coeffs))
        shown = render_octree(densities, colours, tree.index, rays, stop=1e-4, background=torch.ones(3)).rgb
        (shown * weights).sum().backward()
        assert densities.grad is not None and colours.grad is not None
        return shown.detach(), torch.cat([densities.grad, colours.grad.flatten()])

    return one_pass


def _camera(width: int, height: int) -> Camera:
    eye, target, up = torch.tensor([0.0, -4.0, 1.0]), torch.zeros(3), torch.tensor([0.0, 0.0, 1.0])
    K = torch.tensor([[float(width), 0, width / 2], [0, float(width), height / 2], [0, 0, 1]])
    return Camera(K, look_at(eye, target, up), width, height)


TESTS: dict[str, Callable[[], Pass]] = {"splats": splats, "voxel grid": voxel_grid, "octree": octree}
"""What is tested, by the name that `doctor` gives it."""
