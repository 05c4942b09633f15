"""The compact form in which splats and meshes travel inside an offline page (`apps/scene_page.py`, `apps/viewer/`).

Everything becomes whole numbers: `value = step * integer`, with steps far below what the eye sees. A block of integers
[N, C] is stored as zigzag bytes, one plane per component and byte, and deflated: high bytes that are always zero and
colours that are mostly alike then cost next to nothing. Splats stand along a Morton curve, so that the differences of
their positions are small; the viewer unpacks with `apps/viewer/unpack.js`.
"""

from __future__ import annotations

import io
import itertools
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scene import sh
from scene.gaussians import Gaussians
from scene.mesh import Mesh, decimate

POSITION_STEP = 2.0**-16  # of the scene's size: far below the smallest splat that is ever seen
FARTHEST = 2**28  # steps; 4096 times the scene's size
LOG_SCALE_STEP = 1 / 32  # 3 % between two sizes
COLOR_STEP = 1 / 512
OPACITY_STEP = 1 / 255
HARMONICS_STEP = 1 / 96  # where the coefficients fit a byte with it, else larger
QUAT_LEVELS = 511  # of each of the three smaller components, within +-1/sqrt(2)
NORMAL_LEVELS = 511  # octahedral
UV_STEP = 2.0**-16
LEVEL = 6  # of zlib; 9 takes three times as long for one per cent
MAX_FACES = 400_000  # untextured meshes are decimated to this for a page
TEXTURE_SIDES = (4096, 2048, 1024)
LEAST_BYTES_PER_SPLAT = 15  # measured 21 with the first band of harmonics; more splats than this lets in are not tried


@dataclass
class Payload:
    """Bytes of a page's scene, and the entries of its JSON header that say what lies where."""

    content: bytearray = field(default_factory=bytearray)

    def add(self, packed: Packed) -> dict[str, Any]:
        """Append a block; returns its entry."""
        entry = {**packed.entry, "at": len(self.content), "size": len(packed.content)}
        self.content += packed.content
        return entry


@dataclass(frozen=True)
class Packed:
    """One block, ready to be appended."""

    entry: dict[str, Any]
    content: bytes


@dataclass(frozen=True)
class Frame:
    """The middle and the size of what is shown: positions are stored relative to both.  centre: [3] float64."""

    centre: NDArray[np.float64]
    size: float


def frame_of(gaussians: Gaussians | None, mesh: Mesh | None) -> Frame:
    """Middle and size of a scene by medians, which a few splats in the distance do not move."""
    if gaussians is not None and len(gaussians):
        points = gaussians.means.detach().double().cpu().numpy()
        points = points[np.isfinite(points).all(axis=1)]
    else:
        points = mesh.vertices if mesh is not None else np.zeros((0, 3))
    if not len(points):
        return Frame(np.zeros(3), 1.0)
    centre = np.median(points, axis=0)
    return Frame(centre, float(np.median(np.linalg.norm(points - centre, axis=1))) or 1.0)


