"""One training step of Gaussians without autograd's bookkeeping: render, back-propagate, update what was seen.

    step = SplatStep(gaussians, AdamState.zeros(gaussians))
    image = step.forward(camera, background, sh_degree=3)          # [H, W, 3], valid until the next forward
    loss, v_image = photometric_loss_and_grad(image, target)
    step.backward(v_image)
    step.update(rates)                                             # in place: parameters, moments, statistics

The native path keeps all buffers between steps, fuses the projection's backward with Adam, and touches only the
splats that the camera saw. The composed path is the autograd ops and sparse Adam one after the other: the oracle, and
the fallback without compiled kernels.

On a GPU nothing here leaves the card without work: splats are not compacted, and the room for pairs of tile and splat
is what earlier steps asked for and a quarter more. It grows as soon as nine tenths are in use, two steps late. A step
that asks for a tenth more than any before it may drop pairs, so that its picture lacks far splats in some tiles, and
so may the two after it. The first forward after `replace` waits for the count and is always drawn in full.
"""

from __future__ import annotations

from dataclasses import InitVar, dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from scene.cameras import Camera
from scene.gaussians import Gaussians
from scene.ops import native
from scene.ops.adam import adam_visible
from scene.ops.splat_bin import bin_splats
from scene.ops.splat_blend import Blended, blend
from scene.ops.splat_project import Lens, Projected, allocate, project


@dataclass(frozen=True)
class Rates:
    """Learning rates of one step, per parameter; Adam's constants; MCMC's pull on opacity and size.

    A rate of 0 leaves that parameter and its moments alone for this step, as if no camera had seen them: `sh_rest` is
    most of what a step moves through memory, and may be learned every few steps only.
    opacity_pull, scale_pull: weights of mean(opacity) and mean(scale) in the loss (MCMC, eq. 10), felt by what is seen.
    """

    means: float
    quats: float
    log_scales: float
    opacity_logits: float
    sh_dc: float
    sh_rest: float
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-15
    opacity_pull: float = 0.0
    scale_pull: float = 0.0

    def by_group(self) -> tuple[float, ...]:
        """The six learning rates, in the order of Gaussians.parameters()."""
        return self.means, self.quats, self.log_scales, self.opacity_logits, self.sh_dc, self.sh_rest


@dataclass
class AdamState:
    """Adam's first and second moments by parameter name, and the number of steps taken.

    They have the dtype of the parameters, or bfloat16, all of them, beside parameters in float32.
    """

    exp_avg: dict[str, Tensor]
    exp_avg_sq: dict[str, Tensor]
    steps: int = 0

    @staticmethod
    def zeros(gaussians: Gaussians, dtype: torch.dtype | None = None) -> AdamState:
        """Moments of `dtype`, that of the Gaussians where None."""
        named = gaussians.parameters()
        return AdamState(
            {name: torch.zeros_like(value, dtype=dtype) for name, value in named.items()},
            {name: torch.zeros_like(value, dtype=dtype) for name, value in named.items()},
        )


@dataclass
class Statistics:
    """What densification wants to know, summed over steps since the last reset.

    score: [N] sum of the length of the image-space gradient (of the absolute one where backward was told so), in the
    units of the normalised image as in 3DGS.  seen: [N] int32, number of steps in which the splat was visible.
    radius: [N] largest extent on screen, px.
    """

    score: Tensor
    seen: Tensor
    radius: Tensor

    @staticmethod
    def zeros(count: int, device: torch.device | str = "cpu") -> Statistics:
        return Statistics(
            torch.zeros(count, device=device),
            torch.zeros(count, dtype=torch.int32, device=device),
            torch.zeros(count, device=device),
        )


@dataclass(frozen=True)
class Shot:
    """What one step draws: a view and how. Camera and background lie wherever the caller keeps them."""

    camera: Camera
    background: Tensor
    sh_degree: int
    antialias: bool
    near: float
    with_geometry: bool


@dataclass(frozen=True)
class Upstream:
    """Gradients of the loss by the images, shaped as they are."""

    rgb: Tensor
    alpha: Tensor | None
    depth: Tensor | None
    normal: Tensor | None


class Pass(Protocol):
    """How a step draws, back-propagates and learns; the arguments and results are `SplatStep`'s own."""

    def visible(self) -> Tensor: ...

    def forward(self, gaussians: Gaussians, shot: Shot) -> Blended: ...

    def backward(self, upstream: Upstream, absgrad: bool) -> None: ...

    def gradients(self, gaussians: Gaussians) -> dict[str, Tensor]: ...

    def update(self, gaussians: Gaussians, adam: AdamState, statistics: Statistics, rates: Rates) -> None: ...


