"""What `maquette generate` can be asked: its own flags and those of the method's `Config`; how a run goes on with them.

Imports nothing heavy but the method that is asked for.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional

from apps.options import check_faces, from_json, parse
from scene.errors import InputError
from scene.files import read_json
from scene.untrusted import real

GENERATORS = {"sds": "generation.sds", "lgm": "generation.lgm_splats"}
"""Methods that make a scene of words, by name: modules as `METHODS` in `apps/options.py` names them."""

AUTO = "sds"
EMBEDDED = ("embedded", "bank", "trained")
LONGEST = 2_000  # characters of a prompt; no text encoder reads more than a few hundred words
RECORDED = ("prior", "allow_download", "preset", "max_minutes", "mesh", "faces", "device", "seed")
"""The fields of Generate that config.json keeps beside the prompt and the method's own options."""


@dataclass(frozen=True)
class Generate:
    """Words in; a 3D scene, a textured mesh, a film and a report out. Offline, by priors that come with Maquette."""

    prompt: Annotated[Positional[str], tyro.conf.arg(metavar="PROMPT")]
    """what to make, such as "a red chair with blue legs"; with --resume also the folder of a run"""
    method: Literal["auto", "sds", "lgm"] = "auto"
    """how words become a scene; auto: sds, score distillation onto a voxel grid; lgm: four views become Gaussians in
    one pass of a network"""
    prior: str = "embedded"
    """what knows pictures: embedded (trained weights where there are good ones that know the words, else the bank),
    bank, trained, or a model by its folder or hub id: what maquette train-prior wrote, or a pipeline of diffusers"""
    allow_download: bool = False
    """fetch a hub id that is not on this machine yet; without this flag nothing is ever downloaded"""
    image: Annotated[Path | None, tyro.conf.arg(metavar="REF")] = None
    """a picture of what is wanted, beside the words"""
    out: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    """run folder to make; default runs/PROMPT-METHOD-N"""
    preset: Literal["draft", "standard", "high"] = "standard"
    """starting values of the method's options"""
    max_minutes: Annotated[float | None, tyro.conf.arg(metavar="FLOAT")] = None
    """time for everything: distillation, mesh and report"""
    mesh: Literal["web", "game", "film"] = "web"
    """size of the mesh: 20k, 50k or 200k faces with a texture of 1, 2 or 4 thousand pixels a side"""
    faces: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """another number of faces for the mesh"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where to compute: auto takes an NVIDIA GPU where one can be used (maquette doctor says)"""
    seed: int = 0
    """seed of every random choice; the same on the CPU makes the same files"""
    resume: bool = False
    """go on with an interrupted run, with the options it was started with; only --max-minutes may be another"""
    json: bool = False
    """print events as JSON lines on stdout, and nothing else there"""
    debug: bool = False
    """show tracebacks"""

    def __post_init__(self) -> None:
        check_prompt(self.prompt)
        if not self.prior.strip() or len(self.prior) > 4096 or "\0" in self.prior:
            raise InputError(f"--prior must be {', '.join(EMBEDDED)}, a folder or a hub id, got {self.prior[:40]!r}")
        if not (self.max_minutes is None or 0 < self.max_minutes < 1e6):
            raise InputError(f"--max-minutes must be positive, got {self.max_minutes}")
        if not 0 <= self.seed < 1 << 63:
            raise InputError(f"--seed must be 0 or more and fit 63 bits, got {self.seed}")
        check_faces(self.faces)


def check_prompt(prompt: str) -> None:
    """Raise InputError for what cannot be a prompt, whatever the prior."""
    if not prompt.strip():
        raise InputError('the prompt is empty; say what to make, such as "a red chair with blue legs"')
    if len(prompt) > LONGEST:
        raise InputError(f"the prompt has {len(prompt):,} characters; at most {LONGEST:,} are read, so shorten it")
    odd = next((c for c in prompt if not c.isprintable() and c not in "\n\t"), None)
    if odd is not None:
        raise InputError(f"the prompt holds the character U+{ord(odd):04X}, which no text has; write it as plain text")


@dataclass(frozen=True)
class GenerateJob:
    """A fully decided generation: what to make, by which method, where, and whether an existing run goes on."""

    request: Generate
    method: str
    config: Any  # the method's Config
    out: Path
    resumes: bool

    def as_json(self) -> dict[str, Any]:
        """The content of config.json: every option with its final value."""
        options = {name: getattr(self.request, name) for name in RECORDED}
        image = None if self.request.image is None else str(real(self.request.image))
        source = {"source": self.request.prompt, "image": image}
        return {**source, **options, "options": dataclasses.asdict(self.config)}


