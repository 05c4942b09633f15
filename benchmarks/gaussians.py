"""Speed of Gaussian training on the CPU, side by side with its peers in one run.

    python -m benchmarks.gaussians --json result.json
    python -m benchmarks.gaussians --scenes toy                       # seconds, for a look
    python -m benchmarks.gaussians --scenes fox --opensplat build/opensplat --psnr-seconds 5

Per scene: the whole training step and its stages, with one thread and with two; the rasteriser alone (tile lists,
blending forward and backward) against gsplat's torch reference on the same splats; whether gradients are equal to the
bit for every number of threads. Candidates take turns; outputs are compared before anything is timed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import gsplat_reference, opensplat, scenes
from benchmarks.colmap_project import write_project
from benchmarks.common import HostLoad, Stopwatch, Timing, record, table, write_json
from benchmarks.psnr_over_time import psnr_over_time
from data.captures import PointCloud
from scene.ops import native
from scene.ops.photometric_loss import photometric_loss_and_grad
from scene.ops.splat_project import Projected, project
from scene.ops.splat_step import AdamState, Rates, SplatStep
from scene.sh import to_rgb

RATES = Rates(means=1e-5, quats=1e-3, log_scales=5e-3, opacity_logits=5e-2, sh_dc=2.5e-3, sh_rest=1.25e-4)
STANDING = Rates(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)  # all the work of a step, and the scene stays what it was
IMAGE_LIMIT, GRADIENT_LIMIT = 1e-4, 1e-3  # largest difference to the peer: absolute; relative to the largest gradient
BLACK = torch.zeros(3)


@dataclass
class Raster:
    """Our rasteriser without autograd: what a training step runs between projection and projection's gradient."""

    projected: Projected
    width: int
    height: int
    rgb: Tensor = field(init=False)
    gradients: tuple[Tensor, ...] = field(init=False)  # by means2d, conics, opacities, colours

    def __post_init__(self) -> None:
        p = self.projected
        self.bins, self.blend = native.cpu().SplatBins(), native.cpu().SplatBlend()
        self.rgb, self.alpha = torch.empty(self.height, self.width, 3), torch.empty(self.height, self.width)
        self.gradients = tuple(torch.empty_like(value) for value in (p.means2d, p.conics, p.opacities, p.colors))

    def run(self, v_rgb: Tensor) -> int:
        """Lists, image and gradients; returns the number of (tile, splat) pairs."""
        p = self.projected
        pairs = self.bins.build(p.means2d, p.conics, p.opacities, p.depths, p.extents, self.width, self.height)
        splats, none = (p.means2d, p.conics, p.opacities, p.colors), None
        self.blend.forward(self.bins, *splats, none, none, BLACK, self.rgb, self.alpha, none, none, none)
        images, upstream = (self.rgb, self.alpha, none, none), (v_rgb, none, none, none)
        self.blend.backward(self.bins, *images, *upstream, *self.gradients, none, none, none)
        return pairs


@dataclass
class Step:
    """One training step with its stages on a stopwatch."""

    scene: scenes.BenchmarkScene
    rates: Rates = STANDING

    def __post_init__(self) -> None:
        gaussians = self.scene.gaussians.clone()
        self.step = SplatStep(gaussians, AdamState.zeros(gaussians))
        self.v_image = torch.empty(self.scene.camera.height, self.scene.camera.width, 3)
        self.exposure, self.v_exposure = torch.tensor([[1.0] * 3, [0.0] * 3]), torch.empty(2, 3)

    def loss_and_grad(self, image: Tensor) -> Tensor:
        loss, _ = photometric_loss_and_grad(
            image, self.scene.photo, exposure=self.exposure, v_image=self.v_image, v_exposure=self.v_exposure
        )
        return loss

    def run(self, watch: Stopwatch) -> None:
        """Forward, loss, backward, update."""
        with watch.measure("step"):
            with watch.measure("forward"):
                image = self.step.forward(self.scene.camera, BLACK, sh_degree=3)
            with watch.measure("loss"):
                self.loss_and_grad(image)
            with watch.measure("blend backward"):
                self.step.backward(self.v_image)
            with watch.measure("update"):
                self.step.update(self.rates)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Kernels and torch with this number of threads."""
    before = native.cpu().threads(), torch.get_num_threads()
    native.set_threads(count)
    torch.set_num_threads(count)
    try:
        yield
    finally:
        native.set_threads(before[0])
        torch.set_num_threads(before[1])


def projected_splats(scene: scenes.BenchmarkScene) -> Projected:
    """What the scene's camera sees, without autograd."""
    g, camera = scene.gaussians, scene.camera
    splats = (g.means, g.quats, g.log_scales, g.opacity_logits, g.sh_dc, g.sh_rest)
    with torch.no_grad():
        return project(*splats, camera.viewmat, camera.K, camera.width, camera.height, sh_degree=3)


