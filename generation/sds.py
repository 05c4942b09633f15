"""Score distillation onto a voxel grid: `maquette generate --method sds`, as DreamFusion (2209.14988) began it.

The scene is a grid with one colour a voxel, or a hash grid (`scenes.py`), seen by all views of the prior at once as in
MVDream (2308.16512); what changes it is one of the methods of `distill.py`. Coarse first: half as many pixels and
voxels along a side. With a time limit the numbers of steps that time does not allow for are left out, so that every
schedule ends.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from generation.bank_prior import BankPrior
from generation.distillation import BANK_GUIDANCE, Checkpoint, Distillation, Stage, Step
from generation.distillation import Config as SceneConfig
from generation.grid_surface import grid_to_mesh
from generation.guidance import PRESETS as GUIDANCE
from generation.guidance import Guidance
from generation.guidance_schedules import Times, stretched
from generation.lora import LoraConfig
from generation.opening import Opening, Sampler
from generation.priors import Prior
from generation.scenes import GridConfig, GridTarget, HashConfig, HashTarget, Rings, Target, filled_grid
from generation.second_model import SecondConfig, sentence_of
from generation.text_to_scene import Hooks, distilled
from generation.view_prompts import ViewRule
from generation.views import ViewRange
from scene.cameras import Camera
from scene.depth_fusion import DepthFrame
from scene.errors import InputError
from scene.mesh import Mesh, connected_parts
from scene.ops import native
from scene.runs import StepReport
from scene.volume_rendering import frame_of, render_grid
from scene.voxel_grid import VoxelGrid, dense_alpha, dilate, load_voxel_grid, save_voxel_grid, with_occupied

__all__ = ["PRESETS", "Checkpoint", "Config", "train"]

SCENE_FILE = "scene.safetensors"
LEAST_PIXELS, MOST_PIXELS, MOST_VOXELS = 8, 512, 256
SOLID = 0.05  # alpha of a step from which a voxel is part of something
SMALL_PART = 0.02  # share of the largest part's voxels below which a part is left over, not meant
FRONT, VSD_FRONT = 45.0, 30.0  # degrees of the front view to each side; ProlificDreamer's is narrower
SPARSITY = {"grid": 0.08, "hash": 0.02}  # a hash grid gets holes where 0.08 meets colours like the background's
PUBLISHED_STEPS = 10_000  # that the schedules of published methods are made for


@dataclass(frozen=True)
class Config:
    """Options of score distillation."""

    steps: int = 300
    """steps, each from one set of views"""
    pixels: int = 64
    """of a view's side; a prior of smaller pictures gets its own size"""
    target: Literal["grid", "hash"] = "grid"
    """what is changed: a voxel grid, or a hash grid with a small network (Instant-NGP), which the voxel grid is then
    filled from, twice as fine"""
    voxels: int = 64
    """along an edge of the grid"""
    coarse: float = 0.5
    """share of the steps that are done with half as many pixels and voxels along a side"""
    guidance: Literal["auto", "sds", "sjc", "vsd", "ism", "csd", "nfsd", "x0", "sdi", "hifa", "rfds", "rfds-rev"] = (
        "auto"
    )
    """the method of distillation; auto: x0 for embedded priors and several views, rfds for flows, else sds; vsd also
    trains adapters of the prior (LoRA) on the scene's pictures"""
    scale: float | None = None
    """of classifier-free guidance; default the method's or the prior's own"""
    negative: str | None = None
    """what is not wanted"""
    sets: int | None = None
    """of views in a step; default 1, and 4 for priors of single views"""
    members: int = 16
    """objects that the bank prior makes of the prompt"""
    guesses: int = 8
    """sets of views that the trained prior draws by itself at first; the scene opens with the one that fits the words
    best (CLIP); 0: it begins with distillation"""
    sparsity: float | None = None
    """weight of a pixel's opacity beside its colours; default 0.08, and 0.02 for a hash grid"""
    opaqueness: float = 0.0
    """weight of how undecided a pixel's opacity is between 0 and 1"""
    total_variation: float = 0.0
    """weight of the differences between neighbouring pixels"""
    lora_rank: int = 4
    """vsd: rows of the adapters' matrices"""
    lora_rate: float = 1e-3
    """vsd: learning rate of the adapters; 1e-4 as published is for tens of thousands of steps"""
    checkpoint_seconds: float = 10.0
    """time between checkpoints; a killed run loses no more than this"""

    def __post_init__(self) -> None:
        for name, least, most in (
            ("steps", 1, 10**7),
            ("pixels", LEAST_PIXELS, MOST_PIXELS),
            ("voxels", 8, MOST_VOXELS),
            ("coarse", 0.0, 1.0),
            ("members", 1, 256),
            ("guesses", 0, 1024),
            ("opaqueness", 0.0, 1e6),
            ("total_variation", 0.0, 1e6),
            ("lora_rank", 1, 1024),
            ("lora_rate", 1e-8, 0.1),
            ("checkpoint_seconds", 0.0, 1e6),
        ):
            if not least <= getattr(self, name) <= most:
                flag = "--" + name.replace("_", "-")
                raise InputError(f"{flag} must lie between {least:,} and {most:,}, got {getattr(self, name):,}")
        if self.sparsity is not None and not 0 <= self.sparsity <= 1e6:
            raise InputError(f"--sparsity must lie between 0 and 1,000,000, got {self.sparsity}")
        if self.sets is not None and not 1 <= self.sets <= 64:
            raise InputError(f"--sets must lie between 1 and 64, got {self.sets:,}")
        if self.scale is not None and not 0 <= self.scale <= 1000:
            raise InputError(f"--scale must lie between 0 and 1,000, got {self.scale}")


