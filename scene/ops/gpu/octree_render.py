"""Drives cuda/gpu/octree_render.cu: pictures of an octree; arguments as of cuda/cpu/octree_render.cpp."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from scene.ops.gpu.launch import Argument, blocks, launch

THREADS, TILE_WIDTH, TILE_HEIGHT = 128, 16, 8  # as kOctreeThreads, kTileWidth and kTileHeight of cuda/gpu/octree_rays.h
MOST = 2**31 - 1
WIDE = 4  # floats that a thread reads at once, where rows are whole multiples of them


class OctreeScene(NamedTuple):
    """What every octree kernel takes first (MQ_OCTREE_PARAMETERS), and its grid."""

    arguments: tuple[Argument, ...]
    grid: int
    rays: int
    degree: int

    @staticmethod
    def of(
        top: Tensor,
        nodes: Tensor,
        shape: Tensor,
        frame: Tensor,
        sigmas: Tensor,
        sh: Tensor,
        origins: Tensor | None,
        directions: Tensor | None,
        camera: Tensor | None,
        width: int,
        height: int,
        stop: float,
        least: float,
    ) -> OctreeScene:
        """From what Python passes for the CPU. shape, frame and camera lie on the CPU: nothing is waited for."""
        levels = shape.tolist()
        placed = (frame.double() * 2.0 ** levels[1]).tolist()  # rounded once, as on the CPU
        if origins is None:
            assert camera is not None
            rays, grid = width * height, blocks(width, TILE_WIDTH) * blocks(height, TILE_HEIGHT)
        else:
            rays = len(origins)
            width, grid = max(1, rays), blocks(rays, THREADS)
        if rays >= MOST:
            raise ValueError(f"a picture may have 2^31 - 2 rays, got {rays}")
        degree = math.isqrt(sh.shape[1] // 3) - 1
        if sh.shape[1] % WIDE == 0 and sh.data_ptr() % (4 * WIDE):
            sh = sh.clone()  # a view into something else
        numbers = [0.0] * 16 if camera is None else camera.tolist()
        arguments = (top, nodes, *levels, *placed, sigmas, sh, origins, directions, *numbers, width, rays)
        return OctreeScene((*arguments, float(stop), float(least)), grid, rays, degree)


def octree_render(
    top: Tensor,
    nodes: Tensor,
    boxes: Tensor,
    shape: Tensor,
    frame: Tensor,
    sigmas: Tensor,
    sh: Tensor,
    origins: Tensor | None,
    directions: Tensor | None,
    camera: Tensor | None,
    width: int,
    height: int,
    stop: float,
    least: float,
    whole: bool,
    background: Tensor | None,
    rgb: Tensor,
    last: Tensor,
    depth: Tensor | None,
    median: Tensor | None,
) -> None:
    """Writes colours, remaining light and, where they are asked for, depths."""
    seen = (origins, directions, camera, width, height, stop, least)
    scene = OctreeScene.of(top, nodes, shape, frame, sigmas, sh, *seen)
    name = f"octree_render_{scene.degree}"
    launch("octree_render", name, scene.grid, THREADS, *scene.arguments, whole, background, rgb, last, depth, median)
