"""What becomes of every kind of machine, the cache of compiled kernels, and what reaches the driver at a launch.

No card is needed: facts about one are made up, kernels are compiled but not run, and launches go to tests' own libcuda
(fake_driver.c), which writes down what it is asked.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from scene.errors import MaquetteError
from scene.ops import native
from scene.ops.gpu import compiler, nvrtc, runtime
from scene.ops.gpu.launch import Argument, Size
from scene.ops.gpu.runtime import CardFacts
from tests.shim.launcher import HostLauncher

ROOT = Path(__file__).resolve().parents[4]
ARCH = "sm_90"
GOOD = CardFacts("13.0", "", "NVIDIA H200", (9, 0), (13, 0), (13, 5), "", frozenset((75, 80, 89, 90, 100, 120)))
needs_compiler = pytest.mark.skipif(
    not any((Path(folder) / "cuda" / "core").is_dir() for folder in sys.path),
    reason='needs NVIDIA\'s kernel compiler: pip install "maquette[gpu]"',
)


@pytest.fixture
def source() -> str:
    """The kernel file that compiles fastest."""
    return min(compiler.kernel_files(), key=lambda name: (compiler.sources() / "gpu" / f"{name}.cu").stat().st_size)


def run(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(
        [sys.executable, "-c", program], env=variables, capture_output=True, text=True, timeout=120, check=False
    )


# ---- machines


def test_a_good_card_is_used_and_named_with_driver_and_compiler() -> None:
    assert runtime.judge(GOOD) == (True, "NVIDIA H200 (sm_90), driver for CUDA 13.0, compiler NVRTC 13.5")


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        (CardFacts(None), "built for the CPU only"),
        (CardFacts("13.0", "no card or no driver"), "no usable NVIDIA GPU: no card or no driver"),
        (replace(GOOD, capability=(7, 0)), "too old; the kernels need sm_75"),
        (replace(GOOD, compiler_trouble="No module named 'cuda.core'"), 'pip install --upgrade "maquette[gpu]"'),
        (replace(GOOD, compiler_trouble="x", driver=(12, 2)), '"maquette[gpu]" nvidia-cuda-nvrtc-cu12'),
        (replace(GOOD, capability=(13, 0)), "does not know NVIDIA H200 (sm_130) yet, and the driver, for CUDA 13.0"),
        (replace(GOOD, architectures=frozenset()), "pip install --upgrade nvidia-cuda-nvrtc"),
        (replace(GOOD, driver=(11, 8)), "is for CUDA 11.8 and cannot load what NVRTC 13.5 makes; update the driver"),
        (replace(GOOD, driver=(12, 4)), "update the driver, or: pip install nvidia-cuda-nvrtc-cu12"),
        (CardFacts("13.0", "", "unknown"), "too old"),
    ],
)
def test_every_other_machine_gets_one_line_that_says_why_and_what_to_do(facts: CardFacts, says: str) -> None:
    usable, sentence = runtime.judge(facts)
    assert not usable
    assert says in sentence and "\n" not in sentence


@pytest.mark.parametrize(
    ("capability", "driver", "target"),
    [
        ((8, 6), (13, 0), "sm_80"),
        ((10, 3), (13, 0), "sm_100"),
        ((12, 1), (13, 0), "sm_120"),
        ((13, 0), (13, 6), "compute_120"),
    ],
)
def test_a_card_newer_than_the_compiler_runs_code_for_an_older_one(
    capability: tuple[int, int], driver: tuple[int, int], target: str
) -> None:
    facts = replace(GOOD, capability=capability, driver=driver)
    usable, sentence = runtime.judge(facts)
    assert usable and facts.target == target
    assert sentence.endswith(f"compiler NVRTC 13.5, which does not know it and makes {target}")


@pytest.mark.parametrize(
    ("card", "known", "target"),
    [
        (89, (80, 86, 87), "sm_86"),  # not 87: that is Tegra's
        (88, (80, 86), "compute_86"),  # on Tegra nothing of a card's runs
        (121, (90, 100, 101), "compute_100"),
        (75, (80, 90), ""),
    ],
)
def test_code_of_embedded_chips_is_not_for_cards(card: int, known: tuple[int, ...], target: str) -> None:
    assert nvrtc.target(card, known) == target


class FakeDriver:
    """What of cuda.bindings.driver tells the driver's version."""

    class CUresult:
        CUDA_SUCCESS = 0

    @staticmethod
    def cuDriverGetVersion() -> tuple[int, int]:
        return 0, 13000


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A torch that seems to see a card, and a runtime that has not asked yet."""
    runtime._usable.cache_clear()
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(torch, "empty", lambda *size, device: None)
    yield monkeypatch
    runtime._usable.cache_clear()


def test_a_driver_that_fails_at_the_first_use_is_told_in_one_line(card: pytest.MonkeyPatch) -> None:
    def fail(*size: int, device: torch.device) -> None:
        raise RuntimeError("CUDA error: system not yet initialized\nCompile with TORCH_USE_CUDA_DSA")

    card.setattr(torch, "empty", fail)
    usable, sentence = runtime.usable(0)
    assert not usable
    assert "the driver fails (CUDA error: system not yet initialized)" in sentence


@pytest.mark.parametrize("module", ["core", "bindings.driver", "bindings.nvrtc"])
def test_without_its_compiler_a_card_is_not_used(card: pytest.MonkeyPatch, module: str) -> None:
    def missing(name: str) -> object:
        if name == module:
            raise ModuleNotFoundError(f"No module named 'cuda.{name}'")
        return compiler.nvidia(name)

    card.setattr(runtime.compiler, "nvidia", missing)
    usable, sentence = runtime.usable(0)
    assert not usable
    assert "NVIDIA H200 (sm_90) is there, but not its compiler" in sentence


def test_a_cuda_core_that_is_too_old_is_told(card: pytest.MonkeyPatch) -> None:
    class Old:
        __version__ = "0.5.1"

    card.setattr(runtime.compiler, "nvidia", lambda name: Old if name == "core" else FakeDriver)
    card.setattr(nvrtc, "load", lambda driver: None)
    assert "cuda-core 0.5.1 is older than 0.7; install it with: pip install --upgrade" in runtime.usable(0)[1]


def test_the_first_kernel_tells_a_card_that_computes_from_one_that_does_not(host_gpu: Any) -> None:
    with host_gpu():
        runtime.probe(torch.device("cpu"), HostLauncher())

    def does_nothing(source: str, name: str, grid: Size, block: Size, arguments: Sequence[Argument]) -> None:
        pass

    with pytest.raises(MaquetteError, match="a first kernel computed"):
        runtime.probe(torch.device("cpu"), does_nothing)


@pytest.mark.parametrize("result", [[0.25, 0.5, 0.0], RuntimeError("CUDA error: an illegal instruction\nmore")])
def test_a_card_whose_first_kernel_goes_wrong_is_not_used(card: pytest.MonkeyPatch, result: object) -> None:
    def fail(*card_and_launcher: object) -> None:
        raise result if isinstance(result, Exception) else MaquetteError(f"a first kernel computed {result}")

    card.setattr(runtime, "card_facts", lambda index: GOOD)
    card.setattr(runtime, "prepare", lambda index, arch: None)
    card.setattr(runtime, "probe", fail)
    usable, sentence = runtime.usable(0)
    assert not usable and "\n" not in sentence
    assert sentence.startswith("NVIDIA H200 (sm_90), driver for CUDA 13.0, compiler NVRTC 13.5; but ")


def test_kernels_that_do_not_compile_or_load_are_told_in_one_line(card: pytest.MonkeyPatch) -> None:
    def fail(index: int, arch: str) -> None:
        raise MaquetteError(f"cuda/gpu/adam.cu does not compile for {arch}: adam.cu(3): error: expected a ';'")

    card.setattr(runtime, "card_facts", lambda index: GOOD)
    card.setattr(runtime, "prepare", fail)
    assert not runtime.usable(0)[0]
    assert native.backend("cuda:0") == "reference"
    assert "adam.cu does not compile for sm_90" in native.explain("cuda:0")


def test_a_cuda_build_of_torch_without_a_driver_says_so_and_computes_without(tmp_path: Path) -> None:
    (tmp_path / "libcuda.so.1").write_text("no library")
    program = (
        "import torch; torch.version.cuda = '13.0'\n"
        "from scene.ops import native\n"
        "print(native.backend('cuda'), '|', native.explain('cuda'))"
    )
    done = run(program, LD_LIBRARY_PATH=str(tmp_path), CUDA_VISIBLE_DEVICES="0")
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.startswith("reference | reference (plain torch), because torch finds no usable NVIDIA GPU: ")
    assert done.stdout.count("\n") == 1


# ---- cache


@needs_compiler
def test_a_cached_kernel_has_the_same_bytes_ten_times_as_fast(source: str, tmp_path: Path) -> None:
    made, again = (compiler.compiled(source, ARCH, tmp_path / "new" / "folder") for _ in range(2))
    assert (made.cached, again.cached) == (False, True)
    assert again.cubin == made.cubin
    assert again.seconds * 10 <= made.seconds


@needs_compiler
@pytest.mark.parametrize("damage", [lambda old: b"", lambda old: old[:-1], lambda old: old[:99] + b"?" + old[100:]])
def test_a_damaged_file_is_compiled_anew_and_replaced(source: str, tmp_path: Path, damage) -> None:
    made = compiler.compiled(source, ARCH, tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    again = compiler.compiled(source, ARCH, tmp_path)
    assert not again.cached and again.cubin == made.cubin
    assert compiler.compiled(source, ARCH, tmp_path).cached


@needs_compiler
def test_two_processes_at_once_leave_one_good_file(source: str, tmp_path: Path) -> None:
    program = (
        "import pathlib; from scene.ops.gpu import compiler\n"
        f"compiler.compiled({source!r}, {ARCH!r}, pathlib.Path({str(tmp_path)!r}))"
    )
    both = [subprocess.Popen([sys.executable, "-c", program], cwd=ROOT) for _ in range(2)]
    assert [process.wait(120) for process in both] == [0, 0]
    assert len(list(tmp_path.iterdir())) == 1
    assert compiler.compiled(source, ARCH, tmp_path).cached


@needs_compiler
def test_a_folder_that_cannot_be_written_costs_one_line(
    source: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    # For root no folder is closed, but none can be made inside a file.
    folder = tmp_path / "file" / "folder" if os.geteuid() == 0 else closed
    for _ in range(2):
        assert not compiler.compiled(source, ARCH, folder).cached
    assert len(caplog.records) == 1 and str(folder) in caplog.text
    assert "NOT kept" in compiler.cache_state(folder)


@needs_compiler
def test_a_full_disk_costs_one_line_and_leaves_no_broken_file(source: str, tmp_path: Path) -> None:
    program = (
        "import pathlib, resource; from scene.ops.gpu import compiler\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        f"made = compiler.compiled({source!r}, {ARCH!r}, pathlib.Path({str(tmp_path)!r}))\n"
        "print(len(made.cubin))"
    )
    done = run(program, PYTHONDONTWRITEBYTECODE="1")
    assert done.returncode == 0 and int(done.stdout) > 1000
    assert done.stderr.count("\n") == 1 and "cannot be kept" in done.stderr
    assert list(tmp_path.iterdir()) == []


@needs_compiler
def test_any_change_of_kernel_header_architecture_or_compiler_is_another_file(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("gpu", "math"):
        shutil.copytree(compiler.sources() / folder, tmp_path / folder)
    monkeypatch.setattr(compiler, "sources", lambda: tmp_path)

    def key(arch: str = ARCH) -> str:
        compiler._headers.cache_clear()
        return compiler._key(source, arch)

    keys = [key(), key("sm_89")]
    for changed in (tmp_path / "gpu" / f"{source}.cu", tmp_path / "math" / "vec.h", tmp_path / "gpu" / "device.h"):
        changed.write_text(changed.read_text() + "\n")
        keys.append(key())
    monkeypatch.setattr(compiler, "compiler_version", lambda: (12, 0))
    keys.append(key())
    assert len(set(keys)) == len(keys)
    compiler._headers.cache_clear()


def test_the_folder_is_the_one_named_else_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    monkeypatch.setenv("MAQUETTE_CACHE", "/named")
    assert compiler.cache_folder() == Path("/named")
    monkeypatch.delenv("MAQUETTE_CACHE")
    assert compiler.cache_folder() == Path("/cache/maquette/kernels")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert compiler.cache_folder() == Path.home() / ".cache/maquette/kernels"


# ---- sources


def test_an_installed_package_finds_the_copy_inside_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["scikit-build"]["wheel"]["packages"]
    for inside, outside in packages.items():
        if outside.startswith("cuda/"):
            shutil.copytree(ROOT / outside, tmp_path / inside)
    (tmp_path / "cuda" / "core").mkdir(parents=True)  # NVIDIA's package beside ours
    monkeypatch.setattr(compiler, "__file__", str(tmp_path / "scene/ops/gpu/compiler.py"))
    found = compiler.sources.__wrapped__()
    assert found == tmp_path / "scene/ops/gpu/sources"
    for folder in ("gpu", "math"):
        assert sorted(path.name for path in (found / folder).iterdir()) == sorted(
            path.name for path in (ROOT / "cuda" / folder).iterdir()
        )


def test_a_checkout_uses_its_own_sources() -> None:
    assert compiler.sources() == ROOT / "cuda"


# ---- launches

START = """
import torch
from scene.ops.gpu import runtime
runtime._functions[0, "file", "kernel"] = 0xabc
numbers = torch.zeros(4)
print(numbers.data_ptr())
runtime.start(0, "file", "kernel", (1, 2, 3), (4, 5, 6), (numbers, None, 7, True, 1.5, -3), 0xdef)
"""


@pytest.fixture(scope="module")
def fake_driver(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a libcuda.so.1 that writes launches to stderr."""
    built = shutil.which("cc")
    if built is None:
        pytest.skip("needs a C compiler")
    folder = tmp_path_factory.mktemp("driver")
    library, code = folder / "libcuda.so.1", Path(__file__).with_name("fake_driver.c")
    subprocess.run([built, "-shared", "-fPIC", "-o", str(library), str(code)], check=True)
    return str(folder)


