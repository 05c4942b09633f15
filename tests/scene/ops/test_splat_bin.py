"""Binning: nothing that can be seen is left out, little else is listed, always in depth order."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from scene.ops import native
from scene.ops.splat_bin import BLOCK, TILE, Bins, bin_splats, bin_splats_reference, tile_grid
from scene.ops.splat_project import Projected
from tests.scene.projected_splats import make_projected, random_projected

needs_kernels = pytest.mark.skipif(not native.has(torch.device("cpu")), reason="needs the compiled CPU module")


def blocks_of(bins: Bins) -> set[tuple[int, int, int]]:
    """(tile, splat, block) triples."""
    _, offsets, splats, masks = bins.lists()
    tiles = torch.repeat_interleave(torch.arange(len(offsets) - 1), offsets.diff())
    return {
        (tile, splat, block)
        for tile, splat, mask in zip(tiles.tolist(), splats.tolist(), masks.tolist())
        for block in range(16)
        if mask >> block & 1
    }


def largest_alpha(splats: Projected, splat: int, tile: int, block: int, columns: int) -> float:
    """Largest alpha over the rectangle spanned by the block's pixel centres, found on a fine grid."""
    left = tile % columns * TILE + block % 4 * BLOCK + 0.5
    top = tile // columns * TILE + block // 4 * BLOCK + 0.5
    fine = torch.linspace(0, BLOCK - 1, 97, dtype=torch.float64)
    dy, dx = torch.meshgrid(top + fine, left + fine, indexing="ij")
    dx, dy = splats.means2d[splat, 0].double() - dx, splats.means2d[splat, 1].double() - dy
    a, b, c = splats.conics[splat].double()
    return float((splats.opacities[splat] * torch.exp(-0.5 * (a * dx**2 + c * dy**2) - b * dx * dy)).max())


def needles(count: int) -> Projected:
    """Splats a hundred times longer than wide, at all angles."""
    generator = torch.Generator().manual_seed(3)
    angle = torch.linspace(0, 3.1, count, dtype=torch.float64)
    along, across = 40.0**2, 0.4**2
    xx = along * angle.cos() ** 2 + across * angle.sin() ** 2
    yy = along * angle.sin() ** 2 + across * angle.cos() ** 2
    xy = (along - across) * angle.sin() * angle.cos()
    means = 90 * torch.rand(count, 2, generator=generator, dtype=torch.float64)
    other = torch.rand(count, 5, generator=generator, dtype=torch.float64)
    normals = torch.zeros(count, 3, dtype=torch.float64)
    fields = (means, torch.stack([xx, xy, yy], 1), 0.1 + 0.9 * other[:, 0], other[:, 1:4], 1 + other[:, 4], normals)
    return make_projected(*(field.float() for field in fields))


@needs_kernels
@pytest.mark.parametrize("splats", [random_projected(400, 90, 75), needles(60)], ids=["round", "needles"])
def test_every_visible_block_is_listed_and_few_others(splats: Projected) -> None:
    width, height = 90, 75
    listed = blocks_of(bin_splats(splats, width, height))
    visible = blocks_of(bin_splats_reference(splats, width, height))
    assert visible <= listed
    extra = listed - visible
    assert len(extra) < 0.1 * len(listed)  # blocks that the ellipse enters between pixel centres only
    columns, _ = tile_grid(width, height)
    for tile, splat, block in extra:
        # The ellipse is grown by 0.01 px; over that distance a needle's alpha falls by some percent.
        assert largest_alpha(splats, splat, tile, block, columns) > 0.8 / 255


@pytest.mark.parametrize("bin_function", [bin_splats, bin_splats_reference])
def test_tiles_list_splats_front_to_back_and_ties_by_row(bin_function) -> None:
    splats = random_projected(300, 64, 48)
    splats.depths = (splats.depths * 2).round() / 2  # many ties
    order, offsets, listed, _ = bin_function(splats, 64, 48).lists()
    assert order.tolist() == sorted(range(300), key=lambda i: (float(splats.depths[i]), i))
    rank = torch.empty(300, dtype=torch.int64)
    rank[order] = torch.arange(300)
    for begin, end in zip(offsets[:-1].tolist(), offsets[1:].tolist()):
        assert (rank[listed[begin:end]].diff() > 0).all()


@needs_kernels
@pytest.mark.parametrize("count", [0, 1, 5, 3000])
def test_depth_order_of_any_positive_floats(count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    splats = random_projected(count, 20, 20)
    splats.depths = torch.exp(60 * torch.rand(count, generator=generator) - 30)  # all three digits of the keys in use
    order = bin_splats(splats, 20, 20).lists()[0]
    assert torch.equal(order, torch.sort(splats.depths, stable=True).indices)


def test_float64_depths_that_float32_cannot_tell_apart_are_ties() -> None:
    splats = random_projected(2, 20, 20, dtype=torch.float64)
    splats.depths = torch.tensor([1 + 1e-12, 1.0], dtype=torch.float64)
    assert bin_splats(splats, 20, 20).lists()[0].tolist() == [0, 1]
    assert bin_splats_reference(splats, 20, 20).lists()[0].tolist() == [0, 1]


def spoil(splats: Projected, name: str, value: float) -> Projected:
    getattr(splats, name)[7] = value
    return splats


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["means2d", "conics", "opacities"])
def test_splats_that_are_no_ellipse_are_listed_nowhere(name: str, value: float) -> None:
    if name == "opacities" and value > 0:
        value = -1.0  # an infinite opacity is a caller's mistake; a negative one is merely invisible
    splats = spoil(random_projected(20, 40, 40), name, value)
    assert 7 not in bin_splats(splats, 40, 40).lists()[2].tolist()


def test_splats_off_the_image_are_listed_nowhere_and_a_giant_everywhere() -> None:
    splats = random_projected(3, 50, 35)
    splats.means2d[0] = torch.tensor([-500.0, 10.0])
    splats.means2d[1] = torch.tensor([1e30, -1e30])
    splats.conics[2] = torch.tensor([1e-9, 0.0, 1e-9])
    splats.opacities[2] = 0.5
    splats.extents[2] = 1e5
    _, offsets, listed, masks = bin_splats(splats, 50, 35).lists()
    assert listed.tolist() == [2] * 12
    assert offsets.tolist() == list(range(13))
    # 50 = 3 tiles and half a block, 35 = 2 tiles and three rows: tiles at the border list the blocks on the image only.
    inside, right, below, corner = 0xFFFF, 0x1111, 0x000F, 0x0001
    assert masks.tolist() == [inside, inside, inside, right] * 2 + [below, below, below, corner]


@needs_kernels
def test_lists_do_not_depend_on_the_number_of_threads() -> None:
    splats = random_projected(2000, 200, 120)

    def lists(threads: int) -> tuple[Tensor, ...]:
        native.set_threads(threads)
        return bin_splats(splats, 200, 120).lists()

    before = native.cpu().threads()
    try:
        results = [lists(threads) for threads in (1, 2, 3)]
    finally:
        native.set_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


def test_wrong_shapes_are_named() -> None:
    splats = random_projected(4, 20, 20)
    splats.conics = splats.conics[:3]
    with pytest.raises(ValueError, match="conics must be"):
        bin_splats(splats, 20, 20)
    with pytest.raises(ValueError, match="image size"):
        bin_splats(random_projected(4, 20, 20), 0, 20)
