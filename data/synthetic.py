"""Scenes with a known answer: exact images, depths, normals and masks without any renderer (fixtures FX-A and FX-B).

    fixture = opaque_solids(train=24, test=4, size=48)
    fixture.train[0].over(1.0)         # [H, W, 3] on white
    capture = fixture.capture(folder)  # the same through the reader of Blender's layout, 8 bits a channel

All tensors are float64 on the CPU; cameras too. The same seed gives the same scene.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from data.captures import Capture, PointCloud, open_capture
from data.synthetic_solids import Box, Ellipsoid, Solid, Texture, Torus, checker, first_hit
from scene.cameras import Camera, look_at


@dataclass(frozen=True)
class Shown:
    """What a camera sees of a scene, exactly.

    color: [H, W, 3] premultiplied by alpha [H, W].  depth: [H, W] z-depth at pixel centres, 0 where nothing is (FX-A:
    expected depth).  normal: [H, W, 3] outward unit, world, 0 where nothing is; None where surfaces are soft.
    mask: [H, W] what the pixel centre hits.
    """

    camera: Camera
    color: Tensor
    alpha: Tensor
    depth: Tensor
    normal: Tensor | None
    mask: Tensor

    def over(self, background: float | Tensor) -> Tensor:
        """The image [H, W, 3] on a background, a grey value or [3]."""
        return self.color + (1 - self.alpha)[..., None] * background


class Scene(Protocol):
    """What can be shown to a camera."""

    def show(self, camera: Camera, supersample: int = 1) -> Shown: ...


@dataclass(frozen=True)
class SoftScene:
    """FX-A: solids of constant density whose colour depends on the direction; overlapping densities add.

    sigma: density per unit length.  sh: [S, 9, 3] colour of each solid by direction, degree 2, plus 0.5.
    """

    solids: tuple[Ellipsoid | Box, ...]
    sigma: float
    sh: Tensor

    def show(self, camera: Camera, supersample: int = 1) -> Shown:
        """Exact integrals along the rays through pixel centres; colour and alpha are means over supersample^2 rays."""
        fine = self._along_rays(_finer(camera, supersample))
        color, alpha, _ = (_pooled(part, supersample) for part in fine)
        weight, moment = (fine[1], fine[2]) if supersample == 1 else self._along_rays(camera)[1:]
        depth = torch.where(weight > 0, moment / weight.clamp(min=1e-300), 0.0)
        return Shown(camera, color, alpha, depth, None, weight > 0)

    def _along_rays(self, camera: Camera) -> tuple[Tensor, Tensor, Tensor]:
        """Sum of w c [H, W, 3], of w [H, W] and of w z [H, W]."""
        origins, directions = (part.reshape(-1, 3) for part in camera.rays())
        spans = [solid.interval(origins, directions) for solid in self.solids]
        edges = torch.stack([edge for span in spans for edge in span], dim=-1)
        edges = torch.where(edges.isfinite(), edges, 0.0).clamp(min=0).sort(dim=-1).values
        start, length = edges[:, :-1], edges.diff(dim=-1)
        middle = start + 0.5 * length
        inside = torch.stack([(middle > near[:, None]) & (middle < far[:, None]) for near, far in spans], dim=-1)
        dense = self.sigma * directions.norm(dim=-1)[:, None] * inside.sum(-1)  # per unit of z
        tau = dense * length
        reaches = torch.exp(-(tau.cumsum(-1) - tau))
        weight = reaches * -torch.expm1(-tau)
        tones = torch.einsum("rb,sbc->rsc", sh_basis(torch.nn.functional.normalize(directions, dim=-1)), self.sh) + 0.5
        share = inside.to(weight) / inside.sum(-1, keepdim=True).clamp(min=1)
        color = torch.einsum("ri,ris,rsc->rc", weight, share, tones.clamp(min=0))
        within = torch.where(dense > 0, (1 - torch.exp(-tau) * (1 + tau)) / dense.clamp(min=1e-300), 0.0)
        moment = weight * start + reaches * within
        shape = (camera.height, camera.width)
        return color.reshape(*shape, 3), weight.sum(-1).reshape(shape), moment.sum(-1).reshape(shape)


@dataclass(frozen=True)
class OpaqueScene:
    """FX-B: opaque textured solids under one distant light (Lambert), with a highlight where `specular` > 0."""

    solids: tuple[Solid, ...]
    texture: Texture
    light: Tensor  # [3] unit, towards the light
    ambient: float = 0.4
    specular: float = 0.0

    def show(self, camera: Camera, supersample: int = 1) -> Shown:
        """Exact first hits; depth, normal and mask at pixel centres, colour and alpha as means over supersample^2."""
        color, hit, depth, normal = self._along_rays(camera)
        alpha = hit.to(color)
        if supersample > 1:
            fine = self._along_rays(_finer(camera, supersample))
            color, alpha = _pooled(fine[0], supersample), _pooled(fine[1].to(color), supersample)
        return Shown(camera, color, alpha, depth, normal, hit)

    def distance(self, points: Tensor) -> Tensor:
        """Distance [P] to the surface of the union, negative inside; exact outside. To judge extracted meshes."""
        return torch.stack([solid.distance(points) for solid in self.solids]).amin(0)

    def _along_rays(self, camera: Camera) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        origins, directions = (part.reshape(-1, 3) for part in camera.rays())
        depths = torch.stack([first_hit(solid, origins, directions) for solid in self.solids], dim=-1)
        depth, which = depths.min(dim=-1)
        hit = depth.isfinite()
        depth = torch.where(hit, depth, 0.0)
        points = origins + depth[:, None] * directions
        normal, color = torch.zeros_like(points), torch.zeros_like(points)
        for index, solid in enumerate(self.solids):
            mine = hit & (which == index)
            normal[mine] = solid.normals(points[mine])
        color[hit] = self._shaded(points[hit], normal[hit], directions[hit])
        shape = (camera.height, camera.width)
        return color.reshape(*shape, 3), hit.reshape(shape), depth.reshape(shape), normal.reshape(*shape, 3)

    def _shaded(self, points: Tensor, normals: Tensor, directions: Tensor) -> Tensor:
        facing = (normals @ self.light).clamp(min=0)[:, None]
        color = self.texture(points) * (self.ambient + (1 - self.ambient) * facing)
        halfway = torch.nn.functional.normalize(self.light - torch.nn.functional.normalize(directions, dim=-1), dim=-1)
        shine = (normals * halfway).sum(-1).clamp(min=0)[:, None] ** 30 * (facing > 0)
        return (color + self.specular * shine).clamp(0, 1)


@dataclass(frozen=True)
class Fixture:
    """A scene with its training and held-out views."""

    scene: Scene
    train: tuple[Shown, ...]
    test: tuple[Shown, ...]

    def points(self, count: int, seed: int = 0) -> PointCloud:
        """Points seen by training views where they are at least half opaque, as structure from motion leaves them."""
        xyz, rgb = [], []
        for shown in self.train:
            origins, directions = shown.camera.rays()
            solid = shown.mask & (shown.alpha > 0.5)
            xyz.append((origins + shown.depth[..., None] * directions)[solid])
            rgb.append((shown.color / shown.alpha.clamp(min=1e-9)[..., None])[solid])
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(sum(map(len, xyz)), generator=generator)[:count]
        return PointCloud(torch.cat(xyz)[chosen].float(), _bytes(torch.cat(rgb)[chosen]))

    def capture(self, folder: Path, points: int = 0) -> Capture:
        """The fixture as RGBA pictures in Blender's layout in `folder`, opened by the ordinary reader.

        points: how many surface points the capture brings along; 0 for none, as Blender's layout has none.
        """
        for split, views in (("train", self.train), ("test", self.test)):
            _write_split(folder, split, views)
        capture = open_capture(folder)
        return replace(capture, points=self.points(points)) if points else capture


def soft_solids(train: int = 100, test: int = 20, size: int = 200, seed: int = 0, supersample: int = 1) -> Fixture:
    """FX-A: a ball, a turned box and an ellipsoid of density 40 per unit in [-1, 1]^3, seen from 4 units away."""
    generator = torch.Generator().manual_seed(seed)
    solids = (
        Ellipsoid(_vector(-0.45, -0.30, 0.10), _vector(0.42, 0.42, 0.42)),
        Box(_vector(0.45, -0.25, -0.20), _vector(0.32, 0.24, 0.40), _turn(generator)),
        Ellipsoid(_vector(0.05, 0.50, 0.05), _vector(0.55, 0.28, 0.36), _turn(generator)),
    )
    sh = torch.randn(3, 9, 3, generator=generator, dtype=torch.float64) * 0.12
    sh[:, 0] = (torch.rand(3, 3, generator=generator, dtype=torch.float64) * 0.6 - 0.3) / 0.28209479177387814
    return _fixture(SoftScene(solids, 40.0, sh), train, test, size, supersample)


def opaque_solids(
    train: int = 100,
    test: int = 20,
    size: int = 200,
    *,
    shape: str = "all",
    specular: bool = False,
    supersample: int = 2,
) -> Fixture:
    """FX-B: `shape` is sphere (r = 0.7 at the origin), torus, box, or all three beside each other in [-1, 1]^3."""
    generator = torch.Generator().manual_seed(1)
    alone: dict[str, tuple[Solid, ...]] = {
        "sphere": (Ellipsoid(_vector(0, 0, 0), _vector(0.7, 0.7, 0.7)),),
        "torus": (Torus(_vector(0, 0, 0), 0.6, 0.24, _turn(generator)),),
        "box": (Box(_vector(0, 0, 0), _vector(0.55, 0.4, 0.45), _turn(generator)),),
        "all": (
            Ellipsoid(_vector(-0.42, -0.36, 0.05), _vector(0.4, 0.4, 0.4)),
            Torus(_vector(0.38, 0.42, 0.0), 0.36, 0.14, _turn(generator)),
            Box(_vector(0.45, -0.45, -0.1), _vector(0.26, 0.3, 0.34), _turn(generator)),
        ),
    }
    if shape not in alone:
        raise ValueError(f"expected one of {', '.join(alone)}; got {shape}")
    light = torch.nn.functional.normalize(_vector(0.5, -0.4, 0.77), dim=0)
    scene = OpaqueScene(alone[shape], checker(0.23), light, specular=0.5 if specular else 0.0)
    return _fixture(scene, train, test, size, supersample)


def dome_cameras(count: int, size: int, *, radius: float = 4.0, fov: float = 0.7, start: float = 0.0) -> list[Camera]:
    """Square cameras spread evenly over a sphere from below the horizon to near the zenith; all look at the origin.

    fov: radians across.  start: turns the whole spread, so that two sets interleave.
    """
    focal = 0.5 * size / math.tan(0.5 * fov)
    K = torch.tensor([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]], dtype=torch.float64)
    up, origin = _vector(0, 0, 1), _vector(0, 0, 0)
    cameras = []
    for k in range(count):
        z = 0.93 - 1.25 * (k + 0.5) / count
        angle = start + k * math.pi * (3 - math.sqrt(5))
        flat = math.sqrt(1 - z * z)
        eye = radius * _vector(flat * math.cos(angle), flat * math.sin(angle), z)
        cameras.append(Camera(K, look_at(eye, origin, up), size, size))
    return cameras


def half_pixel_twin(scene: Scene, camera: Camera, supersample: int = 1) -> Shown:
    """What a renderer with pixel centres at whole numbers makes of the view: moved by half a pixel down and right.

    The camera of the answer is the given one, so that a reader or renderer that mixes up the two conventions shows.
    """
    K = camera.K.clone()
    K[:2, 2] += 0.5
    return replace(scene.show(replace(camera, K=K), supersample), camera=camera)


def sh_basis(directions: Tensor) -> Tensor:
    """Real spherical harmonics of degree 0 to 2, [R, 9], of unit directions [R, 3]; order and signs as 3DGS."""
    x, y, z = directions.unbind(-1)
    one = torch.full_like(x, 0.28209479177387814)
    first = [-0.4886025119029199 * y, 0.4886025119029199 * z, -0.4886025119029199 * x]
    second = [
        1.0925484305920792 * x * y,
        -1.0925484305920792 * y * z,
        0.31539156525252005 * (2 * z * z - x * x - y * y),
        -1.0925484305920792 * x * z,
        0.5462742152960396 * (x * x - y * y),
    ]
    return torch.stack([one, *first, *second], dim=-1)


def _fixture(scene: Scene, train: int, test: int, size: int, supersample: int) -> Fixture:
    show: Callable[[Camera], Shown] = lambda camera: scene.show(camera, supersample)  # noqa: E731
    return Fixture(
        scene,
        tuple(show(camera) for camera in dome_cameras(train, size)),
        tuple(show(camera) for camera in dome_cameras(test, size, start=1.0)),
    )


def _finer(camera: Camera, supersample: int) -> Camera:
    return camera.resized(camera.width * supersample, camera.height * supersample)


def _pooled(values: Tensor, supersample: int) -> Tensor:
    """Means over blocks of supersample x supersample pixels of [H, W, ...]."""
    height, width = values.shape[0] // supersample, values.shape[1] // supersample
    return values.reshape(height, supersample, width, supersample, *values.shape[2:]).mean((1, 3))


def _write_split(folder: Path, split: str, views: Sequence[Shown]) -> None:
    from PIL import Image

    (folder / split).mkdir(parents=True, exist_ok=True)
    frames = []
    for index, shown in enumerate(views):
        straight = shown.color / shown.alpha.clamp(min=1e-9)[..., None]
        pixels = _bytes(torch.cat([straight, shown.alpha[..., None]], dim=-1)).numpy()
        name = f"{split}/r_{index:03d}"
        Image.fromarray(pixels).save(folder / f"{name}.png")
        opengl = shown.camera.c2w.numpy() @ np.diag([1.0, -1.0, -1.0, 1.0])
        frames.append({"file_path": f"./{name}", "transform_matrix": opengl.tolist()})
    angle = views[0].camera.fov_x if views else 0.7
    content = {"camera_angle_x": angle, "frames": frames}
    (folder / f"transforms_{split}.json").write_text(json.dumps(content), encoding="utf-8")


def _bytes(values: Tensor) -> Tensor:
    return (values.clamp(0, 1) * 255).round().to(torch.uint8)


def _vector(x: float, y: float, z: float) -> Tensor:
    return torch.tensor([x, y, z], dtype=torch.float64)


def _turn(generator: torch.Generator) -> Tensor:
    """A random rotation [3, 3]."""
    q, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    return q * torch.sign(torch.linalg.det(q))