@dataclass
class SplatStep:
    """Training state of one set of Gaussians; `update` changes the tensors of `gaussians` and `adam` in place.

    rasterizer: another way to draw than by our kernels or, without them, our reference.
    """

    gaussians: Gaussians
    adam: AdamState
    rasterizer: InitVar[Pass | None] = None
    statistics: Statistics = field(init=False)
    images: Blended = field(init=False)  # all that the last forward drew; depth is the sum of w z, not yet over alpha

    def __post_init__(self, rasterizer: Pass | None) -> None:
        self._pass: Pass = rasterizer or _own_pass(self.gaussians)
        self.replace(self.gaussians, self.adam)

    def replace(self, gaussians: Gaussians, adam: AdamState) -> None:
        """Goes on with another set of Gaussians, after densification. Statistics start again at zero."""
        for moments in (adam.exp_avg, adam.exp_avg_sq):
            for name, value in gaussians.parameters().items():
                if moments[name].shape != value.shape or not (moments[name].is_contiguous() and value.is_contiguous()):
                    raise ValueError(
                        f"{name} and its moments must be contiguous and of one shape, got {list(value.shape)} and "
                        f"{list(moments[name].shape)}; remap the moments with the Gaussians"
                    )
        self.gaussians, self.adam = gaussians.detach(), adam
        self.statistics = Statistics.zeros(len(gaussians), gaussians.means.device)

    @property
    def visible(self) -> Tensor:
        """[V] int32, ascending: the Gaussians that the last forward drew. Valid until the next one."""
        return self._pass.visible()

    def forward(
        self,
        camera: Camera,
        background: Tensor,
        *,
        sh_degree: int,
        antialias: bool = False,
        near: float = 0.01,
        with_geometry: bool = False,
    ) -> Tensor:
        """The image [H, W, 3] of the current Gaussians over `background` [3]; overwritten by the next forward.

        with_geometry: `images` then also holds depth, normal and median depth.
        camera, background: best kept on the CPU, from where they go to a GPU without waiting for it.
        """
        dtype = self.gaussians.means.dtype
        shot = Shot(camera.to(dtype=dtype), background.to(dtype), sh_degree, antialias, near, with_geometry)
        self.images = self._pass.forward(self.gaussians, shot)
        return self.images.rgb

    def backward(
        self,
        v_image: Tensor,
        v_alpha: Tensor | None = None,
        v_depth: Tensor | None = None,
        v_normal: Tensor | None = None,
        *,
        absgrad: bool = False,
    ) -> None:
        """Back-propagates gradients by the last forward's images to the splats in the image plane.

        v_depth is by the sum of w z, v_normal by the sum of w n; both need with_geometry.  absgrad: statistics.score
        then sums the absolute gradient over pixels (AbsGS) instead of the gradient.
        """
        if (v_depth is not None or v_normal is not None) and self.images.depth is None:
            raise ValueError("gradients by depth or normal need forward(..., with_geometry=True)")
        upstream = (v if v is None else v.contiguous() for v in (v_image, v_alpha, v_depth, v_normal))
        self._pass.backward(Upstream(*upstream), absgrad)  # pyright: ignore[reportArgumentType]

    def gradients(self) -> dict[str, Tensor]:
        """Gradients by all Gaussians, dense, and by `viewmat` [4, 4], after backward and before update."""
        return self._pass.gradients(self.gaussians)

    def update(self, rates: Rates) -> None:
        """One Adam step on what the last forward drew, in place; adds to the statistics."""
        self.adam.steps += 1
        self._pass.update(self.gaussians, self.adam, self.statistics, rates)


def _own_pass(gaussians: Gaussians) -> Pass:
    means = gaussians.means
    fused = means.dtype == torch.float32 and native.has(means.device, means.dtype)
    return _Fused(means.device) if fused else _Composed()


