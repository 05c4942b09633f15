"""`maquette view`: served on the loopback, live while a run trains, and gone when asked to stop."""

from __future__ import annotations

import importlib
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import urlopen

import numpy as np
import pytest
import torch
from PIL import Image

from apps import view
from apps.view import FileSource, RunSource, free_port, source_of
from scene import edits
from scene.cameras import Camera
from scene.errors import InputError
from scene.formats import save_mesh, save_splats
from scene.gaussians import Gaussians
from scene.mesh import Mesh
from scene.runs import Run
from tests.apps.test_report import make_run
from tests.apps.tiny import tiny_camera
from tests.scene.splats import random_gaussians

ROOT = Path(__file__).parents[2]


def free() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def a_run(folder: Path, count: int | None = 200) -> Path:
    """A finished run by hand; without a scene where count is None."""
    make_run(folder).close()
    config = json.loads((folder / "config.json").read_text())
    defaults = {"max_minutes": None, "downscale": 1.0, "holdout": 8, "device": "auto", "seed": 0, "options": {}}
    (folder / "config.json").write_text(json.dumps({**config, **defaults}))
    if count is not None:
        save_splats(folder / "scene.ply", random_gaussians(count, sh_degree=1))
    return folder


def checkpoint(run: Run, splats: Gaussians, step: int) -> None:
    tensors = {f"gaussians.{name}": tensor for name, tensor in splats.parameters().items()}
    run.save_checkpoint(tensors, {"step": step, "steps": 100})


def test_a_run_in_training_is_read_from_its_checkpoints(tmp_path: Path) -> None:
    source = RunSource(a_run(tmp_path / "run", None))
    with pytest.raises(InputError, match="nothing to show yet"):
        source.read()
    with Run.open(source.path) as run:
        checkpoint(run, random_gaussians(30), 10)
        first, stamp = source.read(), source.stamp()
        assert first.splats is not None
        assert len(first.splats) == 30
        assert "step 10 of 100" in first.status
        assert source.stamp() == stamp
        checkpoint(run, random_gaussians(50), 20)
    assert source.stamp() != stamp
    second = source.read()
    assert second.splats is not None
    assert len(second.splats) == 50
    save_splats(source.path / "scene.ply", random_gaussians(70))
    third = source.read()
    assert third.splats is not None
    assert (len(third.splats), third.status) == (70, "70 splats")


def test_edits_of_a_run_are_seen(tmp_path: Path) -> None:
    source = RunSource(a_run(tmp_path / "run"))
    before = source.stamp()
    edits.save(source.path, edits.Edits((edits.Scale(2.0),)))
    assert source.stamp() != before
    content = source.read()
    plain = random_gaussians(200, sh_degree=1)
    assert content.splats is not None
    torch.testing.assert_close(content.splats.means, 2 * plain.means)


def test_files_are_shown_by_what_they_hold(tmp_path: Path) -> None:
    save_splats(tmp_path / "a.ply", random_gaussians(9))
    save_mesh(tmp_path / "b.ply", Mesh(np.eye(3), np.array([[0, 1, 2]])))
    splats, mesh = source_of(tmp_path / "a.ply").read(), source_of(tmp_path / "b.ply").read()
    assert splats.splats is not None
    assert splats.mesh is None
    assert mesh.mesh is not None
    assert mesh.splats is None
    assert isinstance(source_of(tmp_path / "a.ply"), FileSource)
    save_splats(tmp_path / "c.spz", random_gaussians(9))
    # Splats of others stand as COLMAP left them, unless their format says what is up.
    assert (splats.up, source_of(tmp_path / "c.spz").read().up) == ((0.0, -1.0, 0.0), (0.0, 0.0, 1.0))


@pytest.mark.parametrize("name", ["nothing", "folder"])
def test_what_cannot_be_shown_is_said(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="name a run"):
        source_of(tmp_path / name)


def test_a_taken_port_leads_to_the_next() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        found = free_port("127.0.0.1", port)
        assert port < found < port + view.PORTS_TRIED
    assert free_port("127.0.0.1", port) == port


def test_an_address_that_is_not_ours_is_refused() -> None:
    with pytest.raises(InputError, match=r"cannot serve on 192\.0\.2\.1"):
        free_port("192.0.2.1", 8080)


