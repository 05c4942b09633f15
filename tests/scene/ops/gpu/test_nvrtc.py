"""Every kernel compiles for every card generation that is served, within limits that need no card to be checked."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pytest

from scene.errors import MaquetteError
from scene.ops.gpu import compiler

pytest.importorskip("cuda.core", reason='needs NVIDIA\'s kernel compiler: pip install "maquette[gpu]"')

ARCHITECTURES = ("sm_75", "sm_80", "sm_89", "sm_90", "sm_100", "sm_120")
FIRST_USE_SECONDS = 20.0  # what a first start may cost
STATIC_SHARED = 48 << 10  # bytes; more would need an opt-in per kernel at run time


@dataclass(frozen=True)
class Cost:
    """What ptxas says of one kernel."""

    kernel: str
    registers: int
    shared: int  # bytes per block
    spills: int  # bytes per thread, stores and loads


def costs(log: str) -> list[Cost]:
    """Reads the log that `ptxas -v` writes."""
    found = []
    for part in re.split(r"(?=Compiling entry function)", log)[1:]:
        name, used = re.search(r"function '(\w+)'", part), re.search(r"Used (\d+) registers", part)
        assert name and used, part
        spills = sum(int(number) for number in re.findall(r"(\d+) bytes spill", part))
        shared = re.search(r"(\d+) bytes smem", part)
        found.append(Cost(name[1], int(used[1]), int(shared[1]) if shared else 0, spills))
    return found


@lru_cache(maxsize=len(ARCHITECTURES))
def compiled_for(arch: str) -> tuple[list[compiler.Compiled], float]:
    """All kernel files, compiled without a cache, and the processor seconds of it."""
    began = time.process_time()  # of all threads: a busy machine does not count, and waiting is at most that long
    return compiler.compile_all(arch), time.process_time() - began


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_kernel_compiles_fast_without_spills_and_within_static_shared_memory(
    arch: str, record_property: Callable[[str, object], None]
) -> None:
    made, seconds = compiled_for(arch)
    record_property("processor seconds", round(seconds, 2))
    assert [one.source for one in made] == compiler.kernel_files()
    assert seconds <= FIRST_USE_SECONDS
    for one in made:
        kernels = costs(one.log)
        assert one.cubin[:4] == b"\x7fELF" and kernels
        for kernel in kernels:
            assert kernel.spills == 0, f"{one.source}.{kernel}"
            assert kernel.shared <= STATIC_SHARED, f"{one.source}.{kernel}"


def test_kernels_include_nothing_but_ours() -> None:
    for path in [*compiler.sources().glob("gpu/*.cu"), *compiler.sources().glob("gpu/*.h")]:
        includes = re.findall(r"^#include (\S+)", path.read_text(), re.MULTILINE)
        assert [name for name in includes if not re.fullmatch(r'"(gpu|math)/\w+\.h"', name)] == [], path.name


def test_every_kernel_that_python_starts_by_a_fixed_name_exists() -> None:
    there = {one.source: {cost.kernel for cost in costs(one.log)} for one in compiled_for("sm_90")[0]}
    started = [
        (path.name, *pair)
        for path in Path(compiler.__file__).parent.glob("*.py")
        for pair in re.findall(r"^ +launch\(\s*\"(\w+)\",\s*\"(\w+)\"", path.read_text(), re.MULTILINE)
    ]
    assert started
    assert [one for one in started if one[2] not in there.get(one[1], set())] == []


def test_a_kernel_that_does_not_compile_is_one_line_with_file_architecture_and_place() -> None:
    with pytest.raises(MaquetteError) as told:
        compiler.compile_source(compiler.kernel_files()[0], "sm_13")
    assert "does not compile for sm_13" in str(told.value)
    assert "\n" not in str(told.value)
