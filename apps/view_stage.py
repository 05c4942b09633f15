"""The page of `maquette view`: a viser scene with its controls. Callbacks only set what is wanted; `work` does it.

One thread reads files, renders depth and sends splats, so that nothing of the scene is ever in two states.
"""

from __future__ import annotations

import contextlib
import io
import math
import queue
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from apps.generate_options import is_generated
from scene import edits, sh
from scene.cameras import Camera
from scene.errors import InputError, MaquetteError
from scene.formats.glb_splats import linear_from_srgb
from scene.formats.page_data import frame_of
from scene.gaussians import Gaussians
from scene.mesh import Mesh
from scene.ops.splat_project import quats_to_matrices
from scene.rasterize import RasterSettings, render
from scene.untrusted import decode_picture, inside, read_bytes

if TYPE_CHECKING:
    from apps.view import Content

WAIT_SECONDS = 0.2  # for something to do
DEPTH_WIDTH = 640  # pixels of the depth picture
PHOTO_WIDTH = 160  # pixels of the pictures in the frusta
MOST_PICTURES = 200
MOST_MESH_FACES = 1_000_000  # more make a browser stall
HALF_RANGE_SCALE = 0.1  # median size of a splat as sent: half floats hold its square well
HALF_RANGE_MOST = 200.0  # half floats end at 65504
REACH = 10.0  # sizes of the scene; within them viser's 16 bits of depth sort all but the thinnest layers


@dataclass(frozen=True)
class Box:
    """A crop box in the scene's frame; low, high: [3]."""

    low: NDArray[np.float64]
    high: NDArray[np.float64]

    def holds(self, points: NDArray[Any]) -> Any:
        """[N] which points [N, 3] lie inside."""
        return np.logical_and(points >= self.low, points <= self.high).all(axis=1)

    def flag(self) -> str:
        """The box as `maquette edit --crop` takes it."""
        return ":".join(",".join(f"{value:.5g}" for value in corner) for corner in (self.low, self.high))