def test_without_viser_the_way_to_get_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_splats(tmp_path / "a.ply", random_gaussians(9))

    def absent(name: str) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(InputError, match=r"pip install 'maquette\[view\]'"):
        view.main([str(tmp_path / "a.ply")])


def test_it_serves_a_page_until_ctrl_c(tmp_path: Path) -> None:
    pytest.importorskip("viser", reason="needs viser: pip install maquette[view]")
    run, port = a_run(tmp_path / "run"), free()
    code = "import sys; from apps.view import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, str(run), "--port", str(port)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        lines: queue.Queue[str] = queue.Queue()
        assert process.stderr is not None
        stream = process.stderr
        threading.Thread(target=lambda: [lines.put(line) for line in stream], daemon=True).start()
        while f"Open http://localhost:{port}" not in (line := lines.get(timeout=60)):
            assert "error" not in line.lower()
        with urlopen(f"http://127.0.0.1:{port}/", timeout=20) as answer:
            assert answer.status == 200
            assert b"<html" in answer.read().lower()
        assert listeners(port) <= {"0100007F"}  # 127.0.0.1 and nothing else
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert process.stdout is not None
        assert process.stdout.read() == ""
    finally:
        process.kill()
        process.wait()
    with pytest.raises(OSError):
        urlopen(f"http://127.0.0.1:{port}/", timeout=2)


def listeners(port: int) -> set[str]:
    """Addresses, as the kernel writes them, at which somebody listens on a port."""
    table = Path("/proc/net/tcp")
    rows = [line.split() for line in table.read_text().splitlines()[1:]] if table.exists() else []
    return {row[1].split(":")[0] for row in rows if row[3] == "0A" and int(row[1].split(":")[1], 16) == port}


class Staged(NamedTuple):
    stage: Any
    source: RunSource


@pytest.fixture
def staged(tmp_path: Path) -> Iterator[Staged]:
    pytest.importorskip("viser", reason="needs viser: pip install maquette[view]")
    from apps.view_stage import Stage

    source = RunSource(a_run(tmp_path / "run"))
    stage = Stage(source.path, "127.0.0.1", free())
    stage.show(source.read())
    yield Staged(stage, source)
    stage.close()


def test_a_crop_is_previewed_and_kept_as_an_edit(staged: Staged) -> None:
    stage, source = staged
    everything = len(stage._nodes["splats"].buffer)
    stage._low.value, stage._high.value = (-0.5, -5.0, -5.0), (0.5, 5.0, 5.0)
    stage._crop.value = True
    stage._wanted.put("crop")
    stage.work()
    inside = int((random_gaussians(200, sh_degree=1).means[:, 0].abs() <= 0.5).sum())
    assert everything == 200
    assert len(stage._nodes["splats"].buffer) == inside
    assert "box" in stage._nodes
    assert not stage._keep.disabled
    stage._wanted.put("keep")
    stage.work()
    assert edits.load(source.path).items == (edits.Crop((-0.5, -5.0, -5.0), (0.5, 5.0, 5.0)),)
    stage.show(source.read())
    assert len(stage._nodes["splats"].buffer) == inside
    assert not stage._crop.value


def test_an_inverted_crop_is_refused_in_words(staged: Staged) -> None:
    stage, source = staged
    stage._low.value, stage._high.value = (1.0, 1.0, 1.0), (-1.0, -1.0, -1.0)
    stage._crop.value = True
    stage._wanted.put("keep")
    stage.work()
    assert "lower and a higher corner" in stage._status.content
    assert not (source.path / "edits.json").exists()


def test_photos_stand_where_they_were_taken(staged: Staged) -> None:
    stage, source = staged
    stage._cameras.value = True
    stage._wanted.put("pictures")
    stage.work()
    cameras = [tiny_camera(0.5 * i, 0.3) for i in range(6)]
    for i, camera in enumerate(cameras):
        node = stage._nodes[f"photo{i}"]
        np.testing.assert_allclose(node.position, camera.center.numpy(), atol=1e-6)
        w, *xyz = node.wxyz
        from scipy.spatial.transform import Rotation

        np.testing.assert_allclose(Rotation.from_quat([*xyz, w]).as_matrix(), camera.c2w[:3, :3].numpy(), atol=1e-6)
        assert node.visible
    stage.show(source.read())  # what is renewed stays as it was asked for
    assert "photo5" in stage._nodes


