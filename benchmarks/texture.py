"""Textures of finished runs: seconds by stage, and how well the textured mesh shows photos that it was not made of.

    python -m benchmarks.texture runs/sample runs/lego --faces 50000 --json texture.json --pictures FOLDER

Each run's mesh_fine.ply is cut to the budget and textured from its training photos. `psnr` is the mean over held-out
photos and the pixels that the mesh fills, without any fit of exposure; `vertex psnr` that of the same mesh with the
texture's colours at its vertices alone. The run folder itself is only read.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from apps.judge import reopened
from benchmarks.common import HostLoad, record, table, write_json
from data.captures import Capture
from scene.formats import load_mesh
from scene.formats.materials import vertex_colors
from scene.mesh import Mesh
from scene.mesh_render import render_mesh
from scene.mesh_repair import decimate_and_repair
from scene.runs import Run
from scene.texture import PhotoView, TextureConfig, reprojection_psnr, texture_mesh

READ = ("config.json", "cameras.json", "metrics.json", "progress.json", "mesh_fine.ply")
COLUMNS = ("run", "faces", "size", "charts", "s wall", "s cpu", "psnr", "vertex psnr", "seam", "coverage", "used")


def views_of(capture: Capture, indices: Sequence[int]) -> list[PhotoView]:
    """Photos of a capture by index, loaded when needed."""

    def view(index: int) -> PhotoView:
        camera = capture.views[index].camera
        assert camera is not None
        return PhotoView(camera, lambda: (capture.photo(index).rgb, capture.photo(index).alpha))

    return [view(index) for index in indices]


def measure(run: Run, faces: int, config: TextureConfig, pictures: Path | None) -> dict[str, Any]:
    """Texture the mesh of one run and judge it."""
    fine = load_mesh(run.folder / "mesh_fine.ply")
    mesh, _ = decimate_and_repair(Mesh(fine.vertices, fine.faces), faces)
    with reopened(run) as capture:
        train, test = views_of(capture, capture.train), views_of(capture, capture.test)
        wall, cpu = time.perf_counter(), time.process_time()
        textured = texture_mesh(mesh, train, config, fine=fine)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        scores = [score for score in reprojection_psnr(textured.mesh, test) if score == score]
        plain = replace(mesh, colors=vertex_colors(textured.mesh))
        before = [score for score in reprojection_psnr(plain, test) if score == score]
        if pictures is not None:
            save_pictures(run.folder.name, plain, textured.mesh, test, pictures)
    facts = textured.facts
    return {
        "run": run.folder.name,
        "faces": len(mesh.faces),
        "s wall": round(wall, 1),
        "s cpu": round(cpu, 1),
        "psnr": round(fmean(scores), 2) if scores else None,
        "vertex psnr": round(fmean(before), 2) if before else None,
        "seam": round(facts.seam_error, 4),
        "coverage": round(facts.coverage, 3),
        "used": round(facts.utilization, 3),
        "size": facts.size,
        "charts": facts.charts,
        "method": facts.uv_method,
        "texels_per_unit": facts.texels_per_unit,
        "seconds": {stage: round(seconds, 2) for stage, seconds in facts.seconds.items()},
        "gains": facts.gains,
    }


def save_pictures(name: str, before: Mesh, after: Mesh, views: Sequence[PhotoView], folder: Path) -> None:
    """Held-out photo, vertex colours, texture and shape with its normal map, side by side; and the texture itself."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for number, view in enumerate(views[:4]):
        shown = [render_mesh(mesh, view.camera, background=0.5).rgb for mesh in (before, after)]
        clay = render_mesh(after, view.camera, shading="clay").rgb
        row = torch.cat([view.load()[0].float() / 255, *shown, clay], dim=1)
        Image.fromarray((row.clamp(0, 1) * 255).round().to(torch.uint8).numpy()).save(folder / f"{name}_{number}.png")
    assert after.material is not None
    Image.fromarray(after.material.base_color).save(folder / f"{name}_texture.png")


def copied(folder: Path, into: Path) -> Path:
    """What is read of a run, so that nothing is written beside it."""
    copy = into / folder.name
    copy.mkdir()
    for name in READ:
        if (folder / name).is_file():
            shutil.copy(folder / name, copy / name)
    if (folder / "sfm").is_dir():
        shutil.copytree(folder / "sfm", copy / "sfm")
    return copy


def main() -> None:
    """Measure the runs named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--faces", type=int, default=50_000)
    parser.add_argument("--size", type=int, default=0, help="texels along the side; 0 chooses")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--pictures", type=Path, help="folder for pictures to look at")
    options = parser.parse_args()
    load, rows = HostLoad(), []
    for folder in options.runs:
        with tempfile.TemporaryDirectory() as scratch, Run.open(copied(folder, Path(scratch))) as run:
            config = replace(TextureConfig(), size=options.size)
            rows.append(measure(run, options.faces, config, options.pictures))
    print(table(COLUMNS, [[row[column] for column in COLUMNS] for row in rows]))
    write_json(options.json, {**record(load), "results": rows})


if __name__ == "__main__":
    main()
