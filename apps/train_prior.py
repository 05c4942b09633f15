"""`maquette train-prior`: the embedded networks from seeds to files of weights, each stage once.

Objects are made, two CLIP networks, LGM-tiny and the prior trained, and all of it judged on combinations that were held
out. What a stage has finished is recorded in the run folder, so that --resume goes on where a killed training was.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from apps.console import PRIOR_STAGES, JsonLines, Watcher
from apps.devices import choose_device
from apps.options import from_json, parse
from apps.signals import StopSignal
from apps.time_limit import renew_limit, seconds_before
from generation import prior_evaluation as judging
from generation.clip import Clip, ClipLayout
from generation.lgm import LgmLayout, LgmNetwork
from generation.lgm_training import lgm_loss, reconstruction_scores
from generation.networks import Layout, MultiViewUNet
from generation.prior_data import (
    HELD_OUT_PART,
    PART,
    PriorData,
    draw_part,
    halves,
    make_part,
    objects_of,
    part_file,
    parts_to_make,
    read_parts,
    write_part,
)
from generation.prior_training import (
    RECIPES,
    Checkpoint,
    Hooks,
    Pace,
    Recipe,
    Trainer,
    clip_loss,
    new_network,
    prior_loss,
    train,
)
from generation.prior_weights import (
    GUIDE_FILE,
    LGM_FILE,
    PRIOR_FILE,
    SCORER_FILE,
    About,
    load_clip,
    load_lgm,
    load_prior_network,
    save_weights,
)
from generation.trained_prior import TrainedPrior, has_fast_bfloat16
from scene.environment import commit
from scene.errors import InputError, Interrupted
from scene.files import read_json
from scene.formats.pictures import encode_png, write_picture
from scene.runs import Run
from scene.untrusted import real

METHOD = "train-prior"
TRAINED = ("clip_guide", "clip_scorer", "lgm", "prior")  # stages that are given a time
DATA_SHARE, CLIP_SHARE, LGM_SHARE, JUDGE_SHARE = 0.15, 0.1, 0.15, 0.06  # of --max-minutes; CLIP_SHARE for each of two
WEIGHT_FILES = (PRIOR_FILE, GUIDE_FILE, SCORER_FILE, LGM_FILE)
PROVEN = 0.97  # of the scorer on true pictures; below, what it says of samples counts for little
SAMPLES_FILE, TRUTH_FILE = "samples.png", "truth.png"
SHOWN = 60  # sets on a sheet
MEASURED = 64  # held-out objects whose surfaces are compared with those of LGM-tiny


LIMITS = {  # of what may be asked for instead of a size's own numbers
    "objects": 1 << 26,
    "clip_steps": 10**8,
    "steps": 10**8,
    "batch": 1 << 16,
    "lgm_steps": 10**8,
    "lgm_batch": 1 << 16,
}


@dataclass(frozen=True)
class TrainPrior:
    """Train the embedded text-to-3D networks on procedural objects, from seeds to weights."""

    out: Annotated[Path, tyro.conf.arg(metavar="FOLDER")]
    """folder to make; the weights end up in it"""
    size: Literal["cpu", "gpu"] = "cpu"
    """cpu: pictures of 32 pixels, for two cores and two hours; gpu: 64 pixels, for one large GPU"""
    stage: Literal["all", "prior", "lgm"] = "all"
    """prior: no LGM-tiny; lgm: LGM-tiny (four views to Gaussians) and the CLIP network that its loss needs, no more"""
    start: Annotated[Path | None, tyro.conf.arg(metavar="WEIGHTS")] = None
    """folder of an earlier training of this size to go on from: its CLIP networks are taken as they are, and the prior
    and LGM-tiny begin with its weights"""
    max_minutes: Annotated[float | None, tyro.conf.arg(metavar="FLOAT")] = None
    """time for everything; the learning rates then follow the clock"""
    objects: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """objects to learn from, instead of the size's own number"""
    clip_steps: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """steps of either CLIP network, instead of the size's own number"""
    steps: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """steps of the prior, instead of the size's own number"""
    batch: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """sets of views in a step of the prior, instead of the size's own number"""
    lgm_steps: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """steps of LGM-tiny, instead of the size's own number"""
    lgm_batch: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """objects in a step of LGM-tiny, instead of the size's own number"""
    judged: int = 200
    """held-out captions that the networks are judged with"""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """of the products while training; auto: bfloat16 where the processor or GPU is faster with it"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where to train"""
    seed: int = 0
    """seed of networks, batches and samples"""
    data_seed: int = 0
    """seed of the objects"""
    checkpoint_seconds: float = 60.0
    """time between checkpoints; a killed training loses no more than this"""
    resume: bool = False
    """go on with an interrupted training, with the options it was started with; only --max-minutes may be another"""
    json: bool = False
    """print events as JSON lines on stdout, and nothing else there"""
    debug: bool = False
    """show tracebacks"""

    def __post_init__(self) -> None:
        if not (self.max_minutes is None or 0 < self.max_minutes < 1e6):
            raise InputError(f"--max-minutes must be positive, got {self.max_minutes}")
        for name, most in LIMITS.items():
            value = getattr(self, name)
            if value is not None and not 1 <= value <= most:
                raise InputError(f"--{name.replace('_', '-')} must lie between 1 and {most:,}, got {value:,}")
        if self.objects is not None and self.objects < 2:
            raise InputError("--objects must be at least 2: half of them for each CLIP network")
        if self.start is not None and not any((self.start / name).is_file() for name in WEIGHT_FILES):
            raise InputError(f"--start {self.start} holds none of {', '.join(WEIGHT_FILES)}; name a training's folder")
        if not 2 <= self.judged <= 10_000:
            raise InputError(f"--judged must lie between 2 and 10,000, got {self.judged:,}")
        if not (0 <= self.seed < 1 << 40 and 0 <= self.data_seed < 1 << 40):
            raise InputError(
                f"--seed and --data-seed must be 0 or more and fit 40 bits, got {self.seed}, {self.data_seed}"
            )
        if not 0 <= self.checkpoint_seconds < 1e6:
            raise InputError(f"--checkpoint-seconds must be 0 or more, got {self.checkpoint_seconds}")

    def recipe(self) -> Recipe:
        """The size's recipe with what was asked for instead."""
        asked = {name: getattr(self, name) for name in LIMITS if getattr(self, name) is not None}
        return dataclasses.replace(RECIPES[self.size], held_out=self.judged, **asked)


