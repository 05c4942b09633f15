"""Finds the card, loads the compiled kernels into it and starts them on torch's current stream.

`usable` decides once per process whether the GPU's kernels serve, and says why in one sentence; whatever is wrong with
the machine ends there, and the caller falls back. After a yes every kernel is loaded, so `launch` neither compiles nor
waits.
"""

from __future__ import annotations

import ctypes
import logging
import math
import struct
import threading
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from scene.errors import MaquetteError, OutOfMemory
from scene.ops.gpu import compiler, nvrtc
from scene.ops.gpu.launch import Argument, Launcher, Size

log = logging.getLogger(__name__)

OLDEST = (7, 5)  # Turing: the oldest that CUDA 13's NVRTC compiles for
OLDEST_CORE = (0, 7)  # of cuda-core; Kernel.handle is missing before
INSTALL = 'pip install --upgrade "maquette[gpu]"'
MOST_ARGUMENTS = 64


@dataclass(frozen=True)
class CardFacts:
    """What can be learnt about a card without running kernels on it. Trouble is a sentence, or empty."""

    torch_cuda: str | None  # CUDA version that torch was built for; None: for the CPU only
    torch_trouble: str = ""  # why torch cannot use a card
    name: str = ""
    capability: tuple[int, int] = (0, 0)  # (9, 0) for sm_90
    driver: tuple[int, int] = (0, 0)  # newest CUDA version that the driver runs
    compiler: tuple[int, int] = (0, 0)  # version of NVRTC
    compiler_trouble: str = ""  # why cuda-core or NVRTC cannot be used
    architectures: frozenset[int] = frozenset()  # that NVRTC compiles for

    @property
    def arch(self) -> str:
        """What the compiler calls this card."""
        return "sm_{}{}".format(*self.capability)

    @property
    def target(self) -> str:
        """What to compile for; empty when this NVRTC compiles nothing that the card runs."""
        return nvrtc.target(self.capability[0] * 10 + self.capability[1], self.architectures)


def judge(facts: CardFacts) -> tuple[bool, str]:
    """Whether kernels can be compiled for, and loaded into, a card; one sentence that says why or why not."""
    card = f"{facts.name} ({facts.arch})"
    if facts.torch_cuda is None:
        return False, "torch was built for the CPU only; a CUDA build of it (pytorch.org) would use an NVIDIA GPU"
    if facts.torch_trouble:
        return False, f"torch finds no usable NVIDIA GPU: {facts.torch_trouble}"
    if facts.capability < OLDEST:
        return False, f"{card} is too old; the kernels need sm_{OLDEST[0]}{OLDEST[1]} (GeForce 20 series) or newer"
    wheel = nvrtc.wheel(facts.driver[0])
    if facts.compiler_trouble:
        advice = f"install it with: {INSTALL} {wheel}"
        return False, f"{card} is there, but not its compiler: {facts.compiler_trouble}; {advice}"
    made_by, driver = "NVRTC {}.{}".format(*facts.compiler), "{}.{}".format(*facts.driver)
    if facts.compiler[0] > facts.driver[0]:
        other = f", or: pip install {wheel}" if facts.driver[0] in nvrtc.WHEELS else ""
        advice = f"update the driver{other}"
        return False, f"the driver of {card} is for CUDA {driver} and cannot load what {made_by} makes; {advice}"
    newer = f"get a newer one with: pip install --upgrade {wheel}"
    if not facts.target:
        return False, f"{made_by} does not know {card} yet; {newer}"
    if facts.target == facts.arch:
        return True, f"{card}, driver for CUDA {driver}, compiler {made_by}"
    if compiler.is_ptx(facts.target) and facts.compiler > facts.driver:
        trouble = f"and the driver, for CUDA {driver}, does not read its code for later cards"
        return False, f"{made_by} does not know {card} yet, {trouble}; update the driver, or {newer}"
    return (
        True,
        f"{card}, driver for CUDA {driver}, compiler {made_by}, which does not know it and makes {facts.target}",
    )


def usable(index: int | None = None) -> tuple[bool, str]:
    """Whether kernels run on card `index` (None: torch's current one), and one sentence that says why or why not.

    The first yes compiles what the cache does not hold (seconds, once) and loads everything; the answer is kept.
    """
    if torch.version.cuda is None:
        return judge(CardFacts(None))
    if index is None:
        # Without a card torch has no current one, and asking raises.
        index = torch.cuda.current_device() if torch.cuda.is_initialized() else 0
    return _usable(index)


