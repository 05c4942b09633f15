"""The benchmark tells the truth: peers compute the same thing, and what is written can be read."""

from __future__ import annotations

import json
import math
import stat
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import colmap_project, gaussians, gsplat_reference, opensplat, recon, scenes
from benchmarks.common import Stopwatch, Timing, table
from data.captures import PointCloud, open_capture
from scene.cameras import look_at
from scene.ops import native
from scene.ops.splat_project import quats_to_matrices
from tests.apps.tiny import write_tiny

needs_kernels = pytest.mark.skipif(not native.has(torch.device("cpu")), reason="the CPU module is not compiled")


def test_synthetic_splats_have_the_stated_size_on_screen() -> None:
    scene = scenes.synthetic(4000, 200, 100, sigma_px=2.0)
    sigma = scene.gaussians.scales * 200 / scene.gaussians.means[:, 2:]
    assert float(sigma.median()) == pytest.approx(2.0, rel=0.05)
    pixels, depths = scene.camera.project(scene.gaussians.means)
    assert bool((pixels > -1e-3).all()) and bool((pixels < torch.tensor([200.001, 100.001])).all())
    assert float(depths.min()) >= 1 and float(depths.max()) <= 10


@needs_kernels
@pytest.mark.skipif(not gsplat_reference.installed(), reason="gsplat is not installed")
def test_gsplat_with_our_shim_computes_what_we_compute() -> None:
    """Also a third oracle of the rasteriser: gsplat's own formulas of alpha and compositing."""
    scene = scenes.synthetic(300, 40, 28, sigma_px=3.0, seed=5)
    v_rgb, projected = gaussians.upstream_gradient(scene), gaussians.projected_splats(scene)
    ours = gaussians.Raster(projected, 40, 28)
    ours.run(v_rgb)
    found = gaussians.differences(ours, gsplat_reference.rasterize(projected, 40, 28, v_rgb))
    assert found["image"] < 1e-5
    assert max(found.values()) < 1e-4


@needs_kernels
def test_outputs_that_differ_are_not_timed() -> None:
    scene = scenes.synthetic(30, 20, 20)
    ours = gaussians.Raster(gaussians.projected_splats(scene), 20, 20)
    ours.run(gaussians.upstream_gradient(scene))
    wrong = gsplat_reference.ReferenceRaster(ours.rgb + 0.01, ours.gradients, {})
    with pytest.raises(SystemExit, match="nothing was timed"):
        gaussians.differences(ours, wrong)


@needs_kernels
def test_a_toy_run_writes_every_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "result.json"
    assert gaussians.main(["--scenes", "toy", "--rounds", "1", "--per-round", "2", "--json", str(file)]) == 0
    result = json.loads(file.read_text())
    (facts,) = result["scenes"]
    assert facts["equal_to_the_bit"] is True
    assert {"forward", "loss", "blend backward", "update", "step", "raster"} <= facts["threads"]["1"].keys()
    assert facts["ratios"]["steps_per_second_2"] == pytest.approx(1e3 / facts["threads"]["2"]["step"]["median_ms"])
    assert {"commit", "libraries", "system", "host"} <= result["record"].keys()
    assert "equal to the bit over threads: True" in capsys.readouterr().out


@needs_kernels
def test_timing_leaves_threads_as_they_were() -> None:
    before = native.cpu().threads(), torch.get_num_threads()
    with gaussians.threads(3):
        assert native.cpu().threads() == 3
    assert (native.cpu().threads(), torch.get_num_threads()) == before


def test_quaternions_of_camera_rotations() -> None:
    for eye in ([3.0, 1.0, 2.0], [-1.0, 4.0, 0.5], [0.1, -2.0, -3.0]):
        rotation = look_at(torch.tensor(eye), torch.zeros(3), torch.tensor([0.0, 0.0, 1.0]))[:3, :3].double()
        again = quats_to_matrices(torch.tensor(colmap_project.quaternion(rotation), dtype=torch.float64))
        torch.testing.assert_close(again, rotation, rtol=0, atol=1e-6)