RECORDED = tuple(
    field.name
    for field in dataclasses.fields(TrainPrior)
    if field.name not in ("out", "stage", "resume", "json", "debug")
)


def main(arguments: Sequence[str]) -> None:
    """The `maquette train-prior` command."""
    request = asked(arguments)
    with StopSignal("Finishing this step and saving; press Ctrl-C again to stop at once.") as stop:
        train_prior(request, stop)


def asked(arguments: Sequence[str]) -> TrainPrior:
    """The parsed request; with --resume and an existing folder the options that it was started with."""
    request = parse(TrainPrior, METHOD, arguments)
    saved = read_json(request.out / "config.json", None) if request.resume else None
    if saved is None:
        return request
    if not isinstance(saved, dict) or saved.get("method") != METHOD:
        raise InputError(f"{request.out} is no training of the prior; name its folder, or a new one, with --out")
    try:
        kept = from_json(TrainPrior, {name: saved[name] for name in RECORDED} | {"out": str(request.out)})
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{request.out / 'config.json'} does not describe a training of this version ({error})"
        ) from error
    plain = TrainPrior(out=request.out)
    for name in RECORDED:
        now = getattr(request, name)
        if name != "max_minutes" and now not in (getattr(kept, name), getattr(plain, name)):
            raise InputError(
                f"{request.out} was started with --{name.replace('_', '-')} {getattr(kept, name)}, not {now}; --resume "
                "keeps a training's options: leave the flag out, or start a new one with another --out"
            )
    minutes = kept.max_minutes if request.max_minutes is None else request.max_minutes
    given = {name: getattr(request, name) for name in ("stage", "json", "debug")}
    return dataclasses.replace(kept, max_minutes=minutes, resume=True, **given)


