"""The host shim itself: kernels give what the hardware would, and what must not be done is reported."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from scene.ops.gpu.launch import Argument, launch, runs_on_host
from tests.shim.launcher import SCHEDULES, HostLauncher, KernelError, why_not

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

KERNELS = r"""
#include "gpu/device.h"
namespace maquette {

MQ_KERNEL __launch_bounds__(256) block_sums(const float* __restrict__ in, float* __restrict__ out, int n) {
    __shared__ float sums[256];
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    sums[threadIdx.x] = i < n ? in[i] : 0.0f;
    __syncthreads();
    for (int half = 128; half > 0; half /= 2) {
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
        __syncthreads();
    }
    if (threadIdx.x == 0) out[blockIdx.x] = sums[0];
}

MQ_KERNEL warp_scan(const int* __restrict__ in, int* __restrict__ out) {
    int sum = in[threadIdx.x];
    for (int delta = 1; delta < kWarp; delta *= 2) {
        const int left = __shfl_up_sync(kAllLanes, sum, delta);
        if (threadIdx.x % kWarp >= delta) sum += left;
    }
    out[threadIdx.x] = sum;
}

MQ_KERNEL warp_votes(const int* __restrict__ in, int* __restrict__ out) {
    const int lane = threadIdx.x, value = in[lane];
    out[lane] = int(__match_any_sync(kAllLanes, value));
    out[32 + lane] = int(__ballot_sync(kAllLanes, value & 1));
    out[64 + lane] = __any_sync(kAllLanes, value == 3) + 2 * __all_sync(kAllLanes, value < 9);
    out[96 + lane] = __shfl_xor_sync(kAllLanes, value, 5);
    out[128 + lane] = __shfl_down_sync(kAllLanes, value, 3, 8);
    out[160 + lane] = __shfl_sync(kAllLanes, value, 2, 16);
    if (lane < 8) out[192 + lane] = int(__ballot_sync(0xffu, lane != 3));
}

MQ_KERNEL count_where(const int* __restrict__ in, int* __restrict__ count, int* __restrict__ most) {
    atomicAdd(count, in[threadIdx.x] > 4);
    atomicMax(most, in[threadIdx.x]);
}

MQ_KERNEL neighbours(const float* __restrict__ in, float* __restrict__ out, int wait) {
    __shared__ float row[64];
    row[threadIdx.x] = in[threadIdx.x];
    if (wait) __syncthreads();
    out[threadIdx.x] = row[threadIdx.x ^ 32];
}

MQ_KERNEL leftovers(float* __restrict__ out) {
    __shared__ float kept;
    if (blockIdx.x == 0 && threadIdx.x == 0) kept = 1.0f;
    __syncthreads();
    out[blockIdx.x * blockDim.x + threadIdx.x] = kept;
}

MQ_KERNEL some_sync(int threads) {
    if (int(threadIdx.x) < threads) __syncthreads();
}

MQ_KERNEL two_barriers() {
    if (threadIdx.x < 32)
        __syncthreads();
    else
        __syncthreads();
}

MQ_KERNEL some_lanes(int* out) {
    if (threadIdx.x != 7) out[threadIdx.x] = __shfl_sync(kAllLanes, 1, 0);
}

MQ_KERNEL barrier_and_shuffle() {
    if (threadIdx.x < 16)
        __syncwarp();
    else
        __syncthreads();
}

MQ_KERNEL fill(int* out, int first, int n) {
    const int i = first + int(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < n) out[i] = i;
}

MQ_KERNEL vectors(float4* out) { out[threadIdx.x] = make_float4(1, 2, 3, 4); }

MQ_KERNEL past_the_end(float* out) {
    __shared__ float row[32];
    row[threadIdx.x] = 1.0f;
    out[threadIdx.x] = row[threadIdx.x];
}

MQ_KERNEL halve(float* x, float by) { x[threadIdx.x] /= by; }

MQ_KERNEL grid_3d(int* out) {
    const int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    const int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    out[block * blockDim.x * blockDim.y * blockDim.z + thread] += block * 100 + thread;
}

MQ_KERNEL many_barriers(int n) {
    for (int i = 0; i < n; ++i) __syncthreads();
}

}  // namespace maquette
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kernels")
    (folder / "shim.cu").write_text(KERNELS)
    return folder


