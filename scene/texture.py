"""A texture for a mesh, baked from the photos of it.

Charts are laid out (`scene/uv.py`), each texel gets its place on the surface, each photo says what it sees there (what
its pixels are worth: `scene/texture_photos.py`), photos are made equally bright, the best ones that agree are blended.
What no photo saw is filled from around it; the finer mesh's shape goes into a normal map (`scene/texture_normals.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scene.cameras import Camera
from scene.errors import InputError
from scene.mesh import Material, Mesh
from scene.mesh_rays import RayCaster
from scene.mesh_render import render_mesh
from scene.ops.texture_bake import ObservedPhoto, Samples, Surface, blend, gather
from scene.ops.triangle_raster import mesh_depth
from scene.texture_fill import colors_of_vertices, seam_error, spread
from scene.texture_normals import normal_map, occlusion_map
from scene.texture_photos import compensation, worth_of_pixels
from scene.texture_texels import CHUNK, Texels, texels_of
from scene.uv import Unwrapped, unwrap

GRAZING = 0.15  # cosine below which a photo sees a surface too much aslant
TOLERANCE = 0.003  # of the mesh's diagonal: how far off the depth of the mesh a texel may lie and still be seen
JUMP = 0.006  # of the diagonal: a step in depth that hides something
SMALLEST, LARGEST = 256, 8192  # texels along the side
LARGEST_NORMALS, LARGEST_OCCLUSION = 2048, 1024  # a mesh has less detail than photos, and sky is soft


@dataclass(frozen=True)
class PhotoView:
    """A photo with its camera. load: colours [H, W, 3] uint8 and straight alpha [H, W] uint8 or None, of exactly the
    camera's size; called when the photo is needed.
    """

    camera: Camera
    load: Callable[[], tuple[Tensor, Tensor | None]]


@dataclass(frozen=True)
class TextureConfig:
    """How a texture is made."""

    size: int = 0  # texels along the side; 0: as many as the photos fill, a power of two
    max_size: int = 4096
    padding: int = 8  # texels of its own around each chart
    normal_map: bool = True  # when there is a finer mesh
    occlusion: bool = False  # ambient occlusion
    uv_seconds: float = 60.0  # for xatlas
    samples: int = 6  # photos that a texel remembers
    power: float = 4.0  # of the weights: higher keeps more to the best photo
    spread: float = 20.0  # deviation from the other photos, 0 to 255, from which a colour counts little


@dataclass(frozen=True)
class TextureFacts:
    """What a report says of a texture.

    coverage: share of the texels on the mesh that a photo saw.  seam_error: mean difference of the colours on the two
    sides of seams, 0 to 1.  texels_per_unit: along a length of the scene.  utilization: share of the texture that lies
    on the mesh.  gains: by photo and channel.  seconds: by stage.
    """

    size: int
    charts: int
    uv_method: str
    padding: int
    coverage: float
    seam_error: float
    texels_per_unit: float
    utilization: float
    gains: tuple[tuple[float, float, float], ...]
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Textured:
    """A mesh with uvs and material, and what is to be said of them."""

    mesh: Mesh
    facts: TextureFacts


def ignore(done: int, total: int, message: str) -> None:
    """Progress that nobody watches."""


def texture_mesh(
    mesh: Mesh,
    views: Sequence[PhotoView],
    config: TextureConfig | None = None,
    *,
    fine: Mesh | None = None,
    progress: Callable[[int, int, str], None] = ignore,
    stop: Callable[[], bool] = lambda: False,
) -> Textured:
    """The mesh with uvs and a texture made of the photos, each of which is loaded once.

    fine: the mesh before decimation, whose shape goes into a normal map.  progress(done, total, message) is called
    after each step; `stop` is asked as often, and ends the taking of photos.
    Raises InputError for an empty mesh or no photos.
    """
    config = config or TextureConfig()
    if not len(mesh.faces) or not views:
        raise InputError(f"a texture needs a mesh and photos of it, got {len(mesh.faces)} faces, {len(views)} photos")
    watch = _Watch(progress, len(views) + 4)
    size, laid = _laid_out(mesh, [view.camera for view in views], config)
    bare = Mesh(mesh.vertices, mesh.faces, uvs=laid.uvs)
    watch.done("uv", "charts laid out")

    texels = texels_of(bare, size)
    shift = mesh.vertices.mean(axis=0)
    surface = surface_of(bare, texels, shift)
    samples = Samples.empty(len(texels.index), min(config.samples, max(2, len(views))))
    watch.done("texels", "texels placed")
    for number, view in enumerate(views):
        if stop():
            break
        gather_view(bare, view, number, surface, samples, shift)
        watch.done("photos", "photo taken")
    gains, offsets = compensation(samples, len(views))
    colors = blend(samples, gains, offsets, power=config.power, spread=config.spread)
    seen = samples.weights[:, 0].numpy() > 0
    del samples, surface
    picture = filled(bare, texels, colors.numpy(), seen, size)
    watch.done("blend", "photos blended")

    material = Material(picture)
    if fine is not None and config.normal_map:
        material = replace(material, normal=normal_map(bare, fine, size=min(size, LARGEST_NORMALS)))
    if config.occlusion:
        material = replace(material, occlusion=occlusion_map(bare, size=min(size, LARGEST_OCCLUSION)))
    result = replace(bare, material=material)
    watch.done("maps", "normals taken over")
    facts = TextureFacts(
        size=size,
        charts=int(laid.charts.max()) + 1,
        uv_method=laid.method,
        padding=config.padding,
        coverage=float(seen.mean()) if len(seen) else 0.0,
        seam_error=seam_error(result, picture),
        texels_per_unit=laid.scale,
        utilization=len(texels.index) / size**2,
        gains=tuple((float(r), float(g), float(b)) for r, g, b in gains.tolist()),
        seconds=watch.seconds,
    )
    return Textured(result, facts)


def _laid_out(mesh: Mesh, cameras: Sequence[Camera], config: TextureConfig) -> tuple[int, Unwrapped]:
    """The size of the texture and its charts; larger than the photos ask for where so many charts need the room.

    Raises InputError where they do not fit into the size that was asked for, nor into LARGEST texels.
    """
    size = config.size or fitting_size(mesh, cameras, config.max_size)
    while True:
        try:
            return size, unwrap(mesh, size=size, padding=config.padding, seconds=config.uv_seconds)
        except ValueError as error:
            if config.size or size >= LARGEST:
                raise InputError(f"{error}; take a larger texture, less padding or a mesh of fewer parts") from error
            size *= 2


def fitting_size(mesh: Mesh, cameras: Sequence[Camera], most: int) -> int:
    """The power of two with about as many texels as the photos have pixels of the mesh, each face at its best view."""
    centres = torch.from_numpy(mesh.vertices[mesh.faces].mean(axis=1))
    normals = torch.from_numpy(mesh.face_normals)  # twice the area long
    best = torch.zeros(len(mesh.faces), dtype=torch.float64)
    for camera in cameras:
        camera = camera.to(dtype=torch.float64)
        pixels, z = camera.project(centres)
        size = pixels.new_tensor([camera.width, camera.height])
        away = torch.nn.functional.normalize(centres - camera.center, dim=1)
        area = 0.5 * -(away * normals).sum(1) * camera.K[0, 0] * camera.K[1, 1] / z.square()
        inside = (z > 0) & (pixels > 0).all(1) & (pixels < size).all(1)
        best = torch.maximum(best, torch.where(inside, area, 0))
    wanted = (float(best.sum()) / 0.6) ** 0.5  # charts fill about so much of the square
    size = SMALLEST
    while size < min(wanted, most):
        size *= 2
    return min(size, most)


def surface_of(mesh: Mesh, texels: Texels, shift: NDArray[np.float64]) -> Surface:
    """Places of the texels, less `shift` [3] so that float32 holds them, and smooth normals."""
    corners = (mesh.vertices - shift).astype(np.float32)[mesh.faces]
    normals = mesh.vertex_normals.astype(np.float32)[mesh.faces]
    surface = Surface(torch.empty(len(texels.index), 3), torch.empty(len(texels.index), 3))
    for start in range(0, len(texels.index), CHUNK):
        part = slice(start, start + CHUNK)
        face, share = texels.faces[part], texels.shares[part][:, :, None]
        surface.points[part] = torch.from_numpy((corners[face] * share).sum(axis=1))
        along = torch.from_numpy((normals[face] * share).sum(axis=1))
        surface.normals[part] = torch.nn.functional.normalize(along, dim=1)
    return surface


def gather_view(
    mesh: Mesh, view: PhotoView, number: int, surface: Surface, samples: Samples, shift: NDArray[np.float64]
) -> None:
    """Load a photo and add what it says of each texel to the samples."""
    camera = view.camera.to(dtype=torch.float64)
    depth = mesh_depth(torch.from_numpy(mesh.vertices), torch.from_numpy(mesh.faces), camera)
    if not bool((depth > 0).any()):
        return
    rgb, alpha = view.load()
    diagonal = mesh.diagonal()
    worth = worth_of_pixels(rgb, alpha, depth, jump=JUMP * diagonal)
    c2w = camera.c2w.clone()
    c2w[:3, 3] -= torch.from_numpy(shift)
    photo = ObservedPhoto(replace(camera, c2w=c2w), rgb, worth, depth)
    gather(surface, photo, number, samples, tolerance=TOLERANCE * diagonal, grazing=GRAZING)


def filled(
    mesh: Mesh, texels: Texels, colors: NDArray[np.float32], seen: NDArray[np.bool_], size: int
) -> NDArray[np.uint8]:
    """[S, S, 3] the picture, with texels nobody saw taken from around them and charts spread over the gaps."""
    if not seen.all():
        at_vertices = colors_of_vertices(mesh, texels.faces, colors, seen)
        blind = np.flatnonzero(~seen)
        for part in np.array_split(blind, max(1, len(blind) // CHUNK)):
            corners = at_vertices[mesh.faces[texels.faces[part]]]
            colors[part] = (corners * texels.shares[part][:, :, None]).sum(axis=1)
    picture = np.zeros((size * size, 3), dtype=np.uint8)
    picture[texels.index] = np.clip(np.rint(colors), 0, 255).astype(np.uint8)
    covered = np.zeros(size * size, dtype=bool)
    covered[texels.index] = True
    return spread(picture.reshape(size, size, 3), covered.reshape(size, size))


def reprojection_psnr(mesh: Mesh, views: Sequence[PhotoView], *, supersample: int = 2) -> list[float]:
    """PSNR in dB of each photo against the mesh seen by its camera, over the pixels that the mesh fills.

    With a cut-out, pixels that it leaves half empty do not count. NaN for a photo in which the mesh is not.
    """
    caster = RayCaster(mesh)
    scores = []
    for view in views:
        rgb, alpha = view.load()
        shown = render_mesh(mesh, view.camera, supersample=supersample, caster=caster)
        counts = shown.alpha >= 1
        if alpha is not None:
            counts &= alpha == 255
        error = (shown.rgb - rgb.float() / 255).square().mean(-1)[counts].double().mean()
        scores.append(float(-10 * torch.log10(error.clamp_min(1e-12))))
    return scores


class _Watch:
    """Progress, and the seconds of each stage."""

    def __init__(self, progress: Callable[[int, int, str], None], total: int) -> None:
        self.seconds: dict[str, float] = {}
        self._progress, self._total, self._count, self._then = progress, total, 0, time.monotonic()

    def done(self, stage: str, message: str) -> None:
        """A step of a stage ends."""
        now = time.monotonic()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._then
        self._count, self._then = self._count + 1, now
        self._progress(self._count, self._total, message)