def train_prior(request: TrainPrior, stop: StopSignal) -> Path:
    """Do a whole training, or the rest of one, and show its progress. Returns the folder."""
    device, unused = choose_device(request.device)
    precision = request.precision
    if precision == "auto":
        precision = "bfloat16" if device.type == "cuda" or has_fast_bfloat16() else "float32"
    going_on = request.resume and (request.out / "config.json").is_file()
    with contextlib.ExitStack() as stack:
        if going_on:
            run = stack.enter_context(Run.open(request.out))
        else:
            options = {name: getattr(request, name) for name in RECORDED} | {"precision": precision}
            options["start"] = None if request.start is None else str(real(request.start))
            run = stack.enter_context(Run.create(request.out, METHOD, options))
        watcher = JsonLines(stop.request) if request.json else Watcher("", PRIOR_STAGES)
        run.listeners.append(stack.enter_context(watcher))
        if unused is not None:
            run.decide(unused)
        last = "lgm" if request.stage == "lgm" else "prior"
        renew_limit(run, request.max_minutes, [f"{stage}_budget" for stage in TRAINED], last)
        try:
            # Numbers below 1e-38 take many times as long on a CPU, and mean nothing here.
            torch.set_flush_denormal(True)
            _Work(run, request, device, precision == "bfloat16", stop).all_stages()
        except Interrupted as interrupted:
            only = "" if request.stage == "all" else f" --stage {request.stage}"
            again = f"maquette {METHOD} --out {request.out}{only} --resume"
            raise Interrupted(f"{interrupted}; go on with: {again}") from interrupted
        finally:
            torch.set_flush_denormal(False)
            run.add_peak_memory()
    return request.out


