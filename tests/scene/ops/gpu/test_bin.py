"""The GPU's binning, run on the host: no visible tile is missed, and the lists are those of the CPU."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from scene.ops import native
from scene.ops.gpu import compiler
from scene.ops.gpu.launch import Argument, Size, on_host
from scene.ops.gpu.splat_bin import SplatBins
from scene.ops.splat_bin import bin_splats, bin_splats_reference
from scene.ops.splat_project import Projected
from tests.scene.ops.test_splat_bin import needles
from tests.scene.projected_splats import cast, make_projected, random_projected
from tests.shim.launcher import HostLauncher

Lists = tuple[Tensor, Tensor, Tensor, Tensor]


def build(bins: SplatBins, splats: Projected, width: int, height: int) -> SplatBins:
    fields = (splats.means2d, splats.conics, splats.opacities, splats.depths, splats.extents)
    bins.build(*fields, width, height)
    return bins


def pairs_of(lists: Lists) -> dict[tuple[int, int], int]:
    """(tile, splat): block mask."""
    _, offsets, splats, masks = lists
    tiles = torch.repeat_interleave(torch.arange(len(offsets) - 1), offsets.diff())
    return dict(zip(zip(tiles.tolist(), splats.tolist()), masks.tolist()))


def check_slots(bins: SplatBins, order: Tensor) -> None:
    """Each listed pair has a slot of its own among those of its splat; splats hold their slots front to back."""
    listed = int(bins.tile_begin[-1])
    slots, splats = bins.pair_slot[:listed].long(), bins.pair_splat[:listed].long()
    assert torch.equal(slots.sort().values, torch.arange(listed))
    first, count = bins.slot_first.long(), bins.slot_count.long()
    assert ((slots >= first[splats]) & (slots < first[splats] + count[splats])).all()
    assert torch.equal(count, torch.bincount(splats, minlength=bins.count))
    assert torch.equal(first[order], (count[order].cumsum(0) - count[order]))


def check_lists(splats: Projected, width: int, height: int, bins: SplatBins | None = None) -> Lists:
    """Call with the shim in force. Oracles: the plain reference, which tests every pixel, and torch's sort."""
    bins = build(bins or SplatBins(), splats, width, height)
    order, offsets, listed, masks = lists = bins.lists()
    assert torch.equal(order, torch.sort(splats.depths, stable=True).indices)
    assert torch.equal(offsets.diff().cumsum(0), offsets[1:])
    assert len(listed) == len(pairs_of(lists)) == bins.pairs
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order))
    for begin, end in zip(offsets[:-1].tolist(), offsets[1:].tolist()):
        assert (rank[listed[begin:end]].diff() > 0).all()
    visible = pairs_of(bin_splats_reference(splats, width, height).lists())
    got = pairs_of(lists)
    assert {pair: mask for pair, mask in got.items() if mask} == visible
    check_slots(bins, order)
    return order, offsets, listed, masks


@pytest.mark.parametrize("splats", [random_projected(700, 90, 75), needles(60)], ids=["round", "needles"])
def test_every_visible_tile_is_listed_and_few_others(host_gpu, splats: Projected) -> None:
    with host_gpu():
        lists = check_lists(splats, 90, 75)
    assert int((lists[3] == 0).sum()) < 0.1 * len(lists[2])


@pytest.mark.skipif(not native.has(torch.device("cpu")), reason="needs the compiled CPU module")
@pytest.mark.parametrize("splats", [random_projected(700, 200, 120), needles(60)], ids=["round", "needles"])
def test_lists_are_those_of_the_cpu(host_gpu, splats: Projected) -> None:
    cpu = bin_splats(splats, 200, 120).lists()
    with host_gpu():
        gpu = bin_splats(splats, 200, 120).lists()
    assert torch.equal(gpu[0], cpu[0])
    got, wanted = pairs_of(gpu), pairs_of(cpu)
    # The CPU looks at four bands of a tile, the GPU at the whole: it may list a tile that no pixel of needs.
    assert {pair for pair, mask in got.items() if mask} <= wanted.keys()
    assert wanted.keys() <= got.keys()
    assert len(got) <= 1.02 * len(wanted)


def test_ties_stand_by_row(host_gpu) -> None:
    splats = random_projected(300, 64, 48)
    splats.depths = (splats.depths * 2).round() / 2
    with host_gpu():
        check_lists(splats, 64, 48)


@pytest.mark.parametrize("count", [0, 1, 33, 5000])
def test_any_number_of_splats(host_gpu, count: int) -> None:
    splats = random_projected(count, 40, 40)
    splats.depths = torch.exp(60 * torch.rand(count, generator=torch.Generator().manual_seed(1)) - 30)
    with host_gpu():
        check_lists(splats, 40, 40)


