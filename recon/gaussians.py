"""3D Gaussian Splatting (Kerbl et al., 2023): photos with cameras to a set of 3D Gaussians.

Symbols: mu -> means, q -> quats, s -> scales, alpha_i -> opacities, f_dc/f_rest -> sh_dc/sh_rest.
Departures: every schedule runs over progress p in [0, 1), the larger of steps taken over steps planned and seconds
spent over seconds allowed, so that a time budget ends with an annealed scene; the count of splats follows a curve to
a cap (`densify="mcmc"`, Kheradmand et al., 2024, the default; new splats are drawn by image gradient instead of
opacity), or the absolute image gradient decides (`"absgrad"`, AbsGS, 2024); pictures start at a quarter of their size;
each photo has its own exposure, a gain and an offset per channel; learning rates suit thousands of steps, not tens.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from data.captures import Capture, PointCloud
from recon.evaluation import evaluate
from recon.exposure import Exposures
from recon.gaussians_scene import (
    SCENE_FILE,
    counts,
    learns_exposure,
    load_scene,
    picture,
    save_scene,
    surface_frame,
)
from recon.gaussians_state import (
    Checkpoint,
    Trainer,
    brightest,
    check,
    checkpoint_of,
    explain,
    restored,
    step_of,
    unpacked,
)
from recon.initial_points import initial_points, scene_extent
from recon.photo_cache import PhotoCache
from scene.densify import Edit, add_position_noise, gradient_refine, mcmc_refine, reset_opacities
from scene.errors import InputError, Interrupted, ResourceError, is_out_of_memory
from scene.gaussians import Gaussians
from scene.ops import native
from scene.ops.composite import composite
from scene.ops.photometric_loss import photometric_loss_and_grad
from scene.ops.position_noise import scatter_means
from scene.ops.splat_step import AdamState, Rates, SplatStep
from scene.runs import StepReport
from scene.untrusted import MAX_SPLATS

__all__ = [
    "PRESETS",
    "SCENE_FILE",
    "Checkpoint",
    "Config",
    "check",
    "counts",
    "explain",
    "learns_exposure",
    "load_scene",
    "picture",
    "save_scene",
    "surface_frame",
    "train",
]  # what every method has: see apps/methods.py


@dataclass(frozen=True)
class Config:
    """Options of the Gaussian method; the command line's flags are made from these fields."""

    steps: int = 7000
    """training steps, one photo each"""
    max_splats: int = 120_000
    """cap on the number of Gaussians"""
    densify: Literal["mcmc", "absgrad"] = "mcmc"
    """how the number of Gaussians grows: to the cap by relocation, or where the image gradient is high"""
    sh_degree: int = 3
    """degree of the spherical harmonics that hold the view-dependent colour, 0 to 3"""
    ssim_weight: float = 0.2
    """share of 1 - SSIM in the loss; the rest is L1"""
    coarse_levels: int = 2
    """how many halvings of the photos training starts with"""
    exposure: Literal["auto", "on", "off"] = "auto"
    """learn a gain and an offset per photo; auto: for photos, not for rendered data sets"""
    rasterizer: Literal["maquette", "gsplat"] = "maquette"
    """what draws the splats in training: our kernels, or gsplat's where it is installed and a GPU is there"""
    antialias: bool = False
    """compensate the opacity of splats thinner than a pixel (Mip-Splatting)"""
    moments: Literal["auto", "float32", "bfloat16"] = "auto"
    """what Adam's moments are kept in: 16 bits take 236 bytes less per splat; auto: bfloat16 on GPUs, else float32"""
    means_lr: float = 6.4e-4
    """learning rate of the centres, times the scene's extent, falling a hundredfold over the run"""
    noise: float = 5e5
    """strength of MCMC's exploration noise, times the learning rate of the centres"""
    opacity_pull: float = 0.01
    """weight of the mean opacity in the loss (MCMC): what no photo needs fades and is moved"""
    scale_pull: float = 0.01
    """weight of the mean size in the loss (MCMC)"""
    initial_splats: int = 30_000
    """how many splats to start from where the source brings no 3D points"""
    checkpoint_seconds: float = 30.0
    """time between checkpoints; a killed run loses no more than this"""
    seed: int = 0
    """seed of every random choice"""

    def __post_init__(self) -> None:
        for name, (least, most) in LIMITS.items():
            if not least <= getattr(self, name) <= most:  # false for NaN as well
                raise InputError(
                    f"--{name.replace('_', '-')} must lie between {least:g} and {most:g}, got {getattr(self, name)}"
                )