@needs_compiler
def test_a_launch_reaches_the_driver_with_grid_block_stream_and_every_argument(fake_driver: str) -> None:
    done = run(START, LD_LIBRARY_PATH=fake_driver, FAKE_CUDA_TYPES="ppiifi")
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == f"launch abc 1 2 3 4 5 6 0 def {done.stdout.strip()} 0 7 1 1.5 -3"


@needs_compiler
@pytest.mark.parametrize(
    ("status", "error", "says"),
    [
        (2, "OutOfMemory", "the GPU's memory is full (starting the GPU kernel file.kernel"),
        (700, "MaquetteError", "failed with CUDA_ERROR_ILLEGAL_ADDRESS: fake trouble; "),
    ],
)
def test_a_refused_launch_names_kernel_trouble_and_remedy(fake_driver: str, status: int, error: str, says: str) -> None:
    done = run(START, LD_LIBRARY_PATH=fake_driver, FAKE_CUDA_STATUS=str(status))
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"scene.errors.{error}: ") and says in last


PREPARE = """
import contextlib
import torch
torch.cuda.device = lambda index: contextlib.nullcontext()
from scene.ops.gpu import runtime
runtime.prepare(0, "{arch}")
numbers = torch.zeros(4)
print(numbers.data_ptr())
runtime.start(0, "adam", "any", (1, 1, 1), (32, 1, 1), (numbers,), 0)
"""


