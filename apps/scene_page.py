"""A scene as one HTML file that opens offline: Gaussian splats, mesh and cameras, with the viewer that draws them.

The viewer is plain WebGL2 in `apps/viewer/`, without libraries; the data is `scene/formats/page_data.py`'s. The page
may fetch nothing: its policy allows our own script by its hash, a thread made from it, and pictures the page carries.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from pathlib import Path
from string import Template
from typing import Any, Literal

import torch
from torch import Tensor

from apps.report_page import policy
from scene import camera_paths
from scene.cameras import Camera, look_at
from scene.errors import InputError
from scene.formats.page_data import Frame, Payload, frame_of, pack_mesh, pack_splats
from scene.gaussians import Gaussians
from scene.mesh import Mesh

MAX_BYTES = 40 << 20
NEAR = 0.01  # scene units; as RasterSettings has it
SCRIPTS = ("unpack", "sorter", "graphics", "splats", "mesh", "orbit", "frusta", "input", "viewer")
TEXT_BYTES = 4 / 3  # of base64 for each byte of data


@dataclass(frozen=True)
class Look:
    """How a scene is first shown.

    names: of the cameras, for people.  held: which were kept from training.  start: the first view, else one from the
    cameras.  light: white behind the scene, else black.  antialias: splats trained with Mip-Splatting's filter.
    made_of: what the splats were made of, where they are not the trained scene itself.  camera: what each stands for.
    """

    names: Sequence[str] = ()
    held: Sequence[bool] = ()
    start: Camera | None = None
    light: bool = False
    antialias: bool = False
    made_of: str = ""
    camera: Literal["photo", "view"] = "photo"


def scene_page(
    *,
    splats: Gaussians | None,
    mesh: Mesh | None,
    up: Tensor | Sequence[float] | None,
    cameras: Sequence[Camera],
    title: str,
    look: Look | None = None,
    max_bytes: int = MAX_BYTES,
) -> str:
    """A whole HTML document that shows the scene.

    up: [3], +Z where None.  max_bytes: of the data inside the page; splats are thinned to fit, and the page says so.
    Raises InputError when there is nothing to show.
    """
    piece = _piece(splats, mesh, up, cameras, title, look or Look(), max_bytes, poster=None)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(policy(viewer_script(), threads=True))}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>body {{ margin:0 }}\n{viewer_style()}</style>\n</head>\n<body>\n"
        f"{piece}\n<script>{viewer_script()}</script>\n</body>\n</html>\n"
    )


def viewer_section(
    *,
    splats: Gaussians | None,
    mesh: Mesh | None,
    up: Tensor | Sequence[float] | None,
    cameras: Sequence[Camera],
    title: str,
    poster: str,
    look: Look | None = None,
    max_bytes: int = MAX_BYTES,
) -> str:
    """The same as a part of another page, started by a click on `poster`, a data URI of a picture.

    That page carries `viewer_style()` and `viewer_script()`, and a policy that allows both.
    """
    return _piece(splats, mesh, up, cameras, title, look or Look(), max_bytes, poster=poster)


@cache
def viewer_script() -> str:
    """The viewer's script: its files in order, in a scope of their own."""
    files = "\n".join(_file(f"{name}.js") for name in SCRIPTS)
    return f"(() => {{\n'use strict';\n{files}}})();\n"


@cache
def viewer_style() -> str:
    """The viewer's style sheet."""
    return _file("viewer.css")


@cache
def _file(name: str) -> str:
    return (Path(__file__).parent / "viewer" / name).read_text(encoding="utf-8")