LIMITS: dict[str, tuple[float, float]] = {
    "steps": (1, 10_000_000),
    "max_splats": (1, MAX_SPLATS),
    "sh_degree": (0, 3),
    "ssim_weight": (0, 1),
    "coarse_levels": (0, 10),
    "means_lr": (0, 1),
    "noise": (0, 1e9),
    "opacity_pull": (0, 10),
    "scale_pull": (0, 10),
    "initial_splats": (1, MAX_SPLATS),
    "checkpoint_seconds": (0, math.inf),
    "seed": (0, 2**63 - 1),
}
"""What options may be; beyond it training could only fail after the cameras have been estimated."""

PRESETS: dict[str, dict[str, int]] = {
    "draft": {"steps": 2500, "max_splats": 40_000},
    "standard": {"steps": 7000, "max_splats": 120_000},
    "high": {"steps": 30_000, "max_splats": 400_000},
}

MIN_OPACITY = 0.005
WATCHED_VIEWS = 3
NOISE_EVERY = 5  # steps; the random walk of five small moves is one of sqrt(5) times the length
NEAR = 0.01  # near plane, in units of the scene's extent
COARSE_SHARE, COARSE_STEPS = 0.1, 500  # each coarse size gets this share of the run, at most so many steps
GROW_FROM, GROW_TO, REFINE_TO = 0.03, 0.5, 0.85  # when the count grows and when dead splats are still moved
SH_STEPS = (0.1, 0.2, 0.3)  # progress at which degree 1, 2 and 3 join
LEFT_SHARE = 0.75  # of the splats, after a step that found no memory
LEAST_SHARE = 0.125  # of the cap asked for; with less the scene would be another one