@lru_cache(maxsize=64)
def _usable(index: int) -> tuple[bool, str]:
    facts = card_facts(index)
    good, sentence = judge(facts)
    if not good:
        return good, sentence
    try:
        prepare(index, facts.target)
        probe(torch.device("cuda", index), launch)
    except Exception as error:  # torch and each of NVIDIA's libraries has errors of its own; none may end a run
        return False, f"{sentence}; but {_first_line(error)}"
    return good, sentence


def card_facts(index: int) -> CardFacts:
    """Asks torch, the driver and NVRTC. Never raises: what goes wrong is among the facts."""
    build = torch.version.cuda
    if build is None:
        return CardFacts(None)
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            found = torch.cuda.is_available()
        if not found:
            return CardFacts(build, _first_line(said[-1].message) if said else "no card or no driver")
        name, capability = torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index)
        torch.empty(1, device=torch.device("cuda", index))  # a driver can list a card and fail at its first use
    except (RuntimeError, AssertionError) as error:
        return CardFacts(build, f"the driver fails ({_first_line(error)}); restart the machine or install it again")
    # Without cuda.bindings to ask, the driver is known to be at least as new as torch.
    known = CardFacts(build, "", name, capability, (int(build.split(".")[0]), 0))
    try:
        driver = compiler.nvidia("bindings.driver")
        status, version = driver.cuDriverGetVersion()
        _check(status, "asking the driver for its version")
        known = replace(known, driver=(version // 1000, version % 1000 // 10))
        nvrtc.load(known.driver[0])
        core = compiler.nvidia("core").__version__
        if tuple(int(part) for part in core.split(".")[:2]) < OLDEST_CORE:
            return replace(known, compiler_trouble="cuda-core {} is older than {}.{}".format(core, *OLDEST_CORE))
        return replace(known, compiler=compiler.compiler_version(), architectures=compiler.architectures())
    except Exception as error:  # a missing or half-installed library fails in many ways
        return replace(known, compiler_trouble=_first_line(error))


def prepare(index: int, arch: str) -> None:
    """Compiles what the cache does not hold, and loads every kernel file into card `index`. Raises MaquetteError."""
    core = compiler.nvidia("core")
    began = time.perf_counter()
    made = compiler.compile_all(arch, compiler.cache_folder())
    anew = sum(not one.cached for one in made)
    if anew:
        log.info("compiled %d GPU kernel files for %s in %.1f s", anew, arch, time.perf_counter() - began)
    with torch.cuda.device(index):
        for one in made:
            load = core.ObjectCode.from_ptx if compiler.is_ptx(arch) else core.ObjectCode.from_cubin
            module = load(one.cubin, name=one.source)
            try:
                assert module.handle  # loads it
            except Exception as error:  # cuda-core has an error class per library underneath, and none in common
                raise MaquetteError(
                    f"the driver does not load {one.source} for {arch} ({_first_line(error)})"
                ) from error
            _modules[index, one.source] = module
    _made[:] = made


def probe(card: torch.device, launcher: Launcher) -> None:
    """Runs the smallest kernel and looks at its result: a machine that only seems to work shows before a run."""
    expected = [0.25, 0.5, 0.75]
    rgb, alpha = (torch.full((size,), value, dtype=torch.uint8, device=card) for size, value in ((3, 255), (1, 0)))
    out = torch.full((3,), math.nan, device=card)
    behind = torch.tensor(expected, device=card)
    launcher("composite", "composite", (1, 1, 1), (256, 1, 1), (rgb, alpha, behind, out, 1))
    if out.tolist() != expected:
        raise MaquetteError(f"a first kernel computed {out.tolist()} instead of {expected}; install the driver again")


def loaded() -> list[compiler.Compiled]:
    """How the kernel files that `usable` loaded last came about."""
    return list(_made)


def launch(source: str, name: str, grid: Size, block: Size, arguments: Sequence[Argument]) -> None:
    """Starts kernel `name` of cuda/gpu/`source`.cu on the current stream of the card that holds the tensors.

    Raises OutOfMemory when the card's memory is full, MaquetteError for any other refusal of the driver.
    """
    index = next(one.device.index for one in arguments if isinstance(one, Tensor))
    if torch.cuda.current_device() != index:
        with torch.cuda.device(index):
            launch(source, name, grid, block, arguments)
        return
    start(index, source, name, grid, block, arguments, torch.cuda.current_stream(index).cuda_stream)


def start(
    index: int, source: str, name: str, grid: Size, block: Size, arguments: Sequence[Argument], stream: int
) -> None:
    """`launch` on the current card `index` and a stream given by its handle; asks nothing of torch.cuda."""
    driver = compiler.nvidia("bindings.driver")
    if not _thread.attached:
        _attach(index)
    function = _functions.get((index, source, name)) or _find(index, source, name)
    packed = _thread.pack(source, name, arguments)
    status = driver.cuLaunchKernel(function, *grid, *block, 0, stream, packed, 0)[0]
    if status:
        _check(status, f"starting the GPU kernel {source}.{name} on {grid} blocks of {block} threads")


def _attach(index: int) -> None:
    """Gives a fresh thread the card's context, which torch sets only when the thread changes the card."""
    driver = compiler.nvidia("bindings.driver")
    doing = f"attaching a thread to card {index}"
    status, context = driver.cuCtxGetCurrent()
    _check(status, doing)
    if not int(context):
        status, device = driver.cuDeviceGet(index)
        _check(status, doing)
        status, context = driver.cuDevicePrimaryCtxRetain(device)
        _check(status, doing)
        _check(driver.cuCtxSetCurrent(context)[0], doing)
    _thread.attached = True


def _find(index: int, source: str, name: str) -> Any:
    """The function of a loaded kernel in the current context."""
    driver = compiler.nvidia("bindings.driver")
    module = _modules.get((index, source))
    assert module is not None, f"kernels of {source}.cu are not loaded into card {index}: ask runtime.usable first"
    status, function = driver.cuKernelGetFunction(module.get_kernel(name).handle)
    _check(status, f"looking up the GPU kernel {source}.{name}")
    _functions[index, source, name] = function
    return function


class _Slots(threading.local):
    """Room for the arguments of one launch, per thread: 8 bytes each, and the array of their addresses.

    Several times faster than letting cuda.bindings make both from ctypes for every launch.
    """

    def __init__(self) -> None:
        self.values = (ctypes.c_uint64 * MOST_ARGUMENTS)()
        first = ctypes.addressof(self.values)
        self.pointers = (ctypes.c_void_p * MOST_ARGUMENTS)(*range(first, first + 8 * MOST_ARGUMENTS, 8))
        self.address = ctypes.addressof(self.pointers)
        self.attached = False  # whether this thread has the card's context

    def pack(self, source: str, name: str, arguments: Sequence[Argument]) -> int:
        """Puts the arguments into their slots and returns the address of the array that cuLaunchKernel reads."""
        form, values = "", []
        for argument in arguments:
            if isinstance(argument, Tensor):
                form += "P"
                values.append(argument.data_ptr())
            elif argument is None:
                form += "P"
                values.append(0)
            else:
                form += "f4x" if isinstance(argument, float) else "i4x"
                values.append(argument)
        try:
            struct.pack_into(form, self.values, 0, *values)
        except struct.error as error:
            raise ValueError(
                f"{source}.{name} takes 32-bit integers, got {values} ({error}); split the work"
            ) from error
        return self.address


_modules: dict[tuple[int, str], Any] = {}  # loaded kernel files, by card and file
_made: list[compiler.Compiled] = []  # how the files loaded last came about
_functions: dict[tuple[int, str, str], Any] = {}  # CUfunction by card, file and kernel
_thread = _Slots()


def _check(status: Any, doing: str) -> None:
    """Raises the error of ours that fits a driver's status."""
    driver = compiler.nvidia("bindings.driver")
    if status == driver.CUresult.CUDA_SUCCESS:
        return
    if status == driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
        advice = "close what else uses the card, or work on something smaller (--downscale, --preset draft)"
        raise OutOfMemory(f"the GPU's memory is full ({doing}); {advice}")
    meaning = driver.cuGetErrorString(status)[1]
    words = meaning.decode() if meaning else "the driver does not say what that means"
    advice = "an error of an earlier kernel may show here: run again with CUDA_LAUNCH_BLOCKING=1 and report which one"
    raise MaquetteError(f"{doing} failed with {status.name}: {words}; {advice}, or add MAQUETTE_BACKEND=reference")


def _first_line(error: BaseException | str) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