def test_giants_among_small_ones_fill_the_image(host_gpu) -> None:
    splats = random_projected(100, 700, 640)
    giants = [0, 1, 40, 99]  # 44 x 40 tiles: more rows than a warp has lanes
    splats.conics[giants] = torch.tensor([1e-9, 0.0, 1e-9])
    splats.opacities[giants] = 0.5
    splats.extents[giants] = 1e5
    with host_gpu():
        _, offsets, listed, _ = check_lists(splats, 700, 640)
    tiles = len(offsets) - 1
    assert [int((listed == giant).sum()) for giant in giants] == [tiles] * 4


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["means2d", "conics", "opacities"])
def test_splats_that_are_no_ellipse_are_listed_nowhere(host_gpu, name: str, value: float) -> None:
    splats = random_projected(20, 40, 40)
    getattr(splats, name)[7] = -1.0 if name == "opacities" and value > 0 else value
    with host_gpu():
        lists = check_lists(splats, 40, 40)
    assert 7 not in lists[2].tolist()


def test_culled_rows_come_last_and_touch_nothing(host_gpu) -> None:
    splats = random_projected(50, 40, 40)
    culled = torch.arange(50) % 3 == 0
    for name, value in {"opacities": 0.0, "extents": 0.0, "conics": 0.0, "depths": math.inf}.items():
        getattr(splats, name)[culled] = value
    with host_gpu():
        order, _, listed, _ = check_lists(splats, 40, 40)
    assert culled[order[-int(culled.sum()) :]].all()
    assert not culled[listed].any()


def test_image_of_more_tiles_than_sixteen_bits_count(host_gpu) -> None:
    width, height = 65_536, 272  # 4096 x 17 tiles: three digits
    means = torch.tensor([[65_530.0, 268.0], [3.0, 3.0], [40_000.0, 130.0]])
    covariances = torch.tensor([[9.0, 0.0, 9.0], [9.0, 0.0, 9.0], [3e4, 0.0, 25.0]])
    splats = make_projected(
        means, covariances, torch.full((3,), 0.9), torch.ones(3, 3), torch.tensor([2.0, 1.0, 3.0]), torch.ones(3, 3)
    )
    with host_gpu():
        got = bin_splats(splats, width, height).lists()
    wanted = bin_splats_reference(splats, width, height).lists()
    visible = {pair for pair, mask in pairs_of(got).items() if mask}
    assert visible == pairs_of(wanted).keys()
    assert len(got[1]) == 4096 * 17 + 1


def test_pairs_without_room_are_left_out_told_of_and_listed_next_time(host_gpu) -> None:
    few, many = random_projected(200, 100, 100, seed=1), random_projected(200, 100, 100, seed=2)
    few.opacities[40:] = 0
    few.extents[40:] = 0
    with host_gpu():
        bins = build(SplatBins(), few, 100, 100)
        room = bins.capacity
        assert not bins.check()
        build(bins, many, 100, 100)
        assert bins.capacity == room < bins.pairs
        assert bool(bins.overflow)
        assert int(bins.tile_begin[-1]) == room
        check_slots(bins, bins.order.long())
        build(bins, few, 100, 100)
        assert bins.check()  # of the build before the last
        assert not bins.check()
        check_lists(many, 100, 100, bins)
        assert not bins.check()


def test_a_build_like_one_before_waits_for_nothing(host_gpu, monkeypatch) -> None:
    bins = SplatBins()
    with host_gpu():
        build(bins, random_projected(300, 90, 75, seed=1), 90, 75)
        for name in ("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__index__"):
            monkeypatch.setattr(Tensor, name, None)  # each would wait for the device
        build(bins, random_projected(300, 90, 75, seed=2), 90, 75)
        build(bins, random_projected(310, 80, 75, seed=3), 80, 75)
        monkeypatch.undo()
        assert not bins.check()
        check_lists(random_projected(310, 80, 75, seed=3), 80, 75, bins)


class Operations(TorchDispatchMode):
    """Collects the names of what torch does."""

    def __init__(self) -> None:
        super().__init__()
        self.met: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.met.add(func.__name__)
        return func(*args, **(kwargs or {}))


def test_a_build_is_23_launches_and_takes_memory(host_gpu) -> None:
    """Small scenes are bound by launches: one more, or a fill, is to be seen here."""
    launched: list[str] = []
    run = HostLauncher()

    def note(source: str, name: str, grid: Size, block: Size, arguments: Sequence[Argument]) -> None:
        launched.append(name)
        run(source, name, grid, block, arguments)

    bins, splats = SplatBins(), random_projected(50, 90, 75)
    with host_gpu(), on_host(note):
        build(bins, splats, 1920, 1080)  # makes room, for which it counts
        launched.clear()
        with Operations() as operations:
            build(bins, splats, 1920, 1080)
    assert len(launched) == 1 + 4 * 3 + 2 + 1 + 2 * 3 + 1  # count, sort by depth, sums, list, sort by tile, finish
    assert operations.met <= {"empty.memory_format", "slice.Tensor"}  # nothing that runs on the device