class Stage:
    """The served page; make it, `show` something, then call `work` until it ends, and `close`."""

    def __init__(self, path: Path, host: str, port: int) -> None:
        import viser

        self.path = path
        self.content: Content | None = None
        with contextlib.redirect_stdout(io.StringIO()):  # it greets on its own; stdout is ours
            self.server = viser.ViserServer(host=host, port=port, label="Maquette", verbose=False)
        self._wanted: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._nodes: dict[str, Any] = {}
        # The colours of splats and meshes are those of the photos, which had their own light.
        self.server.scene.configure_default_lights(enabled=False)
        self.server.scene.add_light_ambient("/light", intensity=math.pi)
        self._build_controls()
        self.server.on_client_connect(self._watch)

    def close(self) -> None:
        """Stop serving."""
        with contextlib.redirect_stdout(io.StringIO()):
            self.server.stop()

    def say(self, text: str) -> None:
        """Show one line above the controls."""
        self._status.content = text

    def show(self, content: Content) -> None:
        """Replace what is shown; the visitors' cameras stay where they are."""
        first, self.content = self.content is None, content
        self.say(content.status)
        if first:
            self._stand(content)
        self._send_splats()
        self._send_mesh(content.mesh)
        self._send_cameras(content)
        self._apply()

    def work(self) -> None:
        """Do what the visitors asked for, or wait a moment for it; of equal wishes only one is done."""
        wishes: set[str] = set()
        try:
            wishes.add(self._wanted.get(timeout=WAIT_SECONDS))
            while True:
                wishes.add(self._wanted.get_nowait())
        except queue.Empty:
            pass
        if "crop" in wishes:
            self._send_splats()
            self._draw_box()
        if "keep" in wishes:
            self._keep_crop()
        if "pictures" in wishes and self.content is not None:
            self._send_cameras(self.content)
        if wishes:
            self._apply()
        if wishes & {"mode", "camera", "crop"}:
            self._draw_depth()

    # Controls.

    def _build_controls(self) -> None:
        gui = self.server.gui
        gui.configure_theme(show_logo=False, show_share_button=False)
        self._status = gui.add_markdown("")
        self._mode = gui.add_dropdown("Show", ("Splats", "Mesh", "Depth"), initial_value="Splats")
        pictures = "views" if is_generated(self.path) else "photos"
        where = f"Where the {pictures} were taken; a click flies there"
        self._cameras = gui.add_checkbox(pictures.capitalize(), False, hint=where)
        with gui.add_folder("Crop", expand_by_default=False):
            self._crop = gui.add_checkbox("Preview", False)
            self._low = gui.add_vector3("Low", (-1.0, -1.0, -1.0), step=0.01)
            self._high = gui.add_vector3("High", (1.0, 1.0, 1.0), step=0.01)
            self._keep = gui.add_button(
                "Keep this crop", disabled=True, hint="Written to the run as an edit; can be undone"
            )
            self._crop_note = gui.add_markdown("")
        for handle, wish in (
            (self._mode, "mode"),
            (self._cameras, "pictures"),
            (self._crop, "crop"),
            (self._low, "crop"),
            (self._high, "crop"),
        ):
            handle.on_update(lambda _, wish=wish: self._wanted.put(wish))
        self._keep.on_click(lambda _: self._wanted.put("keep"))

    def _watch(self, client: Any) -> None:
        """Depth follows the camera of each visitor."""

        def moved(_: Any) -> None:
            if self._mode.value == "Depth":
                self._wanted.put("camera")

        client.camera.on_update(moved)
        self._wanted.put("camera")

    def _apply(self) -> None:
        """Show and hide the parts as the controls say."""
        mode = self._mode.value
        for name, node in self._nodes.items():
            visible = {"splats": mode == "Splats", "mesh": mode == "Mesh", "box": self._crop.value}
            node.visible = visible.get(name, self._cameras.value)
        if mode != "Depth":
            for client in self.server.get_clients().values():
                client.scene.set_background_image(None)

    def _stand(self, content: Content) -> None:
        """Where visitors stand at first, what is up, and a crop box around most of the scene."""
        self.server.scene.set_up_direction(content.up)
        frame = frame_of(content.splats, content.mesh)
        size = 3 * frame.size
        self._low.value, self._high.value = frame.centre - size, frame.centre + size
        self._low.step = self._high.step = 10 ** math.floor(math.log10(size) - 2)
        if content.splats is None:
            self._mode.value = "Mesh"
        camera = self.server.initial_camera
        camera.up = content.up
        if content.seen is not None and content.seen.cameras:
            first = content.seen.cameras[0].c2w.double().numpy()
            camera.position = tuple(first[:3, 3])
            ahead = max(0.1 * frame.size, float((frame.centre - first[:3, 3]) @ first[:3, 2]))
            camera.look_at = tuple(first[:3, 3] + ahead * first[:3, 2])
            camera.fov = float(content.seen.cameras[0].fov_y)
        else:
            up = np.array(content.up)
            aside = np.cross(up, np.eye(3)[int(np.abs(up).argmin())])
            camera.position = tuple(frame.centre + 4 * frame.size * (aside + 0.4 * up))
            camera.look_at = tuple(frame.centre)

    # The parts of the scene.

    def _box(self) -> Box:
        return Box(np.array(self._low.value, dtype=float), np.array(self._high.value, dtype=float))

    def _visible_splats(self) -> Gaussians | None:
        splats = self.content.splats if self.content is not None else None
        if splats is None or not self._crop.value:
            return splats
        return splats.select(torch.from_numpy(self._box().holds(splats.means.numpy())))

    def _send_splats(self) -> None:
        splats = self._visible_splats()
        self._drop("splats")
        if splats is None or not len(splats):
            return
        splats = pulled_in(splats)
        # viser keeps covariances as half floats, in which small splats would vanish: sent larger, shown smaller.
        factor = HALF_RANGE_SCALE / max(1e-12, float(splats.scales.median()))
        scales = (factor * splats.scales).clamp_max(HALF_RANGE_MOST)
        axes = quats_to_matrices(splats.quats) * scales[:, None, :]
        self._nodes["splats"] = self.server.scene.add_gaussian_splats(
            "/splats",
            (factor * splats.means).numpy(),
            (axes @ axes.transpose(1, 2)).numpy(),
            (sh.to_rgb(splats.sh_dc).clamp(0, 1)).numpy(),
            splats.opacities[:, None].numpy(),
            scale=1 / factor,
        )

    def _send_mesh(self, mesh: Mesh | None) -> None:
        self._drop("mesh")
        if mesh is None or not len(mesh.faces) or len(mesh.faces) > MOST_MESH_FACES:
            return
        self._nodes["mesh"] = self.server.scene.add_mesh_trimesh("/mesh", as_trimesh(mesh))

    def _send_cameras(self, content: Content) -> None:
        """Frusta with their photos, or with what the splats show where a photo is not at hand; once they are wanted."""
        for name in [name for name in self._nodes if name.startswith("photo")]:
            self._drop(name)
        if content.seen is None or not self._cameras.value:
            return
        centre = frame_of(content.splats, content.mesh).centre
        away = [np.linalg.norm(camera.center.double().numpy() - centre) for camera in content.seen.cameras]
        size = 0.05 * float(np.median(away))
        for i, (camera, held) in enumerate(zip(content.seen.cameras, content.seen.held_out)):
            picture = self._photo(content, i) if i < MOST_PICTURES else None
            handle = self.server.scene.add_camera_frustum(
                f"/photos/{i}",
                fov=camera.fov_y,
                aspect=camera.width / camera.height,
                scale=size,
                thickness=0.03 * size,
                color=(98, 174, 242) if held else (238, 142, 84),
                image=picture,
                wxyz=quat_of(camera.c2w),
                position=camera.center.double().numpy(),
            )
            handle.on_click(lambda event, camera=camera: fly(event.client, camera))
            self._nodes[f"photo{i}"] = handle

    def _photo(self, content: Content, index: int) -> NDArray[np.uint8] | None:
        seen = content.seen
        assert seen is not None
        camera = seen.cameras[index].scaled(PHOTO_WIDTH / seen.cameras[index].width)
        photo = photo_of(self.path, seen.names[index], camera)
        if photo is not None or content.splats is None:
            return photo
        with torch.no_grad():
            shown = render(content.splats, camera, settings=RasterSettings(antialias=content.antialias)).rgb
        return (shown.clamp(0, 1) * 255).round().to(torch.uint8).numpy()

    def _draw_depth(self) -> None:
        """Depth from each visitor's place, by our own rasteriser, as the background picture."""
        splats = self._visible_splats()
        if self._mode.value != "Depth" or splats is None:
            return
        for client in self.server.get_clients().values():
            client.scene.set_background_image(depth_picture(splats, camera_of(client.camera)), format="jpeg")

    def _draw_box(self) -> None:
        self._drop("box")
        box = self._box()
        if self._crop.value:
            self._nodes["box"] = self.server.scene.add_box(
                "/box",
                color=(238, 142, 84),
                dimensions=tuple(np.maximum(box.high - box.low, 0.0)),
                position=tuple((box.low + box.high) / 2),
                wireframe=True,
            )
        self._crop_note.content = f"`--crop {box.flag()}`"
        self._keep.disabled = not (self._crop.value and self.path.is_dir())

    def _keep_crop(self) -> None:
        """Write the crop into the run, as `maquette edit --crop` does; the changed file then renews what is shown."""
        low, high = (tuple(corner.tolist()) for corner in (self._box().low, self._box().high))
        try:
            edits.save(self.path, edits.load(self.path).then(edits.Crop(low, high)))
        except MaquetteError as error:
            self.say(str(error))
            return
        self._crop.value = False

    def _drop(self, name: str) -> None:
        if (node := self._nodes.pop(name, None)) is not None:
            node.remove()


