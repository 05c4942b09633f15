"""The GPU's sort and sums, run on the host: what torch gives, whatever the order in which threads run."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from scene.ops.gpu import compiler
from scene.ops.gpu.radix_sort import sort_places
from scene.ops.gpu.scan import exclusive_sum


def random_keys(count: int, bits: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 1 << bits, (count,), generator=generator)


def as_words(keys: Tensor) -> Tensor:
    """int64 below 2^32 as the int32 of the same bits."""
    return torch.where(keys < 1 << 31, keys, keys - (1 << 32)).int()


def check_sort(keys: Tensor, bits: int, *, count: int | None = None) -> None:
    """keys: int64 >= 0. Sorts the first `count` on the GPU's path and compares with torch."""
    many = len(keys) if count is None else min(count, len(keys))
    on_device = None if count is None else torch.tensor([count], dtype=torch.int32)
    got_keys, got_places = sort_places(as_words(keys), bits, count=on_device, keep_keys=True)
    wanted = torch.sort(keys[:many], stable=True)
    assert torch.equal(got_places[:many].long(), wanted.indices)
    assert torch.equal(got_keys[:many].long() & 0xFFFFFFFF, wanted.values)


@pytest.mark.parametrize("bits", [8, 13, 32])
@pytest.mark.parametrize("count", [0, 1, 31, 32, 4096, 4097, 9000])
def test_pairs_come_out_as_from_a_stable_sort(host_gpu, count: int, bits: int) -> None:
    with host_gpu():
        check_sort(random_keys(count, bits), bits)


def test_only_as_many_as_the_device_says_are_sorted(host_gpu) -> None:
    with host_gpu():
        for count in (0, 1, 4095, 4096, 12345, 100_000, 100_001):  # the last is cut to the room there is
            check_sort(random_keys(100_000, 16, seed=count), 16, count=count)


@pytest.mark.parametrize("keys", ["equal", "largest", "falling", "two", "digits in turn"])
def test_lopsided_keys(host_gpu, keys: str) -> None:
    place = torch.arange(9001)
    made = {
        "equal": torch.full((9001,), 7),
        "largest": torch.full((9001,), 0xFFFFFFFF),  # as what lies beyond the end
        "falling": 0xFFFFFFFF - place,
        "two": (place % 2) * 0x01000000,
        "digits in turn": place % 256 * 0x01010101,
    }[keys]
    with host_gpu():
        check_sort(made, 32)
        check_sort(made, 32, count=5000)


@pytest.mark.parametrize("seed", [1, 2])
def test_the_order_in_which_threads_run_changes_nothing(host_gpu, seed: int) -> None:
    keys = random_keys(5000, 10, seed)
    with host_gpu(schedule="random", seed=seed):
        check_sort(keys, 10)
    with host_gpu(schedule="reverse"):
        check_sort(keys, 10)


def test_a_sort_without_keys_gives_the_same_places(host_gpu) -> None:
    keys = random_keys(5000, 24)
    with host_gpu():
        _, places = sort_places(as_words(keys), 24)
    assert torch.equal(places.long(), torch.sort(keys, stable=True).indices)


@pytest.mark.parametrize("count", [0, 1, 33, 4096, 4097, 20_000])
def test_sums_of_all_before(host_gpu, count: int) -> None:
    values, places = random_keys(count, 8).int(), torch.randperm(count, dtype=torch.int32)
    out, total = torch.empty_like(values), torch.empty(1, dtype=torch.int32)
    with host_gpu(schedule="random", seed=count):
        exclusive_sum(values, out, total)
        assert torch.equal(out.long(), values.long().cumsum(0) - values)
        assert int(total) == int(values.sum())
        exclusive_sum(values, out, total, places=places)
        assert torch.equal(out.long(), values[places.long()].long().cumsum(0) - values[places.long()])


def test_sums_of_more_than_a_block_of_blocks(host_gpu) -> None:
    count = 4096 * 257 + 5
    values = random_keys(count, 3).int()
    out, total = torch.empty_like(values), torch.empty(1, dtype=torch.int32)
    with host_gpu():
        exclusive_sum(values, out, total)
    assert torch.equal(out.long(), values.long().cumsum(0) - values)


def test_sums_that_no_int_holds_stay_at_the_largest(host_gpu) -> None:
    values = torch.full((9000,), 1 << 20, dtype=torch.int32)
    out, total = torch.empty_like(values), torch.empty(1, dtype=torch.int32)
    with host_gpu():
        exclusive_sum(values, out, total)
    assert torch.equal(out.long(), (torch.arange(9000) << 20).clamp(max=2**31 - 1))
    assert int(total) == 2**31 - 1


@pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_89", "sm_90", "sm_100", "sm_120"])
def test_registers_let_three_blocks_sort_at_once(arch: str) -> None:
    """A block waits at many barriers; with two on a multiprocessor there is little else to run meanwhile."""
    pytest.importorskip("cuda.core", reason='needs NVIDIA\'s kernel compiler: pip install "maquette[gpu]"')
    used = {
        name: int(registers)
        for name, registers in re.findall(
            r"Compiling entry function '(\w+)'.*?Used (\d+) registers",
            compiler.compile_source("radix_sort", arch).log,
            re.DOTALL,
        )
    }
    assert set(used) == {"radix_histogram", "radix_places", "radix_scatter"}
    assert max(used.values()) <= 80  # 65536 registers, 256 threads, handed out to a warp in eights