def train(
    capture: Capture,
    config: Config,
    *,
    device: torch.device | str = "cpu",
    max_seconds: float | None = None,
    on_step: Callable[[StepReport], None] = lambda report: None,
    save: Callable[[Checkpoint], None] = lambda checkpoint: None,
    decide: Callable[[str], None] = lambda sentence: None,
    resume: Checkpoint | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Gaussians:
    """Trains Gaussians on `capture.train`; they come back on `device`, where all the work is done.

    max_seconds: wall time for the training; the schedule is stretched over it when it ends before the steps do.
    save: called with a checkpoint from time to time and when stopped.  resume: continues from such a checkpoint; on
    the CPU backend and without a time limit the outcome equals the unbroken run's bit for bit.  decide: told, in a
    sentence, when memory runs out and training goes on with fewer splats.
    Raises InputError when the capture has no cameras, Interrupted when `stop()` says so, ResourceError when there is
    too little memory for even an eighth of the splats (both after saving).
    """
    began = time.monotonic()
    device = torch.device(device)
    trainer = restored(capture, config, resume, device) if resume else _fresh(capture, config, device)
    began -= trainer.seconds
    last_save = last_report = time.monotonic()
    while (p := _progress(trainer, max_seconds)) < 1:
        if not _had_memory(trainer, p):
            trainer = _made_smaller(trainer, save, decide)
            continue
        trainer.done += 1
        now = time.monotonic()
        trainer.seconds = now - began
        if stop():
            save(checkpoint_of(trainer))
            raise Interrupted(f"stopped after {trainer.done} steps; --resume goes on from there")
        if now - last_save > config.checkpoint_seconds:
            save(checkpoint_of(trainer))
            last_save = time.monotonic()
        if now - last_report > 0.5:
            on_step(_report(trainer, max_seconds))
            last_report = now
    save(checkpoint_of(trainer))
    on_step(_report(trainer, max_seconds))
    return _seen_only(trainer)


def _had_memory(trainer: Trainer, p: float) -> bool:
    """One step; False when memory ran out. What is done then waits until the error and all it holds are gone."""
    try:
        _one_step(trainer, p)
    except (MemoryError, RuntimeError, ResourceError) as error:
        # A step writes no file, so the resource that a launch of ours found missing is memory too.
        if not (is_out_of_memory(error) or isinstance(error, ResourceError)):
            raise
        return False
    return True


def _made_smaller(trainer: Trainer, save: Callable[[Checkpoint], None], decide: Callable[[str], None]) -> Trainer:
    """The same training with a lower cap, without its faintest splats and without photos on the device; saved before.

    Raises ResourceError when too few splats would be left.
    """
    capture, config, device = trainer.capture, trainer.config, trainer.step.gaussians.means.device
    count = len(trainer.step.gaussians)
    whole = checkpoint_of(trainer)
    if trainer.done:
        save(whole)
    cap = int(LEFT_SHARE * count)
    if cap < max(1, LEAST_SHARE * config.max_splats):
        raise ResourceError(
            f"out of memory on {device} with {count:,} splats; what was saved can be resumed with --resume; close "
            "other programs, or start a new run with --downscale or fewer --max-splats"
        )
    trainer.photos.drop()
    del trainer.step  # from here on the device has room
    smaller = unpacked(capture, config, brightest(whole, cap), device)
    smaller.photos.drop()
    decide(f"Memory ran out on {device} with {count:,} splats; training goes on with at most {cap:,}.")
    return smaller


def _seen_only(trainer: Trainer) -> Gaussians:
    """The trained splats without floaters nobody vouches for: too faint, or in no photo since the last refinement."""
    gaussians, statistics = trainer.step.gaussians, trainer.step.statistics
    keep = gaussians.opacities > MIN_OPACITY
    if trainer.done - trainer.refined[0] >= 2 * len(trainer.capture.train):  # every photo had its turn
        keep &= statistics.seen > 0
    return gaussians.select(keep) if bool(keep.any()) else gaussians


def _progress(trainer: Trainer, max_seconds: float | None) -> float:
    share = trainer.done / trainer.config.steps
    return max(share, trainer.seconds / max_seconds) if max_seconds else share


def _one_step(trainer: Trainer, p: float) -> None:
    """One photo: render, compare, learn; now and then refine."""
    config, capture, step = trainer.config, trainer.capture, trainer.step
    level = _level(config, capture, trainer.done, p)
    index = _next_view(trainer, level)
    photo, view = trainer.photos.photo(index, level), capture.views[index]
    assert view.camera is not None
    camera = view.camera.resized(photo.rgb.shape[1], photo.rgb.shape[0])
    background = torch.rand(3, generator=trainer.generator) if photo.alpha is not None else torch.zeros(3)
    background = background.to(photo.rgb.device, non_blocking=True)  # a blocking copy would wait for the step before
    target = photo.rgb if photo.alpha is None else composite(photo.rgb, photo.alpha, background)

    image = step.forward(
        camera, background, sh_degree=_degree(config, p), antialias=config.antialias, near=NEAR * trainer.extent
    )
    exposures = trainer.exposures
    exposure = exposures.of(index) if exposures else None
    v_exposure = image.new_empty(2, 3) if exposures else None
    trainer.loss, v_image = photometric_loss_and_grad(
        image,
        target,
        ssim_weight=config.ssim_weight,
        exposure=exposure,
        v_image=trainer.v_image_like(image),
        v_exposure=v_exposure,
    )
    if exposures and v_exposure is not None:
        exposures.learn(index, v_exposure, p)
    step.backward(v_image, absgrad=config.densify == "absgrad")
    step.update(_rates(trainer, p))
    if config.densify == "mcmc" and config.noise > 0 and p < REFINE_TO and trainer.done % NOISE_EVERY == 0:
        _explore(trainer, config.noise * _means_lr(trainer, p) * math.sqrt(NOISE_EVERY))
    if _refine_is_due(trainer, p):
        _refine(trainer, p)
    _watch(trainer, p)


def _explore(trainer: Trainer, strength: float) -> None:
    """MCMC's noise: from the generator on the CPU; on a GPU from counters, which need no list of what moves."""
    gaussians = trainer.step.gaussians
    if native.backend(gaussians.means.device) == "cuda":
        scatter_means(gaussians, strength=strength, seed=trainer.config.seed, step=trainer.done)
    else:
        add_position_noise(gaussians, strength=strength, generator=trainer.generator)


def _level(config: Config, capture: Capture, done: int, p: float) -> int:
    """How many halvings of the photos this moment of the run works on; never below 64 pixels."""
    smallest = min(min(view.width, view.height) for view in capture.views)
    most = min(config.coarse_levels, max(0, int(math.log2(smallest / 64))))
    return max(0, most - max(int(p / COARSE_SHARE), done // COARSE_STEPS))


def _degree(config: Config, p: float) -> int:
    return min(config.sh_degree, sum(p >= at for at in SH_STEPS))


def _means_lr(trainer: Trainer, p: float) -> float:
    return trainer.config.means_lr * trainer.extent * 0.01**p


def _rates(trainer: Trainer, p: float) -> Rates:
    """Twice the learning rates of 3DGS but for opacity; that of the centres falls a hundredfold."""
    mcmc = trainer.config.densify == "mcmc"
    return Rates(
        means=_means_lr(trainer, p),
        quats=2e-3,
        log_scales=1e-2,
        opacity_logits=5e-2,
        sh_dc=5e-3,
        sh_rest=2.5e-4,
        opacity_pull=trainer.config.opacity_pull if mcmc else 0.0,
        scale_pull=trainer.config.scale_pull if mcmc else 0.0,
    )


def _next_view(trainer: Trainer, level: int) -> int:
    """Views in a new random order each epoch; the next few are decoded ahead."""
    if len(trainer.queue) == 0:
        order = torch.randperm(len(trainer.capture.train), generator=trainer.generator)
        trainer.queue = torch.tensor(trainer.capture.train)[order]
    index, trainer.queue = int(trainer.queue[0]), trainer.queue[1:]
    trainer.photos.prefetch(trainer.queue[:4].tolist(), level)
    return index


def _refine_is_due(trainer: Trainer, p: float) -> bool:
    """Every hundred steps, or every hundredth of the run where that comes first."""
    steps, share = trainer.done - trainer.refined[0], p - trainer.refined[1]
    return GROW_FROM <= p < REFINE_TO and (steps >= 100 or (steps >= 10 and share >= 0.01))


def _refine(trainer: Trainer, p: float) -> None:
    """Grows, moves and prunes by the chosen family."""
    config, step = trainer.config, trainer.step
    before, trainer.refined = trainer.refined[0], (trainer.done, p)
    if config.densify == "mcmc":
        edit = mcmc_refine(
            step.gaussians,
            cap=_wanted_count(trainer, p),
            growth=1.3,
            min_opacity=MIN_OPACITY,
            generator=trainer.generator,
            score=_mean_score(trainer),
        )
    else:
        edit = _absgrad_edit(trainer, p)
    _apply(step, edit)
    if config.densify == "absgrad" and p < GROW_TO and before // 3000 != trainer.done // 3000:
        reset_opacities(step.gaussians, 0.01)


def _mean_score(trainer: Trainer) -> Tensor:
    """[N] mean image-space gradient of each splat since the last refinement."""
    statistics = trainer.step.statistics
    return statistics.score / statistics.seen.clamp_min(1)


def _wanted_count(trainer: Trainer, p: float) -> int:
    """Count of splats on the way from the first to the cap: the same factor for the same share of the run."""
    share = min(1.0, (p - GROW_FROM) / (GROW_TO - GROW_FROM))
    return max(1, min(trainer.cap, round(trainer.first_count * (trainer.cap / trainer.first_count) ** share)))


def _absgrad_edit(trainer: Trainer, p: float) -> Edit:
    return gradient_refine(
        trainer.step.gaussians,
        _mean_score(trainer),
        threshold=8e-4 if p < GROW_TO else math.inf,
        split_scale=0.01 * trainer.extent,
        max_scale=0.5 * trainer.extent,
        min_opacity=MIN_OPACITY,
        cap=trainer.cap,
        generator=trainer.generator,
    )


def _apply(step: SplatStep, edit: Edit) -> None:
    """Puts an edit into the training state."""
    adam = step.adam
    moments = AdamState(
        {name: edit.remap(value) for name, value in adam.exp_avg.items()},
        {name: edit.remap(value) for name, value in adam.exp_avg_sq.items()},
        adam.steps,
    )
    step.replace(edit.gaussians, moments)


def _fresh(capture: Capture, config: Config, device: torch.device) -> Trainer:
    """The state before the first step."""
    if not capture.train or any(capture.views[i].camera is None for i in capture.train):
        raise InputError("training needs photos with known cameras; estimate them first (maquette recon does)")
    generator = torch.Generator().manual_seed(config.seed)
    points = initial_points(capture, count=min(config.initial_splats, config.max_splats), generator=generator)
    if len(points.xyz) > config.max_splats:
        chosen = torch.randperm(len(points.xyz), generator=generator)[: config.max_splats].sort().values
        points = PointCloud(points.xyz[chosen], points.rgb[chosen])
    gaussians = Gaussians.from_points(points.xyz, points.rgb, sh_degree=config.sh_degree).to(device=device)
    exposed = learns_exposure(capture, config)
    return Trainer(
        capture,
        PhotoCache(capture, device),
        config,
        step_of(gaussians, AdamState.zeros(gaussians, moments_dtype(config, device)), config),
        Exposures.identity(len(capture.views), capture.train).to(device) if exposed else None,
        generator,
        scene_extent(capture),
        queue=torch.empty(0, dtype=torch.int64),
        first_count=len(gaussians),
        cap=config.max_splats,
    )


def moments_dtype(config: Config, device: torch.device) -> torch.dtype:
    """What a fresh run keeps Adam's moments in; a resumed one goes on with those of its checkpoint.

    On a GPU memory ends a training first and bytes bound the update; on a CPU the rounding takes longer than they do.
    """
    fused = native.backend(device) == "cuda" and config.rasterizer == "maquette"
    short = config.moments == "bfloat16" or (config.moments == "auto" and fused)
    return torch.bfloat16 if short else torch.float32


def _watch(trainer: Trainer, p: float) -> None:
    """PSNR of a few held-out views at every tenth of the run, for the curve in the report; nothing is learned."""
    if int(p * 10) == trainer.watched:
        return
    trainer.watched = int(p * 10)
    few = trainer.capture.test[:: max(1, len(trainer.capture.test) // WATCHED_VIEWS)][:WATCHED_VIEWS]
    scores = [
        score.psnr
        for score in evaluate(
            lambda camera, background: picture(trainer.step.gaussians, camera, background, trainer.config),
            trainer.capture,
            exposure=trainer.exposures is not None,
            indices=tuple(few),
        )
    ]
    trainer.psnr = sum(scores) / len(scores) if scores else None


def _report(trainer: Trainer, max_seconds: float | None) -> StepReport:
    p = _progress(trainer, max_seconds)
    return StepReport(
        step=trainer.done,
        steps=trainer.config.steps,
        loss=float(trainer.loss),
        psnr=trainer.psnr,
        splats=len(trainer.step.gaussians),
        eta_s=trainer.seconds * (1 - p) / p if p > 0 else None,
    )
