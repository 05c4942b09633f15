"""Words to Gaussians in one pass: `maquette generate --method lgm`.

As LGM (Tang et al., ECCV 2024, https://arxiv.org/abs/2402.05054) does it: the prior draws four views of what the words
say, of several sets the one that fits them best is taken (`opening.py`), and a network makes Gaussians of the four in
one pass (`lgm.py`). They are good from the first second, and soft where the views disagree; so distillation goes on
with them as DreamGaussian (https://arxiv.org/abs/2309.16653) does with its ball: first after the four views, then after
what the prior says of others, from FIRST_TIME on, for the shape is there already.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from generation.distillation import BANK_GUIDANCE, Checkpoint, Distillation, Stage, Step
from generation.distillation import Config as SceneConfig
from generation.grid_surface import grid_to_mesh
from generation.guidance_schedules import Times
from generation.lgm import LgmNetwork, reconstruct
from generation.opening import Opened, Opening, opened, opening_cameras, opening_draws
from generation.prior_weights import LGM_FILE, load_lgm
from generation.priors import Prior
from generation.scenes import GridConfig, SplatConfig, SplatTarget
from generation.splat_grid import grid_of_gaussians
from generation.text_to_scene import Hooks, distilled
from generation.trained_prior import TrainedPrior
from generation.view_prompts import ViewRule
from generation.views import ViewRange
from scene.cameras import Camera
from scene.depth_fusion import DepthFrame
from scene.errors import InputError
from scene.formats import load_splats, save_splats
from scene.gaussians import Gaussians
from scene.mesh import Mesh
from scene.mesh_extraction import render_frame
from scene.ops import native
from scene.rasterize import render
from scene.runs import StepReport

__all__ = ["PRESETS", "Checkpoint", "Config", "train"]

SCENE_FILE = "scene.ply"
FIRST_TIME, LAST_TIME = 0.5, 0.02  # t of the distillation
SPARSITY = 0.02  # weight of a pixel's opacity beside its colours
LEAST_OPACITY = 0.02  # fainter Gaussians are dropped at the end
MESH_VOXELS = 96  # along an edge of the grid that the mesh is made of
DENSER = 2.5  # than they are drawn, for the mesh: four views in 32 pixels leave thin parts as a haze
SHAPES = {"means": (3,), "quats": (4,), "log_scales": (3,), "opacity_logits": (), "sh_dc": (3,)}  # of what is learned


@dataclass(frozen=True)
class Config:
    """Options of LGM's way."""

    steps: int = 120
    """of the distillation that refines what the network made; 0: none"""
    pixels: int = 64
    """of a view's side while it does; a prior of smaller pictures gets its own size"""
    scale: float | None = None
    """of classifier-free guidance; default the prior's own"""
    negative: str | None = None
    """what is not wanted"""
    guesses: int = 8
    """sets of views that the prior draws; the one that fits the words best (CLIP) is taken"""
    checkpoint_seconds: float = 10.0
    """time between checkpoints; a killed run loses no more than this"""

    members: ClassVar[int] = 1  # of a bank, which draws no views

    @property
    def voxels(self) -> int:
        """How fine the scene is, along an edge."""
        return self.pixels

    def __post_init__(self) -> None:
        for name, least, most in (
            ("steps", 0, 10**7),
            ("pixels", 8, 512),
            ("guesses", 1, 1024),
            ("checkpoint_seconds", 0.0, 1e6),
        ):
            if not least <= getattr(self, name) <= most:
                flag = "--" + name.replace("_", "-")
                raise InputError(f"{flag} must lie between {least:,} and {most:,}, got {getattr(self, name):,}")
        if self.scale is not None and not 0 <= self.scale <= 1000:
            raise InputError(f"--scale must lie between 0 and 1,000, got {self.scale}")


PRESETS: dict[str, dict[str, int]] = {
    "draft": {"steps": 0},
    "standard": {},
    "high": {"steps": 400, "guesses": 16},
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
) -> Gaussians:
    """Gaussians of a prompt, on `device`; the arguments are those of `sds.train`.

    Raises InputError where the prior has no network of this kind beside it, and as `sds.train` does.
    """
    prior, network = with_network(prior, device)
    options = options_of(config, prior, seed)
    assert options.opening is not None
    views = opened(prior, prompt, options.opening, opening_draws(seed), image=image)
    if resume is not None:
        work = begun(prompt, prior, options, gaussians_of(resume, device), views, image)
    else:
        made = one_pass(network, views)
        on_pictures(Step(0, 0.0, 1.0, shown(made, views), views.pictures))
        work = begun(prompt, prior, options, made, views, image)
    if config.steps:
        hooks = Hooks(on_step, on_pictures, save, stop, config.checkpoint_seconds)
        pieces = len(work.target.parameters()["means"])
        distilled(work, hooks, pieces=lambda: pieces, resume=resume, max_seconds=max_seconds)
    target = work.target
    assert isinstance(target, SplatTarget)
    found = target.gaussians.detach()
    return found.select(found.opacities > LEAST_OPACITY)


