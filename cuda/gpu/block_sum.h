// Sums over the threads of a block, in a fixed order.
#pragma once
#include "gpu/device.h"

namespace maquette {

constexpr int kSumThreads = 256;  // threads of a block that uses block_sum_before
constexpr int kSumWarps = kSumThreads / kWarp;
constexpr unsigned kMostSum = 0x7fffffffu;

// a + b, or kMostSum where it is more: a sum that has no room in an int stays the largest int. For a, b <= kMostSum the
// order of such additions does not matter.
__device__ inline unsigned bounded_sum(unsigned a, unsigned b) { return a + b < kMostSum ? a + b : kMostSum; }

// Sum over this lane and those below it.
__device__ inline unsigned warp_sum_through(unsigned value) {
    const unsigned lane = threadIdx.x % kWarp;
    for (unsigned distance = 1; distance < kWarp; distance *= 2) {
        const unsigned below = __shfl_up_sync(kAllLanes, value, distance);
        if (lane >= distance) value = bounded_sum(value, below);
    }
    return value;
}

// What `warp_sum_through` gave to the lane below; 0 in the first lane.
__device__ inline unsigned before_lane(unsigned through) {
    const unsigned below = __shfl_up_sync(kAllLanes, through, 1);
    return threadIdx.x % kWarp == 0 ? 0u : below;
}

// Sum over the threads before this one; `total` over all. warp_sums: shared, [kSumWarps], free again on return.
__device__ inline unsigned block_sum_before(unsigned value, unsigned* warp_sums, unsigned& total) {
    const int warp = int(threadIdx.x) / kWarp;
    const unsigned through = warp_sum_through(value);
    if (threadIdx.x % kWarp == kWarp - 1) warp_sums[warp] = through;
    __syncthreads();
    unsigned before = 0;
    total = 0;
    for (int w = 0; w < kSumWarps; ++w) {
        if (w == warp) before = total;
        total = bounded_sum(total, warp_sums[w]);
    }
    __syncthreads();
    return bounded_sum(before, before_lane(through));
}

}  // namespace maquette