def fake_binary(folder: Path, script: str) -> Path:
    path = folder / "opensplat"
    path.write_text(f"#!{sys.executable}\nimport sys, time\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_a_step_of_opensplat_is_the_slope_between_two_runs(tmp_path: Path) -> None:
    binary = fake_binary(
        tmp_path,
        "if '--help' in sys.argv: print('Gaussian Splats generator - 1.2.0 (commit)')\n"
        "else: time.sleep(0.2 + 0.02 * int(sys.argv[sys.argv.index('--num-iters') + 1]))",
    )
    timing = opensplat.time_steps(binary, tmp_path, short=2, long=22, threads=2)
    assert timing.seconds == pytest.approx(0.02, rel=0.5)  # other processes may hold the fake up
    assert timing.version == "1.2.0 (commit)"
    assert timing.cpu_seconds < timing.seconds


def test_a_failing_opensplat_is_reported_with_its_words(tmp_path: Path) -> None:
    binary = fake_binary(tmp_path, "sys.exit('no such option: --cpu')")
    with pytest.raises(opensplat.OpenSplatError, match="no such option"):
        opensplat.time_steps(binary, tmp_path, short=1, long=2, threads=1)


def test_timings_are_medians_in_milliseconds() -> None:
    timing = Timing.of([0.001, 0.005, 0.002, 0.9, 0.003], [0.002] * 5)
    assert timing.median_ms == pytest.approx(3)
    assert (timing.best_ms, timing.cpu_ms, timing.samples) == (pytest.approx(1), pytest.approx(2), 5)
    watch = Stopwatch()
    with watch.measure("a"):
        math.factorial(1000)
    assert watch.timings()["a"].samples == 1


def test_tables_align_and_say_what_is_unknown() -> None:
    lines = table(["name", "x"], [["a", 1.0], ["longer", None]]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[2].endswith("-")


def test_recon_keeps_the_row_of_a_source_that_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "recon.json"
    missing = str(tmp_path / "nothing")
    assert recon.main([missing, "--out", str(tmp_path / "runs"), "--json", str(file), "--", "--preset", "draft"]) == 1
    (row,) = json.loads(file.read_text())["runs"]
    assert row["exit"] == 2  # wrong input, by the contract
    assert row["metrics"] == {}
    assert row["peak_memory_mb"] > 10
    assert "nothing" in capsys.readouterr().out


def test_run_folders_do_not_overwrite(tmp_path: Path) -> None:
    first = recon.run_folder(tmp_path, "photos/fox")
    first.mkdir()
    assert first.name == "fox"
    assert recon.run_folder(tmp_path, "photos/fox").name == "fox-2"


def test_written_projects_are_read_by_colmap_itself(tmp_path: Path) -> None:
    pycolmap = pytest.importorskip("pycolmap")
    with open_capture(write_tiny(tmp_path / "tiny", train=5)) as capture:
        xyz, rgb = torch.rand(50, 3), torch.randint(0, 256, (50, 3), dtype=torch.uint8)
        colmap_project.write_project(tmp_path / "project", capture, PointCloud(xyz, rgb))
        model = pycolmap.Reconstruction(tmp_path / "project" / "sparse" / "0")
        assert model.num_images() == len(capture.train) == 5
        for number, index in enumerate(capture.train, start=1):
            camera, image = capture.views[index].camera, model.image(number)
            assert camera is not None
            pose = torch.from_numpy(image.cam_from_world().matrix()).float()
            torch.testing.assert_close(pose, camera.viewmat[:3], rtol=0, atol=1e-5)
            K = torch.from_numpy(model.camera(image.camera_id).calibration_matrix()).float()
            torch.testing.assert_close(K, camera.K, rtol=1e-6, atol=0)
            assert (tmp_path / "project" / "images" / image.name).is_file()
    points = [model.point3D(number) for number in range(1, 51)]
    assert torch.equal(torch.stack([torch.from_numpy(point.xyz) for point in points]).float(), xyz)
    assert torch.equal(torch.stack([torch.from_numpy(point.color) for point in points]), rgb)
