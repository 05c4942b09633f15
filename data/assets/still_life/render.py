"""Renders the embedded sample: 36 photos of a still life, with the true cameras and the true geometry.

    python -m data.assets.still_life.render --out FOLDER [--width 640] [--spp 80] [--views 0:36]

Needs Mitsuba 3 (`pip install maquette[sample]`). All shapes, textures and light are made by this folder's code; the
same seed gives the same scene. Writes images/*.jpg (with EXIF), truth.ply and truth_cameras.json. At --spp 80 the light
paths leave noise of about 2/255, which adds to the sensor's.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import IFDRational

from data.assets.still_life.objects import Item, everything
from data.assets.still_life.shapes import Array, Faces, write_ply
from scene.mesh import Mesh
from scene.mesh_rays import RayCaster

SIZE = (640, 480)
FOCAL = 34 / 36  # of the image's width
EXPOSURE = 1.2  # gain that puts the white cloth in the light at about 80 % of the linear range
BOX = ((-0.32, -0.27, -0.03), (0.32, 0.27, 0.32))  # metres: the still life and the cloth it stands on
QUALITY = 88


@dataclass(frozen=True)
class Shot:
    """One photo: OpenCV camera-to-world [4, 4], exposure in stops against the middle one."""

    name: str
    c2w: Array
    stops: float


def shots(seed: int = 7) -> list[Shot]:
    """A walk around the table by hand: 18 views from low, 13 from high, 5 from close."""
    rng = np.random.default_rng(seed)
    rings = [(18, 0.71, 27.0, 0.0), (13, 0.70, 50.0, 9.0), (5, 0.54, 37.0, 30.0)]  # count, metres, degrees up, start
    result: list[Shot] = []
    drift = 0.0
    for count, distance, elevation, start in rings:
        for k in range(count):
            turn = math.radians(start + 360 * k / count + rng.normal(0, 1.0))
            up = math.radians(elevation + rng.normal(0, 1.3))
            away = distance * (1 + rng.normal(0, 0.02))
            target = np.array([-0.005, -0.01, 0.075]) + rng.normal(0, 0.012, 3)
            eye = target + away * np.array([math.cos(turn) * math.cos(up), math.sin(turn) * math.cos(up), math.sin(up)])
            drift = 0.7 * drift + rng.normal(0, 0.08)  # the camera's automatic exposure wanders
            stops = round(float(np.clip(drift, -0.25, 0.25)), 3)
            result.append(
                Shot(f"photo_{len(result) + 1:02d}.jpg", _look_at(eye, target, roll=rng.normal(0, 0.02)), stops)
            )
    return result


def _look_at(eye: Array, target: Array, roll: float) -> Array:
    forward = (target - eye) / np.linalg.norm(target - eye)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    c2w = np.eye(4)
    c2w[:3, 0] = math.cos(roll) * right + math.sin(roll) * down
    c2w[:3, 1] = math.cos(roll) * down - math.sin(roll) * right
    c2w[:3, 2], c2w[:3, 3] = forward, eye
    return c2w


def intrinsics(width: int, height: int) -> Array:
    """K [3, 3] of an image of this size; pixel centres at +0.5."""
    focal = FOCAL * width
    return np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])


def load_scene(mi: Any, items: list[Item], folder: Path) -> Any:
    """The Mitsuba scene: items, a warm softbox, a weaker cool one, and light from all around."""
    scene: dict[str, Any] = {
        "type": "scene",
        "sky": {"type": "constant", "radiance": {"type": "rgb", "value": [0.40, 0.43, 0.48]}},
        "key": _softbox(mi, (1.0, -0.9, 1.5), (0.45, 0.36), [13.0, 11.8, 10.2]),
        "fill": _softbox(mi, (-1.3, 0.7, 1.3), (0.5, 0.5), [2.2, 2.4, 2.8]),
    }
    for number, item in enumerate(items):
        path = folder / f"{number}.ply"
        write_ply(path, item.shape.vertices, item.shape.faces, item.shape.normals(), item.shape.uv)
        colour = {"type": "bitmap", "bitmap": mi.Bitmap(item.texture), "wrap_mode": "clamp"}
        if item.gloss:
            surface = {"type": "roughplastic", "diffuse_reflectance": colour, "alpha": 0.28, "int_ior": 1.36}
        else:
            surface = {"type": "diffuse", "reflectance": colour}
        scene[f"item{number}"] = {
            "type": "ply",
            "filename": str(path),
            "flip_tex_coords": False,
            "bsdf": {"type": "twosided", "bsdf": surface},
        }
    return mi.load_dict(scene)


def _softbox(
    mi: Any, at: tuple[float, float, float], half: tuple[float, float], radiance: list[float]
) -> dict[str, Any]:
    place = mi.ScalarTransform4f().look_at(origin=list(at), target=[0, 0, 0.05], up=[0, 0, 1])
    place = place @ mi.ScalarTransform4f().scale([half[0], half[1], 1])
    return {
        "type": "rectangle",
        "to_world": place,
        "emitter": {"type": "area", "radiance": {"type": "rgb", "value": radiance}},
    }


def radiance(mi: Any, scene: Any, c2w: Array, size: tuple[int, int], spp: int, seed: int) -> Array:
    """Linear image [H, W, 3] seen by an OpenCV camera."""
    to_world = c2w @ np.diag([-1.0, -1.0, 1.0, 1.0])  # Mitsuba's camera has x to the left and y up
    sensor = mi.load_dict(
        {
            "type": "perspective",
            "fov_axis": "x",
            "fov": math.degrees(2 * math.atan(0.5 / FOCAL)),
            "near_clip": 0.01,
            "to_world": mi.ScalarTransform4f(to_world.tolist()),
            "film": {"type": "hdrfilm", "width": size[0], "height": size[1], "rfilter": {"type": "box"}},
            "sampler": {"type": "multijitter", "sample_count": spp},
        }
    )
    return np.array(
        mi.render(scene, sensor=sensor, integrator=mi.load_dict({"type": "path", "max_depth": 5}), seed=seed)
    )[..., :3]


def developed(linear: Array, stops: float, rng: np.random.Generator) -> Image.Image:
    """Exposure, sensor noise (shot and read), the sRGB curve."""
    light = np.maximum(linear * EXPOSURE * 2.0**stops, 0)
    light = light + rng.standard_normal(light.shape) * np.sqrt(3.0e-6 * light + 1.0e-7)
    light = np.clip(light, 0, 1)
    encoded = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return Image.fromarray(np.round(255 * encoded).astype(np.uint8))


def exif(width: int, stops: float) -> Image.Exif:
    """What a camera would note: make, focal length, sensor pitch, exposure."""
    tags = Image.Exif()
    tags[0x010F], tags[0x0110] = "Maquette", "Still life, rendered"
    details = tags.get_ifd(0x8769)
    details[0x829A] = IFDRational(round(20000 * 2.0**stops), 1_000_000)  # ExposureTime, seconds
    details[0x829D] = IFDRational(8, 1)  # FNumber
    details[0x8827] = 100  # ISOSpeedRatings
    details[0x920A] = IFDRational(34 * 64, 360)  # FocalLength, mm, on a sensor 6.4 mm wide
    details[0xA20E] = details[0xA20F] = IFDRational(width * 10, 64)  # FocalPlaneX/YResolution, px per mm
    details[0xA210] = 4  # FocalPlaneResolutionUnit: mm
    details[0xA405] = round(FOCAL * 0.8 * 43.27)  # by the diagonal, of which the width is 0.8; whole mm, as in cameras
    return tags


def seen_surface(items: list[Item], cameras: list[Shot], size: tuple[int, int]) -> tuple[Array, Faces]:
    """The triangles inside BOX of which two cameras or more see half: vertices [V, 3] and faces [F, 3], welded."""
    starts = np.cumsum([0, *(len(item.shape.vertices) for item in items[:-1])])
    vertices = np.concatenate([item.shape.vertices for item in items])
    faces = np.concatenate([item.shape.faces + start for item, start in zip(items, starts)])
    caster = RayCaster(Mesh(vertices, faces))
    corners = vertices[faces]
    inside = np.all((corners >= BOX[0]) & (corners <= BOX[1]), axis=(1, 2))
    faces, corners = faces[inside], corners[inside]
    shares = np.array([[1, 1, 1], [4, 1, 1], [1, 4, 1], [1, 1, 4]]) / np.array([[3], [6], [6], [6]])
    points = np.einsum("sk,fkd->fsd", shares, corners)
    views = np.zeros(points.shape[:2], dtype=int)
    for shot in cameras:
        views += _sees(caster, shot.c2w, intrinsics(*size), size, points)
    faces = faces[(views >= 2).sum(axis=1) >= 2]
    merged, index = np.unique(np.round(vertices[faces.ravel()], 6), axis=0, return_inverse=True)
    faces = index.reshape(-1, 3)
    whole = (faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 2] != faces[:, 0])
    return merged, faces[whole]


def _sees(caster: RayCaster, c2w: Array, K: Array, size: tuple[int, int], points: Array) -> Array:
    """Which points [F, S, 3] project into the image with nothing in between."""
    local = (points - c2w[:3, 3]) @ c2w[:3, :3]
    pixel = local[..., :2] / local[..., 2:] * K.diagonal()[:2] + K[:2, 2]
    framed = (local[..., 2] > 0) & np.all((pixel >= 0) & (pixel < np.array(size)), axis=-1)
    way = points - c2w[:3, 3]
    way = way.reshape(-1, 3)
    hits = caster.cast(np.broadcast_to(c2w[:3, 3], way.shape), way)
    free = (hits.face < 0) | (hits.depth > 1 - 1.0e-3)  # 1 is the point itself
    return framed & free.reshape(framed.shape)


def write_truth(folder: Path, items: list[Item], cameras: list[Shot], size: tuple[int, int]) -> None:
    """truth.ply and truth_cameras.json."""
    vertices, faces = seen_surface(items, cameras, size)
    write_ply(folder / "truth.ply", vertices, faces)
    views = {shot.name: {"c2w": np.round(shot.c2w, 9).tolist(), "exposure_stops": shot.stops} for shot in cameras}
    truth = {
        "frame": "OpenCV camera axes (x right, y down, z forward), c2w 4x4, metres, world z up, pixel centres at +0.5",
        "width": size[0],
        "height": size[1],
        "K": intrinsics(*size).tolist(),
        "up": [0, 0, 1],
        "box": BOX,
        "views": views,
    }
    (folder / "truth_cameras.json").write_text(json.dumps(truth, indent=1) + "\n")
    print(f"truth.ply: {len(vertices)} vertices, {len(faces)} faces")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--width", type=int, default=SIZE[0], help="image width; the height keeps 4:3")
    parser.add_argument("--spp", type=int, default=80, help="light paths a pixel")
    parser.add_argument(
        "--views", default="0:36", help="range of views to render, so that a long run can be cut in pieces"
    )
    parser.add_argument("--variant", default="llvm_ad_rgb", help="Mitsuba variant; scalar_rgb needs no LLVM")
    parser.add_argument("--no-truth", action="store_true", help="photos only")
    options = parser.parse_args()
    size = (options.width, round(options.width * 0.75))
    images = options.out / "images"
    images.mkdir(parents=True, exist_ok=True)
    items, cameras = everything(), shots()
    if not options.no_truth:
        write_truth(options.out, items, cameras, size)
    start, stop = (int(part) for part in options.views.split(":"))
    if start >= stop:
        return
    import mitsuba as mi

    mi.set_variant(options.variant)
    with tempfile.TemporaryDirectory() as scratch:
        scene = load_scene(mi, items, Path(scratch))
        for number, shot in list(enumerate(cameras))[start:stop]:
            linear = radiance(mi, scene, shot.c2w, size, options.spp, seed=number)
            photo = developed(linear, shot.stops, np.random.default_rng(1000 + number))
            photo.save(images / shot.name, quality=QUALITY, exif=exif(options.width, shot.stops))
            print(f"{shot.name}: {(images / shot.name).stat().st_size / 1000:.0f} kB", flush=True)


if __name__ == "__main__":
    main()