def upstream_gradient(scene: scenes.BenchmarkScene) -> Tensor:
    """A random gradient by the image."""
    shape = (scene.camera.height, scene.camera.width, 3)
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) - 0.5


def differences(ours: Raster, theirs: gsplat_reference.ReferenceRaster) -> dict[str, float]:
    """Largest difference of the images, and of each gradient relative to its largest value."""
    found = {"image": float((ours.rgb - theirs.rgb).abs().max())}
    for name, got, wanted in zip(
        ("means2d", "conics", "opacities", "colors"), ours.gradients, theirs.gradients, strict=True
    ):
        found[name] = float((got - wanted).abs().max() / wanted.abs().max().clamp_min(1e-30))
    wrong = {
        name: value for name, value in found.items() if value > (IMAGE_LIMIT if name == "image" else GRADIENT_LIMIT)
    }
    if wrong:
        raise SystemExit(f"nothing was timed: our outputs differ from gsplat's reference by {wrong}")
    return found


def equal_to_the_bit(scene: scenes.BenchmarkScene, counts: Sequence[int]) -> bool:
    """Whether loss, gradients, updated parameters and moments of one step are the same for all numbers of threads."""
    results = []
    for count in counts:
        with threads(count):
            step = Step(scene, RATES)
            loss = step.loss_and_grad(step.step.forward(scene.camera, BLACK, sh_degree=3))
            step.step.backward(step.v_image)
            gradients = [value.clone() for value in step.step.gradients().values()]
            step.step.update(RATES)
            moments = step.step.adam
            results.append(
                [
                    loss,
                    step.v_exposure,
                    *gradients,
                    *step.step.gaussians.parameters().values(),
                    *moments.exp_avg.values(),
                    *moments.exp_avg_sq.values(),
                ]
            )
    return all(torch.equal(one, other) for result in results[1:] for one, other in zip(results[0], result, strict=True))


def race(
    scene: scenes.BenchmarkScene, *, rounds: int, per_round: int, counts: Sequence[int], peer: bool
) -> dict[str, Any]:
    """All timings of one scene; candidates and numbers of threads take turns."""
    v_rgb, projected = upstream_gradient(scene), projected_splats(scene)
    ours, step = Raster(projected, scene.camera.width, scene.camera.height), Step(scene)
    pairs = ours.run(v_rgb)
    facts: dict[str, Any] = {
        "scene": scene.name,
        "size": [scene.camera.width, scene.camera.height],
        "splats": len(scene.gaussians),
        "visible": len(projected),
        "pairs": pairs,
        "equal_to_the_bit": equal_to_the_bit(scene, (*counts, 3)),
    }
    if peer:
        facts["differences"] = differences(
            ours, gsplat_reference.rasterize(projected, scene.camera.width, scene.camera.height, v_rgb)
        )
    watches = {count: Stopwatch() for count in counts}
    for _ in range(rounds):
        for count, watch in watches.items():
            with threads(count):
                if peer:
                    with watch.measure("gsplat raster"):
                        theirs = gsplat_reference.rasterize(projected, scene.camera.width, scene.camera.height, v_rgb)
                    for part, seconds in theirs.seconds.items():
                        watch.add(f"gsplat {part}", *seconds)
                ours.run(v_rgb)  # warms up the threads just made
                step.run(Stopwatch())
                for _ in range(per_round):
                    with watch.measure("raster"):
                        ours.run(v_rgb)
                    step.run(watch)
    facts["threads"] = {str(count): watch.timings() for count, watch in watches.items()}
    facts["ratios"] = ratios(facts["threads"])
    return facts


def ratios(timings: dict[str, dict[str, Timing]]) -> dict[str, float]:
    """The figures that goals are stated in, from medians."""
    found = {}
    for count, by_name in timings.items():
        found[f"steps_per_second_{count}"] = 1e3 / by_name["step"].median_ms
        if "gsplat raster" in by_name:
            raster = by_name["raster"].median_ms
            cpu = by_name["gsplat raster"].cpu_ms / by_name["raster"].cpu_ms
            found[f"gsplat_raster_cpu_time_over_ours_{count}"] = cpu
            loops = by_name["gsplat isect"].median_ms + by_name["gsplat shim"].median_ms
            found[f"gsplat_raster_over_ours_{count}"] = by_name["gsplat raster"].median_ms / raster
            found[f"gsplat_without_loops_and_shim_over_ours_{count}"] = (
                by_name["gsplat raster"].median_ms - loops
            ) / raster
    if {"1", "2"} <= timings.keys():
        for name in ("step", "raster"):
            found[f"{name}_scaling_1_to_2"] = timings["1"][name].median_ms / timings["2"][name].median_ms
    return found


