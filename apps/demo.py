"""`maquette demo`: the whole way from photos to a report on the embedded sample, whose true shape is known."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from apps.console import Watcher
from apps.film import up_of
from apps.options import Demo, Recon, ReconJob, is_run, job_of_run, parse
from apps.pipeline import reconstruct
from apps.report import write_report
from apps.run_cameras import read_cameras
from apps.signals import StopSignal
from apps.web.command import SAMPLE_QUERY, Web, serve
from data.sample import Similarity, align_cameras, sample_photos, sample_truth
from recon import gaussians
from scene.formats import load_mesh
from scene.mesh_distance import Box, ChamferResult, chamfer
from scene.runs import Run


def main(arguments: Sequence[str]) -> None:
    """The `maquette demo` command."""
    request = parse(Demo, "demo", arguments)
    if request.web:
        serve(Web(), Watcher(), query=SAMPLE_QUERY)
        return
    job = demo_job(request)
    with StopSignal("Finishing this step and saving; press Ctrl-C again to stop at once.") as stop:
        folder = reconstruct(job, stop)
    with Run.open(folder) as run:
        result = true_error(run)
        if result is not None:
            run.add_metrics(chamfer=round(result.chamfer, 6))
            run.decide(
                f"The sample's true shape is known: the mesh is {1000 * result.chamfer:.1f} mm away from it on average "
                f"(Chamfer distance), {result.percent:.2f} % of its diagonal."
            )
            write_report(run)
    if not request.json:
        sys.stdout.write(summary(run, result))


def demo_job(request: Demo) -> ReconJob:
    """The demo as a reconstruction; goes on with an interrupted one when asked."""
    if request.resume and is_run(request.out):
        job = job_of_run(request.out)
        return dataclasses.replace(job, request=dataclasses.replace(job.request, json=request.json, resume=True))
    out, n = request.out, 2
    while out.exists():
        out, n = request.out.with_name(f"{request.out.name}-{n}"), n + 1
    preset = "standard"
    # Small photos of one table: more splats than this add time and no sharpness.
    config = dataclasses.replace(gaussians.Config(), **{**gaussians.PRESETS[preset], "max_splats": 60_000})
    recon = Recon(sample_photos(), preset=preset, max_minutes=request.max_minutes, json=request.json)
    return ReconJob(recon, "gaussians", config, out, resumes=False)


def true_error(run: Run) -> ChamferResult | None:
    """Distance of the run's mesh from the sample's true surface, in metres; None without a mesh.

    The scene is moved onto the truth by its camera centres alone; see data/sample.py for the protocol.
    """
    if not (run.folder / "mesh.glb").is_file():
        return None
    seen, truth = read_cameras(run), sample_truth()
    alignment = align_cameras(dict(zip(seen.names, seen.cameras)), truth.cameras)
    mesh = load_mesh(run.folder / "mesh.glb", up=up_of(seen)).transformed(_matrix(alignment.similarity))
    low, high = (tuple(corner) for corner in truth.box.tolist())
    return chamfer(mesh, load_mesh(truth.mesh), crop=Box(low, high))


def summary(run: Run, result: ChamferResult | None) -> str:
    """What the demo achieved and where it lies."""
    metrics = run.metrics
    lines = []
    if "psnr" in metrics:
        lines.append(f"Held-out photos   {metrics['psnr']:.2f} dB PSNR over {metrics['holdout_views']} views")
    if result is not None:
        distance = f"{1000 * result.chamfer:.1f} mm Chamfer distance, {result.percent:.2f} % of the diagonal"
        lines.append(f"True error        {distance}")
    mesh = run.finished("mesh") or {}
    if "held_out_psnr" in mesh:
        gate = "all checks passed" if mesh["label"]["green"] else "with faults, see the report"
        shown = f"{mesh['held_out_psnr']:.2f} dB on held-out photos where it covers them"
        lines.append(f"Textured mesh     {metrics['mesh_faces']:,} faces, {shown}; {gate}")
    lines.append(f"Time              {metrics['seconds_total']:.0f} s")
    names = {"report.html": "Report", "mesh.glb": "Mesh", "scene.ply": "Gaussians", "turntable.mp4": "Film"}
    for name, label in names.items():
        path: Path = run.folder / name
        if path.is_file():
            lines.append(f"{label:17} {path}")
    return "\n".join(lines) + "\n"


def _matrix(similarity: Similarity) -> NDArray[np.float64]:
    """[4, 4] of a similarity."""
    matrix = np.eye(4)
    matrix[:3, :3] = similarity.scale * similarity.rotation.numpy()
    matrix[:3, 3] = similarity.translation.numpy()
    return matrix
