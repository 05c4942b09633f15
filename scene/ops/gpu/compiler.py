"""Compiles cuda/gpu/*.cu with NVRTC and keeps the result on disk. Needs cuda-core and NVRTC, but no card and no driver.

A kernel file is compiled once per card generation, compiler and text of the sources. The cache is a folder of cubins,
by default ~/.cache/maquette/kernels ($MAQUETTE_CACHE names another): each is written under a temporary name and then
renamed, so several processes may share it, and begins with a checksum, so a damaged one is made anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import logging
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from scene.errors import MaquetteError

log = logging.getLogger(__name__)

OPTIONS = {
    "std": "c++17",
    "no_source_include": True,  # or a folder math/ where the user happens to be would be searched first
    "device_as_default_execution_space": True,  # NVRTC 13.0 takes an unmarked generic lambda for a host function
    "ptxas_options": ["-v"],
}
CHECKSUM = 32  # bytes of sha256 in front of a cached cubin


@dataclass(frozen=True)
class Compiled:
    """One kernel file for one architecture: the cubin, what the assembler said of it, and how it came about."""

    source: str
    cubin: bytes  # PTX where the architecture is one of "compute_N"
    log: str  # registers, spills and shared memory of each kernel; empty when it came from the cache
    seconds: float
    cached: bool


@lru_cache(maxsize=8)
def nvidia(module: str) -> Any:
    """A module of cuda-core or cuda-bindings, such as "core". Raises ImportError or whatever a broken wheel raises."""
    # By name, because a checkout's own folder cuda/ hides the package from the type checker.
    return importlib.import_module(f"cuda.{module}")


@lru_cache(maxsize=1)
def sources() -> Path:
    """The folder that holds gpu/ and math/: cuda/ of a checkout, or the copy inside an installed package."""
    here = Path(__file__).resolve()
    # A checkout goes first: what an editable installation copied may be older. In an installation parents[3] is
    # site-packages, where a folder `cuda` is NVIDIA's.
    for folder in (here.parents[3] / "cuda", here.parent / "sources"):
        if (folder / "gpu" / "device.h").is_file():
            return folder
    raise MaquetteError("the GPU kernels' sources are missing from this installation; install maquette again")


def kernel_files() -> list[str]:
    """Names of all cuda/gpu/*.cu, without the ending."""
    return sorted(path.stem for path in (sources() / "gpu").glob("*.cu"))


def compiler_version() -> tuple[int, int]:
    """Version of NVRTC. Raises ImportError or another error of cuda-bindings when it is not installed well."""
    nvrtc = nvidia("bindings.nvrtc")
    status, major, minor = nvrtc.nvrtcVersion()
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise MaquetteError(f"NVRTC does not tell its version ({status.name}); install nvidia-cuda-nvrtc again")
    return major, minor


def architectures() -> frozenset[int]:
    """The card generations that this NVRTC compiles for, 90 for sm_90."""
    nvrtc = nvidia("bindings.nvrtc")
    status, known = nvrtc.nvrtcGetSupportedArchs()
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise MaquetteError(
            f"NVRTC does not tell what it compiles for ({status.name}); install nvidia-cuda-nvrtc again"
        )
    return frozenset(known)


def compile_source(source: str, arch: str) -> Compiled:
    """Compiles cuda/gpu/`source`.cu without the cache. Raises MaquetteError.

    arch: such as sm_90, or compute_90 for PTX.
    """
    core = nvidia("core")
    root, said, began = sources(), io.StringIO(), time.perf_counter()
    text = (root / "gpu" / f"{source}.cu").read_text()
    options = core.ProgramOptions(name=f"{source}.cu", arch=arch, include_path=str(root), **OPTIONS)
    try:
        program = core.Program(text, "c++", options)
        cubin = bytes(program.compile("ptx" if is_ptx(arch) else "cubin", logs=said).code)
        program.close()
    except Exception as error:  # cuda-core has an error class per library underneath, and none in common
        lines = str(error).splitlines() or [type(error).__name__]
        first = next((line for line in lines if "error:" in line), lines[0])  # the whole log is in the cause
        raise MaquetteError(f"cuda/gpu/{source}.cu does not compile for {arch}: {first}") from error
    return Compiled(source, cubin, said.getvalue(), time.perf_counter() - began, cached=False)


def is_ptx(arch: str) -> bool:
    """Whether code for `arch` is PTX, which the driver has yet to translate."""
    return arch.startswith("compute_")


def compiled(source: str, arch: str, folder: Path | None) -> Compiled:
    """The cubin of cuda/gpu/`source`.cu for `arch`: from the cache `folder`, or compiled and put there.

    folder: None does without. A folder that cannot be written costs one line in the log, not the run.
    """
    if folder is None:
        return compile_source(source, arch)
    began = time.perf_counter()
    path = folder / f"{source}-{arch}-{_key(source, arch)}.cubin"
    cubin = _load(path)
    if cubin is not None:
        return Compiled(source, cubin, "", time.perf_counter() - began, cached=True)
    made = compile_source(source, arch)
    try:
        _store(path, made.cubin)
    except OSError as error:
        _say_once(
            f"compiled GPU kernels cannot be kept in {folder} ({error.strerror}), so every start compiles them anew"
        )
    return made


def compile_all(arch: str, folder: Path | None = None) -> list[Compiled]:
    """Every kernel file for `arch`, compiled side by side where the cache `folder` does not hold it yet."""
    nvidia("core")  # by one thread: cuda.core lets a second thread see it half imported
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(lambda source: compiled(source, arch, folder), kernel_files()))


def cache_folder() -> Path | None:
    """Where compiled kernels are kept; None where this user has no home. The folder need not exist."""
    named, shared = os.environ.get("MAQUETTE_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if named:
        return Path(named)
    if shared:
        return Path(shared) / "maquette" / "kernels"
    with contextlib.suppress(RuntimeError):
        return Path.home() / ".cache" / "maquette" / "kernels"
    return None


def cache_state(folder: Path | None) -> str:
    """The end of a sentence about the cache: where it is, how full, and whether it can be written."""
    if folder is None:
        return "not kept on disk, because this user has no home folder; set MAQUETTE_CACHE to a folder"
    files = list(folder.glob("*.cubin")) if folder.is_dir() else []
    size = sum(path.stat().st_size for path in files)
    try:
        _store(folder / "test", b"")
        (folder / "test").unlink(missing_ok=True)
    except OSError as error:
        return f"NOT kept in {folder} ({error.strerror}); set MAQUETTE_CACHE to a folder that can be written"
    return f"kept in {folder} ({len(files)} files, {size / (1 << 20):.1f} MB)"


def _key(source: str, arch: str) -> str:
    """Hash of everything that decides what comes out of the compiler."""
    text = (sources() / "gpu" / f"{source}.cu").read_bytes()
    words = f"{compiler_version()} {arch} {OPTIONS}".encode()
    return hashlib.sha256(b"\0".join([words, _headers(), text])).hexdigest()[:32]


@lru_cache(maxsize=1)
def _headers() -> bytes:
    """Hash of all headers: they are small, so a change in one compiles everything anew."""
    found = hashlib.sha256()
    for path in sorted([*sources().glob("gpu/*.h"), *sources().glob("math/*.h")]):
        found.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return found.digest()


def _load(path: Path) -> bytes | None:
    """A cached cubin, or None when it is not there or damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    cubin = content[CHECKSUM:]
    return cubin if cubin and hashlib.sha256(cubin).digest() == content[:CHECKSUM] else None


def _store(path: Path, cubin: bytes) -> None:
    """Writes a cubin so that another process sees all of it or nothing. Raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    number, name = tempfile.mkstemp(prefix=".new-", dir=path.parent)
    try:
        with os.fdopen(number, "wb") as file:
            file.write(hashlib.sha256(cubin).digest() + cubin)
        Path(name).replace(path)
    except OSError:
        Path(name).unlink(missing_ok=True)
        raise


@lru_cache(maxsize=8)
def _say_once(sentence: str) -> None:
    log.warning(sentence)
