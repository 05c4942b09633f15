"""What each command can be asked: frozen dataclasses whose fields are the flags. Imports nothing heavy.

A method's own flags come from its `Config`; `parse_recon` puts the two together, so there is no second list of options.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro
from tyro.conf import Positional

from scene.errors import InputError, did_you_mean
from scene.files import read_json
from scene.untrusted import real

T = TypeVar("T")

AXES = {
    "x": (1.0, 0.0, 0.0),
    "y": (0.0, 1.0, 0.0),
    "z": (0.0, 0.0, 1.0),
    "-x": (-1.0, 0.0, 0.0),
    "-y": (0.0, -1.0, 0.0),
    "-z": (0.0, 0.0, -1.0),
}

RECORDED = ("preset", "max_minutes", "downscale", "holdout", "mesh", "faces", "device", "seed")
"""The fields of Recon that config.json keeps beside the source and the method's own options."""

LEAST_FACES, MOST_FACES = 100, 5_000_000

METHODS = {"gaussians": "recon.gaussians", "dvgo": "recon.dvgo", "dot": "recon.dot"}
"""Methods by name: the module with what `apps/methods.py` lists. This dict is the whole plug-in system."""

AUTO = "gaussians"


@dataclass(frozen=True)
class Recon:
    """Photos in; cameras, a 3D scene, a mesh, a film and a report out."""

    source: Annotated[Positional[Path], tyro.conf.arg(metavar="SOURCE")]
    """folder of photos, video, .zip, COLMAP model, transforms.json, KITTI drive, or a previous run"""
    method: Literal["auto", "gaussians", "dvgo", "dot"] = "auto"
    """how the scene is represented; auto: gaussians. With --help: the options of that method"""
    out: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    """run folder to make; default runs/SOURCE-METHOD-N"""
    preset: Literal["draft", "standard", "high"] = "standard"
    """starting values of the method's options"""
    max_minutes: Annotated[float | None, tyro.conf.arg(metavar="FLOAT")] = None
    """time for everything: cameras, training, mesh and report"""
    downscale: float = 1.0
    """work on photos this many times smaller"""
    holdout: int = 8
    """keep every N-th photo from training, to judge with; 0 keeps none. A source's own split wins"""
    mesh: Literal["web", "game", "film"] = "game"
    """size of the mesh: 20k, 50k or 200k faces with a texture of 1, 2 or 4 thousand pixels a side"""
    faces: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """another number of faces for the mesh"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where to train and to render: auto takes an NVIDIA GPU where one can be used (maquette doctor says)"""
    seed: int = 0
    """seed of every random choice"""
    resume: bool = False
    """go on with an interrupted run, with the options it was started with; only --max-minutes may be another"""
    json: bool = False
    """print events as JSON lines on stdout, and nothing else there"""
    debug: bool = False
    """show tracebacks"""

    def __post_init__(self) -> None:
        if not (self.max_minutes is None or 0 < self.max_minutes < 1e6):
            raise InputError(f"--max-minutes must be positive, got {self.max_minutes}")
        if not 1 <= self.downscale <= 64:
            raise InputError(f"--downscale must lie between 1 and 64, got {self.downscale}")
        if self.holdout < 0 or self.holdout == 1:
            raise InputError(f"--holdout must be 0 (none) or at least 2, got {self.holdout}: some photos must train")
        if not 0 <= self.seed < 1 << 63:
            raise InputError(f"--seed must be 0 or more and fit 63 bits, got {self.seed}")
        check_faces(self.faces)


def check_faces(faces: int | None) -> None:
    """Raise InputError for a number of faces that no mesh is made with."""
    if faces is not None and not LEAST_FACES <= faces <= MOST_FACES:
        raise InputError(f"--faces must lie between {LEAST_FACES:,} and {MOST_FACES:,}, got {faces:,}")


