// Stable sort of (key, payload) pairs by eight bits of the key; passes from the lowest bits up sort by all of them.
//
// A pass is three launches: how often each digit occurs in each block of 4096 keys, where each block's keys of each
// digit begin, and the move. No block waits for another, so nothing is assumed of the order in which blocks run. How
// many pairs there are is read on the device: grids are sized for the capacity and blocks beyond the count do nothing.
// The ranking of equal digits by warp votes is that of Merrill and Garland, 2016, without their look-back.
#include "gpu/block_sum.h"

namespace maquette {

constexpr int kDigits = 256;
constexpr int kKeysPerThread = 16;
constexpr int kBlockKeys = kSumThreads * kKeysPerThread;

__device__ inline unsigned digit_of(unsigned key, int shift) { return key >> shift & (kDigits - 1); }

// Those of `lanes` that hold this lane's digit. Eight votes whatever the digits are, as in CUB: what __match_any_sync
// costs depends on how many different ones there are.
__device__ inline unsigned lanes_with(unsigned digit, unsigned lanes) {
#pragma unroll
    for (unsigned bit = 1; bit < kDigits; bit *= 2) {
        const unsigned set = __ballot_sync(kAllLanes, (digit & bit) != 0);
        lanes &= digit & bit ? set : ~set;
    }
    return lanes;
}

__device__ inline unsigned lanes_below() { return (1u << threadIdx.x % kWarp) - 1; }

// count: null means all.
__device__ inline int pairs_to_sort(const int* count, int capacity) {
    if (!count || *count > capacity) return capacity;
    return *count < 0 ? 0 : *count;
}

}  // namespace maquette

using namespace maquette;

// histogram: [kDigits, blocks]
MQ_KERNEL __launch_bounds__(kSumThreads)
radix_histogram(const unsigned* keys, const int* count, int capacity, int shift, int blocks, unsigned* histogram) {
    __shared__ unsigned counters[kDigits];
    const int end = pairs_to_sort(count, capacity), first = int(blockIdx.x) * kBlockKeys;
    if (first >= end) return;
    const int inside = end - first < kBlockKeys ? end - first : kBlockKeys;
    counters[threadIdx.x] = 0;
    const unsigned* const own_keys = keys + first + threadIdx.x;
    const int own_left = inside - int(threadIdx.x);
    unsigned key[kKeysPerThread];
#pragma unroll
    for (int i = 0; i < kKeysPerThread; ++i) key[i] = i * kSumThreads < own_left ? own_keys[i * kSumThreads] : 0;
    __syncthreads();
    // One lane adds for all that hold its digit: depths and neighbouring tiles share their high digits, and adds to one
    // counter wait for each other.
#pragma unroll
    for (int i = 0; i < kKeysPerThread; ++i) {
        const bool counts = i * kSumThreads < own_left;
        const unsigned digit = digit_of(key[i], shift), peers = lanes_with(digit, __ballot_sync(kAllLanes, counts));
        if (counts && (peers & lanes_below()) == 0) atomicAdd(&counters[digit], unsigned(__popc(peers)));
    }
    __syncthreads();
    histogram[(long long)(threadIdx.x) * blocks + blockIdx.x] = counters[threadIdx.x];
}

// A block per digit. histogram: out, how often the digit occurs in the blocks before; digit_counts: [kDigits], in all.
MQ_KERNEL __launch_bounds__(kSumThreads)
radix_places(const int* count, int capacity, int blocks, unsigned* histogram, unsigned* digit_counts) {
    __shared__ unsigned warp_sums[kSumWarps];
    const int end = pairs_to_sort(count, capacity), used = end / kBlockKeys + (end % kBlockKeys != 0);
    unsigned* row = histogram + (long long)(blockIdx.x) * blocks;
    unsigned before = 0;
    for (int first = 0; first < used; first += kSumThreads) {
        const int i = first + int(threadIdx.x);
        unsigned sum;
        const unsigned here = block_sum_before(i < used ? row[i] : 0u, warp_sums, sum);
        if (i < used) row[i] = before + here;
        before += sum;
    }
    if (threadIdx.x == 0) digit_counts[blockIdx.x] = before;
}