def run(
    folder: Path, name: str, grid: int, block: int, *arguments: Argument, schedule: str = "forward", seed: int = 0
) -> None:
    HostLauncher(schedule=schedule, seed=seed, folder=folder)("shim", name, (grid, 1, 1), (block, 1, 1), arguments)


def ints(values: Sequence[int] | int) -> Tensor:
    """The values, or room for so many with a value that no kernel here writes."""
    if isinstance(values, int):
        return torch.full((values,), -77, dtype=torch.int32)
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_sums_through_shared_memory(folder: Path, schedule: str) -> None:
    values = torch.arange(1000, dtype=torch.float32)
    sums = torch.full((4,), torch.nan)
    run(folder, "block_sums", 4, 256, values, sums, 1000, schedule=schedule)
    assert sums.tolist() == [values[i : i + 256].sum().item() for i in range(0, 1000, 256)]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_scan_by_shuffles(folder: Path, schedule: str) -> None:
    values = torch.randint(0, 99, (128,), dtype=torch.int32)
    scanned = ints(128)
    run(folder, "warp_scan", 1, 128, values, scanned, schedule=schedule)
    assert torch.equal(scanned.view(4, 32), values.view(4, 32).cumsum(1, dtype=torch.int32))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_votes_and_shuffles(folder: Path, schedule: str) -> None:
    values = torch.randint(0, 9, (32,), dtype=torch.int32)
    out = ints(200)
    run(folder, "warp_votes", 1, 32, values, out, schedule=schedule)
    v = values.tolist()
    unsigned = [x & 0xFFFFFFFF for x in out.tolist()]
    assert unsigned[:32] == [sum(1 << j for j in range(32) if v[j] == v[i]) for i in range(32)]
    assert unsigned[32:64] == [sum((v[j] & 1) << j for j in range(32))] * 32
    assert unsigned[64:96] == [int(3 in v) + 2] * 32
    assert unsigned[96:128] == [v[i ^ 5] for i in range(32)]
    assert unsigned[128:160] == [v[i + 3] if i % 8 < 5 else v[i] for i in range(32)]
    assert unsigned[160:192] == [v[i // 16 * 16 + 2] for i in range(32)]
    assert unsigned[192:200] == [0xF7] * 8


def test_integer_atomics(folder: Path) -> None:
    values = torch.randint(0, 9, (256,), dtype=torch.int32)
    count, most = ints([0]), ints([0])
    run(folder, "count_where", 1, 256, values, count, most)
    assert count.item() == (values > 4).sum() and most.item() == values.max()


def test_a_missing_barrier_shows(folder: Path) -> None:
    values, out = torch.arange(64.0), torch.empty(64)
    for schedule in SCHEDULES:
        run(folder, "neighbours", 1, 64, values, out, 1, schedule=schedule)
        assert torch.equal(out, values.roll(32))
        run(folder, "neighbours", 1, 64, values, out, 0, schedule=schedule)
        assert out.isnan().any(), schedule


def test_shared_memory_starts_spoiled_in_every_block(folder: Path) -> None:
    out = torch.zeros(96)
    run(folder, "leftovers", 3, 32, out)
    assert (out[:32] == 1).all() and out[32:].isnan().all()


@pytest.mark.parametrize(
    ("kernel", "arguments", "message"),
    [
        ("some_sync", (7,), r"__syncthreads at line \d+ \(thread 0\) waits for thread 7, which has ended"),
        ("two_barriers", (), r"__syncthreads at line \d+ .* meets __syncthreads at line \d+"),
        ("some_lanes", (torch.zeros(64, dtype=torch.int32),), r"__shfl_sync at line \d+ .* waits for thread 7"),
        ("barrier_and_shuffle", (), r"__syncwarp at line \d+ .* waits for thread 16, which is at __syncthreads"),
        ("fill", (None, 0, 64), r"thread 0 touched memory that is not there.*, at shim.cu:\d+"),
        ("past_the_end", (torch.zeros(64),), r"thread 32 touched .* past the end of an array.*, at shim.cu:\d+"),
        ("vectors", (torch.zeros(260)[1:257],), r"misaligned .*, at shim.cu:\d+"),
    ],
)
def test_what_a_kernel_must_not_do_is_reported(
    folder: Path, kernel: str, arguments: tuple[Argument, ...], message: str
) -> None:
    with pytest.raises(KernelError, match=message):
        run(folder, kernel, 1, 64, *arguments)
    with pytest.raises(KernelError):  # and the process is in order for the next
        run(folder, kernel, 2, 64, *arguments, schedule="random")


def test_a_barrier_of_some_threads_is_reported_at_its_line(folder: Path) -> None:
    line = 1 + KERNELS[: KERNELS.index("< threads) __syncthreads")].count("\n")
    with pytest.raises(KernelError, match=rf"some_sync, block \(0, 0, 0\): __syncthreads at line {line} "):
        run(folder, "some_sync", 1, 64, 7)


@pytest.mark.parametrize(("first", "byte"), [(0, 160), (-3, -12)])
def test_writes_outside_an_argument_are_reported(folder: Path, first: int, byte: int) -> None:
    room = ints(100)
    with pytest.raises(KernelError, match=rf"fill writes at byte {byte} of argument \[0\], which has 160 bytes"):
        run(folder, "fill", 2, 32, room[20:60], first, 41 if first == 0 else 40)
    assert (room == -77).all()
    run(folder, "fill", 2, 32, room[20:60], 0, 40)
    assert room.tolist() == [-77] * 20 + list(range(40)) + [-77] * 40


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(4),), "halve takes 2 arguments, got 1"),
        ((torch.zeros(4), 2), "parameter 1 is a float, got 2"),
        (
            (torch.zeros(4, dtype=torch.float64), 2.0),
            "parameter 0 is a pointer to float, got a tensor of torch.float64",
        ),
        ((1.0, 2.0), "parameter 0 is a pointer to float, got 1.0"),
    ],
)
def test_arguments_are_checked(folder: Path, arguments: tuple[Argument, ...], message: str) -> None:
    with pytest.raises(KernelError, match=message):
        run(folder, "halve", 1, 4, *arguments)