@dataclass(frozen=True)
class Export:
    """Write a run's scene or mesh, or any splat or mesh file, in other formats; the file names say which."""

    source: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN|FILE")]
    """run folder, or a splat or mesh file of any format that is written here"""
    to: tuple[Path, ...]
    """files to write. Splats: .ply .splat .spz .sog; meshes: .glb .obj .stl; either: .ply .glb .usdz (see --what);
    both in one page that needs no network: .html; a run's own grid: .safetensors, or octree: .npz"""
    what: Literal["auto", "splats", "mesh"] = "auto"
    """what a format that can hold both gets; auto: what the file's name says ('mesh', 'splats'), else splats for .ply
    and the mesh for .glb and .usdz"""
    mesh: Annotated[Literal["web", "game", "film"] | None, tyro.conf.arg(metavar="web|game|film")] = None
    """make the mesh anew in this size, textured from the photos; default: the run's mesh as it is"""
    faces: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """make the mesh anew with this number of faces"""
    up: Annotated[str | None, tyro.conf.arg(metavar="AXIS")] = None
    """which axis of the source points up: x, y, z, -x, -y or -z; default: the run's own, what the format says, -y for
    splats in .ply (as COLMAP leaves them), else z"""
    cameras: bool = False
    """put the photos' cameras into a .glb"""
    debug: bool = False
    """show tracebacks"""

    def __post_init__(self) -> None:
        check_faces(self.faces)
        if self.up is not None and self.up.lower().lstrip("+") not in AXES:
            raise InputError(f"--up must be one of {', '.join(AXES)}, got {self.up!r}")


@dataclass(frozen=True)
class Render:
    """Render a film of a run's scene along a camera path."""

    run: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")]
    """run folder"""
    path: str = "orbit"
    """orbit, spiral, train (along the photos), or a .json file of poses"""
    out: Path = Path("film.mp4")
    """.mp4 file, or a folder for PNG frames"""
    frames: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """number of frames; default 180 (a path file: its own)"""
    fps: int = 30
    """frames per second"""
    width: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """width in pixels; default that of the photos, at most 1280"""
    debug: bool = False
    """show tracebacks"""

    def __post_init__(self) -> None:
        if not 1 <= self.fps <= 240:
            raise InputError(f"--fps must lie between 1 and 240, got {self.fps}")
        if self.width is not None and not 16 <= self.width <= 8192:
            raise InputError(f"--width must lie between 16 and 8192, got {self.width}")


@dataclass(frozen=True)
class Evaluate:
    """Judge a run on its held-out photos again, and renew its metrics, pictures and report."""

    run: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")]
    """run folder"""
    json: bool = False
    """print metrics.json on stdout, and nothing else there"""
    debug: bool = False
    """show tracebacks"""


@dataclass(frozen=True)
class Demo:
    """Reconstruct the embedded sample, a still life photographed by a path tracer, and state the true error."""

    out: Path = Path("runs/demo")
    """run folder to make; demo-2, demo-3, ... when it is taken"""
    max_minutes: float = 5.0
    """time for everything"""
    resume: bool = False
    """go on with an interrupted demo"""
    web: bool = False
    """open the page of `maquette web` with the sample loaded, and start nothing yet"""
    json: bool = False
    """print events as JSON lines on stdout, and nothing else there"""
    debug: bool = False
    """show tracebacks"""


@dataclass(frozen=True)
class Doctor:
    """Say what this installation computes with, and test it."""

    json: bool = False
    """print the findings as one JSON object"""
    debug: bool = False
    """show tracebacks"""


@dataclass(frozen=True)
class ReconJob:
    """A fully decided reconstruction: what to do, by which method, where, and whether an existing run goes on."""

    request: Recon
    method: str
    config: Any  # the method's Config
    out: Path
    resumes: bool

    def as_json(self) -> dict[str, Any]:
        """The content of config.json: every option with its final value."""
        options = {name: getattr(self.request, name) for name in RECORDED}
        return {"source": str(real(self.request.source)), **options, "options": dataclasses.asdict(self.config)}


def parse(cls: type[T], command: str, arguments: Sequence[str]) -> T:
    """Parse the flags of a dataclass; prints help or what is wrong and exits with 0 or 2."""
    style = (tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes)
    return tyro.cli(cls, prog=f"maquette {command}", args=list(arguments), config=style)


