"""The offline viewer in a real browser: what it draws is what our renderers draw, and it asks nobody for anything."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from apps.run_page import page_of_run
from apps.scene_page import Look, scene_page, viewer_script
from scene.cameras import Camera
from scene.errors import InputError
from scene.formats import save_mesh, save_splats
from scene.gaussians import Gaussians
from scene.mesh import Material, Mesh
from scene.mesh_render import render_mesh
from scene.rasterize import RasterSettings, render
from scene.runs import Run
from tests.apps.browser import Page, chromium
from tests.apps.tiny import tiny_camera
from tests.scene.splats import random_gaussians

SIZE = 200
EVIL = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1>\"'&$title"
VIEWER = "document.querySelector('.maquette-viewer')"


@pytest.fixture(scope="module")
def browser() -> Iterator[int]:
    with chromium() as port:
        yield port


@pytest.fixture
def tab(browser: int) -> Iterator[Page]:
    page = Page(browser, SIZE, SIZE)
    yield page
    page.close()


def cameras(size: int = SIZE) -> list[Camera]:
    """Around the origin, one rolled, one with its principal point elsewhere."""
    around = [tiny_camera(0.9 * i, height, size) for i, height in enumerate((0.3, 1.0, -0.7))]
    c, s = math.cos(0.5), math.sin(0.5)
    roll = torch.tensor([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], dtype=torch.float64)
    rolled = Camera(around[1].K, around[1].c2w @ roll, size, size)
    K = around[2].K.clone()
    K[0, 2] += 17
    K[1, 2] -= 9
    return [around[0], rolled, Camera(K, around[2].c2w, size, size)]


def splats(degree: int = 3) -> Gaussians:
    return random_gaussians(400, sh_degree=degree, log_scale=-2.2)


def a_box(*, textured: bool) -> Mesh:
    """A box whose faces differ, coloured by its corners, or with a texture that a mirror would change."""
    corners = np.array([[x, y, z] for x in (-0.5, 0.5) for y in (-0.4, 0.4) for z in (-0.3, 0.3)])
    sides = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    faces = np.array([t for a, b, c, d in sides for t in ((a, b, c), (a, c, d))])
    if not textured:
        return Mesh(corners, faces, colors=(255 * (corners + 0.5)).clip(0, 255).astype(np.uint8))
    y, x = np.mgrid[0:256, 0:256] / 255.0
    picture = np.stack([x, y, 0.5 + 0.5 * np.sin(9 * x) * np.cos(5 * y)], axis=-1)
    square = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], dtype=np.float32) * 0.9 + 0.05
    uvs = np.array([square[list(k)] for _ in sides for k in ((0, 1, 2), (0, 2, 3))])
    return Mesh(corners, faces, uvs=uvs, material=Material((255 * picture).astype(np.uint8)))


def write(
    folder: Path, scene: Gaussians | None, mesh: Mesh | None, title: str = "A scene", look: Look | None = None
) -> Path:
    path = folder / "scene.html"
    content = scene_page(splats=scene, mesh=mesh, up=None, cameras=cameras(), title=title, look=look)
    path.write_text(content, encoding="utf-8")
    return path


def psnr(a: NDArray[np.uint8], b: Tensor | NDArray[np.uint8]) -> float:
    """Of a picture against another, or against colours in 0 to 1."""
    want = np.asarray(b, dtype=np.float64) / (1.0 if isinstance(b, Tensor) else 255.0)
    return -10 * math.log10(max(1e-12, float(np.square(a / 255.0 - want.clip(0, 1)).mean())))


def ours(scene: Gaussians, camera: Camera, light: bool, antialias: bool) -> Tensor:
    background = torch.ones(3) if light else torch.zeros(3)
    return render(scene, camera, background=background, settings=RasterSettings(antialias=antialias)).rgb


def eye(tab: Page) -> Tensor:
    return torch.tensor([float(word) for word in tab.run(f"{VIEWER}.dataset.eye").split()], dtype=torch.float64)


@pytest.mark.parametrize(("degree", "antialias"), [(0, False), (1, False), (2, True), (3, False)])
def test_splats_look_as_our_rasteriser_draws_them(tmp_path: Path, tab: Page, degree: int, antialias: bool) -> None:
    scene = splats(degree)
    path = write(tmp_path, scene, None, look=Look(antialias=antialias))
    for i, camera in enumerate(cameras()):
        light = i == 1
        tab.open(path, f"#ui=none&camera={i}&background={'light' if light else 'dark'}")
        tab.ready()
        want = ours(scene, camera, light, antialias)
        # The steps of the packed form leave about 46 dB; a wrong constant, order or half-pixel leaves less than 35.
        assert psnr(tab.picture(), want) > 42
    assert psnr(tab.picture(), ours(scene, cameras()[0], True, antialias)) < 20  # the measure can fail
    assert tab.troubles() == []


@pytest.mark.parametrize("textured", [False, True])
def test_mesh_looks_as_a_ray_cast_of_it(tmp_path: Path, tab: Page, textured: bool) -> None:
    mesh = a_box(textured=textured)
    path = write(tmp_path, splats(), mesh)
    for i, camera in enumerate(cameras()):
        tab.open(path, f"#ui=none&mode=mesh&camera={i}")
        tab.ready()
        cast = render_mesh(mesh, camera, background=0.0).rgb
        want = (255 * cast).round().to(torch.uint8).numpy()
        got, inside = tab.picture(), np.zeros((SIZE, SIZE), dtype=bool)
        inside[1:-1, 1:-1] = True
        for axis in (0, 1):  # away from silhouettes and edges, which the browser smooths
            for step in (-2, 2):
                inside &= np.abs(np.roll(want, step, axis).astype(int) - want).max(axis=2) < 24
        assert inside.mean() > 0.8
        assert psnr(got[inside], want[inside]) > 38
        assert psnr(got, want) > 28
    assert tab.troubles() == []


def test_the_page_asks_nobody_and_complains_of_nothing(tmp_path: Path, tab: Page) -> None:
    path = write(tmp_path, splats(), a_box(textured=True))
    tab.open(path)
    tab.ready()
    for key in ("m", "l", "l", "w", "c", "b", "s", "?", "r"):
        tab.key(key)
        tab.ready()
    assert tab.troubles() == []
    asked = tab.requests()
    assert asked[0].startswith("file:")
    assert all(address.startswith(("blob:", "data:")) for address in asked[1:])
    assert "://" not in viewer_script().replace("w3.org/2000/svg", "")
    assert path.stat().st_size < 5e6


def test_names_cannot_become_code(tmp_path: Path, tab: Page) -> None:
    path = write(tmp_path, splats(), None, title=EVIL, look=Look(names=[EVIL] * 3))
    tab.open(path, "#camera=1")
    tab.ready()
    assert tab.run("window.hacked") is None
    assert tab.run(f"{VIEWER}.querySelector('h1').textContent") == EVIL
    assert tab.run(f"{VIEWER}.querySelector('.photo').textContent") == EVIL
    assert tab.troubles() == []


def test_keys_switch_between_splats_and_mesh(tmp_path: Path, tab: Page) -> None:
    tab.open(write(tmp_path, splats(), a_box(textured=False)))
    tab.ready()
    before = tab.picture()
    tab.key("m")
    tab.ready()
    as_mesh = tab.picture()
    assert psnr(as_mesh, before) < 20
    tab.run(f"{VIEWER}.querySelector('[data-key=\"s\"]').click()")
    tab.ready()
    assert psnr(tab.picture(), before) > 45  # also the buttons, which show what is pressed


def test_dragging_turns_around_the_scene_and_reset_returns(tmp_path: Path, tab: Page) -> None:
    path = tmp_path / "scene.html"
    around = [tiny_camera(0.9 * i, 0.3, SIZE) for i in range(7)]
    page = scene_page(splats=splats(), mesh=None, up=None, cameras=around, title="x")
    path.write_text(page)
    tab.open(path)
    tab.ready()
    start = eye(tab)
    torch.testing.assert_close(start, around[0].center, atol=1e-6, rtol=0)
    tab.drag((100, 100), (140, 100))
    tab.ready()
    turned = eye(tab)
    assert float((turned - start).norm()) > 0.2
    right = around[0].c2w[:3, 0]
    assert float((turned - start) @ right) < 0  # the scene follows the hand, so the eye goes the other way
    assert abs(float(turned[2] - start[2])) < 1e-6
    assert abs(float(turned.norm() - start.norm())) < 1e-3  # all cameras look at the origin
    tab.mouse("mouseWheel", 100, 100, deltaX=0, deltaY=-240)
    tab.ready()
    assert 0.5 < float(eye(tab).norm() / start.norm()) < 0.9
    tab.drag((100, 100), (100, 140), button="right")
    tab.ready()
    assert float(eye(tab)[2] - turned[2]) > 0.05  # moved up, so that the scene moves down with the hand
    tab.key("r")
    tab.ready()
    torch.testing.assert_close(eye(tab), start, atol=1e-9, rtol=0)


def test_two_fingers_apart_come_nearer(tmp_path: Path, tab: Page) -> None:
    tab.call("Emulation.setTouchEmulationEnabled", enabled=True, maxTouchPoints=2)
    tab.open(write(tmp_path, splats(), None))
    tab.ready()
    start = eye(tab)

    def touch(kind: str, *spans: float) -> None:
        points = [{"x": 100 + sign * span, "y": 100, "id": k} for span in spans for k, sign in enumerate((-1, 1))]
        tab.call("Input.dispatchTouchEvent", type=kind, touchPoints=points)

    touch("touchStart", 20)
    for span in (24, 30, 36, 40):
        touch("touchMove", span)
    touch("touchEnd")
    tab.ready()
    focus_distance = float(eye(tab).norm()) / float(start.norm())
    assert 0.3 < focus_distance < 0.8


def test_arrows_fly_from_photo_to_photo_once_they_are_shown(tmp_path: Path, tab: Page) -> None:
    tab.open(write(tmp_path, splats(), None, look=Look(names=["a.jpg", "b.jpg", "c.jpg"])))
    tab.ready()
    tab.key("c")
    tab.key("ArrowRight")
    tab.key("ArrowRight")
    tab.ready()
    torch.testing.assert_close(eye(tab), cameras()[1].center, atol=1e-6, rtol=0)
    assert tab.run(f"{VIEWER}.querySelector('.photo').textContent") == "b.jpg"


@pytest.mark.parametrize("mode", ["splats", "mesh"])
def test_double_click_brings_what_is_under_it_to_the_middle(tmp_path: Path, tab: Page, mode: str) -> None:
    wall = random_gaussians(1, sh_degree=0)
    wall.means[:] = torch.tensor([0.0, 0.45, 0.25])
    wall.log_scales[:] = -2.5
    wall.opacity_logits[:] = 6.0
    small = Mesh(0.2 * a_box(textured=False).vertices + wall.means.double().numpy(), a_box(textured=False).faces)
    camera = tiny_camera(0.0, 0.0, SIZE)
    path = tmp_path / "scene.html"
    path.write_text(scene_page(splats=wall, mesh=small, up=None, cameras=[camera], title="x"))
    tab.open(path, f"#ui=none&mode={mode}")
    tab.ready()
    pixels, depths = camera.project(wall.means.double())
    u, v = pixels[0].tolist()
    for _ in range(2):
        tab.mouse("mousePressed", u, v, button="left", clickCount=1)
        tab.mouse("mouseReleased", u, v, button="left", clickCount=1)
    tab.ready()
    moved = eye(tab) - camera.center
    # From straight ahead: it now stands in the axis, as far away as it was.
    torch.testing.assert_close(moved[1:], wall.means[0, 1:].double(), atol=0.02, rtol=0)
    assert float(moved[0].abs()) < 0.1 * float(depths[0])


def test_nothing_is_drawn_while_nothing_moves(tmp_path: Path, tab: Page) -> None:
    counter = (
        "window.frames_ = 0; const ask = window.requestAnimationFrame.bind(window);"
        "window.requestAnimationFrame = (call) => ask((time) => { window.frames_++; call(time); });"
    )
    tab.call("Page.addScriptToEvaluateOnNewDocument", source=counter)
    tab.open(write(tmp_path, splats(), None))
    tab.ready()
    before = tab.run("window.frames_")
    tab.run("new Promise((then) => setTimeout(then, 400))")
    assert tab.run("window.frames_") == before > 0


def test_a_browser_without_webgl2_is_told_so(tmp_path: Path, tab: Page) -> None:
    tab.call("Page.addScriptToEvaluateOnNewDocument", source="HTMLCanvasElement.prototype.getContext = () => null")
    tab.open(write(tmp_path, splats(), None))
    tab.wait(f"{VIEWER}?.dataset.failed")
    assert "WebGL2" in tab.run(f"{VIEWER}.querySelector('.message:not([hidden])').textContent")


def test_the_order_is_back_to_front(tab: Page) -> None:
    source = (Path(__file__).parents[2] / "apps" / "viewer" / "sorter.js").read_text()
    places = np.random.default_rng(1).normal(size=(5000, 3)).astype(np.float32)
    places[:7] *= 1e4  # beyond the reach: in no order, but all there
    direction = np.array([0.48, -0.6, 0.64])
    call = (
        f"(() => {{ {source}; const places = new Float32Array({places.reshape(-1).tolist()});"
        "const make = () => new Uint32Array(5000), order = make();"
        f"sortBackToFront(places, {', '.join(map(str, direction))}, 64, order, {{ keys: make(), swap: make() }});"
        "return Array.from(order); })()"
    )
    order = np.array(tab.run(call))
    assert sorted(order.tolist()) == list(range(5000))
    depths = (places @ direction)[order]
    within = np.abs(depths) < 60
    assert (np.diff(depths[within]) <= 128 / 2**22 + 1e-6).all()  # one step of the keys


def test_too_small_a_page_says_what_is_left_out(tmp_path: Path) -> None:
    scene = random_gaussians(4000)
    page = scene_page(splats=scene, mesh=None, up=None, cameras=[], title="x", max_bytes=40_000)
    assert "of 4,000, those that contribute most" in page
    whole = scene_page(splats=scene, mesh=None, up=None, cameras=[], title="x")
    assert "4,000 splats" in whole
    assert len(whole) - len(page) > 100_000
    frame = scene_page(splats=scene.select(torch.arange(1)), mesh=None, up=None, cameras=[], title="x")
    assert len(page) - len(frame) < 41_000


def test_nothing_to_show_is_an_error() -> None:
    with pytest.raises(InputError, match="nothing to show"):
        scene_page(splats=random_gaussians(0), mesh=None, up=None, cameras=[], title="x")


def test_a_scene_without_cameras_is_seen_whole(tmp_path: Path, tab: Page) -> None:
    scene = splats()
    path = tmp_path / "scene.html"
    path.write_text(scene_page(splats=scene, mesh=None, up=(0.0, -1.0, 0.0), cameras=[], title="x"))
    tab.open(path, "#ui=none")
    tab.ready()
    picture = tab.picture()
    assert picture[60:140, 60:140].mean() > 25
    assert picture[:6].mean() < 15


def test_a_run_becomes_a_page_and_its_report_opens_in_3d(tmp_path: Path, tab: Page) -> None:
    from apps.report import write_report
    from tests.apps.test_report import make_run

    make_run(tmp_path / "run").close()
    scene = splats(1)
    save_splats(tmp_path / "run" / "scene.ply", scene)
    save_mesh(tmp_path / "run" / "mesh.glb", a_box(textured=False))
    with Run.open(tmp_path / "run") as run:
        report = write_report(run)
        (tmp_path / "scene.html").write_text(page_of_run(run, "A run"))
    tab.resize(700, 900)
    tab.open(report)
    tab.wait(f"document.readyState === 'complete' && {VIEWER}.querySelector('.poster img').naturalWidth > 40")
    tab.run(f"{VIEWER}.scrollIntoView()")
    poster = tab.picture()[:600]
    tab.run(f"{VIEWER}.querySelector('.start').click()")
    tab.ready()
    # The poster is the viewer's own first view.
    started = tab.picture()[:600]
    inside = np.s_[20:250, 60:-60]  # of the ring around what is in focus
    assert psnr(started[inside], poster[inside]) > 30
    assert started[20:250].std() > 10
    assert tab.run(f"{VIEWER}.querySelector('.tools').offsetHeight") > 30  # the report's own style left it alone
    assert tab.troubles() == []
    assert len(tab.requests()) == len([a for a in tab.requests() if a.startswith(("file:", "blob:", "data:"))])
    tab.open(tmp_path / "scene.html", "#mode=mesh")
    tab.ready()


def test_a_normal_map_bends_the_light_the_right_way(tmp_path: Path, tab: Page) -> None:
    corners = np.array([[0, -0.6, -0.6], [0, 0.6, -0.6], [0, 0.6, 0.6], [0, -0.6, 0.6]])
    square = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], dtype=np.float32)
    faces = np.array([[0, 1, 2], [0, 2, 3]])
    relief = np.full((128, 128, 3), (128, 128, 230), dtype=np.uint8)
    relief[:, :64, 0], relief[:, 64:, 0] = 70, 186  # leans to the left on the left, to the right on the right
    relief[:64, :, 1], relief[64:, :, 1] = 186, 70  # upwards above, downwards below
    white = np.full((128, 128, 3), 200, dtype=np.uint8)
    mesh = Mesh(corners, faces, uvs=square[faces], material=Material(white, normal=relief))
    path = tmp_path / "scene.html"
    front = tiny_camera(0.0, 0.0, SIZE)  # at +x: +y is to the right, +z upwards
    path.write_text(scene_page(splats=None, mesh=mesh, up=None, cameras=[front], title="x"))
    tab.open(path, "#ui=none&shade=lit")
    tab.ready()
    picture = tab.picture().mean(axis=2)
    quarters = {
        (v, u): picture[70 + 40 * v : 90 + 40 * v, 70 + 40 * u : 90 + 40 * u].mean() for v in (0, 1) for u in (0, 1)
    }
    # The light comes from the upper left of the eye.
    assert quarters[0, 0] > quarters[0, 1] + 8
    assert quarters[1, 0] > quarters[1, 1] + 8
    assert quarters[0, 0] > quarters[1, 0] + 8
    assert quarters[0, 1] > quarters[1, 1] + 8