class _Work:
    """One training at work: the run, what was asked, and the stages in their order."""

    def __init__(self, run: Run, request: TrainPrior, device: torch.device, bfloat16: bool, stop: StopSignal) -> None:
        self.run, self.request, self.device, self.bfloat16, self.stop = run, request, device, bfloat16, stop
        self.recipe = request.recipe()
        self.hooks = Hooks(run.on_step, self.save, stop, request.checkpoint_seconds)

    def all_stages(self) -> None:
        """Every stage that has not been finished yet. Raises the errors of the contract."""
        run, request, recipe = self.run, self.request, self.recipe
        products = "bfloat16" if self.bfloat16 else "float32"
        run.write_environment(device=self.device.type, backend=f"torch {products}", seed=request.seed)
        run.add_metrics(method=METHOD)
        self.made_data()
        data, held_out = self.read_data()
        first, second = halves(len(data), request.data_seed)
        guide = self.trained_clip("clip_guide", GUIDE_FILE, recipe.guide, data, first, 1)
        if request.stage != "lgm":
            self.trained_clip("clip_scorer", SCORER_FILE, recipe.scorer, data, second, 2)
        if request.stage != "prior":
            self.trained_lgm(data, held_out, guide)
        if request.stage != "lgm":
            self.trained_prior(data, guide)
            self.judged(held_out, len(data))
        run.add_metrics(seconds_total=round(run.seconds, 1))
        run.event(f"Weights: {request.out / (LGM_FILE if request.stage == 'lgm' else PRIOR_FILE)}")

    def made_data(self) -> None:
        """The parts of the data set as files; with a time limit, as many as fit into its share."""
        run, recipe, request = self.run, self.recipe, self.request
        if run.finished("data") is not None:
            return
        run.stage = "data"
        run.event()
        folder, size = run.folder / "data", recipe.layout.size
        share = None if request.max_minutes is None else DATA_SHARE * 60 * request.max_minutes
        numbers = list(parts_to_make(folder, recipe.objects, recipe.held_out))
        began = run.seconds
        for done, number in enumerate(numbers):
            self.stop.check()
            if share is not None and run.seconds > share and part_file(folder, 0).is_file():
                run.decide(f"Time allows for {number * PART:,} of {recipe.objects:,} objects.")
                break
            count = objects_of(number, recipe.objects, recipe.held_out)
            part = make_part(number, size, request.data_seed, count, self.device)
            write_part(folder, number, part, size, request.data_seed)
            left = (run.seconds - began) / (done + 1) * (len(numbers) - done - 1)
            run.event(step=done + 1, steps=len(numbers), eta_s=round(left, 1))
        run.finish("data", seconds=run.seconds)

    def read_data(self) -> tuple[PriorData, PriorData]:
        """Objects to learn from, on the device, and the held-out ones."""
        folder, recipe, seed = self.run.folder / "data", self.recipe, self.request.data_seed
        size = recipe.layout.size
        data = read_parts(folder, recipe.objects, size, seed, held_out=False)
        held_out = read_parts(folder, recipe.held_out, size, seed, held_out=True)
        return data.to(self.device), held_out.to(self.device)

    def trained_clip(
        self, stage: str, file: str, layout: ClipLayout, data: PriorData, rows: torch.Tensor, number: int
    ) -> Clip:
        """A CLIP network, trained on the objects `rows` unless its file is there."""
        kind = "clip_guide" if stage == "clip_guide" else "clip_scorer"
        path = self.run.folder / file
        given = self.given(file)
        if given is not None and self.run.finished(stage) is None:
            network, about = load_clip(given, kind)
            check_same(given, about.layout, layout)
            save_weights(path, network, about)
            self.run.finish(stage, taken=str(given))
            self.run.decide(f"{given} is taken as it is.")
        if self.run.finished(stage) is None or not path.is_file():
            network = new_network(layout, self.request.seed * 16 + number).to(self.device)
            trainer = self.trainer(network, self.recipe.clip_rate, min(self.recipe.warm_up, 100), None, number)
            pace = Pace(self.recipe.clip_steps, self.seconds_for(stage, CLIP_SHARE))
            self.go(stage, trainer, clip_loss(data, rows, self.recipe.clip_batch), pace)
            about = About(kind, layout, self.request.data_seed, commit(), {"steps": trainer.step})
            save_weights(path, network, about)
            self.run.finish(stage, steps=trainer.step, seconds=trainer.seconds, loss=trainer.loss)
        return load_clip(path, kind)[0].to(self.device)

    def trained_lgm(self, data: PriorData, held_out: PriorData, guide: Clip) -> None:
        """LGM-tiny, with its scores on held-out objects; what is kept is the moving average of its weights."""
        run, recipe, seed = self.run, self.recipe, self.request.data_seed
        path = run.folder / LGM_FILE
        if run.finished("lgm") is not None and path.is_file():
            return
        network = self.begun(new_network(recipe.lgm, self.request.seed * 16 + 3), LGM_FILE, load_lgm, recipe.lgm)
        trainer = self.trainer(network, recipe.lgm_rate, min(recipe.warm_up, 100), recipe.average, 3)
        pace = Pace(recipe.lgm_steps, self.seconds_for("lgm", None if self.request.stage == "lgm" else LGM_SHARE))
        self.go("lgm", trainer, lgm_loss(data, guide, recipe.lgm_batch), pace)
        assert isinstance(trainer.average, LgmNetwork)
        measured = draw_part(HELD_OUT_PART, recipe.lgm.size, seed, min(MEASURED, len(held_out), PART)).objects
        scores = reconstruction_scores(trainer.average.eval(), held_out, measured)
        metrics = {"objects": len(data), "steps": trainer.step, "loss": trainer.loss, **scores}
        save_weights(path, trainer.average, About("lgm", recipe.lgm, seed, commit(), metrics))
        run.finish("lgm", steps=trainer.step, seconds=trainer.seconds, loss=trainer.loss, **scores)
        run.decide(told_of_lgm(scores, len(held_out)))

    def trained_prior(self, data: PriorData, guide: Clip) -> None:
        """The denoiser; what is kept is the moving average of its weights."""
        path = self.run.folder / PRIOR_FILE
        if self.run.finished("prior") is not None and path.is_file():
            return
        recipe = self.recipe
        fresh = new_network(recipe.layout, self.request.seed * 16)
        network = self.begun(fresh, PRIOR_FILE, load_prior_network, recipe.layout)
        trainer = self.trainer(network, recipe.rate, recipe.warm_up, recipe.average, 0)
        self.go(
            "prior", trainer, prior_loss(data, guide, recipe.batch), Pace(recipe.steps, self.seconds_for("prior", None))
        )
        assert trainer.average is not None
        metrics = {"steps": trainer.step, "loss": trainer.loss}
        about = About("prior", recipe.layout, self.request.data_seed, commit(), metrics)
        save_weights(path, trainer.average, about)
        parameters = sum(parameter.numel() for parameter in network.parameters())
        self.run.add_metrics(steps=trainer.step, seconds_train=round(trainer.seconds, 1), parameters=parameters)
        self.run.finish("prior", steps=trainer.step, seconds=trainer.seconds, loss=trainer.loss)

    def given(self, file: str) -> Path | None:
        """A file of weights to go on from, where there is one."""
        path = None if self.request.start is None else self.request.start / file
        return path if path is not None and path.is_file() else None

    def begun(
        self,
        fresh: torch.nn.Module,
        file: str,
        load: Callable[[Path], tuple[torch.nn.Module, About]],
        layout: Layout | LgmLayout,
    ) -> torch.nn.Module:
        """A network to train, on the device: with the weights that are given, else fresh."""
        given = self.given(file)
        if given is not None:
            network, about = load(given)
            check_same(given, about.layout, layout)
            fresh.load_state_dict(network.state_dict())
            self.run.decide(f"The training goes on from {given}, which had {about.metrics.get('steps', 0):,.0f} steps.")
        return fresh.to(self.device)

    def trainer(
        self, network: torch.nn.Module, rate: float, warm_up: int, average: float | None, number: int
    ) -> Trainer:
        """A trainer whose random numbers are those of network `number` of this seed."""
        seed = self.request.seed * 64 + 8 * number
        return Trainer(network, rate=rate, warm_up=warm_up, average=average, seed=seed, bfloat16=self.bfloat16)

    def go(self, stage: str, trainer: Trainer, loss_of: Callable[[Trainer], torch.Tensor], pace: Pace) -> None:
        """Train from the start, or from the checkpoint where it is of this stage."""
        self.run.stage = stage
        loaded = self.run.load_checkpoint()
        if loaded is not None and loaded[1].get("stage") == stage:
            trainer.restore(Checkpoint(*loaded))
            self.run.event(f"Going on from step {trainer.step:,}")
        else:
            self.run.event()
        train(trainer, loss_of, pace, self.hooks)

    def save(self, checkpoint: Checkpoint) -> None:
        """Keep where the stage at work stands."""
        self.run.save_checkpoint(checkpoint.tensors, {**checkpoint.state, "stage": self.run.stage})

    def seconds_for(self, stage: str, share: float | None) -> float | None:
        """Time of a stage, fixed when it first starts: its share, or all that is left but for judging."""
        minutes = self.request.max_minutes
        if minutes is None:
            return None
        kept = self.run.finished(f"{stage}_budget")
        if kept is not None:
            return float(kept["seconds"])
        total = 60 * minutes
        seconds = total * share if share is not None else (1 - JUDGE_SHARE) * total - seconds_before(self.run, stage)
        seconds = max(1.0, seconds)
        self.run.finish(f"{stage}_budget", seconds=seconds)
        return seconds

    def judged(self, held_out: PriorData, objects: int) -> None:
        """Scores on held-out combinations, into the weights' headers, and a sheet of samples to look at."""
        run = self.run
        if run.finished("judge") is not None:
            return
        run.stage = "judge"
        run.event()
        paths = [run.folder / name for name in (GUIDE_FILE, SCORER_FILE, PRIOR_FILE)]
        guide, about_guide = load_clip(paths[0], "clip_guide")
        scorer, about_scorer = load_clip(paths[1], "clip_scorer")
        network, about_prior = load_prior_network(paths[2])
        guide, scorer, network = guide.to(self.device), scorer.to(self.device), network.to(self.device)
        truth = judging.true_pictures(held_out)
        true_scores = judging.retrieval_scores(scorer, truth, held_out, "true")
        guide_scores = judging.retrieval_scores(guide, truth, held_out, "true")
        scores = self.sampled(network, guide, scorer, held_out, truth)
        everything = {"objects": objects, **true_scores, **scores}
        for path, module, about, found in (
            (paths[0], guide, about_guide, guide_scores),
            (paths[1], scorer, about_scorer, true_scores),
            (paths[2], network, about_prior, everything),
        ):
            save_weights(path, module, dataclasses.replace(about, metrics={**about.metrics, **found}))
        run.finish("judge", guide=guide_scores, scorer=true_scores, **scores)
        for sentence in told(true_scores, scores, len(held_out)):
            run.decide(sentence)

    def sampled(
        self, network: MultiViewUNet, guide: Clip, scorer: Clip, held_out: PriorData, truth: torch.Tensor
    ) -> dict[str, float]:
        """Scores of the prior's samples of the held-out captions."""
        prior = TrainedPrior(network, guide, bfloat16=self.bfloat16)

        def progress(done: int, total: int) -> None:
            self.stop.check()
            self.run.event(step=done, steps=total)

        count = len(held_out)
        pictures = judging.sampled_pictures(
            prior, held_out, count, guidance=prior.guidance, seed=self.request.seed, progress=progress
        )
        for name, shown in ((SAMPLES_FILE, pictures), (TRUTH_FILE, truth)):
            write_picture(self.run.folder / name, encode_png(judging.contact_sheet(shown[:SHOWN]).numpy()))
        scores: dict[str, Any] = judging.retrieval_scores(scorer, pictures, held_out, "sample")
        scores["hull_iou"] = judging.consistency(pictures, held_out)
        scores["true_hull_iou"] = judging.consistency(truth, held_out)
        scores["grain"] = judging.grain(pictures)
        return scores


