// out[i] = values[0] + .. + values[i - 1] in two launches: the sum of each block of 4096 values, and then every value.
// A sum beyond 2^31 - 1 stays there. No block waits for another.
#include "gpu/block_sum.h"

namespace maquette {

constexpr int kScanItems = 16;  // values of a thread
constexpr int kScanValues = kSumThreads * kScanItems;

// A warp owns 512 values in a row and takes 32 of them at a time. places: where value i is found, i itself when null.
__device__ inline unsigned scan_value(const unsigned* values, const int* places, int count, long long i) {
    if (i >= count) return 0;
    return values[places ? places[i] : i];
}

__device__ inline long long first_of_warp() {
    return (long long)(blockIdx.x) * kScanValues + int(threadIdx.x) / kWarp * (kWarp * kScanItems);
}

}  // namespace maquette

using namespace maquette;

MQ_KERNEL __launch_bounds__(kSumThreads)
scan_block_sums(const unsigned* values, const int* places, int count, unsigned* block_sums) {
    __shared__ unsigned warp_sums[kSumWarps];
    const long long first = first_of_warp() + threadIdx.x % kWarp;
    unsigned sum = 0, total;
    for (int i = 0; i < kScanItems; ++i)
        sum = bounded_sum(sum, scan_value(values, places, count, first + i * kWarp));
    block_sum_before(sum, warp_sums, total);
    if (threadIdx.x == 0) block_sums[blockIdx.x] = total;
}

// total: [1], the sum of all. Four blocks at once: left to itself, ptxas spills for a fifth on sm_80.
MQ_KERNEL __launch_bounds__(kSumThreads, 4)
scan_write(const unsigned* values, const int* places, int count, const unsigned* block_sums, unsigned* out,
           unsigned* total) {
    __shared__ unsigned warp_sums[kSumWarps];
    // Each block adds up all blocks before it: for 10M values ten more reads a thread, cheaper than another launch.
    unsigned share = 0, blocks_before;
    for (unsigned block = threadIdx.x; block < blockIdx.x; block += kSumThreads)
        share = bounded_sum(share, block_sums[block]);
    block_sum_before(share, warp_sums, blocks_before);

    const long long first = first_of_warp() + threadIdx.x % kWarp;
    unsigned before[kScanItems], sum = 0, in_block;
    for (int i = 0; i < kScanItems; ++i) {
        const unsigned through = warp_sum_through(scan_value(values, places, count, first + i * kWarp));
        before[i] = bounded_sum(sum, before_lane(through));
        sum = bounded_sum(sum, __shfl_sync(kAllLanes, through, kWarp - 1));
    }
    // The sum of a warp is held by all its lanes; its last lane alone brings it in.
    const bool last_lane = threadIdx.x % kWarp == kWarp - 1;
    const unsigned here = block_sum_before(last_lane ? sum : 0u, warp_sums, in_block);
    const unsigned base = bounded_sum(blocks_before, __shfl_sync(kAllLanes, here, 0));
    for (int i = 0; i < kScanItems; ++i)
        if (first + i * kWarp < count) out[first + i * kWarp] = bounded_sum(base, before[i]);
    if (blockIdx.x == gridDim.x - 1 && threadIdx.x == 0) *total = bounded_sum(blocks_before, in_block);
}