def pulled_in(splats: Gaussians) -> Gaussians:
    """Splats far outside drawn nearer and smaller, so that they look the same from the middle of the scene.

    One splat at 4000 times the scene's size would leave all the others in a handful of viser's 65536 depths, unsorted.
    """
    frame = frame_of(splats, None)
    centre = torch.from_numpy(frame.centre).to(splats.means)
    away = splats.means - centre
    ratio = (REACH * frame.size / away.norm(dim=1).clamp_min(1e-12)).clamp_max(1.0)
    return replace(splats, means=centre + ratio[:, None] * away, log_scales=splats.log_scales + ratio.log()[:, None])


def as_trimesh(mesh: Mesh) -> Any:
    """The mesh as trimesh has it, with a vertex for each corner where it has a texture."""
    import trimesh
    from PIL import Image
    from trimesh.visual import TextureVisuals

    if mesh.uvs is None or mesh.material is None:
        colors = None
        if mesh.colors is not None:  # it travels as glTF, whose vertex colours are linear
            colors = np.rint(255 * linear_from_srgb(mesh.colors / 255.0)).astype(np.uint8)
        return trimesh.Trimesh(mesh.vertices, mesh.faces, vertex_colors=colors, process=False)
    vertices = mesh.vertices[mesh.faces.reshape(-1)]
    faces = np.arange(len(vertices)).reshape(-1, 3)
    image = Image.fromarray(mesh.material.base_color)
    visual = TextureVisuals(uv=mesh.uvs.reshape(-1, 2), image=image)
    return trimesh.Trimesh(vertices, faces, visual=visual, process=False)