def parse_recon(arguments: Sequence[str]) -> ReconJob:
    """Parse `maquette recon`: the flags of Recon and those of the method's Config, with the preset as default.

    With --resume the defaults are the run's own options, and asking for others is an error: a run that changed its
    options half-way would be neither.
    """
    known = _known_flags(arguments)
    wanted = AUTO if known.method == "auto" else known.method
    source = Path(known.source) if known.source else None
    if source is not None and known.resume and is_run(source) and known.out is None:
        return _resumed(source, arguments)
    out = Path(known.out) if known.out else None
    if known.resume and out is None and source is not None:
        out = _latest_run(source, METHODS if known.method == "auto" else [wanted])
    if known.resume and out is not None and is_run(out):
        return _resumed(out, arguments)
    method = wanted if wanted in METHODS else AUTO
    module = importlib.import_module(METHODS[method])
    config = dataclasses.replace(module.Config(), **module.PRESETS.get(known.preset, {}))
    _check_flags(arguments, method)
    request, config = _parse_both(arguments, method, None, config)
    return ReconJob(request, method, config, request.out or _free_run(request.source, method), resumes=False)


def is_run(folder: Path) -> bool:
    """Whether a folder is a run of ours."""
    try:
        config = read_json(folder / "config.json", None)
    except (OSError, InputError):
        return False
    return isinstance(config, dict) and "format" in config and config.get("method") in METHODS


