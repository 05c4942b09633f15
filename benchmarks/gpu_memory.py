"""Memory of a training step on a GPU, buffer by buffer, ours beside gsplat's; no card is needed.

    python -m benchmarks.gpu_memory                                  # 1M splats, 1920x1080
    python -m benchmarks.gpu_memory --splats 5000000 --size 3840x2160 --moments float32

Both steps run with their own Python code on CPU tensors of the true sizes while every kernel does nothing, and each
tensor's life is followed: what is alive at the worst moment is the peak that an allocator without waste would show.
Of ours all is measured, since kernels get all their room from Python. gsplat allocates in C++ too; `gsplat_kernels`
states what the sources of 1.5.3 do there, but for the room of its sort. Its step is that of benchmarks/gsplat_cuda.py
with torch's Adam and fused-ssim's buffers, without the state of a densification strategy.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, Literal
from unittest import mock

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks import gsplat_cuda
from benchmarks.common import table
from benchmarks.gpu import STANDING, OurStep, work_of
from benchmarks.gpu_model import Work
from benchmarks.gsplat_cuda import GsplatStep
from benchmarks.scenes import BenchmarkScene, synthetic
from scene.cameras import Camera
from scene.gaussians import Gaussians
from scene.ops.gpu.launch import Argument, Size, on_host
from scene.ops.gpu.splat_bin import SplatBins

ROOT = Path(__file__).resolve().parent.parent
HELPERS = ("launch.py", "gpu_memory.py")  # they allocate for others
GSPLAT = "1.5.3"
SMALL = 0.002  # of the peak; less is summed up in one line of the table


class Lives(TorchDispatchMode):
    """Follows every tensor that is made within it."""

    def __init__(self) -> None:
        super().__init__()
        self._alive: dict[int, tuple[StorageWeakRef, str, int]] = {}
        self.peak: dict[str, int] = {}  # bytes by buffer at the worst moment
        self.most: dict[str, int] = {}  # the most that each held at any moment

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        known = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._meet(leaf, known)
        self.look()
        return result

    def _meet(self, tensor: Tensor, known: set[int]) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._alive or key in known or storage.nbytes() == 0:
            return
        # The weak reference keeps the address from being given to another storage.
        self._alive[key] = (StorageWeakRef(storage), _buffer(sys._getframe(2)), storage.nbytes())

    def look(self) -> None:
        """Counts what is alive now."""
        self._alive = {key: life for key, life in self._alive.items() if not life[0].expired()}
        now: dict[str, int] = {}
        for _, name, size in self._alive.values():
            now[name] = now.get(name, 0) + size
        for name, size in now.items():
            self.most[name] = max(size, self.most.get(name, 0))
        if sum(now.values()) > sum(self.peak.values()):
            self.peak = now


def _buffer(frame: FrameType | None) -> str:
    """The function of ours or of the peer that allocates."""
    while frame is not None:
        file, name = Path(frame.f_code.co_filename), frame.f_code.co_name
        ours = file.is_relative_to(ROOT) and "site-packages" not in file.parts
        allocates = (ours or "gsplat" in file.parts or "optim" in file.parts) and file.name not in HELPERS
        if allocates and not name.startswith("<"):  # a comprehension has no name
            return f"{file.stem}: {frame.f_code.co_qualname}"
        frame = frame.f_back
    return "autograd"


@contextmanager
def our_kernels(pairs: int, lives: Lives) -> Iterator[None]:
    """Our ops take the GPU's path; kernels do nothing, and the count of pairs that sizes the lists is given."""

    def launcher(source: str, name: str, grid: Size, block: Size, arguments: Sequence[Argument]) -> None:
        lives.look()

    with on_host(launcher), mock.patch.object(SplatBins, "pairs", pairs):
        yield