def report(facts: dict[str, Any]) -> str:
    """One scene as text."""
    lines = [
        f"\n{facts['scene']}: {facts['visible']} of {facts['splats']} splats visible, {facts['pairs']} pairs, "
        f"{facts['size'][0]}x{facts['size'][1]}; gradients equal to the bit over threads: {facts['equal_to_the_bit']}"
    ]
    if "differences" in facts:
        lines.append("difference to gsplat: " + ", ".join(f"{k} {v:.1e}" for k, v in facts["differences"].items()))
    rows = [
        [name, count, timing.median_ms, timing.p10_ms, timing.p90_ms, timing.cpu_ms, timing.samples]
        for count, by_name in facts["threads"].items()
        for name, timing in by_name.items()
    ]
    lines.append(table(["", "threads", "median ms", "p10", "p90", "cpu ms", "n"], rows))
    lines += [f"{name:>45} {value:8.2f}" for name, value in facts["ratios"].items()]
    return "\n".join(lines)


def race_opensplat(scene: scenes.BenchmarkScene, options: argparse.Namespace, facts: dict[str, Any]) -> dict[str, Any]:
    """Steps of the OpenSplat binary on the fox photos with as many points, against our step at equal threads."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        capture = scenes.fox_capture(_fox())
        colours = (to_rgb(scene.gaussians.sh_dc).clamp(0, 1) * 255).round().to(torch.uint8)
        write_project(Path(folder) / "project", capture, PointCloud(scene.gaussians.means, colours))
        for count in options.threads:
            timing = opensplat.time_steps(options.opensplat, Path(folder) / "project", short=10, long=40, threads=count)
            ours = facts["threads"][str(count)]["step"].median_ms
            found[str(count)] = {"timing": timing, "over_ours": 1e3 * timing.seconds / ours}
            print(
                f"OpenSplat {timing.version}, {count} threads: {1e3 * timing.seconds:.0f} ms a step "
                f"({1e3 * timing.cpu_seconds:.0f} cpu ms), {1e3 * timing.seconds / ours:.1f} times ours"
            )
    return found


def _fox() -> Path:
    folder = scenes.fox_folder()
    if folder is None:
        raise SystemExit("the fox photos need MAQUETTE_DATA to name a folder that holds photos/fox/transforms.json")
    return folder


def _scenes(options: argparse.Namespace) -> Iterator[scenes.BenchmarkScene]:
    for name in options.scenes:
        if name == "toy":
            yield scenes.synthetic(400, 48, 32)
        elif name == "synthetic":
            yield scenes.synthetic(100_000, 400, 400)
        elif scenes.fox_folder() is not None:
            yield scenes.fox(_fox(), steps=options.fox_steps, cache=options.fox_cache)
        else:
            print("MAQUETTE_DATA holds no photos/fox: synthetic splats of the same number and size stand in for it")
            yield scenes.synthetic(24_000, 270, 480, sigma_px=2.5)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", nargs="+", default=["fox", "synthetic"], choices=["fox", "synthetic", "toy"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3, help="turns of every candidate; the peer runs once a turn")
    parser.add_argument("--per-round", type=int, default=10, help="our samples a turn")
    parser.add_argument("--no-gsplat", action="store_true", help="leave out gsplat's torch reference")
    parser.add_argument("--opensplat", type=Path, help="an OpenSplat binary to race on the fox photos")
    parser.add_argument("--fox-steps", type=int, default=1000, help="training before the fox is timed")
    parser.add_argument("--fox-cache", type=Path, help="a .ply that keeps the trained fox between runs")
    parser.add_argument("--psnr-seconds", type=float, help="train the fox and judge it about this often")
    parser.add_argument("--psnr-steps", type=int, default=3000, help="length of that training")
    parser.add_argument("--json", type=Path, help="where to write all figures")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what the command line asks for."""
    options = parse(arguments)
    if not native.has(torch.device("cpu")):
        raise SystemExit(f"the compiled kernels are what is timed here, but {native.explain()}")
    peer = not options.no_gsplat and gsplat_reference.installed()
    load, result = HostLoad(), {"kernels": native.explain(), "scenes": []}
    for scene in _scenes(options):
        facts = race(scene, rounds=options.rounds, per_round=options.per_round, counts=options.threads, peer=peer)
        print(report(facts), flush=True)
        if options.opensplat and scene.name.startswith("fox"):
            facts["opensplat"] = race_opensplat(scene, options, facts)
        result["scenes"].append(facts)
    if options.psnr_seconds:
        with scenes.fox_capture(_fox(), scenes.fox_points(_fox())) as capture:
            rows = psnr_over_time(capture, steps=options.psnr_steps, every_seconds=options.psnr_seconds)
        print(table(list(rows[0]), [list(row.values()) for row in rows]))
        result["psnr_over_time"] = rows
    result["record"] = record(load)
    print(f"host: {result['record']['host']}")
    write_json(options.json, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