@needs_compiler
@pytest.mark.parametrize(("arch", "version", "begin"), [("sm_90", 13000, "ELF"), ("compute_90", 14000, "//")])
def test_kernel_files_are_compiled_loaded_and_found_through_cuda_core(
    fake_driver: str, tmp_path: Path, arch: str, version: int, begin: str
) -> None:
    settings = {"FAKE_CUDA_TYPES": "p", "FAKE_CUDA_VERSION": str(version), "MAQUETTE_CACHE": str(tmp_path)}
    done = run(PREPARE.format(arch=arch), LD_LIBRARY_PATH=fake_driver, **settings)
    assert done.returncode == 0, done.stderr
    *loads, launch = done.stderr.strip().splitlines()  # and nothing else, such as a warning about versions
    assert [line.strip() for line in loads if line] == [f"load {begin}"] * len(compiler.kernel_files())
    assert launch == f"launch abc 1 1 1 32 1 1 0 0 {done.stdout.strip()}"


@needs_compiler
def test_kernels_that_the_driver_does_not_load_are_told_in_one_line(fake_driver: str) -> None:
    done = run(PREPARE.format(arch="sm_90"), LD_LIBRARY_PATH=fake_driver, FAKE_CUDA_LOAD="209")
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("scene.errors.MaquetteError: the driver does not load adam for sm_90 (fake trouble")