// payload: null means the place of the key. keys_out: null when only the payloads are wanted.
MQ_KERNEL __launch_bounds__(kSumThreads)
radix_scatter(const unsigned* keys, const unsigned* payload, const int* count, int capacity, int shift, int blocks,
              const unsigned* histogram, const unsigned* digit_counts, unsigned* keys_out, unsigned* payload_out) {
    __shared__ unsigned exchange[kBlockKeys];  // brought into order here, so that the writes are runs
    __shared__ unsigned short counters[kSumWarps][kDigits];  // at most kBlockKeys
    __shared__ unsigned move[kDigits];  // from a place in `exchange` to the place in the output
    __shared__ unsigned warp_sums[kSumWarps];
    const int end = pairs_to_sort(count, capacity), first = int(blockIdx.x) * kBlockKeys;
    if (first >= end) return;
    const int inside = end - first < kBlockKeys ? end - first : kBlockKeys;
    const int thread = int(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;
    const int own = warp * (kWarp * kKeysPerThread) + lane, own_left = inside - own;
    // All reads start here, together: the compiler moves none across a vote, and each would be waited for in turn.
    const unsigned* const own_keys = keys + first + own;
    unsigned key[kKeysPerThread], place[kKeysPerThread];
#pragma unroll
    for (int i = 0; i < kKeysPerThread; ++i) key[i] = i * kWarp < own_left ? own_keys[i * kWarp] : ~0u;
    const unsigned in_all = digit_counts[thread];
    const unsigned in_blocks_before = histogram[(long long)(thread) * blocks + blockIdx.x];
    for (int w = 0; w < kSumWarps; ++w) counters[w][thread] = 0;
    __syncthreads();

    // Place of each key among the keys of its digit in this warp, which owns 512 keys in a row and takes 32 at a time.
    // What lies beyond the end gets the last digit and, being last, the last places. The digit waits in the upper half
    // of the place: taken from the key twice, it would wait in sixteen more registers.
#pragma unroll
    for (int i = 0; i < kKeysPerThread; ++i) {
        const unsigned digit = digit_of(key[i], shift);
        const unsigned peers = lanes_with(digit, kAllLanes), before = counters[warp][digit];
        const unsigned rank = unsigned(__popc(peers & lanes_below()));
        __syncwarp();
        if (rank == 0) counters[warp][digit] = (unsigned short)(before + unsigned(__popc(peers)));
        __syncwarp();
        place[i] = digit << 16 | (before + rank);
    }
    __syncthreads();

    // Thread d turns the counters of digit d into the first places of each warp in the block.
    unsigned in_block = 0, unused;
    for (int w = 0; w < kSumWarps; ++w) in_block += counters[w][thread];
    unsigned begin = block_sum_before(in_block, warp_sums, unused);
    move[thread] = block_sum_before(in_all, warp_sums, unused) + in_blocks_before - begin;
    for (int w = 0; w < kSumWarps; ++w) {
        const unsigned here = counters[w][thread];
        counters[w][thread] = (unsigned short)(begin);
        begin += here;
    }
    __syncthreads();

#pragma unroll
    for (int i = 0; i < kKeysPerThread; ++i) {
        place[i] = (place[i] & 0xffff) + counters[warp][place[i] >> 16];
        exchange[place[i]] = key[i];
    }
    __syncthreads();
    // Few turns at a time: with the addresses of all sixteen, 120 registers, two blocks fit at once instead of four.
    static_assert(sizeof(counters) >= kBlockKeys, "holds a byte per key");
    unsigned char* const digit_at = reinterpret_cast<unsigned char*>(counters);  // the counts have done their work
#pragma unroll 4
    for (int at = thread; at < inside; at += kSumThreads) {
        const unsigned moved = exchange[at], digit = digit_of(moved, shift);
        digit_at[at] = (unsigned char)(digit);
        if (keys_out) keys_out[move[digit] + unsigned(at)] = moved;
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kKeysPerThread; ++i) {
        const int at = own + i * kWarp;
        if (at < inside) exchange[place[i]] = payload ? payload[first + at] : unsigned(first + at);
    }
    __syncthreads();
#pragma unroll 2
    for (int at = thread; at < inside; at += kSumThreads) payload_out[move[digit_at[at]] + unsigned(at)] = exchange[at];
}
