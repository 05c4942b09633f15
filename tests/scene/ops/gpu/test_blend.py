"""Blending kernels of the GPU, run on the host, against the CPU's. Lists come from the CPU's binning."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from scene.ops import native
from scene.ops.gpu.splat_blend import SplatBlend
from scene.ops.splat_bin import bin_splats, tile_grid
from scene.ops.splat_blend import blend
from scene.ops.splat_project import Projected
from tests.scene.projected_splats import FIELDS, cast, make_projected, random_projected, select

pytestmark = pytest.mark.skipif(not native.has(torch.device("cpu")), reason="the CPU module is not compiled")
BACKGROUND = torch.tensor([0.2, 0.5, 0.9])
# The bars of issue 4. Rounding of sums in another order; the scenes are not near a cut-off.
IMAGE_TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-4
SPOILT = 1 << 30  # in list entries that no kernel may read: an index that faults


@dataclass(frozen=True)
class Wanted:
    """What a caller of SplatBlend may give or leave out."""

    geometry: bool = False
    absgrad: bool = False
    background: bool = True
    v_alpha: bool = True
    v_geometry: bool = True


EVERYTHING = Wanted(geometry=True, absgrad=True)


def cpu_bins(splats: Projected, width: int, height: int) -> Any:
    bins = native.cpu().SplatBins()
    fields = (splats.means2d, splats.conics, splats.opacities, splats.depths, splats.extents)
    bins.build(*(field.contiguous() for field in fields), width, height)
    return bins


def device_bins(splats: Projected, width: int, height: int, *, room: int | None = None) -> Any:
    """Lists as the GPU's SplatBins holds them, with `room` for pairs; more than that are dropped, in emission order."""
    order, offsets, listed, _ = (torch.from_numpy(part) for part in cpu_bins(splats, width, height).lists())
    count, columns = len(order), tile_grid(width, height)[0]
    tiles = torch.repeat_interleave(torch.arange(len(offsets) - 1), offsets.diff())
    slots = torch.empty_like(listed)
    slots[listed.argsort(stable=True)] = torch.arange(len(listed))  # pairs of a splat side by side
    slot_count = listed.bincount(minlength=count)
    capacity = len(listed) + 7 if room is None else room
    kept = slots < capacity
    tile_begin = torch.zeros_like(offsets)
    tile_begin[1:] = tiles[kept].bincount(minlength=len(offsets) - 1).cumsum(0)
    spare = torch.full([capacity - int(kept.sum())], SPOILT)
    fields = {
        "order": order,
        "tile_begin": tile_begin,
        "pair_splat": torch.cat([listed[kept], spare]),
        "pair_slot": torch.cat([slots[kept], spare]),
        "slot_first": slot_count.cumsum(0) - slot_count,
        "slot_count": slot_count,
        "total": torch.tensor([len(listed)]),
    }
    size = {"width": width, "height": height, "columns": columns, "rows": tile_grid(width, height)[1]}
    fields = {name: field.to(torch.int32) for name, field in fields.items()}
    return SimpleNamespace(count=count, capacity=capacity, **size, **fields)


def run(state: Any, bins: Any, splats: Projected, width: int, height: int, wanted: Wanted) -> dict[str, Tensor]:
    """Every output of a forward and a backward with random upstream gradients, by name."""

    def unwritten(*shape: int) -> Tensor:
        return torch.full(shape, torch.nan)

    count, generator = splats.means2d.shape[0], torch.Generator().manual_seed(1)
    images = {"rgb": unwritten(height, width, 3), "alpha": unwritten(height, width)}
    images |= {"depth": unwritten(height, width), "normal": unwritten(height, width, 3)} if wanted.geometry else {}
    median = unwritten(height, width) if wanted.geometry else None
    inputs = [splats.means2d, splats.conics, splats.opacities, splats.colors]
    inputs += [splats.depths, splats.normals] if wanted.geometry else [None, None]
    background = BACKGROUND if wanted.background else None
    places = [images.get(name) for name in ("rgb", "alpha", "depth", "normal")]
    state.forward(bins, *inputs, background, *places, median)

    v_images = {name: torch.randn(image.shape, generator=generator) for name, image in images.items()}
    if not wanted.v_alpha:
        del v_images["alpha"]
    if not wanted.v_geometry:
        v_images = {name: v for name, v in v_images.items() if name not in ("depth", "normal")}
    upstream = [v_images.get(name) for name in ("rgb", "alpha", "depth", "normal")]
    gradients = [None if field is None else torch.full_like(field, torch.nan) for field in inputs]
    absgrad = unwritten(count, 2) if wanted.absgrad else None
    state.backward(bins, *places, *upstream, *gradients, absgrad)

    names = ("v_means2d", "v_conics", "v_opacities", "v_colors", "v_depths", "v_normals")
    outputs = images | {"median_depth": median} | dict(zip(names, gradients)) | {"absgrad": absgrad}
    return {name: output for name, output in outputs.items() if output is not None}


