"""Runs the kernels of cuda/gpu on the host: each .cu file compiled by g++ with tests/shim/cuda_shim.h before it.

    with on_host(HostLauncher(schedule="random", seed=1)):  # tests: the fixture host_gpu
        ...                                                 # ops take the GPU's path on CPU tensors

A kernel that is right gives the same bits under every schedule. Errors (KernelError) are diverged barriers, masks that
do not name who arrives, writes outside an argument (with guard), and touching memory that is not there.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from scene.ops.gpu.launch import Argument, Size

SHIM = Path(__file__).parent
CUDA = SHIM.parents[1] / "cuda"
BUILT = SHIM.parents[1] / ".pytest_cache" / "shim"
SCHEDULES = ("forward", "reverse", "random")
# What the sanitizers find stops the thread with a trap: vectors that are not aligned, arrays (shared ones too) left
# behind their end, int overflow.
SANITIZE = (
    "-fsanitize=alignment,bounds,shift,signed-integer-overflow,integer-divide-by-zero",
    "-fsanitize-undefined-trap-on-error",
)
FLAGS = ("-std=c++17", "-O1", "-g1", "-fPIC", "-ffp-contract=off", "-fno-strict-aliasing", "-w", *SANITIZE)

MARGIN = 4096  # bytes on both sides of a guarded argument
CANARY = 0x7FC5A5A5  # as in fibers.h: a NaN, and no sensible integer
_running = threading.Lock()  # threadIdx and its like are globals of the compiled file

# What a parameter's letter (fibers.h, signature) takes.
_LETTERS: dict[str, tuple[str, tuple[torch.dtype, ...]]] = {
    "F": ("a pointer to float", (torch.float32,)),
    "I": ("a pointer to 32-bit integers", (torch.int32, torch.uint32)),
    "S": ("a pointer to 16-bit integers", (torch.int16, torch.uint16, torch.float16, torch.bfloat16)),
    "L": ("a pointer to 64-bit integers", (torch.int64, torch.uint64)),
    "B": ("a pointer to bytes", (torch.uint8, torch.int8, torch.bool)),
    "V": ("a pointer", ()),
    "i": ("an int", ()),
    "f": ("a float", ()),
}


class KernelError(RuntimeError):
    """A kernel did what it must not; says which kernel, which block and which line."""


class _Launch(ctypes.Structure):
    """mq_shim::Launch."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("schedule", ctypes.c_int),
        ("seed", ctypes.c_uint32),
        ("arguments", ctypes.POINTER(ctypes.c_uint64)),
        ("error", ctypes.c_char * 1024),
        ("fault", ctypes.c_uint64),
    )


def why_not() -> str | None:
    """Why the shim cannot run here, or None."""
    if shutil.which("g++") is None:
        return "the host shim needs g++"
    if platform.machine() not in ("x86_64", "AMD64"):
        return f"the host shim switches stacks with x86-64 instructions, this is {platform.machine()}"
    return None


def compile_source(path: Path) -> Path:
    """The library of one .cu file; compiled again only when the preprocessed text changes."""
    command = ["g++", "-x", "c++", "-E", *FLAGS, "-DMQ_HOST_SHIM", "-include", str(SHIM / "cuda_shim.h"), f"-I{CUDA}"]
    text = _gcc([*command, str(path)], path)
    library = BUILT / f"{path.stem}-{hashlib.sha256(' '.join((*FLAGS, text)).encode()).hexdigest()[:24]}.so"
    if library.exists():
        return library
    names = re.findall(r"__attribute__\(\(annotate_mq_kernel\)\)\s*void\s+(\w+)\s*\(", text)
    entries = "".join(
        f'extern "C" int mq_run_{name}(mq_shim::Launch* l) {{ return mq_shim::run("{name}", {name}, *l); }}\n'
        f'extern "C" const char* mq_signature_{name}() {{ return mq_shim::signature({name}); }}\n'
        for name in names
    )
    BUILT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BUILT) as folder:
        whole, built = Path(folder) / "whole.ii", Path(folder) / "whole.so"
        whole.write_text(f"{text}\nnamespace maquette {{}}\nusing namespace maquette;\n{entries}")
        _gcc(["g++", "-x", "c++-cpp-output", *FLAGS, "-shared", str(whole), "-o", str(built)], path)
        built.replace(library)
    return library