def gsplat_kernels(pairs: int) -> dict[str, Callable[..., Any]]:
    """By name: what gsplat 1.5.3's C++ functions allocate and return (gsplat/cuda/csrc/*.cpp)."""

    def project(means: Tensor, *rest: Any) -> tuple[Tensor | None, ...]:  # Projection.cpp:146-155
        one = (1, len(means))
        radii = means.new_empty((*one, 2), dtype=torch.int32)
        return radii, means.new_empty((*one, 2)), means.new_empty(one), means.new_empty((*one, 3)), None

    def project_backward(means: Tensor, covars: None, quats: Tensor, scales: Tensor, *rest: Any) -> Any:  # :239-245
        return torch.zeros_like(means), None, torch.zeros_like(quats), torch.zeros_like(scales), None

    def intersect(means2d: Tensor, radii: Tensor, depths: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
        tiles = torch.zeros_like(depths, dtype=torch.int32)  # Intersect.cpp:57-121
        before = tiles.view(-1).cumsum(0)
        keys, ids = tiles.new_empty(pairs, dtype=torch.int64), tiles.new_empty(pairs)
        sorted_keys, sorted_ids = torch.empty_like(keys), torch.empty_like(ids)
        del before, keys, ids
        return tiles, sorted_keys, sorted_ids

    def offsets(keys: Tensor, images: int, columns: int, rows: int) -> Tensor:  # Intersect.cpp:161
        return keys.new_empty((images, rows, columns), dtype=torch.int32)

    def blend(means2d: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:  # Rasterization.cpp:56-64
        area = (1, rest[6], rest[5])
        last = means2d.new_empty(area, dtype=torch.int32)
        return means2d.new_empty((*area, 3)), means2d.new_empty((*area, 1)), last

    def blend_backward(means2d: Tensor, conics: Tensor, colors: Tensor, opacities: Tensor, *rest: Any) -> Any:
        return (None, *(torch.zeros_like(part) for part in (means2d, conics, colors, opacities)))  # :162-165

    def harmonics_backward(bases: int, degree: int, dirs: Tensor, coeffs: Tensor, *rest: Any) -> Any:
        return torch.zeros_like(coeffs), torch.zeros_like(dirs)  # SphericalHarmonics.cpp

    return {
        "projection_ewa_3dgs_fused_fwd": project,
        "projection_ewa_3dgs_fused_bwd": project_backward,
        "intersect_tile": intersect,
        "intersect_offset": offsets,
        "rasterize_to_pixels_3dgs_fwd": blend,
        "rasterize_to_pixels_3dgs_bwd": blend_backward,
        "spherical_harmonics_fwd": lambda degree, dirs, coeffs, masks: torch.empty_like(dirs),
        "spherical_harmonics_bwd": harmonics_backward,
    }


class _FusedSsim(torch.autograd.Function):
    """What fused-ssim allocates: its map and three derivatives, and one picture on the way back (ssim.cu)."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, target: Tensor) -> Tensor:
        kept = [torch.empty_like(image) for _ in range(4)]
        ctx.save_for_backward(*kept)
        return kept[0].sum()

    @staticmethod
    def backward(ctx: Any, *v: Tensor) -> tuple[Tensor, None]:
        return torch.empty_like(ctx.saved_tensors[0]), None


def _fused_ssim(image: Tensor, target: Tensor, padding: str) -> Tensor:
    return _FusedSsim.apply(image.contiguous(), target.contiguous())  # pyright: ignore[reportReturnType]


@contextmanager
def peer_kernels(pairs: int) -> Iterator[None]:
    """gsplat's own Python code over kernels that only allocate."""
    wrapper = importlib.import_module("gsplat.cuda._wrapper")
    kernels = gsplat_kernels(pairs)
    with (
        mock.patch.object(wrapper, "_make_lazy_cuda_func", kernels.__getitem__),
        mock.patch.object(wrapper, "_make_lazy_cuda_obj", lambda name: name),
        mock.patch.object(gsplat_cuda, "_fused_ssim", lambda: _fused_ssim),
    ):
        yield


@dataclass(frozen=True)
class Case:
    """Whose training step at which size. moments: dtype of Adam's in ours; torch's has that of the parameters."""

    whose: Literal["ours", "gsplat"]
    work: Work
    width: int
    moments: torch.dtype = torch.bfloat16


def lives_of(case: Case) -> Lives:
    """Two steps: the second has all that stays."""
    scene, lives, pairs = _blank(case.work, case.width), Lives(), case.work.pairs
    with our_kernels(pairs, lives) if case.whose == "ours" else peer_kernels(pairs), lives:
        step = OurStep(scene, STANDING, case.moments) if case.whose == "ours" else GsplatStep(scene, STANDING)
        for _ in range(2):
            step.run()
    return lives


def _blank(work: Work, width: int) -> BenchmarkScene:
    """Splats and photo of the right sizes, of which no memory is ever touched."""
    n = work.splats
    gaussians = Gaussians(
        means=torch.zeros(n, 3),
        quats=torch.zeros(n, 4),
        log_scales=torch.zeros(n, 3),
        opacity_logits=torch.zeros(n),
        sh_dc=torch.zeros(n, 3),
        sh_rest=torch.zeros(n, 15, 3),
    )
    height = work.pixels // width
    camera = Camera(torch.eye(3), torch.eye(4), width, height)
    return BenchmarkScene("blank", gaussians, camera, torch.zeros(height, width, 3, dtype=torch.uint8))


@dataclass(frozen=True)
class Buffer:
    """The most bytes that a buffer holds, how they grow, and those alive at the worst moment."""

    name: str
    per_splat: float
    per_pair: float
    per_pixel: float
    most: int
    at_peak: int


def buffers(case: Case) -> list[Buffer]:
    """All buffers, the largest at the peak first; what each grows with is found by doubling the work."""
    base, work = lives_of(case), case.work
    grown: dict[str, tuple[int, Mapping[str, int]]] = {}
    for field in ("splats", "pairs", "pixels"):
        more = replace(work, **{field: 2 * getattr(work, field)})
        grown[field] = (getattr(work, field), lives_of(replace(case, work=more)).most)
    found = []
    for name, most in base.most.items():
        slopes = [(new.get(name, most) - most) / size for size, new in grown.values()]
        found.append(Buffer(name, slopes[0], slopes[1], slopes[2], most, base.peak.get(name, 0)))
    return sorted(found, key=lambda buffer: (-buffer.at_peak, -buffer.most))


def text(whose: str, found: Sequence[Buffer], work: Work) -> str:
    """The buffers as a table."""
    peak = sum(buffer.at_peak for buffer in found)
    shown = [buffer for buffer in found if buffer.most > SMALL * peak]
    rows = [[b.name, b.per_splat, b.per_pair, b.per_pixel, b.most / 1e6, b.at_peak / 1e6] for b in shown]
    rest = sum(buffer.at_peak for buffer in found if buffer not in shown)
    rows += [["the rest", None, None, None, None, rest / 1e6], ["peak", None, None, None, None, peak / 1e6]]
    head = [whose, "B/splat", "B/pair", "B/pixel", "MB at most", "MB at the peak"]
    return f"{table(head, rows)}\n{whose}: {peak / work.splats:.0f} bytes a splat at the peak"


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints both tables and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splats", type=int, default=1_000_000)
    parser.add_argument("--size", default="1920x1080", help="WIDTHxHEIGHT")
    parser.add_argument("--pairs", type=int, help="of tile and splat; counted on a synthetic scene where not given")
    parser.add_argument("--moments", choices=("float32", "bfloat16"), default="bfloat16", help="of Adam, in ours")
    options = parser.parse_args(arguments)
    if (installed := importlib.metadata.version("gsplat")) != GSPLAT:
        raise SystemExit(f"what gsplat allocates was read in the sources of {GSPLAT}, and {installed} is installed")
    width, height = (int(part) for part in options.size.split("x"))
    pairs = options.pairs or work_of(synthetic(options.splats, width, height)).pairs
    work = Work(options.splats, options.splats, pairs, width * height)
    print(f"{work.splats} splats, {width}x{height}, {pairs} pairs of tile and splat")
    peaks = []
    for whose in ("ours", "gsplat"):
        found = buffers(Case(whose, work, width, getattr(torch, options.moments)))
        peaks.append(sum(buffer.at_peak for buffer in found))
        print(f"\n{text(whose, found, work)}", flush=True)
    print(f"\nours over gsplat: {peaks[0] / peaks[1]:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