def photo_of(run: Path, name: str, camera: Camera) -> NDArray[np.uint8] | None:
    """[H, W, 3] the photo of a camera of a run at the camera's size; None where it is not found as it was."""
    from PIL import Image

    from scene.files import read_json

    try:
        source = Path(str(read_json(run / "config.json", {}).get("source", "")))
        pixels = decode_picture(read_bytes(inside(source, name)), name)
    except (InputError, OSError, AttributeError):
        return None
    height, width = pixels.shape[:2]
    # One that was undistorted has another shape: what its camera sees is then drawn instead.
    if abs(width / height - camera.width / camera.height) > 0.02 or pixels.shape[2] < 3:
        return None
    image = Image.fromarray(np.ascontiguousarray(pixels[..., :3]))
    return np.asarray(image.resize((camera.width, camera.height), Image.Resampling.BILINEAR))


def quat_of(c2w: Tensor) -> NDArray[np.float64]:
    """[4] wxyz of a pose."""
    from scipy.spatial.transform import Rotation

    x, y, z, w = Rotation.from_matrix(c2w[:3, :3].double().numpy()).as_quat()
    return np.array([w, x, y, z])


def fly(client: Any, camera: Camera) -> None:
    """Put a visitor's camera where a photo was taken."""
    if client is not None:
        with client.atomic():
            client.camera.wxyz = quat_of(camera.c2w)
            client.camera.position = camera.center.double().numpy()
            client.camera.fov = camera.fov_y


def camera_of(visitor: Any) -> Camera:
    """A visitor's camera; viser's axes are ours."""
    height = max(2, round(DEPTH_WIDTH / max(0.1, float(visitor.aspect))))
    focal = 0.5 * height / math.tan(0.5 * float(visitor.fov))
    c2w = torch.eye(4, dtype=torch.float64)
    c2w[:3, :3] = quats_to_matrices(torch.tensor(np.array(visitor.wxyz, dtype=np.float64)))
    c2w[:3, 3] = torch.tensor(np.array(visitor.position, dtype=np.float64))
    K = torch.tensor([[focal, 0, DEPTH_WIDTH / 2], [0, focal, height / 2], [0, 0, 1]], dtype=torch.float64)
    return Camera(K, c2w, DEPTH_WIDTH, height)


def depth_picture(splats: Gaussians, camera: Camera) -> NDArray[np.uint8]:
    """[H, W, 3] inverse depth from near (warm) to far (cold), black where nothing is."""
    import cv2

    with torch.no_grad():
        drawn = render(splats, camera, with_geometry=True)
    assert drawn.depth is not None
    seen = (drawn.alpha > 0.5) & (drawn.depth > 0)
    if not bool(seen.any()):
        return np.zeros((camera.height, camera.width, 3), dtype=np.uint8)
    nearness = torch.where(seen, 1 / drawn.depth.clamp_min(1e-6), 0)
    known = nearness[seen]
    far, near = known.quantile(torch.tensor([0.02, 0.98])).tolist()
    grey = ((nearness - far) / max(near - far, 1e-12)).clamp(0, 1)
    colors = cv2.applyColorMap((255 * grey).to(torch.uint8).numpy(), cv2.COLORMAP_TURBO)[..., ::-1].copy()
    colors[~seen.numpy()] = 0
    return colors