class _Fused:
    """The native path. Buffers grow to the largest scene and image met, and stay.

    On the CPU `projected` has a row for each splat that is seen; on a GPU for each there is, and those that are not
    seen have extents of 0.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.kernels = native.kernels(self.device)
        self.dense = native.backend(self.device) == "cuda"
        self.bins, self.blend = self.kernels.SplatBins(), self.kernels.SplatBlend()
        self.drawn: Gaussians | None = None  # whose pairs were counted and found to have room
        self.room: Projected | None = None
        self.v_room: Projected | None = None
        self.pixels: Tensor = torch.empty(0, device=device)
        self.absolute: Tensor | None = None

    def forward(self, gaussians: Gaussians, shot: Shot) -> Blended:
        self.shot, camera = shot, shot.camera
        self._make_room(gaussians, with_normals=shot.with_geometry)
        assert self.room is not None and self.v_room is not None
        self.viewmat = camera.viewmat.to(self.device, non_blocking=True)
        self.lens = Lens.of(camera.K, camera.width, camera.height, shot.near, shot.sh_degree, shot.antialias)
        out = self.room
        project_splats = self.kernels.project_splats_dense if self.dense else self.kernels.project_splats
        rows = project_splats(
            *gaussians.parameters().values(),
            self.viewmat,
            *self.lens,
            *_first(out, len(gaussians), with_normals=shot.with_geometry).arrays(),
        )
        self.projected = p = _first(out, rows, with_normals=shot.with_geometry)
        self.v_projected = _first(self.v_room, rows, with_normals=shot.with_geometry)
        self._bin(gaussians, p)
        self.images = images = self._images(camera.width, camera.height, shot.with_geometry)
        depths = p.depths if shot.with_geometry else None
        background = shot.background.to(self.device, non_blocking=True)
        self.blend.forward(
            *(self.bins, p.means2d, p.conics, p.opacities, p.colors, depths, p.normals, background),
            *(images.rgb, images.alpha, images.depth, images.normal, images.median_depth),
        )
        return images

    def _make_room(self, gaussians: Gaussians, *, with_normals: bool) -> None:
        """Rows for what is projected and for its gradients.

        On a GPU memory is what ends a training: the gradients take the place of what the kernels there have packed
        into records of their own by then, and normals have room once they are asked for.
        """
        count = len(gaussians)
        if self.room is not None and len(self.room) >= count and (self.room.normals is not None or not with_normals):
            return
        rows = count if self.dense else count + count // 8  # some growth before the next allocation
        with_normals |= not self.dense
        self.room = room = allocate(gaussians.means, rows, with_normals=with_normals)
        if self.dense:  # colours say which channels were cut off; they are read together with their gradients
            self.v_room = replace(room, colors=torch.empty_like(room.colors))
        else:
            self.v_room = allocate(gaussians.means, rows, with_normals=True)

    def _bin(self, gaussians: Gaussians, p: Projected) -> None:
        splats = (p.means2d, p.conics, p.opacities, p.depths, p.extents)
        width, height = self.shot.camera.width, self.shot.camera.height
        self.bins.build(*splats, width, height)
        if not self.dense:
            return
        if gaussians is self.drawn:
            self.bins.watch()
            return
        if self.bins.check():  # was short of room, and has grown it
            self.bins.build(*splats, width, height)
        self.drawn = gaussians

    def visible(self) -> Tensor:
        ids = self.projected.ids
        return ids[self.projected.extents[:, 0] > 0] if self.dense else ids

    def _images(self, width: int, height: int, with_geometry: bool) -> Blended:
        channels = (3, 1, 1, 3, 1) if with_geometry else (3, 1)
        area, total = width * height, width * height * sum(channels)
        if self.pixels.numel() < total:
            self.pixels = torch.empty(total, device=self.device)
        planes = self.pixels[:total].split([area * c for c in channels])
        images: list[Any] = [p.view((height, width, 3)[: 2 + c // 3]) for p, c in zip(planes, channels)]
        return Blended(*images, *[None] * (5 - len(images)))

    def backward(self, upstream: Upstream, absgrad: bool) -> None:
        v, images = self.v_projected, self.images
        geometry = self.shot.with_geometry
        absolute = self._absolute_room(len(v)) if absgrad else None
        self.blend.backward(
            *(self.bins, images.rgb, images.alpha, images.depth, images.normal),
            *(upstream.rgb, upstream.alpha, upstream.depth, upstream.normal),
            *(v.means2d, v.conics, v.opacities, v.colors, v.depths if geometry else None, v.normals, absolute),
        )
        self.v_score = v.means2d if absolute is None else absolute

    def _absolute_room(self, count: int) -> Tensor:
        if self.absolute is None or len(self.absolute) < count:
            assert self.room is not None
            self.absolute = torch.empty_like(self.room.means2d)
        return self.absolute[:count]

    def _footprint_gradients(self) -> tuple[Tensor | None, ...]:
        v = self.v_projected
        depths = v.depths if self.shot.with_geometry else None
        return v.means2d, v.conics, v.opacities, v.colors, depths, v.normals

    def gradients(self, gaussians: Gaussians) -> dict[str, Tensor]:
        gradients = {name: torch.zeros_like(value) for name, value in gaussians.parameters().items()}
        gradients["viewmat"] = torch.zeros_like(self.viewmat)
        ids, footprints = self.visible(), (self.projected.colors, *self._footprint_gradients())
        if self.dense:  # what was not seen has no gradient, not even one that can be worked out
            footprints = tuple(None if part is None else part[ids.long()] for part in footprints)
        self.kernels.project_splats_backward(
            *gaussians.parameters().values(), self.viewmat, *self.lens, ids, *footprints, *gradients.values()
        )
        return gradients

    def update(self, gaussians: Gaussians, adam: AdamState, statistics: Statistics, rates: Rates) -> None:
        names = tuple(gaussians.parameters())
        count = max(1, len(gaussians))
        self.kernels.update_splats(
            tuple(gaussians.parameters().values()),
            tuple(_for_kernels(adam.exp_avg[name]) for name in names),
            tuple(_for_kernels(adam.exp_avg_sq[name]) for name in names),
            rates.by_group(),
            *(rates.beta1, rates.beta2, rates.eps, adam.steps),
            *(rates.opacity_pull / count, rates.scale_pull / (3 * count)),
            self.viewmat,
            *self.lens,
            *(self.projected.ids, self.projected.colors, self.projected.extents),
            *self._footprint_gradients(),
            *(self.v_score, statistics.score, statistics.seen, statistics.radius),
        )


def _for_kernels(moment: Tensor) -> Tensor:
    """Kernels take bfloat16 as its bits."""
    return moment.view(torch.uint16) if moment.dtype == torch.bfloat16 else moment


def _first(room: Projected, count: int, *, with_normals: bool) -> Projected:
    """The first rows of each array, without copying."""
    rows: list[Any] = [None if part is None else part[:count] for part in room.arrays()]
    first = Projected(*rows)
    return first if with_normals else replace(first, normals=None)


class _Composed:
    """The same from the autograd ops, for any device, dtype and backend."""

    projected: Projected

    def visible(self) -> Tensor:
        return self.projected.ids

    def forward(self, gaussians: Gaussians, shot: Shot) -> Blended:
        self.leaves = {name: value.detach().requires_grad_() for name, value in gaussians.parameters().items()}
        self.leaves["viewmat"] = shot.camera.viewmat.to(gaussians.means.device).detach().requires_grad_()
        self.shot, camera = shot, shot.camera
        self.projected = project(
            **self.leaves,
            K=camera.K.to(gaussians.means.device),
            width=camera.width,
            height=camera.height,
            sh_degree=shot.sh_degree,
            antialias=shot.antialias,
            near=shot.near,
            with_normals=shot.with_geometry,
        )
        bins = bin_splats(self.projected, camera.width, camera.height)
        self.absolute = torch.zeros_like(self.projected.means2d) if bins.handle is not None else None
        self.blended = blend(
            self.projected,
            bins,
            shot.background.to(gaussians.means),
            with_geometry=shot.with_geometry,
            absgrad=self.absolute,
        )
        out = self.blended
        depth = None if out.depth is None else out.depth.detach()
        normal = None if out.normal is None else out.normal.detach()
        return Blended(out.rgb.detach(), out.alpha.detach(), depth, normal, out.median_depth)

    def backward(self, upstream: Upstream, absgrad: bool) -> None:
        blended = self.blended
        pairs = [
            (blended.rgb, upstream.rgb),
            (blended.alpha, upstream.alpha),
            (blended.depth, upstream.depth),
            (blended.normal, upstream.normal),
        ]
        used = [(image, v) for image, v in pairs if image is not None and v is not None]
        wanted = [*self.leaves.values(), self.projected.means2d]
        gradients = torch.autograd.grad(
            [image for image, _ in used], wanted, [v for _, v in used], allow_unused=True, materialize_grads=True
        )
        self.v = dict(zip(self.leaves, gradients))
        # The reference backend offers no absolute gradient; the mean one ranks splats much alike.
        self.v_score = self.absolute if absgrad and self.absolute is not None else gradients[-1]

    def gradients(self, gaussians: Gaussians) -> dict[str, Tensor]:
        return dict(self.v)

    @torch.no_grad()
    def update(self, gaussians: Gaussians, adam: AdamState, statistics: Statistics, rates: Rates) -> None:
        ids, count = self.projected.ids, max(1, len(gaussians))
        opacities = gaussians.opacities
        v = dict(self.v)
        v["opacity_logits"] = v["opacity_logits"] + rates.opacity_pull / count * opacities * (1 - opacities)
        v["log_scales"] = v["log_scales"] + rates.scale_pull / (3 * count) * gaussians.scales
        for (name, value), rate in zip(gaussians.parameters().items(), rates.by_group()):
            if value.numel() == 0 or rate == 0:
                continue
            moments = (adam.exp_avg[name], adam.exp_avg_sq[name])
            betas = (rates.beta1, rates.beta2)
            adam_visible(value, v[name], ids, *moments, step=adam.steps, lr=rate, betas=betas, eps=rates.eps)
        size = self.v_score.new_tensor([0.5 * self.shot.camera.width, 0.5 * self.shot.camera.height])
        rows = ids.long()
        statistics.score[rows] += (self.v_score * size).norm(dim=1).to(statistics.score)
        statistics.seen[rows] += 1
        reach = self.projected.extents.amax(1).to(statistics.radius)
        statistics.radius[rows] = torch.maximum(statistics.radius[rows], reach)