def test_far_splats_are_pulled_in_along_their_direction() -> None:
    from apps.view_stage import REACH, pulled_in
    from scene.formats.page_data import frame_of

    splats = random_gaussians(300)
    splats.means[7] = torch.tensor([0.0, 3000.0, 4000.0])
    frame, drawn = frame_of(splats, None), pulled_in(splats)
    centre = torch.from_numpy(frame.centre).float()
    assert torch.equal(drawn.means[:7], splats.means[:7]) or torch.allclose(
        drawn.means[:7], splats.means[:7], atol=1e-6
    )
    before, after = splats.means[7] - centre, drawn.means[7] - centre
    torch.testing.assert_close(after / after.norm(), before / before.norm())
    assert float(after.norm()) == pytest.approx(REACH * frame.size, rel=1e-4)
    # The angle under which it is seen from the middle stays.
    torch.testing.assert_close(drawn.scales[7] / after.norm(), splats.scales[7] / before.norm())


def test_depth_is_warm_near_and_cold_far() -> None:
    from apps.view_stage import depth_picture

    camera = tiny_camera(0.0, 0.0, 64)  # at x = 2.5, looking along -x
    splats = random_gaussians(2, sh_degree=0)
    splats.means[:] = torch.tensor([[1.0, 0.5, 0.0], [-2.0, -0.7, 0.0]])
    splats.log_scales[:] = -1.5
    splats.opacity_logits[:] = 6.0
    picture = depth_picture(splats, camera).astype(int)
    pixels, _ = camera.project(splats.means.double())
    (near, far) = (picture[int(v), int(u)] for u, v in pixels.tolist())
    assert near[0] > near[2] + 60  # red
    assert far[2] > far[0]  # blue
    assert (depth_picture(splats.select(torch.arange(0)), camera) == 0).all()


def test_a_visitors_camera_is_ours() -> None:
    from types import SimpleNamespace

    from apps.view_stage import camera_of, quat_of

    camera = tiny_camera(0.7, 0.9, 100)
    visitor = SimpleNamespace(wxyz=quat_of(camera.c2w), position=camera.center.numpy(), fov=camera.fov_y, aspect=1.0)
    seen = camera_of(visitor)
    torch.testing.assert_close(seen.c2w, camera.c2w)
    torch.testing.assert_close(seen.resized(100, 100).K, camera.K)


def test_photos_come_from_the_source_folder_only(tmp_path: Path) -> None:
    from apps.view_stage import photo_of

    run, source = tmp_path / "run", tmp_path / "photos"
    run.mkdir()
    source.mkdir()
    for path in (source / "a.png", tmp_path / "secret.png"):
        Image.new("RGB", (64, 48), (200, 10, 10)).save(path)
    (run / "config.json").write_text(json.dumps({"source": str(source)}))
    camera = Camera(torch.eye(3), torch.eye(4), 32, 24)
    found = photo_of(run, "a.png", camera)
    assert found is not None
    assert found.shape == (24, 32, 3)
    assert photo_of(run, "../secret.png", camera) is None
    assert photo_of(run, "missing.png", camera) is None
    assert photo_of(run, "a.png", camera.resized(32, 32)) is None  # another shape: it was undistorted since


def test_serving_beyond_this_machine_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    save_splats(tmp_path / "a.ply", random_gaussians(9))
    monkeypatch.setattr(view, "serve", lambda *_: time.sleep(0))
    view.main([str(tmp_path / "a.ply"), "--host", "0.0.0.0", "--port", str(free())])
    assert "without a password" in capfd.readouterr().err


def test_vertex_colours_reach_the_page_in_linear_light() -> None:
    from apps.view_stage import as_trimesh

    colors = np.array([[0, 128, 255], [255, 0, 128], [128, 255, 0]], dtype=np.uint8)
    sent = as_trimesh(Mesh(np.eye(3), np.array([[0, 1, 2]]), colors=colors)).visual.vertex_colors[:, :3]
    np.testing.assert_array_equal(sent, np.where(colors == 128, 55, colors))  # 55 / 255 = 0.2158, half grey
