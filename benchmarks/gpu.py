"""Speed of Gaussian training on an NVIDIA GPU, side by side with gsplat in one run.

    python -m benchmarks.gpu --json "benchmarks/results/gpu_{card}.json"      # {card}: the card's name
    python -m benchmarks.gpu --counts 100000 --sizes 800x800 --no-training    # half a minute, for a look

Per number of splats and picture size: forward and backward by all parameters, the whole training step, peak memory,
both ours and gsplat's by turns on the same scene after their outputs were compared; our stages beside the floors of
benchmarks/gpu_model.py; whether two backward passes are equal to the bit. Then voxel grids and octrees, beside torch
and nerfacc (benchmarks/gpu_grids.py); the seconds to compile all kernels; whole trainings to a PSNR. Without gsplat or
nerfacc their columns are null. Needs torch, numpy and pillow and nothing else.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import gpu_grids, gpu_model, gpu_training, gsplat_cuda, nerfacc_cuda, scenes
from benchmarks.common import record, table, write_json
from benchmarks.gpu_model import Card, Work
from benchmarks.gpu_timing import Candidate, Laps, by_turns, copy_rate, peak_bytes, stages_timed
from benchmarks.gsplat_cuda import GsplatStep
from scene.gaussians import Gaussians
from scene.ops import native
from scene.ops.gpu import runtime
from scene.ops.photometric_loss import photometric_loss_and_grad
from scene.ops.splat_project import project
from scene.ops.splat_step import AdamState, Rates, SplatStep

STANDING = Rates(1e-30, 1e-30, 1e-30, 1e-30, 1e-30, 1e-30)  # all the work of a step, and the scene stays what it was
IMAGE_LIMIT, GRADIENT_LIMIT = 1e-4, 1e-3  # to the peer: absolute; Euclidean, relative to the gradient's length
STRAY = 1e-4  # share of pixels that may differ by more: a splat at the very edge of being drawn is one or is none


class Mismatch(Exception):
    """Ours and the peer's compute different things."""