def check_same(path: Path, found: object, wanted: object) -> None:
    """Raise InputError where weights to go on from are of another architecture."""
    if found != wanted:
        raise InputError(f"{path} is of another size than --size asks for; name a folder of the same size with --start")


def told_of_lgm(scores: dict[str, float], objects: int) -> str:
    """What the scores of LGM-tiny say, in a sentence."""
    return (
        f"LGM-tiny makes {scores['gaussians']:,.0f} Gaussians of four true pictures. Of {objects:,} held-out objects "
        f"they show other views at {scores['psnr']:.1f} dB (white pictures: {scores['blank_psnr']:.1f} dB), and "
        f"surfaces {scores['chamfer']:.3f} from the true ones (true depths: {scores['true_chamfer']:.3f})."
    )


def told(true_scores: dict[str, float], scores: dict[str, float], captions: int) -> list[str]:
    """What the scores say, in sentences."""
    exact = true_scores["true_exact"]
    doubt = "" if exact >= PROVEN else f"; below {PROVEN:.0%}, so what it says of samples counts for little"
    return [
        f"The scorer picks the right one of {min(captions, 100)} held-out captions for {exact:.1%} of true pictures "
        f"({true_scores['true_kind']:.1%} the right kind of thing){doubt}.",
        f"Of samples of held-out captions it picks the right one for {scores['sample_exact']:.1%} "
        f"({scores['sample_kind']:.1%} the right kind).",
        f"Views agree on one shape to {scores['hull_iou']:.3f} (true pictures {scores['true_hull_iou']:.3f}); grain "
        f"{scores['grain']:.3f}.",
    ]