def _piece(
    splats: Gaussians | None,
    mesh: Mesh | None,
    up: Tensor | Sequence[float] | None,
    cameras: Sequence[Camera],
    title: str,
    look: Look,
    max_bytes: int,
    poster: str | None,
) -> str:
    splats = splats if splats is not None and len(splats) else None
    mesh = mesh if mesh is not None and len(mesh.faces) else None
    if splats is None and mesh is None:
        raise InputError("there is nothing to show: the scene has no splats and no mesh")
    frame = frame_of(splats, mesh)
    payload = Payload()
    budget = int(max_bytes / TEXT_BYTES)
    header: dict[str, Any] = {"centre": frame.centre.tolist(), "size": frame.size, "near": NEAR}
    if mesh is not None:  # first: what a mesh needs is known, splats take what is left
        header["mesh"] = pack_mesh(mesh, frame, budget // 2, payload)
    if splats is not None:
        header["splats"] = pack_splats(splats, frame, max(budget - len(payload.content), budget // 4), payload)
    header |= {"light": look.light, "antialias": look.antialias}
    header |= _standpoints(cameras, up, frame, look)
    return Template(_file("viewer.html")).substitute(
        title=escape(title),
        classes=" light" * look.light + (" page" if poster is None else " part"),
        mode="" if poster is None else "data-embedded",
        facts=escape(" · ".join(_facts(header, look))),
        modes=_mode_buttons(header),
        camera=look.camera,
        cameras=_camera_buttons(look.camera) if cameras else "",
        poster="" if poster is None else _poster(poster),
        # "<" cannot end the script element that holds it, whatever a camera is called
        header=json.dumps(header, allow_nan=False).replace("<", "\\u003c"),
        data=base64.b64encode(payload.content).decode(),
    )


def _camera_buttons(camera: str) -> str:
    """One before, all, one after."""
    name = camera.capitalize()
    return (
        f'<button type="button" data-step="-1" data-when="cameras" title="{name} before (left arrow)" '
        f'aria-label="{name} before" hidden><svg viewBox="0 0 20 20"><path d="m12 5-5 5 5 5"/></svg></button>'
        f'<button type="button" data-key="c" title="Where the {camera}s were taken (C)" aria-label="{name}s">'
        '<svg viewBox="0 0 20 20"><path d="M3 6.5h3l1.5-2h5l1.5 2h3v9H3z"/><circle cx="10" cy="10.8" r="2.6"/></svg>'
        "</button>"
        f'<button type="button" data-step="1" data-when="cameras" title="{name} after (right arrow)" '
        f'aria-label="{name} after" hidden><svg viewBox="0 0 20 20"><path d="m8 5 5 5-5 5"/></svg></button>'
    )


def _mode_buttons(header: dict[str, Any]) -> str:
    """Splats and mesh, where there are both to choose from."""
    if "splats" not in header or "mesh" not in header:
        return ""
    return (
        '<button type="button" data-key="s" title="Gaussian splats (S)">Splats</button>'
        '<button type="button" data-key="m" title="Triangle mesh (M)">Mesh</button>'
    )


def _poster(picture: str) -> str:
    return (
        f'<div class="poster"><img src="{picture}" alt=""><button type="button" class="start">'
        '<svg viewBox="0 0 20 20"><path d="M10 2.8 16.5 6.4v7.2L10 17.2 3.5 13.6V6.4zM3.7 6.5 10 10l6.3-3.5M10 10v7"/>'
        "</svg>Open in 3D</button></div>"
    )


def _facts(header: dict[str, Any], look: Look) -> list[str]:
    """What is shown, and what was left out of it to keep the page small."""
    facts = []
    if (splats := header.get("splats")) is not None:
        shown, total = splats["count"], splats["total"]
        thinned = f" of {total:,}, those that contribute most" if shown < total else ""
        made = f" made of the {look.made_of}" if look.made_of else ""
        facts.append(f"{shown:,} splats{made}{thinned}")
        if splats["degree"] < splats["stored_degree"]:
            facts.append(f"highlights at degree {splats['degree']} of {splats['stored_degree']}")
    if (mesh := header.get("mesh")) is not None:
        total = f" of {mesh['total']:,}" if mesh["faces"] < mesh["total"] else ""
        facts.append(f"mesh of {mesh['faces']:,} faces{total}")
    if header["cameras"]:
        facts.append(f"{len(header['cameras'])} {look.camera}s")
    return facts


def _standpoints(
    cameras: Sequence[Camera], up: Tensor | Sequence[float] | None, frame: Frame, look: Look
) -> dict[str, Any]:
    """Up, the point to turn around, the first view and the cameras, all relative to the frame's centre."""
    up_now = torch.tensor([0.0, 0.0, 1.0]) if up is None else torch.as_tensor(up, dtype=torch.float32).cpu()
    focus = torch.from_numpy(frame.centre)
    if cameras:
        stage = camera_paths.stage_of(cameras, up=up_now)
        focus = stage.focus if stage.looking_in else focus
    start = look.start or (cameras[0] if cameras else _overview(frame, up_now))
    names = list(look.names) + [f"{look.camera.capitalize()} {i + 1}" for i in range(len(look.names), len(cameras))]
    held = list(look.held) + [False] * (len(cameras) - len(look.held))
    views = [
        {"name": name, "held": bool(kept), **_standpoint(camera, frame)}
        for name, kept, camera in zip(names, held, cameras)
    ]
    return {
        "up": up_now.tolist(),
        "focus": (focus.cpu().double().numpy() - frame.centre).tolist(),
        "start": _standpoint(start, frame),
        "cameras": views,
    }


def _standpoint(camera: Camera, frame: Frame) -> dict[str, Any]:
    pose = camera.c2w.detach().cpu().double().clone()
    pose[:3, 3] -= torch.from_numpy(frame.centre)
    K = camera.K.detach().cpu().double()
    lens = {"w": camera.width, "h": camera.height, "fx": float(K[0, 0]), "fy": float(K[1, 1])}
    return {"pose": pose[:3].flatten().tolist(), "lens": {**lens, "cx": float(K[0, 2]), "cy": float(K[1, 2])}}


def _overview(frame: Frame, up: Tensor) -> Camera:
    """A camera that sees all of a scene that came without any: from the front, a little above."""
    centre, up = torch.from_numpy(frame.centre), up.double() / up.double().norm()
    aside = torch.linalg.cross(up, torch.eye(3, dtype=torch.float64)[int(up.abs().argmin())])
    direction = aside / aside.norm() + 0.45 * up
    c2w = look_at(centre + 5.5 * frame.size * direction, centre, up)
    K = torch.tensor([[1200.0, 0.0, 640.0], [0.0, 1200.0, 400.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    return Camera(K, c2w, 1280, 800)