@dataclass
class OurStep:
    """One training step of ours. scene: on the GPU. moments: dtype of Adam's, by default what training takes there."""

    scene: scenes.BenchmarkScene
    rates: Rates = STANDING
    moments: torch.dtype = torch.bfloat16
    step: SplatStep = field(init=False)

    def __post_init__(self) -> None:
        gaussians = self.scene.gaussians.clone()
        self.step = SplatStep(gaussians, AdamState.zeros(gaussians, self.moments))
        self.black = gaussians.means.new_zeros(3)
        self.v_image = gaussians.means.new_empty(self.scene.camera.height, self.scene.camera.width, 3)
        self.camera = self.scene.camera.to(device="cpu")  # as in training: nothing to read back from the card

    def forward_backward(self, v_image: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Image and the gradients by all parameters."""
        image = self.step.forward(self.camera, self.black, sh_degree=3)
        self.step.backward(v_image)
        gradients = self.step.gradients()
        del gradients["viewmat"]
        return image, gradients

    def run(self) -> None:
        """The whole step."""
        image = self.step.forward(self.camera, self.black, sh_degree=3)
        photometric_loss_and_grad(image, self.scene.photo, v_image=self.v_image)
        self.step.backward(self.v_image)
        self.step.update(self.rates)


def on_device(scene: scenes.BenchmarkScene, device: torch.device) -> scenes.BenchmarkScene:
    """The scene with all tensors there."""
    named = {name: value.to(device) for name, value in scene.gaussians.parameters().items()}
    return replace(
        scene, gaussians=Gaussians(**named), camera=scene.camera.to(device=device), photo=scene.photo.to(device)
    )


def work_of(scene: scenes.BenchmarkScene) -> Work:
    """How much one step of this scene has to do."""
    g, camera = scene.gaussians, scene.camera
    with torch.no_grad():
        splats = (g.means, g.quats, g.log_scales, g.opacity_logits, g.sh_dc, g.sh_rest)
        p = project(*splats, camera.viewmat, camera.K, camera.width, camera.height, sh_degree=3)
    bins = native.kernels(g.means.device).SplatBins()
    bins.build(p.means2d, p.conics, p.opacities, p.depths, p.extents, camera.width, camera.height)
    return Work(len(g), len(p), int(bins.pairs), camera.width * camera.height)


def differences(ours: tuple[Tensor, dict[str, Tensor]], theirs: tuple[Tensor, dict[str, Tensor]]) -> dict[str, float]:
    """Image: largest difference but for the STRAY share of pixels; gradients: relative lengths.

    Raises Mismatch when one is too large: what computes something else is not worth timing.
    """
    apart = (ours[0] - theirs[0]).abs().amax(-1).flatten()
    kept = apart.sort().values[: max(1, int(len(apart) * (1 - STRAY)))]
    found: dict[str, float] = {"image": float(kept[-1]), "image_worst_pixel": float(apart.max())}
    for name, wanted in theirs[1].items():
        found[name] = float((ours[1][name] - wanted).norm() / wanted.norm().clamp_min(1e-30))
    limits = {"image": IMAGE_LIMIT, "image_worst_pixel": 1.0}
    wrong = {name: value for name, value in found.items() if not value <= limits.get(name, GRADIENT_LIMIT)}
    if wrong:
        raise Mismatch(f"our outputs differ from gsplat's by {wrong}")
    return found


def equal_to_the_bit(ours: OurStep, v_image: Tensor) -> bool:
    """Whether two passes over the same splats give the same image and gradients."""
    results = []
    for _ in range(2):
        image, gradients = ours.forward_backward(v_image)
        results.append([image.clone(), *gradients.values()])
    return all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def race(scene: scenes.BenchmarkScene, card: Card, samples: int, *, peer: bool) -> dict[str, Any]:
    """All figures of one scene, on the device that holds it."""
    device, camera = scene.photo.device, scene.camera
    generator = torch.Generator().manual_seed(0)
    v_image = (torch.rand(camera.height, camera.width, 3, generator=generator) - 0.5).to(device)
    peaks = {"ours": peak_bytes(lambda: OurStep(scene), device)}
    if peer:
        peaks["gsplat"] = peak_bytes(lambda: GsplatStep(scene, STANDING), device)
    work, ours = work_of(scene), OurStep(scene)
    facts: dict[str, Any] = {"scene": scene.name, "size": [camera.width, camera.height], **asdict(work)}
    facts |= {"equal_to_the_bit": equal_to_the_bit(ours, v_image), "peak_bytes": peaks}
    candidates: dict[str, Candidate] = {
        "ours: forward + backward": lambda: ours.forward_backward(v_image),
        "ours: step": ours.run,
    }
    if peer:
        try:
            facts["differences"], timed = _peer(scene, ours, v_image)
            candidates |= timed
        except Mismatch as error:  # the run goes on: it may be the only one that this card is lent for
            facts["mismatch"] = str(error)
    laps = by_turns(candidates, device, samples=samples)
    facts |= {"ms": laps.medians(), "p10_p90_ms": laps.spread()}
    facts["ratios"] = gpu_model.ratios(facts["ms"], peaks)
    stages = Laps(device)
    with stages_timed(native.kernels(device), stages):
        for _ in range(samples):
            ours.run()
        stages.close()
    facts["stages"] = gpu_model.stage_table(work, card, stages.medians())
    return facts


def _peer(
    scene: scenes.BenchmarkScene, ours: OurStep, v_image: Tensor
) -> tuple[dict[str, float], dict[str, Candidate]]:
    """How far gsplat's outputs are from ours, and what is timed of it. Raises Mismatch."""
    theirs, selective = GsplatStep(scene, STANDING), GsplatStep(scene, STANDING, "selective")
    apart = differences(ours.forward_backward(v_image), theirs.forward_backward(v_image))
    return apart, {
        "gsplat: forward + backward": lambda: theirs.forward_backward(v_image),
        "gsplat: step": theirs.run,
        "gsplat: step, selective Adam": selective.run,
    }


def report(facts: Mapping[str, Any]) -> str:
    """One scene as text."""
    width, height = facts["size"]
    lines = [
        f"\n{facts['scene']}, {width}x{height}: {facts['visible']} of {facts['splats']} splats visible, "
        f"{facts['pairs']} pairs; two backward passes equal to the bit: {facts['equal_to_the_bit']}"
    ]
    if "differences" in facts:
        lines.append("difference to gsplat: " + ", ".join(f"{k} {v:.1e}" for k, v in facts["differences"].items()))
    if "mismatch" in facts:
        lines.append(f"gsplat was NOT TIMED: {facts['mismatch']}")
    lines.append(
        table(["", "median ms", "p10", "p90"], [[n, ms, *facts["p10_p90_ms"][n]] for n, ms in facts["ms"].items()])
    )
    lines.append(gpu_model.stage_text(facts["stages"]))
    lines.append(", ".join(f"{name} {'-' if v is None else f'{v:.2f}'}" for name, v in facts["ratios"].items()))
    if facts["peak_bytes"]["ours"]:
        lines.append(f"peak memory of ours: {facts['peak_bytes']['ours'] / facts['splats']:.0f} bytes a splat")
    return "\n".join(lines)


COMPILE = """
import time
began = time.perf_counter()
from scene.ops.gpu import runtime
good, why = runtime.usable(0)
assert good, why
print(time.perf_counter() - began)
"""


def compile_seconds() -> dict[str, float]:
    """Seconds from a fresh process's first thought of the GPU to kernels that run: empty cache folder, then full.

    Starting torch and the driver is in both.
    """
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("cold", "warm"):
            environment = os.environ | {"MAQUETTE_CACHE": folder}
            done = subprocess.run(
                [sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, timeout=300
            )
            if done.returncode != 0:
                raise SystemExit(f"the kernels do not compile: {done.stderr[-2000:]}")
            found[name] = round(float(done.stdout), 3)
    return found


def card_record(device: torch.device) -> dict[str, Any]:
    """Name, memory, multiprocessors and driver of the card."""
    facts = torch.cuda.get_device_properties(device)
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", f"--id={device.index or 0}"]
    try:
        driver = subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        driver = ""
    return {
        "name": facts.name,
        "memory_bytes": facts.total_memory,
        "multiprocessors": facts.multi_processor_count,
        "capability": f"{facts.major}.{facts.minor}",
        "driver": driver or None,
        "torch_cuda": torch.version.cuda,
    }


def slug(name: str) -> str:
    """A card's name as part of a file's: NVIDIA H200 -> h200."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower().removeprefix("nvidia ")).strip("_")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", nargs="*", type=int, default=[100_000, 1_000_000, 5_000_000], help="splats")
    parser.add_argument("--sizes", nargs="+", type=_size, default=[(800, 800), (1920, 1080)], help="WIDTHxHEIGHT")
    parser.add_argument("--samples", type=int, default=24, help="of each candidate; figures are their medians")
    parser.add_argument("--no-gsplat", action="store_true", help="leave out the peer")
    parser.add_argument("--rays", type=int, default=8192, help="of a step of a voxel grid; 0 leaves grids out")
    parser.add_argument("--voxels", type=int, default=160**3, help="of that grid")
    parser.add_argument("--no-nerfacc", action="store_true", help="leave out the grids' peer")
    parser.add_argument("--no-training", action="store_true", help="leave out the whole trainings")
    parser.add_argument("--training-seconds", type=float, default=90.0, help="longest time for one training")
    parser.add_argument("--commit", default="", help="commit of a tree that came without its history")
    parser.add_argument("--json", type=Path, help="where to write all figures; {card} becomes the card's name")
    return parser.parse_args(arguments)


def _size(text: str) -> tuple[int, int]:
    width, height = (int(part) for part in text.split("x"))
    return width, height


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what the command line asks for."""
    options = parse(arguments)
    if not torch.cuda.is_available():
        raise SystemExit("torch sees no NVIDIA GPU here, so there is nothing to time")
    device = torch.device("cuda", torch.cuda.current_device())
    if not native.has(device):
        raise SystemExit(f"the GPU's kernels are what is timed here, but {runtime.usable()[1]}")
    result: dict[str, Any] = {"card": card_record(device), "compile_seconds": compile_seconds()}
    print(f"{result['card']['name']}; kernels ready in {result['compile_seconds']} s")
    missing = "left out" if options.no_gsplat else gsplat_cuda.why_not()
    result["peer"] = gsplat_cuda.version() if missing is None else None
    print(f"peer: {missing or result['peer']}", flush=True)
    card = Card(copy_rate(device), result["card"]["multiprocessors"])
    result |= {"copy_bytes_per_second": card.copy_rate, "scenes": [], "grids": [], "octrees": [], "trainings": []}
    print(f"a copy moves {card.copy_rate / 1e12:.2f} TB/s, read and written")
    file = options.json and Path(str(options.json).replace("{card}", slug(result["card"]["name"])))
    result["record"] = record()
    result["record"]["commit"] = options.commit or result["record"]["commit"]
    for part, facts in _parts(options, card, device, peer=missing is None):
        result[part].append(facts)
        write_json(file, result)  # as far as it has come: a run that is cut short keeps its figures
    wrong = any("mismatch" in facts or not facts["equal_to_the_bit"] for facts in result["scenes"])
    return int(wrong or any("torch" not in facts["ms"] or not facts["equal_to_the_bit"] for facts in result["grids"]))


def _parts(
    options: argparse.Namespace, card: Card, device: torch.device, *, peer: bool
) -> Iterator[tuple[str, dict[str, Any]]]:
    """What the command line asks for, one scene or training at a time, and under which key it is kept."""
    for count in options.counts:
        for width, height in options.sizes:
            facts = race(on_device(scenes.synthetic(count, width, height), device), card, options.samples, peer=peer)
            print(report(facts), flush=True)
            yield "scenes", facts
    if options.rays:
        yield from _grids(options, device)
    if not options.no_training:
        for facts in _trainings(device, options.training_seconds):
            yield "trainings", facts


def _grids(options: argparse.Namespace, device: torch.device) -> Iterator[tuple[str, dict[str, Any]]]:
    missing = "left out" if options.no_nerfacc else nerfacc_cuda.why_not()
    print(f"\npeer of voxel grids: {missing or nerfacc_cuda.version()}", flush=True)
    sizes = {"rays": options.rays, "voxels": options.voxels}
    grids = gpu_grids.race(device, **sizes, samples=options.samples, nerfacc=missing is None)
    print(gpu_grids.report(grids), flush=True)
    yield "grids", grids
    octrees = gpu_grids.octree_race(device, level=gpu_grids.LEVEL, samples=options.samples)
    print(gpu_grids.octree_report(octrees), flush=True)
    yield "octrees", octrees


def _trainings(device: torch.device, max_seconds: float) -> Iterator[dict[str, Any]]:
    with gpu_training.tasks() as tasks:
        for task in tasks:
            facts = gpu_training.seconds_to_targets(task, device=device, max_seconds=max_seconds)
            best = max((row["psnr"] for row in facts["rows"]), default=float("nan"))
            print(f"{task.name}: seconds to PSNR {facts['seconds_to_psnr']}, best {best:.2f} dB", flush=True)
            yield facts
    with gpu_grids.a_capture() as (name, capture):
        facts = gpu_grids.train_to_psnr(capture, gpu_grids.dvgo.Config(), device, max_seconds)
        print(f"DVGO on {name}: {facts['psnr']:.2f} dB after {facts['seconds']} s", flush=True)
        yield {"scene": f"DVGO on {name}", **facts}


if __name__ == "__main__":
    sys.exit(main())