def machine_code(cubin: bytes) -> dict[str, bytes]:
    """The instructions of each kernel: the sections .text.* of the ELF file."""
    (headers,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count, names = struct.unpack_from("<HHH", cubin, 0x3A)
    rows = [struct.unpack_from("<IIQQQQ", cubin, headers + i * size) for i in range(count)]
    found = {}
    for name, _, _, _, begin, length in rows:
        at = rows[names][4] + name
        found[cubin[at : cubin.index(0, at)].decode()] = cubin[begin : begin + length]
    return {name: code for name, code in found.items() if name.startswith(".text.")}


@pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_89", "sm_90", "sm_100", "sm_120"])
def test_what_is_counted_is_what_is_listed(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slots counted for tiles that are not listed would hold nonsense, so both kernels must round alike.

    Where they come out the same with and without leave to fuse a product and a sum, there is none left to fuse.
    """
    pytest.importorskip("cuda.core", reason='needs NVIDIA\'s kernel compiler: pip install "maquette[gpu]"')
    may_fuse = machine_code(compiler.compile_source("splat_bin", arch).cubin)
    monkeypatch.setitem(compiler.OPTIONS, "fma", False)
    may_not = machine_code(compiler.compile_source("splat_bin", arch).cubin)
    assert {".text.bin_count", ".text.bin_list"} <= may_fuse.keys()
    assert may_fuse == may_not


def test_builds_leave_nothing_behind(host_gpu) -> None:
    bins = SplatBins()
    with host_gpu():
        for seed, (count, width, height) in enumerate([(300, 90, 75), (20, 33, 17), (700, 64, 200), (0, 16, 16)]):
            splats = random_projected(count, width, height, seed=seed)
            build(bins, splats, width, height)
            while bins.check():
                build(bins, splats, width, height)
            check_lists(splats, width, height, bins)


@pytest.mark.parametrize("seed", [1, 2])
def test_the_order_in_which_threads_run_changes_nothing(host_gpu, seed: int) -> None:
    splats = random_projected(500, 300, 200)
    splats.extents[:3], splats.conics[:3] = 1e4, torch.tensor([1e-7, 0.0, 1e-7])
    with host_gpu():
        wanted = build(SplatBins(), splats, 300, 200)
    with host_gpu(schedule="random", seed=seed):
        got = build(SplatBins(), splats, 300, 200)
    pairs = wanted.pairs
    for name in ("order", "tile_begin", "slot_first", "slot_count", "total", "overflow"):
        assert torch.equal(getattr(got, name), getattr(wanted, name)), name
    for name in ("pair_splat", "pair_slot"):
        assert torch.equal(getattr(got, name)[:pairs], getattr(wanted, name)[:pairs]), name


@pytest.mark.parametrize("count", [65, 200])  # of 2^24 pairs each: more than 2^30, more than an int holds
def test_more_pairs_than_can_be_listed_are_refused(host_gpu, count: int) -> None:
    splats = random_projected(count, 65_536, 65_536)
    splats.conics[:], splats.opacities[:], splats.extents[:] = torch.tensor([1e-12, 0.0, 1e-12]), 0.5, 1e7
    bins = SplatBins()
    with host_gpu():
        for _ in range(2):
            with pytest.raises(ValueError, match="2\\^30 pairs"):
                build(bins, splats, 65_536, 65_536)
        few = random_projected(20, 40, 40)
        check_lists(few, 40, 40, bins)


def test_sides_beyond_the_largest_are_named() -> None:
    with pytest.raises(ValueError, match="between 1 and 65536"):
        build(SplatBins(), random_projected(1, 8, 8), 65_537, 8)


def ellipse(sigmas: tuple[float, float], angle: float) -> tuple[float, float, float]:
    """Covariance xx, xy, yy with these axes, px^2."""
    along, across, cos, sin = sigmas[0] ** 2, sigmas[1] ** 2, math.cos(angle), math.sin(angle)
    xx, yy = along * cos**2 + across * sin**2, along * sin**2 + across * cos**2
    return xx, (along - across) * cos * sin, yy


SIGMAS, PLACES = st.floats(0.3, 300), st.floats(-150, 250)
SPLATS = st.tuples(st.tuples(SIGMAS, SIGMAS), st.floats(0, math.pi), PLACES, PLACES, st.floats(1 / 255, 1))


# The fixture gives a function that holds nothing, so it need not be made anew for each example.
@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(made=st.lists(SPLATS, min_size=1, max_size=30))
def test_no_visible_tile_is_ever_missed(
    host_gpu, made: list[tuple[tuple[float, float], float, float, float, float]]
) -> None:
    count = len(made)
    double = make_projected(
        torch.tensor([(x, y) for _, _, x, y, _ in made], dtype=torch.float64),
        torch.tensor([ellipse(sigmas, angle) for sigmas, angle, *_ in made], dtype=torch.float64),
        torch.tensor([opacity for *_, opacity in made], dtype=torch.float64),
        *(torch.ones(shape, dtype=torch.float64) for shape in ((count, 3), (count,), (count, 3))),
    )
    with host_gpu():
        check_lists(cast(double, torch.float32), 100, 83)