def assert_like_cpu(got: dict[str, Tensor], splats: Projected, width: int, height: int, wanted: Wanted) -> None:
    want = run(native.cpu().SplatBlend(), cpu_bins(splats, width, height), splats, width, height, wanted)
    assert got.keys() == want.keys()
    for name, value in want.items():
        if value.numel() == 0:
            continue
        tolerance = GRADIENT_TOLERANCE if name.startswith("v_") or name == "absgrad" else IMAGE_TOLERANCE
        scale, worst = float(value.abs().max()), float((got[name] - value).abs().max())
        assert worst <= tolerance * max(scale, 1e-6), f"{name}: off by {worst:.2e} at a scale of {scale:.2e}"


def pile(count: int, width: int, height: int, *, opacity: float) -> Projected:
    """Small splats of one opacity, strewn over the image, all at different depths."""
    splats = random_projected(count, width, height, seed=count)
    generator = torch.Generator().manual_seed(count)
    covariances = torch.tensor([[3.0, 0.5, 2.0]]).repeat(count, 1)
    opacities = torch.full([count], opacity) * (1 - 0.1 * torch.rand(count, generator=generator))
    assert splats.normals is not None
    return make_projected(splats.means2d, covariances, opacities, splats.colors, splats.depths, splats.normals)


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (17, 31), (5, 70), (50, 37)])
@pytest.mark.parametrize(
    "wanted",
    [
        Wanted(),
        Wanted(absgrad=True, v_alpha=False),
        Wanted(geometry=True, background=False),
        Wanted(geometry=True, absgrad=True, v_geometry=False),
        EVERYTHING,
    ],
    ids=["plain", "absgrad", "geometry", "unused_geometry", "everything"],
)
def test_kernels_agree_with_the_cpu(host_gpu, size: tuple[int, int], wanted: Wanted) -> None:
    width, height = size
    splats = random_projected(max(3, width * height // 8), width, height, seed=width)
    bins = device_bins(splats, width, height)
    with host_gpu():
        got = run(SplatBlend(), bins, splats, width, height, wanted)
    assert_like_cpu(got, splats, width, height, wanted)


def test_clamped_alphas_and_stopped_pixels(host_gpu) -> None:
    """Opacity 1 at the mean is clamped at 0.999; two of those stop a pixel, and hundreds lie behind."""
    width, height = 20, 20
    splats = random_projected(300, width, height, seed=8, opaque=1.0)
    splats.opacities[::2] = 1.0
    splats.means2d[::2] = splats.means2d[::2].floor() + 0.5  # at a pixel centre
    splats = make_projected(splats.means2d, 30 / splats.conics[:, [0]] * torch.tensor([1.0, 0.0, 1.0]), *_rest(splats))
    bins = device_bins(splats, width, height)
    with host_gpu():
        got = run(SplatBlend(), bins, splats, width, height, EVERYTHING)
    assert float(got["alpha"].min()) > 0.9999  # all pixels stopped
    assert bool((got["v_opacities"] == 0).any())  # splats behind every stop
    assert_like_cpu(got, splats, width, height, EVERYTHING)


def _rest(splats: Projected) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    assert splats.normals is not None
    return splats.opacities, splats.colors, splats.depths, splats.normals


@pytest.mark.parametrize(("count", "opacity"), [(3000, 0.02), (1200, 0.9)], ids=["all_seen", "stopped_between"])
def test_one_tile_with_many_batches(host_gpu, count: int, opacity: float) -> None:
    splats = pile(count, 16, 16, opacity=opacity)
    bins = device_bins(splats, 16, 16)
    assert int(bins.total) > 6 * 128
    with host_gpu():
        got = run(SplatBlend(), bins, splats, 16, 16, EVERYTHING)
    assert_like_cpu(got, splats, 16, 16, EVERYTHING)


def test_a_splat_with_hundreds_of_pairs_is_summed_by_its_warp(host_gpu) -> None:
    """Splats of 1 to 132 pairs side by side: the short rows are summed by lanes, the long ones by warps."""
    width, height = 190, 170
    splats = random_projected(40, width, height, seed=3, opaque=0.3)
    covariances = torch.ones(40, 1) * torch.tensor([[9.0, 2.0, 6.0]])
    covariances[::3] *= 900
    splats = make_projected(splats.means2d, covariances, *_rest(splats))
    bins = device_bins(splats, width, height)
    assert int(bins.slot_count.max()) > 100 and int(bins.slot_count.min()) < 10
    with host_gpu():
        got = run(SplatBlend(), bins, splats, width, height, EVERYTHING)
    assert_like_cpu(got, splats, width, height, EVERYTHING)


def test_thin_splats_across_a_corner_lose_no_pixel(host_gpu) -> None:
    """Needles at every angle around sub-tile corners: where a warp's test must not reject."""
    width, height, count = 32, 32, 256
    splats = random_projected(count, width, height, seed=5)
    angle = torch.linspace(0, torch.pi, count)
    across, along = 0.3, 400.0
    cos, sin = angle.cos(), angle.sin()
    covariances = torch.stack(
        [along * cos**2 + across * sin**2, (along - across) * cos * sin, along * sin**2 + across * cos**2], dim=1
    )
    splats = make_projected(splats.means2d, covariances, *_rest(splats))
    splats.opacities.clamp_(max=0.3)
    bins = device_bins(splats, width, height)
    with host_gpu():
        got = run(SplatBlend(), bins, splats, width, height, EVERYTHING)
    assert_like_cpu(got, splats, width, height, EVERYTHING)


@pytest.mark.parametrize("schedule", ["reverse", "random"])
def test_the_order_of_threads_changes_no_bit(host_gpu, schedule: str) -> None:
    width, height = 21, 19
    splats = random_projected(600, width, height, seed=2, opaque=0.05)
    bins = device_bins(splats, width, height)
    assert int(bins.tile_begin[1]) > 3 * 128  # batches of shared memory come one after the other
    with host_gpu():
        want = run(SplatBlend(), bins, splats, width, height, EVERYTHING)
    with host_gpu(schedule=schedule, seed=4):
        got = run(SplatBlend(), bins, splats, width, height, EVERYTHING)
    for name, value in want.items():
        assert torch.equal(got[name], value), name


@pytest.mark.parametrize("wanted", [Wanted(), EVERYTHING], ids=["plain", "everything"])
def test_without_splats_there_is_the_background(host_gpu, wanted: Wanted) -> None:
    splats = select(random_projected(3, 20, 18), torch.arange(0))
    with host_gpu():
        got = run(SplatBlend(), device_bins(splats, 20, 18), splats, 20, 18, wanted)
    assert torch.equal(got["rgb"], BACKGROUND.expand(18, 20, 3))
    assert_like_cpu(got, splats, 20, 18, wanted)


def test_culled_rows_get_zeros(host_gpu) -> None:
    """The training step bins all rows; a culled one has no pairs, opacity 0 and whatever else."""
    width, height = 24, 20
    splats = random_projected(50, width, height, seed=6)
    culled = torch.arange(50) % 3 == 0
    splats.opacities[culled] = 0
    splats.extents[culled] = 0
    splats.depths[culled] = torch.inf
    for field in (splats.means2d, splats.conics, splats.colors, splats.normals):
        assert field is not None
        field[culled] = torch.nan
    bins = device_bins(splats, width, height)
    assert not bool(bins.slot_count[culled].any())
    with host_gpu():
        got = run(SplatBlend(), bins, splats, width, height, EVERYTHING)
    seen = select(splats, (~culled).nonzero()[:, 0])
    with host_gpu():
        want = run(SplatBlend(), device_bins(seen, width, height), seen, width, height, EVERYTHING)
    for name, value in want.items():
        is_gradient = name.startswith("v_") or name == "absgrad"
        assert torch.equal(got[name][~culled] if is_gradient else got[name], value), name
        assert not is_gradient or not bool(got[name][culled].any())


@pytest.mark.parametrize("grown", [0, 500])
@pytest.mark.parametrize("room", [0, 100])
def test_pairs_beyond_the_room_are_as_if_not_listed(host_gpu, room: int, grown: int) -> None:
    """Nothing out of bounds is touched (the shim's guard), and what lies in the room is blended.

    grown: `SplatBins.watch` makes room for the next build before this one's backward.
    """
    width, height = 40, 24
    splats = random_projected(90, width, height, seed=7)
    bins = device_bins(splats, width, height, room=room)
    assert int(bins.total) > room
    bins.capacity += grown
    with host_gpu():
        got = run(SplatBlend(), bins, splats, width, height, EVERYTHING)
    assert all(bool(value.isfinite().all()) for value in got.values())
    dropped = bins.slot_first >= room
    assert bool(dropped.any()) and not bool(got["v_opacities"][dropped].any())
    assert bool(got["v_opacities"][:5].any()) == (room > 0)


def test_a_second_forward_leaves_nothing_of_the_first(host_gpu) -> None:
    width, height = 30, 22
    splats = random_projected(80, width, height, seed=9)
    bins, state = device_bins(splats, width, height), SplatBlend()
    with host_gpu():
        want = run(SplatBlend(), bins, splats, width, height, EVERYTHING)
        run(state, bins, random_projected(80, width, height, seed=9, opaque=0.2), width, height, Wanted())
        state.poison()
        got = run(state, bins, splats, width, height, EVERYTHING)
    for name, value in want.items():
        assert torch.equal(got[name], value), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_public_op_and_its_gradient_take_the_gpu_path(host_gpu, dtype: torch.dtype) -> None:
    """float64 is left to the reference there; alternating between the backends mixes up no workspaces."""
    width, height = 27, 18
    splats = random_projected(60, width, height, seed=11)
    want = blended_by(cast(splats, torch.float32), width, height)
    with host_gpu():
        assert native.backend(torch.device("cpu"), dtype) == ("cuda" if dtype == torch.float32 else "reference")
        got = blended_by(cast(splats, dtype), width, height)
    again = blended_by(cast(splats, torch.float32), width, height)
    for name, value in want.items():
        scale = float(value.abs().max())
        assert float((got[name] - value).abs().max()) <= GRADIENT_TOLERANCE * scale, name
        assert torch.equal(again[name], value), name


def blended_by(splats: Projected, width: int, height: int) -> dict[str, Any]:
    """Images and gradients through bin_splats, blend and autograd."""
    fields: dict[str, Any] = {name: getattr(splats, name).requires_grad_() for name in FIELDS}
    background = BACKGROUND.to(splats.means2d, copy=True).requires_grad_()
    absgrad = torch.full_like(splats.means2d, torch.nan).detach()
    bins = bin_splats(splats, width, height)
    out = blend(splats, bins, background, with_geometry=True, absgrad=absgrad)
    assert out.depth is not None and out.normal is not None
    loss = (out.rgb.square().sum() + out.alpha.sin().sum() + out.depth.square().sum() + out.normal.sin().sum()) / 100
    loss.backward()
    images = {"rgb": out.rgb.detach(), "depth": out.depth.detach(), "normal": out.normal.detach()}
    leaves = fields | {"background": background}
    return images | {f"v_{name}": leaf.grad for name, leaf in leaves.items()} | {"absgrad": absgrad}


def test_wrong_arguments_are_named(host_gpu) -> None:
    splats = random_projected(8, 20, 20)
    bins = device_bins(splats, 20, 20)
    inputs = (splats.means2d, splats.conics, splats.opacities, splats.colors)
    few = (splats.means2d[:4], *inputs[1:])
    rgb, alpha = torch.empty(20, 20, 3), torch.empty(20, 20)
    with host_gpu():
        state = SplatBlend()
        with pytest.raises(ValueError, match="one row per binned splat"):
            state.forward(bins, *few, None, None, None, rgb, alpha, None, None, None)
        with pytest.raises(ValueError, match="size of the bins"):
            state.forward(bins, *inputs, None, None, None, rgb[:5], alpha, None, None, None)
        with pytest.raises(ValueError, match="given together"):
            state.forward(bins, *inputs, splats.depths, None, None, rgb, alpha, None, None, None)
        with pytest.raises(ValueError, match="needs a forward"):
            nothing = (None, None, None)
            state.backward(bins, rgb, alpha, None, None, rgb, *nothing, *inputs, *nothing)