@pytest.mark.skipif(sys.platform != "linux" or shutil.which("cc") is None, reason="needs Linux and a C compiler")
@pytest.mark.parametrize(
    ("driver", "there", "taken"),
    [(13, (12, 13), 13), (12, (12, 13), 12), (14, (12,), 12), (12, (13,), 0), (11, (12, 13), 0)],
)
def test_the_compiler_is_the_newest_that_the_driver_follows(
    tmp_path: Path, driver: int, there: tuple[int, ...], taken: int
) -> None:
    for major in there:
        folder = tmp_path / nvrtc.WHEELS[major][0]
        folder.mkdir(parents=True)
        for name in (f"libnvrtc.so.{major}", f"libnvrtc-builtins.so.{major}.0"):
            naming = [f"-Wl,-soname,{name}", "-x", "c", "/dev/null"]
            subprocess.run(["cc", "-shared", "-fPIC", "-o", str(folder / name), *naming], check=True)
    program = (
        "import sys; from scene.ops.gpu import nvrtc\n"
        f"sys.path = [{str(tmp_path)!r}]; nvrtc.load({driver})\n"
        "print([major for major in nvrtc.WHEELS if nvrtc._loaded(major)])"
    )
    assert run(program, LD_LIBRARY_PATH="").stdout.strip() == str([taken] if taken else [])


@pytest.mark.parametrize("number", [2**31, -(2**31) - 1])
def test_a_number_that_does_not_fit_is_refused_and_not_wrapped(number: int) -> None:
    with pytest.raises(ValueError, match=r"file\.kernel takes 32-bit integers"):
        runtime._thread.pack("file", "kernel", (number,))


def test_packing_costs_microseconds() -> None:
    arguments = (*[torch.zeros(4)] * 12, 7, True, 1.5)
    began = time.perf_counter()
    for _ in range(1000):
        runtime._thread.pack("file", "kernel", arguments)
    assert time.perf_counter() - began < 0.1  # 2 us each alone; 100 would show in a training step