def job_of_run(folder: Path) -> ReconJob:
    """The job that a run folder was started with, from its config.json. Raises InputError when that is not sound."""
    try:
        saved = read_json(folder / "config.json", None)
        method = saved["method"]
        module = importlib.import_module(METHODS[method])
        fields = {name: saved[name] for name in RECORDED if name in saved}  # runs of before an option have its default
        request = from_json(Recon, {"source": saved["source"], **fields})
        config = from_json(module.Config, saved["options"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(f"{folder / 'config.json'} does not describe a run of this version ({error})") from error
    return ReconJob(request, method, config, folder, resumes=True)


def from_json(cls: type[T], values: Mapping[str, Any]) -> T:
    """A dataclass from parsed JSON. Unknown, missing and mistyped values raise ValueError."""
    if not isinstance(values, Mapping):
        raise ValueError(f"an object was expected, got {type(values).__name__}")
    hints = get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if unknown := set(values) - set(fields):
        name = sorted(unknown)[0]
        raise ValueError(f"unknown option {name!r}{did_you_mean(name, fields)}")
    return cls(**{name: _typed(value, hints[name], name) for name, value in values.items()})


def _typed(value: Any, wanted: Any, name: str) -> Any:
    """`value` as the annotated type, or ValueError."""
    origin, choices = get_origin(wanted), get_args(wanted)
    if origin is Annotated:
        return _typed(value, choices[0], name)
    if origin is Literal and value in choices:
        return value
    if origin is tuple and isinstance(value, list):
        return tuple(_typed(item, choices[0], name) for item in value)
    if origin in (Union, UnionType):
        return None if value is None else _typed(value, next(c for c in choices if c is not NoneType), name)
    if isinstance(wanted, type) and dataclasses.is_dataclass(wanted) and isinstance(value, dict):
        return from_json(wanted, value)
    if wanted is Path and isinstance(value, str):
        return Path(value)
    if wanted is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if wanted in (int, str, bool) and type(value) is wanted:
        return value
    raise ValueError(f"option {name!r} has the value {value!r}")


def _known_flags(arguments: Sequence[str]) -> argparse.Namespace:
    """The few flags that decide what the other flags are; wrong ones are left for the real parser to explain."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--method", default="auto")
    parser.add_argument("--preset", default="standard")
    parser.add_argument("--out")
    parser.add_argument("--resume", action="store_true")
    try:
        known, rest = parser.parse_known_args(list(arguments))
    except argparse.ArgumentError:
        return argparse.Namespace(method="auto", preset="standard", out=None, resume=False, source=None)
    # The source may stand anywhere among flags not known yet: it is the word that names something that exists.
    words = [word for word in rest if not word.startswith("-")]
    known.source = next((word for word in words if Path(word).exists()), words[0] if words else None)
    return known


def _check_flags(arguments: Sequence[str], method: str) -> None:
    """Raise InputError for a flag that is another method's option; others that are wrong are left to the parser."""
    words = (word.partition("=")[0] for word in arguments)
    names = [word.removeprefix("--").replace("-", "_") for word in words if word.startswith("--")]
    known = _fields(Recon) | _fields(importlib.import_module(METHODS[method]).Config) | {"help"}
    for name in (name for name in names if name not in known):
        others = [m for m in METHODS if m != method and name in _fields(importlib.import_module(METHODS[m]).Config)]
        if others:
            flag, owners = "--" + name.replace("_", "-"), " and ".join(others)
            raise InputError(
                f"{flag} is an option of --method {owners}, not of {method}; leave it out, or choose that method "
                f"(maquette recon --method {method} --help lists what {method} can be told)"
            )


def _fields(cls: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(cls)}


def _parse_both(arguments: Sequence[str], method: str, request: Recon | None, config: Any) -> tuple[Recon, Any]:
    """Parse Recon and the method's Config side by side; an option that both have is Recon's."""
    shared = _fields(config) & _fields(Recon)
    hidden = []
    for name in sorted(shared):
        value = getattr(config, name)
        hidden.append((name, Annotated[type(value), tyro.conf.Fixed, tyro.conf.Suppress], value))
    own = type(config)
    flags = dataclasses.make_dataclass(own.__name__, hidden, bases=(own,), frozen=True)
    flags.__doc__ = "Options of this method; maquette recon --method NAME --help lists those of another."
    defaults = flags(**{field.name: getattr(config, field.name) for field in dataclasses.fields(config)})
    both = dataclasses.make_dataclass(
        "Both",
        [
            ("request", Annotated[Recon, tyro.conf.arg(name="")], *([request] if request else [])),
            (method, flags, defaults),
        ],
        frozen=True,
    )
    both.__doc__ = Recon.__doc__
    parsed: Any = parse(both, "recon", arguments)
    options = getattr(parsed, method)
    chosen = {field.name: getattr(options, field.name) for field in dataclasses.fields(config)}
    chosen |= {name: getattr(parsed.request, name) for name in shared}
    return parsed.request, own(**chosen)


def _resumed(folder: Path, arguments: Sequence[str]) -> ReconJob:
    """The job of an existing run, after making sure that no flag asks for something else than another time limit."""
    job = job_of_run(folder)
    _check_flags(arguments, job.method)
    request, config = _parse_both(arguments, job.method, job.request, job.config)
    if request.method not in ("auto", job.method):
        raise InputError(
            f"{folder} is a run of --method {job.method}, not of {request.method}; leave --method out, or start a new "
            "run with another --out"
        )
    may_change = {"source", "method", "out", "resume", "json", "debug", "max_minutes"}
    pairs = [(field.name, job.request, request) for field in dataclasses.fields(Recon) if field.name not in may_change]
    pairs += [(field.name, job.config, config) for field in dataclasses.fields(config)]
    for name, old, new in pairs:
        if getattr(old, name) != getattr(new, name):
            flag = "--" + name.replace("_", "-")
            raise InputError(
                f"{folder} was started with {flag} {getattr(old, name)}, not {getattr(new, name)}; "
                "--resume keeps a run's options: leave the flag out, or start a new run with another --out"
            )
    if real(request.source) not in (job.request.source, real(folder)):
        raise InputError(f"{folder} is a run of {job.request.source}, not of {request.source}; name another --out")
    now = {name: getattr(request, name) for name in ("json", "debug", "max_minutes")}
    return dataclasses.replace(job, request=dataclasses.replace(job.request, **now, resume=True, out=folder))


def _run_stem(source: Path, method: str) -> str:
    name = real(source).name.removesuffix(".zip") or "scene"
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name) + f"-{method}"


def _free_run(source: Path, method: str) -> Path:
    """runs/NAME-METHOD-N with the first free N."""
    n = 1
    while (folder := Path("runs") / f"{_run_stem(source, method)}-{n}").exists():
        n += 1
    return folder


def _latest_run(source: Path, methods: Iterable[str]) -> Path:
    """The newest run of a source by one of the methods under runs/. Raises InputError when there is none."""
    found = []
    for method in methods:
        for folder in Path("runs").glob(f"{_run_stem(source, method)}-*"):
            if is_run(folder) and folder.name.rpartition("-")[2].isdigit():
                found.append(((folder / "config.json").stat().st_mtime, folder))
    if not found:
        raise InputError(f"there is no run of {source} under runs/ to resume; name it with --out RUN")
    return max(found)[1]