def parse_generate(arguments: Sequence[str]) -> GenerateJob:
    """Parse `maquette generate`. With --resume a run's own options are the defaults, and others an error."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    finder.add_argument("--preset", default="standard")
    finder.add_argument("--method", default="auto")
    try:
        found = finder.parse_known_args(list(arguments))[0]
        preset, method = found.preset, found.method if found.method in GENERATORS else AUTO
    except argparse.ArgumentError:  # left for the real parser to explain
        preset, method = "standard", AUTO
    module = importlib.import_module(GENERATORS[method])
    config = dataclasses.replace(module.Config(), **module.PRESETS.get(preset, {}))
    request, config = _parse_both(arguments, None, config)
    if request.resume:
        folder = _run_to_resume(request)
        if folder is not None:
            return _resumed(folder, arguments)
    return GenerateJob(request, method, config, request.out or _free_run(request.prompt, method), resumes=False)


def is_generated(folder: Path) -> bool:
    """Whether a folder is a run of `maquette generate`."""
    try:
        config = read_json(folder / "config.json", None)
    except (OSError, InputError, ValueError):
        return False
    return isinstance(config, dict) and "format" in config and config.get("method") in GENERATORS


def job_of_generated(folder: Path) -> GenerateJob:
    """The job that a run was started with, from its config.json. Raises InputError when that is not sound."""
    try:
        saved = read_json(folder / "config.json", None)
        method = saved["method"]
        module = importlib.import_module(GENERATORS[method])
        fields = {name: saved[name] for name in RECORDED if name in saved}
        request = from_json(Generate, {"prompt": saved["source"], "image": saved.get("image"), **fields})
        config = from_json(module.Config, saved["options"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(f"{folder / 'config.json'} does not describe a run of this version ({error})") from error
    return GenerateJob(request, method, config, folder, resumes=True)


def _parse_both(arguments: Sequence[str], request: Generate | None, config: Any) -> tuple[Generate, Any]:
    """Parse Generate and the method's Config side by side."""
    both = dataclasses.make_dataclass(
        "Both",
        [
            ("request", Annotated[Generate, tyro.conf.arg(name="")], *([request] if request else [])),
            ("options", Annotated[type(config), tyro.conf.arg(name="")], config),
        ],
        frozen=True,
    )
    both.__doc__ = Generate.__doc__
    parsed: Any = parse(both, "generate", arguments)
    return parsed.request, parsed.options


def _run_to_resume(request: Generate) -> Path | None:
    """The run that is meant: named by --out or in place of the prompt, or the newest of the prompt under runs/."""
    if request.out is not None:
        return request.out if is_generated(request.out) else None
    if len(request.prompt) < 1024 and is_generated(Path(request.prompt)):
        return Path(request.prompt)
    found = []
    for folder in Path("runs").glob(f"{_stem(request.prompt)}-*-*"):
        if is_generated(folder) and read_json(folder / "config.json", {}).get("source") == request.prompt:
            found.append(((folder / "config.json").stat().st_mtime, folder))
    if not found:
        raise InputError(f"there is no run of {request.prompt[:60]!r} under runs/ to resume; name it with --out RUN")
    return max(found)[1]


def _resumed(folder: Path, arguments: Sequence[str]) -> GenerateJob:
    """The job of an existing run, after making sure that no flag asks for something else than another time limit."""
    job = job_of_generated(folder)
    request, config = _parse_both(arguments, job.request, job.config)
    if request.method not in ("auto", job.method):
        raise InputError(f"{folder} was made by --method {job.method}, not {request.method}; name another --out")
    if request.prompt not in (job.request.prompt, str(folder)) and real(Path(request.prompt)) != real(folder):
        raise InputError(f"{folder} is a run of {job.request.prompt!r}, not of {request.prompt!r}; name another --out")
    may_change = {"prompt", "method", "out", "resume", "json", "debug", "image", "max_minutes"}
    names = [field.name for field in dataclasses.fields(Generate) if field.name not in may_change]
    pairs = [(name, getattr(job.request, name), getattr(request, name)) for name in names]
    pairs += [(f.name, getattr(job.config, f.name), getattr(config, f.name)) for f in dataclasses.fields(config)]
    if request.image is not None:
        pairs.append(("image", job.request.image, real(request.image)))
    for name, old, new in pairs:
        if old != new:
            flag = "--" + name.replace("_", "-")
            raise InputError(
                f"{folder} was started with {flag} {old}, not {new}; --resume keeps a run's options: leave the flag "
                "out, or start a new run with another --out"
            )
    now = {name: getattr(request, name) for name in ("json", "debug", "max_minutes")}
    return dataclasses.replace(job, request=dataclasses.replace(job.request, **now, resume=True, out=folder))


def _stem(prompt: str) -> str:
    words = "".join(letter if letter.isalnum() else "-" for letter in prompt.lower())
    return "-".join(filter(None, words.split("-")))[:48].rstrip("-")


def _free_run(prompt: str, method: str) -> Path:
    """runs/PROMPT-METHOD-N with the first free N."""
    n = 1
    while (folder := Path("runs") / f"{_stem(prompt)}-{method}-{n}").exists():
        n += 1
    return folder
