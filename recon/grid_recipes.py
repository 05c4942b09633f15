"""What a training of a voxel grid is made of: options, weights, rates and sizes for each kind of scene."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from recon.grid_scenes import GridScene
from scene.grid_step import LearningRates, Weights
from scene.ray_space import GridFrame, grid_size, plane_size
from scene.voxel_grid import Head


@dataclass(frozen=True)
class Recipe:
    """What differs between kinds of scenes (DVGO's configurations). Rates fall tenfold over a stage."""

    alpha_init: float
    threshold: float  # least alpha and weight
    step: float  # distance of samples in voxels
    weights: Weights
    rates: LearningRates
    doublings: tuple[float, ...]  # progress of the fine stage at which the number of voxels doubles
    dense_variation: float  # share of the fine stage in which total variation pulls all voxels, not only touched ones
    shift_by: float = -1.0  # added to b at each doubling
    planes: int = 0  # forward: along the depth; 0: as the box's edges


RATES = LearningRates(density=0.1, features=0.1, mlp=1e-3)
# DVGO's coarse stage starts from an alpha of 1e-6 with rates of 0.1 and takes thousands of steps; from 1e-4 with 0.3
# three hundred do, and silhouettes keep clouds away from the cameras.
COARSE = Recipe(
    1e-4, 1e-7, 0.5, Weights(per_point=0.1, entropy=0.01), LearningRates(density=0.3, features=0.3, mlp=0.0), (), 0.0
)
RECIPES: dict[str, Recipe] = {
    "bounded": Recipe(1e-2, 1e-4, 0.5, Weights(per_point=0.01, entropy=0.001), RATES, (0.1, 0.2), 0.0),
    "forward": Recipe(
        0.0,
        1e-3,
        1.0,
        Weights(per_point=0.01, entropy=0.001, distortion=0.01, tv_density=1e-7, tv_features=1e-8),
        RATES,
        (2 / 30, 4 / 30, 6 / 30, 8 / 30),
        1 / 3,
        shift_by=0.0,
        planes=128,
    ),
    "unbounded": Recipe(
        1e-4,
        1e-4,
        0.5,
        Weights(per_point=0.01, entropy=0.001, distortion=0.01, tv_density=1e-8, tv_features=1e-9),
        RATES,
        (0.05, 0.1, 0.15, 0.2),
        0.5,
        shift_by=0.0,
    ),
}


@dataclass(frozen=True)
class GridOptions:
    """A training of a grid: how long, how large, and what turns features into colours."""

    steps: int
    rays: int  # of a step, at most
    voxels: int
    coarse_voxels: int
    coarse_share: float
    channels: int
    head: Head
    width: int
    scene: Literal["auto", "bounded", "forward", "unbounded"]
    checkpoint_seconds: float
    seed: int
    samples: int = 250_000  # coloured in a step, about


def size_of(scene: GridScene, voxels: int, recipe: Recipe) -> tuple[int, int, int]:
    """Voxels along each axis, about `voxels` in all."""
    return plane_size(scene.box, voxels, recipe.planes) if recipe.planes else grid_size(scene.box, voxels)


def interval_of(scene: GridScene, recipe: Recipe, size: tuple[int, int, int], final: tuple[int, int, int]) -> float:
    """Length of a step in voxels of the final grid."""
    if recipe.planes:
        return recipe.step * 256 / recipe.planes
    frames = [GridFrame(scene.space, scene.box, each) for each in (size, final)]
    return recipe.step * frames[0].voxel_size / frames[1].voxel_size


def shift_of(alpha_init: float) -> float:
    """b with which a density of 0 has this alpha over a step of one voxel."""
    return float(torch.tensor(1 / (1 - alpha_init) - 1, dtype=torch.float64).log())


def plane_shifts(planes: int, interval: float) -> Tensor:
    """[Z] b for which every plane has the same weight: plane i's alpha is 1 / (Z - i)."""
    left = torch.arange(planes, 0, -1, dtype=torch.float64)
    kept = (1 - 1 / left).clamp(min=1e-6)  # the last plane would be opaque
    return (kept ** (-1 / interval) - 1).log().float()
