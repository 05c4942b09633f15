"""Small captures of the three kinds of scenes that a voxel grid knows, by exact first hits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from data.captures import Capture, MemoryPicture, capture_of_pictures
from data.synthetic import Fixture, OpaqueScene, opaque_solids
from data.synthetic_solids import Box, Ellipsoid, Texture, noise
from scene.cameras import Camera, look_at
from scene.ops import native

LIGHT = torch.nn.functional.normalize(torch.tensor([0.4, -0.7, 0.6], dtype=torch.float64), dim=0)
UP = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)


@contextmanager
def one_thread() -> Iterator[None]:
    """Small batches: with more threads they wait for each other, on a busy machine for three times as long.

    What comes out is the same to the bit.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    native.set_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        native.set_threads(native.len_affinity())


def vector(x: float, y: float, z: float) -> Tensor:
    return torch.tensor([x, y, z], dtype=torch.float64)


def intrinsics(size: int, fov: float) -> Tensor:
    """K of a square picture."""
    focal = 0.5 * size / math.tan(0.5 * fov)
    return torch.tensor([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]], dtype=torch.float64)


def cut_out(folder: Path, *, train: int = 12, test: int = 3, size: int = 32) -> Capture:
    """Sphere, torus and box on transparent ground, seen from a dome."""
    return opaque_solids(train=train, test=test, size=size, supersample=2).capture(folder)


def tones(cell: float) -> Texture:
    """Tones that drift through space, with detail of the size of a cell: what 32 pixels can show."""
    return lambda points: (0.5 + 1.7 * (noise(points / cell, 5) - 0.5)).clamp(0.03, 0.97)


def wall_fixture(*, size: int = 32, columns: int = 5, rows: int = 4) -> Fixture:
    """A textured wall at y = 6, a ball and a box before it, seen by an array of cameras at y = 0; 5 are held out."""
    solids = (
        Box(vector(0, 7, 0), vector(30, 1, 30)),
        Ellipsoid(vector(-0.7, 3.2, 0.2), vector(0.6, 0.6, 0.6)),
        Box(vector(0.9, 4.3, -0.5), vector(0.5, 0.4, 0.7)),
    )
    scene = OpaqueScene(solids, tones(1.3), LIGHT)
    K = intrinsics(size, 0.75)

    def camera(x: float, z: float) -> Camera:
        eye = vector(x, 0.15 * math.sin(7 * x + 3 * z), z)  # nobody's hand is that steady
        return Camera(K, look_at(eye, vector(0.3 * x, 5, 0.3 * z), UP), size, size)

    places = [
        (0.9 * (2 * i / (columns - 1) - 1), 0.7 * (2 * j / (rows - 1) - 1)) for i in range(columns) for j in range(rows)
    ]
    between = [(-0.6, 0.2), (0.4, 0.4), (0.1, -0.3), (0.7, -0.1), (-0.2, 0.0)]
    return fixture_of(scene, [camera(*place) for place in places], [camera(*place) for place in between])


def room_fixture(*, size: int = 32, count: int = 36, inwards: bool = False) -> Fixture:
    """A room of 12 x 10 x 6 with a ball, a box and a pillar, seen from a ring in it; 4 views are held out.

    The cameras look outwards at the walls, or `inwards`: at the three, which then stand in the middle.
    """
    places = (
        ((0.5, 0.3, -0.4), (-0.5, 0.5, -0.6), (0.0, -0.8, 0.0))
        if inwards
        else ((4.7, 1.3, -0.8), (-4.8, 1.5, -1.9), (-1.2, -4.3, 0.0))
    )
    solids = (
        Box(vector(0, 0, 0), vector(6, 5, 3)),
        Ellipsoid(vector(*places[0]), vector(0.7, 0.7, 0.7)),
        Box(vector(*places[1]), vector(0.4, 0.5, 0.9)),
        Box(vector(*places[2]), vector(0.3, 0.3, 3)),
    )
    scene = OpaqueScene(solids, tones(1.4 if inwards else 2.2), LIGHT, ambient=0.8)
    K = intrinsics(size, 1.0)

    def camera(turn: float, tilt: float) -> Camera:
        eye = 2.6 * vector(math.cos(turn), math.sin(turn), 0.4 * math.sin(3 * turn))
        gaze = vector(math.cos(turn) * math.cos(tilt), math.sin(turn) * math.cos(tilt), math.sin(tilt))
        return Camera(K, look_at(eye, vector(0, 0, 0) if inwards else eye + gaze, UP), size, size)

    train = [camera(2 * math.pi * i / count, (-0.5, 0.1, 0.45)[i % 3]) for i in range(count)]
    test = [camera(2 * math.pi * (i + 0.3) / 4, 0.1 * (-1) ** i) for i in range(4)]
    return fixture_of(scene, train, test)


def fixture_of(scene: OpaqueScene, train: Sequence[Camera], test: Sequence[Camera]) -> Fixture:
    """What the cameras see of a scene."""
    return Fixture(
        scene, *(tuple(scene.show(camera, supersample=2) for camera in cameras) for cameras in (train, test))
    )


def opaque_capture(fixture: Fixture, *, points: int = 400) -> Capture:
    """Photos without alpha, with points as structure from motion leaves them."""
    shown = {f"{part}_{i:02}": one for part in ("train", "test") for i, one in enumerate(getattr(fixture, part))}
    pictures = {
        name: (MemoryPicture((one.color.clamp(0, 1) * 255).round().to(torch.uint8).numpy()), one.camera)
        for name, one in shown.items()
    }
    test = [name for name in shown if name.startswith("test")]
    return capture_of_pictures("made", pictures, points=fixture.points(points) if points else None, test=test)


def painted(sizes: Sequence[tuple[int, int]], *, cut_out: Sequence[int] = ()) -> Capture:
    """Noise of these sizes (width, height), all for training, with cameras of all sorts; some with noise for alpha."""
    generator = torch.Generator().manual_seed(2)
    pictures = {}
    for i, (width, height) in enumerate(sizes):
        tones = torch.randint(0, 256, (height, width, 4), generator=generator, dtype=torch.uint8).numpy()
        K = torch.tensor([[20.0 + i, 0, width / 2 + 0.3], [0, 22.0, height / 2 - 0.6], [0, 0, 1]], dtype=torch.float64)
        camera = Camera(K, look_at(vector(3 + i, -2, 0.5 * i), vector(0.1, 0.2 * i, 0), UP), width, height)
        alpha = tones[..., 3].copy() if i in cut_out else None
        pictures[f"{i:02}"] = (MemoryPicture(tones[..., :3].copy(), alpha), camera)
    return capture_of_pictures("painted", pictures, holdout=0)