def _gcc(command: list[str], path: Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise KernelError(f"{path.name} does not compile for the host:\n{done.stderr[:4000]}")
    return done.stdout


_libraries: dict[tuple[Path, str], ctypes.CDLL] = {}


def _library(path: Path) -> ctypes.CDLL:
    key = path, str(os.getpid())  # within a process the sources are read once
    if key not in _libraries:
        _libraries[key] = ctypes.CDLL(str(compile_source(path)))
    return _libraries[key]


@dataclass(frozen=True)
class HostLauncher:
    """A scene.ops.gpu.launch.Launcher for the host."""

    schedule: str = "forward"  # the order of blocks and threads: forward, reverse or random
    seed: int = 0  # of the random schedule
    guard: bool = True  # arguments lie between canaries while the kernel runs
    folder: Path = CUDA / "gpu"

    def __call__(self, source: str, name: str, grid: Size, block: Size, arguments: Sequence[Argument]) -> None:
        library = _library(self.folder / f"{source}.cu")
        kernel = f"{source}.{name}"
        try:
            run, signature = library[f"mq_run_{name}"], library[f"mq_signature_{name}"]
        except AttributeError as error:
            raise KernelError(f"{source}.cu has no kernel {name} (MQ_KERNEL {name}(...))") from error
        signature.restype = ctypes.c_char_p
        _check_arguments(kernel, signature().decode(), arguments)
        _check_sizes(kernel, grid, block)
        guards = _Guards([a for a in arguments if isinstance(a, Tensor)]) if self.guard else None
        bits = [_bits(argument, guards) for argument in arguments]
        call = _Launch(
            (ctypes.c_uint * 3)(*grid),
            (ctypes.c_uint * 3)(*block),
            SCHEDULES.index(self.schedule),
            self.seed,
            (ctypes.c_uint64 * max(len(bits), 1))(*bits),
        )
        with _running:
            failed = run(ctypes.byref(call))
        if failed:
            where = _line_of(library, call.fault) if call.fault else ""
            raise KernelError(f"{source}.cu: {call.error.decode()}{where}")
        if guards is not None:
            guards.check_and_copy_back(kernel, arguments)


def _line_of(library: ctypes.CDLL, offset: int) -> str:
    """Where in the sources, as far as addr2line can say."""
    if shutil.which("addr2line") is None:
        return ""
    command = ["addr2line", "-i", "-s", "-e", library._name, hex(offset)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return "".join(f", at {line}" for line in done.stdout.split("\n") if line and "?" not in line)


def _check_sizes(kernel: str, grid: Size, block: Size) -> None:
    """The hardware's limits."""
    if block[0] * block[1] * block[2] > 1024 or block[2] > 64 or min(block) < 1:
        raise KernelError(f"{kernel}: a block of {block} threads; at most 1024, 64 of them along z")
    if min(grid) < 1 or grid[0] >= 2**31 or max(grid[1:]) > 65535:
        raise KernelError(f"{kernel}: a grid of {grid} blocks; at most 2^31 - 1, 65535, 65535")


def _check_arguments(kernel: str, signature: str, arguments: Sequence[Argument]) -> None:
    if len(signature) != len(arguments):
        raise KernelError(f"{kernel} takes {len(signature)} arguments, got {len(arguments)}")
    for position, (letter, argument) in enumerate(zip(signature, arguments)):
        if letter not in _LETTERS:
            raise KernelError(f"{kernel}: parameter {position} must be a pointer, an int or a float")
        wanted, dtypes = _LETTERS[letter]
        if argument is None:
            fits, got = letter.isupper(), "None"
        elif isinstance(argument, Tensor):
            fits, got = letter.isupper() and (not dtypes or argument.dtype in dtypes), f"a tensor of {argument.dtype}"
        else:
            fits, got = letter == ("f" if isinstance(argument, float) else "i"), f"{argument!r}"
        if not fits:
            raise KernelError(f"{kernel}: parameter {position} is {wanted}, got {got}")


def _bits(argument: Argument, guards: _Guards | None) -> int:
    if argument is None:
        return 0
    if isinstance(argument, Tensor):
        return argument.data_ptr() if guards is None else guards.address(argument)
    if isinstance(argument, float):
        return ctypes.c_uint32.from_buffer(ctypes.c_float(argument)).value
    if not -(2**31) <= argument < 2**31:
        raise KernelError(f"{argument} is no 32-bit int")
    return argument & 0xFFFFFFFF


def _view(address: int, size: int) -> ctypes.Array[ctypes.c_char]:
    return (ctypes.c_char * size).from_address(address)


class _Guards:
    """Copies of all arguments, each between two margins of canaries; arguments that overlap share one copy."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        spans = sorted((t.data_ptr(), t.data_ptr() + t.numel() * t.element_size()) for t in tensors if t.numel())
        self.spans: list[tuple[int, int]] = []
        for begin, end in spans:
            if self.spans and begin < self.spans[-1][1]:
                self.spans[-1] = self.spans[-1][0], max(end, self.spans[-1][1])
            else:
                self.spans.append((begin, end))
        margin = CANARY.to_bytes(4, "little") * (MARGIN // 4)
        self.margin = margin
        self.buffers: list[ctypes.Array[ctypes.c_char]] = []
        self.starts: list[int] = []  # address of the copy
        for begin, end in self.spans:
            buffer = ctypes.create_string_buffer(end - begin + 2 * MARGIN + 64)
            start = ctypes.addressof(buffer) + MARGIN
            start += (begin - start) % 64  # as aligned as the original
            ctypes.memmove(start - MARGIN, margin, MARGIN)
            ctypes.memmove(start, begin, end - begin)
            ctypes.memmove(start + end - begin, margin, MARGIN)
            self.buffers.append(buffer)
            self.starts.append(start)

    def address(self, tensor: Tensor) -> int:
        pointer = tensor.data_ptr()
        for (begin, end), start in zip(self.spans, self.starts):
            if begin <= pointer < end and tensor.numel():
                return start + pointer - begin
        return pointer  # an empty tensor's, as on the GPU: usually null

    def check_and_copy_back(self, kernel: str, arguments: Sequence[Argument]) -> None:
        for (begin, end), start in zip(self.spans, self.starts):
            size = end - begin
            for first in (-MARGIN, size):
                found = _view(start + first, MARGIN).raw
                if found == self.margin:
                    continue
                at = first + next(i for i in range(MARGIN) if found[i] != self.margin[i])
                whose = [i for i, a in enumerate(arguments) if isinstance(a, Tensor) and begin <= a.data_ptr() < end]
                raise KernelError(f"{kernel} writes at byte {at} of argument {whose}, which has {size} bytes")
            ctypes.memmove(begin, start, size)