def pack_integers(values: NDArray[np.integer], step: float, *, delta: bool = False) -> Packed:
    """A block of integers [N, C]; delta: as differences from one row to the next."""
    count, components = values.shape
    wide = values.astype(np.int64)
    if delta:
        wide = np.diff(wide, axis=0, prepend=0)
    zigzag = ((wide << 1) ^ (wide >> 63)).astype(np.uint64)
    width = max(1, (int(zigzag.max(initial=0)).bit_length() + 7) // 8)
    if width > 4:
        raise ValueError(f"a page holds integers of up to 4 bytes, got {width}; choose a larger step")
    planes = np.ascontiguousarray(zigzag.T.astype("<u4")).view(np.uint8).reshape(components, count, 4)
    content = zlib.compress(np.ascontiguousarray(planes[:, :, :width].transpose(0, 2, 1)).tobytes(), LEVEL)
    entry = {"count": count, "components": components, "bytes": width, "delta": delta, "step": step}
    return Packed(entry, content)


def pack_splats(gaussians: Gaussians, frame: Frame, max_bytes: int, payload: Payload) -> dict[str, Any]:
    """Append Gaussians to the payload within a budget; returns their header.

    Over the budget, first the finer view-dependent colours go (degree 3, then 2), then the splats that contribute the
    least: opacity times area. The header's `count`, `total` and `degree`, `stored_degree` tell what is left.
    """
    sound = gaussians.select(_sound(gaussians)).detach().to(device="cpu")
    total = len(sound)
    keep = min(total, max(1, max_bytes // LEAST_BYTES_PER_SPLAT))
    while True:
        chosen = _most_contributing(sound, keep)
        blocks, finer = _splat_blocks(chosen, frame)
        size = sum(len(packed.content) for packed in blocks.values())
        bands: list[Packed] = []
        for band in finer:
            # One band says where the light comes from; the finer ones go before any splat does.
            if bands and size + len(band.content) > max_bytes:
                break
            bands.append(band)
            size += len(band.content)
        if size <= max_bytes or keep <= 1:
            break
        keep = max(1, min(keep - 1, int(0.97 * keep * max_bytes / size)))
    entries = {name: payload.add(packed) for name, packed in blocks.items()}
    harmonics = [payload.add(band) for band in bands]
    return {
        "count": len(chosen),
        "total": len(gaussians),
        "degree": len(bands),
        "stored_degree": gaussians.sh_degree,
        "blocks": {**entries, "harmonics": harmonics},
    }


def contributions(gaussians: Gaussians) -> NDArray[np.float64]:
    """[N] opacity times the area that a splat shows on average: the mean of the products of its axes."""
    a, b, c = gaussians.scales.detach().double().cpu().numpy().T
    return gaussians.opacities.detach().double().cpu().numpy() * (a * b + b * c + c * a) / 3


def _sound(gaussians: Gaussians) -> Any:
    """Mask of the splats whose numbers are finite and whose quaternion is one; foreign files hold others."""
    import torch

    finite = [part.flatten(1).isfinite().all(1) for part in gaussians.parameters().values() if part.dim() > 1]
    known = torch.stack([*finite, ~gaussians.opacity_logits.isnan()]).all(0)
    return known & (gaussians.quats.square().sum(1) > 1e-24)


def _most_contributing(gaussians: Gaussians, count: int) -> Gaussians:
    import torch

    if count >= len(gaussians):
        return gaussians
    best = np.argpartition(-contributions(gaussians), count)[:count]
    return gaussians.select(torch.from_numpy(np.sort(best)))


def _splat_blocks(gaussians: Gaussians, frame: Frame) -> tuple[dict[str, Packed], Iterator[Packed]]:
    """The blocks that every splat needs, and one for each band of its harmonics, packed when it is asked for."""
    step = frame.size * POSITION_STEP
    means = _whole((gaussians.means.double().numpy() - frame.centre) / step, FARTHEST)
    order = np.argsort(_morton(means), kind="stable")
    log_scales = _whole(gaussians.log_scales.double().numpy() / LOG_SCALE_STEP, 2**15 - 1)
    colors = _whole(sh.to_rgb(gaussians.sh_dc.double()).numpy() / COLOR_STEP, 2**15 - 1)
    opacities = _whole(gaussians.opacities.double().numpy()[:, None] / OPACITY_STEP, 255)
    blocks = {
        "means": pack_integers(means[order], step, delta=True),
        "quats": pack_integers(_smallest_three(gaussians.quats.double().numpy())[order], 1.0),
        "log_scales": pack_integers(log_scales[order], LOG_SCALE_STEP),
        "colors": pack_integers(colors[order], COLOR_STEP),
        "opacities": pack_integers(opacities[order], OPACITY_STEP),
    }
    rest = gaussians.sh_rest.double().numpy()
    # A few bright coefficients of a foreign file may be clipped; all others keep their precision.
    size = float(np.quantile(np.abs(rest), 0.9995)) if rest.size else 0.0
    harmonics_step = max(HARMONICS_STEP, size / 127)
    whole = _whole(rest / harmonics_step, 127).reshape(len(rest), 3 * rest.shape[1])[order]
    ends = [3 * (sh.coefficients(degree) - 1) for degree in range(gaussians.sh_degree + 1)]
    return blocks, (pack_integers(whole[:, a:b], harmonics_step) for a, b in itertools.pairwise(ends))


def _whole(values: NDArray[np.floating], limit: int) -> NDArray[np.int64]:
    return np.rint(np.clip(values, -limit, limit)).astype(np.int64)


def _smallest_three(quats: NDArray[np.float64]) -> NDArray[np.int64]:
    """[N, 4] integers: the three smaller components of a unit quaternion, and which one (wxyz) is left out."""
    unit = quats / np.linalg.norm(quats, axis=1, keepdims=True)
    largest = np.abs(unit).argmax(axis=1)
    rows = np.arange(len(unit))
    unit = unit * np.where(unit[rows, largest] < 0, -1.0, 1.0)[:, None]
    others = np.array([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])[largest]
    small = _whole(unit[rows[:, None], others] * math.sqrt(2) * QUAT_LEVELS, QUAT_LEVELS)
    return np.concatenate([small, largest[:, None]], axis=1)


def _morton(positions: NDArray[np.int64]) -> NDArray[np.uint64]:
    """[N] place of each position along a Morton curve through 1024^3 cells, which hold 8 times the scene's size."""
    reach = 4 / POSITION_STEP
    cells = np.clip((positions + reach) * (1024 / (2 * reach)), 0, 1023).astype(np.uint64)
    code = np.zeros(len(cells), dtype=np.uint64)
    for bit in range(10):
        for axis in range(3):
            code |= ((cells[:, axis] >> np.uint64(bit)) & np.uint64(1)) << np.uint64(3 * bit + axis)
    return code


def pack_mesh(mesh: Mesh, frame: Frame, max_bytes: int, payload: Payload) -> dict[str, Any]:
    """Append a mesh to the payload; returns its header. Textures become JPEG, smaller ones where the budget is tight.

    A mesh without a texture is decimated to MAX_FACES.
    """
    total = len(mesh.faces)
    if mesh.uvs is None and total > MAX_FACES:
        mesh = decimate(mesh, MAX_FACES)
    vertices, faces, corner = _split_corners(mesh)
    step = frame.size * POSITION_STEP
    positions = _whole((mesh.vertices[vertices] - frame.centre) / step, FARTHEST)
    normals = _octahedral(mesh.vertex_normals[vertices])
    blocks = {
        "positions": payload.add(pack_integers(positions, step, delta=True)),
        "normals": payload.add(pack_integers(normals, 1 / NORMAL_LEVELS)),
        "faces": payload.add(pack_integers(faces.reshape(-1, 1), 1.0, delta=True)),
    }
    if mesh.uvs is not None:
        uvs = _whole(mesh.uvs.reshape(-1, 2)[corner] / UV_STEP, 2**24)
        blocks["uvs"] = payload.add(pack_integers(uvs, UV_STEP, delta=True))
    if mesh.colors is not None:
        blocks["colors"] = payload.add(pack_integers(mesh.colors[vertices].astype(np.int64), 1 / 255, delta=True))
    header: dict[str, Any] = {"faces": len(mesh.faces), "total": total, "blocks": blocks}
    if mesh.material is not None:
        left = max(max_bytes - len(payload.content), max_bytes // 4)
        pictures = {"base_color": mesh.material.base_color}
        if mesh.material.normal is not None:
            pictures["normal"] = mesh.material.normal
        header["pictures"] = {name: payload.add(packed) for name, packed in _jpegs(pictures, left).items()}
    return header


def _split_corners(mesh: Mesh) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Vertices [P] as a graphics card wants them, one for each pair of vertex and uv; faces [F, 3] of these; and a
    corner [P] that has them. In the order in which the faces meet them, so that neighbours stay close."""
    flat = mesh.faces.reshape(-1).astype(np.int64)
    keys = flat[:, None]
    if mesh.uvs is not None:
        keys = np.concatenate([keys, _whole(mesh.uvs.reshape(-1, 2) / UV_STEP, 2**24)], axis=1)
    _, first, inverse = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    corner = first[order]
    return flat[corner], rank[inverse.reshape(-1)].reshape(-1, 3), corner


def _octahedral(normals: NDArray[np.float64]) -> NDArray[np.int64]:
    """[N, 2] unit vectors folded onto a square (Meyer et al. 2010)."""
    flat = normals / np.maximum(np.abs(normals).sum(axis=1, keepdims=True), 1e-12)
    folded = (1 - np.abs(flat[:, 1::-1])) * np.where(flat[:, :2] >= 0, 1.0, -1.0)
    return _whole(np.where(flat[:, 2:] < 0, folded, flat[:, :2]) * NORMAL_LEVELS, NORMAL_LEVELS)


def _jpegs(pictures: dict[str, NDArray[np.uint8]], max_bytes: int) -> dict[str, Packed]:
    """The pictures at the largest size of TEXTURE_SIDES at which all of them fit, or else at the smallest."""
    packed: dict[str, Packed] = {}
    for side in TEXTURE_SIDES:
        packed = {name: _jpeg(picture, side) for name, picture in pictures.items()}
        if sum(len(one.content) for one in packed.values()) <= max_bytes:
            break
    return packed


def _jpeg(picture: NDArray[np.uint8], side: int) -> Packed:
    from PIL import Image

    image = Image.fromarray(picture)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90, subsampling=0)
    return Packed({"type": "image/jpeg", "width": image.width, "height": image.height}, buffer.getvalue())