def with_network(prior: Prior, device: torch.device | str) -> tuple[TrainedPrior, LgmNetwork]:
    """The prior, and LGM-tiny that was trained beside it. Raises InputError where there is none."""
    if not isinstance(prior, TrainedPrior) or prior.folder is None or prior.views == 1:
        raise InputError(
            f"--method lgm needs the trained prior, whose views its network knows, not {prior.name}; use --prior "
            "trained, or --method sds"
        )
    file = prior.folder / LGM_FILE
    if not file.is_file():
        raise InputError(
            f"--method lgm: there is no {LGM_FILE} in {prior.folder}; maquette train-prior --stage lgm makes one"
        )
    network = load_lgm(file)[0]
    if network.layout.views != prior.views:
        raise InputError(f"{file} takes {network.layout.views} views, the prior beside it draws {prior.views}")
    return prior, network.to(device)


def options_of(config: Config, prior: Prior, seed: int) -> SceneConfig:
    """How the Gaussians are refined."""
    pixels = min(config.pixels, prior.shape[1])
    times = Times("linear", LAST_TIME, FIRST_TIME)
    scale = prior.guidance if config.scale is None else config.scale
    return SceneConfig(
        guidance=replace(BANK_GUIDANCE, scale=scale, times=times),
        steps=max(1, config.steps),
        stages=(Stage(0.0, pixels, pixels),),
        views=ViewRange(),
        rule=ViewRule(words=False),
        negative=config.negative,
        sparsity=SPARSITY,
        opening=Opening(config.guesses),
        seed=seed,
    )


def one_pass(network: LgmNetwork, views: Opened) -> Gaussians:
    """What the network makes of the chosen views. Raises InputError where that is nothing."""
    count, _, size, _ = views.pictures.shape
    made = reconstruct(network, views.pictures, opening_cameras(size, count))
    if not len(made):
        raise InputError("LGM-tiny sees nothing in the views that the prior drew; try another --seed")
    return made


def shown(gaussians: Gaussians, views: Opened) -> Tensor:
    """[V, 3, h, w] the Gaussians by the cameras of the chosen views, over their background."""
    count, _, size, _ = views.pictures.shape
    with torch.no_grad():
        return SplatTarget(gaussians=gaussians).render(opening_cameras(size, count), views.background.flatten()).rgb


def begun(
    prompt: str, prior: Prior, options: SceneConfig, gaussians: Gaussians, views: Opened, image: Tensor | None
) -> Distillation:
    """The distillation before its first step."""
    target = SplatTarget(SplatConfig(), gaussians.means.device, gaussians=gaussians)
    return Distillation(prompt, prior, target, options, image=image, opening=views)


def gaussians_of(checkpoint: Checkpoint, device: torch.device | str = "cpu") -> Gaussians:
    """Those of a checkpoint. Raises InputError when it holds none."""
    found = {name: checkpoint.tensors.get(name) for name in SHAPES}
    count = 0 if found["means"] is None else len(found["means"])
    tensors: dict[str, Tensor] = {}
    for name, tensor in found.items():
        if tensor is None or not count or tuple(tensor.shape) != (count, *SHAPES[name]):
            raise InputError("the checkpoint holds no Gaussians; start a new run")
        tensors[name] = tensor.float()
    return Gaussians(**tensors, sh_rest=torch.zeros(count, 0, 3)).to(device=device)


def decisions(config: Config, prior: Prior) -> list[str]:
    """What was chosen that nobody asked for, as sentences for the run."""
    with_network(prior, "cpu")
    told = [f"LGM-tiny makes Gaussians of the best of {config.guesses} sets of views that the prior draws."]
    if config.steps:
        told.append(f"They are then distilled for {config.steps:,} steps.")
    return told


def check(config: Config, device: torch.device) -> None:
    """Any device does."""


def explain(config: Config, device: torch.device) -> str:
    """One line: what computes on `device`."""
    return native.explain(device)


def save_scene(path: Path, scene: Gaussians) -> None:
    """Write SCENE_FILE, whole or not at all."""
    save_splats(path, scene.to(device="cpu"))


def load_scene(path: Path) -> Gaussians:
    """Read SCENE_FILE onto the CPU. Raises InputError: the file is not trusted."""
    return load_splats(path)


def picture(scene: Gaussians, camera: Camera, background: Tensor, config: Any) -> Tensor:
    """[H, W, 3] what a camera sees over `background` [3], without gradients."""
    with torch.no_grad():
        return render(scene, camera, background=background.to(scene.means)).rgb


def surface_frame(scene: Gaussians, camera: Camera, config: Any) -> DepthFrame:
    """Colour and depth of the surface."""
    return render_frame(scene, camera)


def fine_mesh(scene: Gaussians) -> Mesh:
    """The coloured surface of their density, closed. Raises InputError where there is none."""
    return grid_to_mesh(grid_of_gaussians(scene, GridConfig(voxels=MESH_VOXELS), denser=DENSER))


def live(checkpoint: Checkpoint, config: Config) -> Callable[[Camera], DepthFrame]:
    """Colour and depth of what a checkpoint holds. Raises InputError when it holds no Gaussians."""
    gaussians = gaussians_of(checkpoint)
    return lambda camera: render_frame(gaussians, camera)


def counts(scene: Gaussians) -> tuple[int, int]:
    """How many Gaussians there are, and how many numbers they hold."""
    return len(scene), sum(tensor.numel() for tensor in scene.parameters().values())