PRESETS: dict[str, dict[str, int]] = {
    "draft": {"steps": 200, "pixels": 32, "voxels": 32},
    "standard": {},
    "high": {"steps": 800, "pixels": 128, "voxels": 128},
}


def train(
    prompt: str,
    prior: Prior,
    config: Config,
    *,
    image: Tensor | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    max_seconds: float | None = None,
    on_step: Callable[[StepReport], None] = lambda report: None,
    on_pictures: Callable[[Step], None] = lambda step: None,
    save: Callable[[Checkpoint], None] = lambda checkpoint: None,
    resume: Checkpoint | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> VoxelGrid:
    """The cleaned grid of a prompt, on `device`.

    image: [3, H, W] in 0..1, a picture of what is wanted.  on_pictures: gets every step.  On the CPU and without a time
    limit a resumed run equals the unbroken one bit for bit.  Raises InputError for what the prior does not know,
    Interrupted when `stop()` says so (after saving).
    """
    options = options_of(config, prior, seed)
    work = Distillation(prompt, prior, new_target(config, options, seed, device), options, image=image)
    hooks = Hooks(on_step, on_pictures, save, stop, config.checkpoint_seconds)
    distilled(work, hooks, pieces=lambda: pieces_of(work.target), resume=resume, max_seconds=max_seconds)
    return cleaned(grid_of(work.target, config))


def new_target(config: Config, options: SceneConfig, seed: int, device: torch.device | str) -> GridTarget | HashTarget:
    """The scene to begin with, a soft ball."""
    if config.target == "hash":
        return HashTarget(HashConfig(samples=max(HashConfig.samples, config.voxels), seed=seed), device)
    return GridTarget(GridConfig(voxels=options.stages[0].voxels), device)


def grid_of(target: Target, config: Config) -> VoxelGrid:
    """What was distilled, as the voxel grid that a run keeps."""
    if isinstance(target, HashTarget):
        return target.voxel_grid(min(MOST_VOXELS, 2 * config.voxels))
    assert isinstance(target, GridTarget)
    return target.voxel_grid()


def pieces_of(target: Target) -> int:
    """Voxels, or rows of the hash table."""
    first = next(iter(target.parameters().values()))
    return first.numel() if isinstance(target, GridTarget) else len(first)


def options_of(config: Config, prior: Prior, seed: int) -> SceneConfig:
    """How a scene is distilled from this prior."""
    bank, embedded = isinstance(prior, BankPrior), prior.name in ("bank", "trained")
    pixels = min(config.pixels, prior.shape[1]) if prior.space == "pixel" else config.pixels
    fine = Stage(config.coarse, pixels, config.voxels)
    half = Stage(0.0, max(LEAST_PIXELS, pixels // 2), max(8, config.voxels // 2))
    stages = (replace(fine, start=0.0),) if config.coarse == 0 else (half, fine)
    guidance = guidance_of(config, prior)
    return SceneConfig(
        guidance=guidance,
        steps=config.steps,
        sets=config.sets or (1 if prior.views > 1 else 4),
        stages=stages,
        views=Rings() if bank else ViewRange(),
        rule=ViewRule(VSD_FRONT if guidance.method == "vsd" else FRONT, words=not embedded and prior.views == 1),
        negative=config.negative,
        sparsity=SPARSITY[config.target] if config.sparsity is None else config.sparsity,
        opaqueness=config.opaqueness,
        total_variation=config.total_variation,
        second=SecondConfig(LoraConfig(config.lora_rank, rate=config.lora_rate)),
        opening=Opening(config.guesses) if config.guesses and isinstance(prior, Sampler) and prior.views > 1 else None,
        seed=seed,
    )


def decisions(config: Config, prior: Prior) -> list[str]:
    """What was chosen for this prior that nobody asked for, as sentences for the run."""
    options = options_of(config, prior, 0)
    said = [sentence_of(prior, options.second)] if options.guidance.method == "vsd" else []
    if options.opening is not None:
        assert isinstance(prior, Sampler)
        best = "a set" if prior.guide is None else f"the best of {config.guesses} sets"
        said.append(f"The scene opens with {best} of views that the prior draws by itself.")
    return said


def guidance_of(config: Config, prior: Prior) -> Guidance:
    """The method and its numbers; published schedules are made as long as the run."""
    embedded = prior.name in ("bank", "trained")
    method = config.guidance
    if method == "auto" and embedded:
        chosen = replace(BANK_GUIDANCE, scale=prior.guidance, times=Times("linear", 0.02, 0.98))
    else:
        if method == "auto":
            method = "x0" if prior.views > 1 else "rfds" if prior.process == "flow" else "sds"
        chosen = stretched(GUIDANCE[method], config.steps / PUBLISHED_STEPS)
        chosen = replace(chosen, scale=prior.guidance) if embedded else chosen
    return chosen if config.scale is None else replace(chosen, scale=config.scale)


@torch.no_grad()
def cleaned(grid: VoxelGrid) -> VoxelGrid:
    """Without haze, and without parts that have less than SMALL_PART of the largest one's voxels."""
    solid = (grid.alpha() > SOLID).cpu()
    number = torch.full(solid.shape, -1)
    number[solid] = torch.arange(int(solid.sum()))
    pairs = []
    for axis in range(3):
        a, b = number.narrow(axis, 0, solid.shape[axis] - 1), number.narrow(axis, 1, solid.shape[axis] - 1)
        touching = (a >= 0) & (b >= 0)
        pairs.append(torch.stack([a[touching], b[touching]]))
    a, b = torch.cat(pairs, dim=1).numpy()
    if not bool(solid.any()):
        return grid
    part = torch.from_numpy(connected_parts(int(solid.sum()), a, b)).long()
    sizes = part.bincount()
    kept = torch.zeros_like(solid)
    kept[solid] = (sizes >= SMALL_PART * sizes.max())[part]
    occupied = dilate(kept).to(grid.density.device) & (dense_alpha(grid) > grid.threshold)
    return with_occupied(grid, occupied, features_of=grid)


def check(config: Config, device: torch.device) -> None:
    """Any device does."""


def explain(config: Config, device: torch.device) -> str:
    """One line: what computes on `device`."""
    return native.explain(device)


def save_scene(path: Path, scene: VoxelGrid) -> None:
    """Write SCENE_FILE, whole or not at all."""
    save_voxel_grid(path, scene)


def load_scene(path: Path) -> VoxelGrid:
    """Read SCENE_FILE onto the CPU. Raises InputError: the file is not trusted."""
    return load_voxel_grid(path)


def picture(scene: VoxelGrid, camera: Camera, background: Tensor, config: Any) -> Tensor:
    """[H, W, 3] what a camera sees over `background` [3], without gradients."""
    with torch.no_grad():
        return render_grid(scene, camera, background).rgb


def surface_frame(scene: VoxelGrid, camera: Camera, config: Any) -> DepthFrame:
    """Colour and depth of the surface."""
    with torch.no_grad():
        return frame_of(render_grid(scene, camera, torch.zeros(3)), camera)


def fine_mesh(scene: VoxelGrid) -> Mesh:
    """The coloured surface, closed. Raises InputError where there is none."""
    return grid_to_mesh(scene)


def live(checkpoint: Checkpoint, config: Config) -> Callable[[Camera], DepthFrame]:
    """Colour and depth of what a checkpoint holds. Raises InputError when that is no voxel grid."""
    density, features = (checkpoint.tensors.get(name) for name in ("density", "features"))
    if density is None or features is None:
        raise InputError("the checkpoint holds no voxel grid; a hash grid is shown once it has been distilled")
    side = len(density)
    if density.shape != (side,) * 3 or features.shape != (side**3, 3) or not 2 <= side <= MOST_VOXELS:
        raise InputError(f"the checkpoint holds no voxel grid, but {tuple(density.shape)}, {tuple(features.shape)}")
    grid = filled_grid(density.float(), features.float(), GridConfig(voxels=side))
    return lambda camera: surface_frame(grid, camera, config)


def counts(scene: VoxelGrid) -> tuple[int, int]:
    """How many voxels hold something, and how many numbers hold the scene."""
    return len(scene), scene.parameters
