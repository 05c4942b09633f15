"""The stages of a voxel grid in training: a coarse grid that finds the object, a fine one that doubles its voxels."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from data.captures import Capture
from recon.grid_recipes import COARSE, RECIPES, GridOptions, Recipe, interval_of, plane_shifts, shift_of, size_of
from recon.grid_scenes import GridScene, Kind, kind_of, scene_of, too_near, view_counts
from recon.ray_pool import RayPool
from scene import sh
from scene.grid_step import GridStep
from scene.ops.color_mlp import ColorMlp
from scene.ops.grid_march import hits, pack_bits
from scene.ops.trilinear import trilinear
from scene.ray_space import GridFrame, grid_size
from scene.voxel_grid import VoxelGrid, dilate, new_grid, resampled

COARSE_ALPHA = 1e-3  # coarse cells above it are worth a fine grid
START_ALPHA = 0.99  # of the fine grid's steps at most, where the coarse grid is solid
CLEAR_ALPHA = 1e-3  # and at least, where it is clear
INFLATED = 1.05  # the fine box around them
SEEN_BY = 2  # voxels in no more views than this stay as they are
NEVER = -100.0  # raw density of voxels that touch a camera
VIEW_NUMBERS = 27  # of the embedded view direction


@dataclass
class Trainer:
    """A training at work."""

    capture: Capture
    options: GridOptions
    device: torch.device
    scene: GridScene
    pool: RayPool
    generator: torch.Generator
    stage: Literal["coarse", "fine"]
    step: GridStep
    recipe: Recipe
    final_size: tuple[int, int, int]
    entry: Tensor  # occupied voxels at the start of the stage, whose rays are drawn
    done: int = 0
    seconds: float = 0.0
    began_at: float = 0.0  # progress at which the stage began
    doubled: int = 0
    rays: int = 0  # of the next step
    pruned: int = 0
    error: Tensor = field(default_factory=lambda: torch.tensor(0.0))


def fresh(capture: Capture, options: GridOptions, device: torch.device, decide: Callable[[str], None]) -> Trainer:
    """A training at its start: what kind of scene it is, where its box lies, its first grid."""
    generator = torch.Generator().manual_seed(options.seed)
    kind, why = kind_of(capture)
    if options.scene != "auto":
        kind: Kind = options.scene
    else:
        decide(why)
    scene = scene_of(capture, kind, generator)
    pool = RayPool(capture, device)
    if pool.level:
        decide(f"The photos have many pixels; the grid trains on them at 1/{2**pool.level} of their size.")
    if kind == "bounded":
        trainer = _coarse(capture, options, device, scene, pool, generator)
    else:
        trainer = _fine(capture, options, device, scene, pool, generator, None)
    trainer.rays = options.rays
    return trainer


def _coarse(
    capture: Capture,
    options: GridOptions,
    device: torch.device,
    scene: GridScene,
    pool: RayPool,
    generator: torch.Generator,
) -> Trainer:
    """Where the object is: a grid of colours alone. Voxels that few views see learn slowly (DVGO, eq. 8)."""
    size = grid_size(scene.box, options.coarse_voxels)
    frame = GridFrame(scene.space, scene.box, size)
    occupied = torch.ones(size, dtype=torch.bool)
    if scene.hull is not None:
        hull = functional.interpolate(scene.hull[None, None].float(), size, mode="trilinear", align_corners=True)
        occupied = dilate(hull[0, 0] > 0)
    shifts = torch.full((size[2],), shift_of(COARSE.alpha_init))
    grid = new_grid(
        frame.to(device),
        occupied.to(device),
        channels=3,
        head="rgb",
        mlp=None,
        shifts=shifts.to(device),
        interval=COARSE.step,
        threshold=COARSE.threshold,
        near=scene.near,
    )
    grid.density[too_near(frame, capture, scene.near).to(device)] = NEVER
    counts = view_counts(frame, capture)
    rates = torch.where(counts > min(SEEN_BY, len(capture.train) - 1), counts / counts.max().clamp(min=1), 0.0)
    step = GridStep(grid, rates.to(device))
    return Trainer(capture, options, device, scene, pool, generator, "coarse", step, COARSE, size, occupied)


def to_fine(trainer: Trainer, p: float, decide: Callable[[str], None]) -> None:
    """The fine stage, in the box of what the coarse one found."""
    grid = trainer.step.grid
    found = (grid.alpha() > COARSE_ALPHA) & grid.occupied
    if not bool(found.any()):
        decide("The coarse grid found nothing solid; the fine one looks in all of it.")
        found = grid.occupied
    near_solid = dilate(found)
    places = found.nonzero().float()
    frame = grid.frame
    low, high = (frame.box[0] + edge / frame.voxels_per_unit for edge in (places.amin(0), places.amax(0)))
    centre, half = (low + high) / 2, ((high - low) / 2).clamp(min=frame.voxel_size) * INFLATED
    box = torch.stack([centre - half, centre + half])
    scene = GridScene(frame.space, box.cpu(), None, trainer.scene.near)
    fine = _fine(
        trainer.capture, trainer.options, trainer.device, scene, trainer.pool, trainer.generator, (frame, near_solid)
    )
    _start_from(fine.step.grid, grid)
    for name in ("scene", "stage", "step", "recipe", "final_size", "entry"):
        setattr(trainer, name, getattr(fine, name))
    trainer.began_at, trainer.doubled, trainer.pruned = p, 0, 0


@torch.no_grad()
def _start_from(fine: VoxelGrid, coarse: VoxelGrid) -> None:
    """Densities and colours of the fine grid from those of the coarse one: it shows the same from the first step on.

    A step takes CLEAR_ALPHA at least, so that something may still grow there, and START_ALPHA at most.
    The colour is that of all directions; the network begins as no change of it.
    """
    places = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float32) for n in fine.frame.size))
    points = coarse.frame.grid_from_world(fine.frame.world_from_grid(places.to(fine.density.device)))
    rows = torch.arange(coarse.density.numel(), dtype=torch.int32, device=points.device).view(coarse.density.shape)
    raw = trilinear((coarse.density + coarse.shifts).reshape(-1, 1), rows, points)
    per_length = functional.softplus(raw) * coarse.interval / (coarse.step * coarse.frame.voxel_size)
    activated = (per_length * fine.step * fine.frame.voxel_size).clamp(1e-9, -math.log1p(-START_ALPHA)) / fine.interval
    wanted = torch.log(torch.expm1(activated)).view(fine.frame.size) - fine.shifts
    fine.density.copy_(wanted.maximum(shift_of(CLEAR_ALPHA) - fine.shifts))
    live = (fine.rows.flatten() >= 0).nonzero()[:, 0]
    logits = trilinear(coarse.features, coarse.rows, points[live])
    fine.features[: len(live), :3] = logits / sh.C0 if fine.head == "sh" else logits
    if fine.mlp is not None:
        fine.mlp.w3.zero_()


def _fine(
    capture: Capture,
    options: GridOptions,
    device: torch.device,
    scene: GridScene,
    pool: RayPool,
    generator: torch.Generator,
    coarse: tuple[GridFrame, Tensor] | None,
) -> Trainer:
    """The grid with feature vectors, small at first. coarse: its frame, and its voxels near something solid."""
    recipe = RECIPES[scene.kind]
    final = size_of(scene, options.voxels, recipe)
    size = size_of(scene, options.voxels // 2 ** len(recipe.doublings), recipe)
    frame = GridFrame(scene.space, scene.box, size).to(device)
    if coarse is None:
        occupied = torch.ones(size, dtype=torch.bool, device=device)
    else:
        occupied = _occupied_in(frame, *coarse)
    interval = interval_of(scene, recipe, size, final)
    if scene.kind == "forward":
        shifts = plane_shifts(size[2], interval)
    else:
        shifts = torch.full((size[2],), shift_of(recipe.alpha_init))
    mlp = None
    if options.head == "mlp":
        mlp = ColorMlp.drawn(options.channels, VIEW_NUMBERS, options.width, generator).to(device)
    grid = new_grid(
        frame,
        occupied,
        channels=options.channels,
        head=options.head,
        mlp=mlp,
        shifts=shifts.to(device),
        interval=interval,
        threshold=recipe.threshold,
        near=scene.near,
    )
    grid = replace(grid, step=recipe.step)
    draw_hits(pool, frame, occupied, recipe.step, scene.near)
    return Trainer(capture, options, device, scene, pool, generator, "fine", GridStep(grid), recipe, final, occupied)


def _occupied_in(frame: GridFrame, coarse: GridFrame, voxels: Tensor) -> Tensor:
    """Voxels of `frame` of which a part lies in a set voxel of the coarse grid."""
    device = voxels.device
    places = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float32, device=device) for n in frame.size))
    at = (coarse.grid_from_world(frame.world_from_grid(places)) + 0.5).floor().long()
    x, y, z = at.clamp(min=0).minimum(torch.tensor(voxels.shape, device=device) - 1).unbind(-1)
    return voxels[x, y, z].view(frame.size)


def draw_hits(pool: RayPool, frame: GridFrame, occupied: Tensor, step: float, near: float) -> None:
    """Draw only rays that meet something occupied."""
    if bool(occupied.all()):
        return
    packed = pack_bits(occupied)
    pool.keep(lambda origins, directions: hits(packed, frame.size[2], frame.spans(origins, directions, step, near)))


def double(trainer: Trainer) -> None:
    """Twice as many voxels; Adam starts anew, and b falls where steps become shorter, as in DVGO's code."""
    trainer.doubled += 1
    grid, recipe = trainer.step.grid, trainer.recipe
    left = len(recipe.doublings) - trainer.doubled
    size = size_of(trainer.scene, trainer.options.voxels // 2**left, recipe)
    interval = interval_of(trainer.scene, recipe, size, trainer.final_size)
    bigger = resampled(grid, size, interval=interval, shift_by=recipe.shift_by)
    trainer.step = GridStep(bigger)