def test_unknown_kernels_and_too_large_blocks(folder: Path) -> None:
    with pytest.raises(KernelError, match=r"shim\.cu has no kernel nothing"):
        run(folder, "nothing", 1, 1)
    with pytest.raises(KernelError, match="at most 1024"):
        run(folder, "many_barriers", 1, 1025, 1)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_thread_of_a_3d_grid_runs_once(folder: Path, schedule: str) -> None:
    out = torch.zeros(24, 30, dtype=torch.int32)
    HostLauncher(schedule=schedule, folder=folder)("shim", "grid_3d", (2, 3, 4), (5, 3, 2), (out,))
    assert torch.equal(out, torch.arange(24)[:, None] * 100 + torch.arange(30))


def test_barriers_are_cheap(folder: Path) -> None:
    run(folder, "many_barriers", 1, 256, 1)
    began = time.process_time()
    run(folder, "many_barriers", 10, 256, 1000)  # 2.5 million changes of fiber
    assert time.process_time() - began < 1.0


def test_the_fixture_puts_the_launcher_in_force(host_gpu, folder: Path) -> None:
    room = ints(64)
    with host_gpu(schedule="random", seed=1, folder=folder):
        assert runs_on_host() and torch.empty(9).isnan().all()
        launch("shim", "fill", 2, 32, room, 0, 64)
        launch("shim", "fill", 0, 32, None, 0, 64)  # an empty grid starts nothing
    assert not runs_on_host()
    assert room.tolist() == list(range(64))
