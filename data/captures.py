"""The door to all readers: `open_capture` detects what a source is and gives back views, photos and cameras.

Cameras are OpenCV's (x right, y down, z forward), pixel centres at +0.5, world as the source gave it. Photos are
delivered oriented, undistorted and downscaled; `View.camera` is that of the delivered photo.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.detect import read_source
from data.frames import Frame, PointCloud, Source, rigid, tensor_up
from data.images import MemoryPicture, decode_image
from data.lens import Lens
from data.photos import sorted_frames
from data.store import ImageStore, Photo, Shot
from scene.cameras import Camera, scaled_size
from scene.errors import InputError

__all__ = ["Capture", "MemoryPicture", "Photo", "PointCloud", "View", "capture_of_pictures", "open_capture"]

# K [3, 3] over the raw photo, OpenCV distortion k1 k2 p1 p2 or None, c2w [4, 4].
EstimatedCamera = tuple[Tensor | NDArray, Sequence[float] | None, Tensor | NDArray]


@dataclass(frozen=True)
class View:
    """One photo and what is known of it. Sizes are delivered ones: oriented, undistorted, downscaled."""

    name: str  # unique, relative to the source, with /
    width: int
    height: int
    camera: Camera | None  # float32, of the delivered photo
    camera_group: str  # equal: same lens, size and orientation, so the same intrinsics
    focal_px: float | None  # the camera's, or else EXIF's, over the delivered photo
    gps: tuple[float, float, float] | None  # degrees north and east, metres above the sea
    time: float | None  # seconds
    has_alpha: bool


@dataclass(frozen=True)
class Capture:
    """A source opened: views in natural order of their names, photos on demand, the held-out split."""

    source: str
    kind: str  # photos, video, colmap, blender, instant-ngp, nerfstudio, llff, middlebury, kitti
    views: tuple[View, ...]
    points: PointCloud | None
    train: tuple[int, ...]
    test: tuple[int, ...]
    ordered: bool  # neighbours in `views` are neighbours in the world
    up: Tensor | None  # [3] unit
    metric: bool
    decisions: tuple[str, ...]  # what was detected and why, in sentences
    _frames: tuple[Frame, ...] = field(repr=False)
    _options: _Options = field(repr=False)
    _store: ImageStore = field(repr=False)
    _test_names: frozenset[str] | None = field(repr=False)
    _close: Callable[[], None] = field(repr=False)

    def photo(self, index: int, level: int = 0) -> Photo:
        """View `index` at 0.5**level of its size, the size of `view.camera.scaled(0.5**level)`.

        Area-averaged; alpha is straight and not composited. Its tensors are the cache's own: do not write to them.
        Raises InputError when the file turns out damaged.
        """
        return self._store.photo(index, level)

    def prefetch(self, indices: Iterable[int], level: int = 0) -> None:
        """Let background threads decode these photos, in this order; replaces what was asked for before."""
        self._store.prefetch(indices, level)

    def raw_photo(self, index: int) -> NDArray[np.uint8]:
        """Colours [H, W, 3], oriented and downscaled but not undistorted; for camera estimation."""
        return self._store.raw(index)

    def raw_mask(self, index: int) -> NDArray[np.uint8] | None:
        """Alpha [H, W] of `raw_photo`, or None where the photo has neither alpha nor mask."""
        return self._store.raw_mask(index)

    def raw_size(self, index: int) -> tuple[int, int]:
        """Width and height of `raw_photo` without decoding it."""
        return self._options.raw_size(self._frames[index])

    def with_cameras(
        self,
        cameras: Mapping[str, EstimatedCamera],
        points: PointCloud | None = None,
        up: Tensor | Sequence[float] | None = None,
        metric: bool = False,
        decisions: Sequence[str] = (),
    ) -> Capture:
        """This capture with estimated cameras: the views in `cameras` only, undistorted on load, split anew.

        cameras: by view name, K over `raw_photo`. This capture stays usable; its cached photos are dropped.
        """
        known = {view.name for view in self.views}
        if unknown := sorted(set(cameras) - known):
            raise ValueError(f"cameras were given for {unknown[:3]}, which are no views of this capture")
        frames = []
        for frame in self._frames:
            if frame.name not in cameras:
                continue
            K, distortion, c2w = cameras[frame.name]
            model, coefficients = ("opencv", distortion) if distortion is not None else ("pinhole", ())
            lens = Lens.from_K(np.asarray(K, dtype=np.float64), *self._options.raw_size(frame), model, coefficients)
            pose = rigid(np.asarray(c2w, dtype=np.float64), frame.name)
            frames.append(replace(frame, lens=lens.resized(frame.width, frame.height), c2w=pose))
        return self._with_frames(frames, points, up, metric, decisions)

    def _with_frames(
        self,
        frames: Sequence[Frame],
        points: PointCloud | None,
        up: Tensor | Sequence[float] | None,
        metric: bool,
        decisions: Sequence[str],
    ) -> Capture:
        source = Source(
            self.kind,
            tuple(frames),
            points=points,
            test=self._test_names,
            ordered=self.ordered,
            metric=metric,
            decisions=(*self.decisions, *decisions),
            close=self._close,
        )
        direction = None if up is None else torch.as_tensor(up, dtype=torch.float32)
        self._store.clear()
        return replace(_assemble(self.source, source, self._options), up=direction)

    def close(self) -> None:
        """End the threads, drop the photos, remove what was unpacked for this capture."""
        self._store.close()
        self._close()

    def __enter__(self) -> Capture:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True)
class _Options:
    downscale: float
    holdout: int
    max_views: int | None
    cache_mb: int

    def raw_size(self, frame: Frame) -> tuple[int, int]:
        return scaled_size(frame.width, frame.height, 1 / self.downscale)


def open_capture(
    source: Path | str,
    *,
    downscale: float = 1.0,
    holdout: int = 8,
    max_views: int | None = None,
    cache_mb: int = 512,
    workdir: Path | None = None,
) -> Capture:
    """Open whatever `source` is: photos, video, archive, COLMAP, transforms.json, LLFF, Middlebury, KITTI or a run.

    downscale: photos are delivered at 1/downscale of their size.  holdout: every N-th view (by name) is held out of
    training, unless the source brings a split; 0 holds out none.  max_views: an even selection of at most that many.
    cache_mb: memory for decoded photos and for those being decoded.  workdir: where archives and video frames are
    unpacked; a temporary folder, removed on close, when None.
    Raises InputError with what was expected, what came and what to do; bad files among good ones are left out and
    named in `decisions`.
    """
    if (
        not (downscale >= 1 and downscale < 1e4)
        or holdout < 0
        or cache_mb < 1
        or (max_views is not None and max_views < 1)
    ):
        raise InputError(
            "expected downscale >= 1, holdout >= 0, cache_mb >= 1 and max_views >= 1; "
            f"got {downscale}, {holdout}, {cache_mb} and {max_views}"
        )
    options = _Options(downscale, holdout, max_views, cache_mb)
    found = read_source(Path(source).expanduser(), workdir)
    try:
        return _assemble(str(source), _selected(_without_empty_alpha(found), max_views), options)
    except BaseException:
        found.close()
        raise


def capture_of_pictures(
    source: str,
    pictures: Mapping[str, tuple[MemoryPicture, Camera | None]],
    *,
    kind: str = "synthetic",
    points: PointCloud | None = None,
    test: Iterable[str] | None = None,
    up: tuple[float, float, float] | None = None,
    ordered: bool = False,
    metric: bool = False,
    downscale: float = 1.0,
    holdout: int = 8,
    cache_mb: int = 512,
    decisions: Sequence[str] = (),
) -> Capture:
    """A capture of pictures in memory, by name, with their cameras where known; `test` names the held-out ones."""
    frames = []
    for name, (picture, camera) in pictures.items():
        height, width = picture.rgb.shape[:2]
        lens, c2w = None, None
        if camera is not None:
            lens = Lens.from_K(camera.K.double().numpy(), camera.width, camera.height).resized(width, height)
            c2w = rigid(camera.c2w.double().numpy(), name)
        group = f"{width}x{height}" if lens is None else f"{width}x{height} {lens.fx:.4f} {lens.cx:.4f} {lens.cy:.4f}"
        has_alpha = picture.alpha is not None
        frames.append(Frame(name, picture, width, height, has_alpha=has_alpha, lens=lens, c2w=c2w, camera_group=group))
    found = Source(
        kind,
        tuple(frames),
        points=points,
        test=None if test is None else frozenset(test),
        ordered=ordered,
        up=up,
        metric=metric,
        decisions=tuple(decisions),
    )
    return _assemble(source, found, _Options(downscale, holdout, None, cache_mb))


def _selected(source: Source, max_views: int | None) -> Source:
    """An even selection of the views, of the held-out ones in proportion."""
    frames = sorted_frames(source.frames)
    if max_views is None or len(frames) <= max_views:
        return replace(source, frames=frames)
    test = source.test or frozenset()
    in_order = [frame for held in (False, True) for frame in frames if (frame.name in test) == held]
    kept = [in_order[i * len(in_order) // max_views] for i in range(max_views)]
    sentence = f"An even selection of {max_views} of {len(frames)} views was taken, as asked."
    return replace(source, frames=sorted_frames(kept), decisions=(*source.decisions, sentence))


def _without_empty_alpha(source: Source) -> Source:
    """Ignore alpha channels that hide nothing, as screenshots have: three pictures tell."""
    frames = [frame for frame in source.frames if frame.has_alpha and frame.mask is None]
    for i in {0, len(frames) // 2, len(frames) - 1} if frames else ():
        try:
            _, alpha = decode_image(frames[i].path)
        except InputError:
            continue
        if alpha is not None and alpha.min() < 255:
            return source
    if not frames:
        return source
    opaque = {frame.name for frame in frames}
    return replace(
        source,
        frames=tuple(replace(frame, has_alpha=False) if frame.name in opaque else frame for frame in source.frames),
        decisions=(*source.decisions, "The alpha channel of its pictures hides nothing and is ignored."),
    )


def _assemble(name: str, source: Source, options: _Options) -> Capture:
    shots, views, frames, bad = [], [], [], []
    for frame in sorted_frames(source.frames):
        try:
            shot, view = _delivered(frame, options)
        except InputError as error:
            bad.append(f"{frame.name}: {error}")
            continue
        shots.append(shot)
        views.append(view)
        frames.append(frame)
    if not views:
        raise InputError(f"{name}: no usable view; {'; '.join(bad[:5]) or 'none came'}")
    if source.test is not None:
        held = [i for i, view in enumerate(views) if view.name in source.test]
    else:
        held = list(range(0, len(views), options.holdout)) if options.holdout else []
    held = held if len(held) < len(views) else []
    return Capture(
        source=name,
        kind=source.kind,
        views=tuple(views),
        points=source.points,
        train=tuple(i for i in range(len(views)) if i not in set(held)),
        test=tuple(held),
        ordered=source.ordered,
        up=tensor_up(source.up),
        metric=source.metric,
        decisions=(*source.decisions, *(f"Left out {reason}." for reason in bad[:5])),
        _frames=tuple(frames),
        _options=options,
        _store=ImageStore(shots, options.cache_mb * 2**20),
        _test_names=source.test,
        _close=source.close,
    )


def _delivered(frame: Frame, options: _Options) -> tuple[Shot, View]:
    raw = options.raw_size(frame)
    lens = None if frame.lens is None else frame.lens.resized(*raw)
    pinhole = None if lens is None else lens.undistorted()
    width, height = raw if pinhole is None else (pinhole.width, pinhole.height)
    camera = None
    if pinhole is not None and frame.c2w is not None:
        camera = Camera(
            torch.tensor(pinhole.K, dtype=torch.float32), torch.tensor(frame.c2w, dtype=torch.float32), width, height
        )
    distorts = lens is not None and lens.distorts
    exif_focal = None if frame.focal_px is None else frame.focal_px * raw[0] / frame.width
    shot = Shot(
        path=frame.path,
        orientation=frame.orientation,
        mask=frame.mask,
        has_alpha=frame.has_alpha,
        stored=(frame.width, frame.height),
        raw=raw,
        lens=lens if distorts else None,
        pinhole=pinhole if distorts else None,
    )
    return shot, View(
        name=frame.name,
        width=width,
        height=height,
        camera=camera,
        camera_group=frame.camera_group,
        focal_px=exif_focal if pinhole is None else pinhole.fx,
        gps=frame.gps,
        time=frame.time,
        has_alpha=frame.has_alpha,
    )
